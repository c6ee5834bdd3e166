//! `taskyard bench` as a user runs it: what it refuses, and what it counts. No test looks at how fast anything was.

mod harness;

use std::process::{Command, Stdio};

use harness::{Place, Role, environment, root, servers};
use serde_json::Value;

fn bench(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskyard"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TASKYARD_")) {
        command.env_remove(name);
    }
    command.arg("bench").args(arguments).envs(environment.iter().copied()).current_dir(root()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// What it prints with `-o json`, once everything went well.
#[track_caller]
fn report(arguments: &[&str], environment: &[(&str, &str)]) -> Value {
    let (code, out, err) = bench(&[arguments, &["-o", "json"]].concat(), environment);
    assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
    serde_json::from_str(&out).unwrap()
}

/// Every turn of the report answered so many tasks well, and nothing else happened.
#[track_caller]
fn all_succeeded(report: &Value, systems: &[&str], tasks: u64) {
    let turns = report["turns"].as_array().unwrap();
    let ran: Vec<&str> = turns.iter().map(|turn| turn["system"].as_str().unwrap()).collect();
    assert_eq!(ran, systems);
    for turn in turns {
        assert_eq!(turn["tasks"], tasks, "{turn}");
        assert_eq!(turn["states"], serde_json::json!({"succeeded": tasks}), "{turn}");
        for nothing in ["missing", "duplicates", "unconfirmed"] {
            assert_eq!(turn[nothing], 0, "{turn}");
        }
        assert!(turn["tasks_per_second"].as_f64().unwrap() > 0.0, "{turn}");
    }
}

fn operations(median: &Value, role: &str) -> impl Fn(&str) -> f64 {
    let roles = median["roles"].as_array().unwrap();
    let found = roles.iter().find(|usage| usage["role"] == role).unwrap_or_else(|| panic!("no {role}: {median}"));
    let operations = found["operations_per_1000_tasks"].clone();
    move |operation| operations[operation].as_f64().unwrap_or_else(|| panic!("no {operation}: {operations}"))
}

#[test]
fn what_cannot_be_measured_is_refused_in_one_sentence() {
    let rabbitmq =
        [("TASKYARD__BROKER__URL", "amqp://guest@127.0.0.1:1"), ("TASKYARD__STORE__URL", "redis://127.0.0.1:1")];
    let mixed = &rabbitmq[..1];
    for (arguments, environment, word) in [
        (&[][..], &[][..], "--own"),
        (&["--own", "--baseline", "relay"], &[], "broker.url"),
        (&["--own"], mixed, "store.url"),
        (&["--own", "--mode", "drain", "--duration", "3"], &[], "--tasks"),
        (&["--own", "--overtake", "3"], &[], "--mode drain"),
        (&["--own", "--mode", "drain", "--restart-after", "1"], &[], "RabbitMQ"),
        (&["--mode", "drain"], &rabbitmq, "--own"),
        (&["--baseline", "priority"], &rabbitmq, "--own"),
        (&["--own", "--data", "x"], &rabbitmq, "--data"),
        (&["--own", "--model", "No Name"], &[], "--model"),
    ] {
        let (code, out, err) = bench(arguments, environment);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(err.starts_with("taskyard: ") && err.contains(word), "{arguments:?}: {err}");
    }
    for arguments in [
        &["--rate", "0"][..],
        &["--tasks", "0"],
        &["--tasks", "5", "--duration", "5"],
        &["--priorities", "11"],
        &["--size", "1"],
        &["--slots", "3"],
        &["--overtake-every", "1"],
        &["--own", "--metrics", "http://127.0.0.1:1/metrics"],
    ] {
        let (code, out, err) = bench(arguments, &[]);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(err.contains("error:"), "{arguments:?}: {err}");
    }
}

#[test]
fn an_embedded_yard_answers_every_task_once() {
    let spread =
        ["--own", "--tasks", "600", "--warm-up", "50", "--models", "3", "--priorities", "10", "--tenants", "4"];
    let report = report(&[&spread[..], &["--turns", "3", "--workers", "2"]].concat(), &[]);
    all_succeeded(&report, &["taskyard"; 3], 600);
    let [median] = &report["medians"].as_array().unwrap()[..] else { panic!("one median: {report}") };
    assert_eq!(median["turns"], 3);
    assert_eq!(report["ratios"], Value::Null);
    // The publisher publishes each task, and the worker its result; what goes between roles may travel together.
    assert!(operations(median, "bench")("publish") >= 2_000.0, "{median}");
}

#[test]
fn an_embedded_yard_on_disk_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let batches = ["--publish", "batch", "--batch", "7", "--results", "array", "--max-batch", "8"];
    let report = report(&[&["--own", "--tasks", "200", "--warm-up", "20", "--data", data], &batches[..]].concat(), &[]);
    all_succeeded(&report, &["taskyard"], 200);
    assert!(operations(&report["medians"][0], "bench")("commit") > 0.0);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn tasks_that_are_due_at_a_rate_all_come() {
    let report = report(&["--own", "--rate", "400", "--duration", "0.5", "--warm-up", "1"], &[]);
    all_succeeded(&report, &["taskyard"], 200);
    assert!(report["turns"][0]["latency_ms"]["p99_9"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_overtakes_is_counted_apart_from_what_waits() {
    let drain = ["--own", "--mode", "drain", "--tasks", "300", "--service-ms", "1", "--slots", "1"];
    let report = report(&[&drain[..], &["--overtake", "3", "--overtake-every", "0.05"]].concat(), &[]);
    all_succeeded(&report, &["taskyard"], 300);
    let overtaking = &report["turns"][0]["overtaking"];
    assert_eq!(overtaking["tasks"], 3, "{overtaking}");
    let busy = overtaking["slots_busy"].as_f64().unwrap();
    assert!(busy > 0.0 && busy <= 1.0, "{overtaking}");
    assert_eq!(report["turns"][0]["latency_ms"], Value::Null);
}

#[test]
fn the_relay_is_measured_in_turns_and_both_leave_nothing_behind() {
    let Some(servers) = servers("the_relay_is_measured_in_turns_and_both_leave_nothing_behind") else { return };
    let place = Place::new(&servers);
    let environment = [("TASKYARD__BROKER__URL", place.amqp.as_str()), ("TASKYARD__STORE__URL", &place.redis)];
    let few = ["--own", "--tasks", "400", "--warm-up", "50"];
    let relay = report(&[&few[..], &["--baseline", "relay", "--turns", "2"]].concat(), &environment);
    all_succeeded(&relay, &["taskyard", "relay", "taskyard", "relay"], 400);
    assert!(relay["ratios"]["throughput"].as_f64().unwrap() > 0.0, "{relay}");
    let [taskyard, baseline] = &relay["medians"].as_array().unwrap()[..] else { panic!("two medians: {relay}") };
    for role in ["scheduler", "worker", "bench"] {
        assert!(operations(taskyard, role)("publish") > 0.0, "{taskyard}");
    }
    for role in ["forwarder", "relay worker"] {
        let done = operations(baseline, role);
        for (operation, count) in [("publish", 1_000.0), ("deliver", 1_000.0), ("ack", 1_000.0), ("return", 0.0)] {
            // The last acks of the warm-up may fall into the measurement.
            assert!((done(operation) - count).abs() <= 130.0, "{role} {operation}: {}", done(operation));
        }
        assert!(done("confirm") > 0.0 && done("confirm") <= 1_130.0);
        assert!(done("bytes received") > 400_000.0 && done("bytes sent") > 400_000.0);
    }

    let drain =
        ["--mode", "drain", "--slots", "4", "--service-ms", "0.5", "--overtake", "2", "--overtake-every", "0.02"];
    let priority = report(&[&few[..], &drain, &["--baseline", "priority"]].concat(), &environment);
    all_succeeded(&priority, &["taskyard", "priority queue"], 400);
    assert_eq!(priority["turns"][1]["overtaking"]["tasks"], 2);

    // Whether it is back within so short a drain is the machine's affair.
    let drain = ["--mode", "drain", "--slots", "2", "--service-ms", "10", "--restart-after", "0.2"];
    let killed = report(&[&few[..], &drain].concat(), &environment);
    let turn = &killed["turns"][0];
    assert_eq!((&turn["states"]["succeeded"], &turn["missing"]), (&400.into(), &0.into()), "{turn}");
    let restart = &turn["restart"];
    assert!(restart["tasks_per_second_before"].as_f64().unwrap() > 0.0, "{restart}");
    assert!(restart["listens_after_s"].as_f64().unwrap() > 0.0, "{restart}");
    assert_eq!(place.queues(), []);
}

#[test]
fn a_yard_that_runs_is_measured_by_the_metrics_of_its_roles() {
    let Some(servers) = servers("a_yard_that_runs_is_measured_by_the_metrics_of_its_roles") else { return };
    let place = Place::new(&servers);
    let folder = tempfile::tempdir().unwrap();
    let models = "[models.nothing]\nhandler = \"simulated\"\nslots = 4\n[models.nothing.simulated]\n";
    let file = harness::models_file(folder.path(), models);
    let port = harness::ports::free_port();
    let mut own = environment(&place);
    own.retain(|(name, _)| name != "TASKYARD__ADMIN__LISTEN");
    let with_port = |address: String| [&own[..], &[("TASKYARD__ADMIN__LISTEN".to_owned(), address)]].concat();
    let config = ["--config", file.to_str().unwrap()];
    let worker = Role::start(&[&config[..], &["worker"]].concat(), &with_port(format!("127.0.0.1:{port}")));
    let _scheduler = Role::start(&[&config[..], &["scheduler"]].concat(), &with_port("127.0.0.1:0".to_owned()));
    worker.wait_for_line("takes tasks");
    let url = format!("http://127.0.0.1:{port}/metrics");
    let own: Vec<(&str, &str)> = own.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let arguments = ["--model", "nothing", "--tasks", "200", "--warm-up", "20", "--metrics", &url];
    let report = report(&arguments, &own);
    all_succeeded(&report, &["taskyard"], 200);
    let median = &report["medians"][0];
    let role = format!("127.0.0.1:{port}");
    assert!(operations(median, &role)("deliver") > 0.0, "{median}");

    let (code, out, err) = bench(&["--model", "nobody", "--tasks", "5", "--warm-up", "1"], &own);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.contains("rejected"), "{err}");
}
