//! Tells the store what this worker serves and how busy it is, until it leaves.

use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::Timestamp;
use taskyard_shared::load::{LoadReport, ModelSpec};
use taskyard_shared::store::Store;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::holdings::Budget;
use crate::lane::Lanes;
use crate::memory::resident_mb;
use crate::metrics::Metrics;

/// A report outlives so many that fail to follow it.
const OUTLIVES: u32 = 6;
/// Announcements are repeated every so many reports, for a store that was emptied.
const ANNOUNCE_EVERY: u32 = 10;

pub(crate) struct Reporter {
    pub store: Arc<dyn Store>,
    pub worker: String,
    pub every: Duration,
    pub budget: Budget,
    /// Tasks at once of all models; 0: what the models have.
    pub slots: u32,
    pub lanes: Lanes,
    pub metrics: Metrics,
    pub draining: CancellationToken,
}

impl Reporter {
    /// Reports until `done`, and then takes the report away.
    pub async fn run(self, done: CancellationToken) {
        let started = Timestamp::now();
        let mut changes = self.lanes.changes();
        let ttl_ms = (self.every * OUTLIVES).as_millis() as u64;
        let mut ticks = tokio::time::interval(self.every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut count, mut failing) = (0u32, false);
        loop {
            tokio::select! {
                biased;
                () = done.cancelled() => break,
                _ = ticks.tick() => {}
                // A model that is new here is announced at once.
                Ok(()) = changes.changed() => count = 0,
            }
            let lanes = self.lanes.all();
            for lane in &lanes {
                self.metrics.slots(&lane.spec.name, &lane.load());
            }
            let announced = match count.is_multiple_of(ANNOUNCE_EVERY) {
                true => {
                    let specs: Vec<ModelSpec> = lanes.iter().map(|lane| lane.spec.clone()).collect();
                    self.store.announce(&specs).await
                }
                false => Ok(()),
            };
            let report = LoadReport {
                worker: self.worker.clone(),
                host: host_name(),
                pid: std::process::id(),
                started,
                at: Timestamp::now(),
                draining: self.draining.is_cancelled(),
                memory_mb: resident_mb(),
                budget_mb: self.budget.memory_mb,
                budget_gpus: self.budget.gpus,
                slots: self.slots,
                models: lanes.iter().map(|lane| (lane.spec.name.clone(), lane.load())).collect(),
            };
            match announced.and(self.store.report_load(&report, ttl_ms).await) {
                Ok(()) => {
                    failing = false;
                    count = count.wrapping_add(1);
                }
                Err(failure) => {
                    if !failing {
                        warn!(%failure, "the load cannot be reported");
                    }
                    failing = true;
                    // The announcement comes first when the store is back.
                    count = 0;
                }
            }
        }
        if let Err(failure) = self.store.remove_load(&self.worker).await {
            warn!(%failure, "the load report stays until it expires");
        }
    }
}

/// The host's name, as the kernel has it.
pub(crate) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}
