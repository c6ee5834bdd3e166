//! Opens broker and store by their URLs: which adapter stands behind a port is known here alone.

use std::path::Path;
use std::sync::Arc;

use super::settings::Settings;
use crate::broker::embedded::EmbeddedBroker;
use crate::broker::rabbitmq::RabbitMq;
use crate::broker::{Broker, BrokerError};
use crate::store::embedded::EmbeddedStore;
use crate::store::redis::RedisStore;
use crate::store::{Store, StoreError};
use crate::topology::Topology;

/// What follows `embedded:` in a URL: nothing, for memory, or a folder.
fn embedded(url: &str) -> Option<Option<&Path>> {
    let rest = url.strip_prefix("embedded:")?;
    Some((!rest.is_empty()).then(|| Path::new(rest)))
}

/// # Errors
/// When an embedded broker's folder cannot be used, or RabbitMQ does not answer as it should.
pub async fn open_broker(settings: &Settings) -> Result<Arc<dyn Broker>, BrokerError> {
    Ok(match embedded(&settings.broker.url) {
        Some(None) => Arc::new(EmbeddedBroker::in_memory()),
        Some(Some(folder)) => Arc::new(EmbeddedBroker::open(folder)?),
        None => Arc::new(RabbitMq::connect(&settings.broker).await?),
    })
}

/// # Errors
/// When an embedded store's folder cannot be used, or the URL of Redis cannot. Redis may be away: calls then fail until
/// it is back.
pub async fn open_store(settings: &Settings) -> Result<Arc<dyn Store>, StoreError> {
    let retention = settings.retention();
    let topology = Topology::new(&settings.broker.namespace);
    Ok(match embedded(&settings.store.url) {
        Some(None) => Arc::new(EmbeddedStore::in_memory(retention)),
        Some(Some(folder)) => Arc::new(EmbeddedStore::open(folder, retention)?),
        None => Arc::new(RedisStore::connect(&settings.store, &topology, retention)?),
    })
}

/// Deletes what a yard of this namespace has in RabbitMQ and in Redis: these queues and exchanges, and every key. What is
/// embedded is left alone.
///
/// # Errors
/// When the broker or the store does not carry it out; then some of it may still be there.
pub async fn erase(settings: &Settings, queues: &[String], exchanges: &[String]) -> Result<(), EraseError> {
    if embedded(&settings.broker.url).is_none() {
        let broker = RabbitMq::connect(&settings.broker).await?;
        for queue in queues {
            broker.delete_queue(queue).await?;
        }
        for exchange in exchanges {
            broker.delete_exchange(exchange).await?;
        }
        broker.close().await;
    }
    if embedded(&settings.store.url).is_none() {
        let topology = Topology::new(&settings.broker.namespace);
        RedisStore::connect(&settings.store, &topology, settings.retention())?.erase(&topology).await?;
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Store(#[from] StoreError),
}
