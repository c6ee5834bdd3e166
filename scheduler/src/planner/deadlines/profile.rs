//! When the slots of a model get free of what they run, and so when the turn of what waits comes.

/// Slots beyond these are taken to get free together with the last of them.
const SLOTS: usize = 4096;

/// Slots that run all the time from when each gets free. Times are microseconds.
#[derive(Default, Debug)]
pub(super) struct Profile {
    /// When each gets free, the first first; in the past for none.
    free_us: Vec<f64>,
    /// For each slot, what those before it have done when it gets free: it joins them from that work on.
    joins_us: Vec<f64>,
    /// Σ of `free_us` up to each slot, from the first one's on.
    sums_us: Vec<f64>,
    /// How many tasks they do in the time of one, if something else takes a part of them: at most 1.
    share: f64,
}

impl Profile {
    /// Of slots that get free at these times. There is at least one.
    pub(super) fn set(&mut self, now_us: f64, free_us: impl IntoIterator<Item = f64>, share: f64) {
        self.free_us.clear();
        self.free_us.extend(free_us.into_iter().take(SLOTS).map(|at_us| at_us.max(now_us)));
        if self.free_us.is_empty() {
            self.free_us.push(now_us);
        }
        self.free_us.sort_unstable_by(f64::total_cmp);
        self.share = share;
        self.add_up();
    }

    /// The first slot to get free is given a task that takes so long.
    pub(super) fn give(&mut self, work_us: f64) {
        let Some(first) = self.free_us.first_mut() else { return };
        let at_us = *first + work_us;
        // A time so short that it is lost beside the time itself changes nothing.
        let place = self.free_us.partition_point(|other| *other < at_us).max(1);
        self.free_us[..place].rotate_left(1);
        self.free_us[place - 1] = at_us;
        self.add_up();
    }

    /// Every slot gets free so much later.
    pub(super) fn shift(&mut self, by_us: f64) {
        self.free_us.iter_mut().for_each(|free_us| *free_us += by_us);
        self.add_up();
    }

    fn add_up(&mut self) {
        let base_us = self.base_us();
        self.joins_us.clear();
        self.sums_us.clear();
        let mut sum_us = 0.0;
        for (before, free_us) in self.free_us.iter().enumerate() {
            let since_us = free_us - base_us;
            self.joins_us.push(since_us * before as f64 - sum_us);
            sum_us += since_us;
            self.sums_us.push(sum_us);
        }
    }

    fn base_us(&self) -> f64 {
        self.free_us.first().copied().unwrap_or(0.0)
    }

    /// From how much work on every slot takes part.
    pub(super) fn uneven_us(&self) -> f64 {
        self.joins_us.last().copied().unwrap_or(0.0) * self.share
    }

    /// When so much work has been begun.
    pub(super) fn level_us(&self, work_us: f64) -> f64 {
        let work_us = work_us / self.share;
        let slots = self.joins_us.partition_point(|join_us| *join_us <= work_us).max(1);
        self.base_us() + (work_us + self.sums_us.get(slots - 1).copied().unwrap_or(0.0)) / slots as f64
    }

    /// The same, were all slots to get free at the same time. Never earlier.
    pub(super) fn level_of_all_us(&self, work_us: f64) -> f64 {
        let sum_us = self.sums_us.last().copied().unwrap_or(0.0);
        self.base_us() + (work_us / self.share + sum_us) / self.free_us.len().max(1) as f64
    }

    /// How much work can have been begun by then. Negative when none can: the first slot gets free later.
    pub(super) fn done_us(&self, at_us: f64) -> f64 {
        let since_us = at_us - self.base_us();
        let slots = self.free_us.partition_point(|free_us| *free_us <= at_us).max(1);
        let sum_us = self.sums_us.get(slots - 1).copied().unwrap_or(0.0);
        (since_us * slots as f64 - sum_us) * self.share
    }
}
