//! Models that deployments registered: read as often as the worker reports, and made of the settings of a model that it has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::deployment::{Deployed, Registration};
use taskyard_shared::load::ModelSpec;
use taskyard_shared::store::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::builder::Builder;
use crate::follow::Followed;

/// Makes the models that are registered while the worker runs.
pub trait Foundry: Send + Sync {
    /// How to load it; nothing is loaded yet. `None` when this worker does not have the model that it is like.
    fn found(&self, name: &str, registration: &Registration) -> Option<(ModelSpec, Arc<dyn Builder>)>;
}

pub(crate) type Registered = BTreeMap<String, Registration>;

/// Starts reading, until `done`. What was read stands while the store is away, and when it was emptied: the scheduler writes
/// it again.
pub(crate) fn follow(store: Arc<dyn Store>, every: Duration, done: CancellationToken) -> watch::Receiver<Registered> {
    let followed = Followed { store, key: Deployed::KEY.to_owned(), every, what: "what is registered" };
    followed.start(Registered::new(), done, Deployed::read, |_, deployed| Some(deployed?.registered))
}
