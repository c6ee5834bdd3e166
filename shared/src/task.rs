//! A task: what a caller asks for.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::time::Timestamp;

/// Whose a task is that says nothing of it.
pub const DEFAULT_TENANT: &str = "default";

/// Limits on what a caller may send. Every one of them is checked at decoding.
pub mod limits {
    pub const BODY_BYTES: usize = 8 << 20;
    pub const TASK_BYTES: usize = 1 << 20;
    pub const BATCH_TASKS: usize = 10_000;
    pub const DEPTH: usize = 64;
    pub const MODEL_BYTES: usize = 128;
    pub const VERSION_BYTES: usize = 64;
    pub const TENANT_BYTES: usize = 128;
    pub const IDEMPOTENCY_KEY_BYTES: usize = 255;
    pub const METADATA_ENTRIES: usize = 32;
    pub const METADATA_KEY_BYTES: usize = 64;
    pub const METADATA_VALUE_BYTES: usize = 256;
    pub const ATTEMPTS: u32 = 100;
    /// A year: the furthest that a deadline, a delay or a time-out reaches.
    pub const DURATION_MS: u64 = 365 * 24 * 3600 * 1000;
    pub const URL_BYTES: usize = 2048;
    pub const ALTERNATIVES: usize = 8;
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct TaskId(#[schemars(with = "String", extend("format" = "uuid"))] pub Uuid);

impl TaskId {
    /// A new time-ordered id (UUIDv7).
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl Default for TaskId {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    #[default]
    Prediction,
    Training,
    Deployment,
    DataProcessing,
    Optimization,
}

impl Kind {
    pub const ALL: [Kind; 5] =
        [Kind::Prediction, Kind::Training, Kind::Deployment, Kind::DataProcessing, Kind::Optimization];

    /// As on the wire, and as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Prediction => "prediction",
            Kind::Training => "training",
            Kind::Deployment => "deployment",
            Kind::DataProcessing => "data_processing",
            Kind::Optimization => "optimization",
        }
    }
}

/// The weight a caller gives, 0 to 9; bigger is sooner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u8", into = "u8")]
pub struct Priority(#[schemars(range(min = 0, max = 9))] u8);

impl Priority {
    pub const HIGHEST: Priority = Priority(9);
    pub const LOWEST: Priority = Priority(0);

    pub fn get(self) -> u8 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self(4)
    }
}

impl TryFrom<u8> for Priority {
    type Error = &'static str;

    fn try_from(value: u8) -> Result<Self, &'static str> {
        if value <= 9 { Ok(Self(value)) } else { Err("must be an integer from 0 to 9") }
    }
}

impl From<Priority> for u8 {
    fn from(priority: Priority) -> u8 {
        priority.0
    }
}

/// Where a task may run.
#[derive(Clone, PartialEq, Eq, Hash, Debug, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// On this model, optionally `name@version`.
    Model(Box<str>),
    /// On any model that offers this.
    Capability(Box<str>),
}

impl Target {
    /// From the two fields that say it on the wire. `None` unless it is exactly one of them.
    pub(crate) fn of(model: Option<String>, capability: Option<String>) -> Option<Self> {
        match (model, capability) {
            (Some(model), None) => Some(Self::Model(model.into())),
            (None, Some(capability)) => Some(Self::Capability(capability.into())),
            _ => None,
        }
    }

    /// The field that says it on the wire, and its value.
    pub(crate) fn field(&self) -> (&'static str, &str) {
        match self {
            Self::Model(name) => ("model", name),
            Self::Capability(name) => ("capability", name),
        }
    }
}

/// What [`Target::of`] refuses, in words.
pub(crate) const ONE_TARGET: &str = "exactly one of model and capability must be given";

/// A model that may run a task instead of the one that it names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Alternative {
    /// Optionally `name@version`.
    pub model: String,
    /// It may when the task would wait longer than this for the named one, or has; milliseconds.
    pub wait_ms: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Webhook {
    pub url: String,
    #[serde(default)]
    pub events: Vec<String>,
}

/// A task as published, every field checked. `input` stays the bytes that came.
#[derive(Clone, Debug, JsonSchema)]
pub struct Task {
    pub id: Option<TaskId>,
    #[serde(flatten)]
    pub target: Target,
    #[serde(default)]
    pub kind: Kind,
    pub input: Box<RawValue>,
    #[serde(default)]
    pub priority: Option<Priority>,
    pub tenant: Option<String>,
    pub deadline: Option<Timestamp>,
    pub deadline_ms: Option<u64>,
    pub not_before: Option<Timestamp>,
    pub delay_ms: Option<u64>,
    pub cost: Option<f64>,
    pub timeout_ms: Option<u64>,
    pub max_attempts: Option<u32>,
    pub idempotency_key: Option<String>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    pub webhook: Option<Webhook>,
    /// Of the models that offer the capability, only those whose stated quality is at least this.
    pub min_quality: Option<f64>,
    /// Models that may run it instead, if the named one keeps it waiting.
    #[serde(default)]
    pub alternatives: Vec<Alternative>,
}

impl Task {
    /// A task with nothing but what it must have.
    pub fn new(target: Target, input: Box<RawValue>) -> Self {
        Self {
            id: None,
            target,
            kind: Kind::default(),
            input,
            priority: None,
            tenant: None,
            deadline: None,
            deadline_ms: None,
            not_before: None,
            delay_ms: None,
            cost: None,
            timeout_ms: None,
            max_attempts: None,
            idempotency_key: None,
            metadata: BTreeMap::new(),
            webhook: None,
            min_quality: None,
            alternatives: Vec::new(),
        }
    }
}

// Written out, because `serde(flatten)` reads every field into a buffer first.
impl Serialize for Task {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Task", 18)?;
        if_some(&mut fields, "id", &self.id)?;
        let (target, name) = self.target.field();
        fields.serialize_field(target, name)?;
        fields.serialize_field("kind", &self.kind)?;
        fields.serialize_field("input", &self.input)?;
        if_some(&mut fields, "priority", &self.priority)?;
        if_some(&mut fields, "tenant", &self.tenant)?;
        if_some(&mut fields, "deadline", &self.deadline)?;
        if_some(&mut fields, "deadline_ms", &self.deadline_ms)?;
        if_some(&mut fields, "not_before", &self.not_before)?;
        if_some(&mut fields, "delay_ms", &self.delay_ms)?;
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
        fields.end()
    }
}

/// Writes a field that has a value, and leaves out one that has none.
pub(crate) fn if_some<S: SerializeStruct>(
    fields: &mut S,
    name: &'static str,
    value: &Option<impl Serialize>,
) -> Result<(), S::Error> {
    match value {
        Some(value) => fields.serialize_field(name, value),
        None => fields.skip_field(name),
    }
}

/// A task's fields as they come, before it is known that it has what it must have.
#[derive(Default)]
pub(crate) struct Fields {
    pub id: Option<TaskId>,
    pub model: Option<String>,
    pub capability: Option<String>,
    pub kind: Option<Kind>,
    pub input: Option<Box<RawValue>>,
    pub priority: Option<Priority>,
    pub tenant: Option<String>,
    pub deadline: Option<Timestamp>,
    pub deadline_ms: Option<u64>,
    pub not_before: Option<Timestamp>,
    pub delay_ms: Option<u64>,
    pub cost: Option<f64>,
    pub timeout_ms: Option<u64>,
    pub max_attempts: Option<u32>,
    pub idempotency_key: Option<String>,
    pub metadata: Option<BTreeMap<String, String>>,
    pub webhook: Option<Webhook>,
    pub min_quality: Option<f64>,
    pub alternatives: Option<Vec<Alternative>>,
}

impl Fields {
    /// `None` without an input, or without exactly one target.
    pub(crate) fn task(self) -> Option<Task> {
        Some(Task {
            id: self.id,
            target: Target::of(self.model, self.capability)?,
            kind: self.kind.unwrap_or_default(),
            input: self.input?,
            priority: self.priority,
            tenant: self.tenant,
            deadline: self.deadline,
            deadline_ms: self.deadline_ms,
            not_before: self.not_before,
            delay_ms: self.delay_ms,
            cost: self.cost,
            timeout_ms: self.timeout_ms,
            max_attempts: self.max_attempts,
            idempotency_key: self.idempotency_key,
            metadata: self.metadata.unwrap_or_default(),
            webhook: self.webhook,
            min_quality: self.min_quality,
            alternatives: self.alternatives.unwrap_or_default(),
        })
    }
}
