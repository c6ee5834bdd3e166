//! A task on its way between roles: what was asked for, every default filled in, and how far it has come.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use schemars::JsonSchema;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;
use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128_with_seed};

use crate::decode::{Invalid, is_tenant};
use crate::lifecycle::State;
use crate::outcome::{ModelChoice, TaskError, TaskResult, Timings};
use crate::task::{
    Alternative, DEFAULT_TENANT, Kind, ONE_TARGET, Priority, Target, Task, TaskId, Webhook, if_some, limits,
};
use crate::time::Timestamp;
use crate::workflow::StepOf;

/// The major version of the envelope. A reader takes every minor version of its own major one: fields are only added.
pub const VERSION: u32 = 1;

/// Where a result goes.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Reply {
    /// A queue, by way of the default exchange.
    pub to: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// Several results may travel in one message, as a JSON array.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub array: bool,
}

/// What the properties of the message that carried a task say about it. The body wins over them.
#[derive(Clone, Default, Debug)]
pub struct Carried {
    pub message_id: Option<String>,
    pub priority: Option<u8>,
    pub app_id: Option<String>,
    /// Milliseconds, as AMQP has it.
    pub expiration: Option<String>,
    pub reply: Option<Reply>,
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
}

/// What a body says, or else the message that carried it.
impl Carried {
    pub(crate) fn tenant(&self, said: Option<String>) -> Result<String, Invalid> {
        match (said, &self.app_id) {
            (Some(tenant), _) => Ok(tenant),
            (None, Some(app_id)) if is_tenant(app_id) => Ok(app_id.clone()),
            (None, Some(_)) => {
                Err(Invalid::field("app_id", "must be 1 to 128 bytes without control characters: it is the tenant"))
            }
            (None, None) => Ok(DEFAULT_TENANT.to_owned()),
        }
    }

    /// The message's id, which is that of a `what`.
    pub(crate) fn id(&self, what: &str) -> Result<Option<Uuid>, Invalid> {
        let bad = |_| Invalid::field("message_id", format!("must be a UUID: it is the {what}'s id"));
        self.message_id.as_ref().map(|id| id.parse().map_err(bad)).transpose()
    }

    pub(crate) fn priority(&self, said: Option<Priority>) -> Result<Priority, Invalid> {
        match (said, self.priority) {
            (Some(priority), _) => Ok(priority),
            (None, Some(property)) => {
                Priority::try_from(property).map_err(|message| Invalid::field("priority", message))
            }
            (None, None) => Ok(Priority::default()),
        }
    }

    pub(crate) fn deadline(
        &self,
        said: Option<Timestamp>,
        said_ms: Option<u64>,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Invalid> {
        match (said, said_ms, &self.expiration) {
            (Some(deadline), ..) => Ok(Some(deadline)),
            (None, Some(ms), _) => Ok(Some(now.plus_ms(ms))),
            (None, None, Some(text)) => {
                let ms: u64 =
                    text.parse().map_err(|_| Invalid::field("expiration", "must be a number of milliseconds"))?;
                Ok(Some(now.plus_ms(ms.min(limits::DURATION_MS))))
            }
            (None, None, None) => Ok(None),
        }
    }
}

/// The id that a tenant's idempotency key stands for.
pub(crate) fn keyed(space: &Uuid, tenant: &str, key: &str) -> Uuid {
    Uuid::new_v5(space, format!("{}:{tenant}:{key}", tenant.len()).as_bytes())
}

/// A task as the roles hand it to each other on the queues `retry`, `round.<shard>` and `ready.<model>`.
///
/// Very many wait in memory: what most of them do not have is boxed.
#[derive(Clone, Debug, JsonSchema)]
pub struct Envelope {
    /// [`VERSION`].
    pub v: u32,
    pub id: TaskId,
    #[serde(flatten)]
    pub target: Target,
    /// The model that was chosen; known once dispatched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Box<str>>,
    pub kind: Kind,
    pub tenant: Box<str>,
    pub priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<NonZeroU64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Box<Webhook>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_quality: Option<f64>,
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub alternatives: Box<[Alternative]>,
    /// How the model was chosen, if there was a choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<Box<ModelChoice>>,
    pub accepted: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatched: Option<Timestamp>,
    /// Attempts that were begun so far.
    #[serde(default)]
    pub attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<Box<str>>,
    /// Why the last attempt did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Box<TaskError>>,
    /// Whose scheduler dispatched it last, and is told when it ends.
    #[serde(default, skip_serializing_if = "is_first")]
    pub shard: u32,
    /// Which step of which workflow it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<Box<StepOf>>,
    /// When it is to have ended so that its workflow can meet its deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Timestamp>,
    /// The task that it runs again, for a version that is tried out: see [`crate::mirror`]. Only schedulers set it, and nobody is told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirrors: Option<Box<TaskId>>,
    /// The caller's bytes, as they came.
    pub input: Box<RawValue>,
}

/// Ids made from an idempotency key live in this name space.
const KEYED_IDS: Uuid = Uuid::from_u128(0x7a5c_1b0e_52d7_5d7c_9c57_3f5e_6a1d_a4e1);

impl Envelope {
    /// Fills in what a task leaves open, from the message that carried it and then from the defaults.
    ///
    /// A task without an id gets `message_id`, or one made from tenant and idempotency key, or a UUIDv7.
    ///
    /// # Errors
    /// When a property that is needed cannot be read; the field it stands for is named.
    pub fn new(task: Task, carried: &Carried, now: Timestamp) -> Result<Self, Invalid> {
        let tenant = carried.tenant(task.tenant)?;
        let id = match (task.id, &task.idempotency_key) {
            (Some(id), _) => id,
            (None, key) => match (carried.id("task")?, key) {
                (Some(id), _) => TaskId(id),
                (None, Some(key)) => TaskId(keyed(&KEYED_IDS, &tenant, key)),
                (None, None) => TaskId::new(),
            },
        };
        let priority = carried.priority(task.priority)?;
        let deadline = carried.deadline(task.deadline, task.deadline_ms, now)?;
        Ok(Self {
            v: VERSION,
            id,
            target: task.target,
            chosen: None,
            kind: task.kind,
            tenant: tenant.into(),
            priority,
            deadline,
            not_before: task.not_before.or_else(|| task.delay_ms.map(|ms| now.plus_ms(ms))),
            cost: task.cost,
            timeout_ms: task.timeout_ms.and_then(NonZeroU64::new),
            max_attempts: task.max_attempts,
            idempotency_key: task.idempotency_key.map(Into::into),
            metadata: task.metadata,
            webhook: task.webhook.map(Box::new),
            min_quality: task.min_quality,
            alternatives: task.alternatives.into(),
            choice: None,
            accepted: now,
            dispatched: None,
            attempts: 0,
            reply: carried.reply.clone(),
            traceparent: carried.traceparent.as_deref().map(Box::from),
            tracestate: carried.tracestate.as_deref().map(Box::from),
            last_error: None,
            shard: 0,
            workflow: None,
            due: None,
            mirrors: None,
            input: task.input,
        })
    }

    /// The task as it is to be published: what [`Envelope::new`] filled in is said in the body.
    pub fn to_task(&self) -> Task {
        Task {
            id: Some(self.id),
            target: self.target.clone(),
            kind: self.kind,
            input: self.input.clone(),
            priority: Some(self.priority),
            tenant: Some(self.tenant.to_string()),
            deadline: self.deadline,
            deadline_ms: None,
            not_before: self.not_before,
            delay_ms: None,
            cost: self.cost,
            timeout_ms: self.timeout_ms.map(NonZeroU64::get),
            max_attempts: self.max_attempts,
            idempotency_key: self.idempotency_key.as_deref().map(str::to_owned),
            metadata: self.metadata.clone(),
            webhook: self.webhook.as_deref().cloned(),
            min_quality: self.min_quality,
            alternatives: self.alternatives.to_vec(),
        }
    }

    /// The model to run on, once chosen or named.
    pub fn model(&self) -> Option<&str> {
        match (&self.chosen, &self.target) {
            (Some(chosen), _) => Some(chosen),
            (None, Target::Model(model)) => Some(model),
            (None, Target::Capability(_)) => None,
        }
    }

    /// This task in a state, as results and look-ups show it.
    pub fn result(&self, state: State) -> TaskResult {
        TaskResult {
            id: self.id,
            state,
            kind: self.kind,
            model: self.model().map(str::to_owned),
            tenant: self.tenant.to_string(),
            priority: self.priority,
            attempt: self.attempts,
            output: None,
            error: None,
            timings: Timings { accepted: Some(self.accepted), dispatched: self.dispatched, ..Timings::default() },
            worker: None,
            metadata: self.metadata.clone(),
            choice: self.choice.as_deref().cloned(),
            workflow: self.workflow.as_deref().cloned(),
            usage: None,
        }
    }

    /// The same task again has the same fingerprint: it covers what runs and on what.
    ///
    /// XXH3 of 128 bits over the input, seeded with that of 64 bits over the tenant, seeded with that over the target, seeded
    /// with that over the kind: one tenant's task is never another's, who would be told its result. It
    /// tells apart what one caller sends under one id; it is no proof against somebody who looks for two inputs that
    /// have the same one, who would only get the first one's result for the second.
    pub fn fingerprint(&self) -> u128 {
        let (_, target) = self.target.field();
        let seed = xxh3_64_with_seed(target.as_bytes(), xxh3_64(self.kind.as_str().as_bytes()));
        let seed = xxh3_64_with_seed(self.tenant.as_bytes(), seed);
        if let Some(StepOf { id, step, item }) = self.workflow.as_deref() {
            // Its input is not known before others have ended, and the workflow's id stands for what it is made of.
            let item = item.map_or(u64::MAX, u64::from);
            return xxh3_128_with_seed(&[id.0.as_bytes(), step.as_bytes()].concat(), seed ^ item);
        }
        xxh3_128_with_seed(self.input.get().as_bytes(), seed)
    }

    /// Name of the idempotency key in the store: a tenant's own.
    pub fn alias(&self) -> Option<String> {
        self.idempotency_key.as_ref().map(|key| format!("{}:{}:{key}", self.tenant.len(), self.tenant))
    }
}

// Written out, because `serde(flatten)` reads every field into a buffer first.
impl Serialize for Envelope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Envelope", 30)?;
        fields.serialize_field("v", &self.v)?;
        fields.serialize_field("id", &self.id)?;
        let (target, name) = self.target.field();
        fields.serialize_field(target, name)?;
        if_some(&mut fields, "chosen", &self.chosen)?;
        fields.serialize_field("kind", &self.kind)?;
        fields.serialize_field("tenant", &self.tenant)?;
        fields.serialize_field("priority", &self.priority)?;
        if_some(&mut fields, "deadline", &self.deadline)?;
        if_some(&mut fields, "not_before", &self.not_before)?;
        if_some(&mut fields, "cost", &self.cost)?;
        if_some(&mut fields, "timeout_ms", &self.timeout_ms)?;
        if_some(&mut fields, "max_attempts", &self.max_attempts)?;
        if_some(&mut fields, "idempotency_key", &self.idempotency_key)?;
        if !self.metadata.is_empty() {
            fields.serialize_field("metadata", &self.metadata)?;
        }
        if_some(&mut fields, "webhook", &self.webhook)?;
        if_some(&mut fields, "min_quality", &self.min_quality)?;
        if !self.alternatives.is_empty() {
            fields.serialize_field("alternatives", &self.alternatives)?;
        }
        if_some(&mut fields, "choice", &self.choice)?;
        fields.serialize_field("accepted", &self.accepted)?;
        if_some(&mut fields, "dispatched", &self.dispatched)?;
        fields.serialize_field("attempts", &self.attempts)?;
        if_some(&mut fields, "reply", &self.reply)?;
        if_some(&mut fields, "traceparent", &self.traceparent)?;
        if_some(&mut fields, "tracestate", &self.tracestate)?;
        if_some(&mut fields, "last_error", &self.last_error)?;
        if !is_first(&self.shard) {
            fields.serialize_field("shard", &self.shard)?;
        }
        if_some(&mut fields, "workflow", &self.workflow)?;
        if_some(&mut fields, "due", &self.due)?;
        if_some(&mut fields, "mirrors", &self.mirrors)?;
        fields.serialize_field("input", &self.input)?;
        fields.end()
    }
}

impl<'de> Deserialize<'de> for Envelope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(deserializer)?;
        Ok(Self {
            v: wire.v,
            id: wire.id,
            target: Target::of(wire.model, wire.capability).ok_or_else(|| de::Error::custom(ONE_TARGET))?,
            chosen: wire.chosen,
            kind: wire.kind,
            tenant: wire.tenant,
            priority: wire.priority,
            deadline: wire.deadline,
            not_before: wire.not_before,
            cost: wire.cost,
            // Nobody means to be stopped at once: 0 is the model's limit.
            timeout_ms: wire.timeout_ms.and_then(NonZeroU64::new),
            max_attempts: wire.max_attempts,
            idempotency_key: wire.idempotency_key,
            metadata: wire.metadata,
            webhook: wire.webhook,
            min_quality: wire.min_quality,
            alternatives: wire.alternatives,
            choice: wire.choice,
            accepted: wire.accepted,
            dispatched: wire.dispatched,
            attempts: wire.attempts,
            reply: wire.reply,
            traceparent: wire.traceparent,
            tracestate: wire.tracestate,
            last_error: wire.last_error,
            shard: wire.shard,
            workflow: wire.workflow,
            due: wire.due,
            mirrors: wire.mirrors,
            input: wire.input,
        })
    }
}

/// An envelope's fields as they are on the wire.
#[derive(Deserialize)]
struct Wire {
    v: u32,
    id: TaskId,
    model: Option<String>,
    capability: Option<String>,
    chosen: Option<Box<str>>,
    kind: Kind,
    tenant: Box<str>,
    priority: Priority,
    deadline: Option<Timestamp>,
    not_before: Option<Timestamp>,
    cost: Option<f64>,
    timeout_ms: Option<u64>,
    max_attempts: Option<u32>,
    idempotency_key: Option<Box<str>>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    webhook: Option<Box<Webhook>>,
    min_quality: Option<f64>,
    #[serde(default)]
    alternatives: Box<[Alternative]>,
    choice: Option<Box<ModelChoice>>,
    accepted: Timestamp,
    dispatched: Option<Timestamp>,
    #[serde(default)]
    attempts: u32,
    reply: Option<Reply>,
    traceparent: Option<Box<str>>,
    tracestate: Option<Box<str>>,
    last_error: Option<Box<TaskError>>,
    #[serde(default)]
    shard: u32,
    workflow: Option<Box<StepOf>>,
    due: Option<Timestamp>,
    mirrors: Option<Box<TaskId>>,
    input: Box<RawValue>,
}

fn is_first(shard: &u32) -> bool {
    *shard == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_task_is_small() {
        assert!(size_of::<Envelope>() <= 384, "{}: a scheduler has one for each", size_of::<Envelope>());
    }

    #[test]
    fn tasks_that_differ_in_target_kind_input_or_tenant_are_told_apart() {
        let task = |target: Target, input: &str| {
            let input = RawValue::from_string(input.to_owned()).unwrap();
            Envelope::new(Task::new(target, input), &Carried::default(), Timestamp::now()).unwrap()
        };
        let model = |name: &str| Target::Model(name.to_owned());
        let one = task(model("m"), "1");
        let same = Envelope { id: TaskId::new(), priority: Priority::try_from(9).unwrap(), ..one.clone() };
        assert_eq!(one.fingerprint(), same.fingerprint());
        for other in [
            task(model("n"), "1"),
            task(model("m"), "2"),
            Envelope { kind: Kind::Training, ..one.clone() },
            Envelope { tenant: "blue".into(), ..one.clone() },
        ] {
            assert_ne!(one.fingerprint(), other.fingerprint(), "{other:?}");
        }
    }

    #[test]
    fn what_the_body_says_wins_over_properties_even_over_bad_ones() {
        let carried = Carried {
            message_id: Some("no id".into()),
            priority: Some(200),
            app_id: Some("\n".into()),
            expiration: Some("soon".into()),
            ..Carried::default()
        };
        let input = RawValue::from_string("1".to_owned()).unwrap();
        let (id, now) = (TaskId::new(), Timestamp::now());
        let said = Task {
            id: Some(id),
            priority: Some(Priority::try_from(7).unwrap()),
            tenant: Some("blue".into()),
            deadline_ms: Some(5),
            ..Task::new(Target::Model("m".into()), input)
        };
        let envelope = Envelope::new(said.clone(), &carried, now).unwrap();
        assert_eq!((envelope.id, envelope.priority.get(), &*envelope.tenant), (id, 7, "blue"));
        assert_eq!(envelope.deadline, Some(now.plus_ms(5)));
        let open: [fn(&mut Task); 4] = [
            |task| task.id = None,
            |task| task.priority = None,
            |task| task.tenant = None,
            |task| task.deadline_ms = None,
        ];
        for (leave_open, field) in open.into_iter().zip(["message_id", "priority", "app_id", "expiration"]) {
            let mut task = said.clone();
            leave_open(&mut task);
            assert_eq!(Envelope::new(task, &carried, now).unwrap_err().field, field);
        }
    }
}
