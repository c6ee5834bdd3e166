//! What other orders would have made of the tasks that were served: first come first served, and an oracle that knows how
//! long each will run.
//!
//! Of every attempt that ends, its arrival, run time, end and priority are kept; now and then what was kept of a model, a
//! window, is run once more through the simulator, beside the scheduling, and Σ p·(end − arrival) as it was is divided by
//! what it would have been. A window ends where nothing of the model waited or ran, if there is such a moment, and at the
//! present otherwise. What waited at its start counts from there, and what ran then takes its slot in the replay and is not
//! compared. What still waits at the end is not in the window at all, so a backlog that grows makes the others look
//! better than they are.
//!
//! Everything but the order is charged to what was: fair shares, floors and deadlines, the way to a worker and back, slots
//! that idled. An attempt is taken to have begun its run time before the scheduler heard of its end. Those of a batch have
//! their part of its time each, and count as run one after another.
//!
//! To keep an attempt is a look-up and a push, some 50 ns; to replay a full window in both orders takes some 30 ms of a
//! thread (both measured with little optimisation, of 8,192 attempts).

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::held::{Held, Outstanding};
use crate::metrics::Metrics;
use crate::simulate::replay::{Replayed, replay};

/// Attempts kept of a model, the latest: 32 bytes each.
const ATTEMPTS: usize = 8_192;
/// Models of which any are kept: the first that have traffic, until they have none for a window.
const MODELS: usize = 32;

/// The orders that are compared with, by the label and the planner's name.
const ORDERS: [(&str, &str); 2] = [("fifo", "fifo"), ("oracle", "wspt")];

/// An attempt that ended. Microseconds since the epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Attempt {
    pub arrived_us: u64,
    pub started_us: u64,
    pub ended_us: u64,
    pub priority: u8,
}

/// What was kept of one model.
struct Window {
    from_us: u64,
    /// In the order of their ends.
    attempts: VecDeque<Attempt>,
    /// The last moment at which nothing of the model waited or ran, and how many attempts had ended by then.
    idle: Option<(u64, usize)>,
}

/// A window that is to be replayed.
pub(crate) struct Sample {
    pub model: String,
    from_us: u64,
    /// Tasks that are run at once.
    slots: usize,
    attempts: VecDeque<Attempt>,
}

/// What a replay came to.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Regret {
    pub model: String,
    /// How many tasks were compared.
    pub tasks: usize,
    /// Σ p·(end − arrival) as it was, over what each of the orders would have made it.
    pub ratios: [(&'static str, f64); ORDERS.len()],
}

pub(crate) struct Shadow {
    windows: HashMap<String, Window>,
    every_us: u64,
    due_us: u64,
}

impl Shadow {
    /// `None` when windows of no length are asked for: nothing is kept.
    pub fn new(every: Duration, now_us: u64) -> Option<Self> {
        let every_us = u64::try_from(every.as_micros()).unwrap_or(u64::MAX);
        let due_us = now_us.saturating_add(every_us);
        (every_us > 0).then(|| Self { windows: HashMap::new(), every_us, due_us })
    }

    /// An attempt ended. `is_idle` when nothing of the model waits or runs now.
    pub fn handle_ended(&mut self, model: &str, attempt: Attempt, is_idle: bool) {
        // The clock of who accepted it may be ahead.
        let attempt = Attempt { arrived_us: attempt.arrived_us.min(attempt.started_us), ..attempt };
        if !self.windows.contains_key(model) {
            if self.windows.len() >= MODELS {
                return;
            }
            let window = Window { from_us: attempt.started_us, attempts: VecDeque::new(), idle: None };
            self.windows.insert(model.to_owned(), window);
        }
        if let Some(window) = self.windows.get_mut(model) {
            window.push(attempt, is_idle);
        }
    }

    /// A model has other slots now, or was paused or resumed: its window begins anew.
    pub fn handle_change(&mut self, model: &str, now_us: u64) {
        if let Some(window) = self.windows.get_mut(model) {
            *window = Window { from_us: now_us, attempts: VecDeque::new(), idle: None };
        }
    }

    pub fn is_due(&self, now_us: u64) -> bool {
        now_us >= self.due_us
    }

    /// Ends the windows and hands them out; `slots` says how many tasks of a model run at once.
    pub fn take(&mut self, now_us: u64, slots: impl Fn(&str) -> usize) -> Vec<Sample> {
        self.due_us = now_us.saturating_add(self.every_us);
        self.windows.retain(|_, window| !window.attempts.is_empty());
        let samples = self.windows.iter_mut().map(|(model, window)| {
            let (from_us, attempts) = window.take(now_us);
            Sample { model: model.clone(), from_us, slots: slots(model), attempts }
        });
        samples.filter(|sample| sample.slots > 0).collect()
    }
}

impl Window {
    fn push(&mut self, attempt: Attempt, is_idle: bool) {
        if self.attempts.len() >= ATTEMPTS
            && let Some(oldest) = self.attempts.pop_front()
        {
            self.from_us = oldest.ended_us;
            self.idle = self.idle.and_then(|(at_us, ended)| Some((at_us, ended.checked_sub(1)?)));
        }
        self.attempts.push_back(attempt);
        if is_idle {
            self.idle = Some((attempt.ended_us, self.attempts.len()));
        }
    }

    /// What ended up to the last idle moment, or all of it, and from when on.
    fn take(&mut self, now_us: u64) -> (u64, VecDeque<Attempt>) {
        let (until_us, ended) =
            self.idle.take().filter(|&(_, ended)| ended > 0).unwrap_or((now_us, self.attempts.len()));
        let rest = self.attempts.split_off(ended.min(self.attempts.len()));
        let from_us = std::mem::replace(&mut self.from_us, until_us);
        (from_us, std::mem::replace(&mut self.attempts, rest))
    }
}

impl Sample {
    /// Runs it once in each order. `None` when there is nothing to compare.
    pub fn replay(self) -> Option<Regret> {
        let Self { model, from_us, slots, attempts } = self;
        // What ran when the window began holds its slot from its start on.
        let mut attempts: Vec<(u64, Attempt)> = attempts
            .into_iter()
            .map(|attempt| match attempt.started_us < from_us {
                true => (attempt.started_us, attempt),
                false => (attempt.arrived_us.max(from_us), attempt),
            })
            .collect();
        // What waited then is in the order in which it came.
        attempts.sort_by_key(|(arrival_us, attempt)| (*arrival_us, attempt.arrived_us));
        let first_us = attempts.first()?.0;
        let replayed: Vec<Replayed> = attempts
            .iter()
            .map(|(arrival_us, attempt)| Replayed {
                arrival_us: arrival_us - first_us,
                run_us: attempt.ended_us.saturating_sub(attempt.started_us),
                priority: attempt.priority,
            })
            .collect();
        let compared = || attempts.iter().enumerate().filter(|(_, (_, attempt))| attempt.started_us >= from_us);
        let cost = |end_us: &dyn Fn(usize, &Attempt) -> Option<u64>| {
            compared().try_fold(0.0, |sum, (number, (arrival_us, attempt))| {
                let delay_us = end_us(number, attempt)?.saturating_sub(*arrival_us);
                Some(sum + (f64::from(attempt.priority) + 1.0) * delay_us as f64)
            })
        };
        let tasks = compared().count();
        let actual = cost(&|_, attempt| Some(attempt.ended_us))?;
        let mut ratios = ORDERS.map(|(label, _)| (label, 1.0));
        for ((_, ratio), (_, policy)) in ratios.iter_mut().zip(ORDERS) {
            let ends = replay(&replayed, slots, policy)?;
            let other = cost(&|number, _| ends.get(number).map(|end_us| end_us + first_us))?;
            if other <= 0.0 {
                return None;
            }
            *ratio = actual / other;
        }
        Some(Regret { model, tasks, ratios })
    }
}

/// Replays windows one after another and shows what came of it. It takes a thread for as long as that takes.
pub(crate) fn compare(samples: Vec<Sample>, metrics: &Metrics, closing: &CancellationToken) {
    let mut regrets = Vec::with_capacity(samples.len());
    for sample in samples {
        if closing.is_cancelled() {
            return;
        }
        regrets.extend(sample.replay());
    }
    metrics.shadow(&regrets);
}

impl Core {
    /// From when on a task could run: one that is tried again, since it came back.
    pub fn arrived_us(&self, task: &Held, now_us: u64) -> u64 {
        let envelope = &task.envelope;
        let came_us = match envelope.attempts {
            0 => self.clock.micros(envelope.accepted),
            _ => now_us.saturating_sub(task.since.elapsed().as_micros() as u64),
        };
        came_us.max(envelope.extras.not_before.map_or(0, |at| self.clock.micros(at)))
    }

    /// Keeps what is to be compared of an attempt that ended after so long.
    pub fn shade(&mut self, was: &Outstanding, ran_ms: f64, is_backlogged: bool) {
        let Some(shadow) = self.shadow.as_mut().filter(|_| ran_ms > 0.0) else { return };
        let is_idle = !is_backlogged && self.planner.outstanding(&was.model) == 0;
        let ended_us = self.clock.now_us();
        let attempt = Attempt {
            arrived_us: was.arrived_us,
            started_us: ended_us.saturating_sub((ran_ms * 1e3) as u64),
            ended_us,
            priority: was.priority.get(),
        };
        shadow.handle_ended(&was.model, attempt, is_idle);
    }

    /// Has the windows that are full compared, beside what goes on here. One that takes long is waited for.
    pub fn compare(&mut self) {
        let now_us = self.clock.now_us();
        let is_busy = self.comparing.as_ref().is_some_and(|comparing| !comparing.is_finished());
        let Some(shadow) = self.shadow.as_mut().filter(|shadow| !is_busy && shadow.is_due(now_us)) else { return };
        let samples = shadow.take(now_us, |model| self.offers.calls(model, self.shard));
        let (metrics, closing) = (self.metrics.clone(), self.closing.clone());
        self.comparing = Some(tokio::task::spawn_blocking(move || compare(samples, &metrics, &closing)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn attempt(arrived_us: u64, started_us: u64, ended_us: u64) -> Attempt {
        Attempt { arrived_us, started_us, ended_us, priority: 5 }
    }

    fn shadow() -> Shadow {
        Shadow::new(Duration::from_secs(60), 0).unwrap()
    }

    /// Of the one model with this many slots.
    fn regret(shadow: &mut Shadow, slots: usize) -> Regret {
        let mut samples = shadow.take(60 * SECOND, |_| slots);
        assert_eq!(samples.len(), 1);
        samples.remove(0).replay().expect("something to compare")
    }

    fn ratio(regret: &Regret, label: &str) -> f64 {
        regret.ratios.iter().find(|(order, _)| *order == label).unwrap().1
    }

    /// A few hundred tasks, more than two slots can do while they come, as an order would have served them.
    fn served(policy: &str) -> Vec<Attempt> {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut at_us = SECOND;
        let tasks: Vec<Replayed> = (0..400)
            .map(|_| {
                at_us += rng.u64(1..10_000);
                Replayed { arrival_us: at_us, run_us: rng.u64(100..30_000), priority: rng.u8(0..10) }
            })
            .collect();
        let ends = replay(&tasks, 2, policy).unwrap();
        let ended = tasks.iter().zip(ends).map(|(task, ended_us)| Attempt {
            arrived_us: task.arrival_us,
            started_us: ended_us - task.run_us,
            ended_us,
            priority: task.priority,
        });
        let mut ended: Vec<Attempt> = ended.collect();
        ended.sort_by_key(|attempt| attempt.ended_us);
        ended
    }

    fn seen(attempts: &[Attempt]) -> Shadow {
        let mut shadow = shadow();
        for (number, &attempt) in attempts.iter().enumerate() {
            shadow.handle_ended("m", attempt, number + 1 == attempts.len());
        }
        shadow
    }

    #[test]
    fn what_was_served_in_an_order_is_level_with_that_order() {
        let of_fifo = regret(&mut seen(&served("fifo")), 2);
        assert_eq!(of_fifo.tasks, 400);
        assert!((ratio(&of_fifo, "fifo") - 1.0).abs() < 1e-3, "{of_fifo:?}");
        assert!(ratio(&of_fifo, "oracle") > 1.5, "{of_fifo:?}");
        let of_oracle = regret(&mut seen(&served("wspt")), 2);
        assert!((ratio(&of_oracle, "oracle") - 1.0).abs() < 1e-3, "{of_oracle:?}");
        assert!(ratio(&of_oracle, "fifo") < 0.67, "{of_oracle:?}");
    }

    #[test]
    fn a_window_may_begin_and_end_while_tasks_run_and_wait() {
        let mut shadow = shadow();
        for &attempt in &served("fifo") {
            shadow.handle_ended("m", attempt, false);
            // As often as not several are under way, and many wait.
            if shadow.windows.get("m").is_some_and(|window| window.attempts.len() == 50) {
                let mut samples = shadow.take(attempt.ended_us, |_| 2);
                let regret = samples.remove(0).replay().unwrap();
                assert!((48..=50).contains(&regret.tasks), "{regret:?}");
                assert!((ratio(&regret, "fifo") - 1.0).abs() < 0.02, "{regret:?}");
            }
        }
    }

    #[test]
    fn what_is_lost_on_the_way_is_charged() {
        // One slot, and each task's end is heard of 3 ms after it, which the next one's start waits for.
        let slow: Vec<Attempt> =
            (0..10).map(|n| attempt(SECOND, SECOND + n * 4_000 + 3_000, SECOND + n * 4_000 + 4_000)).collect();
        let regret = regret(&mut seen(&slow), 1);
        // From the first start on: 1 + 5 + … + 37 ms over 1 + 2 + … + 10 ms.
        assert!((ratio(&regret, "fifo") - 190.0 / 55.0).abs() < 1e-9, "{regret:?}");
    }

    #[test]
    fn a_window_ends_where_the_model_was_idle() {
        let mut shadow = shadow();
        shadow.handle_ended("m", attempt(10, 10, 20), true);
        shadow.handle_ended("m", attempt(30, 30, 40), true);
        shadow.handle_ended("m", attempt(50, 50, 60), false);
        assert_eq!(regret(&mut shadow, 1).tasks, 2);
        assert_eq!(regret(&mut shadow, 1).tasks, 1, "the rest is in the next");
        assert!(shadow.take(180 * SECOND, |_| 1).is_empty());
        assert!(shadow.windows.is_empty(), "a quiet model leaves its place");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut shadow = shadow();
        for model in 0..MODELS + 5 {
            shadow.handle_ended(&model.to_string(), attempt(0, 0, 1), true);
        }
        assert_eq!(shadow.windows.len(), MODELS);
        for at_us in 0..2 * ATTEMPTS as u64 {
            shadow.handle_ended("0", attempt(at_us, at_us, at_us + 1), false);
        }
        let window = &shadow.windows["0"];
        assert!(window.attempts.len() == ATTEMPTS && window.attempts.capacity() <= 2 * ATTEMPTS);
        assert_eq!(
            (window.from_us, window.idle),
            (ATTEMPTS as u64, None),
            "it begins where the last one dropped ended"
        );
        assert_eq!(shadow.take(60 * SECOND, |_| 1).len(), MODELS);
    }

    #[test]
    fn other_slots_are_another_window_and_none_is_no_window() {
        let mut shadow = shadow();
        shadow.handle_ended("m", attempt(0, 0, 10), false);
        shadow.handle_change("m", 20);
        assert!(shadow.take(30, |_| 1).is_empty());
        shadow.handle_ended("m", attempt(0, 30, 40), false);
        assert!(shadow.take(50, |_| 0).is_empty(), "its workers are gone");
        assert!(Shadow::new(Duration::ZERO, 0).is_none());
        let timed = super::Shadow::new(Duration::from_secs(60), 5).unwrap();
        assert!(!timed.is_due(60 * SECOND + 4) && timed.is_due(60 * SECOND + 5));
    }
}
