//! What orders tasks in a run: the planner, or an oracle that no planner can be.

use crate::planner::Room;

use super::workload::Task;

/// A task by its place in [`Workload::tasks`](super::workload::Workload).
pub type Number = u32;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// To its model's workers; those begin it at once if it passes.
    Dispatch { task: Number, passes: bool },
    /// Its deadline passed while it waited.
    Expire(Number),
    /// It is given up before its deadline.
    Shed(Number),
}

/// The planner's events and questions, by numbers. Times are microseconds from the run's start.
pub trait Chooser {
    /// A task comes. `false` when it is refused at once.
    fn handle_arrival(&mut self, number: Number, task: &Task, now_us: u64) -> bool;
    /// What the workers of a model can hold has changed.
    fn handle_load(&mut self, model: u32, room: Room);
    /// A dispatched task ended after so long.
    fn handle_completion(&mut self, number: Number, task: &Task, ran_us: u64, now_us: u64);
    /// What to do now, until there is nothing.
    fn poll(&mut self, now_us: u64) -> Option<Choice>;
    /// When to poll though nothing happens.
    fn poll_timeout(&self) -> Option<u64>;
    /// Figures of its own over the run, by name.
    fn figures(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
}
