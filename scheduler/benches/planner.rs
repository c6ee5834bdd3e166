//! How many tasks a second one core admits and decides, with a million waiting in a thousand classes.
//!
//! `cargo bench -p taskyard-scheduler` prints one row per policy; `ratio` is to `fifo` in the same run.

use std::time::Instant;

use taskyard_scheduler::planner::policy::{Cmu, Edf, Fifo, Policy, Strict, Wspt};
use taskyard_scheduler::planner::{Arrival, Decision, Planner};
use taskyard_shared::{Priority, TaskId};

const MODELS: u64 = 100;
const PRIORITIES: u64 = 10;
const WAITING: u64 = 1_000_000;
const ROUNDS: u64 = 200_000;

fn arrival(number: u64) -> Arrival {
    Arrival {
        id: TaskId::new(),
        model: format!("model-{}", number % MODELS),
        tenant: "default".into(),
        priority: Priority::try_from((number / MODELS % PRIORITIES) as u8).unwrap_or_default(),
        expected_seconds: 0.01,
        deadline_us: None,
        not_before_us: None,
    }
}

/// Admits and decides a second, in a steady state: each round admits one task, dispatches one and completes it.
fn measure(policy: impl Policy + Send + 'static) -> f64 {
    let mut planner = Planner::new(policy);
    for number in 0..WAITING {
        assert_eq!(planner.handle_arrival(arrival(number), number), Ok(()));
    }
    for model in 0..MODELS {
        planner.handle_load(&format!("model-{model}"), 1);
    }
    let arrivals: Vec<Arrival> = (0..ROUNDS).map(arrival).collect();
    let start = Instant::now();
    for (round, arrival) in arrivals.into_iter().enumerate() {
        let now_us = WAITING + round as u64;
        assert_eq!(planner.handle_arrival(arrival, now_us), Ok(()));
        match planner.poll_decision(now_us) {
            Some(Decision::Dispatch { id, .. }) => assert!(planner.handle_completion(id)),
            other => panic!("a free credit and a full lane gave {other:?}"),
        }
    }
    ROUNDS as f64 / start.elapsed().as_secs_f64()
}

fn main() {
    let fifo = measure(Fifo);
    println!("{:<8}{:>14}{:>8}", "policy", "tasks/s", "ratio");
    let rows = [
        ("fifo", fifo),
        ("cmu", measure(Cmu::default())),
        ("strict", measure(Strict)),
        ("edf", measure(Edf)),
        ("wspt", measure(Wspt)),
    ];
    for (policy, rate) in rows {
        println!("{policy:<8}{rate:>14.0}{:>8.2}", rate / fifo);
    }
}
