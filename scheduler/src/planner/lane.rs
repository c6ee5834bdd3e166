//! Lanes: the tasks of one class and tenant, in order.
//!
//! A group holds the lanes of one class (all tenants) and knows the best of their heads, so that a decision looks at
//! one task per class however many tenants there are.

use std::collections::BTreeMap;

use super::line::{Line, Rank};
use super::tasks::Handle;

/// The lanes of one class.
pub(super) struct Group {
    /// Each lane's head, and whose lane it is.
    heads: BTreeMap<Rank, (u32, Handle)>,
    /// By tenant. None is empty.
    lanes: BTreeMap<u32, Line>,
}

impl Group {
    pub(super) fn new(rank: Rank, tenant: u32, task: Handle) -> Self {
        Self {
            heads: BTreeMap::from([(rank, (tenant, task))]),
            lanes: BTreeMap::from([(tenant, Line::from((rank, task)))]),
        }
    }

    pub(super) fn lanes(&self) -> &BTreeMap<u32, Line> {
        &self.lanes
    }

    /// Puts a task into its lane. Answers whether it is now the best of the group.
    pub(super) fn insert(&mut self, rank: Rank, tenant: u32, task: Handle) -> bool {
        let lane = self.lanes.entry(tenant).or_default();
        let head = lane.first().map(|(head, _)| head);
        lane.insert(rank, task);
        if head.is_some_and(|head| head < rank) {
            return false;
        }
        if let Some(head) = head {
            self.heads.remove(&head);
        }
        let is_best = self.heads.first_key_value().is_none_or(|(&best, _)| rank < best);
        self.heads.insert(rank, (tenant, task));
        is_best
    }

    /// Takes a task out of its lane. Answers whether it was the best of the group.
    pub(super) fn remove(&mut self, rank: Rank, tenant: u32) -> bool {
        let Some(lane) = self.lanes.get_mut(&tenant) else { return false };
        lane.remove(rank);
        let next = lane.first();
        if next.is_none() {
            self.lanes.remove(&tenant);
        }
        let was_best = self.heads.first_key_value().is_some_and(|(&best, _)| best == rank);
        if self.heads.remove(&rank).is_some()
            && let Some((rank, task)) = next
        {
            self.heads.insert(rank, (tenant, task));
        }
        was_best
    }

    /// The task to take from this group; none when it is empty.
    pub(super) fn best(&self) -> Option<Handle> {
        self.heads.first_key_value().map(|(_, &(_, task))| task)
    }

    /// Whether the policy itself put the best head before all others, rather than their arrival.
    pub(super) fn best_by_key(&self) -> bool {
        let mut keys = self.heads.keys().map(|rank| rank.key);
        keys.next() != keys.next()
    }

    /// Tasks before this one in its lane, counted up to a limit.
    pub(super) fn ahead(&self, rank: Rank, tenant: u32, limit: usize) -> usize {
        let lane = self.lanes.get(&tenant);
        lane.map_or(0, |lane| lane.iter().take_while(|(other, _)| *other < rank).take(limit).count())
    }
}
