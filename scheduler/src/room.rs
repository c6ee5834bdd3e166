//! How many more tasks the window takes. Reading stops when there is no room, and the rest waits in the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

#[derive(Clone)]
pub(crate) struct Room(Arc<Inner>);

struct Inner {
    most: usize,
    held: AtomicUsize,
    freed: Notify,
}

impl Room {
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Inner { most, held: AtomicUsize::new(0), freed: Notify::new() }))
    }

    /// Waits until there is room, and answers how much, up to `wanted`.
    pub async fn some(&self, wanted: usize) -> usize {
        loop {
            let freed = self.0.freed.notified();
            let left = self.0.most.saturating_sub(self.0.held.load(Ordering::Acquire));
            if left > 0 {
                return left.min(wanted);
            }
            freed.await;
        }
    }

    /// So many tasks came in. A batch may take it over the brim by its own size.
    pub fn take(&self, tasks: usize) {
        self.0.held.fetch_add(tasks, Ordering::AcqRel);
    }

    /// So many tasks are held in all.
    pub fn is_held(&self, tasks: usize) {
        self.0.held.store(tasks, Ordering::Release);
        if tasks < self.0.most {
            self.0.freed.notify_waiters();
        }
    }
}
