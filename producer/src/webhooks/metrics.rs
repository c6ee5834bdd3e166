//! What is counted of webhooks.

use taskyard_shared::process::metrics::{IntCounterVec, MetricsError, Registry};

pub(super) struct WebhookMetrics {
    pub attempts: IntCounterVec,
    /// As the scheduler and the workers count them.
    pub dead_lettered: IntCounterVec,
}

impl WebhookMetrics {
    pub fn register(registry: &Registry) -> Result<Self, MetricsError> {
        Ok(Self {
            attempts: registry.counters(
                "webhook_attempts_total",
                "Attempts to deliver a webhook, by what came of them: delivered, failed (tried again, or the last), given_up.",
                &["outcome"],
            )?,
            dead_lettered: registry.counters(
                "tasks_dead_lettered_total",
                "Messages put into the dead letters, by reason.",
                &["reason"],
            )?,
        })
    }
}
