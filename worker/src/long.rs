//! Has the scheduler watch over attempts that last, so that no delivery is kept unacked for longer than the broker bears.

use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::broker::{self, Broker, Need, Verdict, publish_surely};
use taskyard_shared::{Topology, messages};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::held::Held;

/// Never, without a time.
pub(crate) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

pub(crate) struct Long {
    pub broker: Arc<dyn Broker>,
    pub topology: Topology,
    pub closing: CancellationToken,
    /// A delivery is kept for so long.
    pub most: Duration,
}

impl Long {
    /// When the deliveries of these tasks have been kept for long enough; `None` when none is kept.
    pub fn due<'a>(&self, tasks: impl Iterator<Item = &'a Held>) -> Option<Instant> {
        tasks.filter(|held| held.receipt.is_some()).map(|held| held.received + self.most).min()
    }

    /// Sends the tasks to their schedulers, and acks their deliveries once they are safe there. Each is another attempt's when its
    /// lease ends. Cancel safe: what was sent and not acked is owned twice, and settled once.
    pub async fn hand_on(&self, tasks: Vec<&mut Held>) {
        let (mut outgoing, mut sent) = (Vec::new(), Vec::new());
        for held in tasks {
            match messages::watch(&self.topology, held.envelope.shard, &held.envelope) {
                Ok(message) => {
                    outgoing.push((message, Need::Work));
                    sent.push(held);
                }
                Err(failure) => warn!(%failure, "a task that runs for long could not be handed on"),
            }
        }
        if publish_surely(&*self.broker, outgoing, &self.closing).await.is_ok() {
            info!(tasks = sent.len(), "run for long: their scheduler watches over them");
            let receipts = sent.into_iter().filter_map(|held| held.receipt.take()).collect();
            // By itself: the attempt may end meanwhile, with which this is dropped, and nobody else has the receipts.
            tokio::spawn(broker::settle(receipts, Verdict::Ack));
        }
    }
}
