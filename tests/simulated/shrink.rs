//! Makes a history that breaks a rule as short as it gets while it still breaks it.

use std::collections::BTreeSet;

use crate::check::{Rule, check};
use crate::history::History;
use crate::world::run;

/// Histories that are tried.
const TRIES: usize = 1_500;

pub fn rules(history: &History) -> BTreeSet<Rule> {
    check(history, &run(history, false)).iter().map(|broken| broken.rule).collect()
}

pub fn shrunk(history: &History) -> History {
    let wanted = rules(history);
    let mut tries = 0;
    let mut still = |candidate: &History| {
        tries += 1;
        tries <= TRIES && !rules(candidate).is_disjoint(&wanted)
    };
    let mut best = history.clone();
    loop {
        let before = best.clone();
        // Halves first, then one at a time.
        for of in [2, 4, 8, usize::MAX] {
            without(&mut best, of, |history| &mut history.faults, &mut still);
            without(&mut best, of, |history| &mut history.tasks, &mut still);
            without(&mut best, of, |history| &mut history.flows, &mut still);
        }
        for simpler in simpler(&best) {
            if still(&simpler) {
                best = simpler;
            }
        }
        if best == before {
            return best;
        }
    }
}

fn without<T: Clone>(
    best: &mut History,
    parts: usize,
    of: fn(&mut History) -> &mut Vec<T>,
    still: &mut impl FnMut(&History) -> bool,
) {
    let size = (of(best).len() / parts).max(1);
    let mut at = of(best).len();
    while at > 0 {
        let from = at.saturating_sub(size);
        let mut candidate = best.clone();
        of(&mut candidate).drain(from..at);
        if still(&candidate) {
            *best = candidate;
        }
        at = from;
    }
}

fn simpler(history: &History) -> Vec<History> {
    let mut all = Vec::new();
    let mut add = |change: &dyn Fn(&mut History)| {
        let mut candidate = history.clone();
        change(&mut candidate);
        if candidate != *history {
            all.push(candidate);
        }
    };
    add(&|history| history.shards = 1);
    add(&|history| history.together = false);
    add(&|history| history.window = 1_000);
    for at in 0..history.tasks.len() {
        add(&move |history| history.tasks[at].again_ms = None);
        add(&move |history| history.tasks[at].at_ms = 0);
    }
    all
}
