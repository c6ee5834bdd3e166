//! Runs tasks whose times are known once more, on one model, in another order.

use taskyard_shared::Kind;

use super::engine::{self, Fate};
use super::planned::Planned;
use super::policies::PolicySpec;
use super::scenario::Scenario;
use super::workload::{Model, NO_DEADLINE, Task, TenantShare, Workload};

/// A task that ran, times in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Replayed {
    pub arrival_us: u64,
    pub run_us: u64,
    pub priority: u8,
}

/// When each of the tasks, which are in the order of their arrival, ends on so many slots under a policy that knows how
/// long each runs. All count as one tenant's, and without deadlines. `None` when there is no such policy.
pub(crate) fn replay(tasks: &[Replayed], slots: usize, policy: &str) -> Option<Vec<u64>> {
    let spec: PolicySpec = format!("{policy}@true").parse().ok()?;
    let task = |task: &Replayed| Task {
        arrival_us: task.arrival_us,
        service_us: task.run_us.max(1),
        deadline_us: NO_DEADLINE,
        model: 0,
        tenant: 0,
        class: 0,
        kind: Kind::default(),
        priority: task.priority,
        cost: 0.0,
        noise: 1.0,
    };
    let workload = Workload {
        tasks: tasks.iter().map(task).collect(),
        models: vec![Model { name: "model".to_owned(), slots }],
        tenants: vec![TenantShare { name: "tenant".to_owned(), weight: 1.0 }],
        class_mean_s: Vec::new(),
        jump_us: None,
    };
    let scenario = Scenario::default();
    let mut planned = Planned::new(&spec, &scenario, &workload)?;
    let course = engine::run(&workload, &scenario, 0, &mut planned);
    let all_done = course.faults == 0 && course.ends.iter().all(|end| end.fate == Fate::Done);
    all_done.then(|| course.ends.iter().map(|end| end.ended_us).collect())
}

#[cfg(test)]
mod tests {
    use super::{Replayed, replay};

    #[test]
    fn the_same_tasks_end_in_another_order() {
        let task = |arrival_us, run_us| Replayed { arrival_us, run_us, priority: 5 };
        let tasks = [task(0, 10_000), task(1, 50_000), task(2, 1_000), task(3, 5_000)];
        assert_eq!(replay(&tasks, 1, "fifo"), Some(vec![10_000, 60_000, 61_000, 66_000]));
        assert_eq!(replay(&tasks, 1, "wspt"), Some(vec![10_000, 66_000, 11_000, 16_000]));
        assert_eq!(replay(&tasks, 4, "fifo"), Some(vec![10_000, 50_001, 1_002, 5_003]));
        assert_eq!(replay(&tasks, 1, "no such policy"), None);
        assert_eq!(replay(&[], 1, "fifo"), Some(vec![]));
    }
}
