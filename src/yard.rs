//! Gateway, scheduler and workers in one process, on the embedded broker and store: what `dev` and `demo` run.

use std::path::Path;
use std::sync::Arc;

use taskyard_scheduler::Scheduler;
use taskyard_shared::Topology;
use taskyard_shared::artifacts::Artifacts;
use taskyard_shared::broker::Broker;
use taskyard_shared::broker::embedded::EmbeddedBroker;
use taskyard_shared::load::ModelSpec;
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::settings::{SchedulerSettings, Settings};
use taskyard_shared::store::Store;
use taskyard_shared::store::embedded::EmbeddedStore;
use taskyard_worker::{Builder, Foundry, Handler, Worker};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// A model and where its handler comes from.
pub struct Served {
    pub spec: ModelSpec,
    pub source: Source,
}

/// What a worker gets of a model.
#[derive(Clone)]
pub enum Source {
    /// The handler, shared by all workers of the process.
    Loaded(Arc<dyn Handler>),
    /// What loads it, for workers that hold some of their models.
    Wanted(Arc<dyn Builder>),
}

impl Served {
    pub fn loaded(spec: ModelSpec, handler: Arc<dyn Handler>) -> Self {
        Self { spec, source: Source::Loaded(handler) }
    }

    pub fn offer(&self, worker: Worker) -> Worker {
        match self.source.clone() {
            Source::Loaded(handler) => worker.model(self.spec.clone(), handler),
            Source::Wanted(builder) => worker.candidate(self.spec.clone(), builder),
        }
    }
}

/// A yard without its gateway. Dropping it does not stop what it started: [`Yard::stop`] does.
pub struct Yard {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    pub topology: Topology,
    settings: Settings,
    models: Vec<Served>,
    foundry: Option<Arc<dyn Foundry>>,
    artifacts: Option<Artifacts>,
    registry: Registry,
    stop: CancellationToken,
    scheduler: JoinHandle<Result<(), taskyard_shared::broker::BrokerError>>,
}

/// One worker of a yard.
pub struct YardWorker {
    pub id: String,
    stop: CancellationToken,
    kill: CancellationToken,
    task: JoinHandle<Result<(), taskyard_shared::broker::BrokerError>>,
}

impl Yard {
    /// Starts the scheduler. `data` keeps broker and store in a folder; without one they are in memory.
    pub async fn start(
        settings: Settings,
        models: Vec<Served>,
        data: Option<&Path>,
        registry: Registry,
    ) -> Result<Self, Failure> {
        let retention = settings.retention();
        let (broker, store): (Arc<dyn Broker>, Arc<dyn Store>) = match data {
            Some(folder) => (
                Arc::new(EmbeddedBroker::open(&folder.join("broker"))?),
                Arc::new(EmbeddedStore::open(&folder.join("store"), retention)?),
            ),
            None => (Arc::new(EmbeddedBroker::in_memory()), Arc::new(EmbeddedStore::in_memory(retention))),
        };
        registry.broker(&broker)?;
        let topology = Topology::new(&settings.broker.namespace);
        let stop = CancellationToken::new();
        let specs = models.iter().map(|served| served.spec.clone()).collect();
        // There is one scheduler, and it has everything.
        let scheduler = SchedulerSettings { shards: 1, ..settings.scheduler.clone() };
        let scheduler = Scheduler::new(broker.clone(), store.clone(), topology.clone(), scheduler, specs, &registry)?;
        let scheduler = scheduler.tenants(settings.tenants.clone());
        let scheduler = tokio::spawn(scheduler.run(stop.clone()));
        Ok(Self {
            broker,
            store,
            topology,
            settings,
            models,
            foundry: None,
            artifacts: None,
            registry,
            stop,
            scheduler,
        })
    }

    /// Workers that are started from now on make the models that are registered.
    pub fn foundry(mut self, foundry: Arc<dyn Foundry>) -> Self {
        self.foundry = Some(foundry);
        self
    }

    /// Workers that are started from now on remove what lies here and is old, if the settings say so.
    pub fn artifacts(mut self, artifacts: Artifacts) -> Self {
        self.artifacts = Some(artifacts);
        self
    }

    /// Starts one more worker that serves every model of the yard.
    pub fn worker(&self, name: &str) -> Result<YardWorker, Failure> {
        let settings =
            taskyard_shared::process::settings::WorkerSettings { id: name.to_owned(), ..self.settings.worker.clone() };
        let mut worker =
            Worker::new(self.broker.clone(), self.store.clone(), self.topology.clone(), settings, &self.registry)?;
        worker = worker.tenants(self.settings.tenants.keys().cloned());
        if let Some(artifacts) = &self.artifacts {
            worker = worker.artifacts(artifacts.clone(), self.settings.artifacts.keep());
        }
        if let Some(foundry) = &self.foundry {
            worker = worker.foundry(foundry.clone());
        }
        for served in &self.models {
            worker = served.offer(worker);
        }
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let id = worker.id().to_owned();
        let task = tokio::spawn(worker.run(stop.clone(), kill.clone()));
        Ok(YardWorker { id, stop, kill, task })
    }

    /// Stops the scheduler and closes broker and store. The workers are stopped first, by themselves.
    pub async fn stop(self) -> Result<(), Failure> {
        self.stop.cancel();
        let ended = self.scheduler.await;
        self.broker.close().await;
        match ended {
            Ok(answer) => Ok(answer?),
            Err(failure) => Err(Failure::Internal(format!("the scheduler ended: {failure}"))),
        }
    }
}

impl YardWorker {
    /// Ends it as a crash would: nothing is finished, given back or acked.
    pub async fn kill(self) {
        self.kill.cancel();
        let _ended = self.task.await;
    }

    /// Lets it finish what runs.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ended = self.task.await;
    }
}
