//! One consumer: a channel of its own with a prefetch, batches of what is at hand, and acks of many at once.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt};
use lapin::Channel;
use lapin::message::Delivery as AmqpDelivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use tokio::runtime::Handle;

use super::convert::from_amqp;
use super::errors::{Failure, broker_error, timed_out, within};
use super::session::{Session, retire};
use crate::broker::{Acker, BrokerError, Consumer, Delivery, Tag, Verdict};

pub(super) struct RabbitConsumer {
    stream: lapin::Consumer,
    deliveries: Arc<Deliveries>,
    end: End,
}

/// How the stream of deliveries stands.
enum End {
    Open,
    /// To be told by the next call.
    Ended(BrokerError),
}

/// The deliveries that one consumer gave and nobody has settled.
pub(super) struct Deliveries {
    channel: Channel,
    session: Arc<Session>,
    /// [`Tag::session`].
    number: u64,
    outstanding: Mutex<BTreeSet<u64>>,
    /// Whether the broker may still be at the acks when they are written: in a quorum queue.
    acks_linger: bool,
    limit: Duration,
}

impl RabbitConsumer {
    pub(super) async fn open(
        session: Arc<Session>,
        queue: ShortString,
        prefetch: u16,
        number: u64,
        acks_linger: bool,
        limit: Duration,
    ) -> Result<Self, Failure> {
        let channel = session.channel(limit).await?;
        let stream = match Self::subscribe(&channel, queue, prefetch, limit).await {
            Ok(stream) => stream,
            Err(failure) => {
                retire(channel);
                return Err(failure);
            }
        };
        let outstanding = Mutex::default();
        let deliveries = Deliveries { channel, session, number, outstanding, acks_linger, limit };
        Ok(Self { stream, deliveries: Arc::new(deliveries), end: End::Open })
    }

    async fn subscribe(
        channel: &Channel,
        queue: ShortString,
        prefetch: u16,
        limit: Duration,
    ) -> Result<lapin::Consumer, Failure> {
        within(limit, channel.basic_qos(prefetch.max(1), BasicQosOptions { global: false })).await?;
        let options = BasicConsumeOptions { no_local: false, no_ack: false, exclusive: false, nowait: false };
        within(limit, channel.basic_consume(queue, ShortString::default(), options, FieldTable::default())).await
    }

    /// Why the stream of deliveries is at its end.
    fn ended(&self, error: Option<lapin::Error>) -> BrokerError {
        if let Some(reason) = self.deliveries.session.reason() {
            return reason;
        }
        match error.as_ref().map(broker_error) {
            // What was refused is this consumer (an ack that came too late, say), and it can be had again.
            Some(BrokerError::Refused(text)) => BrokerError::Cut(text),
            Some(other) => other,
            None => BrokerError::Cut("the queue is gone, or the broker cancelled the consumer".into()),
        }
    }
}

#[async_trait]
impl Consumer for RabbitConsumer {
    async fn next_batch(&mut self, most: usize) -> Result<Vec<Delivery>, BrokerError> {
        if let End::Ended(reason) = &self.end {
            return Err(reason.clone());
        }
        let most = most.max(1);
        let mut batch = Vec::new();
        // One poll takes everything at hand, so a dropped call has taken nothing.
        let end = std::future::poll_fn(|context| {
            while batch.len() < most {
                match self.stream.poll_next_unpin(context) {
                    Poll::Ready(Some(Ok(delivery))) => batch.push(delivery),
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Some(error))),
                    Poll::Ready(None) => return Poll::Ready(Some(None)),
                    Poll::Pending if batch.is_empty() => return Poll::Pending,
                    Poll::Pending => break,
                }
            }
            Poll::Ready(None)
        })
        .await;
        if let Some(error) = end {
            let reason = self.ended(error);
            self.end = End::Ended(reason.clone());
            // What came with the end is void already.
            return Err(reason);
        }
        Ok(self.deliveries.hand_out(batch))
    }

    fn acker(&self) -> Arc<dyn Acker> {
        self.deliveries.clone()
    }

    async fn cancel(&mut self) -> Result<(), BrokerError> {
        if let End::Ended(_) = self.end {
            return Ok(());
        }
        let limit = self.deliveries.limit;
        let cancelling = self.deliveries.channel.basic_cancel(self.stream.tag(), BasicCancelOptions::default());
        let cancelled = within(limit, cancelling).await;
        // Those that came and that nobody has seen go back at once: their owner may go on for long with what it has.
        let mut unseen = Vec::new();
        while let Some(Some(Ok(delivery))) = self.stream.next().now_or_never() {
            unseen.push(delivery);
        }
        let unseen = self.deliveries.hand_out(unseen);
        self.end = End::Ended(BrokerError::Closed);
        self.deliveries.settle(unseen.into_iter().map(|delivery| delivery.tag).collect(), Verdict::Requeue).await;
        cancelled.map_err(BrokerError::from)
    }
}

impl Drop for RabbitConsumer {
    fn drop(&mut self) {
        let deliveries = self.deliveries.clone();
        let (Ok(runtime), true) = (Handle::try_current(), deliveries.is_alive()) else { return };
        // lapin cancels a dropped consumer by itself, and takes it for the end of the connection when the channel is
        // closed just then. Kept until it is cancelled, it has nothing left to do.
        let stream = self.stream.clone();
        runtime.spawn(async move {
            let cancelling = deliveries.channel.basic_cancel(stream.tag(), BasicCancelOptions::default());
            // If that fails, the channel is gone or goes next.
            let _ = within(deliveries.limit, cancelling).await;
            drop(stream);
            if deliveries.acks_linger {
                deliveries.session.acks_done().await;
            }
            // With its channel everything unsettled goes back to the queue.
            retire(deliveries.channel.clone());
        });
    }
}

impl Deliveries {
    fn hand_out(&self, batch: Vec<AmqpDelivery>) -> Vec<Delivery> {
        let mut outstanding = self.outstanding.lock().unwrap_or_else(PoisonError::into_inner);
        let convert = |delivery: AmqpDelivery| {
            outstanding.insert(delivery.delivery_tag);
            Delivery {
                tag: Tag { session: self.number, number: delivery.delivery_tag },
                body: Bytes::from(delivery.data),
                properties: from_amqp(&delivery.properties),
                routing_key: delivery.routing_key.to_string(),
                redelivered: delivery.redelivered,
            }
        };
        batch.into_iter().map(convert).collect()
    }

    fn is_alive(&self) -> bool {
        self.session.is_alive() && self.channel.status().connected()
    }

    async fn send(&self, part: Part, verdict: Verdict) -> lapin::Result<()> {
        let Part { last, multiple, .. } = part;
        match verdict {
            Verdict::Ack => self.channel.basic_ack(last, BasicAckOptions { multiple }).await,
            Verdict::Requeue => self.channel.basic_nack(last, BasicNackOptions { multiple, requeue: true }).await,
        }
    }
}

type Sending<'a> = Pin<Box<dyn Future<Output = lapin::Result<()>> + Send + 'a>>;

#[async_trait]
impl Acker for Deliveries {
    async fn settle(&self, tags: Vec<Tag>, verdict: Verdict) -> usize {
        let (ours, others): (Vec<Tag>, Vec<Tag>) = tags.into_iter().partition(|tag| tag.session == self.number);
        let mut void = others.len();
        if !self.is_alive() {
            return void + ours.len();
        }
        let mut sending: Vec<(usize, Sending<'_>)> = Vec::new();
        {
            let mut outstanding = self.outstanding.lock().unwrap_or_else(PoisonError::into_inner);
            for part in parts(&mut outstanding, ours.into_iter().map(|tag| tag.number)) {
                let mut settling: Sending<'_> = Box::pin(self.send(part, verdict));
                // The first poll puts it into lapin's queue. It happens under the lock: an ack of all up to a tag must
                // not overtake one of a smaller tag, which the broker would then not know and close the channel for.
                match (&mut settling).now_or_never() {
                    Some(Ok(())) => {}
                    Some(Err(_)) => void += part.count,
                    None => sending.push((part.count, settling)),
                }
            }
        }
        if self.acks_linger {
            self.session.note_acks();
        }
        let (counts, sending): (Vec<usize>, Vec<Sending<'_>>) = sending.into_iter().unzip();
        match tokio::time::timeout(self.limit, join_all(sending)).await {
            Ok(sent) => {
                void +=
                    sent.iter().zip(&counts).filter(|(sent, _)| sent.is_err()).map(|(_, count)| count).sum::<usize>();
            }
            Err(_) => {
                // A connection that takes no acks is of no use, and its deliveries come again on the next one.
                self.session.fail(timed_out(self.limit));
                void += counts.iter().sum::<usize>();
            }
        }
        void
    }
}

/// One ack: of `last` alone, or of all up to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Part {
    last: u64,
    multiple: bool,
    /// Deliveries that it settles.
    count: usize,
}

/// Takes `tags` out of `outstanding`, as few acks as it can: all up to the first that stays, and the others one by one.
/// Tags that are not outstanding were settled before; the broker would close the channel over them.
fn parts(outstanding: &mut BTreeSet<u64>, tags: impl Iterator<Item = u64>) -> Vec<Part> {
    let settled: BTreeSet<u64> = tags.filter(|tag| outstanding.remove(tag)).collect();
    let stays = outstanding.first().copied().unwrap_or(u64::MAX);
    let count = settled.range(..stays).count();
    let first = settled.range(..stays).next_back().map(|last| Part { last: *last, multiple: count > 1, count });
    let others = settled.range(stays..).map(|last| Part { last: *last, multiple: false, count: 1 });
    first.into_iter().chain(others).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn alone(last: u64) -> Part {
        Part { last, multiple: false, count: 1 }
    }

    #[test]
    fn a_prefix_is_one_ack_and_the_others_are_their_own() {
        let mut outstanding: BTreeSet<u64> = (1..=9).collect();
        let taken = parts(&mut outstanding, [2, 9, 1, 3, 6].into_iter());
        assert_eq!(taken, [Part { last: 3, multiple: true, count: 3 }, alone(6), alone(9)]);
        assert_eq!(outstanding, [4, 5, 7, 8].into());
    }

    #[test]
    fn everything_is_one_ack_up_to_the_last_tag() {
        let mut outstanding: BTreeSet<u64> = [3, 4, 8].into();
        let taken = parts(&mut outstanding, [8, 3, 4].into_iter());
        assert_eq!(taken, [Part { last: 8, multiple: true, count: 3 }]);
    }

    #[test]
    fn settled_and_unknown_tags_are_not_sent() {
        let mut outstanding: BTreeSet<u64> = [5].into();
        assert_eq!(parts(&mut outstanding, [1, 5, 5, 77].into_iter()), [alone(5)]);
        assert_eq!(parts(&mut outstanding, [5].into_iter()), []);
    }

    proptest! {
        /// A broker that knows only `unacked` understands every ack, and afterwards holds what is outstanding.
        #[test]
        fn the_broker_always_knows_what_is_acked(
            rounds in prop::collection::vec(prop::collection::vec(1_u64..40, 0..20), 1..12),
        ) {
            let mut outstanding: BTreeSet<u64> = (1..40).collect();
            let mut unacked = outstanding.clone();
            for tags in rounds {
                for part in parts(&mut outstanding, tags.into_iter()) {
                    prop_assert!(unacked.contains(&part.last));
                    let before = unacked.len();
                    unacked.retain(|tag| if part.multiple { *tag > part.last } else { *tag != part.last });
                    prop_assert_eq!(before - unacked.len(), part.count);
                }
                prop_assert_eq!(&unacked, &outstanding);
            }
        }
    }
}
