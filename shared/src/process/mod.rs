//! What every role needs beside its work: settings, logs, metrics, an admin listener, a way to stop.

pub mod metrics;
pub mod settings;
