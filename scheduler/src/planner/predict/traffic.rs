//! What waits of each class of a model, and how much of it comes.
//!
//! Sums, kept as tasks come and go: a prediction looks at one row per class, however many tasks there are.

use taskyard_shared::Priority;

use super::super::policy::{CostBucket, Waiting};

/// Arrivals over which the rates are averaged.
const ARRIVALS: f64 = 512.0;
/// Gaps over which the time between two arrivals is averaged.
const GAPS: f64 = 256.0;

/// One class: a priority and a cost bucket.
pub(super) struct Row {
    class: (Priority, CostBucket),
    /// Tasks in lanes.
    pub(super) waiting: usize,
    /// What they are expected to take.
    pub(super) work_us: u64,
    /// The last task that came: what others of the class look like.
    pub(super) example: Waiting,
    /// Expected time of what came, each arrival of the model since making it less by a little.
    came_us: f64,
    /// As of this arrival.
    as_of: u64,
}

#[derive(Default)]
pub(super) struct Traffic {
    /// By class; at most 10 priorities times the cost buckets that there are.
    rows: Vec<Row>,
    arrivals: u64,
    first_us: u64,
    last_us: u64,
    gap_us: f64,
}

fn class(waiting: &Waiting) -> (Priority, CostBucket) {
    (waiting.priority, waiting.cost)
}

fn expected_us(waiting: &Waiting) -> u64 {
    (waiting.expected_seconds * 1e6) as u64
}

impl Traffic {
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    fn row(&mut self, waiting: &Waiting) -> &mut Row {
        let class = class(waiting);
        let at = match self.rows.binary_search_by_key(&class, |row| row.class) {
            Ok(at) => at,
            Err(at) => {
                let example = waiting.clone();
                self.rows.insert(at, Row { class, waiting: 0, work_us: 0, example, came_us: 0.0, as_of: 0 });
                at
            }
        };
        &mut self.rows[at]
    }

    /// A task came into a lane.
    pub(super) fn handle_came(&mut self, waiting: &Waiting) {
        let row = self.row(waiting);
        row.waiting += 1;
        row.work_us += expected_us(waiting);
    }

    /// A task left its lane.
    pub(super) fn handle_left(&mut self, waiting: &Waiting) {
        let row = self.row(waiting);
        row.waiting = row.waiting.saturating_sub(1);
        row.work_us = row.work_us.saturating_sub(expected_us(waiting));
    }

    /// It was a new one, of somebody who may go.
    pub(super) fn handle_arrival(&mut self, waiting: &Waiting, now_us: u64) {
        match self.arrivals {
            0 => self.first_us = now_us,
            _ => self.gap_us = self.gap_us(now_us),
        }
        self.last_us = now_us;
        self.arrivals += 1;
        let arrivals = self.arrivals;
        let row = self.row(waiting);
        row.came_us = faded(row.came_us, arrivals - row.as_of) + expected_us(waiting) as f64;
        row.as_of = arrivals;
        row.example = waiting.clone();
    }

    /// Work of a class that comes in a microsecond, in microseconds: its part of the load of one slot.
    pub(super) fn rate(&self, row: &Row, now_us: u64) -> f64 {
        let gap_us = self.gap_us(now_us);
        if gap_us <= 0.0 {
            return 0.0;
        }
        // Weights of all arrivals so far: less than the full window at the start.
        let window = ARRIVALS * (1.0 - faded(1.0, self.arrivals));
        faded(row.came_us, self.arrivals - row.as_of) / window.max(1.0) / gap_us
    }

    /// The mean time between two arrivals, were one to come now.
    fn gap_us(&self, now_us: u64) -> f64 {
        let gap_us = now_us.saturating_sub(self.last_us) as f64;
        self.gap_us + (gap_us - self.gap_us) / (self.arrivals as f64).clamp(1.0, GAPS)
    }

    /// For how long it is known what came.
    pub(super) fn seen_us(&self, now_us: u64) -> u64 {
        if self.arrivals == 0 { 0 } else { now_us.saturating_sub(self.first_us) }
    }
}

/// What is left of a weight after so many arrivals.
fn faded(weight: f64, arrivals: u64) -> f64 {
    match arrivals {
        // One after the other is the usual case where there are few classes.
        1 => weight * (1.0 - 1.0 / ARRIVALS),
        _ => weight * (1.0 - 1.0 / ARRIVALS).powi(i32::try_from(arrivals).unwrap_or(i32::MAX)),
    }
}
