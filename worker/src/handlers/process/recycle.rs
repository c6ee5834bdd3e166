//! When a child is replaced between calls: one that leaks is not to end its worker.

use taskyard_shared::process::settings::ProcessSettings;

pub(super) struct Recycle {
    after_tasks: Option<u64>,
    above_mb: Option<u64>,
}

impl Recycle {
    pub fn new(settings: &ProcessSettings) -> Self {
        Self { after_tasks: settings.recycle_after_tasks, above_mb: settings.recycle_above_mb }
    }

    /// Why the child is to be replaced, if it is.
    pub fn why(&self, child: i32, given: u64) -> Option<String> {
        if self.after_tasks.is_some_and(|most| given >= most) {
            return Some(format!("it was given {given} tasks"));
        }
        let most = self.above_mb?;
        let holds = resident_mb(child).filter(|holds| *holds > most)?;
        Some(format!("it holds {holds} MiB, and may hold {most}"))
    }
}

/// Nothing where there is no such file, or the process has ended: then it is replaced anyway.
fn resident_mb(process: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}
