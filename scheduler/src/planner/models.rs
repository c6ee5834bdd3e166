//! The models that matter now: those with workers or with tasks. The rest are forgotten.
//!
//! Also whose turn it is among those with both a credit and a task: each in turn, so that no model waits for another. A turn
//! is as many tasks as travel together.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::backlog::Backlog;
use super::capacity::{Capacity, Room};
use super::deadlines::Deadlines;
use super::decision::WaitReason;
use super::names::Names;
use super::overload::{Mark, Overload};

#[derive(Default)]
pub(super) struct Model {
    pub(super) backlog: Backlog,
    pub(super) capacity: Capacity,
    pub(super) deadlines: Deadlines,
    pub(super) overload: Overload,
    /// None of its tasks is dispatched.
    pub(super) is_paused: bool,
    /// Its next tasks are on their way here.
    is_awaited: bool,
    /// Tasks of it are on their way to its queue.
    is_sending: bool,
    is_ready: bool,
}

impl Model {
    /// Whether it is known that its tasks are being run.
    pub(super) fn can_run(&self) -> bool {
        self.capacity.total > 0 && !self.is_paused
    }

    /// Whether any of its tasks may be dispatched, were there a credit.
    pub(super) fn may_go(&self) -> bool {
        !self.is_paused && !self.is_awaited
    }

    /// Why a task that may start, and whose tenant may go, does not. Whether a worker could load the model is for the caller
    /// to say.
    pub(super) fn wait_reason(&self, is_loadable: bool) -> WaitReason {
        match self.capacity.wait_reason() {
            _ if self.is_paused => WaitReason::Paused,
            WaitReason::NoWorker if is_loadable => WaitReason::NotLoaded,
            reason => reason,
        }
    }
}

pub(super) struct Models {
    names: Names,
    /// By number.
    models: Vec<Model>,
    /// Models with a credit and a task for it.
    ready: BTreeSet<u32>,
    /// Models without a credit that a task came to, which may go past others.
    pressing: BTreeSet<u32>,
    /// The number whose turn it is, or the first after it that is ready.
    turn: u32,
    /// Tasks it has had in this turn.
    had: usize,
    /// When tasks give way to others.
    mark: Option<Mark>,
}

impl Models {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            names: Names::new(seed),
            models: Vec::new(),
            ready: BTreeSet::new(),
            pressing: BTreeSet::new(),
            turn: 0,
            had: 0,
            mark: None,
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<u32> {
        self.names.find(name)
    }

    pub(super) fn name(&self, model: u32) -> &Arc<str> {
        self.names.name(model)
    }

    pub(super) fn get(&self, model: u32) -> &Model {
        &self.models[model as usize]
    }

    pub(super) fn get_mut(&mut self, model: u32) -> &mut Model {
        &mut self.models[model as usize]
    }

    /// One more task, or a capacity, of this model is known. Each is [released](Self::release) once.
    pub(super) fn acquire(&mut self, name: &str) -> u32 {
        let is_new = self.names.find(name).is_none();
        let model = self.names.acquire(name);
        let new = || Model { overload: Overload::new(self.mark), ..Model::default() };
        match self.models.get_mut(model as usize) {
            Some(known) if is_new => *known = new(),
            Some(_) => {}
            None => self.models.push(new()),
        }
        model
    }

    pub(super) fn release(&mut self, model: u32) {
        if self.names.release(model) {
            *self.get_mut(model) = Model::default();
        }
    }

    pub(super) fn set_room(&mut self, name: &str, room: Room) {
        let total = room.slots.saturating_add(room.ahead);
        let model = match self.find(name) {
            Some(model) if self.get(model).capacity.total > 0 => model,
            _ if total == 0 => return,
            // A capacity counts as one use of the name.
            _ => self.acquire(name),
        };
        self.get_mut(model).capacity.set_room(room);
        self.get_mut(model).overload.set_slots(if total > 0 { room.slots.max(1) } else { 0 });
        self.refresh_ready(model);
        if total == 0 {
            self.release(model);
        }
    }

    pub(super) fn set_mark(&mut self, mark: Option<Mark>) {
        self.mark = mark;
    }

    /// Answers whether that was a change.
    pub(super) fn set_paused(&mut self, name: &str, is_paused: bool) -> bool {
        // A pause counts as one use of the name.
        let model = match self.find(name) {
            Some(model) if self.get(model).is_paused == is_paused => return false,
            None if !is_paused => return false,
            _ => self.acquire(name),
        };
        self.get_mut(model).is_paused = is_paused;
        self.refresh_ready(model);
        self.handle_came(model);
        if !is_paused {
            // What it counted as, and what was taken to look.
            self.release(model);
            self.release(model);
        }
        true
    }

    /// The models whose next tasks are on their way here; no others are. Answers those for which that is a change.
    pub(super) fn set_awaited(&mut self, awaited: &BTreeSet<u32>) -> Vec<u32> {
        let was = |(number, model): (u32, &Model)| (model.is_awaited != awaited.contains(&number)).then_some(number);
        let changed: Vec<u32> = (0..).zip(&self.models).filter_map(was).collect();
        for &number in &changed {
            let model = self.get_mut(number);
            model.is_awaited = !model.is_awaited;
        }
        changed
    }

    pub(super) fn set_sending(&mut self, model: u32, is_sending: bool) {
        self.get_mut(model).is_sending = is_sending;
        self.refresh_ready(model);
    }

    /// To be called after any change of a model's tasks or credits.
    pub(super) fn refresh_ready(&mut self, model: u32) {
        let known = self.get_mut(model);
        let may_go = known.may_go() && !known.is_sending;
        let Model { backlog, capacity, is_ready, .. } = known;
        let ready = capacity.has_credit() && backlog.shares.has_candidates() && may_go;
        if *is_ready != ready {
            *is_ready = ready;
            if ready {
                self.ready.insert(model);
            } else {
                self.ready.remove(&model);
            }
        }
    }

    /// The model whose turn it is to dispatch.
    pub(super) fn next_ready(&mut self) -> Option<u32> {
        let model = *self.ready.range(self.turn..).next().or_else(|| self.ready.first())?;
        self.had = if model == self.turn { self.had + 1 } else { 1 };
        self.turn = model;
        if self.had >= self.get(model).capacity.grain() {
            (self.turn, self.had) = (model + 1, 0);
        }
        Some(model)
    }

    /// A task came to this model.
    pub(super) fn handle_came(&mut self, model: u32) {
        let known @ Model { backlog, capacity, .. } = self.get(model);
        if known.may_go() && backlog.shares.has_candidates() && !capacity.has_credit() && capacity.has_passage() {
            self.pressing.insert(model);
        }
    }

    /// A model that a task came to which may go past others. Each is answered once for what came.
    pub(super) fn next_pressing(&mut self) -> Option<u32> {
        self.pressing.pop_first()
    }

    /// The flow of a tenant in each model that has one.
    pub(super) fn flows_of(&self, tenant: u32) -> BTreeSet<(u32, u32)> {
        let models = (0..).zip(&self.models);
        models.filter_map(|(number, model)| Some((number, model.backlog.shares.find(tenant)?))).collect()
    }

    /// All that were ever known at once, in no order that means anything.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Model> {
        self.models.iter()
    }

    /// The same, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Model> {
        self.models.iter_mut()
    }

    /// The known ones, by name.
    pub(super) fn by_name(&self) -> Vec<(&Arc<str>, &Model)> {
        let mut models: Vec<_> = self.names.iter().map(|(number, name)| (name, self.get(number))).collect();
        models.sort_unstable_by_key(|(name, _)| *name);
        models
    }
}
