//! Reads from the store which workers there are, what they serve and how busy they are.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use taskyard_shared::broker::Broker;
use taskyard_shared::control::Told;
use taskyard_shared::load::{LoadReport, LoadState};
use taskyard_shared::store::Store;
use taskyard_shared::{TaskId, Topology};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::core::Event;
use crate::deploying;
use crate::lost::Quiet;
use crate::metrics::Metrics;
use crate::shard::Shard;
use crate::signal::waiting_elsewhere;

/// The announcements are read once in so many reads of the loads.
const MODELS_EVERY: u32 = 2;

/// Queues of models that no worker holds are looked at so many at a time.
const ASKED_MOST: usize = 16;

/// The models that no worker holds and some could, by name.
pub(crate) fn unheld(loads: &[LoadReport]) -> BTreeSet<String> {
    let able = loads.iter().filter(|report| report.has_budget() && !report.draining);
    let (mut unheld, mut held) = (BTreeSet::new(), BTreeSet::new());
    for (name, load) in able.flat_map(|report| &report.models) {
        match load.state {
            LoadState::Loaded => held.insert(name),
            LoadState::Loading | LoadState::Unloaded => unheld.insert(name),
            LoadState::Failed => false,
        };
    }
    unheld.difference(&held).map(|name| (*name).clone()).collect()
}

pub(crate) struct LoadWatch {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    pub topology: Topology,
    pub every: Duration,
    pub metrics: Metrics,
    pub events: mpsc::Sender<Event>,
    pub closing: CancellationToken,
    /// The shard, when a tenant has a quota of waiting tasks that others count for as well.
    pub shared_quotas: Option<Shard>,
    /// What waits in intake matters.
    pub counts_intake: bool,
}

impl LoadWatch {
    /// Watches until closing. `requests` name models of which the queue and the workers are to be counted.
    /// `pauses` have it read anew which models are paused, and are answered once that is in force.
    pub async fn run(
        self,
        mut requests: mpsc::Receiver<Vec<Quiet>>,
        mut pauses: mpsc::Receiver<oneshot::Sender<Told>>,
    ) {
        let mut ticks = tokio::time::interval(self.every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let last: Mutex<Vec<LoadReport>> = Mutex::new(Vec::new());
        let (mut count, mut failing) = (0u32, false);
        loop {
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                // Before the ticks: while the store is slow, the next one is always due.
                Some(models) = requests.recv() => {
                    let loads = last.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    if !failing {
                        self.count(models, &loads).await;
                    }
                    continue;
                }
                Some(answer) = pauses.recv() => {
                    self.read_paused(answer).await;
                    continue;
                }
                _ = ticks.tick() => {}
            }
            let event = match self.read(count).await {
                Ok(event) => event,
                Err(failure) => {
                    // The last known capacity stands, and completions go on giving credits back.
                    if !failing {
                        warn!(%failure, "the loads cannot be read: scheduling goes on from completions alone");
                    }
                    failing = true;
                    self.metrics.store_failed("loads");
                    continue;
                }
            };
            if failing {
                info!("the loads are read again");
            }
            (failing, count) = (false, count.wrapping_add(1));
            if let Event::Loads { loads, .. } = &event {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = loads.clone();
            }
            if self.events.send(event).await.is_err() {
                return;
            }
        }
    }

    async fn read(&self, count: u32) -> Result<Event, taskyard_shared::store::StoreError> {
        let loads = self.store.loads().await?;
        let models = match count % MODELS_EVERY {
            0 => Some(self.store.models().await?),
            _ => None,
        };
        let paused = self.store.paused().await?.into_iter().collect();
        let elsewhere = match self.shared_quotas.filter(|_| models.is_some()) {
            Some(Shard { number, of }) => Some(waiting_elsewhere(&*self.store, number, of).await),
            None => None,
        };
        let unread = match self.counts_intake && models.is_some() {
            // Not to be known for a moment is as good as nothing: it is asked again.
            true => self.broker.queue_state(&self.topology.intake()).await.ok().flatten().map(|state| state.ready),
            false => None,
        };
        let left_behind = match models.is_some() {
            true => self.left_behind(&loads, count / MODELS_EVERY).await,
            false => Vec::new(),
        };
        let deployed = match models.is_some() {
            true => Some(Box::new(deploying::read(&*self.store).await?)),
            false => None,
        };
        Ok(Event::Loads { loads, models, paused, elsewhere, unread, deployed, left_behind })
    }

    /// What lies in the ready queues of models that no worker holds: sent there before they were unloaded. Of many such models
    /// some in turn.
    async fn left_behind(&self, loads: &[LoadReport], turn: u32) -> Vec<(String, u64)> {
        let idle: Vec<String> = unheld(loads).into_iter().collect();
        let turns = idle.len().div_ceil(ASKED_MOST).max(1);
        let mut left = Vec::new();
        for model in idle.into_iter().skip(turn as usize % turns * ASKED_MOST).take(ASKED_MOST) {
            // Not to be known for a moment changes nothing.
            if let Ok(state) = self.broker.queue_state(&self.topology.ready(&model)).await {
                left.push((model, state.map_or(0, |state| state.ready)));
            }
        }
        left
    }

    /// Here and nowhere else, so that what was read first is never in force last.
    async fn read_paused(&self, answer: oneshot::Sender<Told>) {
        match self.store.paused().await {
            Ok(paused) => {
                let paused = paused.into_iter().collect();
                let _closing = self.events.send(Event::Paused { paused, answer }).await;
            }
            // Whoever asked hears nothing; it is read with the next loads.
            Err(failure) => debug!(%failure, "the paused models could not be read"),
        }
    }

    async fn count(&self, models: Vec<Quiet>, loads: &[LoadReport]) {
        let at = Instant::now();
        for Quiet { model, tasks } in models {
            let ended = self.ended(tasks).await;
            let held: u64 =
                loads.iter().filter_map(|load| load.models.get(&model)).map(|load| u64::from(load.held)).sum();
            match self.broker.queue_state(&self.topology.ready(&model)).await {
                Ok(state) => {
                    let ready = state.map_or(0, |state| state.ready);
                    let tasks = usize::try_from(ready + held).unwrap_or(usize::MAX);
                    if self.events.send(Event::Counted { model, tasks, ended, at }).await.is_err() {
                        return;
                    }
                }
                Err(failure) => debug!(%failure, "a ready queue could not be counted"),
            }
        }
    }

    /// Those of them that have ended, by their records.
    async fn ended(&self, tasks: Vec<TaskId>) -> Vec<TaskId> {
        if tasks.is_empty() {
            return tasks;
        }
        match self.store.get(tasks).await {
            Ok(records) => records
                .into_iter()
                .flatten()
                .filter(|record| record.state.is_terminal())
                .map(|record| record.id)
                .collect(),
            Err(failure) => {
                debug!(%failure, "records could not be read: their credits wait");
                Vec::new()
            }
        }
    }
}
