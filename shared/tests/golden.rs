//! Messages of released versions stay readable, and are written as they always were.

use taskyard_shared::load::{Completion, LoadReport, ModelSpec};
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

#[test]
fn an_envelope_of_a_newer_minor_version_is_read() {
    let golden = include_str!("golden/envelope-least.v1.json");
    let newer = golden.replacen('{', r#"{"a_later_field":{"of":["any",{"shape":1}]},"#, 1);
    let envelope: Envelope = serde_json::from_str(&newer).unwrap();
    assert_eq!(serde_json::to_string(&envelope).unwrap(), golden.trim_end());
    assert_eq!(envelope.input.get(), r#"{"text": "as it  came"}"#, "the caller's bytes");
}
