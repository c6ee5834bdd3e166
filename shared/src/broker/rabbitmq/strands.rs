//! A consumer of many deliveries, over several channels.
//!
//! RabbitMQ keeps the unacked deliveries of a channel in one queue, and looks for an acked one from its front. Whoever
//! holds tens of thousands and acks them in another order makes it walk past them every time: half a millisecond of the
//! broker's time for each ack. Dealt out over several channels, each walk is as much shorter.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use async_trait::async_trait;

use super::consume::{Deliveries, RabbitConsumer};
use crate::broker::{Acker, BrokerError, Consumer, Delivery, Tag, Verdict};

/// Unacked deliveries for which one more channel is worth it.
const STRAND: u16 = 1024;
const MOST_STRANDS: u16 = 16;

/// How many channels a prefetch is dealt out over.
pub(super) fn strands(prefetch: u16) -> u16 {
    (prefetch / STRAND).clamp(1, MOST_STRANDS)
}

pub(super) struct Strands {
    strands: Vec<RabbitConsumer>,
    /// Whose turn it is. The broker deals out in turns, so reading in turns keeps the queue's order.
    turn: usize,
    acker: Arc<StrandsAcker>,
}

impl Strands {
    pub(super) fn new(strands: Vec<RabbitConsumer>) -> Self {
        let deliveries = strands.iter().map(|strand| strand.deliveries().clone()).collect();
        Self { strands, turn: 0, acker: Arc::new(StrandsAcker(deliveries)) }
    }
}

#[async_trait]
impl Consumer for Strands {
    async fn next_batch(&mut self, most: usize) -> Result<Vec<Delivery>, BrokerError> {
        let Self { strands, turn, .. } = self;
        let most = most.max(1);
        let mut batch = Vec::new();
        // One poll takes everything at hand, so a dropped call has taken nothing.
        let taken = poll_fn(|context| {
            let mut without = 0;
            while batch.len() < most && without < strands.len() {
                match strands[*turn].poll_delivery(context) {
                    Poll::Ready(Ok(delivery)) => {
                        batch.extend(strands[*turn].deliveries().hand_out(vec![delivery]));
                        without = 0;
                    }
                    Poll::Ready(Err(reason)) => return Poll::Ready(Err(reason)),
                    Poll::Pending => without += 1,
                }
                *turn = (*turn + 1) % strands.len();
            }
            if batch.is_empty() { Poll::Pending } else { Poll::Ready(Ok(())) }
        });
        // With one strand all of them are at their end, as their owner sees it.
        taken.await?;
        Ok(batch)
    }

    fn acker(&self) -> Arc<dyn Acker> {
        self.acker.clone()
    }

    async fn cancel(&mut self) -> Result<(), BrokerError> {
        let mut cancelled = Ok(());
        for strand in &mut self.strands {
            cancelled = cancelled.and(strand.cancel().await);
        }
        cancelled
    }
}

struct StrandsAcker(Vec<Arc<Deliveries>>);

#[async_trait]
impl Acker for StrandsAcker {
    async fn settle(&self, mut tags: Vec<Tag>, verdict: Verdict) -> usize {
        let mut void = 0;
        for strand in &self.0 {
            let own: Vec<Tag> = tags.extract_if(.., |tag| tag.session == strand.number()).collect();
            if !own.is_empty() {
                void += strand.settle(own, verdict).await;
            }
        }
        // Those of other consumers.
        void + tags.len()
    }
}

#[cfg(test)]
mod tests {
    use super::strands;

    #[test]
    fn a_small_prefetch_is_not_dealt_out() {
        assert_eq!([1, 256, 2_047, 2_048, 60_000, u16::MAX].map(strands), [1, 1, 1, 2, 16, 16]);
    }
}
