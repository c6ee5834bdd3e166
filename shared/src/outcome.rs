//! What execution came to: the result message and its error.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::lifecycle::State;
use crate::task::{Kind, Priority, TaskId};
use crate::time::Timestamp;
use crate::workflow::StepOf;

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
    /// How its model was chosen, for a task that left a choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<ModelChoice>,
    /// Which step of which workflow it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<StepOf>,
    /// What the attempt that ended it took of a model server that counts tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// Tokens, as a model server counted them, and what they cost by the prices of the model's settings.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// In the currency of the settings; nothing where they name no price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
}

/// Why this model of several: what the scheduler reckoned with. Seconds are expected ones, at the time of the choice.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ModelChoice {
    pub reason: ChoiceReason,
    /// Models that could have run it.
    pub candidates: u32,
    /// What the task takes on this model.
    pub run_seconds: f64,
    /// How long it waits for a slot of this model; nothing when no worker has it.
    pub queue_seconds: Option<f64>,
    /// How long the model takes to be loaded first.
    pub load_seconds: f64,
}

/// Why a model was chosen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChoiceReason {
    /// No other could.
    OnlyCandidate,
    /// The named one, since it does not keep the task waiting for too long.
    Named,
    /// Least of priority × run time + wait + load time.
    LeastCost,
    /// One of less cost is not good enough.
    Quality,
    /// One of less cost would miss the deadline.
    Deadline,
    /// One of less cost turned it away, since too much waits there.
    Overload,
    /// The named one would keep the task waiting longer than it said, or has.
    Alternative,
}

impl ChoiceReason {
    pub const ALL: [ChoiceReason; 7] = [
        Self::OnlyCandidate,
        Self::Named,
        Self::LeastCost,
        Self::Quality,
        Self::Deadline,
        Self::Alternative,
        Self::Overload,
    ];

    /// As on the wire, and as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnlyCandidate => "only_candidate",
            Self::Named => "named",
            Self::LeastCost => "least_cost",
            Self::Quality => "quality",
            Self::Deadline => "deadline",
            Self::Alternative => "alternative",
            Self::Overload => "overload",
        }
    }
}
