//! Carries out what attempts came to, many at once: write the state, tell who waits, then ack.
//!
//! Up to [`GROUPS`] groups are under way at a time, so that one round trip to the store or the broker does not hold up
//! the next. The order within a group is the promise: the record first, under its fence; then every message, confirmed;
//! the ack last. A crash at any point repeats a step and loses nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::broker::{self, Broker, Message, Need, Verdict, publish_surely};
use taskyard_shared::dead::Letter;
use taskyard_shared::events::Events;
use taskyard_shared::load::Completion;
use taskyard_shared::messages;
use taskyard_shared::store::{Guard, Release, Released, Settle, Settled, Store, until_answered};
use taskyard_shared::{Envelope, Reply, State, TaskError, TaskId, TaskResult, Timestamp, Topology, time};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::held::Held;
use crate::metrics::Metrics;

/// Most settlements that travel together.
const GROUP: usize = 256;
/// Groups under way at once.
const GROUPS: usize = 4;

/// What is to become of a task in hand.
pub(crate) enum Outcome {
    /// The end.
    Terminal { result: Arc<TaskResult>, guard: Guard, dead: bool },
    /// Another attempt, after a while. `attempt` are those that count so far; `nonce` is of the one that ends, claimed or not.
    Retry { attempt: u32, counts: bool, nonce: u128, after: Duration, error: TaskError, ran_ms: f64 },
    /// See again later. `begun` when another attempt is under way elsewhere: the next one has to claim the task.
    Later { after_ms: u64, begun: bool },
    /// It had ended before, and its result may not have been told.
    TellAgain { result: Arc<TaskResult>, followers: Vec<Reply> },
}

impl Outcome {
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Terminal { result, .. } if result.state == State::Cancelled)
    }
}

pub(crate) struct Settlement {
    pub held: Held,
    pub outcome: Outcome,
}

impl Settlement {
    /// The end of a task that was not begun here.
    pub fn unclaimed(held: Held, state: State, code: &str, message: &str) -> Self {
        let result = Arc::new(unrun(&held.envelope, state, code, message));
        Self { held, outcome: Outcome::Terminal { result, guard: Guard::Unclaimed, dead: false } }
    }
}

/// The end of a task that did not run.
pub(crate) fn unrun(envelope: &Envelope, state: State, code: &str, message: &str) -> TaskResult {
    let mut result = envelope.result(state);
    result.error = Some(TaskError { code: code.to_owned(), message: message.to_owned(), retryable: false });
    result.timings.finished = Some(Timestamp::now());
    result
}

#[derive(Clone)]
pub(crate) struct Settler {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    pub topology: Topology,
    pub worker: String,
    pub metrics: Metrics,
    /// Nothing more can be settled: what is not acked comes again.
    pub closing: CancellationToken,
    pub events: Events,
}

impl Settler {
    /// Settles what comes until every sender is gone, and ends when all of it is done.
    pub async fn run(self, mut queue: mpsc::Receiver<Settlement>) {
        let room = Arc::new(Semaphore::new(GROUPS));
        let mut group = Vec::with_capacity(GROUP);
        loop {
            // First the room, then what is there: all that came meanwhile travels together.
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            if queue.recv_many(&mut group, GROUP).await == 0 {
                break;
            }
            let (settler, group) = (self.clone(), std::mem::take(&mut group));
            tokio::spawn(async move {
                settler.settle(group).await;
                drop(permit);
            });
        }
        // The permit of the last round was given back.
        let _all_done = room.acquire_many(GROUPS as u32).await;
    }

    async fn settle(&self, group: Vec<Settlement>) {
        let Some(told) = self.write_states(&group).await else { return };
        self.publish_events(&group, &told);
        let outgoing = self.outgoing(&group, &told);
        match publish_surely(&*self.broker, outgoing, &self.closing).await {
            Ok(missed) => self.metrics.missed(missed),
            Err(closing) => {
                warn!(%closing, tasks = group.len(), "settled tasks come again to be told");
                return;
            }
        }
        let mut done = Vec::with_capacity(group.len());
        for (settlement, told) in group.into_iter().zip(told) {
            self.metrics.settled(&settlement, &told);
            done.extend(settlement.held.receipt);
        }
        self.metrics.void_acks(broker::settle(done, Verdict::Ack).await);
    }

    /// What the tasks came to, for whoever listens.
    fn publish_events(&self, group: &[Settlement], told: &[Told]) {
        for (Settlement { held, outcome }, told) in group.iter().zip(told) {
            let envelope = &*held.envelope;
            let (model, traceparent) = (envelope.model(), envelope.extras.traceparent.as_deref());
            match (outcome, told) {
                // Nobody is told of a copy.
                _ if envelope.extras.mirrors.is_some() => {}
                (Outcome::Terminal { result, .. }, Told::End(_)) => {
                    self.events.result_of(model, result, traceparent);
                }
                (Outcome::Retry { attempt, error, .. }, Told::Again) => {
                    let queued = || {
                        let mut result = envelope.result(State::Queued);
                        (result.attempt, result.error) = (*attempt, Some(error.clone()));
                        result
                    };
                    self.events.state(model, queued, State::Queued, traceparent);
                }
                _ => {}
            }
        }
    }

    /// Writes every state under its fence, and answers what is to be told of each.
    async fn write_states(&self, group: &[Settlement]) -> Option<Vec<Told>> {
        let mut told: Vec<Told> = group.iter().map(|_| Told::Nothing).collect();
        let mut settles = Vec::new();
        let mut releases = Vec::new();
        for (at, Settlement { held, outcome }) in group.iter().enumerate() {
            match outcome {
                Outcome::Terminal { result, guard, .. } => {
                    settles.push((at, Settle::new(*guard, result.clone())));
                }
                // Of one that was not claimed a late claim may have gone through unheard, or may be under way: that is not to hold the
                // task when this delivery is acked.
                Outcome::Retry { nonce, counts, .. } => {
                    releases.push((at, Release { id: held.envelope.id, nonce: *nonce, counts: *counts }));
                }
                Outcome::Later { .. } => told[at] = Told::Again,
                Outcome::TellAgain { followers, .. } => told[at] = Told::End(followers.clone()),
            }
        }
        if !settles.is_empty() {
            let calls: Vec<Settle> = settles.iter().map(|(_, settle)| settle.clone()).collect();
            let settled = until_answered("results", &self.closing, || self.store.settle(calls.clone())).await?;
            for ((at, settle), settled) in settles.into_iter().zip(settled) {
                told[at] = match settled {
                    Settled::Done { followers } | Settled::Again { followers } => Told::End(followers),
                    // Nobody asked for the task before it was given up, so this may be the delivery of whoever ended it and
                    // came to no more.
                    Settled::Already(record) if settle.guard == Guard::Unclaimed => Told::Before(record),
                    Settled::Already(_) => Told::Elsewhere,
                    Settled::Stale => Told::Stale,
                };
            }
        }
        if !releases.is_empty() {
            let calls: Vec<Release> = releases.iter().map(|(_, release)| release.clone()).collect();
            let released = until_answered("results", &self.closing, || self.store.release(calls.clone())).await?;
            for ((at, _), released) in releases.into_iter().zip(released) {
                told[at] = match released {
                    Released::Released => Told::Again,
                    Released::Stale => Told::Stale,
                };
            }
        }
        self.settle_doubt(group, &mut told).await?;
        Some(told)
    }

    /// An attempt that is no longer the record's may have been followed by another, which has a delivery of its own; or
    /// the store lost what it knew, or gave an answer that did not arrive. Then this delivery is the only copy. So it is
    /// where nothing was attempted here: whoever runs the task may have been cut from the delivery that came here.
    async fn settle_doubt(&self, group: &[Settlement], told: &mut [Told]) -> Option<()> {
        let doubtful: Vec<usize> = (0..told.len()).filter(|&at| matches!(told[at], Told::Stale)).collect();
        if doubtful.is_empty() {
            return Some(());
        }
        let ids: Vec<TaskId> = doubtful.iter().map(|&at| group[at].held.envelope.id).collect();
        let records = until_answered("results", &self.closing, || self.store.get(ids.clone())).await?;
        for (at, record) in doubtful.into_iter().zip(records) {
            let is_begun = !matches!(&group[at].outcome, Outcome::Terminal { guard: Guard::Unclaimed, .. });
            let elsewhere = record.is_some_and(|record| record.state == State::Running || record.state.is_terminal());
            if !(is_begun && elsewhere) {
                told[at] = Told::Again;
            }
        }
        Some(())
    }

    fn outgoing(&self, group: &[Settlement], told: &[Told]) -> Vec<(Message, Need)> {
        let mut outgoing = Vec::new();
        let mut completions: BTreeMap<u32, Vec<Completion>> = BTreeMap::new();
        let mut arrays: BTreeMap<&str, Vec<&TaskResult>> = BTreeMap::new();
        for (Settlement { held, outcome }, told) in group.iter().zip(told) {
            let envelope = &*held.envelope;
            match (outcome, told) {
                (Outcome::Terminal { result, .. } | Outcome::TellAgain { result, .. }, Told::End(followers)) => {
                    // Whoever is named twice is told once.
                    let also = followers.iter().filter(|follower| envelope.reply.as_ref() != Some(follower));
                    for reply in envelope.reply.iter().chain(also) {
                        if reply.array {
                            arrays.entry(&reply.to).or_default().push(result);
                        } else {
                            self.push(&mut outgoing, messages::result(reply, result), Need::Reply);
                        }
                    }
                    outgoing.extend(self.webhook(envelope, result));
                    // A failure that is told again may have been settled by an attempt that ended before it wrote the letter.
                    let dead = match outcome {
                        Outcome::Terminal { dead, .. } => *dead,
                        _ => result.state == State::Failed,
                    };
                    if dead && envelope.extras.mirrors.is_none() {
                        outgoing.push((self.dead_letter(envelope, result), Need::Work));
                    }
                }
                (Outcome::Terminal { .. }, Told::Before(record)) => {
                    match &envelope.reply {
                        Some(reply) if reply.array => arrays.entry(&reply.to).or_default().push(record),
                        Some(reply) => self.push(&mut outgoing, messages::result(reply, record), Need::Reply),
                        None => {}
                    }
                    outgoing.extend(self.webhook(envelope, record));
                    if record.state == State::Failed && envelope.extras.mirrors.is_none() {
                        outgoing.push((self.dead_letter(envelope, record), Need::Work));
                    }
                }
                (Outcome::Retry { attempt, after, error, .. }, Told::Again) => {
                    info!(task.id = %envelope.id.0, task.model = envelope.model(), attempt, code = %error.code,
                        after_ms = after.as_millis() as u64, "to be tried again");
                    let mut retry = Envelope { attempts: *attempt, ..envelope.clone() };
                    retry.extras.not_before = Some(Timestamp::now().plus_ms(after.as_millis() as u64));
                    retry.extras.last_error = Some(Box::new(error.clone()));
                    self.push(&mut outgoing, messages::retry(&self.topology, &retry), Need::Work);
                }
                (Outcome::Terminal { result, .. }, Told::Again) => {
                    warn!(task.id = %envelope.id.0, "the end could not be written: the task goes back");
                    let again = Envelope { attempts: result.attempt, ..envelope.clone() };
                    self.push(&mut outgoing, messages::retry(&self.topology, &again), Need::Work);
                }
                (Outcome::Later { after_ms, begun }, _) => {
                    let attempts = envelope.attempts.max(u32::from(*begun));
                    let mut later = Envelope { attempts, ..envelope.clone() };
                    later.extras.not_before = Some(Timestamp::now().plus_ms(*after_ms));
                    self.push(&mut outgoing, messages::retry(&self.topology, &later), Need::Work);
                }
                (_, Told::Stale) => {
                    warn!(task.id = %envelope.id.0, "the attempt was given up for dead before it was settled: fenced off");
                }
                _ => {}
            }
            completions.entry(envelope.shard).or_default().push(completion(&self.worker, held, outcome, told));
        }
        for (queue, results) in arrays {
            self.push(&mut outgoing, messages::results(queue, &results), Need::Reply);
        }
        for (shard, completions) in completions {
            self.push(&mut outgoing, messages::completions(&self.topology, shard, &completions), Need::Hint);
        }
        outgoing
    }

    fn push(&self, outgoing: &mut Vec<(Message, Need)>, message: Result<Message, messages::Unwritable>, need: Need) {
        match message {
            Ok(message) => outgoing.push((message, need)),
            Err(failure) => warn!(%failure, "a message could not be built"),
        }
    }

    fn webhook(&self, envelope: &Envelope, result: &TaskResult) -> Option<(Message, Need)> {
        messages::webhook(&self.topology, envelope, result).map(|message| (message, Need::Work))
    }

    fn dead_letter(&self, envelope: &Envelope, result: &TaskResult) -> Message {
        let (code, detail) = match &result.error {
            Some(error) => (error.code.as_str(), error.message.as_str()),
            None => ("failed", ""),
        };
        warn!(task.id = %envelope.id.0, task.model = envelope.model(), attempt = result.attempt, code, detail, "failed");
        Letter::of_task(envelope, result).message(&self.topology)
    }
}

/// What is left to tell of a task once its state is written.
pub(crate) enum Told {
    Nothing,
    /// It ended, here and now or before: these follow it, beside whom the envelope names.
    End(Vec<Reply>),
    /// It had ended so, and whoever ended it may not have told.
    Before(Box<TaskResult>),
    /// It goes back to the scheduler.
    Again,
    /// It ended by another attempt, which tells.
    Elsewhere,
    /// The attempt had lost its right: nothing of it counts.
    Stale,
}

fn completion(worker: &str, held: &Held, outcome: &Outcome, told: &Told) -> Completion {
    let (state, ran_ms, started) = match (outcome, told) {
        (_, Told::Before(record)) => (record.state, 0.0, None),
        // What goes back has not ended, whatever its attempt came to; another scheduler may take it.
        (Outcome::Terminal { result, .. }, Told::Again) => {
            (State::Queued, result.timings.ran_ms.unwrap_or(0.0), result.timings.started)
        }
        (Outcome::Terminal { result, .. }, _) => {
            (result.state, result.timings.ran_ms.unwrap_or(0.0), result.timings.started)
        }
        (Outcome::Retry { ran_ms, .. }, _) => (State::Queued, *ran_ms, None),
        (Outcome::TellAgain { result, .. }, _) => (result.state, 0.0, None),
        (Outcome::Later { .. }, _) => (State::Queued, 0.0, None),
    };
    Completion {
        id: held.envelope.id,
        model: held.envelope.model().unwrap_or_default().to_owned(),
        state,
        ran_ms: if started.is_some() || matches!(outcome, Outcome::Retry { .. }) { ran_ms } else { 0.0 },
        idle_ms: time::milliseconds(held.idle),
        worker: worker.to_owned(),
    }
}
