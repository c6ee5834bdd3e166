//! Which routing keys have listeners, as far as the last message of each has shown.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use super::Topic;

/// Most models; those without listeners make room for others.
const MODELS: usize = 4096;
/// So many models are known each by itself from their first event on; others are tried at first only when somebody hears their topic.
const FEW_MODELS: usize = 64;
/// Keys without a listener are tried no more often than this together, each in its turn.
const TRIES_PER_SECOND: u64 = 50;

/// That a key was found to have a listener has all others tried again, not more often than this.
const OPENED_EVERY_MS: u64 = 1_000;

/// The last message reached a queue.
const OPEN: u64 = u64::MAX;
/// The first one is on its way, and until it is known what came of it others wait behind it.
const FIRST: u64 = u64::MAX - 1;

/// For each topic since when it is quiet, in milliseconds; or [`OPEN`] or [`FIRST`].
type Topics = [AtomicU64; Topic::COUNT];

pub(super) struct Keys {
    models: RwLock<HashMap<Box<str>, Arc<Topics>>>,
    start: Instant,
    quiet_ms: u64,
    /// Keys that were ever made an event for.
    count: AtomicU64,
    /// Models whose last message of a topic reached a queue.
    open: [AtomicUsize; Topic::COUNT],
    /// When a key was last found to have a listener that had none, or of which nothing was known: others may have one too, as with a
    /// binding to all of them.
    opened_ms: AtomicU64,
}

impl Keys {
    /// A key whose message came back is quiet for at least `quiet`.
    pub fn new(quiet: Duration) -> Self {
        Self {
            models: RwLock::default(),
            start: Instant::now(),
            quiet_ms: u64::try_from(quiet.as_millis()).unwrap_or(u64::MAX),
            count: AtomicU64::new(0),
            open: std::array::from_fn(|_| AtomicUsize::new(0)),
            opened_ms: AtomicU64::new(0),
        }
    }

    /// Milliseconds since the first that keys are known of; never 0.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(0) + 1
    }

    fn with<T>(&self, topic: Topic, model: &str, look: impl FnOnce(&AtomicU64) -> T) -> Option<T> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        models.get(model).and_then(|topics| topics.get(topic.place())).map(look)
    }

    fn is_heard(&self, topic: Topic) -> bool {
        self.open.get(topic.place()).is_some_and(|open| open.load(Ordering::Relaxed) > 0)
    }

    /// Whether an event is to be made: somebody listens, or it is time to see.
    pub fn may_go(&self, topic: Topic, model: &str) -> bool {
        let look = |state: &AtomicU64| match state.load(Ordering::Relaxed) {
            OPEN | FIRST => true,
            0 => self.is_first(topic, state),
            since => {
                let now = self.now_ms();
                let quiet =
                    self.quiet_ms.max(self.count.load(Ordering::Relaxed).saturating_mul(1000) / TRIES_PER_SECOND);
                let is_over = now.saturating_sub(since) >= quiet || since < self.opened_ms.load(Ordering::Relaxed);
                // The others of this moment stay quiet, as they were just before.
                is_over && state.compare_exchange(since, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            }
        };
        match self.with(topic, model, look) {
            Some(may_go) => may_go,
            None => self.add(model) && self.with(topic, model, look).unwrap_or(false),
        }
    }

    /// Nothing is known of the key yet.
    fn is_first(&self, topic: Topic, state: &AtomicU64) -> bool {
        let few = self.count.load(Ordering::Relaxed) < (FEW_MODELS * Topic::COUNT) as u64;
        let tried = few || self.is_heard(topic);
        let next = if tried { FIRST } else { self.now_ms() };
        if state.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        tried
    }

    /// Whether there is room for one more model.
    fn add(&self, model: &str) -> bool {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        if models.len() >= MODELS && !models.contains_key(model) {
            models.retain(|_, topics| topics.iter().any(|state| state.load(Ordering::Relaxed) == OPEN));
            let left =
                models.values().flat_map(|topics| topics.iter()).filter(|state| state.load(Ordering::Relaxed) != 0);
            self.count.store(left.count() as u64, Ordering::Relaxed);
            if models.len() >= MODELS {
                return false;
            }
        }
        models.entry(model.into()).or_insert_with(|| Arc::new(std::array::from_fn(|_| AtomicU64::new(0))));
        true
    }

    /// Whether the first event of the key is still to show whether somebody listens.
    pub fn is_first_tried(&self, topic: Topic, model: &str) -> bool {
        self.with(topic, model, |state| state.load(Ordering::Relaxed) == FIRST).unwrap_or(false)
    }

    /// Whether one of its key came back after this was made.
    pub fn is_quiet_since(&self, made_ms: u64, topic: Topic, model: &str) -> bool {
        let look = |state: &AtomicU64| state.load(Ordering::Relaxed);
        self.with(topic, model, look).is_none_or(|since| since < FIRST && since > made_ms)
    }

    pub fn reached(&self, topic: Topic, model: &str) {
        let old = self.with(topic, model, |state| state.swap(OPEN, Ordering::Relaxed));
        if old.is_some_and(|old| old != OPEN) {
            if let Some(open) = self.open.get(topic.place()) {
                open.fetch_add(1, Ordering::Relaxed);
            }
            let (now, last) = (self.now_ms(), self.opened_ms.load(Ordering::Relaxed));
            if last == 0 || now.saturating_sub(last) >= OPENED_EVERY_MS {
                self.opened_ms.store(now, Ordering::Relaxed);
            }
        }
    }

    pub fn came_back(&self, topic: Topic, model: &str) {
        let now = self.now_ms();
        let old = self.with(topic, model, |state| state.swap(now, Ordering::Relaxed));
        if let (Some(OPEN), Some(open)) = (old, self.open.get(topic.place())) {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::State;

    const QUEUED: Topic = Topic::State(State::Queued);
    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_key_is_tried_then_quiet_then_tried_again_by_one() {
        let keys = Keys::new(LONG);
        let made_ms = keys.now_ms();
        assert!(keys.may_go(QUEUED, "m") && keys.may_go(QUEUED, "m"), "until it is known what came of the first");
        assert!(keys.is_first_tried(QUEUED, "m") && !keys.is_quiet_since(made_ms, QUEUED, "m"));
        keys.came_back(QUEUED, "m");
        assert!(!keys.may_go(QUEUED, "m") && keys.is_quiet_since(made_ms - 1, QUEUED, "m"));
        assert!(keys.may_go(Topic::Partial, "m") && keys.may_go(QUEUED, "n"), "each by itself");
        keys.reached(Topic::Partial, "m");
        assert!(keys.may_go(Topic::Partial, "m") && !keys.is_first_tried(Topic::Partial, "m"));
    }

    #[test]
    fn after_its_time_one_goes_and_the_others_stay_quiet() {
        let mut keys = Keys::new(Duration::from_millis(40));
        keys.start -= Duration::from_secs(10);
        assert!(keys.may_go(QUEUED, "m"));
        keys.came_back(QUEUED, "m");
        keys.start -= Duration::from_millis(40);
        assert_eq!((0..3).filter(|_| keys.may_go(QUEUED, "m")).count(), 1);
        assert!(!keys.is_quiet_since(keys.now_ms(), QUEUED, "m"), "the one that goes");
    }

    #[test]
    fn the_more_keys_without_listeners_the_longer_each_is_quiet_until_one_is_heard() {
        let mut keys = Keys::new(Duration::from_millis(1));
        keys.start -= Duration::from_secs(10);
        let names: Vec<String> = (0..1000).map(|number| format!("m{number}")).collect();
        let goes = |keys: &Keys| names.iter().filter(|name| keys.may_go(QUEUED, name)).count();
        assert!(goes(&keys) < 1000, "most of many are quiet from the first on");
        names.iter().for_each(|name| keys.came_back(QUEUED, name));
        keys.start -= Duration::from_secs(2);
        assert_eq!(goes(&keys), 0, "a thousand keys, twenty seconds");
        keys.start -= Duration::from_secs(20);
        keys.came_back(QUEUED, "m1");
        assert_eq!(goes(&keys), 999);
        keys.start -= Duration::from_millis(2);
        keys.reached(QUEUED, "m5");
        assert!(keys.may_go(QUEUED, "m6") && keys.may_go(QUEUED, "unheard of"), "a binding may be to all");
    }

    #[test]
    fn of_many_models_at_once_those_that_were_not_tried_go_when_the_first_is_heard() {
        let mut keys = Keys::new(LONG);
        keys.start -= Duration::from_secs(10);
        let names: Vec<String> = (0..1000).map(|number| format!("m{number}")).collect();
        let goes = |keys: &Keys| names.iter().filter(|name| keys.may_go(QUEUED, name)).count();
        assert!(goes(&keys) < 1000);
        keys.start -= Duration::from_millis(2);
        keys.reached(QUEUED, "m0");
        assert_eq!(goes(&keys), 1000);
    }

    #[test]
    fn models_are_bounded_and_those_with_listeners_stay() {
        let keys = Keys::new(LONG);
        assert!(keys.may_go(QUEUED, "heard"));
        keys.reached(QUEUED, "heard");
        for number in 0..2 * MODELS {
            assert!(keys.may_go(QUEUED, &format!("m{number}")), "somebody hears of all");
        }
        assert!(keys.models.read().unwrap().len() <= MODELS);
        assert!(keys.may_go(QUEUED, "heard") && !keys.is_first_tried(QUEUED, "heard"));
    }
}
