//! The broker inside the process: in memory, or durable in a folder, for when nothing is to be installed.
//!
//! All messages are in memory; the [journal](crate::journal) is only read when the broker is opened. It is for one
//! process: what `RabbitMQ` does between connections happens here between consumers of one value. Where the two differ:
//!
//! - A consumer takes from the queue when it asks, so that nothing sits in its buffer. Of what is there it takes its
//!   fair share among the consumers with room.
//! - An exclusive queue lives as long as the broker value, and so does a lock that nobody drops.
//! - Publishing to an exchange that was never declared is [`PublishError::Unroutable`], mandatory or not.
//! - Priorities and expiry of messages are carried, not acted on.

mod consumer;
mod publish;
mod queue;
mod record;
mod routing;

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use async_trait::async_trait;

use self::consumer::EmbeddedConsumer;
use self::routing::Routing;
use super::{
    Broker, BrokerError, BrokerInfo, Consumer, Lock, Message, Operations, PublishError, QueueKind, QueueSpec,
    QueueState, Tag,
};
use crate::journal::{Journal, JournalError};

/// Most bytes of one message's body.
pub const MESSAGE_BYTES: usize = 16 << 20;
/// Longest name of a queue or an exchange, and longest routing key; bytes.
const NAME_BYTES: usize = 255;

/// What a broker holds at most. Beyond it, publishing is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Messages in all queues, delivered ones that are not settled included.
    pub messages: usize,
    /// Their memory, bodies and properties, as an estimate.
    pub bytes: usize,
    /// How long a publish waits for the disk, milliseconds.
    pub publish_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { messages: 2_000_000, bytes: 4 << 30, publish_timeout_ms: 10_000 }
    }
}

/// See the [module](self). Dropping it closes it.
pub struct EmbeddedBroker {
    shared: Arc<Shared>,
}

struct Shared {
    limits: Limits,
    routing: RwLock<Routing>,
    journal: Option<Journal>,
    /// Messages held, and their bytes.
    messages: AtomicUsize,
    bytes: AtomicUsize,
    /// Counts consumers.
    sessions: AtomicU64,
    locks: Mutex<HashSet<String>>,
    closed: AtomicBool,
    operations: Arc<Operations>,
}

impl EmbeddedBroker {
    pub fn in_memory() -> Self {
        Self::in_memory_with(Limits::default())
    }

    pub fn in_memory_with(limits: Limits) -> Self {
        Self::new(limits, Routing::default(), None, publish::Weight::default())
    }

    /// Opens or creates the broker that is kept in `dir`, as `broker.redb`. Reads all of it: what was not acked comes
    /// again, in order, as redelivered.
    ///
    /// # Errors
    /// [`BrokerError::Refused`] when it is open in another process or the folder cannot be used,
    /// [`BrokerError::Corrupt`] when the file is not whole.
    pub fn open(dir: &Path) -> Result<Self, BrokerError> {
        Self::open_with(dir, Limits::default())
    }

    /// As [`open`](Self::open), with other limits. Messages that are there already are taken in even beyond them.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(dir: &Path, limits: Limits) -> Result<Self, BrokerError> {
        let mut found = record::Found::default();
        let journal = Journal::open(dir, "broker", |address, entry| found.take_in(address, entry))?;
        let (routing, weight) = found.finish();
        Ok(Self::new(limits, routing, Some(journal), weight))
    }

    fn new(limits: Limits, routing: Routing, journal: Option<Journal>, held: publish::Weight) -> Self {
        Self {
            shared: Arc::new(Shared {
                limits,
                routing: RwLock::new(routing),
                journal,
                messages: AtomicUsize::new(held.messages),
                bytes: AtomicUsize::new(held.bytes),
                sessions: AtomicU64::new(1),
                locks: Mutex::default(),
                closed: AtomicBool::new(false),
                operations: Arc::default(),
            }),
        }
    }

    /// Commits of the journal so far, for measurements: several publishes share one. 0 in memory.
    pub fn commits(&self) -> u64 {
        self.shared.journal.as_ref().map_or(0, Journal::commits)
    }
}

impl EmbeddedBroker {
    /// What waits in each durable queue, for whoever looks into a folder.
    pub fn waiting(&self) -> Vec<(String, u64)> {
        let routing = self.shared.routing.read().unwrap_or_else(PoisonError::into_inner);
        let durable = routing.queues().filter(|queue| queue.kind == QueueKind::Durable);
        durable.map(|queue| (queue.name.clone(), queue.state().ready)).collect()
    }
}

impl Shared {
    fn check_open(&self) -> Result<(), BrokerError> {
        if self.closed.load(Ordering::Acquire) { Err(BrokerError::Closed) } else { Ok(()) }
    }

    /// Ends every consumer; whoever waits is told. Afterwards the journal can be closed.
    fn end_sessions(&self) {
        self.closed.store(true, Ordering::Release);
        for queue in self.routing.read().unwrap_or_else(PoisonError::into_inner).queues() {
            queue.close();
        }
    }

    /// Counts messages in, unless they are too many.
    fn hold(&self, weight: publish::Weight) -> bool {
        let messages = self.messages.fetch_add(weight.messages, Ordering::Relaxed) + weight.messages;
        let bytes = self.bytes.fetch_add(weight.bytes, Ordering::Relaxed) + weight.bytes;
        let fits = messages <= self.limits.messages && bytes <= self.limits.bytes;
        if !fits {
            self.release(weight);
        }
        fits
    }

    fn release(&self, weight: publish::Weight) {
        self.messages.fetch_sub(weight.messages, Ordering::Relaxed);
        self.bytes.fetch_sub(weight.bytes, Ordering::Relaxed);
    }

    async fn change(
        &self,
        change: impl FnOnce(&mut routing::Change<'_>) -> Result<(), BrokerError>,
    ) -> Result<(), BrokerError> {
        self.check_open()?;
        let batch = match &self.journal {
            Some(journal) => Some(journal.reserve(0).await?),
            None => None,
        };
        let written = {
            let mut routing = self.routing.write().unwrap_or_else(PoisonError::into_inner);
            let mut changing = routing::Change { routing: &mut routing, batch };
            change(&mut changing)?;
            // Handed over under the lock: nobody can publish to a queue before its own entry is on its way.
            changing.batch.filter(|batch| !batch.is_empty()).map(|batch| batch.commit(true))
        };
        match written {
            Some(written) => Ok(written.await?),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Broker for EmbeddedBroker {
    async fn declare(&self, queues: &[QueueSpec]) -> Result<(), BrokerError> {
        self.shared.change(|change| change.declare(queues)).await
    }

    async fn declare_exchanges(&self, names: &[String]) -> Result<(), BrokerError> {
        self.shared.change(|change| names.iter().try_for_each(|name| change.declare_exchange(name))).await
    }

    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<(), PublishError>> {
        publish::publish(&self.shared, messages).await
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError> {
        self.shared.check_open()?;
        let found = self.shared.routing.read().unwrap_or_else(PoisonError::into_inner).queue(queue);
        let queue = found.ok_or_else(|| BrokerError::Refused(format!("there is no queue {queue}")))?;
        let session = self.shared.sessions.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(EmbeddedConsumer::new(self.shared.clone(), queue, session, prefetch)?))
    }

    async fn queue_state(&self, queue: &str) -> Result<Option<QueueState>, BrokerError> {
        self.shared.check_open()?;
        let found = self.shared.routing.read().unwrap_or_else(PoisonError::into_inner).queue(queue);
        Ok(found.map(|queue| queue.state()))
    }

    async fn try_lock(&self, name: &str) -> Result<Option<Box<dyn Lock>>, BrokerError> {
        self.shared.check_open()?;
        let mut locks = self.shared.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = locks.insert(name.to_owned());
        Ok(taken.then(|| Box::new(Held { shared: self.shared.clone(), name: name.to_owned() }) as Box<dyn Lock>))
    }

    async fn info(&self) -> Result<BrokerInfo, BrokerError> {
        self.shared.check_open()?;
        Ok(BrokerInfo {
            product: "embedded".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            queue_type: "embedded".into(),
        })
    }

    fn is_ready(&self) -> bool {
        !self.shared.closed.load(Ordering::Acquire)
            && self.shared.journal.as_ref().is_none_or(|journal| journal.error().is_none())
    }

    fn operations(&self) -> Option<Arc<Operations>> {
        let operations = self.shared.operations.clone();
        operations.commits.store(self.commits(), Ordering::Relaxed);
        Some(operations)
    }

    async fn close(&self) {
        self.shared.end_sessions();
        let shared = self.shared.clone();
        let closed = tokio::task::spawn_blocking(move || {
            if let Some(journal) = &shared.journal {
                journal.close();
            }
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "closing the journal did not end well");
        }
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.shared.end_sessions();
        if let Some(journal) = &self.shared.journal {
            journal.close();
        }
    }
}

struct Held {
    shared: Arc<Shared>,
    name: String,
}

impl Lock for Held {
    fn is_held(&self) -> bool {
        !self.shared.closed.load(Ordering::Acquire)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.locks.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

impl From<JournalError> for BrokerError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::InUse(_) | JournalError::Failed(_) => Self::Refused(error.to_string()),
            JournalError::Corrupt(what) => Self::Corrupt(what),
            // There may be room again without anybody's doing.
            JournalError::Full(_) => Self::Unreachable(error.to_string()),
            JournalError::Closed => Self::Closed,
        }
    }
}
