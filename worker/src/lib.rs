//! Runs tasks on models.
//!
//! A delivery's way: [`lane`] takes it and forms batches, [`attempt`] claims it, runs it and judges the answer,
//! [`settle`] writes the end under its fence, tells who waits, and acks.
//!
//! Which models there are: [`orders`] reads what the worker is told to hold, [`holdings`] decides what to do next about it, and
//! [`hold`] loads, serves and unloads.

mod alone;
mod attempt;
mod batching;
mod builder;
mod claims;
mod follow;
pub mod handler;
pub mod handlers;
mod held;
mod hold;
mod holdings;
mod lane;
mod leases;
mod load_report;
mod long;
pub mod meanwhile;
mod memory;
mod metrics;
mod orders;
mod payloads;
mod registrations;
mod service;
mod settle;
mod sweep;
mod verdict;

pub use builder::{BuildError, Builder};
pub use handler::{Answer, Handler, Job};
pub use meanwhile::Meanwhile;
pub use registrations::Foundry;
pub use service::Worker;
