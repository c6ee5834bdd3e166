//! `/v1/tasks`: one task in, one task out, and lists.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::Serialize;
use taskyard_shared::store::{Filter, Store};
use taskyard_shared::{Invalid, Task, TaskId, TaskResult, Timestamp, decode_tasks};

use super::Shared;
use super::access::Caller;
use super::events::TaskView;
use super::problem::Code;
use super::problem::Problem;
use super::request::{Incoming, Media, Parameters, Said, duration, media, path_id, preferred_wait};
use super::waiting::LOOKUP_LIMIT;

/// A page of larger outputs ends early.
const PAGE_BYTES: usize = 8 << 20;
/// Tasks asked of the store at once.
const STEP_TASKS: usize = 50;

/// One page of tasks, newest first.
#[derive(Serialize, JsonSchema)]
pub(super) struct TaskPage {
    tasks: Vec<TaskResult>,
    /// Give it as `cursor` for the next page; `null` at the end.
    cursor: Option<String>,
}

/// `POST /v1/tasks`
pub(super) async fn post(State(gateway): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    media(&parts.headers, &[Media::Json])?;
    let held = gateway.read_body(&parts.headers, body).await?;
    submit(&gateway, &parts, one_task(&held.bytes)?).await
}

/// `PUT /v1/tasks/{id}`
pub(super) async fn put(State(gateway): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let (mut parts, body) = request.into_parts();
    let id = path_id(&mut parts).await.ok_or_else(|| Problem::from(Invalid::field("id", "must be a UUID")))?;
    media(&parts.headers, &[Media::Json])?;
    let held = gateway.read_body(&parts.headers, body).await?;
    let mut task = one_task(&held.bytes)?;
    if task.id.is_some_and(|other| other != id) {
        return Err(Invalid::field("id", "differs from the id in the path").into());
    }
    task.id = Some(id);
    submit(&gateway, &parts, task).await
}

pub(super) fn one_task(body: &[u8]) -> Result<Task, Problem> {
    let mut tasks = decode_tasks(body)?;
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    match (tasks.pop(), first) {
        (Some(task), Some(b'{')) => Ok(task?),
        _ => Err(Problem::new(Code::Shape, "the body must be one task; send several to /v1/batches").at("body")),
    }
}

async fn submit(gateway: &Shared, parts: &Parts, mut task: Task) -> Result<Response, Problem> {
    let headers = &parts.headers;
    Caller::of(parts)?.claim(&mut task)?;
    let incoming = Incoming::new(task, &Said::read(headers)?, Timestamp::now())?;
    let id = incoming.envelope.id;
    let Some(wait) = gateway.bounded(preferred_wait(headers)?) else {
        return Ok(accepted(gateway.take_one(incoming, None).await?, None));
    };
    let mut waiter = gateway.waiter(id)?;
    let task = gateway.take_one(incoming, Some(waiter.reply())).await?;
    if task.id != id && !task.state.is_terminal() {
        // The idempotency key belongs to a task of another id: that one's result is the answer.
        let other = gateway.waiter(task.id);
        let _ = gateway.follow(task.id).await;
        match other {
            Ok(other) => waiter = other,
            Err(_) => return Ok(accepted(task, None)),
        }
    }
    Ok(accepted(gateway.await_result(waiter, task, wait).await?, Some(wait)))
}

/// 200 for a task that has its result, 202 for one that was accepted.
fn accepted(task: TaskResult, waited: Option<Duration>) -> Response {
    let status = if task.state.is_terminal() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let location = format!("/v1/tasks/{}", task.id.0);
    let mut response = (status, Json(task)).into_response();
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    if let Some(applied) = waited.and_then(|wait| HeaderValue::try_from(format!("wait={}", wait.as_secs())).ok()) {
        response.headers_mut().insert("preference-applied", applied);
    }
    response
}

/// `GET /v1/tasks/{id}`
pub(super) async fn get(
    State(gateway): State<Arc<Shared>>,
    Extension(parameters): Extension<Parameters>,
    request: Request,
) -> Result<Json<TaskView>, Problem> {
    let (mut parts, _) = request.into_parts();
    let wait = match parameters.get("wait") {
        Some(text) => {
            let bad = || Problem::new(Code::InvalidParameter, "wait: must be a time such as 30s or 500ms").at("wait");
            Some(duration(text).ok_or_else(bad)?)
        }
        None => preferred_wait(&parts.headers)?,
    };
    let id: TaskId = path_id(&mut parts).await.ok_or_else(Problem::not_found)?;
    let caller = Caller::of(&parts)?;
    let Some(wait) = gateway.bounded(wait) else {
        let task = gateway.seen(&caller, id).await?.ok_or_else(Problem::not_found)?;
        return Ok(Json(gateway.view(task).await));
    };
    if !gateway.may_change(&caller, id).await? {
        return Err(Problem::not_found());
    }
    // In line before the store is asked, so that no result falls between.
    let waiter = gateway.waiter(id)?;
    let task = gateway.follow(id).await?.filter(|task| caller.sees(&task.tenant)).ok_or_else(Problem::not_found)?;
    let task = gateway.await_result(waiter, task, wait).await?;
    Ok(Json(gateway.view(task).await))
}

/// `GET /v1/tasks`
pub(super) async fn list(
    State(gateway): State<Arc<Shared>>,
    Extension(parameters): Extension<Parameters>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<TaskPage>, Problem> {
    let bad = |name: &str, message: &str| Problem::new(Code::InvalidParameter, format!("{name}: {message}")).at(name);
    let state = match parameters.get("state") {
        Some(text) => {
            let state = serde_json::from_value(text.into());
            Some(state.map_err(|_| bad("state", "must be one of a task's states"))?)
        }
        None => None,
    };
    let limit = parameters.limit()?;
    let filter = Filter {
        state,
        model: parameters.get("model").map(str::to_owned),
        tenant: caller.narrowed(parameters.get("tenant").map(str::to_owned))?,
        metadata: parameters.beginning("metadata.").map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
    };
    let mut cursor = parameters.get("cursor").map(str::to_owned);
    let mut tasks: Vec<TaskResult> = Vec::new();
    let mut bytes = 0;
    // In small steps, since each record may be large: a page ends where it has grown heavy.
    loop {
        let step = (limit - tasks.len()).min(STEP_TASKS);
        let (filter, after) = (filter.clone(), cursor.take());
        let list = |store: Arc<dyn Store>| async move { store.list(&filter, after.as_deref(), step).await };
        let page = gateway.records.ask(LOOKUP_LIMIT, list).await?;
        bytes += page.tasks.iter().filter_map(|task| Some(task.output.as_ref()?.get().len())).sum::<usize>();
        tasks.extend(page.tasks);
        cursor = page.cursor;
        if cursor.is_none() || tasks.len() >= limit || bytes > PAGE_BYTES {
            break;
        }
    }
    Ok(Json(TaskPage { tasks, cursor }))
}
