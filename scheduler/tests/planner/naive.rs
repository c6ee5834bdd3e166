//! The planner's rules in the plainest form: every task in one list, and every choice a scan of all of them.
//!
//! Fast and naive planner are given the same events; each decision of the fast one is checked against the list.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use taskyard_scheduler::planner::policy::{CostBucket, Moment, Policy, Waiting, by_name};
use taskyard_scheduler::planner::{
    Arrival, BANDS, Decision, DispatchReason, Estimate, Fairness, Late, Planner, Prior, Ran, Refusal, ShedReason,
    TenantLimits, WaitReason,
};
use taskyard_shared::{Kind, Priority, TaskId};

use super::{POLICIES, arrival};

/// What can happen. Tasks are named by how many there were before them, modulo those there are.
#[derive(Clone, Debug)]
pub enum Event {
    Arrive {
        model: u8,
        tenant: u8,
        priority: u8,
        cost: u8,
        deadline_ms: Option<u16>,
        delay_ms: Option<u16>,
    },
    /// A task that completed comes again, with its age.
    Retry {
        task: u16,
        delay_ms: Option<u16>,
    },
    Load {
        model: u8,
        capacity: u8,
    },
    Complete {
        task: u16,
        ran_ms: Option<u16>,
    },
    FailDispatch {
        task: u16,
    },
    Cancel {
        task: u16,
    },
    Reprioritize {
        task: u16,
        priority: u8,
    },
    Pause {
        model: u8,
        is_paused: bool,
    },
    Tenant {
        tenant: u8,
        weight: f64,
        running_most: Option<usize>,
        waiting_most: Option<usize>,
    },
    /// So many tasks of a tenant wait at another scheduler.
    Elsewhere {
        tenant: u8,
        waiting: u8,
    },
    Pass {
        ms: u16,
    },
    /// As many decisions as this, rather than all there are.
    Decide {
        most: u8,
    },
}

pub fn events(most: usize) -> impl Strategy<Value = Vec<Event>> {
    let after = || prop::option::of(1..1500u16);
    let priorities = prop_oneof![4 => prop::sample::select(&[0, 4, 9][..]), 1 => 0..10u8];
    let event = prop_oneof![
        // Few enough priorities and costs that tasks share a class, and run times that deadlines are near to.
        8 => (0..2u8, 0..4u8, priorities, 0..8u8, after(), prop::option::weighted(0.2, 1..1500u16)).prop_map(
            |(model, tenant, priority, cost, deadline_ms, delay_ms)| {
                Event::Arrive { model, tenant, priority, cost, deadline_ms, delay_ms }
            }
        ),
        1 => (any::<u16>(), after()).prop_map(|(task, delay_ms)| Event::Retry { task, delay_ms }),
        2 => (0..2u8, 0..6u8).prop_map(|(model, capacity)| Event::Load { model, capacity }),
        4 => (any::<u16>(), prop::option::of(0..400u16)).prop_map(|(task, ran_ms)| Event::Complete { task, ran_ms }),
        1 => (any::<u16>(), 0..10u8).prop_map(|(task, priority)| Event::Reprioritize { task, priority }),
        1 => (0..2u8, any::<bool>()).prop_map(|(model, is_paused)| Event::Pause { model, is_paused }),
        1 => (0..4u8, prop::sample::select(&[0.5, 1.0, 2.0, 3.0][..]), prop::option::of(0..4usize), prop::option::of(0..8usize)).prop_map(
            |(tenant, weight, running_most, waiting_most)| Event::Tenant { tenant, weight, running_most, waiting_most }
        ),
        1 => (0..4u8, 0..4u8).prop_map(|(tenant, waiting)| Event::Elsewhere { tenant, waiting }),
        1 => any::<u16>().prop_map(|task| Event::FailDispatch { task }),
        1 => any::<u16>().prop_map(|task| Event::Cancel { task }),
        4 => (0..300u16).prop_map(|ms| Event::Pass { ms }),
        4 => (0..6u8).prop_map(|most| Event::Decide { most }),
    ];
    prop::collection::vec(event, 1..most)
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Delayed {
        start_us: u64,
    },
    Queued,
    Dispatched {
        at_us: u64,
        charged_us: u64,
        by_floor: bool,
    },
    /// Between two of the others, while one event is handled.
    Moving,
    /// Its deadline passed, which is yet to be told.
    Expired,
    /// It gave way, which is yet to be told.
    Shed,
    Gone,
}

impl State {
    fn waits(self) -> bool {
        matches!(self, Self::Delayed { .. } | Self::Queued)
    }

    fn is_out(self) -> bool {
        matches!(self, Self::Dispatched { .. })
    }
}

struct Task {
    waiting: Waiting,
    model: String,
    tenant: String,
    state: State,
}

/// What a tenant was given of a model.
#[derive(Clone, Copy, Default)]
struct Flow {
    start_us: u64,
    lifted_us: u64,
    is_known: bool,
    /// It has a task that could go.
    takes_part: bool,
}

#[derive(Clone, Default)]
struct Model {
    capacity: usize,
    is_paused: bool,
    level_us: u64,
    credit_us: u64,
    highest_us: u64,
    mean_us: f64,
    credits: [u128; BANDS],
    flows: BTreeMap<String, Flow>,
    is_over: bool,
    is_shaken: bool,
    settled_us: u64,
}

/// The list, and the fast planner that is held against it.
pub struct Naive {
    pub planner: Planner,
    policy: Box<dyn Policy + Send>,
    fairness: Fairness,
    /// What a slot may take for what waits.
    overload_us: Option<u64>,
    tasks: Vec<Task>,
    models: BTreeMap<String, Model>,
    tenants: BTreeMap<String, TenantLimits>,
    elsewhere: BTreeMap<String, usize>,
    pub now_us: u64,
    arrivals: u64,
}

const PARTS: u128 = 65_536;

fn parts(waiting: &Waiting) -> u128 {
    ((waiting.expected_seconds * 1e6) as u128).max(1) * PARTS
}

fn band(waiting: &Waiting) -> usize {
    match waiting.priority.get() {
        0..=2 => 0,
        3..=6 => 1,
        _ => 2,
    }
}

impl Naive {
    pub fn new(policy: &str, fairness: Fairness, seed: u64) -> Self {
        let mut planner = Planner::with_seed(by_name(policy, Some(1.0)).unwrap(), seed).with_fairness(fairness);
        // Claims are not in the list: see `deadlines.rs`.
        planner.set_late(Late::Keep);
        for model in ["m0", "m1"] {
            planner.handle_model(model, Prior { expected_seconds: Some(0.1) });
        }
        Self {
            planner,
            policy: by_name(policy, Some(1.0)).unwrap(),
            fairness,
            overload_us: None,
            tasks: Vec::new(),
            models: BTreeMap::from([0, 1].map(|model| (format!("m{model}"), Model::default()))),
            tenants: BTreeMap::new(),
            elsewhere: BTreeMap::new(),
            now_us: 0,
            arrivals: 0,
        }
    }

    pub fn with_overload(mut self, most_ms: Option<u64>) -> Self {
        self.planner.set_overload(most_ms.map(|ms| ms as f64 / 1e3));
        Self { overload_us: most_ms.map(|ms| ms * 1000), ..self }
    }

    pub fn handle(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match *event {
            Event::Arrive { model, tenant, priority, cost, deadline_ms, delay_ms } => {
                let after = |ms: u16| self.now_us + u64::from(ms) * 1000;
                let number = self.tasks.len() as u128;
                let seconds = 0.05 * f64::powf(2.0, f64::from(cost) / 5.0);
                // Some are said to take so long, and some are what the planner takes them for.
                let told = arrival(number, priority, seconds);
                let (kind, expected) = match cost {
                    6 => (Kind::Training, None),
                    7 => (Kind::Prediction, None),
                    _ => (told.kind, told.expected),
                };
                self.arrive(Arrival {
                    kind,
                    expected,
                    model: format!("m{model}"),
                    tenant: format!("t{tenant}"),
                    deadline_us: deadline_ms.map(after),
                    due_us: deadline_ms.filter(|ms| ms % 3 == 0).map(|ms| after(ms / 2)),
                    not_before_us: delay_ms.map(after),
                    ..told
                })?;
            }
            Event::Retry { task, delay_ms } => {
                if let Some(task) = self.nth(task, |state| state == State::Gone) {
                    let Task { waiting, model, tenant, .. } = &self.tasks[task];
                    let again = Arrival {
                        id: waiting.id,
                        model: model.clone(),
                        tenant: tenant.clone(),
                        priority: waiting.priority,
                        kind: waiting.kind,
                        cost: None,
                        expected: Some(Estimate::exact(waiting.expected_seconds)),
                        deadline_us: None,
                        due_us: None,
                        not_before_us: delay_ms.map(|ms| self.now_us + u64::from(ms) * 1000),
                        arrived_us: Some(waiting.arrival_us),
                        is_known: true,
                    };
                    self.arrive(again)?;
                }
            }
            Event::Load { model, capacity } => {
                let model = format!("m{model}");
                self.planner.handle_load(&model, usize::from(capacity));
                self.set_capacity(&model, capacity.into());
                self.forget(&model);
            }
            Event::Complete { task, ran_ms } => {
                if let Some(task) = self.nth(task, State::is_out) {
                    let id = self.tasks[task].waiting.id;
                    let ran_seconds = ran_ms.map(|ms| f64::from(ms) / 1e3);
                    self.come_back(task, ran_seconds.filter(|&seconds| seconds > 0.0));
                    self.go(task);
                    let ran = ran_seconds.map(|seconds| Ran { seconds, whole: true });
                    prop_assert!(self.planner.handle_completion(id, ran));
                    prop_assert!(!self.planner.handle_completion(id, None), "a completion counts once");
                }
            }
            Event::FailDispatch { task } => {
                if let Some(task) = self.nth(task, State::is_out) {
                    self.come_back(task, Some(0.0));
                    self.queue(task);
                    prop_assert!(self.planner.handle_dispatch_failed(self.tasks[task].waiting.id));
                }
            }
            Event::Cancel { task } => {
                if let Some(task) = self.nth(task, State::waits) {
                    prop_assert!(self.planner.handle_cancel(self.tasks[task].waiting.id));
                    self.leave(task, State::Moving);
                    self.go(task);
                } else if let Some(task) =
                    self.nth(task, |state| state.is_out() || matches!(state, State::Expired | State::Shed))
                {
                    prop_assert!(!self.planner.handle_cancel(self.tasks[task].waiting.id));
                }
            }
            Event::Reprioritize { task, priority } => {
                let priority = Priority::try_from(priority).unwrap();
                if let Some(task) = self.nth(task, State::waits) {
                    prop_assert!(self.planner.handle_reprioritize(self.tasks[task].waiting.id, priority));
                    self.tasks[task].waiting.priority = priority;
                } else if let Some(task) = self.nth(task, |state| !state.waits()) {
                    prop_assert!(!self.planner.handle_reprioritize(self.tasks[task].waiting.id, priority));
                }
            }
            Event::Pause { model, is_paused } => {
                let model = format!("m{model}");
                let was_paused = std::mem::replace(&mut self.model_mut(&model).is_paused, is_paused);
                prop_assert_eq!(self.planner.handle_pause(&model, is_paused), is_paused != was_paused);
                self.forget(&model);
            }
            Event::Tenant { tenant, weight, running_most, waiting_most } => {
                self.limit(&format!("t{tenant}"), weight, running_most, waiting_most);
            }
            Event::Elsewhere { tenant, waiting } => {
                let tenant = format!("t{tenant}");
                self.planner.handle_elsewhere(&tenant, waiting.into());
                // Of others nobody has to know.
                if self.tenants.get(&tenant).is_some_and(|limits| *limits != TenantLimits::default()) {
                    self.elsewhere.insert(tenant, waiting.into());
                }
            }
            Event::Pass { ms } => self.now_us += u64::from(ms) * 1000,
            Event::Decide { most } => {
                for _ in 0..most {
                    self.decide()?;
                }
            }
        }
        self.compare_counts()
    }

    /// One decision, checked. Answers what it was.
    pub fn decide(&mut self) -> Result<Option<Decision>, TestCaseError> {
        let decision = self.planner.poll_decision(self.now_us);
        self.ring();
        match &decision {
            Some(Decision::Dispatch { id, model, reason }) => {
                prop_assert!(self.has_credit(model), "beyond credit");
                prop_assert!(!self.models[&**model].is_paused, "paused");
                self.forget_flows(model, false);
                let (best, by_floor, needs) = self.best(model).expect("nothing could go");
                prop_assert_eq!(*id, self.tasks[best].waiting.id, "not the best of all tasks");
                prop_assert_eq!(*reason == DispatchReason::Floor, by_floor);
                self.dispatch(best, by_floor, needs);
            }
            Some(Decision::Shed { id, model, reason }) => {
                prop_assert_eq!(*reason, ShedReason::Overload, "there are no claims");
                let task = self.tasks.iter().position(|task| task.waiting.id == *id).unwrap();
                prop_assert_eq!(self.tasks[task].state, State::Shed, "worth more than others that wait");
                prop_assert_eq!(&**model, &*self.tasks[task].model);
                self.go(task);
            }
            Some(Decision::Expire { id, model }) => {
                let task = self.tasks.iter().position(|task| task.waiting.id == *id).unwrap();
                prop_assert_eq!(
                    self.tasks[task].state,
                    State::Expired,
                    "told of a task that does not wait, or too early"
                );
                prop_assert_eq!(&**model, &*self.tasks[task].model);
                self.go(task);
            }
            None => {
                let idle = self.tasks.iter().find(|task| {
                    let could_go = task.state == State::Queued && !self.is_limited(&task.tenant);
                    let has_room = self.has_credit(&task.model) && !self.models[&task.model].is_paused;
                    matches!(task.state, State::Expired | State::Shed) || could_go && has_room
                });
                prop_assert!(idle.is_none(), "left undone: {:?}", idle.map(|task| &task.waiting));
            }
        }
        Ok(decision)
    }

    /// Decides until there is nothing to decide.
    pub fn decide_all(&mut self) -> Result<(), TestCaseError> {
        while self.decide()?.is_some() {}
        self.compare_counts()
    }

    /// Gives every model room without end, and time until nothing is delayed: everything must come out.
    pub fn let_all_out(&mut self) -> Result<(), TestCaseError> {
        for tenant in 0..4 {
            self.limit(&format!("t{tenant}"), 1.0, None, None);
        }
        for model in 0..2 {
            self.handle(&Event::Pause { model, is_paused: false })?;
            self.planner.handle_load(&format!("m{model}"), usize::MAX);
            self.set_capacity(&format!("m{model}"), usize::MAX);
        }
        self.now_us += 10 * super::SECOND;
        self.decide_all()?;
        let left = self.tasks.iter().find(|task| task.state.waits());
        prop_assert!(left.is_none(), "lost: {:?}", left.map(|task| &task.waiting));
        for task in 0..self.tasks.len() {
            if self.tasks[task].state.is_out() {
                self.come_back(task, None);
                self.go(task);
                prop_assert!(self.planner.handle_completion(self.tasks[task].waiting.id, None));
            }
        }
        for model in 0..2 {
            self.planner.handle_load(&format!("m{model}"), 0);
        }
        Ok(())
    }

    fn arrive(&mut self, told: Arrival) -> Result<(), TestCaseError> {
        let expected = told.expected.unwrap_or_else(|| self.planner.expected(&told.model, told.kind, None));
        let cost = told.expected.map_or(CostBucket::typical(told.kind), |told| told.mean_seconds.into());
        let arrival = Arrival { expected: Some(expected), ..told.clone() };
        let arrive = |naive: &mut Self| naive.planner.handle_arrival(told.clone(), naive.now_us);
        if self.has_too_many_waiting(&arrival) {
            prop_assert_eq!(arrive(self), Err(Refusal::TooManyWaiting));
            return Ok(());
        }
        if self.is_least_of_too_many(&arrival) {
            let refused = arrive(self);
            prop_assert!(matches!(refused, Err(Refusal::Overloaded { .. })), "instead of a refusal: {refused:?}");
            return Ok(());
        }
        prop_assert_eq!(arrive(self), Ok(()));
        prop_assert_eq!(arrive(self), Err(Refusal::Duplicate));
        let expected_seconds = expected.mean_seconds;
        let start_us = arrival.not_before_us.map_or(self.now_us, |at_us| at_us.max(self.now_us));
        let waiting = Waiting {
            id: arrival.id,
            priority: arrival.priority,
            cost,
            kind: arrival.kind,
            q95_seconds: expected.q95_seconds as f32,
            arrival_us: arrival.arrived_us.unwrap_or(start_us),
            deadline_us: arrival.deadline_us,
            due_us: arrival.due_us,
            expected_seconds,
            sequence: self.arrivals,
        };
        self.arrivals += 1;
        self.tasks.retain(|task| task.waiting.id != arrival.id);
        let Arrival { model, tenant, .. } = arrival;
        let state = if start_us > self.now_us { State::Delayed { start_us } } else { State::Moving };
        self.model_mut(&model).flows.entry(tenant.clone()).or_default();
        self.tasks.push(Task { waiting, model: model.clone(), tenant, state });
        if state == State::Moving {
            self.queue(self.tasks.len() - 1);
        }
        self.relieve(&model);
        Ok(())
    }

    fn limit(&mut self, tenant: &str, weight: f64, running_most: Option<usize>, waiting_most: Option<usize>) {
        let limits = TenantLimits { weight, running_most, waiting_most };
        self.planner.handle_tenant(tenant, limits);
        self.tenants.insert(tenant.to_owned(), limits);
        if limits == TenantLimits::default() {
            self.elsewhere.remove(tenant);
        }
        self.refresh_all(tenant);
    }

    /// Of the tasks in such a state, the one with this number.
    fn nth(&self, number: u16, is_meant: impl Fn(State) -> bool) -> Option<usize> {
        let meant: Vec<usize> = (0..self.tasks.len()).filter(|&task| is_meant(self.tasks[task].state)).collect();
        meant.get(usize::from(number) % meant.len().max(1)).copied()
    }

    fn model_mut(&mut self, model: &str) -> &mut Model {
        self.models.get_mut(model).unwrap()
    }

    /// What is due starts, or is set aside, in the order in which it is due.
    fn ring(&mut self) {
        loop {
            let alarm_us = |task: &Task| match (task.state, task.waiting.deadline_us.unwrap_or(u64::MAX)) {
                (State::Delayed { start_us }, deadline_us) => start_us.min(deadline_us),
                (State::Queued, deadline_us) => deadline_us,
                _ => u64::MAX,
            };
            let due = (0..self.tasks.len()).min_by_key(|&task| {
                let task = &self.tasks[task];
                (alarm_us(task), task.waiting.sequence)
            });
            match due.filter(|&task| alarm_us(&self.tasks[task]) <= self.now_us) {
                None => return,
                Some(task) if self.tasks[task].waiting.deadline_us.is_some_and(|at_us| at_us <= self.now_us) => {
                    self.leave(task, State::Expired);
                }
                Some(task) => {
                    self.queue(task);
                    self.relieve(&self.tasks[task].model.clone());
                }
            }
        }
    }

    fn set_capacity(&mut self, model: &str, capacity: usize) {
        let known = self.model_mut(model);
        known.is_shaken |= capacity < known.capacity || known.capacity == 0 && capacity > 0;
        known.capacity = capacity;
        self.look_at_load(model);
    }

    /// What waits of a tenant, over its weight; in microseconds.
    fn load(&self, model: &str, tenant: &str, more_us: u128) -> f64 {
        let waits = |task: &&Task| task.model == model && task.tenant == tenant && task.state == State::Queued;
        let waiting_us = self.tasks.iter().filter(waits).map(expected_us).sum::<u128>() + more_us;
        waiting_us as f64 / self.weight(tenant)
    }

    /// Tenants that have little waiting, next to whoever has the most, do not crowd a model.
    fn crowds(&self, model: &str, tenant: &str, more_us: u128) -> bool {
        let tenants: BTreeSet<&String> = self.tasks.iter().map(|task| &task.tenant).collect();
        let most = tenants.into_iter().map(|tenant| self.load(model, tenant, 0)).fold(0.0, f64::max);
        self.fairness.allowance.is_none() || self.load(model, tenant, more_us) >= most * 0.8
    }

    /// What waits for a model of those that crowd it, and of this tenant, by worth: whoever gives way first, first. And what all
    /// that waits takes, in microseconds.
    fn by_worth(&self, model: &str, also: Option<&str>) -> (Vec<usize>, u128) {
        let waits = |&task: &usize| self.tasks[task].model == model && self.tasks[task].state == State::Queued;
        let work_us = (0..self.tasks.len()).filter(waits).map(|task| expected_us(&self.tasks[task])).sum();
        let crowding: BTreeSet<&str> = {
            let tenants: BTreeSet<&str> = self.tasks.iter().map(|task| &*task.tenant).collect();
            tenants.into_iter().filter(|tenant| self.crowds(model, tenant, 0) || also == Some(tenant)).collect()
        };
        let mut tasks: Vec<usize> = (0..self.tasks.len()).filter(waits).collect();
        tasks.retain(|&task| crowding.contains(&*self.tasks[task].tenant));
        tasks.sort_by(|&one, &other| {
            let (one, other) = (&self.tasks[one].waiting, &self.tasks[other].waiting);
            let by_age = (other.arrival_us, other.sequence).cmp(&(one.arrival_us, one.sequence));
            worth(one.priority, one.expected_seconds)
                .total_cmp(&worth(other.priority, other.expected_seconds))
                .then(by_age)
        });
        (tasks, work_us)
    }

    /// What a model's slots do in the time of the mark.
    fn full_us(&self, model: &str) -> Option<u128> {
        let capacity = self.models[model].capacity;
        self.overload_us.filter(|_| capacity > 0).map(|mark_us| u128::from(mark_us) * capacity as u128)
    }

    /// Over from the mark on, until four fifths of it.
    fn look_at_load(&mut self, model: &str) {
        let (_, work_us) = self.by_worth(model, None);
        let was_over = self.models[model].is_over;
        self.model_mut(model).is_over = self
            .full_us(model)
            .is_some_and(|full_us| work_us >= full_us || was_over && work_us as f64 > full_us as f64 * 0.8);
    }

    fn waiting_of(&self, tenant: &str) -> usize {
        let waits = |task: &&Task| task.tenant == tenant && !task.state.is_out() && task.state != State::Gone;
        self.tasks.iter().filter(waits).count()
    }

    fn has_too_many_waiting(&self, arrival: &Arrival) -> bool {
        let most = self.tenants.get(&arrival.tenant).and_then(|limits| limits.waiting_most);
        let elsewhere = self.elsewhere.get(&arrival.tenant).copied().unwrap_or(0);
        !arrival.is_known && most.is_some_and(|most| self.waiting_of(&arrival.tenant) + elsewhere >= most)
    }

    fn is_least_of_too_many(&self, arrival: &Arrival) -> bool {
        let model = &self.models[&arrival.model];
        let starts_later = arrival.not_before_us.is_some_and(|at_us| at_us > self.now_us);
        if arrival.is_known || starts_later || !model.is_over || model.is_paused {
            return false;
        }
        let own_us = (arrival.expected.unwrap().mean_seconds * 1e6) as u128;
        if !self.crowds(&arrival.model, &arrival.tenant, own_us) {
            return false;
        }
        let own = worth(arrival.priority, arrival.expected.unwrap().mean_seconds);
        let least =
            self.by_worth(&arrival.model, Some(&arrival.tenant)).0.first().map(|&task| &self.tasks[task].waiting);
        least.is_some_and(|least| own <= worth(least.priority, least.expected_seconds) * 1.1)
    }

    /// Who is worth the least gives way while the others alone take longer than may be.
    fn relieve(&mut self, model: &str) {
        let now_us = self.now_us;
        let mark_us = self.overload_us.unwrap_or(0);
        if self.models[model].is_paused || self.models[model].capacity == 0 {
            return;
        }
        for _ in 0..256 {
            let known = self.model_mut(model);
            if std::mem::take(&mut known.is_shaken) {
                known.settled_us = now_us + mark_us.min(30_000_000);
            }
            let is_settled = now_us >= known.settled_us;
            let is_over = known.is_over;
            let (tasks, work_us) = self.by_worth(model, None);
            match (self.full_us(model).filter(|_| is_settled && is_over), tasks.first()) {
                (Some(full_us), Some(&task)) if work_us - expected_us(&self.tasks[task]) >= full_us => {
                    self.leave(task, State::Shed);
                }
                _ => return,
            }
        }
    }

    fn queue(&mut self, task: usize) {
        self.leave(task, State::Queued);
    }

    /// The task is in another state from now on, and its flow takes part as it should.
    fn leave(&mut self, task: usize, state: State) {
        self.tasks[task].state = state;
        let (model, tenant) = (self.tasks[task].model.clone(), self.tasks[task].tenant.clone());
        self.look_at_load(&model);
        self.refresh(&model, &tenant);
    }

    /// A task that is in no lane any more is gone.
    fn go(&mut self, task: usize) {
        self.tasks[task].state = State::Gone;
        let (model, tenant) = (self.tasks[task].model.clone(), self.tasks[task].tenant.clone());
        let is_of_flow = |task: &Task| task.state != State::Gone && task.model == model && task.tenant == tenant;
        if !self.tasks.iter().any(is_of_flow) {
            self.forget_flows(&model, self.outstanding(&model) == 0);
        }
        self.forget(&model);
    }

    /// A model of no use is forgotten with what it was like.
    fn forget(&mut self, model: &str) {
        let has_tasks = self.tasks.iter().any(|task| task.model == model && task.state != State::Gone);
        let known = &self.models[model];
        if !has_tasks && known.capacity == 0 && !known.is_paused {
            *self.model_mut(model) = Model::default();
        }
    }

    /// Flows without a task that had less than others for long; or all of them, where there is nothing to do.
    fn forget_flows(&mut self, model: &str, is_idle: bool) {
        let is_level = is_idle && self.least_us(model).is_none();
        let Self { tasks, models, .. } = self;
        let has_task = |tenant: &str| {
            tasks.iter().any(|task| task.state != State::Gone && task.model == model && task.tenant == tenant)
        };
        let Model { flows, highest_us, level_us, credit_us, .. } = models.get_mut(model).unwrap();
        let up_to_us = if is_level { *highest_us } else { level_us.saturating_sub((*credit_us).saturating_mul(8)) };
        flows.retain(|tenant, flow| flow.start_us > up_to_us || has_task(tenant));
    }

    fn weight(&self, tenant: &str) -> f64 {
        self.tenants.get(tenant).map_or(1.0, |limits| limits.weight)
    }

    fn charge_us(&self, seconds: f64, tenant: &str) -> u64 {
        if self.fairness.allowance.is_none() {
            return 0;
        }
        ((seconds * 1e6 / self.weight(tenant)).ceil() as u64).max(1)
    }

    fn is_limited(&self, tenant: &str) -> bool {
        let running = self.tasks.iter().filter(|task| task.tenant == tenant && task.state.is_out()).count();
        let most = self.tenants.get(tenant).and_then(|limits| limits.running_most);
        most.is_some_and(|most| running >= most.max(1))
    }

    fn least_us(&self, model: &str) -> Option<u64> {
        self.models[model].flows.values().filter(|flow| flow.takes_part).map(|flow| flow.start_us).min()
    }

    fn raise(&mut self, model: &str) {
        let least_us = self.least_us(model).unwrap_or(0);
        let level_us = &mut self.model_mut(model).level_us;
        *level_us = least_us.max(*level_us);
    }

    fn refresh_all(&mut self, tenant: &str) {
        for model in ["m0", "m1"] {
            self.refresh(model, tenant);
        }
    }

    fn refresh(&mut self, model: &str, tenant: &str) {
        let is_queued = |task: &Task| task.model == model && task.tenant == tenant && task.state == State::Queued;
        let takes_part = self.tasks.iter().any(is_queued) && !self.is_limited(tenant);
        let is_level = self.outstanding(model) == 0 && self.least_us(model).is_none();
        let Model { flows, highest_us, level_us, credit_us, .. } = self.model_mut(model);
        let Some(flow) = flows.get_mut(tenant) else { return };
        if takes_part && !flow.takes_part {
            flow.lifted_us = match flow.is_known {
                _ if is_level => *highest_us,
                true => level_us.saturating_sub(*credit_us),
                false => *level_us,
            };
            flow.start_us = flow.start_us.max(flow.lifted_us);
            flow.is_known = true;
        }
        flow.takes_part = takes_part;
        self.raise(model);
    }

    fn dispatch(&mut self, task: usize, by_floor: bool, needs: [Option<u128>; BANDS]) {
        self.leave(task, State::Moving);
        let Task { waiting, model, tenant, .. } = &self.tasks[task];
        let (waiting, model, tenant) = (waiting.clone(), model.clone(), tenant.clone());
        let charged_us = self.charge_us(waiting.expected_seconds, &tenant);
        self.tasks[task].state = State::Dispatched { at_us: self.now_us, charged_us, by_floor };
        self.refresh_all(&tenant);
        let waits = [0, 1, 2].map(|of| {
            let is_of_band =
                |task: &Task| task.state == State::Queued && task.model == model && band(&task.waiting) == of;
            self.tasks.iter().any(is_of_band)
        });
        let Fairness { allowance, floors } = self.fairness;
        let of_model = self.model_mut(&model);
        let run_us = waiting.expected_seconds * 1e6;
        of_model.mean_us =
            if of_model.mean_us == 0.0 { run_us } else { of_model.mean_us + (run_us - of_model.mean_us) / 32.0 };
        let flow = of_model.flows.get_mut(&tenant).unwrap();
        flow.start_us += charged_us;
        of_model.highest_us = of_model.highest_us.max(flow.start_us);
        let slots = of_model.capacity.max(1) as f64;
        of_model.credit_us = (1.5 * allowance.unwrap_or(0.0) * of_model.mean_us * slots) as u64;
        self.raise(&model);
        let of_model = self.model_mut(&model);
        if floors == [0.0; BANDS] {
            return;
        }
        for of in 0..BANDS {
            let credit = &mut of_model.credits[of];
            if of == band(&waiting) {
                *credit -= parts(&waiting).min(*credit);
            } else if let Some(need) = needs[of] {
                let gain = parts(&waiting) / PARTS * (floors[of] * PARTS as f64) as u128;
                *credit = (*credit + gain).min(need.max(*credit));
            }
            if !waits[of] {
                *credit = 0;
            }
        }
    }

    /// A dispatched task is out no longer; it ran for so long, if that is known.
    fn come_back(&mut self, task: usize, ran_seconds: Option<f64>) {
        let State::Dispatched { charged_us, by_floor, .. } = self.tasks[task].state else { return };
        let Task { waiting, model, tenant, .. } = &self.tasks[task];
        let (waiting, model, tenant) = (waiting.clone(), model.clone(), tenant.clone());
        if let Some(seconds) = ran_seconds {
            let charge_us = if seconds > 0.0 { self.charge_us(seconds, &tenant) } else { 0 };
            let of_model = self.model_mut(&model);
            let flow = of_model.flows.get_mut(&tenant).unwrap();
            if charge_us != charged_us {
                flow.start_us = (flow.start_us.saturating_sub(charged_us) + charge_us).max(flow.lifted_us);
            }
            of_model.highest_us = of_model.highest_us.max(flow.start_us);
            if by_floor && seconds == 0.0 {
                of_model.credits[band(&waiting)] += parts(&waiting);
            }
            self.raise(&model);
        }
        self.tasks[task].state = State::Moving;
        self.refresh_all(&tenant);
    }

    fn outstanding(&self, model: &str) -> usize {
        self.tasks.iter().filter(|task| task.model == model && task.state.is_out()).count()
    }

    fn has_credit(&self, model: &str) -> bool {
        self.outstanding(model) < self.models[model].capacity
    }

    /// The tasks that may go: those of tenants that were not served much more than others.
    fn eligible(&self, model: &str) -> Vec<usize> {
        let of_model = &self.models[model];
        let line_us = match self.fairness.allowance {
            None => u64::MAX,
            Some(allowance) => {
                let allowance_us = (allowance * of_model.mean_us * of_model.capacity.max(1) as f64) as u64;
                self.least_us(model).unwrap_or(0).saturating_add(allowance_us)
            }
        };
        let may_go = |task: &Task| {
            let flow = &of_model.flows.get(&task.tenant);
            task.model == model
                && task.state == State::Queued
                && flow.is_some_and(|flow| flow.takes_part && flow.start_us <= line_us)
        };
        (0..self.tasks.len()).filter(|&task| may_go(&self.tasks[task])).collect()
    }

    /// Now, with what the model's tasks that say nothing of themselves take by now.
    fn moment(&self, model: &str) -> Moment {
        let mut at = Moment::from(self.now_us);
        for kind in Kind::ALL {
            at.typical.set(kind, self.planner.expected(model, kind, None).mean_seconds);
        }
        at
    }

    fn best_of(&self, tasks: impl Iterator<Item = usize>) -> Option<usize> {
        tasks.max_by(|&one, &other| {
            let score =
                |task: usize| self.policy.score(&self.tasks[task].waiting, self.moment(&self.tasks[task].model));
            let by_score = score(one).total_cmp(&score(other));
            let (one, other) = (&self.tasks[one].waiting, &self.tasks[other].waiting);
            by_score.then((other.arrival_us, other.sequence).cmp(&(one.arrival_us, one.sequence)))
        })
    }

    /// The task to dispatch, whether by its band's floor, and what each band's best takes.
    fn best(&self, model: &str) -> Option<(usize, bool, [Option<u128>; BANDS])> {
        let eligible = self.eligible(model);
        let best = self.best_of(eligible.iter().copied())?;
        if self.fairness.floors == [0.0; BANDS] {
            return Some((best, false, [None; BANDS]));
        }
        let bests = [0, 1, 2]
            .map(|of| self.best_of(eligible.iter().copied().filter(|&task| band(&self.tasks[task].waiting) == of)));
        let needs = bests.map(|best| best.map(|task| parts(&self.tasks[task].waiting)));
        let credits = &self.models[model].credits;
        let covered = (0..BANDS).find(|&band| needs[band].is_some_and(|need| credits[band] >= need));
        let by_floor = covered.and_then(|band| bests[band]).filter(|&task| task != best);
        Some((by_floor.unwrap_or(best), by_floor.is_some(), needs))
    }

    /// By how much the true expected time would have scored the best task over this one.
    pub fn regret_by_own_time(&self, chosen: TaskId, model: &str) -> f64 {
        let score = |task: &Task| {
            let at = self.moment(model);
            let score = self.policy.score(&task.waiting, at);
            // Of those that say nothing of themselves none is known to be longer than another.
            match task.waiting.cost.typical_of() {
                Some(_) => score,
                None => score * at.seconds(task.waiting.cost) / task.waiting.expected_seconds,
            }
        };
        let may_have = |task: &&Task| {
            let could_go = task.state == State::Queued && !self.is_limited(&task.tenant);
            task.model == model && (task.waiting.id == chosen || could_go)
        };
        let best = self.tasks.iter().filter(may_have).map(score).fold(0.0, f64::max);
        best / self.tasks.iter().find(|task| task.waiting.id == chosen).map_or(f64::NAN, score)
    }

    /// What the planner says of itself against what the list says.
    fn compare_counts(&self) -> Result<(), TestCaseError> {
        let waiting = self.tasks.iter().filter(|task| task.state.waits()).count();
        prop_assert_eq!(waiting, self.planner.waiting(), "lost or made up");

        let stats = self.planner.stats();
        let by_reason: usize = WaitReason::ALL.iter().map(|&reason| stats.waiting(reason)).sum();
        prop_assert_eq!(by_reason, self.planner.waiting(), "every task waits for one reason");
        for model in &stats.models {
            let known = &self.models[&*model.model];
            prop_assert_eq!(model.outstanding, self.outstanding(&model.model));
            prop_assert_eq!(self.planner.outstanding(&model.model), model.outstanding);
            prop_assert_eq!(model.capacity, known.capacity);
            let of_model = || self.tasks.iter().filter(|task| *task.model == *model.model);
            let waits = || of_model().filter(|task| task.state.waits());
            let queued = || of_model().filter(|task| task.state == State::Queued);
            prop_assert!(of_model().any(|task| task.state != State::Gone) || known.capacity > 0 || known.is_paused);
            prop_assert_eq!(model.waiting, waits().count());
            prop_assert_eq!(model.waiting - model.delayed, queued().count());
            prop_assert_eq!(model.weighted_seconds, weighted_seconds(waits()));
            prop_assert_eq!(model.oldest_arrival_us, queued().map(|task| task.waiting.arrival_us).min());
            prop_assert_eq!(model.reason == WaitReason::Paused, known.is_paused);
            if !known.is_paused && known.capacity > 0 {
                prop_assert_eq!(model.limited, queued().filter(|task| self.is_limited(&task.tenant)).count());
            }
        }
        for tenant in &stats.tenants {
            let of_tenant = || self.tasks.iter().filter(|task| *task.tenant == *tenant.tenant);
            prop_assert_eq!(tenant.waiting, self.waiting_of(&tenant.tenant));
            prop_assert_eq!(tenant.running, of_tenant().filter(|task| task.state.is_out()).count());
            prop_assert_eq!(tenant.queued, of_tenant().filter(|task| task.state == State::Queued).count());
        }
        Ok(())
    }
}

fn worth(priority: Priority, expected_seconds: f64) -> f64 {
    (f64::from(priority.get()) + 1.0) / expected_seconds
}

fn expected_us(task: &Task) -> u128 {
    (task.waiting.expected_seconds * 1e6) as u128
}

/// In whole microseconds, as the planner adds them.
fn weighted_seconds<'a>(tasks: impl Iterator<Item = &'a Task>) -> f64 {
    let weighted_us =
        |task: &Task| u128::from(task.waiting.priority.get()) * (task.waiting.expected_seconds * 1e6) as u128;
    tasks.map(weighted_us).sum::<u128>() as f64 / 1e6
}

pub fn any_policy() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&POLICIES[..])
}

/// No mark of overload, or one that some of these events are beyond.
pub fn any_overload() -> impl Strategy<Value = Option<u64>> {
    prop::sample::select(&[None, Some(100), Some(300), Some(1000)][..])
}

/// Rules beside the policy, which tests have of any kind with any policy.
pub fn any_fairness() -> impl Strategy<Value = Fairness> {
    let allowances = prop::sample::select(&[None, Some(0.0), Some(0.3), Some(1.0), Some(2.0)][..]);
    let floors = prop::sample::select(&[[0.0; BANDS], Fairness::FLOORS, [0.3, 0.2, 0.4], [0.5, 0.0, 0.0]][..]);
    (allowances, floors).prop_map(|(allowance, floors)| Fairness { allowance, floors })
}
