//! Hosts that hold some of the models at a time, and share their slots among those: a run of its own kind.
//!
//! A slot that gets free takes a task of a model that its host holds, the best by the policy. What hosts hold is decided by
//! the production placement, or by none: then the best task of all goes wherever a slot is free, its model is loaded there,
//! and what was used least recently goes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use serde::Deserialize;

use crate::planner::Room;
use crate::planner::placement::{Held, HostNow, ModelNow, Resources, Rules, place};

use super::chooser::{Choice, Chooser, Number};
use super::engine::{Course, End, Fate};
use super::planned::Planned;
use super::workload::{Task, Workload};

const NEVER: u64 = u64::MAX;
/// What is offered is the mean over about so many mean services of the run.
const OFFERED_OVER: f64 = 400.0;
/// Decisions after which nothing happens.
const QUIET_MOST: usize = 1_000_000;

/// The hosts of a scenario.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hosts {
    pub count: usize,
    /// Tasks that one runs at once, of all models it holds.
    pub slots: usize,
    pub memory_mb: u64,
    /// What each model takes of it.
    #[serde(default = "Hosts::model_mb")]
    pub model_mb: u64,
    /// What loading a model takes, in mean service times. A slot is taken for so long.
    #[serde(default)]
    pub swap_cost: f64,
}

impl Hosts {
    fn model_mb() -> u64 {
        1000
    }

    pub fn capacity(&self) -> f64 {
        (self.count * self.slots) as f64
    }

    /// What is wrong with them, beginning with the key.
    pub fn fault(&self) -> Option<&'static str> {
        let few = |count: usize| (1..=1000).contains(&count);
        if !few(self.count) || !few(self.slots) {
            return Some("hosts: count and slots from 1 to 1000");
        }
        if self.model_mb == 0 || self.memory_mb < self.model_mb || self.memory_mb > self.model_mb.saturating_mul(1000) {
            return Some("hosts: memory_mb for 1 to 1000 models of model_mb");
        }
        (!(self.swap_cost.is_finite() && (0.0..=1e6).contains(&self.swap_cost)))
            .then_some("hosts.swap_cost: a number of at least 0")
    }
}

/// What loading came to in a run.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Loads {
    pub count: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    End { task: Number, host: usize },
    Loaded { host: usize, model: u32 },
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// It waits for memory and a slot.
    Due,
    Loading,
    Loaded {
        at_us: u64,
    },
    /// It takes no more tasks, and is gone with the last that runs.
    Leaving,
}

struct Shelf {
    state: State,
    running: u32,
    used_us: u64,
}

struct Host {
    busy: usize,
    shelves: BTreeMap<u32, Shelf>,
    /// Blind: tasks for whose model it waits, which have their slot.
    awaiting: VecDeque<Number>,
}

struct Run<'a> {
    tasks: &'a [Task],
    settings: &'a Hosts,
    load_us: u64,
    hosts: Vec<Host>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    ends: Vec<End>,
    out: Vec<usize>,
    open: usize,
    faults: usize,
    loads: Loads,
}

/// What placement is told of models over the run.
struct Placer {
    rules: Rules,
    models: Vec<ModelNow>,
    came: Vec<f64>,
    held: Vec<bool>,
    offered_us: f64,
    last_us: u64,
}

/// Runs all tasks to their end.
pub fn run(workload: &Workload, settings: &Hosts, chooser: &mut Planned, blind: bool) -> (Course, Loads) {
    let services: f64 = workload.tasks.iter().map(Task::service_s).sum();
    let mean_s = services / workload.tasks.len().max(1) as f64;
    let open = End { started_us: NEVER, ended_us: NEVER, fate: Fate::Open };
    let host = || Host { busy: 0, shelves: BTreeMap::new(), awaiting: VecDeque::new() };
    let mut run = Run {
        tasks: &workload.tasks,
        settings,
        load_us: (settings.swap_cost * mean_s * 1e6) as u64,
        hosts: (0..settings.count).map(|_| host()).collect(),
        events: BinaryHeap::new(),
        sequence: 0,
        ends: vec![open; workload.tasks.len()],
        out: vec![0; workload.models.len()],
        open: workload.tasks.len(),
        faults: 0,
        loads: Loads::default(),
    };
    let mut placer = Placer::new(workload, settings, mean_s);
    // A stay that is over, or a wait that gets too long, is no event.
    let every_us = if blind { NEVER } else { ((mean_s * 1e6) as u64).max(1) };
    let (mut next, mut now_us) = (0, 0u64);
    let mut quiet = 0;
    while run.open > 0 {
        let arrival_us = workload.tasks.get(next).map_or(NEVER, |task| task.arrival_us);
        let event_us = run.events.peek().map_or(NEVER, |Reverse((at_us, ..))| *at_us);
        let timeout_us = chooser.poll_timeout().unwrap_or(NEVER);
        let at_us = arrival_us.min(event_us).min(timeout_us).min(now_us.saturating_add(every_us));
        quiet = if at_us < arrival_us.min(event_us) { quiet + 1 } else { 0 };
        if at_us == NEVER || quiet > QUIET_MOST {
            // Nothing will ever happen: tasks are left open for the caller to see.
            break;
        }
        now_us = at_us.max(now_us);
        while let Some(Reverse((at_us, _, event))) = run.events.peek().copied()
            && at_us <= now_us
        {
            run.events.pop();
            run.handle(event, now_us, chooser);
        }
        while let Some(task) = workload.tasks.get(next).filter(|task| task.arrival_us <= now_us) {
            if !chooser.handle_arrival(next as Number, task, now_us) {
                run.end(next as Number, Fate::Refused, now_us);
            }
            next += 1;
        }
        run.poll(None, now_us, chooser);
        if blind {
            run.fill_blindly(now_us, chooser);
        } else {
            run.fill(now_us, chooser);
            run.place(now_us, &mut placer, chooser);
            run.fill(now_us, chooser);
        }
    }
    (Course { ends: run.ends, ended_us: now_us, faults: run.faults }, run.loads)
}

/// How well the slots were used while tasks came, and how often models were loaded.
pub fn figures(workload: &Workload, settings: &Hosts, course: &Course, loads: Loads) -> [(&'static str, f64); 4] {
    let span_us = workload.tasks.last().map_or(1, |task| task.arrival_us).max(1);
    let (mut busy, mut finished, mut tasks) = (0.0, 0.0, 0.0);
    for end in course.ends.iter().filter(|end| end.fate == Fate::Done) {
        busy += end.ended_us.min(span_us).saturating_sub(end.started_us) as f64;
        if end.ended_us <= span_us {
            finished += (end.ended_us - end.started_us) as f64;
            tasks += 1.0;
        }
    }
    let capacity_us = settings.capacity() * span_us as f64;
    let all = workload.tasks.len().max(1) as f64;
    let mean_us = workload.tasks.iter().map(|task| task.service_us as f64).sum::<f64>() / all;
    [
        ("utilisation", busy / capacity_us),
        ("goodput", finished / capacity_us),
        // Who takes short tasks first looks the worse above and the better here.
        ("goodput_tasks", tasks * mean_us / capacity_us),
        ("swaps_per_1000", loads.count as f64 * 1e3 / all),
    ]
}

impl Run<'_> {
    fn push(&mut self, at_us: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at_us, self.sequence, event)));
    }

    fn model(&self, task: Number) -> u32 {
        self.tasks.get(task as usize).map_or(0, |task| task.model)
    }

    fn end(&mut self, task: Number, fate: Fate, now_us: u64) {
        match self.ends.get_mut(task as usize) {
            Some(end) if end.fate == Fate::Open && (end.started_us != NEVER) == (fate == Fate::Done) => {
                (end.fate, end.ended_us) = (fate, now_us);
                self.open -= 1;
            }
            _ => self.faults += 1,
        }
    }

    fn handle(&mut self, event: Event, now_us: u64, chooser: &mut Planned) {
        match event {
            Event::End { task, host } => {
                self.end(task, Fate::Done, now_us);
                let model = self.model(task);
                if let Some(host) = self.hosts.get_mut(host) {
                    host.busy -= 1;
                    if let Some(shelf) = host.shelves.get_mut(&model) {
                        (shelf.running, shelf.used_us) = (shelf.running - 1, now_us);
                        if shelf.running == 0 && shelf.state == State::Leaving {
                            host.shelves.remove(&model);
                        }
                    }
                }
                if let Some(known) = self.tasks.get(task as usize) {
                    chooser.handle_completion(task, known, known.service_us, now_us);
                }
                self.count_out(model, -1, chooser);
            }
            Event::Loaded { host: number, model } => {
                let Some(host) = self.hosts.get_mut(number) else { return };
                let Some(shelf) = host.shelves.get_mut(&model) else { return };
                shelf.state = State::Loaded { at_us: now_us };
                // Blind, the tasks that wait for it have their slots already.
                let (ready, others): (VecDeque<Number>, VecDeque<Number>) = host
                    .awaiting
                    .iter()
                    .partition(|&&task| self.tasks.get(task as usize).is_some_and(|task| task.model == model));
                host.awaiting = others;
                if ready.is_empty() {
                    host.busy -= 1;
                }
                for task in ready {
                    self.begin(task, number, now_us);
                }
            }
        }
    }

    fn begin(&mut self, task: Number, host: usize, now_us: u64) {
        let service_us = self.tasks.get(task as usize).map_or(1, |task| task.service_us);
        if let Some(end) = self.ends.get_mut(task as usize) {
            end.started_us = now_us;
        }
        self.push(now_us + service_us, Event::End { task, host });
    }

    /// Tells the planner that a model has no more room than its tasks that are out.
    fn count_out(&mut self, model: u32, change: isize, chooser: &mut Planned) {
        if let Some(out) = self.out.get_mut(model as usize) {
            *out = out.saturating_add_signed(change);
            let slots = *out;
            chooser.handle_load(model, Room { slots, ahead: 0, grain: 1 });
        }
    }

    /// Hears all that the planner has to say; with a model, one task of it may go. Answers which did.
    fn poll(&mut self, offer: Option<u32>, now_us: u64, chooser: &mut Planned) -> Option<Number> {
        if let Some(model) = offer {
            self.count_out(model, 1, chooser);
        }
        let mut sent = None;
        while let Some(choice) = chooser.poll(now_us) {
            match (choice, offer) {
                (Choice::Expire(task), _) => self.end(task, Fate::Expired, now_us),
                (Choice::Shed(task), _) => self.end(task, Fate::Shed, now_us),
                (Choice::Dispatch { task, .. }, Some(model)) if sent.is_none() && self.model(task) == model => {
                    sent = Some(task);
                }
                (Choice::Dispatch { .. }, _) => self.faults += 1,
            }
        }
        if let (Some(model), None) = (offer, sent) {
            self.count_out(model, -1, chooser);
        }
        sent
    }

    fn has_slot(&self, host: usize) -> bool {
        self.hosts.get(host).is_some_and(|host| host.busy < self.settings.slots)
    }

    /// Gives each free slot the best task among those of the models that its host holds.
    fn fill(&mut self, now_us: u64, chooser: &mut Planned) {
        for number in 0..self.hosts.len() {
            self.begin_loads(number, now_us);
            while self.has_slot(number) {
                let Some(host) = self.hosts.get(number) else { break };
                let loaded = host.shelves.iter().filter(|(_, shelf)| matches!(shelf.state, State::Loaded { .. }));
                let best = loaded
                    .filter_map(|(&model, _)| Some((chooser.best_score(model, now_us)?, model)))
                    .reduce(|best, other| if other.0 > best.0 { other } else { best });
                let Some((_, model)) = best else { break };
                let Some(task) = self.poll(Some(model), now_us, chooser) else { break };
                if let Some(host) = self.hosts.get_mut(number) {
                    host.busy += 1;
                    if let Some(shelf) = host.shelves.get_mut(&model) {
                        (shelf.running, shelf.used_us) = (shelf.running + 1, now_us);
                    }
                }
                self.begin(task, number, now_us);
            }
        }
    }

    fn memory_free(&self, host: &Host) -> u64 {
        let taken = host.shelves.values().filter(|shelf| shelf.state != State::Due).count() as u64;
        self.settings.memory_mb.saturating_sub(taken * self.settings.model_mb)
    }

    /// Loads what is due as soon as there is memory and a slot.
    fn begin_loads(&mut self, number: usize, now_us: u64) {
        while let Some(host) = self.hosts.get(number)
            && host.busy < self.settings.slots
            && self.memory_free(host) >= self.settings.model_mb
            && let Some((&model, _)) = host.shelves.iter().find(|(_, shelf)| shelf.state == State::Due)
        {
            self.load(number, model, now_us);
        }
    }

    /// Takes a slot for as long as loading takes.
    fn load(&mut self, number: usize, model: u32, now_us: u64) {
        if let Some(host) = self.hosts.get_mut(number) {
            host.busy += 1;
            host.shelves.insert(model, Shelf { state: State::Loading, running: 0, used_us: now_us });
        }
        self.loads.count += 1;
        if self.load_us == 0 {
            self.handle_loaded_at_once(number, model, now_us);
        } else {
            self.push(now_us + self.load_us, Event::Loaded { host: number, model });
        }
    }

    fn handle_loaded_at_once(&mut self, number: usize, model: u32, now_us: u64) {
        if let Some(host) = self.hosts.get_mut(number) {
            host.busy -= 1;
            if let Some(shelf) = host.shelves.get_mut(&model) {
                shelf.state = State::Loaded { at_us: now_us };
            }
        }
    }

    /// Has the production placement decide, and carries it out.
    fn place(&mut self, now_us: u64, placer: &mut Placer, chooser: &Planned) {
        placer.learn(now_us, chooser);
        let hosts = self.hosts.iter().map(|host| {
            let holds = host.shelves.iter().filter_map(|(&model, shelf)| {
                let loaded_us = match shelf.state {
                    State::Leaving => return None,
                    State::Due | State::Loading => None,
                    State::Loaded { at_us } => Some(at_us),
                };
                Some(Held { model, loaded_us, running: shelf.running })
            });
            let slots = self.settings.slots as u32;
            let has = Resources { slots, memory_mb: self.settings.memory_mb, gpu: 0 };
            HostNow { has, holds: holds.collect(), can_hold: None }
        });
        let hosts: Vec<HostNow> = hosts.collect();
        placer.note_held(now_us, &hosts);
        for swap in place(now_us, &placer.rules, &hosts, &placer.models) {
            let Some(host) = self.hosts.get_mut(swap.host as usize) else { continue };
            for model in swap.unload {
                match host.shelves.get_mut(&model) {
                    Some(shelf) if shelf.running > 0 => shelf.state = State::Leaving,
                    Some(shelf) if shelf.state == State::Loading => self.faults += 1,
                    _ => {
                        host.shelves.remove(&model);
                    }
                }
            }
            match swap.load.map(|model| (model, host.shelves.get_mut(&model))) {
                // It has not gone yet, and stays.
                Some((_, Some(shelf))) => shelf.state = State::Loaded { at_us: now_us },
                Some((model, None)) => {
                    host.shelves.insert(model, Shelf { state: State::Due, running: 0, used_us: now_us });
                }
                None => {}
            }
        }
    }

    /// The best task of all goes where a slot is free: where its model is, if that is so anywhere.
    fn fill_blindly(&mut self, now_us: u64, chooser: &mut Planned) {
        while let Some(free) = (0..self.hosts.len()).find(|&host| self.has_slot(host)) {
            let models = 0..self.out.len() as u32;
            let best = models
                .filter_map(|model| Some((chooser.best_score(model, now_us)?, model)))
                .reduce(|best, other| if other.0 > best.0 { other } else { best });
            let Some((_, model)) = best else { return };
            let holds = |&host: &usize| {
                self.has_slot(host) && self.hosts.get(host).is_some_and(|host| host.shelves.contains_key(&model))
            };
            let host = (0..self.hosts.len()).find(holds).unwrap_or(free);
            if !self.make_room(host, model) {
                // All that is there is in use, and it does not fit beside: it has to wait for one of them.
                return;
            }
            let Some(task) = self.poll(Some(model), now_us, chooser) else { return };
            let state = self.hosts.get(host).and_then(|host| host.shelves.get(&model)).map(|shelf| shelf.state);
            if state.is_none() {
                self.load(host, model, now_us);
            } else if let Some(host) = self.hosts.get_mut(host) {
                host.busy += 1;
            }
            let is_loading = self.load_us > 0 && !matches!(state, Some(State::Loaded { .. }));
            if let Some(host) = self.hosts.get_mut(host) {
                if state.is_none() && !is_loading {
                    host.busy += 1;
                }
                if is_loading {
                    host.awaiting.push_back(task);
                }
                if let Some(shelf) = host.shelves.get_mut(&model) {
                    (shelf.running, shelf.used_us) = (shelf.running + 1, now_us);
                }
            }
            if !is_loading {
                self.begin(task, host, now_us);
            }
        }
    }

    /// What was used least recently goes, if it is not in use.
    fn make_room(&mut self, number: usize, model: u32) -> bool {
        while let Some(host) = self.hosts.get(number)
            && !host.shelves.contains_key(&model)
            && self.memory_free(host) < self.settings.model_mb
        {
            let idle = host.shelves.iter().filter(|(_, shelf)| shelf.running == 0);
            let Some(oldest) = idle.min_by_key(|&(&model, shelf)| (shelf.used_us, model)).map(|(&model, _)| model)
            else {
                return false;
            };
            if let Some(host) = self.hosts.get_mut(number) {
                host.shelves.remove(&oldest);
            }
        }
        true
    }
}

impl Placer {
    fn new(workload: &Workload, settings: &Hosts, mean_s: f64) -> Self {
        let needs = Resources { slots: settings.slots as u32, memory_mb: settings.model_mb, gpu: 0 };
        let load_seconds = settings.swap_cost * mean_s;
        let model = ModelNow {
            needs,
            load_seconds,
            mean_seconds: mean_s,
            waiting_seconds: 0.0,
            value: 1.0,
            offered: 0.0,
            oldest_us: None,
            unheld_us: None,
            latest_start_us: None,
            pin: None,
        };
        let count = workload.models.len();
        // Nothing is worth less than a service here, whatever unit the times are in.
        let rules = Rules { stay_least_seconds: mean_s, starve_least_seconds: mean_s, ..Rules::default() };
        let offered_us = OFFERED_OVER.max(4.0 * settings.swap_cost) * mean_s * 1e6;
        Self {
            rules,
            models: vec![model; count],
            came: vec![0.0; count],
            held: vec![false; count],
            offered_us,
            last_us: 0,
        }
    }

    /// Takes note of the models that no host holds any more.
    fn note_held(&mut self, now_us: u64, hosts: &[HostNow]) {
        for (number, (model, was_held)) in (0..).zip(self.models.iter_mut().zip(&mut self.held)) {
            let is_held = hosts.iter().any(|host| host.holds.iter().any(|held| held.model == number));
            if *was_held && !is_held {
                model.unheld_us = Some(now_us);
            }
            *was_held = is_held;
        }
    }

    fn learn(&mut self, now_us: u64, chooser: &Planned) {
        let passed_us = now_us.saturating_sub(self.last_us) as f64;
        self.last_us = now_us;
        // Early in the run, the mean over what there was of it.
        let over_us = self.offered_us.min(now_us as f64 / 2.0).max(passed_us).max(1.0);
        let part = passed_us / over_us;
        for (number, (model, came)) in (0..).zip(self.models.iter_mut().zip(&mut self.came)) {
            let (demand, mean) = chooser.demand(number);
            let work = (demand.came_seconds - *came).max(0.0);
            *came = demand.came_seconds;
            if passed_us > 0.0 {
                model.offered += part * (work * 1e6 / passed_us - model.offered);
            } else {
                model.offered += work * 1e6 / over_us;
            }
            (model.waiting_seconds, model.value) = (demand.waiting_seconds, demand.value);
            (model.oldest_us, model.latest_start_us) = (demand.oldest_us, demand.latest_start_us);
            model.mean_seconds = mean.unwrap_or(model.mean_seconds);
        }
    }
}
