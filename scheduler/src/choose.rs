//! Chooses the model that is to run a task.

use std::sync::Arc;

use taskyard_shared::load::ModelSpec;
use taskyard_shared::{Envelope, Target};

use crate::core::Core;

impl Core {
    /// The model a task names, or of those that offer a capability the one that is expected to have it done first:
    /// least p·t + queue seconds.
    pub fn choose_model(&self, envelope: &Envelope) -> Result<Arc<ModelSpec>, (&'static str, String)> {
        if let Some(chosen) = envelope.chosen.as_ref().and_then(|chosen| self.models.get(chosen)) {
            return Ok(chosen.clone());
        }
        match &envelope.target {
            Target::Model(name) => {
                let (base, version) = match name.split_once('@') {
                    Some((base, version)) => (base, Some(version)),
                    None => (name.as_str(), None),
                };
                let spec = self
                    .models
                    .get(base)
                    .ok_or_else(|| ("unknown_model", format!("no worker has announced a model {base}")))?;
                match version {
                    Some(version) if version != spec.version => {
                        let message = format!("the model {base} is served in version {}, not {version}", spec.version);
                        Err(("unknown_model", message))
                    }
                    _ => Ok(spec.clone()),
                }
            }
            Target::Capability(capability) => {
                let weight = f64::from(envelope.priority.get());
                let cost = |spec: &ModelSpec| {
                    let seconds = self.planner.expected(&spec.name, envelope.kind, envelope.cost).mean_seconds;
                    let slots = self.offers.slots(&spec.name);
                    let ahead = self.planner.backlog(&spec.name) + self.planner.outstanding(&spec.name);
                    // A model without workers comes last, but is still better than none.
                    // The other shards have as much to wait for.
                    let ahead = ahead as f64 * f64::from(self.shard.of);
                    let queue_seconds = if slots == 0 { 1e9 } else { ahead * seconds / slots as f64 };
                    weight * seconds + queue_seconds
                };
                self.models
                    .values()
                    .filter(|spec| spec.capabilities.contains(capability))
                    .map(|spec| (cost(spec), spec))
                    .min_by(|(left, one), (right, other)| left.total_cmp(right).then_with(|| one.name.cmp(&other.name)))
                    .map(|(_, spec)| spec.clone())
                    .ok_or_else(|| ("unknown_capability", format!("no model offers the capability {capability}")))
            }
        }
    }
}
