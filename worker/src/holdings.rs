//! Which of its models a worker holds, which it is to hold, and what it does next about that. No clock, and nothing that acts.

use std::time::{Duration, Instant};

use taskyard_shared::load::LoadState;
use taskyard_shared::retry::Backoff;

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
    phase: Phase,
    /// Failed loads since the last that succeeded.
    failures: u32,
    /// Not loaded again before.
    retry_at: Option<Instant>,
}

impl Model {
    fn memory_mb(&self) -> u64 {
        if self.set_mb > 0 { self.set_mb } else { self.measured_mb.max(1) }
    }
}

/// A worker's models, by their place among them.
pub(crate) struct Holdings {
    /// `None`: without bounds.
    budget_mb: Option<u64>,
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
    /// `budget_mb` 0 is none.
    pub fn new(budget_mb: u64, retry: Backoff) -> Self {
        Self { budget_mb: (budget_mb > 0).then_some(budget_mb), retry, models: Vec::new(), wanted: Vec::new() }
    }

    /// One more model. `fixed` ones are held from now on.
    pub fn add(&mut self, name: &str, memory_mb: u64, fixed: bool) {
        self.models.push(Model {
            name: name.to_owned(),
            fixed,
            set_mb: memory_mb,
            measured_mb: 0,
            phase: if fixed { Phase::Held } else { Phase::Absent },
            failures: 0,
            retry_at: None,
        });
    }

    /// Whether a placement has a say here.
    pub fn are_placed(&self) -> bool {
        self.budget_mb.is_some() && self.models.iter().any(|model| !model.fixed)
    }

    /// As many as fit, in their order.
    pub fn want_all(&mut self) {
        self.wanted = (0..self.models.len()).collect();
    }

    /// These, as far as they fit. Answers the names that no model here has.
    pub fn want<'a>(&mut self, names: &'a [String]) -> Vec<&'a str> {
        self.wanted.clear();
        let mut unknown = Vec::new();
        for name in names {
            match self.models.iter().position(|model| model.name == *name) {
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

    /// The budget that the model would not fit in if it were the only one to come and go.
    pub fn too_large_for(&self, at: usize) -> Option<u64> {
        let model = self.models.get(at).filter(|model| !model.fixed)?;
        let room = self.budget_mb?.saturating_sub(self.fixed_mb());
        (model.memory_mb() > room).then_some(room)
    }

    pub fn state(&self, at: usize) -> LoadState {
        let Some(model) = self.models.get(at) else { return LoadState::Unloaded };
        match model.phase {
            Phase::Held => LoadState::Loaded,
            Phase::Loading => LoadState::Loading,
            Phase::Leaving => LoadState::Unloaded,
            Phase::Absent if self.too_large_for(at).is_some() => LoadState::Failed,
            Phase::Absent if model.failures > 0 && self.wanted.contains(&at) => LoadState::Failed,
            Phase::Absent => LoadState::Unloaded,
        }
    }

    /// What is to be done at `now`, given that the steps of before are under way.
    pub fn next(&self, now: Instant) -> Steps {
        let target = self.target();
        let mut steps = Steps::default();
        let (mut taken_mb, mut loading) = (0u64, false);
        for (at, model) in self.models.iter().enumerate() {
            if model.phase != Phase::Absent {
                taken_mb = taken_mb.saturating_add(model.memory_mb());
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
            let fits = self.budget_mb.is_none_or(|budget| taken_mb.saturating_add(model.memory_mb()) <= budget);
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
        let mut room = self.budget_mb.map(|budget| budget.saturating_sub(self.fixed_mb()));
        let mut target = Vec::with_capacity(self.wanted.len());
        for &at in &self.wanted {
            let Some(model) = self.models.get(at).filter(|model| !model.fixed) else { continue };
            match room.map(|room| room.checked_sub(model.memory_mb())) {
                Some(None) => {}
                Some(left) => {
                    room = left;
                    target.push(at);
                }
                None => target.push(at),
            }
        }
        target
    }

    fn fixed_mb(&self) -> u64 {
        self.models.iter().filter(|model| model.fixed).fold(0, |sum, model| sum.saturating_add(model.memory_mb()))
    }
}

#[cfg(test)]
mod tests;
