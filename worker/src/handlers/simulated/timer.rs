//! Waits that end within about a tenth of a millisecond of their time.
//!
//! The runtime's own timer counts in whole milliseconds, which would make a task of 2 ms take anything up to 3. One
//! thread for the whole process sleeps until the earliest of all waits, in the kernel's timer, and wakes its waiter.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

#[derive(Default)]
struct Timer {
    waits: Mutex<Waits>,
    earlier: Condvar,
}

#[derive(Default)]
struct Waits {
    /// By the time they end; the number tells apart those that end together.
    by_end: BTreeMap<(Instant, u64), oneshot::Sender<()>>,
    next: u64,
}

/// Waits until `end`. Dropping the future leaves nothing behind.
pub(super) async fn wait_until(end: Instant) {
    if end <= Instant::now() {
        return;
    }
    let Some(timer) = timer() else {
        // No thread was to be had: the runtime's timer is late, but not wrong.
        return tokio::time::sleep_until(end.into()).await;
    };
    let (wake, woken) = oneshot::channel();
    let wait = timer.begin(end, wake);
    // The sender is only dropped by `wait` itself, or used.
    let _ = woken.await;
    drop(wait);
}

/// The process's timer, whose thread starts with its first use; nothing if the thread cannot be started.
fn timer() -> Option<&'static Timer> {
    static TIMER: OnceLock<Timer> = OnceLock::new();
    static RUNS: OnceLock<bool> = OnceLock::new();
    let timer = TIMER.get_or_init(Timer::default);
    let runs = RUNS.get_or_init(|| {
        std::thread::Builder::new().name("simulated-timer".to_owned()).spawn(move || timer.run()).is_ok()
    });
    runs.then_some(timer)
}

/// Takes its wait out of the timer when dropped.
struct Wait {
    timer: &'static Timer,
    key: (Instant, u64),
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.timer.lock().by_end.remove(&self.key);
    }
}

impl Timer {
    fn begin(&'static self, end: Instant, wake: oneshot::Sender<()>) -> Wait {
        let mut waits = self.lock();
        let key = (end, waits.next);
        waits.next = waits.next.wrapping_add(1);
        waits.by_end.insert(key, wake);
        let is_earliest = waits.by_end.keys().next() == Some(&key);
        drop(waits);
        if is_earliest {
            self.earlier.notify_one();
        }
        Wait { timer: self, key }
    }

    fn run(&self) {
        let mut waits = self.lock();
        loop {
            let now = Instant::now();
            while let Some(first) = waits.by_end.first_entry() {
                if first.key().0 > now {
                    break;
                }
                // A waiter that has gone away needs no word.
                let _ = first.remove().send(());
            }
            waits = match waits.by_end.keys().next() {
                None => self.earlier.wait(waits).unwrap_or_else(PoisonError::into_inner),
                Some((end, _)) => {
                    let rest = end.saturating_duration_since(now);
                    self.earlier.wait_timeout(waits, rest).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_wait_is_not_held_up_by_one_that_was_begun_before_it() {
        let start = Instant::now();
        let mut far = Box::pin(wait_until(start + Duration::from_secs(3600)));
        assert!(futures_util::poll!(&mut far).is_pending());
        for ms in [40, 20, 30, 0] {
            let end = Instant::now() + Duration::from_millis(ms);
            wait_until(end).await;
            assert!(Instant::now() >= end);
        }
        assert!(futures_util::poll!(&mut far).is_pending());
    }

    #[tokio::test]
    async fn a_wait_that_is_dropped_leaves_nothing_behind() {
        let end = Instant::now() + Duration::from_secs(3600);
        let mut wait = Box::pin(wait_until(end));
        assert!(futures_util::poll!(&mut wait).is_pending());
        let is_there = || timer().unwrap().lock().by_end.keys().any(|(found, _)| *found == end);
        assert!(is_there());
        drop(wait);
        assert!(!is_there());
    }
}
