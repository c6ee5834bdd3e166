//! Messages of released versions stay readable, and are written as they always were.

use taskyard_shared::control::{Answer, Question};
use taskyard_shared::load::{Completion, LoadReport, ModelSpec};
use taskyard_shared::schedule::ScheduleOrder;
use taskyard_shared::signal::Signal;
use taskyard_shared::webhook::Hook;
use taskyard_shared::workflow::{WorkflowOrder, WorkflowRecord};
use taskyard_shared::{Envelope, TaskResult, decode_tasks};

#[test]
fn a_task_of_version_1_is_read() {
    let goldens = [&include_bytes!("golden/tasks.v1.json")[..], include_bytes!("golden/tasks-choice.v1.json")];
    for golden in goldens {
        for task in decode_tasks(golden).unwrap() {
            task.unwrap();
        }
    }
}

#[test]
fn a_result_of_version_1_is_read_and_written_back_the_same() {
    round_trip::<TaskResult>(include_str!("golden/result.v1.json"));
    round_trip::<TaskResult>(include_str!("golden/result-choice.v1.json"));
    round_trip::<TaskResult>(include_str!("golden/result-step.v1.json"));
}

/// Reads a message and writes it: the same bytes.
fn round_trip<T: serde::Serialize + serde::de::DeserializeOwned>(golden: &str) {
    let message: T = serde_json::from_str(golden).unwrap();
    assert_eq!(serde_json::to_string(&message).unwrap(), golden.trim_end());
}

#[test]
fn what_roles_tell_each_other_in_version_1_is_read_and_written_back_the_same() {
    round_trip::<Envelope>(include_str!("golden/envelope.v1.json"));
    round_trip::<Envelope>(include_str!("golden/envelope-least.v1.json"));
    round_trip::<Envelope>(include_str!("golden/envelope-shard.v1.json"));
    round_trip::<Envelope>(include_str!("golden/envelope-choice.v1.json"));
    round_trip::<Envelope>(include_str!("golden/envelope-step.v1.json"));
    round_trip::<Envelope>(include_str!("golden/envelope-mirror.v1.json"));
    round_trip::<Vec<Completion>>(include_str!("golden/completions.v1.json"));
    round_trip::<LoadReport>(include_str!("golden/load-report.v1.json"));
    round_trip::<LoadReport>(include_str!("golden/load-report-budget.v1.json"));
    round_trip::<ModelSpec>(include_str!("golden/model.v1.json"));
    round_trip::<ModelSpec>(include_str!("golden/model-quality.v1.json"));
}

/// What waits in durable queues while a yard is replaced by the next version of it.
#[test]
fn workflows_schedules_and_webhooks_of_version_1_are_read_and_written_back_the_same() {
    for golden in [include_str!("golden/workflow-order.v1.json"), include_str!("golden/workflow-order-least.v1.json")] {
        round_trip::<WorkflowOrder>(golden);
        WorkflowOrder::again(golden.as_bytes()).unwrap();
    }
    for golden in
        [include_str!("golden/schedule-order.v1.json"), include_str!("golden/schedule-order-workflow.v1.json")]
    {
        round_trip::<ScheduleOrder>(golden);
        ScheduleOrder::read(golden.as_bytes()).unwrap().decoded().unwrap();
    }
    round_trip::<Hook>(include_str!("golden/hook.v1.json"));
}

/// Steps and ticks are known again by their ids, whichever version made them.
#[test]
fn ids_that_version_1_made_are_made_again() {
    let (order, _) = WorkflowOrder::again(include_bytes!("golden/workflow-order.v1.json")).unwrap();
    let ids = [order.id.task("clean", None), order.id.task("clean", Some(3))].map(|id| id.0.to_string());
    assert_eq!(ids, ["0e98353b-3897-5e38-b3b2-4f448128cdca", "720f279a-d827-5f0b-a2eb-bfe2dfdae712"]);
    let schedule = ScheduleOrder::read(include_bytes!("golden/schedule-order.v1.json")).unwrap();
    assert_eq!(schedule.tick_id("taskyard", schedule.seen).to_string(), "ab0f3bff-8ae5-544a-88ad-5a5c31a9c646");
}

#[test]
fn what_gateways_and_schedulers_ask_each_other_in_version_1_is_read_and_written_back_the_same() {
    round_trip::<Question>(include_str!("golden/question-cancel.v1.json"));
    round_trip::<Question>(include_str!("golden/question-quote.v1.json"));
    round_trip::<Question>(include_str!("golden/question-schedule.v1.json"));
    round_trip::<Answer>(include_str!("golden/answer-fates.v1.json"));
    round_trip::<Answer>(include_str!("golden/answer-place.v1.json"));
    round_trip::<Answer>(include_str!("golden/answer-schedule.v1.json"));
    round_trip::<Signal>(include_str!("golden/signal.v1.json"));
}

#[test]
fn the_record_of_a_workflow_of_version_1_is_read_and_written_back_the_same() {
    round_trip::<WorkflowRecord>(include_str!("golden/workflow-record.v1.json"));
}

#[test]
fn an_envelope_of_a_newer_minor_version_is_read() {
    let golden = include_str!("golden/envelope-least.v1.json");
    let newer = golden.replacen('{', r#"{"a_later_field":{"of":["any",{"shape":1}]},"#, 1);
    let envelope: Envelope = serde_json::from_str(&newer).unwrap();
    assert_eq!(serde_json::to_string(&envelope).unwrap(), golden.trim_end());
    assert_eq!(envelope.input.get(), r#"{"text": "as it  came"}"#, "the caller's bytes");
}
