//! What happened, line by line: a digest of all lines, and the lines where somebody wants to read them.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Display;
use std::hash::Hasher;
use std::sync::Mutex;

use tokio::time::Instant;

pub struct Trace {
    begun: Instant,
    kept: Mutex<Kept>,
}

struct Kept {
    digest: DefaultHasher,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// To be made within the simulation, whose clock it reads.
    pub fn new(with_lines: bool) -> Self {
        let kept = Kept { digest: DefaultHasher::new(), lines: with_lines.then(Vec::new) };
        Self { begun: Instant::now(), kept: Mutex::new(kept) }
    }

    /// Since it began.
    pub fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    pub fn note(&self, who: &str, what: impl Display) {
        let line = format!("{:>7} {who}: {what}", self.now_ms());
        let mut kept = self.kept.lock().unwrap();
        kept.digest.write(line.as_bytes());
        if let Some(lines) = &mut kept.lines {
            lines.push(line);
        }
    }

    pub fn digest(&self) -> u64 {
        self.kept.lock().unwrap().digest.finish()
    }

    pub fn lines(&self) -> Vec<String> {
        self.kept.lock().unwrap().lines.clone().unwrap_or_default()
    }
}
