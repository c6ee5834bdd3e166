//! The load: one thread that publishes what is due, and one consumer that takes the results.
//!
//! Publishing has a thread of its own because timers of the runtime are no finer than a millisecond, and because bodies
//! are made on it. Everything due is published by one call, several calls at once: a slow confirm holds up no schedule.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use taskyard_shared::broker::{Broker, Destination, Message, Properties, QueueSpec, Verdict};
use taskyard_shared::messages::RESULTS_HEADER;
use taskyard_shared::{State, Timestamp, Topology};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::latency::{Latencies, Latency, Schedule};
use super::restart::Pulse;
use super::tasks::{Answer, RunTimings, Shape, Tasks};
use crate::failure::Failure;

/// Calls of the broker at once.
const CALLS: usize = 24;
/// Most messages, and most tasks, that one call publishes.
const CALL_MESSAGES: u64 = 256;
const CALL_TASKS: u64 = 2_000;
/// Results not acked yet, and most taken at once.
const PREFETCH: u16 = 20_000;
const TAKEN_AT_ONCE: usize = 4_096;

/// What is to be published, and how fast.
#[derive(Clone, Debug)]
pub struct Plan {
    pub shape: Shape,
    /// `None`: as many as fit into `duration`.
    pub tasks: Option<u64>,
    pub duration: Option<Duration>,
    /// Tasks a second. `None`: as fast as they are answered.
    pub rate: Option<f64>,
    /// Without a rate: most tasks that are not answered.
    pub in_flight: u32,
    /// Tasks to a message.
    pub batch: u64,
    /// Whether results may come as arrays.
    pub arrays: bool,
    /// How long the next result may take once everything is published.
    pub patience: Duration,
    /// Whether to note when tasks ran.
    pub runs: bool,
}

/// Where the load goes.
#[derive(Clone)]
pub struct Target {
    pub broker: Arc<dyn Broker>,
    pub to: Destination,
    /// Names the reply queue.
    pub topology: Topology,
}

/// What became of the load.
#[derive(Debug, Default)]
pub struct Outcome {
    pub published: u64,
    /// Tasks in messages that the broker did not confirm, and why the first of them.
    pub unconfirmed: u64,
    pub refusal: Option<String>,
    /// Different tasks that have a result.
    pub answered: u64,
    /// How many ended in each state.
    pub states: BTreeMap<&'static str, u64>,
    pub duplicates: u64,
    /// From the first publish to the last result.
    pub elapsed: Duration,
    /// From the first result to the last.
    pub answering: Duration,
    pub latency: Option<Latency>,
    /// When asked for.
    pub runs: Runs,
    pub pulse: Pulse,
}

/// When the tasks of a load ran.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    /// Of each task in the order of the results, milliseconds from when it was due to its start.
    pub waits_ms: Vec<f64>,
    pub ran_ms: f64,
    /// Of the first task and of the last.
    pub first_started: Option<Timestamp>,
    pub last_finished: Option<Timestamp>,
}

/// A load that is being published, or is.
pub struct Running {
    ledger: Arc<Ledger>,
    sender: tokio::task::JoinHandle<()>,
    receiver: tokio::task::JoinHandle<Result<Outcome, Failure>>,
}

/// What sender and receiver both know.
struct Ledger {
    began: Instant,
    /// The same instant by the clock that results have.
    began_at: Timestamp,
    /// When each task was due.
    due: Mutex<Vec<Duration>>,
    sent: AtomicU64,
    unconfirmed: AtomicU64,
    refusal: Mutex<Option<String>>,
    /// One permit for each task that may be published.
    window: Semaphore,
    /// Whether everything is published and confirmed, or given up.
    over: watch::Sender<bool>,
    /// Whether there was a result.
    answered: watch::Sender<bool>,
    stop: CancellationToken,
}

impl Running {
    /// Begins to publish. `stop` breaks it off.
    pub async fn start(target: Target, plan: &Plan, stop: CancellationToken) -> Result<Self, Failure> {
        let replies = target.topology.replies(&format!("bench-{}", uuid::Uuid::new_v4().simple()));
        target.broker.declare(&[QueueSpec::exclusive(&replies)]).await?;
        let consumer = target.broker.consume(&replies, PREFETCH).await?;
        let tasks = Tasks::new(plan.shape.clone());
        let ledger = Arc::new(Ledger {
            began: Instant::now(),
            began_at: Timestamp::now(),
            due: Mutex::default(),
            sent: AtomicU64::new(0),
            unconfirmed: AtomicU64::new(0),
            refusal: Mutex::default(),
            window: Semaphore::new(plan.in_flight as usize),
            over: watch::Sender::new(false),
            answered: watch::Sender::new(false),
            stop,
        });
        let latencies = Latencies::new().map_err(|failure| Failure::Internal(failure.to_string()))?;
        let receiver = Receiver {
            ledger: ledger.clone(),
            tasks: tasks.clone(),
            latencies,
            seen: Vec::new(),
            outcome: Outcome::default(),
            first: None,
            last: None,
            patience: plan.patience,
            runs: plan.runs,
        };
        let receiver = tokio::spawn(receiver.run(consumer));
        let sender =
            Sender { ledger: ledger.clone(), tasks, target, replies, plan: plan.clone(), runtime: Handle::current() };
        let sender = tokio::task::spawn_blocking(move || sender.run());
        Ok(Self { ledger, sender, receiver })
    }

    /// Waits until everything is published and confirmed.
    pub async fn published(&self) {
        // The sender's half lives as long as the ledger.
        let mut over = self.ledger.over.subscribe();
        let _over = over.wait_for(|over| *over).await;
    }

    /// Waits for the first result.
    pub async fn answered(&self) {
        let mut answered = self.ledger.answered.subscribe();
        let _answered = answered.wait_for(|answered| *answered).await;
    }

    /// The time since it began.
    pub fn elapsed(&self) -> Duration {
        self.ledger.began.elapsed()
    }

    /// Waits for the last result.
    pub async fn finish(self) -> Result<Outcome, Failure> {
        let ended = |failure: tokio::task::JoinError| Failure::Internal(format!("the load broke off: {failure}"));
        let outcome = self.receiver.await.map_err(ended)?;
        // Without results there is nothing to publish for.
        self.ledger.stop.cancel();
        self.sender.await.map_err(ended)?;
        outcome
    }
}

struct Sender {
    ledger: Arc<Ledger>,
    tasks: Tasks,
    target: Target,
    replies: String,
    plan: Plan,
    runtime: Handle,
}

impl Sender {
    fn run(self) {
        let calls = Arc::new(Semaphore::new(CALLS));
        self.publish_all(&calls);
        // All of them back: every call has its answer.
        let all = self.runtime.block_on(calls.acquire_many(CALLS as u32));
        self.ledger.over.send_replace(true);
        drop(all);
    }

    fn publish_all(&self, calls: &Arc<Semaphore>) {
        let Self { ledger, plan, .. } = self;
        let batch = plan.batch.max(1);
        let schedule = plan.rate.map(|rate| Schedule::new(rate, batch));
        let most_messages = (CALL_TASKS / batch).clamp(1, CALL_MESSAGES);
        let total = plan.tasks.unwrap_or(u64::MAX);
        let (mut message, mut sent) = (0u64, 0u64);
        while sent < total && !ledger.stop.is_cancelled() {
            let elapsed = ledger.began.elapsed();
            let due = match schedule {
                Some(schedule) => schedule.due_by(elapsed).saturating_sub(message),
                None if plan.duration.is_some_and(|duration| elapsed >= duration) => return,
                None => most_messages,
            };
            if let (0, Some(schedule)) = (due, schedule) {
                std::thread::sleep(schedule.due(message).saturating_sub(ledger.began.elapsed()));
                continue;
            }
            let messages = due.min(most_messages).min((total - sent).div_ceil(batch));
            let tasks = (messages * batch).min(total - sent);
            let Some(call) = self.leave(calls, tasks) else { return };
            {
                let mut due = ledger.due.lock().unwrap_or_else(PoisonError::into_inner);
                let now = ledger.began.elapsed();
                let at = |task: u64| schedule.map_or(now, |schedule| schedule.due(message + task / batch));
                due.extend((0..tasks).map(at));
            }
            let firsts = (sent..sent + tasks).step_by(batch as usize);
            let counts: Vec<(u64, u64)> = firsts.map(|first| (first, batch.min(sent + tasks - first))).collect();
            let publishing: Vec<Message> = counts.iter().map(|(first, count)| self.message(*first, *count)).collect();
            sent += tasks;
            message += messages;
            ledger.sent.store(sent, Ordering::Release);
            let (ledger, broker) = (ledger.clone(), self.target.broker.clone());
            self.runtime.spawn(async move {
                let answers = broker.publish(publishing).await;
                for (answer, (_, count)) in answers.into_iter().zip(counts) {
                    let Err(refusal) = answer else { continue };
                    ledger.unconfirmed.fetch_add(count, Ordering::Relaxed);
                    let mut first = ledger.refusal.lock().unwrap_or_else(PoisonError::into_inner);
                    first.get_or_insert_with(|| refusal.to_string());
                }
                drop(call);
            });
        }
    }

    /// Waits until so many more tasks may be published. `None`: never.
    fn leave(&self, calls: &Arc<Semaphore>, tasks: u64) -> Option<tokio::sync::OwnedSemaphorePermit> {
        let Self { ledger, plan, .. } = self;
        self.runtime.block_on(async {
            let leave = async {
                if plan.rate.is_none() {
                    let most = u64::from(plan.in_flight);
                    ledger.window.acquire_many(tasks.min(most) as u32).await.ok()?.forget();
                }
                calls.clone().acquire_owned().await.ok()
            };
            tokio::select! {
                call = leave => call,
                () = ledger.stop.cancelled() => None,
            }
        })
    }

    fn message(&self, first: u64, count: u64) -> Message {
        let mut properties = Properties {
            content_type: Some("application/json".into()),
            reply_to: Some(self.replies.clone()),
            ..Properties::default()
        };
        if self.plan.arrays {
            properties.headers.insert(RESULTS_HEADER.into(), "array".into());
        }
        if count == 1 {
            // The body has it too, for whoever reads it; this is for whoever leaves the order to the broker.
            properties.priority = self.tasks.priority(first);
        }
        let body = self.tasks.body(first, count);
        Message { to: self.target.to.clone(), body, properties, persistent: true, mandatory: true }
    }
}

impl Runs {
    fn add(&mut self, timings: &RunTimings, began_at: Timestamp, due: Duration) {
        let RunTimings { started, finished, ran_ms } = *timings;
        self.waits_ms.push(started.ms_since(began_at) - due.as_secs_f64() * 1e3);
        self.ran_ms += ran_ms;
        self.first_started = Some(self.first_started.map_or(started, |first| first.min(started)));
        self.last_finished = Some(self.last_finished.map_or(finished, |last| last.max(finished)));
    }
}

struct Receiver {
    ledger: Arc<Ledger>,
    tasks: Tasks,
    latencies: Latencies,
    /// By task.
    seen: Vec<bool>,
    outcome: Outcome,
    first: Option<Instant>,
    last: Option<Instant>,
    patience: Duration,
    runs: bool,
}

impl Receiver {
    async fn run(mut self, mut consumer: Box<dyn taskyard_shared::broker::Consumer>) -> Result<Outcome, Failure> {
        let acker = consumer.acker();
        let mut over = self.ledger.over.subscribe();
        let mut heard = Instant::now();
        let mut answers = Vec::new();
        while !self.is_complete() {
            let everything_sent = *self.ledger.over.borrow();
            let batch = tokio::select! {
                batch = consumer.next_batch(TAKEN_AT_ONCE) => batch?,
                _ = over.changed(), if !everything_sent => {
                    heard = Instant::now();
                    continue;
                }
                () = tokio::time::sleep_until((heard + self.patience).into()), if everything_sent => break,
                () = self.ledger.stop.cancelled() => break,
            };
            heard = Instant::now();
            for delivery in &batch {
                self.tasks
                    .answers(&delivery.body, self.runs, &mut answers)
                    .map_err(|failure| Failure::Failed(format!("a result cannot be read: {failure}")))?;
            }
            self.take(heard, &mut answers);
            acker.settle(batch.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
        }
        let Self { ledger, latencies, mut outcome, first, last, .. } = self;
        outcome.published = ledger.sent.load(Ordering::Acquire);
        outcome.unconfirmed = ledger.unconfirmed.load(Ordering::Relaxed);
        outcome.refusal = ledger.refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
        outcome.latency = latencies.summary();
        let due = ledger.due.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(first), Some(last), Some(due)) = (first, last, due.first()) {
            outcome.elapsed = last.duration_since(ledger.began).saturating_sub(*due);
            outcome.answering = last.duration_since(first);
        }
        drop(due);
        Ok(outcome)
    }

    fn is_complete(&self) -> bool {
        let Self { ledger, outcome, .. } = self;
        // What was not confirmed may have landed all the same; it is not waited for.
        let expected = ledger.sent.load(Ordering::Acquire).saturating_sub(ledger.unconfirmed.load(Ordering::Relaxed));
        *ledger.over.borrow() && outcome.answered >= expected
    }

    fn take(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        let Self { ledger, latencies, seen, outcome, .. } = self;
        let received = now.duration_since(ledger.began);
        let mut fresh = 0;
        let due = ledger.due.lock().unwrap_or_else(PoisonError::into_inner);
        seen.resize(due.len(), false);
        for answer in answers.drain(..) {
            let task = answer.task as usize;
            let (Some(due), Some(seen)) = (due.get(task), seen.get_mut(task)) else { continue };
            if std::mem::replace(seen, true) {
                outcome.duplicates += 1;
                continue;
            }
            fresh += 1;
            latencies.record(*due, received);
            if let Some(timings) = answer.timings {
                outcome.runs.add(&timings, ledger.began_at, *due);
            }
            *outcome.states.entry(State::as_str(answer.state)).or_default() += 1;
        }
        drop(due);
        if fresh > 0 {
            outcome.answered += fresh;
            outcome.pulse.count(received, fresh);
            if self.first.is_none() {
                self.first = Some(now);
                self.ledger.answered.send_replace(true);
            }
            self.last = Some(now);
            self.ledger.window.add_permits(fresh as usize);
        }
    }
}
