//! The scheduler service: waits until a shard is free, and schedules it until it is told to stop.
//!
//! A session ends when one of its consumers is cut. Everything it held comes again from the broker, so the next session
//! starts from nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::broker::{Broker, BrokerError, Lock, QueueSpec};
use taskyard_shared::deployment::Deployed;
use taskyard_shared::events::{Events, Publisher};
use taskyard_shared::load::ModelSpec;
use taskyard_shared::process::metrics::{MetricsError, Registry};
use taskyard_shared::process::settings::{SHARDS_MOST, SchedulerSettings, TenantSettings};
use taskyard_shared::store::{Store, StoreError};
use taskyard_shared::{Topology, messages};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::{Clock, Distinct};
use crate::control::{self, Desk};
use crate::core::{Core, Parts};
use crate::deploying;
use crate::finish::Finisher;
use crate::intake::{Intake, wait_after};
use crate::load_watch::LoadWatch;
use crate::memory;
use crate::metrics::Metrics;
use crate::mirror;
use crate::paging::{self, Paging};
use crate::quotas::Quotas;
use crate::returns::Returns;
use crate::room::Room;
use crate::schedule::Keeper;
use crate::shard::Shard;
use crate::workflow::Coordinator;

/// The models by name, and what deployments came to.
type Known = (BTreeMap<String, Arc<ModelSpec>>, Deployed);

/// How often a standby asks whether it is its turn.
const STANDBY: Duration = Duration::from_millis(500);
/// Events that wait for the core; their senders wait when there are more.
const EVENTS: usize = 64;

/// Decides what runs next. Built from the two ports, then [run](Scheduler::run).
pub struct Scheduler {
    broker: Arc<dyn Broker>,
    store: Arc<dyn Store>,
    topology: Topology,
    settings: SchedulerSettings,
    metrics: Metrics,
    /// Models known from the settings, beside those that workers announce.
    configured: Vec<ModelSpec>,
    tenants: BTreeMap<String, TenantSettings>,
    events: Events,
    publisher: Option<Publisher>,
}

impl Scheduler {
    /// # Errors
    /// When the registry has other metrics of the same names.
    pub fn new(
        broker: Arc<dyn Broker>,
        store: Arc<dyn Store>,
        topology: Topology,
        settings: SchedulerSettings,
        configured: Vec<ModelSpec>,
        registry: &Registry,
    ) -> Result<Self, MetricsError> {
        let (metrics, tenants) = (Metrics::new(registry)?, BTreeMap::new());
        let (events, publisher) = Events::new(&topology, registry)?;
        let publisher = Some(publisher);
        Ok(Self { broker, store, topology, settings, configured, metrics, tenants, events, publisher })
    }

    /// What some tenants are given that differs from the rest.
    #[must_use]
    pub fn tenants(self, tenants: BTreeMap<String, TenantSettings>) -> Self {
        Self { tenants, ..self }
    }

    /// Schedules until `stop`. As many schedulers are active as there are shards; others wait for a place.
    ///
    /// # Errors
    /// When the queues cannot be declared for a reason that trying again would not mend.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), BrokerError> {
        let over = CancellationToken::new();
        let _over = over.clone().drop_guard();
        if let Some(publisher) = self.publisher.take() {
            tokio::spawn(publisher.run(self.broker.clone(), over));
        }
        let mut tries = 0;
        while !stop.is_cancelled() {
            let answer = self.session(&stop).await;
            self.metrics.active(None);
            match answer {
                Ok(()) => tries = 0,
                Err(failure) if failure.is_transient() => {
                    tries += 1;
                    wait_after(&failure, tries, &stop).await;
                }
                Err(failure) => return Err(failure),
            }
        }
        info!("stopped");
        Ok(())
    }

    async fn session(&self, stop: &CancellationToken) -> Result<(), BrokerError> {
        self.broker.declare(&messages::work_queues(&self.topology)).await?;
        let Some((shard, lock)) = self.wait_for_shard(stop).await? else { return Ok(()) };
        self.broker.declare(&messages::shard_queues(&self.topology, shard.of)).await?;
        let own = self.queues_of(shard).await?;
        let Some((models, deployed)) = self.known_models(stop, &*lock).await else { return Ok(()) };
        for model in models.keys() {
            self.broker.declare(&[QueueSpec::durable(self.topology.ready(model))]).await?;
        }

        let (closing, ended) = (stop.child_token(), CancellationToken::new());
        let (events, inbox) = mpsc::channel(EVENTS);
        let (requests, asked) = mpsc::channel(1);
        let window_bytes = (self.settings.window_mb as usize) << 20;
        let room = Room::new(self.settings.window_tasks, window_bytes);
        let prefetch = u16::try_from(self.settings.window_tasks).unwrap_or(u16::MAX);
        let mut readers: JoinSet<Result<(), BrokerError>> = JoinSet::new();
        let (pauses, to_pause) = mpsc::channel(1);
        let finisher = Finisher {
            broker: self.broker.clone(),
            store: self.store.clone(),
            topology: self.topology.clone(),
            metrics: self.metrics.clone(),
            closing: closing.clone(),
            events: self.events.clone(),
        };
        for &number in &own {
            // Before anything is read from intake: then who finds nobody to ask knows that what stands in a record is read.
            let consumer = self.broker.consume(&self.topology.control(number), control::PREFETCH).await?;
            let (wishes, unwanted) = mpsc::channel(EVENTS);
            let schedules = (number == 0).then(|| {
                let (schedules, asked) = mpsc::channel(EVENTS);
                let keeper = Keeper {
                    broker: self.broker.clone(),
                    store: self.store.clone(),
                    topology: self.topology.clone(),
                    metrics: self.metrics.clone(),
                    most: self.settings.schedules,
                    patience: Duration::from_secs(self.settings.max_held_s),
                    asked,
                    closing: closing.clone(),
                };
                readers.spawn(keeper.run());
                schedules
            });
            let desk = Desk {
                broker: self.broker.clone(),
                shard: number,
                events: events.clone(),
                pauses: pauses.clone(),
                workflows: wishes,
                schedules,
                closing: closing.clone(),
            };
            readers.spawn(desk.run(consumer));
            let workflows = Coordinator {
                broker: self.broker.clone(),
                store: self.store.clone(),
                topology: self.topology.clone(),
                metrics: self.metrics.clone(),
                finisher: finisher.clone(),
                shard: number,
                shards: shard.of,
                most: self.settings.workflows,
                patience: Duration::from_secs(self.settings.max_held_s),
                events: events.clone(),
                unwanted,
                closing: closing.clone(),
            };
            readers.spawn(workflows.run());
        }
        drop(pauses);
        let returns = || Returns {
            broker: self.broker.clone(),
            store: self.store.clone(),
            topology: self.topology.clone(),
            metrics: self.metrics.clone(),
            events: events.clone(),
            closing: closing.clone(),
            ended: ended.clone(),
        };
        readers.spawn(returns().retries(prefetch));
        for &number in &own {
            readers.spawn(returns().completions(number));
            readers.spawn(returns().rounds(number, prefetch));
        }
        let watch = LoadWatch {
            broker: self.broker.clone(),
            store: self.store.clone(),
            topology: self.topology.clone(),
            every: Duration::from_millis(self.settings.report_every_ms),
            metrics: self.metrics.clone(),
            events: events.clone(),
            closing: closing.clone(),
            counts_intake: self.settings.overload_s > 0.0,
            shared_quotas: Some(shard)
                .filter(|shard| shard.of > 1 && self.tenants.values().any(|tenant| tenant.max_waiting.is_some())),
        };
        readers.spawn(async move {
            watch.run(asked, to_pause).await;
            Ok(())
        });
        let intake = Intake {
            broker: self.broker.clone(),
            store: self.store.clone(),
            topology: self.topology.clone(),
            metrics: self.metrics.clone(),
            room: room.clone(),
            window: (self.settings.window_tasks, window_bytes),
            events: events.clone(),
            closing: closing.clone(),
            shards: shard.of,
            events_of_tasks: self.events.clone(),
            quotas: Quotas::new(self.store.clone(), &self.tenants, shard.of),
            times: Distinct::default(),
            ended: ended.clone(),
        };
        let pages = paging::Desk {
            broker: self.broker.clone(),
            store: self.store.clone(),
            topology: self.topology.clone(),
            metrics: self.metrics.clone(),
            events: events.clone(),
            closing: closing.clone(),
            patience: Duration::from_secs(self.settings.max_held_s),
        };
        let window = (self.settings.window_tasks, self.settings.window_mb);
        let paging = Paging::open(pages, &own, window, Clock::start().now_us()).await?;
        readers.spawn(intake.run());
        drop(events);
        let learnt = memory::recall(&*self.store, shard, &self.metrics).await;
        let mirrored = mirror::recall(&*self.store, shard, &self.metrics).await;
        let core = Core::new(Parts {
            broker: self.broker.clone(),
            store: self.store.clone(),
            topology: self.topology.clone(),
            settings: self.settings.clone(),
            tenants: self.tenants.clone(),
            metrics: self.metrics.clone(),
            room,
            models,
            shard,
            learnt,
            deployed,
            mirrored,
            paging,
            closing: closing.clone(),
            finisher,
        });
        self.metrics.active(Some(shard.number));
        info!(policy = %self.settings.policy, shard = shard.number, shards = shard.of, "active");
        let core = tokio::spawn(core.run(inbox, requests));

        // The first reader to end ends the session: by a cut, or because of `stop`.
        let first = readers.join_next().await;
        closing.cancel();
        let core = core.await;
        ended.cancel();
        while readers.join_next().await.is_some() {}
        drop(lock);
        match (first, core) {
            (Some(Ok(ended)), Ok(())) => ended,
            (Some(Err(failure)), _) | (_, Err(failure)) => Err(BrokerError::Cut(format!("a part ended: {failure}"))),
            (None, Ok(())) => Ok(()),
        }
    }

    /// The first shard that nobody has.
    async fn wait_for_shard(&self, stop: &CancellationToken) -> Result<Option<(Shard, Box<dyn Lock>)>, BrokerError> {
        let of = self.settings.shards;
        let mut told = false;
        loop {
            for number in 0..of {
                if let Some(lock) = self.broker.try_lock(&self.topology.scheduler_lock(number)).await? {
                    return Ok(Some((Shard { number, of }, lock)));
                }
            }
            if !told {
                info!(shards = of, "every shard has its active scheduler: standing by");
                told = true;
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(STANDBY) => {}
                () = stop.cancelled() => return Ok(None),
            }
        }
    }

    /// The numbers whose queues a shard reads: its own, and for the first one those beyond the last, which are left when a yard
    /// had more shards before. Every scheduler declares the queues of all shards, so the numbers have no gap.
    async fn queues_of(&self, shard: Shard) -> Result<Vec<u32>, BrokerError> {
        let mut numbers = vec![shard.number];
        if shard.number == 0 {
            for beyond in shard.of..SHARDS_MOST {
                if self.broker.queue_state(&self.topology.round(beyond)).await?.is_none() {
                    break;
                }
                // The others are declared later than this one.
                let completions = QueueSpec::durable(self.topology.completions(beyond));
                let workflows = QueueSpec::durable(self.topology.workflows(beyond));
                let steps = QueueSpec::durable(self.topology.steps(beyond));
                let control = messages::control_queue(&self.topology, beyond);
                self.broker.declare(&[completions, workflows, steps, control]).await?;
                numbers.push(beyond);
            }
        }
        Ok(numbers)
    }

    /// Without knowing the models every task would be refused: nothing is read before the store has said which there
    /// are.
    async fn known_models(&self, stop: &CancellationToken, lock: &dyn Lock) -> Option<Known> {
        let mut told = false;
        loop {
            let read =
                async { Ok::<_, StoreError>((self.store.models().await?, deploying::read(&*self.store).await?)) };
            match read.await {
                Ok((announced, deployed)) => {
                    let all = self.configured.iter().cloned().chain(announced);
                    return Some((all.map(|spec| (spec.name.clone(), Arc::new(spec))).collect(), deployed));
                }
                Err(failure) => {
                    if !told {
                        warn!(%failure, "the models cannot be read: nothing is taken in until then");
                        told = true;
                    }
                }
            }
            if !lock.is_held() {
                return None;
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(STANDBY) => {}
                () = stop.cancelled() => return None,
            }
        }
    }
}
