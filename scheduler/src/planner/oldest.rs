//! Since when the longest waiting of a model's tasks waits, under a policy whose lanes do not tell.
//!
//! Only a metric asks, so a task that leaves is not looked for: it goes when it comes to the front, or when those that
//! left are the larger part.

use std::collections::{BTreeSet, VecDeque};

use super::tasks::Handle;

/// A task by its arrival and sequence.
type Entry = (u64, u64, Handle);

#[derive(Default)]
pub(super) struct Oldest {
    /// In order. The first is still waiting.
    queue: VecDeque<Entry>,
    /// Those that came out of order. The first is still waiting.
    strays: BTreeSet<Entry>,
}

impl Oldest {
    pub(super) fn arrival_us(&self) -> Option<u64> {
        self.queue.front().into_iter().chain(self.strays.first()).map(|&(arrival_us, ..)| arrival_us).min()
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        if self.queue.back().is_none_or(|last| *last < entry) {
            self.queue.push_back(entry);
        } else {
            self.strays.insert(entry);
        }
    }

    /// Some task left, and so many are left. Which of them are is the caller's to know.
    pub(super) fn handle_left(&mut self, waiting: usize, waits: impl Fn(&Entry) -> bool) {
        while self.queue.pop_front_if(|entry| !waits(entry)).is_some() {}
        while self.strays.first().is_some_and(|entry| !waits(entry)) {
            self.strays.pop_first();
        }
        if self.queue.len() + self.strays.len() > 2 * waiting + 64 {
            self.queue.retain(&waits);
            self.queue.shrink_to(2 * self.queue.len());
            self.strays.retain(&waits);
        }
    }
}
