//! The pure planner: events and the time go in, decisions come out.
//!
//! It reads no clock, does no I/O and draws no random number, so that the service, the simulator and the tests run
//! the same code. `handle_*` says what happened, `poll_*` asks what to do now, and the time is an argument.
//! `README.md` beside this file has the problem, the rules, and what is exact.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod admit;
mod backlog;
mod capacity;
mod decision;
mod describe;
pub mod estimator;
mod explain;
mod groups;
mod index;
mod lane;
mod line;
mod models;
mod names;
mod oldest;
pub mod policy;
mod tasks;

pub use admit::{Arrival, Refusal};
pub use capacity::Room;
pub use decision::{Decision, DispatchReason, WaitReason};
pub use estimator::{Calibration, Estimate, Learnt, Prior, Ran};
pub use explain::{AHEAD_LIMIT, Explanation, ModelStats, Stats};

use std::collections::{BTreeMap, VecDeque};

use estimator::Estimator;
use models::Models;
use names::Names;
use policy::Policy;
use tasks::{Handle, Place, Record, Tasks};
use taskyard_shared::{Kind, TaskId};

pub struct Planner {
    policy: Box<dyn Policy + Send>,
    tasks: Tasks,
    models: Models,
    tenants: Names,
    estimator: Estimator,
    /// One for each task that has a start or, waiting, a deadline: the earlier of them, then the order of arrival.
    alarms: BTreeMap<(u64, u64), Handle>,
    /// Tasks whose deadline passed, which is yet to be told.
    expired: VecDeque<Handle>,
    /// The last decision told of a deadline, so it is a dispatch's turn.
    told_expiry: bool,
    all_outstanding: usize,
    next_sequence: u64,
}

impl Planner {
    pub fn new(policy: impl Into<Box<dyn Policy + Send>>) -> Self {
        Self::with_seed(policy, 0)
    }

    /// With a seed for the look-up tables, to be drawn at random where outsiders choose ids and names. It changes no decision.
    pub fn with_seed(policy: impl Into<Box<dyn Policy + Send>>, seed: u64) -> Self {
        Self {
            policy: policy.into(),
            tasks: Tasks::new(seed),
            models: Models::new(seed),
            tenants: Names::new(seed),
            estimator: Estimator::new(seed),
            alarms: BTreeMap::new(),
            expired: VecDeque::new(),
            told_expiry: false,
            all_outstanding: 0,
            next_sequence: 0,
        }
    }

    /// A task was admitted.
    ///
    /// # Errors
    /// [`Refusal::Duplicate`] for an id that is waiting or dispatched.
    pub fn handle_arrival(&mut self, arrival: Arrival, now_us: u64) -> Result<(), Refusal> {
        if self.tasks.find(arrival.id).is_some() {
            return Err(Refusal::Duplicate);
        }
        let expected = match arrival.expected {
            Some(expected) => expected.bounded(),
            None => self.estimator.handle_arrival(&arrival.model, arrival.kind, arrival.cost),
        };
        let waiting = arrival.waiting(expected, now_us, self.next_sequence);
        self.next_sequence += 1;
        let model = self.models.acquire(&arrival.model);
        let tenant = self.tenants.acquire(&arrival.tenant);
        let start_us = arrival.start_us(now_us);
        let place = Place::Delayed { start_us: start_us.unwrap_or(now_us) };
        let cost = arrival.cost.map_or(f32::NAN, |cost| cost as f32);
        let deviation_seconds = expected.deviation_seconds as f32;
        let task = self.tasks.insert(Record { waiting, model, tenant, cost, deviation_seconds, place });
        match start_us {
            Some(_) => {
                if let Some(record) = self.tasks.get(task) {
                    self.models.get_mut(model).backlog.count_delayed(&record.waiting);
                }
                self.set_alarm(task);
            }
            None => self.enqueue(task, now_us),
        }
        Ok(())
    }

    /// How many dispatched tasks of a model its live workers can hold together. 0 when none is alive.
    pub fn handle_load(&mut self, model: &str, room: impl Into<Room>) {
        self.models.set_room(model, room.into());
    }

    /// A dispatched task could not be published: it waits again where it waited, and its credit is free, so that the
    /// next decision may choose it again. While the broker takes nothing, report no capacity. Answers whether the task
    /// was dispatched.
    pub fn handle_dispatch_failed(&mut self, id: TaskId) -> bool {
        let Some((task, dispatched_us)) = self.find_dispatched(id) else { return false };
        self.give_back(task, dispatched_us);
        self.enqueue(task, dispatched_us);
        true
    }

    /// What a model's settings say of it. Told anew when they change.
    pub fn handle_model(&mut self, model: &str, prior: Prior) {
        self.estimator.set_prior(model, prior);
    }

    /// A dispatched task is no longer with a worker, which ran it so long, if it is known. Answers whether it was dispatched.
    pub fn handle_completion(&mut self, id: TaskId, ran: Option<Ran>) -> bool {
        let Some((task, dispatched_us)) = self.find_dispatched(id) else { return false };
        if let (Some(ran), Some(record)) = (ran, self.tasks.get(task)) {
            let (model, kind) = (self.models.name(record.model), record.waiting.kind);
            self.estimator.handle_ran(model, kind, record.cost(), record.expected(), ran);
        }
        self.give_back(task, dispatched_us);
        self.forget(task);
        true
    }

    /// The tasks of a model that were dispatched before this time are with no worker, though no completion came:
    /// they are forgotten. Answers how many they were.
    pub fn handle_outstanding_lost(&mut self, model: &str, dispatched_before_us: u64) -> usize {
        let Some(model) = self.models.find(model) else { return 0 };
        let lost: Vec<(u64, Handle)> = self.models.get(model).capacity.before(dispatched_before_us).collect();
        for &(at_us, task) in &lost {
            self.give_back(task, at_us);
            self.forget(task);
        }
        lost.len()
    }

    /// A waiting task is no longer wanted. Answers whether it was waiting; a dispatched one stays.
    pub fn handle_cancel(&mut self, id: TaskId) -> bool {
        let Some(task) = self.tasks.find(id) else { return false };
        if !self.withdraw(task) {
            return false;
        }
        self.forget(task);
        true
    }

    /// The next thing to do at this time, until there is none.
    ///
    /// Models take turns, and so do dispatches and expiries.
    pub fn poll_decision(&mut self, now_us: u64) -> Option<Decision> {
        self.ring_alarms(now_us);
        let decision = if self.told_expiry {
            self.dispatch(now_us).or_else(|| self.tell_expiry())
        } else {
            self.tell_expiry().or_else(|| self.dispatch(now_us))
        };
        self.told_expiry = matches!(decision, Some(Decision::Expire { .. }));
        decision
    }

    /// When to poll again though nothing happens: the next earliest start or deadline.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.alarms.first_key_value().map(|(&(at_us, _), _)| at_us)
    }

    /// Tasks that wait in lanes or for their start.
    pub fn waiting(&self) -> usize {
        self.tasks.len() - self.all_outstanding - self.expired.len()
    }

    /// Tasks of a model that were dispatched and have not completed.
    pub fn outstanding(&self, model: &str) -> usize {
        self.models.find(model).map_or(0, |model| self.models.get(model).capacity.outstanding())
    }

    /// Tasks of a model that wait in lanes or for their start.
    pub fn backlog(&self, model: &str) -> usize {
        self.models.find(model).map_or(0, |model| self.models.get(model).backlog.waiting())
    }

    /// What a task of this model takes, over all of them as they ran of late. `None` before the first.
    pub fn mean_seconds(&self, model: &str) -> Option<f64> {
        self.estimator.mean_seconds(model)
    }

    /// What such a task is expected to take, were it to arrive now.
    pub fn expected(&self, model: &str, kind: Kind, cost: Option<f64>) -> Estimate {
        self.estimator.estimate(model, kind, cost)
    }

    /// What was learnt of run times, to be kept across restarts. It is the same as long as [`Self::learnt_from`] is.
    pub fn learnt(&self) -> Learnt {
        self.estimator.learnt()
    }

    /// How many completions run times were learnt from.
    pub fn learnt_from(&self) -> u64 {
        self.estimator.completions()
    }

    /// Takes over what was learnt before a restart, of models of which nothing is known yet. Answers how many these were.
    pub fn restore(&mut self, learnt: Learnt) -> usize {
        self.estimator.restore(learnt)
    }

    /// The policy's name.
    pub fn policy(&self) -> &'static str {
        self.policy.name()
    }

    fn dispatch(&mut self, now_us: u64) -> Option<Decision> {
        match self.models.next_ready() {
            Some(model) => self.dispatch_from(model, now_us),
            None => self.pass(now_us),
        }
    }

    /// Sends a task past those that wait for their slot, if one came that is so much more pressing.
    fn pass(&mut self, now_us: u64) -> Option<Decision> {
        while let Some(model) = self.models.next_pressing() {
            if let Some(decision) = self.dispatch_from(model, now_us) {
                // Others may have come with it.
                self.models.handle_came(model);
                return Some(decision);
            }
        }
        None
    }

    fn dispatch_from(&mut self, number: u32, now_us: u64) -> Option<Decision> {
        let model = self.models.get_mut(number);
        model.backlog.advance_stages(&mut self.tasks, &*self.policy, now_us);
        let (task, reason, score) = model.backlog.choose(&*self.policy, now_us)?;
        let passes = model.capacity.may_pass(&*self.policy, score);
        if !(passes || model.capacity.has_credit()) || !self.withdraw(task) {
            return None;
        }
        let record = self.tasks.get_mut(task)?;
        record.place = Place::Dispatched { at_us: now_us, passes };
        let id = record.waiting.id;
        self.all_outstanding += 1;
        let capacity = &mut self.models.get_mut(number).capacity;
        match passes {
            true => capacity.take_passing(now_us, task),
            false => capacity.take(now_us, task, score),
        }
        self.models.refresh_ready(number);
        let reason = if passes { DispatchReason::Passes } else { reason };
        Some(Decision::Dispatch { id, model: self.models.name(number).clone(), reason })
    }

    fn tell_expiry(&mut self) -> Option<Decision> {
        let task = self.expired.pop_front()?;
        let record = self.tasks.get(task)?;
        let (id, model) = (record.waiting.id, self.models.name(record.model).clone());
        self.forget(task);
        Some(Decision::Expire { id, model })
    }

    /// Starts what may start now, and sets aside what has expired, so that no decision sees it.
    fn ring_alarms(&mut self, now_us: u64) {
        while let Some(entry) = self.alarms.first_entry() {
            if entry.key().0 > now_us {
                return;
            }
            let task = entry.remove();
            let Some(record) = self.tasks.get(task) else { continue };
            let expired = record.waiting.deadline_us.is_some_and(|at_us| at_us <= now_us);
            self.withdraw(task);
            if !expired {
                self.enqueue(task, now_us);
            } else if let Some(record) = self.tasks.get_mut(task) {
                record.place = Place::Expired;
                self.expired.push_back(task);
            }
        }
    }

    fn enqueue(&mut self, task: Handle, now_us: u64) {
        let Some(record) = self.tasks.get_mut(task) else { return };
        let model = record.model;
        self.models.get_mut(model).backlog.insert(task, record, &*self.policy, now_us);
        self.models.refresh_ready(model);
        self.models.handle_came(model);
        self.set_alarm(task);
    }

    /// Takes a waiting task from where it waits. Answers whether it waited; its place is then the caller's to set.
    fn withdraw(&mut self, task: Handle) -> bool {
        let Some(record) = self.tasks.get(task) else { return false };
        let backlog = &mut self.models.get_mut(record.model).backlog;
        match record.place {
            Place::Delayed { .. } => backlog.uncount_delayed(&record.waiting),
            Place::Lane { stage } => backlog.remove(task, stage, &self.tasks, &*self.policy),
            Place::Dispatched { .. } | Place::Expired => return false,
        }
        if let Some(at_us) = record.alarm_us() {
            self.alarms.remove(&(at_us, record.waiting.sequence));
        }
        let model = record.model;
        self.models.refresh_ready(model);
        true
    }

    fn set_alarm(&mut self, task: Handle) {
        if let Some(record) = self.tasks.get(task)
            && let Some(at_us) = record.alarm_us()
        {
            self.alarms.insert((at_us, record.waiting.sequence), task);
        }
    }

    fn find_dispatched(&self, id: TaskId) -> Option<(Handle, u64)> {
        let task = self.tasks.find(id)?;
        match self.tasks.get(task)?.place {
            Place::Dispatched { at_us, .. } => Some((task, at_us)),
            Place::Delayed { .. } | Place::Lane { .. } | Place::Expired => None,
        }
    }

    fn give_back(&mut self, task: Handle, dispatched_us: u64) {
        let Some(record) = self.tasks.get(task) else { return };
        let passes = matches!(record.place, Place::Dispatched { passes: true, .. });
        self.all_outstanding -= 1;
        self.models.get_mut(record.model).capacity.give_back(dispatched_us, task, passes);
        self.models.refresh_ready(record.model);
    }

    fn forget(&mut self, task: Handle) {
        if let Some(record) = self.tasks.remove(task) {
            self.models.release(record.model);
            self.tenants.release(record.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use taskyard_shared::{Kind, Priority, TaskId};

    use super::{Arrival, Planner, policy::Cmu};

    #[test]
    fn tenants_and_models_are_forgotten_with_their_last_task() {
        let mut planner = Planner::new(Cmu::default());
        let ids: Vec<TaskId> = (0..100).map(|_| TaskId::new()).collect();
        for (number, &id) in ids.iter().enumerate() {
            let (model, tenant, priority) = (format!("m{number}"), format!("t{number}"), Priority::default());
            let task = Arrival {
                id,
                model,
                tenant,
                priority,
                kind: Kind::Prediction,
                cost: None,
                expected: None,
                deadline_us: None,
                not_before_us: None,
                arrived_us: None,
            };
            assert_eq!(planner.handle_arrival(task, 0), Ok(()));
        }
        let known = |planner: &Planner| (planner.tenants.iter().count(), planner.models.by_name().len());
        assert_eq!(known(&planner), (100, 100));
        assert!(ids.iter().all(|&id| planner.handle_cancel(id)));
        assert_eq!(known(&planner), (0, 0));
    }
}
