//! Counts what came of copies: as metrics, and in the store, where people see it and the next scheduler goes on.

use std::collections::BTreeMap;
use std::sync::Arc;

use taskyard_shared::Timestamp;
use taskyard_shared::deployment::base;
use taskyard_shared::mirror::{Differing, Likeness, Mirror, Tallies, Tally};
use taskyard_shared::store::{Store, StoreError};
use tracing::{debug, info, warn};

use super::Trial;
use crate::core::Core;
use crate::deploying::Deploying;
use crate::metrics::Metrics;
use crate::shard::Shard;

impl Core {
    /// Why a version cannot be in the shadow of its model's tasks.
    pub fn cannot_mirror(&self, deploying: &Deploying, name: &str) -> Option<String> {
        let model = base(name);
        match self.default_of(&deploying.deployed, model) {
            Some(to) if to == name => {
                Some(format!("the tasks of {model} go to it: there is nobody to compare it with"))
            }
            Some(_) => None,
            None => Some(format!("nothing gets the tasks of {model}: roll out another version first")),
        }
    }

    /// A version runs this share of its model's tasks a second time. What was counted stands while the share alone changes.
    pub fn set_mirror(&self, deploying: &mut Deploying, name: &str, share: f64) {
        info!(task.model = %name, share, "runs its share of the tasks in the shadow");
        deploying.change(|deployed| {
            let mirror = deployed.mirrors.entry(name.to_owned()).or_insert(Mirror { share, since: Timestamp::now() });
            mirror.share = share;
        });
    }

    /// Of a trial that is over nothing is counted.
    pub fn count_mirrored(&mut self, trial: &Trial, likeness: Likeness) {
        if let Some(tally) = self.tally(trial) {
            tally.count(likeness);
            self.metrics.mirrored(&trial.version, likeness);
        }
    }

    /// What both took, and who they are if they differ.
    pub fn note_compared(&mut self, trial: &Trial, ids: Differing, likeness: Likeness, (task_ms, copy_ms): (f64, f64)) {
        if let Some(tally) = self.tally(trial) {
            tally.task_ms += task_ms;
            tally.copy_ms += copy_ms;
            if likeness == Likeness::Different {
                tally.differs(ids);
            }
            self.metrics.mirror_ran(&trial.version, task_ms / 1e3, copy_ms / 1e3);
        }
    }

    fn tally(&mut self, trial: &Trial) -> Option<&mut Tally> {
        if !trial.goes_on(&self.deploying.deployed) {
            return None;
        }
        self.mirroring.is_dirty = true;
        let tally = self.mirroring.tallies.entry(trial.version.to_string()).or_insert_with(|| Tally::new(trial.since));
        if tally.since != trial.since {
            *tally = Tally::new(trial.since);
        }
        Some(tally)
    }

    /// Writes what was counted, if there is something new.
    pub fn keep_tallies(&mut self) {
        let (mirroring, mirrors) = (&mut self.mirroring, &self.deploying.deployed.mirrors);
        let before = mirroring.tallies.len();
        mirroring.tallies.retain(|version, _| mirrors.contains_key(version));
        mirroring.is_dirty |= mirroring.tallies.len() < before;
        while let Some(written) = mirroring.writing.try_join_next() {
            if !matches!(written, Ok(Ok(()))) {
                debug!("what came of shadow traffic was not written: again");
                self.metrics.store_failed("put");
                mirroring.is_dirty = true;
            }
        }
        if mirroring.is_dirty && mirroring.writing.is_empty() {
            mirroring.is_dirty = false;
            let (store, tallies) = (self.store.clone(), Tallies::new(mirroring.tallies.clone()));
            mirroring.writing.spawn(write(store, self.shard, tallies));
        }
    }

    /// All that was counted is in the store, unless that is away.
    pub async fn finish_tallies(&mut self) {
        self.keep_tallies();
        while self.mirroring.writing.join_next().await.is_some() {}
    }
}

async fn write(store: Arc<dyn Store>, shard: Shard, tallies: Tallies) -> Result<(), StoreError> {
    match serde_json::to_vec(&tallies) {
        Ok(written) => store.put(&Tallies::key(shard.number), written.into()).await,
        // Strings and numbers can always be written.
        Err(_) => Ok(()),
    }
}

/// What the shard had counted. Nothing when there is none, or it cannot be read: it is counted anew.
pub(crate) async fn recall(store: &dyn Store, shard: Shard, metrics: &Metrics) -> BTreeMap<String, Tally> {
    let kept = match store.fetch(&Tallies::key(shard.number)).await {
        Ok(Some(kept)) => kept,
        Ok(None) => return BTreeMap::new(),
        Err(failure) => {
            warn!(%failure, "what came of shadow traffic cannot be read: it is counted anew");
            metrics.store_failed("fetch");
            return BTreeMap::new();
        }
    };
    Tallies::read(&kept).map_or_else(
        |failure| {
            warn!(%failure, "what came of shadow traffic is of another version: it is counted anew");
            BTreeMap::new()
        },
        |tallies| tallies.versions,
    )
}
