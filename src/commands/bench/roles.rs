//! What each process takes: CPU, memory and broker operations, read before a run and after it.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use serde::Serialize;
use taskyard_shared::broker::{Broker, Operations};

use crate::failure::Failure;

/// The kernel's unit of CPU time towards programs, on every machine that Rust's Linux targets know.
const TICKS_PER_SECOND: f64 = 100.0;
/// For one role's metrics.
const PATIENCE: Duration = Duration::from_secs(5);
const OPERATIONS: &str = "taskyard_broker_operations_total";
const BYTES: &str = "taskyard_broker_bytes_total";

/// A process, or several, that take part in a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    pub role: String,
    pub kind: Kind,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Of this machine, with the address of its metrics when it has any.
    Process { pid: u32, metrics: Option<String> },
    /// This process: what its connection to the broker does is read from it.
    This,
    /// Known by its metrics alone.
    Metrics(String),
    /// All processes of this machine with this name.
    Named(&'static str),
}

/// What a role takes for its tasks. Of several processes of one role: the sum of their CPU, and the largest's memory.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Usage {
    pub role: String,
    pub processes: usize,
    pub cpu_seconds_per_1000_tasks: f64,
    /// Of a process that was started for the run, the most it had; of another, what it has after it.
    pub resident_mb: f64,
    pub operations_per_1000_tasks: BTreeMap<String, f64>,
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct Reading {
    cpu_seconds: f64,
    resident_bytes: f64,
    operations: BTreeMap<String, f64>,
}

/// Reads all of them. A process that is not there is not in the answer.
pub async fn read(sources: &[Source], own: &dyn Broker) -> Result<Vec<Option<Reading>>, Failure> {
    let client = reqwest::Client::builder()
        .timeout(PATIENCE)
        .build()
        .map_err(|failure| Failure::Internal(format!("no HTTP client: {failure}")))?;
    let mut readings = Vec::new();
    for source in sources {
        readings.push(match &source.kind {
            Kind::Process { pid, metrics } => {
                let mut reading = of_process(*pid, "VmHWM:");
                if let (Some(reading), Some(url)) = (&mut reading, metrics) {
                    reading.operations = scrape(&client, url).await?.operations;
                }
                reading
            }
            Kind::This => of_process(std::process::id(), "VmHWM:").map(|mut reading| {
                reading.operations = own.operations().map_or_else(BTreeMap::new, |operations| counted(&operations));
                reading
            }),
            Kind::Metrics(url) => Some(scrape(&client, url).await?),
            Kind::Named(name) => of_all(name),
        });
    }
    Ok(readings)
}

/// What was read of `known`, in the order of `sources`, which may have others among them.
pub fn by_source(sources: &[Source], known: &[Source], readings: Vec<Option<Reading>>) -> Vec<Option<Reading>> {
    let read = |source: &Source| {
        let at = known.iter().position(|known| known == source)?;
        readings.get(at).cloned().flatten()
    };
    sources.iter().map(read).collect()
}

/// The difference, by role, for so many tasks.
pub fn usage(sources: &[Source], before: &[Option<Reading>], after: &[Option<Reading>], tasks: u64) -> Vec<Usage> {
    let thousands = tasks.max(1) as f64 / 1e3;
    let mut roles: Vec<Usage> = Vec::new();
    for ((source, before), after) in sources.iter().zip(before).zip(after) {
        let Some(after) = after else { continue };
        // What was not there before began at nothing.
        let none = Reading::default();
        let before = before.as_ref().unwrap_or(&none);
        let at = roles.iter().position(|usage| usage.role == source.role).unwrap_or_else(|| {
            roles.push(Usage {
                role: source.role.clone(),
                processes: 0,
                cpu_seconds_per_1000_tasks: 0.0,
                resident_mb: 0.0,
                operations_per_1000_tasks: BTreeMap::new(),
            });
            roles.len() - 1
        });
        let usage = &mut roles[at];
        usage.processes += 1;
        usage.cpu_seconds_per_1000_tasks += (after.cpu_seconds - before.cpu_seconds) / thousands;
        usage.resident_mb = usage.resident_mb.max(after.resident_bytes / f64::from(1 << 20));
        for (operation, count) in &after.operations {
            let done = count - before.operations.get(operation).unwrap_or(&0.0);
            *usage.operations_per_1000_tasks.entry(operation.clone()).or_default() += done / thousands;
        }
    }
    roles
}

fn counted(operations: &Operations) -> BTreeMap<String, f64> {
    let bytes = operations.bytes().map(|(direction, count)| (bytes_name(direction), count as f64));
    operations.counts().map(|(name, count)| (name.to_owned(), count as f64)).into_iter().chain(bytes).collect()
}

fn bytes_name(direction: &str) -> String {
    format!("bytes {direction}")
}

fn of_process(pid: u32, memory: &str) -> Option<Reading> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the program's name in brackets, the third field is the first.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix(memory))?.split_whitespace().next()?;
    Some(Reading {
        cpu_seconds: (ticks(14)? + ticks(15)?) / TICKS_PER_SECOND,
        resident_bytes: kilobytes.parse::<f64>().ok()? * 1024.0,
        operations: BTreeMap::new(),
    })
}

/// The sum over all processes of this name.
fn of_all(name: &str) -> Option<Reading> {
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let named =
        pids.filter(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name));
    named.filter_map(|pid| of_process(pid, "VmRSS:")).reduce(|sum, one| Reading {
        cpu_seconds: sum.cpu_seconds + one.cpu_seconds,
        resident_bytes: sum.resident_bytes + one.resident_bytes,
        operations: BTreeMap::new(),
    })
}

async fn scrape(client: &reqwest::Client, url: &str) -> Result<Reading, Failure> {
    let unreachable = |failure: reqwest::Error| Failure::Failed(format!("metrics at {url}: {}", failure.without_url()));
    let answer = client.get(url).send().await.and_then(reqwest::Response::error_for_status).map_err(unreachable)?;
    Ok(parse(&answer.text().await.map_err(unreachable)?))
}

/// The lines that are of interest here, of Prometheus' text format.
fn parse(text: &str) -> Reading {
    let mut reading = Reading::default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, Ok(value))) = line.rsplit_once(' ').map(|(name, value)| (name, value.parse::<f64>())) else {
            continue;
        };
        match name.split_once('{') {
            None if name == "process_cpu_seconds_total" => reading.cpu_seconds = value,
            None if name == "process_resident_memory_bytes" => reading.resident_bytes = value,
            Some((family @ (OPERATIONS | BYTES), labels)) => {
                if let Some(label) = labels.split('"').nth(1) {
                    let name = if family == BYTES { bytes_name(label) } else { label.to_owned() };
                    reading.operations.insert(name, value);
                }
            }
            _ => {}
        }
    }
    reading
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(role: &str, kind: Kind) -> Source {
        Source { role: role.to_owned(), kind }
    }

    #[test]
    fn metrics_are_read_as_they_are_written() {
        let reading = parse(concat!(
            "# HELP process_cpu_seconds_total x\n# TYPE process_cpu_seconds_total counter\n",
            "process_cpu_seconds_total 12.5\nprocess_resident_memory_bytes 1048576\n",
            "taskyard_broker_operations_total{operation=\"publish\"} 40\n",
            "taskyard_broker_operations_total{operation=\"ack\"} 7\n",
            "taskyard_broker_bytes_total{direction=\"sent\"} 512\n",
            "taskyard_other_total{operation=\"ack\"} 9\n",
        ));
        let operations = [("ack", 7.0), ("publish", 40.0), ("bytes sent", 512.0)];
        let operations = operations.map(|(name, count)| (name.to_owned(), count)).into();
        assert_eq!(reading, Reading { cpu_seconds: 12.5, resident_bytes: 1_048_576.0, operations });
    }

    #[test]
    fn usage_is_the_difference_for_a_thousand_tasks_by_role() {
        let sources = [
            source("worker", Kind::Named("a")),
            source("scheduler", Kind::Named("b")),
            source("worker", Kind::Named("c")),
        ];
        let reading = |cpu_seconds, megabytes: f64, acks| {
            let operations = [("ack".to_owned(), acks)].into();
            Some(Reading { cpu_seconds, resident_bytes: megabytes * 1_048_576.0, operations })
        };
        let before = [reading(1.0, 5.0, 10.0), reading(2.0, 5.0, 0.0), None];
        let after = [reading(1.5, 8.0, 30.0), None, reading(0.5, 16.0, 20.0)];
        let [worker] = &usage(&sources, &before, &after, 2_000)[..] else { panic!("one role is there") };
        assert_eq!((worker.role.as_str(), worker.processes), ("worker", 2));
        assert_eq!((worker.cpu_seconds_per_1000_tasks, worker.resident_mb), (0.5, 16.0));
        assert_eq!(worker.operations_per_1000_tasks, [("ack".to_owned(), 20.0)].into());
    }

    #[test]
    fn this_process_is_found_by_its_number_and_by_its_name() {
        let pid = std::process::id();
        let own = of_process(pid, "VmHWM:").unwrap();
        assert!(own.resident_bytes > 1e6);
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        assert!(of_all(comm.trim_end()).unwrap().resident_bytes > 1e6);
        assert_eq!(of_all("no such process"), None);
    }
}
