//! What every role needs beside its work: settings, logs, metrics, an admin listener, a way to stop.

pub mod admin;
pub mod config;
pub mod connect;
pub mod egress;
pub mod exit;
pub mod http_client;
pub mod keys;
pub mod listen;
pub mod metrics;
pub mod secret;
pub mod settings;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
