//! Models that deployments registered: read as often as the worker reports, and made of the settings of a model that it has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::deployment::{Deployed, Registration};
use taskyard_shared::load::ModelSpec;
use taskyard_shared::store::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::builder::Builder;

/// Makes the models that are registered while the worker runs.
pub trait Foundry: Send + Sync {
    /// How to load it; nothing is loaded yet. `None` when this worker does not have the model that it is like.
    fn found(&self, name: &str, registration: &Registration) -> Option<(ModelSpec, Arc<dyn Builder>)>;
}

pub(crate) type Registered = BTreeMap<String, Registration>;

/// Starts reading, until `done`. What was read stands while the store is away.
pub(crate) fn follow(store: Arc<dyn Store>, every: Duration, done: CancellationToken) -> watch::Receiver<Registered> {
    let (told, registered) = watch::channel(Registered::new());
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = done.cancelled() => return,
                () = told.closed() => return,
            }
            let read = match store.fetch(Deployed::KEY).await {
                Ok(Some(bytes)) => Deployed::read(&bytes).map(Some).map_err(|bad| bad.to_string()),
                // A store that was emptied is written again by the scheduler, which knows them.
                Ok(None) => Ok(None),
                Err(failure) => Err(failure.to_string()),
            };
            if let Err(failure) = &read
                && !failing
            {
                warn!(%failure, "what is registered cannot be read: what is known of it stays");
            }
            failing = read.is_err();
            let Ok(Some(Deployed { registered, .. })) = read else { continue };
            told.send_if_modified(|known| {
                let is_news = *known != registered;
                *known = registered;
                is_news
            });
        }
    });
    registered
}
