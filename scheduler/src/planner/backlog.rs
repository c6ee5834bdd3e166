//! The waiting tasks of one model, and the choice among them.

use std::collections::BTreeMap;

use taskyard_shared::Priority;

use super::decision::DispatchReason;
use super::fair::{BAND_STARTS, BANDS, Fairness};
use super::floors::{self, Floors};
use super::groups::{Class, Groups};
use super::line::Rank;
use super::oldest::Oldest;
use super::pace::Pace;
use super::page::AwayByPriority;
use super::policy::{CostBucket, Moment, Policy, Stage, Typical, Waiting};
use super::predict::Foresight;
use super::shares::{Begin, Shares, Tables};
use super::tasks::{Handle, Place, Record, Tasks};

#[derive(Default)]
pub(super) struct Backlog {
    groups: Groups,
    pub(super) shares: Shares,
    pub(super) floors: Floors,
    pub(super) pace: Pace,
    pub(super) foresight: Foresight,
    pub(super) typical: Typical,
    /// When tasks leave their stage. They are moved when a decision is due and not before: a move decides nothing.
    stage_ends: BTreeMap<(u64, u64), Handle>,
    /// The oldest of the tasks that their lanes do not keep in the order of arrival.
    oldest: Oldest,
    /// Tasks in lanes.
    pub(super) queued: usize,
    /// Tasks that may not start yet.
    pub(super) delayed: usize,
    /// Tasks that were taken out for a while.
    pub(super) away: AwayByPriority,
    /// Σ priority × expected time over both, in microseconds: whole numbers add up without drift.
    weighted_us: u128,
}

/// The task to dispatch now.
pub(super) struct Choice {
    pub(super) task: Handle,
    pub(super) reason: DispatchReason,
    /// What the policy makes of it.
    pub(super) score: f64,
    /// What the best heads of the bands take, for their floors.
    pub(super) needs: [Option<u128>; BANDS],
}

fn rank(waiting: &Waiting, key: Option<u64>) -> Rank {
    Rank { key: key.unwrap_or(0), arrival_us: waiting.arrival_us, sequence: waiting.sequence }
}

fn expected_us(waiting: &Waiting) -> u128 {
    (waiting.expected_seconds * 1e6) as u128
}

fn weighted_us(waiting: &Waiting) -> u128 {
    u128::from(waiting.priority.get()) * expected_us(waiting)
}

impl Backlog {
    pub(super) fn waiting(&self) -> usize {
        self.queued + self.delayed
    }

    /// Tasks that were taken out, of all priorities.
    pub(super) fn away(&self) -> usize {
        self.away.values().map(|away| away.tasks as usize).sum()
    }

    /// Of all that wait, here or taken out.
    pub(super) fn weighted_seconds(&self) -> f64 {
        let away = self.away.iter().map(|(priority, away)| f64::from(priority.get()) * away.work_us as f64);
        (self.weighted_us as f64 + away.sum::<f64>()) / 1e6
    }

    /// Since when the longest waiting of the tasks that may start waits.
    pub(super) fn oldest_arrival_us(&self, tasks: &Tasks) -> Option<u64> {
        let heads = self.groups.heads().iter().map(|head| head.arrival_us);
        // Who may not go has no head in a group.
        let others_wait = self.shares.parked_tasks + self.shares.limited_tasks > 0;
        let others = self.shares.waiting().filter(|_| others_wait).flat_map(|flow| flow.lanes.heads());
        let others = others.filter_map(|(.., task)| tasks.get(task).map(|record| record.waiting.arrival_us));
        heads.chain(others).chain(self.oldest.arrival_us()).min()
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
    pub(super) fn insert(&mut self, task: Handle, tasks: &mut Tasks, policy: &dyn Policy, now_us: u64, begin: Begin) {
        let Some(record) = tasks.get_mut(task) else { return };
        let stage = policy.stage(&record.waiting, now_us);
        record.place = Place::Lane { stage };
        let (waiting, flow) = (&record.waiting, record.flow);
        self.queued += 1;
        self.weighted_us += weighted_us(waiting);
        self.floors.handle_came(waiting);
        self.foresight.handle_came(waiting);
        let key = policy.lane_key(waiting);
        if key.is_some() {
            self.oldest.insert((waiting.arrival_us, waiting.sequence, task));
        }
        if let Some(until_us) = stage.until_us {
            self.stage_ends.insert((until_us, waiting.sequence), task);
        }
        let lane = (Class::of(waiting, stage), rank(waiting, key));
        self.shares.insert(flow, lane, task, begin, Tables { groups: &mut self.groups, tasks });
    }

    /// Takes a task out of its lane. Its place is the caller's to set.
    pub(super) fn remove(&mut self, task: Handle, stage: Stage, tasks: &Tasks, policy: &dyn Policy) {
        let Some(record) = tasks.get(task) else { return };
        let waiting = &record.waiting;
        self.queued -= 1;
        self.weighted_us -= weighted_us(waiting);
        self.floors.handle_left(waiting);
        self.foresight.handle_left(waiting);
        let key = policy.lane_key(waiting);
        if key.is_some() {
            self.oldest.handle_left(self.queued, |&(_, sequence, other)| {
                other != task && tasks.get(other).is_some_and(|record| record.is_queued(sequence))
            });
        }
        if let Some(until_us) = stage.until_us {
            self.stage_ends.remove(&(until_us, waiting.sequence));
        }
        let lane = (Class::of(waiting, stage), rank(waiting, key));
        self.shares.remove(record.flow, lane, Tables { groups: &mut self.groups, tasks });
    }

    /// A task in a lane gets another priority, and goes to the lane of that. Its flow goes on as it did.
    pub(super) fn set_priority(&mut self, task: Handle, priority: Priority, tasks: &mut Tasks, policy: &dyn Policy) {
        let Some(Place::Lane { stage }) = tasks.get(task).map(|record| record.place) else { return };
        self.shift_out(task, stage, tasks, policy);
        if let Some(record) = tasks.get_mut(task) {
            self.weighted_us -= weighted_us(&record.waiting);
            self.floors.handle_left(&record.waiting);
            self.foresight.handle_left(&record.waiting);
            self.foresight.forget(&record.waiting);
            record.waiting.priority = priority;
            self.weighted_us += weighted_us(&record.waiting);
            self.floors.handle_came(&record.waiting);
            self.foresight.handle_came(&record.waiting);
        }
        self.shift_in(task, stage, tasks, policy);
    }

    /// Decides which tenants may go.
    pub(super) fn settle_shares(&mut self, allowance_us: u64, tasks: &Tasks) {
        self.shares.settle(allowance_us, Tables { groups: &mut self.groups, tasks });
    }

    /// A flow's tenant came to its limit, or has room again.
    pub(super) fn set_limited(&mut self, flow: u32, is_limited: bool, is_idle: bool, tasks: &Tasks) {
        self.shares.set_limited(flow, is_limited, is_idle, Tables { groups: &mut self.groups, tasks });
    }

    /// Since when the oldest of a class waits whose tenant may go.
    pub(super) fn oldest_of(&self, priority: Priority, cost: CostBucket) -> Option<u64> {
        self.groups.oldest_of(priority, cost)
    }

    /// This moment, as a policy sees it.
    pub(super) fn moment(&self, now_us: u64) -> Moment {
        let mean_wait_us = self.pace.mean_wait_us(self.queued + self.away()).max(self.shares.mean_us());
        Moment { now_us, mean_wait_us, typical: self.typical }
    }

    /// The task to dispatch now. Floors count where a credit is free.
    pub(super) fn choose(&self, policy: &dyn Policy, at: Moment, floors: Option<&Fairness>) -> Option<Choice> {
        let heads = self.groups.heads();
        if floors.is_none_or(|fairness| fairness.floors == [0.0; BANDS]) {
            let best = policy.best(heads, at)?;
            let reason = self.reason(best.index, best.is_level)?;
            return self.choice(best.index, reason, best.score, [None; BANDS]);
        }
        // The heads stand by priority: each band has a stretch of them.
        let [second, third] = BAND_STARTS.map(|start| self.groups.below(start));
        let stretches = [(0, second), (second, third), (third, heads.len())];
        let bests = stretches.map(|(from, to)| {
            let best = policy.best(self.groups.between(from..to), at)?;
            Some((from + best.index, best))
        });
        let needs = bests.map(|best| best.and_then(|(index, _)| heads.get(index)).map(floors::parts));
        let mut found: Option<(usize, f64, bool)> = None;
        for (index, best) in bests.into_iter().flatten() {
            found = match found {
                Some((_, score, _)) if best.score > score => Some((index, best.score, best.is_level)),
                Some((first, score, _)) if best.score == score => {
                    let came_before = heads.get(index)?.came_before(heads.get(first)?);
                    Some((if came_before { index } else { first }, score, true))
                }
                None => Some((index, best.score, best.is_level)),
                kept => kept,
            };
        }
        let (winner, score, is_level) = found?;
        if let Some(band) = self.floors.covered(&needs)
            && let Some((index, best)) = bests[band]
            && index != winner
        {
            return self.choice(index, DispatchReason::Floor, best.score, needs);
        }
        self.choice(winner, self.reason(winner, is_level)?, score, needs)
    }

    fn choice(&self, index: usize, reason: DispatchReason, score: f64, needs: [Option<u128>; BANDS]) -> Option<Choice> {
        Some(Choice { task: self.groups.group(index)?.best()?, reason, score, needs })
    }

    fn reason(&self, index: usize, is_level: bool) -> Option<DispatchReason> {
        let (group, only) = (self.groups.group(index)?, self.groups.heads().len() == 1);
        Some(if only && group.len() == 1 {
            DispatchReason::OnlyLane
        } else if is_level || only && !group.best_by_key() {
            DispatchReason::Oldest
        } else {
            DispatchReason::BestScore
        })
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
            let next = policy.stage(&record.waiting, now_us);
            self.shift_out(task, stage, tasks, policy);
            if let Some(record) = tasks.get_mut(task) {
                record.place = Place::Lane { stage: next };
            }
            self.shift_in(task, next, tasks, policy);
        }
    }

    /// Tasks before this one in its lane, counted up to a limit.
    pub(super) fn ahead(&self, record: &Record, stage: Stage, policy: &dyn Policy, limit: usize) -> usize {
        let rank = rank(&record.waiting, policy.lane_key(&record.waiting));
        self.shares.flow(record.flow).lanes.ahead(Class::of(&record.waiting, stage), rank, limit)
    }

    fn shift_out(&mut self, task: Handle, stage: Stage, tasks: &Tasks, policy: &dyn Policy) {
        let Some(Record { waiting, flow, .. }) = tasks.get(task) else { return };
        if let Some(until_us) = stage.until_us {
            self.stage_ends.remove(&(until_us, waiting.sequence));
        }
        let lane = (Class::of(waiting, stage), rank(waiting, policy.lane_key(waiting)));
        self.shares.shift_out(*flow, lane, Tables { groups: &mut self.groups, tasks });
    }

    fn shift_in(&mut self, task: Handle, stage: Stage, tasks: &Tasks, policy: &dyn Policy) {
        let Some(Record { waiting, flow, .. }) = tasks.get(task) else { return };
        if let Some(until_us) = stage.until_us {
            self.stage_ends.insert((until_us, waiting.sequence), task);
        }
        let lane = (Class::of(waiting, stage), rank(waiting, policy.lane_key(waiting)));
        self.shares.shift_in(*flow, lane, task, Tables { groups: &mut self.groups, tasks });
    }
}
