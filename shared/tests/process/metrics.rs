//! Metrics: what Prometheus reads, and that nobody can blow it up.

use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};

use taskyard_shared::process::metrics::{DECISION_SECONDS, RUN_SECONDS, Registry};

/// A registry with one metric of each kind in it, counted on.
fn filled() -> Registry {
    let registry = Registry::new().unwrap();
    registry.counter("restarts_total", "Restarts.").unwrap().inc();
    let accepted = registry.counters("tasks_accepted_total", "Tasks accepted.", &["kind", "model"]).unwrap();
    accepted.with_label_values(&["prediction", "a"]).inc_by(2);
    accepted.with_label_values(&["training", "quote\" and \\ and\nnewline"]).inc();
    registry.gauge("waiting_tasks", "Tasks waiting.").unwrap().set(-3);
    registry.gauges("worker_slots", "Slots.", &["state"]).unwrap().with_label_values(&["busy"]).set(1);
    registry.float_gauge("load_ratio", "Load.").unwrap().set(0.5);
    registry.float_gauges("backlog_seconds", "Backlog.", &["model"]).unwrap().with_label_values(&["a"]).set(f64::NAN);
    registry.histogram("decision_seconds", "Decisions.", DECISION_SECONDS).unwrap().observe(0.00001);
    let run = registry.histograms("task_run_seconds", "Runs.", &["model"], RUN_SECONDS).unwrap();
    run.with_label_values(&["a"]).observe(1e9);
    registry
}

#[test]
fn every_metric_is_written_with_prefix_help_and_labels() {
    let text = filled().render().unwrap();
    for line in [
        "# HELP taskyard_tasks_accepted_total Tasks accepted.",
        "# TYPE taskyard_tasks_accepted_total counter",
        r#"taskyard_tasks_accepted_total{kind="prediction",model="a"} 2"#,
        r#"taskyard_tasks_accepted_total{kind="training",model="quote\" and \\ and\nnewline"} 1"#,
        "taskyard_waiting_tasks -3",
        r#"taskyard_worker_slots{state="busy"} 1"#,
        "taskyard_load_ratio 0.5",
        r#"taskyard_backlog_seconds{model="a"} NaN"#,
        r#"taskyard_decision_seconds_bucket{le="0.00001"} 1"#,
        r#"taskyard_task_run_seconds_bucket{model="a",le="10800"} 0"#,
        r#"taskyard_task_run_seconds_bucket{model="a",le="+Inf"} 1"#,
        "# TYPE process_cpu_seconds_total counter",
    ] {
        assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
    }
    assert!(text.contains(concat!(r#"version=""#, env!("CARGO_PKG_VERSION"), r#"""#)), "{text}");
}

#[test]
fn promtool_finds_nothing_to_complain_of() {
    let command =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut promtool = match command {
        Ok(promtool) => promtool,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            assert!(std::env::var("TASKYARD_TEST_REQUIRE_SERVERS").is_err(), "promtool is not installed");
            println!("skipped: promtool is not installed");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    promtool.stdin.take().unwrap().write_all(filled().render().unwrap().as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{complaints}");
}

#[test]
fn the_process_tells_what_it_takes() {
    let registry = Registry::new().unwrap();
    let value = |name: &str| -> f64 {
        let text = registry.render().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().unwrap()
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let started = value("process_start_time_seconds");
    assert!(started <= now + 2.0 && started > now - 3600.0, "{started} is not just before {now}");
    assert!((1e6..1e10).contains(&value("process_resident_memory_bytes")));
    assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
    assert!(value("process_threads") >= 1.0);
    assert!(value("process_open_fds") >= 3.0 && value("process_open_fds") <= value("process_max_fds"));

    let before = value("process_cpu_seconds_total");
    let mut spun = 0_u64;
    while value("process_cpu_seconds_total") < before + 0.02 {
        spun += 1;
        assert!(spun < 1_000_000, "CPU time does not grow");
    }
}

#[test]
fn asking_again_gives_the_same_metric_and_asking_otherwise_is_refused() {
    let registry = Registry::new().unwrap();
    let first = registry.counters("tasks_total", "Tasks.", &["model"]).unwrap();
    let second = registry.clone().counters("tasks_total", "Tasks.", &["model"]).unwrap();
    first.with_label_values(&["a"]).inc();
    second.with_label_values(&["a"]).inc();
    assert_eq!(first.with_label_values(&["a"]).get(), 2);
    for (refused, problem) in [
        (registry.counters("tasks_total", "Tasks.", &["tenant"]).err(), "of another type or with other labels"),
        (registry.counter("tasks_total", "Tasks.").err(), "of another type or with other labels"),
        (registry.counter("tasks", "Tasks.").err(), "does not end as it must"),
        (registry.gauge("waiting_total", "Tasks.").map(|_| ()).err(), "does not end as it must"),
        (registry.counter("taskyard_tasks_total", "Tasks.").map(|_| ()).err(), "with the prefix"),
        (registry.counter("more_total", "").map(|_| ()).err(), "has no help text"),
        (registry.counter("a b_total", "Tasks.").map(|_| ()).err(), "cannot be made"),
    ]
    .map(|(refused, problem)| (refused.expect(problem).to_string(), problem))
    {
        assert!(refused.contains(problem), "{refused}");
    }
}
