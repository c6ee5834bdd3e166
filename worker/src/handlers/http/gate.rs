//! When a server may be asked again: after the time it asked for, and not at once when it fails one call after another.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use taskyard_shared::retry::Backoff;
use tokio::time::{Instant, sleep_until};

/// So many calls in a row that could not be served, and the next ones wait.
const FAILURES: u32 = 5;
/// For how long; doubling with every further failure.
const WAIT: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
/// A server that asks for more time than this is asked again by another attempt.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Gate(Mutex<State>);

#[derive(Default)]
struct State {
    failures: u32,
    opens_at: Option<Instant>,
}

impl Gate {
    /// Waits until the server may be asked. Dropped with the call, at its time limit.
    pub async fn pass(&self) {
        loop {
            let opens_at = self.lock().opens_at.filter(|at| *at > Instant::now());
            match opens_at {
                Some(at) => sleep_until(at).await,
                None => return,
            }
        }
    }

    pub fn served(&self) {
        *self.lock() = State::default();
    }

    /// It could not serve a call, and may have said for how long.
    pub fn failed(&self, again_after: Option<Duration>, random: f64) {
        self.lock().failed(Instant::now(), again_after, random);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn failed(&mut self, now: Instant, again_after: Option<Duration>, random: f64) {
        self.failures = self.failures.saturating_add(1);
        let wait = match again_after {
            Some(asked) => asked.min(LONGEST),
            None if self.failures >= FAILURES => WAIT.delay(self.failures - FAILURES + 1, random),
            None => return,
        };
        self.opens_at = self.opens_at.max(Some(now + wait));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_as_long_as_it_was_asked_to_and_no_longer_than_a_minute() {
        let (mut state, now) = (State::default(), Instant::now());
        for (asked_s, waits_s) in [(7, 7), (3, 7), (700, 60)] {
            state.failed(now, Some(Duration::from_secs(asked_s)), 0.0);
            assert_eq!(state.opens_at, Some(now + Duration::from_secs(waits_s)));
        }
    }

    #[test]
    fn it_waits_ever_longer_while_call_after_call_fails() {
        let (mut state, now) = (State::default(), Instant::now());
        for _ in 1..FAILURES {
            state.failed(now, None, 0.5);
            assert_eq!(state.opens_at, None);
        }
        let mut before = now;
        for _ in 0..4 {
            state.failed(now, None, 0.5);
            let opens_at = state.opens_at.unwrap();
            assert!(opens_at > before && opens_at <= now + Duration::from_secs(30));
            before = opens_at;
        }
    }

    #[tokio::test]
    async fn one_call_that_is_served_opens_it() {
        let gate = Gate::default();
        for _ in 0..100 {
            gate.failed(None, 0.5);
        }
        gate.served();
        gate.pass().await;
        gate.failed(None, 0.5);
        gate.pass().await;
    }
}
