//! The worker service: serves its models until it is told to stop, finishes what runs, and gives back the rest.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::artifacts::Artifacts;
use taskyard_shared::broker::{Broker, BrokerError, QueueSpec};
use taskyard_shared::events::{Events, Publisher};
use taskyard_shared::load::ModelSpec;
use taskyard_shared::process::metrics::{MetricsError, Registry};
use taskyard_shared::process::settings::WorkerSettings;
use taskyard_shared::retry::Backoff;
use taskyard_shared::store::Store;
use taskyard_shared::task::DEFAULT_TENANT;
use taskyard_shared::{Topology, messages};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::alone::Alone;
use crate::attempt::Yard;
use crate::builder::Builder;
use crate::claims::Claimer;
use crate::handler::Handler;
use crate::hold::{Common, Founding, Holder, Source};
use crate::holdings::Budget;
use crate::lane::{Lanes, ModelLane};
use crate::leases::Leases;
use crate::load_report::{Reporter, host_name};
use crate::long::Long;
use crate::meanwhile::Pump;
use crate::metrics::Metrics;
use crate::orders;
use crate::payloads::Payloads;
use crate::registrations::{self, Foundry};
use crate::settle::Settler;
use crate::sweep::Sweeper;

/// Settlements that wait for the settler; attempts wait when there are more.
const SETTLEMENTS: usize = 1024;

/// Serves models. Built from the two ports and the models, then [run](Worker::run).
pub struct Worker {
    broker: Arc<dyn Broker>,
    store: Arc<dyn Store>,
    topology: Topology,
    settings: WorkerSettings,
    id: String,
    models: Vec<(Arc<ModelLane>, Source)>,
    foundry: Option<Arc<dyn Foundry>>,
    metrics: Metrics,
    events: (Events, Publisher),
    tenants: BTreeSet<String>,
    artifacts: Option<Artifacts>,
    sweeping: Option<Duration>,
}

impl Worker {
    /// A worker without models. Its id is the one in the settings, or made from the host's name and a random part.
    ///
    /// # Errors
    /// When the registry has other metrics of the same names.
    pub fn new(
        broker: Arc<dyn Broker>,
        store: Arc<dyn Store>,
        topology: Topology,
        settings: WorkerSettings,
        registry: &Registry,
    ) -> Result<Self, MetricsError> {
        let id = match settings.id.as_str() {
            "" => format!("{}-{:08x}", host_name(), fastrand::u32(..)),
            id => id.to_owned(),
        };
        let events = Events::new(&topology, registry)?;
        let metrics = Metrics::new(registry)?;
        let (models, tenants) = (Vec::new(), BTreeSet::from([DEFAULT_TENANT.to_owned()]));
        Ok(Self {
            broker,
            store,
            topology,
            settings,
            id,
            models,
            foundry: None,
            metrics,
            events,
            tenants,
            artifacts: None,
            sweeping: None,
        })
    }

    /// Serves one more model, for as long as it runs.
    pub fn model(mut self, spec: ModelSpec, handler: Arc<dyn Handler>) -> Self {
        self.models.push((Arc::new(ModelLane::new(spec, self.settings.slots)), Source::Fixed(handler)));
        self
    }

    /// One more model that it may hold: it is loaded and unloaded as the worker's placement says, within the budget
    /// of the settings (`memory_mb`, `gpus`). Without a budget it is loaded once the worker runs, and stays.
    pub fn candidate(mut self, spec: ModelSpec, builder: Arc<dyn Builder>) -> Self {
        self.models.push((Arc::new(ModelLane::new(spec, self.settings.slots)), Source::Built(builder)));
        self
    }

    /// Models that deployments register are made by it; without one there are none.
    pub fn foundry(mut self, foundry: Arc<dyn Foundry>) -> Self {
        self.foundry = Some(foundry);
        self
    }

    /// What tasks of these take of model servers is counted apart, for each; that of all others together.
    pub fn tenants(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.tenants.extend(names);
        self
    }

    /// Where inputs lie that tasks only name, and outputs are put that are too large for a result; without it there are none. It
    /// removes what was last put longer than `keep` ago, and stands in no registered model: nothing without one.
    pub fn artifacts(mut self, artifacts: Artifacts, keep: Option<Duration>) -> Self {
        (self.artifacts, self.sweeping) = (Some(artifacts), keep);
        self
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Serves until `stop`; then takes nothing new, and finishes what runs within the drain time of the settings.
    /// `kill` ends it at once, as a crash would: what is not acked comes again.
    ///
    /// # Errors
    /// When a queue cannot be declared for a reason that trying again would not mend.
    pub async fn run(self, stop: CancellationToken, kill: CancellationToken) -> Result<(), BrokerError> {
        let Self { broker, store, topology, settings, id, models, foundry, metrics, tenants, artifacts, .. } = self;
        let (events, publisher) = self.events;
        let lanes = Lanes::new(models.iter().map(|(lane, _)| lane.clone()).collect());
        declare(&*broker, &topology, &lanes.all(), &stop).await?;

        let closing = kill.child_token();
        let lease = Duration::from_millis(settings.lease_ms);
        let leases = Leases::default();
        let (settlements, queue) = mpsc::channel(SETTLEMENTS);
        let settler = Settler {
            broker: broker.clone(),
            store: store.clone(),
            topology: topology.clone(),
            worker: id.clone(),
            metrics: metrics.clone(),
            closing: closing.clone(),
            events: events.clone(),
        };
        tokio::spawn(publisher.run(broker.clone(), closing.clone()));
        let settler = tokio::spawn(settler.run(queue));
        let renewing = CancellationToken::new();
        let renewer = tokio::spawn(leases.clone().renew_until(store.clone(), lease, renewing.clone()));
        if let (Some(artifacts), Some(keep)) = (artifacts.clone(), self.sweeping) {
            let sweeper = Sweeper { artifacts, store: store.clone(), keep, metrics: metrics.clone() };
            tokio::spawn(sweeper.run(closing.clone()));
        }
        let pump = Pump::new(metrics.clone(), events.clone());
        tokio::spawn(pump.clone().run(store.clone(), closing.clone()));
        let yard = Arc::new(Yard {
            worker: id.clone(),
            lease,
            claimer: Claimer::start(store.clone(), closing.clone()),
            leases: leases.clone(),
            settler: settlements,
            retry: Backoff::new(
                Duration::from_millis(settings.retry_first_ms),
                Duration::from_millis(settings.retry_most_ms),
            ),
            max_output_bytes: settings.max_output_bytes,
            payloads: Payloads::new(&settings.payloads, artifacts, metrics.clone()),
            long: Long {
                broker: broker.clone(),
                topology: topology.clone(),
                closing: closing.clone(),
                most: Duration::from_secs(settings.max_held_s),
            },
            pump: pump.clone(),
            events,
            metrics: metrics.clone(),
            tenants,
            alone: Alone::new(Duration::from_secs(settings.alone_s)),
        });
        let reporting = CancellationToken::new();
        let budget = Budget { memory_mb: settings.memory_mb, gpus: settings.gpus };
        let reporter = Reporter {
            store: store.clone(),
            worker: id.clone(),
            every: Duration::from_millis(settings.report_every_ms),
            budget,
            slots: settings.slots,
            lanes: lanes.clone(),
            metrics: metrics.clone(),
            draining: stop.clone(),
        };
        let reporter = tokio::spawn(reporter.run(reporting.clone()));

        let every = Duration::from_millis(settings.report_every_ms);
        let is_placed = settings.has_budget()
            && (foundry.is_some() || models.iter().any(|(_, source)| matches!(source, Source::Built(_))));
        let orders = is_placed.then(|| orders::follow(store.clone(), &id, every, closing.clone()));
        let common = Common {
            broker: broker.clone(),
            topology: topology.clone(),
            metrics: metrics.clone(),
            prefetch: settings.prefetch,
            pool: (settings.slots > 0).then(|| Arc::new(Semaphore::new(settings.slots as usize))),
            stop: stop.clone(),
            closing: closing.clone(),
        };
        let founding = foundry.map(|foundry| Founding {
            foundry,
            registered: registrations::follow(store.clone(), every, closing.clone()),
            lanes: lanes.clone(),
            shared_slots: settings.slots,
        });
        let mut holder = Holder::start(common, yard, orders, founding, budget, models);
        info!(worker.id = %id, models = lanes.all().len(), "serving");

        tokio::select! {
            biased;
            () = stop.cancelled() => info!(worker.id = %id, "draining"),
            () = kill.cancelled() => {}
            () = holder.keep() => {}
        }
        holder.break_off_loads().await;
        // With its consumer goes what a lane has not settled: they are kept until the settler is done.
        let mut left = Vec::new();
        let patience = Duration::from_secs(settings.drain_s);
        let in_time = tokio::select! {
            biased;
            () = holder.drained(&mut left) => true,
            () = tokio::time::sleep(patience) => false,
            () = kill.cancelled() => false,
        };
        if !in_time && !kill.is_cancelled() {
            warn!(worker.id = %id, "tasks still run at the end of the drain time: they are stopped and tried elsewhere");
            leases.lose_all();
            // Their attempts end as lost and are settled like any other, for as long as a lease lasts.
            let _in_time = tokio::time::timeout(lease, holder.drained(&mut left)).await;
        }
        if kill.is_cancelled() {
            holder.kill().await;
        }
        let handlers = holder.into_handlers();
        // Every sender is gone: the settler ends when it has settled what it has.
        let _settled = tokio::time::timeout(patience, settler).await;
        drop(left);
        closing.cancel();
        renewing.cancel();
        reporting.cancel();
        let _renewer = renewer.await;
        if kill.is_cancelled() {
            reporter.abort();
        }
        let _reporter = reporter.await;
        for handler in handlers {
            handler.close().await;
        }
        info!(worker.id = %id, "stopped");
        Ok(())
    }
}

/// Declares what this worker reads and writes, waiting for a broker that is away.
async fn declare(
    broker: &dyn Broker,
    topology: &Topology,
    lanes: &[Arc<ModelLane>],
    stop: &CancellationToken,
) -> Result<(), BrokerError> {
    let mut queues: Vec<QueueSpec> =
        lanes.iter().map(|lane| QueueSpec::durable(topology.ready(&lane.spec.name))).collect();
    queues.extend(messages::work_queues(topology));
    let mut tries = 0;
    loop {
        match broker.declare(&queues).await {
            Err(failure) if failure.is_transient() && !stop.is_cancelled() => {
                tries += 1;
                warn!(%failure, "the queues cannot be declared yet");
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(Backoff::RECONNECT.delay(tries, fastrand::f64())) => {}
                    () = stop.cancelled() => return Err(failure),
                }
            }
            answer => return answer,
        }
    }
}
