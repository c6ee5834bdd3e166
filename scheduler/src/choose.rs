//! Chooses the model that is to run a task: the one it names, one of its alternatives, or one that offers its capability.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::deployment::base;
use taskyard_shared::load::ModelSpec;
use taskyard_shared::{ChoiceReason, Envelope, Kind, ModelChoice, Target, TaskId, Timestamp};
use tokio::time::Instant;

use crate::core::Core;
use crate::held::Holdings;
use crate::planner::{Bid, Candidate, Request};

/// So much later than its time a task is looked at, so that it is not a moment too early.
const PATIENCE_STEP: Duration = Duration::from_millis(1);
/// A task that stays although all its alternatives may have it is looked at again when it has waited for this many times as long.
const PATIENCE_GROWS: f64 = 1.5;
/// And not sooner than after this, in milliseconds.
const PATIENCE_LEAST_MS: f64 = 100.0;
/// So many tasks that wait no more may be watched, beside as many as do wait.
const KEPT: usize = 1024;

/// The models that may run a task, best first, and why in this order.
pub(crate) struct Chosen {
    pub spec: Arc<ModelSpec>,
    /// The others, should the first turn it away.
    pub others: Vec<Arc<ModelSpec>>,
    /// Nothing when it left no choice.
    pub choice: Option<Box<ModelChoice>>,
    /// What each of them would cost it, if there were several.
    pub bids: Vec<(Arc<str>, Bid)>,
}

/// Why no model may run a task: a code, and words.
pub(crate) type NoModel = (&'static str, String);

impl Core {
    /// # Errors
    /// `unknown_model`, `unknown_capability`, or `quality_unmet`.
    pub fn choose_model(&self, envelope: &Envelope) -> Result<Chosen, NoModel> {
        if let Some(spec) = envelope.chosen.as_deref().and_then(|chosen| self.models.get(chosen)) {
            let (spec, choice) = (spec.clone(), envelope.extras.choice.clone());
            return Ok(Chosen { spec, others: Vec::new(), choice, bids: Vec::new() });
        }
        let mut is_named = true;
        let (specs, patience) = match &envelope.target {
            // A retired version can be deployed again.
            Target::Model(name) if envelope.kind == Kind::Deployment => {
                let spec = self.named(name, envelope.id)?;
                return Ok(Chosen { spec, others: Vec::new(), choice: None, bids: Vec::new() });
            }
            Target::Model(name) => match (self.serving(name, envelope.id), self.alternatives(envelope)) {
                (Err(unknown), (others, _)) if others.is_empty() => return Err(unknown),
                // Nobody serves it, so it keeps a task waiting for ever.
                (Err(_), (others, _)) => {
                    is_named = false;
                    (others, Vec::new())
                }
                (Ok(spec), (others, _)) if others.is_empty() && envelope.extras.min_quality.is_none() => {
                    return Ok(Chosen { spec, others, choice: None, bids: Vec::new() });
                }
                (Ok(spec), (others, waits)) => {
                    let specs = std::iter::once(spec).chain(others).collect();
                    (specs, std::iter::once(None).chain(waits.into_iter().map(Some)).collect())
                }
            },
            Target::Capability(capability) => {
                // Of several versions, that which gets the model's tasks.
                let offers = |spec: &&Arc<ModelSpec>| {
                    let serves =
                        || self.serving(base(&spec.name), envelope.id).is_ok_and(|other| other.name == spec.name);
                    spec.offers(capability) && serves()
                };
                let mut specs: Vec<Arc<ModelSpec>> = self.models.values().filter(offers).cloned().collect();
                specs.sort_by(|one, other| one.name.cmp(&other.name));
                (specs, Vec::new())
            }
        };
        if let (Target::Capability(capability), true) = (&envelope.target, specs.is_empty()) {
            return Err(("unknown_capability", format!("no model offers the capability {capability}")));
        }
        let mut chosen = self.allocate(envelope, specs, &patience)?;
        if let Some(choice) = chosen.choice.as_mut().filter(|_| !is_named) {
            choice.reason = ChoiceReason::Alternative;
        }
        Ok(chosen)
    }

    fn allocate(
        &self,
        envelope: &Envelope,
        specs: Vec<Arc<ModelSpec>>,
        patience: &[Option<f64>],
    ) -> Result<Chosen, NoModel> {
        let after = |at: usize| patience.get(at).copied().flatten();
        let candidates = specs.iter().enumerate().map(|(at, spec)| {
            let (model, quality) = (spec.name.as_str(), spec.quality);
            Candidate { model, quality, load_seconds: self.load_seconds(model), after_seconds: after(at) }
        });
        let candidates: Vec<Candidate<'_>> = candidates.collect();
        let request = Request {
            priority: envelope.priority,
            kind: envelope.kind,
            cost: envelope.extras.cost,
            min_quality: envelope.extras.min_quality,
            deadline_us: envelope.deadline.map(|at| self.clock.micros(at)),
            waited_seconds: waited_seconds(envelope),
        };
        let Some(allocation) = self.planner.allocate(&request, &candidates, self.clock.now_us()) else {
            let least = envelope.extras.min_quality.unwrap_or_default();
            let named = specs.iter().map(|spec| spec.full_name()).collect::<Vec<_>>().join(", ");
            return Err(("quality_unmet", format!("no model that could run it states a quality of {least}: {named}")));
        };
        let best_first = allocation.bids.iter().filter_map(|bid| Some((specs.get(bid.candidate)?.clone(), bid)));
        let mut best_first = best_first.collect::<Vec<_>>().into_iter();
        let Some((spec, bid)) = best_first.next() else {
            return Err(("unknown_model", "no model could run it".to_owned()));
        };
        let choice = Box::new(ModelChoice {
            reason: allocation.reason,
            candidates: u32::try_from(specs.len()).unwrap_or(u32::MAX),
            run_seconds: bid.run_seconds,
            queue_seconds: Some(bid.queue_seconds).filter(|seconds| seconds.is_finite()),
            load_seconds: bid.load_seconds,
        });
        let bids = std::iter::once((&spec, bid)).chain(best_first.as_slice().iter().map(|(spec, bid)| (spec, *bid)));
        let bids = bids.map(|(spec, bid)| (Arc::from(spec.name.as_str()), *bid)).collect();
        let others = best_first.map(|(spec, _)| spec).collect();
        Ok(Chosen { spec, others, choice: Some(choice), bids })
    }

    /// `name` or `name@version`, for one task: without a version, that which gets the model's tasks.
    fn named(&self, name: &str, task: TaskId) -> Result<Arc<ModelSpec>, NoModel> {
        let deployed = &self.deploying.deployed;
        let key = match name.split_once('@') {
            Some((base, version)) if !self.models.contains_key(name) => match self.models.get(base) {
                Some(spec) if spec.version == version => base.to_owned(),
                Some(spec) => {
                    let message = format!("the model {base} is served in version {}, not {version}", spec.version);
                    return Err(("unknown_model", message));
                }
                None => return Err(self.without_this_version(base, version)),
            },
            Some(_) => name.to_owned(),
            None => match deployed.route(name, task) {
                Some(to) => to.to_owned(),
                // Mostly there is one version and no more to say.
                None if self.models.contains_key(name) && !deployed.retired.contains(name) => name.to_owned(),
                None => self.default_of(deployed, name).ok_or_else(|| self.without_version(name))?,
            },
        };
        let spec = self.models.get(&key);
        let spec = spec.ok_or_else(|| ("unknown_model", format!("no worker has announced a model {key}")))?;
        Ok(spec.clone())
    }

    /// Why a model's name alone says too little.
    fn without_version(&self, name: &str) -> NoModel {
        let mut versions: Vec<&str> =
            self.models.keys().map(String::as_str).filter(|model| base(model) == name).collect();
        versions.sort_unstable();
        match versions.is_empty() {
            true => ("unknown_model", format!("no worker has announced a model {name}")),
            false => {
                let named = versions.join(", ");
                ("unknown_model", format!("name a version of {name}, or roll one out: there are {named}"))
            }
        }
    }

    fn without_this_version(&self, name: &str, version: &str) -> NoModel {
        let mut versions: Vec<&str> =
            self.models.keys().map(String::as_str).filter(|model| base(model) == name).collect();
        versions.sort_unstable();
        let message = match versions.is_empty() {
            true => format!("no worker has announced a model {name}"),
            false => format!("the model {name} is not served in version {version}: there are {}", versions.join(", ")),
        };
        ("unknown_model", message)
    }

    /// As [`Self::named`], for a task that is to run on it.
    fn serving(&self, name: &str, task: TaskId) -> Result<Arc<ModelSpec>, NoModel> {
        let spec = self.named(name, task)?;
        match self.deploying.deployed.retired.contains(&spec.name) {
            true => Err(("retired_model", format!("{} is retired", spec.full_name()))),
            false => Ok(spec),
        }
    }

    /// Those that are known, and the wait in seconds from which on each may run it.
    fn alternatives(&self, envelope: &Envelope) -> (Vec<Arc<ModelSpec>>, Vec<f64>) {
        let known = envelope.extras.alternatives.iter().filter_map(|alternative| {
            Some((self.serving(&alternative.model, envelope.id).ok()?, alternative.wait_ms as f64 / 1e3))
        });
        known.unzip()
    }

    /// Tasks that have waited for as long as an alternative asks are chosen for anew.
    pub fn reconsider(&mut self) {
        let now = Instant::now();
        while let Some(id) = self.impatient.take_due(now) {
            let Some(task) = self.held.get(&id) else { continue };
            let moves_to = self.choose_model(&task.envelope).ok().filter(|chosen| chosen.spec.name != task.model);
            match moves_to {
                // It may have been dispatched or shed just now.
                Some(chosen) if self.planner.handle_cancel(id) => {
                    if let Some(task) = self.held.remove(&id) {
                        self.admit_to(task, chosen);
                    }
                }
                Some(_) => {}
                None => self.watch_patience(id),
            }
        }
    }

    /// Has it chosen anew for a waiting task when the next of its alternatives may have it, and from the last on now and then: what it
    /// waits for may take longer than was expected.
    pub fn watch_patience(&mut self, id: TaskId) {
        let Some(task) = self.held.get(&id).filter(|task| !task.envelope.extras.alternatives.is_empty()) else {
            return;
        };
        let waited_ms = waited_seconds(&task.envelope) * 1e3;
        let waits = task.envelope.extras.alternatives.iter().map(|alternative| alternative.wait_ms as f64);
        let next_ms = waits.filter(|wait_ms| *wait_ms > waited_ms).min_by(f64::total_cmp);
        let left_ms =
            next_ms.map_or((waited_ms * (PATIENCE_GROWS - 1.0)).max(PATIENCE_LEAST_MS), |at_ms| at_ms - waited_ms);
        let at = Instant::now() + Duration::from_secs_f64(left_ms / 1e3) + PATIENCE_STEP;
        self.impatient.insert(at, id, &self.held);
    }
}

/// How long a task has waited, of what it was accepted for: not before its earliest start.
fn waited_seconds(envelope: &Envelope) -> f64 {
    let begins = envelope.extras.not_before.map_or(envelope.accepted, |start| start.max(envelope.accepted));
    (Timestamp::now().ms_since(begins) / 1e3).max(0.0)
}

/// Waiting tasks by the time at which an alternative may have them.
#[derive(Default)]
pub(crate) struct Impatient(BTreeSet<(Instant, TaskId)>);

impl Impatient {
    fn insert(&mut self, at: Instant, id: TaskId, held: &Holdings) {
        // Tasks that do not wait any more stay until their time, unless there are many of them.
        if self.0.len() >= 2 * held.len() + KEPT {
            self.0.retain(|(_, id)| held.contains_key(id));
        }
        self.0.insert((at, id));
    }

    /// When the next task loses its patience, if one will.
    pub fn first(&self) -> Option<Instant> {
        self.0.first().map(|&(at, _)| at)
    }

    fn take_due(&mut self, now: Instant) -> Option<TaskId> {
        let &(at, id) = self.0.first()?;
        if at > now {
            return None;
        }
        self.0.pop_first();
        Some(id)
    }
}
