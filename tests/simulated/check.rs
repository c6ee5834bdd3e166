//! What must be so however a history went. Pure: what was seen goes in, what is wrong with it comes out. The rules are those of
//! `tests/faults`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde_json::Value;
use taskyard_shared::broker::Message;
use taskyard_shared::workflow::WorkflowId;
use taskyard_shared::{State, TaskResult};
use uuid::Uuid;

use crate::history::{BESIDE_MS, Flow, HANDED_ON_MS, History, Kind, Meant, Task, Upon, flow_id, task_id};
use crate::world::{AGAIN, Execution, FIRST, MAX_ATTEMPTS, STEPS, Seen, told_id};

/// A fault's consequences may show for so long after it: a lease, a watch over what runs for long, a cut that is noticed late.
const AFTERMATH_MS: u64 = 30_000;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Rule {
    /// Confirmed, and its publisher was not told of an end.
    Lost,
    /// Told again, and not the same.
    TwoEnds,
    WrongEnd,
    /// The result is not that of an execution that came to its end.
    StrangeEffect,
    /// The record does not say what was told.
    WrongRecord,
    TooManyAttempts,
    /// It ran again although nothing had happened.
    UnexplainedRepeat,
    RefusedAndRan,
    WrongDeadLetter,
    /// Something is left in a queue.
    Stray,
    /// It did not come to rest.
    GaveUp,
    /// A role ended by itself, or did not when it was told to.
    WrongExit,
    Panicked,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    pub rule: Rule,
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{:?}: {}", self.rule, self.what)
    }
}

pub fn check(history: &History, seen: &Seen) -> Vec<Broken> {
    let mut checker = Checker { history, seen, broken: Vec::new() };
    checker.tasks();
    checker.flows();
    checker.dead_letters();
    for (queue, ready, unacked) in &seen.left {
        checker.broke(Rule::Stray, format!("{queue}: {ready} ready, {unacked} unacked"));
    }
    if seen.gave_up && checker.broken.is_empty() {
        checker.broke(Rule::GaveUp, format!("at {} ms", seen.ended_ms));
    }
    for end in &seen.wrong_ends {
        checker.broke(Rule::WrongExit, end.clone());
    }
    if seen.panics > 0 {
        checker.broke(Rule::Panicked, format!("{} times", seen.panics));
    }
    checker.broken
}

struct Checker<'a> {
    history: &'a History,
    seen: &'a Seen,
    broken: Vec<Broken>,
}

impl<'a> Checker<'a> {
    fn broke(&mut self, rule: Rule, what: impl Into<String>) {
        self.broken.push(Broken { rule, what: what.into() });
    }

    fn told(&self, id: Uuid) -> Vec<&'a [u8]> {
        let seen: &'a Seen = self.seen;
        let told = seen.told.iter().filter(|(_, message)| told_id(message) == Some(id));
        told.map(|(_, message)| &message.body[..]).collect()
    }

    /// Faults that may have had a part in what happened until then.
    fn faults_until(&self, from_ms: u64, until_ms: u64) -> usize {
        let active = |at_ms: u32, kind: Kind| {
            let lasts_ms = match kind {
                Kind::Stall { for_ms } | Kind::StoreAway { for_ms } => for_ms,
                Kind::Cut { away_ms, .. } | Kind::Crash { away_ms, .. } => away_ms,
                Kind::Kill { down_ms, .. } | Kind::Stop { down_ms } => down_ms,
                // Armed until something is published, or called.
                Kind::Publish(_) | Kind::Call(_) => 10_000,
                Kind::Flush | Kind::Clock { .. } => 0,
            };
            u64::from(at_ms) <= until_ms && from_ms <= u64::from(at_ms) + u64::from(lasts_ms) + AFTERMATH_MS
        };
        self.history.faults.iter().filter(|fault| active(fault.at_ms, fault.kind)).count()
    }

    /// An attempt can have been lost through no fault of its task so often.
    fn lost_attempts(&self) -> usize {
        let loses = |upon: Upon, kind: Kind| match kind {
            Kind::Publish(_) | Kind::Flush | Kind::Clock { .. } => false,
            _ => matches!(upon, Upon::Worker(_) | Upon::All),
        };
        self.history.faults.iter().filter(|fault| loses(fault.upon, fault.kind)).count()
    }

    fn tasks(&mut self) {
        for task in &self.history.tasks {
            let id = task_id(task.number);
            let told = self.told(id);
            let Some((first, again)) = told.split_first() else {
                if self.seen.accepted.contains(&id) {
                    let record = self.seen.records[&id].as_ref().map(|record| record.state);
                    self.broke(Rule::Lost, format!("{task:?}, its record: {record:?}"));
                }
                continue;
            };
            if again.iter().any(|told| told != first) && !self.history.flushes() {
                let all: Vec<_> = told.iter().map(|told| String::from_utf8_lossy(told)).collect();
                self.broke(Rule::TwoEnds, format!("{task:?}: {all:#?}"));
            }
            let result: TaskResult = serde_json::from_slice(first).unwrap();
            self.meant(task, &result);
            self.record(id, &told);
            self.executions(task, &result);
        }
    }

    fn meant(&mut self, task: &Task, result: &TaskResult) {
        let code = result.error.as_ref().map_or("", |error| error.code.as_str());
        let may = match task.meant {
            Meant::Succeeds | Meant::FailsAtFirst(_) => &[State::Succeeded][..],
            Meant::Fails => &[State::Failed],
            Meant::Refused => &[State::Rejected],
            Meant::MayBeLate(_) => &[State::Succeeded, State::Expired, State::Rejected],
            Meant::MayBeCancelled(_) => &[State::Succeeded, State::Cancelled],
        };
        let is_exhausted = result.state == State::Failed
            && match code {
                // Each attempt was lost, or was to fail.
                "attempts_exhausted" | "lease_lost" | "as_told" => {
                    let fails = if let Meant::FailsAtFirst(times) = task.meant { times as usize } else { 0 };
                    self.lost_attempts() + fails >= MAX_ATTEMPTS as usize
                }
                "worker_lost" => self.lost_attempts() >= 2,
                _ => false,
            };
        if !may.contains(&result.state) && !is_exhausted {
            self.broke(Rule::WrongEnd, format!("{task:?} ended as {} {code}", result.state.as_str()));
        }
    }

    fn record(&mut self, id: Uuid, told: &[&[u8]]) {
        let record = self.seen.records[&id].as_ref().map(|record| serde_json::to_vec(record).unwrap());
        let same = |told: &&[u8]| {
            let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
            record.as_ref().is_some_and(|record| parse(record) == parse(told))
        };
        match &record {
            _ if told.iter().any(same) => {}
            None if self.history.flushes() => {}
            Some(_) if self.history.flushes() => {}
            record => {
                let record = record.as_ref().map(|record| String::from_utf8_lossy(record).into_owned());
                self.broke(Rule::WrongRecord, format!("{id}: {record:?}, told {}", String::from_utf8_lossy(told[0])));
            }
        }
    }

    fn executions(&mut self, task: &Task, result: &TaskResult) {
        let id = task_id(task.number);
        let own: Vec<&Execution> = self.seen.executions.iter().filter(|execution| execution.id == id).collect();
        if result.state == State::Succeeded && !self.is_effect_of(id, result.output.as_ref().map(|output| output.get()))
        {
            self.broke(Rule::StrangeEffect, format!("{task:?} shows {:?}", result.output));
        }
        if task.meant == Meant::Refused && !own.is_empty() {
            self.broke(Rule::RefusedAndRan, format!("{task:?}"));
        }
        // A copy that comes just as the first one ends, or to another scheduler at the same time, is run too; one of them is settled.
        if task.again_ms.is_none() {
            self.repeats(&format!("{task:?}"), &own);
        }
    }

    /// How often it ran, and why.
    fn repeats(&mut self, what: &str, own: &[&Execution]) {
        let (Some(first), Some(last)) = (own.first(), own.last()) else { return };
        // Counted anew after a flush.
        let lives = 1 + self.history.faults.iter().filter(|fault| fault.kind == Kind::Flush).count();
        let allowed = MAX_ATTEMPTS as usize * lives + self.faults_until(first.at_ms, last.at_ms);
        if own.len() > allowed {
            self.broke(Rule::TooManyAttempts, format!("{what} ran {} times of {allowed}", own.len()));
        }
        for pair in own.windows(2) {
            if !pair[0].has_failed && self.faults_until(pair[0].at_ms, pair[1].at_ms) == 0 {
                self.broke(Rule::UnexplainedRepeat, format!("{what} ran at {} and {}", pair[0].at_ms, pair[1].at_ms));
            }
        }
    }

    fn is_effect_of(&self, id: Uuid, output: Option<&str>) -> bool {
        #[derive(Deserialize)]
        struct Effect {
            run: usize,
        }
        let effect = output.and_then(|output| serde_json::from_str::<Effect>(output).ok());
        let execution = effect.and_then(|effect| self.seen.executions.get(effect.run));
        execution.is_some_and(|execution| execution.id == id && execution.has_finished)
    }

    fn flows(&mut self) {
        for flow in &self.history.flows {
            let id = flow_id(flow.number);
            let told: Vec<Value> = self.told(id).iter().map(|told| serde_json::from_slice(told).unwrap()).collect();
            self.publishers_are_told(flow, id);
            self.steps_have_ended(flow, id);
            let Some((first, again)) = told.split_first() else {
                if self.seen.accepted.contains(&id) {
                    self.broke(Rule::Lost, format!("{flow:?}"));
                }
                continue;
            };
            let end = |told: &Value| (told["state"].clone(), told["outputs"].clone());
            if again.iter().any(|told| end(told) != end(first)) && !self.history.flushes() {
                self.broke(Rule::TwoEnds, format!("{flow:?}: {told:#?}"));
            }
            let state = first["state"].as_str().unwrap_or_default();
            let is_meant = match flow.meant {
                Meant::Fails => state == "failed",
                Meant::MayBeCancelled(_) => ["succeeded", "cancelled"].contains(&state),
                _ => state == "succeeded",
            };
            if !(is_meant || state == "failed" && self.lost_attempts() >= 2) {
                self.broke(Rule::WrongEnd, format!("{flow:?} ended as {state}"));
            }
            let join = WorkflowId(id).task("join", None).0;
            if state == "succeeded" && !self.is_effect_of(join, Some(&first["outputs"]["join"].to_string())) {
                self.broke(Rule::StrangeEffect, format!("{flow:?}: {}", first["outputs"]));
            }
        }
        let own: BTreeSet<Uuid> = self.history.tasks.iter().map(|task| task_id(task.number)).collect();
        let mut steps: BTreeMap<Uuid, Vec<&Execution>> = BTreeMap::new();
        for execution in self.seen.executions.iter().filter(|execution| !own.contains(&execution.id)) {
            steps.entry(execution.id).or_default().push(execution);
        }
        for (id, executions) in steps {
            self.repeats(&format!("step {id}"), &executions);
        }
    }

    fn publishers_are_told(&mut self, flow: &Flow, id: Uuid) {
        let publishers = [Some(FIRST), flow.again_ms.map(|_| AGAIN)];
        for publisher in publishers.into_iter().flatten() {
            let is_to_it = |message: &Message| message.properties.correlation_id.as_deref() == Some(publisher);
            if !self.seen.told.iter().any(|(_, message)| told_id(message) == Some(id) && is_to_it(message)) {
                self.broke(Rule::Lost, format!("{flow:?} was not told to {publisher}"));
            }
        }
    }

    /// Those that never ran, too. A step may have no record: nobody came to make it, or it was forgotten.
    fn steps_have_ended(&mut self, flow: &Flow, id: Uuid) {
        for (step, item) in STEPS {
            let record = &self.seen.records[&WorkflowId(id).task(step, item).0];
            if let Some(state) = record.as_ref().map(|record| record.state).filter(|state| !state.is_terminal()) {
                self.broke(Rule::WrongRecord, format!("{flow:?}: {step} {item:?} is {}", state.as_str()));
            }
        }
    }

    /// Of each task that failed or that nobody can run, and of no other.
    fn dead_letters(&mut self) {
        let dead: BTreeSet<Uuid> = self.seen.dead.iter().copied().collect();
        for task in &self.history.tasks {
            let id = task_id(task.number);
            let told = self.told(id);
            let results = told.iter().map(|told| serde_json::from_slice::<TaskResult>(told).unwrap());
            let is_to_be_buried = |result: &TaskResult| match result.state {
                State::Failed => true,
                State::Rejected => result.error.as_ref().is_some_and(|error| error.code == "unknown_model"),
                _ => false,
            };
            let mut buried: BTreeSet<bool> = results.map(|result| is_to_be_buried(&result)).collect();
            if task.meant == Meant::Refused && self.history.faults.iter().any(|fault| is_unmarked(fault.kind)) {
                // What comes again unmarked is taken for the same task published again, whose letter is there.
                buried.insert(false);
            }
            if !buried.is_empty() && !buried.contains(&dead.contains(&id)) {
                let what = format!("{task:?}: {}", if dead.contains(&id) { "has one" } else { "has none" });
                self.broke(Rule::WrongDeadLetter, what);
            }
        }
        // What is published again may be buried again, and what ends just as it is handed on: its copy is told again, letter and all.
        let comes_once = |task: &Task| task.again_ms.is_none() && task.runs_ms < HANDED_ON_MS - BESIDE_MS;
        let is_quiet = self.history.faults.is_empty() && self.history.tasks.iter().all(comes_once);
        if is_quiet && dead.len() < self.seen.dead.len() {
            self.broke(Rule::WrongDeadLetter, "one came twice");
        }
    }
}

fn is_unmarked(kind: Kind) -> bool {
    matches!(kind, Kind::Cut { back, .. } if back.unmarked)
}
