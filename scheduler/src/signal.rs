//! What the scheduler says of its shard, once a second and a little oftener while it refuses tasks, for gateways, for autoscalers, and for the other shards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::signal::{ModelSignal, Overload, Signal, TenantSignal, Times, VERSION};
use taskyard_shared::store::Store;
use taskyard_shared::{Kind, Timestamp};
use tokio::time::Instant;
use tracing::debug;

use crate::core::Core;
use crate::metrics::Metrics;
use crate::planner::{Demand, LOW, ModelStats, Stats};
use crate::wanted::Outlook;

/// While nothing waits and nothing is limited, it is said so often: that is well within the time after which it is too old.
const QUIET: Duration = Duration::from_secs(4);
/// While tasks are refused, it is said no more often than so.
const SOON: Duration = Duration::from_millis(200);
/// When more tenants than this crowd a model, no names are said.
const TENANTS: usize = 256;
/// A signal of another shard that is older says nothing of now; milliseconds.
const OLD_MS: f64 = 10_000.0;

impl Core {
    /// What is refused was not said a moment ago: it is said again, for what is refused by the gateway is not accepted first.
    pub fn signal_soon(&mut self) {
        if self.refuses && self.signalled.elapsed() >= SOON {
            while self.signalling.try_join_next().is_some() {}
            let stats = self.planner.stats();
            self.signal(&stats);
        }
    }

    /// Once a second.
    pub fn signal(&mut self, stats: &Stats) {
        let now = Instant::now();
        let demand = self.planner.demand(self.clock.now_us());
        let low_seconds = self.settings.overload_s * LOW;
        let Self { wanted, offers, models, settings, .. } = self;
        let per_worker = |model: &str| {
            let announced = models.get(model).map(|spec| f64::from(spec.slots) * f64::from(spec.max_batch.max(1)));
            offers.per_worker(model).or(announced).unwrap_or(1.0)
        };
        let outlooks = wanted.look(now, &demand, settings, low_seconds, per_worker);
        self.metrics.demand(&demand, &outlooks);
        let is_quiet = stats.models.iter().all(|model| model.waiting == 0) && self.quotas.is_empty();
        // The next second comes soon enough when the store is slow.
        if is_quiet && self.signalled.elapsed() < QUIET || !self.signalling.is_empty() {
            return;
        }
        (self.signalled, self.refuses) = (now, false);
        let signal = self.signal_of(stats, &demand, &outlooks);
        self.signalling.spawn(say(self.store.clone(), self.metrics.clone(), signal));
    }

    pub fn set_elsewhere(&mut self, waiting: &BTreeMap<String, u64>) {
        for tenant in self.quotas.keys() {
            let tasks = waiting.get(tenant).copied().unwrap_or(0);
            self.planner.handle_elsewhere(tenant, usize::try_from(tasks).unwrap_or(usize::MAX));
        }
    }

    /// So many messages are in intake. While there is room they are about to be read; else this shard has its part of them.
    pub fn set_unread(&mut self, messages: u64) {
        let is_full = self.held.len() + self.unknown.len() >= self.settings.window_tasks / 10 * 9;
        let part = usize::try_from(messages / u64::from(self.shard.of.max(1))).unwrap_or(usize::MAX);
        self.planner.handle_unread(if is_full { part } else { 0 });
    }

    fn signal_of(&self, stats: &Stats, demand: &[Demand], outlooks: &[Outlook]) -> Signal {
        let mut models: BTreeMap<String, ModelSignal> = self
            .models
            .values()
            .map(|spec| {
                let capabilities = spec.capabilities.clone();
                (spec.name.clone(), ModelSignal { capabilities, ..ModelSignal::default() })
            })
            .collect();
        for model in &stats.models {
            let signal = models.entry(model.model.to_string()).or_default();
            signal.waiting = model.waiting as u64;
            signal.drain_seconds = model.drain_seconds;
        }
        // Both are by name.
        for (demand, outlook) in demand.iter().zip(outlooks) {
            let signal = models.entry(demand.model.to_string()).or_default();
            signal.workers_wanted = outlook.workers;
            let of_model = stats.models.binary_search_by(|model| model.model.cmp(&demand.model));
            let of_model = of_model.ok().and_then(|at| stats.models.get(at));
            signal.overload = of_model.and_then(|model| self.overload(model, outlook));
        }
        let tenants = self.quotas.iter().map(|(name, quota)| {
            let waiting =
                stats.tenants.iter().find(|tenant| *tenant.tenant == **name).map_or(0, |tenant| tenant.waiting);
            (name.clone(), TenantSignal { waiting: waiting as u64, ..quota.clone() })
        });
        Signal {
            v: VERSION,
            shard: self.shard.number,
            shards: self.shard.of,
            at: Timestamp::now(),
            models,
            tenants: tenants.collect(),
        }
    }

    fn overload(&self, model: &ModelStats, outlook: &Outlook) -> Option<Overload> {
        let least_worth = model.least_worth.filter(|_| model.is_overloaded)?;
        let times = Kind::ALL.map(|kind| {
            let seconds = |cost| self.planner.expected(&model.model, kind, cost).mean_seconds;
            (kind, Times::of(seconds))
        });
        let tenants = self.planner.crowding(&model.model, TENANTS);
        let tenants = tenants.map(|tenants| tenants.iter().map(ToString::to_string).collect());
        Some(Overload { least_worth, retry_after_s: outlook.retry_after_s, tenants, times: times.into() })
    }
}

async fn say(store: Arc<dyn Store>, metrics: Metrics, signal: Signal) {
    let key = Signal::key(signal.shard);
    let said = match serde_json::to_vec(&signal) {
        Ok(bytes) => store.put(&key, bytes.into()).await.map_err(|failure| failure.to_string()),
        Err(failure) => Err(failure.to_string()),
    };
    if let Err(failure) = said {
        debug!(failure, "how much waits could not be said");
        metrics.store_failed("put");
    }
}

/// How many tasks of each tenant wait on the other shards, as far as they said so lately.
pub(crate) async fn waiting_elsewhere(store: &dyn Store, own: u32, of: u32) -> BTreeMap<String, u64> {
    let mut waiting: BTreeMap<String, u64> = BTreeMap::new();
    for shard in (0..of).filter(|&shard| shard != own) {
        let Ok(Some(bytes)) = store.fetch(&Signal::key(shard)).await else { continue };
        let Ok(signal) = serde_json::from_slice::<Signal>(&bytes) else { continue };
        if signal.v != VERSION || Timestamp::now().ms_since(signal.at) > OLD_MS {
            continue;
        }
        for (tenant, said) in signal.tenants {
            let sum = waiting.entry(tenant).or_default();
            *sum = sum.saturating_add(said.waiting);
        }
    }
    waiting
}
