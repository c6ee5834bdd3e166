//! Which of one model's waiting tasks give way when more waits than is done in a bearable time.
//!
//! `README.md` of the planner has the rule. What is expected of the tasks in lanes is always added up, for whoever wants to
//! know how long they take; what each tenant has of it, and which task is worth the least, is kept only while there is a mark.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
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
/// Tenants that have this part of what the tenant with the most waiting work has are those that crowd the model, each by its
/// weight. Tasks of others do not give way.
const CROWDING: f64 = 0.8;
/// So many of them are looked at for the task that is worth the least.
const LOOKED_AT: usize = 16;
/// So long after slots went away, or the first came back, or as long as the mark is if that is less, no task that was admitted
/// gives way: workers that are restarted one by one are no reason to. Microseconds.
const SETTLING_US: u64 = 30_000_000;
/// So many give way to one task that comes, at most; those beyond give way to the next.
const AT_ONCE: usize = 256;

/// Least worth first; of equal worth the newest.
type Key = (u64, Reverse<(u64, u64)>, Handle);

/// When something gives way.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Mark {
    /// What waits may take one slot so long.
    pub(super) us: u64,
    /// What each tenant has of it matters.
    pub(super) by_tenant: bool,
}

/// What waits of one tenant, or of all where tenants do not matter.
#[derive(Default)]
struct Crowd {
    queued_us: u128,
    weight: f64,
    by_worth: BTreeSet<Key>,
}

#[derive(Default)]
pub(super) struct Overload {
    mark: Option<Mark>,
    /// Tasks that the workers run at once.
    slots: usize,
    /// Σ expected time of the tasks in lanes, of those of which something is known.
    queued_us: u128,
    /// What the tasks are believed to take that wait where the planner does not see them.
    unread_us: u128,
    /// What the tasks are expected to take that were taken out for a while.
    away_us: u128,
    /// Tasks in lanes of which nothing is.
    unknown: usize,
    /// Σ expected time of all tasks that came.
    offered_us: u128,
    /// By flow.
    crowds: BTreeMap<u32, Crowd>,
    /// Flows by what waits of them, over their weight.
    by_load: BTreeSet<(u64, u32)>,
    is_over: bool,
    /// Slots went away, or the first came, and nobody has looked since.
    is_shaken: bool,
    settled_us: u64,
}

fn expected_us(waiting: &Waiting) -> u128 {
    (waiting.expected_seconds * 1e6) as u128
}

fn worth(waiting: &Waiting) -> f64 {
    waiting.weight() / waiting.expected_seconds
}

fn key(waiting: &Waiting, task: Handle) -> Key {
    // Bits order like the numbers, of which none is negative.
    (worth(waiting).to_bits(), Reverse((waiting.arrival_us, waiting.sequence)), task)
}

fn load(queued_us: u128, weight: f64) -> f64 {
    queued_us as f64 / weight
}

impl Overload {
    pub(super) fn new(mark: Option<Mark>) -> Self {
        Self { mark, ..Self::default() }
    }

    /// A task came, whatever becomes of it.
    pub(super) fn handle_offer(&mut self, waiting: &Waiting) {
        self.offered_us += expected_us(waiting);
    }

    /// A task came to a lane; its tenant has this weight.
    pub(super) fn insert(&mut self, record: &Record, task: Handle, weight: f64) {
        if record.is_guess {
            self.unknown += 1;
            return;
        }
        self.queued_us += expected_us(&record.waiting);
        self.set_load(record.flow, |crowd| {
            crowd.weight = weight;
            crowd.queued_us += expected_us(&record.waiting);
        });
        self.rank(record, task);
        self.refresh();
    }

    /// A task left its lane.
    pub(super) fn remove(&mut self, record: &Record, task: Handle) {
        if record.is_guess {
            self.unknown -= 1;
            return;
        }
        self.queued_us -= expected_us(&record.waiting);
        self.unrank(record, task);
        self.set_load(record.flow, |crowd| crowd.queued_us -= expected_us(&record.waiting));
        self.refresh();
    }

    /// A task in a lane is worth what it is now: after [`Self::unrank`], which stands before a change of that.
    pub(super) fn rank(&mut self, record: &Record, task: Handle) {
        let crowd = self.crowd_of(record.flow);
        if !record.is_guess
            && let Some(crowd) = self.crowds.get_mut(&crowd)
        {
            crowd.by_worth.insert(key(&record.waiting, task));
        }
    }

    pub(super) fn unrank(&mut self, record: &Record, task: Handle) {
        let crowd = self.crowd_of(record.flow);
        if let Some(crowd) = self.crowds.get_mut(&crowd) {
            crowd.by_worth.remove(&key(&record.waiting, task));
        }
    }

    /// A tenant has another weight.
    pub(super) fn set_weight(&mut self, flow: u32, weight: f64) {
        if self.crowds.contains_key(&self.crowd_of(flow)) {
            self.set_load(flow, |crowd| crowd.weight = weight);
        }
    }

    pub(super) fn set_slots(&mut self, slots: usize) {
        self.is_shaken |= slots < self.slots || self.slots == 0 && slots > 0;
        self.slots = slots;
        self.refresh();
    }

    /// How long the slots take for what waits, read or not, in seconds, where this is what a task takes of which nothing is known. `None`
    /// without slots.
    pub(super) fn drain_seconds(&self, mean_seconds: f64) -> Option<f64> {
        (self.slots > 0).then(|| self.queued_seconds(mean_seconds) / self.slots as f64)
    }

    pub(super) fn queued_seconds(&self, mean_seconds: f64) -> f64 {
        self.all_us() as f64 / 1e6 + self.unknown as f64 * mean_seconds
    }

    /// What all tasks that came were expected to take, in seconds.
    pub(super) fn offered_seconds(&self) -> f64 {
        self.offered_us as f64 / 1e6
    }

    /// Whether more waited than may, and has not come down to the low mark since.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Weight per expected second of whoever gives way next.
    pub(super) fn least_worth(&self) -> Option<f64> {
        self.least(None).map(|(worth, ..)| f64::from_bits(worth))
    }

    /// The flows that crowd the model, those with the most waiting work first.
    fn crowding(&self) -> impl Iterator<Item = u32> {
        let most = self.most();
        let crowding = move |&&(load, _): &&(u64, u32)| f64::from_bits(load) >= most * CROWDING;
        self.by_load.iter().rev().take_while(crowding).map(|&(_, flow)| flow)
    }

    /// What waits of the flow that has the most, over its weight.
    fn most(&self) -> f64 {
        self.by_load.last().map_or(0.0, |&(load, _)| f64::from_bits(load))
    }

    /// Whoever is worth the least among the tasks of the flows that crowd the model, and of this one.
    fn least(&self, also: Option<u32>) -> Option<Key> {
        let flows = self.crowding().take(LOOKED_AT).chain(also);
        flows.filter_map(|flow| self.crowds.get(&flow)?.by_worth.first()).min().copied()
    }

    /// How long the slots take until a task like this one would be admitted, in seconds, when it is not. `flow` is its
    /// tenant's, if that has any task here.
    fn refuses(&self, waiting: &Waiting, flow: Option<u32>, weight: f64) -> Option<f64> {
        if !self.is_over {
            return None;
        }
        let crowd = flow.map(|flow| self.crowd_of(flow));
        let own_us = crowd.and_then(|flow| self.crowds.get(&flow)).map_or(0, |crowd| crowd.queued_us);
        let weight = if self.mark?.by_tenant { weight } else { 1.0 };
        if self.mark?.by_tenant && load(own_us + expected_us(waiting), weight) < self.most() * CROWDING {
            return None;
        }
        let (least, ..) = self.least(crowd)?;
        let low_us = self.full_us()? as f64 * LOW;
        let seconds = (self.all_us() as f64 - low_us) / 1e6 / self.slots.max(1) as f64;
        (worth(waiting) <= f64::from_bits(least) * DEARER).then(|| seconds.max(0.0))
    }

    /// A task that has to give way: all the others take longer than may be.
    fn beyond(&mut self, now_us: u64, least_us: impl Fn(Handle) -> u128) -> Option<Handle> {
        if std::mem::take(&mut self.is_shaken) {
            self.settled_us = now_us.saturating_add(self.mark.map_or(0, |mark| mark.us.min(SETTLING_US)));
        }
        let full_us = self.full_us().filter(|_| now_us >= self.settled_us && self.is_over)?;
        let (.., task) = self.least(None)?;
        (self.queued_us - least_us(task) >= full_us).then_some(task)
    }

    /// What the slots do in the time of the mark.
    fn full_us(&self) -> Option<u128> {
        self.mark.filter(|_| self.slots > 0).map(|mark| u128::from(mark.us) * self.slots as u128)
    }

    /// Where what waits of a flow is counted.
    fn crowd_of(&self, flow: u32) -> u32 {
        if self.mark.is_some_and(|mark| mark.by_tenant) { flow } else { 0 }
    }

    fn set_load(&mut self, flow: u32, change: impl FnOnce(&mut Crowd)) {
        if self.mark.is_none() {
            return;
        }
        let flow = self.crowd_of(flow);
        let crowd = self.crowds.entry(flow).or_default();
        self.by_load.remove(&(load(crowd.queued_us, crowd.weight).to_bits(), flow));
        change(crowd);
        if crowd.queued_us == 0 {
            // A task takes a microsecond at least, so there is none.
            self.crowds.remove(&flow);
        } else {
            self.by_load.insert((load(crowd.queued_us, crowd.weight).to_bits(), flow));
        }
    }

    pub(super) fn set_away(&mut self, away_us: u128) {
        self.away_us = away_us;
        self.refresh();
    }

    fn all_us(&self) -> u128 {
        self.queued_us + self.unread_us + self.away_us
    }

    fn refresh(&mut self) {
        let all_us = self.all_us();
        self.is_over = self
            .full_us()
            .is_some_and(|full_us| all_us >= full_us || self.is_over && all_us as f64 > full_us as f64 * LOW);
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
    /// before the first task comes, and after what [rules](Self::with_fairness) there are.
    pub fn set_overload(&mut self, most_seconds: Option<f64>) {
        let by_tenant = self.fairness.allowance.is_some();
        let most = most_seconds.filter(|seconds| seconds.is_finite() && *seconds > 0.0);
        self.models.set_mark(most.map(|seconds| Mark { us: ((seconds * 1e6) as u64).max(1), by_tenant }));
    }

    /// So many tasks wait that were not read yet, since what waits here fills the room there is for it. They are believed to be
    /// like those that wait here. Nothing gives way for them, but new tasks are refused.
    pub fn handle_unread(&mut self, tasks: usize) {
        let all = self.waiting().max(1) as u128;
        for model in self.models.iter_mut() {
            model.overload.unread_us = model.overload.queued_us * tasks as u128 / all;
            model.overload.refresh();
        }
    }

    /// How much work each model has, by name.
    pub fn demand(&self, now_us: u64) -> Vec<Demand> {
        let demand = self.models.by_name().into_iter().map(|(name, Model { overload, deadlines, .. })| Demand {
            model: name.clone(),
            offered_seconds: overload.offered_seconds(),
            queued_seconds: overload.queued_seconds(self.expected_guess_seconds(name)),
            deadline_slots: deadlines.slots_wanted(now_us),
            slots: overload.slots,
        });
        demand.collect()
    }

    /// The tenants whose tasks give way while a model is overloaded: those with the most waiting work over their weight. `None`
    /// for everybody: more than `most` of them, or tenants do not matter.
    pub fn crowding(&self, model: &str, most: usize) -> Option<Vec<Arc<str>>> {
        let Model { overload, backlog, .. } = self.models.get(self.models.find(model)?);
        overload.mark.filter(|mark| mark.by_tenant)?;
        let flows: Vec<u32> = overload.crowding().take(most + 1).collect();
        let name = |flow| self.tenants.name(backlog.shares.flow(flow).tenant).clone();
        (flows.len() <= most).then(|| flows.into_iter().map(name).collect())
    }

    /// Whether a new task is worth too little for what waits, and for how many seconds that is expected to last.
    pub(super) fn is_least_of_too_many(&self, model: &str, tenant: &str, waiting: &Waiting) -> Option<f64> {
        let model = self.models.get(self.models.find(model)?);
        if !model.can_run() || !model.overload.is_over() {
            return None;
        }
        let tenant = self.tenants.find(tenant);
        let flow = tenant.and_then(|tenant| model.backlog.shares.find(tenant));
        let weight =
            tenant.and_then(|tenant| self.tenants.limited(tenant)).map_or(1.0, |limited| limited.limits.weight);
        // As it is kept with the flow.
        model.overload.refuses(waiting, flow, f64::from(weight as f32))
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
