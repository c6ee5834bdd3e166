//! Reads what the worker is to hold, as often as it reports.

use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::load::Placement;
use taskyard_shared::store::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// What is known of the worker's placement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Orders {
    /// The store has not answered yet.
    Unheard,
    /// None is written, or the store is away.
    None,
    /// The last that was read; it stands until another is.
    Hold(Vec<String>),
}

/// Starts reading, until `done`.
pub(crate) fn follow(
    store: Arc<dyn Store>,
    worker: &str,
    every: Duration,
    done: CancellationToken,
) -> watch::Receiver<Orders> {
    let (told, orders) = watch::channel(Orders::Unheard);
    let key = Placement::key(worker);
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
            let read = match store.fetch(&key).await {
                Ok(written) => written.map(|bytes| Placement::read(&bytes)).transpose().map_err(|bad| bad.to_string()),
                Err(failure) => Err(failure.to_string()),
            };
            if let Err(failure) = &read
                && !failing
            {
                warn!(%failure, "the placement cannot be read: what is held stays");
            }
            failing = read.is_err();
            let heard = read.ok().flatten().map(|placement| placement.models);
            told.send_if_modified(|orders| {
                let new = match (&*orders, heard) {
                    (_, Some(models)) => Orders::Hold(models),
                    (Orders::Hold(_), None) => return false,
                    (Orders::Unheard | Orders::None, None) => Orders::None,
                };
                let is_news = *orders != new;
                *orders = new;
                is_news
            });
        }
    });
    orders
}
