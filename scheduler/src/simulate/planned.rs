//! The production planner in a run, told what the scheduler would tell it.

use std::sync::Arc;

use taskyard_shared::{Priority, TaskId};
use uuid::Uuid;

use crate::planner::{
    Arrival, Calibration, Decision, DispatchReason, Estimate, Planner, Ran, Room, StartCalibration, TenantLimits,
    Wants, policy,
};

use super::chooser::{Choice, Chooser, Number};
use super::policies::{PolicySpec, Told};
use super::scenario::Scenario;
use super::workload::{NO_DEADLINE, Task, Workload};

pub struct Planned {
    planner: Planner,
    told: Told,
    models: Vec<String>,
    tenants: Vec<String>,
    class_mean_s: Arc<[f64]>,
}

impl Planned {
    /// `None` when the planner has no such policy.
    pub fn new(spec: &PolicySpec, scenario: &Scenario, workload: &Workload) -> Option<Self> {
        let policy = policy::by_name(&spec.name, spec.ageing_s.or(scenario.planner.ageing_s))?;
        let mut planner = Planner::new(policy);
        planner.set_overload(spec.overload_s.or(scenario.planner.overload_s));
        for tenant in &workload.tenants {
            planner.handle_tenant(&tenant.name, TenantLimits { weight: tenant.weight, ..TenantLimits::default() });
        }
        Some(Self {
            planner,
            told: spec.told,
            models: workload.models.iter().map(|model| model.name.clone()).collect(),
            tenants: workload.tenants.iter().map(|tenant| tenant.name.clone()).collect(),
            class_mean_s: workload.class_mean_s.as_slice().into(),
        })
    }

    /// What waits for a model, and what its tasks take, if that is known.
    pub(super) fn demand(&self, model: u32) -> (Wants, Option<f64>) {
        let name = self.models.get(model as usize).map_or("", String::as_str);
        (self.planner.wants(name), self.planner.mean_seconds(name))
    }

    /// See [`Planner::best_score`].
    pub(super) fn best_score(&mut self, model: u32, now_us: u64) -> Option<f64> {
        self.planner.best_score(self.models.get(model as usize)?, now_us)
    }

    /// What the planner is told of a task's time; `None` when it is to know by itself.
    fn told(&self, task: &Task) -> Option<Estimate> {
        let seconds = match self.told {
            Told::Learnt => return None,
            Told::True => task.service_s(),
            Told::Noisy => task.service_s() * task.noise,
            Told::Class => self.class_mean_s.get(task.class as usize).copied()?,
        };
        Some(Estimate::exact(seconds))
    }
}

fn id(number: Number) -> TaskId {
    TaskId(Uuid::from_u128(u128::from(number)))
}

fn number(id: TaskId) -> Number {
    id.0.as_u128() as Number
}

impl Chooser for Planned {
    fn handle_arrival(&mut self, number: Number, task: &Task, now_us: u64) -> bool {
        let arrival = Arrival {
            id: id(number),
            model: self.models.get(task.model as usize).cloned().unwrap_or_default(),
            tenant: self.tenants.get(task.tenant as usize).cloned().unwrap_or_default(),
            priority: Priority::try_from(task.priority).unwrap_or_default(),
            kind: task.kind,
            cost: (task.cost > 0.0).then_some(task.cost),
            expected: self.told(task),
            deadline_us: (task.deadline_us != NO_DEADLINE).then_some(task.deadline_us),
            due_us: None,
            not_before_us: None,
            arrived_us: None,
            is_known: false,
        };
        self.planner.handle_arrival(arrival, now_us).is_ok()
    }

    fn handle_load(&mut self, model: u32, room: Room) {
        if let Some(name) = self.models.get(model as usize) {
            self.planner.handle_load(name, room);
        }
    }

    fn handle_completion(&mut self, number: Number, _task: &Task, ran_us: u64, _now_us: u64) {
        let ran = Ran { seconds: ran_us as f64 / 1e6, whole: true };
        self.planner.handle_completion(id(number), Some(ran));
    }

    fn poll(&mut self, now_us: u64) -> Option<Choice> {
        Some(match self.planner.poll_decision(now_us)? {
            Decision::Dispatch { id, reason, .. } => {
                Choice::Dispatch { task: number(id), passes: reason == DispatchReason::Passes }
            }
            Decision::Expire { id, .. } => Choice::Expire(number(id)),
            Decision::Shed { id, .. } => Choice::Shed(number(id)),
        })
    }

    fn poll_timeout(&self) -> Option<u64> {
        self.planner.poll_timeout()
    }

    /// How good the estimates were that tasks came in with; of the planner's own alone.
    fn figures(&self) -> Vec<(&'static str, f64)> {
        if self.told != Told::Learnt {
            return Vec::new();
        }
        let mut sum = Calibration::default();
        let mut starts = StartCalibration::default();
        for model in self.planner.stats().models {
            let of_model = model.calibration;
            sum.tasks += of_model.tasks;
            sum.covered += of_model.covered;
            sum.ran_seconds += of_model.ran_seconds;
            sum.expected_seconds += of_model.expected_seconds;
            sum.error_seconds += of_model.error_seconds;
            starts.tasks += model.starts.tasks;
            starts.by_q50 += model.starts.by_q50;
            starts.by_q95 += model.starts.by_q95;
        }
        let figures = [
            ("coverage", sum.coverage()),
            ("relative_error", sum.relative_error()),
            ("start_by_q50", starts.coverage(starts.by_q50)),
            ("start_by_q95", starts.coverage(starts.by_q95)),
        ];
        figures.into_iter().filter_map(|(name, figure)| Some((name, figure?))).collect()
    }
}
