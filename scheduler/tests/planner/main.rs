//! The planner as scripts, as properties over any sequence of events, and as snapshots of its whole state.

mod allocation;
mod deadlines;
mod fairness;
mod naive;
mod overload;
mod properties;
mod scripts;
mod snapshots;
mod starvation;

use taskyard_scheduler::planner::policy::by_name;
use taskyard_scheduler::planner::{Arrival, Decision, Estimate, Fairness, Planner};
use taskyard_shared::{Kind, Priority, TaskId};

const SECOND: u64 = 1_000_000;
const POLICIES: [&str; 6] = ["cmu", "fair", "fifo", "strict", "edf", "wspt"];

fn id(number: u128) -> TaskId {
    serde_json::from_value(serde_json::json!(format!("00000000-0000-7000-8000-{number:012x}"))).unwrap()
}

fn arrival(number: u128, priority: u8, expected_seconds: f64) -> Arrival {
    Arrival {
        id: id(number),
        model: "m".into(),
        tenant: "t".into(),
        priority: Priority::try_from(priority).unwrap(),
        kind: Kind::Prediction,
        cost: None,
        expected: Some(Estimate::exact(expected_seconds)),
        deadline_us: None,
        due_us: None,
        not_before_us: None,
        arrived_us: None,
        is_known: false,
    }
}

/// The policy and nothing beside it.
fn planner(policy: &str) -> Planner {
    Planner::new(by_name(policy, Some(10.0)).unwrap()).with_fairness(Fairness::default())
}

/// The task that is dispatched now.
fn dispatched(planner: &mut Planner, now_us: u64) -> TaskId {
    match planner.poll_decision(now_us) {
        Some(Decision::Dispatch { id, .. }) => id,
        other => panic!("instead of a dispatch: {other:?}"),
    }
}

/// Serves everything on one slot of the model `m` and answers the order.
fn drain(planner: &mut Planner, now_us: u64) -> Vec<TaskId> {
    planner.handle_load("m", 1);
    let mut order = Vec::new();
    while let Some(Decision::Dispatch { id, .. }) = planner.poll_decision(now_us) {
        order.push(id);
        assert!(planner.handle_completion(id, None));
    }
    order
}
