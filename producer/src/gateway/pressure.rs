//! Push-back: what the schedulers say that they would refuse, the gateway refuses before it is accepted.
//!
//! The signals are read once a second, or a few times while something is refused, and not for each request. When they are too old,
//! or the store is away for long, tasks are let in: the schedulers look again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use taskyard_shared::process::settings::SHARDS_MOST;
use taskyard_shared::signal::{ModelSignal, Rate, Signal, VERSION};
use taskyard_shared::store::{Rates, Store, Want};
use taskyard_shared::{Envelope, Target, Timestamp};

use super::Shared;
use super::intake::Taken;
use super::problem::{Code, Problem};
use super::request::Incoming;

/// How often the signals are read, and how often while tasks are refused or were lately.
const EVERY: Duration = Duration::from_secs(1);
const OFTENER: Duration = Duration::from_millis(200);
const LATELY: Duration = Duration::from_secs(60);
/// One call of the store.
const LIMIT: Duration = Duration::from_millis(500);
/// A signal that has not changed for so long says nothing of now.
const OLD: Duration = Duration::from_secs(10);
/// Nor one that was written so long ago when it is first seen, whatever the clocks; milliseconds.
const ANCIENT_MS: f64 = 60_000.0;
/// When a tenant is asked to come again that has too many waiting tasks: nobody knows when they run.
const WAITING_RETRY_S: u32 = 5;

/// What was heard of the schedulers.
pub(super) struct Pressure {
    heard: RwLock<Arc<Heard>>,
    rates: Rates,
}

/// By shard.
#[derive(Default)]
struct Heard {
    shards: BTreeMap<u32, Shard>,
    /// Tasks of tenants with a quota that were let in since.
    came: BTreeMap<String, AtomicU64>,
    /// The models that offer each capability.
    capabilities: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Clone)]
struct Shard {
    signal: Arc<Signal>,
    /// When it was first seen so.
    seen: Instant,
}

/// What the yard's state shows of a model.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Load {
    pub(super) drain_seconds: Option<f64>,
    pub(super) workers_wanted: f64,
    pub(super) overloaded: bool,
}

impl Pressure {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { heard: RwLock::default(), rates: Rates::new(store) }
    }

    fn heard(&self) -> Arc<Heard> {
        self.heard.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn take(&self, signals: Vec<Signal>) {
        let before = self.heard();
        let now = Instant::now();
        let mut heard = Heard::default();
        let of = signals.iter().map(|signal| signal.shards).max();
        for signal in signals {
            let known = before.shards.get(&signal.shard).filter(|known| known.signal.at == signal.at);
            let seen = match known {
                Some(known) => known.seen,
                None if Timestamp::now().ms_since(signal.at) > ANCIENT_MS => continue,
                None => now,
            };
            heard.shards.insert(signal.shard, Shard { signal: Arc::new(signal), seen });
        }
        // One that could not be read this time.
        for (&number, shard) in before.shards.iter().filter(|&(&number, _)| of.is_none_or(|of| number < of)) {
            heard.shards.entry(number).or_insert_with(|| shard.clone());
        }
        let is_new = heard
            .shards
            .iter()
            .any(|(number, shard)| before.shards.get(number).is_none_or(|before| before.signal.at != shard.signal.at));
        // What came before the newest one is in that.
        let came = |tenant: &String| {
            before.came.get(tenant).filter(|_| !is_new).map_or(0, |came| came.load(Ordering::Relaxed))
        };
        let tenants = heard.shards.values().flat_map(|shard| shard.signal.tenants.keys());
        heard.came = tenants.map(|tenant| (tenant.clone(), AtomicU64::new(came(tenant)))).collect();
        for (name, model) in heard.shards.values().flat_map(|shard| &shard.signal.models) {
            for capability in &model.capabilities {
                heard.capabilities.entry(capability.clone()).or_default().insert(name.clone());
            }
        }
        *self.heard.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(heard);
    }

    /// How many shards there are, as far as was heard lately.
    pub(super) fn shards(&self) -> u32 {
        self.heard().shards().clamp(1, SHARDS_MOST)
    }

    /// The load of a model, over all shards. `None` when nothing was heard of it lately.
    pub(super) fn load(&self, model: &str) -> Option<Load> {
        let heard = self.heard();
        let of_model: Vec<&ModelSignal> = heard.of_model(model).collect();
        let first = of_model.first()?;
        let drains = of_model.iter().filter_map(|model| model.drain_seconds);
        Some(Load {
            drain_seconds: first.drain_seconds.map(|_| drains.fold(0.0, f64::max)),
            workers_wanted: of_model.iter().map(|model| model.workers_wanted).sum::<f64>().ceil(),
            overloaded: of_model.iter().any(|model| model.overload.is_some()),
        })
    }
}

impl Heard {
    /// Those that are not too old.
    fn signals(&self) -> impl Iterator<Item = &Signal> {
        self.shards.values().filter(|shard| shard.seen.elapsed() <= OLD).map(|shard| &*shard.signal)
    }

    fn of_model(&self, model: &str) -> impl Iterator<Item = &ModelSignal> {
        self.signals().filter_map(move |signal| signal.models.get(model))
    }

    /// Seconds until a task like this one is taken, when its model, or each that offers its capability, would refuse it.
    fn overloaded(&self, envelope: &Envelope) -> Option<u32> {
        match &envelope.target {
            Target::Model(name) => self.refused(envelope, name.split('@').next().unwrap_or(name)),
            Target::Capability(capability) => {
                // What nobody runs is chosen last.
                let runs = |name: &String| self.of_model(name).any(|model| model.drain_seconds.is_some());
                let candidates = self.capabilities.get(&**capability)?.iter().filter(|name| runs(name));
                let refused = candidates.map(|model| self.refused(envelope, model));
                // It takes only one that does not.
                refused.collect::<Option<Vec<u32>>>()?.into_iter().min()
            }
        }
    }

    /// Whichever shard reads the task, so the worst of them.
    fn refused(&self, envelope: &Envelope, model: &str) -> Option<u32> {
        let overloads = self.of_model(model).filter_map(|model| model.overload.as_ref());
        let refusing =
            overloads.filter(|o| o.refuses(&envelope.tenant, envelope.kind, envelope.priority, envelope.extras.cost));
        refusing.map(|overload| overload.retry_after_s).max()
    }

    fn refuses(&self) -> bool {
        self.signals().any(|signal| signal.models.values().any(|model| model.overload.is_some()))
    }

    fn rate(&self, tenant: &str) -> Option<Rate> {
        self.signals().find_map(|signal| signal.tenants.get(tenant)?.rate)
    }

    /// How many more tasks of a tenant may wait; `None` for as many as come.
    fn room(&self, tenant: &str) -> Option<u64> {
        let of_tenant: Vec<_> = self.signals().filter_map(|signal| signal.tenants.get(tenant)).collect();
        let most = of_tenant.iter().filter_map(|tenant| tenant.max_waiting).min()?;
        let waiting: u64 = of_tenant.iter().map(|tenant| tenant.waiting).fold(0, u64::saturating_add);
        let came = self.came.get(tenant).map_or(0, |came| came.load(Ordering::Relaxed));
        Some(most.saturating_sub(waiting.saturating_add(came)))
    }

    fn shards(&self) -> u32 {
        self.signals().map(|signal| signal.shards).max().unwrap_or(1)
    }
}

/// What is neither answered yet nor came before.
fn fresh<'a, 'b>(
    incoming: &'a [Incoming],
    again: &'b [bool],
    taken: &'b mut [Option<Taken>],
) -> impl Iterator<Item = (&'a Incoming, &'b mut Option<Taken>)> {
    let all = incoming.iter().zip(taken).zip(again);
    all.filter(|((_, taken), again)| taken.is_none() && !**again).map(|(one, _)| one)
}

impl Shared {
    /// Reads the signals, for ever.
    pub(super) async fn feel(&self) {
        let mut refused: Option<Instant> = None;
        loop {
            // Which others there are, the first one says.
            let mut signals = Vec::new();
            let mut of = self.pressure.heard().shards().clamp(1, SHARDS_MOST);
            let mut number = 0;
            while number < of {
                let key = Signal::key(number);
                let read = self.records.ask(LIMIT, |store| async move { store.fetch(&key).await }).await;
                let Ok(bytes) = read else { break };
                let signal = bytes.and_then(|bytes| serde_json::from_slice::<Signal>(&bytes).ok());
                if let Some(signal) = signal.filter(|signal| signal.v == VERSION && signal.shard == number) {
                    of = of.max(signal.shards).min(SHARDS_MOST);
                    signals.push(signal);
                }
                number += 1;
            }
            if !signals.is_empty() {
                self.pressure.take(signals);
            }
            if self.pressure.heard().refuses() {
                refused = Some(Instant::now());
            }
            let is_busy = refused.is_some_and(|at| at.elapsed() < LATELY);
            tokio::time::sleep(if is_busy { OFTENER } else { EVERY }).await;
        }
    }

    /// Refuses what the schedulers would, unless it came before. Answers whether the others were counted against the rates of their
    /// tenants.
    pub(super) async fn push_back(&self, incoming: &[Incoming], again: &[bool], taken: &mut [Option<Taken>]) -> bool {
        let heard = self.pressure.heard();
        if heard.signals().next().is_none() {
            return false;
        }
        let mut wants: BTreeMap<&str, Want> = BTreeMap::new();
        for (incoming, taken) in fresh(incoming, again, taken) {
            let envelope = &incoming.envelope;
            if let Some(seconds) = heard.overloaded(envelope) {
                let detail = "more waits for the model than may, and is worth more per second; nothing was accepted";
                *taken = Some(self.refuse(Problem::new(Code::Overloaded, detail).after(seconds), envelope));
            } else if let Some(rate) = heard.rate(&envelope.tenant) {
                let tenant = envelope.tenant.to_string();
                wants.entry(&envelope.tenant).or_insert(Want { tenant, tasks: 0, rate }).tasks += 1;
            }
        }
        self.keep_waiting_quotas(&heard, incoming, again, taken, &mut wants);
        let list: Vec<Want> = wants.into_values().filter(|want| want.tasks > 0).collect();
        let grants = self.pressure.rates.take(&list, heard.shards()).await;
        let mut grants: BTreeMap<String, _> = list.into_iter().map(|want| want.tenant).zip(grants).collect();
        for (incoming, taken) in fresh(incoming, again, taken) {
            let envelope = &incoming.envelope;
            if let Some(grant) = grants.get_mut(&*envelope.tenant) {
                if grant.tasks > 0 {
                    grant.tasks -= 1;
                } else {
                    let seconds = u32::try_from(grant.retry_ms.div_ceil(1000)).unwrap_or(u32::MAX).clamp(1, 60);
                    let detail = "the tenant sends more in a second than it may; nothing was accepted";
                    *taken = Some(self.refuse(Problem::new(Code::QuotaRate, detail).after(seconds), envelope));
                    continue;
                }
            }
            if let Some(came) = heard.came.get(&*envelope.tenant) {
                came.fetch_add(1, Ordering::Relaxed);
            }
        }
        !grants.is_empty()
    }

    fn refuse(&self, problem: Problem, envelope: &Envelope) -> Taken {
        let code = match problem.code {
            Code::Overloaded => "overloaded",
            Code::QuotaWaiting => "quota_waiting",
            _ => "quota_rate",
        };
        self.metrics.pushed_back.with_label_values(&[code]).inc();
        Err(problem.of_task(envelope.id))
    }

    fn keep_waiting_quotas<'a>(
        &self,
        heard: &Heard,
        incoming: &'a [Incoming],
        again: &[bool],
        taken: &mut [Option<Taken>],
        wants: &mut BTreeMap<&'a str, Want>,
    ) {
        let mut rooms: BTreeMap<&str, Option<u64>> = BTreeMap::new();
        for (incoming, taken) in fresh(incoming, again, taken) {
            let envelope = &incoming.envelope;
            let room = rooms.entry(&envelope.tenant).or_insert_with(|| heard.room(&envelope.tenant));
            match room {
                None => {}
                Some(0) => {
                    let detail = "as many tasks of the tenant wait as may; nothing was accepted";
                    let problem = Problem::new(Code::QuotaWaiting, detail).after(WAITING_RETRY_S);
                    *taken = Some(self.refuse(problem, envelope));
                    if let Some(want) = wants.get_mut(&*envelope.tenant) {
                        want.tasks -= 1;
                    }
                }
                Some(room) => *room -= 1,
            }
        }
    }
}
