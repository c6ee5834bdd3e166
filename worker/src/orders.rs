//! Reads what the worker is to hold, as often as it reports.

use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::load::Placement;
use taskyard_shared::store::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::follow::Followed;

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
    let followed = Followed { store, key: Placement::key(worker), every, what: "the placement" };
    followed.start(Orders::Unheard, done, Placement::read, |orders, placement: Option<Placement>| {
        match (orders, placement) {
            (_, Some(placement)) => Some(Orders::Hold(placement.models)),
            (Orders::Hold(_), None) => None,
            (Orders::Unheard | Orders::None, None) => Some(Orders::None),
        }
    })
}
