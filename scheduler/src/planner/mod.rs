//! The pure planner: events and the time go in, decisions come out.
//!
//! It reads no clock, does no I/O and draws no random number, so that the service, the simulator and the tests run
//! the same code. `handle_*` says what happened, `poll_*` asks what to do now, and the time is an argument.
//! `README.md` beside this file has the problem, the rules, and what is exact.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod admit;
mod allocate;
mod backlog;
mod capacity;
mod deadlines;
mod decision;
mod describe;
pub mod estimator;
mod explain;
mod fair;
mod floors;
mod flows;
mod groups;
mod index;
mod lane;
mod late;
mod line;
mod models;
mod names;
mod oldest;
mod overload;
mod pace;
mod page;
pub mod placement;
pub mod policy;
mod predict;
mod shares;
mod tasks;
mod tenants;
mod wants;

pub use admit::{Arrival, Refusal};
pub use allocate::{Allocation, Bid, Candidate, Compared, Regret as AllocationRegret, Request};
pub use capacity::Room;
pub use deadlines::Late;
pub use decision::{Decision, DispatchReason, ShedReason, WaitReason};
pub use estimator::{Calibration, Estimate, Learnt, Prior, Ran};
pub use explain::{AHEAD_LIMIT, Explanation, ModelStats, Stats, TenantStats};
pub use fair::{BANDS, Fairness, TenantLimits};
pub use overload::{Demand, LOW};
pub use page::{Away, AwayByPriority, Tail, Takes};
pub use predict::{Prediction, StartCalibration};
pub use wants::Wants;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use backlog::Choice;
use estimator::Estimator;
use models::{Model, Models};
use policy::Policy;
use shares::Begin;
use tasks::{Handle, NEVER, Place, Record, Tasks};
use taskyard_shared::{Kind, Priority, TaskId};
use tenants::{Limited, Tenants};

pub struct Planner {
    policy: Box<dyn Policy + Send>,
    fairness: Fairness,
    tasks: Tasks,
    models: Models,
    tenants: Tenants,
    estimator: Estimator,
    /// One for each task that has a start or, waiting, a deadline: the earlier of them, then the order of arrival.
    alarms: BTreeMap<(u64, u64), Handle>,
    late: Late,
    /// Tasks whose deadline passed, which is yet to be told.
    expired: VecDeque<Handle>,
    /// Tasks that gave way, which is yet to be told.
    shed: VecDeque<(Handle, ShedReason)>,
    /// The last decision told of a deadline, so it is a dispatch's turn.
    told: bool,
    /// Tasks with a claim that have ended since time was last told.
    ended: Vec<Ended>,
    all_outstanding: usize,
    next_sequence: u64,
    /// Models that no worker holds and some could load.
    loadable: BTreeSet<String>,
}

/// A task that had a claim to its deadline when it was dispatched, and has ended.
struct Ended {
    model: u32,
    deadline_us: u64,
    begun_us: u64,
    expected_us: f64,
}

impl Planner {
    pub fn new(policy: impl Into<Box<dyn Policy + Send>>) -> Self {
        Self::with_seed(policy, 0)
    }

    /// With a seed for the look-up tables, to be drawn at random where outsiders choose ids and names. It changes no decision.
    pub fn with_seed(policy: impl Into<Box<dyn Policy + Send>>, seed: u64) -> Self {
        let policy = policy.into();
        Self {
            fairness: Fairness::of_policy(policy.name(), Fairness::ALLOWANCE, Fairness::FLOORS),
            late: if policy.keeps_deadlines() { Late::Refuse } else { Late::Keep },
            policy,
            tasks: Tasks::new(seed),
            models: Models::new(seed),
            tenants: Tenants::new(seed),
            estimator: Estimator::new(seed),
            alarms: BTreeMap::new(),
            expired: VecDeque::new(),
            shed: VecDeque::new(),
            told: false,
            ended: Vec::new(),
            all_outstanding: 0,
            next_sequence: 0,
            loadable: BTreeSet::new(),
        }
    }

    /// With other rules beside the policy than those that go with it.
    #[must_use]
    pub fn with_fairness(self, fairness: Fairness) -> Self {
        Self { fairness, ..self }
    }

    /// What is to become of tasks that cannot meet their deadlines: to be said before the first comes. Without this a
    /// policy that [keeps deadlines](Policy::keeps_deadlines) refuses them, and the others do nothing.
    pub fn set_late(&mut self, late: Late) {
        self.late = late;
    }

    /// A task is to be admitted.
    ///
    /// # Errors
    /// [`Refusal::Duplicate`] for an id that is waiting or dispatched, [`Refusal::DeadlineUnreachable`] for a task that is
    /// not worth what it would make late, [`Refusal::Overloaded`] for one that is worth no more than any of too many,
    /// [`Refusal::TooManyWaiting`] for one whose tenant has as many waiting as may.
    pub fn handle_arrival(&mut self, arrival: Arrival, now_us: u64) -> Result<(), Refusal> {
        self.arrive(arrival, now_us, true)
    }

    fn arrive(&mut self, arrival: Arrival, now_us: u64, is_new: bool) -> Result<(), Refusal> {
        if self.tasks.find(arrival.id).is_some() {
            return Err(Refusal::Duplicate);
        }
        if !arrival.is_known && self.has_too_many_waiting(&arrival.tenant) {
            return Err(Refusal::TooManyWaiting);
        }
        let expected = match arrival.expected {
            Some(expected) => expected.bounded(),
            None if is_new => self.estimator.handle_arrival(&arrival.model, arrival.kind, arrival.cost),
            None => self.estimator.estimate(&arrival.model, arrival.kind, arrival.cost),
        };
        // What was expected of one that comes back may have been a guess as well.
        let is_guess = (arrival.expected.is_none() || !is_new) && !self.estimator.knows(&arrival.model);
        let is_told = is_new && arrival.expected.is_some();
        let waiting = arrival.waiting(expected, is_told, now_us, self.next_sequence);
        let start_us = arrival.start_us(now_us);
        if !arrival.is_known
            && start_us.is_none()
            && !is_guess
            && let Some(seconds) = self.is_least_of_too_many(&arrival.model, &arrival.tenant, &waiting)
        {
            if let Some(model) = self.models.find(&arrival.model) {
                self.models.get_mut(model).overload.handle_offer(&waiting);
            }
            return Err(Refusal::Overloaded { seconds });
        }
        self.next_sequence += 1;
        let model = self.models.acquire(&arrival.model);
        if let Some(kind) = waiting.cost.typical_of()
            && !self.models.get(model).backlog.typical.knows(kind)
        {
            self.learn_typical(model, Some(kind));
        }
        if is_new {
            self.models.get_mut(model).overload.handle_offer(&waiting);
        }
        let flow = self.acquire_flow(model, &arrival.tenant);
        let place = Place::Delayed { start_us: start_us.unwrap_or(now_us) };
        let cost = arrival.cost.map_or(f32::NAN, |cost| cost as f32);
        let deviation_seconds = expected.deviation_seconds as f32;
        let expires_us = waiting.deadline_us.unwrap_or(NEVER);
        let record =
            Record { waiting, model, flow, cost, deviation_seconds, claim_us: NEVER, expires_us, is_guess, place };
        let task = self.tasks.insert(record);
        match start_us {
            Some(_) => {
                if let Some(record) = self.tasks.get(task) {
                    self.models.get_mut(model).backlog.count_delayed(&record.waiting);
                }
                self.set_alarm(task);
            }
            None => {
                self.enqueue(task, now_us);
                if is_new {
                    self.foresee(task, now_us);
                }
            }
        }
        self.judge(now_us);
        match self.check(task, now_us) {
            Some(finish_us) if self.late == Late::Refuse => {
                self.withdraw(task);
                self.forget(task);
                Err(Refusal::DeadlineUnreachable { finish_us })
            }
            late => {
                if late.is_some() {
                    self.give_up(task, now_us);
                }
                if is_new {
                    self.relieve(model, now_us);
                }
                Ok(())
            }
        }
    }

    /// Tasks of a kind that declare no cost are compared by what is expected of them now, not by what was when they came.
    /// Of the kinds of which some came already, and of the one that comes for the first time.
    fn learn_typical(&mut self, model: u32, comes: Option<Kind>) {
        let mut typical = self.models.get(model).backlog.typical;
        for kind in Kind::ALL {
            if typical.knows(kind) || comes == Some(kind) {
                typical.set(kind, self.estimator.estimate(self.models.name(model), kind, None).mean_seconds);
            }
        }
        self.models.get_mut(model).backlog.typical = typical;
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
        self.give_back(task, dispatched_us, Some(0.0));
        self.enqueue(task, dispatched_us);
        true
    }

    /// What a model's settings say of it. Told anew when they change.
    pub fn handle_model(&mut self, model: &str, prior: Prior) {
        self.estimator.set_prior(model, prior);
        if let Some(model) = self.models.find(model) {
            self.learn_typical(model, None);
        }
    }

    /// A dispatched task is no longer with a worker, which ran it so long, if it is known: its
    /// tenant is charged with that. Answers whether it was dispatched.
    pub fn handle_completion(&mut self, id: TaskId, ran: Option<Ran>) -> bool {
        let Some((task, dispatched_us)) = self.find_dispatched(id) else { return false };
        if let (Some(ran), Some(record)) = (ran, self.tasks.get(task)) {
            let (model, kind) = (self.models.name(record.model), record.waiting.kind);
            self.estimator.handle_ran(model, kind, record.cost(), record.expected(), ran);
            self.learn_typical(record.model, None);
        }
        if let Some(record) = self.tasks.get(task)
            && record.has_claim()
        {
            let begun_us = self.models.get(record.model).capacity.begun_us(dispatched_us, task);
            let expected_us = record.waiting.expected_seconds * 1e6;
            self.ended.push(Ended { model: record.model, deadline_us: record.expires_us, begun_us, expected_us });
        }
        let ran_seconds = ran.map(|ran| ran.seconds);
        self.give_back(task, dispatched_us, ran_seconds.filter(|seconds| seconds.is_finite() && *seconds > 0.0));
        self.forget(task);
        true
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

    /// A waiting task gets another priority, and keeps its age. Answers whether it was waiting; a dispatched one goes on as it is.
    pub fn handle_reprioritize(&mut self, id: TaskId, priority: Priority) -> bool {
        let Some(task) = self.tasks.find(id) else { return false };
        let Some(record) = self.tasks.get_mut(task) else { return false };
        let Model { backlog, deadlines, overload, .. } = self.models.get_mut(record.model);
        match record.place {
            Place::Delayed { .. } => {
                backlog.uncount_delayed(&record.waiting);
                record.waiting.priority = priority;
                backlog.count_delayed(&record.waiting);
            }
            Place::Lane { .. } if record.waiting.priority == priority => {}
            Place::Lane { .. } => {
                let (model, has_claim) = (record.model, record.has_claim());
                if has_claim {
                    deadlines.remove(&record.waiting);
                }
                overload.unrank(record, task);
                backlog.set_priority(task, priority, &mut self.tasks, &*self.policy);
                if let Some(record) = self.tasks.get(task) {
                    overload.rank(record, task);
                    if has_claim {
                        deadlines.insert(&record.waiting, task);
                    }
                }
                self.models.handle_came(model);
            }
            Place::Dispatched { .. } | Place::Leaving => return false,
        }
        true
    }

    /// No task of a paused model is dispatched; deadlines pass as ever. Answers whether this was a change.
    pub fn handle_pause(&mut self, model: &str, is_paused: bool) -> bool {
        self.models.set_paused(model, is_paused)
    }

    /// Tasks of a model are on their way to its queue, or are there now. Two publishes at once may overtake one another, so
    /// meanwhile others of it wait here, where they are in order; but for those that go past what was sent ahead.
    pub fn handle_sending(&mut self, model: &str, is_sending: bool) {
        if let Some(model) = self.models.find(model) {
            self.models.set_sending(model, is_sending);
        }
    }

    /// The next thing to do at this time, until there is none.
    ///
    /// Models take turns, and so do dispatches and what there is to tell of tasks that are not to run.
    pub fn poll_decision(&mut self, now_us: u64) -> Option<Decision> {
        self.judge(now_us);
        self.ring_alarms(now_us);
        let first = if self.told { None } else { self.tell() };
        // To look for a task to dispatch may find some that give way.
        let decision = first.or_else(|| self.dispatch(now_us)).or_else(|| self.tell());
        self.told = !matches!(decision, Some(Decision::Dispatch { .. }) | None);
        decision
    }

    /// When to poll again though nothing happens: the next earliest start or deadline.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.alarms.first_key_value().map(|(&(at_us, _), _)| at_us)
    }

    /// Tasks that wait in lanes or for their start.
    pub fn waiting(&self) -> usize {
        self.tasks.len() - self.all_outstanding - self.expired.len() - self.shed.len()
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

    /// The rules beside the policy.
    pub fn fairness(&self) -> Fairness {
        self.fairness
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
            if !self.models.get(model).may_go() {
                continue;
            }
            if let Some(decision) = self.dispatch_from(model, now_us) {
                // Others may have come with it.
                self.models.handle_came(model);
                return Some(decision);
            }
        }
        None
    }

    fn dispatch_from(&mut self, number: u32, now_us: u64) -> Option<Decision> {
        self.shed_late(number, now_us);
        let model = self.models.get_mut(number);
        let Model { backlog, capacity, .. } = model;
        backlog.advance_stages(&mut self.tasks, &*self.policy, now_us);
        backlog.settle_shares(self.fairness.allowance_us(backlog.shares.mean_us(), capacity.slots()), &self.tasks);
        let has_credit = capacity.has_credit();
        let at = backlog.moment(now_us);
        let chosen = backlog.choose(&*self.policy, at, has_credit.then_some(&self.fairness))?;
        let Choice { task, reason, score, needs } = self.in_time(number, chosen, now_us);
        let by_floor = reason == DispatchReason::Floor;
        let passes = !by_floor && self.models.get(number).capacity.may_pass(&*self.policy, score, at);
        self.let_tenants_go(number);
        if !(passes || has_credit) || !self.withdraw(task) {
            return None;
        }
        let flow = self.tasks.get(task)?.flow;
        self.count_running(number, flow, true);
        let record = self.tasks.get_mut(task)?;
        let Model { backlog, capacity, .. } = self.models.get_mut(number);
        let charged_us = self.fairness.charge_us(record.waiting.expected_seconds, backlog.shares.flow(flow).weight());
        record.place = Place::Dispatched { at_us: now_us, passes, by_floor, charged_us };
        let (id, sequence) = (record.waiting.id, record.waiting.sequence);
        backlog.shares.charge(flow, charged_us, record.waiting.expected_seconds * 1e6);
        backlog.shares.set_credit(self.fairness.credit_us(backlog.shares.mean_us(), capacity.slots()));
        backlog.pace.handle_dispatch(now_us, backlog.queued + backlog.away());
        if needs != [None; BANDS] {
            backlog.floors.handle_dispatch(&record.waiting, &needs, &self.fairness);
        }
        self.all_outstanding += 1;
        match passes {
            true => capacity.take_passing(now_us, task),
            // What went by its floor is passed no more easily than what went before it.
            false => capacity.take(now_us, task, (!by_floor).then_some(&record.waiting)),
        }
        self.models.refresh_ready(number);
        self.learn_start(number, sequence, now_us);
        let reason = if passes { DispatchReason::Passes } else { reason };
        Some(Decision::Dispatch { id, model: self.models.name(number).clone(), reason })
    }

    /// Of a task that is not to run.
    fn tell(&mut self) -> Option<Decision> {
        let (task, shed) = match self.expired.pop_front() {
            Some(task) => (task, None),
            None => self.shed.pop_front().map(|(task, reason)| (task, Some(reason)))?,
        };
        let record = self.tasks.get(task)?;
        let (id, model) = (record.waiting.id, self.models.name(record.model).clone());
        self.forget(task);
        Some(match shed {
            Some(reason) => Decision::Shed { id, model, reason },
            None => Decision::Expire { id, model },
        })
    }

    /// Starts what may start now, and sets aside what has expired, so that no decision sees it.
    fn ring_alarms(&mut self, now_us: u64) {
        while let Some(entry) = self.alarms.first_entry() {
            if entry.key().0 > now_us {
                return;
            }
            let task = entry.remove();
            let Some(record) = self.tasks.get_mut(task) else { continue };
            if record.expires_us <= now_us {
                if record.has_claim() && self.models.get(record.model).can_run() {
                    self.models.get_mut(record.model).deadlines.handle_expired();
                }
                self.withdraw(task);
                if let Some(record) = self.tasks.get_mut(task) {
                    record.place = Place::Leaving;
                    self.expired.push_back(task);
                }
            } else if record.is_delayed() {
                let model = record.model;
                self.withdraw(task);
                self.enqueue(task, now_us);
                if self.check(task, now_us).is_some() {
                    self.give_up(task, now_us);
                }
                self.relieve(model, now_us);
            } else if !self.models.get(record.model).can_run() {
                // Nobody knows when workers come, so it is not known to be late.
                record.claim_us = record.expires_us;
                self.set_alarm(task);
            } else {
                // By what is known of its run time now it may begin later.
                let latest_us = self.models.get(record.model).deadlines.latest_us(&record.waiting);
                record.claim_us = latest_us;
                if latest_us >= now_us && latest_us < NEVER - 1 {
                    record.claim_us = latest_us + 1;
                    self.set_alarm(task);
                } else {
                    self.give_up(task, now_us);
                }
            }
        }
    }

    fn enqueue(&mut self, task: Handle, now_us: u64) {
        let Some(record) = self.tasks.get_mut(task) else { return };
        let (model, flow) = (record.model, record.flow);
        let Model { backlog, capacity, deadlines, overload, .. } = self.models.get_mut(model);
        if self.late != Late::Keep {
            let claim_us = deadlines.insert(&record.waiting, task);
            // When that has passed, it is told at the next decision, and not before.
            record.claim_us =
                claim_us.map_or(NEVER, |at_us| at_us.saturating_add(1).clamp(now_us.min(NEVER - 1), NEVER - 1));
        }
        let is_limited = backlog.shares.flow(flow).is_counted
            && self.tenants.limited(backlog.shares.flow(flow).tenant).is_some_and(Limited::is_at_limit);
        let begin = Begin { is_limited, is_idle: capacity.outstanding() == 0 };
        overload.insert(record, task, backlog.shares.flow(flow).weight());
        backlog.insert(task, &mut self.tasks, &*self.policy, now_us, begin);
        self.models.refresh_ready(model);
        self.models.handle_came(model);
        self.set_alarm(task);
    }

    /// Takes a waiting task from where it waits. Answers whether it waited; its place is then the caller's to set.
    fn withdraw(&mut self, task: Handle) -> bool {
        let Some(record) = self.tasks.get(task) else { return false };
        let Model { backlog, deadlines, overload, .. } = self.models.get_mut(record.model);
        if record.has_claim() {
            deadlines.remove(&record.waiting);
        }
        match record.place {
            Place::Delayed { .. } => backlog.uncount_delayed(&record.waiting),
            Place::Lane { stage } => {
                overload.remove(record, task);
                backlog.remove(task, stage, &self.tasks, &*self.policy);
            }
            Place::Dispatched { .. } | Place::Leaving => return false,
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
            Place::Delayed { .. } | Place::Lane { .. } | Place::Leaving => None,
        }
    }

    /// A dispatched task is out no longer. With seconds, its tenant is charged with these and not with what was expected; with
    /// none at all, nothing came of the dispatch.
    fn give_back(&mut self, task: Handle, dispatched_us: u64, ran_seconds: Option<f64>) {
        let Some(Record {
            place: Place::Dispatched { passes, by_floor, charged_us, .. }, waiting, model, flow, ..
        }) = self.tasks.get(task)
        else {
            return;
        };
        let (number, flow) = (*model, *flow);
        let Model { backlog, capacity, .. } = self.models.get_mut(number);
        if let Some(seconds) = ran_seconds {
            let failed = seconds == 0.0;
            let charge_us = match failed {
                true => 0,
                false => self.fairness.charge_us(seconds, backlog.shares.flow(flow).weight()),
            };
            backlog.shares.correct(flow, *charged_us, charge_us);
            if failed && *by_floor {
                backlog.floors.handle_failed(waiting);
            }
        }
        capacity.give_back(dispatched_us, task, *passes);
        self.all_outstanding -= 1;
        let expected_seconds = waiting.expected_seconds;
        if backlog.shares.flow(flow).is_counted
            && let Some(limited) = self.tenants.limited_mut(backlog.shares.flow(flow).tenant)
        {
            limited.served_us += (ran_seconds.unwrap_or(expected_seconds) * 1e6) as u128;
        }
        self.count_running(number, flow, false);
        self.models.refresh_ready(number);
    }

    fn forget(&mut self, task: Handle) {
        if let Some(record) = self.tasks.remove(task) {
            let Model { backlog, capacity, .. } = self.models.get_mut(record.model);
            backlog.foresight.forget(&record.waiting);
            backlog.shares.release(record.flow, capacity.outstanding() == 0);
            self.let_tenants_go(record.model);
            self.models.release(record.model);
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
                due_us: None,
                not_before_us: None,
                arrived_us: None,
                is_known: false,
            };
            assert_eq!(planner.handle_arrival(task, 0), Ok(()));
        }
        let known = |planner: &Planner| (planner.tenants.len(), planner.models.by_name().len());
        assert_eq!(known(&planner), (100, 100));
        assert!(ids.iter().all(|&id| planner.handle_cancel(id)));
        assert_eq!(known(&planner), (0, 0));
    }
}
