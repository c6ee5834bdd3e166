//! The yard's state: models, workers, queues.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use futures_util::{StreamExt, TryStreamExt, stream};
use schemars::JsonSchema;
use serde::Serialize;
use taskyard_shared::Timestamp;
use taskyard_shared::deployment::Deployed;
use taskyard_shared::load::{LoadReport, LoadState, ModelSpec};
use taskyard_shared::mirror::{self, Differing, Mirror, Tallies, Tally};
use taskyard_shared::store::Store;

use super::Shared;
use super::access::Caller;
use super::problem::{Code, Problem};
use super::waiting::LOOKUP_LIMIT;

/// Queues looked at at once, and how long one look may take.
const AT_ONCE: usize = 16;
const QUEUE_LIMIT: Duration = Duration::from_secs(2);

/// Slots of one model on all workers together.
#[derive(Clone, Copy, Default, Serialize, JsonSchema)]
pub(super) struct Capacity {
    /// Workers that serve it and are not draining.
    workers: u32,
    slots: u32,
    /// Slots that run something now.
    busy: u32,
    /// Deliveries in workers' hands, running ones included.
    held: u32,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ModelView {
    #[serde(flatten)]
    spec: ModelSpec,
    now: Capacity,
    /// It takes no new tasks.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    retired: bool,
    /// While it runs a share of its model's tasks a second time, with nobody told of its answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<ShadowView>,
}

/// What deployments came to, as far as it is shown.
struct Deployments {
    retired: BTreeSet<String>,
    shadows: BTreeMap<String, ShadowView>,
}

/// What came of the tasks of a version's share since it began.
#[derive(Serialize, JsonSchema)]
pub(super) struct ShadowView {
    /// Of the tasks that name its model alone.
    share: f64,
    since: Timestamp,
    /// Its answer was that of the task.
    same: u64,
    different: u64,
    /// It did not succeed.
    failed: u64,
    /// It was not run: too much waited, no worker had it loaded, or it was lost.
    skipped: u64,
    /// The task itself did not succeed, or its result is gone.
    unknown: u64,
    /// What the compared tasks took on average, in milliseconds; `null` when there are none.
    task_ms: Option<f64>,
    /// And what their copies took.
    copy_ms: Option<f64>,
    /// The newest that differ, with the tasks that ran as their copies; none for a caller of one tenant.
    differing: Vec<Differing>,
}

impl ShadowView {
    fn new(mirror: &Mirror, tally: Tally) -> Self {
        let means = tally.mean_ms();
        Self {
            share: mirror.share,
            since: mirror.since,
            same: tally.same,
            different: tally.different,
            failed: tally.failed,
            skipped: tally.skipped,
            unknown: tally.unknown,
            task_ms: means.map(|(task_ms, _)| task_ms),
            copy_ms: means.map(|(_, copy_ms)| copy_ms),
            differing: tally.differing,
        }
    }
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ModelPage {
    models: Vec<ModelView>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct WorkerPage {
    workers: Vec<LoadReport>,
}

/// The queue of one model.
#[derive(Serialize, JsonSchema)]
pub(super) struct ModelQueue {
    model: String,
    /// Nothing of it is dispatched until it is resumed.
    paused: bool,
    /// Dispatched and not yet taken by a worker; 0 when there is no such queue yet.
    ready: u64,
    #[serde(flatten)]
    now: Capacity,
    /// How long the slots take for what waits and may start, in seconds, by what it is expected to take; `null` without workers,
    /// or when no scheduler said so lately.
    drain_seconds: Option<f64>,
    /// Workers that the work that comes, what waits, and the deadlines take; `null` when no scheduler said so lately.
    workers_wanted: Option<f64>,
    /// So much waits that tasks of little worth are refused.
    overloaded: bool,
}

/// A queue that is not a model's.
#[derive(Serialize, JsonSchema)]
pub(super) struct YardQueue {
    /// `intake`, `retry`, `completions` or `dead`.
    name: &'static str,
    /// Messages that wait in it.
    ready: u64,
    consumers: u32,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct QueuePage {
    models: Vec<ModelQueue>,
    queues: Vec<YardQueue>,
}

pub(super) async fn models(
    State(gateway): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<ModelPage>, Problem> {
    let (mut specs, capacities, deployments) =
        tokio::try_join!(gateway.specs(), gateway.capacities(), gateway.deployments())?;
    let Deployments { retired, mut shadows } = deployments;
    // A version that is gone for good was announced once, and is of no interest any more.
    specs.retain(|spec| !retired.contains(&spec.name) || capacities.contains_key(&spec.name));
    // They are of all tenants.
    if !caller.sees(mirror::TENANT) {
        shadows.values_mut().for_each(|shadow| shadow.differing.clear());
    }
    let view = |spec: ModelSpec| ModelView {
        now: capacities.get(&spec.name).copied().unwrap_or_default(),
        retired: retired.contains(&spec.name),
        shadow: shadows.remove(&spec.name),
        spec,
    };
    Ok(Json(ModelPage { models: specs.into_iter().map(view).collect() }))
}

pub(super) async fn workers(State(gateway): State<Arc<Shared>>) -> Result<Json<WorkerPage>, Problem> {
    Ok(Json(WorkerPage { workers: gateway.loads().await? }))
}

pub(super) async fn queues(State(gateway): State<Arc<Shared>>) -> Result<Json<QueuePage>, Problem> {
    let (specs, capacities, paused) = tokio::try_join!(gateway.specs(), gateway.capacities(), gateway.paused())?;
    let paused: BTreeSet<String> = paused.into_iter().collect();
    let names = specs.into_iter().map(|spec| spec.name).chain(capacities.keys().chain(&paused).cloned());
    let names: BTreeSet<String> = names.collect();
    let topology = &gateway.topology;
    let models = stream::iter(names)
        .map(|model| async {
            let (ready, _) = gateway.depth(&topology.ready(&model)).await?;
            let (now, paused) = (capacities.get(&model).copied().unwrap_or_default(), paused.contains(&model));
            let load = gateway.pressure.load(&model);
            Ok::<_, Problem>(ModelQueue {
                now,
                paused,
                ready,
                drain_seconds: load.and_then(|load| load.drain_seconds),
                workers_wanted: load.map(|load| load.workers_wanted),
                overloaded: load.is_some_and(|load| load.overloaded),
                model,
            })
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let mut queues = Vec::new();
    for (name, queue) in [
        ("intake", topology.intake()),
        ("retry", topology.retry()),
        ("completions", topology.completions(0)),
        ("dead", topology.dead()),
    ] {
        let (ready, consumers) = gateway.depth(&queue).await?;
        queues.push(YardQueue { name, ready, consumers });
    }
    Ok(Json(QueuePage { models, queues }))
}

impl Shared {
    async fn specs(&self) -> Result<Vec<ModelSpec>, Problem> {
        let mut specs = self.records.ask(LOOKUP_LIMIT, |store| async move { store.models().await }).await?;
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(specs)
    }

    async fn loads(&self) -> Result<Vec<LoadReport>, Problem> {
        let mut loads = self.records.ask(LOOKUP_LIMIT, |store| async move { store.loads().await }).await?;
        loads.sort_by(|a, b| a.worker.cmp(&b.worker));
        Ok(loads)
    }

    async fn capacities(&self) -> Result<BTreeMap<String, Capacity>, Problem> {
        let mut capacities: BTreeMap<String, Capacity> = BTreeMap::new();
        for report in self.loads().await? {
            for (model, load) in report.models {
                let sum = capacities.entry(model).or_default();
                if !report.draining && load.state == LoadState::Loaded {
                    sum.workers += 1;
                    sum.slots = sum.slots.saturating_add(load.slots);
                }
                sum.busy = sum.busy.saturating_add(load.busy);
                sum.held = sum.held.saturating_add(load.held);
            }
        }
        Ok(capacities)
    }

    /// What deployments came to, and what came of versions that are tried in the shadow, over all shards.
    async fn deployments(&self) -> Result<Deployments, Problem> {
        let shards = self.pressure.shards();
        let read = |store: Arc<dyn Store>| async move {
            let deployed = store.fetch(Deployed::KEY).await?;
            let deployed = deployed.and_then(|bytes| Deployed::read(&bytes).ok()).unwrap_or_default();
            let mut tallies = Vec::new();
            for shard in (0..shards).filter(|_| !deployed.mirrors.is_empty()) {
                tallies.extend(store.fetch(&Tallies::key(shard)).await?);
            }
            Ok((deployed, tallies))
        };
        let (deployed, tallies) = self.records.ask(LOOKUP_LIMIT, read).await?;
        // What cannot be read is counted anew by its scheduler.
        let mut tallies: Vec<Tallies> = tallies.iter().filter_map(|bytes| Tallies::read(bytes).ok()).collect();
        let view = |(version, mirror): (String, Mirror)| {
            let mut sum = Tally::new(mirror.since);
            let of_shards = tallies.iter_mut().filter_map(|shard| shard.versions.remove(&version));
            of_shards.filter(|tally| tally.since == mirror.since).for_each(|tally| sum.add(tally));
            (version, ShadowView::new(&mirror, sum))
        };
        let shadows = deployed.mirrors.into_iter().map(view).collect();
        Ok(Deployments { retired: deployed.retired, shadows })
    }

    /// Waiting messages and consumers of a queue; nothing of one that is not declared yet.
    async fn depth(&self, queue: &str) -> Result<(u64, u32), Problem> {
        match tokio::time::timeout(QUEUE_LIMIT, self.broker.queue_state(queue)).await {
            Ok(Ok(state)) => Ok(state.map_or((0, 0), |state| (state.ready, state.consumers))),
            Ok(Err(_)) | Err(_) => Err(Problem::new(Code::BrokerUnavailable, "the queues cannot be looked at now")),
        }
    }
}
