//! Which of one model's waiting tasks give way when more waits than is done in a bearable time.
//!
//! `README.md` of the planner has the rule. What is expected of the tasks in lanes is always added up, for whoever wants to
//! know how long they take; which of them is worth the least is kept only while there is a mark.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::Planner;
use super::decision::ShedReason;
use super::models::Model;
use super::policy::Waiting;
use super::tasks::{Handle, Place, Record};

/// A model has been relieved when what waits takes no longer than this part of the mark.
pub const LOW: f64 = 0.8;
/// Who comes takes the place of another only when it is worth so much more: what is expected of tasks of one kind differs a
/// little from one to the next, and that is no reason. Less than the step from the last priority but one to the last.
const DEARER: f64 = 1.1;
/// So long after slots went away, or the first came back, or as long as the mark is if that is less, no task that was admitted
/// gives way: workers that are restarted one by one are no reason to. Microseconds.
const SETTLING_US: u64 = 30_000_000;
/// So many give way to one task that comes, at most; those beyond give way to the next.
const AT_ONCE: usize = 256;

/// Least worth first; of equal worth the newest.
type Key = (u64, Reverse<(u64, u64)>, Handle);

#[derive(Default)]
pub(super) struct Overload {
    /// What waits may take one slot so long. None: nothing gives way.
    mark_us: Option<u64>,
    /// Tasks that the workers run at once.
    slots: usize,
    /// Σ expected time of the tasks in lanes, of those of which something is known.
    queued_us: u128,
    /// Tasks in lanes of which nothing is.
    unknown: usize,
    /// Σ expected time of all tasks that came.
    offered_us: u128,
    by_worth: BTreeSet<Key>,
    is_over: bool,
    /// Slots went away, or the first came, and nobody has looked since.
    is_shaken: bool,
    settled_us: u64,
}

fn expected_us(waiting: &Waiting) -> u128 {
    (waiting.expected_seconds * 1e6) as u128
}

/// Weight per expected second, as a number that orders alike: no worth is negative.
fn worth(waiting: &Waiting) -> u64 {
    worth_per_second(waiting).to_bits()
}

fn worth_per_second(waiting: &Waiting) -> f64 {
    waiting.weight() / waiting.expected_seconds
}

fn key(waiting: &Waiting, task: Handle) -> Key {
    (worth(waiting), Reverse((waiting.arrival_us, waiting.sequence)), task)
}

impl Overload {
    pub(super) fn new(mark_us: Option<u64>) -> Self {
        Self { mark_us, ..Self::default() }
    }

    /// A task came, whatever becomes of it.
    pub(super) fn handle_offer(&mut self, waiting: &Waiting) {
        self.offered_us += expected_us(waiting);
    }

    /// A task came to a lane.
    pub(super) fn insert(&mut self, record: &Record, task: Handle) {
        if record.is_guess {
            self.unknown += 1;
            return;
        }
        self.queued_us += expected_us(&record.waiting);
        self.rank(record, task);
        self.refresh();
    }

    /// A task in a lane is worth what it is now: after [`Self::unrank`], which stands before a change of that.
    pub(super) fn rank(&mut self, record: &Record, task: Handle) {
        if self.mark_us.is_some() && !record.is_guess {
            self.by_worth.insert(key(&record.waiting, task));
        }
    }

    pub(super) fn unrank(&mut self, record: &Record, task: Handle) {
        if self.mark_us.is_some() {
            self.by_worth.remove(&key(&record.waiting, task));
        }
    }

    /// A task left its lane.
    pub(super) fn remove(&mut self, record: &Record, task: Handle) {
        if record.is_guess {
            self.unknown -= 1;
            return;
        }
        self.queued_us -= expected_us(&record.waiting);
        self.unrank(record, task);
        self.refresh();
    }

    pub(super) fn set_slots(&mut self, slots: usize) {
        self.is_shaken |= slots < self.slots || self.slots == 0 && slots > 0;
        self.slots = slots;
        self.refresh();
    }

    /// How long the slots take for what waits, in seconds, where this is what a task takes of which nothing is known. `None`
    /// without slots.
    pub(super) fn drain_seconds(&self, mean_seconds: f64) -> Option<f64> {
        let all_seconds = self.queued_us as f64 / 1e6 + self.unknown as f64 * mean_seconds;
        (self.slots > 0).then(|| all_seconds / self.slots as f64)
    }

    /// Whether more waited than may, and has not come down to the low mark since.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Weight per expected second of whoever gives way next.
    pub(super) fn least_worth(&self) -> Option<f64> {
        self.by_worth.first().map(|&(worth, ..)| f64::from_bits(worth))
    }

    /// How long the slots take until a task like this one would be admitted, in seconds, when it is not.
    fn refuses(&self, waiting: &Waiting) -> Option<f64> {
        let &(least, ..) = self.by_worth.first().filter(|_| self.is_over)?;
        let low_us = self.full_us()? as f64 * LOW;
        let seconds = (self.queued_us as f64 - low_us) / 1e6 / self.slots.max(1) as f64;
        (worth_per_second(waiting) <= f64::from_bits(least) * DEARER).then(|| seconds.max(0.0))
    }

    /// A task that has to give way: all the others take longer than may be.
    fn beyond(&mut self, now_us: u64, least_us: impl Fn(Handle) -> u128) -> Option<Handle> {
        if std::mem::take(&mut self.is_shaken) {
            self.settled_us = now_us.saturating_add(self.mark_us.map_or(0, |mark_us| mark_us.min(SETTLING_US)));
        }
        let full_us = self.full_us().filter(|_| now_us >= self.settled_us)?;
        let &(.., task) = self.by_worth.first()?;
        (self.queued_us - least_us(task) >= full_us).then_some(task)
    }

    /// What the slots do in the time of the mark.
    fn full_us(&self) -> Option<u128> {
        self.mark_us.filter(|_| self.slots > 0).map(|mark_us| u128::from(mark_us) * self.slots as u128)
    }

    fn refresh(&mut self) {
        self.is_over = self.full_us().is_some_and(|full_us| {
            self.queued_us >= full_us || self.is_over && self.queued_us as f64 > full_us as f64 * LOW
        });
    }
}

/// What there is to do for one model, and what with.
#[derive(Clone, PartialEq, Debug)]
pub struct Demand {
    pub model: Arc<str>,
    /// Σ expected seconds of all tasks that came since the model was last forgotten, those included that were refused because
    /// too much waits.
    pub offered_seconds: f64,
    /// Σ expected seconds of the tasks that may start now.
    pub queued_seconds: f64,
    /// How many slots the waiting deadlines take: the most that any of them takes, with all that is due before it.
    pub deadline_slots: f64,
    /// Tasks that the workers run at once.
    pub slots: usize,
}

impl Planner {
    /// How long the slots of a model may take for all that waits for it, in seconds; with `None` nothing gives way. To be said
    /// before the first task comes.
    pub fn set_overload(&mut self, most_seconds: Option<f64>) {
        let mark_us = most_seconds.filter(|seconds| seconds.is_finite() && *seconds > 0.0);
        self.models.set_overload_us(mark_us.map(|seconds| ((seconds * 1e6) as u64).max(1)));
    }

    /// How much work each model has, by name.
    pub fn demand(&self, now_us: u64) -> Vec<Demand> {
        let demand = self.models.by_name().into_iter().map(|(name, Model { overload, deadlines, .. })| Demand {
            model: name.clone(),
            offered_seconds: overload.offered_us as f64 / 1e6,
            queued_seconds: overload.queued_us as f64 / 1e6
                + overload.unknown as f64 * self.expected_guess_seconds(name),
            deadline_slots: deadlines.slots_wanted(now_us),
            slots: overload.slots,
        });
        demand.collect()
    }

    /// Whether a new task is worth too little for what waits, and for how many seconds that is expected to last.
    pub(super) fn is_least_of_too_many(&self, model: &str, waiting: &Waiting) -> Option<f64> {
        let model = self.models.get(self.models.find(model)?);
        model.overload.refuses(waiting).filter(|_| model.can_run())
    }

    /// Sets aside those of a model that have to give way.
    pub(super) fn relieve(&mut self, number: u32, now_us: u64) {
        for _ in 0..AT_ONCE {
            let model = self.models.get_mut(number);
            if !model.can_run() {
                return;
            }
            let expected_us = |task| self.tasks.get(task).map_or(0, |record| expected_us(&record.waiting));
            let Some(task) = model.overload.beyond(now_us, expected_us) else { return };
            if !self.withdraw(task) {
                return;
            }
            if let Some(record) = self.tasks.get_mut(task) {
                record.place = Place::Leaving;
                self.shed.push_back((task, ShedReason::Overload));
            }
        }
    }
}
