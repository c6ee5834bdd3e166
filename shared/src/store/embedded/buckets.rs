//! Buckets of tokens. They are not kept: after a restart each is full, as it is after a while anyway.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::store::{TakeTokens, TokensTaken};

/// Beyond so many, those that are full again are forgotten, and when there are none, all.
const BUCKETS: usize = 10_000;
/// No wait is told that is longer.
const LONGEST_MS: f64 = 86_400_000.0;

#[derive(Default)]
pub(super) struct Buckets {
    by_name: BTreeMap<String, Bucket>,
}

struct Bucket {
    level: f64,
    at: Instant,
    /// When it is full again.
    full: Option<Instant>,
}

impl Buckets {
    pub fn take(&mut self, take: &TakeTokens, now: Instant) -> TokensTaken {
        let (rate, most) = (take.per_second, take.burst);
        if self.by_name.len() >= BUCKETS && !self.by_name.contains_key(&take.bucket) {
            self.by_name.retain(|_, bucket| bucket.full.is_none_or(|full| full > now));
            if self.by_name.len() >= BUCKETS {
                self.by_name.clear();
            }
        }
        let bucket = self.by_name.entry(take.bucket.clone()).or_insert(Bucket { level: most, at: now, full: None });
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        let level = (bucket.level + passed * rate).min(most);
        let taken = f64::from(take.tokens).min(level.floor()).max(0.0);
        bucket.level = level - taken;
        bucket.at = now;
        let full = Duration::try_from_secs_f64((most - bucket.level) / rate).ok();
        bucket.full = full.and_then(|full| now.checked_add(full));
        let lacks = taken < f64::from(take.tokens);
        let next_ms = ((1.0 - bucket.level.min(1.0)) / rate * 1e3).ceil().clamp(0.0, LONGEST_MS);
        TokensTaken { taken: taken as u32, next_ms: if lacks { next_ms as u64 } else { 0 } }
    }
}
