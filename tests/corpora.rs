//! What is kept of what was fuzzed, put through the same functions again: `fuzz/corpus` has a folder for each of them. How more is
//! looked for says docs/reliability.md.

#[path = "../fuzz/src/lib.rs"]
mod doors;

use std::panic::catch_unwind;
use std::path::Path;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    let bad = inputs.iter().filter(|path| {
        let bytes = std::fs::read(path).unwrap();
        catch_unwind(|| check(&bytes)).is_err()
    });
    let bad: Vec<_> = bad.collect();
    assert!(bad.is_empty(), "of {} inputs these do not pass: {bad:#?}", inputs.len());
}

#[test]
fn tasks() {
    replay("task", doors::task::check);
}

#[test]
fn messages_between_roles() {
    replay("message", doors::message::check);
}

#[test]
fn workflows() {
    replay("workflow", doors::workflow::check);
}

#[test]
fn schedules() {
    replay("schedule", doors::schedule::check);
}

#[test]
fn settings() {
    replay("settings", doors::settings::check);
}

#[test]
fn requests() {
    replay("http", doors::http::check);
}
