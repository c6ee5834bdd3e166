//! Runs tasks on models.

pub mod handler;
pub mod handlers;

pub use handler::{Answer, Handler, Job};
