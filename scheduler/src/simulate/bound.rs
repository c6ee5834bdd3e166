//! What no order of service can beat.
//!
//! The weighted flow time Σ w·(C − arrival) of any schedule, preemptive or not, of any policy, on m slots is at least
//! that of a relaxation: one slot m times as fast that always works on the task with the largest w/t among those that
//! have come, interrupting others at no cost. There Σ w·M is least, M being the middle of the times at which a task is
//! worked on (Goemans 1996); and a task that runs on one slot alone ends no sooner than half its own time after the
//! middle (Schulz and Skutella 2002). So Σ w·(M + t/2 − arrival) over that schedule is a bound, with true times.
//!
//! It is no optimum: a schedule that may not interrupt cannot reach it, least of all with a heavy tail.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::workload::{Task, Workload};

/// A positive ratio that orders as its bits do.
fn bits(ratio: f64) -> u64 {
    ratio.to_bits()
}

/// Σ w·(C − arrival) is at least this, in weight × seconds, over all tasks.
pub fn least_cost(workload: &Workload) -> f64 {
    let mut of_model: Vec<Vec<&Task>> = vec![Vec::new(); workload.models.len()];
    for task in &workload.tasks {
        if let Some(tasks) = of_model.get_mut(task.model as usize) {
            tasks.push(task);
        }
    }
    of_model.iter().zip(&workload.models).map(|(tasks, model)| relaxed_cost(tasks, model.slots)).sum()
}

/// The same when so many slots run tasks of any model.
pub fn least_cost_on(workload: &Workload, slots: usize) -> f64 {
    relaxed_cost(&workload.tasks.iter().collect::<Vec<&Task>>(), slots)
}

/// Tasks in the order of arrival.
fn relaxed_cost(tasks: &[&Task], slots: usize) -> f64 {
    let speed = slots.max(1) as f64;
    // Work left, in seconds of the fast slot, and Σ of work × the middle of the time it was done in.
    let mut left: Vec<f64> = tasks.iter().map(|task| task.service_s() / speed).collect();
    let mut moments = vec![0.0; tasks.len()];
    let mut waiting: BinaryHeap<(u64, Reverse<usize>)> = BinaryHeap::new();
    let mut now = 0.0;
    let mut next = 0;
    loop {
        let next_s = tasks.get(next).map(|task| task.arrival_us as f64 / 1e6);
        let Some(&(_, Reverse(at))) = waiting.peek() else {
            let Some(next_s) = next_s else { break };
            now = f64::max(now, next_s);
            next = take_in(tasks, next, now, &mut waiting);
            continue;
        };
        let (Some(rest), Some(moment)) = (left.get_mut(at), moments.get_mut(at)) else { break };
        let work = next_s.map_or(*rest, |next_s| rest.min((next_s - now).max(0.0)));
        *moment += work * (now + work / 2.0);
        *rest -= work;
        now += work;
        if *rest <= 0.0 {
            waiting.pop();
        }
        if let Some(next_s) = next_s.filter(|&next_s| next_s <= now || *rest > 0.0) {
            now = f64::max(now, next_s);
            next = take_in(tasks, next, now, &mut waiting);
        }
    }
    let cost = |(task, moment): (&&Task, &f64)| {
        let middle = moment / (task.service_s() / speed);
        task.weight() * (middle + task.service_s() / 2.0 - task.arrival_us as f64 / 1e6)
    };
    tasks.iter().zip(&moments).map(cost).sum()
}

fn take_in(tasks: &[&Task], mut next: usize, now: f64, waiting: &mut BinaryHeap<(u64, Reverse<usize>)>) -> usize {
    while let Some(task) = tasks.get(next).filter(|task| task.arrival_us as f64 / 1e6 <= now) {
        waiting.push((bits(task.weight() / task.service_s()), Reverse(next)));
        next += 1;
    }
    next
}
