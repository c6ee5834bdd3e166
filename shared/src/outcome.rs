//! What execution came to: the result message and its error.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::lifecycle::State;
use crate::task::{Kind, Priority, TaskId};
use crate::time::Timestamp;

/// Why a task did not succeed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TaskError {
    pub code: String,
    pub message: String,
    /// Whether another attempt could succeed.
    pub retryable: bool,
}

/// When things happened. Waits and runs are in milliseconds.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Timings {
    pub accepted: Option<Timestamp>,
    pub dispatched: Option<Timestamp>,
    pub started: Option<Timestamp>,
    pub finished: Option<Timestamp>,
    pub waited_ms: Option<f64>,
    pub ran_ms: Option<f64>,
}

/// The message that goes to `reply_to`, and the body of `GET /v1/tasks/{id}`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TaskResult {
    pub id: TaskId,
    pub state: State,
    pub kind: Kind,
    /// The model that ran it, as `name@version` where it has one.
    pub model: Option<String>,
    pub tenant: String,
    pub priority: Priority,
    /// 0 before the first attempt.
    pub attempt: u32,
    pub output: Option<Box<RawValue>>,
    pub error: Option<TaskError>,
    pub timings: Timings,
    pub worker: Option<String>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}
