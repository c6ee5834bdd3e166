//! Tells workers with a memory budget which of their models to hold: what the planner's placement makes of their reports.
//!
//! What is told is a state and no command: it stands in the store until it changes, and a worker that missed it reads it with
//! its next report. One shard places for all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use taskyard_shared::load::{LoadReport, LoadState, ModelLoad, Placement};
use taskyard_shared::store::{Store, StoreError};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info};

use crate::core::Core;
use crate::load_watch::unheld;
use crate::planner::placement::{Held, HostNow, ModelNow, Pin, Resources, Rules, place};

/// Placement is decided so often.
const EVERY: Duration = Duration::from_secs(1);
/// A worker that could not load a model is not told to again for so long; others may be.
const FAILED_FOR: Duration = Duration::from_secs(30);
/// Taken for the time that loading takes, before any was measured.
const UNKNOWN_LOAD_SECONDS: f64 = 2.0;
/// Taken for the time of a task, before any was measured.
const UNKNOWN_TASK_SECONDS: f64 = 0.05;
/// What is offered is the mean over about so long.
const OFFERED_OVER_SECONDS: f64 = 60.0;

/// What a worker was told to hold.
#[derive(Default)]
struct Told {
    /// By model, since when it is loaded; `None` while that is awaited.
    models: BTreeMap<String, Option<u64>>,
    /// Models that it could not load, and until when they are left alone.
    failed: BTreeMap<String, Instant>,
    /// What stands in the store, as far as is known.
    written: Option<Vec<String>>,
}

/// What is known of a model over the time.
#[derive(Default)]
struct Known {
    came_seconds: f64,
    offered: f64,
    load_ms: Option<f64>,
    is_held: bool,
    /// Since when no worker is told to hold it, if one was before.
    unheld_us: Option<u64>,
}

impl Known {
    fn load_seconds(&self) -> f64 {
        self.load_ms.map_or(UNKNOWN_LOAD_SECONDS, |ms| ms / 1e3)
    }
}

#[derive(Default)]
pub(crate) struct Placing {
    workers: BTreeMap<String, Told>,
    models: BTreeMap<String, Known>,
    /// Messages in the queues of models that no worker holds, and since when that is known.
    left_behind: BTreeMap<String, (u64, u64)>,
    decided: Option<Instant>,
    writing: JoinSet<(String, Result<(), StoreError>)>,
}

impl Told {
    /// Takes over what the worker says of itself. Of one that was not known, what it holds is what it was told.
    fn hear(&mut self, report: &LoadReport, is_new: bool, now_us: u64, now: Instant) {
        self.failed.retain(|_, until| *until > now);
        if is_new {
            let held = report.models.iter().filter(|(_, load)| load.state != LoadState::Unloaded);
            self.models = held.map(|(name, _)| (name.clone(), None)).collect();
        }
        self.models.retain(|name, loaded_us| {
            let Some(load) = report.models.get(name) else { return false };
            match load.state {
                // One that was there before this scheduler looked has been there for long.
                LoadState::Loaded => *loaded_us = loaded_us.or(Some(if is_new { 0 } else { now_us })),
                LoadState::Loading | LoadState::Unloaded => {}
                LoadState::Failed => {
                    self.failed.insert(name.clone(), now + FAILED_FOR);
                    return false;
                }
            }
            true
        });
    }
}

impl Core {
    /// Decides anew, if it is time, and has written down what changed.
    pub(crate) fn place_models(&mut self, loads: &[LoadReport]) {
        let (now, now_us) = (Instant::now(), self.clock.now_us());
        while let Some(Ok((worker, written))) = self.placing.writing.try_join_next() {
            if let Err(failure) = written {
                debug!(%failure, worker.id = %worker, "what it is to hold was not written: again");
                self.metrics.store_failed("put");
                if let Some(told) = self.placing.workers.get_mut(&worker) {
                    told.written = None;
                }
            }
        }
        // What is under way is waited for, so that what was decided first is never written last.
        let is_due = self.placing.decided.is_none_or(|decided| now.duration_since(decided) >= EVERY);
        if self.settings.placement != "demand" || self.shard.number != 0 || !is_due || !self.placing.writing.is_empty()
        {
            return;
        }
        let passed = self.placing.decided.map_or(EVERY, |decided| now.duration_since(decided));
        self.placing.decided = Some(now);
        let loads: Vec<&LoadReport> = loads.iter().filter(|report| report.has_budget() && !report.draining).collect();
        let alive: BTreeSet<&str> = loads.iter().map(|report| report.worker.as_str()).collect();
        self.placing.workers.retain(|worker, _| alive.contains(worker.as_str()));
        let names: BTreeSet<&str> = loads.iter().flat_map(|report| report.models.keys().map(String::as_str)).collect();
        self.placing.models.retain(|name, _| names.contains(name.as_str()));
        if loads.is_empty() {
            return;
        }
        for report in &loads {
            let is_new = !self.placing.workers.contains_key(&report.worker);
            self.placing.workers.entry(report.worker.clone()).or_default().hear(report, is_new, now_us, now);
        }
        let names: Vec<&str> = names.into_iter().collect();
        let models: Vec<ModelNow> = names.iter().map(|name| self.model_now(name, &loads, passed)).collect();
        let hosts: Vec<HostNow> = loads.iter().map(|report| self.host_now(report, &names)).collect();
        for swap in place(now_us, &Rules::default(), &hosts, &models) {
            let Some(report) = loads.get(swap.host as usize) else { continue };
            let Some(told) = self.placing.workers.get_mut(&report.worker) else { continue };
            let name = |model: u32| names.get(model as usize).map(|name| (*name).to_owned());
            let unload: Vec<String> = swap.unload.into_iter().filter_map(name).collect();
            let load = swap.load.and_then(name);
            info!(worker.id = %report.worker, ?load, ?unload, reason = ?swap.reason, "another placement");
            for model in &unload {
                told.models.remove(model);
            }
            told.models.extend(load.map(|model| (model, None)));
        }
        let worth = |name: &str| {
            let model = names.binary_search(&name).ok().and_then(|at| models.get(at));
            model.map_or(0.0, |model| model.waiting_seconds + model.offered)
        };
        for (worker, told) in &mut self.placing.workers {
            let holds: Vec<String> = told.models.keys().cloned().collect();
            if told.written.as_ref() == Some(&holds) {
                continue;
            }
            let mut ordered = holds.clone();
            ordered.sort_by(|one, other| worth(other).total_cmp(&worth(one)).then_with(|| one.cmp(other)));
            told.written = Some(holds);
            self.placing.writing.spawn(write(self.store.clone(), worker.clone(), Placement::new(ordered)));
        }
    }

    /// Tasks that were sent to a model before it was unloaded wait in its queue, and nobody else knows of them: they are demand
    /// like others.
    pub(crate) fn note_left_behind(&mut self, loads: &[LoadReport], counts: Vec<(String, u64)>) {
        let (unheld, now_us) = (unheld(loads), self.clock.now_us());
        self.placing.left_behind.retain(|model, _| unheld.contains(model));
        for (model, messages) in counts {
            match self.placing.left_behind.get_mut(&model) {
                _ if messages == 0 => drop(self.placing.left_behind.remove(&model)),
                Some((count, _)) => *count = messages,
                None => drop(self.placing.left_behind.insert(model, (messages, now_us))),
            }
        }
    }

    /// How long a model takes to be loaded first: 0 when some worker has it, or none could load it.
    pub fn load_seconds(&self, model: &str) -> f64 {
        match self.placing.models.get(model) {
            Some(known) if self.offers.slots(model) == 0 => known.load_seconds(),
            _ => 0.0,
        }
    }

    fn model_now(&mut self, name: &str, loads: &[&LoadReport], passed: Duration) -> ModelNow {
        // Every shard has its part of what comes.
        let shards = f64::from(self.shard.of.max(1));
        let demand = self.planner.wants(name);
        let spec = self.models.get(name);
        let expected_seconds = spec.and_then(|spec| spec.expected_ms).map(|ms| ms / 1e3);
        let reports = || loads.iter().filter_map(|report| report.models.get(name));
        let is_held = self.placing.workers.values().any(|told| told.models.contains_key(name));
        let deployed = &self.deploying.deployed;
        let pin = match deployed.pins.get(name) {
            Some(workers) => Some(Pin::Stay(*workers)),
            None => (deployed.retired.contains(name) && !self.is_wanted(name)).then_some(Pin::Go),
        };
        let known = self.placing.models.entry(name.to_owned()).or_default();
        if known.is_held && !is_held {
            known.unheld_us = Some(self.clock.now_us());
        }
        known.is_held = is_held;
        known.load_ms = reports().filter_map(|load| load.load_ms).reduce(f64::max).or(known.load_ms);
        let came = (demand.came_seconds - known.came_seconds).max(0.0) * shards;
        known.came_seconds = demand.came_seconds;
        let passed = passed.as_secs_f64().max(1e-3);
        known.offered += (passed / OFFERED_OVER_SECONDS).min(1.0) * (came / passed - known.offered);
        let slots = spec.map_or(1, |spec| spec.slots.saturating_mul(spec.max_batch.max(1)));
        let set_mb = spec.map_or(0, |spec| spec.memory_mb);
        let memory_mb = reports().map(|load| load.memory_mb).max().unwrap_or(0).max(set_mb);
        let mean_seconds = self.planner.mean_seconds(name).or(expected_seconds).unwrap_or(UNKNOWN_TASK_SECONDS);
        let (left, left_us) = self.placing.left_behind.get(name).copied().unzip();
        ModelNow {
            needs: Resources { slots, memory_mb, gpu: spec.map_or(0, |spec| spec.gpus.into()) },
            load_seconds: known.load_seconds(),
            mean_seconds,
            waiting_seconds: demand.waiting_seconds * shards + left.unwrap_or(0) as f64 * mean_seconds,
            value: demand.value,
            offered: known.offered,
            oldest_us: demand.oldest_us.into_iter().chain(left_us).min(),
            unheld_us: known.unheld_us,
            latest_start_us: demand.latest_start_us,
            pin,
        }
    }

    fn host_now(&self, report: &LoadReport, names: &[&str]) -> HostNow {
        let number = |name: &str| names.binary_search(&name).ok().map(|at| at as u32);
        let told = self.placing.workers.get(&report.worker);
        let held = told.into_iter().flat_map(|told| &told.models).filter_map(|(name, &loaded_us)| {
            let running = report.models.get(name).map_or(0, |load: &ModelLoad| load.busy);
            Some(Held { model: number(name)?, loaded_us, running })
        });
        let can = report.models.keys().filter(|name| told.is_none_or(|told| !told.failed.contains_key(*name)));
        // Where its models have slots of their own, they are together as many as it can ever use.
        let own = report
            .models
            .keys()
            .filter_map(|name| self.models.get(name))
            .fold(0u32, |sum, spec| sum.saturating_add(spec.slots.saturating_mul(spec.max_batch.max(1))));
        let batches = report.models.keys().filter_map(|name| self.models.get(name)).map(|spec| spec.max_batch);
        let batch = batches.max().unwrap_or(1).max(1);
        HostNow {
            has: Resources {
                slots: if report.slots > 0 { report.slots.saturating_mul(batch) } else { own.max(1) },
                memory_mb: if report.budget_mb > 0 { report.budget_mb } else { u64::MAX },
                gpu: if report.budget_gpus > 0 { report.budget_gpus.into() } else { u64::MAX },
            },
            holds: held.collect(),
            can_hold: Some(can.filter_map(|name| number(name)).collect()),
        }
    }
}

async fn write(store: Arc<dyn Store>, worker: String, placement: Placement) -> (String, Result<(), StoreError>) {
    let written = match serde_json::to_vec(&placement) {
        Ok(written) => store.put(&Placement::key(&worker), Bytes::from(written)).await,
        // Strings and numbers can always be written.
        Err(_) => Ok(()),
    };
    (worker, written)
}
