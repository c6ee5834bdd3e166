//! What the planner has learnt of run times, kept in the store across restarts: one value for each shard.

use std::sync::Arc;

use taskyard_shared::store::Store;
use tracing::{debug, info, warn};

use crate::metrics::Metrics;
use crate::planner::Learnt;
use crate::shard::Shard;

fn key(shard: Shard) -> String {
    format!("learnt.{}", shard.number)
}

/// What the shard knew when it was last kept. Nothing when there is none, or it cannot be read: all is then learnt anew.
pub(crate) async fn recall(store: &dyn Store, shard: Shard, metrics: &Metrics) -> Learnt {
    let kept = match store.fetch(&key(shard)).await {
        Ok(Some(kept)) => kept,
        Ok(None) => return Learnt::default(),
        Err(failure) => {
            warn!(%failure, "what was learnt of run times cannot be read: it is learnt anew");
            metrics.store_failed("fetch");
            return Learnt::default();
        }
    };
    match serde_json::from_slice(&kept) {
        Ok(learnt) => learnt,
        Err(failure) => {
            info!(%failure, "what was learnt of run times is of another version: it is learnt anew");
            Learnt::default()
        }
    }
}

pub(crate) async fn keep(store: Arc<dyn Store>, shard: Shard, metrics: Metrics, learnt: Learnt) {
    let written = match serde_json::to_vec(&learnt) {
        Ok(written) => written,
        Err(failure) => {
            warn!(%failure, "what was learnt of run times cannot be written down");
            return;
        }
    };
    if let Err(failure) = store.put(&key(shard), written.into()).await {
        debug!(%failure, "what was learnt of run times was not kept: again later");
        metrics.store_failed("put");
    }
}
