//! How many more tasks the window takes. Reading stops when there is no room, and the rest waits in the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

#[derive(Clone)]
pub(crate) struct Room(Arc<Inner>);

struct Inner {
    most: usize,
    most_bytes: usize,
    held: AtomicUsize,
    bytes: AtomicUsize,
    freed: Notify,
}

impl Room {
    pub fn new(most: usize, most_bytes: usize) -> Self {
        let (held, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self(Arc::new(Inner { most, most_bytes, held, bytes, freed: Notify::new() }))
    }

    /// Waits until there is room, and answers how much, up to `wanted`.
    pub async fn some(&self, wanted: usize) -> usize {
        loop {
            let freed = self.0.freed.notified();
            let left = self.0.most.saturating_sub(self.0.held.load(Ordering::Acquire));
            if left > 0 && self.0.bytes.load(Ordering::Acquire) < self.0.most_bytes {
                return left.min(wanted);
            }
            freed.await;
        }
    }

    /// A tenth of it is free: so much is, where tasks can go out to pages. Were it more, nothing would be read any more where each
    /// message that was has a task that stays, and those are nearly as many as may stay.
    pub fn is_ample(&self) -> bool {
        let Inner { most, most_bytes, held, bytes, .. } = &*self.0;
        held.load(Ordering::Acquire) < most / 10 * 9 && bytes.load(Ordering::Acquire) < most_bytes / 10 * 9
    }

    /// So many tasks came in, with so many bytes. A batch may take it over the brim by its own size.
    pub fn take(&self, tasks: usize, bytes: usize) {
        self.0.held.fetch_add(tasks, Ordering::AcqRel);
        self.0.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// So many tasks are held in all, with so many bytes.
    pub fn is_held(&self, tasks: usize, bytes: usize) {
        self.0.held.store(tasks, Ordering::Release);
        self.0.bytes.store(bytes, Ordering::Release);
        if tasks < self.0.most && bytes < self.0.most_bytes {
            self.0.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Room;

    #[test]
    fn what_is_left_when_tasks_went_to_pages_is_ample() {
        let room = Room::new(100, 1_000);
        // Pages are written from 70 on, down to 60: reading must go on from wherever it stands then.
        for (tasks, bytes, ample) in [(0, 0, true), (80, 0, true), (90, 0, false), (0, 800, true), (0, 900, false)] {
            room.is_held(tasks, bytes);
            assert_eq!(room.is_ample(), ample, "{tasks} tasks, {bytes} bytes");
        }
    }
}
