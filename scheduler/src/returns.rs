//! Reads what comes back to the scheduler: envelopes to be tried again or held on, and completions.

use std::sync::Arc;

use taskyard_shared::broker::{Acker, Broker, BrokerError, Consumer, Delivery, Need, Receipt, Verdict, publish_surely};
use taskyard_shared::dead::Letter;
use taskyard_shared::load::Completion;
use taskyard_shared::store::{Accepted, Store};
use taskyard_shared::{State, Topology, messages, wire};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::core::Event;
use crate::held::Held;
use crate::metrics::Metrics;

/// Most messages read at once.
const READ: usize = 512;
/// Completions are acked as they come, so few are ever out.
const COMPLETIONS_PREFETCH: u16 = 256;

pub(crate) struct Returns {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    pub topology: Topology,
    pub metrics: Metrics,
    pub events: mpsc::Sender<Event>,
    pub closing: CancellationToken,
    /// The core has ended: nothing is acked any more.
    pub ended: CancellationToken,
}

impl Returns {
    /// Reads what is to be tried again, until the session is cut, or closing.
    pub async fn retries(self, prefetch: u16) -> Result<(), BrokerError> {
        let queue = self.topology.retry();
        self.envelopes(&queue, prefetch, Event::Returned).await
    }

    /// Reads what the scheduler of a shard sent to itself, until the session is cut, or closing.
    pub async fn rounds(self, shard: u32, prefetch: u16) -> Result<(), BrokerError> {
        let queue = self.topology.round(shard);
        self.envelopes(&queue, prefetch, Event::CameRound).await
    }

    async fn envelopes(&self, queue: &str, prefetch: u16, event: fn(Vec<Held>) -> Event) -> Result<(), BrokerError> {
        let mut consumer = self.broker.consume(queue, prefetch).await?;
        self.read_on(&mut *consumer, event).await?;
        // With its consumer all that is not acked goes back, and what is being dispatched would run twice.
        self.ended.cancelled().await;
        Ok(())
    }

    async fn read_on(&self, consumer: &mut dyn Consumer, event: fn(Vec<Held>) -> Event) -> Result<(), BrokerError> {
        let acker = consumer.acker();
        loop {
            let deliveries = tokio::select! {
                biased;
                () = self.closing.cancelled() => return Ok(()),
                deliveries = consumer.next_batch(READ) => deliveries?,
            };
            let mut tasks = Vec::with_capacity(deliveries.len());
            let mut running = Vec::new();
            for delivery in deliveries {
                let runs = delivery.properties.headers.contains_key(messages::RUNS_HEADER);
                match wire::read_envelopes(&delivery.body) {
                    Ok(envelopes) => {
                        let receipts = Receipt::split(delivery.tag, &acker, envelopes.len());
                        for (envelope, receipt) in envelopes.into_iter().zip(receipts) {
                            let task = Held {
                                envelope: Box::new(envelope),
                                receipt: Some(receipt),
                                since: Instant::now(),
                                is_known: true,
                                page: None,
                                expected: None,
                                model: String::new(),
                            };
                            if runs { running.push(task) } else { tasks.push(task) }
                        }
                    }
                    Err(reason) => self.bury(delivery, &acker, reason.code(), &reason.to_string()).await,
                }
            }
            if !running.is_empty() && self.events.send(Event::Runs(running)).await.is_err() {
                return Ok(());
            }
            let (tasks, unwanted) = self.as_asked(tasks).await;
            if !unwanted.is_empty() && self.events.send(Event::Unwanted(unwanted)).await.is_err() {
                return Ok(());
            }
            if self.events.send(event(tasks)).await.is_err() {
                return Ok(());
            }
        }
    }

    /// What was asked of a task while nobody read it stands in its record: its priority, and whether it is wanted.
    async fn as_asked(&self, mut tasks: Vec<Held>) -> (Vec<Held>, Vec<Held>) {
        let accepted = match self.store.accept(tasks.iter().map(Held::accept_again).collect()).await {
            Ok(accepted) => accepted,
            Err(failure) => {
                debug!(%failure, "tasks come back without a look at their records");
                self.metrics.store_failed("accept");
                return (tasks, Vec::new());
            }
        };
        let mut unwanted = Vec::new();
        let mut wanted = Vec::with_capacity(tasks.len());
        for (mut task, accepted) in tasks.drain(..).zip(accepted) {
            match accepted {
                Accepted::Unwanted(_) => unwanted.push(task),
                Accepted::Known(record) if record.state == State::Cancelled => unwanted.push(task),
                Accepted::Known(record) if !record.state.is_terminal() => {
                    task.envelope.priority = record.priority;
                    wanted.push(task);
                }
                Accepted::New | Accepted::Known(_) | Accepted::Conflict(_) => wanted.push(task),
            }
        }
        (wanted, unwanted)
    }

    /// Reads a shard's completions until the session is cut, or closing.
    pub async fn completions(self, shard: u32) -> Result<(), BrokerError> {
        let mut consumer = self.broker.consume(&self.topology.completions(shard), COMPLETIONS_PREFETCH).await?;
        let acker = consumer.acker();
        loop {
            let deliveries = tokio::select! {
                biased;
                () = self.closing.cancelled() => return Ok(()),
                deliveries = consumer.next_batch(READ) => deliveries?,
            };
            let mut all = Vec::new();
            for delivery in &deliveries {
                match wire::read_all::<Completion>(&delivery.body) {
                    Ok(completions) => all.extend(completions),
                    Err(failure) => warn!(%failure, "a message of completions cannot be read and is dropped"),
                }
            }
            if self.events.send(Event::Completed(all)).await.is_err() {
                return Ok(());
            }
            // Losing one costs a credit for a while: it is acked as soon as it was read.
            acker.settle(deliveries.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
        }
    }

    async fn bury(&self, delivery: Delivery, acker: &Arc<dyn Acker>, code: &str, detail: &str) {
        warn!(code, detail, "a returned message cannot be read");
        self.metrics.dead_lettered(code);
        let dead = Letter::of_internal(code, detail, delivery.body).message(&self.topology);
        if publish_surely(&*self.broker, vec![(dead, Need::Work)], &self.closing).await.is_ok() {
            acker.settle(vec![delivery.tag], Verdict::Ack).await;
        }
    }
}
