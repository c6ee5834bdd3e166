//! When a task will start, as far as can be known: its model's classes in place of its tasks, and a correction learnt from
//! what happened.

mod correction;
mod traffic;

use std::collections::BTreeMap;

use taskyard_shared::TaskId;

use correction::Correction;
use traffic::{Row, Traffic};

use super::Planner;
use super::admit::Arrival;
use super::fair::Fairness;
use super::models::Model;
use super::policy::{Moment, Policy, Waiting};
use super::shares::Standing;
use super::tasks::{Handle, Place, Tasks};

/// One task in so many is predicted when it comes, to learn from: at least, and for each class that a prediction looks at.
const EVERY: u32 = 64;
const EVERY_BY_CLASS: u32 = 8;
/// At the start more of them are.
const FIRST: u64 = 256;
const EVERY_AT_FIRST: u32 = 4;
/// Predictions that wait for what happens; more are not begun.
const OPEN_MOST: usize = 4_096;
/// Looks at the work ahead, each with a better idea of the start.
const ROUNDS: usize = 6;
/// Tasks of a class that are counted; of more it is taken that they came evenly.
const COUNTED: usize = 64;
/// Steps to find the last arrival of a class that goes first.
const HALVINGS: usize = 10;
/// More than this is for ever, in microseconds: 30 years.
const FOREVER_US: f64 = 1e15;
/// Running tasks that are looked at one by one; the others are taken to be like them.
const LOOKED_AT: usize = 64;
/// Part of its expected time that a task is taken to go on for, however long it has run.
const OVERDUE: f64 = 0.1;
/// Part of the time it has run beyond that, where somebody asks whether to wait for it.
const STUCK: f64 = 0.5;
/// Half of a mean run more or less does not matter.
const SCALE: f64 = 0.5;

/// When a task is predicted to start and to end, in seconds from now: the middle, and what 95 of 100 such tasks keep to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Prediction {
    pub start_q50_seconds: f64,
    pub start_q95_seconds: f64,
    pub end_q50_seconds: f64,
    pub end_q95_seconds: f64,
}

impl Prediction {
    /// How probable it is that the task ends within so many seconds.
    pub fn in_time(&self, seconds: f64) -> f64 {
        let (middle, upper) = (self.end_q50_seconds.max(1e-9), self.end_q95_seconds.max(1e-9));
        // As if the logarithm of the end were normally distributed.
        let spread = ((upper / middle).ln() / 1.645).max(1e-3);
        below((seconds.max(1e-9) / middle).ln() / spread)
    }
}

/// The part of a normal distribution below this.
fn below(z: f64) -> f64 {
    // Abramowitz and Stegun 26.2.17: off by less than a ten millionth.
    let t = 1.0 / (1.0 + 0.231_641_9 * z.abs());
    let polynomial =
        t * (0.319_381_530 + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let above = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * polynomial;
    if z >= 0.0 { 1.0 - above } else { above }
}

/// How good predictions were, counted over those that were made when tasks came which then had to wait.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct StartCalibration {
    pub tasks: u64,
    /// Started no later than the middle, and than the upper end.
    pub by_q50: u64,
    pub by_q95: u64,
}

impl StartCalibration {
    pub fn coverage(&self, count: u64) -> Option<f64> {
        (self.tasks > 0).then(|| count as f64 / self.tasks as f64)
    }
}

/// A prediction that waits for what happens.
struct Open {
    at_us: u64,
    raw_us: f64,
    middle_us: f64,
    upper_us: f64,
    is_parked: bool,
}

/// What predictions of one model are made from.
#[derive(Default)]
pub(super) struct Foresight {
    traffic: Traffic,
    /// Of tenants that may go, and of those that have more than their share.
    corrections: [Correction; 2],
    /// By the sequence of the task.
    open: BTreeMap<u64, Open>,
    until_next: u32,
    learnt: u64,
    pub(super) calibration: StartCalibration,
}

impl Foresight {
    pub(super) fn handle_came(&mut self, waiting: &Waiting) {
        self.traffic.handle_came(waiting);
    }

    pub(super) fn handle_left(&mut self, waiting: &Waiting) {
        self.traffic.handle_left(waiting);
    }

    /// A task does not wait any more as it did when it was predicted.
    pub(super) fn forget(&mut self, waiting: &Waiting) {
        if !self.open.is_empty() {
            self.open.remove(&waiting.sequence);
        }
    }

    /// Whether it is this task's turn to be predicted.
    fn is_turn(&mut self) -> bool {
        if self.until_next > 0 {
            self.until_next -= 1;
            return false;
        }
        let classes = u32::try_from(self.traffic.rows().len()).unwrap_or(u32::MAX);
        let often = EVERY.max(classes.saturating_mul(EVERY_BY_CLASS));
        self.until_next = if self.learnt < FIRST { EVERY_AT_FIRST } else { often } - 1;
        self.open.len() < OPEN_MOST
    }

    /// The task of this sequence starts.
    fn handle_start(&mut self, sequence: u64, now_us: u64, scale_us: f64) {
        if self.open.is_empty() {
            return;
        }
        let Some(open) = self.open.remove(&sequence) else { return };
        let waited_us = now_us.saturating_sub(open.at_us) as f64;
        self.learnt += 1;
        self.corrections[usize::from(open.is_parked)].learn(open.raw_us, waited_us, scale_us);
        self.calibration.tasks += 1;
        self.calibration.by_q50 += u64::from(waited_us <= open.middle_us);
        self.calibration.by_q95 += u64::from(waited_us <= open.upper_us);
    }
}

/// A wait as it follows from what is known, in microseconds from now.
struct Raw {
    /// Until it is dispatched.
    wait_us: f64,
    /// And from then on until its slot is free.
    ahead_us: f64,
    is_parked: bool,
}

/// One class as a prediction sees it.
struct Class<'a> {
    row: &'a Row,
    rate: f64,
    /// Since when the first of those waits who may go.
    oldest_us: u64,
}

/// What a prediction looks at beside the task.
struct View<'a> {
    model: &'a Model,
    policy: &'a dyn Policy,
    fairness: &'a Fairness,
    tasks: &'a Tasks,
    now_us: u64,
}

impl View<'_> {
    /// Until a slot gets free, where what takes longer than was expected goes on for a while.
    fn first_us(&self) -> f64 {
        self.first_when(|expected_us, _| OVERDUE * expected_us)
    }

    /// The same, where it goes on for a share of the time that it has run: who may go elsewhere is not to wait for it for ever.
    fn first_or_stuck_us(&self) -> f64 {
        self.first_when(|expected_us, ran_us| (OVERDUE * expected_us).max(STUCK * (ran_us - expected_us)))
    }

    fn first_when(&self, overdue_us: impl Fn(f64, f64) -> f64) -> f64 {
        let capacity = &self.model.capacity;
        let slots = capacity.slots();
        if capacity.outstanding() < slots {
            return 0.0;
        }
        let mean_us = self.model.backlog.shares.mean_us();
        let left = |(task, begun_us): (Handle, u64)| {
            let expected_us = self.tasks.get(task).map_or(mean_us, |record| record.waiting.expected_seconds * 1e6);
            let ran_us = self.now_us.saturating_sub(begun_us) as f64;
            (expected_us - ran_us).max(overdue_us(expected_us, ran_us))
        };
        let running = capacity.running().take(LOOKED_AT);
        let (tasks, left_us) = running.fold((0, 0.0), |(tasks, sum), task| (tasks + 1, sum + left(task)));
        // The first of so many, were what is left of each spread evenly.
        2.0 * left_us / f64::from(tasks.max(1)) / (slots + 1) as f64
    }

    /// Until a task is dispatched that nothing waits before. Then it waits for its slot, behind what was sent ahead.
    fn head_us(&self) -> f64 {
        let capacity = &self.model.capacity;
        if capacity.outstanding() < capacity.total { 0.0 } else { self.first_us() }
    }

    /// How long it waits there.
    fn ahead_of_slots_us(&self) -> f64 {
        let Model { backlog, capacity, .. } = self.model;
        let (slots, total) = (capacity.slots(), capacity.total);
        match capacity.outstanding() < slots {
            true => 0.0,
            false => total.saturating_sub(slots) as f64 * backlog.shares.mean_us() / slots.max(1) as f64,
        }
    }

    /// How long a task waits. `None` when nobody works on its model.
    fn raw(&self, task: &Waiting, flow: Option<u32>, is_waiting: bool) -> Option<Raw> {
        let Model { backlog, capacity, .. } = self.model;
        if capacity.slots() == 0 || self.model.is_paused {
            return None;
        }
        let slots = capacity.slots() as f64;
        let head_us = self.head_us();
        let (shared_us, is_parked) = flow.map_or((0.0, false), |flow| self.shared_us(task, flow));
        // Those who have more than their share do not go before somebody who has not.
        let kept_back = (backlog.shares.parked_tasks + backlog.shares.limited_tasks) as f64;
        let may_go = if is_parked { 1.0 } else { 1.0 - kept_back / (backlog.queued as f64).max(1.0) };
        let own_us = if is_waiting { task.expected_seconds * 1e6 } else { 0.0 };
        let classes = self.classes();
        let ahead_us = |wait_us: f64| {
            let work_us = self.ahead_us(task, self.now_us.saturating_add(wait_us as u64), &classes, may_go);
            head_us + (work_us - own_us).max(0.0) / slots
        };
        // It starts when all is done that goes before it by then: a fixed point, since what comes meanwhile may go before it, too.
        let mut wait_us = ahead_us(0.0);
        if wait_us > 0.0 {
            let (mut last, mut last_ahead) = (0.0, wait_us);
            for _ in 0..ROUNDS {
                let ahead = ahead_us(wait_us);
                if (ahead - wait_us).abs() <= 0.01 * wait_us || wait_us >= FOREVER_US {
                    break;
                }
                // By how much the work ahead grows with the wait. What grows as fast never gets done.
                let slope = if wait_us == last { 0.0 } else { (ahead - last_ahead) / (wait_us - last) };
                let slope = slope.clamp(-1.0, 0.98);
                (last, last_ahead) = (wait_us, ahead);
                wait_us = ((ahead - slope * wait_us) / (1.0 - slope)).clamp(head_us, FOREVER_US);
            }
        }
        Some(Raw { wait_us: wait_us.max(shared_us), ahead_us: self.ahead_of_slots_us(), is_parked })
    }

    /// The classes of which something waits, or comes.
    fn classes(&self) -> Vec<Class<'_>> {
        let backlog = &self.model.backlog;
        let traffic = &backlog.foresight.traffic;
        let classes = traffic.rows().iter().map(|row| {
            let oldest_us = backlog.oldest_of(row.example.priority, row.example.cost).unwrap_or(self.now_us);
            Class { row, rate: traffic.rate(row, self.now_us), oldest_us }
        });
        classes.filter(|class| class.row.waiting > 0 || class.rate > 0.0).collect()
    }

    /// Expected time of all that goes before a task which starts at this time, as far as it is not with workers.
    fn ahead_us(&self, task: &Waiting, start_us: u64, classes: &[Class<'_>], may_go: f64) -> f64 {
        let at = Moment { now_us: start_us, ..self.model.backlog.moment(self.now_us) };
        let score = self.policy.score(task, at);
        let seen_us = self.model.backlog.foresight.traffic.seen_us(self.now_us);
        let of_class = |&Class { row, rate, oldest_us }: &Class<'_>| {
            let goes_first = |arrival_us: u64| self.goes_before(&row.example, arrival_us, at, task, score);
            let is_own = (row.example.priority, row.example.cost) == (task.priority, task.cost);
            let last_us = match is_own && self.policy.lane_key(task).is_none() {
                true => task.arrival_us.checked_sub(1).filter(|last_us| *last_us >= oldest_us),
                false => last_where(oldest_us.min(start_us), start_us, goes_first),
            };
            let Some(last_us) = last_us else { return 0.0 };
            let part = if last_us >= self.now_us { 1.0 } else { self.part_before(row, is_own, oldest_us, last_us) };
            // No further ahead than is known of what was.
            let coming_us = rate * last_us.saturating_sub(self.now_us).min(seen_us) as f64;
            (row.work_us as f64 + self.away_us(row)) * part * may_go + coming_us
        };
        classes.iter().map(of_class).sum()
    }

    /// What waits elsewhere of a class: of its priority's as much as it has of what is here.
    fn away_us(&self, row: &Row) -> f64 {
        let backlog = &self.model.backlog;
        let Some(away) = backlog.away.get(&row.example.priority) else { return 0.0 };
        let rows = backlog.foresight.traffic.rows().iter();
        let of_priority = rows.filter(|other| other.example.priority == row.example.priority);
        let here: usize = of_priority.map(|row| row.waiting).sum();
        away.work_us as f64 * row.waiting as f64 / here.max(1) as f64
    }

    /// The part of a class that came before this time.
    fn part_before(&self, row: &Row, is_own: bool, oldest_us: u64, last_us: u64) -> f64 {
        let class = (row.example.priority, row.example.cost);
        // To look into long lines costs more than it is worth, but for the task's own.
        let is_counted = is_own || row.waiting <= COUNTED;
        let shares = &self.model.backlog.shares;
        match is_counted.then(|| shares.came_before(class, last_us.saturating_add(1))).flatten() {
            Some(count) => count as f64 / (row.waiting.max(1) as f64),
            // As if they had come evenly.
            None => last_us.saturating_sub(oldest_us) as f64 / (self.now_us.saturating_sub(oldest_us) as f64).max(1.0),
        }
    }

    /// Whether a task like this one that comes at this time goes before the other, which has this score then.
    fn goes_before(&self, like: &Waiting, arrival_us: u64, at: Moment, task: &Waiting, score: f64) -> bool {
        let after_us = |deadline_us: u64| arrival_us.saturating_add(deadline_us.saturating_sub(like.arrival_us));
        let one = Waiting {
            arrival_us,
            deadline_us: like.deadline_us.map(after_us),
            due_us: like.due_us.map(after_us),
            ..like.clone()
        };
        let its = self.policy.score(&one, at);
        its > score || its == score && arrival_us < task.arrival_us
    }

    /// Until the task's tenant may go, by the shares of all who wait; and whether it is that which counts for it now.
    fn shared_us(&self, task: &Waiting, flow: u32) -> (f64, bool) {
        let Model { backlog, capacity, .. } = self.model;
        let shares = &backlog.shares;
        let flow_of = shares.flow(flow);
        let is_parked = matches!(flow_of.standing, Standing::Parked | Standing::Limited);
        if self.fairness.allowance.is_none() || flow_of.standing == Standing::Idle || shares.waiting_flows() < 2 {
            return (0.0, is_parked);
        }
        let allowance_us = self.fairness.allowance_us(shares.mean_us(), capacity.slots()) as f64;
        let at = backlog.moment(self.now_us);
        let score = self.policy.score(task, at);
        let own_us: f64 = flow_of
            .lanes
            .iter()
            .filter_map(|(_, line)| {
                let waiting = &self.tasks.get(line.first()?.1)?.waiting;
                // Of its own class those that came before it, of the others all or none.
                let before = match (waiting.priority, waiting.cost) == (task.priority, task.cost) {
                    true => line.came_before(task.arrival_us).unwrap_or(line.len()),
                    false if self.policy.score(waiting, at) >= score => line.len(),
                    false => 0,
                };
                Some(waiting.expected_seconds * 1e6 * before as f64)
            })
            .sum();
        let weight = flow_of.weight().max(1e-3);
        let lead_us = shares.ahead_seconds(flow) * 1e6 + own_us / weight - allowance_us;
        // All weigh about as much as this one, where nothing else is said of them.
        let weights = weight + (shares.waiting_flows().saturating_sub(1)) as f64;
        (lead_us.max(0.0) * weights / capacity.slots().max(1) as f64, is_parked)
    }
}

/// The last of these times for which something holds that holds up to some time and not after it. `None` when for none.
fn last_where(from_us: u64, to_us: u64, holds: impl Fn(u64) -> bool) -> Option<u64> {
    if holds(to_us) {
        return Some(to_us);
    }
    if !holds(from_us) {
        return None;
    }
    let (mut yes, mut no) = (from_us, to_us);
    for _ in 0..HALVINGS {
        let middle = yes + (no - yes) / 2;
        if holds(middle) { yes = middle } else { no = middle }
    }
    Some(yes)
}

impl Planner {
    fn view(&self, model: u32, now_us: u64) -> View<'_> {
        View {
            model: self.models.get(model),
            policy: &*self.policy,
            fairness: &self.fairness,
            tasks: &self.tasks,
            now_us,
        }
    }

    /// When a waiting task will start and end. `None` when it does not wait in a lane, or nobody works on its model.
    pub fn predict(&self, id: TaskId, now_us: u64) -> Option<Prediction> {
        let record = self.tasks.get(self.tasks.find(id)?)?;
        match record.place {
            Place::Lane { .. } => {
                let raw = self.view(record.model, now_us).raw(&record.waiting, Some(record.flow), true)?;
                Some(self.said(record.model, &raw, &record.waiting))
            }
            // As if it came when it may start, and all were then as it is now.
            Place::Delayed { start_us } => {
                let waiting = Waiting { arrival_us: now_us, ..record.waiting.clone() };
                let raw = self.view(record.model, now_us).raw(&waiting, Some(record.flow), false)?;
                let until = start_us.saturating_sub(now_us) as f64 / 1e6;
                let said = self.said(record.model, &raw, &record.waiting);
                Some(Prediction {
                    start_q50_seconds: said.start_q50_seconds + until,
                    start_q95_seconds: said.start_q95_seconds + until,
                    end_q50_seconds: said.end_q50_seconds + until,
                    end_q95_seconds: said.end_q95_seconds + until,
                })
            }
            Place::Dispatched { .. } | Place::Leaving => None,
        }
    }

    /// When such a task would start and end, were it to come now. `None` when nobody works on its model.
    pub fn quote(&self, arrival: &Arrival, now_us: u64) -> Option<Prediction> {
        let model = self.models.find(&arrival.model)?;
        let expected =
            arrival.expected.unwrap_or_else(|| self.expected(&arrival.model, arrival.kind, arrival.cost)).bounded();
        let waiting = arrival.waiting(expected, arrival.expected.is_some(), now_us, self.next_sequence);
        let flow =
            self.tenants.find(&arrival.tenant).and_then(|tenant| self.models.get(model).backlog.shares.find(tenant));
        let raw = self.view(model, now_us).raw(&waiting, flow, false)?;
        Some(self.said(model, &raw, &waiting))
    }

    fn said(&self, model: u32, raw: &Raw, task: &Waiting) -> Prediction {
        let (middle_us, upper_us) = self.corrected(model, raw);
        let ahead_seconds = raw.ahead_us / 1e6;
        let (run_seconds, run_q95_seconds) = (task.expected_seconds, f64::from(task.q95_seconds));
        Prediction {
            start_q50_seconds: middle_us / 1e6 + ahead_seconds,
            start_q95_seconds: upper_us / 1e6 + ahead_seconds,
            end_q50_seconds: middle_us / 1e6 + ahead_seconds + run_seconds,
            end_q95_seconds: upper_us / 1e6 + ahead_seconds + run_q95_seconds.max(run_seconds),
        }
    }

    /// The middle of the wait until it is dispatched, and its upper end.
    fn corrected(&self, model: u32, raw: &Raw) -> (f64, f64) {
        // Who finds a free slot, and nobody before it, starts.
        if raw.wait_us <= 0.0 {
            return (0.0, 0.0);
        }
        let backlog = &self.models.get(model).backlog;
        let scale_us = scale_us(backlog.shares.mean_us());
        backlog.foresight.corrections[usize::from(raw.is_parked)].of(raw.wait_us, scale_us)
    }

    /// How long a model takes until a slot has got to what comes now, if all goes first that waits: expected seconds, infinite
    /// when nobody works on it and none `is_loadable`. One whose tasks were never measured takes as long for each as is said here.
    pub(super) fn queue_seconds(&self, name: &str, unknown_seconds: f64, is_loadable: bool, now_us: u64) -> f64 {
        let nobody = if is_loadable { 0.0 } else { f64::INFINITY };
        let Some(number) = self.models.find(name) else { return nobody };
        let model = self.models.get(number);
        // One that is loaded first has a slot at least.
        let (slots, out) = (model.capacity.slots().max(usize::from(is_loadable)), model.capacity.outstanding());
        if slots == 0 || model.is_paused {
            return f64::INFINITY;
        }
        let each_seconds = self.mean_seconds(name).unwrap_or(unknown_seconds);
        let before_seconds =
            out.saturating_sub(slots) as f64 * each_seconds + model.overload.queued_seconds(each_seconds);
        self.view(number, now_us).first_or_stuck_us() / 1e6 + before_seconds / slots as f64
    }

    /// A new task waits in its lane: some are predicted, to learn from.
    pub(super) fn foresee(&mut self, task: Handle, now_us: u64) {
        let Some(record) = self.tasks.get(task) else { return };
        let (model, flow) = (record.model, record.flow);
        let backlog = &mut self.models.get_mut(model).backlog;
        if backlog.shares.flow(flow).standing == Standing::Eligible {
            backlog.foresight.traffic.handle_arrival(&record.waiting, now_us);
        }
        if !backlog.foresight.is_turn() {
            return;
        }
        let Some(raw) = self.view(model, now_us).raw(&record.waiting, Some(flow), true) else { return };
        if raw.wait_us <= 0.0 {
            return;
        }
        let (middle_us, upper_us) = self.corrected(model, &raw);
        let sequence = record.waiting.sequence;
        let open = Open { at_us: now_us, raw_us: raw.wait_us, middle_us, upper_us, is_parked: raw.is_parked };
        self.models.get_mut(model).backlog.foresight.open.insert(sequence, open);
    }

    /// A task of a model is dispatched.
    pub(super) fn learn_start(&mut self, model: u32, sequence: u64, now_us: u64) {
        let backlog = &mut self.models.get_mut(model).backlog;
        let scale_us = scale_us(backlog.shares.mean_us());
        backlog.foresight.handle_start(sequence, now_us, scale_us);
    }
}

fn scale_us(mean_us: f64) -> f64 {
    (SCALE * mean_us).max(1.0)
}
