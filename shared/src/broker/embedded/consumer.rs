//! A consumer and its acker: sessions of a queue as the port has them.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::queue::{Given, Queue, Taken, weight};
use super::{Shared, Tag};
use crate::broker::operations::count;
use crate::broker::{Acker, BrokerError, Consumer, Delivery, Verdict};

pub(super) struct EmbeddedConsumer {
    acker: Arc<EmbeddedAcker>,
    room: Arc<Notify>,
    cancelled: bool,
}

impl EmbeddedConsumer {
    pub fn new(shared: Arc<Shared>, queue: Arc<Queue>, session: u64, prefetch: u16) -> Result<Self, BrokerError> {
        let room = queue.add_consumer(session, prefetch).ok_or(BrokerError::Closed)?;
        Ok(Self { acker: Arc::new(EmbeddedAcker { shared, queue, session }), room, cancelled: false })
    }
}

#[async_trait]
impl Consumer for EmbeddedConsumer {
    async fn next_batch(&mut self, most: usize) -> Result<Vec<Delivery>, BrokerError> {
        let EmbeddedAcker { shared, queue, session } = &*self.acker;
        loop {
            // Made before looking, so that nothing that arrives after the look is missed.
            let arrived = queue.arrived.notified();
            match queue.take(*session, most) {
                Taken::Given(given) => {
                    count(&shared.operations.delivered, given.len() as u64);
                    let bytes = given.iter().map(|given| given.content.body.len() as u64).sum();
                    count(&shared.operations.bytes_received, bytes);
                    return Ok(given.into_iter().map(|given| deliver(*session, given)).collect());
                }
                Taken::Empty => arrived.await,
                Taken::NoRoom => self.room.notified().await,
                Taken::Gone if self.cancelled => return Err(BrokerError::Cut("the consumer was cancelled".into())),
                Taken::Gone => return Err(BrokerError::Closed),
            }
        }
    }

    fn acker(&self) -> Arc<dyn Acker> {
        self.acker.clone()
    }

    async fn cancel(&mut self) -> Result<(), BrokerError> {
        self.cancelled = true;
        self.acker.queue.stop_consumer(self.acker.session);
        Ok(())
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        self.acker.queue.remove_consumer(self.acker.session);
    }
}

fn deliver(session: u64, given: Given) -> Delivery {
    let Given { number, content, redelivered } = given;
    Delivery {
        tag: Tag { session, number },
        body: content.body.clone(),
        properties: content.properties.clone(),
        routing_key: content.routing_key.to_string(),
        redelivered,
    }
}

struct EmbeddedAcker {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    session: u64,
}

#[async_trait]
impl Acker for EmbeddedAcker {
    async fn settle(&self, tags: Vec<Tag>, verdict: Verdict) -> usize {
        let operations = &self.shared.operations;
        match verdict {
            Verdict::Ack => count(&operations.acks, 1),
            Verdict::Requeue => count(&operations.requeues, 1),
        }
        let own = tags.iter().filter(|tag| tag.session == self.session);
        let foreign = tags.len() - own.clone().count();
        let Some(acked) = self.queue.settle(self.session, own.map(|tag| tag.number), verdict) else {
            return tags.len();
        };
        if let Some(journal) = &self.shared.journal {
            journal.kill(acked.iter().filter_map(|entry| entry.address));
        }
        self.shared.release(weight(&acked));
        foreign
    }
}
