//! The store on Redis 6.2 or later, or Valkey. The only place that knows either.
//!
//! A record is a string, described in `redis/common.lua`. Whoever decides over one does so in a Lua script, which runs
//! alone and reads the server's own clock. The scripts never look into the task itself: what changes while it lives
//! stands before it, and is patched in when the record is read. Every key has one hash tag, so that all of them are in
//! one slot of a cluster.
//!
//! Redis as it is often installed is not durable, and is not asked to be: losing it costs repeats, never a task.
//! It needs `maxmemory-policy noeviction`, since evicting a record would drop a fence. A user with
//! `+@read +@write +@scripting +time -@dangerous ~<namespace>:*` has all the rights that it takes.

mod erase;
mod link;
mod record;
mod script;
mod workflows;

use async_trait::async_trait;
use bytes::Bytes;
use redis::{Cmd, Value};

use self::link::{Link, array, bytes, optional_bytes, unexpected};
use self::script::Entry;
use super::stream::{READ_BYTES, STREAM_BYTES, STREAM_MS, STREAM_PARTS};
use super::{
    Accept, Accepted, Append, Appended, Beside, Claim, Claimed, FOLLOWERS, Filter, Leased, MISSED_MS, Page, Part,
    ReadStream, Release, Released, Renew, Renewed, Retention, Said, Settle, Settled, Store, StoreError, Stream,
    TakeTokens, TokensTaken, WorkflowAccepted, WorkflowFilter, WorkflowPage, WorkflowSeen, WorkflowWrite, cursor, pack,
};
use crate::envelope::Reply;
use crate::load::{LoadReport, ModelSpec};
use crate::outcome::TaskResult;
use crate::process::settings::StoreSettings;
use crate::task::{Priority, TaskId};
use crate::topology::Topology;
use crate::workflow::WorkflowId;

/// Most tasks, or workflows, on one page.
const PAGE_TASKS: usize = 1_000;
/// Most bytes of records on one page: beyond it the page ends early.
const PAGE_BYTES: usize = 16 << 20;
/// Records looked at in one round trip of a list, and in all of a list's. A page ends early after them.
const STRETCH_TASKS: usize = 256;
const SCAN_TASKS: usize = 16 * STRETCH_TASKS;
/// Records that a settlement looks at in one command: few commands, and yet not all of a batch in memory at once.
const TOGETHER: &[u8] = b"16";
/// Longest time-to-live and lease; milliseconds. A century, so that no sum of them overflows anywhere.
const LONGEST_MS: u64 = 100 * 365 * 24 * 3600 * 1000;

pub struct RedisStore {
    link: Link,
    /// Leases have their own connection: a renewal never waits behind a large result.
    leases: Link,
    keys: Keys,
    finished_ms: String,
    unfinished_ms: String,
    listed: String,
}

/// Keys, and prefixes of keys.
struct Keys {
    record: String,
    alias: String,
    listed: String,
    /// Counts all that ever were listed.
    counter: String,
    load: String,
    loads: String,
    models: String,
    paused: String,
    value: String,
    tokens: String,
    workflow: String,
    workflow_summary: String,
    workflows: String,
    /// When which of those that are listed is forgotten.
    workflow_ends: String,
    /// Counts what was to be cancelled.
    cancellations: String,
    stream: String,
    stream_head: String,
}

impl Keys {
    fn of(&self, id: TaskId) -> String {
        let mut digits = [0; 32];
        [&self.record, &*id.0.as_simple().encode_lower(&mut digits)].concat()
    }
}

impl RedisStore {
    /// Connects when it is first called, and again whenever the connection was lost. Until the server answers, every
    /// call fails with [`StoreError::Unreachable`]. [`ping`](Store::ping) finds out whether it does.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when `settings.url` is not the URL of a Redis server.
    pub fn connect(settings: &StoreSettings, topology: &Topology, retention: Retention) -> Result<Self, StoreError> {
        Ok(Self {
            link: Link::new(settings)?,
            leases: Link::new(settings)?,
            keys: Keys {
                record: topology.key("record:"),
                alias: topology.key("alias:"),
                listed: topology.key("records"),
                counter: topology.key("records:listed"),
                load: topology.key("load:"),
                loads: topology.key("loads"),
                models: topology.key("models"),
                paused: topology.key("paused"),
                value: topology.key("value:"),
                tokens: topology.key("tokens:"),
                workflow: topology.key("workflow:"),
                workflow_summary: topology.key("workflow-summary:"),
                workflows: topology.key("workflows"),
                workflow_ends: topology.key("workflows:ends"),
                cancellations: topology.key("cancellations"),
                stream: topology.key("stream:"),
                stream_head: topology.key("stream-head:"),
            },
            finished_ms: retention.finished_ms.clamp(1, LONGEST_MS).to_string(),
            unfinished_ms: retention.unfinished_ms.clamp(1, LONGEST_MS).to_string(),
            listed: retention.listed.to_string(),
        })
    }

    async fn commands(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, StoreError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let answers = self.link.send(&script::pipeline(commands)).await?;
        answers.into_iter().map(|answer| self.link.checked(answer)).collect()
    }

    async fn take_in(&self, tasks: Vec<Accept>, only_known: bool) -> Result<Vec<Accepted>, StoreError> {
        let entries = tasks.iter().map(|task| {
            let alias = task.alias.as_ref().map(|alias| [&self.keys.alias, alias.as_str()].concat());
            Ok(Entry { key: self.keys.of(task.id), arguments: [record::accepted(task, alias.as_deref())?] })
        });
        let entries = entries.collect::<Result<Vec<_>, StoreError>>()?;
        let most = number(FOLLOWERS);
        let keys = [&*self.keys.listed, &self.keys.counter];
        let only_known = number(u32::from(only_known));
        let arguments: [&[u8]; 5] =
            [self.keys.record.as_bytes(), self.unfinished_ms.as_bytes(), self.listed.as_bytes(), &most, &only_known];
        let answers = script::ACCEPT.batch(&self.link, &keys, &arguments, &entries).await?;
        let read = |answer| match answer {
            Value::Int(0) => Ok(Accepted::New),
            answer => {
                let [kind, id, record] = triple(answer)?;
                let known = record::present(id_of(id)?, record)?;
                match kind {
                    Value::Int(1) => Ok(Accepted::Known(known)),
                    Value::Int(2) => Ok(Accepted::Conflict(known)),
                    Value::Int(3) => Ok(Accepted::Unwanted(known)),
                    _ => Err(unexpected("accept")),
                }
            }
        };
        answers.into_iter().map(read).collect()
    }

    async fn command(&self, command: Cmd) -> Result<Value, StoreError> {
        self.commands(vec![command]).await?.pop().ok_or_else(|| unexpected("no answer"))
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn accept(&self, tasks: Vec<Accept>) -> Result<Vec<Accepted>, StoreError> {
        self.take_in(tasks, false).await
    }

    async fn accept_known(&self, tasks: Vec<Accept>) -> Result<Vec<Accepted>, StoreError> {
        self.take_in(tasks, true).await
    }

    async fn dispatched(&self, tasks: Vec<(TaskId, String)>) -> Result<(), StoreError> {
        let entry = |(id, model): (TaskId, String)| Entry { key: self.keys.of(id), arguments: [model.into_bytes()] };
        let entries: Vec<_> = tasks.into_iter().map(entry).collect();
        script::DISPATCHED.batch(&self.link, &[], &[self.unfinished_ms.as_bytes()], &entries).await.map(drop)
    }

    async fn claim(&self, claims: Vec<Claim>) -> Result<Vec<Claimed>, StoreError> {
        let ids: Vec<_> = claims.iter().map(|claim| claim.id).collect();
        let entries = claims.into_iter().map(|claim| Entry {
            key: self.keys.of(claim.id),
            arguments: [
                claim.worker.into_bytes(),
                record::nonce(claim.nonce).to_vec(),
                number(claim.lease_ms.min(LONGEST_MS)),
                number(claim.max_attempts),
                number(claim.attempts),
                match claim.beside {
                    Beside::Others => number(0u32),
                    Beside::OthersAnyway => number(1u32),
                    Beside::Nothing => number(2u32),
                },
            ],
        });
        let entries: Vec<_> = entries.collect();
        let answers = script::CLAIM.batch(&self.link, &[], &[self.unfinished_ms.as_bytes()], &entries).await?;
        let read = |(answer, id)| match answer {
            Value::Int(0) => Ok(Claimed::Unknown),
            Value::Int(busy) if busy < 0 => Ok(Claimed::Busy { for_ms: busy.unsigned_abs() }),
            Value::Int(attempt) => Ok(Claimed::Run { attempt: attempts(attempt)? }),
            Value::Array(begun) => match &begun[..] {
                [Value::Int(begun)] => Ok(Claimed::Exhausted { attempts: attempts(*begun)? }),
                [Value::Int(begun), Value::Int(1)] => Ok(Claimed::Unwanted { attempts: attempts(*begun)? }),
                [Value::Int(begun), Value::Int(2), Value::BulkString(worker)] => {
                    let worker = Some(String::from_utf8_lossy(worker).into_owned()).filter(|name| !name.is_empty());
                    Ok(Claimed::Fatal { attempts: attempts(*begun)?, worker })
                }
                [Value::Int(0), Value::Int(3)] => Ok(Claimed::Lost),
                _ => Err(unexpected("claim")),
            },
            ended => {
                let (result, followers) = record::finished(id, ended)?;
                Ok(Claimed::Terminal { result, followers })
            }
        };
        answers.into_iter().zip(ids).map(read).collect()
    }

    async fn renew(&self, leases: Vec<Renew>) -> Result<Vec<Renewed>, StoreError> {
        let entries = leases.into_iter().map(|lease| Entry {
            key: self.keys.of(lease.id),
            arguments: [record::nonce(lease.nonce).to_vec(), number(lease.lease_ms.min(LONGEST_MS))],
        });
        let entries: Vec<_> = entries.collect();
        let answers = script::RENEW.batch(&self.leases, &[], &[self.unfinished_ms.as_bytes()], &entries).await?;
        let read = |answer| match answer {
            Value::Int(0) => Ok(Renewed::Lost),
            Value::Int(1) => Ok(Renewed::Renewed),
            Value::Int(2) => Ok(Renewed::Unknown),
            Value::Int(3) => Ok(Renewed::CancelRequested),
            _ => Err(unexpected("renew")),
        };
        answers.into_iter().map(read).collect()
    }

    async fn leased(&self, ids: Vec<TaskId>) -> Result<Vec<Leased>, StoreError> {
        let entries = ids.into_iter().map(|id| Entry { key: self.keys.of(id), arguments: [] });
        let entries: Vec<Entry<0>> = entries.collect();
        let answers = script::LEASED.batch(&self.leases, &[], &[], &entries).await?;
        let read = |answer| match answer {
            Value::Int(0) => Ok(Leased::Over),
            Value::Int(1) => Ok(Leased::Live),
            Value::Int(2) => Ok(Leased::Ended),
            Value::Int(3) => Ok(Leased::Unknown),
            _ => Err(unexpected("leased")),
        };
        answers.into_iter().map(read).collect()
    }

    async fn settle(&self, settlements: Vec<Settle>) -> Result<Vec<Settled>, StoreError> {
        let entries = settlements.iter().map(|Settle { guard, result }| {
            if !result.state.is_terminal() {
                return Err(StoreError::Refused(format!("task {}: {:?} settles nothing", result.id.0, result.state)));
            }
            Ok(Entry { key: self.keys.of(result.id), arguments: [record::ended(*guard, result)?] })
        });
        let entries = entries.collect::<Result<Vec<_>, StoreError>>()?;
        let together = if has_twice(&settlements) { b"1".as_slice() } else { TOGETHER };
        let keys = [&*self.keys.listed, &self.keys.counter];
        let arguments = [self.finished_ms.as_bytes(), self.listed.as_bytes(), together];
        let answers = script::SETTLE.batch(&self.link, &keys, &arguments, &entries).await?;
        let read = |(answer, settle): (Value, Settle)| match answer {
            Value::Int(0) => Ok(Settled::Stale),
            Value::Int(1) => Ok(Settled::Done { followers: Vec::new() }),
            Value::BulkString(_) => Ok(Settled::Done { followers: record::followers(answer)? }),
            answer => match pair(answer)? {
                [Value::Int(2), told] => Ok(Settled::Again { followers: record::followers(told)? }),
                [Value::Int(3), ended] => Ok(Settled::Already(record::present(settle.result.id, ended)?)),
                _ => Err(unexpected("settle")),
            },
        };
        answers.into_iter().zip(settlements).map(read).collect()
    }

    async fn release(&self, releases: Vec<Release>) -> Result<Vec<Released>, StoreError> {
        let entries = releases.into_iter().map(|release| Entry {
            key: self.keys.of(release.id),
            arguments: [record::nonce(release.nonce).to_vec(), number(u8::from(release.counts))],
        });
        let entries: Vec<_> = entries.collect();
        let answers = script::RELEASE.batch(&self.leases, &[], &[self.unfinished_ms.as_bytes()], &entries).await?;
        answers.into_iter().map(|answer| Ok(if yes(answer)? { Released::Released } else { Released::Stale })).collect()
    }

    async fn cancel(&self, ids: Vec<TaskId>) -> Result<Vec<Option<TaskResult>>, StoreError> {
        let entries: Vec<_> = ids.iter().map(|id| Entry { key: self.keys.of(*id), arguments: [] }).collect();
        let missed = number(MISSED_MS);
        let arguments = [self.unfinished_ms.as_bytes(), &missed];
        let records = script::CANCEL.batch(&self.link, &[&self.keys.cancellations], &arguments, &entries).await?;
        records.into_iter().zip(ids).map(|(record, id)| record::task(id, record)).collect()
    }

    async fn reprioritize(
        &self,
        tasks: Vec<(TaskId, Option<Priority>)>,
    ) -> Result<Vec<Option<TaskResult>>, StoreError> {
        let entry = |(id, priority): &(TaskId, Option<Priority>)| Entry {
            key: self.keys.of(*id),
            arguments: [number(record::given(*priority))],
        };
        let entries: Vec<_> = tasks.iter().map(entry).collect();
        let arguments = [self.unfinished_ms.as_bytes()];
        let records = script::REPRIORITIZE.batch(&self.link, &[], &arguments, &entries).await?;
        records.into_iter().zip(tasks).map(|(record, (id, _))| record::task(id, record)).collect()
    }

    async fn get(&self, ids: Vec<TaskId>) -> Result<Vec<Option<TaskResult>>, StoreError> {
        let commands = ids.iter().map(|id| {
            let mut command = redis::cmd("GET");
            command.arg(self.keys.of(*id));
            command
        });
        let records = self.commands(commands.collect()).await?;
        records.into_iter().zip(ids).map(|(record, id)| record::task(id, record)).collect()
    }

    async fn follow(&self, ids: Vec<TaskId>, reply: Reply) -> Result<Vec<Option<TaskResult>>, StoreError> {
        let entries: Vec<_> = ids.iter().map(|id| Entry { key: self.keys.of(*id), arguments: [] }).collect();
        let (most, reply) = (number(FOLLOWERS), record::follower(&reply)?);
        let arguments = [self.unfinished_ms.as_bytes(), &most, &reply];
        let records = script::FOLLOW.batch(&self.link, &[], &arguments, &entries).await?;
        records.into_iter().zip(ids).map(|(record, id)| record::task(id, record)).collect()
    }

    async fn list(&self, filter: &Filter, cursor: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let limit = limit.min(PAGE_TASKS);
        let mut from = cursor.map(cursor::read).transpose()?;
        if limit == 0 {
            return Ok(Page { tasks: Vec::new(), cursor: cursor.map(str::to_owned) });
        }
        let unfiltered =
            filter.state.is_none() && filter.model.is_none() && filter.tenant.is_none() && filter.metadata.is_empty();
        let state = filter.state.map(|state| number(pack::state_number(state))).unwrap_or_default();
        let (mut tasks, mut page_bytes) = (Vec::new(), 0);
        for _ in 0..SCAN_TASKS / STRETCH_TASKS {
            let stretch = if unfiltered { limit - tasks.len() } else { STRETCH_TASKS };
            let place = from.map(number).unwrap_or_default();
            let (most, most_bytes) = (number(stretch.min(STRETCH_TASKS)), number(PAGE_BYTES - page_bytes));
            let arguments: [&[u8]; 5] = [self.keys.record.as_bytes(), &place, &most, &state, &most_bytes];
            let keys = [&*self.keys.listed, &self.keys.counter];
            let answer = script::LIST.call(&self.link, &keys, &arguments).await?;

            let mut answer = array(answer)?.into_iter();
            let end = answer.next().ok_or_else(|| unexpected("list")).and_then(count)?;
            while let (Some(place), Some(id), Some(record)) = (answer.next(), answer.next(), answer.next()) {
                from = Some(count(place)?);
                if let Value::BulkString(bytes) = &record {
                    page_bytes += bytes.len();
                }
                match id_of(id).and_then(|id| record::task(id, record)) {
                    Ok(task) => tasks.extend(task.filter(|task| filter.matches(task))),
                    // One that cannot be read must not keep the others from being listed.
                    Err(error) => tracing::warn!(%error, "a listed task cannot be read"),
                }
                if tasks.len() == limit {
                    return Ok(Page { tasks, cursor: from.map(cursor::write) });
                }
            }
            from = Some(end);
            if end == 0 {
                return Ok(Page { tasks, cursor: None });
            }
            if page_bytes >= PAGE_BYTES {
                break;
            }
        }
        Ok(Page { tasks, cursor: from.map(cursor::write) })
    }

    async fn report_load(&self, report: &LoadReport, ttl_ms: u64) -> Result<(), StoreError> {
        let key = format!("{}{}", self.keys.load, report.worker);
        let (json, ttl_ms) = (json(report)?, number(ttl_ms.clamp(1, LONGEST_MS)));
        let arguments = [report.worker.as_bytes(), &json, &ttl_ms];
        script::REPORT.call(&self.link, &[&self.keys.loads, &key], &arguments).await.map(drop)
    }

    async fn remove_load(&self, worker: &str) -> Result<(), StoreError> {
        let mut forget = redis::cmd("ZREM");
        forget.arg(&self.keys.loads).arg(worker);
        let mut delete = redis::cmd("DEL");
        delete.arg(format!("{}{worker}", self.keys.load));
        self.commands(vec![forget, delete]).await.map(drop)
    }

    async fn loads(&self) -> Result<Vec<LoadReport>, StoreError> {
        let answer = script::LOADS.call(&self.link, &[&self.keys.loads], &[self.keys.load.as_bytes()]).await?;
        readable(array(answer)?, "a load report")
    }

    async fn announce(&self, models: &[ModelSpec]) -> Result<(), StoreError> {
        if models.is_empty() {
            return Ok(());
        }
        let mut command = redis::cmd("HSET");
        command.arg(&self.keys.models);
        for model in models {
            command.arg(&model.name).arg(json(model)?);
        }
        self.command(command).await.map(drop)
    }

    async fn models(&self) -> Result<Vec<ModelSpec>, StoreError> {
        let mut command = redis::cmd("HVALS");
        command.arg(&self.keys.models);
        let mut models: Vec<ModelSpec> = readable(array(self.command(command).await?)?, "an announced model")?;
        models.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(models)
    }

    async fn pause(&self, model: &str, paused: bool) -> Result<(), StoreError> {
        let mut command = redis::cmd(if paused { "SADD" } else { "SREM" });
        command.arg(&self.keys.paused).arg(model);
        self.command(command).await.map(drop)
    }

    async fn paused(&self) -> Result<Vec<String>, StoreError> {
        let mut command = redis::cmd("SMEMBERS");
        command.arg(&self.keys.paused);
        let models = match self.command(command).await? {
            Value::Set(models) | Value::Array(models) => models,
            _ => return Err(unexpected("SMEMBERS")),
        };
        let mut models = models
            .into_iter()
            .map(|model| bytes(model).and_then(record::text))
            .collect::<Result<Vec<_>, StoreError>>()?;
        models.sort_unstable();
        Ok(models)
    }

    async fn take_tokens(&self, takes: Vec<TakeTokens>) -> Result<Vec<TokensTaken>, StoreError> {
        let entries = takes.iter().map(|take| Entry {
            key: [&self.keys.tokens, take.bucket.as_str()].concat(),
            arguments: [number(take.tokens), number(take.per_second), number(take.burst)],
        });
        let entries: Vec<Entry<3>> = entries.collect();
        let answers = script::TAKE_TOKENS.batch(&self.link, &[], &[], &entries).await?;
        let read = |answer| {
            let [taken, next_ms] = pair(answer)?;
            let taken = count(taken)?.try_into().map_err(|_| unexpected("a number of tokens"))?;
            Ok(TokensTaken { taken, next_ms: count(next_ms)? })
        };
        answers.into_iter().map(read).collect()
    }

    async fn accept_workflow(&self, workflow: WorkflowWrite) -> Result<WorkflowAccepted, StoreError> {
        self.accept_one(workflow).await
    }

    async fn write_workflow(&self, workflow: WorkflowWrite) -> Result<Option<WorkflowSeen>, StoreError> {
        self.write_one(workflow).await
    }

    async fn workflow(&self, id: WorkflowId) -> Result<Option<WorkflowSeen>, StoreError> {
        self.see_one(id).await
    }

    async fn cancel_workflow(&self, id: WorkflowId) -> Result<Option<WorkflowSeen>, StoreError> {
        self.cancel_one(id).await
    }

    async fn list_workflows(
        &self,
        filter: &WorkflowFilter,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<WorkflowPage, StoreError> {
        self.list_some(filter, cursor, limit).await
    }

    async fn cancellations(&self) -> Result<u64, StoreError> {
        let mut command = redis::cmd("GET");
        command.arg(&self.keys.cancellations);
        // Beside the renewals that it calls for.
        let mut answers = self.leases.send(&script::pipeline([command])).await?;
        let answer = answers.pop().ok_or_else(|| unexpected("no answer"))?;
        match optional_bytes(self.leases.checked(answer)?)? {
            Some(digits) => record::text(digits)?.parse().map_err(|_| unexpected("no number")),
            None => Ok(0),
        }
    }

    async fn append(&self, appends: Vec<Append>) -> Result<Vec<Appended>, StoreError> {
        let entries = appends.iter().map(|append| Entry { key: self.keys.of(append.id), arguments: [said(append)] });
        let entries: Vec<_> = entries.collect();
        let (ms, bytes, parts) = (number(STREAM_MS), number(STREAM_BYTES), number(STREAM_PARTS));
        let (stream, head) = (self.keys.stream.as_bytes(), self.keys.stream_head.as_bytes());
        let answers = script::APPEND.batch(&self.link, &[], &[stream, head, &ms, &bytes, &parts], &entries).await?;
        let read = |answer| match answer {
            Value::Int(0) => Ok(Appended::Kept),
            Value::Int(1) => Ok(Appended::Full),
            Value::Int(2) => Ok(Appended::Stale),
            _ => Err(unexpected("append")),
        };
        answers.into_iter().map(read).collect()
    }

    async fn streams(&self, reads: Vec<ReadStream>) -> Result<Vec<Stream>, StoreError> {
        let entries = reads
            .iter()
            .map(|read| Entry { key: self.keys.of(read.id), arguments: [number(read.after), number(read.most)] });
        let entries: Vec<_> = entries.collect();
        let bytes = number(READ_BYTES);
        let (streams, heads) = (self.keys.stream.as_bytes(), self.keys.stream_head.as_bytes());
        let answers = script::STREAMS.batch(&self.link, &[], &[streams, heads, &bytes], &entries).await?;
        answers.into_iter().map(read_stream).collect()
    }

    async fn put(&self, key: &str, value: Bytes) -> Result<(), StoreError> {
        let mut command = redis::cmd("SET");
        command.arg(format!("{}{key}", self.keys.value)).arg(&value[..]);
        self.command(command).await.map(drop)
    }

    async fn fetch(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        let mut command = redis::cmd("GET");
        command.arg(format!("{}{key}", self.keys.value));
        Ok(optional_bytes(self.command(command).await?)?.map(Bytes::from))
    }

    async fn ping(&self) -> Result<String, StoreError> {
        // Unlike `INFO`, every user may ask this, whatever its rights.
        let Value::Map(facts) = self.command(redis::cmd("HELLO")).await? else {
            return Err(unexpected("HELLO"));
        };
        let mut product = None;
        let mut version = String::new();
        for (name, value) in facts {
            match &*bytes(name)? {
                b"server" => product = Some(record::text(bytes(value)?)?),
                b"version" => version = record::text(bytes(value)?)?,
                _ => {}
            }
        }
        let product = match product.as_deref() {
            Some("redis") => "Redis",
            Some("valkey") => "Valkey",
            Some(other) => other,
            None => return Err(unexpected("HELLO")),
        };
        Ok(format!("{product} {version}"))
    }
}

/// What `append.lua` is told of one task.
fn said(append: &Append) -> Vec<u8> {
    let mut out = append.attempt.to_le_bytes().to_vec();
    out.extend_from_slice(&record::nonce(append.nonce));
    for said in &append.said {
        let (kind, body) = match said {
            Said::Partial(body) => (0, body),
            Said::Progress(body) => (1, body),
        };
        out.push(kind);
        out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(body);
    }
    out
}

/// What `streams.lua` answers of one task.
fn read_stream(answer: Value) -> Result<Stream, StoreError> {
    if answer == Value::Nil {
        return Ok(Stream::default());
    }
    let mut answer = array(answer)?.into_iter();
    let mut next = || answer.next().ok_or_else(|| unexpected("streams"));
    let attempt = count(next()?)?.try_into().map_err(|_| unexpected("an attempt"))?;
    let last = count(next()?)?;
    let (marked_at, progress) = (count(next()?)?, bytes(next()?)?);
    let more = count(next()?)? == 1;
    let mut partials = Vec::new();
    while let Some(number) = answer.next() {
        let body = answer.next().ok_or_else(|| unexpected("streams"))?;
        partials.push(Part { number: count(number)?, body: Bytes::from(bytes(body)?) });
    }
    let progress = (marked_at > 0).then(|| Part { number: marked_at, body: Bytes::from(progress) });
    Ok(Stream { attempt, partials, progress, more, last })
}

fn number(number: impl ToString) -> Vec<u8> {
    number.to_string().into_bytes()
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Refused(error.to_string()))
}

fn attempts(number: i64) -> Result<u32, StoreError> {
    number.try_into().map_err(|_| unexpected("a number of attempts"))
}

fn yes(answer: Value) -> Result<bool, StoreError> {
    match answer {
        Value::Int(number) => Ok(number == 1),
        _ => Err(unexpected("no number")),
    }
}

fn pair(answer: Value) -> Result<[Value; 2], StoreError> {
    array(answer)?.try_into().map_err(|_| unexpected("no pair"))
}

fn triple(answer: Value) -> Result<[Value; 3], StoreError> {
    array(answer)?.try_into().map_err(|_| unexpected("no three values"))
}

fn count(answer: Value) -> Result<u64, StoreError> {
    match answer {
        Value::Int(number) => number.try_into().map_err(|_| unexpected("a number below 0")),
        _ => Err(unexpected("no number")),
    }
}

fn id_of(answer: Value) -> Result<TaskId, StoreError> {
    record::text(bytes(answer)?)?.parse().map(TaskId).map_err(|_| unexpected("no id"))
}

/// Whether a task is settled twice in one batch.
fn has_twice(settlements: &[Settle]) -> bool {
    let mut ids: Vec<_> = settlements.iter().map(|settle| settle.result.id).collect();
    ids.sort_unstable();
    ids.windows(2).any(|pair| pair[0] == pair[1])
}

/// Those that can be read: what one process wrote must not blind the others to the rest.
fn readable<T: serde::de::DeserializeOwned>(answers: Vec<Value>, what: &str) -> Result<Vec<T>, StoreError> {
    let mut read = Vec::with_capacity(answers.len());
    for answer in answers {
        match record::parsed(&bytes(answer)?, what) {
            Ok(value) => read.push(value),
            Err(error) => tracing::warn!(%error, "left out"),
        }
    }
    Ok(read)
}
