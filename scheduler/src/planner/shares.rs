//! The shares of a model's tenants: who of them may go, by start-time fair queueing.
//!
//! What one tenant has of one model is a flow. Its start tag says how much it was given, in seconds over its weight. A flow
//! may go while its tag is within the allowance of the least of those that wait; the heads of the others' lanes are kept
//! from the groups. So whether one may go costs a decision nothing, and a flow that crosses the line costs its lanes.
//!
//! The level is the highest that the least tag ever was: what whoever waits all the time was given. A flow that comes back
//! after it had less keeps that lead up to the credit. Its burst then goes before those who had all of the time between, which
//! is what makes a tenant within its share wait as if the others kept to theirs.

use std::collections::{BTreeMap, BTreeSet};

use taskyard_shared::Priority;

use super::groups::{Class, Groups};
use super::lane::{Lanes, NewHead};
use super::line::Rank;
use super::policy::CostBucket;
use super::tasks::{Handle, Tasks};

/// Flows that are remembered only since they were given more than others.
const FADING_MOST: usize = 4096;
/// As many flows are looked at one by one.
const FEW: usize = 8;
/// A flow without a task is remembered until the level is above its tag by so many credits: somebody who comes now and then
/// is not taken for somebody new each time.
const KEPT: u64 = 8;
/// Weight of the newest dispatch in the mean run.
const NEWEST: f64 = 1.0 / 32.0;

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Standing {
    /// It has no task in a lane.
    #[default]
    Idle,
    /// The heads of its lanes are in the groups.
    Eligible,
    /// It was given so much that others come first.
    Parked,
    /// As many of its tenant's tasks are out as may be.
    Limited,
}

#[derive(Default)]
pub(super) struct Flow {
    pub(super) tenant: u32,
    pub(super) standing: Standing,
    /// Its tenant has limits of its own.
    pub(super) is_counted: bool,
    /// Tasks of it, wherever they are.
    pub(super) uses: u32,
    /// Those of them in lanes.
    pub(super) waiting: u32,
    weight: f32,
    start_us: u64,
    /// Where its tag was lifted to when it last began to wait: no refund takes it below.
    lifted_us: u64,
    /// It has waited before, and has a lead of its own if it had less than others.
    is_known: bool,
    pub(super) lanes: Lanes,
}

impl Flow {
    pub(super) fn weight(&self) -> f64 {
        f64::from(self.weight)
    }
}

#[derive(Default)]
pub(super) struct Shares {
    numbers: BTreeMap<u32, u32>,
    flows: Vec<Flow>,
    free: Vec<u32>,
    /// Flows that wait, by their tags.
    eligible: Tags,
    parked: Tags,
    /// Flows without a task whose tag still says something of them.
    fading: BTreeSet<(u64, u32)>,
    /// Flows that were forgotten: the owner has yet to let go of their tenants.
    dropped: Vec<(u32, u32)>,
    /// The highest that the least tag of the flows that wait ever was.
    level_us: u64,
    /// How far below the level a flow may come back.
    credit_us: u64,
    /// No tag was ever above.
    highest_us: u64,
    mean_us: f64,
    /// Tasks in the lanes of flows that are parked, and of those whose tenants are at their limit.
    pub(super) parked_tasks: usize,
    pub(super) limited_tasks: usize,
}

impl Shares {
    pub(super) fn flow(&self, flow: u32) -> &Flow {
        &self.flows[flow as usize]
    }

    pub(super) fn find(&self, tenant: u32) -> Option<u32> {
        self.numbers.get(&tenant).copied()
    }

    /// How many tasks of a priority and cost bucket came before this time, of those who wait. `None` when that is not told by few
    /// looks.
    pub(super) fn came_before(&self, class: (Priority, CostBucket), arrival_us: u64) -> Option<usize> {
        if self.waiting_flows() > FEW {
            return None;
        }
        let flows = self.eligible.iter().chain(self.parked.iter()).map(|(_, number)| self.flow(number));
        let mut sum = 0;
        for (_, line) in flows.flat_map(|flow| flow.lanes.of(class)) {
            sum += line.came_before(arrival_us)?;
        }
        Some(sum)
    }

    /// Flows that have a task in a lane.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Flow> {
        self.flows.iter().filter(|flow| flow.waiting > 0)
    }

    /// The same with their numbers.
    pub(super) fn numbered_waiting(&self) -> impl Iterator<Item = (u32, &Flow)> {
        (0..).zip(&self.flows).filter(|(_, flow)| flow.waiting > 0)
    }

    /// How many flows have a task in a lane, and are not at their tenant's limit.
    pub(super) fn waiting_flows(&self) -> usize {
        self.eligible.len() + self.parked.len()
    }

    /// Whether any flow has a task that may go.
    pub(super) fn has_candidates(&self) -> bool {
        !(self.eligible.is_empty() && self.parked.is_empty())
    }

    /// What a mean run takes, in microseconds; 0 before the first.
    pub(super) fn mean_us(&self) -> f64 {
        self.mean_us
    }

    /// By how much a flow is ahead of the least served that waits, in weighted seconds.
    pub(super) fn ahead_seconds(&self, flow: u32) -> f64 {
        self.least_us().map_or(0.0, |least_us| self.flow(flow).start_us.saturating_sub(least_us) as f64 / 1e6)
    }

    /// One more task of a tenant is known. Each is [released](Self::release) once. Answers its flow.
    pub(super) fn acquire(&mut self, tenant: u32) -> u32 {
        if let Some(&number) = self.numbers.get(&tenant) {
            let flow = &mut self.flows[number as usize];
            if flow.uses == 0 {
                self.fading.remove(&(flow.start_us, number));
            }
            flow.uses += 1;
            return number;
        }
        let flow = Flow { tenant, weight: 1.0, uses: 1, ..Flow::default() };
        let number = match self.free.pop() {
            Some(number) => {
                self.flows[number as usize] = flow;
                number
            }
            None => {
                self.flows.push(flow);
                self.flows.len() as u32 - 1
            }
        };
        self.numbers.insert(tenant, number);
        number
    }

    /// A task is no longer known. Its flow is remembered while the model is at work, unless it had much less than others for long.
    pub(super) fn release(&mut self, number: u32, is_idle: bool) {
        let flow = &mut self.flows[number as usize];
        flow.uses -= 1;
        if flow.uses == 0 {
            self.fading.insert((flow.start_us, number));
            self.forget(is_idle);
            if self.fading.len() > FADING_MOST
                && let Some((_, number)) = self.fading.pop_first()
            {
                self.drop_flow(number);
            }
        }
    }

    /// Flows that were forgotten, and whose they were.
    pub(super) fn take_dropped(&mut self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.dropped)
    }

    pub(super) fn set_weight(&mut self, flow: u32, weight: f64, is_counted: bool) {
        let flow = &mut self.flows[flow as usize];
        (flow.weight, flow.is_counted) = (weight as f32, is_counted);
    }

    /// A task comes into its lane. With its first, a flow begins to wait.
    pub(super) fn insert(&mut self, number: u32, lane: (Class, Rank), task: Handle, begin: Begin, mut tables: Tables) {
        self.shift_in(number, lane, task, tables.again());
        let flow = &mut self.flows[number as usize];
        flow.waiting += 1;
        match flow.standing {
            Standing::Idle if begin.is_limited => {
                flow.standing = Standing::Limited;
                self.limited_tasks += 1;
            }
            Standing::Idle => self.begin(number, begin.is_idle, tables),
            Standing::Eligible => {}
            Standing::Parked => self.parked_tasks += 1,
            Standing::Limited => self.limited_tasks += 1,
        }
    }

    /// A task leaves its lane. With its last, a flow no longer waits.
    pub(super) fn remove(&mut self, number: u32, lane: (Class, Rank), tables: Tables) {
        self.shift_out(number, lane, tables);
        let flow = &mut self.flows[number as usize];
        flow.waiting -= 1;
        match flow.standing {
            Standing::Parked => self.parked_tasks -= 1,
            Standing::Limited => self.limited_tasks -= 1,
            Standing::Idle | Standing::Eligible => {}
        }
        if flow.waiting == 0 {
            self.end(number, Standing::Idle);
        }
    }

    /// A task comes into a lane of a flow that goes on waiting: from another lane of it.
    pub(super) fn shift_in(&mut self, number: u32, (class, rank): (Class, Rank), task: Handle, tables: Tables) {
        let flow = &mut self.flows[number as usize];
        if let Some(head) = flow.lanes.insert(class, rank, task)
            && flow.standing == Standing::Eligible
        {
            tables.groups.set_head(class, number, head, tables.tasks);
        }
    }

    /// A task leaves a lane, for another of the same flow.
    pub(super) fn shift_out(&mut self, number: u32, (class, rank): (Class, Rank), tables: Tables) {
        let flow = &mut self.flows[number as usize];
        if let Some(head) = flow.lanes.remove(class, rank)
            && flow.standing == Standing::Eligible
        {
            tables.groups.set_head(class, number, head, tables.tasks);
        }
    }

    /// A task of a flow was dispatched, which counts for so much, and is expected to run for so long.
    pub(super) fn charge(&mut self, number: u32, charge_us: u64, run_us: f64) {
        self.mean_us = if self.mean_us == 0.0 { run_us } else { self.mean_us + (run_us - self.mean_us) * NEWEST };
        if charge_us > 0 {
            self.set_start(number, self.flow(number).start_us.saturating_add(charge_us));
        }
    }

    /// What was charged so was something else.
    pub(super) fn correct(&mut self, number: u32, charged_us: u64, charge_us: u64) {
        if charged_us != charge_us {
            let flow = self.flow(number);
            let start_us = flow.start_us.saturating_sub(charged_us).saturating_add(charge_us);
            self.set_start(number, start_us.max(flow.lifted_us));
        }
    }

    /// How far below the level a flow may come back from now on.
    pub(super) fn set_credit(&mut self, credit_us: u64) {
        self.credit_us = credit_us;
    }

    /// Decides who may go, by the tags as they are.
    pub(super) fn settle(&mut self, allowance_us: u64, mut tables: Tables) {
        let Some(least_us) = self.least_us() else { return };
        let line_us = least_us.saturating_add(allowance_us);
        while let Some((start_us, number)) = self.eligible.last()
            && start_us > line_us
        {
            self.eligible.remove(start_us, number);
            self.parked.insert(start_us, number);
            self.parked_tasks += self.flow(number).waiting as usize;
            self.stand(number, Standing::Parked, tables.again());
        }
        while let Some((start_us, number)) = self.parked.first()
            && start_us <= line_us
        {
            self.parked.remove(start_us, number);
            self.eligible.insert(start_us, number);
            self.parked_tasks -= self.flow(number).waiting as usize;
            self.stand(number, Standing::Eligible, tables.again());
        }
        self.forget(false);
    }

    /// A flow's tenant came to its limit, or has room again.
    pub(super) fn set_limited(&mut self, number: u32, is_limited: bool, is_idle: bool, mut tables: Tables) {
        let flow = self.flow(number);
        let (standing, waiting) = (flow.standing, flow.waiting as usize);
        if standing == Standing::Idle || is_limited == (standing == Standing::Limited) {
            return;
        }
        if is_limited {
            if standing == Standing::Parked {
                self.parked_tasks -= waiting;
            }
            self.limited_tasks += waiting;
            if standing == Standing::Eligible {
                self.stand(number, Standing::Parked, tables.again());
                self.flows[number as usize].standing = Standing::Eligible;
            }
            self.end(number, Standing::Limited);
        } else {
            self.limited_tasks -= waiting;
            self.flows[number as usize].standing = Standing::Idle;
            self.begin(number, is_idle, tables);
        }
    }

    /// The least tag of the flows that wait and may go.
    fn least_us(&self) -> Option<u64> {
        let waiting = self.eligible.first().into_iter().chain(self.parked.first());
        waiting.map(|(start_us, _)| start_us).min()
    }

    /// The level may have risen.
    fn raise(&mut self) {
        self.level_us = self.level_us.max(self.least_us().unwrap_or(0));
    }

    /// A flow takes part. Who had less than the level keeps so much of that; who was never seen is level. When the model has
    /// nothing to do at all, everybody begins level.
    fn begin(&mut self, number: u32, is_idle: bool, tables: Tables) {
        let is_level = is_idle && !self.has_candidates();
        let (level_us, credit_us) = (if is_level { self.highest_us } else { self.level_us }, self.credit_us);
        let flow = &mut self.flows[number as usize];
        let keeps_us = if flow.is_known && !is_level { credit_us } else { 0 };
        flow.is_known = true;
        flow.lifted_us = level_us.saturating_sub(keeps_us);
        flow.start_us = flow.start_us.max(flow.lifted_us);
        self.eligible.insert(flow.start_us, number);
        self.raise();
        self.stand(number, Standing::Eligible, tables);
    }

    /// A flow takes no part for now.
    fn end(&mut self, number: u32, standing: Standing) {
        let flow = &mut self.flows[number as usize];
        let was = std::mem::replace(&mut flow.standing, standing);
        let start_us = flow.start_us;
        match was {
            Standing::Eligible => self.eligible.remove(start_us, number),
            Standing::Parked => self.parked.remove(start_us, number),
            Standing::Idle | Standing::Limited => return,
        }
        self.raise();
    }

    /// Puts the heads of a flow's lanes into the groups, or takes them out.
    fn stand(&mut self, number: u32, standing: Standing, tables: Tables) {
        let flow = &mut self.flows[number as usize];
        flow.standing = standing;
        for (class, rank, task) in flow.lanes.heads() {
            let head = match standing {
                Standing::Eligible => NewHead { before: None, after: Some((rank, task)) },
                Standing::Idle | Standing::Parked | Standing::Limited => NewHead { before: Some(rank), after: None },
            };
            tables.groups.set_head(class, number, head, tables.tasks);
        }
    }

    fn set_start(&mut self, number: u32, start_us: u64) {
        let flow = &mut self.flows[number as usize];
        let before_us = std::mem::replace(&mut flow.start_us, start_us);
        match flow.standing {
            Standing::Eligible => self.eligible.replace(before_us, start_us, number),
            Standing::Parked => self.parked.replace(before_us, start_us, number),
            Standing::Idle | Standing::Limited => {}
        }
        self.highest_us = self.highest_us.max(start_us);
        self.raise();
    }

    /// Forgets the flows without a task whose tags say nothing any more: of all, while the model has nothing to do.
    fn forget(&mut self, is_idle: bool) {
        let up_to_us = match is_idle && !self.has_candidates() {
            true => self.highest_us,
            false => self.level_us.saturating_sub(self.credit_us.saturating_mul(KEPT)),
        };
        while let Some(&(start_us, number)) = self.fading.first()
            && start_us <= up_to_us
        {
            self.fading.pop_first();
            self.drop_flow(number);
        }
    }

    fn drop_flow(&mut self, number: u32) {
        let flow = std::mem::take(&mut self.flows[number as usize]);
        self.numbers.remove(&flow.tenant);
        self.free.push(number);
        self.dropped.push((flow.tenant, number));
    }
}

/// How a flow finds things when it begins to wait.
#[derive(Clone, Copy)]
pub(super) struct Begin {
    /// Its tenant is at its limit.
    pub(super) is_limited: bool,
    /// None of the model's tasks are out.
    pub(super) is_idle: bool,
}

/// What stands beside the shares and changes with them.
pub(super) struct Tables<'a> {
    pub(super) groups: &'a mut Groups,
    pub(super) tasks: &'a Tasks,
}

impl Tables<'_> {
    fn again(&mut self) -> Tables<'_> {
        Tables { groups: self.groups, tasks: self.tasks }
    }
}

/// Flows by their tags. A single one, which is the usual case, stands by itself.
#[derive(Default)]
struct Tags {
    only: Option<(u64, u32)>,
    /// Empty while there is a single one.
    all: BTreeSet<(u64, u32)>,
}

impl Tags {
    fn is_empty(&self) -> bool {
        self.only.is_none() && self.all.is_empty()
    }

    fn len(&self) -> usize {
        usize::from(self.only.is_some()) + self.all.len()
    }

    fn iter(&self) -> impl Iterator<Item = (u64, u32)> {
        self.only.iter().chain(&self.all).copied()
    }

    fn first(&self) -> Option<(u64, u32)> {
        self.only.or_else(|| self.all.first().copied())
    }

    fn last(&self) -> Option<(u64, u32)> {
        self.only.or_else(|| self.all.last().copied())
    }

    fn insert(&mut self, start_us: u64, flow: u32) {
        if self.is_empty() {
            self.only = Some((start_us, flow));
        } else {
            self.all.extend(self.only.take());
            self.all.insert((start_us, flow));
        }
    }

    fn remove(&mut self, start_us: u64, flow: u32) {
        if self.only.take_if(|only| *only == (start_us, flow)).is_none() {
            self.all.remove(&(start_us, flow));
        }
    }

    fn replace(&mut self, before_us: u64, start_us: u64, flow: u32) {
        match &mut self.only {
            Some(only) => *only = (start_us, flow),
            None => {
                self.all.remove(&(before_us, flow));
                self.all.insert((start_us, flow));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FADING_MOST, Shares};

    /// Names come from outsiders: who sends one task under each of many names is not remembered for ever.
    #[test]
    fn few_of_those_who_left_are_remembered() {
        let mut shares = Shares::default();
        for tenant in 0..3 * FADING_MOST as u32 {
            let flow = shares.acquire(tenant);
            shares.charge(flow, 1000 + u64::from(tenant), 1000.0);
            shares.release(flow, false);
            assert!(shares.fading.len() <= FADING_MOST && shares.flows.len() <= FADING_MOST + 2);
            shares.take_dropped();
        }
        assert_eq!(shares.numbers.len(), FADING_MOST);
        let flow = shares.acquire(0);
        shares.release(flow, true);
        assert_eq!((shares.numbers.len(), shares.take_dropped().len()), (0, FADING_MOST + 1), "all begin level again");
    }
}
