//! Puts tasks in and gets results out: a client library, and the HTTP gateway that stands on it.
//!
//! ```text
//! publish   a task becomes a message, confirmed by the broker
//! batch     many tasks become few messages
//! results   one reply queue for a process, and who waits for what
//! client    submit, submit many, await a result
//! webhooks  what tasks that have ended tell the addresses they named
//! gateway   the same over HTTP, with look-ups in the store
//! ```

pub mod batch;
pub mod client;
pub mod gateway;
mod letters;
pub mod publish;
pub mod results;
pub mod webhooks;

pub use client::{Client, Limits, Pending, SubmitError, Submitted, WaitError};
pub use gateway::{Gateway, GatewayParts};

/// In [0, 1), for jitter.
fn random() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_fields().0) / (f64::from(u32::MAX) + 1.0)
}
