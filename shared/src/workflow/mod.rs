//! Workflows: tasks that depend on each other, given in one body.
//!
//! [`decode`] reads what outsiders send, [`plan`] makes a checked graph of it, and [`machine`] says what is to be done next:
//! it does no I/O, so that what becomes of a workflow is the same wherever it is asked. `docs/workflows.md` has the rules.

mod condition;
mod decode;
mod json;
mod machine;
mod order;
mod plan;
mod record;
mod template;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::task::{Priority, Task, TaskId};
use crate::time::Timestamp;

pub use condition::Condition;
pub use decode::decode_workflow;
pub use json::members;
pub(crate) use json::object as members_of;
pub use machine::{Command, Ended, Machine, Shown};
pub use order::WorkflowOrder;
pub use plan::{Plan, PlannedStep};
pub use record::{
    ItemCounts, StepError, StepRecord, StepState, StepTimings, WorkflowRecord, WorkflowState, WorkflowSummary,
};

/// Limits on a workflow, beside those on each of its tasks.
pub mod limits {
    /// Steps of a workflow.
    pub const STEPS: usize = 10_000;
    /// Dependencies of all steps together.
    pub const EDGES: usize = 100_000;
    /// Tasks that all `for_each` of a workflow make together.
    pub const ITEMS: usize = 10_000;
    /// Of a step's name.
    pub const NAME_BYTES: usize = 128;
    /// Of a JSON pointer.
    pub const PATH_BYTES: usize = 1024;
    /// `all`, `any` and `not` within each other.
    pub const CONDITION_DEPTH: usize = 8;
    /// Outputs that are held at once because steps that have not begun refer to them.
    pub const HELD_BYTES: usize = 64 << 20;
    /// Outputs that a workflow's own result shows, all together; of the others only their tasks tell.
    pub const SHOWN_BYTES: usize = 1 << 20;
}

/// Names a workflow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct WorkflowId(#[schemars(with = "String", extend("format" = "uuid"))] pub Uuid);

/// Ids of the tasks of steps are made from their workflow's id by this name space.
const STEP_IDS: Uuid = Uuid::from_u128(0x51c2_77d4_0e4b_5a0f_8f3e_26d1_9b5c_7a10);

impl WorkflowId {
    /// The id of the task of a step: always the same, so that sending it again is sending the same task again.
    pub fn task(self, step: &str, item: Option<u32>) -> TaskId {
        let mut name = Vec::with_capacity(16 + step.len() + 6);
        name.extend_from_slice(self.0.as_bytes());
        name.extend_from_slice(step.as_bytes());
        if let Some(item) = item {
            // No name holds this byte.
            name.push(0);
            name.extend_from_slice(&item.to_le_bytes());
        }
        TaskId(Uuid::new_v5(&STEP_IDS, &name))
    }
}

/// Which step of which workflow a task is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StepOf {
    pub id: WorkflowId,
    pub step: String,
    /// Its place in the array of a `for_each`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<u32>,
}

/// What becomes of the other steps when one does not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Those that depend on it are cancelled, the others go on.
    #[default]
    CancelDependents,
    /// All others are cancelled at once.
    FailFast,
    /// Those that depend on it run all the same.
    Continue,
}

impl OnFailure {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CancelDependents => "cancel_dependents",
            Self::FailFast => "fail_fast",
            Self::Continue => "continue",
        }
    }
}

/// When a step runs, once all that it depends on has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum After {
    /// All of it succeeded. If some was skipped, so is this step.
    #[default]
    AllSucceeded,
    /// Some of it succeeded: joins branches of which not all were taken.
    AnySucceeded,
    /// Whatever came of it, unless the workflow is cancelled.
    AllDone,
}

/// What a `for_each` goes over.
#[derive(Clone, Debug)]
pub enum Over {
    /// An array in the result of a step.
    Output { from: String, path: String },
    /// One that is given.
    Given(Box<RawValue>),
}

/// A step as published: a task that has a name.
#[derive(Clone, Debug)]
pub struct Step {
    pub name: String,
    pub depends_on: Vec<String>,
    pub after: After,
    pub when: Option<Condition>,
    pub for_each: Option<Over>,
    pub task: Task,
}

/// A workflow as published, every field checked, but not yet its graph.
#[derive(Clone, Debug)]
pub struct Workflow {
    pub id: Option<WorkflowId>,
    pub tasks: Vec<Step>,
    pub priority: Option<Priority>,
    pub tenant: Option<String>,
    pub deadline: Option<Timestamp>,
    pub deadline_ms: Option<u64>,
    pub on_failure: OnFailure,
    pub idempotency_key: Option<String>,
    pub metadata: std::collections::BTreeMap<String, String>,
    /// Of what it asks for: of the steps as they are written, and of `on_failure`.
    pub(crate) fingerprint: u128,
}

/// How a step's input refers to a result: `{"$from": "clean", "path": "/output/rows"}`.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "describes JSON that is read without being parsed")]
#[schemars(rename = "StepOutput")]
struct DescribedOutput {
    /// The step's name.
    #[serde(rename = "$from")]
    from: String,
    /// A JSON pointer into its result, which begins with `/output`, `/error` or `/state`. Without it `/output`.
    path: Option<String>,
    /// What stands there when nothing is to be found. Without it the step fails with `missing_output`.
    default: Option<serde_json::Value>,
}

/// For [`Step`], which is read field by field.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "describes JSON that is read field by field")]
#[schemars(rename = "Step")]
pub(crate) struct DescribedStep {
    /// `[A-Za-z0-9][A-Za-z0-9._-]*`, unique among the steps.
    name: String,
    /// Steps that end before this one begins, beside those that it refers to.
    #[serde(default)]
    depends_on: Vec<String>,
    #[serde(default)]
    after: After,
    /// The step is skipped unless this holds.
    when: Option<Condition>,
    /// One task for each member of an array: a reference to one, or the array itself. `{"$item": "/pointer"}` in the input is
    /// the member, or what the pointer finds in it.
    for_each: Option<Each>,
    /// Its fields beside `id`, `tenant` and `idempotency_key`.
    #[serde(flatten)]
    task: Task,
}

#[derive(JsonSchema)]
#[allow(dead_code, reason = "describes JSON that is read field by field")]
#[serde(untagged)]
enum Each {
    Output(DescribedOutput),
    Given(Vec<serde_json::Value>),
}

/// A workflow as published.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "describes JSON that is read field by field")]
#[schemars(rename = "Workflow")]
pub struct DescribedWorkflow {
    /// Else `message_id`, or made from the idempotency key, or given.
    id: Option<WorkflowId>,
    #[schemars(length(min = 1, max = 10_000))]
    tasks: Vec<DescribedStep>,
    priority: Option<Priority>,
    tenant: Option<String>,
    deadline: Option<Timestamp>,
    deadline_ms: Option<u64>,
    #[serde(default)]
    on_failure: OnFailure,
    idempotency_key: Option<String>,
    #[serde(default)]
    metadata: std::collections::BTreeMap<String, String>,
}
