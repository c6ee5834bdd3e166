//! What orders the heads of the lanes. One policy, one small file.

mod cmu;
mod edf;
mod fifo;
mod strict;
mod wspt;

pub use cmu::Cmu;
pub use edf::Edf;
pub use fifo::Fifo;
pub use strict::Strict;
pub use wspt::Wspt;

use super::Waiting;

/// An order over waiting tasks.
pub trait Policy {
    fn name(&self) -> &'static str;

    /// The head with the largest score is dispatched; equal scores go by arrival.
    ///
    /// `now_us` is on the same clock as every other time the planner is given, in microseconds.
    fn score(&self, task: &Waiting, now_us: u64) -> f64;

    /// The order inside a lane, smallest first; equal keys go by arrival.
    fn lane_key(&self, _task: &Waiting) -> u64 {
        0
    }
}
