//! Results as they come back: one exclusive reply queue for a process, and who waits for what.
//!
//! The queue lives and dies with the connection. After a cut it is declared and consumed again under the same name, and
//! [`Inbox::sessions`] tells: what was sent to it in between is gone, so whoever waits has to ask again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use taskyard_shared::broker::{Broker, BrokerError, Delivery, QueueSpec, Verdict};
use taskyard_shared::retry::Backoff;
use taskyard_shared::{Reply, TaskId, TaskResult};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

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
    waiting: Mutex<HashMap<TaskId, Vec<Slot>>>,
    next_number: AtomicU64,
    sessions: watch::Sender<Session>,
}

struct Slot {
    number: u64,
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
                next_number: AtomicU64::new(0),
                sessions: watch::Sender::default(),
            }),
        }
    }

    /// Where results are to be sent. Several may travel in one message.
    pub fn reply(&self) -> Reply {
        Reply { to: self.inner.queue.clone(), correlation_id: None, array: true }
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
        let number = self.inner.next_number.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.inner.lock().entry(id).or_default().push(Slot { number, since: Instant::now(), sender });
        Ok(Waiter { id, number, receiver, received: None, inner: self.inner.clone(), _room: room })
    }

    /// How many results are waited for.
    pub fn waiting(&self) -> usize {
        self.inner.most - self.inner.room.available_permits()
    }

    /// The tasks whose results are waited for since `age` or longer.
    pub fn waited_for(&self, age: Duration) -> Vec<TaskId> {
        let old = |slots: &Vec<Slot>| slots.iter().any(|slot| slot.since.elapsed() >= age);
        self.inner.lock().iter().filter(|(_, slots)| old(slots)).map(|(id, _)| *id).collect()
    }

    /// Hands a terminal result, wherever it came from, to all who wait for it; the number of them.
    pub fn deliver(&self, id: TaskId, result: &Arc<TaskResult>) -> usize {
        let slots = self.inner.lock().remove(&id).unwrap_or_default();
        // A waiter that has left in this moment is no error: its place is free already.
        slots.into_iter().map(|slot| slot.sender.send(result.clone())).filter(Result::is_ok).count()
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
        let results = match decode(&delivery.body) {
            Ok(results) => results,
            Err(error) => {
                tracing::warn!(broker.queue = %self.inner.queue, %error, "a result cannot be read");
                return;
            }
        };
        let asked = match &delivery.properties.correlation_id {
            Some(text) if delivery.body.first() == Some(&b'{') => text.parse().ok().map(TaskId),
            _ => None,
        };
        for result in results.into_iter().filter(|result| result.state.is_terminal()) {
            let result = Arc::new(result);
            self.deliver(result.id, &result);
            // A task that was known under another id is answered with the other one's result.
            if let Some(asked) = asked.filter(|asked| *asked != result.id) {
                self.deliver(asked, &result);
            }
        }
    }
}

fn decode(body: &[u8]) -> Result<Vec<TaskResult>, serde_json::Error> {
    if body.first() == Some(&b'[') {
        serde_json::from_slice(body)
    } else {
        serde_json::from_slice(body).map(|result| vec![result])
    }
}

impl Inner {
    /// The map is whole between any two statements, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Vec<Slot>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the line for one result.
pub struct Waiter {
    id: TaskId,
    number: u64,
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
    pub fn number(&self) -> u64 {
        self.number
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
        let mut waiting = self.inner.lock();
        if let Some(slots) = waiting.get_mut(&self.id) {
            slots.retain(|slot| slot.number != self.number);
            if slots.is_empty() {
                waiting.remove(&self.id);
            }
        }
    }
}
