//! An envelope as JSON. Written out, because `serde(flatten)` reads every field into a buffer first.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

use super::{Envelope, Extra, Reply, is_first};
use crate::outcome::{ModelChoice, TaskError};
use crate::task::{Alternative, Kind, ONE_TARGET, Priority, Target, TaskId, Webhook, if_some};
use crate::time::Timestamp;
use crate::workflow::StepOf;

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
        if_some(&mut fields, "not_before", &self.extras.not_before)?;
        if_some(&mut fields, "cost", &self.extras.cost)?;
        if_some(&mut fields, "timeout_ms", &self.timeout_ms)?;
        if_some(&mut fields, "max_attempts", &self.extras.max_attempts)?;
        if_some(&mut fields, "idempotency_key", &self.extras.idempotency_key)?;
        if !self.extras.metadata.is_empty() {
            fields.serialize_field("metadata", &self.extras.metadata)?;
        }
        if_some(&mut fields, "webhook", &self.extras.webhook)?;
        if_some(&mut fields, "min_quality", &self.extras.min_quality)?;
        if !self.extras.alternatives.is_empty() {
            fields.serialize_field("alternatives", &self.extras.alternatives)?;
        }
        if_some(&mut fields, "choice", &self.extras.choice)?;
        fields.serialize_field("accepted", &self.accepted)?;
        if_some(&mut fields, "dispatched", &self.dispatched)?;
        fields.serialize_field("attempts", &self.attempts)?;
        if_some(&mut fields, "reply", &self.reply)?;
        if_some(&mut fields, "traceparent", &self.extras.traceparent)?;
        if_some(&mut fields, "tracestate", &self.extras.tracestate)?;
        if_some(&mut fields, "last_error", &self.extras.last_error)?;
        if !is_first(&self.shard) {
            fields.serialize_field("shard", &self.shard)?;
        }
        if_some(&mut fields, "workflow", &self.extras.workflow)?;
        if_some(&mut fields, "due", &self.extras.due)?;
        if_some(&mut fields, "mirrors", &self.extras.mirrors)?;
        fields.serialize_field("input", &self.input)?;
        fields.end()
    }
}

impl<'de> Deserialize<'de> for Envelope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(deserializer)?;
        let extra = Extra {
            not_before: wire.not_before,
            cost: wire.cost,
            max_attempts: wire.max_attempts,
            idempotency_key: wire.idempotency_key,
            metadata: wire.metadata,
            webhook: wire.webhook,
            min_quality: wire.min_quality,
            alternatives: wire.alternatives,
            choice: wire.choice,
            traceparent: wire.traceparent,
            tracestate: wire.tracestate,
            last_error: wire.last_error,
            workflow: wire.workflow,
            due: wire.due,
            mirrors: wire.mirrors,
        };
        Ok(Self {
            v: wire.v,
            id: wire.id,
            target: Target::of(wire.model, wire.capability).ok_or_else(|| de::Error::custom(ONE_TARGET))?,
            chosen: wire.chosen,
            kind: wire.kind,
            tenant: wire.tenant,
            priority: wire.priority,
            deadline: wire.deadline,
            // Nobody means to be stopped at once: 0 is the model's limit.
            timeout_ms: wire.timeout_ms.and_then(NonZeroU64::new),
            accepted: wire.accepted,
            dispatched: wire.dispatched,
            attempts: wire.attempts,
            reply: wire.reply,
            shard: wire.shard,
            extras: extra.into(),
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
    mirrors: Option<TaskId>,
    input: Box<RawValue>,
}
