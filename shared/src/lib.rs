//! Taskyard's common language, the ports to broker and store with their adapters, and what every role's process needs.
//!
//! Process kit and adapters know the ports, the ports know the vocabulary, and the vocabulary knows nobody.

// The vocabulary.
pub mod control;
pub mod decode;
pub mod deployment;
pub mod envelope;
pub mod lifecycle;
pub mod load;
pub mod mirror;
pub mod outcome;
pub mod progress;
pub mod retry;
pub mod schedule;
pub mod schema;
pub mod signal;
pub mod task;
pub mod time;
pub mod topology;
pub mod webhook;
pub mod wire;
pub mod workflow;

// The ports and their adapters.
pub mod artifacts;
pub mod broker;
pub mod dead;
pub mod events;
pub mod messages;
pub mod store;
// What the embedded adapters write to.
pub mod journal;

// What every role needs.
pub mod process;

pub use decode::{Invalid, decode_tasks};
pub use envelope::{Carried, Correlation, Envelope, Extra, Extras, Reply};
pub use lifecycle::State;
pub use outcome::{ChoiceReason, ModelChoice, TaskError, TaskResult, Timings, Usage};
pub use task::{Alternative, Kind, Priority, Target, Task, TaskId};
pub use time::Timestamp;
pub use topology::Topology;
