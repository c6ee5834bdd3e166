//! The broker port: durable queues, confirmed publishing, batches of deliveries, batches of acks.
//!
//! Two adapters stand behind it, [`rabbitmq`] and [`embedded`], and [`contract`] is the suite that both pass.
//! A hand-over is always: publish, wait for the confirm, then ack. What the port promises:
//!
//! - `Ok(())` for a published message means that it is safe in a queue, and on disk where the queue is durable.
//! - A delivery that is not acked comes again, after any cut and any restart, with `redelivered` set.
//! - An adapter rebuilds its session by itself. A consumer that was cut answers one error: every tag it gave is then
//!   void (acking one does nothing), and the owner consumes again.

pub mod contract;
pub mod embedded;
mod operations;
pub mod rabbitmq;
mod receipt;
mod surely;

pub use operations::Operations;
pub use receipt::{Receipt, settle};
pub use surely::{Closing, Missed, Need, publish_surely};

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

/// Where a message is sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// Straight into a queue.
    Queue(String),
    /// Through an exchange, with a routing key.
    Exchange { name: String, key: String },
}

/// The properties that Taskyard reads and writes. They are built anew for every message, never copied from one that
/// came (a copied `x-death` makes RabbitMQ 3.10 drop messages).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Properties {
    pub message_id: Option<String>,
    pub correlation_id: Option<String>,
    pub reply_to: Option<String>,
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    /// AMQP's `type`: `workflow` for a workflow.
    pub kind: Option<String>,
    pub app_id: Option<String>,
    pub priority: Option<u8>,
    /// Milliseconds, as text. Only read: Taskyard never sets it.
    pub expiration: Option<String>,
    /// Headers that are text; others are not carried over.
    pub headers: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
pub struct Message {
    pub to: Destination,
    pub body: Bytes,
    pub properties: Properties,
    /// Survives a restart of the broker, in a durable queue.
    pub persistent: bool,
    /// Refuse it when it reaches no queue; otherwise it is dropped and confirmed.
    pub mandatory: bool,
}

impl Message {
    /// A persistent, mandatory message of JSON into a queue.
    pub fn to_queue(queue: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            to: Destination::Queue(queue.into()),
            body: body.into(),
            properties: Properties { content_type: Some("application/json".into()), ..Properties::default() },
            persistent: true,
            mandatory: true,
        }
    }
}

/// Names one delivery of one consumer's session. Void after a cut.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tag {
    /// Counts the consumer's sessions; no two consumers of a broker value share one.
    pub session: u64,
    pub number: u64,
}

#[derive(Clone, Debug)]
pub struct Delivery {
    pub tag: Tag,
    pub body: Bytes,
    pub properties: Properties,
    pub routing_key: String,
    pub redelivered: bool,
}

/// What is to become of a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Done with: forget it.
    Ack,
    /// Give it back, for another consumer or a later time.
    Requeue,
}

/// Settles deliveries of one consumer, from anywhere. Cheap to clone.
#[async_trait]
pub trait Acker: Send + Sync {
    /// Settles all of them, with as few messages to the broker as it takes. Answers how many were not settled because
    /// their session is gone: those deliveries come again.
    async fn settle(&self, tags: Vec<Tag>, verdict: Verdict) -> usize;
}

/// Deliveries of one queue to one consumer.
#[async_trait]
pub trait Consumer: Send {
    /// Waits for at least one delivery and answers all that are at hand, up to `most`. Cancel safe.
    ///
    /// # Errors
    /// When the session was cut or the queue is gone: every tag so far is void. Call [`Broker::consume`] again.
    async fn next_batch(&mut self, most: usize) -> Result<Vec<Delivery>, BrokerError>;

    fn acker(&self) -> Arc<dyn Acker>;

    /// Takes no more deliveries. What was delivered stays to be settled, and what is not settled when the consumer is
    /// dropped goes back to the queue.
    async fn cancel(&mut self) -> Result<(), BrokerError>;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueKind {
    /// Holds work: durable, of the type that the settings choose.
    Durable,
    /// Belongs to this process and is gone with its connection. Never replicated.
    Exclusive,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueueSpec {
    pub name: String,
    pub kind: QueueKind,
    /// Exchange and routing key pattern, each a binding. The exchanges are declared as durable topic exchanges.
    pub bindings: Vec<(String, String)>,
    /// A fuse: over this many messages, publishing is refused. Soft under pipelined publishing.
    pub max_length: Option<u64>,
}

impl QueueSpec {
    pub fn durable(name: impl Into<String>) -> Self {
        Self { name: name.into(), kind: QueueKind::Durable, bindings: Vec::new(), max_length: None }
    }

    pub fn exclusive(name: impl Into<String>) -> Self {
        Self { name: name.into(), kind: QueueKind::Exclusive, bindings: Vec::new(), max_length: None }
    }

    pub fn bound(mut self, exchange: impl Into<String>, pattern: impl Into<String>) -> Self {
        self.bindings.push((exchange.into(), pattern.into()));
        self
    }
}

/// How many messages wait in a queue, and who reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueState {
    /// Ready messages; those delivered and not acked are not among them.
    pub ready: u64,
    pub consumers: u32,
}

/// What is known of the broker at the other end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrokerInfo {
    /// `RabbitMQ` or `embedded`.
    pub product: String,
    pub version: String,
    /// `classic`, `quorum` or `embedded`: what [`QueueKind::Durable`] comes to.
    pub queue_type: String,
}

/// Held for as long as the connection that took it lives.
pub trait Lock: Send + Sync {
    /// `false` once the connection is gone: somebody else may hold it now.
    fn is_held(&self) -> bool;
}

#[async_trait]
pub trait Broker: Send + Sync {
    /// Declares the queues, their exchanges and bindings. Safe to repeat; an exclusive queue is declared again by
    /// whoever consumes it after a cut.
    ///
    /// # Errors
    /// [`BrokerError::Mismatch`] when a queue stands there with other arguments.
    async fn declare(&self, queues: &[QueueSpec]) -> Result<(), BrokerError>;

    /// Declares topic exchanges, durable.
    async fn declare_exchanges(&self, names: &[String]) -> Result<(), BrokerError>;

    /// Publishes all, in order, with their confirms awaited together. One answer per message, in their order; each
    /// is bounded by the publish time-out. A failed publish may still have landed.
    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<(), PublishError>>;

    /// `prefetch` bounds the deliveries not yet settled; it is at least 1. They come in the queue's order; only roughly so
    /// while thousands are not settled.
    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError>;

    /// `None` when there is no such queue.
    async fn queue_state(&self, queue: &str) -> Result<Option<QueueState>, BrokerError>;

    /// Takes a lock that no two connections hold at once; `None` when another does.
    async fn try_lock(&self, name: &str) -> Result<Option<Box<dyn Lock>>, BrokerError>;

    async fn info(&self) -> Result<BrokerInfo, BrokerError>;

    /// Whether publishing is believed possible now: connected, and no alarm at the broker.
    fn is_ready(&self) -> bool;

    /// What was done so far, for metrics; `None` when nobody counts.
    fn operations(&self) -> Option<Arc<Operations>> {
        None
    }

    /// Closes the connections in good order; deliveries not yet settled go back.
    async fn close(&self);
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("the broker cannot be reached: {0}")]
    Unreachable(String),
    #[error("the broker did not answer within {0} ms")]
    TimedOut(u64),
    #[error("the session with the broker was cut: {0}")]
    Cut(String),
    #[error("{queue} exists with other arguments: {detail}")]
    Mismatch { queue: String, detail: String },
    #[error("the broker refused: {0}")]
    Refused(String),
    #[error("the broker's data cannot be used: {0}")]
    Corrupt(String),
    #[error("the broker was closed")]
    Closed,
}

impl BrokerError {
    /// Whether trying again later can help without anybody changing something.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TimedOut(_) | Self::Cut(_) => true,
            Self::Mismatch { .. } | Self::Refused(_) | Self::Corrupt(_) | Self::Closed => false,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PublishError {
    /// Mandatory, and no queue took it.
    #[error("no queue takes it")]
    Unroutable,
    /// The broker said no: a full queue.
    #[error("the broker refused it: a queue is full")]
    Full,
    /// Larger than the broker takes.
    #[error("too large for the broker")]
    TooLarge,
    /// Not known whether it landed: repeat it, under the same id.
    #[error("not confirmed: {0}")]
    Unknown(String),
}
