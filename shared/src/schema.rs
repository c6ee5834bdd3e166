//! JSON Schema, made from the types.

use schemars::{Schema, schema_for};

use crate::control::{Answer, Question};
use crate::envelope::Envelope;
use crate::load::{Completion, LoadReport, ModelSpec};
use crate::outcome::TaskResult;
use crate::schedule::{DescribedSchedule, ShownSchedule};
use crate::task::Task;
use crate::workflow::{DescribedWorkflow, WorkflowRecord};

/// Every message with its schema: what outsiders send and get, then what roles tell each other.
pub fn schemas() -> Vec<(&'static str, Schema)> {
    vec![
        ("task", schema_for!(Task)),
        ("result", schema_for!(TaskResult)),
        ("workflow", schema_for!(DescribedWorkflow)),
        ("workflow_result", schema_for!(WorkflowRecord)),
        ("schedule", schema_for!(DescribedSchedule)),
        ("schedule_shown", schema_for!(ShownSchedule)),
        ("envelope", schema_for!(Envelope)),
        ("completion", schema_for!(Completion)),
        ("load_report", schema_for!(LoadReport)),
        ("model", schema_for!(ModelSpec)),
        ("control_question", schema_for!(Question)),
        ("control_answer", schema_for!(Answer)),
    ]
}
