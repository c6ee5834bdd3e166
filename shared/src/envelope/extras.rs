//! What most tasks do not have.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::LazyLock;

use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::outcome::{ModelChoice, TaskError};
use crate::task::{Alternative, TaskId, Webhook};
use crate::time::Timestamp;
use crate::workflow::StepOf;

/// The fields of a task that most tasks leave open. Reads as [`Extra`] whether there are any or not, and takes memory only
/// where one was set.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Extras(Option<Box<Extra>>);

/// What [`Extras`] holds.
#[derive(Clone, Default, PartialEq, Debug, JsonSchema)]
pub struct Extra {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<Box<str>>,
    /// Why the last attempt did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Box<TaskError>>,
    /// Which step of which workflow it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<Box<StepOf>>,
    /// When it is to have ended so that its workflow can meet its deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Timestamp>,
    /// The task that it runs again, for a version that is tried out: see [`crate::mirror`]. Only schedulers set it, and nobody is told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirrors: Option<TaskId>,
}

impl From<Extra> for Extras {
    fn from(extra: Extra) -> Self {
        Self((extra != Extra::default()).then(|| Box::new(extra)))
    }
}

impl Deref for Extras {
    type Target = Extra;

    fn deref(&self) -> &Extra {
        static NOTHING: LazyLock<Extra> = LazyLock::new(Extra::default);
        self.0.as_deref().unwrap_or_else(|| &NOTHING)
    }
}

impl DerefMut for Extras {
    fn deref_mut(&mut self) -> &mut Extra {
        self.0.get_or_insert_default()
    }
}

impl JsonSchema for Extras {
    fn schema_name() -> Cow<'static, str> {
        Extra::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Extra::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extras_take_memory_once_one_is_set() {
        let mut extras = Extras::from(Extra::default());
        assert!(extras.0.is_none() && extras.cost.is_none());
        extras.cost = Some(2.0);
        assert_eq!(extras, Extras::from(Extra { cost: Some(2.0), ..Extra::default() }));
        assert!(extras.0.is_some());
    }
}
