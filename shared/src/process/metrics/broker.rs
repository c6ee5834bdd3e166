//! What a process asks of the broker, as metrics: counted by the connection itself, and read when metrics are.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{MetricsError, Registry};
use crate::broker::{Broker, Operations};

impl Registry {
    /// Shows the operations of a broker. Those of several are added up.
    ///
    /// # Errors
    /// When there are other metrics of these names.
    pub fn broker(&self, broker: &Arc<dyn Broker>) -> Result<(), MetricsError> {
        // It must not live longer for being looked at.
        let broker = Arc::downgrade(broker);
        self.broker_operations(move || broker.upgrade()?.operations())
    }

    /// The same for what counts without being a [`Broker`].
    ///
    /// # Errors
    /// When there are other metrics of these names.
    pub fn broker_operations(
        &self,
        read: impl Fn() -> Option<Arc<Operations>> + Send + 'static,
    ) -> Result<(), MetricsError> {
        let operations = self.counters(
            "broker_operations_total",
            "What was asked of the broker and what it answered, by operation.",
            &["operation"],
        )?;
        let bytes =
            self.counters("broker_bytes_total", "Bytes exchanged with the broker, by direction.", &["direction"])?;
        let mut known: BTreeMap<&'static str, u64> = BTreeMap::new();
        self.before_rendering(move || {
            let Some(read) = read() else { return };
            let mut raise = |to: &super::IntCounterVec, counts: &[(&'static str, u64)]| {
                for (name, count) in counts {
                    let before = known.insert(*name, *count).unwrap_or(0);
                    to.with_label_values(&[*name]).inc_by(count.saturating_sub(before));
                }
            };
            raise(&operations, &read.counts());
            raise(&bytes, &read.bytes());
        });
        Ok(())
    }
}
