//! Writes how a workflow ended, tells whoever waits, and acks it last. Before that all of its steps have ended.

use std::sync::Arc;

use taskyard_shared::broker::{self, Broker, Need, Receipt, Verdict, publish_surely};
use taskyard_shared::messages;
use taskyard_shared::store::{Store, StoreError, WorkflowWrite};
use taskyard_shared::workflow::{WorkflowId, WorkflowOrder};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use taskyard_shared::retry::Backoff;

pub(super) struct Teller {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    pub closing: CancellationToken,
}

impl Teller {
    /// Answers which one it was.
    pub async fn finish(
        self,
        write: WorkflowWrite,
        order: WorkflowOrder,
        mut ending: JoinSet<bool>,
        receipt: Option<Receipt>,
    ) -> WorkflowId {
        let id = write.id;
        while let Some(is_told) = ending.join_next().await {
            if !is_told.unwrap_or(false) {
                // It comes again, and all of it is done anew.
                return id;
            }
        }
        let Some(record) = self.write(write).await else { return id };
        let told = order.replies().map(|reply| (messages::workflow_result(reply, id, record.clone()), Need::Reply));
        if publish_surely(&*self.broker, told.collect(), &self.closing).await.is_ok() {
            broker::settle(receipt.into_iter().collect(), Verdict::Ack).await;
        }
        id
    }

    /// The record of its end, which is another's when that was first. Nothing when closing.
    async fn write(&self, write: WorkflowWrite) -> Option<bytes::Bytes> {
        let mut tries = 0;
        loop {
            match self.store.write_workflow(write.clone()).await {
                Ok(None) => return Some(write.record),
                Ok(Some(ended)) => return Some(ended.record),
                Err(failure @ (StoreError::Refused(_) | StoreError::Corrupt(_) | StoreError::BadCursor)) => {
                    warn!(workflow.id = %write.id.0, %failure, "how a workflow ended cannot be kept, and is told all the same");
                    return Some(write.record);
                }
                Err(failure) => {
                    tries += 1;
                    if tries == 1 {
                        warn!(workflow.id = %write.id.0, %failure, "the end of a workflow waits for the store");
                    }
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep(Backoff::RECONNECT.delay(tries, fastrand::f64())) => {}
                        () = self.closing.cancelled() => return None,
                    }
                }
            }
        }
    }
}
