//! The broker port on RabbitMQ 3.10 and later. The only place that knows lapin.
//!
//! Two connections: messages go out on one and come in on the other, because a broker that is short of memory stops
//! reading from whoever publishes, acks included. `link` keeps each of them up; `publish`, `consume` and
//! `declare` work on whatever session stands; `endpoint` and `session` are one connection.

mod consume;
mod convert;
mod declare;
mod endpoint;
mod errors;
mod link;
mod publish;
pub mod relay;
mod session;
pub mod slots;
mod strands;
mod traffic;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use tokio::time::Instant;

use self::consume::{RabbitConsumer, Share};
use self::declare::{Declarer, DurableType, Held};
use self::endpoint::{Endpoint, Greeting};
use self::link::Link;
use self::publish::Publisher;
use self::session::Session;
use self::strands::Strands;
use super::{
    Broker, BrokerError, BrokerInfo, Consumer, Lock, Message, Operations, PublishError, QueueSpec, QueueState,
};
use crate::process::settings::{BrokerSettings, QueueType};

/// A quorum queue whose broker is killed in the second after its declaration comes back without its messages, or not at
/// all: the broker has not yet written down that it exists.
const FRESH_QUORUM_WAIT: Duration = Duration::from_secs(2);

/// A connected RabbitMQ. It reconnects by itself until it is closed or dropped.
pub struct RabbitMq {
    publisher: Arc<Publisher>,
    consuming: Link,
    greeting: Greeting,
    durable: DurableType,
    held: Arc<Held>,
    consumers: AtomicU64,
    operations: Arc<Operations>,
    connect_limit: Duration,
    /// For one answer on a session that stands.
    answer_limit: Duration,
}

impl RabbitMq {
    /// Connects, in one try. Afterwards the connections are kept up without end.
    ///
    /// # Errors
    /// A sentence on what to change, without the password: [`BrokerError::Refused`] for credentials, virtual host or a
    /// URL that cannot be read, [`BrokerError::Unreachable`] and [`BrokerError::TimedOut`] for the rest.
    pub async fn connect(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let endpoint = Arc::new(Endpoint::new(settings)?);
        let receiving = Arc::new(Endpoint::receiving(settings)?.counting(endpoint.operations()));
        let greeting = endpoint.greet().await?;
        let durable = match settings.queue_type {
            QueueType::Classic => DurableType::Classic,
            QueueType::Quorum => DurableType::Quorum,
            QueueType::Auto if major(&greeting.version) >= Some(4) => DurableType::Quorum,
            QueueType::Auto => DurableType::Classic,
        };
        let name = |role: &str| format!("{} {role}", settings.namespace);
        let (publishing, consuming) = (name("publishing"), name("consuming"));
        let (publish_session, consume_session) =
            tokio::try_join!(Session::open(&endpoint, &publishing, 1), Session::open(&receiving, &consuming, 1))?;
        let answer_limit = Duration::from_millis(settings.publish_timeout_ms);
        let channel_max = publish_session.connection.configuration().channel_max();
        let link = Link::start(endpoint.clone(), publishing, publish_session);
        tracing::info!(
            broker.address = %endpoint.address(),
            broker.version = %greeting.version,
            broker.queue_type = durable.name(),
            "connected to the broker"
        );
        Ok(Self {
            publisher: Arc::new(Publisher::new(link, channel_max, settings.in_flight, answer_limit)),
            consuming: Link::start(receiving, consuming, consume_session),
            greeting,
            durable,
            held: Arc::default(),
            consumers: AtomicU64::new(1),
            operations: endpoint.operations(),
            connect_limit: endpoint.connect_limit(),
            answer_limit,
        })
    }

    /// Deletes a queue with everything in it. No error when there is none.
    pub async fn delete_queue(&self, queue: &str) -> Result<(), BrokerError> {
        let session = self.session().await?;
        self.declarer(&session).delete_queue(queue).await
    }

    /// Deletes an exchange. No error when there is none.
    pub async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        let session = self.session().await?;
        self.declarer(&session).delete_exchange(exchange).await
    }

    async fn session(&self) -> Result<Arc<Session>, BrokerError> {
        self.consuming.session(Instant::now() + self.connect_limit).await
    }

    fn declarer<'a>(&self, session: &'a Arc<Session>) -> Declarer<'a> {
        Declarer { session, durable: self.durable, limit: self.answer_limit }
    }
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

#[async_trait]
impl Broker for RabbitMq {
    async fn declare(&self, queues: &[QueueSpec]) -> Result<(), BrokerError> {
        let session = self.session().await?;
        let declarer = self.declarer(&session);
        let mut fresh = false;
        for spec in queues {
            fresh |= declarer.queue(spec).await?;
        }
        if fresh {
            tokio::time::sleep(FRESH_QUORUM_WAIT).await;
        }
        Ok(())
    }

    async fn declare_exchanges(&self, names: &[String]) -> Result<(), BrokerError> {
        let session = self.session().await?;
        for name in names {
            self.declarer(&session).exchange(name).await?;
        }
        Ok(())
    }

    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<(), PublishError>> {
        self.publisher.clone().publish(messages).await
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError> {
        let session = self.session().await?;
        let name = convert::short(queue)
            .map_err(|_| BrokerError::Refused(format!("a name of {} bytes is too long for AMQP", queue.len())))?;
        let acks_linger = self.durable == DurableType::Quorum;
        let open = |share| {
            let number = self.consumers.fetch_add(1, Ordering::Relaxed);
            RabbitConsumer::open(session.clone(), name.clone(), share, number, acks_linger, self.answer_limit)
        };
        let count = strands::strands(prefetch);
        if count == 1 {
            return Ok(Box::new(open(Share { prefetch, priority: 0, is_patient: false }).await?));
        }
        let share = |strand| Share { prefetch: prefetch.div_ceil(count), priority: -(strand as i16), is_patient: true };
        let opened = try_join_all((0..count).map(|strand| open(share(strand)))).await?;
        Ok(Box::new(Strands::new(opened)))
    }

    async fn queue_state(&self, queue: &str) -> Result<Option<QueueState>, BrokerError> {
        let session = self.session().await?;
        self.declarer(&session).state(queue).await
    }

    async fn try_lock(&self, name: &str) -> Result<Option<Box<dyn Lock>>, BrokerError> {
        let session = self.session().await?;
        self.declarer(&session).lock(name, &self.held).await
    }

    /// The version is that of the broker first connected to.
    async fn info(&self) -> Result<BrokerInfo, BrokerError> {
        if self.consuming.is_closed() {
            return Err(BrokerError::Closed);
        }
        Ok(BrokerInfo {
            product: self.greeting.product.clone(),
            version: self.greeting.version.clone(),
            queue_type: self.durable.name().to_owned(),
        })
    }

    fn is_ready(&self) -> bool {
        self.publisher.link.is_ready() && self.consuming.is_ready()
    }

    fn operations(&self) -> Option<Arc<Operations>> {
        Some(self.operations.clone())
    }

    async fn close(&self) {
        self.publisher.settle_down().await;
        self.publisher.link.close().await;
        self.consuming.close().await;
    }
}
