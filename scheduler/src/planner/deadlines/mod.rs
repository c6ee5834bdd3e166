//! Which of one model's waiting tasks can still meet their deadlines, and which is to give way when not all can.
//!
//! A task that has a deadline has a *claim* to it from its admission until it is dispatched, gives way, or expires.
//! `README.md` of the planner has the rule.

mod profile;
mod safety;
#[cfg(test)]
mod tests;
mod tree;

use profile::Profile;
use safety::Safety;
use tree::{Entry, Factors, Key, Tree};

use super::policy::Waiting;
use super::tasks::Handle;

/// What becomes of a task that cannot meet its deadline any more.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Late {
    /// It is refused when it comes, or told as soon as it is known.
    #[default]
    Refuse,
    /// It loses its claim: it is like a task without a deadline, but that it still expires.
    Demote,
    /// Nothing: there are no claims, and tasks expire.
    Keep,
}

impl Late {
    /// The setting of a name: `refuse`, `demote` or `keep`.
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "refuse" => Self::Refuse,
            "demote" => Self::Demote,
            "keep" => Self::Keep,
            _ => return None,
        })
    }
}

/// A task that comes makes one give way that was admitted only when that one is so much dearer.
const DEARER: f64 = 1.05;
/// So much of the mean run time may be lacking before a task has to give way: expected times are not exact, and time is
/// also won.
const GRACE: f64 = 0.5;
/// The policy's choice goes before the first deadline when so many mean run times of slack are left after it.
const RESERVE: f64 = 3.0;
/// A task that runs for longer than expected is taken to run on for this part of the time it has run.
const OVERRUN: f64 = 0.1;
/// So many give way to one that comes, at most.
const GIVE_WAY: usize = 8;

/// What the slots of a model run, and what waits at its workers for a slot. Times are microseconds.
pub(super) struct Runs<R, A> {
    pub(super) now_us: u64,
    /// How many run at once.
    pub(super) slots: usize,
    /// When each that runs began, and how long it was expected to take.
    pub(super) running: R,
    /// How long each that waits for a slot is expected to take.
    pub(super) ahead: A,
}

/// What becomes of a task that came.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Admission {
    Fits,
    /// These give way to it.
    Instead(Vec<Handle>),
    /// It would end at this time, or others would be late for it.
    Unreachable {
        finish_us: u64,
    },
}

#[derive(Default)]
pub(super) struct Deadlines {
    tree: Tree,
    safety: Safety,
    /// As it was when [`Deadlines::look`] was last called.
    profile: Profile,
    mean_us: f64,
}

fn entry(waiting: &Waiting, task: Handle) -> Option<Entry> {
    Some(Entry {
        deadline_us: waiting.deadline_us?,
        sequence: waiting.sequence,
        expected_us: waiting.expected_seconds * 1e6,
        weight: waiting.weight() as f32,
        task,
    })
}

fn key(waiting: &Waiting) -> Option<Key> {
    Some((waiting.deadline_us?, waiting.sequence))
}

impl Deadlines {
    pub(super) fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// Tasks with a claim.
    pub(super) fn len(&self) -> usize {
        self.tree.len()
    }

    /// A task has a claim from now on. Answers when it has to begin.
    pub(super) fn insert(&mut self, waiting: &Waiting, task: Handle) -> Option<u64> {
        let entry = entry(waiting, task)?;
        self.tree.insert(entry);
        Some(self.latest_us(waiting))
    }

    pub(super) fn remove(&mut self, waiting: &Waiting) {
        if let Some(key) = key(waiting) {
            self.tree.remove(key);
        }
    }

    /// When a task has to begin, as its expected time is believed now.
    pub(super) fn latest_us(&self, waiting: &Waiting) -> u64 {
        let own_us = self.safety.own * waiting.expected_seconds * 1e6;
        waiting.deadline_us.unwrap_or(u64::MAX).saturating_sub(own_us as u64)
    }

    /// When the first of all tasks with a claim has to begin.
    pub(super) fn soonest_us(&self) -> Option<u64> {
        // Whatever lies before the clock's beginning is past.
        (!self.is_empty()).then(|| self.tree.soonest_us().max(0.0) as u64)
    }

    /// Takes note of what runs, which all that is asked next goes by.
    pub(super) fn look(&mut self, runs: Runs<impl Iterator<Item = (u64, f64)>, impl Iterator<Item = f64>>, share: f64) {
        let Safety { own, work } = self.safety;
        let slots = runs.slots.max(1);
        self.tree.set_factors(Factors { work, own, rate: slots as f64 * share });
        let now_us = runs.now_us as f64;
        let mut more = Vec::new();
        let mut free_us: Vec<f64> = Vec::with_capacity(slots.min(64));
        for (begun_us, expected_us) in runs.running {
            let ran_us = now_us - begun_us as f64;
            // One that runs for longer than expected is taken to run on for a part of what it has run.
            let left_us = (work * expected_us - ran_us).max(OVERRUN * ran_us);
            if free_us.len() < slots { free_us.push(now_us + left_us) } else { more.push(left_us) }
        }
        let idle = slots - free_us.len();
        self.profile.set(now_us, free_us.into_iter().chain(std::iter::repeat_n(now_us, idle)), share);
        for expected_us in more.into_iter().chain(runs.ahead.map(|expected_us| work * expected_us)) {
            self.profile.give(expected_us);
        }
    }

    /// Whether a task that was just [inserted](Self::insert) can be met, and which others it takes the place of.
    pub(super) fn admit(&mut self, waiting: &Waiting, task: Handle) -> Admission {
        let Some(new) = entry(waiting, task) else { return Admission::Fits };
        let mut gone: Vec<Entry> = Vec::new();
        let mut fits = true;
        while let Some(violation) = self.tree.first_violation(&self.profile, self.grace_us(), None) {
            let late = violation.entry;
            let dearest = self.tree.dearest(violation.excess_us, late.dearness(), late.key()).unwrap_or(late);
            if late.key() >= new.key() && dearest.dearness() <= new.dearness() * DEARER || gone.len() == GIVE_WAY {
                fits = false;
                break;
            }
            self.tree.remove(dearest.key());
            gone.push(dearest);
        }
        if fits {
            return if gone.is_empty() {
                Admission::Fits
            } else {
                Admission::Instead(gone.into_iter().map(|entry| entry.task).collect())
            };
        }
        gone.into_iter().for_each(|entry| self.tree.insert(entry));
        let begins_us = self.profile.level_us(self.tree.work_before_us(new.key()));
        Admission::Unreachable { finish_us: (begins_us + self.safety.own * new.expected_us) as u64 }
    }

    /// The next task that is to give way so that the others can be met. It stays until it is removed.
    pub(super) fn giving_way(&self) -> Option<Handle> {
        let violation = self.tree.first_violation(&self.profile, self.grace_us(), None)?;
        let late = violation.entry;
        Some(self.tree.dearest(violation.excess_us, late.dearness(), late.key()).unwrap_or(late).task)
    }

    /// The task that has to go first, when this one, which the policy chose, would make it or another late.
    pub(super) fn instead_of(&mut self, chosen: &Waiting, has_claim: bool) -> Option<Handle> {
        let first = *self.tree.first()?;
        let until = if has_claim { key(chosen) } else { None };
        if until == Some(first.key()) {
            return None;
        }
        self.profile.give(self.safety.own.max(self.safety.work) * chosen.expected_seconds * 1e6);
        // Tasks that are yet to come need some of the slack as well.
        self.profile.shift(RESERVE * self.mean_us);
        let late = self.tree.first_violation(&self.profile, self.grace_us(), until);
        late.map(|_| first.task)
    }

    /// How many slots the claims take: the most of, for each, the work that is due by then over the time until then. Looked at in
    /// steps of √2 from a quarter of a second to two days.
    pub(super) fn slots_wanted(&self, now_us: u64) -> f64 {
        if self.is_empty() {
            return 0.0;
        }
        let horizons_us = (0..40).map(|step| 250_000.0 * f64::powf(2.0, f64::from(step) / 2.0));
        horizons_us
            .map(|horizon_us| self.tree.work_before_us((now_us.saturating_add(horizon_us as u64), 0)) / horizon_us)
            .fold(0.0, f64::max)
    }

    /// A task that had a claim when it was dispatched has ended.
    pub(super) fn handle_end(&mut self, is_late: bool, ran_us: f64, expected_us: f64) {
        self.mean_us =
            if self.mean_us > 0.0 { self.mean_us + 0.02 * (expected_us - self.mean_us) } else { expected_us };
        self.safety.handle_end(is_late);
        self.safety.handle_run(ran_us, expected_us, self.mean_us);
    }

    /// A task with a claim expired.
    pub(super) fn handle_expired(&mut self) {
        self.safety.handle_end(true);
    }

    fn grace_us(&self) -> f64 {
        GRACE * self.mean_us
    }
}
