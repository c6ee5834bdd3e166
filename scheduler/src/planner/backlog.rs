//! The waiting tasks of one model, and the choice among them.

use std::collections::BTreeMap;

use super::decision::DispatchReason;
use super::groups::Groups;
use super::line::Rank;
use super::oldest::Oldest;
use super::policy::{Policy, Stage, Waiting};
use super::tasks::{Handle, Place, Record, Tasks};

#[derive(Default)]
pub(super) struct Backlog {
    pub(super) groups: Groups,
    /// When tasks leave their stage. They are moved when a decision is due and not before: a move decides nothing.
    stage_ends: BTreeMap<(u64, u64), Handle>,
    /// The oldest of the tasks that their lanes do not keep in the order of arrival.
    oldest: Oldest,
    /// Tasks in lanes.
    pub(super) queued: usize,
    /// Tasks that may not start yet.
    pub(super) delayed: usize,
    /// Σ priority × expected time over both, in microseconds: whole numbers add up without drift.
    weighted_us: u128,
}

fn rank(waiting: &Waiting, key: Option<u64>) -> Rank {
    Rank { key: key.unwrap_or(0), arrival_us: waiting.arrival_us, sequence: waiting.sequence }
}

fn weighted_us(waiting: &Waiting) -> u128 {
    u128::from(waiting.priority.get()) * (waiting.expected_seconds * 1e6) as u128
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    pub(super) fn waiting(&self) -> usize {
        self.queued + self.delayed
    }

    pub(super) fn weighted_seconds(&self) -> f64 {
        self.weighted_us as f64 / 1e6
    }

    /// Since when the longest waiting of the tasks that may start waits.
    pub(super) fn oldest_arrival_us(&self) -> Option<u64> {
        let heads = self.groups.heads().iter().map(|head| head.arrival_us);
        heads.chain(self.oldest.arrival_us()).min()
    }

    pub(super) fn count_delayed(&mut self, waiting: &Waiting) {
        self.delayed += 1;
        self.weighted_us += weighted_us(waiting);
    }

    pub(super) fn uncount_delayed(&mut self, waiting: &Waiting) {
        self.delayed -= 1;
        self.weighted_us -= weighted_us(waiting);
    }

    /// Puts a task into its lane.
    pub(super) fn insert(&mut self, task: Handle, record: &mut Record, policy: &dyn Policy, now_us: u64) {
        let stage = policy.stage(&record.waiting, now_us);
        record.place = Place::Lane { stage };
        self.queued += 1;
        self.weighted_us += weighted_us(&record.waiting);
        let key = policy.lane_key(&record.waiting);
        if key.is_some() {
            self.oldest.insert((record.waiting.arrival_us, record.waiting.sequence, task));
        }
        self.enter_stage(task, record, stage, rank(&record.waiting, key));
    }

    /// Takes a task out of its lane. Its place is the caller's to set.
    pub(super) fn remove(&mut self, task: Handle, stage: Stage, tasks: &Tasks, policy: &dyn Policy) {
        let Some(record) = tasks.get(task) else { return };
        self.queued -= 1;
        self.weighted_us -= weighted_us(&record.waiting);
        let key = policy.lane_key(&record.waiting);
        if key.is_some() {
            self.oldest.handle_left(self.queued, |&(_, sequence, other)| {
                other != task && tasks.get(other).is_some_and(|record| record.is_queued(sequence))
            });
        }
        self.leave_stage(record, stage, rank(&record.waiting, key), tasks);
    }

    /// The task to dispatch now, why, and what the policy makes of it.
    pub(super) fn choose(&self, policy: &dyn Policy, now_us: u64) -> Option<(Handle, DispatchReason, f64)> {
        let heads = self.groups.heads();
        let best = policy.best(heads, now_us)?;
        let group = self.groups.group(best.index)?;
        let reason = if heads.len() == 1 && group.lanes().len() == 1 {
            DispatchReason::OnlyLane
        } else if best.is_level || heads.len() == 1 && !group.best_by_key() {
            DispatchReason::Oldest
        } else {
            DispatchReason::BestScore
        };
        let score = heads.get(best.index).map_or(0.0, |head| policy.score(head, now_us));
        Some((group.best()?, reason, score))
    }

    /// Moves the tasks whose stage has ended.
    pub(super) fn advance_stages(&mut self, tasks: &mut Tasks, policy: &dyn Policy, now_us: u64) {
        while let Some(entry) = self.stage_ends.first_entry() {
            if entry.key().0 > now_us {
                return;
            }
            let task = entry.remove();
            let Some(record) = tasks.get(task) else { continue };
            let Place::Lane { stage } = record.place else { continue };
            let rank = rank(&record.waiting, policy.lane_key(&record.waiting));
            let next = policy.stage(&record.waiting, now_us);
            self.leave_stage(record, stage, rank, tasks);
            if let Some(record) = tasks.get_mut(task) {
                record.place = Place::Lane { stage: next };
                self.enter_stage(task, record, next, rank);
            }
        }
    }

    /// Tasks before this one in its lane, counted up to a limit.
    pub(super) fn ahead(&self, record: &Record, stage: Stage, policy: &dyn Policy, limit: usize) -> usize {
        let rank = rank(&record.waiting, policy.lane_key(&record.waiting));
        self.groups.find(&record.waiting, stage).map_or(0, |group| group.ahead(rank, record.tenant, limit))
    }

    fn enter_stage(&mut self, task: Handle, record: &Record, stage: Stage, rank: Rank) {
        if let Some(until_us) = stage.until_us {
            self.stage_ends.insert((until_us, record.waiting.sequence), task);
        }
        self.groups.insert(task, record, stage, rank);
    }

    fn leave_stage(&mut self, record: &Record, stage: Stage, rank: Rank, tasks: &Tasks) {
        if let Some(until_us) = stage.until_us {
            self.stage_ends.remove(&(until_us, record.waiting.sequence));
        }
        self.groups.remove(record, stage, rank, tasks);
    }
}
