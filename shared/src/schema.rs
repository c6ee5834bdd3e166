//! JSON Schema, made from the types.

use schemars::{Schema, schema_for};

use crate::outcome::TaskResult;
use crate::task::Task;

/// Every message that outsiders send or get, with its schema.
pub fn schemas() -> Vec<(&'static str, Schema)> {
    vec![("task", schema_for!(Task)), ("result", schema_for!(TaskResult))]
}
