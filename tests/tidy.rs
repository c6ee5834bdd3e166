//! Who may know whom, read from the imports: what ARCHITECTURE.md promises about the rooms of this house.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file under a folder, with its path from the root.
fn sources(folder: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    assert!(!found.is_empty(), "{folder} holds no source");
    let name = |path: &Path| path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
    found.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect()
}

/// Lines of code, without comments, that use a crate by its name.
fn uses<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with("//")).filter(move |line| {
        line.starts_with(&format!("use {name}"))
            || line.starts_with(&format!("pub use {name}"))
            || line.match_indices(&format!("{name}::")).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                before.is_none_or(|before| !(before.is_alphanumeric() || before == '_' || before == ':'))
            })
    })
}

/// Files outside `allowed` that use the crate.
fn strangers(folders: &[&str], name: &str, allowed: impl Fn(&str) -> bool) -> Vec<String> {
    let all = folders.iter().flat_map(|folder| sources(folder));
    let bad = all.filter(|(path, text)| !allowed(path) && uses(text, name).next().is_some());
    bad.map(|(path, _)| path).collect()
}

const CRATES: [&str; 5] = ["src", "producer/src", "scheduler/src", "shared/src", "worker/src"];
const NOBODY: [String; 0] = [];

#[test]
fn the_broker_and_the_store_are_known_to_their_adapters_alone() {
    assert_eq!(strangers(&CRATES, "lapin", |path| path.starts_with("shared/src/broker/rabbitmq")), NOBODY);
    // A module of ours is called redis too: what is looked for is the crate.
    let redis = |path: &str| path.starts_with("shared/src/store/redis") || path == "shared/src/process/connect.rs";
    assert_eq!(strangers(&CRATES, "redis", redis), NOBODY);
    for name in ["lapin", "redis", "redb"] {
        assert_ne!(strangers(&CRATES, name, |_| false), NOBODY, "the search finds what is there");
    }
    let redb = |path: &str| path.starts_with("shared/src/journal");
    assert_eq!(strangers(&CRATES, "redb", redb), NOBODY);
}

#[test]
fn metrics_are_counted_through_the_kit() {
    let allowed = |path: &str| path.starts_with("shared/src/process/metrics");
    assert_eq!(strangers(&CRATES, "prometheus", allowed), NOBODY);
}

#[test]
fn roles_do_not_know_one_another() {
    for (folder, others) in [
        ("producer/src", ["taskyard_scheduler", "taskyard_worker"]),
        ("scheduler/src", ["taskyard_producer", "taskyard_worker"]),
        ("worker/src", ["taskyard_producer", "taskyard_scheduler"]),
    ] {
        for other in others {
            assert_eq!(strangers(&[folder], other, |_| false), NOBODY, "{folder} uses {other}");
        }
    }
}

#[test]
fn the_planner_knows_the_language_and_nothing_that_acts() {
    for name in [
        "tokio",
        "tracing",
        "taskyard_shared::broker",
        "taskyard_shared::store",
        "taskyard_shared::process",
        "fastrand",
    ] {
        assert_eq!(strangers(&["scheduler/src/planner"], name, |_| false), NOBODY, "the planner uses {name}");
    }
    for (path, text) in sources("scheduler/src/planner") {
        for forbidden in ["Instant::now", "SystemTime", "Timestamp::now", "std::fs", "std::net", "std::thread"] {
            assert!(!text.contains(forbidden), "{path} names {forbidden}");
        }
    }
}

#[test]
fn the_language_knows_nobody() {
    let words =
        ["task", "envelope", "outcome", "lifecycle", "load", "time", "retry", "topology", "decode", "schema", "wire"];
    for (path, text) in sources("shared/src") {
        let word = path.trim_start_matches("shared/src/").split(['/', '.']).next().unwrap_or_default();
        if words.contains(&word) {
            for room in ["broker", "store", "process", "journal", "messages"] {
                assert_eq!(uses(&text, &format!("crate::{room}")).next(), None, "{path} uses {room}");
            }
        }
    }
}
