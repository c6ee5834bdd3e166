//! Who runs beside whom on this worker. A task may end the process that runs it, and everything with it; one that may have done
//! so is run with nothing beside it, so that it can be told from those that were merely there.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

pub(crate) struct Alone {
    /// Read by what runs beside others, written by what runs alone. In the order in which they came, so that neither starves.
    gate: Arc<RwLock<()>>,
    /// How long a place is waited for, and how long it is kept. 0: there is none.
    longest: Duration,
}

/// The worker to oneself.
pub(crate) struct Place {
    gate: OwnedRwLockWriteGuard<()>,
    longest: Duration,
}

impl Alone {
    pub fn new(longest: Duration) -> Self {
        Self { gate: Arc::default(), longest }
    }

    /// Waits until nothing runs alone; nothing will while this is kept.
    pub async fn beside(&self) -> OwnedRwLockReadGuard<()> {
        self.gate.clone().read_owned().await
    }

    /// Waits until nothing runs at all. Nothing new is begun meanwhile, nor while the place is kept. `None` when what runs takes
    /// too long.
    pub async fn place(&self) -> Option<Place> {
        if self.longest.is_zero() {
            return None;
        }
        let gate = tokio::time::timeout(self.longest, self.gate.clone().write_owned()).await.ok()?;
        Some(Place { gate, longest: self.longest })
    }
}

impl Place {
    /// Waits until it has been kept for as long as it may be; others are let in then.
    pub async fn over(self) -> OwnedRwLockReadGuard<()> {
        tokio::time::sleep(self.longest).await;
        self.gate.downgrade()
    }
}
