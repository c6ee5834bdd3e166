//! Queues, exchanges, bindings and locks. Each question goes over a channel of its own, because the broker answers
//! what it does not like by closing the channel.
//!
//! All of it runs on the consuming connection: an exclusive queue belongs to the connection that declared it, and a
//! publishing connection stands still during an alarm.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind, Queue};
use tokio::runtime::Handle;

use super::convert::short;
use super::errors::{self, Failure, within};
use super::session::{Session, retire};
use crate::broker::{BrokerError, Lock, QueueKind, QueueSpec, QueueState};

/// Unset means unlimited on RabbitMQ 3.10 and 20 on 4.0, where the 21st delivery drops the message; -1 means unlimited
/// on 4.0, and on 3.10 it drops the message at its first redelivery. Attempts are counted in the envelope.
const DELIVERY_LIMIT: i64 = 1_000_000;

/// What [`QueueKind::Durable`] comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DurableType {
    Classic,
    Quorum,
}

impl DurableType {
    pub(super) fn name(self) -> &'static str {
        match self {
            DurableType::Classic => "classic",
            DurableType::Quorum => "quorum",
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Declarer<'a> {
    pub(super) session: &'a Arc<Session>,
    pub(super) durable: DurableType,
    /// For one answer of the broker.
    pub(super) limit: Duration,
}

impl Declarer<'_> {
    /// Whether the queue is a quorum queue that did not exist before.
    pub(super) async fn queue(&self, spec: &QueueSpec) -> Result<bool, BrokerError> {
        let name = self.name(&spec.name)?;
        let quorum = spec.kind == QueueKind::Durable && self.durable == DurableType::Quorum;
        let fresh = quorum && self.state(&spec.name).await?.is_none();

        let exclusive = spec.kind == QueueKind::Exclusive;
        let options =
            QueueDeclareOptions { passive: false, durable: !exclusive, exclusive, auto_delete: false, nowait: false };
        let arguments = self.arguments(spec);
        let declared =
            self.on_channel(async |channel| channel.queue_declare(name.clone(), options, arguments).await).await;
        match declared {
            Ok(_) => {}
            Err(failure) if failure.code() == Some(errors::ACCESS_REFUSED) && !exclusive => {
                return self.left_to_others(spec, failure).await;
            }
            Err(failure) => {
                return Err(match failure.code() {
                    Some(errors::PRECONDITION_FAILED) => {
                        BrokerError::Mismatch { queue: spec.name.clone(), detail: failure.text() }
                    }
                    // The broker has not noticed yet that the connection which had it is gone.
                    Some(errors::RESOURCE_LOCKED) if exclusive => BrokerError::Cut(failure.text()),
                    _ => failure.into(),
                });
            }
        }

        for (exchange, pattern) in &spec.bindings {
            self.exchange(exchange).await?;
            let (exchange, pattern) = (self.name(exchange)?, self.name(pattern)?);
            let (options, none) = (QueueBindOptions::default(), FieldTable::default());
            self.on_channel(async |channel| channel.queue_bind(name.clone(), exchange, pattern, options, none).await)
                .await?;
        }
        Ok(fresh)
    }

    /// A role whose broker user may not declare a queue uses it as whoever may has made it, bindings and all. Whether it
    /// exists can be asked without any right on RabbitMQ before 4.3; after that the question is refused too, and a queue
    /// that is missing shows when a mandatory message finds it so.
    async fn left_to_others(&self, spec: &QueueSpec, refused: Failure) -> Result<bool, BrokerError> {
        match self.state(&spec.name).await {
            Ok(Some(_)) | Err(BrokerError::Refused(_)) => Ok(false),
            Ok(None) => Err(refused.into()),
            Err(failure) => Err(failure),
        }
    }

    fn arguments(&self, spec: &QueueSpec) -> FieldTable {
        let durable = match spec.kind {
            QueueKind::Durable => self.durable,
            QueueKind::Exclusive => DurableType::Classic,
        };
        let mut arguments = FieldTable::default();
        let mut text = |name: &str, value: &str| {
            arguments.insert(name.into(), AMQPValue::LongString(value.into()));
        };
        // Without it the virtual host's default decides, which differs from broker to broker.
        text("x-queue-type", durable.name());
        if spec.max_length.is_some() {
            // The default is to drop the oldest, silently.
            text("x-overflow", "reject-publish");
        }
        if let Some(most) = spec.max_length {
            let most = i64::try_from(most).unwrap_or(i64::MAX);
            arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(most));
        }
        if durable == DurableType::Quorum {
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
        }
        arguments
    }

    /// A durable topic exchange.
    pub(super) async fn exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        let name = self.name(exchange)?;
        let options = ExchangeDeclareOptions {
            passive: false,
            durable: true,
            auto_delete: false,
            internal: false,
            nowait: false,
        };
        let none = FieldTable::default();
        let declared =
            self.on_channel(async |channel| channel.exchange_declare(name, ExchangeKind::Topic, options, none).await);
        declared.await.map_err(|failure| match failure.code() {
            Some(errors::PRECONDITION_FAILED) => {
                BrokerError::Mismatch { queue: exchange.to_owned(), detail: failure.text() }
            }
            _ => failure.into(),
        })
    }

    /// `None` when there is no such queue.
    pub(super) async fn state(&self, queue: &str) -> Result<Option<QueueState>, BrokerError> {
        let name = self.name(queue)?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let none = FieldTable::default();
        match self.on_channel(async |channel| channel.queue_declare(name, options, none).await).await {
            Ok(queue) => Ok(Some(queue_state(&queue))),
            Err(failure) if failure.code() == Some(errors::NOT_FOUND) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    pub(super) async fn delete_queue(&self, queue: &str) -> Result<(), BrokerError> {
        let name = self.name(queue)?;
        let options = QueueDeleteOptions::default();
        // The broker takes it well when there is none.
        self.on_channel(async |channel| channel.queue_delete(name, options).await).await?;
        Ok(())
    }

    pub(super) async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        let name = self.name(exchange)?;
        let options = ExchangeDeleteOptions::default();
        Ok(self.on_channel(async |channel| channel.exchange_delete(name, options).await).await?)
    }

    /// An exclusive queue is the lock: it goes with its connection.
    pub(super) async fn lock(&self, name: &str, held: &Arc<Held>) -> Result<Option<Box<dyn Lock>>, BrokerError> {
        // The broker lets a connection declare its own exclusive queue again, so a second claim from here is told apart
        // here.
        let Some(claim) = held.claim(self.session.number, name) else { return Ok(None) };
        let queue = self.name(name)?;
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let arguments = self.arguments(&QueueSpec::exclusive(name));
        match self.on_channel(async |channel| channel.queue_declare(queue, options, arguments).await).await {
            Ok(_) => {
                Ok(Some(Box::new(RabbitLock { claim: Some(claim), session: self.session.clone(), limit: self.limit })))
            }
            Err(failure) if failure.code() == Some(errors::RESOURCE_LOCKED) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    fn name(&self, name: &str) -> Result<ShortString, BrokerError> {
        short(name).map_err(|_| BrokerError::Refused(format!("a name of {} bytes is too long for AMQP", name.len())))
    }

    async fn on_channel<T>(&self, ask: impl AsyncFnOnce(&Channel) -> lapin::Result<T>) -> Result<T, Failure> {
        let channel = self.session.channel(self.limit).await?;
        let answer = within(self.limit, ask(&channel)).await;
        retire(channel);
        answer
    }
}

fn queue_state(queue: &Queue) -> QueueState {
    QueueState { ready: u64::from(queue.message_count()), consumers: queue.consumer_count() }
}

/// The locks that this process holds or is about to take.
#[derive(Default)]
pub(super) struct Held(Mutex<HashSet<(u64, String)>>);

impl Held {
    fn claim(self: &Arc<Self>, session: u64, name: &str) -> Option<Claim> {
        let key = (session, name.to_owned());
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(key.clone()).then(|| Claim { held: self.clone(), key })
    }
}

struct Claim {
    held: Arc<Held>,
    key: (u64, String),
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.held.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

struct RabbitLock {
    claim: Option<Claim>,
    session: Arc<Session>,
    limit: Duration,
}

impl Lock for RabbitLock {
    fn is_held(&self) -> bool {
        self.session.is_alive()
    }
}

impl Drop for RabbitLock {
    fn drop(&mut self) {
        let (Ok(runtime), true) = (Handle::try_current(), self.session.is_alive()) else { return };
        let Some(claim) = self.claim.take() else { return };
        let Ok(queue) = short(&claim.key.1) else { return };
        let (session, limit) = (self.session.clone(), self.limit);
        runtime.spawn(async move {
            // When it fails, the lock goes with the connection.
            if let Ok(channel) = session.channel(limit).await {
                let _ = within(limit, channel.queue_delete(queue, QueueDeleteOptions::default())).await;
                retire(channel);
            }
            // Only now: whoever takes it next must not lose its queue to this.
            drop(claim);
        });
    }
}
