//! Asks every active scheduler, and collects what they answer within a bounded time.
//!
//! The answers have a reply queue of their own, so that they do not wait behind results.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taskyard_shared::broker::{Broker, BrokerError, Delivery, QueueSpec, Verdict};
use taskyard_shared::control::{Answer, Ask, Question, Told, VERSION};
use taskyard_shared::process::settings::SHARDS_MOST;
use taskyard_shared::retry::Backoff;
use taskyard_shared::{Correlation, Reply, messages};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::Shared;
use super::problem::{Code, Problem};

/// How long answers are waited for, everything included.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions under way at once; each waits for as many answers as there are shards.
const AT_ONCE: usize = 256;
/// Answers in hand that are not yet acked.
const PREFETCH: u16 = 256;

/// Where answers come to.
pub(super) struct Desk {
    queue: String,
    waiting: Mutex<HashMap<Uuid, mpsc::Sender<Answer>>>,
    room: Arc<Semaphore>,
    up: watch::Sender<bool>,
}

/// What the schedulers said.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// At most one of each shard.
    pub(super) answers: Vec<Answer>,
    /// Shards that have an active scheduler.
    pub(super) active: usize,
    /// Every shard that there is has an active scheduler, and all of them have answered.
    pub(super) complete: bool,
}

impl Desk {
    pub(super) fn new(queue: String) -> Self {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        Self { queue, waiting: Mutex::default(), room, up: watch::Sender::new(false) }
    }

    /// Keeps the queue, through every cut, for ever.
    pub(super) async fn run(&self, broker: &dyn Broker) {
        let failures = AtomicU32::new(0);
        loop {
            if let Err(error) = self.session(broker, &failures).await {
                self.up.send_replace(false);
                let attempt = failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                if attempt == 1 {
                    tracing::warn!(broker.queue = %self.queue, %error, "the queue of answers was lost");
                }
                tokio::time::sleep(Backoff::RECONNECT.delay(attempt, crate::random())).await;
            }
        }
    }

    async fn session(&self, broker: &dyn Broker, failures: &AtomicU32) -> Result<(), BrokerError> {
        broker.declare(&[QueueSpec::exclusive(self.queue.clone())]).await?;
        let mut consumer = broker.consume(&self.queue, PREFETCH).await?;
        let acker = consumer.acker();
        failures.store(0, Ordering::Relaxed);
        self.up.send_replace(true);
        loop {
            let deliveries = consumer.next_batch(usize::from(PREFETCH)).await?;
            deliveries.iter().for_each(|delivery| self.take(delivery));
            acker.settle(deliveries.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
        }
    }

    fn take(&self, delivery: &Delivery) {
        let correlation = delivery.properties.correlation_id.as_ref().and_then(|text| Uuid::parse_str(text).ok());
        let Some(waiting) = correlation.and_then(|correlation| self.lock().get(&correlation).cloned()) else { return };
        match serde_json::from_slice::<Answer>(&delivery.body) {
            // Full only when a shard answers again and again.
            Ok(answer) if answer.v == VERSION => drop(waiting.try_send(answer)),
            Ok(answer) => tracing::warn!(answer.v, "an answer of a version of which this gateway knows nothing"),
            Err(error) => tracing::warn!(%error, "an answer cannot be read"),
        }
    }

    /// The map is whole between any two statements, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, mpsc::Sender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a question off the desk when whoever asked leaves.
struct Place<'a>(&'a Desk, Uuid);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl Shared {
    /// Asks all active schedulers, at once.
    ///
    /// # Errors
    /// Only when too many questions are under way. That nobody answers is an answer.
    pub(super) async fn ask(&self, ask: Ask) -> Result<Heard, Problem> {
        self.ask_of(ask, |_| true).await
    }

    /// Asks the scheduler of a shard.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), and when it does not answer.
    pub(super) async fn ask_one(&self, shard: u32, ask: Ask) -> Result<Told, Problem> {
        let heard = self.ask_of(ask, |one| one == shard).await?;
        let told = heard.answers.into_iter().next().map(|answer| answer.told);
        told.ok_or_else(|| Problem::new(Code::SchedulerUnavailable, "the scheduler did not answer in time"))
    }

    async fn ask_of(&self, ask: Ask, is_asked: impl Fn(u32) -> bool) -> Result<Heard, Problem> {
        let until = Instant::now() + PATIENCE;
        let Ok(_room) = self.desk.room.clone().try_acquire_owned() else {
            return Err(Problem::new(Code::OverCapacity, "too many questions to the schedulers are under way"));
        };
        let correlation = Uuid::new_v4();
        let (sender, mut receiver) = mpsc::channel(2 * SHARDS_MOST as usize);
        self.desk.lock().insert(correlation, sender);
        let _place = Place(&self.desk, correlation);

        let mut heard = Heard::default();
        let Ok(Ok((active, all))) = tokio::time::timeout_at(until, self.active()).await else { return Ok(heard) };
        let active: Vec<u32> = active.into_iter().filter(|shard| is_asked(*shard)).collect();
        heard.active = active.len();
        let mut silent: BTreeSet<u32> = active.iter().copied().collect();
        let reply = Reply {
            to: self.desk.queue.as_str().into(),
            correlation_id: Some(Correlation::Id(correlation)),
            array: false,
        };
        let question = Question::new(ask);
        let questions = active.iter().map(|shard| messages::question(&self.topology, *shard, &question, &reply));
        let Ok(questions) = questions.collect::<Result<Vec<_>, _>>() else { return Ok(heard) };
        let asking = async {
            // Answers come as soon as the queue stands.
            let mut up = self.desk.up.subscribe();
            if up.wait_for(|up| *up).await.is_err() {
                return;
            }
            for answer in self.broker.publish(questions).await {
                if let Err(error) = answer {
                    tracing::debug!(%error, "a scheduler could not be asked");
                }
            }
            while !silent.is_empty() {
                let Some(answer) = receiver.recv().await else { return };
                if silent.remove(&answer.shard) {
                    heard.answers.push(answer);
                }
            }
        };
        let in_time = tokio::time::timeout_at(until, asking).await.is_ok();
        if !in_time {
            tracing::debug!(shards = silent.len(), "schedulers did not answer in time");
        }
        heard.complete = all && heard.active > 0 && silent.is_empty();
        Ok(heard)
    }

    /// The shards that have an active scheduler, and whether these are all that there are. Their queues have no gap.
    async fn active(&self) -> Result<(Vec<u32>, bool), BrokerError> {
        let (mut active, mut all) = (Vec::new(), true);
        for shard in 0..SHARDS_MOST {
            match self.broker.queue_state(&self.topology.control(shard)).await? {
                Some(state) if state.consumers > 0 => active.push(shard),
                Some(_) => all = false,
                None => break,
            }
        }
        Ok((active, all))
    }
}
