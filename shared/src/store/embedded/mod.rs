//! The store inside the process: in memory, or durable in a folder, for when nothing is to be installed.
//!
//! All records are in memory, finished ones packed; the [journal](crate::journal) is only read when the store is
//! opened. Acceptances and settlements are answered when they are on disk; what happens to a task in between is written
//! without anybody waiting, so a crash may forget the last moments of it, never a result that was answered: who looks one up
//! is shown it when it is on disk. Lists alone wait for nothing. While the disk is full, what would have to be
//! written is refused and nothing changes.
//!
//! It is for one process. Leases and load reports live as long as it does; attempts outlive it.

mod buckets;
mod entry;
mod flows;
mod hash;
mod record;
mod records;
mod shelf;
mod streams;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use self::buckets::Buckets;
use self::entry::Entry;
use self::flows::{Flow, Flows};
use self::record::{Record, View};
use self::records::{Ended, Ending, Entered, Entrant, Held, Records};
use self::shelf::Shelf;
use self::streams::Streams;
use super::pack::put_task;
use super::{
    Accept, Accepted, Append, Appended, Claim, Claimed, Filter, Leased, Page, RECORD_BYTES, ReadStream, Release,
    Released, Renew, Renewed, Retention, Settle, Settled, Store, StoreError, Stream, TakeTokens, TokensTaken,
    WORKFLOW_BYTES, WorkflowAccepted, WorkflowFilter, WorkflowPage, WorkflowSeen, WorkflowWrite, cursor,
};
use crate::envelope::Reply;
use crate::journal::codec::Malformed;
use crate::journal::{Address, Batch, Journal, JournalError};
use crate::load::{LoadReport, ModelSpec};
use crate::outcome::TaskResult;
use crate::task::{Priority, TaskId};
use crate::time::Timestamp;
use crate::workflow::WorkflowId;

/// Most memory that records take, unless it is said otherwise.
pub const MEMORY_BYTES: usize = 4 << 30;
/// About what the journal writes of a record beside its packed bytes.
const ENTRY_BYTES: usize = 128;
/// About what the journal writes of a record that is not finished.
const LIVE_ENTRY_BYTES: usize = 512;
/// Records that a list looks at before it lets others have the lock.
const LOOKS: usize = 512;
/// Records that are forgotten at once when room is needed.
const SWEEP: usize = 10_000;
/// Most tasks of one page.
const PAGE: usize = 1_000;

/// See the [module](self). Dropping it closes it.
pub struct EmbeddedStore {
    records: Mutex<Records>,
    shelf: Mutex<Shelf>,
    flows: Mutex<Flows>,
    retention: Retention,
    buckets: Mutex<Buckets>,
    streams: Mutex<Streams>,
    journal: Option<Journal>,
    clock: Clock,
    memory_bytes: usize,
}

/// Milliseconds since the Unix epoch, by a clock that never runs backwards.
#[derive(Clone, Copy)]
struct Clock {
    start_ms: u64,
    start: Instant,
}

impl Clock {
    fn new() -> Self {
        Self { start_ms: u64::try_from(Timestamp::now().as_micros() / 1000).unwrap_or(0), start: Instant::now() }
    }

    fn now_ms(self) -> u64 {
        self.start_ms.saturating_add(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

impl EmbeddedStore {
    pub fn in_memory(retention: Retention) -> Self {
        Self {
            records: Mutex::new(Records::new(retention)),
            shelf: Mutex::default(),
            flows: Mutex::default(),
            retention,
            buckets: Mutex::default(),
            streams: Mutex::default(),
            journal: None,
            clock: Clock::new(),
            memory_bytes: MEMORY_BYTES,
        }
    }

    /// Opens or creates the store that is kept in `dir`, as `store.redb`. Reads all of it; every lease is dead.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when it is open in another process or the folder cannot be used,
    /// [`StoreError::Corrupt`] when the file is not whole.
    pub fn open(dir: &Path, retention: Retention) -> Result<Self, StoreError> {
        let mut store = Self::in_memory(retention);
        let (mut records, mut shelf, mut flows) = (Records::new(retention), Shelf::default(), Flows::default());
        let journal = Journal::open(dir, "store", |address, bytes| {
            match entry::read(bytes).map_err(|Malformed| Malformed.to_string())? {
                Entry::Record(id, mut record) => {
                    record.address = Some(address);
                    records.restore(id, record);
                    Ok(())
                }
                Entry::Workflow(id, flow) => {
                    flows.restore(id, Flow { address: Some(address), ..flow });
                    Ok(())
                }
                Entry::Model { name, json } => shelf.restore_model(name, json, address),
                Entry::Value { key, value } => shelf.restore_value(key, value, address),
            }
        })?;
        records.restored(store.clock.now_ms());
        store.records = Mutex::new(records);
        store.shelf = Mutex::new(shelf);
        flows.restored();
        store.flows = Mutex::new(flows);
        store.journal = Some(journal);
        Ok(store)
    }

    /// Refuses new records when all of them take more memory than this. Bytes.
    pub fn with_memory(mut self, bytes: usize) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// Commits of the journal so far, for measurements: several calls share one. 0 in memory.
    pub fn commits(&self) -> u64 {
        self.journal.as_ref().map_or(0, Journal::commits)
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        // Nothing that can panic runs under this lock, so a poisoned one is whole.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn batch(&self, bytes: usize) -> Result<Option<Batch>, StoreError> {
        match &self.journal {
            Some(journal) => Ok(Some(journal.reserve(bytes).await?)),
            None => Ok(None),
        }
    }

    /// Waits until the ends of those tasks that have ended are on disk.
    async fn surely(&self, ids: &[TaskId]) -> Result<(), StoreError> {
        let Some(journal) = self.journal.as_ref().filter(|_| !ids.is_empty()) else { return Ok(()) };
        let ends: Vec<Address> = {
            let records = self.records();
            ids.iter().filter_map(|id| records.ended_at(*id)).collect()
        };
        if journal.have_landed(&ends) {
            return Ok(());
        }
        // An empty batch is answered when all before it is written.
        Ok(journal.reserve(0).await?.commit(true).await?)
    }

    /// Changes records, and has what changed written: the order on disk is the order of the changes, because the batch
    /// is handed over under the lock. `wait` for what must not be forgotten once it is answered.
    async fn change<T>(
        &self,
        bytes: usize,
        wait: bool,
        change: impl FnOnce(&mut Records, u64, &mut Option<Batch>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut batch = self.batch(bytes).await?;
        let (answer, written) = {
            let mut records = self.records();
            let now_ms = self.clock.now_ms();
            let answer = change(&mut records, now_ms, &mut batch);
            let written = match batch {
                // Even an empty one is waited for: what it answers from may not be on disk yet.
                Some(batch) if wait => Some(batch.commit(true)),
                Some(batch) if !batch.is_empty() => {
                    batch.submit(true, None);
                    None
                }
                _ => None,
            };
            (answer?, written)
        };
        if let Some(written) = written {
            written.await?;
        }
        Ok(answer)
    }

    async fn take_in(&self, tasks: Vec<Accept>, only_known: bool) -> Result<Vec<Accepted>, StoreError> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let mut entrants = Vec::with_capacity(tasks.len());
        let mut bytes = 0;
        let mut packing = Vec::new();
        for Accept { id, fingerprint, alias, record, follower } in tasks {
            let task = packed(&mut packing, &record)?;
            bytes += task.len();
            let (state, attempt) = (record.state, record.attempt);
            entrants.push(Entrant { id, fingerprint, alias, state, attempt, task, follower });
        }
        let memory = bytes + entrants.len() * Record::weight(0);
        let entered = self
            .change(bytes + entrants.len() * ENTRY_BYTES, true, |records, now_ms, batch| {
                if !only_known {
                    self.check_memory(records, batch, memory, self.memory_bytes)?;
                }
                records.sweep_into(now_ms, 2 * entrants.len(), batch, None);
                Ok(entrants
                    .into_iter()
                    .map(|entrant| records.accept(entrant, only_known, now_ms, batch))
                    .collect::<Vec<_>>())
            })
            .await?;
        let answer = |entered| match entered {
            Entered::New => Ok(Accepted::New),
            Entered::Known(view) => Ok(Accepted::Known(shown(&view)?)),
            Entered::Unwanted(view) => Ok(Accepted::Unwanted(shown(&view)?)),
            Entered::Conflict(view) => Ok(Accepted::Conflict(shown(&view)?)),
        };
        entered.into_iter().map(answer).collect()
    }

    /// Makes room, or says that there is none for records of so many bytes beyond what is allowed.
    fn check_memory(
        &self,
        records: &mut Records,
        batch: &mut Option<Batch>,
        bytes: usize,
        allowed: usize,
    ) -> Result<(), StoreError> {
        if records.bytes().saturating_add(bytes) <= allowed {
            return Ok(());
        }
        records.sweep_into(self.clock.now_ms(), SWEEP, batch, self.journal.as_ref());
        if records.bytes().saturating_add(bytes) <= allowed {
            return Ok(());
        }
        Err(StoreError::Full(format!("its records take {} of {} bytes of memory", records.bytes(), self.memory_bytes)))
    }
}

fn check_size(bytes: usize) -> Result<(), StoreError> {
    if bytes > RECORD_BYTES {
        return Err(StoreError::Refused(format!("a record of {bytes} bytes; at most {RECORD_BYTES} are kept")));
    }
    Ok(())
}

/// A task in one piece of memory, by way of a buffer that is used again.
fn packed(packing: &mut Vec<u8>, task: &TaskResult) -> Result<Arc<[u8]>, StoreError> {
    packing.clear();
    put_task(packing, task);
    check_size(packing.len())?;
    Ok(packing.as_slice().into())
}

fn shown(view: &View) -> Result<Box<TaskResult>, StoreError> {
    Ok(Box::new(view.task()?))
}

/// The same text mostly comes many times in a row.
#[derive(Default)]
struct Repeated(Option<Arc<str>>);

impl Repeated {
    fn get(&mut self, text: &str) -> Arc<str> {
        match &self.0 {
            Some(last) if **last == *text => last.clone(),
            _ => self.0.insert(text.into()).clone(),
        }
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn accept(&self, tasks: Vec<Accept>) -> Result<Vec<Accepted>, StoreError> {
        self.take_in(tasks, false).await
    }

    async fn accept_known(&self, tasks: Vec<Accept>) -> Result<Vec<Accepted>, StoreError> {
        self.take_in(tasks, true).await
    }

    async fn dispatched(&self, tasks: Vec<(TaskId, String)>) -> Result<(), StoreError> {
        let bytes = tasks.len() * LIVE_ENTRY_BYTES;
        let mut models = Repeated::default();
        let tasks: Vec<_> = tasks.into_iter().map(|(id, model)| (id, models.get(&model))).collect();
        self.change(bytes, false, |records, now_ms, batch| {
            for (id, model) in tasks {
                records.dispatched(id, model, now_ms, batch);
            }
            Ok(())
        })
        .await
    }

    async fn claim(&self, claims: Vec<Claim>) -> Result<Vec<Claimed>, StoreError> {
        let started = Timestamp::now();
        let held = self
            .change(claims.len() * LIVE_ENTRY_BYTES, false, |records, now_ms, batch| {
                let mut workers = Repeated::default();
                let hold = |claim: &Claim| records.claim(claim, workers.get(&claim.worker), started, now_ms, batch);
                Ok(claims.iter().map(hold).collect::<Vec<_>>())
            })
            .await?;
        let is_ended = |(held, _): &(&Held, &Claim)| matches!(held, Held::Terminal(..));
        let ended: Vec<TaskId> = held.iter().zip(&claims).filter(is_ended).map(|(_, claim)| claim.id).collect();
        self.surely(&ended).await?;
        let answer = |held| match held {
            Held::Run { attempt } => Ok(Claimed::Run { attempt }),
            Held::Busy { for_ms } => Ok(Claimed::Busy { for_ms }),
            Held::Terminal(view, followers) => Ok(Claimed::Terminal { result: shown(&view)?, followers }),
            Held::Exhausted { attempts } => Ok(Claimed::Exhausted { attempts }),
            Held::Lost => Ok(Claimed::Lost),
            Held::Fatal { attempts, worker } => {
                Ok(Claimed::Fatal { attempts, worker: worker.map(|worker| worker.to_string()) })
            }
            Held::Unwanted { attempts } => Ok(Claimed::Unwanted { attempts }),
            Held::Unknown => Ok(Claimed::Unknown),
        };
        held.into_iter().map(answer).collect()
    }

    async fn leased(&self, ids: Vec<TaskId>) -> Result<Vec<Leased>, StoreError> {
        let now_ms = self.clock.now_ms();
        let mut records = self.records();
        Ok(ids.into_iter().map(|id| records.leased(id, now_ms)).collect())
    }

    async fn renew(&self, leases: Vec<Renew>) -> Result<Vec<Renewed>, StoreError> {
        // Nothing of a lease is written, so this goes on while the disk is full.
        let now_ms = self.clock.now_ms();
        let mut records = self.records();
        Ok(leases.iter().map(|lease| records.renew(lease, now_ms)).collect())
    }

    async fn settle(&self, settlements: Vec<Settle>) -> Result<Vec<Settled>, StoreError> {
        if settlements.is_empty() {
            return Ok(Vec::new());
        }
        let mut endings = Vec::with_capacity(settlements.len());
        let mut bytes = 0;
        let mut packing = Vec::new();
        for Settle { guard, result } in settlements {
            if !result.state.is_terminal() {
                return Err(StoreError::Refused(format!("{:?} settles nothing: it is not terminal", result.state)));
            }
            let task = packed(&mut packing, &result)?;
            bytes += task.len();
            endings.push(Ending { id: result.id, guard, state: result.state, task });
        }
        let count = endings.len();
        let ended = self
            .change(bytes + count * ENTRY_BYTES, true, |records, now_ms, batch| {
                // Somewhat more than for new tasks: those that were let in must be able to end.
                self.check_memory(records, batch, bytes, self.memory_bytes + self.memory_bytes / 8)?;
                records.sweep_into(now_ms, 2 * count, batch, None);
                Ok(endings.into_iter().map(|ending| records.settle(ending, now_ms, batch)).collect::<Vec<_>>())
            })
            .await?;
        let answer = |ended| match ended {
            Ended::Done(followers) => Ok(Settled::Done { followers }),
            Ended::Again(followers) => Ok(Settled::Again { followers }),
            Ended::Stale => Ok(Settled::Stale),
            Ended::Already(view) => Ok(Settled::Already(shown(&view)?)),
        };
        ended.into_iter().map(answer).collect()
    }

    async fn release(&self, releases: Vec<Release>) -> Result<Vec<Released>, StoreError> {
        self.change(releases.len() * LIVE_ENTRY_BYTES, false, |records, now_ms, batch| {
            Ok(releases.iter().map(|release| records.release(release, now_ms, batch)).collect())
        })
        .await
    }

    async fn cancel(&self, ids: Vec<TaskId>) -> Result<Vec<Option<TaskResult>>, StoreError> {
        // Waited for: what is to be cancelled must not run after a crash.
        let views = self
            .change(ids.len() * LIVE_ENTRY_BYTES, true, |records, now_ms, batch| {
                Ok(ids.into_iter().map(|id| records.cancel(id, now_ms, batch)).collect::<Vec<_>>())
            })
            .await?;
        views.iter().map(|view| Ok(view.as_ref().map(View::task).transpose()?)).collect()
    }

    async fn reprioritize(
        &self,
        tasks: Vec<(TaskId, Option<Priority>)>,
    ) -> Result<Vec<Option<TaskResult>>, StoreError> {
        let views = self
            .change(tasks.len() * LIVE_ENTRY_BYTES, true, |records, now_ms, batch| {
                let give = |(id, priority)| records.reprioritize(id, priority, now_ms, batch);
                Ok(tasks.into_iter().map(give).collect::<Vec<_>>())
            })
            .await?;
        views.iter().map(|view| Ok(view.as_ref().map(View::task).transpose()?)).collect()
    }

    async fn get(&self, ids: Vec<TaskId>) -> Result<Vec<Option<TaskResult>>, StoreError> {
        let now_ms = self.clock.now_ms();
        let views: Vec<_> = {
            let records = self.records();
            ids.iter().map(|id| records.get(*id, now_ms)).collect()
        };
        self.surely(&ids).await?;
        views.iter().map(|view| Ok(view.as_ref().map(View::task).transpose()?)).collect()
    }

    async fn follow(&self, ids: Vec<TaskId>, follower: Reply) -> Result<Vec<Option<TaskResult>>, StoreError> {
        let views = self
            .change(ids.len() * LIVE_ENTRY_BYTES, false, |records, now_ms, batch| {
                let follow = |id: &TaskId| records.follow(*id, follower.clone(), now_ms, batch);
                Ok(ids.iter().map(follow).collect::<Vec<_>>())
            })
            .await?;
        self.surely(&ids).await?;
        views.iter().map(|view| Ok(view.as_ref().map(View::task).transpose()?)).collect()
    }

    async fn list(&self, filter: &Filter, cursor: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let mut end = match cursor {
            Some(cursor) => read_cursor(cursor, self.records().end())?,
            None => u64::MAX,
        };
        let limit = limit.min(PAGE);
        if limit == 0 {
            return Ok(Page::default());
        }
        let mut page = Page::default();
        let mut last = 0;
        loop {
            let (views, next) = self.records().list(end, filter.state, LOOKS, self.clock.now_ms());
            for (seq, view) in views {
                if !view.matches(filter)? {
                    continue;
                }
                // One more than fits: there is a next page, and it begins after the last that did fit.
                if page.tasks.len() == limit {
                    page.cursor = Some(cursor::write(last));
                    return Ok(page);
                }
                page.tasks.push(view.task()?);
                last = seq;
            }
            let Some(next) = next else { return Ok(page) };
            end = next;
            tokio::task::yield_now().await;
        }
    }

    async fn report_load(&self, report: &LoadReport, ttl_ms: u64) -> Result<(), StoreError> {
        let now_ms = self.clock.now_ms();
        // Reports come as long as anything lives, so that old records go even when there are no new ones.
        self.records().sweep_into(now_ms, LOOKS, &mut None, self.journal.as_ref());
        self.shelf().report(report, now_ms.saturating_add(ttl_ms), now_ms)
    }

    async fn remove_load(&self, worker: &str) -> Result<(), StoreError> {
        self.shelf().remove_report(worker);
        Ok(())
    }

    async fn loads(&self) -> Result<Vec<LoadReport>, StoreError> {
        Ok(self.shelf().reports(self.clock.now_ms()))
    }

    async fn announce(&self, models: &[ModelSpec]) -> Result<(), StoreError> {
        let bytes = models.len() * LIVE_ENTRY_BYTES;
        self.put_on_shelf(bytes, |shelf, batch| shelf.announce(models, batch)).await
    }

    async fn models(&self) -> Result<Vec<ModelSpec>, StoreError> {
        Ok(self.shelf().models())
    }

    async fn pause(&self, model: &str, paused: bool) -> Result<(), StoreError> {
        self.put_on_shelf(LIVE_ENTRY_BYTES, |shelf, batch| shelf.pause(model, paused, batch)).await
    }

    async fn paused(&self) -> Result<Vec<String>, StoreError> {
        self.shelf().paused()
    }

    async fn take_tokens(&self, takes: Vec<TakeTokens>) -> Result<Vec<TokensTaken>, StoreError> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        Ok(takes.iter().map(|take| buckets.take(take, now)).collect())
    }

    async fn accept_workflow(&self, workflow: WorkflowWrite) -> Result<WorkflowAccepted, StoreError> {
        let bytes = check_workflow(&workflow)?;
        self.change_flows(bytes, |flows, now_ms, batch| flows.accept(workflow, now_ms, self.retention, batch)).await
    }

    async fn write_workflow(&self, workflow: WorkflowWrite) -> Result<Option<WorkflowSeen>, StoreError> {
        let bytes = check_workflow(&workflow)?;
        self.change_flows(bytes, |flows, now_ms, batch| flows.write(workflow, now_ms, self.retention, batch)).await
    }

    async fn workflow(&self, id: WorkflowId) -> Result<Option<WorkflowSeen>, StoreError> {
        let flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(flows.see(id.0, self.clock.now_ms(), self.retention))
    }

    async fn cancel_workflow(&self, id: WorkflowId) -> Result<Option<WorkflowSeen>, StoreError> {
        let seen = self.workflow(id).await?;
        let bytes = seen.map_or(0, |seen| seen.record.len());
        self.change_flows(bytes, |flows, now_ms, batch| Ok(flows.cancel(id.0, now_ms, self.retention, batch))).await
    }

    async fn list_workflows(
        &self,
        filter: &WorkflowFilter,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<WorkflowPage, StoreError> {
        let mut before = cursor.map(cursor::read).transpose()?.unwrap_or(u64::MAX);
        let limit = limit.min(PAGE);
        let mut page = WorkflowPage::default();
        if limit == 0 {
            return Ok(page);
        }
        let mut last = 0;
        loop {
            let (found, next) = {
                let flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
                flows.list(filter, before, LOOKS, self.clock.now_ms(), self.retention)
            };
            for (place, summary) in found {
                // One more than fits: there is a next page, and it begins after the last that did fit.
                if page.workflows.len() == limit {
                    page.cursor = Some(cursor::write(last));
                    return Ok(page);
                }
                page.workflows.push(summary);
                last = place;
            }
            let Some(next) = next else { return Ok(page) };
            before = next;
            tokio::task::yield_now().await;
        }
    }

    async fn cancellations(&self) -> Result<u64, StoreError> {
        Ok(self.records().cancellations())
    }

    async fn append(&self, appends: Vec<Append>) -> Result<Vec<Appended>, StoreError> {
        let now_ms = self.clock.now_ms();
        let mut records = self.records();
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let append = |append: &Append| {
            let may_speak = records.may_speak(append.id, append.nonce, now_ms);
            streams.append(append, may_speak, now_ms)
        };
        Ok(appends.iter().map(append).collect())
    }

    async fn streams(&self, reads: Vec<ReadStream>) -> Result<Vec<Stream>, StoreError> {
        let now_ms = self.clock.now_ms();
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(reads.iter().map(|read| streams.read(read, now_ms)).collect())
    }

    async fn put(&self, key: &str, value: Bytes) -> Result<(), StoreError> {
        check_size(key.len() + value.len())?;
        self.put_on_shelf(key.len() + value.len(), |shelf, batch| shelf.put(key, value, batch)).await
    }

    async fn fetch(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        Ok(self.shelf().fetch(key))
    }

    async fn ping(&self) -> Result<String, StoreError> {
        match self.journal.as_ref().and_then(Journal::error) {
            Some(error) => Err(error.into()),
            None => Ok(format!("embedded {}", env!("CARGO_PKG_VERSION"))),
        }
    }
}

fn check_workflow(workflow: &WorkflowWrite) -> Result<usize, StoreError> {
    let bytes = workflow.record.len();
    if bytes > WORKFLOW_BYTES {
        return Err(StoreError::Refused(format!("a workflow of {bytes} bytes; at most {WORKFLOW_BYTES} are kept")));
    }
    Ok(bytes)
}

impl EmbeddedStore {
    /// Answered when it is on disk.
    async fn change_flows<T>(
        &self,
        bytes: usize,
        change: impl FnOnce(&mut Flows, u64, &mut Option<Batch>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut batch = self.batch(bytes + ENTRY_BYTES).await?;
        let (answer, written) = {
            let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = change(&mut flows, self.clock.now_ms(), &mut batch)?;
            (answer, batch.filter(|batch| !batch.is_empty()).map(|batch| batch.commit(true)))
        };
        if let Some(written) = written {
            written.await?;
        }
        Ok(answer)
    }

    async fn put_on_shelf(
        &self,
        bytes: usize,
        put: impl FnOnce(&mut Shelf, &mut Option<Batch>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut batch = self.batch(bytes).await?;
        let written = {
            let mut shelf = self.shelf();
            put(&mut shelf, &mut batch)?;
            batch.filter(|batch| !batch.is_empty()).map(|batch| batch.commit(true))
        };
        match written {
            Some(written) => Ok(written.await?),
            None => Ok(()),
        }
    }
}

fn read_cursor(cursor: &str, end: u64) -> Result<u64, StoreError> {
    cursor::read(cursor).and_then(|seq| if seq >= end { Err(StoreError::BadCursor) } else { Ok(seq) })
}

impl From<JournalError> for StoreError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Full(_) => Self::Full(error.to_string()),
            JournalError::Corrupt(what) => Self::Corrupt(what),
            JournalError::InUse(_) | JournalError::Failed(_) | JournalError::Closed => Self::Refused(error.to_string()),
        }
    }
}

impl From<Malformed> for StoreError {
    fn from(error: Malformed) -> Self {
        Self::Corrupt(error.to_string())
    }
}
