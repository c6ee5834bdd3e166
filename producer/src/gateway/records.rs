//! The store as the gateway uses it: bounded in time, and left alone for a moment after it failed, so that a store that
//! is away costs its callers one wait and not one each.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use taskyard_shared::store::{Store, StoreError};

/// How long the store is not asked again after it did not answer.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Records {
    store: Arc<dyn Store>,
    away_since: Mutex<Option<Away>>,
}

#[derive(Clone, Copy)]
struct Away {
    first: Instant,
    last: Instant,
}

impl Records {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, away_since: Mutex::new(None) }
    }

    /// One call, which is given up after `limit`.
    pub(super) async fn ask<T, F>(
        &self,
        limit: Duration,
        call: impl FnOnce(Arc<dyn Store>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        if self.paused() {
            return Err(StoreError::Unreachable("it did not answer a moment ago".to_owned()));
        }
        let answer = match tokio::time::timeout(limit, call(self.store.clone())).await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::TimedOut(limit.as_millis().try_into().unwrap_or(u64::MAX))),
        };
        self.note(&answer);
        answer
    }

    /// Whether the last call found it away.
    pub(super) fn is_away(&self) -> bool {
        self.lock().is_some()
    }

    /// While it is away, one caller after each pause tries it for all.
    fn paused(&self) -> bool {
        match self.lock().as_mut() {
            Some(away) if away.last.elapsed() >= PAUSE => {
                away.last = Instant::now();
                false
            }
            Some(_) => true,
            None => false,
        }
    }

    fn note<T>(&self, answer: &Result<T, StoreError>) {
        let mut away = self.lock();
        match answer {
            Err(error) if error.is_transient() => {
                let now = Instant::now();
                if away.is_none() {
                    tracing::warn!(%error, "the store is away: tasks are still accepted, look-ups are not answered");
                }
                *away = Some(Away { first: away.map_or(now, |away| away.first), last: now });
            }
            Err(error @ (StoreError::Corrupt(_) | StoreError::Refused(_))) => {
                tracing::warn!(%error, "the store did not take a call");
            }
            Ok(_) | Err(_) => {
                if let Some(away) = away.take() {
                    tracing::info!(away_ms = away.first.elapsed().as_millis(), "the store answers again");
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Away>> {
        self.away_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
