//! Which of its models a worker holds, which it is to hold, and what it does next about that. No clock, and nothing that acts.

use std::time::Duration;

use taskyard_shared::load::{LoadState, ModelSpec};
use taskyard_shared::retry::Backoff;
use tokio::time::Instant;

/// Where a model is on its way in or out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Absent,
    Loading,
    Held,
    /// It takes nothing new; what runs is finished, and its memory is still taken.
    Leaving,
}

struct Model {
    name: String,
    /// Loaded at the start and never unloaded.
    fixed: bool,
    /// As set; 0 when it is to be measured.
    set_mb: u64,
    /// The most that a load of it took.
    measured_mb: u64,
    gpus: u32,
    phase: Phase,
    /// Failed loads since the last that succeeded.
    failures: u32,
    /// Not loaded again before.
    retry_at: Option<Instant>,
    is_forgotten: bool,
}

impl Model {
    fn memory_mb(&self) -> u64 {
        if self.set_mb > 0 { self.set_mb } else { self.measured_mb.max(1) }
    }
}

/// What the models may take together; 0 of something is without bounds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Budget {
    pub memory_mb: u64,
    pub gpus: u32,
}

/// What is left of a budget.
#[derive(Clone, Copy)]
struct Room {
    memory_mb: Option<u64>,
    gpus: Option<u32>,
}

impl Room {
    /// What is left beside the model; `None` when it does not fit.
    fn less(self, model: &Model) -> Option<Self> {
        let memory_mb = match self.memory_mb {
            Some(room) => Some(room.checked_sub(model.memory_mb())?),
            None => None,
        };
        let gpus = match self.gpus {
            Some(room) => Some(room.checked_sub(model.gpus)?),
            None => None,
        };
        Some(Self { memory_mb, gpus })
    }

    /// What is left beside one that is there already, whether or not it fits.
    fn beside(self, model: &Model) -> Self {
        Self {
            memory_mb: self.memory_mb.map(|room| room.saturating_sub(model.memory_mb())),
            gpus: self.gpus.map(|room| room.saturating_sub(model.gpus)),
        }
    }
}

/// A worker's models, by their place among them.
pub(crate) struct Holdings {
    budget: Budget,
    retry: Backoff,
    models: Vec<Model>,
    /// What is to be held, the most important first.
    wanted: Vec<usize>,
}

/// What is to be done now.
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) struct Steps {
    pub unload: Vec<usize>,
    /// One at a time, and only when its memory is free.
    pub load: Option<usize>,
    /// When a model that could not be loaded is tried again, if that is what is waited for.
    pub again_at: Option<Instant>,
}

impl Holdings {
    pub fn new(budget: Budget, retry: Backoff) -> Self {
        Self { budget, retry, models: Vec::new(), wanted: Vec::new() }
    }

    /// One more model. `fixed` ones are held from now on.
    pub fn add(&mut self, spec: &ModelSpec, fixed: bool) {
        self.models.push(Model {
            name: spec.name.clone(),
            fixed,
            set_mb: spec.memory_mb,
            measured_mb: 0,
            gpus: spec.gpus,
            phase: if fixed { Phase::Held } else { Phase::Absent },
            failures: 0,
            retry_at: None,
            is_forgotten: false,
        });
    }

    /// It is not to be held any more, whatever is wanted, and its name may be another's.
    pub fn forget(&mut self, at: usize) {
        self.wanted.retain(|wanted| *wanted != at);
        if let Some(model) = self.models.get_mut(at) {
            model.is_forgotten = true;
        }
    }

    /// Whether a placement has a say here.
    pub fn are_placed(&self) -> bool {
        self.budget != Budget::default() && self.models.iter().any(|model| !model.fixed)
    }

    /// As many as fit, in their order.
    pub fn want_all(&mut self) {
        let known = self.models.iter().enumerate().filter(|(_, model)| !model.is_forgotten);
        self.wanted = known.map(|(at, _)| at).collect();
    }

    /// These, as far as they fit. Answers the names that no model here has.
    pub fn want<'a>(&mut self, names: &'a [String]) -> Vec<&'a str> {
        self.wanted.clear();
        let mut unknown = Vec::new();
        for name in names {
            match self.models.iter().position(|model| model.name == *name && !model.is_forgotten) {
                Some(at) if !self.wanted.contains(&at) => self.wanted.push(at),
                Some(_) => {}
                None => unknown.push(name.as_str()),
            }
        }
        unknown
    }

    pub fn set_phase(&mut self, at: usize, phase: Phase) {
        if let Some(model) = self.models.get_mut(at) {
            model.phase = phase;
        }
    }

    /// A load succeeded, and the process grew by so much.
    pub fn loaded(&mut self, at: usize, grown_mb: u64) {
        if let Some(model) = self.models.get_mut(at) {
            model.phase = Phase::Held;
            // A load in memory that was free already grows the process by less than it takes.
            model.measured_mb = model.measured_mb.max(grown_mb);
            (model.failures, model.retry_at) = (0, None);
        }
    }

    /// A load failed: answers how long the model is left alone. `random` is in [0, 1).
    pub fn failed(&mut self, at: usize, now: Instant, random: f64) -> Duration {
        let Some(model) = self.models.get_mut(at) else { return Duration::ZERO };
        model.phase = Phase::Absent;
        model.failures = model.failures.saturating_add(1);
        let wait = self.retry.delay(model.failures, random);
        model.retry_at = Some(now + wait);
        wait
    }

    /// What the model counts for in the budget.
    pub fn memory_mb(&self, at: usize) -> u64 {
        self.models.get(at).map_or(0, Model::memory_mb)
    }

    /// Why the model would not fit in if it were the only one to come and go, if so.
    pub fn too_large(&self, at: usize) -> Option<String> {
        let model = self.models.get(at).filter(|model| !model.fixed)?;
        let room = self.room();
        if room.less(model).is_some() {
            return None;
        }
        Some(match room.memory_mb.filter(|memory_mb| model.memory_mb() > *memory_mb) {
            Some(memory_mb) => format!("it takes {} MB, and there is room for {memory_mb}", model.memory_mb()),
            None => format!("it takes {} GPUs, and there are {}", model.gpus, room.gpus.unwrap_or(0)),
        })
    }

    pub fn state(&self, at: usize) -> LoadState {
        let Some(model) = self.models.get(at) else { return LoadState::Unloaded };
        match model.phase {
            Phase::Held => LoadState::Loaded,
            Phase::Loading => LoadState::Loading,
            Phase::Leaving => LoadState::Unloaded,
            Phase::Absent if self.too_large(at).is_some() => LoadState::Failed,
            Phase::Absent if model.failures > 0 && self.wanted.contains(&at) => LoadState::Failed,
            Phase::Absent => LoadState::Unloaded,
        }
    }

    /// What is to be done at `now`, given that the steps of before are under way.
    pub fn next(&self, now: Instant) -> Steps {
        let target = self.target();
        let mut steps = Steps::default();
        let (mut room, mut loading) = (self.whole(), false);
        for (at, model) in self.models.iter().enumerate() {
            if model.phase != Phase::Absent {
                room = room.beside(model);
            }
            loading |= model.phase == Phase::Loading;
            if model.phase == Phase::Held && !model.fixed && !target.contains(&at) {
                steps.unload.push(at);
            }
        }
        if loading {
            return steps;
        }
        for at in target {
            let Some(model) = self.models.get(at).filter(|model| model.phase == Phase::Absent) else { continue };
            let fits = room.less(model).is_some();
            match model.retry_at.filter(|at| *at > now) {
                Some(later) => steps.again_at = Some(steps.again_at.map_or(later, |soonest| soonest.min(later))),
                None if fits => {
                    steps.load = Some(at);
                    break;
                }
                // It waits for one that is leaving.
                None => {}
            }
        }
        steps
    }

    /// The wanted models that fit together, those before others.
    fn target(&self) -> Vec<usize> {
        let mut room = self.room();
        let mut target = Vec::with_capacity(self.wanted.len());
        for &at in &self.wanted {
            let Some(model) = self.models.get(at).filter(|model| !model.fixed) else { continue };
            if let Some(left) = room.less(model) {
                room = left;
                target.push(at);
            }
        }
        target
    }

    /// The whole budget.
    fn whole(&self) -> Room {
        let Budget { memory_mb, gpus } = self.budget;
        Room { memory_mb: (memory_mb > 0).then_some(memory_mb), gpus: (gpus > 0).then_some(gpus) }
    }

    /// What the models that come and go have of it.
    fn room(&self) -> Room {
        self.models.iter().filter(|model| model.fixed).fold(self.whole(), Room::beside)
    }
}

#[cfg(test)]
mod tests;
