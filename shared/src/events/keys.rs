//! Which routing keys have listeners, as far as the last message of each has shown.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::Topic;

/// Most models; those without listeners make room for others.
const MODELS: usize = 4096;

/// The last message reached a queue.
const OPEN: u64 = u64::MAX;
/// One is on its way, and until it is known what came of it others go too.
const TRIED: u64 = u64::MAX - 1;

/// For each topic until when it is quiet, in milliseconds; or [`OPEN`] or [`TRIED`].
type Topics = [AtomicU64; Topic::COUNT];

pub(super) struct Keys {
    models: RwLock<HashMap<Box<str>, Arc<Topics>>>,
    start: Instant,
    quiet: Duration,
}

impl Keys {
    pub fn new(quiet: Duration) -> Self {
        Self { models: RwLock::default(), start: Instant::now(), quiet }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(0)
    }

    fn with<T>(&self, topic: Topic, model: &str, look: impl FnOnce(&AtomicU64) -> T) -> Option<T> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        models.get(model).and_then(|topics| topics.get(topic.place())).map(look)
    }

    /// Whether an event is to be made: somebody listens, or it is time to see.
    pub fn may_go(&self, topic: Topic, model: &str) -> bool {
        let look = |state: &AtomicU64| match state.load(Ordering::Relaxed) {
            OPEN | TRIED => true,
            until if self.now_ms() < until => false,
            until => {
                // Whoever loses this has found it tried by another.
                let _lost = state.compare_exchange(until, TRIED, Ordering::Relaxed, Ordering::Relaxed);
                true
            }
        };
        match self.with(topic, model, look) {
            Some(may_go) => may_go,
            None => self.add(topic, model),
        }
    }

    /// The first of a model.
    fn add(&self, topic: Topic, model: &str) -> bool {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        if models.len() >= MODELS && !models.contains_key(model) {
            models.retain(|_, topics| topics.iter().any(|state| state.load(Ordering::Relaxed) == OPEN));
            if models.len() >= MODELS {
                return false;
            }
        }
        let topics = models.entry(model.into()).or_insert_with(|| Arc::new(std::array::from_fn(|_| AtomicU64::new(0))));
        if let Some(state) = topics.get(topic.place()) {
            state.store(TRIED, Ordering::Relaxed);
        }
        true
    }

    pub fn is_quiet(&self, topic: Topic, model: &str) -> bool {
        let look = |state: &AtomicU64| state.load(Ordering::Relaxed) < TRIED;
        self.with(topic, model, look).unwrap_or(true)
    }

    pub fn reached(&self, topic: Topic, model: &str) {
        let _forgotten = self.with(topic, model, |state| state.store(OPEN, Ordering::Relaxed));
    }

    pub fn came_back(&self, topic: Topic, model: &str) {
        let until = self.now_ms() + u64::try_from(self.quiet.as_millis()).unwrap_or(0);
        let _forgotten = self.with(topic, model, |state| state.store(until, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::State;

    const QUEUED: Topic = Topic::State(State::Queued);

    #[test]
    fn a_key_is_tried_then_quiet_then_tried_again() {
        let keys = Keys::new(Duration::from_secs(3600));
        assert!(keys.may_go(QUEUED, "m") && keys.may_go(QUEUED, "m"), "until it is known what came of the first");
        keys.came_back(QUEUED, "m");
        assert!(!keys.may_go(QUEUED, "m") && keys.is_quiet(QUEUED, "m"));
        assert!(keys.may_go(Topic::Partial, "m") && keys.may_go(QUEUED, "n"), "each by itself");
        keys.reached(Topic::Partial, "m");
        assert!(keys.may_go(Topic::Partial, "m") && !keys.is_quiet(Topic::Partial, "m"));
        let keys = Keys::new(Duration::ZERO);
        assert!(keys.may_go(QUEUED, "m"));
        keys.came_back(QUEUED, "m");
        assert!(keys.may_go(QUEUED, "m"), "its time is over");
    }

    #[test]
    fn models_are_bounded_and_those_with_listeners_stay() {
        let keys = Keys::new(Duration::from_secs(3600));
        assert!(keys.may_go(QUEUED, "heard"));
        keys.reached(QUEUED, "heard");
        for number in 0..2 * MODELS {
            assert!(keys.may_go(QUEUED, &format!("m{number}")));
        }
        assert!(keys.models.read().unwrap().len() <= MODELS);
        assert!(!keys.is_quiet(QUEUED, "heard"));
    }
}
