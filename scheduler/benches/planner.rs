//! How many tasks a second one core admits, decides and completes with a million waiting, and what they take in memory.
//!
//! `cargo bench -p taskyard-scheduler` prints one row per scenario and policy: the median of three runs, each in a
//! process of its own, so that the memory one run gave back does not hide what the next one takes. Seconds are those
//! the process had a core, as the kernel counts them. Memory is the growth of the resident set while the backlog is
//! built, and the backlog is all that the process keeps.

use std::process::{Command, Stdio};
use std::time::Duration;

use taskyard_scheduler::planner::policy::by_name;
use taskyard_scheduler::planner::{Arrival, Decision, Planner, Prior, Ran};
use taskyard_shared::{Kind, Priority, TaskId};

const RUNS: usize = 3;
const POLICIES: [&str; 5] = ["cmu", "fifo", "strict", "edf", "wspt"];

/// A backlog's shape. Classes are models × priorities × costs × tenants.
struct Scenario {
    name: &'static str,
    models: u64,
    costs: u64,
    tenants: u64,
    deadlines: bool,
}

const SCENARIOS: [Scenario; 5] = [
    Scenario { name: "1,000 classes", models: 100, costs: 1, tenants: 1, deadlines: false },
    Scenario { name: "1,000 classes, deadlines", models: 100, costs: 1, tenants: 1, deadlines: true },
    Scenario { name: "one model, 1,000 tenants", models: 1, costs: 1, tenants: 1000, deadlines: false },
    Scenario { name: "one model, 40 costs", models: 1, costs: 40, tenants: 1, deadlines: false },
    Scenario { name: "a million tenants", models: 1, costs: 1, tenants: 1_000_000, deadlines: false },
];

impl Scenario {
    fn arrival(&self, number: u64, waiting: u64) -> Arrival {
        let (model, number_of_model) = (number % self.models, number / self.models);
        let (priority, number_of_priority) = (number_of_model % 10, number_of_model / 10);
        let (cost, number_of_cost) = (number_of_priority % self.costs, number_of_priority / self.costs);
        Arrival {
            id: TaskId::new(),
            model: format!("model-{model}"),
            tenant: format!("tenant-{}", number_of_cost % self.tenants),
            priority: Priority::try_from(priority as u8).unwrap_or_default(),
            kind: Kind::Prediction,
            cost: Some(f64::powf(2.0, cost as f64 / 2.0)),
            expected: None,
            deadline_us: self.deadlines.then(|| number + waiting + 10_000_000 * (1 + number * 7919 % 100)),
            due_us: None,
            not_before_us: None,
            arrived_us: None,
            is_known: false,
        }
    }

    fn fill(&self, policy: &str, waiting: u64) -> Planner {
        let mut planner = Planner::new(by_name(policy, None).expect("a policy's name"));
        for model in 0..self.models {
            planner.handle_model(&format!("model-{model}"), Prior { expected_seconds: Some(0.001) });
        }
        for number in 0..waiting {
            assert_eq!(planner.handle_arrival(self.arrival(number, waiting), number), Ok(()));
        }
        for model in 0..self.models {
            planner.handle_load(&format!("model-{model}"), 1);
        }
        planner
    }

    /// Tasks a second, in a steady state where each round admits one, dispatches one and completes it; and the bytes
    /// that each waiting task takes.
    fn measure(&self, policy: &str, waiting: u64, rounds: u64) -> (f64, f64) {
        let resident_before = resident_bytes();
        let mut planner = self.fill(policy, waiting);
        let bytes = (resident_bytes() - resident_before) / waiting as f64;
        let arrivals: Vec<Arrival> = (waiting..waiting + rounds).map(|number| self.arrival(number, waiting)).collect();
        let ran = Ran { seconds: 0.001, whole: true };
        let start = core_time();
        for (now_us, arrival) in (waiting..).zip(arrivals) {
            assert_eq!(planner.handle_arrival(arrival, now_us), Ok(()));
            match planner.poll_decision(now_us) {
                Some(Decision::Dispatch { id, .. }) => assert!(planner.handle_completion(id, Some(ran))),
                other => panic!("a free credit and a full lane gave {other:?}"),
            }
        }
        (rounds as f64 / (core_time() - start).as_secs_f64(), bytes)
    }
}

/// Every deadline passes at once: milliseconds to the first decision, and expiries told a second over all.
fn measure_expiry(policy: &str, waiting: u64) -> (f64, f64) {
    let scenario = &SCENARIOS[1];
    let mut planner = scenario.fill(policy, waiting);
    let start = core_time();
    let mut first_ms = None;
    let mut told = 0;
    while let Some(decision) = planner.poll_decision(u64::MAX) {
        first_ms.get_or_insert_with(|| (core_time() - start).as_secs_f64() * 1e3);
        assert!(matches!(decision, Decision::Expire { .. }));
        told += 1;
    }
    assert_eq!(told, waiting);
    (first_ms.unwrap_or(f64::NAN), waiting as f64 / (core_time() - start).as_secs_f64())
}

/// How long this process, which has one thread, has had a core.
fn core_time() -> Duration {
    let statistics =
        std::fs::read_to_string("/proc/self/schedstat").expect("the kernel's count of this process's time");
    let nanoseconds = statistics.split_whitespace().next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.expect("a number of nanoseconds"))
}

/// The resident set of this process, as the kernel counts it.
fn resident_bytes() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("the kernel's count of this process's pages");
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<f64>().ok());
    pages.expect("a number of pages") * 4096.0
}

/// Two numbers from each of three children, and the median of each.
fn median_of_children(what: &str, policy: &str) -> (f64, f64) {
    let mut runs: Vec<(f64, f64)> = (0..RUNS)
        .map(|_| {
            let child = Command::new(std::env::current_exe().expect("this program's path"))
                .args(["--child", what, policy])
                .stderr(Stdio::inherit())
                .output()
                .expect("this program starts");
            let text = String::from_utf8(child.stdout).expect("numbers");
            let mut numbers = text.split_whitespace().map(|number| number.parse().expect("a number"));
            (numbers.next().expect("a first number"), numbers.next().expect("a second number"))
        })
        .collect();
    let mut median = |of: fn(&(f64, f64)) -> f64| {
        runs.sort_by(|a, b| of(a).total_cmp(&of(b)));
        of(&runs[RUNS / 2])
    };
    (median(|run| run.0), median(|run| run.1))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [child, what, policy] = &arguments[..]
        && child == "--child"
    {
        let (first, second) = match SCENARIOS.iter().find(|scenario| scenario.name == what) {
            Some(scenario) => scenario.measure(policy, 1_000_000, 1_000_000),
            None => measure_expiry(policy, 1_000_000),
        };
        println!("{first} {second}");
        return;
    }
    // Without `--bench` it is a test run: that each scenario runs through is all there is to see.
    if !arguments.iter().any(|argument| argument == "--bench") {
        for policy in POLICIES {
            for scenario in &SCENARIOS {
                scenario.measure(policy, 1000, 1000);
            }
            measure_expiry(policy, 1000);
        }
        return;
    }
    println!("{:<28}{:<8}{:>12}{:>12}", "a million waiting", "policy", "tasks/s", "bytes/task");
    for (number, scenario) in SCENARIOS.iter().enumerate() {
        // The first is the one with a target; of the others, the default and the one that keeps trees tell enough.
        for policy in if number == 0 { &POLICIES[..] } else { &["cmu", "edf"] } {
            let (rate, bytes) = median_of_children(scenario.name, policy);
            println!("{:<28}{policy:<8}{rate:>12.0}{bytes:>12.0}", scenario.name);
        }
    }
    println!("{:<28}{:<8}{:>12}{:>12}", "all expire at once", "policy", "expiries/s", "first, ms");
    for policy in ["cmu", "edf"] {
        let (first_ms, rate) = median_of_children("expiry", policy);
        println!("{:<28}{policy:<8}{rate:>12.0}{first_ms:>12.0}", "");
    }
}
