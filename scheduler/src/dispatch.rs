//! Hands chosen tasks to their model's queue: publish, wait for the confirm, then ack what they came by.
//!
//! Short tasks of a model travel several to a message, a parcel, since every message costs the broker the same.

use std::sync::Arc;

use taskyard_shared::broker::{self, Broker, Verdict};
use taskyard_shared::events::Events;
use taskyard_shared::{Envelope, State, TaskId, Topology, messages};
use tracing::warn;

use crate::held::Held;
use crate::metrics::Metrics;

/// Inputs of a parcel's tasks together; a larger task travels alone.
const PARCEL_BYTES: usize = 64 << 10;

/// Parcels that are under way, of all groups.
pub(crate) const PARCELS: usize = 128;
/// Tasks that are published together, at most.
const TASKS: usize = 1024;

/// Tasks that are published together, in the order in which they were chosen.
#[derive(Default)]
pub(crate) struct Parcels {
    parcels: Vec<Parcel>,
    tasks: usize,
}

struct Parcel {
    tasks: Vec<Held>,
    bytes: usize,
    /// Its worker begins it before what it was sent earlier.
    passes: bool,
}

impl Parcels {
    pub fn is_empty(&self) -> bool {
        self.parcels.is_empty()
    }

    /// So many parcels are under way besides. Few are at a time: when the broker is the limit, tasks gather here, where they are
    /// still in order and make larger parcels, and not in front of it.
    pub fn is_full(&self, under_way: usize) -> bool {
        self.parcels.len() + under_way >= PARCELS || self.tasks >= TASKS
    }

    pub fn len(&self) -> usize {
        self.parcels.len()
    }

    /// The models whose order is that of these parcels: those that pass others have none to keep.
    pub fn models(&self) -> Vec<String> {
        let in_order = self.parcels.iter().filter(|parcel| !parcel.passes);
        let mut models: Vec<String> = in_order.filter_map(|parcel| Some(parcel.tasks.first()?.model.clone())).collect();
        models.sort_unstable();
        models.dedup();
        models
    }

    /// Adds a task to the last parcel, if that is of its model and takes it; `together` says how many tasks of a model may be in one.
    pub fn add(&mut self, task: Held, passes: bool, together: impl Fn(&str) -> usize) {
        self.tasks += 1;
        let bytes = task.envelope.input.get().len();
        // The planner gives a model as many tasks in a turn as travel together, so the last parcel is the one.
        let last = self.parcels.last_mut().filter(|parcel| {
            parcel.passes == passes && parcel.tasks.first().is_some_and(|first| first.model == task.model)
        });
        match last {
            Some(parcel) if parcel.bytes + bytes <= PARCEL_BYTES && parcel.tasks.len() < together(&task.model) => {
                parcel.bytes += bytes;
                parcel.tasks.push(task);
            }
            _ => self.parcels.push(Parcel { tasks: vec![task], bytes, passes }),
        }
    }
}

/// What became of them.
#[derive(Default)]
pub(crate) struct Dispatched {
    pub sent: Vec<TaskId>,
    /// The broker did not confirm these: they wait again.
    pub failed: Vec<Held>,
    /// These cannot be written as a message, ever.
    pub unwritable: Vec<(Held, String)>,
}

pub(crate) async fn dispatch(
    broker: Arc<dyn Broker>,
    topology: Topology,
    metrics: Metrics,
    events: Events,
    group: Parcels,
) -> Dispatched {
    let mut dispatched = Dispatched::default();
    let (mut outgoing, mut parcels) =
        (Vec::with_capacity(group.parcels.len()), Vec::with_capacity(group.parcels.len()));
    for parcel in group.parcels {
        match message(&topology, &parcel) {
            Ok(message) => {
                outgoing.push(message);
                parcels.push(parcel.tasks);
            }
            // One of them cannot be written, and is not to keep the others from going.
            Err(_) => {
                for task in parcel.tasks {
                    match messages::ready(&topology, &task.model, &task.envelope) {
                        Ok(message) => {
                            outgoing.push(message);
                            parcels.push(vec![task]);
                        }
                        Err(failure) => dispatched.unwritable.push((task, failure.to_string())),
                    }
                }
            }
        }
    }
    let answers = broker.publish(outgoing).await;
    let mut receipts = Vec::new();
    for (tasks, answer) in parcels.into_iter().zip(answers) {
        match answer {
            Ok(()) => {
                if let Some(first) = tasks.first() {
                    metrics.dispatched(&first.model, tasks.len());
                }
                for task in tasks {
                    if task.envelope.extras.mirrors.is_none() {
                        let sent = || task.envelope.result(State::Dispatched);
                        let traceparent = task.envelope.extras.traceparent.as_deref();
                        events.state(Some(&task.model), sent, State::Dispatched, traceparent);
                    }
                    dispatched.sent.push(task.envelope.id);
                    receipts.extend(task.receipt);
                }
            }
            Err(failure) => {
                if dispatched.failed.is_empty() {
                    let model = tasks.first().map_or("", |task| &task.model);
                    warn!(%failure, task.model = model, "a task was not taken by its queue");
                }
                dispatched.failed.extend(tasks);
            }
        }
    }
    broker::settle(receipts, Verdict::Ack).await;
    dispatched
}

fn message(topology: &Topology, parcel: &Parcel) -> Result<broker::Message, messages::Unwritable> {
    let model = parcel.tasks.first().map_or("", |task| &task.model);
    let mut message = match parcel.tasks.as_slice() {
        [task] => messages::ready(topology, model, &task.envelope)?,
        tasks => {
            let envelopes: Vec<&Envelope> = tasks.iter().map(|task| &*task.envelope).collect();
            messages::ready_group(topology, model, &envelopes)?
        }
    };
    if parcel.passes {
        message.properties.headers.insert(messages::PASSES_HEADER.into(), "1".into());
    }
    Ok(message)
}
