//! One run: events in the order of their time, on a virtual clock.
//!
//! Tasks arrive, the chooser says which goes, a slot of its model runs it, and the end is heard of. Nothing is random
//! here but when slots go away, and an event costs the logarithm of how many are to come.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use fastrand::Rng;

use crate::planner::Room;

use super::chooser::{Choice, Chooser, Number};
use super::distribution::exponential;
use super::scenario::{Scenario, Workers};
use super::workload::{Model, Task, Workload};

const NEVER: u64 = u64::MAX;

/// What became of a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is nowhere: a fault of the simulator or the planner.
    Open,
    Done,
    /// Its deadline passed while it waited.
    Expired,
    /// Refused when it came.
    Refused,
    /// Given up while it waited.
    Shed,
}

/// A task's times, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    pub started_us: u64,
    pub ended_us: u64,
    pub fate: Fate,
}

/// What a run came to.
#[derive(Clone, PartialEq, Debug)]
pub struct Course {
    /// In the order of the tasks.
    pub ends: Vec<End>,
    /// When the last task was over.
    pub ended_us: u64,
    /// Things that ended a task twice, or ended what never began. None, or the run means nothing.
    pub faults: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A task's time is over.
    End(Number),
    /// The scheduler hears of it.
    Heard(Number),
    /// Slots of a model go away or come back.
    Change(u32),
    /// The scheduler hears how many there are.
    Report { model: u32, slots: usize },
}

/// The slots of one model.
struct Slots {
    all: usize,
    here: usize,
    busy: usize,
    /// Dispatched and not begun; the second line goes first.
    ready: VecDeque<Number>,
    passing: VecDeque<Number>,
}

struct Run<'a> {
    tasks: &'a [Task],
    workers: &'a Workers,
    models: Vec<Slots>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    /// How many events there were, so that those of one time keep their order.
    sequence: u64,
    ends: Vec<End>,
    open: usize,
    faults: usize,
    rng: Rng,
}

/// Runs all tasks to their end.
pub fn run(workload: &Workload, scenario: &Scenario, seed: u32, chooser: &mut dyn Chooser) -> Course {
    let open = End { started_us: NEVER, ended_us: NEVER, fate: Fate::Open };
    let mut run = Run {
        tasks: &workload.tasks,
        workers: &scenario.workers,
        models: workload.models.iter().map(Slots::new).collect(),
        events: BinaryHeap::new(),
        sequence: 0,
        ends: vec![open; workload.tasks.len()],
        open: workload.tasks.len(),
        faults: 0,
        rng: Rng::with_seed(u64::from(seed) ^ 0x51_0751),
    };
    let mut now_us = 0;
    for model in 0..run.models.len() as u32 {
        run.handle_report(model, run.slots(model), chooser);
        run.await_change(model, now_us);
    }
    let mut next_task = 0;
    while run.open > 0 {
        let arrival_us = workload.tasks.get(next_task).map_or(NEVER, |task| task.arrival_us);
        let event_us = run.events.peek().map_or(NEVER, |Reverse((at_us, ..))| *at_us);
        let at_us = arrival_us.min(event_us).min(chooser.poll_timeout().unwrap_or(NEVER));
        if at_us == NEVER {
            // Nothing will ever happen, and there are tasks: they are left open for the caller to see.
            break;
        }
        now_us = at_us.max(now_us);
        // What ends comes before what arrives, so that a slot that is free at this moment counts as free.
        while let Some(Reverse((at_us, _, event))) = run.events.peek().copied()
            && at_us <= now_us
        {
            run.events.pop();
            run.handle(event, now_us, chooser);
        }
        while let Some(task) = workload.tasks.get(next_task).filter(|task| task.arrival_us <= now_us) {
            if !chooser.handle_arrival(next_task as Number, task, now_us) {
                run.end(next_task as Number, Fate::Refused, now_us);
            }
            next_task += 1;
        }
        while let Some(choice) = chooser.poll(now_us) {
            match choice {
                Choice::Dispatch { task, passes } => run.dispatch(task, passes, now_us),
                Choice::Expire(task) => run.end(task, Fate::Expired, now_us),
                Choice::Shed(task) => run.end(task, Fate::Shed, now_us),
            }
        }
    }
    Course { ends: run.ends, ended_us: now_us, faults: run.faults }
}

impl Slots {
    fn new(model: &Model) -> Self {
        let (ready, passing) = (VecDeque::new(), VecDeque::new());
        Self { all: model.slots, here: model.slots, busy: 0, ready, passing }
    }
}

impl Run<'_> {
    fn push(&mut self, at_us: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at_us, self.sequence, event)));
    }

    fn slots(&self, model: u32) -> usize {
        self.models.get(model as usize).map_or(0, |model| model.here)
    }

    fn handle(&mut self, event: Event, now_us: u64, chooser: &mut dyn Chooser) {
        match event {
            Event::End(number) => self.handle_end(number, now_us, chooser),
            Event::Heard(number) => self.tell_end(number, now_us, chooser),
            Event::Change(model) => self.handle_change(model, now_us),
            Event::Report { model, slots } => self.handle_report(model, slots, chooser),
        }
    }

    fn dispatch(&mut self, number: Number, passes: bool, now_us: u64) {
        let model = self.tasks.get(number as usize).map_or(0, |task| task.model);
        if self.ends.get(number as usize).is_none_or(|end| end.fate != Fate::Open || end.started_us != NEVER) {
            self.faults += 1;
            return;
        }
        if let Some(slots) = self.models.get_mut(model as usize) {
            if passes { slots.passing.push_back(number) } else { slots.ready.push_back(number) }
        }
        self.begin(model, now_us);
    }

    /// Free slots take what is ready.
    fn begin(&mut self, model: u32, now_us: u64) {
        while let Some(slots) = self.models.get_mut(model as usize).filter(|slots| slots.busy < slots.here)
            && let Some(number) = slots.passing.pop_front().or_else(|| slots.ready.pop_front())
        {
            slots.busy += 1;
            let service_us = self.tasks.get(number as usize).map_or(1, |task| task.service_us);
            if let Some(end) = self.ends.get_mut(number as usize) {
                end.started_us = now_us;
            }
            self.push(now_us + service_us, Event::End(number));
        }
    }

    fn handle_end(&mut self, number: Number, now_us: u64, chooser: &mut dyn Chooser) {
        self.end(number, Fate::Done, now_us);
        let model = self.tasks.get(number as usize).map_or(0, |task| task.model);
        if let Some(slots) = self.models.get_mut(model as usize) {
            slots.busy -= 1;
        }
        self.begin(model, now_us);
        match self.workers.feedback_ms {
            feedback_ms if feedback_ms > 0.0 => self.push(now_us + us(feedback_ms / 1e3), Event::Heard(number)),
            _ => self.tell_end(number, now_us, chooser),
        }
    }

    fn tell_end(&mut self, number: Number, now_us: u64, chooser: &mut dyn Chooser) {
        if let Some(task) = self.tasks.get(number as usize) {
            chooser.handle_completion(number, task, task.service_us, now_us);
        }
    }

    fn end(&mut self, number: Number, fate: Fate, now_us: u64) {
        match self.ends.get_mut(number as usize) {
            Some(end) if end.fate == Fate::Open && (end.started_us != NEVER) == (fate == Fate::Done) => {
                (end.fate, end.ended_us) = (fate, now_us);
                self.open -= 1;
            }
            _ => self.faults += 1,
        }
    }

    fn await_change(&mut self, model: u32, now_us: u64) {
        let Some(slots) = self.models.get(model as usize) else { return };
        let mean_s = if slots.here < slots.all { self.workers.away_for_s } else { self.workers.away_every_s };
        if mean_s > 0.0 {
            let after_s = mean_s * exponential(&mut self.rng);
            self.push(now_us + us(after_s), Event::Change(model));
        }
    }

    /// Half of a model's slots finish what they run and take nothing new, or are back.
    fn handle_change(&mut self, model: u32, now_us: u64) {
        let Some(slots) = self.models.get_mut(model as usize) else { return };
        slots.here = if slots.here < slots.all { slots.all } else { slots.all.div_ceil(2) };
        let (slots, report_ms) = (slots.here, self.workers.report_ms);
        self.push(now_us + us(report_ms / 1e3), Event::Report { model, slots });
        self.begin(model, now_us);
        self.await_change(model, now_us);
    }

    fn handle_report(&mut self, model: u32, slots: usize, chooser: &mut dyn Chooser) {
        chooser.handle_load(model, Room { slots, ahead: self.workers.ahead, grain: 1 });
    }
}

fn us(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}
