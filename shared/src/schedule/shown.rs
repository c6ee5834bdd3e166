//! A schedule as the API shows it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{CatchUp, Fired, Overlap, Schedule, ScheduleOrder};
use crate::time::Timestamp;
use crate::workflow::members_of;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ShownSchedule {
    pub name: String,
    pub tenant: String,
    pub cron: String,
    pub time_zone: String,
    pub catch_up: CatchUp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catch_up_window_ms: Option<u64>,
    pub overlap: Overlap,
    pub paused: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    pub created: Timestamp,
    pub changed: Timestamp,
    /// Its next ticks; none while it is paused, or when it has ended.
    pub next: Vec<Timestamp>,
    /// The last tick that was fired, and what it made.
    pub last: Option<Fired>,
    /// Why it is not fired, when the scheduler cannot read what another one took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What a tick publishes; not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<Box<RawValue>>,
}

/// Schedules in the order of tenant and name.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SchedulePage {
    pub schedules: Vec<ShownSchedule>,
    /// There are more: the same call with this `cursor` goes on.
    pub cursor: Option<String>,
}

impl ShownSchedule {
    /// With so many of the next ticks.
    pub fn new(order: &ScheduleOrder, schedule: Result<&Schedule, &str>, now: Timestamp, next: usize) -> Self {
        let problem = schedule.err().map(str::to_owned);
        let schedule = schedule.ok();
        let ticks = schedule.filter(|_| !order.paused).map(|schedule| &schedule.ticks);
        Self {
            name: order.name.clone(),
            tenant: order.tenant.clone(),
            cron: schedule.map(|schedule| schedule.expression.clone()).unwrap_or_default(),
            time_zone: schedule.map(|schedule| schedule.time_zone.clone()).unwrap_or_default(),
            catch_up: schedule.map(|schedule| schedule.catch_up).unwrap_or_default(),
            catch_up_window_ms: schedule.and_then(|schedule| schedule.catch_up_window_ms),
            overlap: schedule.map(|schedule| schedule.overlap).unwrap_or_default(),
            paused: order.paused,
            until: schedule.and_then(|schedule| schedule.until),
            created: order.created,
            changed: order.changed,
            next: ticks.map(|ticks| ticks.following(order.seen.max(now), next)).unwrap_or_default(),
            last: order.last,
            problem,
            task: None,
            workflow: None,
        }
    }

    /// The same with what its ticks publish.
    #[must_use]
    pub fn with_work(mut self, order: &ScheduleOrder) -> Self {
        for (name, value) in members_of(&order.schedule).unwrap_or_default() {
            match &*name {
                "task" => self.task = Some(value.to_owned()),
                "workflow" => self.workflow = Some(value.to_owned()),
                _ => {}
            }
        }
        self
    }
}
