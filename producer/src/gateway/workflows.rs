//! `/v1/workflows`: tasks that depend on each other, submitted as one.
//!
//! As with tasks, "accepted" is the broker's confirm, and the record comes after it. Who waits for an end looks at the record
//! again and again, ever less often: there are few workflows, and they take long.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taskyard_shared::broker::PublishError;
use taskyard_shared::control::Ask;
use taskyard_shared::store::{Store, WorkflowAccepted, WorkflowFilter, WorkflowSeen, WorkflowWrite};
use taskyard_shared::workflow::{
    StepState, WorkflowId, WorkflowOrder, WorkflowRecord, WorkflowState, WorkflowSummary, decode_workflow,
};
use taskyard_shared::{Invalid, TaskId, Timestamp};
use tokio::time::Instant;

use super::Shared;
use super::access::Caller;
use super::control::Outcome;
use super::intake::{BATCH_PUBLISH_LIMIT, STORE_LIMIT};
use super::metrics::Counted;
use super::problem::{Code, Problem};
use super::request::{Media, Parameters, Said, duration, media, path_id, preferred_wait};
use super::waiting::LOOKUP_LIMIT;

/// A record is looked at again after this, and then after ever longer.
const LOOK_FIRST: Duration = Duration::from_millis(10);
const LOOK_LAST: Duration = Duration::from_millis(500);
/// What is to be cancelled has mostly ended within this.
const CANCELLED_WITHIN: Duration = Duration::from_millis(1500);
/// Of so many steps that were sent it is looked up whether they run.
const STEPS_SHOWN: usize = 256;

/// A workflow, and what came of what was asked of it.
#[derive(Serialize, JsonSchema)]
pub(super) struct WorkflowChanged {
    id: WorkflowId,
    outcome: Outcome,
    /// As it stood last.
    state: WorkflowState,
}

/// One page of workflows, newest first.
#[derive(Serialize, JsonSchema)]
pub(super) struct WorkflowPage {
    workflows: Vec<WorkflowSummary>,
    /// Give it as `cursor` for the next page; `null` at the end.
    cursor: Option<String>,
}

/// What of a record is needed to know whose it is and how far it has come.
#[derive(Deserialize)]
struct Head {
    tenant: String,
    state: WorkflowState,
}

/// A record that may be shown.
struct Found {
    seen: WorkflowSeen,
    head: Head,
}

impl Found {
    fn read(seen: WorkflowSeen) -> Result<Self, Problem> {
        let head = serde_json::from_slice(&seen.record);
        let unreadable = |_| Problem::new(Code::Internal, "the record of the workflow cannot be read");
        Ok(Self { head: head.map_err(unreadable)?, seen })
    }

    fn has_ended(&self) -> bool {
        self.seen.has_ended
    }
}

fn not_found() -> Problem {
    Problem::new(Code::NotFound, "no workflow has this id: it was never accepted, or its record has expired")
}

fn nothing_to_change() -> Problem {
    Problem { outcome: Some(Outcome::NotFound), ..not_found() }
}

fn conflict(id: WorkflowId) -> Problem {
    Problem::new(Code::Conflict, "a workflow of other content has this id or idempotency key").of_task(TaskId(id.0))
}

async fn workflow_id(parts: &mut Parts) -> Result<WorkflowId, Problem> {
    path_id(parts).await.map(|id| WorkflowId(id.0)).ok_or_else(not_found)
}

/// `POST /v1/workflows`
pub(super) async fn post(State(gateway): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    media(&parts.headers, &[Media::Json])?;
    let held = gateway.read_body(&parts.headers, body).await?;
    let wait = gateway.bounded(preferred_wait(&parts.headers)?);
    if wait.is_some() {
        gateway.room_to_wait()?;
    }
    let (order, write, named) = read(&parts, &held.bytes)?;
    let id = order.id;
    let found = gateway.take_workflow(&order, write, held.bytes.clone(), named).await?;
    drop(held);
    let found = match wait {
        Some(wait) if !found.has_ended() => gateway.await_end(id, found, wait).await?,
        _ => found,
    };
    let status = if found.has_ended() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = (status, json(found.seen.record)).into_response();
    if let Ok(location) = HeaderValue::try_from(format!("/v1/workflows/{}", id.0)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    if let Some(applied) = wait.and_then(|wait| HeaderValue::try_from(format!("wait={}", wait.as_secs())).ok()) {
        response.headers_mut().insert("preference-applied", applied);
    }
    Ok(response)
}

fn json(record: Bytes) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], record)
}

/// What was sent, made this caller's; and whether the caller named it.
fn read(parts: &Parts, body: &[u8]) -> Result<(WorkflowOrder, WorkflowWrite, bool), Problem> {
    let caller = Caller::of(parts)?;
    let said = Said::read(&parts.headers)?;
    let mut workflow = decode_workflow(body)?;
    for (at, step) in workflow.tasks.iter().enumerate() {
        caller.may_send(step.task.kind).map_err(|problem| problem.at(format!("tasks[{at}].kind")))?;
    }
    workflow.tenant = caller.narrowed(workflow.tenant.take())?;
    match (&workflow.idempotency_key, said.idempotency_key) {
        (Some(body), Some(header)) if *body != header => {
            return Err(Invalid::field("idempotency_key", "differs from the header Idempotency-Key").into());
        }
        (None, Some(_)) if workflow.id.is_some() => {
            return Err(Invalid::field("idempotency_key", "at most one of id and idempotency_key may be given").into());
        }
        (None, Some(header)) => workflow.idempotency_key = Some(header),
        _ => {}
    }
    let named = workflow.id.is_some() || workflow.idempotency_key.is_some();
    let (order, plan) = WorkflowOrder::of(workflow, body, &said.carried, Timestamp::now())?;
    let fingerprint = order.fingerprint(&plan);
    let write = WorkflowWrite::new(&order.queued(plan), fingerprint);
    Ok((order, write.map_err(|error| Problem::new(Code::Internal, error.to_string()))?, named))
}

/// `GET /v1/workflows/{id}`
pub(super) async fn get(
    State(gateway): State<Arc<Shared>>,
    Extension(parameters): Extension<Parameters>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut parts, _) = request.into_parts();
    let wait = match parameters.get("wait") {
        Some(text) => {
            let bad = || Problem::new(Code::InvalidParameter, "wait: must be a time such as 30s or 500ms").at("wait");
            Some(duration(text).ok_or_else(bad)?)
        }
        None => preferred_wait(&parts.headers)?,
    };
    let id = workflow_id(&mut parts).await?;
    let mut found = gateway.found(&Caller::of(&parts)?, id).await?.ok_or_else(not_found)?;
    if let Some(wait) = gateway.bounded(wait).filter(|_| !found.has_ended()) {
        found = gateway.await_end(id, found, wait).await?;
    }
    if found.has_ended() {
        return Ok(json(found.seen.record).into_response());
    }
    Ok(json(gateway.with_what_runs(found.seen.record).await).into_response())
}

/// `GET /v1/workflows`
pub(super) async fn list(
    State(gateway): State<Arc<Shared>>,
    Extension(parameters): Extension<Parameters>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<WorkflowPage>, Problem> {
    let state = match parameters.get("state") {
        Some(text) => {
            let message = "state: must be one of a workflow's states";
            let bad = || Problem::new(Code::InvalidParameter, message).at("state");
            Some(WorkflowState::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(bad)?)
        }
        None => None,
    };
    let limit = parameters.limit()?;
    let filter = WorkflowFilter {
        state,
        tenant: caller.narrowed(parameters.get("tenant").map(str::to_owned))?,
        metadata: parameters.beginning("metadata.").map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
    };
    let mut cursor = parameters.get("cursor").map(str::to_owned);
    let mut workflows = Vec::new();
    // What the store looks at in one call is bounded: a page of few among many takes several.
    loop {
        let (filter, after, left) = (filter.clone(), cursor.take(), limit - workflows.len());
        let list = |store: Arc<dyn Store>| async move { store.list_workflows(&filter, after.as_deref(), left).await };
        let page = gateway.records.ask(LOOKUP_LIMIT, list).await?;
        workflows.extend(page.workflows);
        cursor = page.cursor;
        if cursor.is_none() || workflows.len() >= limit {
            return Ok(Json(WorkflowPage { workflows, cursor }));
        }
    }
}

/// `POST /v1/workflows/{id}/cancel`
pub(super) async fn cancel(State(gateway): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let (mut parts, _) = request.into_parts();
    let id = workflow_id(&mut parts).await?;
    let caller = Caller::of(&parts)?;
    if !caller.is_everyone() && gateway.found(&caller, id).await?.is_none() {
        return Err(nothing_to_change());
    }
    let seen = gateway.records.ask(LOOKUP_LIMIT, |store| async move { store.cancel_workflow(id).await }).await?;
    // Without a record too: the store may have lost it.
    let mut found = seen.map(Found::read).transpose()?;
    if !found.as_ref().is_some_and(Found::has_ended) {
        let _heard = gateway.ask(Ask::CancelWorkflow { id }).await?;
        if let Some(before) = found {
            found = Some(gateway.await_end(id, before, CANCELLED_WITHIN).await?);
        }
    }
    let found = found.ok_or_else(nothing_to_change)?;
    let state = found.head.state;
    let (status, outcome) = match state {
        WorkflowState::Cancelled => (StatusCode::OK, Outcome::Cancelled),
        _ if !found.has_ended() => (StatusCode::ACCEPTED, Outcome::Requested),
        _ => {
            let problem = Problem::new(Code::AlreadyFinished, format!("it has ended: {}", state.as_str()));
            return Err(Problem { outcome: Some(Outcome::AlreadyFinished), ..problem.of_task(TaskId(id.0)) });
        }
    };
    Ok((status, Json(WorkflowChanged { id, outcome, state })).into_response())
}

impl Shared {
    /// The record, when it is there for this caller.
    async fn found(&self, caller: &Caller, id: WorkflowId) -> Result<Option<Found>, Problem> {
        let seen = self.records.ask(LOOKUP_LIMIT, |store| async move { store.workflow(id).await }).await?;
        let found = seen.map(Found::read).transpose()?;
        Ok(found.filter(|found| caller.sees(&found.head.tenant)))
    }

    /// Publishes it, unless it is known, and records it.
    async fn take_workflow(
        &self,
        order: &WorkflowOrder,
        write: WorkflowWrite,
        body: Bytes,
        named: bool,
    ) -> Result<Found, Problem> {
        let id = order.id;
        let own = |accepted: WorkflowAccepted| match accepted {
            WorkflowAccepted::New { .. } => Ok(None),
            WorkflowAccepted::Known(seen) => Found::read(seen).map(Some),
            WorkflowAccepted::Conflict(_) => Err(conflict(id)),
        };
        if named {
            let seen = self.records.ask(STORE_LIMIT, |store| async move { store.workflow(id).await }).await;
            if matches!(seen, Ok(Some(_))) {
                let again = write.clone();
                let known =
                    self.records.ask(STORE_LIMIT, |store| async move { store.accept_workflow(again).await }).await?;
                // One that waits may be known from a message that was never confirmed: it is sent again.
                let is_sure =
                    |known: &Found| known.head.state != WorkflowState::Queued || self.confirmed.has(TaskId(id.0));
                if let Some(known) = own(known)?.filter(is_sure) {
                    return Ok(known);
                }
            }
        }
        self.publish_workflow(order, body).await?;
        let first = write.clone();
        let recorded = self.records.ask(STORE_LIMIT, |store| async move { store.accept_workflow(first).await }).await;
        let known = match recorded {
            Ok(recorded) => own(recorded)?,
            Err(_) => {
                self.metrics.unrecorded.inc();
                None
            }
        };
        let new = WorkflowSeen { record: write.record, is_unwanted: false, has_ended: false };
        known.map_or_else(|| Found::read(new), Ok)
    }

    async fn publish_workflow(&self, order: &WorkflowOrder, body: Bytes) -> Result<(), Problem> {
        let unavailable = || {
            Problem::new(Code::BrokerUnavailable, "the broker did not confirm; send the workflow again with this id")
        };
        if !self.broker.is_ready() {
            return Err(unavailable().of_task(TaskId(order.id.0)));
        }
        let message = self.publisher.workflow(order, body);
        let Some(Err(error)) = self.publisher.publish(vec![message], BATCH_PUBLISH_LIMIT).await.pop() else {
            self.confirmed.add([TaskId(order.id.0)]);
            return Ok(());
        };
        tracing::debug!(%error, "a workflow was not accepted");
        let problem = match error {
            PublishError::Full => Problem::new(Code::OverCapacity, "the broker's queue is full; nothing was accepted"),
            PublishError::TooLarge => Problem::new(Code::TooLarge, "the workflow is larger than the broker takes"),
            PublishError::Unroutable => {
                // Somebody deleted the queue: have it declared again.
                self.declare_again.notify_one();
                unavailable()
            }
            PublishError::Unknown(_) => unavailable(),
        };
        Err(problem.of_task(TaskId(order.id.0)))
    }

    fn room_to_wait(&self) -> Result<(), Problem> {
        if self.metrics.waiters.get() >= i64::try_from(self.settings.max_waiters).unwrap_or(i64::MAX) {
            return Err(Problem::new(Code::TooManyWaiters, "as many requests wait for results as may"));
        }
        Ok(())
    }

    /// Its end, or how it stands when the wait is over.
    ///
    /// # Errors
    /// When it turns out to be another tenant's: both have sent a workflow of this id, and this one came second.
    async fn await_end(&self, id: WorkflowId, mut found: Found, wait: Duration) -> Result<Found, Problem> {
        self.room_to_wait()?;
        let _counted = Counted::new(self.metrics.waiters.clone());
        let until = Instant::now() + wait;
        let mut pause = LOOK_FIRST;
        while !found.has_ended() && Instant::now() < until {
            tokio::select! {
                () = tokio::time::sleep_until(until.min(Instant::now() + pause)) => {}
                () = self.stopping.cancelled() => return Ok(found),
            }
            pause = (pause * 3 / 2).min(LOOK_LAST);
            // While the store is away, its last answer is the best there is.
            let seen = self.records.ask(LOOKUP_LIMIT, |store| async move { store.workflow(id).await }).await;
            if let Ok(Some(seen)) = seen {
                let now = Found::read(seen)?;
                if now.head.tenant != found.head.tenant {
                    return Err(conflict(id));
                }
                found = now;
            }
        }
        Ok(found)
    }

    /// The record says which steps were sent; their tasks say which of them run.
    async fn with_what_runs(&self, record: Bytes) -> Bytes {
        let Ok(mut shown) = serde_json::from_slice::<WorkflowRecord>(&record) else { return record };
        let is_sent = |state: StepState| state == StepState::Queued;
        let sent = shown.steps.iter_mut().filter(|step| is_sent(step.state) && step.task.is_some()).take(STEPS_SHOWN);
        let sent: Vec<_> = sent.collect();
        let ids: Vec<TaskId> = sent.iter().filter_map(|step| step.task).collect();
        let tasks = self.records.ask(LOOKUP_LIMIT, |store| async move { store.get(ids).await }).await;
        for (step, task) in sent.into_iter().zip(tasks.unwrap_or_default()) {
            // Of one that has ended the record will tell in a moment. Another tenant's has its id where the store has lost something.
            let Some(task) = task.filter(|task| !task.state.is_terminal() && task.tenant == shown.tenant) else {
                continue;
            };
            let state = StepState::from(task.state);
            if let Some(count) = shown.counts.get_mut(&step.state) {
                *count -= 1;
            }
            shown.counts.retain(|_, count| *count > 0);
            *shown.counts.entry(state).or_default() += 1;
            step.state = state;
            step.attempt = Some(task.attempt).filter(|attempt| *attempt > 0);
        }
        serde_json::to_vec(&shown).map_or(record, Bytes::from)
    }
}
