//! Waiting for results: a place in the gateway's inbox, and a slow look at the store in case a message was lost.

use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::{TaskId, TaskResult};
use tokio::time::{Instant, MissedTickBehavior};

use super::Shared;
use super::intake::conflict;
use super::metrics::Counted;
use super::problem::{Code, Problem};
use crate::results::Waiter;

/// One store call of a look-up.
pub(super) const LOOKUP_LIMIT: Duration = Duration::from_millis(1500);
/// How often the store is asked about those who wait, and from which age on.
const RECHECK: Duration = Duration::from_secs(2);
/// Records asked for in one call: each may be large.
const RECHECK_TASKS: usize = 64;

impl Shared {
    /// A place to wait in, taken before anything is accepted.
    pub(super) fn waiter(&self, id: TaskId) -> Result<Waiter, Problem> {
        self.inbox.wait_for(id).map_err(|error| Problem::new(Code::TooManyWaiters, error.to_string()))
    }

    /// What a caller asked for, within what one may.
    pub(super) fn bounded(&self, wait: Option<Duration>) -> Option<Duration> {
        wait.map(|wait| wait.min(Duration::from_secs(self.settings.max_wait_s))).filter(|wait| !wait.is_zero())
    }

    /// The result, or the task as it stands when the wait is over.
    ///
    /// # Errors
    /// When it turns out to be another tenant's: both have sent a task of this id, and this one came second.
    pub(super) async fn await_result(
        &self,
        waiter: Waiter,
        task: TaskResult,
        wait: Duration,
    ) -> Result<TaskResult, Problem> {
        let tenant = task.tenant.clone();
        let result = self.result_within(waiter, task, wait).await;
        if result.tenant == tenant { Ok(result) } else { Err(conflict(&result)) }
    }

    async fn result_within(&self, mut waiter: Waiter, task: TaskResult, wait: Duration) -> TaskResult {
        if task.state.is_terminal() {
            return task;
        }
        let until = Instant::now() + wait;
        let _counted = Counted::new(self.metrics.waiters.clone());
        tokio::select! {
            result = waiter.result() => return Arc::unwrap_or_clone(result),
            () = tokio::time::sleep_until(until) => {}
            () = self.stopping.cancelled() => {}
        }
        self.look_up(task.id).await.ok().flatten().unwrap_or(task)
    }

    pub(super) async fn look_up(&self, id: TaskId) -> Result<Option<TaskResult>, Problem> {
        let records = self.records.ask(LOOKUP_LIMIT, |store| async move { store.get(vec![id]).await }).await?;
        Ok(records.into_iter().next().flatten())
    }

    /// Has the result of a task sent here, and answers its record.
    pub(super) async fn follow(&self, id: TaskId) -> Result<Option<TaskResult>, Problem> {
        let reply = self.inbox.reply();
        let records =
            self.records.ask(LOOKUP_LIMIT, |store| async move { store.follow(vec![id], reply).await }).await?;
        Ok(records.into_iter().next().flatten())
    }

    /// Asks the store about those who wait for long, and about all of them whenever the reply queue was lost. When
    /// nobody waits it still asks whether the store is there, so that readiness tells the truth without callers.
    pub(super) async fn recheck(&self) {
        let mut ticks = tokio::time::interval(RECHECK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sessions = self.inbox.sessions();
        loop {
            let age = tokio::select! {
                _ = ticks.tick() => RECHECK,
                changed = sessions.changed() => match changed {
                    Ok(()) if sessions.borrow_and_update().up => Duration::ZERO,
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            let ids = self.inbox.waited_for(age);
            if ids.is_empty() {
                // What it says of itself does not matter, nor why it does not: that is noted and logged.
                let _ = self.records.ask(LOOKUP_LIMIT, |store| async move { store.ping().await }).await;
            }
            for ids in ids.chunks(RECHECK_TASKS) {
                let ids = ids.to_vec();
                let records = self.records.ask(LOOKUP_LIMIT, |store| async move { store.get(ids).await }).await;
                for record in
                    records.unwrap_or_default().into_iter().flatten().filter(|record| record.state.is_terminal())
                {
                    if self.inbox.deliver(&Arc::new(record)) > 0 {
                        self.metrics.rechecked.inc();
                    }
                }
            }
        }
    }
}
