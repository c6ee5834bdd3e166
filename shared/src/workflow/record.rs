//! A workflow as look-ups show it, and the message that tells of its end.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{OnFailure, WorkflowId};
use crate::lifecycle::State;
use crate::outcome::TaskError;
use crate::task::{Priority, TaskId};
use crate::time::Timestamp;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkflowState {
    /// Accepted, and not begun.
    Queued,
    Running,
    /// Every step succeeded or was skipped.
    Succeeded,
    /// Some step did not succeed.
    Failed,
    /// Somebody asked for that before it had ended.
    Cancelled,
    /// Its deadline passed before it had ended.
    Expired,
    /// It could not be taken.
    Rejected,
}

impl WorkflowState {
    pub const ALL: [Self; 7] =
        [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled, Self::Expired, Self::Rejected];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
        }
    }

    /// A terminal state never changes.
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// A task's state, or `skipped`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    Blocked,
    Queued,
    Dispatched,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    Expired,
    Rejected,
    /// Its condition did not hold, or a step that it needs was skipped.
    Skipped,
}

impl StepState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skipped => "skipped",
            Self::Blocked => State::Blocked.as_str(),
            Self::Queued => State::Queued.as_str(),
            Self::Dispatched => State::Dispatched.as_str(),
            Self::Running => State::Running.as_str(),
            Self::Succeeded => State::Succeeded.as_str(),
            Self::Failed => State::Failed.as_str(),
            Self::Cancelled => State::Cancelled.as_str(),
            Self::Expired => State::Expired.as_str(),
            Self::Rejected => State::Rejected.as_str(),
        }
    }

    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Blocked | Self::Queued | Self::Dispatched | Self::Running)
    }
}

impl From<State> for StepState {
    fn from(state: State) -> Self {
        match state {
            State::Blocked => Self::Blocked,
            State::Queued => Self::Queued,
            State::Dispatched => Self::Dispatched,
            State::Running => Self::Running,
            State::Succeeded => Self::Succeeded,
            State::Failed => Self::Failed,
            State::Cancelled => Self::Cancelled,
            State::Expired => Self::Expired,
            State::Rejected => Self::Rejected,
        }
    }
}

/// Why a step, or the workflow, did not succeed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StepError {
    pub code: String,
    pub message: String,
}

impl From<TaskError> for StepError {
    fn from(error: TaskError) -> Self {
        Self { code: error.code, message: error.message }
    }
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct StepTimings {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran_ms: Option<f64>,
}

/// How far the tasks of a `for_each` have come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ItemCounts {
    pub total: u32,
    pub succeeded: u32,
    pub failed: u32,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StepRecord {
    pub name: String,
    pub state: StepState,
    /// Its task; nothing for a `for_each`, whose tasks are those that name this step and a place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// The attempt that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<StepTimings>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<StepError>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<ItemCounts>,
}

/// The body of `GET /v1/workflows/{id}`, and the message that goes to `reply_to`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct WorkflowRecord {
    pub id: WorkflowId,
    pub state: WorkflowState,
    pub tenant: String,
    pub priority: Priority,
    pub on_failure: OnFailure,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    pub accepted: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// The first thing that went wrong.
    pub error: Option<StepError>,
    /// How many steps are in which state.
    pub counts: BTreeMap<StepState, u32>,
    /// In the order of the body.
    pub steps: Vec<StepRecord>,
    /// Of the steps that no other depends on, once they have succeeded, as long as they are not too large.
    #[serde(default)]
    pub outputs: BTreeMap<String, Box<RawValue>>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

impl WorkflowRecord {
    pub fn summary(&self) -> WorkflowSummary {
        WorkflowSummary {
            id: self.id,
            state: self.state,
            tenant: self.tenant.clone(),
            priority: self.priority,
            deadline: self.deadline,
            accepted: self.accepted,
            finished: self.finished,
            counts: self.counts.clone(),
            metadata: self.metadata.clone(),
        }
    }
}

/// A workflow as lists show it: what it is, and how far it had come when its record was last written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct WorkflowSummary {
    pub id: WorkflowId,
    pub state: WorkflowState,
    pub tenant: String,
    pub priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    pub accepted: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// How many steps are in which state.
    pub counts: BTreeMap<StepState, u32>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}
