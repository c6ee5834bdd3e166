//! What becomes of tasks that cannot meet their deadlines, and which go first so that others can.
//!
//! [`super::deadlines`] knows who fits; here that meets what the model runs, and what the policy chose.

use super::backlog::Choice;
use super::deadlines::{Admission, Late, Runs};
use super::decision::{DispatchReason, ShedReason};
use super::models::Model;
use super::shares::Standing;
use super::tasks::{Handle, NEVER, Place};
use super::{Ended, Planner};

impl Planner {
    /// Learns from the tasks with a claim that have ended.
    pub(super) fn judge(&mut self, now_us: u64) {
        for Ended { model, deadline_us, begun_us, expected_us } in self.ended.drain(..) {
            let ran_us = now_us.saturating_sub(begun_us) as f64;
            self.models.get_mut(model).deadlines.handle_end(now_us > deadline_us, ran_us, expected_us);
        }
    }

    /// Whether a task that was just put into its place can meet its deadline: if not, when it would end. What gives way
    /// to it is set aside.
    pub(super) fn check(&mut self, task: Handle, now_us: u64) -> Option<u64> {
        let record = self.tasks.get(task)?;
        let model = self.models.get(record.model);
        if self.late == Late::Keep || !model.can_run() || record.waiting.deadline_us.is_none() {
            return None;
        }
        if let Place::Delayed { start_us } = record.place {
            // The others are not in its way yet.
            let finish_us = (record.expires_us - model.deadlines.latest_us(&record.waiting)).saturating_add(start_us);
            return Some(finish_us).filter(|&finish_us| finish_us > record.expires_us);
        }
        let number = record.model;
        self.look(number, now_us);
        let record = self.tasks.get(task)?;
        match self.models.get_mut(number).deadlines.admit(&record.waiting, task) {
            Admission::Fits => None,
            Admission::Unreachable { finish_us } => Some(finish_us),
            Admission::Instead(others) => {
                for other in others {
                    self.give_up(other, now_us);
                }
                None
            }
        }
    }

    /// Tells a model's deadlines what it runs.
    pub(super) fn look(&mut self, number: u32, now_us: u64) {
        let Model { backlog, capacity, deadlines, .. } = self.models.get_mut(number);
        capacity.begin(now_us);
        // Others have what their floors give them for certain.
        let others_wait = backlog.queued > deadlines.len();
        let share = if others_wait { 1.0 - self.fairness.floors.iter().sum::<f64>() } else { 1.0 };
        let expected_us = |task| self.tasks.get(task).map_or(0.0, |record| record.waiting.expected_seconds * 1e6);
        let runs = Runs {
            now_us,
            slots: capacity.slots(),
            running: capacity.running().map(|(task, begun_us)| (begun_us, expected_us(task))),
            ahead: capacity.ahead().map(expected_us),
        };
        deadlines.look(runs, share);
    }

    /// Sets aside what has to give way so that the others meet their deadlines.
    pub(super) fn shed_late(&mut self, number: u32, now_us: u64) {
        if self.models.get(number).deadlines.is_empty() {
            return self.models.get_mut(number).capacity.begin(now_us);
        }
        self.look(number, now_us);
        while let Some(task) = self.models.get(number).deadlines.giving_way() {
            if !self.give_up(task, now_us) {
                return;
            }
        }
    }

    /// The task that is to go instead of the one that the policy chose, when that would make one late.
    pub(super) fn in_time(&mut self, number: u32, chosen: Choice, now_us: u64) -> Choice {
        let Model { backlog, deadlines, capacity, .. } = self.models.get_mut(number);
        // What goes by its floor has that for certain; the deadlines reckon without it.
        if deadlines.is_empty() || !capacity.has_credit() || chosen.reason == DispatchReason::Floor {
            return chosen;
        }
        let Some(record) = self.tasks.get(chosen.task) else { return chosen };
        let Some(first) = deadlines.instead_of(&record.waiting, record.has_claim()) else { return chosen };
        let Some(record) = self.tasks.get(first) else { return chosen };
        // A deadline gives its tenant no more than its share.
        if backlog.shares.flow(record.flow).standing != Standing::Eligible {
            return chosen;
        }
        let score = self.policy.score(&record.waiting, backlog.moment(now_us));
        Choice { task: first, reason: DispatchReason::Deadline, score, ..chosen }
    }

    /// A waiting task does not run in time: it is set aside, to be told, or loses its claim. Answers whether it waited.
    pub(super) fn give_up(&mut self, task: Handle, now_us: u64) -> bool {
        if !self.withdraw(task) {
            return false;
        }
        let Some(record) = self.tasks.get_mut(task) else { return false };
        record.claim_us = NEVER;
        if self.late == Late::Refuse {
            record.place = Place::Leaving;
            self.shed.push_back((task, ShedReason::Deadline));
        } else {
            (record.waiting.deadline_us, record.waiting.due_us) = (None, None);
            match record.place {
                Place::Delayed { start_us } if start_us > now_us => {
                    self.models.get_mut(record.model).backlog.count_delayed(&record.waiting);
                    self.set_alarm(task);
                }
                _ => self.enqueue(task, now_us),
            }
        }
        true
    }
}
