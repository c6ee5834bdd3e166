//! What each rule of the scheduler is worth: the production planner on a virtual clock, against other policies and
//! against oracles, on traces and on drawn workloads.
//!
//! `scenario` says what is simulated, `trace` reads a file, `workload` draws one run's tasks, `engine` runs them past a
//! `chooser` (`planned`, the planner; `moore_hodgson`, an oracle), `measure` and `fairness` take the figures, `bound`
//! says what none can beat, `report` puts it together,
//! and `live` hands a run's tasks to a yard. `docs/scheduling.md` says how to read it.

mod arrivals;
mod bound;
mod chooser;
mod distribution;
mod engine;
mod fairness;
mod hosts;
mod html;
mod live;
mod measure;
mod moore_hodgson;
mod planned;
pub mod policies;
pub(crate) mod replay;
mod report;
mod scenario;
mod summary;
mod svg;
#[cfg(test)]
mod tests;
mod trace;
mod workload;

pub use html::page;
pub use live::{Drawn, LiveEnd, LiveTask};
pub use policies::PolicySpec;
pub use report::{Intervals, Report, Row, SimulationError, simulate};
pub use scenario::{Cost, Declared, Scenario, ScenarioError, TraceUse};
pub use summary::Interval;
pub use trace::{Trace, TraceError};
