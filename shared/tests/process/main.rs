//! The process kit as the roles use it.

mod admin;
mod config;
mod config_refusals;
mod keys;
mod metrics;
mod shutdown;
mod telemetry;
