//! One run of a scenario, drawn for somebody who has it run by a yard, and measured as the simulated ones are.

use taskyard_shared::Kind;

use super::bound::least_cost;
use super::engine::{Course, End, Fate};
use super::measure::{Figures, measure};
use super::policies::PolicySpec;
use super::report::run_one;
use super::scenario::Scenario;
use super::trace::Trace;
use super::workload::{NO_DEADLINE, Workload};

/// The tasks of one run.
pub struct Drawn<'a> {
    scenario: &'a Scenario,
    workload: Workload,
    seed: u32,
    least_cost: f64,
}

/// A task to be published. Times are from the run's start.
#[derive(Clone, PartialEq, Debug)]
pub struct LiveTask<'a> {
    pub arrival_us: u64,
    /// How long it is to run.
    pub service_us: u64,
    pub deadline_us: Option<u64>,
    pub model: &'a str,
    pub tenant: &'a str,
    pub kind: Kind,
    pub priority: u8,
    pub cost: Option<f64>,
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LiveEnd {
    Ran {
        started_us: u64,
        ended_us: u64,
    },
    /// Its deadline passed while it waited.
    Expired {
        ended_us: u64,
    },
    Refused,
    /// Given up while it waited.
    Shed {
        ended_us: u64,
    },
}

impl<'a> Drawn<'a> {
    /// `trace` is the one that the scenario names.
    pub fn new(scenario: &'a Scenario, trace: Option<&Trace>, seed: u32, load: f64) -> Self {
        let workload = Workload::draw(scenario, trace, seed, load);
        let least_cost = least_cost(&workload);
        Self { scenario, workload, seed, least_cost }
    }

    /// Names and slots.
    pub fn models(&self) -> impl Iterator<Item = (&str, usize)> {
        self.workload.models.iter().map(|model| (model.name.as_str(), model.slots))
    }

    /// Names and weights.
    pub fn tenants(&self) -> impl Iterator<Item = (&str, f64)> {
        self.workload.tenants.iter().map(|tenant| (tenant.name.as_str(), tenant.weight))
    }

    /// In the order of arrival.
    pub fn tasks(&self) -> impl Iterator<Item = LiveTask<'_>> {
        self.workload.tasks.iter().map(|task| LiveTask {
            arrival_us: task.arrival_us,
            service_us: task.service_us,
            deadline_us: Some(task.deadline_us).filter(|at_us| *at_us != NO_DEADLINE),
            model: self.workload.models.get(task.model as usize).map_or("", |model| &model.name),
            tenant: self.workload.tenants.get(task.tenant as usize).map_or("", |tenant| &tenant.name),
            kind: task.kind,
            priority: task.priority,
            cost: Some(task.cost).filter(|cost| *cost > 0.0),
        })
    }

    /// The figures of the same tasks on the virtual clock.
    ///
    /// # Errors
    /// When there is no such policy, or the run did not come to an end for every task.
    pub fn simulated(&self, policy: &PolicySpec) -> Result<Figures, String> {
        run_one(policy, self.scenario, &self.workload, self.seed, self.least_cost).map(|measured| measured.overall)
    }

    /// The figures of what happened, one end for each task in their order.
    pub fn measured(&self, ends: &[LiveEnd]) -> Figures {
        let ends: Vec<End> = ends
            .iter()
            .zip(&self.workload.tasks)
            .map(|(end, task)| match *end {
                LiveEnd::Ran { started_us, ended_us } => End { started_us, ended_us, fate: Fate::Done },
                LiveEnd::Expired { ended_us } => End { started_us: u64::MAX, ended_us, fate: Fate::Expired },
                LiveEnd::Shed { ended_us } => End { started_us: u64::MAX, ended_us, fate: Fate::Shed },
                LiveEnd::Refused => End { started_us: u64::MAX, ended_us: task.arrival_us, fate: Fate::Refused },
            })
            .collect();
        let ended_us = ends.iter().map(|end| end.ended_us).max().unwrap_or(0);
        let course = Course { ends, ended_us, faults: 0 };
        measure(&self.workload, &course, self.scenario.warm_up, self.least_cost).overall
    }
}
