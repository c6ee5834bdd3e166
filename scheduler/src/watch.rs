//! Watches over tasks that run for so long that their workers may not keep their deliveries: the broker loses patience with whoever
//! does not ack one for long.
//!
//! The worker has sent the task to its shard, and then acked the delivery that it had. What is held here owns the task until it
//! ends: when the lease of its attempt ends instead, it is put in line again, for another worker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::TaskId;
use taskyard_shared::store::{Leased, Store, StoreError};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::core::{Core, GROUP};
use crate::held::Held;

/// Leases are looked at so often.
const EVERY: Duration = Duration::from_secs(2);
/// A task that has ended is told of by its worker. If nothing was heard of that for so long, it is told again.
const UNTOLD_FOR: Duration = Duration::from_secs(10);
/// Without a record nobody knows whether it runs: a store that was emptied has forgotten that. It is run again after so long.
const UNKNOWN_FOR: Duration = Duration::from_secs(60);

struct Watched {
    /// Its receipt is nothing while its copy is on its way round through the broker.
    task: Held,
    /// Since when the store says that it has ended, or knows nothing of it.
    odd_since: Option<Instant>,
}

#[derive(Default)]
pub(crate) struct Watch {
    tasks: BTreeMap<TaskId, Watched>,
    asked: Option<Instant>,
    asking: JoinSet<Result<Vec<(TaskId, Leased)>, StoreError>>,
}

impl Watch {
    pub fn holds(&self, id: TaskId) -> bool {
        self.tasks.contains_key(&id)
    }

    pub fn len(&self) -> usize {
        self.tasks.len()
    }
}

impl Core {
    /// Tasks that run for long, from their workers or from their way round.
    pub fn watch(&mut self, tasks: Vec<Held>) {
        for task in tasks {
            let before = self.watch.tasks.remove(&task.envelope.id);
            let odd_since = before.as_ref().and_then(|before| before.odd_since);
            self.watch.tasks.insert(task.envelope.id, Watched { task, odd_since });
            if let Some(before) = before {
                self.ack(before.task.receipt.into_iter().collect());
            }
        }
    }

    /// It has ended, or waits again with a delivery of its own.
    pub fn stop_watching(&mut self, id: TaskId) {
        if let Some(watched) = self.watch.tasks.remove(&id) {
            self.ack(watched.task.receipt.into_iter().collect());
        }
    }

    /// Once a second.
    pub fn look_after_long_tasks(&mut self) {
        while let Some(answer) = self.watch.asking.try_join_next() {
            match answer {
                Ok(Ok(leased)) => leased.into_iter().for_each(|(id, leased)| self.heed(id, leased)),
                Ok(Err(failure)) => {
                    debug!(%failure, "the leases of long tasks cannot be read: they are taken to run");
                    self.metrics.store_failed("leased");
                }
                Err(broken) => warn!(%broken, "the leases of long tasks were not read"),
            }
        }
        let is_due = self.watch.asked.is_none_or(|asked| asked.elapsed() >= EVERY);
        if is_due && self.watch.asking.is_empty() && !self.watch.tasks.is_empty() {
            self.watch.asked = Some(Instant::now());
            let ids = self.watch.tasks.keys().copied().collect();
            self.watch.asking.spawn(ask(self.store.clone(), ids));
        }
        self.send_watched_round();
        self.metrics.watched(self.watch.tasks.len());
    }

    fn heed(&mut self, id: TaskId, leased: Leased) {
        let Some(watched) = self.watch.tasks.get_mut(&id) else { return };
        let odd_for = |watched: &mut Watched| watched.odd_since.get_or_insert_with(Instant::now).elapsed();
        let again = match leased {
            Leased::Live => {
                watched.odd_since = None;
                false
            }
            // Its worker may just have sent it back to be tried again, which comes with its own time to wait.
            Leased::Over => odd_for(watched) >= EVERY,
            Leased::Ended => odd_for(watched) >= UNTOLD_FOR,
            Leased::Unknown => odd_for(watched) >= UNKNOWN_FOR,
        };
        // While its copy is on the way, that is waited for.
        if again
            && watched.task.receipt.is_some()
            && let Some(Watched { mut task, .. }) = self.watch.tasks.remove(&id)
        {
            info!(task.id = %id.0, task.model = task.envelope.model(), ?leased, "it runs no more, and nobody told: it is put in line again");
            // It was begun: whoever takes it claims it, and is told by its record how far it came.
            task.envelope.attempts = task.envelope.attempts.max(1);
            self.take_back(task);
        }
    }

    fn send_watched_round(&mut self) {
        let patience = Duration::from_secs(self.settings.max_held_s);
        let old = self.watch.tasks.values_mut().filter(|watched| watched.task.since.elapsed() >= patience);
        let group = old.filter_map(|Watched { task, .. }| Some((task.envelope.clone(), task.receipt.take()?)));
        let group: Vec<_> = group.take(4 * GROUP).collect();
        if !group.is_empty() {
            self.acking.spawn(self.finisher.clone().send_watched_round(self.shard.number, group));
        }
    }
}

async fn ask(store: Arc<dyn Store>, ids: Vec<TaskId>) -> Result<Vec<(TaskId, Leased)>, StoreError> {
    let leased = store.leased(ids.clone()).await?;
    Ok(ids.into_iter().zip(leased).collect())
}
