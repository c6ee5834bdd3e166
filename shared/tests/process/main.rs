//! The process kit as the roles use it.

mod config;
mod config_refusals;
