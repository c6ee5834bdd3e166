//! What the scheduler holds of a task beside its place in the planner.

use std::time::Instant;

use taskyard_shared::broker::Receipt;
use taskyard_shared::{Envelope, Priority};

/// A task that waits here: its envelope, and the delivery that owns it until it is handed on.
pub(crate) struct Held {
    /// Boxed: a task is handed on from place to place, and an envelope is large.
    pub envelope: Box<Envelope>,
    /// Nothing while a task held for long is on its way round through the broker.
    pub receipt: Option<Receipt>,
    pub since: Instant,
    /// It came back, or is read again: it is not refused for others that wait.
    pub is_known: bool,
    /// The model it was admitted for.
    pub model: String,
}

/// A task that is with the workers.
pub(crate) struct Outstanding {
    pub model: String,
    pub at: Instant,
    /// From when on it could run; microseconds since the epoch.
    pub arrived_us: u64,
    pub priority: Priority,
}
