//! The pure planner: events and the time go in, decisions come out.
//!
//! It reads no clock, does no I/O and draws no random number, so that the service, the simulator and the tests run
//! the same code. Tasks of one model, priority, cost bucket and tenant wait in one lane; only lane heads are
//! compared, and a task leaves only for a credit believed free.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod policy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use policy::Policy;
use taskyard_shared::{Priority, TaskId};

/// A task as the planner sees it. Times are microseconds on the caller's clock.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub id: TaskId,
    pub model: String,
    pub tenant: String,
    pub priority: Priority,
    /// Expected execution time, in seconds; taken as at least a microsecond.
    pub expected_seconds: f64,
    pub deadline_us: Option<u64>,
    pub not_before_us: Option<u64>,
}

/// A task in its lane.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub id: TaskId,
    pub priority: Priority,
    pub arrival_us: u64,
    pub deadline_us: Option<u64>,
    pub expected_seconds: f64,
    sequence: u64,
}

impl Waiting {
    /// What a second of this task's delay costs: its priority, plus one so that priority 0 still counts.
    pub fn weight(&self) -> f64 {
        f64::from(self.priority.get()) + 1.0
    }
}

/// What the shell is to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Decision {
    Dispatch { id: TaskId, model: Arc<str>, reason: DispatchReason },
    Expire { id: TaskId, model: Arc<str> },
}

/// Why this task and not another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DispatchReason {
    /// No other lane of its model had a task.
    OnlyLane,
    /// Its score was the largest.
    BestScore,
    /// Its score was equalled, and it came first.
    Oldest,
}

/// Why a task waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitReason {
    /// Its `not_before` is yet to come.
    NotBefore,
    /// No worker has offered a slot for its model.
    NoWorker,
    /// Every slot of its model is taken.
    NoCredit,
    /// A slot is free and its turn comes at the next decision.
    NextDecision,
}

/// The planner refused an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The id is already waiting or dispatched.
    Duplicate,
}

/// Names by number, so that nothing is cloned or compared as text on a task's way.
#[derive(Default)]
struct Names {
    numbers: BTreeMap<Arc<str>, u32>,
}

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        let number = self.numbers.len() as u32;
        self.numbers.insert(name.into(), number);
        number
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Class {
    priority: Priority,
    /// Expected times within a factor of two share a bucket.
    cost_bucket: i32,
    tenant: u32,
}

struct Model {
    name: Arc<str>,
    lanes: BTreeMap<Class, BTreeMap<(u64, u64), Waiting>>,
    capacity: usize,
    outstanding: usize,
}

impl Model {
    fn can_dispatch(&self) -> bool {
        self.outstanding < self.capacity && !self.lanes.is_empty()
    }
}

enum Place {
    Delayed { key: (u64, u64), deadline: Option<(u64, u64)> },
    Lane { model: usize, class: Class, key: (u64, u64), deadline: Option<(u64, u64)> },
    Dispatched { model: usize },
}

pub struct Planner {
    policy: Box<dyn Policy + Send>,
    models: Vec<Model>,
    /// A model's number is its place in `models`.
    model_names: Names,
    tenant_names: Names,
    /// Models with a credit and a task for it.
    ready: BTreeSet<usize>,
    delayed: BTreeMap<(u64, u64), Arrival>,
    deadlines: BTreeMap<(u64, u64), TaskId>,
    places: BTreeMap<TaskId, Place>,
    next_sequence: u64,
}

impl Planner {
    pub fn new(policy: impl Policy + Send + 'static) -> Self {
        Self {
            policy: Box::new(policy),
            models: Vec::new(),
            model_names: Names::default(),
            tenant_names: Names::default(),
            ready: BTreeSet::new(),
            delayed: BTreeMap::new(),
            deadlines: BTreeMap::new(),
            places: BTreeMap::new(),
            next_sequence: 0,
        }
    }

    /// A task was admitted.
    ///
    /// # Errors
    /// [`Refusal::Duplicate`] for an id that is waiting or dispatched.
    pub fn handle_arrival(&mut self, arrival: Arrival, now_us: u64) -> Result<(), Refusal> {
        if self.places.contains_key(&arrival.id) {
            return Err(Refusal::Duplicate);
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        match arrival.not_before_us {
            Some(start_us) if start_us > now_us => {
                let key = (start_us, sequence);
                let deadline = self.watch_deadline(arrival.id, arrival.deadline_us, sequence);
                self.places.insert(arrival.id, Place::Delayed { key, deadline });
                self.delayed.insert(key, arrival);
            }
            _ => self.enqueue(arrival, now_us, sequence),
        }
        Ok(())
    }

    /// How many tasks of a model its live workers can hold, dispatched ones included. 0 when none is alive.
    pub fn handle_load(&mut self, model: &str, capacity: usize) {
        let model = self.model_number(model);
        self.models[model].capacity = capacity;
        self.refresh_ready(model);
    }

    /// A dispatched task is no longer with a worker. Answers whether it was known to be dispatched.
    pub fn handle_completion(&mut self, id: TaskId) -> bool {
        let Some(&Place::Dispatched { model }) = self.places.get(&id) else {
            return false;
        };
        self.places.remove(&id);
        self.models[model].outstanding -= 1;
        self.refresh_ready(model);
        true
    }

    /// A waiting task is no longer wanted. Answers whether it was waiting; a dispatched one stays.
    pub fn handle_cancel(&mut self, id: TaskId) -> bool {
        match self.places.remove(&id) {
            Some(Place::Delayed { key, deadline }) => {
                self.unwatch_deadline(deadline);
                self.delayed.remove(&key).is_some()
            }
            Some(Place::Lane { model, class, key, deadline }) => {
                self.unwatch_deadline(deadline);
                self.take_from_lane(model, class, key).is_some()
            }
            Some(dispatched @ Place::Dispatched { .. }) => {
                self.places.insert(id, dispatched);
                false
            }
            None => false,
        }
    }

    /// The next thing to do at this time, until there is none.
    pub fn poll_decision(&mut self, now_us: u64) -> Option<Decision> {
        self.wake_delayed(now_us);
        if let Some(expired) = self.expire_one(now_us) {
            return Some(expired);
        }
        let model = *self.ready.first()?;
        let (class, key, reason) = self.choose(model, now_us)?;
        let task = self.take_from_lane(model, class, key)?;
        self.unwatch_deadline(task.deadline_us.map(|at_us| (at_us, task.sequence)));
        self.models[model].outstanding += 1;
        self.places.insert(task.id, Place::Dispatched { model });
        self.refresh_ready(model);
        Some(Decision::Dispatch { id: task.id, model: self.models[model].name.clone(), reason })
    }

    /// When to poll again though nothing happens: the next delayed start or deadline.
    pub fn poll_timeout(&self) -> Option<u64> {
        let start = self.delayed.keys().next().map(|key| key.0);
        let deadline = self.deadlines.keys().next().map(|key| key.0);
        start.into_iter().chain(deadline).min()
    }

    /// Why a task waits; `None` when it does not.
    pub fn explain(&self, id: TaskId) -> Option<WaitReason> {
        match self.places.get(&id)? {
            Place::Delayed { .. } => Some(WaitReason::NotBefore),
            Place::Lane { model, .. } => {
                let model = &self.models[*model];
                Some(match model.capacity {
                    0 => WaitReason::NoWorker,
                    capacity if model.outstanding >= capacity => WaitReason::NoCredit,
                    _ => WaitReason::NextDecision,
                })
            }
            Place::Dispatched { .. } => None,
        }
    }

    /// Tasks that wait in lanes or for their start.
    pub fn waiting(&self) -> usize {
        self.delayed.len() + self.models.iter().flat_map(|m| m.lanes.values()).map(BTreeMap::len).sum::<usize>()
    }

    /// Tasks of a model that were dispatched and have not completed.
    pub fn outstanding(&self, model: &str) -> usize {
        self.model_names.numbers.get(model).map_or(0, |&number| self.models[number as usize].outstanding)
    }

    pub fn policy(&self) -> &'static str {
        self.policy.name()
    }

    fn model_number(&mut self, name: &str) -> usize {
        let number = self.model_names.number(name) as usize;
        if number == self.models.len() {
            self.models.push(Model { name: name.into(), lanes: BTreeMap::new(), capacity: 0, outstanding: 0 });
        }
        number
    }

    fn enqueue(&mut self, arrival: Arrival, arrival_us: u64, sequence: u64) {
        let Arrival { id, model, tenant, priority, expected_seconds, deadline_us, .. } = arrival;
        // Not a number, nothing and less all become the least.
        let expected_seconds = if expected_seconds > 1e-6 { expected_seconds } else { 1e-6 };
        let model = self.model_number(&model);
        let tenant = self.tenant_names.number(&tenant);
        let class = Class { priority, cost_bucket: expected_seconds.log2().floor() as i32, tenant };
        let task = Waiting { id, priority, arrival_us, deadline_us, expected_seconds, sequence };
        let key = (self.policy.lane_key(&task), sequence);
        let deadline = self.watch_deadline(id, deadline_us, sequence);
        self.places.insert(id, Place::Lane { model, class, key, deadline });
        self.models[model].lanes.entry(class).or_default().insert(key, task);
        self.refresh_ready(model);
    }

    fn wake_delayed(&mut self, now_us: u64) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now_us {
                return;
            }
            let ((start_us, sequence), arrival) = entry.remove_entry();
            // Its wait counts from the time it could have started.
            self.enqueue(arrival, start_us, sequence);
        }
    }

    fn expire_one(&mut self, now_us: u64) -> Option<Decision> {
        let entry = self.deadlines.first_entry()?;
        if entry.key().0 > now_us {
            return None;
        }
        let id = entry.remove();
        let model = match self.places.remove(&id)? {
            Place::Lane { model, class, key, .. } => {
                self.take_from_lane(model, class, key);
                self.models[model].name.clone()
            }
            Place::Delayed { key, .. } => self.delayed.remove(&key)?.model.into(),
            // Dispatching ended the watch on its deadline.
            Place::Dispatched { .. } => return None,
        };
        Some(Decision::Expire { id, model })
    }

    fn watch_deadline(&mut self, id: TaskId, deadline_us: Option<u64>, sequence: u64) -> Option<(u64, u64)> {
        let key = (deadline_us?, sequence);
        self.deadlines.insert(key, id);
        Some(key)
    }

    fn unwatch_deadline(&mut self, key: Option<(u64, u64)>) {
        if let Some(key) = key {
            self.deadlines.remove(&key);
        }
    }

    fn choose(&self, model: usize, now_us: u64) -> Option<(Class, (u64, u64), DispatchReason)> {
        let lanes = &self.models[model].lanes;
        let mut best: Option<(f64, &Class, (u64, u64), u64)> = None;
        let mut reason = DispatchReason::OnlyLane;
        for (class, lane) in lanes {
            let Some((key, head)) = lane.first_key_value() else { continue };
            let score = self.policy.score(head, now_us);
            if let Some((top, _, _, oldest)) = best {
                let tie = score == top;
                if tie {
                    reason = DispatchReason::Oldest;
                } else if score > top || reason == DispatchReason::OnlyLane {
                    reason = DispatchReason::BestScore;
                }
                if score < top || (tie && head.sequence > oldest) {
                    continue;
                }
            }
            best = Some((score, class, *key, head.sequence));
        }
        best.map(|(_, class, key, _)| (*class, key, reason))
    }

    fn take_from_lane(&mut self, model: usize, class: Class, key: (u64, u64)) -> Option<Waiting> {
        let lanes = &mut self.models[model].lanes;
        let lane = lanes.get_mut(&class)?;
        let task = lane.remove(&key);
        if lane.is_empty() {
            lanes.remove(&class);
        }
        self.refresh_ready(model);
        task
    }

    fn refresh_ready(&mut self, model: usize) {
        if self.models[model].can_dispatch() {
            self.ready.insert(model);
        } else {
            self.ready.remove(&model);
        }
    }
}
