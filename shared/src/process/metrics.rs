//! Metrics: one registry per process.

use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts};

#[derive(Clone, Default)]
pub struct Registry(prometheus::Registry);

impl Registry {
    pub fn counter(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        let c = IntCounterVec::new(Opts::new(format!("taskyard_{name}"), help), labels).unwrap();
        let _ = self.0.register(Box::new(c.clone()));
        c
    }
    pub fn int_gauge(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        let c = IntGaugeVec::new(Opts::new(format!("taskyard_{name}"), help), labels).unwrap();
        let _ = self.0.register(Box::new(c.clone()));
        c
    }
    pub fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        let c = GaugeVec::new(Opts::new(format!("taskyard_{name}"), help), labels).unwrap();
        let _ = self.0.register(Box::new(c.clone()));
        c
    }
    pub fn histogram(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let opts = HistogramOpts::new(format!("taskyard_{name}"), help).buckets(buckets.to_vec());
        let c = HistogramVec::new(opts, labels).unwrap();
        let _ = self.0.register(Box::new(c.clone()));
        c
    }
}
