//! What workers say of themselves: the models they serve, and how busy they are.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// A model as a worker announces it. The store keeps the newest announcement of each name.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ModelSpec {
    /// As its table is called: `name`, or `name@version` beside other versions of it.
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
    /// Graphics processors that the loaded model takes.
    #[serde(default, skip_serializing_if = "is_none")]
    pub gpus: u32,
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
        if self.name.contains('@') { self.name.clone() } else { format!("{}@{}", self.name, self.version) }
    }

    pub fn offers(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|offered| offered == capability)
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
    /// What its models may take together: it holds some of them, as its [`Placement`] says. 0: it holds them all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub budget_mb: u64,
    /// Graphics processors that its models may take together; a model takes as many as its [`ModelSpec`] says.
    #[serde(default, skip_serializing_if = "is_none")]
    pub budget_gpus: u32,
    /// Tasks at once, of all its models together. 0: each has its own slots and no more is said.
    #[serde(default, skip_serializing_if = "is_none")]
    pub slots: u32,
    pub models: BTreeMap<String, ModelLoad>,
}

impl LoadReport {
    /// Whether it holds some of its models, as a [`Placement`] says.
    pub fn has_budget(&self) -> bool {
        self.budget_mb > 0 || self.budget_gpus > 0
    }
}

/// One model on one worker.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ModelLoad {
    /// None unless the model is loaded: its [`ModelSpec`] has how many it would be.
    pub slots: u32,
    /// Slots that run something now.
    pub busy: u32,
    pub max_batch: u32,
    /// Deliveries in hand, running ones included.
    pub held: u32,
    /// Attempts finished since the worker started.
    pub finished: u64,
    #[serde(default, skip_serializing_if = "LoadState::is_loaded")]
    pub state: LoadState,
    /// How long its last load took here, in milliseconds. A worker that holds all its models leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_ms: Option<f64>,
    /// What it counts for in the worker's budget: as set, or as its load was measured. Left out where there is no budget.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub memory_mb: u64,
    /// Why its last load failed, in at most [`REASON_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Most bytes of a reason in a report; the worker's log has all of it.
pub const REASON_BYTES: usize = 200;

/// How far a model is on a worker that holds some of its models.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LoadState {
    /// It takes tasks.
    #[default]
    Loaded,
    Loading,
    /// It was to be loaded and could not be; it is tried again.
    Failed,
    /// Not held, or finishing what runs before it goes.
    Unloaded,
}

impl LoadState {
    fn is_loaded(&self) -> bool {
        *self == Self::Loaded
    }
}

// Serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_none(count: &u32) -> bool {
    *count == 0
}

/// What a worker with a memory budget is to hold: JSON, in the store under [`Placement::key`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Placement {
    /// [`Placement::VERSION`].
    pub v: u32,
    /// The models to hold, the most important first: what does not fit any more is left out.
    pub models: Vec<String>,
}

impl Placement {
    pub const VERSION: u32 = 1;

    pub fn new(models: Vec<String>) -> Self {
        Self { v: Self::VERSION, models }
    }

    /// The store's key of a worker's placement.
    pub fn key(worker: &str) -> String {
        format!("placement/{worker}")
    }

    /// Reads one; what a later version wrote is an error.
    pub fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let placement: Self = serde_json::from_slice(bytes)?;
        match placement.v {
            Self::VERSION => Ok(placement),
            other => Err(serde::de::Error::custom(format!("a placement of version {other}"))),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_is_read_as_it_is_written_and_a_later_version_is_refused() {
        let placement = Placement::new(vec!["a".to_owned(), "b".to_owned()]);
        let written = serde_json::to_string(&placement).unwrap_or_default();
        assert_eq!(written, r#"{"v":1,"models":["a","b"]}"#);
        assert_eq!(Placement::read(written.as_bytes()).ok(), Some(placement));
        assert_eq!(Placement::read(br#"{"v":1,"models":[],"later":true}"#).ok(), Some(Placement::new(Vec::new())));
        for bad in [r#"{"v":2,"models":["a"]}"#, r#"{"models":["a"]}"#, "a", ""] {
            assert!(Placement::read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
