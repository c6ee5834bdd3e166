//! Loads the worker's models and serves them, and changes which of them it holds as it is told.
//!
//! To unload a model is to stop taking its tasks, to finish and settle those that run, and then to let its handler go. One
//! model is loaded at a time, and not before its memory is free. What to do next is [`Holdings`]' to say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use taskyard_shared::deployment::Registration;
use taskyard_shared::load::{LoadState, REASON_BYTES};
use tokio::sync::{Semaphore, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::attempt::Yard;
use crate::builder::{BuildError, Builder};
use crate::handler::Handler;
use crate::holdings::{Budget, Holdings, Phase};
use crate::lane::{Lanes, Left, ModelLane, Serving};
use crate::long::until;
use crate::memory::{give_back_later, resident_mb};
use crate::metrics::Metrics;
use crate::orders::Orders;
use crate::registrations::{Foundry, Registered};

/// A load that takes longer has failed.
const LOAD_MOST: Duration = Duration::from_secs(600);

/// Where a model's handler comes from.
pub(crate) enum Source {
    /// It is there, and stays.
    Fixed(Arc<dyn Handler>),
    Built(Arc<dyn Builder>),
}

struct Model {
    lane: Arc<ModelLane>,
    builder: Option<Arc<dyn Builder>>,
    /// While it is held, or leaving.
    serves: Option<Serves>,
}

struct Serves {
    handler: Arc<dyn Handler>,
    task: Id,
    /// Takes nothing new from then on.
    leave: CancellationToken,
}

/// A lane that serves no more.
struct Ended {
    at: usize,
    left: Option<Left>,
    /// All it took is settled and its handler is closed.
    is_gone: bool,
}

struct Built {
    took: Duration,
    answer: Result<Arc<dyn Handler>, BuildError>,
}

/// What all lanes of the worker are served with.
pub(crate) struct Common {
    pub broker: Arc<dyn taskyard_shared::broker::Broker>,
    pub topology: taskyard_shared::Topology,
    pub metrics: Metrics,
    pub prefetch: u16,
    /// The slots that all models share.
    pub pool: Option<Arc<Semaphore>>,
    /// The worker takes nothing new.
    pub stop: CancellationToken,
    /// Ends what runs.
    pub closing: CancellationToken,
}

/// What models are made of that are registered while the worker runs.
pub(crate) struct Founding {
    pub foundry: Arc<dyn Foundry>,
    pub registered: watch::Receiver<Registered>,
    pub lanes: Lanes,
    /// The slots that the worker's models share; 0 when they do not.
    pub shared_slots: u32,
}

/// A model that was registered.
struct Founded {
    at: usize,
    lane: Arc<ModelLane>,
    registration: Registration,
}

pub(crate) struct Holder {
    common: Common,
    yard: Arc<Yard>,
    /// Followed when there is a budget.
    orders: Option<watch::Receiver<Orders>>,
    founding: Option<Founding>,
    founded: BTreeMap<String, Founded>,
    models: Vec<Model>,
    holdings: Holdings,
    serving: JoinSet<Ended>,
    loads: JoinSet<Built>,
    /// The model that is being loaded, and how much memory the process had before.
    loading: Option<(usize, u64)>,
}

impl Holder {
    /// Serves the fixed models from now on. Without `orders` every model is to be held.
    pub fn start(
        common: Common,
        yard: Arc<Yard>,
        orders: Option<watch::Receiver<Orders>>,
        founding: Option<Founding>,
        budget: Budget,
        models: Vec<(Arc<ModelLane>, Source)>,
    ) -> Self {
        let mut holdings = Holdings::new(budget, yard.retry);
        let mut holder_models = Vec::with_capacity(models.len());
        let mut fixed = Vec::new();
        for (at, (lane, source)) in models.into_iter().enumerate() {
            holdings.add(&lane.spec, matches!(source, Source::Fixed(_)));
            let builder = match source {
                Source::Fixed(handler) => {
                    fixed.push((at, handler));
                    None
                }
                Source::Built(builder) => Some(builder),
            };
            holder_models.push(Model { lane, builder, serves: None });
        }
        let (serving, loads) = (JoinSet::new(), JoinSet::new());
        let mut holder = Self {
            common,
            yard,
            orders,
            founding,
            founded: BTreeMap::new(),
            models: holder_models,
            holdings,
            serving,
            loads,
            loading: None,
        };
        for (at, handler) in fixed {
            holder.serve(at, handler);
        }
        holder.stand();
        holder
    }

    /// Loads and unloads until it is dropped. Cancel safe.
    pub async fn keep(&mut self) {
        if self.founding.is_none() && self.models.iter().all(|model| model.builder.is_none()) {
            return std::future::pending().await;
        }
        if self.orders.is_none() {
            self.holdings.want_all();
        }
        loop {
            let again_at = self.step();
            tokio::select! {
                biased;
                orders = heard(&mut self.orders) => self.hear(orders),
                registered = newly_registered(&mut self.founding) => self.found(registered),
                Some(built) = self.loads.join_next(), if !self.loads.is_empty() => self.loaded(built).await,
                Some(ended) = self.serving.join_next_with_id(), if !self.serving.is_empty() => {
                    // What a cut session left behind is void anyway.
                    let _left = self.ended(ended);
                }
                () = until(again_at) => {}
            }
        }
    }

    fn hear(&mut self, orders: Orders) {
        match orders {
            Orders::Unheard => {}
            Orders::None => self.holdings.want_all(),
            Orders::Hold(names) => {
                info!(models = names.join(","), "to hold");
                let unknown = self.holdings.want(&names);
                if !unknown.is_empty() {
                    warn!(models = unknown.join(","), "the placement names models that this worker does not have");
                }
            }
        }
    }

    /// Takes on what was registered, as far as it is like a model that is here, and lets go what is no more.
    fn found(&mut self, registered: Registered) {
        let Some(founding) = &self.founding else { return };
        let is_gone =
            |_: &String, founded: &mut Founded| registered.get(&founded.lane.spec.name) != Some(&founded.registration);
        for (name, founded) in self.founded.extract_if(.., is_gone) {
            info!(task.model = %name, "no more registered");
            founding.lanes.remove(&founded.lane);
            self.holdings.forget(founded.at);
        }
        for (name, registration) in registered {
            if self.founded.contains_key(&name) {
                continue;
            }
            let Some((spec, builder)) = founding.foundry.found(&name, &registration) else { continue };
            info!(task.model = %name, like = %registration.like, "registered");
            let at = self.models.len();
            self.holdings.add(&spec, false);
            let lane = Arc::new(ModelLane::new(spec, founding.shared_slots));
            lane.stand(|standing| standing.state = LoadState::Unloaded);
            founding.lanes.add(lane.clone());
            self.models.push(Model { lane: lane.clone(), builder: Some(builder), serves: None });
            self.founded.insert(name, Founded { at, lane, registration });
        }
        // Where placements have a say the next one says more.
        match &self.orders {
            Some(orders) => {
                let orders = orders.borrow().clone();
                self.hear(orders);
            }
            None => self.holdings.want_all(),
        }
    }

    /// Sets going what is to be done now; answers when something else is to be, though nothing happens.
    fn step(&mut self) -> Option<Instant> {
        let steps = self.holdings.next(Instant::now());
        for at in steps.unload {
            if let Some(Model { lane, serves: Some(serves), .. }) = self.models.get(at) {
                info!(task.model = %lane.spec.name, "unloading");
                serves.leave.cancel();
                self.holdings.set_phase(at, Phase::Leaving);
            }
        }
        if let Some(at) = steps.load {
            self.load(at);
        }
        self.stand();
        steps.again_at
    }

    fn load(&mut self, at: usize) {
        let Some(Model { lane, builder: Some(builder), .. }) = self.models.get(at) else { return };
        info!(task.model = %lane.spec.name, "loading");
        let builder = builder.clone();
        self.loads.spawn(async move {
            let begun = Instant::now();
            let building = std::panic::AssertUnwindSafe(builder.build()).catch_unwind();
            let answer = match tokio::time::timeout(LOAD_MOST, building).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err("loading it panicked".into()),
                Err(_) => Err(format!("loading it took more than {} s", LOAD_MOST.as_secs()).into()),
            };
            Built { took: begun.elapsed(), answer }
        });
        self.loading = Some((at, resident_mb()));
        self.holdings.set_phase(at, Phase::Loading);
    }

    async fn loaded(&mut self, built: Result<Built, JoinError>) {
        let Some((at, before_mb)) = self.loading.take() else { return };
        let (took, answer) = match built {
            Ok(Built { took, answer }) => (took, answer),
            Err(broken) => (Duration::ZERO, Err(broken.into())),
        };
        let Some(Model { lane, .. }) = self.models.get(at) else { return };
        let lane = lane.clone();
        let model = &lane.spec.name;
        match answer {
            Ok(handler) => {
                let grown_mb = resident_mb().saturating_sub(before_mb);
                self.holdings.loaded(at, grown_mb);
                let load_ms = taskyard_shared::time::milliseconds(took);
                info!(task.model = %model, load_ms, grown_mb, "loaded");
                self.common.metrics.loaded(model, took);
                lane.stand(|standing| {
                    standing.load_ms = Some(load_ms);
                    standing.reason = None;
                });
                self.serve(at, handler);
            }
            Err(reason) => self.failed(at, &reason.to_string()),
        }
    }

    fn failed(&mut self, at: usize, reason: &str) {
        let Some(Model { lane, .. }) = self.models.get(at) else { return };
        let model = &lane.spec.name;
        let wait = self.holdings.failed(at, Instant::now(), fastrand::f64());
        error!(task.model = %model, reason, again_ms = wait.as_millis() as u64, "it cannot be loaded");
        self.common.metrics.load_failed(model);
        lane.stand(|standing| standing.reason = Some(brief(reason)));
    }

    fn serve(&mut self, at: usize, handler: Arc<dyn Handler>) {
        let Common { broker, topology, metrics, prefetch, pool, stop, closing } = &self.common;
        let Some(model) = self.models.get_mut(at) else { return };
        model.lane.open();
        let leave = stop.child_token();
        let serving = Serving {
            lane: model.lane.clone(),
            handler: handler.clone(),
            yard: self.yard.clone(),
            broker: broker.clone(),
            topology: topology.clone(),
            metrics: metrics.clone(),
            prefetch: *prefetch,
            pool: pool.clone(),
            draining: leave.clone(),
            closing: closing.clone(),
        };
        let (closes, stop) = (handler.clone(), stop.clone());
        let task = self.serving.spawn(async move {
            let mut left = serving.run().await;
            let settled = async {
                if let Some(left) = &mut left {
                    left.settled().await;
                }
            };
            tokio::select! {
                biased;
                // The whole worker stops: it closes everything at once, at the end.
                () = stop.cancelled() => return Ended { at, left, is_gone: false },
                () = settled => {}
            }
            drop(left);
            closes.close().await;
            Ended { at, left: None, is_gone: true }
        });
        model.serves = Some(Serves { handler, task: task.id(), leave });
    }

    /// A lane has ended: what it left is to be kept until it is settled.
    fn ended(&mut self, ended: Result<(Id, Ended), JoinError>) -> Option<Left> {
        match ended {
            Ok((_, Ended { at, left, is_gone: false })) => {
                self.holdings.set_phase(at, Phase::Leaving);
                left
            }
            Ok((_, Ended { at, left, is_gone: true })) => {
                let Some(model) = self.models.get_mut(at) else { return left };
                // With the handler goes the model's memory.
                model.serves = None;
                tokio::spawn(give_back_later());
                self.holdings.set_phase(at, Phase::Absent);
                self.common.metrics.unloaded(&model.lane.spec.name);
                info!(task.model = %model.lane.spec.name, "unloaded");
                left
            }
            Err(broken) => {
                let at = self.models.iter().position(|model| {
                    model.serves.as_ref().is_some_and(|serves| serves.task == broken.id()) && model.builder.is_some()
                });
                match at {
                    Some(at) => {
                        if let Some(serves) = self.models.get_mut(at).and_then(|model| model.serves.take()) {
                            tokio::spawn(async move { serves.handler.close().await });
                        }
                        self.failed(at, &format!("serving it broke off: {broken}"));
                    }
                    None => error!(%broken, "serving a model broke off"),
                }
                None
            }
        }
    }

    /// Writes down for the reports how far every model is.
    fn stand(&self) {
        for (at, model) in self.models.iter().enumerate() {
            let state = self.holdings.state(at);
            let too_large = self.holdings.too_large(at);
            let memory_mb = if self.holdings.are_placed() { self.holdings.memory_mb(at) } else { 0 };
            model.lane.stand(|standing| {
                if let (LoadState::Failed, Some(why)) = (state, &too_large) {
                    standing.reason = Some(why.clone());
                }
                (standing.state, standing.memory_mb) = (state, memory_mb);
            });
        }
    }

    /// The worker stops: whatever is being loaded is not waited for.
    pub async fn break_off_loads(&mut self) {
        self.loads.abort_all();
        while let Some(built) = self.loads.join_next().await {
            if let Ok(Built { answer: Ok(handler), .. }) = built {
                handler.close().await;
            }
        }
    }

    /// Waits until no lane serves any more. What they left goes to `left`, to be kept until everything is settled. Cancel
    /// safe.
    pub async fn drained(&mut self, left: &mut Vec<Left>) {
        while let Some(ended) = self.serving.join_next_with_id().await {
            left.extend(self.ended(ended));
        }
    }

    /// Ends the lanes at once.
    pub async fn kill(&mut self) {
        self.serving.shutdown().await;
    }

    /// Lets go of what settles, once no lane serves. Answers the handlers that are still to be closed.
    pub fn into_handlers(self) -> Vec<Arc<dyn Handler>> {
        self.models.into_iter().filter_map(|model| model.serves).map(|serves| serves.handler).collect()
    }
}

/// The models that are registered, when there are others.
async fn newly_registered(founding: &mut Option<Founding>) -> Registered {
    if let Some(founding) = founding
        && founding.registered.changed().await.is_ok()
    {
        return founding.registered.borrow_and_update().clone();
    }
    std::future::pending().await
}

/// The next orders. Nothing comes any more once their reader is gone, and what is held stays.
async fn heard(orders: &mut Option<watch::Receiver<Orders>>) -> Orders {
    if let Some(orders) = orders
        && orders.changed().await.is_ok()
    {
        return orders.borrow_and_update().clone();
    }
    std::future::pending().await
}

/// The beginning of a reason, for a report.
fn brief(reason: &str) -> String {
    let mut end = reason.len().min(REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or_default().to_owned()
}
