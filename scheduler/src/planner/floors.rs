//! The floors of one model: what each band of priorities gets for certain, whatever waits above it.
//!
//! While a band waits, it gains a small share of the time that is given to others. Once that covers the best of its heads,
//! this head goes next. So a band never has more to its credit than one task takes.

use super::fair::{BANDS, Fairness, band};
use super::policy::Waiting;

/// Credits are counted in so many parts of a microsecond, so that a small share of a short run is something.
const PARTS: u128 = 1 << 16;

#[derive(Default)]
pub(super) struct Floors {
    credits: [u128; BANDS],
    /// Tasks in lanes.
    waiting: [usize; BANDS],
}

/// What a task takes, in the parts that credits are counted in.
pub(super) fn parts(waiting: &Waiting) -> u128 {
    ((waiting.expected_seconds * 1e6) as u128).max(1) * PARTS
}

impl Floors {
    pub(super) fn handle_came(&mut self, waiting: &Waiting) {
        self.waiting[band(waiting.priority)] += 1;
    }

    pub(super) fn handle_left(&mut self, waiting: &Waiting) {
        self.waiting[band(waiting.priority)] -= 1;
    }

    /// The lowest band whose credit covers the best of its heads, when these are what its heads take.
    pub(super) fn covered(&self, needs: &[Option<u128>; BANDS]) -> Option<usize> {
        (0..BANDS).find(|&band| needs[band].is_some_and(|need| self.credits[band] >= need))
    }

    /// A task was dispatched, and these were what the bands' best heads take. It has left its lane.
    pub(super) fn handle_dispatch(&mut self, waiting: &Waiting, needs: &[Option<u128>; BANDS], fairness: &Fairness) {
        let (parts, own) = (parts(waiting), band(waiting.priority));
        for (band, credit) in self.credits.iter_mut().enumerate() {
            if band == own {
                *credit = credit.saturating_sub(parts);
            } else if let Some(need) = needs[band] {
                // More than its head takes is not put by. One that has gone keeps the rest.
                let share = (fairness.floors[band].clamp(0.0, 1.0) * PARTS as f64) as u128;
                *credit = (*credit + parts / PARTS * share).min(need.max(*credit));
            }
            if self.waiting[band] == 0 {
                *credit = 0;
            }
        }
    }

    /// The dispatch of a task that went by its band's floor failed: the band has its credit again.
    pub(super) fn handle_failed(&mut self, waiting: &Waiting) {
        self.credits[band(waiting.priority)] += parts(waiting);
    }
}
