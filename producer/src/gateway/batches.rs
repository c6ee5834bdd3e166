//! `POST /v1/batches`: many tasks in one request, each answered by itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use taskyard_shared::task::limits;
use taskyard_shared::{Invalid, Task, TaskResult, Timestamp, decode_tasks};

use super::Shared;
use super::access::Caller;
use super::intake::Taken;
use super::problem::{Code, Problem};
use super::request::{Incoming, Media, Said, media};

/// What became of one task of a batch.
#[derive(Serialize, JsonSchema)]
pub(super) struct BatchAnswer {
    /// Its place in the batch, from 0; empty lines are not counted.
    index: usize,
    /// As if it had been sent alone.
    status: u16,
    /// Without its output, should it be finished already: look it up by its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<TaskResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

pub(super) async fn post(State(gateway): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let caller = Caller::of(&parts)?;
    let media = media(&parts.headers, &[Media::Json, Media::NdJson])?;
    let mut said = Said::read(&parts.headers)?;
    if said.idempotency_key.take().is_some() {
        let problem =
            Problem::new(Code::InvalidHeader, "idempotency-key: names one task; give each its own in the body");
        return Err(problem.at("idempotency-key"));
    }
    let held = gateway.read_body(&parts.headers, body).await?;
    let decoded = match media {
        Media::Json => decode_tasks(&held.bytes)?,
        Media::NdJson => decode_lines(&held.bytes, gateway.settings.max_batch_tasks)?,
    };
    if decoded.len() > gateway.settings.max_batch_tasks {
        return Err(too_many(gateway.settings.max_batch_tasks));
    }

    let now = Timestamp::now();
    let mut taken: Vec<Option<Taken>> = Vec::with_capacity(decoded.len());
    let mut incoming = Vec::with_capacity(decoded.len());
    for task in decoded {
        let own = task.map_err(Problem::from).and_then(|mut task| caller.claim(&mut task).map(|()| task));
        match own.and_then(|task| Incoming::new(task, &said, now)) {
            Ok(good) => {
                incoming.push(good);
                taken.push(None);
            }
            Err(problem) => taken.push(Some(Err(problem))),
        }
    }
    let mut answers = gateway.take(incoming, None).await.into_iter();
    let answers: Vec<BatchAnswer> = taken
        .into_iter()
        .map(|refused| refused.or_else(|| answers.next()))
        .map(|taken| taken.unwrap_or_else(|| Err(Problem::new(Code::Internal, "the task was lost on the way in"))))
        .enumerate()
        .map(|(index, taken)| BatchAnswer::new(index, taken))
        .collect();
    respond(media, &answers)
}

/// Lines that are blank are passed over.
fn decode_lines(body: &[u8], most: usize) -> Result<Vec<Result<Task, Invalid>>, Problem> {
    let mut tasks = Vec::new();
    for line in body.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        if tasks.len() == most.min(limits::BATCH_TASKS) {
            return Err(too_many(most.min(limits::BATCH_TASKS)));
        }
        tasks.push(decode_line(line));
    }
    if tasks.is_empty() { Err(Problem::new(Code::Empty, "body: is empty").at("body")) } else { Ok(tasks) }
}

fn decode_line(line: &[u8]) -> Result<Task, Invalid> {
    let shape = || Invalid::new("shape", "body", "a line must be one object");
    let mut tasks = decode_tasks(line)?;
    if line.first() == Some(&b'[') {
        return Err(shape());
    }
    tasks.pop().unwrap_or_else(|| Err(shape()))
}

fn too_many(most: usize) -> Problem {
    Problem::new(Code::TooLarge, format!("the batch holds over {most} tasks"))
}

impl BatchAnswer {
    fn new(index: usize, taken: Taken) -> Self {
        match taken {
            Ok(mut task) => {
                task.output = None;
                let status = if task.state.is_terminal() { 200 } else { 202 };
                Self { index, status, task: Some(task), problem: None }
            }
            Err(problem) => Self { index, status: problem.status, task: None, problem: Some(problem) },
        }
    }
}

/// 202 when any task was taken; otherwise what the first was refused with.
fn respond(media: Media, answers: &[BatchAnswer]) -> Result<Response, Problem> {
    let refused = match answers.iter().any(|answer| answer.problem.is_none()) {
        true => None,
        false => answers.first().and_then(|answer| answer.problem.clone()),
    };
    let mut response = match media {
        Media::Json => Json(answers).into_response(),
        Media::NdJson => {
            let mut lines = Vec::new();
            for answer in answers {
                serde_json::to_writer(&mut lines, answer)
                    .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
                lines.push(b'\n');
            }
            let media = HeaderValue::from_static("application/x-ndjson");
            ([(header::CONTENT_TYPE, media)], lines).into_response()
        }
    };
    *response.status_mut() = StatusCode::ACCEPTED;
    if let Some(problem) = refused {
        let alone = problem.into_response();
        *response.status_mut() = alone.status();
        if let Some(after) = alone.headers().get(header::RETRY_AFTER) {
            response.headers_mut().insert(header::RETRY_AFTER, after.clone());
        }
    }
    Ok(response)
}
