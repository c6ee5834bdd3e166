//! An ordered line that is made for tasks which come in order and leave from the front.
//!
//! Those stand in a plain queue, where both cost next to nothing. One that comes out of order stands in a tree beside
//! it, and one that leaves from the middle leaves a gap, closed once the gaps are more than the tasks. So nothing costs
//! more than the logarithm of the line's length, over time.

use std::collections::{BTreeMap, VecDeque};

use super::tasks::Handle;

/// The order in a line, and between the heads of lines.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Rank {
    /// The policy's.
    pub(super) key: u64,
    pub(super) arrival_us: u64,
    pub(super) sequence: u64,
}

#[derive(Default)]
pub(super) struct Line {
    /// In order; neither end is a gap.
    queue: VecDeque<(Rank, Option<Handle>)>,
    gaps: usize,
    strays: BTreeMap<Rank, Handle>,
}

impl From<(Rank, Handle)> for Line {
    fn from((rank, task): (Rank, Handle)) -> Self {
        Self { queue: VecDeque::from([(rank, Some(task))]), ..Self::default() }
    }
}

impl Line {
    pub(super) fn len(&self) -> usize {
        self.queue.len() - self.gaps + self.strays.len()
    }

    /// How many of it came before this time, but for those that were told to leave and the few that came out of order. `None` when
    /// it is not in the order of arrival.
    pub(super) fn came_before(&self, arrival_us: u64) -> Option<usize> {
        let ((first, _), (last, _)) = (self.queue.front()?, self.queue.back()?);
        (first.key == last.key).then(|| self.queue.partition_point(|(rank, _)| rank.arrival_us < arrival_us))
    }

    pub(super) fn first(&self) -> Option<(Rank, Handle)> {
        let queued = self.queue.front().and_then(|&(rank, task)| Some((rank, task?)));
        let stray = self.strays.first_key_value().map(|(&rank, &task)| (rank, task));
        queued.into_iter().chain(stray).min()
    }

    pub(super) fn insert(&mut self, rank: Rank, task: Handle) {
        if self.queue.back().is_none_or(|&(last, _)| last < rank) {
            self.queue.push_back((rank, Some(task)));
        } else {
            self.strays.insert(rank, task);
        }
    }

    pub(super) fn remove(&mut self, rank: Rank) {
        if self.queue.pop_front_if(|(first, _)| *first == rank).is_none() {
            if self.strays.remove(&rank).is_some() {
                return;
            }
            let Ok(at) = self.queue.binary_search_by_key(&rank, |&(rank, _)| rank) else { return };
            self.queue[at].1 = None;
            self.gaps += 1;
        }
        self.close_gaps();
    }

    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Rank, Handle)> {
        let mut strays = self.strays.iter().map(|(&rank, &task)| (rank, task)).peekable();
        let mut queued = self.queue.iter().filter_map(|&(rank, task)| Some((rank, task?))).peekable();
        std::iter::from_fn(move || match (queued.peek(), strays.peek()) {
            (Some(one), Some(other)) if other < one => strays.next(),
            (Some(_), _) => queued.next(),
            (None, _) => strays.next(),
        })
    }

    /// From its end.
    pub(super) fn iter_back(&self) -> impl Iterator<Item = (Rank, Handle)> {
        let mut strays = self.strays.iter().rev().map(|(&rank, &task)| (rank, task)).peekable();
        let mut queued = self.queue.iter().rev().filter_map(|&(rank, task)| Some((rank, task?))).peekable();
        std::iter::from_fn(move || match (queued.peek(), strays.peek()) {
            (Some(one), Some(other)) if other > one => strays.next(),
            (Some(_), _) => queued.next(),
            (None, _) => strays.next(),
        })
    }

    fn close_gaps(&mut self) {
        while self.queue.pop_front_if(|(_, task)| task.is_none()).is_some() {
            self.gaps -= 1;
        }
        while self.queue.pop_back_if(|(_, task)| task.is_none()).is_some() {
            self.gaps -= 1;
        }
        if self.gaps * 2 > self.queue.len() {
            self.queue.retain(|(_, task)| task.is_some());
            self.gaps = 0;
        }
        // What a long line took is given back when it has become short.
        if self.queue.capacity() > 32 && self.queue.len() * 4 < self.queue.capacity() {
            self.queue.shrink_to(self.queue.len() * 2);
        }
    }
}
