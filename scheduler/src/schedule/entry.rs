//! The schedules that are kept, and which of them is due next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use taskyard_shared::Timestamp;
use taskyard_shared::broker::Receipt;
use taskyard_shared::schedule::{Schedule, ScheduleOrder};
use tokio::time::Instant;
use tracing::warn;

/// Tenant and name.
pub(super) type Key = (String, String);

/// The wall clock is looked at so often, whatever is due: it may be put forward.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Entry {
    pub order: ScheduleOrder,
    /// What it says, or why that cannot be read.
    pub schedule: Result<Schedule, String>,
    /// Of the message of this revision; none while that is on its way here.
    pub receipt: Option<Receipt>,
    /// Since when the message is held.
    pub since: Instant,
    /// When it is to be looked at.
    due: Option<Timestamp>,
}

impl Entry {
    pub fn new(order: ScheduleOrder, receipt: Option<Receipt>) -> Self {
        let schedule = order.decoded().map_err(|invalid| invalid.to_string());
        if let Err(problem) = &schedule {
            warn!(schedule = %order.name, problem, "a schedule cannot be read: it is kept, and not fired");
        }
        Self { order, schedule, receipt, since: Instant::now(), due: None }
    }

    /// Its next tick.
    fn next(&self) -> Option<Timestamp> {
        let is_live = !self.order.paused && !self.order.removed;
        self.schedule.as_ref().ok().filter(|_| is_live)?.ticks.after(self.order.seen)
    }
}

#[derive(Default)]
pub(super) struct Timetable {
    entries: BTreeMap<Key, Entry>,
    due: BTreeSet<(Timestamp, Key)>,
}

impl Timetable {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Those that are no more are not among them.
    pub fn live(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.entries.iter().filter(|(_, entry)| !entry.order.removed)
    }

    /// From behind a name on.
    pub fn live_after(&self, after: Option<Key>) -> impl Iterator<Item = (&Key, &Entry)> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.entries.range((from, std::ops::Bound::Unbounded)).filter(|(_, entry)| !entry.order.removed)
    }

    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub fn get_mut(&mut self, key: &Key) -> Option<&mut Entry> {
        self.entries.get_mut(key)
    }

    /// Puts it in the place of what is there.
    pub fn put(&mut self, key: Key, entry: Entry) {
        self.forget(&key);
        self.entries.insert(key.clone(), entry);
        self.reckon(&key);
    }

    pub fn forget(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key)
            && let Some(due) = entry.due
        {
            self.due.remove(&(due, key.clone()));
        }
    }

    /// Works out anew when one is due, after it was changed.
    pub fn reckon(&mut self, key: &Key) {
        let next = self.entries.get(key).and_then(Entry::next);
        self.look_at(key, next);
    }

    /// It is to be looked at then.
    pub fn look_at(&mut self, key: &Key, at: Option<Timestamp>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if let Some(before) = entry.due {
            self.due.remove(&(before, key.clone()));
        }
        entry.due = at;
        self.due.extend(at.map(|at| (at, key.clone())));
    }

    /// Those that are due, the longest due first.
    pub fn due(&self, now: Timestamp) -> impl Iterator<Item = &Key> {
        self.due.iter().take_while(move |(at, _)| *at <= now).map(|(_, key)| key)
    }

    /// How long nothing is due.
    pub fn quiet(&self, now: Timestamp) -> Duration {
        match self.due.first() {
            Some((at, _)) if *at <= now => Duration::ZERO,
            // Never too early.
            Some((at, _)) => Duration::from_micros(at.as_micros().abs_diff(now.as_micros())).min(LOOK_EVERY),
            None => LOOK_EVERY,
        }
    }

    /// Those whose messages have been held for so long.
    pub fn held_for(&self, patience: Duration) -> Vec<Key> {
        let is_old = |entry: &Entry| entry.receipt.is_some() && entry.since.elapsed() >= patience;
        self.entries.iter().filter(|(_, entry)| is_old(entry)).map(|(key, _)| key.clone()).collect()
    }
}
