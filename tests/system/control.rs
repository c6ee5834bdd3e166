//! What an operator asks of tasks that were accepted, through the command line and the gateway, on real servers.

use std::process::Command;

use serde_json::Value;

use crate::harness::ports::free_port;
use crate::harness::{Role, eventually, servers};
use crate::yard::Yard;

const MODELS: &str = r#"
[models.pause]
handler = "simulated"
slots = 1
expected_ms = 1000.0
capabilities = ["resting"]
quality = 0.5
[models.pause.simulated]
service_ms = 1.0

[models.nap]
handler = "simulated"
slots = 1
expected_ms = 2000.0
capabilities = ["resting"]
quality = 0.9
[models.nap.simulated]
service_ms = 1.0
"#;

/// The command line, at one gateway.
pub struct Operator<'a> {
    pub yard: &'a Yard,
    api: String,
    _gateway: Role,
}

impl<'a> Operator<'a> {
    pub fn new(yard: &'a mut Yard) -> Self {
        let listen = format!("127.0.0.1:{}", free_port());
        yard.environment.push(("TASKYARD__GATEWAY__LISTEN".into(), listen.clone()));
        let yard: &Yard = yard;
        let gateway = yard.role(&["gateway"]);
        gateway.wait_for_line("listening");
        Self { yard, api: format!("http://{listen}"), _gateway: gateway }
    }

    /// What a command prints as JSON, and its exit code.
    pub fn says(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskyard"));
        command.args(arguments).args(["--api", &self.api, "-o", "json"]).envs(self.yard.environment.clone());
        let output = command.output().unwrap();
        let said = serde_json::from_slice(&output.stdout).unwrap_or_else(|failure| {
            panic!(
                "{arguments:?}: {failure}: {} {}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        });
        (output.status.code(), said)
    }

    /// A command's exit code.
    pub fn exit(&self, arguments: &[&str]) -> Option<i32> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskyard"));
        command.args(arguments).args(["--api", &self.api]).envs(self.yard.environment.clone());
        command.output().unwrap().status.code()
    }

    fn submit(&self, model: &str, input: &str) -> String {
        let (code, task) = self.says(&["task", "submit", "--model", model, "--input", input]);
        assert_eq!(code, Some(0), "{task}");
        one(&task)["id"].as_str().unwrap().to_owned()
    }

    fn state(&self, id: &str) -> String {
        let (_, task) = self.says(&["task", "get", id]);
        one(&task)["state"].as_str().unwrap().to_owned()
    }

    fn reason(&self, id: &str) -> String {
        let (_, told) = self.says(&["task", "explain", id]);
        one(&told)["reason"].as_str().unwrap().to_owned()
    }

    fn comes_to(&self, id: &str, state: &str) {
        eventually(&format!("{id} is {state}"), || (self.state(id) == state).then_some(()));
    }

    fn waits_for(&self, id: &str, reason: &str) {
        eventually(&format!("{id} waits: {reason}"), || (self.reason(id) == reason).then_some(()));
    }
}

/// One task is printed as an object, or as the only one of an array.
fn one(told: &Value) -> &Value {
    told.get(0).unwrap_or(told)
}

#[test]
fn waiting_and_running_tasks_do_as_they_are_told_also_across_a_killed_scheduler() {
    let Some(servers) = servers("control") else { return };
    let mut yard = Yard::new(&servers, MODELS);
    let operator = Operator::new(&mut yard);
    let mut scheduler = operator.yard.scheduler();
    let _worker = operator.yard.worker();

    let blocker = operator.submit("pause", r#"{"service_ms": 3600000}"#);
    operator.comes_to(&blocker, "running");
    let ids: Vec<String> = (0..8).map(|_| operator.submit("pause", "{}")).collect();
    operator.waits_for(&ids[7], "no_credit");
    let (_, told) = operator.says(&["task", "explain", &ids[7]]);
    let expected = &one(&told)["waiting"]["expected_start"];
    assert!(expected["q50"].is_string() && expected["q95"].is_string(), "{told}");
    let (code, quote) =
        operator.says(&["task", "quote", "--model", "pause", "--input", "{}", "--deadline-ms", "3600000"]);
    assert_eq!((code, one(&quote)["model"].as_str()), (Some(0), Some("pause@1")), "{quote}");
    assert!(one(&quote)["deadline_probability"].as_f64().is_some_and(|part| part > 0.9), "{quote}");

    let (code, told) = operator.says(&["task", "cancel", &ids[2]]);
    assert_eq!((code, one(&told)["outcome"].as_str()), (Some(0), Some("cancelled")), "{told}");
    let (_, told) = operator.says(&["queues", "pause", "pause"]);
    assert_eq!(one(&told)["paused"].as_bool(), Some(true), "{told}");
    operator.waits_for(&ids[6], "paused");
    let (code, told) = operator.says(&["task", "reprioritize", &ids[7], "--priority", "9"]);
    assert_eq!((code, one(&told)["outcome"].as_str()), (Some(0), Some("reprioritized")), "{told}");

    // Whoever comes after it knows all of that.
    scheduler.signal("-KILL");
    scheduler.wait();
    let _successor = operator.yard.scheduler();
    let (_, told) = operator.says(&["task", "cancel", &blocker]);
    assert!(matches!(one(&told)["outcome"].as_str(), Some("requested" | "cancelled")), "{told}");
    operator.comes_to(&blocker, "cancelled");
    operator.waits_for(&ids[7], "paused");
    assert_eq!(operator.state(&ids[2]), "cancelled");
    let (_, told) = operator.says(&["queues", "resume", "pause"]);
    assert_eq!(one(&told)["paused"].as_bool(), Some(false), "{told}");
    for id in ids.iter().filter(|id| **id != ids[2]) {
        operator.comes_to(id, "succeeded");
    }
    let started = |id: &String| {
        let (_, task) = operator.says(&["task", "get", id]);
        one(&task)["timings"]["started"].as_str().unwrap().to_owned()
    };
    // What was sent ahead before the pause may have begun first.
    let first = started(&ids[7]);
    let before = ids.iter().filter(|id| **id != ids[2] && started(id) < first).count();
    assert!(before <= 2, "{before} of those with the lower priority began before it");
}

#[test]
fn a_task_that_leaves_a_choice_is_told_what_was_chosen() {
    let Some(servers) = servers("choice") else { return };
    let mut yard = Yard::new(&servers, MODELS);
    let operator = Operator::new(&mut yard);
    let _scheduler = operator.yard.scheduler();
    let _worker = operator.yard.worker();
    let choose = |arguments: &[&str]| {
        let fixed = ["task", "submit", "--input", "{}", "--wait"];
        let (code, task) = operator.says(&[&fixed[..], arguments].concat());
        assert_eq!(code, Some(0), "{task}");
        let task = one(&task);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&task["model"]), text(&task["choice"]["reason"]))
    };
    let is = |model: &str, reason: &str| (model.to_owned(), reason.to_owned());
    assert_eq!(choose(&["--capability", "resting", "--min-quality", "0.8"]), is("nap@1", "quality"));
    assert_eq!(choose(&["--capability", "resting"]).1, "least_cost");
    assert_eq!(choose(&["--model", "pause", "--alternative", "nap:60000"]), is("pause@1", "named"));
    assert_eq!(choose(&["--model", "gone", "--alternative", "nap:60000"]), is("nap@1", "alternative"));
}
