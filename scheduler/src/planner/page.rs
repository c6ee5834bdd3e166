//! Which waiting tasks would run last. When more wait than is to be kept here, these go elsewhere, and come again when it is
//! nearly their turn: `page_out` takes them out, `handle_page_in` brings one back, and `handle_paged` says how many are away.
//!
//! What stays is, of every priority and tenant of a model, the beginning of its line, so that each decision compares the same heads
//! as if all were here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use taskyard_shared::{Priority, TaskId};

use super::Planner;
use super::admit::{Arrival, Refusal};
use super::estimator::Estimate;
use super::groups::Class;
use super::line::Line;
use super::models::Model;
use super::tasks::{NEVER, Record};

/// Steps in which the time is found from which on tasks go: it halves a span of 30 years to less than a second.
const HALVINGS: usize = 48;
const FOREVER_SECONDS: f64 = 1e12;
/// Slots of a model that has none: its tasks run after all others.
const NO_SLOT: f64 = 1e-6;

/// Tasks of one model, priority and tenant that wait elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Away {
    pub tasks: u64,
    /// What they are expected to take, in microseconds.
    pub work_us: u64,
}

impl Away {
    pub fn add(&mut self, other: Self) {
        self.tasks = self.tasks.saturating_add(other.tasks);
        self.work_us = self.work_us.saturating_add(other.work_us);
    }
}

/// What waits elsewhere of a model, by priority.
pub type AwayByPriority = BTreeMap<Priority, Away>;

/// What may be taken of a line of one model, priority and tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Takes {
    /// None of it was taken before.
    Fresh,
    /// So much of it is away, of which the last came at this time: only what came since then.
    After {
        newest_us: u64,
        away: Away,
    },
    Nothing,
}

/// The end of the line of one priority and tenant of a model, in its order.
#[derive(Clone, PartialEq, Debug)]
pub struct Tail {
    pub model: Arc<str>,
    pub tenant: Arc<str>,
    pub priority: Priority,
    /// Each with what it is expected to take, which places it among others: it is to come back with that.
    pub tasks: Vec<(TaskId, Estimate)>,
    /// What they are expected to take, in microseconds.
    pub work_us: u64,
    /// When the first and the last of them came.
    pub oldest_us: u64,
    pub newest_us: u64,
}

/// A tail that may yet grow.
struct Taken {
    model: u32,
    flow: u32,
    /// By arrival and sequence.
    order: Vec<(u64, u64, TaskId, Estimate)>,
    tail: Tail,
}

impl Taken {
    fn is_of(&self, ends: &Ends) -> bool {
        (self.model, self.flow, self.tail.priority) == (ends.model, ends.flow, ends.priority)
    }

    fn in_order(mut self) -> Tail {
        self.order.sort_unstable_by_key(|&(arrival_us, sequence, ..)| (arrival_us, sequence));
        let oldest_us = self.order.first().map_or(0, |&(arrival_us, ..)| arrival_us);
        let newest_us = self.order.last().map_or(0, |&(arrival_us, ..)| arrival_us);
        let tasks = self.order.into_iter().map(|(.., id, expected)| (id, expected)).collect();
        Tail { tasks, oldest_us, newest_us, ..self.tail }
    }
}

/// A line as it stands, before it is decided how much of it goes.
struct Ends {
    model: u32,
    flow: u32,
    priority: Priority,
    queued: usize,
    /// The most of it that may go.
    most: usize,
    not_before_us: u64,
    away_seconds: f64,
    own_seconds: f64,
    /// What the policy makes of its best head: whose is larger goes first.
    score: f64,
    /// From when on it is served, and for how long, if nothing else comes: seconds from now.
    start: f64,
    lasts: f64,
}

impl Ends {
    /// How many of it would run after this time.
    fn after(&self, seconds: f64) -> usize {
        let part = 1.0 - (seconds - self.start) / self.lasts.max(1e-9);
        ((self.queued as f64 * part.clamp(0.0, 1.0)).ceil() as usize).min(self.most)
    }
}

impl Planner {
    /// Takes out so many waiting tasks, a few more or less: those that would run last, if nothing else came. Of each line `keep` tasks stay,
    /// where `takes` does not say that its beginning is known to be elsewhere. Tasks with a deadline go only where these are most of what
    /// waits, since their deadlines are looked after here.
    pub fn page_out(
        &mut self,
        wanted: usize,
        keep: usize,
        now_us: u64,
        takes: impl Fn(&str, Priority, &str) -> Takes,
    ) -> Vec<Tail> {
        let mut tails: Vec<Taken> = Vec::new();
        let mut taken = 0;
        // A line of which little is beyond what stays is not worth a place of its own, as long as others are long.
        for (least, with_deadlines) in [(keep.max(1), false), (1, false), (1, true)] {
            if taken * 2 >= wanted {
                break;
            }
            let mut ends = self.ends(keep, now_us, &takes);
            ends.retain(|ends| ends.most >= least || ends.not_before_us > 0 && ends.most > 0);
            while taken < wanted && !ends.is_empty() {
                let left = wanted - taken;
                let count = |seconds: f64| ends.iter().map(|ends| ends.after(seconds)).sum::<usize>();
                let (mut early, mut late) = (0.0, FOREVER_SECONDS);
                for _ in 0..HALVINGS {
                    let middle = (early + late) / 2.0;
                    if count(middle) >= left { early = middle } else { late = middle }
                }
                let before = taken;
                for ends in &mut ends {
                    let count = ends.after(early).min(wanted.saturating_sub(taken));
                    if count == 0 {
                        continue;
                    }
                    let tail = self.take_tail(ends, count, with_deadlines);
                    let got = tail.as_ref().map_or(0, |tail| tail.order.len());
                    ends.queued = ends.queued.saturating_sub(got);
                    // There is no more of it that may go.
                    ends.most = if got < count { 0 } else { ends.most.saturating_sub(got) };
                    taken += got;
                    let Some(mut tail) = tail else { continue };
                    // What is taken of a line in a second turn came before what was taken in the first.
                    match tails.iter_mut().find(|other| other.is_of(ends)) {
                        Some(other) => {
                            other.order.append(&mut tail.order);
                            other.tail.work_us += tail.tail.work_us;
                        }
                        None => tails.push(tail),
                    }
                }
                let more = ends.len();
                ends.retain(|ends| ends.most > 0);
                if taken == before && ends.len() == more {
                    break;
                }
            }
        }
        tails.into_iter().map(Taken::in_order).collect()
    }

    /// How many lines wait, each of one priority and tenant of a model.
    pub fn waiting_lines(&self) -> usize {
        let flows = self.models.iter().flat_map(|model| model.backlog.shares.waiting());
        // Each lane counts, of which a line has one for each cost and stage.
        flows.map(|flow| flow.lanes.iter().count()).sum()
    }

    /// A task that was taken out comes back, with what it was expected to take then. It is no new one: nothing is learnt from its arrival.
    ///
    /// # Errors
    /// As [`Self::handle_arrival`], but never for others that wait.
    pub fn handle_page_in(&mut self, arrival: Arrival, now_us: u64) -> Result<(), Refusal> {
        self.arrive(Arrival { is_known: true, ..arrival }, now_us, false)
    }

    /// So much of each model, by name, waits elsewhere, and of each tenant with limits.
    pub fn handle_paged(&mut self, models: &BTreeMap<Arc<str>, AwayByPriority>, tenants: &BTreeMap<Arc<str>, u64>) {
        let numbers: Vec<(u32, AwayByPriority)> = {
            let known = self.models.by_name().into_iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
            let away = |name: &Arc<str>| models.get(name).cloned().unwrap_or_default();
            known.iter().filter_map(|name| Some((self.models.find(name)?, away(name)))).collect()
        };
        for (number, away) in numbers {
            let Model { backlog, overload, .. } = self.models.get_mut(number);
            overload.set_away(away.values().map(|away| u128::from(away.work_us)).sum());
            backlog.away = away;
        }
        for (name, limited) in self.tenants.all_limited_mut() {
            limited.away = tenants.get(&name).copied().unwrap_or(0) as usize;
        }
    }

    /// The next tasks of some models are on their way here, and what is here of them would not be in order: until they are said no
    /// longer, nothing of theirs is dispatched.
    pub fn handle_awaited<'a>(&mut self, models: impl Iterator<Item = &'a str>) {
        let awaited: BTreeSet<u32> = models.filter_map(|model| self.models.find(model)).collect();
        for number in self.models.set_awaited(&awaited) {
            self.models.refresh_ready(number);
            self.models.handle_came(number);
        }
    }

    /// All lines of which something may go, and when they are served.
    fn ends(&self, keep: usize, now_us: u64, takes: &impl Fn(&str, Priority, &str) -> Takes) -> Vec<Ends> {
        let mut all = Vec::new();
        for (name, model) in self.models.by_name() {
            let Some(number) = self.models.find(name) else { continue };
            let (from, at) = (all.len(), model.backlog.moment(now_us));
            for (flow, of_flow) in model.backlog.shares.numbered_waiting() {
                let tenant = self.tenants.name(of_flow.tenant);
                let mut lines: BTreeMap<Priority, (Ends, Takes)> = BTreeMap::new();
                for (class, line) in of_flow.lanes.iter() {
                    let new = || Ends {
                        model: number,
                        flow,
                        priority: class.priority,
                        queued: 0,
                        most: 0,
                        not_before_us: 0,
                        away_seconds: 0.0,
                        own_seconds: 0.0,
                        score: f64::NEG_INFINITY,
                        start: 0.0,
                        lasts: 0.0,
                    };
                    let (ends, takes) =
                        lines.entry(class.priority).or_insert_with(|| (new(), takes(name, class.priority, tenant)));
                    ends.queued += line.len();
                    ends.most += match *takes {
                        Takes::Fresh => line.len(),
                        Takes::After { newest_us, .. } => {
                            line.len().saturating_sub(line.came_before(newest_us).unwrap_or(0))
                        }
                        Takes::Nothing => 0,
                    };
                    ends.own_seconds += line.len() as f64 * at.seconds(class.cost);
                    let head = line.first().and_then(|(_, task)| self.tasks.get(task));
                    let score = head.map(|head| self.policy.score(&head.waiting, at));
                    ends.score = ends.score.max(score.unwrap_or(f64::NEG_INFINITY));
                }
                for (mut ends, takes) in lines.into_values() {
                    match takes {
                        Takes::Fresh => ends.most = ends.queued.saturating_sub(keep),
                        Takes::After { newest_us, away } => {
                            (ends.not_before_us, ends.away_seconds) = (newest_us.max(1), away.work_us as f64 / 1e6);
                        }
                        Takes::Nothing => {}
                    }
                    all.push(ends);
                }
            }
            let slots = if model.can_run() { (model.capacity.slots() as f64).max(NO_SLOT) } else { NO_SLOT };
            in_turn(&mut all[from..], slots);
        }
        all
    }

    /// The newest of a line, so many and those that came at the same time as the first of them.
    fn take_tail(&mut self, ends: &Ends, count: usize, with_deadlines: bool) -> Option<Taken> {
        let may_go = |record: &Record| {
            record.waiting.arrival_us >= ends.not_before_us && (with_deadlines || record.expires_us == NEVER)
        };
        let flow = self.models.get(ends.model).backlog.shares.flow(ends.flow);
        let tenant = self.tenants.name(flow.tenant).clone();
        let lines = || {
            let of_priority = |(class, _): &&(Class, Line)| class.priority == ends.priority;
            flow.lanes.iter().filter(of_priority).map(|(_, line)| line)
        };
        // From the end of each lane, down to a time.
        let newest = |from_us: u64, most: usize| {
            let of_line = |line| Line::iter_back(line).filter_map(|(_, task)| Some((task, self.tasks.get(task)?)));
            let mut found = Vec::new();
            for line in lines() {
                let of_line = of_line(line).take_while(|(_, record)| {
                    self.policy.lane_key(&record.waiting).is_some() || record.waiting.arrival_us >= from_us
                });
                let of_line = of_line.filter(|(_, record)| may_go(record) && record.waiting.arrival_us >= from_us);
                let key = |(task, record): (_, &Record)| (record.waiting.arrival_us, record.waiting.sequence, task);
                found.extend(of_line.take(most).map(key));
            }
            found.sort_unstable();
            found
        };
        let first = newest(ends.not_before_us, count);
        let (from_us, ..) = *first.get(first.len().saturating_sub(count))?;
        let chosen = newest(from_us, usize::MAX);
        let mut tail = Tail {
            model: self.models.name(ends.model).clone(),
            tenant,
            priority: ends.priority,
            tasks: Vec::new(),
            work_us: 0,
            oldest_us: 0,
            newest_us: 0,
        };
        let mut order = Vec::with_capacity(chosen.len());
        for (arrival_us, sequence, task) in chosen {
            if !self.withdraw(task) {
                continue;
            }
            if let Some(record) = self.tasks.get(task) {
                order.push((arrival_us, sequence, record.waiting.id, record.expected()));
                tail.work_us += (record.waiting.expected_seconds * 1e6) as u64;
            }
            self.forget(task);
        }
        (!order.is_empty()).then_some(Taken { model: ends.model, flow: ends.flow, order, tail })
    }
}

/// Says of the lines of one model when they are served: one score after the other, those of the same score side by side.
fn in_turn(lines: &mut [Ends], slots: f64) {
    lines.sort_by(|one, other| {
        let by_score = other.score.total_cmp(&one.score);
        by_score.then(other.priority.cmp(&one.priority)).then(one.flow.cmp(&other.flow))
    });
    let mut start = 0.0;
    // Under a policy whose scores follow age, tenants of one priority differ by a little.
    for level in lines.chunk_by_mut(|one, other| one.score == other.score || one.priority == other.priority) {
        let beside = level.len() as f64;
        let mut together = 0.0;
        for line in level.iter_mut() {
            line.start = start + line.away_seconds * beside / slots;
            line.lasts = line.own_seconds * beside / slots;
            together += line.away_seconds + line.own_seconds;
        }
        start += together / slots;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use taskyard_shared::{Kind, Priority, TaskId};

    use super::{Away, Estimate, Tail, Takes};
    use crate::planner::{Arrival, Decision, DispatchReason, Planner, Prior, Ran, Room, WaitReason, policy};

    fn priority(number: u8) -> Priority {
        Priority::try_from(number).unwrap()
    }

    fn task(model: &str, tenant: &str, number: u8) -> Arrival {
        Arrival {
            id: TaskId::new(),
            model: model.into(),
            tenant: tenant.into(),
            priority: priority(number),
            kind: Kind::Prediction,
            cost: None,
            expected: None,
            deadline_us: None,
            due_us: None,
            not_before_us: None,
            arrived_us: None,
            is_known: false,
        }
    }

    /// Tasks that came one after the other, a microsecond apart.
    fn came(planner: &mut Planner, from_us: u64, tasks: impl IntoIterator<Item = Arrival>) -> Vec<TaskId> {
        let came = (from_us..).zip(tasks).map(|(at_us, task)| {
            let id = task.id;
            planner.handle_arrival(task, at_us).unwrap();
            id
        });
        came.collect()
    }

    fn strict() -> Planner {
        Planner::new(policy::Strict)
    }

    fn fresh(_: &str, _: Priority, _: &str) -> Takes {
        Takes::Fresh
    }

    fn ids_of(tails: &[Tail]) -> Vec<TaskId> {
        tails.iter().flat_map(|tail| &tail.tasks).map(|&(id, _)| id).collect()
    }

    fn counts(tails: &[Tail]) -> BTreeMap<(String, String, u8), usize> {
        let key = |tail: &Tail| (tail.model.to_string(), tail.tenant.to_string(), tail.priority.get());
        let mut counts = BTreeMap::new();
        for tail in tails {
            *counts.entry(key(tail)).or_default() += tail.tasks.len();
        }
        counts
    }

    fn count(tails: &[Tail], model: &str, tenant: &str, priority: u8) -> usize {
        counts(tails).get(&(model.to_owned(), tenant.to_owned(), priority)).copied().unwrap_or(0)
    }

    #[test]
    fn the_end_of_a_line_goes_in_its_order_and_the_beginning_stays() {
        let mut planner = strict();
        let ids = came(&mut planner, 1, (0..100).map(|_| task("m", "a", 4)));
        let tails = planner.page_out(40, 10, 200, fresh);
        assert_eq!(ids_of(&tails), ids[60..]);
        assert_eq!((tails[0].newest_us, planner.waiting()), (100, 60));
        assert!(tails[0].work_us > 0);
        let tails = planner.page_out(1_000, 10, 200, fresh);
        assert_eq!(ids_of(&tails), ids[10..60]);
        assert!(planner.page_out(1_000, 10, 200, fresh).is_empty(), "what is to stay stays");
    }

    #[test]
    fn a_line_goes_in_one_piece_however_it_was_found() {
        let mut planner = strict();
        planner.handle_load("m", 3);
        let mut ids = BTreeMap::new();
        for number in 0..10 {
            let deadline = |n: u64| n.is_multiple_of(7).then_some(10_000_000);
            let tasks = (0..50).map(|n| Arrival { deadline_us: deadline(n), ..task("m", "a", number) });
            ids.insert(number, came(&mut planner, 1, tasks));
        }
        for wanted in [1, 7, 100, 150, 1_000] {
            let tails = planner.page_out(wanted, 2, 200, fresh);
            let lines: std::collections::BTreeSet<Priority> = tails.iter().map(|tail| tail.priority).collect();
            assert_eq!(lines.len(), tails.len(), "one piece of each line");
            for tail in tails {
                let all = &ids[&tail.priority.get()];
                let at = |(id, _): &(TaskId, Estimate)| all.iter().position(|other| other == id).unwrap();
                assert!(tail.tasks.iter().map(at).collect::<Vec<_>>().is_sorted());
            }
        }
    }

    #[test]
    fn what_runs_last_goes_first() {
        let mut planner = strict();
        planner.handle_load("live", 2);
        for (model, number) in [("live", 9), ("live", 1), ("dead", 9)] {
            came(&mut planner, 1, (0..100).map(|_| task(model, "a", number)));
        }
        let tails = planner.page_out(50, 10, 200, fresh);
        assert_eq!(count(&tails, "dead", "a", 9), 50, "of a model without workers: {:?}", counts(&tails));
        let tails = planner.page_out(100, 10, 200, fresh);
        assert_eq!((count(&tails, "dead", "a", 9), count(&tails, "live", "a", 1)), (40, 60));
        let tails = planner.page_out(60, 10, 200, fresh);
        assert_eq!((count(&tails, "live", "a", 1), count(&tails, "live", "a", 9)), (30, 30));
    }

    #[test]
    fn a_flood_goes_before_a_small_tenant_of_its_priority() {
        let mut planner = strict();
        planner.handle_load("m", 1);
        came(&mut planner, 1, (0..1_000).map(|_| task("m", "flood", 4)));
        came(&mut planner, 2_000, (0..40).map(|_| task("m", "few", 4)));
        let tails = planner.page_out(800, 10, 3_000, fresh);
        assert_eq!((count(&tails, "m", "flood", 4), count(&tails, "m", "few", 4)), (800, 0));
    }

    #[test]
    fn only_what_came_since_goes_behind_what_is_away() {
        let mut planner = strict();
        let ids = came(&mut planner, 1, (0..100).map(|_| task("m", "a", 4)));
        // A line of nothing but what must stay does not keep others from going.
        came(&mut planner, 1, (0..100).map(|_| task("m", "a", 0)));
        let after = |_: &str, priority: Priority, _: &str| match priority.get() {
            0 => Takes::After { newest_us: 1_000, away: Away { tasks: 500, work_us: 5 } },
            _ => Takes::After { newest_us: 81, away: Away { tasks: 500, work_us: 5 } },
        };
        let tails = planner.page_out(50, 10, 200, after);
        assert_eq!(ids_of(&tails), ids[80..]);
        assert!(planner.page_out(50, 10, 200, |_, _, _| Takes::Nothing).is_empty());
    }

    #[test]
    fn tasks_of_one_instant_go_together_or_not_at_all() {
        let mut planner = strict();
        let ids: Vec<TaskId> = (0..30)
            .map(|n| {
                let task = task("m", "a", 4);
                let id = task.id;
                planner.handle_arrival(task, if n < 10 { 1 } else { 2 }).unwrap();
                id
            })
            .collect();
        let tails = planner.page_out(5, 2, 10, fresh);
        assert_eq!(ids_of(&tails), ids[10..]);
    }

    #[test]
    fn deadlines_are_kept_here_as_long_as_others_can_go() {
        let mut planner = strict();
        came(&mut planner, 1, (0..50).map(|_| Arrival { deadline_us: Some(10_000_000), ..task("m", "a", 4) }));
        let others = came(&mut planner, 100, (0..50).map(|_| task("m", "a", 4)));
        let tails = planner.page_out(40, 0, 200, fresh);
        assert_eq!(ids_of(&tails), others[10..]);
        let tails = planner.page_out(40, 0, 200, fresh);
        assert!(count(&tails, "m", "a", 4) >= 40, "{:?}", counts(&tails));
    }

    #[test]
    fn what_is_away_counts_as_waiting_and_comes_back_as_it_was() {
        let mut planner = strict();
        let ids = came(&mut planner, 1, (0..100).map(|_| task("m", "a", 4)));
        let [all] = &planner.stats().models[..] else { panic!("one model") };
        let (all_seconds, weighted) = (planner.wants("m").waiting_seconds, all.weighted_seconds);
        let tails = planner.page_out(40, 10, 200, fresh);
        let away = Away { tasks: 40, work_us: tails[0].work_us };
        planner.handle_paged(&[(Arc::from("m"), [(priority(4), away)].into())].into(), &BTreeMap::new());
        let stats = planner.stats();
        assert_eq!((stats.models[0].waiting, stats.models[0].away), (100, 40));
        assert_eq!((stats.waiting(WaitReason::Paged), stats.waiting(WaitReason::NoWorker)), (40, 60));
        let near = |one: f64, other: f64| (one - other).abs() < 1e-3;
        assert!(near(planner.wants("m").waiting_seconds, all_seconds), "it wants as much as before");
        assert!(near(stats.models[0].weighted_seconds, weighted));
        let came = planner.wants("m").came_seconds;
        for (at, &id) in ids[60..].iter().enumerate() {
            let expected = tails[0].tasks[at].1;
            let arrival =
                Arrival { id, arrived_us: Some(61 + at as u64), expected: Some(expected), ..task("m", "a", 4) };
            planner.handle_page_in(arrival, 1_000).unwrap();
        }
        planner.handle_paged(&BTreeMap::new(), &BTreeMap::new());
        assert!(near(planner.wants("m").waiting_seconds, all_seconds) && planner.wants("m").came_seconds == came);
        planner.handle_load("m", 100);
        let order = std::iter::from_fn(|| match planner.poll_decision(2_000)? {
            Decision::Dispatch { id, .. } => Some(id),
            other => panic!("{other:?}"),
        });
        assert_eq!(order.collect::<Vec<_>>(), ids);
    }

    #[test]
    fn nothing_of_a_model_goes_while_its_next_tasks_are_on_their_way() {
        let mut planner = strict();
        came(&mut planner, 1, (0..4).map(|_| task("m", "a", 4)));
        came(&mut planner, 1, (0..4).map(|_| task("other", "a", 4)));
        for model in ["m", "other"] {
            planner.handle_load(model, 10);
        }
        let goes = |planner: &mut Planner| {
            std::iter::from_fn(|| match planner.poll_decision(10)? {
                Decision::Dispatch { model, .. } => Some(model.to_string()),
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>()
        };
        planner.handle_awaited(["m", "unheard of"].into_iter());
        assert_eq!(goes(&mut planner), ["other"; 4]);
        planner.handle_awaited(["m"].into_iter());
        assert!(goes(&mut planner).is_empty());
        planner.handle_awaited(std::iter::empty());
        assert_eq!(goes(&mut planner), ["m"; 4]);
    }

    #[test]
    fn nor_while_others_of_it_are_on_their_way_to_its_queue_unless_it_goes_past_them() {
        let mut planner = strict();
        planner.handle_load("m", Room { slots: 1, ahead: 2, grain: 1 });
        planner.handle_load("other", 10);
        came(&mut planner, 1, [task("m", "a", 1), task("m", "a", 1), task("other", "a", 1), task("other", "a", 1)]);
        let goes = |planner: &mut Planner| match planner.poll_decision(10)? {
            Decision::Dispatch { model, reason, .. } => Some((model.to_string(), reason == DispatchReason::Passes)),
            other => panic!("{other:?}"),
        };
        assert_eq!(goes(&mut planner), Some(("m".into(), false)));
        planner.handle_sending("m", true);
        planner.handle_sending("unheard of", true);
        assert_eq!(goes(&mut planner), Some(("other".into(), false)));
        assert_eq!(goes(&mut planner), Some(("other".into(), false)));
        assert_eq!(goes(&mut planner), None);
        planner.handle_sending("m", false);
        assert_eq!(goes(&mut planner), Some(("m".into(), false)));
        came(&mut planner, 20, [task("m", "a", 1)]);
        assert_eq!(goes(&mut planner), Some(("m".into(), false)), "what there was room for");
        planner.handle_sending("m", true);
        came(&mut planner, 30, [task("m", "a", 1), task("m", "a", 9)]);
        assert_eq!(goes(&mut planner), Some(("m".into(), true)), "it is to begin before what is on its way");
        assert_eq!(goes(&mut planner), None);
    }

    #[test]
    fn nor_does_it_go_past_what_was_sent_ahead() {
        let mut planner = strict();
        planner.handle_load("m", Room { slots: 1, ahead: 1, grain: 1 });
        let first = came(&mut planner, 1, [task("m", "a", 1), task("m", "a", 1)]);
        while planner.poll_decision(5).is_some() {}
        came(&mut planner, 10, [task("m", "a", 9)]);
        planner.handle_awaited(["m"].into_iter());
        planner.handle_completion(first[0], None);
        assert_eq!(planner.poll_decision(20), None);
        planner.handle_awaited(std::iter::empty());
        assert!(planner.poll_decision(20).is_some());
    }

    #[test]
    fn what_is_learnt_meanwhile_changes_no_order_within_a_line() {
        let mut planner = Planner::new(policy::Cmu::default());
        planner.handle_model("m", Prior { expected_seconds: Some(0.01) });
        let ids = came(&mut planner, 1, (0..300).map(|_| task("m", "a", 4)));
        let mut away = planner.page_out(250, 10, 400, fresh).remove(0).tasks.into_iter().zip(51..);
        planner.handle_load("m", 1);
        let (mut ran, mut now_us) = (Vec::new(), 10_000);
        while let Some(decision) = planner.poll_decision(now_us) {
            let Decision::Dispatch { id, .. } = decision else { panic!("{decision:?}") };
            ran.push(id);
            now_us += 100;
            planner.handle_completion(id, Some(Ran { seconds: 1e-4, whole: true }));
            // Always some of those that are away are here, as a page is.
            if let Some(((id, expected), arrival_us)) = away.next() {
                let arrived_us = Some(arrival_us);
                let arrival = Arrival { id, arrived_us, expected: Some(expected), ..task("m", "a", 4) };
                planner.handle_page_in(arrival, now_us).unwrap();
            }
        }
        assert!(planner.mean_seconds("m").unwrap() < 0.001, "it learnt");
        assert_eq!(ran, ids);
    }
}
