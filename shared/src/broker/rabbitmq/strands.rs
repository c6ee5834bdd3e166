//! A consumer of many deliveries, over several channels.
//!
//! RabbitMQ keeps the unacked deliveries of a channel in one queue, and looks for an acked one from its front. Whoever
//! holds tens of thousands and acks them in another order makes it walk past them every time: half a millisecond of the
//! broker's time for each ack. Dealt out over several channels, each walk is as much shorter. The channels are filled one
//! after the other, by consumer priority, so that few deliveries all come by the first of them and in the queue's order;
//! where one channel is full and the next one begins, some may come before others.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use async_trait::async_trait;

use super::consume::{Deliveries, RabbitConsumer};
use crate::broker::{Acker, BrokerError, Consumer, Delivery, Tag, Verdict};

/// Unacked deliveries that one channel has at least, where there are several.
const STRAND: u16 = 512;
const MOST_STRANDS: u16 = 64;

/// How many channels a prefetch is dealt out over.
pub(super) fn strands(prefetch: u16) -> u16 {
    (prefetch / STRAND).clamp(1, MOST_STRANDS)
}

pub(super) struct Strands {
    /// In the order in which they are filled.
    strands: Vec<RabbitConsumer>,
    acker: Arc<StrandsAcker>,
}

impl Strands {
    pub(super) fn new(strands: Vec<RabbitConsumer>) -> Self {
        let deliveries = strands.iter().map(|strand| strand.deliveries().clone()).collect();
        Self { strands, acker: Arc::new(StrandsAcker(deliveries)) }
    }
}

#[async_trait]
impl Consumer for Strands {
    async fn next_batch(&mut self, most: usize) -> Result<Vec<Delivery>, BrokerError> {
        let most = most.max(1);
        let mut batch = Vec::new();
        // One poll takes everything at hand, so a dropped call has taken nothing.
        let taken = poll_fn(|context| {
            for strand in &mut self.strands {
                let mut own = Vec::new();
                while batch.len() + own.len() < most {
                    match strand.poll_delivery(context) {
                        Poll::Ready(Ok(delivery)) => own.push(delivery),
                        Poll::Ready(Err(reason)) => return Poll::Ready(Err(reason)),
                        Poll::Pending => break,
                    }
                }
                if !own.is_empty() {
                    batch.extend(strand.deliveries().hand_out(own));
                }
            }
            if batch.is_empty() { Poll::Pending } else { Poll::Ready(Ok(())) }
        });
        // The end of one strand is the end of all, as their owner sees it.
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
        tags.sort_unstable();
        let mut void = 0;
        for own in tags.chunk_by(|left, right| left.session == right.session) {
            void += match self.0.iter().find(|strand| strand.number() == own[0].session) {
                Some(strand) => strand.settle(own.to_vec(), verdict).await,
                None => own.len(),
            };
        }
        void
    }
}

#[cfg(test)]
mod tests {
    use super::strands;

    #[test]
    fn a_small_prefetch_is_not_dealt_out() {
        assert_eq!([1, 256, 1_023, 1_024, 60_000, u16::MAX].map(strands), [1, 1, 1, 2, 64, 64]);
    }
}
