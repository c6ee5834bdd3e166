//! Lanes: the tasks of one class and tenant, in order.
//!
//! A group holds the lanes of one class (all tenants) and knows the best of their heads, so that a decision looks at
//! one task per class however many tenants there are.

use std::collections::BTreeMap;

use super::line::{Line, Rank};
use super::policy::Waiting;
use super::tasks::{Handle, Tasks};

/// The lanes of one class. It has at least one task.
pub(super) struct Group {
    /// The best head, copied so that groups are compared without reaching for their tasks.
    pub(super) head: Waiting,
    /// Each lane's head, and whose lane it is.
    heads: BTreeMap<Rank, (u32, Handle)>,
    /// By tenant. None is empty.
    pub(super) lanes: BTreeMap<u32, Line>,
}

impl Group {
    pub(super) fn new(rank: Rank, tenant: u32, task: Handle, waiting: &Waiting) -> Self {
        Self {
            head: waiting.clone(),
            heads: BTreeMap::from([(rank, (tenant, task))]),
            lanes: BTreeMap::from([(tenant, Line::from((rank, task)))]),
        }
    }

    pub(super) fn insert(&mut self, rank: Rank, tenant: u32, task: Handle, waiting: &Waiting) {
        let lane = self.lanes.entry(tenant).or_default();
        let head = lane.first().map(|(head, _)| head);
        lane.insert(rank, task);
        if head.is_some_and(|head| head < rank) {
            return;
        }
        if let Some(head) = head {
            self.heads.remove(&head);
        }
        if self.heads.first_key_value().is_none_or(|(&best, _)| rank < best) {
            self.head = waiting.clone();
        }
        self.heads.insert(rank, (tenant, task));
    }

    /// Takes a task out. Answers whether any is left; when none is, the group is to be dropped.
    pub(super) fn remove(&mut self, rank: Rank, tenant: u32, tasks: &Tasks) -> bool {
        let Some(lane) = self.lanes.get_mut(&tenant) else { return true };
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
        let Some((_, &(_, best))) = self.heads.first_key_value() else { return false };
        if was_best && let Some(record) = tasks.get(best) {
            self.head = record.waiting.clone();
        }
        true
    }

    /// The task to take from this group.
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
