//! What a run measures, from start to end: a yard that is there, one of its own, or the plain relay.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use taskyard_shared::Topology;
use taskyard_shared::broker::rabbitmq::slots::declare_priority_queue;
use taskyard_shared::broker::{Broker, Destination, QueueSpec};
use taskyard_shared::messages;
use taskyard_shared::process::config::is_embedded;
use taskyard_shared::process::connect::{erase, open_broker};
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::settings::{
    LogFormat, LogSettings, ModelSettings, SHARDS_MOST, Settings, SimulatedSettings,
};
use taskyard_worker::handlers::{self, ModelCache};

use super::baseline::numbered;
use super::children::{Child, Folder};
use super::load::Target;
use super::roles::{Kind, Source};
use crate::failure::Failure;
use crate::yard::{Served, Yard, YardWorker};

/// Messages that the load generator's own connection has under way, whatever the settings give to roles.
const LOAD_IN_FLIGHT: usize = 8_192;
/// A broker that is flooded confirms late, which is no reason to give up measuring it.
const LOAD_PUBLISH_TIMEOUT_MS: u64 = 60_000;
const SCHEDULER: &str = "scheduler";
/// So often in a row, a moment apart, a queue is as long as before when it moves no more.
const STILL: u32 = 10;

/// What a yard of the run's own is made of.
#[derive(Clone, Debug)]
pub struct Made {
    pub schedulers: u32,
    pub workers: u32,
    pub slots: u32,
    pub max_batch: u32,
    pub service_ms: f64,
    /// Keeps an embedded yard on disk, in a folder of its own in this one.
    pub data: Option<PathBuf>,
}

/// Something that takes tasks and answers them.
pub struct Stage {
    pub target: Target,
    settings: Settings,
    /// A role, and the arguments it runs with.
    consumers: Vec<(String, Vec<String>)>,
    children: Vec<Child>,
    yard: Option<Embedded>,
    others: Vec<Source>,
    /// To be deleted at the end.
    queues: Vec<String>,
    exchanges: Vec<String>,
    folder: Option<Folder>,
    file: Option<PathBuf>,
}

struct Embedded {
    yard: Yard,
    workers: u32,
    running: Vec<YardWorker>,
}

impl Stage {
    /// A yard that runs already. `metrics` are the addresses of its roles' metrics.
    pub async fn running(settings: &Settings, metrics: &[String]) -> Result<Self, Failure> {
        let topology = Topology::new(&settings.broker.namespace);
        let to = Destination::Exchange { name: topology.tasks_exchange(), key: "bench".into() };
        let mut stage = Self::new(settings.clone(), to).await?;
        stage.target.broker.declare(&messages::work_queues(&topology)).await?;
        let role = |url: &String| url.split("://").last().unwrap_or(url).trim_end_matches("/metrics").to_owned();
        stage.others.extend(metrics.iter().map(|url| Source { role: role(url), kind: Kind::Metrics(url.clone()) }));
        Ok(stage)
    }

    /// A yard of the run's own, without its workers: [`serve`](Self::serve) starts them.
    pub async fn own(settings: &Settings, models: &[String], made: &Made) -> Result<Self, Failure> {
        let (settings, name) = own_settings(settings, models, made);
        let topology = Topology::new(&name);
        if is_embedded(&settings.broker.url) {
            return Self::embedded(settings, &name, made).await;
        }
        let to = Destination::Exchange { name: topology.tasks_exchange(), key: "bench".into() };
        let mut stage = Self::new(settings, to).await?;
        let mut queues = messages::work_queues(&topology);
        queues.extend(messages::shard_queues(&topology, stage.settings.scheduler.shards));
        queues.extend(models.iter().map(|model| QueueSpec::durable(topology.ready(model))));
        stage.queues = queues.iter().map(|queue| queue.name.clone()).collect();
        stage.exchanges = vec![topology.tasks_exchange(), topology.events_exchange()];
        let roles = (0..made.schedulers).map(|_| SCHEDULER);
        let started = stage.own_children(&name, &queues, roles).await;
        stage.consumers = (0..made.workers).map(|_| ("worker".to_owned(), vec!["worker".to_owned()])).collect();
        stage.or_end(started).await
    }

    async fn own_children(
        &mut self,
        name: &str,
        queues: &[QueueSpec],
        roles: impl Iterator<Item = &'static str>,
    ) -> Result<(), Failure> {
        self.prepare(name)?;
        self.target.broker.declare(queues).await?;
        for role in roles {
            self.child(role, &[role.to_owned()]).await?;
        }
        Ok(())
    }

    /// Two hops and a reply, on queues of the same kind: one, and as many as there are models. The second hop is started by
    /// [`serve`](Self::serve).
    pub async fn relay(settings: &Settings, in_flight: u16, models: u32) -> Result<Self, Failure> {
        let made = Made { schedulers: 0, workers: 0, slots: 1, max_batch: 1, service_ms: 0.0, data: None };
        let (settings, name) = own_settings(settings, &[], &made);
        let queue = |rest: &str| format!("{name}.relay.{rest}");
        let (first, second) = (queue("first"), queue("second"));
        let mut stage = Self::new(settings, Destination::Queue(first.clone())).await?;
        let many = (models > 1).then_some(models);
        let seconds = numbered(&second, many);
        stage.queues = std::iter::once(first.clone()).chain(seconds.iter().cloned()).collect();
        let (in_flight, number) = (in_flight.to_string(), models.to_string());
        let hop = |rest: &[&str]| {
            let fixed = ["bench-hop", "--in-flight", &in_flight];
            fixed.iter().chain(rest).map(|word| (*word).to_owned()).collect::<Vec<String>>()
        };
        let (mut forwarder, mut worker) = (hop(&["--from", &first, "--to", &second]), hop(&["--from", &second]));
        if many.is_some() {
            forwarder.extend(["--to-many".to_owned(), number.clone()]);
            worker.extend(["--from-many".to_owned(), number]);
        }
        stage.consumers = vec![("relay worker".to_owned(), worker)];
        let queues: Vec<QueueSpec> = stage.queues.iter().map(QueueSpec::durable).collect();
        let started = async {
            stage.own_children(&name, &queues, std::iter::empty()).await?;
            stage.child("forwarder", &forwarder).await
        }
        .await;
        stage.or_end(started).await
    }

    /// RabbitMQ's own priority queue, and as many slots as the yard's workers have together.
    pub async fn priority(settings: &Settings, made: &Made, confirmed: bool) -> Result<Self, Failure> {
        let (settings, name) = own_settings(settings, &["bench".to_owned()], made);
        let queue = format!("{name}.priority");
        let mut stage = Self::new(settings, Destination::Queue(queue.clone())).await?;
        stage.queues = vec![queue.clone()];
        let slots = made.slots.to_string();
        let mut arguments = vec!["bench-slots", "--from", &queue, "--slots", &slots];
        arguments.extend(confirmed.then_some("--confirmed"));
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        stage.consumers = (0..made.workers).map(|_| ("priority worker".to_owned(), arguments.clone())).collect();
        let started = async {
            stage.prepare(&name)?;
            Ok(declare_priority_queue(&stage.settings.broker, &queue, super::URGENT).await?)
        }
        .await;
        stage.or_end(started).await
    }

    async fn new(settings: Settings, to: Destination) -> Result<Self, Failure> {
        let mut own = settings.clone();
        own.broker.in_flight = own.broker.in_flight.max(LOAD_IN_FLIGHT);
        own.broker.publish_timeout_ms = own.broker.publish_timeout_ms.max(LOAD_PUBLISH_TIMEOUT_MS);
        let broker = open_broker(&own).await?;
        Ok(Self::around(broker, settings, to))
    }

    fn around(broker: Arc<dyn Broker>, settings: Settings, to: Destination) -> Self {
        let topology = Topology::new(&settings.broker.namespace);
        let mut others = vec![Source { role: "bench".to_owned(), kind: Kind::This }];
        if !is_embedded(&settings.broker.url) {
            others.push(Source { role: "rabbitmq".to_owned(), kind: Kind::Named("beam.smp") });
        }
        if !is_embedded(&settings.store.url) {
            others.push(Source { role: "redis".to_owned(), kind: Kind::Named("redis-server") });
        }
        Self {
            target: Target { broker, to, topology },
            settings,
            consumers: Vec::new(),
            children: Vec::new(),
            yard: None,
            others,
            queues: Vec::new(),
            exchanges: Vec::new(),
            folder: None,
            file: None,
        }
    }

    async fn embedded(settings: Settings, name: &str, made: &Made) -> Result<Self, Failure> {
        let folder = made.data.as_deref().map(|data| Folder::new(data, name)).transpose()?;
        let cache = ModelCache::default();
        let mut models = Vec::new();
        for (name, model) in &settings.models {
            let handler = handlers::build(name, model, Path::new("."), &cache).await?;
            models.push(Served::loaded(model.spec(name), handler));
        }
        let data = folder.as_ref().map(Folder::path);
        let yard = Yard::start(settings.clone(), models, data, Registry::new()?).await?;
        let to = Destination::Exchange { name: yard.topology.tasks_exchange(), key: "bench".into() };
        let mut stage = Self::around(yard.broker.clone(), settings, to);
        stage.target.broker.declare(&messages::work_queues(&yard.topology)).await?;
        stage.folder = folder;
        stage.yard = Some(Embedded { yard, workers: made.workers, running: Vec::new() });
        Ok(stage)
    }

    /// Starts what works on the tasks, unless that runs already.
    pub async fn serve(&mut self) -> Result<(), Failure> {
        for (role, arguments) in std::mem::take(&mut self.consumers) {
            self.child(&role, &arguments).await?;
        }
        if let Some(Embedded { yard, workers, running }) = &mut self.yard {
            for number in running.len()..*workers as usize {
                running.push(yard.worker(&format!("bench-{number}"))?);
            }
        }
        Ok(())
    }

    /// Kills all schedulers and starts as many; back once they listen.
    pub async fn restart_schedulers(&mut self) -> Result<(), Failure> {
        let children = std::mem::take(&mut self.children);
        let (killed, others): (Vec<_>, Vec<_>) = children.into_iter().partition(|child| child.role() == SCHEDULER);
        self.children = others;
        let schedulers = killed.len();
        for child in killed {
            child.kill().await?;
        }
        for _ in 0..schedulers {
            self.child(SCHEDULER, &[SCHEDULER.to_owned()]).await?;
        }
        Ok(())
    }

    /// Everything that takes part.
    pub fn sources(&self) -> Vec<Source> {
        self.children.iter().map(Child::source).chain(self.others.iter().cloned()).collect()
    }

    /// Waits until no more of what was published moves on from where it was published to.
    pub async fn settled(&self) -> Result<(), Failure> {
        let queue = match &self.target.to {
            Destination::Queue(queue) => queue.clone(),
            Destination::Exchange { .. } => self.target.topology.intake(),
        };
        let (mut before, mut looks) = (None, 0);
        loop {
            let now = self.target.broker.queue_state(&queue).await?.map(|state| state.ready);
            // A broker that has much to write may stand still for a moment.
            looks = if now == before { looks + 1 } else { 0 };
            if now == Some(0) || looks == STILL {
                return Ok(());
            }
            before = now;
            tokio::time::sleep(super::SETTLING).await;
        }
    }

    /// Ends what was started and deletes what was made.
    pub async fn end(mut self) -> Result<(), Failure> {
        if self.yard.is_none() {
            self.target.broker.close().await;
        }
        for child in std::mem::take(&mut self.children).into_iter().rev() {
            child.stop().await;
        }
        if let Some(Embedded { yard, running, .. }) = self.yard.take() {
            for worker in running {
                worker.kill().await;
            }
            yard.stop().await?;
        }
        if self.queues.is_empty() {
            return Ok(());
        }
        let erased = erase(&self.settings, &self.queues, &self.exchanges).await;
        erased.map_err(|failure| {
            let namespace = &self.settings.broker.namespace;
            Failure::Failed(format!("not everything of the namespace {namespace} could be deleted: {failure}"))
        })
    }

    async fn or_end(self, started: Result<(), Failure>) -> Result<Self, Failure> {
        match started {
            Ok(()) => Ok(self),
            Err(failure) => {
                if let Err(second) = self.end().await {
                    tracing::warn!("{second}");
                }
                Err(failure)
            }
        }
    }

    fn prepare(&mut self, name: &str) -> Result<(), Failure> {
        let folder = Folder::new(&std::env::temp_dir(), &format!("taskyard-{name}"))?;
        self.file = Some(folder.settings("settings.toml", &self.settings)?);
        self.folder = Some(folder);
        Ok(())
    }

    async fn child(&mut self, role: &str, arguments: &[String]) -> Result<(), Failure> {
        let file = self.file.as_deref().unwrap_or(Path::new("settings.toml"));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.children.push(Child::start(role, &arguments, file).await?);
        Ok(())
    }
}

/// The settings with a namespace and models of the run's own; and that namespace.
fn own_settings(settings: &Settings, models: &[String], made: &Made) -> (Settings, String) {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let namespace = format!("bench{}", &unique[..12]);
    let mut settings = settings.clone();
    settings.broker.namespace.clone_from(&namespace);
    settings.admin.listen.set_ip([127, 0, 0, 1].into());
    settings.admin.listen.set_port(0);
    settings.worker.id = String::new();
    settings.worker.drain_s = 1;
    settings.scheduler.shards = made.schedulers.clamp(1, SHARDS_MOST);
    settings.log = LogSettings { level: "info".to_owned(), format: LogFormat::Json };
    settings.models = models.iter().map(|model| (model.clone(), simulated(made))).collect::<BTreeMap<_, _>>();
    (settings, namespace)
}

fn simulated(made: &Made) -> ModelSettings {
    ModelSettings {
        handler: "simulated".to_owned(),
        version: "1".to_owned(),
        capabilities: Vec::new(),
        slots: made.slots,
        timeout_ms: 60_000,
        max_attempts: 3,
        max_batch: made.max_batch,
        max_delay_ms: 0,
        memory_mb: 0,
        gpus: 0,
        expected_ms: None,
        quality: None,
        onnx: None,
        http: None,
        process: None,
        training: None,
        data: None,
        search: None,
        simulated: Some(SimulatedSettings {
            service_ms: made.service_ms,
            distribution: taskyard_shared::process::settings::Distribution::Fixed,
            failure_ratio: 0.0,
        }),
    }
}
