//! Where the ledger of a run lies, and what becomes of it: a table for people, and a panic when a promise was broken.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::check::{Verdict, check};
use crate::ledger::{Files, Ledger};

/// Where the ledger of a run is.
pub fn folder(seed: u64) -> PathBuf {
    let base = std::env::var_os("TASKYARD_FAULTS_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = base.join(format!("taskyard-faults-{seed}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    eprintln!("seed {seed}: the ledger and the logs are in {}", folder.display());
    folder
}

/// Prints the table. Panics when a promise was broken, with the seed and where the ledger is.
pub fn judge(seed: u64, about: &[(&str, String)], ledger: &Ledger, files: &Files, took: Duration) {
    let verdict = check(ledger);
    eprintln!("{}", table(about, &verdict, took));
    if !verdict.broken.is_empty() {
        let first: Vec<String> = verdict.broken.iter().take(20).map(ToString::to_string).collect();
        panic!(
            "seed {seed}: {:?}; the ledger and the logs are in {}\n{}",
            verdict.rules(),
            files.folder.display(),
            first.join("\n")
        );
    }
    if std::env::var_os("TASKYARD_FAULTS_KEEP").is_none() {
        std::fs::remove_dir_all(&files.folder).unwrap();
    }
}

/// `about` is what is special to the run.
fn table(about: &[(&str, String)], verdict: &Verdict, took: Duration) -> String {
    let figures = &verdict.figures;
    let mut text = String::new();
    let mut row = |name: &str, value: String| writeln!(text, "  {name:<34} {value}").unwrap();
    for (name, value) in about {
        row(name, value.clone());
    }
    row("took", format!("{} s", took.as_secs()));
    row("tasks published", figures.attempted.to_string());
    row("  confirmed", figures.accepted.to_string());
    row("  published again", figures.published_again.to_string());
    for (state, count) in &figures.ends {
        row(&format!("ended as {state}"), count.to_string());
    }
    row("  of these for lost workers", figures.suspected.to_string());
    for (state, count) in &figures.workflows {
        row(&format!("workflows ended as {state}"), count.to_string());
    }
    row("  executions of their steps", figures.steps_executed.to_string());
    row("ticks of a schedule", figures.ticks.to_string());
    row("  repeated", figures.ticks_repeated.to_string());
    row("records gone with a flush", figures.forgotten.to_string());
    row("results told", figures.results.to_string());
    row("  again, the same", figures.told_again.to_string());
    row("  again, another, after a flush", figures.told_again_after_flush.to_string());
    row("executions", figures.executions.to_string());
    row("  repeated", figures.repeats.to_string());
    row("most files open at the end", figures.files_open.to_string());
    row("most memory at the end", format!("{} MB", figures.resident_mb));
    row("longest without an end or a fault", format!("{} ms", figures.longest_quiet_ms));
    row("faults", figures.faults.values().sum::<usize>().to_string());
    for (kind, count) in &figures.faults {
        row(&format!("  {kind}"), count.to_string());
    }
    let broken = verdict.rules();
    row("verdict", if broken.is_empty() { "good".to_owned() } else { format!("BROKEN: {broken:?}") });
    text
}
