//! How far a running task is, by its own word.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Longest message, in bytes; the rest is left out.
pub const MESSAGE_BYTES: usize = 256;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// From 0 to 1.
    pub progress: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it was said.
    pub at: Timestamp,
}
