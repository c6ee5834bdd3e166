//! Follows a value of the store, read as often as the worker reports.

use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::store::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// A value that is followed.
pub(crate) struct Followed {
    pub store: Arc<dyn Store>,
    pub key: String,
    pub every: Duration,
    /// What the log calls it.
    pub what: &'static str,
}

impl Followed {
    /// Starts reading, until `done` or nobody listens. `next` makes of what is known and what was read what is known from then on:
    /// it is given nothing when nothing is written, when it cannot be read, and when the store is away.
    pub fn start<T, V>(
        self,
        first: T,
        done: CancellationToken,
        read: fn(&[u8]) -> Result<V, serde_json::Error>,
        next: impl Fn(&T, Option<V>) -> Option<T> + Send + 'static,
    ) -> watch::Receiver<T>
    where
        T: PartialEq + Send + Sync + 'static,
        V: Send + 'static,
    {
        let (told, known) = watch::channel(first);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(self.every);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut failing = false;
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = done.cancelled() => return,
                    () = told.closed() => return,
                }
                let heard = match self.store.fetch(&self.key).await {
                    Ok(written) => written.map(|bytes| read(&bytes)).transpose().map_err(|bad| bad.to_string()),
                    Err(failure) => Err(failure.to_string()),
                };
                if let Err(failure) = &heard
                    && !failing
                {
                    warn!(%failure, "{} cannot be read: what is known of it stays", self.what);
                }
                failing = heard.is_err();
                told.send_if_modified(|known| match next(known, heard.ok().flatten()) {
                    Some(news) if news != *known => {
                        *known = news;
                        true
                    }
                    _ => false,
                });
            }
        });
        known
    }
}
