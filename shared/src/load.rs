//! What workers say of themselves: the models they serve, and how busy they are.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// A model as a worker announces it. The store keeps the newest announcement of each name.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ModelSpec {
    pub name: String,
    pub version: String,
    /// `onnx`, `http`, `process`, `simulated`, or what a handler of one's own calls itself.
    pub handler: String,
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Tasks at once on one worker, or handler calls at once when `max_batch` is over 1.
    pub slots: u32,
    pub timeout_ms: u64,
    pub max_attempts: u32,
    pub max_batch: u32,
    pub max_delay_ms: u64,
    pub memory_mb: u64,
    /// What one task is believed to take before any was measured, in milliseconds.
    #[serde(default)]
    pub expected_ms: Option<f64>,
    /// How good its answers are, from 0 to 1, by the measure of whoever set it up. Tasks may ask for so much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<f64>,
}

impl ModelSpec {
    /// `name@version`, as results name it.
    pub fn full_name(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
}

/// One worker's report. It expires, so a worker that is gone is no longer counted.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LoadReport {
    pub worker: String,
    pub host: String,
    pub pid: u32,
    pub started: Timestamp,
    pub at: Timestamp,
    /// It takes nothing new.
    pub draining: bool,
    /// Resident memory of the worker's process.
    pub memory_mb: u64,
    pub models: BTreeMap<String, ModelLoad>,
}

/// One model on one worker.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ModelLoad {
    pub slots: u32,
    /// Slots that run something now.
    pub busy: u32,
    pub max_batch: u32,
    /// Deliveries in hand, running ones included.
    pub held: u32,
    /// Attempts finished since the worker started.
    pub finished: u64,
}

/// One finished attempt, as workers tell the scheduler. Losing one costs a credit for a while, never a task.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Completion {
    pub id: crate::task::TaskId,
    pub model: String,
    /// The terminal state, or `queued` when it is to be tried again.
    pub state: crate::lifecycle::State,
    /// Execution time of the attempt, a batch's shared among its members; milliseconds.
    pub ran_ms: f64,
    /// How long the slot had nothing to run before this; milliseconds.
    pub idle_ms: f64,
    pub worker: String,
}
