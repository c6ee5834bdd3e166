//! Finds dispatched tasks that nobody holds any more: a completion that never came keeps its credit taken.

use std::collections::HashSet;
use std::time::Duration;

use taskyard_shared::TaskId;
use tokio::time::Instant;
use tracing::info;

use crate::core::{Core, GROUP};
use crate::planner::Stats;

/// A dispatched task of which neither queue nor workers know is forgotten after so long.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// A model of which nothing was heard for a while, though tasks of it are out.
pub(crate) struct Quiet {
    pub model: String,
    /// Those that have been out for long, when other schedulers have tasks of it out too: a count does not tell whose are lost.
    pub tasks: Vec<TaskId>,
}

impl Core {
    /// The models that are to be counted.
    pub fn quiet(&self, stats: &Stats) -> Vec<Quiet> {
        let out = stats.models.iter().filter(|model| model.outstanding > 0).map(|model| model.model.to_string());
        out.filter(|model| self.last_completion.get(model).is_none_or(|last| last.elapsed() > LOST_AFTER / 2))
            .map(|model| Quiet { tasks: self.out_for_long(&model), model })
            .collect()
    }

    fn out_for_long(&self, model: &str) -> Vec<TaskId> {
        match self.shard.of {
            1 => Vec::new(),
            _ => self.out_since_before(model, Instant::now()).take(GROUP).collect(),
        }
    }

    /// Tasks of a model that had been out at `at` for so long that they may be lost, the longest out first.
    fn out_since_before(&self, model: &str, at: Instant) -> impl Iterator<Item = TaskId> {
        let before = at.checked_sub(LOST_AFTER).unwrap_or(at);
        let out = self.outstanding.iter().filter(|(_, task)| task.model == model && task.at < before);
        let mut out: Vec<_> = out.map(|(&id, task)| (task.at, id)).collect();
        out.sort_unstable();
        out.into_iter().map(|(_, id)| id)
    }

    /// Credits whose completion never came are given back, once neither queue nor workers hold the tasks, or they have ended.
    pub fn reconcile(&mut self, model: &str, tasks: usize, ended: Vec<TaskId>, at: Instant) {
        let ended: HashSet<TaskId> = ended.into_iter().collect();
        let more = self.planner.outstanding(model).saturating_sub(tasks + ended.len());
        let (mut lost, others): (Vec<TaskId>, Vec<TaskId>) =
            self.out_since_before(model, at).partition(|id| ended.contains(id));
        lost.extend(others.into_iter().take(more));
        for id in &lost {
            self.outstanding.remove(id);
            self.planner.handle_completion(*id, None);
        }
        if !lost.is_empty() {
            info!(task.model = model, tasks = lost.len(), "credits of tasks that nobody holds are given back");
            self.metrics.credits_reclaimed(lost.len());
        }
    }
}
