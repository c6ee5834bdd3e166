//! The credit of one model: what its live workers can hold, less what was dispatched and has not come back.

use std::collections::{BTreeMap, BTreeSet};

use super::decision::WaitReason;
use super::policy::{Moment, Policy, Waiting};
use super::tasks::Handle;

/// What the live workers of a model can hold, as the shell sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Tasks that they run at once.
    pub slots: usize,
    /// Tasks sent ahead of the slots, so that these do not idle. As many again may go past them, while more pressing.
    pub ahead: usize,
    /// Once every credit is taken, none is given out before so many are free: they travel together. At least 1, and no
    /// more than half of what there is room for.
    pub grain: usize,
}

impl From<usize> for Room {
    fn from(slots: usize) -> Self {
        Self { slots, ahead: 0, grain: 1 }
    }
}

#[derive(Default)]
pub(super) struct Capacity {
    /// How many dispatched tasks its workers can hold together.
    pub(super) total: usize,
    /// How many of them they run at once.
    slots: usize,
    /// How many may go past those that were sent ahead.
    spare: usize,
    grain: usize,
    /// Every credit was taken, and fewer than a grain are free yet.
    is_resting: bool,
    /// Dispatched tasks by the time of their dispatch.
    outstanding: BTreeSet<(u64, Handle)>,
    /// Those of them that were sent ahead of the slots and are yet to begin, in the order in which they will.
    ahead: BTreeSet<(u64, Handle)>,
    /// When those began that had been sent ahead. The others began when they were dispatched.
    begun: BTreeMap<Handle, u64>,
    /// Those of them that went past others.
    passing: usize,
    /// The task that was dispatched last, leaving out those that went past others. What the policy makes of it changes with what is
    /// known of such tasks, and is compared as of now.
    last: Option<Waiting>,
}

impl Capacity {
    pub(super) fn set_room(&mut self, room: Room) {
        self.total = room.slots.saturating_add(room.ahead);
        (self.slots, self.spare) = (room.slots, room.ahead);
        self.grain = room.grain.clamp(1, (self.total / 2).max(1));
        self.rest_or_go_on();
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    pub(super) fn has_credit(&self) -> bool {
        self.outstanding.len() < self.total && !self.is_resting
    }

    /// Whether one more task may go past those that were sent ahead of the slots, if this is what the policy makes of it.
    pub(super) fn may_pass(&self, policy: &dyn Policy, score: f64, at: Moment) -> bool {
        self.has_passage() && policy.passes(score, self.last.as_ref().map_or(0.0, |last| policy.score(last, at)))
    }

    /// Whether there is something to go past, and few enough have.
    pub(super) fn has_passage(&self) -> bool {
        self.total > 0 && self.passing < self.spare && self.outstanding.len() >= self.slots
    }

    /// Tasks that travel together.
    pub(super) fn grain(&self) -> usize {
        self.grain.max(1)
    }

    fn rest_or_go_on(&mut self) {
        let free = self.total.saturating_sub(self.outstanding.len());
        if free == 0 {
            self.is_resting = true;
        } else if free >= self.grain {
            self.is_resting = false;
        }
    }

    /// Why a task that may start does not.
    pub(super) fn wait_reason(&self) -> WaitReason {
        match self.total {
            0 => WaitReason::NoWorker,
            _ if self.outstanding.len() < self.total => WaitReason::NextDecision,
            _ => WaitReason::NoCredit,
        }
    }

    /// What was sent ahead begins where slots have got free.
    pub(super) fn begin(&mut self, now_us: u64) {
        while self.outstanding.len() - self.ahead.len() < self.slots
            && let Some((_, task)) = self.ahead.pop_first()
        {
            self.begun.insert(task, now_us);
        }
    }

    /// The tasks that run, and when each began.
    pub(super) fn running(&self) -> impl Iterator<Item = (Handle, u64)> {
        let begun = self.outstanding.iter().filter(|&&(at_us, task)| {
            self.ahead.is_empty() || !self.ahead.contains(&(at_us, task)) && !self.ahead.contains(&(0, task))
        });
        begun.map(|&(at_us, task)| (task, self.begun_us(at_us, task)))
    }

    /// When a task that was dispatched at this time began, as far as is known.
    pub(super) fn begun_us(&self, dispatched_us: u64, task: Handle) -> u64 {
        if self.begun.is_empty() { dispatched_us } else { self.begun.get(&task).copied().unwrap_or(dispatched_us) }
    }

    /// The tasks that were sent ahead and are yet to begin.
    pub(super) fn ahead(&self) -> impl Iterator<Item = Handle> {
        self.ahead.iter().map(|&(_, task)| task)
    }

    /// Without what the policy sees of it, it is not to be passed more easily than what went before it.
    pub(super) fn take(&mut self, dispatched_us: u64, task: Handle, waiting: Option<&Waiting>) {
        if self.outstanding.len() >= self.slots {
            self.ahead.insert((dispatched_us, task));
        }
        self.outstanding.insert((dispatched_us, task));
        self.last = waiting.cloned().or(self.last.take());
        self.rest_or_go_on();
    }

    /// It may be one more than there are credits.
    pub(super) fn take_passing(&mut self, dispatched_us: u64, task: Handle) {
        self.ahead.insert((0, task));
        self.outstanding.insert((dispatched_us, task));
        self.passing += 1;
        self.rest_or_go_on();
    }

    pub(super) fn give_back(&mut self, dispatched_us: u64, task: Handle, passes: bool) {
        if self.outstanding.remove(&(dispatched_us, task)) && passes {
            self.passing -= 1;
        }
        if !self.ahead.is_empty() {
            self.ahead.remove(&(if passes { 0 } else { dispatched_us }, task));
        }
        if !self.begun.is_empty() {
            self.begun.remove(&task);
        }
        self.rest_or_go_on();
    }

    /// Dispatched tasks, the longest out first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(u64, Handle)> {
        self.outstanding.iter()
    }
}
