//! Results as they come back: one exclusive reply queue for a process, and who waits for what.
//!
//! The queue lives and dies with the connection. After a cut it is declared and consumed again under the same name, and
//! [`Inbox::sessions`] tells: what was sent to it in between is gone, so whoever waits has to ask again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use taskyard_shared::broker::{Broker, BrokerError, Delivery, QueueSpec, Verdict};
use taskyard_shared::retry::Backoff;
use taskyard_shared::{Correlation, Reply, State, TaskId, TaskResult, wire};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Results in hand that are not yet acked.
const PREFETCH: u16 = 512;

/// As many wait already as may.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} results are waited for already")]
pub struct TooManyWaiting(pub usize);

/// The reply queue of one process. Cheap to clone.
#[derive(Clone)]
pub struct Inbox {
    inner: Arc<Inner>,
}

struct Inner {
    queue: String,
    most: usize,
    room: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    sessions: watch::Sender<Session>,
}

#[derive(Default)]
struct Waiting {
    by_task: HashMap<TaskId, Vec<Slot>>,
    by_correlation: HashMap<Uuid, TaskId>,
}

struct Slot {
    correlation: Uuid,
    since: Instant,
    sender: oneshot::Sender<Arc<TaskResult>>,
}

/// How often the reply queue was declared anew, and whether it stands now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Session {
    pub number: u64,
    pub up: bool,
}

impl Inbox {
    /// `queue` as [`Topology::replies`](taskyard_shared::Topology::replies) names it; at most `most` results are
    /// waited for at once. Nothing arrives before [`run`](Self::run) does.
    pub fn new(queue: String, most: usize) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        Self {
            inner: Arc::new(Inner {
                queue,
                most,
                room: Arc::new(Semaphore::new(most)),
                waiting: Mutex::default(),
                sessions: watch::Sender::default(),
            }),
        }
    }

    /// Where results are to be sent that are told by their ids alone. Several may travel in one message.
    pub fn reply(&self) -> Reply {
        Reply { to: self.inner.queue.as_str().into(), correlation_id: None, array: true }
    }

    /// Changes whenever the reply queue comes or goes.
    pub fn sessions(&self) -> watch::Receiver<Session> {
        self.inner.sessions.subscribe()
    }

    /// Whether the reply queue stands.
    pub fn is_up(&self) -> bool {
        self.inner.sessions.borrow().up
    }

    /// Waits until the reply queue stands; `false` when it does not within `limit`.
    pub async fn ready_within(&self, limit: Duration) -> bool {
        let mut sessions = self.sessions();
        let up = async { sessions.wait_for(|session| session.up).await.is_ok() };
        tokio::time::timeout(limit, up).await.unwrap_or(false)
    }

    /// Waits for the result of one task, from now on. Dropping the waiter frees its place.
    ///
    /// # Errors
    /// When as many wait as may.
    pub fn wait_for(&self, id: TaskId) -> Result<Waiter, TooManyWaiting> {
        let Ok(room) = self.inner.room.clone().try_acquire_owned() else {
            return Err(TooManyWaiting(self.inner.most));
        };
        let correlation = Uuid::new_v4();
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.inner.lock();
        waiting.by_task.entry(id).or_default().push(Slot { correlation, since: Instant::now(), sender });
        waiting.by_correlation.insert(correlation, id);
        drop(waiting);
        Ok(Waiter { id, correlation, receiver, received: None, inner: self.inner.clone(), _room: room })
    }

    /// How many results are waited for.
    pub fn waiting(&self) -> usize {
        self.inner.most - self.inner.room.available_permits()
    }

    /// The tasks whose results are waited for since `age` or longer.
    pub fn waited_for(&self, age: Duration) -> Vec<TaskId> {
        let old = |slots: &Vec<Slot>| slots.iter().any(|slot| slot.since.elapsed() >= age);
        self.inner.lock().by_task.iter().filter(|(_, slots)| old(slots)).map(|(id, _)| *id).collect()
    }

    /// Hands a terminal result, wherever it came from, to all who wait for it; the number of them.
    pub fn deliver(&self, result: &Arc<TaskResult>) -> usize {
        let mut waiting = self.inner.lock();
        let slots = waiting.by_task.remove(&result.id).unwrap_or_default();
        for slot in &slots {
            waiting.by_correlation.remove(&slot.correlation);
        }
        drop(waiting);
        // A waiter that has left in this moment is no error: its place is free already.
        slots.into_iter().map(|slot| slot.sender.send(result.clone())).filter(Result::is_ok).count()
    }

    /// Hands a result to the one who asked with this correlation id; `false` when nobody did, or not any more.
    fn answer(&self, correlation: Uuid, result: &Arc<TaskResult>) -> bool {
        let slot = self.inner.lock().take_out(correlation);
        slot.is_some_and(|slot| slot.sender.send(result.clone()).is_ok())
    }

    /// Keeps the reply queue, through every cut, until `stop`.
    pub async fn run(self, broker: Arc<dyn Broker>, stop: CancellationToken) {
        let failures = AtomicU32::new(0);
        let work = async {
            loop {
                if let Err(error) = self.session(broker.as_ref(), &failures).await {
                    self.inner.sessions.send_modify(|session| session.up = false);
                    let attempt = failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                    if attempt == 1 {
                        tracing::warn!(broker.queue = %self.inner.queue, %error, "the reply queue was lost");
                    }
                    tokio::time::sleep(Backoff::RECONNECT.delay(attempt, crate::random())).await;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
        self.inner.sessions.send_modify(|session| session.up = false);
    }

    async fn session(&self, broker: &dyn Broker, failures: &AtomicU32) -> Result<(), BrokerError> {
        broker.declare(&[QueueSpec::exclusive(self.inner.queue.clone())]).await?;
        let mut consumer = broker.consume(&self.inner.queue, PREFETCH).await?;
        let acker = consumer.acker();
        failures.store(0, Ordering::Relaxed);
        self.inner.sessions.send_modify(|session| *session = Session { number: session.number + 1, up: true });
        loop {
            let deliveries = consumer.next_batch(usize::from(PREFETCH)).await?;
            for delivery in &deliveries {
                self.take(delivery);
            }
            // Unsettled ones come again with the next session, to nobody who still waits.
            acker.settle(deliveries.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
        }
    }

    fn take(&self, delivery: &Delivery) {
        let results = match wire::read_all::<TaskResult>(&delivery.body) {
            Ok(results) => results,
            Err(error) => {
                tracing::warn!(broker.queue = %self.inner.queue, %error, "a result cannot be read");
                return;
            }
        };
        let correlation = match &delivery.properties.correlation_id {
            Some(text) if delivery.body.first() == Some(&b'{') => Uuid::parse_str(text).ok(),
            _ => None,
        };
        for result in results.into_iter().filter(|result| result.state.is_terminal()) {
            let result = Arc::new(result);
            // Whatever its id: a task that was known under another one is answered with the other's result.
            if correlation.is_some_and(|correlation| self.answer(correlation, &result)) {
                continue;
            }
            // A refusal of a second task under one id is for who sent that, not for who waits for the first. Without a
            // correlation id it is told only when there is nobody else whom it could mean.
            if !is_conflict(&result) || (correlation.is_none() && self.waiters_of(result.id) == 1) {
                self.deliver(&result);
            }
        }
    }

    fn waiters_of(&self, id: TaskId) -> usize {
        self.inner.lock().by_task.get(&id).map_or(0, Vec::len)
    }
}

fn is_conflict(result: &TaskResult) -> bool {
    result.state == State::Rejected && result.error.as_ref().is_some_and(|error| error.code == "conflict")
}

impl Inner {
    /// The map is whole between any two statements, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn take_out(&mut self, correlation: Uuid) -> Option<Slot> {
        let id = self.by_correlation.remove(&correlation)?;
        let slots = self.by_task.get_mut(&id)?;
        let at = slots.iter().position(|slot| slot.correlation == correlation)?;
        let slot = slots.swap_remove(at);
        if slots.is_empty() {
            self.by_task.remove(&id);
        }
        Some(slot)
    }
}

/// A place in the line for one result.
pub struct Waiter {
    id: TaskId,
    correlation: Uuid,
    receiver: oneshot::Receiver<Arc<TaskResult>>,
    received: Option<Arc<TaskResult>>,
    inner: Arc<Inner>,
    _room: OwnedSemaphorePermit,
}

impl Waiter {
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// Tells this waiter from others of the same task.
    pub fn correlation(&self) -> Uuid {
        self.correlation
    }

    /// Where the result is to be sent for this waiter.
    pub fn reply(&self) -> Reply {
        let correlation_id = Some(Correlation::Id(self.correlation));
        Reply { to: self.inner.queue.as_str().into(), correlation_id, array: true }
    }

    /// The result, once it is there. Never resolves when nobody sends it: bound the wait. Cancel safe.
    pub async fn result(&mut self) -> Arc<TaskResult> {
        if let Some(result) = &self.received {
            return result.clone();
        }
        match (&mut self.receiver).await {
            Ok(result) => self.received.insert(result).clone(),
            // The sender is dropped only after sending, or with this waiter.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.inner.lock().take_out(self.correlation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_leaves_nothing_behind() {
        let inbox = Inbox::new("replies".into(), 2);
        let (id, other) = (TaskId::new(), TaskId::new());
        let first = inbox.wait_for(id).unwrap();
        let second = inbox.wait_for(id).unwrap();
        assert_eq!(inbox.wait_for(other).err(), Some(TooManyWaiting(2)));
        assert_eq!(inbox.waited_for(Duration::ZERO), [id]);
        drop(first);
        assert_eq!((inbox.waited_for(Duration::ZERO), inbox.waiting()), (vec![id], 1));
        drop(second);
        assert_eq!((inbox.waited_for(Duration::ZERO), inbox.waiting()), (vec![], 0));
        let waiting = inbox.inner.lock();
        assert!(waiting.by_task.is_empty() && waiting.by_correlation.is_empty());
        drop(waiting);
        assert!(inbox.wait_for(other).is_ok());
    }
}
