//! How far the expected times of one model are believed, learnt from what became of the tasks that had a claim to their
//! deadline.

/// Of the tasks that were begun in time this part may end late. The promise is a twentieth of all accepted.
const LATE: f64 = 0.03;
/// How much one outcome moves the factors.
const OWN_STEP: f64 = 0.1;
const WORK_STEP: f64 = 0.02;
/// Bounds: however wrong the expected times are, some tasks are let in, and hopeless ones are not.
const OWN: (f64, f64) = (0.2, 4.0);
const WORK: (f64, f64) = (0.25, 4.0);

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Safety {
    /// A task is given up when less than this times what is expected of it is left to its deadline.
    pub(super) own: f64,
    /// Σ of run times over Σ of what was expected.
    pub(super) work: f64,
}

impl Default for Safety {
    fn default() -> Self {
        Self { own: 1.0, work: 1.0 }
    }
}

impl Safety {
    /// A task that was begun with a claim to its deadline has ended. In the long run, so many end late that the steps
    /// up and down cancel out, whatever the errors of the expected times are.
    pub(super) fn handle_end(&mut self, is_late: bool) {
        let step = if is_late { 1.0 - LATE } else { -LATE };
        self.own = (self.own * (OWN_STEP * step).exp()).clamp(OWN.0, OWN.1);
    }

    /// A task ran.
    pub(super) fn handle_run(&mut self, ran_us: f64, expected_us: f64, mean_us: f64) {
        // Weighed by what was expected, so that it is the ratio of the sums.
        let weight = (WORK_STEP * expected_us / mean_us.max(1.0)).min(0.2);
        let ratio = (ran_us / expected_us.max(1.0)).clamp(0.01, 100.0);
        self.work = (self.work + weight * (ratio - self.work)).clamp(WORK.0, WORK.1);
    }
}
