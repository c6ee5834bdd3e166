//! The groups of one model, by class: one for each class that has a task.

use taskyard_shared::Priority;

use super::lane::Group;
use super::line::Rank;
use super::policy::{CostBucket, Stage, Waiting};
use super::tasks::{Handle, Record, Tasks};

/// What tasks have in common whose scores a policy never reorders.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class {
    pub(super) priority: Priority,
    pub(super) cost: CostBucket,
    pub(super) stage: u8,
}

impl Class {
    fn of(waiting: &Waiting, stage: Stage) -> Self {
        Self { priority: waiting.priority, cost: waiting.cost, stage: stage.number }
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
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The best head of each group.
    pub(super) fn heads(&self) -> &[Waiting] {
        &self.heads
    }

    /// The group of the head with this index.
    pub(super) fn group(&self, index: usize) -> Option<&Group> {
        self.groups.get(index)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Class, &Group)> {
        self.classes.iter().zip(&self.groups)
    }

    pub(super) fn find(&self, waiting: &Waiting, stage: Stage) -> Option<&Group> {
        self.groups.get(self.classes.binary_search(&Class::of(waiting, stage)).ok()?)
    }

    pub(super) fn insert(&mut self, task: Handle, record: &Record, stage: Stage, rank: Rank) {
        let Record { waiting, tenant, .. } = record;
        let class = Class::of(waiting, stage);
        match self.classes.binary_search(&class) {
            Ok(index) => {
                if self.groups[index].insert(rank, *tenant, task) {
                    self.heads[index] = waiting.clone();
                }
            }
            Err(index) => {
                self.classes.insert(index, class);
                self.heads.insert(index, waiting.clone());
                self.groups.insert(index, Group::new(rank, *tenant, task));
            }
        }
    }

    pub(super) fn remove(&mut self, record: &Record, stage: Stage, rank: Rank, tasks: &Tasks) {
        let Ok(index) = self.classes.binary_search(&Class::of(&record.waiting, stage)) else { return };
        let group = &mut self.groups[index];
        let was_best = group.remove(rank, record.tenant);
        match group.best() {
            Some(best) if was_best => {
                if let Some(record) = tasks.get(best) {
                    self.heads[index] = record.waiting.clone();
                }
            }
            Some(_) => {}
            None => {
                self.classes.remove(index);
                self.heads.remove(index);
                self.groups.remove(index);
            }
        }
    }
}
