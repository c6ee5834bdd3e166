//! A task on its way between roles: what was asked for, every default filled in, and how far it has come.

mod carried;
mod extras;
mod json;
mod reply;

use std::num::NonZeroU64;

use schemars::JsonSchema;
use serde_json::value::RawValue;
use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128_with_seed};

pub use self::carried::Carried;
pub use self::extras::{Extra, Extras};
pub use self::reply::{Correlation, Reply};
use crate::decode::Invalid;
use crate::lifecycle::State;
use crate::outcome::{TaskResult, Timings};
use crate::task::{Kind, Priority, Target, Task, TaskId};
use crate::time::Timestamp;
use crate::workflow::StepOf;

/// The major version of the envelope. A reader takes every minor version of its own major one: fields are only added.
pub const VERSION: u32 = 1;

/// The id that a tenant's idempotency key stands for.
pub(crate) fn keyed(space: &Uuid, tenant: &str, key: &str) -> Uuid {
    Uuid::new_v5(space, format!("{}:{tenant}:{key}", tenant.len()).as_bytes())
}

/// A task as the roles hand it to each other on the queues `retry`, `round.<shard>` and `ready.<model>`.
///
/// Very many wait in memory: what most of them do not have is in [`Extras`].
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
    pub timeout_ms: Option<NonZeroU64>,
    pub accepted: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatched: Option<Timestamp>,
    /// Attempts that were begun so far.
    #[serde(default)]
    pub attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
    /// Whose scheduler dispatched it last, and is told when it ends.
    #[serde(default, skip_serializing_if = "is_first")]
    pub shard: u32,
    #[serde(flatten)]
    pub extras: Extras,
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
        let extra = Extra {
            not_before: task.not_before.or_else(|| task.delay_ms.map(|ms| now.plus_ms(ms))),
            cost: task.cost,
            max_attempts: task.max_attempts,
            idempotency_key: task.idempotency_key.map(Into::into),
            metadata: task.metadata,
            webhook: task.webhook.map(Box::new),
            min_quality: task.min_quality,
            alternatives: task.alternatives.into(),
            traceparent: carried.traceparent.as_deref().map(Box::from),
            tracestate: carried.tracestate.as_deref().map(Box::from),
            ..Extra::default()
        };
        Ok(Self {
            v: VERSION,
            id,
            target: task.target,
            chosen: None,
            kind: task.kind,
            tenant: tenant.into(),
            priority,
            deadline,
            timeout_ms: task.timeout_ms.and_then(NonZeroU64::new),
            accepted: now,
            dispatched: None,
            attempts: 0,
            reply: carried.reply.clone(),
            shard: 0,
            extras: extra.into(),
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
            not_before: self.extras.not_before,
            delay_ms: None,
            cost: self.extras.cost,
            timeout_ms: self.timeout_ms.map(NonZeroU64::get),
            max_attempts: self.extras.max_attempts,
            idempotency_key: self.extras.idempotency_key.as_deref().map(str::to_owned),
            metadata: self.extras.metadata.clone(),
            webhook: self.extras.webhook.as_deref().cloned(),
            min_quality: self.extras.min_quality,
            alternatives: self.extras.alternatives.to_vec(),
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
            metadata: self.extras.metadata.clone(),
            choice: self.extras.choice.as_deref().cloned(),
            workflow: self.extras.workflow.as_deref().cloned(),
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
        if let Some(StepOf { id, step, item }) = self.extras.workflow.as_deref() {
            // Its input is not known before others have ended, and the workflow's id stands for what it is made of.
            let item = item.map_or(u64::MAX, u64::from);
            return xxh3_128_with_seed(&[id.0.as_bytes(), step.as_bytes()].concat(), seed ^ item);
        }
        xxh3_128_with_seed(self.input.get().as_bytes(), seed)
    }

    /// Name of the idempotency key in the store: a tenant's own.
    pub fn alias(&self) -> Option<String> {
        self.extras.idempotency_key.as_ref().map(|key| format!("{}:{}:{key}", self.tenant.len(), self.tenant))
    }
}

fn is_first(shard: &u32) -> bool {
    *shard == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_task_is_small() {
        assert!(size_of::<Envelope>() <= 192, "{}: a scheduler has one for each", size_of::<Envelope>());
    }

    #[test]
    fn tasks_that_differ_in_target_kind_input_or_tenant_are_told_apart() {
        let task = |target: Target, input: &str| {
            let input = RawValue::from_string(input.to_owned()).unwrap();
            Envelope::new(Task::new(target, input), &Carried::default(), Timestamp::now()).unwrap()
        };
        let model = |name: &str| Target::Model(name.into());
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
