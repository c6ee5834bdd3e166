//! What a decision chooses from: of each class the heads of the lanes whose tenants may go, in order.
//!
//! So a decision looks at one task per class, however many tenants there are.

use std::collections::BTreeMap;
use std::ops::Range;

use taskyard_shared::Priority;

use super::lane::NewHead;
use super::line::Rank;
use super::policy::{CostBucket, Stage, Waiting};
use super::tasks::{Handle, Tasks};

/// What tasks have in common whose scores a policy never reorders.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Class {
    pub(super) priority: Priority,
    pub(super) cost: CostBucket,
    pub(super) stage: u8,
}

impl Class {
    pub(super) fn of(waiting: &Waiting, stage: Stage) -> Self {
        Self { priority: waiting.priority, cost: waiting.cost, stage: stage.number }
    }
}

/// The heads of one class, and whose they are.
#[derive(Default)]
pub(super) struct Group {
    heads: BTreeMap<Rank, (u32, Handle)>,
}

impl Group {
    /// The task to take from this group; none when it is empty.
    pub(super) fn best(&self) -> Option<Handle> {
        self.heads.first_key_value().map(|(_, &(_, task))| task)
    }

    pub(super) fn len(&self) -> usize {
        self.heads.len()
    }

    /// Whether the policy itself put the best head before all others, rather than their arrival.
    pub(super) fn best_by_key(&self) -> bool {
        let mut keys = self.heads.keys().map(|rank| rank.key);
        keys.next() != keys.next()
    }
}

/// Three columns with a row for each group, in the order of their classes: what a decision reads stands together.
#[derive(Default)]
pub(super) struct Groups {
    classes: Vec<Class>,
    /// Copies of each group's best head, so that a decision need not reach for the tasks.
    heads: Vec<Waiting>,
    groups: Vec<Group>,
}

impl Groups {
    /// The best head of each group, by priority first.
    pub(super) fn heads(&self) -> &[Waiting] {
        &self.heads
    }

    /// Where the heads of priorities below this one end.
    pub(super) fn below(&self, priority: u8) -> usize {
        self.classes.partition_point(|class| class.priority.get() < priority)
    }

    /// The oldest head of a priority and cost bucket, whatever its stage.
    pub(super) fn oldest_of(&self, priority: Priority, cost: CostBucket) -> Option<u64> {
        let from = self.classes.partition_point(|class| (class.priority, class.cost) < (priority, cost));
        let stages = self.classes.iter().zip(&self.heads).skip(from);
        let of_class = stages.take_while(|(class, _)| (class.priority, class.cost) == (priority, cost));
        of_class.map(|(_, head)| head.arrival_us).min()
    }

    pub(super) fn between(&self, rows: Range<usize>) -> &[Waiting] {
        self.heads.get(rows).unwrap_or_default()
    }

    /// The group of the head with this index.
    pub(super) fn group(&self, index: usize) -> Option<&Group> {
        self.groups.get(index)
    }

    /// The head of a flow's lane changed, came or went.
    pub(super) fn set_head(&mut self, class: Class, flow: u32, head: NewHead, tasks: &Tasks) {
        match self.classes.binary_search(&class) {
            Ok(index) => {
                let group = &mut self.groups[index];
                let best = group.best();
                if let Some(rank) = head.before {
                    group.heads.remove(&rank);
                }
                if let Some((rank, task)) = head.after {
                    group.heads.insert(rank, (flow, task));
                }
                match group.best() {
                    None => {
                        self.classes.remove(index);
                        self.heads.remove(index);
                        self.groups.remove(index);
                    }
                    Some(task) if best != Some(task) => {
                        if let Some(record) = tasks.get(task) {
                            self.heads[index] = record.waiting.clone();
                        }
                    }
                    Some(_) => {}
                }
            }
            Err(index) => {
                let Some((rank, task)) = head.after else { return };
                let Some(record) = tasks.get(task) else { return };
                self.classes.insert(index, class);
                self.heads.insert(index, record.waiting.clone());
                self.groups.insert(index, Group { heads: BTreeMap::from([(rank, (flow, task))]) });
            }
        }
    }
}
