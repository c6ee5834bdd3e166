//! Decides what runs next.

pub mod planner;
