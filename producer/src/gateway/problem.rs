//! Every error the gateway answers with: RFC 9457 problem details with a stable code.

use super::control::Outcome;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use taskyard_shared::store::StoreError;
use taskyard_shared::{Invalid, TaskId};

/// Bytes of a detail text. A parser's message may quote what came, so it is cut.
const DETAIL_BYTES: usize = 300;

/// What went wrong, for programs. Codes are only ever added.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// 400. The body is empty.
    Empty,
    /// 400. The body is not UTF-8.
    Utf8,
    /// 400. The body is not JSON.
    Json,
    /// 400. The body is nested too deep.
    Depth,
    /// 400. The body is JSON, but not an object (or, for a batch, an array of objects).
    Shape,
    /// 400. The body ended before it was complete.
    BodyIncomplete,
    /// 400. The query has a parameter that this call does not know, or one twice.
    UnknownParameter,
    /// 400. A query parameter cannot be read.
    InvalidParameter,
    /// 400. A header cannot be read.
    InvalidHeader,
    /// 401. The call needs a key, and came without one, or with one that is not known or has expired.
    Unauthorized,
    /// 403. The key does not open this: it has not the scope, or is another tenant's.
    Forbidden,
    /// 404. No task has this id: it was never accepted, or its record has expired.
    NotFound,
    /// 404. No artifact has this name: it was never put, or was removed.
    ArtifactNotFound,
    /// 404. There is no such resource.
    NoRoute,
    /// 405. The resource does not know this method.
    MethodNotAllowed,
    /// 408. The body did not arrive in time.
    BodyTimeout,
    /// 409. The id, or the idempotency key, belongs to a task of other content.
    Conflict,
    /// 409. The task has ended, and stays as it is.
    AlreadyFinished,
    /// 409. The task is with the workers: its priority stays.
    AlreadyDispatched,
    /// 409. The task has not ended: there is nothing to try again yet.
    NotFinished,
    /// 409. The task has ended, and no dead letter holds what it was to work on: send it again.
    InputNotKept,
    /// 409. There are as many schedules as may be.
    TooManySchedules,
    /// 413. The body, a task, or the number of tasks is over its limit.
    TooLarge,
    /// 415. The content type or encoding is none that this call reads.
    UnsupportedMediaType,
    /// 422. A field of the task cannot be taken; `field` names it.
    InvalidField,
    /// 429. A queue or a buffer is full. Nothing was accepted.
    OverCapacity,
    /// 429. As many requests wait for results as may. Nothing was accepted.
    TooManyWaiters,
    TooManyStreams,
    /// 429. So much waits for the model that a task of this worth is not taken. Nothing was accepted.
    Overloaded,
    /// 429. As many tasks of the tenant wait as may. Nothing was accepted.
    QuotaWaiting,
    /// 429. The tenant sends more in a second than it may. Nothing was accepted.
    QuotaRate,
    /// 500. A fault of the gateway.
    Internal,
    /// 503. The broker did not confirm. The task counts as not accepted: send it again, with the id in `task_id`.
    BrokerUnavailable,
    /// 503. The store, which look-ups need, did not answer.
    StoreUnavailable,
    /// 503. Artifacts are not kept here, or cannot be reached. A task whose input was to be one was not accepted.
    ArtifactsUnavailable,
    /// 503. No scheduler answered in time.
    SchedulerUnavailable,
    /// 503. As many connections are open as may.
    TooManyConnections,
}

impl Code {
    pub const ALL: [Code; 37] = [
        Code::Empty,
        Code::Utf8,
        Code::Json,
        Code::Depth,
        Code::Shape,
        Code::BodyIncomplete,
        Code::UnknownParameter,
        Code::InvalidParameter,
        Code::InvalidHeader,
        Code::Unauthorized,
        Code::Forbidden,
        Code::NotFound,
        Code::ArtifactNotFound,
        Code::NoRoute,
        Code::MethodNotAllowed,
        Code::BodyTimeout,
        Code::Conflict,
        Code::AlreadyFinished,
        Code::AlreadyDispatched,
        Code::NotFinished,
        Code::InputNotKept,
        Code::TooManySchedules,
        Code::TooLarge,
        Code::UnsupportedMediaType,
        Code::InvalidField,
        Code::OverCapacity,
        Code::TooManyWaiters,
        Code::TooManyStreams,
        Code::Overloaded,
        Code::QuotaWaiting,
        Code::QuotaRate,
        Code::Internal,
        Code::BrokerUnavailable,
        Code::StoreUnavailable,
        Code::ArtifactsUnavailable,
        Code::SchedulerUnavailable,
        Code::TooManyConnections,
    ];

    pub fn status(self) -> StatusCode {
        match self {
            Self::Empty | Self::Utf8 | Self::Json | Self::Depth | Self::Shape | Self::BodyIncomplete => {
                StatusCode::BAD_REQUEST
            }
            Self::UnknownParameter | Self::InvalidParameter | Self::InvalidHeader => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound | Self::ArtifactNotFound | Self::NoRoute => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict | Self::AlreadyFinished | Self::AlreadyDispatched => StatusCode::CONFLICT,
            Self::NotFinished | Self::InputNotKept | Self::TooManySchedules => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::InvalidField => StatusCode::UNPROCESSABLE_ENTITY,
            Self::OverCapacity
            | Self::TooManyWaiters
            | Self::TooManyStreams
            | Self::Overloaded
            | Self::QuotaWaiting
            | Self::QuotaRate => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::BrokerUnavailable
            | Self::StoreUnavailable
            | Self::ArtifactsUnavailable
            | Self::SchedulerUnavailable
            | Self::TooManyConnections => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Empty => "The body is empty",
            Self::Utf8 => "The body is not UTF-8",
            Self::Json => "The body is not JSON",
            Self::Depth => "The body is nested too deep",
            Self::Shape => "The body has the wrong shape",
            Self::BodyIncomplete => "The body is not complete",
            Self::UnknownParameter => "Unknown or repeated query parameter",
            Self::InvalidParameter => "Bad query parameter",
            Self::InvalidHeader => "Bad header",
            Self::Unauthorized => "The call needs a key",
            Self::Forbidden => "The key does not open this",
            Self::NotFound => "No such task",
            Self::ArtifactNotFound => "No such artifact",
            Self::NoRoute => "No such resource",
            Self::MethodNotAllowed => "Method not allowed",
            Self::BodyTimeout => "The body took too long",
            Self::AlreadyFinished => "The task has ended",
            Self::AlreadyDispatched => "The task is with the workers",
            Self::NotFinished => "The task has not ended",
            Self::InputNotKept => "The task's input is not kept",
            Self::TooManySchedules => "As many schedules as may be",
            Self::Conflict => "Another task has this id or idempotency key",
            Self::TooLarge => "Too large",
            Self::UnsupportedMediaType => "Unsupported media type",
            Self::InvalidField => "A field of the task cannot be taken",
            Self::OverCapacity => "Over capacity",
            Self::TooManyWaiters => "Too many requests wait for results",
            Self::TooManyStreams => "Too many streams of events are open",
            Self::Overloaded => "Too much waits for the model",
            Self::QuotaWaiting => "Too many tasks of the tenant wait",
            Self::QuotaRate => "The tenant sends too much",
            Self::Internal => "Internal error",
            Self::BrokerUnavailable => "The broker did not confirm",
            Self::StoreUnavailable => "The store did not answer",
            Self::ArtifactsUnavailable => "Artifacts cannot be put or read",
            Self::SchedulerUnavailable => "No scheduler answered",
            Self::TooManyConnections => "Too many connections",
        }
    }

    /// Seconds after which trying again can help.
    fn retry_after_s(self) -> Option<u32> {
        match self {
            Self::OverCapacity | Self::TooManyWaiters | Self::TooManyStreams | Self::TooManyConnections => Some(1),
            Self::Overloaded | Self::QuotaWaiting | Self::QuotaRate => Some(1),
            Self::BrokerUnavailable | Self::StoreUnavailable => Some(2),
            Self::ArtifactsUnavailable | Self::SchedulerUnavailable => Some(2),
            _ => None,
        }
    }

    fn of(code: &str) -> Self {
        match code {
            "empty" => Self::Empty,
            "too_large" => Self::TooLarge,
            "utf8" => Self::Utf8,
            "json" => Self::Json,
            "depth" => Self::Depth,
            "shape" => Self::Shape,
            _ => Self::InvalidField,
        }
    }
}

/// The body of an `application/problem+json` answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct Problem {
    /// `urn:taskyard:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: &'static str,
    pub status: u16,
    pub code: Code,
    pub detail: String,
    /// The field, parameter or header at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The task that is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<TaskId>,
    /// When to try again, in seconds, as `Retry-After` has it: for a task of a batch, which has no headers of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
    /// What came of what was asked, as the answers that are no problems have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

impl Problem {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        if detail.len() > DETAIL_BYTES {
            let end = (0..=DETAIL_BYTES).rev().find(|end| detail.is_char_boundary(*end)).unwrap_or(0);
            detail.truncate(end);
            detail.push('…');
        }
        let name = serde_json::to_value(code).ok();
        let name = name.as_ref().and_then(|name| name.as_str()).unwrap_or("internal");
        Self {
            kind: format!("urn:taskyard:problem:{name}"),
            title: code.title(),
            status: code.status().as_u16(),
            code,
            detail,
            field: None,
            task_id: None,
            retry_after_s: code.retry_after_s(),
            outcome: None,
        }
    }

    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// To be tried again after so many seconds.
    pub fn after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    pub fn of_task(mut self, id: TaskId) -> Self {
        self.task_id = Some(id);
        self
    }

    pub fn not_found() -> Self {
        Self::new(Code::NotFound, "no task has this id: it was never accepted, or its record has expired")
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        Self::new(Code::of(invalid.code), format!("{}: {}", invalid.field, invalid.message)).at(invalid.field)
    }
}

impl From<StoreError> for Problem {
    /// What the store says of itself is for the log, not for callers.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::BadCursor => Self::new(Code::InvalidParameter, "cursor: is none that a page gave").at("cursor"),
            _ => Self::new(Code::StoreUnavailable, "records cannot be looked up now"),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.code.status(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.code == Code::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"taskyard\""));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_an_error_with_a_name_of_its_own() {
        let names: std::collections::BTreeSet<String> =
            Code::ALL.iter().map(|code| serde_json::to_string(code).unwrap()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        let schema = serde_json::to_value(schemars::schema_for!(Code)).unwrap();
        assert_eq!(schema["oneOf"].as_array().unwrap().len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|code| code.status().is_client_error() || code.status().is_server_error()));
    }

    #[test]
    fn every_refusal_that_asks_to_come_back_says_when() {
        for code in Code::ALL {
            let problem = Problem::new(code, "").into_response();
            let busy = matches!(code.status().as_u16(), 429 | 503);
            assert_eq!(problem.headers().contains_key(header::RETRY_AFTER), busy, "{code:?}");
        }
    }

    #[test]
    fn a_long_detail_is_cut_between_characters() {
        let problem = Problem::new(Code::Json, "é".repeat(10_000));
        assert!(problem.detail.len() <= DETAIL_BYTES + 4);
    }
}
