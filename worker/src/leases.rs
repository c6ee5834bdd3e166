//! Leases of the attempts that run here, renewed together: one call of the store for all of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use taskyard_shared::TaskId;
use taskyard_shared::store::{Renew, Renewed, Store};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How often it is looked whether anything was to be cancelled: one number, however many tasks run.
const LOOK_EVERY: Duration = Duration::from_millis(200);

type Table = Mutex<BTreeMap<u128, Entry>>;

struct Entry {
    id: TaskId,
    lost: CancellationToken,
    unwanted: Arc<AtomicBool>,
}

#[derive(Clone, Default)]
pub(crate) struct Leases {
    table: Arc<Table>,
}

/// Renewed for as long as it is not dropped.
pub(crate) struct Lease {
    pub nonce: u128,
    /// The record is no longer this attempt's, or somebody wants it stopped.
    pub lost: CancellationToken,
    unwanted: Arc<AtomicBool>,
    table: Arc<Table>,
}

impl Lease {
    /// Somebody asked to cancel the task.
    pub fn is_unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Acquire)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&self.table).remove(&self.nonce);
    }
}

fn lock(table: &Table) -> std::sync::MutexGuard<'_, BTreeMap<u128, Entry>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Leases {
    pub fn hold(&self, id: TaskId, nonce: u128) -> Lease {
        let (lost, unwanted) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        lock(&self.table).insert(nonce, Entry { id, lost: lost.clone(), unwanted: unwanted.clone() });
        Lease { nonce, lost, unwanted, table: self.table.clone() }
    }

    /// Stops every attempt that runs.
    pub fn lose_all(&self) {
        for entry in lock(&self.table).values() {
            entry.lost.cancel();
        }
    }

    /// Renews until `done`, three times within a lease, and at once when somebody has asked to cancel something.
    pub async fn renew_until(self, store: Arc<dyn Store>, lease: Duration, done: CancellationToken) {
        let mut ticks = tokio::time::interval(lease / 3);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut cancellations = None;
        loop {
            tokio::select! {
                biased;
                _ = ticks.tick() => {}
                _ = looks.tick() => {
                    if lock(&self.table).is_empty() {
                        continue;
                    }
                    // While the store is away nothing can be renewed either, and that is logged.
                    match store.cancellations().await {
                        Ok(count) if cancellations.replace(count) != Some(count) => {}
                        Ok(_) | Err(_) => continue,
                    }
                }
                () = done.cancelled() => return,
            }
            let leases: Vec<Renew> = lock(&self.table)
                .iter()
                .map(|(&nonce, entry)| Renew { id: entry.id, nonce, lease_ms: lease.as_millis() as u64 })
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
                                if let Some(entry) = lock(&self.table).get(&of.nonce) {
                                    // First why, then that.
                                    let unwanted = renewed == Renewed::CancelRequested;
                                    entry.unwanted.store(unwanted, Ordering::Release);
                                    entry.lost.cancel();
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
