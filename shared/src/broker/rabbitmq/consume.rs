//! One consumer: a channel of its own with a prefetch, batches of what is at hand, and acks of many at once.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt};
use lapin::Channel;
use lapin::message::Delivery as AmqpDelivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use tokio::runtime::Handle;

use super::convert::from_amqp;
use super::errors::{Failure, broker_error, timed_out, within};
use super::session::{Session, retire};
use crate::broker::{Acker, BrokerError, Consumer, Delivery, Tag, Verdict};

/// What a consumer takes of its queue.
#[derive(Clone, Copy)]
pub(super) struct Share {
    pub(super) prefetch: u16,
    /// Consumers of a larger one are filled first. 0 as everybody's.
    pub(super) priority: i16,
    /// Its acks may wait for one another.
    pub(super) is_patient: bool,
}

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

/// How long an ack waits for those before it, to be told to the broker with them in one.
const LATE: Duration = Duration::from_millis(100);
/// The share of the prefetch that may wait, so that those which do leave room enough for deliveries.
const LATE_SHARE: usize = 8;
/// Where acks wait, so many in one go at once.
const MANY: usize = 16;

/// The deliveries that one consumer gave and the broker has not been told of.
pub(super) struct Deliveries {
    /// For what is told later.
    me: Weak<Deliveries>,
    channel: Channel,
    session: Arc<Session>,
    /// [`Tag::session`].
    number: u64,
    book: Mutex<Book>,
    /// Whether the broker may still be at the acks when they are written: in a quorum queue.
    acks_linger: bool,
    limit: Duration,
}

impl RabbitConsumer {
    pub(super) async fn open(
        session: Arc<Session>,
        queue: ShortString,
        Share { prefetch, priority, is_patient }: Share,
        number: u64,
        acks_linger: bool,
        limit: Duration,
    ) -> Result<Self, Failure> {
        let channel = session.channel(limit).await?;
        let stream = match Self::subscribe(&channel, queue, prefetch, priority, limit).await {
            Ok(stream) => stream,
            Err(failure) => {
                retire(channel);
                return Err(failure);
            }
        };
        let deliveries = Arc::new_cyclic(|me| {
            let most_late = if is_patient { usize::from(prefetch) / LATE_SHARE } else { 0 };
            let (me, book) = (me.clone(), Mutex::new(Book { most_late, ..Book::default() }));
            Deliveries { me, channel, session, number, book, acks_linger, limit }
        });
        Ok(Self { stream, deliveries, end: End::Open })
    }

    async fn subscribe(
        channel: &Channel,
        queue: ShortString,
        prefetch: u16,
        priority: i16,
        limit: Duration,
    ) -> Result<lapin::Consumer, Failure> {
        let mut arguments = FieldTable::default();
        if priority != 0 {
            arguments.insert("x-priority".into(), AMQPValue::ShortInt(priority));
        }
        within(limit, channel.basic_qos(prefetch.max(1), BasicQosOptions { global: false })).await?;
        let options = BasicConsumeOptions { no_local: false, no_ack: false, exclusive: false, nowait: false };
        within(limit, channel.basic_consume(queue, ShortString::default(), options, arguments)).await
    }

    /// The next delivery at hand; it is yet to be [handed out](Deliveries::hand_out).
    pub(super) fn poll_delivery(&mut self, context: &mut Context<'_>) -> Poll<Result<AmqpDelivery, BrokerError>> {
        if let End::Ended(reason) = &self.end {
            return Poll::Ready(Err(reason.clone()));
        }
        let error = match std::task::ready!(self.stream.poll_next_unpin(context)) {
            Some(Ok(delivery)) => return Poll::Ready(Ok(delivery)),
            Some(Err(error)) => Some(error),
            None => None,
        };
        let reason = self.ended(error);
        self.end = End::Ended(reason.clone());
        Poll::Ready(Err(reason))
    }

    pub(super) fn deliveries(&self) -> &Arc<Deliveries> {
        &self.deliveries
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
        let most = most.max(1);
        let mut batch = Vec::new();
        // One poll takes everything at hand, so a dropped call has taken nothing.
        let ended = std::future::poll_fn(|context| {
            while batch.len() < most {
                match self.poll_delivery(context) {
                    Poll::Ready(Ok(delivery)) => batch.push(delivery),
                    Poll::Ready(Err(reason)) => return Poll::Ready(Err(reason)),
                    Poll::Pending if batch.is_empty() => return Poll::Pending,
                    Poll::Pending => break,
                }
            }
            Poll::Ready(Ok(()))
        });
        // What came with the end is void already.
        ended.await?;
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
        self.deliveries.wait_no_more();
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
        deliveries.wait_no_more();
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

/// What was delivered and is not settled, and what is settled and not told.
#[derive(Default)]
struct Book {
    outstanding: BTreeSet<u64>,
    /// Acks that wait for those before them.
    late: BTreeSet<u64>,
    /// Somebody is going to tell the late ones.
    is_due: bool,
    /// Acks that may wait. None when the consumer is at its end.
    most_late: usize,
}

impl Deliveries {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn hand_out(&self, batch: Vec<AmqpDelivery>) -> Vec<Delivery> {
        let mut book = self.book();
        let convert = |delivery: AmqpDelivery| {
            book.outstanding.insert(delivery.delivery_tag);
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

    /// [`Tag::session`] of its deliveries.
    pub(super) fn number(&self) -> u64 {
        self.number
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

    /// Puts parts into lapin's queue. It happens under the book's lock: an ack of all up to a tag must not overtake one of
    /// a smaller tag, which the broker would then not know and close the channel for. Answers what is not written yet, and
    /// how many deliveries could not be told.
    fn tell(&self, parts: Vec<Part>, verdict: Verdict) -> (Vec<(usize, Sending<'_>)>, usize) {
        let (mut sending, mut void) = (Vec::new(), 0);
        for part in parts {
            let mut settling: Sending<'_> = Box::pin(self.send(part, verdict));
            // The first poll puts it into the queue.
            match (&mut settling).now_or_never() {
                Some(Ok(())) => {}
                Some(Err(_)) => void += part.count,
                None => sending.push((part.count, settling)),
            }
        }
        (sending, void)
    }

    /// Tells the acks that waited for others, and lets none wait from now on.
    fn wait_no_more(&self) {
        let mut book = self.book();
        book.most_late = 0;
        self.tell_late(book);
    }

    fn tell_late(&self, mut book: MutexGuard<'_, Book>) {
        book.is_due = false;
        let parts = book.all_late();
        if !parts.is_empty() && self.is_alive() {
            // What lapin has not written when its channel goes is void, as it is with every ack.
            drop(self.tell(parts, Verdict::Ack));
        }
    }

    async fn finish(&self, sending: Vec<(usize, Sending<'_>)>) -> usize {
        let (counts, sending): (Vec<usize>, Vec<Sending<'_>>) = sending.into_iter().unzip();
        match tokio::time::timeout(self.limit, join_all(sending)).await {
            Ok(sent) => sent.iter().zip(&counts).filter(|(sent, _)| sent.is_err()).map(|(_, count)| count).sum(),
            Err(_) => {
                // A connection that takes no acks is of no use, and its deliveries come again on the next one.
                self.session.fail(timed_out(self.limit));
                counts.iter().sum()
            }
        }
    }
}

type Sending<'a> = Pin<Box<dyn Future<Output = lapin::Result<()>> + Send + 'a>>;

#[async_trait]
impl Acker for Deliveries {
    async fn settle(&self, tags: Vec<Tag>, verdict: Verdict) -> usize {
        let (ours, others): (Vec<Tag>, Vec<Tag>) = tags.into_iter().partition(|tag| tag.session == self.number);
        if !self.is_alive() {
            return others.len() + ours.len();
        }
        let (sending, void) = {
            let mut book = self.book();
            let numbers = ours.into_iter().map(|tag| tag.number);
            let parts = match verdict {
                Verdict::Ack => book.ack(numbers),
                Verdict::Requeue => {
                    // Giving back all up to a tag must not take an ack with it that was not told yet.
                    drop(self.tell(book.all_late(), Verdict::Ack));
                    parts(&mut book.outstanding, numbers)
                }
            };
            if !book.late.is_empty() && !book.is_due {
                book.is_due = true;
                let me = self.me.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(LATE).await;
                    if let Some(me) = me.upgrade() {
                        me.tell_late(me.book());
                    }
                });
            }
            self.tell(parts, verdict)
        };
        if self.acks_linger {
            self.session.note_acks();
        }
        others.len() + void + self.finish(sending).await
    }
}

impl Book {
    /// Settles tags, and answers what is to be told now: everything up to the first that is not settled, if it is worth
    /// telling. The rest is late.
    fn ack(&mut self, tags: impl Iterator<Item = u64>) -> Vec<Part> {
        let Self { outstanding, late, most_late, .. } = self;
        // Tags that are not outstanding were settled before; the broker would close the channel over them.
        late.extend(tags.filter(|tag| outstanding.remove(tag)));
        let stays = outstanding.first().copied().unwrap_or(u64::MAX);
        let behind = late.split_off(&stays);
        if behind.len() > *most_late {
            late.extend(behind);
            return self.all_late();
        }
        if *most_late > 0 && late.len() < MANY {
            late.extend(behind);
            return Vec::new();
        }
        prefix(&std::mem::replace(late, behind), stays).into_iter().collect()
    }

    /// Takes everything that is late, as few acks as it can.
    fn all_late(&mut self) -> Vec<Part> {
        fewest(&std::mem::take(&mut self.late), &self.outstanding)
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

/// Takes `tags` out of `outstanding`, as few parts as it can. Tags that are not outstanding were settled before; the
/// broker would close the channel over them.
fn parts(outstanding: &mut BTreeSet<u64>, tags: impl Iterator<Item = u64>) -> Vec<Part> {
    let settled: BTreeSet<u64> = tags.filter(|tag| outstanding.remove(tag)).collect();
    fewest(&settled, outstanding)
}

/// All up to the first that stays are one part, and the others one each.
fn fewest(settled: &BTreeSet<u64>, outstanding: &BTreeSet<u64>) -> Vec<Part> {
    let stays = outstanding.first().copied().unwrap_or(u64::MAX);
    let others = settled.range(stays..).map(|last| Part { last: *last, multiple: false, count: 1 });
    prefix(settled, stays).into_iter().chain(others).collect()
}

fn prefix(settled: &BTreeSet<u64>, stays: u64) -> Option<Part> {
    let count = settled.range(..stays).count();
    settled.range(..stays).next_back().map(|last| Part { last: *last, multiple: count > 1, count })
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

    #[test]
    fn an_ack_waits_for_those_before_it_and_goes_with_them() {
        let mut book = Book { outstanding: (1..=60).collect(), most_late: 20, ..Book::default() };
        assert_eq!(book.ack(3..=4), []);
        assert_eq!(book.ack(1..=1), [], "too few to be worth it");
        assert_eq!(book.ack(5..=16), []);
        assert_eq!(book.ack(2..=2), [Part { last: 16, multiple: true, count: 16 }]);
        assert_eq!(book.ack(18..=37), []);
        let told = book.ack(40..=40);
        assert_eq!(told, (18..=37).chain([40]).map(alone).collect::<Vec<_>>(), "more than may wait");
        assert_eq!(book.ack(17..=17), []);
        assert_eq!(book.all_late(), [alone(17)]);
        book.most_late = 0;
        assert_eq!(book.ack(50..=50), [alone(50)]);
        assert_eq!(book.ack(38..=39), [Part { last: 39, multiple: true, count: 2 }]);
    }

    proptest! {
        /// The same with acks that wait, told at any time.
        #[test]
        fn the_broker_always_knows_what_is_acked_late(
            rounds in prop::collection::vec((prop::collection::vec(1_u64..40, 0..20), any::<bool>()), 1..12),
        ) {
            let mut book = Book { outstanding: (1..40).collect(), most_late: 8, ..Book::default() };
            let mut unacked: BTreeSet<u64> = (1..40).collect();
            for (tags, late_too) in rounds {
                let mut told = book.ack(tags.into_iter());
                if late_too {
                    told.extend(book.all_late());
                    prop_assert!(book.late.is_empty());
                }
                for part in told {
                    prop_assert!(unacked.contains(&part.last));
                    let before = unacked.len();
                    unacked.retain(|tag| if part.multiple { *tag > part.last } else { *tag != part.last });
                    prop_assert_eq!(before - unacked.len(), part.count);
                }
                let known: BTreeSet<u64> = book.outstanding.union(&book.late).copied().collect();
                prop_assert_eq!(&unacked, &known);
            }
        }

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
