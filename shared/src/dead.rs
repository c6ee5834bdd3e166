//! Dead letters: what is no longer tried, as it lies in the queue `dead`.
//!
//! A letter has one shape, whoever wrote it: the body is the task as it could be published again, and properties and
//! headers say the rest. So the queue can be read with any tool, and what it holds can be sent again by any.

use bytes::Bytes;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::broker::{Destination, Message, Properties};
use crate::envelope::{Carried, Envelope, Reply};
use crate::messages::{DETAIL_HEADER, REASON_HEADER, ask_for, printable, reply_of, text_of};
use crate::outcome::TaskResult;
use crate::task::TaskId;
use crate::time::Timestamp;
use crate::topology::Topology;
use crate::wire;

/// What the body is: [`Content::name`].
pub const CONTENT_HEADER: &str = "x-taskyard-content";
/// Attempts that were begun.
pub const ATTEMPTS_HEADER: &str = "x-taskyard-attempts";
pub const MODEL_HEADER: &str = "x-taskyard-model";
/// Who began it last.
pub const WORKER_HEADER: &str = "x-taskyard-worker";
/// When it was accepted; RFC 3339.
pub const ACCEPTED_HEADER: &str = "x-taskyard-accepted";
/// When it was given up; RFC 3339.
pub const DIED_HEADER: &str = "x-taskyard-died";
/// The queue that a message between roles came from, where it can be sent back there: [`Origin::name`].
pub const ORIGIN_HEADER: &str = "x-taskyard-origin";
/// The property `expiration` of what was published: set as such, it would end the letter.
pub const EXPIRATION_HEADER: &str = "x-taskyard-expiration";

/// Ids of letters that are no accepted task's live in this name space.
const LETTERS: Uuid = Uuid::from_u128(0x5b1d_8c3a_93f4_5e07_8a11_6d2c_47f0_be92);
/// Ids of tasks that are letters' replays live in this one.
const REPLAYS: Uuid = Uuid::from_u128(0xc0de_21f7_4a6e_5b3d_9e45_02b8_7719_d35f);

/// The most that is kept of a name in a header; bytes.
const NAME_BYTES: usize = 256;

/// What a letter's body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// A task that was accepted once and has ended: its record holds a terminal state.
    Task,
    /// What was published, and never accepted.
    Published,
    /// A message of one role to another, which could not be read.
    Internal,
}

impl Content {
    pub fn name(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Published => "published",
            Self::Internal => "internal",
        }
    }
}

/// The queue of a message that goes back there when it is replayed. Others go to the queue of retries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Of the workflows of a shard.
    Workflows(u32),
    /// Of schedules.
    Schedules,
}

impl Origin {
    fn name(self) -> String {
        match self {
            Self::Workflows(shard) => format!("workflows.{shard}"),
            Self::Schedules => "schedules".to_owned(),
        }
    }

    fn read(name: &str) -> Option<Self> {
        match name.strip_prefix("workflows.") {
            Some(shard) => shard.parse().ok().map(Self::Workflows),
            None => (name == "schedules").then_some(Self::Schedules),
        }
    }

    pub fn queue(self, topology: &Topology) -> String {
        match self {
            Self::Workflows(shard) => topology.workflows(shard),
            Self::Schedules => topology.schedules(),
        }
    }
}

/// One dead letter.
#[derive(Clone, Debug)]
pub struct Letter {
    pub content: Content,
    /// Of a message between roles, where it is known.
    pub origin: Option<Origin>,
    /// The task's id, where it is known.
    pub task: Option<TaskId>,
    /// Why: a code.
    pub reason: String,
    /// What was seen, for people.
    pub message: String,
    pub attempts: u32,
    pub model: Option<String>,
    pub tenant: Option<String>,
    /// Who began it last.
    pub worker: Option<String>,
    pub accepted: Option<Timestamp>,
    pub died: Option<Timestamp>,
    /// Of what was published: the property `type`, which a workflow has.
    pub kind: Option<String>,
    /// Of what was published: the property of this name.
    pub priority: Option<u8>,
    pub expiration: Option<String>,
    pub reply: Option<Reply>,
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
    pub body: Bytes,
}

impl Letter {
    /// Of a task that has ended with this result.
    pub fn of_task(envelope: &Envelope, result: &TaskResult) -> Self {
        let (reason, message) = match &result.error {
            Some(error) => (error.code.clone(), error.message.clone()),
            None => (result.state.as_str().to_owned(), String::new()),
        };
        Self {
            task: Some(envelope.id),
            attempts: result.attempt,
            model: result.model.clone().or_else(|| envelope.model().map(str::to_owned)),
            tenant: Some(envelope.tenant.to_string()),
            worker: result.worker.clone(),
            accepted: Some(envelope.accepted),
            died: result.timings.finished,
            reply: envelope.reply.clone(),
            traceparent: envelope.extras.traceparent.as_deref().map(str::to_owned),
            tracestate: envelope.extras.tracestate.as_deref().map(str::to_owned),
            // What an envelope holds came as JSON, so this cannot fail; a letter without a body is still a letter.
            ..Self::bare(
                Content::Task,
                reason,
                message,
                wire::write(&envelope.to_task()).map_or_else(|_| Bytes::new(), Bytes::from),
            )
        }
    }

    /// Of what was published and cannot be taken. `body` is one task, where the message could be taken apart.
    pub fn of_published(
        properties: &Properties,
        task: Option<TaskId>,
        reason: &str,
        message: &str,
        body: Bytes,
    ) -> Self {
        let header = |name: &str| properties.headers.get(name).map(String::as_str);
        // Headers travel in one frame: a letter with a larger one than the yard's would end whoever sends it.
        let mut carried = Carried::default();
        carried.trace(header("traceparent"), header("tracestate"));
        Self {
            task,
            tenant: properties.app_id.clone(),
            died: Some(Timestamp::now()),
            kind: properties.kind.clone(),
            priority: properties.priority,
            expiration: properties.expiration.clone(),
            reply: reply_of(properties),
            traceparent: carried.traceparent,
            tracestate: carried.tracestate,
            ..Self::bare(Content::Published, reason.to_owned(), message.to_owned(), body)
        }
    }

    /// Of a message between roles.
    pub fn of_internal(reason: &str, message: &str, body: Bytes) -> Self {
        let died = Some(Timestamp::now());
        Self { died, ..Self::bare(Content::Internal, reason.to_owned(), message.to_owned(), body) }
    }

    /// Of an order of a workflow or a schedule. `id` names it in the message that it came in, if anything does.
    pub fn of_order(origin: Origin, id: Option<&String>, why: &wire::Unreadable, body: Bytes) -> Self {
        let task = id.and_then(|id| id.parse().ok()).map(TaskId);
        Self { origin: Some(origin), task, ..Self::of_internal(why.code(), &why.to_string(), body) }
    }

    fn bare(content: Content, reason: String, message: String, body: Bytes) -> Self {
        Self {
            content,
            origin: None,
            task: None,
            reason,
            message,
            attempts: 0,
            model: None,
            tenant: None,
            worker: None,
            accepted: None,
            died: None,
            kind: None,
            priority: None,
            expiration: None,
            reply: None,
            traceparent: None,
            tracestate: None,
            body,
        }
    }

    /// Reads one from the queue. What others put there is a letter too.
    pub fn read(properties: &Properties, body: Bytes) -> Self {
        let header = |name: &str| properties.headers.get(name).cloned();
        let instant = |name: &str| header(name).and_then(|text| text.parse().ok());
        let content = match header(CONTENT_HEADER).as_deref() {
            Some("task") => Content::Task,
            Some("internal") => Content::Internal,
            _ => Content::Published,
        };
        let task = properties.message_id.as_ref().and_then(|id| id.parse().ok()).map(TaskId);
        let reason = header(REASON_HEADER).unwrap_or_else(|| "unknown".to_owned());
        Self {
            // Without its id a task cannot be told from others.
            content: if task.is_none() && content == Content::Task { Content::Published } else { content },
            origin: header(ORIGIN_HEADER).and_then(|name| Origin::read(&name)).filter(|_| content == Content::Internal),
            attempts: header(ATTEMPTS_HEADER).and_then(|text| text.parse().ok()).unwrap_or(0),
            model: header(MODEL_HEADER),
            worker: header(WORKER_HEADER),
            accepted: instant(ACCEPTED_HEADER),
            died: instant(DIED_HEADER),
            expiration: header(EXPIRATION_HEADER),
            ..Self::of_published(properties, task, &reason, &header(DETAIL_HEADER).unwrap_or_default(), body)
        }
    }

    /// Names the letter: a task's by the task, any other by what it holds. A letter that was written twice, because nobody
    /// knew whether the first had arrived, has the same id twice.
    pub fn id(&self) -> Uuid {
        match (self.content, self.task) {
            (Content::Task, Some(task)) => task.0,
            (_, task) => {
                let name = task.map(text_of).unwrap_or_default();
                let correlation = self.reply.as_ref().and_then(Reply::correlation).unwrap_or_default();
                Uuid::new_v5(&LETTERS, &[name.as_bytes(), b"\n", correlation.as_bytes(), b"\n", &self.body].concat())
            }
        }
    }

    /// The id of the task that a replay of this letter makes. Always the same, so that replaying it again, after a crash in
    /// between, is publishing the same task again.
    pub fn replayed(id: Uuid) -> TaskId {
        TaskId(Uuid::new_v5(&REPLAYS, id.as_bytes()))
    }

    /// Several messages to the schedulers may travel in one: each by itself, where they can be told apart.
    pub fn members(&self) -> Vec<Bytes> {
        match members(&self.body) {
            Some(members) if !members.is_empty() => {
                members.iter().map(|member| self.body.slice_ref(member.get().as_bytes())).collect()
            }
            // An array of nothing is one as well: sent again it is seen again, and does not go without a word.
            _ => vec![self.body.clone()],
        }
    }

    pub fn message(&self, topology: &Topology) -> Message {
        let mut properties = Properties {
            message_id: self.task.map(text_of),
            content_type: Some("application/json".into()),
            app_id: self.tenant.clone(),
            kind: self.kind.as_ref().map(|kind| printable(kind, NAME_BYTES)),
            priority: self.priority,
            ..Properties::default()
        };
        let headers = &mut properties.headers;
        let mut put = |name: &str, text: Option<String>| {
            if let Some(text) = text {
                headers.insert(name.to_owned(), text);
            }
        };
        put(REASON_HEADER, Some(printable(&self.reason, NAME_BYTES)));
        put(DETAIL_HEADER, Some(printable(&self.message, DETAIL_BYTES)));
        put(CONTENT_HEADER, Some(self.content.name().into()));
        put(ORIGIN_HEADER, self.origin.map(Origin::name));
        put(ATTEMPTS_HEADER, (self.content == Content::Task).then(|| self.attempts.to_string()));
        put(MODEL_HEADER, self.model.as_ref().map(|name| printable(name, NAME_BYTES)));
        put(WORKER_HEADER, self.worker.as_ref().map(|name| printable(name, NAME_BYTES)));
        put(ACCEPTED_HEADER, self.accepted.map(|instant| instant.to_string()));
        put(DIED_HEADER, self.died.map(|instant| instant.to_string()));
        put(EXPIRATION_HEADER, self.expiration.as_ref().map(|text| printable(text, NAME_BYTES)));
        put("traceparent", self.traceparent.clone());
        put("tracestate", self.tracestate.clone());
        if let Some(reply) = &self.reply {
            ask_for(&mut properties, reply);
        }
        Message {
            to: Destination::Queue(topology.dead()),
            body: self.body.clone(),
            properties,
            persistent: true,
            mandatory: true,
        }
    }
}

/// Headers hold no more than this of a text that came from outside; bytes.
const DETAIL_BYTES: usize = 512;

/// The members of a JSON array, as they are written. `None` for anything else.
pub fn members(body: &[u8]) -> Option<Vec<&RawValue>> {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace())?;
    if *first != b'[' { None } else { serde_json::from_slice(body).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::State;
    use crate::outcome::TaskError;
    use crate::task::{Target, Task};

    fn task() -> (Envelope, TaskResult) {
        let input = RawValue::from_string(r#"{"n": 1.50}"#.to_owned()).unwrap();
        let mut task = Task::new(Target::Model("m".into()), input);
        task.metadata.insert("kept".into(), "yes".into());
        let reply = Reply { to: "answers".into(), correlation_id: Some("7".into()), array: true };
        let carried = Carried { priority: Some(7), reply: Some(reply), ..Carried::default() };
        let envelope = Envelope::new(task, &carried, Timestamp::now()).unwrap();
        let mut result = envelope.result(State::Failed);
        result.attempt = 3;
        result.worker = Some("w".into());
        result.timings.finished = Some(Timestamp::now());
        result.error = Some(TaskError { code: "timed_out".into(), message: "too\nlong".into(), retryable: true });
        (envelope, result)
    }

    fn carried_over(letter: &Letter) -> Letter {
        let message = letter.message(&Topology::new("yard"));
        assert_eq!(message.to, Destination::Queue("yard.dead".into()));
        Letter::read(&message.properties, message.body)
    }

    #[test]
    fn a_task_comes_out_of_the_queue_as_it_could_be_published_again() {
        let (envelope, result) = task();
        let letter = carried_over(&Letter::of_task(&envelope, &result));
        assert_eq!((letter.content, letter.id()), (Content::Task, envelope.id.0));
        assert_eq!((letter.reason.as_str(), letter.message.as_str()), ("timed_out", "too long"));
        assert_eq!((letter.attempts, letter.worker.as_deref()), (3, Some("w")));
        assert_eq!((letter.accepted, letter.died), (Some(envelope.accepted), result.timings.finished));
        assert_eq!(letter.reply, envelope.reply);
        let again = crate::decode_tasks(&letter.body).unwrap().remove(0).unwrap();
        assert_eq!((again.id, again.priority), (Some(envelope.id), Some(envelope.priority)));
        assert_eq!(again.input.get(), envelope.input.get(), "the bytes that came");
        assert_eq!(again.metadata, envelope.extras.metadata);
    }

    #[test]
    fn what_was_published_keeps_its_properties_but_for_the_one_that_would_end_it() {
        let properties = Properties {
            reply_to: Some("answers".into()),
            correlation_id: Some("7".into()),
            app_id: Some("acme".into()),
            priority: Some(12),
            expiration: Some("1000".into()),
            ..Properties::default()
        };
        let letter = Letter::of_published(&properties, None, "json", "not JSON", Bytes::from_static(b"{"));
        assert_eq!(letter.message(&Topology::new("yard")).properties.expiration, None);
        let read = carried_over(&letter);
        assert_eq!((read.content, read.id()), (Content::Published, letter.id()));
        assert_eq!((read.expiration, read.priority, read.tenant), (Some("1000".into()), Some(12), Some("acme".into())));
        let other = Letter::of_published(&properties, None, "json", "not JSON", Bytes::from_static(b"["));
        assert_ne!(other.id(), letter.id());
    }

    #[test]
    fn what_others_put_into_the_queue_is_a_letter() {
        let letter = Letter::read(&Properties::default(), Bytes::from_static(b"\xff"));
        assert_eq!((letter.reason.as_str(), letter.content, letter.task), ("unknown", Content::Published, None));
        let mut properties = Properties::default();
        properties.headers.insert(CONTENT_HEADER.into(), "task".into());
        properties.headers.insert(DIED_HEADER.into(), "yesterday".into());
        assert_eq!(Letter::read(&properties, Bytes::new()).content, Content::Published, "it has no id");
    }

    #[test]
    fn an_order_says_which_queue_it_came_from_and_what_says_another_says_nothing() {
        let why = wire::Unreadable::OrderVersion(2);
        for origin in [Origin::Workflows(0), Origin::Workflows(7), Origin::Schedules] {
            let id = uuid::Uuid::new_v4();
            let letter = Letter::of_order(origin, Some(&id.to_string()), &why, Bytes::from_static(b"{\"v\":2}"));
            let read = carried_over(&letter);
            assert_eq!((read.content, read.origin, read.task), (Content::Internal, Some(origin), Some(TaskId(id))));
            assert_eq!((read.reason.as_str(), read.id()), ("unsupported_version", letter.id()));
        }
        for name in ["workflows.", "workflows.x", "workflows.-1", "workflows.0.0", "dead", "retry", ""] {
            let mut properties = Properties::default();
            properties.headers.insert(CONTENT_HEADER.into(), "internal".into());
            properties.headers.insert(ORIGIN_HEADER.into(), name.into());
            assert_eq!(Letter::read(&properties, Bytes::new()).origin, None, "{name}");
        }
        // Whoever publishes says what is in the headers of what is no message between roles.
        let mut properties = Properties::default();
        properties.headers.insert(ORIGIN_HEADER.into(), "schedules".into());
        assert_eq!(Letter::read(&properties, Bytes::new()).origin, None);
    }

    #[test]
    fn an_array_is_taken_apart_as_it_is_written() {
        let letter = Letter::of_internal("unreadable", "", Bytes::from_static(b" [{\"a\": 1.0}, 2]"));
        assert_eq!(letter.members(), [Bytes::from_static(b"{\"a\": 1.0}"), Bytes::from_static(b"2")]);
        let letter = Letter::of_internal("unreadable", "", Bytes::from_static(b"[1,"));
        assert_eq!(letter.members(), [Bytes::from_static(b"[1,")]);
        let letter = Letter::of_internal("unreadable", "", Bytes::from_static(b"[ ]"));
        assert_eq!(letter.members(), [Bytes::from_static(b"[ ]")]);
    }
}
