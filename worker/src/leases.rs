//! Leases of the attempts that run here, renewed together: one call of the store for all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use taskyard_shared::TaskId;
use taskyard_shared::store::{Renew, Renewed, Store};
use tokio_util::sync::CancellationToken;
use tracing::warn;

type Table = Mutex<HashMap<u128, (TaskId, CancellationToken)>>;

#[derive(Clone, Default)]
pub(crate) struct Leases {
    table: Arc<Table>,
}

/// Renewed for as long as it is not dropped.
pub(crate) struct Lease {
    pub nonce: u128,
    /// The record is no longer this attempt's, or somebody wants it stopped.
    pub lost: CancellationToken,
    table: Arc<Table>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&self.table).remove(&self.nonce);
    }
}

fn lock(table: &Table) -> std::sync::MutexGuard<'_, HashMap<u128, (TaskId, CancellationToken)>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Leases {
    pub fn hold(&self, id: TaskId, nonce: u128) -> Lease {
        let lost = CancellationToken::new();
        lock(&self.table).insert(nonce, (id, lost.clone()));
        Lease { nonce, lost, table: self.table.clone() }
    }

    /// Stops every attempt that runs.
    pub fn lose_all(&self) {
        for (_, lost) in lock(&self.table).values() {
            lost.cancel();
        }
    }

    /// Renews until `done`, three times within a lease.
    pub async fn renew_until(self, store: Arc<dyn Store>, lease: Duration, done: CancellationToken) {
        let mut ticks = tokio::time::interval(lease / 3);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = done.cancelled() => return,
            }
            let leases: Vec<Renew> = lock(&self.table)
                .iter()
                .map(|(&nonce, &(id, _))| Renew { id, nonce, lease_ms: lease.as_millis() as u64 })
                .collect();
            if leases.is_empty() {
                continue;
            }
            match store.renew(leases.clone()).await {
                Ok(renewed) => {
                    for (renewed, of) in renewed.into_iter().zip(leases) {
                        match renewed {
                            Renewed::Renewed => {}
                            // A store that lost the record: settling creates it again.
                            Renewed::Unknown => {}
                            Renewed::Lost | Renewed::CancelRequested => {
                                if let Some((_, lost)) = lock(&self.table).get(&of.nonce) {
                                    lost.cancel();
                                }
                            }
                        }
                    }
                }
                Err(failure) => warn!(%failure, leases = leases.len(), "leases could not be renewed"),
            }
        }
    }
}
