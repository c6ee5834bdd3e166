//! Metrics for Prometheus: one registry per process, which every role's `metrics.rs` asks for its metrics.
//!
//! Names are given without the prefix. Asking again for the same metric gives the same one, so that several workers in
//! one process count together; asking for it with other labels is an error. A label is never a text from outside: models are
//! those that workers announce, reasons and states are closed sets.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Collector;
pub use prometheus::{
    CounterVec, Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, TEXT_FORMAT,
};
use prometheus::{HistogramOpts, Opts, TextEncoder};

mod broker;
mod events;
mod process;

const PREFIX: &str = "taskyard_";

/// Buckets for the time a task waits: 1 ms to 6 hours.
pub const WAIT_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
    21600.0,
];
/// Buckets for the time an attempt runs: 0.5 ms to 3 hours.
pub const RUN_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
    10800.0,
];
/// Buckets for what is done in memory: 1 µs to 0.1 s.
pub const DECISION_SECONDS: &[f64] =
    &[0.000001, 0.0000025, 0.000005, 0.00001, 0.000025, 0.0001, 0.00025, 0.001, 0.0025, 0.01, 0.1];
/// Buckets for counts of tasks handled together.
pub const BATCH_TASKS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("the metric {name} {problem}")]
    Unusual { name: String, problem: &'static str },
    #[error("the metric {name} cannot be made: {source}")]
    Refused { name: String, source: prometheus::Error },
    #[error("metrics cannot be written: {0}")]
    Write(prometheus::Error),
}

/// All metrics of this process. Clones are the same registry.
#[derive(Clone)]
pub struct Registry {
    registry: prometheus::Registry,
    made: Arc<Mutex<BTreeMap<String, Made>>>,
    refreshers: Arc<Mutex<Vec<Refresher>>>,
}

/// Brings metrics up to date that are counted elsewhere.
type Refresher = Box<dyn FnMut() + Send>;

struct Made {
    labels: Vec<String>,
    metric: Box<dyn Any + Send>,
}

impl Registry {
    /// A registry with `build_info` and the process's own metrics in it.
    pub fn new() -> Result<Self, MetricsError> {
        let new = Self { registry: prometheus::Registry::new(), made: Arc::default(), refreshers: Arc::default() };
        let build = new.gauges("build_info", "The running program; always 1.", &["version", "commit"])?;
        let commit = option_env!("TASKYARD_COMMIT").unwrap_or("unknown");
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), commit]).set(1);
        let refused = |source| MetricsError::Refused { name: "process".to_owned(), source };
        let process = process::ProcessMetrics::new().map_err(refused)?;
        new.registry.register(Box::new(process)).map_err(refused)?;
        Ok(new)
    }

    /// A counter; its name ends in `_total`.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, MetricsError> {
        self.make(true, name, help, &[], IntCounter::with_opts)
    }

    /// A counter for each value of the labels; its name ends in `_total`.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, MetricsError> {
        self.make(true, name, help, labels, |opts| IntCounterVec::new(opts, labels))
    }

    /// A counter of what is no whole number, such as seconds; its name ends in `_total`.
    pub fn float_counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<CounterVec, MetricsError> {
        self.make(true, name, help, labels, |opts| CounterVec::new(opts, labels))
    }

    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, MetricsError> {
        self.make(false, name, help, &[], IntGauge::with_opts)
    }

    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, MetricsError> {
        self.make(false, name, help, labels, |opts| IntGaugeVec::new(opts, labels))
    }

    /// A gauge that is no whole number.
    pub fn float_gauge(&self, name: &str, help: &str) -> Result<Gauge, MetricsError> {
        self.make(false, name, help, &[], Gauge::with_opts)
    }

    pub fn float_gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, MetricsError> {
        self.make(false, name, help, labels, |opts| GaugeVec::new(opts, labels))
    }

    /// `buckets` are the upper ends, growing.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, MetricsError> {
        self.make(false, name, help, &[], |opts| Histogram::with_opts(with_buckets(opts, buckets)))
    }

    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<HistogramVec, MetricsError> {
        self.make(false, name, help, labels, |opts| HistogramVec::new(with_buckets(opts, buckets), labels))
    }

    fn make<M: Collector + Clone + 'static>(
        &self,
        counts: bool,
        name: &str,
        help: &str,
        labels: &[&str],
        new: impl FnOnce(Opts) -> prometheus::Result<M>,
    ) -> Result<M, MetricsError> {
        let unusual = |problem| Err(MetricsError::Unusual { name: name.to_owned(), problem });
        if name.starts_with(PREFIX) {
            return unusual("is named with the prefix, which is added here");
        }
        if counts != name.ends_with("_total") {
            return unusual("does not end as it must: in _total if and only if it is a counter");
        }
        if help.is_empty() {
            return unusual("has no help text");
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Made { labels: known, metric }) = made.get(name) {
            return match metric.downcast_ref::<M>() {
                Some(metric) if known == labels => Ok(metric.clone()),
                _ => unusual("is there already, of another type or with other labels"),
            };
        }
        let refused = |source| MetricsError::Refused { name: name.to_owned(), source };
        let metric = new(Opts::new(format!("{PREFIX}{name}"), help)).map_err(refused)?;
        self.registry.register(Box::new(metric.clone())).map_err(refused)?;
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        made.insert(name.to_owned(), Made { labels, metric: Box::new(metric.clone()) });
        Ok(metric)
    }

    /// Has `refresh` called before each time that metrics are written.
    fn before_rendering(&self, refresh: impl FnMut() + Send + 'static) {
        self.refreshers.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(refresh));
    }

    /// All metrics as [`TEXT_FORMAT`].
    pub fn render(&self) -> Result<String, MetricsError> {
        for refresh in self.refreshers.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            refresh();
        }
        TextEncoder::new().encode_to_string(&self.registry.gather()).map_err(MetricsError::Write)
    }
}

fn with_buckets(opts: Opts, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts { common_opts: opts, buckets: buckets.to_vec() }
}
