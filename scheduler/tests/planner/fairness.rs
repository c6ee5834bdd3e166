//! What tenants get of each other's time: in scripts, and in small simulations against a tenant that floods.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use taskyard_scheduler::planner::policy::{Cmu, by_name};
use taskyard_scheduler::planner::{Arrival, Decision, Fairness, Planner, Ran, TenantLimits, WaitReason};
use taskyard_shared::Priority;

use super::{SECOND, arrival, dispatched, id};

/// Start-time fair queueing alone: no allowance and no floors.
fn strictly_fair() -> Planner {
    Planner::new(by_name("fair", Some(10.0)).unwrap())
}

fn of(tenant: &str, task: Arrival) -> Arrival {
    Arrival { tenant: tenant.into(), ..task }
}

/// Serves `many` tasks on one slot, each of which takes as long as expected, and answers how many each tenant had.
fn serve(planner: &mut Planner, many: usize, now_us: u64, tenants: &BTreeMap<u128, &str>) -> BTreeMap<String, usize> {
    planner.handle_load("m", 1);
    let mut served = BTreeMap::new();
    for _ in 0..many {
        let task = dispatched(planner, now_us);
        let tenant = tenants[&(task.0.as_u128() & 0xffff_ffff_ffff)];
        *served.entry(tenant.to_owned()).or_default() += 1;
        assert!(planner.handle_completion(task, None));
    }
    served
}

#[test]
fn tenants_that_wait_share_by_weight_however_much_each_sends() {
    let mut planner = strictly_fair();
    planner.handle_tenant("b", TenantLimits { weight: 2.0, ..TenantLimits::default() });
    let mut tenants = BTreeMap::new();
    for (number, tenant) in ["a"; 900].into_iter().chain(["b"; 90]).chain(["c"; 60]).enumerate() {
        tenants.insert(number as u128, tenant);
        planner.handle_arrival(of(tenant, arrival(number as u128, 4, 1.0)), number as u64).unwrap();
    }
    let served = serve(&mut planner, 120, 1000, &tenants);
    assert_eq!(served, BTreeMap::from([("a".into(), 30), ("b".into(), 60), ("c".into(), 30)]));
    // The rest is the others' when one has no more.
    let served = serve(&mut planner, 90, 1000, &tenants);
    assert_eq!((served["b"], served["a"] + served["c"]), (30, 60));
}

#[test]
fn measured_seconds_replace_the_expected_ones() {
    let mut planner = strictly_fair();
    planner.handle_load("m", 1);
    for number in 0..40 {
        planner.handle_arrival(of(["a", "b"][number % 2], arrival(number as u128, 4, 1.0)), number as u64).unwrap();
    }
    // All are expected to take a second; those of `a` take three.
    let mut seconds = [0.0; 2];
    for _ in 0..20 {
        let task = dispatched(&mut planner, 1000);
        let tenant = (task.0.as_u128() & 1) as usize;
        let ran_seconds = [3.0, 1.0][tenant];
        seconds[tenant] += ran_seconds;
        planner.handle_completion(task, Some(Ran { seconds: ran_seconds, whole: true }));
    }
    assert_eq!(seconds, [15.0, 15.0], "equal time, not equal numbers");
}

#[test]
fn who_comes_back_is_level_with_the_others_and_has_put_nothing_by() {
    let mut planner = strictly_fair();
    let mut tenants = BTreeMap::new();
    for number in 0..300 {
        tenants.insert(number, "a");
        planner.handle_arrival(of("a", arrival(number, 4, 1.0)), 0).unwrap();
    }
    serve(&mut planner, 100, 1000, &tenants);
    for number in 300..400 {
        tenants.insert(number, "late");
        planner.handle_arrival(of("late", arrival(number, 4, 1.0)), 1000).unwrap();
    }
    let served = serve(&mut planner, 20, 1000, &tenants);
    assert_eq!((served["a"], served["late"]), (10, 10), "the time before it came is nobody's");
}

#[test]
fn a_failed_dispatch_costs_its_tenant_nothing() {
    let mut planner = strictly_fair();
    planner.handle_load("m", 1);
    for number in 0..10 {
        planner.handle_arrival(of(["a", "b"][number % 2], arrival(number as u128, 4, 1.0)), number as u64).unwrap();
    }
    for _ in 0..50 {
        assert_eq!(dispatched(&mut planner, 10), id(0));
        assert!(planner.handle_dispatch_failed(id(0)));
    }
    for number in 0..10 {
        assert_eq!(dispatched(&mut planner, 10), id(number), "in turns");
        assert!(planner.handle_completion(id(number), None));
    }
}

#[test]
fn a_tenant_at_its_limit_goes_nowhere_until_one_of_its_tasks_ends() {
    let mut planner = Planner::new(Cmu::default());
    planner.handle_tenant("a", TenantLimits { running_most: Some(2), ..TenantLimits::default() });
    for (number, model) in (0..).zip(["m", "n", "m", "n"]) {
        planner.handle_arrival(of("a", Arrival { model: model.into(), ..arrival(number, 9, 1.0) }), 0).unwrap();
    }
    planner.handle_arrival(of("b", Arrival { model: "n".into(), ..arrival(9, 0, 1.0) }), 0).unwrap();
    planner.handle_load("m", 10);
    planner.handle_load("n", 10);
    let out = [(); 3].map(|()| dispatched(&mut planner, 0));
    assert_eq!(out, [id(0), id(1), id(9)], "others are not held up");
    assert_eq!(planner.poll_decision(0), None);
    for number in [2, 3] {
        assert_eq!(planner.explain(id(number)).unwrap().reason, WaitReason::TenantLimit);
    }
    assert_eq!(planner.stats().waiting(WaitReason::TenantLimit), 2);
    let tenant = planner.stats().tenants.remove(0);
    assert_eq!((&*tenant.tenant, tenant.queued, tenant.running), ("a", 2, 2));

    assert!(planner.handle_completion(id(0), Some(Ran { seconds: 5.0, whole: true })));
    assert_eq!(dispatched(&mut planner, 0), id(2), "there is room again");
    assert_eq!(planner.poll_decision(0), None);
    // A larger limit counts at once, and so does none.
    planner.handle_tenant("a", TenantLimits::default());
    assert_eq!(dispatched(&mut planner, 0), id(3));
    assert!(planner.stats().tenants.is_empty());
}

#[test]
fn limits_set_late_count_what_is_out_already() {
    let mut planner = Planner::new(Cmu::default());
    planner.handle_load("m", 10);
    for number in 0..4 {
        planner.handle_arrival(arrival(number, 9, 1.0), number as u64).unwrap();
    }
    assert_eq!([(); 2].map(|()| dispatched(&mut planner, 9)), [id(0), id(1)]);
    planner.handle_tenant("t", TenantLimits { running_most: Some(2), ..TenantLimits::default() });
    assert_eq!(planner.poll_decision(9), None);
    assert!(planner.handle_dispatch_failed(id(1)));
    assert_eq!(dispatched(&mut planner, 9), id(1));
    assert!(planner.handle_completion(id(0), None) && planner.handle_completion(id(1), None));
    assert_eq!([(); 2].map(|()| dispatched(&mut planner, 9)), [id(2), id(3)]);
}

#[test]
fn a_paused_model_dispatches_nothing_and_its_deadlines_pass() {
    let mut planner = Planner::new(Cmu::default());
    planner.handle_load("m", 10);
    assert!(planner.handle_pause("m", true) && !planner.handle_pause("m", true));
    planner.handle_arrival(Arrival { deadline_us: Some(SECOND), ..arrival(1, 9, 0.1) }, 0).unwrap();
    planner.handle_arrival(arrival(2, 9, 0.1), 0).unwrap();
    planner.handle_arrival(Arrival { model: "n".into(), ..arrival(3, 0, 0.1) }, 0).unwrap();
    planner.handle_load("n", 1);
    assert_eq!(dispatched(&mut planner, 0), id(3), "others go on");
    assert_eq!(planner.poll_decision(0), None);
    assert_eq!(planner.explain(id(2)).unwrap().reason, WaitReason::Paused);
    assert_eq!(planner.stats().waiting(WaitReason::Paused), 2);
    assert_eq!(planner.poll_decision(SECOND), Some(Decision::Expire { id: id(1), model: "m".into() }));
    assert!(planner.handle_pause("m", false));
    assert_eq!(dispatched(&mut planner, SECOND), id(2));
    // A pause is remembered without workers and tasks, and forgotten when it ends.
    assert!(planner.handle_pause("later", true));
    assert_eq!(planner.stats().models.len(), 3);
    assert!(planner.handle_pause("later", false) && !planner.handle_pause("never", false));
    assert_eq!(planner.stats().models.len(), 2);
}

#[test]
fn a_task_gets_another_priority_and_keeps_its_age() {
    let mut planner = super::planner("cmu");
    for number in 0..3 {
        planner.handle_arrival(arrival(number, 4, 1.0), number as u64 * SECOND).unwrap();
    }
    let later = Arrival { not_before_us: Some(4 * SECOND), ..arrival(3, 0, 1.0) };
    planner.handle_arrival(later, 2 * SECOND).unwrap();
    assert!(planner.handle_reprioritize(id(2), Priority::try_from(9).unwrap()));
    assert!(planner.handle_reprioritize(id(3), Priority::try_from(9).unwrap()));
    assert!(!planner.handle_reprioritize(id(7), Priority::try_from(9).unwrap()), "there is no such task");
    assert_eq!(planner.explain(id(2)).unwrap().arrival_us, 2 * SECOND);
    planner.handle_load("m", 1);
    assert_eq!(dispatched(&mut planner, 3 * SECOND), id(2));
    assert!(!planner.handle_reprioritize(id(2), Priority::try_from(0).unwrap()), "it is out");
    assert!(planner.handle_completion(id(2), None));
    // Back among those of its first priority, it has its old place among them.
    assert!(planner.handle_reprioritize(id(0), Priority::try_from(1).unwrap()));
    assert!(planner.handle_reprioritize(id(0), Priority::try_from(4).unwrap()));
    assert_eq!(dispatched(&mut planner, 4 * SECOND), id(3));
    assert!(planner.handle_completion(id(3), None));
    assert_eq!(dispatched(&mut planner, 4 * SECOND), id(0));
}

#[test]
fn one_over_its_share_is_told_so() {
    let fairness = Fairness { allowance: Some(2.0), ..Fairness::default() };
    let mut planner = Planner::new(Cmu::default()).with_fairness(fairness);
    planner.handle_load("m", 1);
    for number in 0..20 {
        planner.handle_arrival(of("flood", arrival(number, 9, 1.0)), 0).unwrap();
    }
    planner.handle_arrival(of("b", arrival(99, 0, 1.0)), 0).unwrap();
    let order: Vec<_> = (0..5)
        .map(|_| {
            let task = dispatched(&mut planner, 0);
            planner.handle_completion(task, None);
            task
        })
        .collect();
    // With an allowance of two runs it has three before the other's turn, which the policy alone would put last.
    assert_eq!(order, [0, 1, 2, 99, 3].map(id));
    // Who comes back has kept its lead of three.
    planner.handle_arrival(of("b", arrival(100, 0, 1.0)), 0).unwrap();
    planner.handle_arrival(of("b", arrival(101, 0, 1.0)), 0).unwrap();
    assert_eq!(planner.explain(id(7)).unwrap().reason, WaitReason::NextDecision);
    assert_eq!(dispatched(&mut planner, 0), id(100));
    let explanation = planner.explain(id(7)).unwrap();
    assert_eq!(explanation.reason, WaitReason::FairShare);
    assert_eq!(planner.stats().waiting(WaitReason::FairShare), 16);
    // Within the allowance the policy's order is kept again.
    assert!(planner.handle_completion(id(100), None));
    assert_eq!(dispatched(&mut planner, 0), id(4));
}

/// Nobody puts by more than the credit, however long it was away.
#[test]
fn a_lead_is_kept_up_to_the_credit() {
    let fairness = Fairness { allowance: Some(2.0), ..Fairness::default() };
    let mut planner = Planner::new(Cmu::default()).with_fairness(fairness);
    let mut tenants = BTreeMap::from([(0, "b")]);
    planner.handle_arrival(of("b", arrival(0, 4, 1.0)), 0).unwrap();
    for number in 1..300 {
        tenants.insert(number, "a");
        planner.handle_arrival(of("a", arrival(number, 9, 1.0)), 0).unwrap();
    }
    assert_eq!(serve(&mut planner, 10, 1000, &tenants)["b"], 1);
    for number in 300..400 {
        tenants.insert(number, "b");
        planner.handle_arrival(of("b", arrival(number, 4, 1.0)), 1000).unwrap();
    }
    // It is three runs behind the level at most, and one of them is beyond the allowance.
    let first = serve(&mut planner, 2, 1000, &tenants);
    assert_eq!(first.get("b"), Some(&1), "{first:?}");
    let served = serve(&mut planner, 60, 1000, &tenants);
    assert!((29..=31).contains(&served["b"]), "and the same share from then on: {served:?}");
}

/// What comes to one model of some slots, and how it went.
struct Yard {
    slots: usize,
    seconds: f64,
    streams: Vec<Stream>,
    seed: u64,
}

#[derive(Clone)]
struct Stream {
    tenant: &'static str,
    /// Tasks a second.
    rate: f64,
    priorities: &'static [u8],
    /// Mean run times, which are what is expected; the true ones are exponential.
    means: &'static [f64],
}

#[derive(Default)]
struct Outcome {
    /// By tenant, in seconds.
    waits: BTreeMap<&'static str, Vec<f64>>,
    served: BTreeMap<&'static str, f64>,
    /// Σ (priority + 1) × seconds from arrival to completion.
    weighted: f64,
}

impl Outcome {
    fn p99(&mut self, tenant: &str) -> f64 {
        let waits = self.waits.get_mut(tenant).unwrap();
        waits.sort_by(f64::total_cmp);
        waits[waits.len() * 99 / 100]
    }
}

struct Random(u64);

impl Random {
    /// Above 0, at most 1.
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) as f64 + 1.0) / (1u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[(self.unit() * of.len() as f64) as usize % of.len()]
    }
}

impl Yard {
    fn run(&self, mut planner: Planner) -> Outcome {
        let mut random = Random(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut arrivals: Vec<(u64, usize, u8, f64, f64)> = Vec::new();
        for (of, stream) in self.streams.iter().enumerate() {
            let mut at = random.exponential(1.0 / stream.rate);
            while at < self.seconds {
                let mean = random.one_of(stream.means);
                let priority = random.one_of(stream.priorities);
                arrivals.push(((at * 1e6) as u64, of, priority, mean, random.exponential(mean)));
                at += random.exponential(1.0 / stream.rate);
            }
        }
        arrivals.sort_by_key(|arrival| arrival.0);
        planner.handle_load("m", self.slots);
        let mut outcome = Outcome::default();
        let mut running: BinaryHeap<Reverse<(u64, u128)>> = BinaryHeap::new();
        let mut next = 0;
        let end_us = (self.seconds * 1e6) as u64;
        loop {
            let arrives_us = arrivals.get(next).map_or(u64::MAX, |arrival| arrival.0);
            let ends_us = running.peek().map_or(u64::MAX, |Reverse((at_us, _))| *at_us);
            let now_us = arrives_us.min(ends_us);
            if now_us >= end_us {
                return outcome;
            }
            if ends_us <= arrives_us {
                running.pop().into_iter().for_each(|Reverse((_, number))| {
                    let (came_us, of, priority, _, seconds) = arrivals[number as usize];
                    planner.handle_completion(id(number), Some(Ran { seconds, whole: true }));
                    *outcome.served.entry(self.streams[of].tenant).or_default() += seconds;
                    outcome.weighted += (f64::from(priority) + 1.0) * (now_us - came_us) as f64 / 1e6;
                });
            } else {
                let (_, of, priority, mean, _) = arrivals[next];
                let task = Arrival { tenant: self.streams[of].tenant.into(), ..arrival(next as u128, priority, mean) };
                planner.handle_arrival(task, now_us).unwrap();
                next += 1;
            }
            while let Some(Decision::Dispatch { id: task, .. }) = planner.poll_decision(now_us) {
                let number = task.0.as_u128() & 0xffff_ffff_ffff;
                let (came_us, of, _, _, seconds) = arrivals[number as usize];
                running.push(Reverse((now_us + (seconds * 1e6) as u64, number)));
                outcome.waits.entry(self.streams[of].tenant).or_default().push((now_us - came_us) as f64 / 1e6);
            }
        }
    }
}

const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
const ANY_PRIORITY: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9];

/// Ten tenants on ten slots, each at so many times its share.
fn ten(loads: impl Fn(usize) -> f64, seconds: f64) -> Yard {
    let stream = |(number, &tenant)| Stream { tenant, rate: loads(number), priorities: ANY_PRIORITY, means: &[1.0] };
    Yard { slots: 10, seconds, streams: NAMES.iter().enumerate().map(stream).collect(), seed: 1 }
}

#[test]
fn beside_one_that_floods_the_others_wait_no_longer_than_alone_on_their_share() {
    for load in [0.5, 0.7] {
        let mut flooded = ten(|number| if number == 0 { 100.0 } else { load }, 600.0).run(Planner::new(Cmu::default()));
        let worst = NAMES[1..].iter().map(|name| flooded.p99(name)).fold(0.0, f64::max);
        let own = Yard { slots: 1, streams: vec![ten(|_| load, 0.0).streams[1].clone()], seconds: 20_000.0, seed: 1 };
        let alone = own.run(super::planner("cmu")).p99(NAMES[1]);
        assert!(worst < 1.2 * alone, "load {load}: {worst} s, alone {alone} s");
        assert!(flooded.served.values().sum::<f64>() > 0.95 * 6_000.0, "what the others leave is used");
    }
}

#[test]
fn tenants_that_all_ask_for_more_than_their_share_get_the_same() {
    let outcome = ten(|number| 1.5 + 5.0 * number as f64, 400.0).run(Planner::new(Cmu::default()));
    let (sum, squares) = outcome.served.values().fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
    let jain = sum * sum / (10.0 * squares);
    assert!(jain > 0.98, "{jain}");
}

#[test]
fn within_their_shares_tenants_are_served_in_the_policys_order() {
    let pure = ten(|_| 0.8, 2_000.0).run(super::planner("cmu")).weighted;
    let with_default = Planner::new(Cmu::new(10.0));
    let fair = ten(|_| 0.8, 2_000.0).run(with_default).weighted;
    assert!(fair < 1.03 * pure, "{fair} against {pure}");
}

#[test]
fn beside_one_that_floods_the_others_wait_no_longer_than_together_on_what_is_theirs() {
    // Where alone a slot is mostly free, they wait for one beside the flood.
    for (load, most) in [(0.5, 1.3), (0.7, 1.2), (0.8, 1.2), (0.9, 1.2)] {
        let five = |names: &[&'static str], noisy: f64, seconds| {
            let stream = |(number, &tenant): (usize, &&'static str)| {
                let load = if number == 0 { noisy } else { load };
                Stream { tenant, rate: load * 10.0, priorities: ANY_PRIORITY, means: &[0.1] }
            };
            let streams = names.iter().enumerate().map(stream).collect();
            Yard { slots: names.len(), seconds, streams, seed: 1 }
        };
        let of = |mut outcome: Outcome, names: &[&'static str]| {
            let waits = names.iter().flat_map(|name| outcome.waits.remove(name).unwrap());
            let mut all = Outcome { waits: BTreeMap::from([("all", waits.collect())]), ..Outcome::default() };
            all.p99("all")
        };
        let flooded = of(five(&NAMES[..5], 100.0, 600.0).run(Planner::new(Cmu::new(10.0))), &NAMES[1..5]);
        let alone = of(five(&NAMES[1..5], load, 6000.0).run(Planner::new(Cmu::new(10.0))), &NAMES[1..5]);
        assert!(flooded < most * alone, "load {load}: {flooded} s, alone {alone} s");
    }
}
