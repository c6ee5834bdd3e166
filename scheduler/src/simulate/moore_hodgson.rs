//! Moore and Hodgson's rule, on line and with true times: what admission is measured against.
//!
//! Per model the accepted tasks wait in the order of their deadlines. When one comes, each is to end in time if they run
//! in that order from when a slot is free; where that fails, the longest up to there is given up, until all fit. With
//! several slots each goes to the one that is free first; the rule is then a good one and no optimum. Tasks without a
//! deadline run when no other waits.

use std::collections::VecDeque;

use crate::planner::Room;

use super::chooser::{Choice, Chooser, Number};
use super::workload::{NO_DEADLINE, Task, Workload};

#[derive(Clone, Copy)]
struct Waiting {
    deadline_us: u64,
    number: Number,
    service_us: u64,
}

#[derive(Default)]
struct Model {
    slots: usize,
    /// When each dispatched task will end.
    running: Vec<(Number, u64)>,
    /// By deadline.
    accepted: Vec<Waiting>,
    others: VecDeque<Number>,
}

pub struct MooreHodgson {
    models: Vec<Model>,
    /// What a task takes, for when it is dispatched.
    service_us: Vec<u64>,
    given_up: VecDeque<Number>,
    /// Models that may have something to do.
    turn: VecDeque<u32>,
}

impl MooreHodgson {
    pub fn new(workload: &Workload) -> Self {
        Self {
            models: workload.models.iter().map(|_| Model::default()).collect(),
            service_us: workload.tasks.iter().map(|task| task.service_us).collect(),
            given_up: VecDeque::new(),
            turn: VecDeque::new(),
        }
    }

    fn touch(&mut self, model: u32) {
        if !self.turn.contains(&model) {
            self.turn.push_back(model);
        }
    }
}

impl Model {
    /// Gives up the longest of those that come first, until all can be in time.
    fn prune(&mut self, now_us: u64, given_up: &mut VecDeque<Number>) {
        while let Some(dropped) = self.too_many(now_us) {
            given_up.push_back(self.accepted.remove(dropped).number);
        }
    }

    /// The longest of those up to the first that would be late; or that one, if it would be late even when begun now.
    fn too_many(&self, now_us: u64) -> Option<usize> {
        let mut free_us: Vec<u64> = self.running.iter().map(|&(_, ends_us)| ends_us.max(now_us)).collect();
        free_us.resize(self.slots.max(free_us.len()).max(1), now_us);
        let mut longest = (0, 0);
        for (at, task) in self.accepted.iter().enumerate() {
            if now_us + task.service_us > task.deadline_us {
                return Some(at);
            }
            if task.service_us > longest.0 {
                longest = (task.service_us, at);
            }
            let first_us = free_us.iter_mut().min()?;
            *first_us += task.service_us;
            if *first_us > task.deadline_us {
                return Some(longest.1);
            }
        }
        None
    }
}

impl Chooser for MooreHodgson {
    fn handle_arrival(&mut self, number: Number, task: &Task, now_us: u64) -> bool {
        let Some(model) = self.models.get_mut(task.model as usize) else { return false };
        if task.deadline_us == NO_DEADLINE {
            model.others.push_back(number);
        } else {
            let waiting = Waiting { deadline_us: task.deadline_us, number, service_us: task.service_us };
            let at = model.accepted.partition_point(|other| other.deadline_us <= task.deadline_us);
            model.accepted.insert(at, waiting);
            model.prune(now_us, &mut self.given_up);
        }
        self.touch(task.model);
        true
    }

    fn handle_load(&mut self, model: u32, room: Room) {
        if let Some(model) = self.models.get_mut(model as usize) {
            model.slots = room.slots;
        }
        self.touch(model);
    }

    fn handle_completion(&mut self, number: Number, task: &Task, _ran_us: u64, _now_us: u64) {
        if let Some(model) = self.models.get_mut(task.model as usize) {
            model.running.retain(|&(running, _)| running != number);
        }
        self.touch(task.model);
    }

    fn poll(&mut self, now_us: u64) -> Option<Choice> {
        if let Some(task) = self.given_up.pop_front() {
            return Some(Choice::Shed(task));
        }
        while let Some(&number) = self.turn.front() {
            let model = self.models.get_mut(number as usize)?;
            if model.running.len() < model.slots {
                model.prune(now_us, &mut self.given_up);
                if let Some(task) = self.given_up.pop_front() {
                    return Some(Choice::Shed(task));
                }
                let next = match model.accepted.is_empty() {
                    true => model.others.pop_front(),
                    false => Some(model.accepted.remove(0).number),
                };
                if let Some(task) = next {
                    let takes_us = self.service_us.get(task as usize).copied().unwrap_or(1);
                    model.running.push((task, now_us + takes_us));
                    return Some(Choice::Dispatch { task, passes: false });
                }
            }
            self.turn.pop_front();
        }
        None
    }

    fn poll_timeout(&self) -> Option<u64> {
        None
    }
}
