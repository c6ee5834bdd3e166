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
