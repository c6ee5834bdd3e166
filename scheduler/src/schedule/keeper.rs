//! Keeps the schedules of a yard: holds their messages, and writes down what changes of them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use taskyard_shared::broker::{
    self, Acker, Broker, BrokerError, Consumer, Delivery, Message, Need, Receipt, Verdict, publish_surely,
};
use taskyard_shared::dead::{Letter, Origin};
use taskyard_shared::messages::{self, MARK_TYPE};
use taskyard_shared::schedule::{ScheduleOrder, limits};
use taskyard_shared::store::Store;
use taskyard_shared::{Timestamp, Topology, wire};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::AskedOfSchedules;
use super::entry::{Entry, Key, Timetable};
use crate::metrics::Metrics;

/// Messages that are held: of each schedule one, and one that is on its way, with what was removed lately.
const PREFETCH: u16 = 4_000;
/// Those that were removed lately among them.
pub(super) const HELD_MOST: usize = 3_500;
const _: () = assert!(HELD_MOST > limits::SCHEDULES && (PREFETCH as usize) > HELD_MOST);
/// How long the end waits for the last that is written down.
const LAST_WRITE: Duration = Duration::from_secs(2);
/// Messages read at once.
const READ: usize = 256;

pub(crate) struct Keeper {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    pub topology: Topology,
    pub metrics: Metrics,
    /// Schedules that one tenant may have.
    pub most: usize,
    /// A delivery is held for no longer than this.
    pub patience: Duration,
    pub asked: mpsc::Receiver<AskedOfSchedules>,
    pub closing: CancellationToken,
}

impl Keeper {
    /// Keeps and fires them until the session is cut, or closing. What is not acked comes again.
    pub async fn run(mut self) -> Result<(), BrokerError> {
        let mut consumer = self.broker.consume(&self.topology.schedules(), PREFETCH).await?;
        let acker = consumer.acker();
        let mut table = Timetable::default();
        let answer = match self.read_all(&mut table, &mut *consumer, &acker).await {
            Ok(true) => self.go_on(&mut table, &mut *consumer, &acker).await,
            Ok(false) => Ok(()),
            Err(failure) => Err(failure),
        };
        self.metrics.schedules(0);
        answer
    }

    /// Reads what is there before anything is fired: of a schedule that was just changed there may be two messages. `false` when
    /// closing.
    async fn read_all(
        &self,
        table: &mut Timetable,
        consumer: &mut dyn Consumer,
        acker: &Arc<dyn Acker>,
    ) -> Result<bool, BrokerError> {
        let mark = Uuid::new_v4().to_string();
        let message = messages::schedules_mark(&self.topology, &mark);
        if publish_surely(&*self.broker, vec![(message, Need::Work)], &self.closing).await.is_err() {
            return Ok(false);
        }
        let mut is_read = false;
        loop {
            let deliveries = match is_read {
                false => tokio::select! {
                    biased;
                    () = self.closing.cancelled() => return Ok(false),
                    deliveries = consumer.next_batch(READ) => deliveries?,
                },
                // Beside the mark there may be what came by other channels.
                true => match consumer.next_batch(READ).now_or_never() {
                    Some(deliveries) => deliveries?,
                    None => break,
                },
            };
            for delivery in deliveries {
                is_read |= delivery.properties.message_id.as_ref() == Some(&mark);
                self.take(table, delivery, acker).await;
            }
        }
        info!(schedules = table.live().count(), "schedules are kept");
        Ok(true)
    }

    async fn go_on(
        &mut self,
        table: &mut Timetable,
        consumer: &mut dyn Consumer,
        acker: &Arc<dyn Acker>,
    ) -> Result<(), BrokerError> {
        loop {
            self.metrics.schedules(table.live().count());
            let quiet = table.quiet(Timestamp::now());
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return Ok(()),
                Some((ask, answer)) = self.asked.recv() => {
                    let Some(told) = self.answer(table, ask).await else { return Ok(()) };
                    let _gone = answer.send(told);
                }
                deliveries = consumer.next_batch(READ) => {
                    for delivery in deliveries? {
                        self.take(table, delivery, acker).await;
                    }
                }
                () = tokio::time::sleep(quiet) => {}
            }
            if !self.fire(table).await || !self.send_round(table).await {
                return Ok(());
            }
        }
    }

    /// A message that came: of what is known, or newer, or older.
    async fn take(&self, table: &mut Timetable, delivery: Delivery, acker: &Arc<dyn Acker>) {
        let Some(receipt) = Receipt::split(delivery.tag, acker, 1).pop() else { return };
        if delivery.properties.kind.as_deref() == Some(MARK_TYPE) {
            broker::settle(vec![receipt], Verdict::Ack).await;
            return;
        }
        let order = match ScheduleOrder::read(&delivery.body) {
            Ok(order) => order,
            Err(why) => return self.bury(delivery, receipt, &why).await,
        };
        let key = (order.tenant.clone(), order.name.clone());
        let known = table.get_mut(&key);
        let old = match known {
            Some(entry) if entry.order.revision > order.revision => Some(receipt),
            Some(entry) if entry.order.revision == order.revision => {
                // Its own copy comes once; a message that was confirmed late may have been published twice.
                let old = entry.receipt.replace(receipt);
                entry.since = Instant::now();
                old
            }
            Some(entry) => {
                let old = entry.receipt.take();
                table.put(key, Entry::new(order, Some(receipt)));
                old
            }
            None => {
                table.put(key, Entry::new(order, Some(receipt)));
                None
            }
        };
        if let Some(old) = old {
            broker::settle(vec![old], Verdict::Ack).await;
        }
    }

    async fn bury(&self, delivery: Delivery, receipt: Receipt, why: &wire::Unreadable) {
        warn!(code = why.code(), %why, "a message in the queue of schedules cannot be read");
        self.metrics.dead_lettered(why.code());
        let dead = Letter::of_order(Origin::Schedules, None, why, delivery.body).message(&self.topology);
        if publish_surely(&*self.broker, vec![(dead, Need::Work)], &self.closing).await.is_ok() {
            broker::settle(vec![receipt], Verdict::Ack).await;
        }
    }

    /// Writes down how these stand, and lets go of how they stood. `false` when closing: then nobody is to be told of it.
    pub(super) async fn write(&self, table: &mut Timetable, keys: &[Key]) -> bool {
        let mut copies: Vec<(Message, Need)> = Vec::with_capacity(keys.len());
        let mut old = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(entry) = table.get_mut(key) else { continue };
            entry.order.revision += 1;
            match messages::schedule(&self.topology, &entry.order) {
                Ok(message) => {
                    copies.push((message, Need::Work));
                    old.extend(entry.receipt.take());
                }
                Err(failure) => warn!(schedule = %entry.order.name, %failure, "a schedule cannot be written down"),
            }
        }
        if publish_surely(&*self.broker, copies.clone(), &self.closing).await.is_ok() {
            broker::settle(old, Verdict::Ack).await;
            keys.iter().for_each(|key| table.reckon(key));
            return true;
        }
        // Closing: once more, so that what was fired is not fired again by the next one. Receipts that are dropped unsettled
        // come again.
        let copies = copies.into_iter().map(|(copy, _)| copy).collect();
        if let Ok(answers) = tokio::time::timeout(LAST_WRITE, self.broker.publish(copies)).await
            && answers.iter().all(Result::is_ok)
        {
            broker::settle(old, Verdict::Ack).await;
        }
        false
    }

    /// What has been held for so long that the broker would lose patience. What was removed is let go of then. `false` when closing.
    async fn send_round(&self, table: &mut Timetable) -> bool {
        let held = table.held_for(self.patience);
        if held.is_empty() {
            return true;
        }
        let (removed, kept): (Vec<Key>, Vec<Key>) =
            held.into_iter().partition(|key| table.get(key).is_some_and(|entry| entry.order.removed));
        let mut receipts = Vec::new();
        for key in &removed {
            receipts.extend(table.get_mut(key).and_then(|entry| entry.receipt.take()));
            table.forget(key);
        }
        broker::settle(receipts, Verdict::Ack).await;
        self.write(table, &kept).await
    }
}
