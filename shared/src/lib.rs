//! Taskyard's common language: what a task, an outcome and a state are, and how they look on the wire.

pub mod decode;
pub mod lifecycle;
pub mod outcome;
pub mod schema;
pub mod task;
pub mod time;

pub use decode::{Invalid, decode_tasks};
pub use lifecycle::State;
pub use outcome::{TaskError, TaskResult, Timings};
pub use task::{Kind, Priority, Target, Task, TaskId};
pub use time::Timestamp;
