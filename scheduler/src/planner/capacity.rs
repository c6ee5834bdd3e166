//! The credit of one model: what its live workers can hold, less what was dispatched and has not come back.

use std::collections::BTreeSet;

use super::decision::WaitReason;
use super::tasks::Handle;

#[derive(Default)]
pub(super) struct Capacity {
    /// How many dispatched tasks its workers can hold together.
    pub(super) total: usize,
    /// Dispatched tasks by the time of their dispatch.
    outstanding: BTreeSet<(u64, Handle)>,
}

impl Capacity {
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    pub(super) fn has_credit(&self) -> bool {
        self.outstanding.len() < self.total
    }

    /// Why a task that may start does not.
    pub(super) fn wait_reason(&self) -> WaitReason {
        match self.total {
            0 => WaitReason::NoWorker,
            _ if self.has_credit() => WaitReason::NextDecision,
            _ => WaitReason::NoCredit,
        }
    }

    pub(super) fn take(&mut self, dispatched_us: u64, task: Handle) {
        self.outstanding.insert((dispatched_us, task));
    }

    pub(super) fn give_back(&mut self, dispatched_us: u64, task: Handle) {
        self.outstanding.remove(&(dispatched_us, task));
    }

    /// Gives back the credits of all that was dispatched before this time, and answers which tasks had them.
    pub(super) fn give_back_before(&mut self, time_us: u64) -> BTreeSet<(u64, Handle)> {
        let kept = self.outstanding.split_off(&(time_us, 0));
        std::mem::replace(&mut self.outstanding, kept)
    }

    /// Dispatched tasks, the longest out first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(u64, Handle)> {
        self.outstanding.iter()
    }
}
