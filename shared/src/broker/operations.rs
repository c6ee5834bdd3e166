//! What was asked of a broker and what it answered, counted: for metrics and for measurements.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the connection's beginning, across reconnects. Counting is a relaxed addition.
#[derive(Default, Debug)]
pub struct Operations {
    /// Messages published.
    pub published: AtomicU64,
    /// Confirms that came; one may stand for many messages.
    pub confirms: AtomicU64,
    /// Messages that came back because no queue takes them.
    pub returned: AtomicU64,
    /// Messages delivered to consumers.
    pub delivered: AtomicU64,
    /// Acks sent; one may stand for many deliveries.
    pub acks: AtomicU64,
    /// Deliveries given back, with one for many likewise.
    pub requeues: AtomicU64,
    /// Synchronised writes to this process's own disk: an embedded broker's.
    pub commits: AtomicU64,
    pub bytes_sent: AtomicU64,
    pub bytes_received: AtomicU64,
}

impl Operations {
    /// How many of each, by the name that metrics have for it.
    pub fn counts(&self) -> [(&'static str, u64); 7] {
        [
            ("publish", &self.published),
            ("confirm", &self.confirms),
            ("return", &self.returned),
            ("deliver", &self.delivered),
            ("ack", &self.acks),
            ("requeue", &self.requeues),
            ("commit", &self.commits),
        ]
        .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }

    /// Bytes `sent` and `received`, over the network or as bodies of an embedded broker.
    pub fn bytes(&self) -> [(&'static str, u64); 2] {
        [("sent", &self.bytes_sent), ("received", &self.bytes_received)]
            .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }
}

/// Adds to one of the counts.
pub(super) fn count(counter: &AtomicU64, more: u64) {
    if more > 0 {
        counter.fetch_add(more, Ordering::Relaxed);
    }
}
