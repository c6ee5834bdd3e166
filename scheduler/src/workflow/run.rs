//! One workflow that runs here: its machine, the delivery that owns it, and what is to be sent for it.

use std::collections::HashMap;
use std::time::Duration;

use taskyard_shared::broker::Receipt;
use taskyard_shared::store::WorkflowWrite;
use taskyard_shared::workflow::{
    Command, Ended, Machine, StepError, StepOf, StepState, StepTimings, WorkflowOrder, WorkflowState,
};
use taskyard_shared::{Carried, Envelope, Reply, State, Task, TaskError, TaskId, TaskResult, Timestamp};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

/// Its record is written no more often than this, and no more of the time than a part.
const WRITTEN_EVERY: Duration = Duration::from_millis(300);
const WRITTEN_PART: u32 = 20;
/// Who publish the same workflow again and are told of its end.
const FOLLOWERS: usize = 16;
/// A step's error is shown in its workflow's record up to this length; its task has all of it.
const ERROR_BYTES: usize = 512;

pub(super) struct Run {
    pub order: WorkflowOrder,
    pub fingerprint: u128,
    pub machine: Machine,
    /// Nothing while its copy is on its way round.
    pub receipt: Option<Receipt>,
    /// Steps that never run: whether their ends were written and told.
    pub ending: JoinSet<bool>,
    pub since: Instant,
    /// From the end of each step to the end of the workflow, in expected seconds.
    pub remaining: Vec<f64>,
    /// How steps had ended that an earlier scheduler had sent.
    pub known: HashMap<u32, TaskResult>,
    /// It was begun before: what its `for_each` made may have ended.
    pub is_again: bool,
    pub is_changed: bool,
    pub is_written_now: bool,
    pub written: Instant,
    pub write_every: Duration,
}

/// What is to be done for a workflow.
#[derive(Default)]
pub(super) struct Todo {
    pub submit: Vec<Envelope>,
    /// Steps that never run: how they end.
    pub end: Vec<(Box<Envelope>, TaskResult)>,
    pub stop: Vec<TaskId>,
}

impl Run {
    pub fn new(order: WorkflowOrder, machine: Machine, fingerprint: u128, receipt: Receipt) -> Self {
        Self {
            remaining: Vec::new(),
            order,
            fingerprint,
            machine,
            receipt: Some(receipt),
            ending: JoinSet::new(),
            since: Instant::now(),
            known: HashMap::new(),
            is_again: false,
            is_changed: true,
            is_written_now: false,
            written: Instant::now(),
            write_every: WRITTEN_EVERY,
        }
    }

    /// The task of a step.
    pub fn envelope(
        &self,
        step: u32,
        item: Option<u32>,
        input: Option<Box<serde_json::value::RawValue>>,
        steps_queue: &str,
    ) -> Option<Envelope> {
        let planned = self.machine.plan().step(step)?;
        let of = &planned.task;
        let input = input.unwrap_or_else(|| serde_json::value::RawValue::NULL.to_owned());
        let task = Task {
            kind: of.kind,
            priority: Some(of.priority.unwrap_or(self.order.priority)),
            tenant: Some(self.order.tenant.clone()),
            deadline: of.deadline,
            deadline_ms: of.deadline_ms,
            not_before: of.not_before,
            delay_ms: of.delay_ms,
            cost: of.cost,
            timeout_ms: of.timeout_ms,
            max_attempts: of.max_attempts,
            metadata: of.metadata.clone(),
            webhook: of.webhook.clone(),
            min_quality: of.min_quality,
            alternatives: of.alternatives.clone(),
            id: Some(self.order.id.task(&planned.name, item)),
            ..Task::new(of.target.clone(), input)
        };
        let carried = Carried {
            reply: Some(Reply { to: steps_queue.into(), correlation_id: None, array: true }),
            traceparent: self.order.traceparent.clone(),
            tracestate: self.order.tracestate.clone(),
            ..Carried::default()
        };
        // Nothing is left open that a property could spoil.
        let mut envelope = Envelope::new(task, &carried, Timestamp::now()).ok()?;
        envelope.deadline = envelope.deadline.into_iter().chain(self.order.deadline).min();
        envelope.extras.workflow = Some(Box::new(StepOf { id: self.order.id, step: planned.name.to_string(), item }));
        let after_s = self.remaining.get(step as usize).copied().unwrap_or(0.0);
        if let Some(deadline) = self.order.deadline.filter(|_| after_s > 0.0) {
            let due = deadline.as_micros().saturating_sub((after_s * 1e6) as i64);
            envelope.extras.due = Some(Timestamp::from_micros(due));
        }
        Some(envelope)
    }

    /// What is to be done now. Steps whose end is known are told to the machine at once, whatever that leads to.
    pub fn todo(&mut self, steps_queue: &str) -> Todo {
        let mut todo = Todo::default();
        while let Some(command) = self.machine.poll() {
            self.is_changed = true;
            match command {
                Command::Submit { step, item, input } => {
                    if item.is_none()
                        && let Some(result) = self.known.remove(&step)
                    {
                        self.machine.handle_ended(step, None, ended(result));
                        continue;
                    }
                    todo.submit.extend(self.envelope(step, item, Some(input), steps_queue));
                }
                Command::Settle { step } => todo.end.extend(self.unrun(step)),
                Command::Stop { step, item } => {
                    let planned = self.machine.plan().step(step);
                    todo.stop.extend(planned.map(|planned| self.order.id.task(&planned.name, item)));
                }
            }
        }
        // What a longer way depends on goes first, if nothing else tells them apart.
        let remaining = |envelope: &Envelope| {
            let step = envelope.extras.workflow.as_ref().and_then(|of| self.machine.plan().find(&of.step));
            step.and_then(|step| self.remaining.get(step as usize).copied()).unwrap_or(0.0)
        };
        todo.submit.sort_by(|one, other| remaining(other).total_cmp(&remaining(one)));
        todo
    }

    /// How the task of a step ends that never runs.
    fn unrun(&self, step: u32) -> Option<(Box<Envelope>, TaskResult)> {
        let shown = self.machine.shown(step)?;
        let state = match shown.state {
            StepState::Failed => State::Failed,
            StepState::Expired => State::Expired,
            _ => State::Cancelled,
        };
        let mut envelope = self.envelope(step, None, None, "")?;
        // The machine knows it already.
        (envelope.reply, envelope.accepted) = (None, self.order.accepted);
        let mut result = envelope.result(state);
        result.timings.finished = Some(Timestamp::now());
        result.error = shown.error.map(|error| TaskError {
            code: error.code.clone(),
            message: error.message.clone(),
            retryable: false,
        });
        Some((Box::new(envelope), result))
    }

    /// Has the same workflow, published again, told of its end too. Answers whether that is more than was known.
    pub fn follow(&mut self, again: &WorkflowOrder) -> bool {
        let mut is_more = false;
        for reply in again.replies() {
            if self.order.replies().any(|own| own == reply) {
                continue;
            }
            if self.order.followers.len() >= FOLLOWERS {
                warn!(workflow.id = %self.order.id.0, "as many are told of a workflow as may: one more is not");
                continue;
            }
            self.order.followers.push(reply.clone());
            is_more = true;
        }
        is_more
    }

    /// A result that came. Answers whether it was news.
    pub fn handle_result(&mut self, result: TaskResult) -> bool {
        let Some(StepOf { step, item, .. }) = &result.workflow else { return false };
        // A task of another id is not the step, whatever it says.
        if !result.state.is_terminal() || result.id != self.order.id.task(step, *item) {
            return false;
        }
        let (step, item) = (self.machine.plan().find(step), *item);
        let is_news = step.is_some_and(|step| self.machine.handle_ended(step, item, ended(result)));
        self.is_changed |= is_news;
        is_news
    }

    /// What was sent and has not ended.
    pub fn outstanding(&self, most: usize) -> Vec<TaskId> {
        let running = self.machine.running(most).into_iter();
        running
            .filter_map(|(step, item)| Some(self.order.id.task(&self.machine.plan().step(step)?.name, item)))
            .collect()
    }

    /// Its record, to be written.
    pub fn write(&self, state: WorkflowState) -> Result<WorkflowWrite, serde_json::Error> {
        let mut record = self.order.record(&self.machine, state);
        record.finished = state.is_terminal().then(Timestamp::now);
        WorkflowWrite::new(&record, self.fingerprint)
    }

    pub fn was_written(&mut self, took: Duration) {
        self.is_written_now = false;
        self.written = Instant::now();
        self.write_every = WRITTEN_EVERY.max(took * WRITTEN_PART);
    }
}

fn ended(result: TaskResult) -> Ended {
    let mut error = result.error.map(StepError::from);
    if let Some(error) = error.as_mut().filter(|error| error.message.len() > ERROR_BYTES) {
        let end = (0..=ERROR_BYTES).rev().find(|at| error.message.is_char_boundary(*at)).unwrap_or(0);
        error.message.truncate(end);
        error.message.push('…');
    }
    Ended {
        state: result.state,
        output: result.output,
        error,
        attempt: result.attempt,
        timings: StepTimings {
            started: result.timings.started,
            finished: result.timings.finished,
            ran_ms: result.timings.ran_ms,
        },
    }
}
