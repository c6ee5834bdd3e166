//! What comes to intake and is no plain task: workflows as they were published, and steps of workflows that run.

use std::sync::Arc;

use bytes::Bytes;
use taskyard_shared::broker::{Acker, Delivery, Message, Need, Receipt, Verdict, publish_surely};
use taskyard_shared::dead::Letter;
use taskyard_shared::store::{WorkflowAccepted, WorkflowWrite};
use taskyard_shared::workflow::WorkflowOrder;
use taskyard_shared::{Carried, Invalid, TaskId, Timestamp, messages, wire};
use tracing::warn;

use crate::intake::{Intake, Taken, unreadable};
use crate::shard::shard_of;

/// Code and message of one whose id is another's.
pub(super) const CONFLICT: (&str, &str) =
    ("conflict", "a workflow of this id, or this idempotency key, was accepted with another content");

impl Intake {
    /// Takes a workflow in: checked, recorded, and put into the queue of the shard that runs it. Acked once it is safe there.
    pub async fn take_workflow(&self, delivery: Delivery, carried: Carried, acker: &Arc<dyn Acker>) {
        let now = Timestamp::now();
        let read = match unreadable(&delivery.properties) {
            Some(invalid) => Err(invalid),
            None => WorkflowOrder::read(&delivery.body, &carried, now),
        };
        let outgoing = match read {
            Ok((order, plan)) => {
                let (id, fingerprint) = (order.id, order.fingerprint(&plan));
                let reply = order.reply.clone();
                let accepted = match WorkflowWrite::new(&order.queued(plan), fingerprint) {
                    Ok(write) => self.store.accept_workflow(write).await,
                    Err(failure) => {
                        return warn!(%failure, "a workflow cannot be written down: it is left in the queue");
                    }
                };
                match accepted {
                    Ok(WorkflowAccepted::Known(seen)) if seen.has_ended => reply
                        .iter()
                        .map(|reply| (messages::workflow_result(reply, id, seen.record.clone()), Need::Reply))
                        .collect(),
                    Ok(WorkflowAccepted::Conflict(_)) => {
                        warn!(workflow.id = %id.0, "the same id came with another content: the first one stands");
                        self.refusal(
                            &Carried { message_id: Some(id.0.to_string()), ..carried },
                            CONFLICT.0,
                            CONFLICT.1.to_owned(),
                            now,
                        )
                    }
                    // One that is known may be in the queue or not; there it is told apart.
                    known => {
                        if let Err(failure) = known {
                            warn!(%failure, "a workflow is taken in without the store");
                            self.metrics.store_failed("accept_workflow");
                        }
                        match messages::workflow(&self.topology, shard_of(id.0, self.shards), &order) {
                            Ok(message) => vec![(message, Need::Work)],
                            Err(failure) => self.refusal(&carried, "unwritable", failure.to_string(), now),
                        }
                    }
                }
            }
            Err(invalid) => self.bury_workflow(&delivery, &carried, &invalid, now),
        };
        if publish_surely(&*self.broker, outgoing, &self.closing).await.is_ok() {
            acker.settle(vec![delivery.tag], Verdict::Ack).await;
        }
    }

    fn refusal(&self, carried: &Carried, code: &str, message: String, now: Timestamp) -> Vec<(Message, Need)> {
        let Some(reply) = &carried.reply else { return Vec::new() };
        let record = WorkflowOrder::refused(carried, code, message, now);
        let written = serde_json::to_vec(&record).map(Bytes::from);
        written.map(|written| (messages::workflow_result(reply, record.id, written), Need::Reply)).into_iter().collect()
    }

    fn bury_workflow(
        &self,
        delivery: &Delivery,
        carried: &Carried,
        invalid: &Invalid,
        now: Timestamp,
    ) -> Vec<(Message, Need)> {
        warn!(code = invalid.code, field = %invalid.field, "a published workflow cannot be taken");
        self.metrics.dead_lettered(invalid.code);
        let mut outgoing = self.refusal(carried, invalid.code, invalid.to_string(), now);
        let id = carried.message_id.as_ref().and_then(|id| id.parse().ok()).map(TaskId);
        let letter =
            Letter::of_published(&delivery.properties, id, invalid.code, &invalid.to_string(), delivery.body.clone());
        outgoing.push((letter.message(&self.topology), Need::Work));
        outgoing
    }

    /// Steps that are to run now.
    pub async fn take_steps(&self, delivery: Delivery, acker: &Arc<dyn Acker>, taken: &mut Vec<Taken>) {
        let known = match wire::read_envelopes(&delivery.body) {
            // Only schedulers make copies.
            Ok(envelopes)
                if envelopes.iter().all(|one| one.extras.workflow.is_some() && one.extras.mirrors.is_none()) =>
            {
                Ok(envelopes)
            }
            Ok(_) => Err(("unreadable", "an envelope that is no step".to_owned())),
            Err(unreadable) => Err((unreadable.code(), unreadable.to_string())),
        };
        match known {
            Ok(envelopes) => {
                let receipts = Receipt::split(delivery.tag, acker, envelopes.len());
                let redelivered = delivery.redelivered;
                taken.extend(envelopes.into_iter().zip(receipts).map(|(envelope, receipt)| Taken {
                    envelope: Box::new(envelope),
                    receipt,
                    redelivered,
                    is_counted: true,
                }));
            }
            Err((code, detail)) => {
                warn!(code, detail, "steps of workflows cannot be read");
                self.metrics.dead_lettered(code);
                let dead = Letter::of_internal(code, &detail, delivery.body).message(&self.topology);
                if publish_surely(&*self.broker, vec![(dead, Need::Work)], &self.closing).await.is_ok() {
                    acker.settle(vec![delivery.tag], Verdict::Ack).await;
                }
            }
        }
    }
}
