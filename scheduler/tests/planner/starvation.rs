//! The bound on a task's wait under `cmu`, which the planner's README derives, against random work; and what floors give each band.

use proptest::prelude::*;
use taskyard_scheduler::planner::policy::Cmu;
use taskyard_scheduler::planner::{Arrival, Decision, Fairness, Late, Planner};

use super::{SECOND, arrival, id};

const AGEING_SECONDS: f64 = 2.0;

#[derive(Clone, Debug)]
struct Work {
    priority: u8,
    cost: u8,
    /// With a deadline so near that its slope is four times as steep from the first.
    urgent: bool,
}

fn work(most: usize) -> impl Strategy<Value = Vec<Work>> {
    let work = (0..10u8, 0..5u8, any::<bool>()).prop_map(|(priority, cost, urgent)| Work { priority, cost, urgent });
    prop::collection::vec(work, 1..most)
}

/// Run times of cost 0 to 4, each the middle of what its bucket holds.
fn seconds(cost: u8) -> f64 {
    0.25 * f64::powi(2.0, cost.into()) * f64::powf(2.0, 0.25)
}

/// Without floors, which are what else holds.
fn pure() -> Planner {
    let mut planner = Planner::new(Cmu::new(AGEING_SECONDS)).with_fairness(Fairness::default());
    planner.set_late(Late::Keep);
    planner
}

struct Slot {
    planner: Planner,
    /// Of the tasks by number, from 1.
    run_seconds: Vec<f64>,
    now_us: u64,
}

impl Slot {
    fn arrive(&mut self, work: &Work) -> f64 {
        let seconds = seconds(work.cost);
        self.run_seconds.push(seconds);
        let deadline_us = work.urgent.then(|| self.now_us + (seconds * 2.5 * SECOND as f64) as u64);
        let number = self.run_seconds.len() as u128;
        let task = Arrival { deadline_us, ..arrival(number, work.priority, seconds) };
        self.planner.handle_arrival(task, self.now_us).unwrap();
        seconds
    }

    /// Runs the next task. Answers whether that was the first of all, which is not run.
    fn run_next(&mut self) -> bool {
        loop {
            match self.planner.poll_decision(self.now_us) {
                Some(Decision::Dispatch { id: task, .. }) => {
                    self.planner.handle_completion(task, None);
                    let number = task.0.as_u128() & 0xffff_ffff_ffff;
                    if number > 0 {
                        self.now_us += (self.run_seconds[number as usize - 1] * SECOND as f64) as u64;
                    }
                    return number == 0;
                }
                Some(Decision::Expire { .. } | Decision::Shed { .. }) => {}
                None => panic!("idle while a task waits"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// One slot is always busy, and as much comes as it can do: at best all of it worth more than the one that waits.
    #[test]
    fn no_task_waits_longer_than_the_bound(backlog in work(8), stream in work(20), cost in 0..5u8) {
        let mut slot = Slot { planner: pure(), run_seconds: Vec::new(), now_us: 0 };
        slot.planner.handle_load("m", 1);
        slot.planner.handle_arrival(arrival(0, 0, seconds(cost)), 0).unwrap();
        let backlog_seconds: f64 = backlog.iter().map(|work| slot.arrive(work)).sum();
        let ratio = 4.0 * 10.0 * seconds(cost) / seconds(0);
        let bound_seconds = ratio * backlog_seconds + (ratio - 1.0) * AGEING_SECONDS;

        let mut stream = stream.iter().cycle();
        let mut next = stream.next().unwrap();
        let mut offered_seconds = 0.0;
        loop {
            while offered_seconds + seconds(next.cost) <= slot.now_us as f64 / 1e6 {
                offered_seconds += slot.arrive(next);
                next = stream.next().unwrap();
            }
            let decided_us = slot.now_us;
            if slot.run_next() {
                break;
            }
            prop_assert!(decided_us as f64 / 1e6 <= bound_seconds, "waits at {decided_us} µs, bound {bound_seconds} s");
        }
        prop_assert!(slot.planner.explain(id(0)).is_none());
    }
}

/// The bound is no mere safe number: the hardest stream comes near to it.
#[test]
fn the_hardest_stream_comes_near_the_bound() {
    let mut slot = Slot { planner: pure(), run_seconds: Vec::new(), now_us: 0 };
    slot.planner.handle_load("m", 1);
    slot.planner.handle_arrival(arrival(0, 0, seconds(2)), 0).unwrap();
    let best = Work { priority: 9, cost: 0, urgent: false };
    slot.arrive(&best);
    while !slot.run_next() {
        slot.arrive(&best);
    }
    // Without deadlines the ratio lacks the factor of 4. The backlog is one run.
    let ratio = 10.0 * seconds(2) / seconds(0);
    let bound_seconds = ratio * seconds(0) + (ratio - 1.0) * AGEING_SECONDS;
    let waited_seconds = slot.now_us as f64 / 1e6;
    assert!((0.85 * bound_seconds..=bound_seconds + seconds(0)).contains(&waited_seconds), "{waited_seconds} s");
}

/// Work of more worth comes as fast as it can be done, for ever, and always some of it waits.
#[test]
fn the_ageing_that_follows_the_mean_wait_serves_the_least_in_the_end() {
    let mut planner = Planner::new(Cmu::default()).with_fairness(Fairness::default());
    planner.handle_load("m", 1);
    planner.handle_arrival(arrival(0, 0, 1.0), 0).unwrap();
    for number in 1..=20 {
        planner.handle_arrival(arrival(number, 9, 1.0), 0).unwrap();
    }
    let served_s = (0..3_000).find(|&second| {
        let now_us = second * SECOND;
        let Some(Decision::Dispatch { id: task, .. }) = planner.poll_decision(now_us) else {
            panic!("the slot is free and tasks wait");
        };
        assert!(planner.handle_completion(task, None));
        planner.handle_arrival(arrival(u128::from(second) + 21, 9, 1.0), now_us).unwrap();
        task == id(0)
    });
    // Twenty wait 20 s. Weighing a tenth, it is level at 24 mean waits times the fourth root of 9.
    let level_s = 24.0 * 20.0 * 9f64.powf(0.25);
    let served_s = served_s.expect("it is served") as f64;
    assert!((0.9..1.1).contains(&(served_s / level_s)), "{served_s} s, not about {level_s} s");
}

/// Ten thousand runs of a second on one slot, while some of each band wait all along, and how many of them each band had. Age counts
/// for nothing, so that floors are all that holds.
fn served(fairness: Fairness) -> [f64; 3] {
    const FIRST: [u8; 3] = [0, 3, 9];
    let mut planner = Planner::new(Cmu::new(1e12)).with_fairness(fairness);
    planner.handle_load("m", 1);
    let mut came = 0;
    let mut come = |planner: &mut Planner, band: usize, now_us: u64| {
        came += 1;
        planner.handle_arrival(arrival(came * 3 + band as u128, FIRST[band], 1.0), now_us).unwrap();
    };
    for band in [0, 1, 2].repeat(20) {
        come(&mut planner, band, 0);
    }
    let mut served = [0.0; 3];
    for second in 0..10_000 {
        let Some(Decision::Dispatch { id: task, .. }) = planner.poll_decision(second * SECOND) else {
            panic!("the slot is free and tasks wait");
        };
        assert!(planner.handle_completion(task, None));
        let band = (task.0.as_u128() & 0xffff_ffff_ffff) as usize % 3;
        served[band] += 1.0;
        come(&mut planner, band, second * SECOND);
    }
    served
}

#[test]
fn while_a_higher_band_has_work_for_ever_each_lower_one_has_its_floor() {
    assert_eq!(served(Fairness::default()), [0.0, 0.0, 10_000.0], "without floors the lower ones starve");
    for floors in [Fairness::FLOORS, [0.1, 0.0, 0.0], [0.0, 0.2, 0.0], [0.3, 0.2, 0.4]] {
        let served = served(Fairness { floors, ..Fairness::default() });
        for band in (0..2).filter(|&band| floors[band] > 0.0) {
            // Its share of what others run covers one of its own, and more is not put by: so many others run between two of it, and one
            // more where a lower band, which goes first, is due as well.
            let others = (1.0 / floors[band]).ceil() + 1.0 + band as f64;
            let (given, least) = (10_000.0 - served[band], (10_000.0 - served[band]) / others - 1.0);
            assert!(served[band] >= least, "{floors:?}: {served:?}, {least} of band {band}");
            assert!(served[band] <= floors[band] * given + 1.0, "{floors:?}: {served:?} of band {band}");
        }
    }
}

#[test]
fn floors_go_with_cmu_alone() {
    for policy in super::POLICIES {
        let floors = Fairness::of_policy(policy, Fairness::ALLOWANCE, Fairness::FLOORS).floors;
        let expected = if policy == "cmu" { Fairness::FLOORS } else { [0.0; 3] };
        assert_eq!(floors, expected, "{policy}");
    }
}
