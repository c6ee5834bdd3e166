//! Schedulers and workers in one thread, on a broker and a store that are simulated and do the worst that was seen of real ones, and on a
//! clock that nobody waits for: thousands of histories in the time of one real run. See docs/reliability.md.

mod broker;
mod check;
mod found;
mod history;
mod link;
mod shrink;
mod store;
mod trace;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::check::check;
use crate::history::History;
use crate::world::{count_panics, run};

/// Runs what a seed makes; what is broken is shrunk, and said.
fn failure_of(seed: u64) -> Option<String> {
    let history = History::drawn(seed);
    let broken = check(&history, &run(&history, false));
    if broken.is_empty() {
        return None;
    }
    let shortest = shrink::shrunk(&history);
    let seen = run(&shortest, true);
    let told = |broken: &[check::Broken]| broken.iter().map(|broken| format!("  {broken}\n")).collect::<String>();
    Some(format!(
        "seed {seed}:\n{}the shortest history:\n{shortest}\n{}what happened in it:\n{}",
        told(&broken),
        told(&check(&shortest, &seen)),
        seen.lines.join("\n")
    ))
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

#[test]
fn nothing_is_lost_and_nothing_has_two_ends() {
    count_panics();
    for seed in 1..=number("TASKYARD_SIMULATED_SEEDS", 200) {
        if let Some(failure) = failure_of(seed) {
            panic!("{failure}");
        }
    }
}

#[test]
fn a_seed_has_one_history_and_one_course() {
    count_panics();
    for seed in [3, 1_001, 1_002, 1_003, 1_004, 1_005] {
        let history = History::drawn(seed);
        let (one, other) = (run(&history, true), run(&history, true));
        let differs = one.lines.iter().zip(&other.lines).position(|(one, other)| one != other);
        if let Some(at) = differs {
            let around = |lines: &[String]| lines[at.saturating_sub(5)..(at + 3).min(lines.len())].join("\n");
            panic!("seed {seed} took two courses:\n{}\n---\n{}", around(&one.lines), around(&other.lines));
        }
        assert_eq!((one.digest, one.lines.len()), (other.digest, other.lines.len()), "seed {seed}");
        assert!(one.lines.len() > 10, "something happened");
    }
}

/// `TASKYARD_SIMULATED_SEEDS` histories from `TASKYARD_SIMULATED_FROM` on, on every core. With `TASKYARD_SIMULATED_SEED`: that one alone.
#[test]
#[ignore = "long"]
fn long() {
    count_panics();
    let one = std::env::var("TASKYARD_SIMULATED_SEED").is_ok().then(|| number("TASKYARD_SIMULATED_SEED", 0));
    let from = one.unwrap_or_else(|| number("TASKYARD_SIMULATED_FROM", 1));
    let until = from + one.map_or_else(|| number("TASKYARD_SIMULATED_SEEDS", 10_000), |_| 1);
    let shown = number("TASKYARD_SIMULATED_SHOWN", 3);
    let (next, failed, begun) = (AtomicU64::new(from), Mutex::new(Vec::new()), std::time::Instant::now());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= until {
                        return;
                    }
                    let history = History::drawn(seed);
                    if !check(&history, &run(&history, false)).is_empty() {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(seed);
                    }
                }
            });
        }
    });
    let took = begun.elapsed();
    let mut failed = failed.into_inner().unwrap();
    failed.sort_unstable();
    let per_minute = (until - from) as f64 / took.as_secs_f64() * 60.0;
    println!("{} histories in {:.1} s, {per_minute:.0} a minute; broken: {failed:?}", until - from, took.as_secs_f64());
    for seed in failed.iter().take(shown as usize) {
        println!("{}", failure_of(*seed).unwrap_or_default());
    }
    assert!(failed.is_empty(), "{} of {} histories broke a rule", failed.len(), until - from);
}
