//! The planner's rules in the plainest form: every task in one list, and every choice a scan of all of them.
//!
//! Fast and naive planner are given the same events; each decision of the fast one is checked against the list.

use std::collections::BTreeMap;

use proptest::prelude::*;
use taskyard_scheduler::planner::policy::{Policy, Waiting, by_name};
use taskyard_scheduler::planner::{Arrival, Decision, Estimate, Late, Planner, Refusal, WaitReason};
use taskyard_shared::TaskId;

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
    },
    FailDispatch {
        task: u16,
    },
    Cancel {
        task: u16,
    },
    LoseOutstanding {
        model: u8,
        age_ms: u16,
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
        8 => (0..2u8, 0..3u8, priorities, 0..8u8, after(), prop::option::weighted(0.2, 1..1500u16)).prop_map(
            |(model, tenant, priority, cost, deadline_ms, delay_ms)| {
                Event::Arrive { model, tenant, priority, cost, deadline_ms, delay_ms }
            }
        ),
        1 => (any::<u16>(), after()).prop_map(|(task, delay_ms)| Event::Retry { task, delay_ms }),
        2 => (0..2u8, 0..6u8).prop_map(|(model, capacity)| Event::Load { model, capacity }),
        4 => any::<u16>().prop_map(|task| Event::Complete { task }),
        1 => any::<u16>().prop_map(|task| Event::FailDispatch { task }),
        1 => any::<u16>().prop_map(|task| Event::Cancel { task }),
        1 => (0..2u8, 0..500u16).prop_map(|(model, age_ms)| Event::LoseOutstanding { model, age_ms }),
        4 => (0..300u16).prop_map(|ms| Event::Pass { ms }),
        4 => (0..6u8).prop_map(|most| Event::Decide { most }),
    ];
    prop::collection::vec(event, 1..most)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Waits { start_us: u64 },
    Dispatched { at_us: u64 },
    Gone,
}

struct Task {
    waiting: Waiting,
    model: String,
    state: State,
}

/// The list, and the fast planner that is held against it.
pub struct Naive {
    pub planner: Planner,
    policy: Box<dyn Policy + Send>,
    tasks: Vec<Task>,
    capacity: BTreeMap<String, usize>,
    pub now_us: u64,
    arrivals: u64,
}

impl Naive {
    pub fn new(policy: &str, seed: u64) -> Self {
        let mut planner = Planner::with_seed(by_name(policy, 1.0).unwrap(), seed);
        // Claims are not in the list: see `deadlines.rs`.
        planner.set_late(Late::Keep);
        Self {
            planner,
            policy: by_name(policy, 1.0).unwrap(),
            tasks: Vec::new(),
            capacity: BTreeMap::new(),
            now_us: 0,
            arrivals: 0,
        }
    }

    pub fn handle(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match *event {
            Event::Arrive { model, tenant, priority, cost, deadline_ms, delay_ms } => {
                let after = |ms: u16| self.now_us + u64::from(ms) * 1000;
                let number = self.tasks.len() as u128;
                let seconds = 0.05 * f64::powf(2.0, f64::from(cost) / 5.0);
                self.arrive(Arrival {
                    model: format!("m{model}"),
                    tenant: format!("t{tenant}"),
                    deadline_us: deadline_ms.map(after),
                    not_before_us: delay_ms.map(after),
                    ..arrival(number, priority, seconds)
                })?;
            }
            Event::Retry { task, delay_ms } => {
                if let Some(task) = self.nth(task, |state| state == State::Gone) {
                    let Task { waiting, model, .. } = &self.tasks[task];
                    let again = Arrival {
                        id: waiting.id,
                        model: model.clone(),
                        tenant: "t0".into(),
                        priority: waiting.priority,
                        kind: waiting.kind,
                        cost: None,
                        expected: Some(Estimate::exact(waiting.expected_seconds)),
                        deadline_us: None,
                        not_before_us: delay_ms.map(|ms| self.now_us + u64::from(ms) * 1000),
                        arrived_us: Some(waiting.arrival_us),
                    };
                    self.arrive(again)?;
                }
            }
            Event::Load { model, capacity } => {
                let model = format!("m{model}");
                self.planner.handle_load(&model, usize::from(capacity));
                self.capacity.insert(model, capacity.into());
            }
            Event::Complete { task } => {
                if let Some(task) = self.nth(task, |state| matches!(state, State::Dispatched { .. })) {
                    let id = self.leave(task, State::Gone);
                    prop_assert!(self.planner.handle_completion(id, None));
                    prop_assert!(!self.planner.handle_completion(id, None), "a completion counts once");
                }
            }
            Event::FailDispatch { task } => {
                if let Some(task) = self.nth(task, |state| matches!(state, State::Dispatched { .. })) {
                    let id = self.leave(task, State::Waits { start_us: 0 });
                    prop_assert!(self.planner.handle_dispatch_failed(id));
                }
            }
            Event::Cancel { task } => {
                // One whose deadline has passed may already be set aside to be told, and is then past cancelling.
                if let Some(task) = self.nth(task, |state| matches!(state, State::Waits { .. }))
                    && self.planner.handle_cancel(self.tasks[task].waiting.id)
                {
                    self.leave(task, State::Gone);
                } else if let Some(task) = self.nth(task, |state| matches!(state, State::Dispatched { .. })) {
                    prop_assert!(!self.planner.handle_cancel(self.tasks[task].waiting.id));
                }
            }
            Event::LoseOutstanding { model, age_ms } => {
                let model = format!("m{model}");
                let before_us = self.now_us.saturating_sub(u64::from(age_ms) * 1000);
                let is_lost = |task: &&mut Task| {
                    task.model == model && matches!(task.state, State::Dispatched { at_us } if at_us < before_us)
                };
                let lost = self.tasks.iter_mut().filter(is_lost).map(|task| task.state = State::Gone).count();
                prop_assert_eq!(self.planner.handle_outstanding_lost(&model, before_us), lost);
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
        match &decision {
            Some(Decision::Dispatch { id, model, .. }) => {
                prop_assert!(self.has_credit(model), "beyond credit");
                let best = self.best(model).map(|task| self.tasks[task].waiting.id);
                prop_assert_eq!(Some(*id), best, "not the best of all tasks");
                self.set_state(*id, State::Dispatched { at_us: self.now_us });
            }
            Some(Decision::Shed { .. }) => prop_assert!(false, "nothing is shed without claims"),
            Some(Decision::Expire { id, model }) => {
                let task = self.tasks.iter().find(|task| task.waiting.id == *id).unwrap();
                prop_assert!(matches!(task.state, State::Waits { .. }), "told of a task that does not wait");
                prop_assert!(task.waiting.deadline_us.is_some_and(|at_us| at_us <= self.now_us), "told too early");
                prop_assert_eq!(&**model, &*task.model);
                self.set_state(*id, State::Gone);
            }
            None => {
                let idle = self
                    .tasks
                    .iter()
                    .find(|task| self.is_expired(task) || self.may_start(task) && self.has_credit(&task.model));
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
        for model in 0..2 {
            self.planner.handle_load(&format!("m{model}"), usize::MAX);
            self.capacity.insert(format!("m{model}"), usize::MAX);
        }
        self.now_us += 10 * super::SECOND;
        self.decide_all()?;
        let left = self.tasks.iter().find(|task| matches!(task.state, State::Waits { .. }));
        prop_assert!(left.is_none(), "lost: {:?}", left.map(|task| &task.waiting));
        for task in 0..self.tasks.len() {
            if matches!(self.tasks[task].state, State::Dispatched { .. }) {
                let id = self.leave(task, State::Gone);
                prop_assert!(self.planner.handle_completion(id, None));
            }
        }
        for model in 0..2 {
            self.planner.handle_load(&format!("m{model}"), 0);
        }
        Ok(())
    }

    fn arrive(&mut self, arrival: Arrival) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.planner.handle_arrival(arrival.clone(), self.now_us), Ok(()));
        prop_assert_eq!(self.planner.handle_arrival(arrival.clone(), self.now_us), Err(Refusal::Duplicate));
        let expected_seconds = arrival.expected.map_or(f64::NAN, |expected| expected.mean_seconds);
        let start_us = arrival.not_before_us.map_or(self.now_us, |at_us| at_us.max(self.now_us));
        let waiting = Waiting {
            id: arrival.id,
            priority: arrival.priority,
            cost: expected_seconds.into(),
            kind: arrival.kind,
            q95_seconds: expected_seconds as f32,
            arrival_us: arrival.arrived_us.unwrap_or(start_us),
            deadline_us: arrival.deadline_us,
            expected_seconds,
            sequence: self.arrivals,
        };
        self.arrivals += 1;
        self.tasks.retain(|task| task.waiting.id != arrival.id);
        self.tasks.push(Task { waiting, model: arrival.model, state: State::Waits { start_us } });
        Ok(())
    }

    /// Of the tasks in such a state, the one with this number.
    fn nth(&self, number: u16, is_meant: impl Fn(State) -> bool) -> Option<usize> {
        let meant: Vec<usize> = (0..self.tasks.len()).filter(|&task| is_meant(self.tasks[task].state)).collect();
        meant.get(usize::from(number) % meant.len().max(1)).copied()
    }

    fn leave(&mut self, task: usize, state: State) -> TaskId {
        self.tasks[task].state = state;
        self.tasks[task].waiting.id
    }

    fn set_state(&mut self, id: TaskId, state: State) {
        self.tasks.iter_mut().filter(|task| task.waiting.id == id).for_each(|task| task.state = state);
    }

    fn is_expired(&self, task: &Task) -> bool {
        matches!(task.state, State::Waits { .. }) && task.waiting.deadline_us.is_some_and(|at_us| at_us <= self.now_us)
    }

    fn may_start(&self, task: &Task) -> bool {
        matches!(task.state, State::Waits { start_us } if start_us <= self.now_us) && !self.is_expired(task)
    }

    fn outstanding(&self, model: &str) -> usize {
        let is_out = |task: &&Task| task.model == model && matches!(task.state, State::Dispatched { .. });
        self.tasks.iter().filter(is_out).count()
    }

    fn has_credit(&self, model: &str) -> bool {
        self.outstanding(model) < self.capacity.get(model).copied().unwrap_or(0)
    }

    fn best(&self, model: &str) -> Option<usize> {
        let candidates = (0..self.tasks.len()).filter(|&task| self.tasks[task].model == model);
        candidates.filter(|&task| self.may_start(&self.tasks[task])).max_by(|&one, &other| {
            let (one, other) = (&self.tasks[one].waiting, &self.tasks[other].waiting);
            let by_score = self.policy.score(one, self.now_us).total_cmp(&self.policy.score(other, self.now_us));
            by_score.then((other.arrival_us, other.sequence).cmp(&(one.arrival_us, one.sequence)))
        })
    }

    /// By how much the true expected time would have scored the best task over this one.
    pub fn regret_by_own_time(&self, chosen: TaskId, model: &str) -> f64 {
        let score = |task: &Task| {
            self.policy.score(&task.waiting, self.now_us) * task.waiting.cost.seconds() / task.waiting.expected_seconds
        };
        let may_have = |task: &&Task| task.model == model && (task.waiting.id == chosen || self.may_start(task));
        let best = self.tasks.iter().filter(may_have).map(score).fold(0.0, f64::max);
        best / self.tasks.iter().find(|task| task.waiting.id == chosen).map_or(f64::NAN, score)
    }

    /// What the planner says of itself against what the list says.
    fn compare_counts(&self) -> Result<(), TestCaseError> {
        // Tasks that expired may be counted until the next decision sets them aside.
        let waits = |task: &&Task| matches!(task.state, State::Waits { .. });
        let told_late = self.tasks.iter().filter(|task| self.is_expired(task)).count();
        let waiting = self.tasks.iter().filter(waits).count();
        prop_assert!((waiting - told_late..=waiting).contains(&self.planner.waiting()), "lost or made up");

        let stats = self.planner.stats();
        let by_reason: usize = WaitReason::ALL.iter().map(|&reason| stats.waiting(reason)).sum();
        prop_assert_eq!(by_reason, self.planner.waiting(), "every task waits for one reason");
        for model in &stats.models {
            prop_assert_eq!(model.outstanding, self.outstanding(&model.model));
            prop_assert_eq!(self.planner.outstanding(&model.model), model.outstanding);
            prop_assert_eq!(model.capacity, self.capacity.get(&*model.model).copied().unwrap_or(0));
            let has_use = model.capacity.max(model.outstanding).max(model.waiting) > 0;
            prop_assert!(has_use || told_late > 0, "a model of no use is remembered");
        }
        if told_late == 0 {
            for model in &stats.models {
                let of_model = || self.tasks.iter().filter(waits).filter(|task| *task.model == *model.model);
                let started = || of_model().filter(|task| self.may_start(task));
                prop_assert_eq!(model.waiting, of_model().count());
                prop_assert_eq!(model.weighted_seconds, weighted_seconds(of_model()));
                // A start that is due is noticed at the next decision.
                let due =
                    of_model().filter(|t| matches!(t.state, State::Waits { start_us } if start_us <= self.now_us));
                if due.count() == model.waiting - model.delayed {
                    prop_assert_eq!(model.oldest_arrival_us, started().map(|task| task.waiting.arrival_us).min());
                }
            }
        }
        Ok(())
    }
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
