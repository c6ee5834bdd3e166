//! A task in hand.

use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::Envelope;
use taskyard_shared::broker::Receipt;
use tokio::time::Instant;

use crate::leases::Lease;

pub(crate) struct Held {
    pub envelope: Arc<Envelope>,
    /// Nothing once its scheduler watches over it.
    pub receipt: Option<Receipt>,
    pub received: Instant,
    /// It may have been begun before, by a worker that is gone.
    pub redelivered: bool,
    /// It goes before what came earlier.
    pub passes: bool,
    /// How long the slot that runs it had nothing to run before.
    pub idle: Duration,
    /// From its claim until it is settled; renewed for as long as it is here.
    pub lease: Option<Lease>,
}

impl Held {
    pub fn leased(mut self, lease: Lease) -> Self {
        self.lease = Some(lease);
        self
    }
}
