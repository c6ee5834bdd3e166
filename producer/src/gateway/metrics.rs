//! What the gateway counts. The doc comments are the help texts' long form.

use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

pub(super) struct GatewayMetrics {
    /// HTTP requests answered. `route` is the pattern of a path, or `unmatched`; `method` is one the API has, or
    /// `other`.
    pub(super) requests: IntCounterVec,
    /// From a request's head to the head of its answer, waits for results included.
    pub(super) request_seconds: HistogramVec,
    /// Connections that are open.
    pub(super) connections: IntGauge,
    /// Connections that were turned away because too many were open.
    pub(super) connections_refused: IntCounter,
    /// Requests that wait for a result.
    pub(super) waiters: IntGauge,
    /// Tasks accepted without a record, because the store was away.
    pub(super) unrecorded: IntCounter,
    /// Results that a waiting request got from the store, because no message brought them.
    pub(super) rechecked: IntCounter,
}

impl GatewayMetrics {
    /// # Errors
    /// When another gateway registered in the same registry.
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let labels = ["route", "method", "status"];
        let requests =
            IntCounterVec::new(Opts::new("taskyard_http_requests_total", "HTTP requests answered"), &labels)?;
        let seconds =
            HistogramOpts::new("taskyard_http_request_seconds", "From a request to its answer").buckets(BUCKETS.into());
        let metrics = Self {
            requests,
            request_seconds: HistogramVec::new(seconds, &["route", "method"])?,
            connections: IntGauge::new("taskyard_http_connections", "Connections that are open")?,
            connections_refused: IntCounter::new(
                "taskyard_http_connections_refused_total",
                "Connections turned away because too many were open",
            )?,
            waiters: IntGauge::new("taskyard_http_waiters", "Requests that wait for a result")?,
            unrecorded: IntCounter::new(
                "taskyard_gateway_tasks_unrecorded_total",
                "Tasks accepted without a record because the store was away",
            )?,
            rechecked: IntCounter::new(
                "taskyard_gateway_results_rechecked_total",
                "Results that a waiting request got from the store because no message brought them",
            )?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.request_seconds.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.connections_refused.clone()))?;
        registry.register(Box::new(metrics.waiters.clone()))?;
        registry.register(Box::new(metrics.unrecorded.clone()))?;
        registry.register(Box::new(metrics.rechecked.clone()))?;
        Ok(metrics)
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
