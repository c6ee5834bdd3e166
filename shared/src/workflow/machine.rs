//! One workflow as it runs: what ended goes in, what is to be done comes out. No I/O, no clock, no randomness.
//!
//! Whatever order things end in, and however often their end is told, each step ends once, and only after all that it depends
//! on. Starting anew and telling all ends again leads to the same place, which is how a workflow outlives its scheduler.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;
use serde_json::value::RawValue;

use super::json::{find, members};
use super::template::{Unfilled, fill};
use super::{
    After, ItemCounts, OnFailure, Over, Plan, PlannedStep, StepError, StepRecord, StepState, StepTimings, WorkflowId,
    WorkflowState, limits,
};
use crate::lifecycle::State;

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Command {
    /// Run the task of a step, or that of a member of its `for_each`.
    Submit { step: u32, item: Option<u32>, input: Box<RawValue> },
    /// It does not run: its task ends so.
    Settle { step: u32 },
    /// It runs, and is no longer wanted.
    Stop { step: u32, item: Option<u32> },
}

/// How a task ended.
#[derive(Clone, Debug)]
pub struct Ended {
    pub state: State,
    pub output: Option<Box<RawValue>>,
    pub error: Option<StepError>,
    pub attempt: u32,
    pub timings: StepTimings,
}

/// A step as it stands.
#[derive(Clone, Debug)]
pub struct Shown<'a> {
    pub state: StepState,
    pub error: Option<&'a StepError>,
}

/// Inputs of the tasks of one step, each with its place if there may be several.
type Inputs = Vec<(Option<u32>, Box<RawValue>)>;

/// Why no further step is begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    Cancelled,
    FailFast,
    Expired,
}

struct Node {
    state: StepState,
    /// Dependencies that have not ended.
    waits: u32,
    /// Steps that have yet to read its result.
    readers: u32,
    output: Option<Arc<RawValue>>,
    error: Option<StepError>,
    attempt: Option<u32>,
    timings: Option<StepTimings>,
    /// Of a `for_each` that has begun.
    parts: Option<Box<Parts>>,
    /// It has read what it reads.
    has_read: bool,
}

#[derive(Default)]
struct Parts {
    counts: ItemCounts,
    /// Of each: nothing until it has ended, then its output, if it has one.
    ended: Vec<Option<Option<Box<RawValue>>>>,
    open: u32,
    /// The worst that came of one, and why.
    worst: Option<(State, StepError)>,
    too_large: bool,
}

/// See the [module](self).
pub struct Machine {
    plan: Arc<Plan>,
    nodes: Vec<Node>,
    commands: VecDeque<Command>,
    /// Steps of which nothing is waited for any more.
    ready: VecDeque<u32>,
    open: usize,
    ending: Option<Ending>,
    is_cancelled: bool,
    is_expired: bool,
    items: usize,
    held_bytes: usize,
    shown_bytes: usize,
    error: Option<StepError>,
}

fn error(code: &str, message: impl Into<String>) -> StepError {
    StepError { code: code.to_owned(), message: message.into() }
}

/// It ended, and neither succeeded nor was skipped.
fn has_failed(state: StepState) -> bool {
    state.is_terminal() && !matches!(state, StepState::Succeeded | StepState::Skipped)
}

/// It expired, or was refused because it would have.
fn was_too_late(node: &Node) -> bool {
    let code = node.error.as_ref().map_or("", |error| error.code.as_str());
    node.state == StepState::Expired
        || node.state == StepState::Rejected && ["deadline_unreachable", "deadline_shed"].contains(&code)
}

impl Machine {
    pub fn new(plan: Arc<Plan>) -> Self {
        let mut readers = vec![0; plan.len()];
        for read in plan.steps.iter().flat_map(|step| &step.reads) {
            if let Some(readers) = readers.get_mut(*read as usize) {
                *readers += 1;
            }
        }
        let node = |(step, readers): (&PlannedStep, u32)| Node {
            state: StepState::Blocked,
            waits: step.depends_on.len() as u32,
            readers,
            output: None,
            error: None,
            attempt: None,
            timings: None,
            parts: None,
            has_read: false,
        };
        let nodes: Vec<Node> = plan.steps.iter().zip(readers).map(node).collect();
        Self {
            open: nodes.len(),
            nodes,
            plan,
            commands: VecDeque::new(),
            ready: VecDeque::new(),
            ending: None,
            is_cancelled: false,
            is_expired: false,
            items: 0,
            held_bytes: 0,
            shown_bytes: 0,
            error: None,
        }
    }

    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// To be called once, first.
    pub fn start(&mut self) {
        let free = (0u32..).zip(&self.nodes).filter(|(_, node)| node.waits == 0);
        self.ready.extend(free.map(|(step, _)| step));
        self.go_on();
    }

    /// The next thing to be done, until there is none.
    pub fn poll(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Every step has ended.
    pub fn is_over(&self) -> bool {
        self.open == 0
    }

    /// A task that was submitted has ended. Answers whether that was news.
    pub fn handle_ended(&mut self, step: u32, item: Option<u32>, ended: Ended) -> bool {
        let is_sink = self.plan.step(step).is_some_and(|step| step.dependents.is_empty());
        let Some(node) = self.nodes.get_mut(step as usize) else { return false };
        if node.state != StepState::Queued || !ended.state.is_terminal() || item.is_some() != node.parts.is_some() {
            return false;
        }
        if let (Some(item), Some(parts)) = (item, &mut node.parts) {
            let Some(place) = parts.ended.get_mut(item as usize).filter(|ended| ended.is_none()) else { return false };
            let bytes = ended.output.as_ref().map_or(0, |output| output.get().len());
            parts.too_large |= self.held_bytes + bytes > limits::HELD_BYTES;
            let output = ended.output.filter(|_| !parts.too_large);
            self.held_bytes += output.as_ref().map_or(0, |output| output.get().len());
            *place = Some(output);
            parts.open -= 1;
            node.timings = Some(joined(node.timings.take(), &ended.timings));
            let has_failed = ended.state != State::Succeeded;
            if has_failed {
                parts.counts.failed += 1;
                let why = ended.error.unwrap_or_else(|| error(ended.state.as_str(), ""));
                let is_worse = parts.worst.as_ref().is_none_or(|(worst, _)| badness(ended.state) > badness(*worst));
                if is_worse {
                    parts.worst = Some((ended.state, why));
                }
            } else {
                parts.counts.succeeded += 1;
            }
            let is_last = parts.open == 0;
            if has_failed && self.plan.on_failure == OnFailure::FailFast && self.ending.is_none() {
                self.stop(Ending::FailFast);
            }
            if is_last {
                self.join(step);
            }
        } else {
            node.attempt = Some(ended.attempt);
            node.timings = Some(ended.timings);
            let output = ended.output.map(Arc::from);
            let bytes = output.as_ref().map_or(0, |output: &Arc<RawValue>| output.get().len());
            match ended.state {
                State::Succeeded if node.readers > 0 && self.held_bytes + bytes > limits::HELD_BYTES => {
                    self.end(step, StepState::Failed, None, Some(too_large()));
                }
                State::Succeeded => {
                    let output = output.filter(|_| node.readers > 0 || is_sink);
                    self.end(step, StepState::Succeeded, output, None);
                }
                state => {
                    let why = ended.error.unwrap_or_else(|| error(state.as_str(), ""));
                    self.end(step, state.into(), None, Some(why));
                }
            }
        }
        self.go_on();
        true
    }

    /// Somebody wants no more of it. Steps that run are to be stopped, and end as they end.
    pub fn cancel(&mut self) {
        if !self.is_cancelled && !self.is_over() {
            self.is_cancelled = true;
            self.stop(Ending::Cancelled);
            self.go_on();
        }
    }

    /// The deadline has passed. What is with the workers ends by itself.
    pub fn expire(&mut self) {
        if !self.is_expired && !self.is_over() {
            self.is_expired = true;
            self.stop(Ending::Expired);
            self.go_on();
        }
    }

    /// What was submitted and has not ended, at most so much of it.
    pub fn running(&self, most: usize) -> Vec<(u32, Option<u32>)> {
        let mut running = Vec::new();
        for (step, node) in (0u32..).zip(&self.nodes).filter(|(_, node)| node.state == StepState::Queued) {
            match &node.parts {
                None => running.push((step, None)),
                Some(parts) => {
                    let open = (0u32..).zip(&parts.ended).filter(|(_, ended)| ended.is_none());
                    running.extend(open.map(|(item, _)| (step, Some(item))).take(most));
                }
            }
            if running.len() >= most {
                break;
            }
        }
        running.truncate(most);
        running
    }

    pub fn state(&self) -> WorkflowState {
        if !self.is_over() {
            return WorkflowState::Running;
        }
        let has = |wanted: fn(StepState) -> bool| self.nodes.iter().any(|node| wanted(node.state));
        if !has(has_failed) {
            WorkflowState::Succeeded
        } else if self.is_cancelled {
            WorkflowState::Cancelled
        } else if self.is_expired || self.nodes.iter().any(was_too_late) {
            WorkflowState::Expired
        } else {
            WorkflowState::Failed
        }
    }

    /// The first thing that went wrong.
    pub fn error(&self) -> Option<&StepError> {
        self.error.as_ref()
    }

    pub fn shown(&self, step: u32) -> Option<Shown<'_>> {
        let node = self.node(step)?;
        Some(Shown { state: node.state, error: node.error.as_ref() })
    }

    /// Every step, in the order of the body, and how many are in which state.
    pub fn records(&self, id: WorkflowId) -> (Vec<StepRecord>, BTreeMap<StepState, u32>) {
        let mut counts = BTreeMap::new();
        let record = |(planned, node): (&PlannedStep, &Node)| {
            *counts.entry(node.state).or_default() += 1;
            StepRecord {
                name: planned.name.to_string(),
                state: node.state,
                task: (!planned.is_fanned_out()).then(|| id.task(&planned.name, None)),
                attempt: node.attempt,
                // Some of a step's tasks may have ended, and the step not.
                timings: node.timings.clone().map(|timings| StepTimings {
                    finished: timings.finished.filter(|_| node.state.is_terminal()),
                    ..timings
                }),
                error: node.error.clone(),
                items: node.parts.as_ref().map(|parts| parts.counts),
            }
        };
        let records = self.plan.steps.iter().zip(&self.nodes).map(record).collect();
        (records, counts)
    }

    /// Outputs of the steps that no other depends on.
    pub fn outputs(&self) -> BTreeMap<String, Box<RawValue>> {
        let of_last = self.plan.steps.iter().zip(&self.nodes).filter(|(planned, _)| planned.dependents.is_empty());
        of_last
            .filter_map(|(planned, node)| Some((planned.name.to_string(), (**node.output.as_ref()?).to_owned())))
            .collect()
    }

    fn node(&self, step: u32) -> Option<&Node> {
        self.nodes.get(step as usize)
    }

    fn go_on(&mut self) {
        while let Some(step) = self.ready.pop_front() {
            if self.node(step).is_some_and(|node| node.state == StepState::Blocked) {
                self.begin(step);
            }
        }
    }

    /// All that it depends on has ended.
    fn begin(&mut self, step: u32) {
        let plan = self.plan.clone();
        let Some(planned) = plan.step(step) else { return };
        if let Err((state, why)) = self.may_run(planned) {
            return self.end(step, state, None, Some(why));
        }
        let made = match &planned.for_each {
            None => self.input(planned, None).map(|input| vec![(None, input)]),
            Some(over) => self.inputs(planned, over),
        };
        let inputs = match made {
            Ok(inputs) => inputs,
            Err(why) => return self.end(step, StepState::Failed, None, Some(why)),
        };
        self.release(step);
        if let Some(node) = self.nodes.get_mut(step as usize) {
            node.state = StepState::Queued;
            if planned.is_fanned_out() {
                let total = inputs.len() as u32;
                let counts = ItemCounts { total, ..ItemCounts::default() };
                let ended = vec![None; inputs.len()];
                node.parts = Some(Box::new(Parts { counts, ended, open: total, ..Parts::default() }));
            }
        }
        if planned.is_fanned_out() {
            self.items += inputs.len();
            if inputs.is_empty() {
                return self.join(step);
            }
        }
        self.commands.extend(inputs.into_iter().map(|(item, input)| Command::Submit { step, item, input }));
    }

    /// By what has become of what it depends on, and by its condition.
    fn may_run(&self, planned: &PlannedStep) -> Result<(), (StepState, StepError)> {
        let states = planned.depends_on.iter().filter_map(|step| Some((*step, self.node(*step)?.state)));
        let (mut failed, mut skipped, mut has_succeeded) = (None, None, false);
        for (step, state) in states {
            match state {
                StepState::Succeeded => has_succeeded = true,
                StepState::Skipped => skipped = skipped.or(Some(step)),
                _ => failed = failed.or(Some(step)),
            }
        }
        let named = |step: u32| self.plan.step(step).map_or_else(String::new, |step| step.name.to_string());
        let goes_on = self.plan.on_failure == OnFailure::Continue;
        let depends = |failed: Option<u32>, skipped: Option<u32>| match (failed, skipped) {
            (Some(step), _) => {
                let why = error("dependency_failed", format!("step {} did not succeed", named(step)));
                Err((StepState::Cancelled, why))
            }
            (None, Some(step)) => {
                let why = error("dependency_skipped", format!("step {} was skipped", named(step)));
                Err((StepState::Skipped, why))
            }
            (None, None) => Ok(()),
        };
        match planned.after {
            After::AllDone => {}
            After::AnySucceeded if has_succeeded || planned.depends_on.is_empty() => {}
            After::AnySucceeded => depends(failed, skipped)?,
            After::AllSucceeded => depends(failed.filter(|_| !goes_on), skipped)?,
        }
        let found = |named: &str, path: &str| serde_json::from_str::<Value>(&self.found(named, path)?).ok();
        match &planned.when {
            Some(when) if !when.holds(&found) => {
                Err((StepState::Skipped, error("condition_false", "its condition does not hold")))
            }
            _ => Ok(()),
        }
    }

    /// What stands at a path in the result of a step.
    fn found(&self, named: &str, path: &str) -> Option<Cow<'_, str>> {
        let node = self.node(self.plan.find(named)?)?;
        if let Some(within) = path.strip_prefix("/output") {
            return find(node.output.as_deref()?, within).map(|found| Cow::Borrowed(found.get()));
        }
        let result = serde_json::json!({"state": node.state, "error": node.error});
        result.pointer(path).filter(|found| !found.is_null()).map(|found| Cow::Owned(found.to_string()))
    }

    fn input(&self, planned: &PlannedStep, item: Option<&RawValue>) -> Result<Box<RawValue>, StepError> {
        let output = |reference: &super::template::Reference| self.found(&reference.step, &reference.path);
        fill(&planned.task.input, &planned.holes, output, item).map_err(|unfilled| match unfilled {
            Unfilled::Missing(what) => error("missing_output", what),
            Unfilled::TooLarge => {
                error("input_too_large", "with what it refers to, the input is larger than a task may be")
            }
        })
    }

    fn inputs(&self, planned: &PlannedStep, over: &Over) -> Result<Inputs, StepError> {
        let array = match over {
            Over::Given(array) => Cow::Borrowed(array.get()),
            Over::Output { from, path } => self
                .found(from, path)
                .ok_or_else(|| error("missing_output", format!("the result of step {from} has no {path:?}")))?,
        };
        let members = serde_json::from_str::<&RawValue>(&array).ok().and_then(members);
        let members = members.ok_or_else(|| error("for_each_not_array", "what for_each is to go over is no array"))?;
        if self.items + members.len() > limits::ITEMS {
            let why = format!(
                "for_each goes over {} members, and all of a workflow may make {} tasks",
                members.len(),
                limits::ITEMS
            );
            return Err(error("fan_out_too_large", why));
        }
        let mut inputs = Vec::with_capacity(members.len());
        let mut bytes = 0;
        for (number, member) in (0u32..).zip(members) {
            let input = self.input(planned, Some(member))?;
            bytes += input.get().len();
            if bytes > limits::HELD_BYTES {
                return Err(error("input_too_large", "the inputs of all its tasks together are too large"));
            }
            inputs.push((Some(number), input));
        }
        Ok(inputs)
    }

    /// All tasks of a `for_each` have ended: its output is the array of theirs, with `null` for those that have none.
    fn join(&mut self, step: u32) {
        let Some(parts) = self.nodes.get_mut(step as usize).and_then(|node| node.parts.as_mut()) else { return };
        let mut array = String::from("[");
        let mut held = 0;
        for output in parts.ended.drain(..) {
            if array.len() > 1 {
                array.push(',');
            }
            let output = output.flatten();
            held += output.as_ref().map_or(0, |output| output.get().len());
            array.push_str(output.as_ref().map_or("null", |output| output.get()));
        }
        array.push(']');
        let (counts, worst, is_too_large) = (parts.counts, parts.worst.take(), parts.too_large);
        self.held_bytes -= held;
        let output = RawValue::from_string(array).ok().filter(|_| !is_too_large).map(Arc::from);
        match worst {
            _ if is_too_large => self.end(step, StepState::Failed, None, Some(too_large())),
            None => self.end(step, StepState::Succeeded, output, None),
            Some((state, first)) => {
                let ItemCounts { total, failed, .. } = counts;
                let why = format!(
                    "{failed} of {total} tasks did not succeed; one of them: {} ({})",
                    first.message, first.code
                );
                let state = if state == State::Rejected { State::Failed } else { state };
                self.end(step, state.into(), output, Some(error("items_failed", why)));
            }
        }
    }

    /// It reads nothing any more.
    fn release(&mut self, step: u32) {
        let plan = self.plan.clone();
        let Some(node) = self.nodes.get_mut(step as usize) else { return };
        if std::mem::replace(&mut node.has_read, true) {
            return;
        }
        for read in plan.step(step).into_iter().flat_map(|step| &step.reads) {
            let Some(node) = self.nodes.get_mut(*read as usize) else { continue };
            node.readers -= 1;
            if node.readers == 0 {
                self.held_bytes -= node.output.take().map_or(0, |output| output.get().len());
            }
        }
    }

    fn end(&mut self, step: u32, state: StepState, output: Option<Arc<RawValue>>, why: Option<StepError>) {
        let plan = self.plan.clone();
        let (Some(planned), Some(node)) = (plan.step(step), self.nodes.get_mut(step as usize)) else { return };
        if node.state.is_terminal() {
            return;
        }
        let was_blocked = node.state == StepState::Blocked;
        node.state = state;
        let bytes = output.as_ref().map_or(0, |output| output.get().len());
        if node.readers > 0 {
            self.held_bytes += bytes;
            node.output = output;
        } else if planned.dependents.is_empty() && self.shown_bytes + bytes <= limits::SHOWN_BYTES {
            self.shown_bytes += bytes;
            node.output = output;
        }
        let is_consequence = why.as_ref().is_some_and(|why| {
            matches!(why.code.as_str(), "dependency_failed" | "fail_fast")
                || self.ending.is_some() && state == StepState::Cancelled
        });
        if has_failed(state) && !is_consequence && self.error.is_none() {
            let (code, message) = why.as_ref().map_or(("", ""), |why| (&why.code, &why.message));
            self.error = Some(error(code, format!("step {}: {message}", planned.name)));
        }
        node.error = why;
        self.open -= 1;
        if was_blocked && !planned.is_fanned_out() {
            self.commands.push_back(Command::Settle { step });
        }
        self.release(step);
        for next in &planned.dependents {
            if let Some(node) = self.nodes.get_mut(*next as usize) {
                node.waits -= 1;
                if node.waits == 0 {
                    self.ready.push_back(*next);
                }
            }
        }
        if has_failed(state) && self.plan.on_failure == OnFailure::FailFast && self.ending.is_none() {
            self.stop(Ending::FailFast);
        }
    }

    /// Begins no further step.
    fn stop(&mut self, ending: Ending) {
        self.ending = Some(ending);
        let (state, why) = match ending {
            Ending::Cancelled => {
                (StepState::Cancelled, error("cancelled", "the workflow was cancelled before it began"))
            }
            Ending::FailFast => (StepState::Cancelled, error("fail_fast", "another step did not succeed")),
            Ending::Expired => {
                (StepState::Expired, error("expired", "the deadline of the workflow passed before it began"))
            }
        };
        for step in 0..self.nodes.len() as u32 {
            match self.node(step).map(|node| node.state) {
                Some(StepState::Blocked) => self.end(step, state, None, Some(why.clone())),
                Some(StepState::Queued) if ending != Ending::Expired => self.stop_running(step),
                _ => {}
            }
        }
    }

    fn stop_running(&mut self, step: u32) {
        // What was not sent yet need not be.
        let Some(node) = self.nodes.get(step as usize) else { return };
        match &node.parts {
            None => self.commands.push_back(Command::Stop { step, item: None }),
            Some(parts) => {
                let open = (0u32..).zip(&parts.ended).filter(|(_, ended)| ended.is_none());
                self.commands.extend(open.map(|(item, _)| Command::Stop { step, item: Some(item) }));
            }
        }
    }
}

fn too_large() -> StepError {
    error("outputs_too_large", "the results that steps wait to read are too large together")
}

/// The order in which the end of one of several tasks is the end of all.
fn badness(state: State) -> u8 {
    match state {
        State::Failed | State::Rejected => 3,
        State::Expired => 2,
        _ => 1,
    }
}

/// From the first start to the last end; run times add up.
fn joined(before: Option<StepTimings>, one: &StepTimings) -> StepTimings {
    let Some(before) = before else { return one.clone() };
    StepTimings {
        started: before.started.into_iter().chain(one.started).min(),
        finished: before.finished.into_iter().chain(one.finished).max(),
        ran_ms: before.ran_ms.map(|ran| ran + one.ran_ms.unwrap_or(0.0)).or(one.ran_ms),
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
