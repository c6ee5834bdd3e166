//! What the process takes of the machine, under the names that Prometheus' own libraries use. Read from `/proc`; where
//! there is none, these metrics are missing.

use std::fs;
use std::sync::{Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge};

/// The kernel's unit of CPU time and of start times towards programs, on every machine that Rust's Linux targets know.
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) struct ProcessMetrics {
    cpu_seconds: Counter,
    resident_memory_bytes: Gauge,
    virtual_memory_bytes: Gauge,
    threads: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    start_time_seconds: Gauge,
    /// One reader at a time: the counter is raised to what was read.
    reading: Mutex<()>,
}

/// What one look at `/proc` gives.
struct Reading {
    cpu_seconds: f64,
    resident_memory_bytes: f64,
    virtual_memory_bytes: f64,
    threads: f64,
    open_fds: f64,
    max_fds: f64,
    start_time_seconds: f64,
}

impl ProcessMetrics {
    pub fn new() -> prometheus::Result<Self> {
        Ok(Self {
            cpu_seconds: Counter::new("process_cpu_seconds_total", "CPU time used, by user and system, in seconds.")?,
            resident_memory_bytes: Gauge::new("process_resident_memory_bytes", "Memory held in RAM, in bytes.")?,
            virtual_memory_bytes: Gauge::new("process_virtual_memory_bytes", "Address space taken, in bytes.")?,
            threads: Gauge::new("process_threads", "Threads of the operating system.")?,
            open_fds: Gauge::new("process_open_fds", "Open file descriptors.")?,
            max_fds: Gauge::new("process_max_fds", "Most file descriptors that may be open.")?,
            start_time_seconds: Gauge::new("process_start_time_seconds", "Start, in seconds since the Unix epoch.")?,
            reading: Mutex::new(()),
        })
    }

    fn gauges(&self) -> [&Gauge; 6] {
        [
            &self.resident_memory_bytes,
            &self.virtual_memory_bytes,
            &self.threads,
            &self.open_fds,
            &self.max_fds,
            &self.start_time_seconds,
        ]
    }
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        let mut all = self.cpu_seconds.desc();
        all.extend(self.gauges().into_iter().flat_map(Collector::desc));
        all
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _one = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(now) = read() else { return Vec::new() };
        self.cpu_seconds.inc_by((now.cpu_seconds - self.cpu_seconds.get()).max(0.0));
        self.resident_memory_bytes.set(now.resident_memory_bytes);
        self.virtual_memory_bytes.set(now.virtual_memory_bytes);
        self.threads.set(now.threads);
        self.open_fds.set(now.open_fds);
        self.max_fds.set(now.max_fds);
        self.start_time_seconds.set(now.start_time_seconds);
        let mut all = self.cpu_seconds.collect();
        all.extend(self.gauges().into_iter().flat_map(Collector::collect));
        all
    }
}

fn read() -> Option<Reading> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in brackets, which may hold anything; after it, the third is the first.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = |name| value(&status, name).map(|kilobytes| kilobytes * 1024.0);
    let boot_seconds = value(&fs::read_to_string("/proc/stat").ok()?, "btime")?;
    Some(Reading {
        cpu_seconds: (field(14)? + field(15)?) / TICKS_PER_SECOND,
        resident_memory_bytes: kilobytes("VmRSS:")?,
        virtual_memory_bytes: kilobytes("VmSize:")?,
        threads: value(&status, "Threads:")?,
        // Less the one that this look opens.
        open_fds: fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64,
        max_fds: value(&fs::read_to_string("/proc/self/limits").ok()?, "Max open files").unwrap_or(f64::INFINITY),
        start_time_seconds: boot_seconds + field(22)? / TICKS_PER_SECOND,
    })
}

/// The first number after `name` at the start of a line.
fn value(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}
