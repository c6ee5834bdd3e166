//! The queues that roles share and the messages they send to them, built in one place: ready and retried tasks, results,
//! completions. Dead letters are [`crate::dead`]'s.

use bytes::Bytes;

use crate::broker::{Message, Properties, QueueSpec};
use crate::control::{Answer, Question};
use crate::envelope::{Correlation, Envelope, Reply};
use crate::load::Completion;
use crate::outcome::TaskResult;
use crate::schedule::{Published, ScheduleOrder};
use crate::task::TaskId;
use crate::topology::Topology;
use crate::webhook::Hook;
use crate::wire::{self, Put};
use crate::workflow::{WorkflowId, WorkflowOrder};

/// Why a dead letter is dead: a code.
pub const REASON_HEADER: &str = "x-taskyard-reason";
/// What was seen, for people.
pub const DETAIL_HEADER: &str = "x-taskyard-detail";
/// The publisher takes several results in one message, as a JSON array, when this header says `array`.
pub const RESULTS_HEADER: &str = "x-taskyard-results";

/// The tasks were counted against the rates of their tenants, by a gateway: the scheduler does not count them again.
pub const COUNTED_HEADER: &str = "x-taskyard-counted";

/// The worker begins these tasks before what it was sent earlier and has not begun.
pub const PASSES_HEADER: &str = "x-taskyard-passes";

/// The task runs, and the scheduler is to watch over it.
pub const RUNS_HEADER: &str = "x-taskyard-runs";

/// The message holds steps of workflows, as envelopes.
pub const STEPS_HEADER: &str = "x-taskyard-steps";

/// The property `type` of a message that is a workflow, or its end.
pub const WORKFLOW_TYPE: &str = "workflow";

/// The property `type` of a message that a scheduler sends to itself, to know that it has read what was there before.
pub const MARK_TYPE: &str = "mark";

/// What a page of the backlog holds, as JSON.
pub const PAGE_HEADER: &str = "x-taskyard-page";

/// Questions that may wait for a scheduler.
const QUESTIONS: u64 = 1_000;

/// Every durable queue but those of models and of shards. Any process may declare them, in any order.
pub fn work_queues(topology: &Topology) -> Vec<QueueSpec> {
    vec![
        QueueSpec::durable(topology.intake()).bound(topology.tasks_exchange(), "#"),
        QueueSpec::durable(topology.retry()),
        QueueSpec::durable(topology.completions(0)),
        QueueSpec::durable(topology.dead()),
        QueueSpec::durable(topology.webhooks()),
        QueueSpec::durable(topology.webhooks_again()),
    ]
}

/// The queues that the schedulers of so many shards read beside those that they share. Each declares all of them, so that the
/// numbers that exist have no gap.
pub fn shard_queues(topology: &Topology, shards: u32) -> Vec<QueueSpec> {
    let of = |shard| {
        let completions = (shard > 0).then(|| topology.completions(shard));
        [topology.round(shard), topology.workflows(shard), topology.steps(shard)].into_iter().chain(completions)
    };
    let control = (0..shards).map(|shard| control_queue(topology, shard));
    let schedules = QueueSpec::durable(topology.schedules());
    (0..shards).flat_map(of).map(QueueSpec::durable).chain(control).chain([schedules]).collect()
}

/// Where the scheduler of a shard is asked.
pub fn control_queue(topology: &Topology, shard: u32) -> QueueSpec {
    QueueSpec { max_length: Some(QUESTIONS), ..QueueSpec::durable(topology.control(shard)) }
}

/// A message could not be written: an instant or a number that JSON cannot hold.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be written as JSON: {source}")]
pub struct Unwritable {
    what: &'static str,
    source: serde_json::Error,
}

fn one(what: &'static str, message: &impl Put) -> Result<Bytes, Unwritable> {
    wire::write(message).map(Bytes::from).map_err(|source| Unwritable { what, source })
}

fn plain(what: &'static str, message: &impl serde::Serialize) -> Result<Bytes, Unwritable> {
    serde_json::to_vec(message).map(Bytes::from).map_err(|source| Unwritable { what, source })
}

fn several<T: Put>(what: &'static str, messages: &[&T]) -> Result<Bytes, Unwritable> {
    wire::write_all(messages).map(Bytes::from).map_err(|source| Unwritable { what, source })
}

fn with_id(mut message: Message, id: TaskId) -> Message {
    message.properties.message_id = Some(text_of(id));
    message
}

pub(crate) fn text_of(id: TaskId) -> String {
    let mut text = uuid::Uuid::encode_buffer();
    id.0.as_hyphenated().encode_lower(&mut text).to_owned()
}

/// A task for the workers of its model.
pub fn ready(topology: &Topology, model: &str, envelope: &Envelope) -> Result<Message, Unwritable> {
    Ok(with_id(Message::to_queue(topology.ready(model), one("a task", envelope)?), envelope.id))
}

/// Several tasks for one worker of their model, as an array.
pub fn ready_group(topology: &Topology, model: &str, envelopes: &[&Envelope]) -> Result<Message, Unwritable> {
    Ok(Message::to_queue(topology.ready(model), several("tasks", envelopes)?))
}

/// A task that goes back to the schedulers.
pub fn retry(topology: &Topology, envelope: &Envelope) -> Result<Message, Unwritable> {
    Ok(with_id(Message::to_queue(topology.retry(), one("a task", envelope)?), envelope.id))
}

/// A task that the scheduler of a shard sends to itself.
pub fn round(topology: &Topology, shard: u32, envelope: &Envelope) -> Result<Message, Unwritable> {
    Ok(with_id(Message::to_queue(topology.round(shard), one("a task", envelope)?), envelope.id))
}

/// Tasks of the backlog that the scheduler of a shard keeps out of its memory. `label` says what they have in common.
pub fn page(
    topology: &Topology,
    (shard, number): (u32, u32),
    label: String,
    envelopes: &[&Envelope],
) -> Result<Message, Unwritable> {
    let mut message = Message::to_queue(topology.page(shard, number), several("tasks", envelopes)?);
    message.properties.headers.insert(PAGE_HEADER.into(), label);
    Ok(message)
}

/// A task that runs for long, to the scheduler of the shard that dispatched it, or to itself.
pub fn watch(topology: &Topology, shard: u32, envelope: &Envelope) -> Result<Message, Unwritable> {
    let mut message = round(topology, shard, envelope)?;
    message.properties.headers.insert(RUNS_HEADER.into(), "1".into());
    Ok(message)
}

/// Steps of workflows that are to run now, to the schedulers, as an array. Whoever sends it speaks for the workflows.
pub fn steps(topology: &Topology, envelopes: &[&Envelope]) -> Result<Message, Unwritable> {
    let mut message = Message::to_queue(topology.intake(), several("steps", envelopes)?);
    message.properties.headers.insert(STEPS_HEADER.into(), "1".into());
    Ok(message)
}

/// A workflow, to the scheduler of the shard that runs it.
pub fn workflow(topology: &Topology, shard: u32, order: &WorkflowOrder) -> Result<Message, Unwritable> {
    let mut message = Message::to_queue(topology.workflows(shard), plain("a workflow", order)?);
    message.properties.message_id = Some(order.id.0.to_string());
    Ok(message)
}

/// What a schedule publishes at a tick, to the schedulers, as if a caller had sent it.
pub fn tick(topology: &Topology, published: &Published) -> Result<Message, Unwritable> {
    match published {
        Published::Task(envelope) => {
            Ok(with_id(Message::to_queue(topology.intake(), one("a task", &envelope.to_task())?), envelope.id))
        }
        Published::Workflow { order, .. } => {
            let body = Bytes::from(order.workflow.get().to_owned());
            let mut message = Message::to_queue(topology.intake(), body);
            message.properties.kind = Some(WORKFLOW_TYPE.to_owned());
            message.properties.message_id = Some(order.id.0.to_string());
            Ok(message)
        }
    }
}

/// A schedule as it stands, to the scheduler that keeps them.
pub fn schedule(topology: &Topology, order: &ScheduleOrder) -> Result<Message, Unwritable> {
    Ok(Message::to_queue(topology.schedules(), plain("a schedule", order)?))
}

/// Comes behind all that is in the queue of schedules.
pub fn schedules_mark(topology: &Topology, id: &str) -> Message {
    let mut message = Message::to_queue(topology.schedules(), "{}");
    message.properties.kind = Some(MARK_TYPE.to_owned());
    message.properties.message_id = Some(id.to_owned());
    message
}

/// How a workflow ended, to whoever asked for it. `record` is a [`WorkflowRecord`](crate::workflow::WorkflowRecord).
pub fn workflow_result(reply: &Reply, id: WorkflowId, record: Bytes) -> Message {
    let mut message = Message::to_queue(&*reply.to, record);
    message.properties.kind = Some(WORKFLOW_TYPE.to_owned());
    message.properties.message_id = Some(id.0.to_string());
    message.properties.correlation_id = reply.correlation();
    message
}

/// A result, to whoever asked for it.
pub fn result(reply: &Reply, result: &TaskResult) -> Result<Message, Unwritable> {
    let mut message = with_id(Message::to_queue(&*reply.to, one("a result", result)?), result.id);
    message.properties.correlation_id = reply.correlation();
    Ok(message)
}

/// What a task that has ended so is to tell its address, if it wants that.
pub fn webhook(topology: &Topology, envelope: &Envelope, result: &TaskResult) -> Option<Message> {
    let hook = Hook::of(envelope, result)?;
    let body = plain("a webhook", &hook).ok()?;
    Some(with_id(Message::to_queue(topology.webhooks(), body), hook.task))
}

/// Several results to one queue, as an array.
pub fn results(queue: &str, results: &[&TaskResult]) -> Result<Message, Unwritable> {
    Ok(Message::to_queue(queue, several("results", results)?))
}

/// What finished, for the scheduler of the shard that dispatched it. Not persistent: losing it costs a credit for a while.
pub fn completions(topology: &Topology, shard: u32, completions: &[Completion]) -> Result<Message, Unwritable> {
    let body = several("completions", &completions.iter().collect::<Vec<_>>())?;
    Ok(Message { persistent: false, ..Message::to_queue(topology.completions(shard), body) })
}

/// A question to the scheduler of a shard. Not persistent: whoever asked is soon gone.
pub fn question(topology: &Topology, shard: u32, question: &Question, reply: &Reply) -> Result<Message, Unwritable> {
    let body = plain("a question", question)?;
    let mut message = Message { persistent: false, ..Message::to_queue(topology.control(shard), body) };
    ask_for(&mut message.properties, reply);
    Ok(message)
}

/// Where a message says that its result goes.
pub fn reply_of(properties: &Properties) -> Option<Reply> {
    let to = properties.reply_to.as_deref().filter(|to| !to.is_empty())?;
    Some(Reply {
        to: to.into(),
        correlation_id: properties.correlation_id.as_deref().map(Correlation::from),
        array: properties.headers.get(RESULTS_HEADER).is_some_and(|value| value == "array"),
    })
}

/// Has a message say where its result goes.
pub fn ask_for(properties: &mut Properties, reply: &Reply) {
    properties.reply_to = Some(reply.to.to_string());
    properties.correlation_id = reply.correlation();
    if reply.array {
        properties.headers.insert(RESULTS_HEADER.to_owned(), "array".to_owned());
    }
}

/// The answer to whoever asked.
pub fn answer(reply: &Reply, answer: &Answer) -> Result<Message, Unwritable> {
    let mut message = Message { persistent: false, ..Message::to_queue(&*reply.to, plain("an answer", answer)?) };
    message.properties.correlation_id = reply.correlation();
    Ok(message)
}

/// Without control characters, and cut after so many bytes.
pub(crate) fn printable(text: &str, most: usize) -> String {
    let mut out = String::new();
    for character in text.chars() {
        if out.len() + character.len_utf8() > most {
            break;
        }
        out.push(if character.is_control() { ' ' } else { character });
    }
    out
}
