//! How many workers a model wants, and how long it is overloaded, from what is looked at once a second.
//!
//! More is believed at once, less when it has been so for a minute: a worker that is started takes time, and one that is
//! stopped too soon is started again.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use taskyard_shared::process::settings::SchedulerSettings;
use tokio::time::Instant;

use crate::planner::Demand;

/// What came counts for less from second to second: by 1/e after so many.
const MEMORY_SECONDS: f64 = 15.0;
/// Slots are to be busy for this part of their time: at all of it, waits grow without end.
const BUSY: f64 = 0.85;
/// So long fewer have to do before fewer are wanted.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a publisher is asked to stay away, in seconds.
const RETRY_AFTER_S: (f64, f64) = (1.0, 60.0);

/// Of all models that are known.
#[derive(Default)]
pub(crate) struct Wanted {
    models: HashMap<String, Trend>,
    looked: Option<Instant>,
}

#[derive(Default)]
struct Trend {
    /// As the planner adds it up.
    offered_seconds: Option<f64>,
    /// Seconds of work, and seconds in which it came; what is long ago counts for less.
    work: f64,
    time: f64,
    /// How many were wanted lately, each more than all after it.
    highs: VecDeque<(Instant, f64)>,
    drain_seconds: f64,
    /// By how much the time to drain gets shorter in a second.
    fall: f64,
}

/// What is said of a model.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Outlook {
    /// This shard's part, a whole number when there is one shard.
    pub workers: f64,
    /// When what waits is expected to be down to so many seconds as were asked for.
    pub retry_after_s: u32,
}

impl Wanted {
    /// Answers for each model. `per_worker` says how many tasks one worker of it runs at once; `low_seconds` is what an
    /// overloaded model has to come down to.
    pub fn look(
        &mut self,
        now: Instant,
        demand: &[Demand],
        settings: &SchedulerSettings,
        low_seconds: f64,
        per_worker: impl Fn(&str) -> f64,
    ) -> Vec<Outlook> {
        let passed = self.looked.replace(now).map(|before| now.saturating_duration_since(before).as_secs_f64());
        let mut before = std::mem::take(&mut self.models);
        let mut outlooks = Vec::with_capacity(demand.len());
        for demand in demand {
            let (name, mut trend) =
                before.remove_entry(&*demand.model).unwrap_or_else(|| (demand.model.to_string(), Trend::default()));
            trend.take(demand, passed);
            outlooks.push(Outlook {
                workers: trend.workers(now, demand, settings, per_worker(&name)),
                retry_after_s: trend.retry_after_s(low_seconds),
            });
            self.models.insert(name, trend);
        }
        outlooks
    }
}

impl Trend {
    fn take(&mut self, demand: &Demand, passed: Option<f64>) {
        let drain_seconds = demand.queued_seconds / demand.slots.max(1) as f64;
        let offered_before = self.offered_seconds.replace(demand.offered_seconds);
        if let Some(passed) = passed.filter(|passed| *passed > 0.0) {
            // It begins at nothing when the model was forgotten in between.
            let came = demand.offered_seconds
                - offered_before.filter(|before| *before <= demand.offered_seconds).unwrap_or(0.0);
            let kept = (-passed / MEMORY_SECONDS).exp();
            (self.work, self.time) = (self.work * kept + came, self.time * kept + passed);
            let fall = (self.drain_seconds - drain_seconds) / passed;
            self.fall += (fall - self.fall) * (1.0 - (-passed / 5.0).exp());
        }
        self.drain_seconds = drain_seconds;
    }

    fn workers(&mut self, now: Instant, demand: &Demand, settings: &SchedulerSettings, per_worker: f64) -> f64 {
        let of = f64::from(settings.shards.max(1));
        let offered = if self.time > 0.0 { self.work / self.time } else { 0.0 };
        let drained = offered + demand.queued_seconds / settings.target_wait_s;
        let slots = (offered / BUSY).max(drained).max(demand.deadline_slots);
        let parts = (slots / per_worker.max(1.0)).clamp(1.0 / of, f64::from(settings.workers_most) / of);
        let workers = if settings.shards <= 1 { parts.ceil() } else { parts };
        while self.highs.back().is_some_and(|&(_, high)| high <= workers) {
            self.highs.pop_back();
        }
        self.highs.push_back((now, workers));
        while self.highs.front().is_some_and(|&(at, _)| now.saturating_duration_since(at) > PATIENCE) {
            self.highs.pop_front();
        }
        self.highs.front().map_or(workers, |&(_, high)| high)
    }

    /// Nothing drains faster than all slots do when nothing comes: a second in a second.
    fn retry_after_s(&self, low_seconds: f64) -> u32 {
        let left = (self.drain_seconds - low_seconds).max(0.0);
        (left / self.fall.clamp(0.1, 1.0)).ceil().clamp(RETRY_AFTER_S.0, RETRY_AFTER_S.1) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use taskyard_shared::process::settings::{SchedulerSettings, Settings};
    use tokio::time::Instant;

    use super::{Outlook, Wanted};
    use crate::planner::Demand;

    /// A model that is looked at once a second.
    struct Watch {
        wanted: Wanted,
        settings: SchedulerSettings,
        now: Instant,
        offered_seconds: f64,
    }

    impl Watch {
        fn new(shards: u32) -> Self {
            let settings =
                SchedulerSettings { shards, target_wait_s: 10.0, workers_most: 50, ..Settings::default().scheduler };
            Self { wanted: Wanted::default(), settings, now: Instant::now(), offered_seconds: 0.0 }
        }

        /// So much work came in this second, so much waits, and the deadlines take so many slots.
        fn second(&mut self, came: f64, queued_seconds: f64, deadline_slots: f64) -> Outlook {
            self.now += Duration::from_secs(1);
            self.offered_seconds += came;
            let offered_seconds = self.offered_seconds;
            let demand = Demand { model: "m".into(), offered_seconds, queued_seconds, deadline_slots, slots: 8 };
            self.wanted.look(self.now, &[demand], &self.settings, 8.0, |_| 4.0)[0]
        }
    }

    #[test]
    fn as_many_are_wanted_as_the_work_that_comes_takes() {
        let mut watch = Watch::new(1);
        assert_eq!(watch.second(0.0, 0.0, 0.0).workers, 1.0);
        let settled = (0..60).map(|_| watch.second(13.0, 1.0, 0.0).workers).last();
        assert_eq!(settled, Some(4.0), "13 / 0.85 slots, 4 to a worker");
    }

    #[test]
    fn a_backlog_wants_more_at_once_and_fewer_are_wanted_after_a_minute() {
        let mut watch = Watch::new(1);
        watch.second(0.0, 0.0, 0.0);
        assert_eq!(watch.second(0.0, 400.0, 0.0).workers, 10.0, "400 s in 10 s with 4 slots each");
        let after: Vec<f64> = (0..70).map(|_| watch.second(0.0, 0.0, 0.0).workers).collect();
        assert!(after[..60].iter().all(|&workers| workers == 10.0), "{after:?}");
        assert_eq!(after.last(), Some(&1.0));
        assert_eq!(watch.second(0.0, 1e9, 0.0).workers, 50.0, "no more than the most");
    }

    #[test]
    fn noise_makes_it_change_rarely() {
        let mut watch = Watch::new(1);
        let mut rng = fastrand::Rng::with_seed(7);
        let seconds: Vec<f64> =
            (0..600).map(|_| watch.second(rng.f64() * 20.0, rng.f64() * 30.0, 0.0).workers).collect();
        let changes = seconds[60..].windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(changes <= 12, "{changes} changes in 9 minutes: {seconds:?}");
        assert!(seconds[60..].iter().all(|&workers| (3.0..=6.0).contains(&workers)), "{seconds:?}");
    }

    #[test]
    fn deadlines_want_their_slots_and_shards_have_parts() {
        let mut watch = Watch::new(1);
        assert_eq!(watch.second(0.0, 1.0, 17.0).workers, 5.0);
        let mut watch = Watch::new(4);
        assert_eq!(watch.second(0.0, 1.0, 6.0).workers, 1.5);
        assert_eq!(Watch::new(4).second(0.0, 0.0, 0.0).workers, 0.25, "one of all of them together");
    }

    #[test]
    fn publishers_stay_away_until_the_low_mark_is_expected() {
        let mut watch = Watch::new(1);
        assert_eq!(watch.second(0.0, 160.0, 0.0).retry_after_s, 60, "20 s that do not get fewer");
        let mut queued_seconds = 160.0;
        for _ in 0..6 {
            queued_seconds -= 8.0;
            watch.second(0.0, queued_seconds, 0.0);
        }
        let Outlook { retry_after_s, .. } = watch.second(0.0, queued_seconds - 8.0, 0.0);
        assert!((5..=8).contains(&retry_after_s), "13 s, of which 8 may stay: {retry_after_s}");
        assert_eq!(watch.second(0.0, 0.0, 0.0).retry_after_s, 1);
    }
}
