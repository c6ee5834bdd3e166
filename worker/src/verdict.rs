//! What an answer of a handler means for its task: done, tried again, or failed.

use std::time::Duration;

use serde_json::value::RawValue;
use taskyard_shared::{Envelope, TaskError};

use crate::attempt::Yard;
use crate::handler::{Answer, codes, error};
use crate::lane::ModelLane;

pub(crate) enum Verdict {
    Succeed(Box<RawValue>),
    Retry {
        after: Duration,
        error: TaskError,
    },
    /// The attempt was cut short, and does not count.
    GiveBack(TaskError),
    Fail(TaskError),
}

/// `attempt` counts from 1 and is the one that gave the answer.
pub(crate) fn judge(yard: &Yard, lane: &ModelLane, envelope: &Envelope, attempt: u32, answer: Answer) -> Verdict {
    let most = envelope.extras.max_attempts.unwrap_or(lane.spec.max_attempts);
    match answer {
        Ok(output) if output.get().len() > yard.max_output_bytes => {
            let (size, limit) = (output.get().len(), yard.max_output_bytes);
            Verdict::Fail(error(codes::OUTPUT_TOO_LARGE, format!("{size} bytes are over the limit of {limit}"), false))
        }
        Ok(output) => Verdict::Succeed(output),
        Err(error) if error.code == codes::LEASE_LOST => Verdict::GiveBack(error),
        Err(error) if error.retryable && attempt < most => {
            Verdict::Retry { after: yard.retry.delay(attempt, fastrand::f64()), error }
        }
        Err(error) => Verdict::Fail(error),
    }
}
