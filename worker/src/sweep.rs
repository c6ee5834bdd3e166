//! Removes artifacts that nobody needs any more: those that were last put long ago, and stand in no model that is registered.
//!
//! Every worker of a yard may do so, at any time: what one has removed is gone for the others. An artifact goes only when it was found so
//! in two rounds, so that a registration which is being written, or written anew after the store was emptied, is seen in time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::artifacts::{ArtifactError, ArtifactId, Artifacts};
use taskyard_shared::deployment::Deployed;
use taskyard_shared::store::Store;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::metrics::Metrics;

/// Between two rounds: a quarter of the time that things are kept, within these.
const EVERY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(3600));
/// Things that one round looks at.
const MOST: usize = 100_000;

pub(crate) struct Sweeper {
    pub artifacts: Artifacts,
    pub store: Arc<dyn Store>,
    pub keep: Duration,
    pub metrics: Metrics,
}

impl Sweeper {
    /// Runs until `closing`.
    pub async fn run(self, closing: CancellationToken) {
        let every = (self.keep / 4).clamp(EVERY.0, EVERY.1);
        // Workers that were started together need not look together.
        let first = every.mul_f64(fastrand::f64());
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + first, every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut unneeded = BTreeSet::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = closing.cancelled() => return,
            }
            tokio::select! {
                swept = self.sweep(&mut unneeded) => {
                    if let Err(failure) = swept {
                        warn!(%failure, "old artifacts are left for the next round");
                    }
                }
                () = closing.cancelled() => return,
            }
        }
    }

    /// One round. `unneeded` is what the last one found so.
    async fn sweep(&self, unneeded: &mut BTreeSet<ArtifactId>) -> Result<(), ArtifactError> {
        // Without knowing what is registered nothing is known to be unneeded.
        let Some(registered) = self.registered().await else {
            unneeded.clear();
            return Ok(());
        };
        let before = std::mem::take(unneeded);
        let (mut artifacts, mut notes, mut bytes) = (0u64, 0u64, 0u64);
        for old in self.artifacts.old(self.keep, MOST).await? {
            match old.id {
                Some(id) if registered.contains(&id) => continue,
                Some(id) if !before.contains(&id) => {
                    unneeded.insert(id);
                    continue;
                }
                _ => {}
            }
            if self.artifacts.remove(&old).await? {
                let count = if old.id.is_some() { &mut artifacts } else { &mut notes };
                *count += 1;
                bytes += old.bytes;
            }
        }
        self.metrics.swept(artifacts, notes);
        if artifacts + notes > 0 {
            info!(artifacts, notes, bytes, "removed what was put long ago");
        }
        Ok(())
    }

    /// What models that are registered are made of; nothing when that cannot be read.
    async fn registered(&self) -> Option<BTreeSet<ArtifactId>> {
        let written = self.store.fetch(Deployed::KEY).await.ok()?;
        let Some(written) = written else { return Some(BTreeSet::new()) };
        let deployed = Deployed::read(&written).ok()?;
        let files = deployed.registered.values().flat_map(|registration| registration.variant.files.values());
        Some(files.map(|reference| reference.to).collect())
    }
}

#[cfg(test)]
mod tests {
    use taskyard_shared::artifacts::Reference;
    use taskyard_shared::deployment::{Registration, Variant};
    use taskyard_shared::process::metrics::Registry;
    use taskyard_shared::store::Retention;
    use taskyard_shared::store::embedded::EmbeddedStore;

    use super::*;

    struct Yard {
        artifacts: Artifacts,
        store: Arc<dyn Store>,
        sweeper: Sweeper,
    }

    impl Yard {
        fn new(keep: Duration) -> Self {
            let artifacts = Artifacts::in_memory();
            let store: Arc<dyn Store> = Arc::new(EmbeddedStore::in_memory(Retention::default()));
            let metrics = Metrics::new(&Registry::new().unwrap()).unwrap();
            let sweeper = Sweeper { artifacts: artifacts.clone(), store: store.clone(), keep, metrics };
            Self { artifacts, store, sweeper }
        }

        async fn put(&self, content: &'static str) -> ArtifactId {
            self.artifacts.put(content.into()).await.unwrap()
        }

        async fn has(&self, id: ArtifactId) -> bool {
            self.artifacts.get(id, 99).await.is_ok()
        }

        /// A model is made of these.
        async fn register(&self, files: &[ArtifactId]) {
            let files = files.iter().map(|id| (id.hex(), Reference { to: *id })).collect();
            let variant = Variant { name: "m@2".into(), files, ..Variant::default() };
            let registered = [("m@2".to_owned(), Registration { like: "m".into(), variant })].into();
            let mut deployed = Deployed::default();
            deployed.registered = registered;
            self.write(serde_json::to_vec(&deployed).unwrap()).await;
        }

        async fn write(&self, deployed: impl Into<bytes::Bytes>) {
            self.store.put(Deployed::KEY, deployed.into()).await.unwrap();
        }

        async fn sweep(&self, unneeded: &mut BTreeSet<ArtifactId>) {
            self.sweeper.sweep(unneeded).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_artifact_goes_in_the_second_round_that_finds_it_unneeded() {
        let yard = Yard::new(Duration::ZERO);
        let (served, also, left) = (yard.put("served").await, yard.put("also").await, yard.put("left over").await);
        let mut unneeded = BTreeSet::new();

        // What cannot be read may name anything, however often it is looked at; and what was found before that counts no more.
        yard.write("nonsense").await;
        for _ in 0..3 {
            yard.sweep(&mut unneeded).await;
        }
        assert!(unneeded.is_empty() && yard.has(left).await);
        yard.register(&[]).await;
        yard.sweep(&mut unneeded).await;
        assert_eq!(unneeded, BTreeSet::from([served, also, left]));
        yard.write("nonsense").await;
        yard.sweep(&mut unneeded).await;

        // Found once; registered before it is found again.
        yard.register(&[]).await;
        yard.sweep(&mut unneeded).await;
        assert!(yard.has(left).await);
        yard.register(&[served, also]).await;
        yard.sweep(&mut unneeded).await;
        assert!(yard.has(served).await && yard.has(also).await && !yard.has(left).await);
        yard.sweep(&mut unneeded).await;
        assert!(yard.has(served).await && yard.has(also).await);

        // And when the model is retired, it goes.
        yard.register(&[]).await;
        yard.sweep(&mut unneeded).await;
        assert!(yard.has(served).await);
        yard.sweep(&mut unneeded).await;
        assert!(!yard.has(served).await && !yard.has(also).await);
    }

    #[tokio::test]
    async fn what_was_put_lately_stays_though_nobody_needs_it() {
        let yard = Yard::new(Duration::from_secs(3600));
        let young = yard.put("young").await;
        yard.artifacts.put_note("a", "note".into()).await.unwrap();
        let mut unneeded = BTreeSet::new();
        for _ in 0..3 {
            yard.sweep(&mut unneeded).await;
        }
        assert!(unneeded.is_empty() && yard.has(young).await);
        assert_eq!(yard.artifacts.note("a", 99).await.unwrap(), Some("note".into()));
    }
}
