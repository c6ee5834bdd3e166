//! How many messages of intake the broker may have sent that are not acked.
//!
//! The window counts tasks, and the broker messages, of which each may hold one task or a thousand. So few are asked for at first, and
//! more where all of them are here and the window is far from full: each may have a task left that waits for long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use taskyard_shared::broker::{Acker, Tag, Verdict};

/// Messages at first, and the least by which they get more.
const FIRST: u16 = 512;
/// At most so many times as many as before.
const TIMES: u16 = 4;
/// Messages by which it is known how large the next ones are: later ones count for more.
const SEEN: f64 = 1_024.0;

pub(crate) struct Ahead {
    /// What the window takes, if each message has one task.
    most: u16,
    /// Bytes that may be sent beyond what has been read, about.
    bytes_most: f64,
    is_alone: bool,
    /// As many as were asked for.
    prefetch: u16,
    messages: f64,
    bytes: f64,
}

impl Ahead {
    /// Where others read the queue as well, as many as the window has tasks: whoever asks for more than others is served first.
    pub fn new(window_tasks: usize, window_bytes: usize, is_alone: bool) -> Self {
        let most = u16::try_from(window_tasks).unwrap_or(u16::MAX).max(1);
        let prefetch = if is_alone { most.min(FIRST) } else { most };
        Self { most, bytes_most: window_bytes as f64 / 2.0, is_alone, prefetch, messages: 0.0, bytes: 0.0 }
    }

    pub fn prefetch(&self) -> u16 {
        self.prefetch
    }

    pub fn handle_read(&mut self, bytes: usize) {
        if self.messages >= SEEN {
            (self.messages, self.bytes) = (self.messages / 2.0, self.bytes / 2.0);
        }
        self.messages += 1.0;
        self.bytes += bytes as f64;
    }

    /// So many deliveries of a consumer are not settled, and the window has room for more: whether another is to take its place that
    /// may have more, and how many.
    pub fn more(&mut self, unsettled: usize) -> Option<u16> {
        // Those on their way go back, and come again as what was read before: few of them are.
        if self.prefetch >= self.most || unsettled * 16 < usize::from(self.prefetch) * 15 {
            return None;
        }
        let fits = self.bytes_most / (self.bytes / self.messages.max(1.0)).max(1.0);
        let by = (fits as u16).clamp(FIRST, self.prefetch.saturating_mul(TIMES - 1).max(FIRST));
        self.prefetch = self.prefetch.saturating_add(by).min(self.most);
        Some(self.prefetch)
    }

    /// Nothing has come for a while: whether one of as few as at first is to be had again, and how many these are.
    pub fn fewer(&mut self) -> Option<u16> {
        if self.prefetch <= FIRST || !self.is_alone {
            return None;
        }
        self.prefetch = FIRST;
        Some(FIRST)
    }
}

/// Settles what one consumer gave, and counts what it has not.
pub(crate) struct Counting {
    acker: Arc<dyn Acker>,
    unsettled: AtomicUsize,
}

impl Counting {
    pub fn new(acker: Arc<dyn Acker>) -> Arc<Self> {
        Arc::new(Self { acker, unsettled: AtomicUsize::new(0) })
    }

    pub fn came(&self, deliveries: usize) {
        self.unsettled.fetch_add(deliveries, Ordering::AcqRel);
    }

    pub fn unsettled(&self) -> usize {
        self.unsettled.load(Ordering::Acquire)
    }
}

#[async_trait]
impl Acker for Counting {
    async fn settle(&self, tags: Vec<Tag>, verdict: Verdict) -> usize {
        let count = tags.len();
        let void = self.acker.settle(tags, verdict).await;
        // After it was told, since the consumer may go when all is.
        self.unsettled.fetch_sub(count, Ordering::AcqRel);
        void
    }
}

#[cfg(test)]
mod tests {
    use super::{Ahead, FIRST};

    const MB: usize = 1 << 20;

    fn of_messages(bytes: usize) -> Ahead {
        let mut ahead = Ahead::new(60_000, 128 * MB, true);
        (0..512).for_each(|_| ahead.handle_read(bytes));
        ahead
    }

    #[test]
    fn they_get_more_once_all_are_here_and_few_when_it_is_quiet() {
        let mut ahead = of_messages(200);
        assert_eq!((ahead.prefetch(), ahead.more(470)), (FIRST, None), "more may come as it is");
        let steps: Vec<u16> = std::iter::from_fn(|| ahead.more(usize::from(ahead.prefetch()))).collect();
        assert_eq!(steps, [2_048, 8_192, 32_768, 60_000]);
        assert_eq!((ahead.fewer(), ahead.fewer(), ahead.prefetch()), (Some(FIRST), None, FIRST));
    }

    #[test]
    fn large_messages_come_in_smaller_steps() {
        assert_eq!(of_messages(60_000).more(512), Some(512 + 1_118));
        assert_eq!(of_messages(1_000_000).more(512), Some(1_024));
        let mut ahead = of_messages(60_000);
        (0..20_000).for_each(|_| ahead.handle_read(200));
        assert_eq!(ahead.more(512), Some(2_048), "what was long ago is forgotten");
    }

    #[test]
    fn a_small_window_and_one_of_several_shards_stay_as_they_are() {
        for (window, is_alone) in [(100, true), (60_000, false)] {
            let mut ahead = Ahead::new(window, 128 * MB, is_alone);
            assert_eq!(usize::from(ahead.prefetch()), window);
            assert_eq!((ahead.more(window), ahead.fewer()), (None, None));
        }
    }
}
