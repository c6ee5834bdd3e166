//! A task on its way in: what the caller says of it, and what is made of that.

use taskyard_shared::{Kind, Priority, TaskId};

use super::estimator::Estimate;
use super::policy::{CostBucket, Waiting};

/// A task as the planner is given it. Times are microseconds on the caller's clock.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub id: TaskId,
    pub model: String,
    pub tenant: String,
    pub priority: Priority,
    pub kind: Kind,
    /// Declared size, in the model's own unit; above 0.
    pub cost: Option<f64>,
    /// What it is expected to take, when the caller knows better than the planner; else that is estimated. Of one that was taken out
    /// for a while, what was expected of it.
    pub expected: Option<Estimate>,
    /// When a result is of no more use.
    pub deadline_us: Option<u64>,
    /// When it is to have ended if others that wait for it are to meet their deadlines: it gets more pressing towards that, and
    /// is neither refused nor expired for it.
    pub due_us: Option<u64>,
    /// The earliest start.
    pub not_before_us: Option<u64>,
    /// Since when it waits, for a task that is not new: a retry, or one read again after a restart. Without it a
    /// task's wait counts from now, or from `not_before_us` when that is later.
    pub arrived_us: Option<u64>,
    /// It was taken in before: a retry, or one read again. It is not refused for others that wait.
    pub is_known: bool,
}

/// The planner refused an event.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Refusal {
    /// The id is already waiting or dispatched.
    Duplicate,
    /// It, or one of more worth that was admitted, would miss its deadline. It would have ended at this time.
    DeadlineUnreachable { finish_us: u64 },
    /// As many tasks of its tenant wait as may.
    TooManyWaiting,
    /// More waits for its model than may, and nothing that waits is worth less. So long it lasts if nothing else comes.
    Overloaded { seconds: f64 },
}

impl Refusal {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::DeadlineUnreachable { .. } => "deadline_unreachable",
            Self::TooManyWaiting => "quota_waiting",
            Self::Overloaded { .. } => "overloaded",
        }
    }
}

impl Arrival {
    /// When it may start, if that is yet to come.
    pub(super) fn start_us(&self, now_us: u64) -> Option<u64> {
        self.not_before_us.filter(|&start_us| start_us > now_us)
    }

    /// `is_told`: what is expected was told by somebody who knows better.
    pub(super) fn waiting(&self, expected: Estimate, is_told: bool, now_us: u64, sequence: u64) -> Waiting {
        let since_us = self.start_us(now_us).unwrap_or(now_us);
        let cost = match (self.cost, is_told) {
            (None, false) => CostBucket::typical(self.kind),
            _ => expected.mean_seconds.into(),
        };
        Waiting {
            id: self.id,
            priority: self.priority,
            cost,
            kind: self.kind,
            q95_seconds: rounded_up(expected.q95_seconds),
            arrival_us: self.arrived_us.unwrap_or(since_us),
            deadline_us: self.deadline_us,
            due_us: self.due_us,
            expected_seconds: expected.mean_seconds,
            sequence,
        }
    }
}

/// As a smaller number that is no less: a time that is known exactly lies under its own quantile.
fn rounded_up(seconds: f64) -> f32 {
    let rounded = seconds as f32;
    if f64::from(rounded) < seconds { rounded.next_up() } else { rounded }
}
