//! Answers for people and for metrics: why one task waits, and how each model stands.

use std::collections::BTreeSet;
use std::sync::Arc;

use taskyard_shared::{Kind, TaskId};

use super::Planner;
use super::decision::WaitReason;
use super::estimator::Calibration;
use super::models::Model;
use super::predict::StartCalibration;
use super::shares::Standing;
use super::tasks::Place;

/// Tasks ahead are counted no further than this, so that asking never costs much.
pub const AHEAD_LIMIT: usize = 10_000;

/// Why a task waits, and behind what.
#[derive(Clone, PartialEq, Debug)]
pub struct Explanation {
    pub reason: WaitReason,
    pub model: Arc<str>,
    /// Since when it waits, or will wait, in microseconds on the caller's clock.
    pub arrival_us: u64,
    /// By how many seconds, over its weight, its tenant was served more of its model than the least served that waits.
    pub ahead_of_share_seconds: f64,
    /// Its earliest start, if that is yet to come.
    pub starts_us: Option<u64>,
    /// Tasks of its own lane that go first: exact below [`AHEAD_LIMIT`], which stands for "as many or more". A task
    /// with an earliest start to come is in no lane yet.
    pub ahead_in_lane: Option<usize>,
    /// All tasks that wait for its model now, itself included if it may start: an upper bound of those ahead today.
    pub queued_in_model: usize,
    /// How many dispatched tasks the workers of its model can hold together, and how many they do.
    pub capacity: usize,
    pub outstanding: usize,
}

/// One model as it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelStats {
    pub model: Arc<str>,
    /// All tasks not dispatched.
    pub waiting: usize,
    /// Those of them whose earliest start is yet to come.
    pub delayed: usize,
    /// Those of them whose tenant was served more than others that wait, by more than the allowance, as of the last decision.
    pub over_share: usize,
    /// Those of them whose tenant has as many tasks out as may be.
    pub limited: usize,
    /// Those of them that were taken out for a while.
    pub away: usize,
    /// Why the others wait.
    pub reason: WaitReason,
    /// Since when the longest waiting of the others waits, in microseconds on the caller's clock.
    pub oldest_arrival_us: Option<u64>,
    /// Σ priority × expected execution time over the waiting tasks, in seconds.
    pub weighted_seconds: f64,
    /// How long its slots take for what may start now, in seconds. `None` without workers.
    pub drain_seconds: Option<f64>,
    /// So much waits that tasks that are worth no more than [`Self::least_worth`] are refused.
    pub is_overloaded: bool,
    /// The least weight per expected second of those that wait; `None` while there is no mark of overload.
    pub least_worth: Option<f64>,
    /// How many dispatched tasks its workers can hold together.
    pub capacity: usize,
    /// Tasks dispatched and not come back.
    pub outstanding: usize,
    /// How good its estimates were.
    pub calibration: Calibration,
    /// How good the predictions of starts were.
    pub starts: StartCalibration,
}

/// Every model that has workers or tasks, by name.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Stats {
    pub models: Vec<ModelStats>,
    /// Every tenant that limits were set for, by name.
    pub tenants: Vec<TenantStats>,
}

/// One tenant as it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct TenantStats {
    pub tenant: Arc<str>,
    /// Its tasks in lanes, over all models.
    pub queued: usize,
    /// All of its tasks that are here, or were taken out for a while, and are not dispatched.
    pub waiting: usize,
    /// Its tasks that are out.
    pub running: usize,
    /// Run time of what came back, in seconds.
    pub served_seconds: f64,
}

impl Stats {
    /// How many tasks wait for this reason.
    pub fn waiting(&self, reason: WaitReason) -> usize {
        let of_model = |model: &ModelStats| match reason {
            WaitReason::NotBefore => model.delayed,
            WaitReason::FairShare => model.over_share,
            WaitReason::TenantLimit => model.limited,
            WaitReason::Paged => model.away,
            _ if model.reason == reason => {
                model.waiting - model.delayed - model.over_share - model.limited - model.away
            }
            _ => 0,
        };
        self.models.iter().map(of_model).sum()
    }
}

impl Planner {
    /// Why a task waits; `None` when it does not.
    pub fn explain(&self, id: TaskId) -> Option<Explanation> {
        let record = self.tasks.get(self.tasks.find(id)?)?;
        let model = self.models.get(record.model);
        let (reason, starts_us, ahead_in_lane) = match record.place {
            Place::Delayed { start_us } => (WaitReason::NotBefore, Some(start_us), None),
            Place::Lane { stage } => {
                let ahead = model.backlog.ahead(record, stage, &*self.policy, AHEAD_LIMIT);
                let reason = model.wait_reason(self.is_loadable(self.models.name(record.model)));
                let reason = match (reason, model.backlog.shares.flow(record.flow).standing) {
                    (reason @ (WaitReason::Paused | WaitReason::NoWorker | WaitReason::NotLoaded), _) => reason,
                    (_, Standing::Limited) => WaitReason::TenantLimit,
                    (_, Standing::Parked) => WaitReason::FairShare,
                    (reason, Standing::Eligible | Standing::Idle) => reason,
                };
                (reason, None, Some(ahead))
            }
            Place::Dispatched { .. } | Place::Leaving => return None,
        };
        Some(Explanation {
            reason,
            model: self.models.name(record.model).clone(),
            arrival_us: record.waiting.arrival_us,
            ahead_of_share_seconds: model.backlog.shares.ahead_seconds(record.flow),
            starts_us,
            ahead_in_lane,
            queued_in_model: model.backlog.queued + model.backlog.away(),
            capacity: model.capacity.total,
            outstanding: model.capacity.outstanding(),
        })
    }

    /// The models that no worker holds and some could load, from now on: so that their tasks are told so.
    pub fn handle_loadable(&mut self, models: BTreeSet<String>) {
        self.loadable = models;
    }

    /// Whether no worker holds a model, and some could.
    pub fn is_loadable(&self, model: &str) -> bool {
        self.loadable.contains(model)
    }

    /// What a task takes that came before anything was known of its model.
    pub(super) fn expected_guess_seconds(&self, model: &str) -> f64 {
        self.mean_seconds(model).unwrap_or_else(|| self.expected(model, Kind::default(), None).mean_seconds)
    }

    /// How each model stands. Takes time in the number of models, their classes and the lanes of tenants that may not go.
    pub fn stats(&self) -> Stats {
        let models = self.models.by_name().into_iter().map(|(name, model)| {
            let Model { backlog, capacity, overload, .. } = model;
            let reason = model.wait_reason(self.is_loadable(name));
            // Where nothing goes at all, tenants are not what the others wait for.
            let (over_share, limited) = match reason {
                WaitReason::Paused | WaitReason::NoWorker | WaitReason::NotLoaded => (0, 0),
                _ => (backlog.shares.parked_tasks, backlog.shares.limited_tasks),
            };
            ModelStats {
                model: name.clone(),
                waiting: backlog.waiting() + backlog.away(),
                delayed: backlog.delayed,
                over_share,
                limited,
                away: backlog.away(),
                reason,
                oldest_arrival_us: backlog.oldest_arrival_us(&self.tasks),
                weighted_seconds: backlog.weighted_seconds(),
                drain_seconds: overload.drain_seconds(self.expected_guess_seconds(name)),
                is_overloaded: overload.is_over(),
                least_worth: overload.least_worth(),
                capacity: capacity.total,
                outstanding: capacity.outstanding(),
                calibration: self.estimator.calibration(name),
                starts: backlog.foresight.calibration,
            }
        });
        let tenants = self.tenants.by_name().into_iter().map(|(name, limited)| {
            let queued =
                |&(model, flow): &(u32, u32)| self.models.get(model).backlog.shares.flow(flow).waiting as usize;
            TenantStats {
                tenant: name.clone(),
                queued: limited.flows.iter().map(queued).sum(),
                waiting: self.waiting_of(limited),
                running: limited.running,
                served_seconds: limited.served_us as f64 / 1e6,
            }
        });
        Stats { models: models.collect(), tenants: tenants.collect() }
    }
}
