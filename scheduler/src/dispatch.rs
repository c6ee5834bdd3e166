//! Hands chosen tasks to their model's queue: publish, wait for the confirm, then ack what they came by.

use std::sync::Arc;

use taskyard_shared::broker::{self, Broker, Verdict};
use taskyard_shared::store::Store;
use taskyard_shared::{TaskId, Topology, messages};
use tracing::{debug, warn};

use crate::held::Held;
use crate::metrics::Metrics;

/// What did not go.
pub(crate) struct Dispatched {
    /// The broker did not confirm these: they wait again.
    pub failed: Vec<Held>,
    /// These cannot be written as a message, ever.
    pub unwritable: Vec<(Held, String)>,
}

pub(crate) async fn dispatch(
    broker: Arc<dyn Broker>,
    store: Arc<dyn Store>,
    topology: Topology,
    metrics: Metrics,
    group: Vec<Held>,
) -> Dispatched {
    let mut unwritable = Vec::new();
    let (mut outgoing, mut sent) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
    for task in group {
        match messages::ready(&topology, &task.model, &task.envelope) {
            Ok(message) => {
                outgoing.push(message);
                sent.push(task);
            }
            Err(failure) => unwritable.push((task, failure.to_string())),
        }
    }
    let answers = broker.publish(outgoing).await;
    let mut failed = Vec::new();
    let mut receipts = Vec::with_capacity(sent.len());
    let mut handed_on: Vec<(TaskId, String)> = Vec::with_capacity(sent.len());
    for (task, answer) in sent.into_iter().zip(answers) {
        match answer {
            Ok(()) => {
                metrics.dispatched(&task.model);
                handed_on.push((task.envelope.id, task.model));
                receipts.extend(task.receipt);
            }
            Err(failure) => {
                if failed.is_empty() {
                    warn!(%failure, task.model = %task.model, "a task was not taken by its queue");
                }
                failed.push(task);
            }
        }
    }
    // The record may say so once the copy is safe, and before the original is gone: a copy of the original that comes
    // again is then known to be one too many.
    if !handed_on.is_empty()
        && let Err(failure) = store.dispatched(handed_on).await
    {
        debug!(%failure, "the state was not written: it shows as queued until it runs");
        metrics.store_failed("dispatched");
    }
    broker::settle(receipts, Verdict::Ack).await;
    Dispatched { failed, unwritable }
}
