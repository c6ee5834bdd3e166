//! `taskyard simulate` as a user types it.

use std::path::Path;
use std::process::{Command, Output};

fn simulate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskyard"));
    command.arg("simulate").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap()
}

#[test]
fn every_scenario_that_comes_along_runs() {
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/scenarios")).unwrap() {
        let path = entry.unwrap().path();
        let ran = simulate(&[path.to_str().unwrap(), "--seeds", "1", "--tasks", "500", "-o", "json"]);
        assert!(ran.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&ran.stderr));
        let rows: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert!(rows[0]["figures"]["wait_p99_s"]["mean"].is_number(), "{}", path.display());
    }
}

#[test]
fn a_trace_alone_gives_a_row_for_each_policy_and_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("report.html");
    let trace = "benchmarks/traces/azure_llm_2023_conv.csv.gz";
    let ran = simulate(&["--trace", trace, "--tasks", "2000", "--seeds", "2", "--html", page.to_str().unwrap()]);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let table = String::from_utf8(ran.stdout).unwrap();
    for policy in ["cmu", "wspt", "wspt@class", "wspt@true", "strict", "fifo"] {
        assert!(table.lines().any(|line| line.starts_with(&format!("{policy} "))), "{policy}: {table}");
    }
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && !page.contains("http://") && !page.contains("https://") && !page.contains("NaN"));
}

#[test]
fn what_cannot_be_simulated_is_said_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let unknown = file("unknown.toml", "sedes = 5");
    let negative = file("negative.csv", "arrival_s,service_s\n1,1\n2,-1\n");
    let plain = file("plain.csv.gz", "arrival_s,service_s\n1,1\n");
    let empty = file("empty.csv", "arrival_s,service_s\n");
    let columns = file("columns.csv", "when,work\n1,1\n");
    for (arguments, words) in [
        (vec!["missing.toml"], "missing.toml cannot be read"),
        (vec![unknown.as_str()], "unknown field `sedes`"),
        (vec!["--trace", "missing.csv"], "missing.csv cannot be read"),
        (vec!["--trace", negative.as_str()], "line 3: `service_s` is negative"),
        (vec!["--trace", plain.as_str()], "is not gzip"),
        (vec!["--trace", empty.as_str()], "no row below its header"),
        (vec!["--trace", columns.as_str()], "needs a column `service_s`"),
        (vec!["--trace", plain.as_str(), "--policy", "best"], "\"best\" is no policy"),
        (vec!["--trace", plain.as_str(), "--load=-1"], "load"),
        (vec![], "required"),
    ] {
        let ran = simulate(&arguments);
        let error = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(words) && ran.stdout.is_empty(), "{arguments:?}: {error}");
    }
}

#[test]
fn a_yard_has_the_same_tasks_and_comes_to_figures_of_the_same_kind() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("live.toml");
    let scenario = "tasks = 60\nload = [0.5]\nseeds = 1\n[models]\nslots = 4\n[deadlines]\nshare = 0.5\nconstant_ms = 200\n\
                    [[classes]]\nname = \"c\"\nshare = 1.0\nservice = { distribution = \"exponential\", mean_ms = 5 }\n";
    std::fs::write(&file, scenario).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_taskyard"))
        .args(["simulate", "--live", "-o", "jsonl"])
        .arg(&file)
        .env("TASKYARD__BROKER__URL", "embedded:")
        .env("TASKYARD__STORE__URL", "embedded:")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let runs: Vec<&str> = rows.iter().map(|row| row["run"].as_str().unwrap()).collect();
    assert_eq!(runs, ["simulated", "live", "ratio"]);
    for row in &rows[..2] {
        assert_eq!(row["figures"]["tasks"], 60.0, "{row}");
        assert!(row["figures"]["utilisation"].as_f64().unwrap() > 0.2, "{row}");
    }
    // Nothing ran before it came, nor for less than it was to.
    assert!(rows[1]["figures"]["wait_mean_s"].as_f64().unwrap() >= 0.0);
    assert!(rows[1]["figures"]["slowdown_mean"].as_f64().unwrap() >= 1.0);

    let knows = ["simulate", "--live", "--policy", "wspt@true"];
    let refused = Command::new(env!("CARGO_BIN_EXE_taskyard")).args(knows).arg(&file).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("knows what it learns"));
}
