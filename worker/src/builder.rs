//! What loads a model when it is wanted, for a worker that holds some of its models.

use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;

use crate::handler::Handler;

/// Why a model could not be loaded. Its text is logged, and the beginning of it is reported.
pub type BuildError = Box<dyn Error + Send + Sync>;

/// Makes a model's handler, each time that the model is to be loaded.
#[async_trait]
pub trait Builder: Send + Sync {
    /// Loads the model. Work that keeps a thread goes to a blocking one (`tokio::task::spawn_blocking`).
    ///
    /// The worker keeps the only handler that it is given, closes it and drops it to unload the model: what the builder
    /// itself keeps of it stays in memory. The future is dropped when the worker stops, or when it takes ten minutes.
    ///
    /// # Errors
    /// When the model cannot be loaded now; it is tried again later. Nothing is left running then.
    async fn build(&self) -> Result<Arc<dyn Handler>, BuildError>;
}
