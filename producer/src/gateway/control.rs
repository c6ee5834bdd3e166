//! What can be asked of tasks that were accepted, one or many: to cancel them, to give them another priority, to explain why
//! they wait. And of models: to be paused.
//!
//! A cancellation is written into the record first, and only then are the schedulers asked: whoever reads the task from then on
//! finds it there. A priority is given to the schedulers first and written down after, so that the record never shows one that
//! came too late. What no answer confirms in time is `requested`, and holds all the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Path, Request, State as Shares};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taskyard_shared::broker::Message;
use taskyard_shared::control::{Ask, CANCELLED, Fate, Place, TASKS, Told, Waiting};
use taskyard_shared::store::{Filter, Guard, Settle, Settled, Store};
use taskyard_shared::{Priority, State, TaskError, TaskId, TaskResult, Timestamp, Timings, messages};

use super::Shared;
use super::access::Caller;
use super::ask::Heard;
use super::problem::{Code, Problem};
use super::request::{Media, media, path_id, read_json};
use super::waiting::LOOKUP_LIMIT;

/// Pages of the store that one call by filter looks through.
const PAGES: usize = 8;
/// States that a call by filter looks through when none is given: those of which it can change something.
const OPEN: [State; 4] = [State::Blocked, State::Queued, State::Dispatched, State::Running];

/// What came of what was asked of one task.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It has ended as cancelled, now or before.
    Cancelled,
    /// It has the priority, and its place by it.
    Reprioritized,
    /// It is with the workers or nobody has confirmed it yet: it will be done if it still can be.
    Requested,
    /// It is with the workers: its priority stays.
    AlreadyDispatched,
    /// It had ended before, and stays as it is.
    AlreadyFinished,
    /// It is another task now, with its input and all attempts before it.
    Retried,
    /// It has not ended: there is nothing to try again yet.
    NotFinished,
    /// It has ended, and what it was to work on is not kept: send it again.
    InputNotKept,
    /// No task has this id.
    NotFound,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Reprioritized => "reprioritized",
            Self::Requested => "requested",
            Self::AlreadyDispatched => "already_dispatched",
            Self::AlreadyFinished => "already_finished",
            Self::Retried => "retried",
            Self::NotFinished => "not_finished",
            Self::InputNotKept => "input_not_kept",
            Self::NotFound => "not_found",
        }
    }
}

/// One task, and what came of it.
#[derive(Serialize, JsonSchema)]
pub(super) struct Changed {
    id: TaskId,
    outcome: Outcome,
    /// As it stood last.
    state: Option<State>,
}

/// `POST /v1/tasks/{id}/reprioritize`
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPriority {
    priority: Priority,
}

/// Which tasks; a field that is not there does not narrow. At least one must be.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Selection {
    model: Option<String>,
    tenant: Option<String>,
    /// One in which a task has not ended.
    state: Option<State>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    /// Most tasks in this call: 1,000 unless it says less.
    limit: Option<usize>,
    /// As the call before answered it.
    cursor: Option<String>,
}

/// The same, and what they are to have. Not a [`Selection`] within: whoever mistypes a field that narrows is told.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SelectionAndPriority {
    priority: Priority,
    model: Option<String>,
    tenant: Option<String>,
    /// One in which a task has not ended.
    state: Option<State>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    /// Most tasks in this call: 1,000 unless it says less.
    limit: Option<usize>,
    /// As the call before answered it.
    cursor: Option<String>,
}

/// What came of a call by filter.
#[derive(Serialize, JsonSchema)]
pub(super) struct Counts {
    /// Tasks that matched in this call.
    matched: usize,
    /// How many of them came to what.
    outcomes: BTreeMap<&'static str, usize>,
    /// There may be more that match: the same call with this `cursor` goes on.
    cursor: Option<String>,
}

/// A model that was paused or resumed.
#[derive(Serialize, JsonSchema)]
pub(super) struct Pause {
    model: String,
    paused: bool,
    /// Every active scheduler has said that it holds to it. Otherwise they find it in the store, within a moment of being there.
    in_force: bool,
}

/// Where a task stands, and what it waits for.
#[derive(Serialize, JsonSchema)]
pub(super) struct Explanation {
    id: TaskId,
    state: State,
    model: Option<String>,
    tenant: String,
    priority: Priority,
    attempt: u32,
    /// Why it is not running, or that it is: a reason for waiting, `not_read`, `no_scheduler`, `dispatched`, `running` or
    /// `finished`.
    reason: String,
    /// The same for people.
    message: String,
    timings: Timings,
    worker: Option<String>,
    /// Its place, while a scheduler holds it.
    waiting: Option<Waiting>,
}

/// `POST /v1/tasks/{id}/cancel`
pub(super) async fn cancel(Shares(gateway): Shares<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let (mut parts, _) = request.into_parts();
    let id = gateway.open_to_change(&mut parts).await?;
    one(gateway.cancel(vec![id]).await?)
}

/// `POST /v1/tasks/{id}/reprioritize`
pub(super) async fn reprioritize(Shares(gateway): Shares<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let (mut parts, body) = request.into_parts();
    let id = gateway.open_to_change(&mut parts).await?;
    media(&parts.headers, &[Media::Json])?;
    let held = gateway.read_body(&parts.headers, body).await?;
    let NewPriority { priority } = read_json(&held.bytes)?;
    one(gateway.reprioritize(vec![id], priority).await?)
}

/// `POST /v1/tasks/cancel`
pub(super) async fn cancel_selected(
    Shares(gateway): Shares<Arc<Shared>>,
    request: Request,
) -> Result<Json<Counts>, Problem> {
    let (parts, body) = request.into_parts();
    media(&parts.headers, &[Media::Json])?;
    let held = gateway.read_body(&parts.headers, body).await?;
    let (ids, cursor) = gateway.select(&Caller::of(&parts)?, read_json(&held.bytes)?).await?;
    Ok(Json(counts(gateway.cancel(ids).await?, cursor)))
}

/// `POST /v1/tasks/reprioritize`
pub(super) async fn reprioritize_selected(
    Shares(gateway): Shares<Arc<Shared>>,
    request: Request,
) -> Result<Json<Counts>, Problem> {
    let (parts, body) = request.into_parts();
    media(&parts.headers, &[Media::Json])?;
    let held = gateway.read_body(&parts.headers, body).await?;
    let SelectionAndPriority { priority, model, tenant, state, metadata, limit, cursor } = read_json(&held.bytes)?;
    let selection = Selection { model, tenant, state, metadata, limit, cursor };
    let (ids, cursor) = gateway.select(&Caller::of(&parts)?, selection).await?;
    Ok(Json(counts(gateway.reprioritize(ids, priority).await?, cursor)))
}

/// `POST /v1/queues/{model}/pause`
pub(super) async fn pause(gateway: Shares<Arc<Shared>>, request: Request) -> Result<Json<Pause>, Problem> {
    set_paused(gateway, request, true).await
}

/// `POST /v1/queues/{model}/resume`
pub(super) async fn resume(gateway: Shares<Arc<Shared>>, request: Request) -> Result<Json<Pause>, Problem> {
    set_paused(gateway, request, false).await
}

async fn set_paused(
    Shares(gateway): Shares<Arc<Shared>>,
    request: Request,
    paused: bool,
) -> Result<Json<Pause>, Problem> {
    let (mut parts, _) = request.into_parts();
    let unknown = || Problem::new(Code::NotFound, "no worker has announced a model of this name");
    let model = path_text(&mut parts).await.ok_or_else(unknown)?;
    let store = &gateway.records;
    let known = store.ask(LOOKUP_LIMIT, |store| async move { store.models().await }).await?;
    if !known.iter().any(|spec| spec.name == model) && !gateway.paused().await?.contains(&model) {
        return Err(unknown());
    }
    let name = model.clone();
    store.ask(LOOKUP_LIMIT, |store| async move { store.pause(&name, paused).await }).await?;
    let in_force = gateway.ask(Ask::ReadPaused {}).await?.complete;
    Ok(Json(Pause { model, paused, in_force }))
}

/// `GET /v1/tasks/{id}/explain`
pub(super) async fn explain(
    Shares(gateway): Shares<Arc<Shared>>,
    request: Request,
) -> Result<Json<Explanation>, Problem> {
    let (mut parts, _) = request.into_parts();
    let id = path_id(&mut parts).await.ok_or_else(not_found)?;
    let caller = Caller::of(&parts)?;
    let task = gateway.seen(&caller, id).await?.ok_or_else(not_found)?;
    if task.state.is_terminal() || task.state == State::Running {
        return Ok(Json(explained(task, None, "")));
    }
    let heard = gateway.ask(Ask::Explain { id }).await?;
    let mut dispatched = false;
    for answer in &heard.answers {
        match &answer.told {
            Told::Place { place: Place::Waiting(waiting) } => {
                return Ok(Json(explained(task, Some((**waiting).clone()), "")));
            }
            Told::Place { place: Place::Dispatched {} } => dispatched = true,
            _ => {}
        }
    }
    // It may have moved on while it was asked about.
    let task = gateway.seen(&caller, id).await?.ok_or_else(not_found)?;
    let reason = match task.state {
        _ if dispatched => "dispatched",
        State::Dispatched => "dispatched",
        _ if heard.complete => "not_read",
        _ if heard.active == 0 => "no_scheduler",
        _ => return Err(Problem::new(Code::SchedulerUnavailable, "not every scheduler answered in time").of_task(id)),
    };
    Ok(Json(explained(task, None, reason)))
}

fn explained(task: TaskResult, waiting: Option<Waiting>, reason: &str) -> Explanation {
    let reason = match &waiting {
        _ if task.state.is_terminal() => "finished",
        Some(waiting) => &waiting.reason,
        None if task.state == State::Running => "running",
        None => reason,
    };
    let message = match (reason, &waiting) {
        ("finished", _) => format!("it has ended: {}", task.state.as_str()),
        ("running", _) => "it runs".to_owned(),
        ("dispatched", _) => "it is in its model's queue, or with a worker".to_owned(),
        ("not_read", _) => {
            "no scheduler has read it yet: it waits in the broker, in the order in which tasks came".to_owned()
        }
        ("no_scheduler", _) => "no scheduler is active: it is read when one is".to_owned(),
        (reason, Some(waiting)) => in_words(reason, waiting),
        (reason, None) => reason.to_owned(),
    };
    let reason = reason.to_owned();
    let TaskResult { id, state, model, tenant, priority, attempt, timings, worker, .. } = task;
    let priority = waiting.as_ref().map_or(priority, |waiting| waiting.priority);
    Explanation { id, state, model, tenant, priority, attempt, reason, message, timings, worker, waiting }
}

fn in_words(reason: &str, waiting: &Waiting) -> String {
    let Waiting { model, queued_in_model, capacity, dispatched_in_model, .. } = waiting;
    let why = match reason {
        "not_before" => return "its earliest start is yet to come".to_owned(),
        "no_worker" => format!("no worker offers a slot for {model}"),
        "not_loaded" => format!("no worker holds {model}; one that can is to load it"),
        "no_credit" => format!("its workers have all of {model} that they take, {dispatched_in_model} of {capacity}"),
        "next_decision" => format!("a slot of {model} is free and is given out next"),
        "paused" => format!("{model} is paused"),
        "fair_share" => "its tenant has had more than its share, and others come first".to_owned(),
        "tenant_limit" => "its tenant has as many tasks running as it may".to_owned(),
        "paged" => {
            "more waits than is kept in memory: it is kept in the broker, in its order, until it is nearly its turn"
                .to_owned()
        }
        "unknown_model" => return format!("no worker has announced {model} yet"),
        reason => reason.to_owned(),
    };
    let ahead = match waiting.ahead_in_lane {
        Some(ahead) if waiting.ahead_uncounted => format!("at least {ahead} of its own kind go first"),
        Some(ahead) => format!("{ahead} of its own kind go first"),
        None => "nobody of its own kind goes first".to_owned(),
    };
    format!("{why}; {queued_in_model} wait for {model}, and {ahead}")
}

impl Shared {
    /// The task of a path, when it is there for who calls.
    pub(super) async fn open_to_change(&self, parts: &mut Parts) -> Result<TaskId, Problem> {
        let id = path_id(parts).await.ok_or_else(not_found)?;
        if self.may_change(&Caller::of(parts)?, id).await? { Ok(id) } else { Err(not_found()) }
    }

    async fn cancel(&self, ids: Vec<TaskId>) -> Result<Vec<Changed>, Problem> {
        let asked = ids.clone();
        let records = self.records.ask(LOOKUP_LIMIT, |store| async move { store.cancel(asked).await }).await?;
        let mut changed: Vec<Changed> = ids.iter().zip(records).map(|(id, record)| as_it_was(*id, record)).collect();
        // Those without a record too: the store may have lost it.
        let open: Vec<TaskId> = changed.iter().filter(|one| one.is_open()).map(|one| one.id).collect();
        if open.is_empty() {
            return Ok(changed);
        }
        let heard = self.ask(Ask::Cancel { ids: open.clone() }).await?;
        let fates = fates(&heard);
        let mut left = Vec::new();
        for one in changed.iter_mut().filter(|one| one.is_open()) {
            match fates.get(&one.id) {
                Some(Fate::Done) => one.becomes(Outcome::Cancelled, State::Cancelled),
                Some(Fate::Dispatched) => one.outcome = Outcome::Requested,
                Some(Fate::Finished) => left.push(one.id),
                Some(Fate::Unknown) if one.outcome == Outcome::NotFound => {}
                Some(Fate::Unknown) => left.push(one.id),
                None if one.outcome == Outcome::NotFound => {}
                None => one.outcome = Outcome::Requested,
            }
        }
        if left.is_empty() {
            return Ok(changed);
        }
        let ended = self.end_unheld(left).await?;
        for one in &mut changed {
            if let Some((outcome, state)) = ended.get(&one.id) {
                (one.outcome, one.state) = (*outcome, *state);
            }
        }
        Ok(changed)
    }

    /// Ends tasks that are to be cancelled and that no scheduler holds: they are in a queue that nobody has read yet, and who
    /// reads them finds that they have ended.
    async fn end_unheld(&self, ids: Vec<TaskId>) -> Result<HashMap<TaskId, (Outcome, Option<State>)>, Problem> {
        let asked = ids.clone();
        let records = self.records.ask(LOOKUP_LIMIT, |store| async move { store.get(asked).await }).await?;
        let mut ended = HashMap::new();
        let mut settles = Vec::new();
        for (id, record) in ids.into_iter().zip(records) {
            match record {
                Some(record) if matches!(record.state, State::Queued | State::Blocked) => {
                    settles.push(Settle::new(Guard::Unclaimed, cancelled(record)));
                }
                record => {
                    let one = as_it_was(id, record);
                    ended.insert(id, (one.outcome, one.state));
                }
            }
        }
        let calls = settles.clone();
        let settled = self.records.ask(LOOKUP_LIMIT, |store| async move { store.settle(calls).await }).await?;
        let mut outgoing: Vec<Message> = Vec::new();
        for (Settle { result, .. }, settled) in settles.iter().zip(settled) {
            let came_to = match settled {
                Settled::Done { followers } | Settled::Again { followers } => {
                    outgoing.extend(followers.iter().filter_map(|reply| messages::result(reply, result).ok()));
                    self.events.result_of(result.model.as_deref(), result, None);
                    self.metrics.finished.with_label_values(&["_unknown", State::Cancelled.as_str()]).inc();
                    (Outcome::Cancelled, Some(State::Cancelled))
                }
                Settled::Stale => (Outcome::Requested, Some(State::Running)),
                Settled::Already(record) => {
                    let one = as_it_was(record.id, Some(*record));
                    (one.outcome, one.state)
                }
            };
            ended.insert(result.id, came_to);
        }
        for answer in self.broker.publish(outgoing).await {
            if let Err(error) = answer {
                tracing::debug!(%error, "a result did not reach a follower, who looks again");
            }
        }
        Ok(ended)
    }

    async fn reprioritize(&self, ids: Vec<TaskId>, priority: Priority) -> Result<Vec<Changed>, Problem> {
        let asked = ids.clone();
        let records = self.records.ask(LOOKUP_LIMIT, |store| async move { store.get(asked).await }).await?;
        let mut changed: Vec<Changed> = ids.iter().zip(records).map(|(id, record)| as_it_was(*id, record)).collect();
        let open: Vec<TaskId> = changed.iter().filter(|one| one.is_open()).map(|one| one.id).collect();
        if open.is_empty() {
            return Ok(changed);
        }
        let mut heard = self.ask(Ask::Reprioritize { ids: open.clone(), priority }).await?;
        let keep: Vec<(TaskId, Option<Priority>)> = {
            let fates = fates(&heard);
            let is_to_have = |id: &TaskId| !matches!(fates.get(id), Some(Fate::Dispatched | Fate::Finished));
            open.iter().filter(|id| is_to_have(id)).map(|id| (*id, Some(priority))).collect()
        };
        let kept = keep.clone();
        let records = self.records.ask(LOOKUP_LIMIT, |store| async move { store.reprioritize(kept).await }).await?;
        let records: HashMap<TaskId, TaskResult> =
            records.into_iter().flatten().map(|record| (record.id, record)).collect();
        if heard.active == 0 {
            // One that came since has perhaps read tasks before the records said it.
            heard = self.ask(Ask::Reprioritize { ids: open, priority }).await?;
        }
        let fates = fates(&heard);
        for one in changed.iter_mut().filter(|one| one.is_open()) {
            let now = records.get(&one.id);
            one.state = now.map(|record| record.state).or(one.state);
            one.outcome = match (fates.get(&one.id), now) {
                (Some(Fate::Done), _) => Outcome::Reprioritized,
                (Some(Fate::Dispatched), _) => Outcome::AlreadyDispatched,
                (_, None) => Outcome::NotFound,
                (_, Some(record)) if record.state.is_terminal() => Outcome::AlreadyFinished,
                (_, Some(record)) if matches!(record.state, State::Dispatched | State::Running) => {
                    Outcome::AlreadyDispatched
                }
                // Whoever reads it from now on finds it in the record.
                (Some(Fate::Unknown | Fate::Finished), Some(_)) => Outcome::Reprioritized,
                (None, Some(_)) => Outcome::Requested,
            };
        }
        Ok(changed)
    }

    /// Ids of tasks that match, and where to go on.
    async fn select(&self, caller: &Caller, selection: Selection) -> Result<(Vec<TaskId>, Option<String>), Problem> {
        let invalid = |field: &str, message: &str| {
            Problem::new(Code::InvalidField, format!("{field}: {message}")).at(field.to_owned())
        };
        let Selection { model, tenant, state, metadata, limit, cursor } = selection;
        if model.is_none() && tenant.is_none() && state.is_none() && metadata.is_empty() {
            return Err(invalid("body", "must name a model, a tenant, a state or metadata"));
        }
        let tenant = caller.narrowed(tenant)?;
        let states = match state {
            Some(state) if state.is_terminal() => {
                return Err(invalid("state", "must be one in which a task has not ended"));
            }
            Some(state) => vec![state],
            None => OPEN.to_vec(),
        };
        let limit = match limit {
            Some(0) => return Err(invalid("limit", "must be a number above 0")),
            limit => limit.unwrap_or(TASKS).min(TASKS),
        };
        let bad_cursor = || Problem::from(taskyard_shared::store::StoreError::BadCursor);
        // A cursor names the state that is looked through, and the place there.
        let (mut at, mut inner) = match cursor {
            None => (0, None),
            Some(cursor) => {
                let (state, inner) = cursor.split_once(':').ok_or_else(bad_cursor)?;
                let at = states.iter().position(|one| one.as_str() == state).ok_or_else(bad_cursor)?;
                (at, Some(inner.to_owned()).filter(|inner| !inner.is_empty()))
            }
        };
        let mut ids = Vec::new();
        for _ in 0..PAGES {
            let Some(&state) = states.get(at) else { return Ok((ids, None)) };
            let filter =
                Filter { state: Some(state), model: model.clone(), tenant: tenant.clone(), metadata: metadata.clone() };
            let (after, left) = (inner.take(), limit - ids.len());
            let list = |store: Arc<dyn Store>| async move { store.list(&filter, after.as_deref(), left).await };
            let page = self.records.ask(LOOKUP_LIMIT, list).await?;
            ids.extend(page.tasks.into_iter().map(|task| task.id));
            inner = page.cursor;
            if inner.is_none() {
                at += 1;
            }
            if ids.len() >= limit {
                break;
            }
        }
        let cursor = states.get(at).map(|state| format!("{}:{}", state.as_str(), inner.unwrap_or_default()));
        Ok((ids, cursor))
    }

    /// The models that are paused.
    pub(super) async fn paused(&self) -> Result<Vec<String>, Problem> {
        Ok(self.records.ask(LOOKUP_LIMIT, |store| async move { store.paused().await }).await?)
    }
}

/// What the schedulers together say of each task. Where one has not answered, of a task that no other knows there is nothing.
fn fates(heard: &Heard) -> HashMap<TaskId, Fate> {
    let (mut fates, mut unknown_to): (HashMap<TaskId, Fate>, HashMap<TaskId, usize>) = Default::default();
    for answer in &heard.answers {
        let Told::Fates { fates: told } = &answer.told else { continue };
        for (id, fate) in told {
            match fate {
                Fate::Unknown => *unknown_to.entry(*id).or_default() += 1,
                // Of two shards that had a copy each, the one that has it done knows best.
                Fate::Done => drop(fates.insert(*id, Fate::Done)),
                fate => drop(fates.entry(*id).or_insert(*fate)),
            }
        }
    }
    for (id, shards) in unknown_to {
        if heard.complete && shards == heard.active {
            fates.entry(id).or_insert(Fate::Unknown);
        }
    }
    fates
}

impl Changed {
    /// Whether it may still be changed: it has not ended, or is not known.
    fn is_open(&self) -> bool {
        !matches!(self.outcome, Outcome::Cancelled | Outcome::AlreadyFinished)
    }

    fn becomes(&mut self, outcome: Outcome, state: State) {
        (self.outcome, self.state) = (outcome, Some(state));
    }
}

/// What is to be said of a task by its record alone.
fn as_it_was(id: TaskId, record: Option<TaskResult>) -> Changed {
    let state = record.map(|record| record.state);
    let outcome = match state {
        None => Outcome::NotFound,
        Some(State::Cancelled) => Outcome::Cancelled,
        Some(state) if state.is_terminal() => Outcome::AlreadyFinished,
        Some(_) => Outcome::Requested,
    };
    Changed { id, outcome, state }
}

fn cancelled(record: TaskResult) -> TaskResult {
    let now = Timestamp::now();
    let message = "it was cancelled before a scheduler read it".to_owned();
    let mut result = TaskResult {
        state: State::Cancelled,
        error: Some(TaskError { code: CANCELLED.to_owned(), message, retryable: false }),
        ..record
    };
    result.timings.finished = Some(now);
    result.timings.waited_ms = result.timings.accepted.map(|accepted| now.ms_since(accepted).max(0.0));
    result
}

/// The answer of a call on one task.
fn one(mut changed: Vec<Changed>) -> Result<Response, Problem> {
    let Some(changed) = changed.pop() else { return Err(not_found()) };
    let status = match changed.outcome {
        Outcome::Cancelled | Outcome::Reprioritized | Outcome::Retried => StatusCode::OK,
        Outcome::Requested => StatusCode::ACCEPTED,
        Outcome::NotFound => return Err(not_found()),
        Outcome::AlreadyDispatched => StatusCode::CONFLICT,
        Outcome::AlreadyFinished | Outcome::NotFinished | Outcome::InputNotKept => StatusCode::CONFLICT,
    };
    if status == StatusCode::CONFLICT {
        let (code, detail) = match changed.state {
            Some(state) if state.is_terminal() => (Code::AlreadyFinished, format!("it has ended: {}", state.as_str())),
            _ => (Code::AlreadyDispatched, "it is with the workers".to_owned()),
        };
        let mut problem = Problem::new(code, detail).of_task(changed.id);
        problem.outcome = Some(changed.outcome);
        return Err(problem);
    }
    Ok((status, Json(changed)).into_response())
}

pub(super) fn not_found() -> Problem {
    Problem { outcome: Some(Outcome::NotFound), ..Problem::not_found() }
}

fn counts(changed: Vec<Changed>, cursor: Option<String>) -> Counts {
    let mut outcomes = BTreeMap::new();
    for one in &changed {
        *outcomes.entry(one.outcome.name()).or_default() += 1;
    }
    Counts { matched: changed.len(), outcomes, cursor }
}

async fn path_text(parts: &mut Parts) -> Option<String> {
    let Path(text) = Path::<String>::from_request_parts(parts, &()).await.ok()?;
    Some(text)
}
