//! Ends tasks that no worker ran: refused, expired, or carried out by the scheduler itself. The record first, then whoever waits is told, the ack last.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use taskyard_shared::broker::{self, Broker, Message, Need, Receipt, Verdict, publish_surely};
use taskyard_shared::control::Fate;
use taskyard_shared::dead::Letter;
use taskyard_shared::events::Events;
use taskyard_shared::store::{Guard, Settle, Settled, Store, until_answered};
use taskyard_shared::{Envelope, Reply, State, TaskError, TaskResult, Timestamp, Topology, messages};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::held::Held;
use crate::metrics::Metrics;

/// Codes of what another task of the same content may be spared later.
const RETRYABLE: [&str; 3] = ["overloaded", "quota_waiting", "quota_rate"];

/// So many undelivered tasks are ended at once.
const UNDELIVERED: usize = 512;
/// Before a task that somebody runs is looked at again.
const RUNS: Duration = Duration::from_secs(1);
/// Codes of what is refused for what the task says, or the yard does not have: somebody has to change something, and the
/// task is kept until then.
const BURIED: [&str; 6] =
    ["unknown_model", "unknown_capability", "quality_unmet", "unwritable", "retired_model", "invalid_deployment"];

/// Whether what ended so without having run is kept as a dead letter: not what another time may bring through by itself.
pub(crate) fn is_buried(result: &TaskResult) -> bool {
    let code = result.error.as_ref().map_or("", |error| error.code.as_str());
    result.state == State::Rejected && BURIED.contains(&code)
}

/// A task that is to end in `state` without having run.
pub(crate) struct Finished {
    pub task: Held,
    pub state: State,
    pub code: &'static str,
    pub message: String,
    /// Who waits to hear what became of it.
    pub told: Option<oneshot::Sender<Fate>>,
    /// Of one that succeeded.
    pub output: Option<Box<RawValue>>,
}

impl Finished {
    /// One that the scheduler has carried out itself.
    pub fn succeeded(task: Held, output: Box<RawValue>) -> Self {
        let (state, code, message) = (State::Succeeded, "", String::new());
        Self { task, state, code, message, told: None, output: Some(output) }
    }

    fn result(&self) -> TaskResult {
        let mut result = self.task.envelope.result(self.state);
        match &self.output {
            Some(output) => (result.output, result.attempt) = (Some(output.clone()), 1),
            None => {
                let retryable = RETRYABLE.contains(&self.code);
                result.error = Some(TaskError { code: self.code.into(), message: self.message.clone(), retryable });
            }
        }
        let now = Timestamp::now();
        result.timings.finished = Some(now);
        result.timings.waited_ms = Some(now.ms_since(self.task.envelope.accepted).max(0.0));
        result
    }
}

/// Whoever asked may be gone.
fn tell(told: Option<oneshot::Sender<Fate>>, fate: Fate) {
    if let Some(told) = told {
        let _gone = told.send(fate);
    }
}

#[derive(Clone)]
pub(crate) struct Finisher {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    pub topology: Topology,
    pub metrics: Metrics,
    pub closing: CancellationToken,
    pub events: Events,
}

impl Finisher {
    /// Ends tasks that came by no delivery: steps that never run. Whoever answers for them acks only when this answers `true`:
    /// written, and told.
    pub async fn end_undelivered(self, mut group: Vec<(Box<Envelope>, TaskResult)>) -> bool {
        while !group.is_empty() {
            let rest = group.split_off(group.len().min(UNDELIVERED));
            if !self.end_some(std::mem::replace(&mut group, rest)).await {
                return false;
            }
        }
        true
    }

    async fn end_some(&self, group: Vec<(Box<Envelope>, TaskResult)>) -> bool {
        let calls: Vec<Settle> =
            group.iter().map(|(_, result)| Settle::new(Guard::Unclaimed, result.clone())).collect();
        let settled = until_answered("ends of steps", &self.closing, || self.store.settle(calls.clone())).await;
        let Some(settled) = settled else { return false };
        let mut outgoing = Vec::new();
        for ((envelope, result), settled) in group.iter().zip(settled) {
            match settled {
                Settled::Done { followers } | Settled::Again { followers } => {
                    self.tell(envelope, result, &followers, &mut outgoing);
                }
                // By a scheduler that may not have come to tell it.
                Settled::Already(record) => {
                    let hook = messages::webhook(&self.topology, envelope, &record);
                    outgoing.extend(hook.map(|message| (message, Need::Work)));
                }
                // It was sent after all, by another scheduler: whoever runs it ends it.
                Settled::Stale => {}
            }
        }
        publish_surely(&*self.broker, outgoing, &self.closing).await.is_ok()
    }

    pub async fn finish(self, group: Vec<Finished>) {
        let calls: Vec<Settle> =
            group.iter().map(|finished| Settle::new(Guard::Unclaimed, finished.result())).collect();
        let settled = until_answered("refusals", &self.closing, || self.store.settle(calls.clone())).await;
        let Some(settled) = settled else { return };
        let mut outgoing = Vec::new();
        let mut receipts = Vec::with_capacity(group.len());
        let mut running = Vec::new();
        for ((finished, Settle { result, .. }), settled) in group.into_iter().zip(&calls).zip(settled) {
            let followers = match settled {
                Settled::Done { followers } | Settled::Again { followers } => followers,
                // It runs. Whoever runs it may have been cut from the delivery that it came by, and this copy be the last.
                Settled::Stale => {
                    tell(finished.told, Fate::Dispatched);
                    running.push(finished.task);
                    continue;
                }
                Settled::Already(record) => {
                    let cancelled = record.state == State::Cancelled;
                    tell(finished.told, if cancelled { Fate::Done } else { Fate::Finished });
                    // Whoever ended it may have come to no more than that, or not have known whom to tell.
                    self.tell_again(&finished.task.envelope, &record, &mut outgoing);
                    receipts.extend(finished.task.receipt);
                    continue;
                }
            };
            tell(finished.told, Fate::Done);
            self.tell(&finished.task.envelope, result, &followers, &mut outgoing);
            self.metrics.finished(&finished.task.model, finished.state);
            receipts.extend(finished.task.receipt);
        }
        if publish_surely(&*self.broker, outgoing, &self.closing).await.is_ok() {
            broker::settle(receipts, Verdict::Ack).await;
        }
        self.look_again(running).await;
    }

    fn tell(&self, envelope: &Envelope, result: &TaskResult, followers: &[Reply], outgoing: &mut Vec<(Message, Need)>) {
        if envelope.extras.mirrors.is_none() {
            self.events.result_of(envelope.model(), result, envelope.extras.traceparent.as_deref());
        }
        let also = followers.iter().filter(|follower| envelope.reply.as_ref() != Some(follower));
        for reply in envelope.reply.iter().chain(also) {
            match messages::result(reply, result) {
                Ok(message) => outgoing.push((message, Need::Reply)),
                Err(failure) => warn!(%failure, "a result could not be told"),
            }
        }
        outgoing.extend(messages::webhook(&self.topology, envelope, result).map(|message| (message, Need::Work)));
        if is_buried(result) {
            self.metrics.dead_lettered(result.error.as_ref().map_or("", |error| error.code.as_str()));
            outgoing.push((Letter::of_task(envelope, result).message(&self.topology), Need::Work));
        }
    }

    fn tell_again(&self, envelope: &Envelope, record: &TaskResult, outgoing: &mut Vec<(Message, Need)>) {
        if let Some(reply) = &envelope.reply {
            outgoing.extend(messages::result(reply, record).ok().map(|message| (message, Need::Reply)));
        }
        outgoing.extend(messages::webhook(&self.topology, envelope, record).map(|message| (message, Need::Work)));
        if record.state == State::Failed || is_buried(record) {
            outgoing.push((Letter::of_task(envelope, record).message(&self.topology), Need::Work));
        }
    }

    /// What somebody runs comes back a moment later, until it has ended one way or the other.
    async fn look_again(&self, running: Vec<Held>) {
        if running.is_empty() {
            return;
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(RUNS) => {}
            // Not acked: it comes again.
            () = self.closing.cancelled() => return,
        }
        let running = running.into_iter().filter_map(|task| Some((task.envelope, task.receipt?)));
        self.hand_back(messages::retry, running.collect()).await;
    }

    /// Publishes copies to a queue that schedulers read, and acks the originals once they are safe.
    pub async fn hand_back<F>(&self, message: F, tasks: Vec<(Box<Envelope>, Receipt)>)
    where
        F: Fn(&Topology, &Envelope) -> Result<Message, messages::Unwritable>,
    {
        let mut outgoing = Vec::with_capacity(tasks.len());
        let mut receipts = Vec::with_capacity(tasks.len());
        for (envelope, receipt) in tasks {
            match message(&self.topology, &envelope) {
                Ok(message) => {
                    outgoing.push((message, Need::Work));
                    receipts.push(receipt);
                }
                // Not acked: the broker gives it back when it loses patience.
                Err(failure) => warn!(%failure, "a task could not be sent back to a scheduler"),
            }
        }
        if publish_surely(&*self.broker, outgoing, &self.closing).await.is_ok() {
            self.metrics.handed_back(receipts.len());
            broker::settle(receipts, Verdict::Ack).await;
        }
    }

    /// The same, as work of its own: what was held for long goes round through the queue of a shard, mostly the scheduler's own.
    pub async fn send_round(self, shard: u32, tasks: Vec<(Box<Envelope>, Receipt)>) {
        self.hand_back(|topology, envelope| messages::round(topology, shard, envelope), tasks).await;
    }

    /// And what runs for long, which is watched over.
    pub async fn send_watched_round(self, shard: u32, tasks: Vec<(Box<Envelope>, Receipt)>) {
        self.hand_back(|topology, envelope| messages::watch(topology, shard, envelope), tasks).await;
    }
}
