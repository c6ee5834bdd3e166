//! Schedules: a task or a workflow that is published again and again, when the clocks of a time zone say so.
//!
//! [`decode`] reads what outsiders send, [`cron`] and [`ticks`] say when, and [`order`] is a schedule as the scheduler keeps it.
//! No clock is read here. `docs/schedules.md` has the rules.

mod cron;
mod decode;
mod order;
mod shown;
mod ticks;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::task::{Kind, Task};
use crate::time::Timestamp;
use crate::workflow::Workflow;

pub use cron::Cron;
pub use decode::{decode_schedule, is_schedule_name};
pub use order::{Fired, Published, ScheduleOrder};
pub use shown::{SchedulePage, ShownSchedule};
pub use ticks::{COUNTED, Due, Reach, Ticks};

/// Limits on schedules.
pub mod limits {
    /// Of a schedule, with its task or workflow. What is larger is kept elsewhere, and referred to.
    pub const BODY_BYTES: usize = 64 << 10;
    pub const NAME_BYTES: usize = 128;
    /// Of a yard, of all tenants together.
    pub const SCHEDULES: usize = 2_000;
    /// A tick that is no later than this is not missed, whatever is done about those that are; milliseconds.
    pub const GRACE_MS: u64 = 60_000;
}

/// Labels that a tick's task or workflow has in its metadata.
pub const SCHEDULE_LABEL: &str = "schedule";
pub const TICK_LABEL: &str = "tick";

/// What becomes of the ticks that passed while no scheduler was there to fire them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// They are left out, but for one that is no more than a minute late.
    Skip,
    /// The last of them is fired.
    #[default]
    Latest,
    /// All of them are fired; of more than 1,000 the last ones.
    All,
}

/// What becomes of a tick while what the one before made has not ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// It is fired.
    #[default]
    Allow,
    /// It is left out.
    Forbid,
}

/// What a tick publishes.
#[derive(Clone, Debug)]
pub enum Work {
    Task(Box<Task>),
    /// With its bytes, as they came.
    Workflow(Box<Workflow>, Box<RawValue>),
}

impl Work {
    /// The kinds of its tasks.
    pub fn kinds(&self) -> Vec<Kind> {
        match self {
            Self::Task(task) => vec![task.kind],
            Self::Workflow(workflow, _) => workflow.tasks.iter().map(|step| step.task.kind).collect(),
        }
    }
}

/// A schedule as it was sent, every field checked.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub name: Option<String>,
    pub tenant: Option<String>,
    pub cron: Cron,
    /// As it was written.
    pub expression: String,
    /// The name of the time zone.
    pub time_zone: String,
    pub ticks: Ticks,
    pub work: Work,
    pub catch_up: CatchUp,
    pub catch_up_window_ms: Option<u64>,
    pub overlap: Overlap,
    /// Not given: as it stands.
    pub paused: Option<bool>,
    pub until: Option<Timestamp>,
}

impl Schedule {
    /// How far back ticks are caught up with.
    pub fn reach(&self) -> Reach {
        match self.catch_up {
            CatchUp::Skip => Reach::Last(Some(limits::GRACE_MS)),
            CatchUp::Latest => Reach::Last(self.catch_up_window_ms),
            CatchUp::All => Reach::All(self.catch_up_window_ms),
        }
    }
}

/// A schedule as the API takes it, for its description.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "describes JSON that is read field by field")]
#[schemars(rename = "Schedule")]
pub struct DescribedSchedule {
    /// As in the path, if it is given.
    name: Option<String>,
    tenant: Option<String>,
    /// Five fields, or six with seconds first.
    cron: String,
    /// An IANA name such as `Europe/Berlin`.
    #[schemars(default = "utc")]
    time_zone: String,
    /// What a tick publishes. Either this or a workflow.
    task: Option<Task>,
    workflow: Option<crate::workflow::DescribedWorkflow>,
    #[serde(default)]
    catch_up: CatchUp,
    /// Ticks that are older than this are not caught up with.
    catch_up_window_ms: Option<u64>,
    #[serde(default)]
    overlap: Overlap,
    /// Left out: as it stands, and false for a new one.
    paused: Option<bool>,
    /// No tick comes after this.
    until: Option<Timestamp>,
}

fn utc() -> String {
    "UTC".to_owned()
}
