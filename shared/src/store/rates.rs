//! Keeps rates across processes: tokens are taken from the store some at a time, so that most tasks cost no call, and while a
//! bucket is known to be empty none is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Store, StoreError, TakeTokens, TokensTaken};
use crate::signal::Rate;

/// Tokens for so long are taken at once. What a process has taken and does not use is lost to the others.
const AHEAD_SECONDS: f64 = 0.1;
/// One call of the store.
const LIMIT: Duration = Duration::from_millis(500);
/// How long the store is not asked again after it did not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// Tasks of one tenant that came.
#[derive(Clone, PartialEq, Debug)]
pub struct Want {
    pub tenant: String,
    pub tasks: u32,
    pub rate: Rate,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// So many of them may come in.
    pub tasks: u32,
    /// When another may, if not all may; milliseconds.
    pub retry_ms: u64,
}

/// What this process has of every tenant's rate.
pub struct Rates {
    store: Arc<dyn Store>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tenants: BTreeMap<String, Tenant>,
    away_until: Option<Instant>,
}

#[derive(Default)]
struct Tenant {
    tokens: u32,
    empty_until: Option<Instant>,
    /// While the store is away: a bucket of this process's own, and when that was looked at.
    alone: Option<(f64, Instant)>,
}

impl Rates {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, state: Mutex::default() }
    }

    /// How many tasks of each may come in: one answer for each, in their order. While the store is away, each of `parts`
    /// processes has its part of a rate.
    pub async fn take(&self, wants: &[Want], parts: u32) -> Vec<Grant> {
        if wants.is_empty() {
            return Vec::new();
        }
        let mut state = self.state.lock().await;
        let now = Instant::now();
        let (mut takes, mut asked) = (Vec::new(), Vec::new());
        for (index, want) in wants.iter().enumerate() {
            let tenant = state.tenants.entry(want.tenant.clone()).or_default();
            let lacks = want.tasks.saturating_sub(tenant.tokens);
            if lacks > 0 && tenant.empty_until.is_none_or(|until| until <= now) {
                let ahead = (want.rate.per_second * AHEAD_SECONDS).min(want.rate.burst) as u32;
                takes.push(TakeTokens {
                    bucket: want.tenant.clone(),
                    tokens: lacks.max(ahead),
                    per_second: want.rate.per_second,
                    burst: want.rate.burst.max(1.0),
                });
                asked.push(index);
            }
        }
        if !takes.is_empty() {
            match self.ask(&mut state, takes.clone(), now).await {
                Some(answers) => {
                    for ((take, answer), index) in takes.iter().zip(answers).zip(asked) {
                        let Some(tenant) = wants.get(index).and_then(|want| state.tenants.get_mut(&want.tenant)) else {
                            continue;
                        };
                        tenant.alone = None;
                        tenant.tokens = tenant.tokens.saturating_add(answer.taken);
                        let is_empty = answer.taken < take.tokens;
                        tenant.empty_until = is_empty.then(|| now + Duration::from_millis(answer.next_ms));
                    }
                }
                None => asked.into_iter().filter_map(|index| wants.get(index)).for_each(|want| {
                    if let Some(tenant) = state.tenants.get_mut(&want.tenant) {
                        tenant.go_on_alone(want, parts, now);
                    }
                }),
            }
        }
        wants
            .iter()
            .map(|want| state.tenants.get_mut(&want.tenant).map_or(NONE, |tenant| tenant.grant(want, now)))
            .collect()
    }

    async fn ask(&self, state: &mut State, takes: Vec<TakeTokens>, now: Instant) -> Option<Vec<TokensTaken>> {
        if state.away_until.is_some_and(|until| until > now) {
            return None;
        }
        let answer = tokio::time::timeout(LIMIT, self.store.take_tokens(takes)).await;
        match answer.unwrap_or(Err(StoreError::TimedOut(LIMIT.as_millis() as u64))) {
            Ok(answers) => {
                if state.away_until.take().is_some() {
                    info!("rates are kept to together again");
                }
                Some(answers)
            }
            Err(error) => {
                if state.away_until.replace(Instant::now() + PAUSE).is_none() {
                    warn!(%error, "rates are kept to by each process for itself");
                }
                None
            }
        }
    }
}

const NONE: Grant = Grant { tasks: 0, retry_ms: 1000 };

impl Tenant {
    fn go_on_alone(&mut self, want: &Want, parts: u32, now: Instant) {
        let parts = f64::from(parts.max(1));
        let (rate, most) = (want.rate.per_second / parts, (want.rate.burst / parts).max(1.0));
        let (level, at) = self.alone.unwrap_or((most, now));
        let level = (level + now.saturating_duration_since(at).as_secs_f64() * rate).min(most);
        let lacks = want.tasks.saturating_sub(self.tokens);
        let taken = f64::from(lacks).min(level.floor());
        self.tokens = self.tokens.saturating_add(taken as u32);
        self.alone = Some((level - taken, now));
        let next = Duration::try_from_secs_f64((1.0 - (level - taken).min(1.0)) / rate).unwrap_or(PAUSE).min(PAUSE);
        self.empty_until = (taken < f64::from(lacks)).then(|| now + next);
    }

    fn grant(&mut self, want: &Want, now: Instant) -> Grant {
        let tasks = want.tasks.min(self.tokens);
        self.tokens -= tasks;
        if tasks == want.tasks {
            return Grant { tasks, retry_ms: 0 };
        }
        let next = self.empty_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        Grant { tasks, retry_ms: u64::try_from(next.as_millis()).unwrap_or(u64::MAX).max(1) }
    }
}
