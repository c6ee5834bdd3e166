//! Asks the planner what the steps of a workflow are expected to take.

use std::collections::BTreeMap;

use taskyard_shared::workflow::Plan;
use taskyard_shared::{Kind, Target};
use tokio::sync::{mpsc, oneshot};

use crate::core::{Core, Event};

/// What matters of a task: its target, its kind, and the bits of its cost.
type Like = (Target, Kind, Option<u64>);

/// A question to the core: what each of these takes, in seconds.
pub(crate) struct Expected {
    tasks: Vec<Like>,
    answer: oneshot::Sender<Vec<f64>>,
}

impl Core {
    pub fn expect(&self, Expected { tasks, answer }: Expected) {
        let seconds = |(target, kind, cost): &Like| {
            let on = |model: &str| self.planner.expected(model, *kind, cost.map(f64::from_bits)).mean_seconds;
            match target {
                Target::Model(name) => on(taskyard_shared::deployment::base(name)),
                // Whichever is chosen, it is likely one of the quick ones.
                Target::Capability(capability) => {
                    let offers = self.models.values().filter(|spec| spec.offers(capability));
                    let least = offers.map(|spec| on(&spec.name)).fold(f64::INFINITY, f64::min);
                    if least.is_finite() { least } else { 0.0 }
                }
            }
        };
        let _gone = answer.send(tasks.iter().map(seconds).collect());
    }
}

/// What each step is expected to take. Nothing when the core is about to end.
pub(crate) async fn ask(plan: &Plan, events: &mpsc::Sender<Event>) -> Option<Vec<f64>> {
    // Mostly there are few kinds of steps, however many steps.
    let mut tasks: Vec<Like> = Vec::new();
    let mut known: BTreeMap<(&str, &str, Kind, Option<u64>), usize> = BTreeMap::new();
    let mut which = Vec::with_capacity(plan.len());
    for step in &plan.steps {
        let (kind, cost) = (step.task.kind, step.task.cost.map(f64::to_bits));
        let (how, name) = match &step.task.target {
            Target::Model(name) => ("model", &**name),
            Target::Capability(name) => ("capability", &**name),
        };
        which.push(*known.entry((how, name, kind, cost)).or_insert_with(|| {
            tasks.push((step.task.target.clone(), kind, cost));
            tasks.len() - 1
        }));
    }
    let (answer, answered) = oneshot::channel();
    events.send(Event::Expected(Expected { tasks, answer })).await.ok()?;
    let seconds = answered.await.ok()?;
    Some(which.into_iter().map(|at| seconds.get(at).copied().unwrap_or(0.0)).collect())
}
