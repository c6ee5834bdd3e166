//! The shortest history of each fault that was found, and what it broke.

use crate::check::check;
use crate::history::{Fault, Flow, History, Kind, Meant, Task, Upon};
use crate::link::Publishing;
use crate::world::{count_panics, run};

fn keeps_every_rule(history: &History) {
    count_panics();
    let seen = run(history, true);
    let broken = check(history, &seen);
    let told: Vec<String> = broken.iter().map(ToString::to_string).collect();
    assert!(broken.is_empty(), "{}\n{}", told.join("\n"), seen.lines.join("\n"));
}

fn task(number: u32) -> Task {
    Task { number, at_ms: 0, is_long: false, priority: 5, runs_ms: 3, meant: Meant::Succeeds, again_ms: None }
}

fn history(seed: u64, tasks: Vec<Task>, faults: Vec<Fault>) -> History {
    History { seed, window: 1_000, shards: 1, together: false, tasks, flows: Vec::new(), faults }
}

fn unconfirmed(at_ms: u32, upon: Upon) -> Fault {
    Fault { at_ms, upon, kind: Kind::Publish(Publishing::Unconfirmed { lands: true }) }
}

/// Sent to its worker, as far as the scheduler knows in vain: while the confirm was waited for it had failed and come back to be tried
/// again. That copy was dropped without an ack, and stayed unacked until the session ended.
#[test]
fn a_copy_that_came_back_before_its_dispatch_was_given_up_is_kept() {
    let fails = Task { at_ms: 5_885, runs_ms: 1_180, meant: Meant::FailsAtFirst(2), ..task(16) };
    keeps_every_rule(&history(136, vec![fails], vec![unconfirmed(6_912, Upon::Scheduler(0))]));
}

/// The same, when it had ended: it was held without anybody's knowing in which line, and went round for ever.
#[test]
fn a_task_that_ended_before_its_dispatch_was_given_up_is_not_held() {
    let fails = Task { is_long: true, runs_ms: 734, meant: Meant::FailsAtFirst(2), ..task(5) };
    let again = Task { meant: Meant::FailsAtFirst(2), again_ms: Some(3_313), priority: 8, ..task(6) };
    keeps_every_rule(&history(328, vec![fails, again], vec![unconfirmed(933, Upon::Scheduler(0))]));
}

/// And when it had failed and was about to come back: the copy that came was taken for a second one of what is held, and acked. Nobody ran
/// it any more until another scheduler took over.
#[test]
fn a_copy_that_comes_back_after_its_dispatch_was_given_up_runs() {
    let fails = Task { at_ms: 400, runs_ms: 9_980, meant: Meant::FailsAtFirst(1), ..task(1) };
    let faults = [0, 1].map(|scheduler| unconfirmed(300, Upon::Scheduler(scheduler)));
    keeps_every_rule(&history(1, vec![fails], faults.into()));
}

/// It was handed to its scheduler to be watched over and ended just then, before the ack was sent: that was dropped with the attempt.
#[test]
fn what_is_handed_on_as_it_ends_is_acked() {
    for runs_ms in 2_995..3_040 {
        keeps_every_rule(&history(1, vec![Task { is_long: true, runs_ms, ..task(1) }], Vec::new()));
    }
}

/// It fails a moment after it was to be claimed late: the claim was carried out after the attempt was given back. It held the task, which was
/// then taken for another attempt's, acked, and lost.
#[test]
fn what_fails_as_it_is_claimed_late_is_tried_again() {
    for seed in 0..20 {
        for runs_ms in 96..112 {
            let fails = Task { runs_ms, meant: Meant::FailsAtFirst(1), ..task(1) };
            keeps_every_rule(&history(seed, vec![fails], Vec::new()));
        }
    }
}

/// Its worker had claimed it before the broker had written down what it was dispatched by, and the broker was killed. What it was published
/// by came again, was taken for one too many because it ran, and was acked: with its worker's end it was lost.
#[test]
fn what_runs_when_the_broker_loses_what_it_was_dispatched_by_outlives_its_worker() {
    for seed in 0..8 {
        for at_ms in 30..70 {
            let runs = Task { is_long: true, runs_ms: 800, ..task(1) };
            let crash = Fault { at_ms, upon: Upon::All, kind: Kind::Crash { acks_lost: false, away_ms: 100 } };
            let kills = [0, 1].map(|worker| Fault {
                at_ms: at_ms + 400,
                upon: Upon::Worker(worker),
                kind: Kind::Kill { lands: false, down_ms: 100 },
            });
            let faults = [crash].into_iter().chain(kills).collect();
            keeps_every_rule(&history(seed, vec![runs], faults));
        }
    }
}

/// A worker's word that a step had ended was lost, and then its record. When the same workflow was published again, the step was taken for the one
/// that had been dispatched, and acked.
#[test]
fn what_comes_again_under_the_id_of_what_is_thought_to_run_is_looked_after() {
    let unheard =
        Fault { at_ms: 1_208, upon: Upon::Worker(0), kind: Kind::Publish(Publishing::Unconfirmed { lands: false }) };
    let flush = Fault { at_ms: 3_414, upon: Upon::All, kind: Kind::Flush };
    let flow = Flow { number: 1, at_ms: 1_797, meant: Meant::Fails, again_ms: Some(5_312) };
    keeps_every_rule(&History { flows: vec![flow], ..history(102_046, Vec::new(), vec![unheard, flush]) });
}
