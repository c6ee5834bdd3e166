//! One model on this worker: takes deliveries as there is room, forms batches, and gives each a slot.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use taskyard_shared::broker::{
    Acker, Broker, BrokerError, Consumer, Delivery, Need, QueueSpec, Receipt, Tag, Verdict, publish_surely, settle,
};
use taskyard_shared::dead::Letter;
use taskyard_shared::load::{LoadState, ModelLoad, ModelSpec};
use taskyard_shared::retry::Backoff;
use taskyard_shared::{Timestamp, Topology, messages, wire};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info, warn};

use crate::attempt::{Yard, attempt};
use crate::batching::Batching;
use crate::handler::Handler;
use crate::held::Held;
use crate::long::until;
use crate::metrics::Metrics;

/// Writing a state, telling and acking take about so long.
const SETTLING_MS: f64 = 10.0;
const SETTLING_MOST: f64 = 256.0;
/// A model that does not say how long its tasks take is taken for one whose tasks are long.
const LONG_MS: f64 = 50.0;

/// A first attempt is claimed when its model's calls take longer.
const SHORT_MS: f64 = 50.0;
/// Weight of the newest call in their running mean.
const NEWEST: f64 = 0.1;

/// What is fixed about a model here, and what is counted of it.
pub(crate) struct ModelLane {
    pub spec: ModelSpec,
    pub full_name: String,
    /// Of the model, as labels and events have it.
    pub name: Arc<str>,
    /// Tasks at once, as far as the slots that the worker's models share allow.
    slots: u32,
    standing: Mutex<Standing>,
    /// Since when each free slot is free.
    free_since: Mutex<VecDeque<Instant>>,
    /// Running mean of a call's time, in milliseconds, as the bits of a float; NaN while nothing is known.
    mean_ms: AtomicU64,
    /// What calls cost and how tasks come, for batches.
    batching: Mutex<Batching>,
    pub busy: AtomicU32,
    pub held: AtomicU32,
    pub finished: AtomicU64,
}

/// The models of the worker. They change while it runs, by what is registered.
#[derive(Clone)]
pub(crate) struct Lanes(watch::Sender<Vec<Arc<ModelLane>>>);

impl Lanes {
    pub fn new(lanes: Vec<Arc<ModelLane>>) -> Self {
        Self(watch::Sender::new(lanes))
    }

    pub fn all(&self) -> Vec<Arc<ModelLane>> {
        self.0.borrow().clone()
    }

    pub fn add(&self, lane: Arc<ModelLane>) {
        self.0.send_modify(|lanes| lanes.push(lane));
    }

    pub fn remove(&self, lane: &Arc<ModelLane>) {
        self.0.send_modify(|lanes| lanes.retain(|other| !Arc::ptr_eq(other, lane)));
    }

    /// Tells when there are others.
    pub fn changes(&self) -> watch::Receiver<Vec<Arc<ModelLane>>> {
        self.0.subscribe()
    }
}

/// How far the model is on this worker, as it is reported.
#[derive(Clone, Default)]
pub(crate) struct Standing {
    pub state: LoadState,
    pub load_ms: Option<f64>,
    /// 0 where there is no budget.
    pub memory_mb: u64,
    pub reason: Option<String>,
}

impl ModelLane {
    /// `shared` is how many slots the worker's models share; 0 when they do not.
    pub fn new(spec: ModelSpec, shared: u32) -> Self {
        let slots = if shared > 0 { spec.slots.min(shared) } else { spec.slots };
        let full_name = spec.full_name();
        let counter = AtomicU32::default;
        let free_since = Mutex::new((0..spec.slots).map(|_| Instant::now()).collect());
        let mean_ms = AtomicU64::new(spec.expected_ms.unwrap_or(f64::NAN).to_bits());
        let (busy, held, finished) = (counter(), counter(), AtomicU64::default());
        let standing = Mutex::default();
        let batching = Mutex::default();
        let name = spec.name.as_str().into();
        Self { spec, full_name, name, slots, standing, free_since, mean_ms, batching, busy, held, finished }
    }

    /// A call of the handler with so many tasks took so long.
    pub fn ran(&self, tasks: usize, time: Duration) {
        if self.spec.max_batch > 1 {
            self.batching().ran(tasks, time);
        }
        let (old, ms) = (self.mean_ms(), time.as_secs_f64() * 1e3);
        let mean = if old.is_nan() { ms } else { old + NEWEST * (ms - old) };
        // Of two at once one is lost, which a running mean can bear.
        self.mean_ms.store(mean.to_bits(), Ordering::Relaxed);
    }

    /// Whether its tasks are known to be so short that claiming one takes about as long as running it.
    pub fn is_short(&self) -> bool {
        self.mean_ms() < SHORT_MS
    }

    fn batching(&self) -> MutexGuard<'_, Batching> {
        self.batching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mean_ms(&self) -> f64 {
        f64::from_bits(self.mean_ms.load(Ordering::Relaxed))
    }

    fn free_since(&self) -> MutexGuard<'_, VecDeque<Instant>> {
        self.free_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its slots are all free from now on.
    pub fn open(&self) {
        let now = Instant::now();
        self.free_since().iter_mut().for_each(|since| *since = now);
    }

    pub fn stand(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.standing.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn load(&self) -> ModelLoad {
        let Standing { state, load_ms, memory_mb, reason } =
            self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ModelLoad {
            slots: if state == LoadState::Loaded { self.slots } else { 0 },
            busy: self.busy.load(Ordering::Relaxed),
            max_batch: self.spec.max_batch,
            held: self.held.load(Ordering::Relaxed),
            finished: self.finished.load(Ordering::Relaxed),
            state,
            load_ms,
            memory_mb,
            reason: reason.filter(|_| state == LoadState::Failed),
        }
    }
}

/// What is left to the first of their deadlines, in milliseconds.
fn least_left_ms<'a>(tasks: impl Iterator<Item = &'a Held>) -> Option<f64> {
    let now = Timestamp::now();
    tasks.filter_map(|held| held.envelope.deadline).map(|deadline| deadline.ms_since(now)).min_by(f64::total_cmp)
}

/// What serving a model takes.
pub(crate) struct Serving {
    pub lane: Arc<ModelLane>,
    pub handler: Arc<dyn Handler>,
    pub yard: Arc<Yard>,
    pub broker: Arc<dyn Broker>,
    pub topology: Topology,
    pub metrics: Metrics,
    /// Deliveries in hand beyond what the slots run.
    pub prefetch: u16,
    /// The slots that the worker's models share, beside those of this one.
    pub pool: Option<Arc<Semaphore>>,
    /// Takes nothing new from then on.
    pub draining: CancellationToken,
    /// Ends what runs.
    pub closing: CancellationToken,
}

/// A consumer that takes nothing new. With it goes what is not settled, so it is to be kept until everything is.
pub(crate) struct Left {
    _consumer: Box<dyn Consumer>,
    settled: CancellationToken,
}

impl Left {
    /// Waits until everything that it took is settled, or is given up.
    pub async fn settled(&mut self) {
        self.settled.cancelled().await;
    }
}

/// Settles what one session took, and is dropped with the last delivery of it.
struct SessionAcker {
    acker: Arc<dyn Acker>,
    _settled: DropGuard,
}

#[async_trait]
impl Acker for SessionAcker {
    async fn settle(&self, tags: Vec<Tag>, verdict: Verdict) -> usize {
        self.acker.settle(tags, verdict).await
    }
}

impl Serving {
    /// Serves until draining, and then until everything that runs has ended. A session that is cut is taken up again.
    pub async fn run(self) -> Option<Left> {
        let slots = Arc::new(Semaphore::new(self.lane.spec.slots as usize));
        let mut running = JoinSet::new();
        let mut tries = 0;
        while !self.draining.is_cancelled() {
            match self.session(&slots, &mut running).await {
                Ok(left) => return Some(left),
                Err(failure) if failure.is_transient() => {
                    tries = if running.is_empty() { tries + 1 } else { 1 };
                    warn!(%failure, task.model = %self.lane.spec.name, "the queue is taken up again");
                }
                Err(failure) => {
                    tries += 1;
                    error!(%failure, task.model = %self.lane.spec.name, "the model's queue cannot be read");
                }
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(Backoff::RECONNECT.delay(tries, fastrand::f64())) => {}
                () = self.draining.cancelled() => {}
            }
        }
        while running.join_next().await.is_some() {}
        None
    }

    async fn session(&self, slots: &Arc<Semaphore>, running: &mut JoinSet<Vec<Held>>) -> Result<Left, BrokerError> {
        let spec = &self.lane.spec;
        let queue = self.topology.ready(&spec.name);
        self.broker.declare(&[QueueSpec::durable(&queue)]).await?;
        let prefetch = self.unacked_most();
        let mut consumer = self.broker.consume(&queue, prefetch).await?;
        info!(task.model = %spec.name, prefetch, "takes tasks");
        let mut waiting: VecDeque<Held> = VecDeque::new();
        let settled = CancellationToken::new();
        let acker = SessionAcker { acker: consumer.acker(), _settled: settled.clone().drop_guard() };
        let ended =
            self.take(&mut *consumer, Arc::new(acker), slots, running, &mut waiting, usize::from(prefetch)).await;
        self.lane.held.fetch_sub(waiting.len() as u32, Ordering::Relaxed);
        // After a cut the tags are void and everything comes again.
        ended?;
        // Draining: what was not begun goes back at once, for others.
        consumer.cancel().await?;
        self.give_back(waiting.into()).await;
        while let Some(ended) = running.join_next().await {
            self.give_back(ended.unwrap_or_default()).await;
        }
        Ok(Left { _consumer: consumer, settled })
    }

    /// Deliveries that may be unacked: what the slots run, the small prefetch and as much again that goes past it, and what
    /// passes through the slots while a finished task is being settled. What waits here is bounded by the scheduler's
    /// credits too.
    fn unacked_most(&self) -> u16 {
        let spec = &self.lane.spec;
        let in_slots = f64::from(spec.slots) * f64::from(spec.max_batch);
        let each_ms = spec.expected_ms.unwrap_or(LONG_MS).max(SETTLING_MS / 64.0);
        let settling = (in_slots * SETTLING_MS / each_ms).floor().min(SETTLING_MOST);
        (in_slots + settling + 2.0 * f64::from(self.prefetch)).clamp(1.0, f64::from(u16::MAX)) as u16
    }

    async fn take(
        &self,
        consumer: &mut dyn Consumer,
        acker: Arc<dyn Acker>,
        slots: &Arc<Semaphore>,
        running: &mut JoinSet<Vec<Held>>,
        waiting: &mut VecDeque<Held>,
        most: usize,
    ) -> Result<(), BrokerError> {
        // It keeps its place in the line of those who wait for a shared slot, whatever else happens meanwhile.
        let mut free = pin!(Slots { own: slots.clone(), pool: self.pool.clone() }.free());
        // Not before this is one of them too old: what comes is younger, and what goes can only put it off.
        let mut too_old = None;
        loop {
            let closes = self.batch_closes(waiting, slots);
            too_old = too_old.or_else(|| self.yard.long.due(waiting.iter()));
            tokio::select! {
                biased;
                () = self.draining.cancelled() => return Ok(()),
                Some(ended) = running.join_next(), if !running.is_empty() => {
                    self.give_back(ended.unwrap_or_default()).await;
                }
                permit = async { closed(closes).await; free.as_mut().await }, if closes.is_some() => {
                    free.set(Slots { own: slots.clone(), pool: self.pool.clone() }.free());
                    let size = self.batch_size(waiting);
                    let mut batch: Vec<Held> = waiting.drain(..size).collect();
                    // Of several free slots the one that was free last: the others are not needed yet.
                    let idle = self.lane.free_since().pop_back().map_or(Duration::ZERO, |since| since.elapsed());
                    batch.iter_mut().for_each(|held| held.idle = idle);
                    running.spawn(self.begin(permit, batch));
                }
                () = until(too_old), if too_old.is_some() => {
                    too_old = None;
                    // It comes again at once, and the broker's patience with it begins anew.
                    let oldest = Instant::now().checked_sub(self.yard.long.most);
                    let (old, young) = std::mem::take(waiting)
                        .into_iter()
                        .partition::<Vec<_>, _>(|held| oldest.is_some_and(|oldest| held.received <= oldest));
                    waiting.extend(young);
                    self.lane.held.fetch_sub(old.len() as u32, Ordering::Relaxed);
                    self.give_back(old).await;
                }
                deliveries = consumer.next_batch(most) => {
                    for delivery in deliveries? {
                        self.receive(delivery, &acker, waiting).await;
                    }
                }
            }
        }
    }

    /// When the batch that is forming goes, once a slot is free; `None` while there is nothing to go.
    fn batch_closes(&self, waiting: &VecDeque<Held>, slots: &Semaphore) -> Option<Instant> {
        let first = waiting.front()?;
        let spec = &self.lane.spec;
        let now = Instant::now();
        if spec.max_delay_ms == 0 || waiting.len() >= spec.max_batch as usize {
            return Some(now);
        }
        let latest = first.received + Duration::from_millis(spec.max_delay_ms);
        let batching = self.lane.batching();
        let closes = batching.closes(waiting.len(), slots.available_permits() > 1, latest, now);
        let call_ms = batching.cost().map(|cost| cost.of(waiting.len())).or(spec.expected_ms).unwrap_or(0.0);
        let left_ms = least_left_ms(waiting.iter()).map_or(f64::INFINITY, |left_ms| left_ms - call_ms);
        Some(closes.min(now + Duration::from_secs_f64((left_ms / 1e3).clamp(0.0, 86_400.0))))
    }

    /// How many of those that wait go in one call.
    fn batch_size(&self, waiting: &VecDeque<Held>) -> usize {
        let most = waiting.len().min(self.lane.spec.max_batch as usize);
        match least_left_ms(waiting.iter().take(most)) {
            Some(left_ms) if most > 1 => self.lane.batching().fits(most, left_ms),
            _ => most,
        }
    }

    fn begin(&self, permit: Permit, batch: Vec<Held>) -> impl Future<Output = Vec<Held>> + use<> {
        let (yard, lane, handler) = (self.yard.clone(), self.lane.clone(), self.handler.clone());
        let (closing, metrics) = (self.closing.clone(), self.metrics.clone());
        async move {
            let size = batch.len();
            lane.busy.fetch_add(1, Ordering::Relaxed);
            metrics.batch(&lane.spec.name, size);
            let not_begun = tokio::select! {
                biased;
                not_begun = attempt(&yard, &lane, &*handler, batch) => not_begun,
                // The deliveries are not acked, and their leases run out: they come again.
                () = closing.cancelled() => Vec::new(),
            };
            lane.busy.fetch_sub(1, Ordering::Relaxed);
            lane.held.fetch_sub((size - not_begun.len()) as u32, Ordering::Relaxed);
            lane.finished.fetch_add((size - not_begun.len()) as u64, Ordering::Relaxed);
            lane.free_since().push_back(Instant::now());
            drop(permit);
            not_begun
        }
    }

    async fn receive(&self, delivery: Delivery, acker: &Arc<dyn Acker>, waiting: &mut VecDeque<Held>) {
        let received = Instant::now();
        match wire::read_envelopes(&delivery.body) {
            Ok(envelopes) => {
                self.lane.held.fetch_add(envelopes.len() as u32, Ordering::Relaxed);
                if self.lane.spec.max_batch > 1 {
                    self.lane.batching().came(envelopes.len(), received);
                }
                let receipts = Receipt::split(delivery.tag, acker, envelopes.len());
                let passes = delivery.properties.headers.contains_key(messages::PASSES_HEADER);
                for (envelope, receipt) in envelopes.into_iter().zip(receipts) {
                    let held = Held {
                        envelope: Arc::new(envelope),
                        receipt: Some(receipt),
                        received,
                        redelivered: delivery.redelivered,
                        passes,
                        idle: Duration::ZERO,
                        lease: None,
                    };
                    if passes {
                        let behind = waiting.iter().take_while(|other| other.passes).count();
                        waiting.insert(behind, held);
                    } else {
                        waiting.push_back(held);
                    }
                }
            }
            Err(reason) => self.bury(delivery, acker, &reason).await,
        }
    }

    /// What cannot be read never blocks the queue.
    async fn bury(&self, delivery: Delivery, acker: &Arc<dyn Acker>, reason: &wire::Unreadable) {
        warn!(task.model = %self.lane.spec.name, %reason, "a message in the ready queue cannot be read");
        self.metrics.dead_lettered(reason.code());
        let dead = Letter::of_internal(reason.code(), &reason.to_string(), delivery.body);
        let work = vec![(dead.message(&self.topology), Need::Work)];
        if publish_surely(&*self.broker, work, &self.closing).await.is_ok() {
            acker.settle(vec![delivery.tag], Verdict::Ack).await;
        }
    }

    async fn give_back(&self, held: Vec<Held>) {
        if held.is_empty() {
            return;
        }
        info!(task.model = %self.lane.spec.name, tasks = held.len(), "given back, not begun");
        settle(held.into_iter().filter_map(|held| held.receipt).collect(), Verdict::Requeue).await;
    }
}

/// Waits until the batch closes.
async fn closed(closes: Option<Instant>) {
    // The runtime's timer counts in whole milliseconds: even what is due would wait for the next.
    if let Some(closes) = closes.filter(|closes| *closes > Instant::now()) {
        tokio::time::sleep_until(closes).await;
    }
}

/// A slot of the model, and one of the worker's where these are shared.
type Permit = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

struct Slots {
    own: Arc<Semaphore>,
    pool: Option<Arc<Semaphore>>,
}

impl Slots {
    async fn free(self) -> Permit {
        let own = acquire(self.own).await;
        let shared = match self.pool {
            Some(pool) => Some(acquire(pool).await),
            None => None,
        };
        (own, shared)
    }
}

async fn acquire(slots: Arc<Semaphore>) -> OwnedSemaphorePermit {
    match slots.acquire_owned().await {
        Ok(permit) => permit,
        // The semaphore is never closed.
        Err(_) => std::future::pending().await,
    }
}
