//! What a gateway asks of the active schedulers about waiting tasks, and what they answer.
//!
//! A question goes to the queue `control.<shard>` of each of them, an answer to the reply queue of who asked. Every question
//! may be carried out late, or twice, without harm.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::envelope::{Carried, Envelope};
use crate::outcome::{ModelChoice, TaskError};
use crate::task::{Alternative, Kind, Priority, Target, Task, TaskId};
use crate::time::Timestamp;
use crate::workflow::WorkflowId;

/// The version of questions and answers. Fields are only added to it.
pub const VERSION: u32 = 1;

/// Error code of a cancelled task.
pub const CANCELLED: &str = "cancelled";

/// Most tasks of one question.
pub const TASKS: usize = 1_000;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Question {
    /// [`VERSION`].
    pub v: u32,
    pub ask: Ask,
}

impl Question {
    pub fn new(ask: Ask) -> Self {
        Self { v: VERSION, ask }
    }
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// End these tasks, if they wait. Of each its [`Fate`] is told.
    Cancel { ids: Vec<TaskId> },
    /// Give these tasks another priority, if they wait. Of each its [`Fate`] is told.
    Reprioritize { ids: Vec<TaskId>, priority: Priority },
    /// Read from the store which models are paused.
    ReadPaused {},
    /// Run this workflow no further. Its [`Fate`] is told, under its id.
    CancelWorkflow { id: WorkflowId },
    /// Why does it wait?
    Explain { id: TaskId },
    /// When would it start and end, were it to come now?
    Quote { task: Box<QuotedTask> },
    /// Of the scheduler of shard 0 alone, which keeps the schedules.
    Schedule { ask: ScheduleAsk },
}

/// What is asked about schedules. One is named by its tenant and its name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleAsk {
    /// Keep this one, in the place of one of its name. `schedule` is a [`Schedule`](crate::schedule::Schedule) as it was sent.
    Put {
        tenant: String,
        name: String,
        schedule: String,
    },
    Get {
        tenant: String,
        name: String,
    },
    /// Those of a tenant, or all, from behind this one on.
    List {
        tenant: Option<String>,
        after: Option<(String, String)>,
        limit: u32,
    },
    Pause {
        tenant: String,
        name: String,
        paused: bool,
    },
    Remove {
        tenant: String,
        name: String,
    },
}

/// What is told of schedules.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleTold {
    /// A [`ShownSchedule`](crate::schedule::ShownSchedule) as JSON: as it stands, or as it stood before it was removed.
    Stands {
        shown: String,
        is_new: bool,
    },
    /// A [`SchedulePage`](crate::schedule::SchedulePage) as JSON.
    Page {
        page: String,
    },
    NotFound {},
    /// There are as many as may be.
    TooMany {
        most: u64,
        is_of_tenant: bool,
    },
    /// A field cannot be taken.
    Invalid {
        field: String,
        message: String,
    },
}

/// What matters of a task that nobody has published, every default filled in.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct QuotedTask {
    /// Either this or a capability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<String>,
    pub kind: Kind,
    pub tenant: String,
    pub priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_quality: Option<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
}

impl From<&Envelope> for QuotedTask {
    fn from(envelope: &Envelope) -> Self {
        let (model, capability) = match &envelope.target {
            Target::Model(name) => (Some(name.to_string()), None),
            Target::Capability(name) => (None, Some(name.to_string())),
        };
        Self {
            model,
            capability,
            kind: envelope.kind,
            tenant: envelope.tenant.to_string(),
            priority: envelope.priority,
            deadline: envelope.deadline,
            not_before: envelope.extras.not_before,
            cost: envelope.extras.cost,
            min_quality: envelope.extras.min_quality,
            alternatives: envelope.extras.alternatives.to_vec(),
        }
    }
}

impl QuotedTask {
    /// As if it came now, with an input of `null`. `None` without exactly one target.
    pub fn into_envelope(self) -> Option<Envelope> {
        let task = Task {
            kind: self.kind,
            tenant: Some(self.tenant),
            priority: Some(self.priority),
            deadline: self.deadline,
            not_before: self.not_before,
            cost: self.cost,
            min_quality: self.min_quality,
            alternatives: self.alternatives,
            ..Task::new(Target::of(self.model, self.capability)?, RawValue::NULL.to_owned())
        };
        Envelope::new(task, &Carried::default(), Timestamp::now()).ok()
    }
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Answer {
    /// [`VERSION`].
    pub v: u32,
    /// Whose scheduler answers.
    pub shard: u32,
    pub told: Told,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// Of each task that was asked about; one whose end could not be written in time is left out.
    Fates {
        fates: Vec<(TaskId, Fate)>,
    },
    /// What is paused was read, and is in force.
    PausedRead {},
    Place {
        place: Place,
    },
    Quote {
        quote: Box<Quote>,
    },
    Schedule {
        told: ScheduleTold,
    },
}

/// When something is expected: half of such tasks keep to the first time, and 95 of 100 to the second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ExpectedTime {
    pub q50: Timestamp,
    pub q95: Timestamp,
}

/// What would become of a task.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Quote {
    /// The model that it would run on.
    pub model: Option<String>,
    /// Why that one, when the task leaves a choice.
    pub choice: Option<ModelChoice>,
    /// Nothing when nobody works on its model.
    pub expected_start: Option<ExpectedTime>,
    pub expected_finish: Option<ExpectedTime>,
    /// How probable it is that it ends by its deadline, 0 to 1. Nothing without a deadline.
    pub deadline_probability: Option<f64>,
    /// Why it would be refused, or wait for nobody knows how long.
    pub problem: Option<TaskError>,
}

/// What became of a task that was to be cancelled, or to be given another priority.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It does not wait here, and was not sent from here to a worker. If it comes, it is dealt with as was asked.
    Unknown,
    /// What was asked is done.
    Done,
    /// It is with the workers.
    Dispatched,
    /// It had ended otherwise before.
    Finished,
}

/// Where a task is, as a scheduler sees it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Unknown {},
    Dispatched {},
    Waiting(Box<Waiting>),
}

/// Why a task waits, and behind what.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Waiting {
    /// The binding constraint, as the label `reason` of the metric `scheduler_waiting_tasks` has it.
    pub reason: String,
    /// The model that it waits for.
    pub model: String,
    pub priority: Priority,
    /// Since when its wait counts.
    pub since: Timestamp,
    /// Its earliest start, if that is yet to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts: Option<Timestamp>,
    /// Tasks of its class and tenant that go before it. Nothing while its start is to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead_in_lane: Option<u64>,
    /// There are more ahead than were counted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ahead_uncounted: bool,
    /// Tasks that wait for its model in this shard and may start, itself among them.
    pub queued_in_model: u64,
    /// Tasks of the model that this shard has sent to workers and that have not ended.
    pub dispatched_in_model: u64,
    /// How many it may have sent at once.
    pub capacity: u64,
    /// By what the next one is chosen.
    pub policy: String,
    /// When it is expected to start, if somebody works on its model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_start: Option<ExpectedTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_finish: Option<ExpectedTime>,
}
