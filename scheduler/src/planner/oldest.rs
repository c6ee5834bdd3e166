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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::Oldest;

    proptest! {
        /// Long enough that those who left are cleared away several times.
        #[test]
        fn it_knows_the_oldest_and_keeps_few_who_left(
            steps in prop::collection::vec((0..1000u64, any::<u16>(), 0..3u8), 0..1500),
        ) {
            let mut oldest = Oldest::default();
            let mut waiting = BTreeSet::new();
            for (sequence, (back, leaver, leave)) in (0u64..).zip(steps) {
                let arrival_us = 10 * sequence + 1000 - if back < 100 { 10 * back } else { 0 };
                let entry = (arrival_us, sequence, sequence as u32);
                waiting.insert(entry);
                oldest.insert(entry);
                // Mostly the young leave, so that the old ones hold the others up.
                for _ in 0..leave {
                    let from = waiting.len() / 2 + usize::from(leaver) % waiting.len().div_ceil(2).max(1);
                    let Some(&entry) = waiting.iter().nth(from) else { break };
                    waiting.remove(&entry);
                    oldest.handle_left(waiting.len(), |entry| waiting.contains(entry));
                    prop_assert!(oldest.queue.len() + oldest.strays.len() <= 2 * waiting.len() + 64);
                }
                prop_assert_eq!(oldest.arrival_us(), waiting.first().map(|&(arrival_us, ..)| arrival_us));
            }
        }
    }
}
