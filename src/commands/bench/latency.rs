//! When tasks are due, and how long each took from then to its result.
//!
//! In an open loop a task is due at its time whether or not the system keeps up, and its latency counts from that time,
//! not from when it could be sent: a system that stalls is charged with every task that had to wait for it. (Measuring
//! from the sending leaves those out, which is known as coordinated omission.)

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency that is told apart; microseconds. An hour.
const MOST_US: u64 = 3_600_000_000;

/// When each message of an open loop is due, counted from the start.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Schedule {
    messages_per_second: f64,
}

impl Schedule {
    /// `rate` is in tasks a second; a message carries `batch` of them.
    pub fn new(rate: f64, batch: u64) -> Self {
        Self { messages_per_second: rate / batch.max(1) as f64 }
    }

    pub fn due(&self, message: u64) -> Duration {
        Duration::from_secs_f64(message as f64 / self.messages_per_second)
    }

    /// How many messages are due by then.
    pub fn due_by(&self, elapsed: Duration) -> u64 {
        let mut count = (elapsed.as_secs_f64() * self.messages_per_second) as u64;
        // What rounding took away or gave too much: a message is due when its own time has come, and not before.
        while self.due(count) <= elapsed {
            count += 1;
        }
        while count > 0 && self.due(count - 1) > elapsed {
            count -= 1;
        }
        count
    }
}

/// Latencies of one run.
pub struct Latencies(Histogram<u64>);

/// Milliseconds from when a task was due to its result.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
    pub mean: f64,
}

impl Latencies {
    /// # Errors
    /// Never with these bounds.
    pub fn new() -> Result<Self, hdrhistogram::CreationError> {
        Histogram::new_with_bounds(1, MOST_US, 3).map(Self)
    }

    /// Both counted from the start of the run.
    pub fn record(&mut self, due: Duration, received: Duration) {
        let us = u64::try_from(received.saturating_sub(due).as_micros()).unwrap_or(MOST_US);
        self.0.saturating_record(us.max(1));
    }

    /// `None` when nothing was recorded.
    pub fn summary(&self) -> Option<Latency> {
        let ms = |us: u64| us as f64 / 1e3;
        let at = |quantile| ms(self.0.value_at_quantile(quantile));
        (!self.0.is_empty()).then(|| Latency {
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            p99_9: at(0.999),
            max: ms(self.0.max()),
            mean: self.0.mean() / 1e3,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(measured: f64, expected: f64) {
        assert!((measured - expected).abs() <= expected * 0.002 + 1.1, "{measured} for {expected}");
    }

    #[test]
    fn a_stall_is_charged_to_every_task_that_was_due_in_it() {
        // 1,000 a second for 2 s. The system answers within 1 ms, but stands still for the whole first second; what was
        // due meanwhile is sent and answered when it goes on.
        let schedule = Schedule::new(1000.0, 1);
        let mut latencies = Latencies::new().unwrap();
        for task in 0..2000 {
            let due = schedule.due(task);
            let sent = due.max(Duration::from_secs(1));
            latencies.record(due, sent + Duration::from_millis(1));
        }
        let latency = latencies.summary().unwrap();
        // Half of the tasks waited 0 to 1,000 ms, evenly: the median of all is 1 ms, three quarters of them are under 501.
        near(latency.p50, 1.0);
        near(latency.p95, 901.0);
        near(latency.p99, 981.0);
        near(latency.max, 1001.0);
        near(latency.mean, (500.5 + 1.0 + 1.0) / 2.0);
    }

    #[test]
    fn messages_are_due_at_even_intervals_from_the_start_on() {
        for (rate, batch) in [(500.0, 1), (7.3, 1), (10_000.0, 100), (123_456.7, 3)] {
            let schedule = Schedule::new(rate, batch);
            assert_eq!(schedule.due(0), Duration::ZERO);
            assert_eq!(schedule.due_by(Duration::ZERO), 1);
            for message in [1, 2, 3, 999, 123_456] {
                let due = schedule.due(message);
                near(due.as_secs_f64() * 1e3, message as f64 * batch as f64 / rate * 1e3);
                assert_eq!(schedule.due_by(due), message + 1, "{rate} {batch}");
                assert_eq!(schedule.due_by(due - Duration::from_nanos(2)), message, "{rate} {batch}");
            }
        }
    }

    #[test]
    fn a_result_that_seems_to_come_before_its_time_counts_as_immediate() {
        let mut latencies = Latencies::new().unwrap();
        assert_eq!(latencies.summary(), None);
        latencies.record(Duration::from_millis(5), Duration::from_millis(4));
        assert_eq!(latencies.summary().unwrap().max, 0.001);
    }
}
