//! What a model is to the worker: something that takes a batch of inputs and answers each.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::value::RawValue;
use taskyard_shared::{TaskError, TaskId};

use crate::meanwhile::Meanwhile;

/// One task of a call.
#[derive(Clone, Debug)]
pub struct Job {
    pub id: TaskId,
    /// From 1. Together with the id it makes a call idempotent, for a model server that honours that.
    pub attempt: u32,
    /// The caller's bytes, as they came.
    pub input: Box<RawValue>,
    /// For progress, partial output, and to hear that the task is to stop.
    pub meanwhile: Meanwhile,
}

impl Job {
    /// One that nobody listens to.
    pub fn new(id: TaskId, attempt: u32, input: Box<RawValue>) -> Self {
        Self { id, attempt, input, meanwhile: Meanwhile::default() }
    }
}

/// What one task came to: its output, or why there is none.
pub type Answer = Result<Box<RawValue>, TaskError>;

/// Runs one model. One value serves all slots of the worker, so it is shared and called from several at once.
#[async_trait]
pub trait Handler: Send + Sync {
    /// Runs the batch, which holds 1 to `max_batch` tasks, and answers each in its place.
    ///
    /// The worker drops the future at the time limit or when the tasks are cancelled: whatever was started must end
    /// with it. A panic fails the batch's tasks and nothing else.
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer>;

    /// How long a call may go on after [`Meanwhile::cancelled`] has told all of its tasks to stop; then it is dropped. Tasks that are
    /// to stop while others of their call are not have as long as those.
    fn grace(&self) -> Duration {
        Duration::ZERO
    }

    /// Ends what the handler keeps running between calls.
    async fn close(&self) {}
}

/// Codes of errors that the handlers and the worker make. A model's own codes pass through.
pub mod codes {
    /// The model cannot work on this input; another attempt would not help.
    pub const BAD_INPUT: &str = "bad_input";
    /// The model failed.
    pub const HANDLER_FAILED: &str = "handler_failed";
    /// The model answered something that is not an answer.
    pub const BAD_ANSWER: &str = "bad_answer";
    /// The attempt was stopped at its time limit.
    pub const TIMED_OUT: &str = "timed_out";
    /// The model's process or server ended while it ran.
    pub const CRASHED: &str = "crashed";
    /// The model's server cannot be reached, or is overloaded.
    pub const UNAVAILABLE: &str = "unavailable";
    /// The worker has no place for artifacts, and the model needs one.
    pub const NO_ARTIFACTS: &str = "no_artifacts";
    /// The output is over the limit.
    pub const OUTPUT_TOO_LARGE: &str = "output_too_large";
    /// Another worker may have taken the task: this one was silent for too long.
    pub const LEASE_LOST: &str = "lease_lost";
    /// Every attempt that it may have was begun, and none came to an end: it may crash its worker.
    pub const ATTEMPTS_EXHAUSTED: &str = "attempts_exhausted";
    /// Its worker was lost twice while it ran, the second time with nothing else running there.
    pub const WORKER_LOST: &str = "worker_lost";
}

/// An error with one of [`codes`].
pub fn error(code: &str, message: impl Into<String>, retryable: bool) -> TaskError {
    TaskError { code: code.to_owned(), message: message.into(), retryable }
}
