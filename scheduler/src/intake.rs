//! Reads what was published, as fast as it comes: decodes it, takes each task in once, and passes it on to be admitted.
//!
//! What cannot be read goes to the dead letters with its reason, and whoever can be told is told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::broker::{
    self, Acker, Broker, BrokerError, Consumer, Delivery, Need, Properties, Receipt, Verdict, publish_surely,
};
use taskyard_shared::dead::{self, Letter};
use taskyard_shared::events::Events;
use taskyard_shared::messages::{self, COUNTED_HEADER, STEPS_HEADER, WORKFLOW_TYPE};
use taskyard_shared::retry::Backoff;
use taskyard_shared::store::{Accept, Accepted, Store};
use taskyard_shared::{
    Carried, Envelope, Invalid, Kind, Priority, State, TaskError, TaskId, TaskResult, Timestamp, Timings, Topology,
    decode_tasks,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::ahead::{Ahead, Counting};
use crate::clock::Distinct;
use crate::core::Event;
use crate::finish;
use crate::held::Held;
use crate::metrics::Metrics;
use crate::quotas::Quotas;
use crate::room::Room;
use crate::shard::shard_of;

/// Most messages read at once, and most tasks that are taken in together, but for the rest of a message.
const READ: usize = 512;
/// Most bytes of those, but for one message.
const READ_BYTES: usize = 4 << 20;
/// So often it is looked whether more is to be asked for though nothing comes.
const LOOK: Duration = Duration::from_millis(200);
/// When nothing has come for so long, as few messages are asked for as at first.
const QUIET: Duration = Duration::from_secs(10);
/// Consumers that were replaced and have deliveries that are not settled.
const REPLACED_MOST: usize = 8;

pub(crate) struct Intake {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    pub topology: Topology,
    pub metrics: Metrics,
    /// How many tasks the window still takes.
    pub room: Room,
    /// Tasks and bytes of it.
    pub window: (usize, usize),
    pub events: mpsc::Sender<Event>,
    pub closing: CancellationToken,
    /// How many shards there are.
    pub shards: u32,
    pub quotas: Quotas,
    /// When each task was accepted.
    pub times: Distinct,
    /// For whoever listens.
    pub events_of_tasks: Events,
    /// The core has ended: nothing is acked any more.
    pub ended: CancellationToken,
}

/// A consumer, and who settles what it gave.
struct Source {
    consumer: Box<dyn Consumer>,
    acker: Arc<dyn Acker>,
    counting: Arc<Counting>,
}

/// A task of a message, with its part of the delivery.
pub(crate) struct Taken {
    pub envelope: Box<Envelope>,
    pub receipt: Receipt,
    /// It was read before, perhaps by a scheduler that had the shard then.
    pub redelivered: bool,
    /// A gateway counted it against its tenant's rate.
    pub is_counted: bool,
}

impl Intake {
    /// Reads until the session is cut, or closing.
    pub async fn run(self) -> Result<(), BrokerError> {
        let (tasks, bytes) = self.window;
        let mut ahead = Ahead::new(tasks, bytes, self.shards == 1);
        let mut source = self.source(ahead.prefetch()).await?;
        // They have deliveries that are not settled, which would go back with them.
        let mut replaced: Vec<Source> = Vec::new();
        while let Some(prefetch) = self.read_on(&mut source, &mut ahead, &mut replaced).await? {
            // What comes after comes after all that came by the one before.
            source.consumer.cancel().await?;
            replaced.push(std::mem::replace(&mut source, self.source(prefetch).await?));
            debug!(prefetch, "asks for other messages ahead");
        }
        // With its consumer all that is not acked goes back, and what is being dispatched would run twice.
        self.ended.cancelled().await;
        Ok(())
    }

    async fn source(&self, prefetch: u16) -> Result<Source, BrokerError> {
        let consumer = self.broker.consume(&self.topology.intake(), prefetch).await?;
        let counting = Counting::new(consumer.acker());
        Ok(Source { acker: counting.clone(), counting, consumer })
    }

    /// Until another number of messages is to be asked for, which is answered, or closing.
    async fn read_on(
        &self,
        source: &mut Source,
        ahead: &mut Ahead,
        replaced: &mut Vec<Source>,
    ) -> Result<Option<u16>, BrokerError> {
        let Source { consumer, acker, counting } = source;
        let mut unread: VecDeque<Delivery> = VecDeque::new();
        let mut came = Instant::now();
        loop {
            let most = tokio::select! {
                biased;
                () = self.closing.cancelled() => return Ok(None),
                most = self.room.some(READ) => most,
            };
            if unread.is_empty() {
                replaced.retain(|source| source.counting.unsettled() > 0);
                if replaced.len() < REPLACED_MOST
                    && self.room.is_ample()
                    && let Some(prefetch) = ahead.more(counting.unsettled())
                {
                    return Ok(Some(prefetch));
                }
                unread.extend(tokio::select! {
                    biased;
                    () = self.closing.cancelled() => return Ok(None),
                    deliveries = consumer.next_batch(most) => deliveries?,
                    () = tokio::time::sleep(LOOK) => {
                        // While others wait to be settled it stays, so that it can get more again.
                        if came.elapsed() >= QUIET
                            && replaced.is_empty()
                            && let Some(prefetch) = ahead.fewer()
                        {
                            return Ok(Some(prefetch));
                        }
                        continue;
                    }
                });
                came = Instant::now();
                counting.came(unread.len());
            }
            let (mut taken, mut bytes) = (Vec::new(), 0);
            while taken.len() < most
                && bytes < READ_BYTES
                && let Some(delivery) = unread.pop_front()
            {
                ahead.handle_read(delivery.body.len());
                bytes += delivery.body.len();
                self.read(delivery, acker, &mut taken).await;
            }
            if !self.take_in(taken).await {
                return Ok(None);
            }
        }
    }

    async fn read(&self, delivery: Delivery, acker: &Arc<dyn Acker>, taken: &mut Vec<Taken>) {
        if delivery.properties.headers.contains_key(STEPS_HEADER) {
            return self.take_steps(delivery, acker, taken).await;
        }
        let carried = carried(&delivery.properties);
        if delivery.properties.kind.as_deref() == Some(WORKFLOW_TYPE) {
            return self.take_workflow(delivery, carried, acker).await;
        }
        let refused = match unreadable(&delivery.properties) {
            Some(invalid) => Err(invalid),
            None => decode_tasks(&delivery.body),
        };
        match refused {
            Err(invalid) => {
                let receipts = Receipt::split(delivery.tag, acker, 1);
                self.bury(&delivery, vec![(invalid, None)], &carried, receipts).await;
            }
            Ok(tasks) => {
                let mut receipts = Receipt::split(delivery.tag, acker, tasks.len()).into_iter();
                // One message id names one task.
                let carried = Carried { message_id: carried.message_id.filter(|_| tasks.len() == 1), ..carried };
                let (mut bad, mut bad_receipts) = (Vec::new(), Vec::new());
                let redelivered = delivery.redelivered;
                let is_counted = delivery.properties.headers.contains_key(COUNTED_HEADER);
                for (at, (task, receipt)) in tasks.into_iter().zip(receipts.by_ref()).enumerate() {
                    match task.and_then(|task| Envelope::new(task, &carried, self.times.now())) {
                        Ok(envelope) => {
                            taken.push(Taken { envelope: Box::new(envelope), receipt, redelivered, is_counted })
                        }
                        Err(invalid) => {
                            bad.push((invalid, Some(at)));
                            bad_receipts.push(receipt);
                        }
                    }
                }
                if !bad.is_empty() {
                    self.bury(&delivery, bad, &carried, bad_receipts).await;
                }
            }
        }
    }

    /// To the dead letters, with an answer to each task that was refused.
    async fn bury(
        &self,
        delivery: &Delivery,
        refused: Vec<(Invalid, Option<usize>)>,
        carried: &Carried,
        receipts: Vec<Receipt>,
    ) {
        let mut outgoing = Vec::new();
        // Of an array each by itself, as it is written: its neighbours are not to be published again with it.
        let members = dead::members(&delivery.body).unwrap_or_default();
        for (invalid, at) in &refused {
            warn!(code = invalid.code, field = %invalid.field, "a published task cannot be taken");
            self.metrics.dead_lettered(invalid.code);
            if let Some(reply) = &carried.reply {
                let result = refusal(invalid, carried);
                outgoing.extend(messages::result(reply, &result).ok().map(|message| (message, Need::Reply)));
            }
            let body = match at.and_then(|at| members.get(at)) {
                Some(member) => delivery.body.slice_ref(member.get().as_bytes()),
                None => delivery.body.clone(),
            };
            let id = invalid.id.or_else(|| carried.message_id.as_ref()?.parse().ok().map(TaskId));
            let letter = Letter::of_published(&delivery.properties, id, invalid.code, &invalid.to_string(), body);
            outgoing.push((letter.message(&self.topology), Need::Work));
        }
        if publish_surely(&*self.broker, outgoing, &self.closing).await.is_ok() {
            broker::settle(receipts, Verdict::Ack).await;
        }
    }

    /// Takes each task in once, and passes on those that are to run. `false` when closing.
    async fn take_in(&self, taken: Vec<Taken>) -> bool {
        if taken.is_empty() {
            return true;
        }
        let accepts: Vec<Accept> = taken
            .iter()
            .map(|Taken { envelope, .. }| Accept {
                id: envelope.id,
                fingerprint: envelope.fingerprint(),
                alias: envelope.alias(),
                record: envelope.result(State::Queued),
                // Of a step it is in the envelope, and no other asks.
                follower: envelope.reply.clone().filter(|_| envelope.extras.workflow.is_none()),
            })
            .collect();
        let accepted = match self.store.accept(accepts).await {
            Ok(accepted) => accepted,
            Err(failure) => {
                // The broker has the task: it is served without knowing whether it came before. Claims wait for the
                // store, and find out.
                warn!(%failure, tasks = taken.len(), "tasks are taken in without the store");
                self.metrics.store_failed("accept");
                taken.iter().map(|_| Accepted::New).collect()
            }
        };
        let mut outgoing = Vec::new();
        let mut done = Vec::new();
        let mut to_admit = Vec::with_capacity(taken.len());
        let mut unwanted = Vec::new();
        let mut to_count = Vec::new();
        for (Taken { mut envelope, receipt, redelivered, is_counted }, accepted) in taken.into_iter().zip(accepted) {
            if let Accepted::Known(record) | Accepted::Unwanted(record) = &accepted {
                // By its key it may be known under another id. That one's message may be lost, if it was never confirmed.
                envelope.id = record.id;
            }
            match accepted {
                Accepted::New => {
                    // What an accepted workflow consists of is not refused for others that wait.
                    let is_known = redelivered || envelope.extras.workflow.is_some();
                    let queued = || envelope.result(State::Queued);
                    let traceparent = envelope.extras.traceparent.as_deref();
                    self.events_of_tasks.state(envelope.model(), queued, State::Queued, traceparent);
                    let task = held(envelope, receipt, is_known);
                    match redelivered || is_counted || !self.quotas.is_limited(&task.envelope.tenant) {
                        true => to_admit.push(task),
                        false => to_count.push(task),
                    }
                }
                // Somebody asked to cancel it before it was read.
                Accepted::Unwanted(record) if matches!(record.state, State::Queued | State::Blocked) => {
                    unwanted.push(held(envelope, receipt, redelivered));
                }
                Accepted::Known(record) | Accepted::Unwanted(record) if !record.state.is_terminal() => {
                    match record.state {
                        // Not dispatched yet, or its message came again because the scheduler was restarted.
                        State::Queued | State::Blocked => {
                            // It may have been given another one since.
                            envelope.priority = record.priority;
                            // And it may wait to be tried again: then it is claimed.
                            envelope.attempts = envelope.attempts.max(record.attempt);
                            if envelope.extras.workflow.is_none()
                                && let Some(accepted) = record.timings.accepted
                            {
                                // Its place is by when it came first: others that came after it may wait in page queues.
                                envelope.accepted = accepted;
                            }
                            let is_known = redelivered || envelope.extras.workflow.is_some();
                            to_admit.push(held(envelope, receipt, is_known));
                        }
                        // What it was dispatched by may never have been confirmed, and be gone with the broker: when whoever runs it dies, this
                        // copy is all that there is.
                        State::Running => {
                            let shard = shard_of(envelope.id.0, self.shards);
                            match messages::watch(&self.topology, shard, &envelope) {
                                Ok(message) => {
                                    outgoing.push((message, Need::Work));
                                    done.push(receipt);
                                }
                                // Not acked: the broker gives it back when it loses patience.
                                Err(failure) => warn!(%failure, "a task that runs cannot be written down again"),
                            }
                        }
                        // A queue has confirmed it: this copy is one too many.
                        _ => {
                            debug!(task.id = %envelope.id.0, state = ?record.state, "came again");
                            done.push(receipt);
                        }
                    }
                }
                Accepted::Known(record) | Accepted::Unwanted(record) => {
                    // Whoever refused it may have ended before it wrote the letter.
                    if redelivered && finish::is_buried(&record) {
                        let letter = Letter::of_task(&envelope, &record);
                        outgoing.push((letter.message(&self.topology), Need::Work));
                    }
                    // The same task as before, which has ended.
                    if let Some(reply) = &envelope.reply {
                        outgoing.extend(messages::result(reply, &record).ok().map(|message| (message, Need::Reply)));
                    }
                    let hook = messages::webhook(&self.topology, &envelope, &record);
                    outgoing.extend(hook.map(|message| (message, Need::Work)));
                    done.push(receipt);
                }
                Accepted::Conflict(record) => {
                    warn!(task.id = %record.id.0, "the same id came with another content: the first one stands");
                    // Of no model: what it names may be anything.
                    self.metrics.turned_away("", "conflict", false);
                    if let Some(reply) = &envelope.reply {
                        let mut result = envelope.result(State::Rejected);
                        result.error = Some(TaskError {
                            code: "conflict".into(),
                            message: "a task of this id, or this idempotency key, was accepted with another content"
                                .into(),
                            retryable: false,
                        });
                        outgoing.extend(messages::result(reply, &result).ok().map(|message| (message, Need::Reply)));
                    }
                    done.push(receipt);
                }
            }
        }
        let over = self.quotas.count(to_count, &mut to_admit).await;
        if !over.is_empty() && self.events.send(Event::OverQuota(over)).await.is_err() {
            return false;
        }
        let bytes = to_admit.iter().map(|task| task.envelope.input.get().len()).sum();
        self.room.take(to_admit.len(), bytes);
        if !to_admit.is_empty() && self.events.send(Event::Arrived(to_admit)).await.is_err() {
            return false;
        }
        if !unwanted.is_empty() && self.events.send(Event::Unwanted(unwanted)).await.is_err() {
            return false;
        }
        if publish_surely(&*self.broker, outgoing, &self.closing).await.is_err() {
            return false;
        }
        if !done.is_empty() {
            broker::settle(done, Verdict::Ack).await;
        }
        true
    }
}

fn held(envelope: Box<Envelope>, receipt: Receipt, is_known: bool) -> Held {
    Held {
        model: String::new(),
        envelope,
        receipt: Some(receipt),
        since: Instant::now(),
        is_known,
        page: None,
        expected: None,
    }
}

/// What cannot be read by what its properties say of it.
pub(crate) fn unreadable(properties: &Properties) -> Option<Invalid> {
    match properties.content_encoding.as_deref() {
        None | Some("" | "utf-8" | "UTF-8" | "identity") => None,
        Some(_) => Some(Invalid::field("content_encoding", "must be absent: compressed bodies are not read")),
    }
}

fn carried(properties: &Properties) -> Carried {
    let header = |name: &str| properties.headers.get(name).map(String::as_str);
    let mut carried = Carried {
        message_id: properties.message_id.clone(),
        priority: properties.priority,
        app_id: properties.app_id.clone(),
        expiration: properties.expiration.clone(),
        reply: messages::reply_of(properties),
        ..Carried::default()
    };
    carried.trace(header("traceparent"), header("tracestate"));
    carried
}

/// The answer to something that cannot even be read as a task.
fn refusal(invalid: &Invalid, carried: &Carried) -> TaskResult {
    let id = carried.message_id.as_ref().and_then(|id| id.parse().ok()).map_or_else(TaskId::new, TaskId);
    TaskResult {
        id: invalid.id.unwrap_or(id),
        state: State::Rejected,
        kind: Kind::default(),
        model: None,
        tenant: carried.app_id.clone().unwrap_or_else(|| "default".into()),
        priority: Priority::default(),
        attempt: 0,
        output: None,
        error: Some(TaskError { code: invalid.code.into(), message: invalid.to_string(), retryable: false }),
        timings: Timings { finished: Some(Timestamp::now()), ..Timings::default() },
        worker: None,
        metadata: Default::default(),
        choice: None,
        workflow: None,
        usage: None,
    }
}

/// Consumes again after every cut that may mend by itself.
pub(crate) async fn wait_after(failure: &BrokerError, tries: u32, closing: &CancellationToken) {
    warn!(%failure, "the scheduler's queues are taken up again");
    tokio::select! {
        biased;
        () = tokio::time::sleep(Backoff::RECONNECT.delay(tries, fastrand::f64())) => {}
        () = closing.cancelled() => {}
    }
}
