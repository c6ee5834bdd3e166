//! Fires ticks that are due: each is published like a task that somebody sent, and only then is it dealt with.

use std::collections::{BTreeMap, BTreeSet};

use taskyard_shared::broker::{Message, Need, publish_surely};
use taskyard_shared::schedule::{COUNTED, Due, Fired, Overlap, Published};
use taskyard_shared::store::{Accept, StoreError, WorkflowWrite};
use taskyard_shared::{State, TaskId, Timestamp, messages};
use tracing::{debug, info, warn};

use super::entry::{Entry, Key, Timetable};
use super::keeper::Keeper;

/// Ticks that are published together.
const GROUP: usize = 128;
/// While the store is away, what must not overlap waits for it.
const ASK_AGAIN_MS: u64 = 1_000;

/// What is done about one schedule.
struct Plan {
    key: Key,
    due: Due,
    /// What the tick before made, when it must have ended.
    behind: Option<Fired>,
}

impl Keeper {
    /// Fires what is due. `false` when closing.
    pub(super) async fn fire(&self, table: &mut Timetable) -> bool {
        let now = Timestamp::now();
        let mut plans: Vec<Plan> = Vec::new();
        let mut ticks = 0;
        for key in table.due(now) {
            if ticks >= COUNTED {
                break;
            }
            let Some(Entry { order, schedule: Ok(schedule), .. }) = table.get(key) else { continue };
            let due = schedule.ticks.due(order.seen, now, schedule.reach());
            let may_overlap = schedule.overlap == Overlap::Allow || due.fire.is_empty();
            ticks += due.fire.len();
            plans.push(Plan { key: key.clone(), due, behind: order.last.filter(|_| !may_overlap) });
        }
        let overlapped = match self.leave_out_overlapping(&mut plans).await {
            Ok(overlapped) => overlapped,
            Err(failure) => {
                debug!(%failure, "whether what the last ticks made runs is not known: these wait");
                self.metrics.store_failed("get");
                let (later, rest): (Vec<Plan>, _) = plans.into_iter().partition(|plan| plan.behind.is_some());
                for plan in later {
                    table.look_at(&plan.key, Some(now.plus_ms(ASK_AGAIN_MS)));
                }
                plans = rest;
                0
            }
        };
        if plans.is_empty() {
            return true;
        }
        let to_fire: Vec<(&Key, Timestamp)> =
            plans.iter().flat_map(|plan| plan.due.fire.iter().map(|tick| (&plan.key, *tick))).collect();
        let mut fired: BTreeMap<&Key, Fired> = BTreeMap::new();
        for group in to_fire.chunks(GROUP) {
            let published: Vec<(&Key, Timestamp, Published)> = group
                .iter()
                .filter_map(|(key, tick)| Some((*key, *tick, self.made(table, key, *tick, now)?)))
                .collect();
            let message = |(_, _, published): &(_, _, Published)| match messages::tick(&self.topology, published) {
                Ok(message) => Some((message, Need::Work)),
                Err(failure) => {
                    warn!(%failure, "a tick cannot be written down");
                    None
                }
            };
            let outgoing: Vec<(Message, Need)> = published.iter().filter_map(message).collect();
            if publish_surely(&*self.broker, outgoing, &self.closing).await.is_err() {
                return false;
            }
            let done = Timestamp::now();
            for (key, tick, published) in &published {
                self.metrics.fired(done.ms_since(*tick) / 1_000.0);
                fired.insert(key, published.fired(*tick, done));
            }
            self.record(published.into_iter().map(|(_, _, published)| published).collect()).await;
        }
        let missed: usize = plans.iter().map(|plan| plan.due.missed).sum();
        if missed > 0 {
            info!(ticks = missed, "ticks passed while nobody could fire them, and are not caught up with");
        }
        self.metrics.not_fired(missed, overlapped);
        let fired: Vec<(Key, Fired)> = fired.into_iter().map(|(key, fired)| (key.clone(), fired)).collect();
        for (key, fired) in fired {
            if let Some(entry) = table.get_mut(&key) {
                entry.order.last = Some(fired);
            }
        }
        let keys: Vec<Key> = plans.into_iter().map(|plan| plan.key).collect();
        for key in &keys {
            if let Some(entry) = table.get_mut(key) {
                entry.order.seen = entry.order.seen.max(now);
            }
        }
        self.write(table, &keys).await
    }

    /// What a tick publishes.
    fn made(&self, table: &Timetable, key: &Key, tick: Timestamp, now: Timestamp) -> Option<Published> {
        let Some(Entry { order, schedule: Ok(schedule), .. }) = table.get(key) else { return None };
        match order.publish(&schedule.work, self.topology.namespace(), tick, now) {
            Ok(published) => {
                debug!(schedule = %order.name, %tick, id = %published.id(), "fired");
                Some(published)
            }
            Err(invalid) => {
                warn!(schedule = %order.name, %invalid, "a tick cannot be made");
                None
            }
        }
    }

    /// Takes out the ticks of schedules of which what the tick before made has not ended, and answers how many those are. What has no
    /// record has ended: the store may have lost it. Tasks are asked for all at once.
    async fn leave_out_overlapping(&self, plans: &mut [Plan]) -> Result<usize, StoreError> {
        let tasks: Vec<TaskId> = plans.iter().filter_map(|plan| plan.behind?.task).collect();
        let mut running = BTreeSet::new();
        if !tasks.is_empty() {
            let records = self.store.get(tasks.clone()).await?;
            let open = tasks.into_iter().zip(records);
            let open = open.filter(|(_, record)| record.as_ref().is_some_and(|record| !record.state.is_terminal()));
            running.extend(open.map(|(id, _)| id.0));
        }
        for id in plans.iter().filter_map(|plan| plan.behind?.workflow) {
            if self.store.workflow(id).await?.is_some_and(|seen| !seen.has_ended) {
                running.insert(id.0);
            }
        }
        let mut left_out = 0;
        for plan in plans {
            let made = plan.behind.and_then(|fired| fired.task.map(|id| id.0).or(fired.workflow.map(|id| id.0)));
            if made.is_some_and(|id| running.contains(&id)) {
                left_out += plan.due.fire.len();
                plan.due.fire.clear();
            }
        }
        Ok(left_out)
    }

    /// Shows what was fired to whoever asks for it before intake has read it, as a gateway does.
    async fn record(&self, published: Vec<Published>) {
        let mut accepts = Vec::new();
        for published in published {
            match published {
                Published::Task(envelope) => accepts.push(Accept {
                    id: envelope.id,
                    fingerprint: envelope.fingerprint(),
                    alias: envelope.alias(),
                    record: envelope.result(State::Queued),
                    follower: None,
                }),
                Published::Workflow { order, plan } => {
                    let fingerprint = order.fingerprint(&plan);
                    let Ok(write) = WorkflowWrite::new(&order.queued(*plan), fingerprint) else { continue };
                    if let Err(failure) = self.store.accept_workflow(write).await {
                        debug!(%failure, "a tick's workflow is not recorded yet");
                        self.metrics.store_failed("accept_workflow");
                    }
                }
            }
        }
        if !accepts.is_empty()
            && let Err(failure) = self.store.accept(accepts).await
        {
            debug!(%failure, "ticks' tasks are not recorded yet");
            self.metrics.store_failed("accept");
        }
    }
}
