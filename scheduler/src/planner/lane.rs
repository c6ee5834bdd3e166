//! Lanes: the tasks of one class and tenant, in order.

use taskyard_shared::Priority;

use super::groups::Class;
use super::line::{Line, Rank};
use super::policy::CostBucket;
use super::tasks::Handle;

/// The lanes of one tenant in one model, by class. None is empty.
#[derive(Default)]
pub(super) struct Lanes {
    lanes: Vec<(Class, Line)>,
}

/// A lane has another head than before.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewHead {
    pub(super) before: Option<Rank>,
    pub(super) after: Option<(Rank, Handle)>,
}

impl Lanes {
    /// Puts a task into its lane. Answers whether it is the lane's head now.
    pub(super) fn insert(&mut self, class: Class, rank: Rank, task: Handle) -> Option<NewHead> {
        let before = match self.find(class) {
            Ok(at) => {
                let lane = &mut self.lanes[at].1;
                let head = lane.first().map(|(head, _)| head);
                lane.insert(rank, task);
                head
            }
            Err(at) => {
                if self.lanes.is_empty() {
                    // Most tenants of many have one lane.
                    self.lanes.reserve_exact(1);
                }
                self.lanes.insert(at, (class, Line::from((rank, task))));
                None
            }
        };
        before.is_none_or(|head| rank < head).then_some(NewHead { before, after: Some((rank, task)) })
    }

    /// Takes a task out of its lane. Answers what changed if it was the head.
    pub(super) fn remove(&mut self, class: Class, rank: Rank) -> Option<NewHead> {
        let at = self.find(class).ok()?;
        let lane = &mut self.lanes[at].1;
        let was_head = lane.first().is_some_and(|(head, _)| head == rank);
        lane.remove(rank);
        let after = lane.first();
        if after.is_none() {
            self.lanes.remove(at);
        }
        was_head.then_some(NewHead { before: Some(rank), after })
    }

    /// The head of each lane.
    pub(super) fn heads(&self) -> impl Iterator<Item = (Class, Rank, Handle)> {
        self.lanes.iter().filter_map(|(class, lane)| lane.first().map(|(rank, task)| (*class, rank, task)))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(Class, Line)> {
        self.lanes.iter()
    }

    /// The lanes of a priority and cost bucket, one for each stage.
    pub(super) fn of(&self, class: (Priority, CostBucket)) -> impl Iterator<Item = &(Class, Line)> {
        let from = self.lanes.partition_point(|(one, _)| (one.priority, one.cost) < class);
        self.lanes.iter().skip(from).take_while(move |(one, _)| (one.priority, one.cost) == class)
    }

    /// Tasks before this one in its lane, counted up to a limit.
    pub(super) fn ahead(&self, class: Class, rank: Rank, limit: usize) -> usize {
        let lane = self.find(class).ok().and_then(|at| self.lanes.get(at));
        lane.map_or(0, |(_, lane)| lane.iter().take_while(|(other, _)| *other < rank).take(limit).count())
    }

    fn find(&self, class: Class) -> Result<usize, usize> {
        self.lanes.binary_search_by_key(&class, |&(class, _)| class)
    }
}
