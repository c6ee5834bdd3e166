//! Who runs beside whom on this worker. A task may end the process that runs it, and everything with it; one that may have done
//! so is run with nothing beside it, so that it can be told from those that were merely there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::time::Instant;

/// After a place was waited for in vain, none is waited for again for so many times as long: who waits holds up the whole worker.
const RESTS: u32 = 10;

pub(crate) struct Alone {
    /// Read by what runs beside others, written by what runs alone. In the order in which they came, so that neither starves.
    gate: Arc<RwLock<()>>,
    /// How long a place is waited for, and how long it is kept. 0: there is none.
    longest: Duration,
    /// When a place was last waited for in vain.
    missed: Mutex<Option<Instant>>,
}

/// The worker to oneself.
pub(crate) struct Place {
    gate: OwnedRwLockWriteGuard<()>,
    longest: Duration,
}

impl Alone {
    pub fn new(longest: Duration) -> Self {
        Self { gate: Arc::default(), longest, missed: Mutex::default() }
    }

    /// Waits until nothing runs alone; nothing will while this is kept.
    pub async fn beside(&self) -> OwnedRwLockReadGuard<()> {
        self.gate.clone().read_owned().await
    }

    /// Waits until nothing runs at all. Nothing new is begun meanwhile, nor while the place is kept. `None` when what runs takes
    /// too long, or did lately.
    pub async fn place(&self) -> Option<Place> {
        if self.longest.is_zero() {
            return None;
        }
        let gate = match self.gate.clone().try_write_owned() {
            Ok(gate) => gate,
            Err(_) if self.missed().is_some_and(|missed| missed.elapsed() < self.longest * RESTS) => return None,
            Err(_) => match tokio::time::timeout(self.longest, self.gate.clone().write_owned()).await {
                Ok(gate) => gate,
                Err(_) => {
                    *self.missed() = Some(Instant::now());
                    return None;
                }
            },
        };
        Some(Place { gate, longest: self.longest })
    }

    fn missed(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// It may be kept for so long.
    pub fn longest(&self) -> Duration {
        self.longest
    }

    pub fn let_others_in(self) -> OwnedRwLockReadGuard<()> {
        self.gate.downgrade()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_runs_for_long_holds_up_the_worker_once_and_not_for_each_suspect() {
        let alone = Alone::new(Duration::from_millis(50));
        let long = alone.beside().await;
        assert!(alone.place().await.is_none(), "it was waited for in vain");
        assert!(alone.place().now_or_never().expect("at once").is_none());
        let other = alone.beside().now_or_never().expect("nobody stands in the way");
        drop((long, other));
        assert!(alone.place().now_or_never().expect("at once").is_some(), "nothing runs");
    }
}
