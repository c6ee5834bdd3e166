//! Workflows: read from intake, kept in a queue of their shard, and run from there step by step.
//!
//! The broker owns a workflow until it has ended: its delivery is held meanwhile, and goes round before the broker loses
//! patience. What is known of its steps is in memory here and in their tasks' records. After a crash the workflow comes again,
//! finds in the store what had ended, and sends the rest again under the same ids; what the store has lost is run again.

mod coordinator;
mod expected;
mod published;
mod run;
mod tell;

use taskyard_shared::control::Told;
use taskyard_shared::workflow::WorkflowId;
use tokio::sync::oneshot;

pub(crate) use coordinator::Coordinator;
pub(crate) use expected::Expected;

/// A workflow that somebody wants no more, and who waits to hear of it.
pub(crate) type Unwanted = (WorkflowId, oneshot::Sender<Told>);
