//! What the gateway counts.

use taskyard_shared::process::metrics::{
    HistogramVec, IntCounter, IntCounterVec, IntGauge, MetricsError, RUN_SECONDS, Registry,
};

pub(super) struct GatewayMetrics {
    /// By the pattern of the path, or `unmatched`; by method, one that the API has or `other`; by status.
    pub(super) requests: IntCounterVec,
    pub(super) request_seconds: HistogramVec,
    pub(super) connections: IntGauge,
    pub(super) connections_refused: IntCounter,
    pub(super) waiters: IntGauge,
    pub(super) event_streams: IntGauge,
    pub(super) turned_away: IntCounterVec,
    pub(super) unrecorded: IntCounter,
    pub(super) pushed_back: IntCounterVec,
    pub(super) rechecked: IntCounter,
    /// As the scheduler and the workers count them.
    pub(super) finished: IntCounterVec,
}

impl GatewayMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, MetricsError> {
        Ok(Self {
            requests: registry.counters(
                "http_requests_total",
                "HTTP requests answered.",
                &["route", "method", "status"],
            )?,
            request_seconds: registry.histograms(
                "http_request_seconds",
                "From a request's head to its answer's, waits for results included.",
                &["route", "method"],
                RUN_SECONDS,
            )?,
            connections: registry.gauge("http_connections", "HTTP connections that are open.")?,
            connections_refused: registry.counter(
                "http_connections_refused_total",
                "HTTP connections turned away because too many were open.",
            )?,
            waiters: registry.gauge("http_waiters", "HTTP requests that wait for a result.")?,
            event_streams: registry.gauge("http_event_streams", "Streams of server-sent events that are open.")?,
            turned_away: registry.counters(
                "http_requests_turned_away_total",
                "HTTP requests whose key was missing, unreadable, unknown or expired, or has not the scope or the tenant.",
                &["reason"],
            )?,
            finished: registry.counters(
                "tasks_finished_total",
                "Tasks that reached a terminal state, by model and state.",
                &["model", "outcome"],
            )?,
            pushed_back: registry.counters(
                "gateway_tasks_pushed_back_total",
                "Tasks answered with 429 because schedulers would refuse them, by code.",
                &["code"],
            )?,
            unrecorded: registry.counter(
                "gateway_tasks_unrecorded_total",
                "Tasks accepted without a record because the store was away.",
            )?,
            rechecked: registry.counter(
                "gateway_results_rechecked_total",
                "Results that a waiting request got from the store because no message brought them.",
            )?,
        })
    }
}

/// One in a gauge for as long as it lives: whoever is counted may leave at any time.
pub(super) struct Counted(IntGauge);

impl Counted {
    pub(super) fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
