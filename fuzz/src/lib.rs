//! What holds for every input that comes from outside, whatever its bytes are: one module for each way in, each with one function
//! that panics where it does not hold. The fuzzer calls them with what it makes up, and `tests/corpora.rs` with what was kept.

pub mod http;
pub mod message;
pub mod schedule;
pub mod settings;
pub mod task;
pub mod workflow;

use taskyard_shared::{Invalid, Timestamp};

/// An instant that stays the same from run to run.
fn now() -> Timestamp {
    // 2026-01-31T12:00:00Z
    Timestamp::from_micros(1_769_860_800_000_000)
}

/// A refusal that can be told: with a code that is documented, on one line, and without telling the body back.
fn check_refusal(invalid: &Invalid) {
    const CODES: [&str; 7] = ["empty", "too_large", "utf8", "json", "depth", "shape", "invalid_field"];
    assert!(CODES.contains(&invalid.code), "{invalid:?}");
    for text in [&*invalid.field, &*invalid.message] {
        assert!(!text.is_empty() && text.len() < 400 && !text.chars().any(char::is_control), "{invalid:?}");
    }
}
