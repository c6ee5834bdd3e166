//! Answers what is asked about schedules. What changes one is written down before it is told.

use serde_json::value::RawValue;
use taskyard_shared::Timestamp;
use taskyard_shared::control::{ScheduleAsk, ScheduleTold, Told};
use taskyard_shared::schedule::{Schedule, ScheduleOrder, SchedulePage, ShownSchedule, decode_schedule, limits};
use tracing::{info, warn};

use super::entry::{Entry, Key, Timetable};
use super::keeper::{HELD_MOST, Keeper};

/// Ticks to come that are shown of one that is asked for, and of each in a list.
const NEXT: usize = 5;
const NEXT_IN_LIST: usize = 1;
/// Schedules of one page.
const PAGE: usize = 500;

/// What was sent, as it is kept.
struct Sent {
    schedule: Schedule,
    raw: Box<RawValue>,
}

impl Keeper {
    /// `None` when closing: nobody knows then what came of it.
    pub(super) async fn answer(&self, table: &mut Timetable, ask: ScheduleAsk) -> Option<Told> {
        let now = Timestamp::now();
        let told = match ask {
            ScheduleAsk::Put { tenant, name, schedule } => self.put(table, (tenant, name), &schedule, now).await?,
            ScheduleAsk::Get { tenant, name } => {
                stands(table, &(tenant, name), now, false).unwrap_or(ScheduleTold::NotFound {})
            }
            ScheduleAsk::List { tenant, after, limit } => list(table, tenant.as_deref(), after, limit, now),
            ScheduleAsk::Pause { tenant, name, paused } => self.pause(table, (tenant, name), paused, now).await?,
            ScheduleAsk::Remove { tenant, name } => self.remove(table, (tenant, name), now).await?,
        };
        Some(Told::Schedule { told })
    }

    async fn put(&self, table: &mut Timetable, key: Key, text: &str, now: Timestamp) -> Option<ScheduleTold> {
        let sent = match read(text) {
            Ok(sent) => sent,
            Err(refused) => return Some(refused),
        };
        let paused = sent.schedule.paused;
        let is_new = match table.get(&key).filter(|entry| !entry.order.removed) {
            Some(Entry { order, .. }) => {
                let is_same = order.schedule.get() == sent.raw.get();
                if is_same && paused.is_none_or(|paused| paused == order.paused) {
                    return stands(table, &key, now, false);
                }
                false
            }
            None => {
                if let Some(full) = self.full(table, &key.0) {
                    return Some(full);
                }
                true
            }
        };
        if sent.schedule.ticks.after(now).is_none() {
            let field = if sent.schedule.until.is_some() { "until" } else { "cron" };
            let message = "there is no tick to come".to_owned();
            return Some(ScheduleTold::Invalid { field: field.to_owned(), message });
        }
        let mut order = ScheduleOrder::new(key.0.clone(), key.1.clone(), paused.unwrap_or(false), sent.raw, now);
        if let Some(Entry { order: before, .. }) = table.get(&key) {
            // No tick is fired twice, also by clocks that were put back.
            (order.revision, order.seen) = (before.revision, before.seen.max(now));
            if !is_new {
                (order.created, order.last) = (before.created, before.last);
                order.paused = paused.unwrap_or(before.paused);
            }
        }
        let receipt = table.get_mut(&key).and_then(|entry| entry.receipt.take());
        info!(schedule = %key.1, is_new, "a schedule is kept");
        table.put(key.clone(), Entry::new(order, receipt));
        if !self.write(table, std::slice::from_ref(&key)).await {
            return None;
        }
        stands(table, &key, now, is_new)
    }

    /// Why there can be no further one of this tenant.
    fn full(&self, table: &Timetable, tenant: &str) -> Option<ScheduleTold> {
        let of_tenant = table.live().filter(|((of, _), _)| of == tenant).count();
        if of_tenant >= self.most {
            return Some(ScheduleTold::TooMany { most: self.most as u64, is_of_tenant: true });
        }
        let is_full = table.live().count() >= limits::SCHEDULES || table.len() >= HELD_MOST;
        is_full.then_some(ScheduleTold::TooMany { most: limits::SCHEDULES as u64, is_of_tenant: false })
    }

    async fn pause(&self, table: &mut Timetable, key: Key, paused: bool, now: Timestamp) -> Option<ScheduleTold> {
        let Some(entry) = table.get_mut(&key).filter(|entry| !entry.order.removed) else {
            return Some(ScheduleTold::NotFound {});
        };
        if entry.order.paused != paused {
            info!(schedule = %key.1, paused, "a schedule is paused or resumed");
            let order = &mut entry.order;
            (order.paused, order.changed) = (paused, now);
            // What passes while it is paused is not missed.
            order.seen = order.seen.max(now);
            if !self.write(table, std::slice::from_ref(&key)).await {
                return None;
            }
        }
        stands(table, &key, now, false)
    }

    async fn remove(&self, table: &mut Timetable, key: Key, now: Timestamp) -> Option<ScheduleTold> {
        let Some(told) = stands(table, &key, now, false) else { return Some(ScheduleTold::NotFound {}) };
        if let Some(entry) = table.get_mut(&key) {
            info!(schedule = %key.1, "a schedule is removed");
            (entry.order.removed, entry.order.changed) = (true, now);
        }
        self.write(table, std::slice::from_ref(&key)).await.then_some(told)
    }
}

fn read(text: &str) -> Result<Sent, ScheduleTold> {
    let refused = |field: &str, message: String| ScheduleTold::Invalid { field: field.to_owned(), message };
    let schedule =
        decode_schedule(text.as_bytes()).map_err(|invalid| refused(&invalid.field, invalid.message.clone()))?;
    let raw = RawValue::from_string(text.to_owned()).map_err(|error| refused("body", error.to_string()))?;
    Ok(Sent { schedule, raw })
}

fn shown(entry: &Entry, now: Timestamp, next: usize) -> ShownSchedule {
    ShownSchedule::new(&entry.order, entry.schedule.as_ref().map_err(String::as_str), now, next)
}

fn stands(table: &Timetable, key: &Key, now: Timestamp, is_new: bool) -> Option<ScheduleTold> {
    let entry = table.get(key).filter(|entry| !entry.order.removed)?;
    let shown = shown(entry, now, NEXT).with_work(&entry.order);
    let shown = serde_json::to_string(&shown);
    let shown = shown.map_err(|failure| warn!(%failure, "a schedule cannot be shown")).unwrap_or_default();
    Some(ScheduleTold::Stands { shown, is_new })
}

fn list(table: &Timetable, tenant: Option<&str>, after: Option<Key>, limit: u32, now: Timestamp) -> ScheduleTold {
    let limit = usize::try_from(limit).unwrap_or(PAGE).clamp(1, PAGE);
    let mut found = table.live_after(after).filter(|((of, _), _)| tenant.is_none_or(|tenant| tenant == of));
    let page: Vec<(&Key, &Entry)> = found.by_ref().take(limit).collect();
    // No name has a slash.
    let cursor = found.next().and(page.last()).map(|((tenant, name), _)| format!("{tenant}/{name}"));
    let schedules = page.into_iter().map(|(_, entry)| shown(entry, now, NEXT_IN_LIST)).collect();
    let page = serde_json::to_string(&SchedulePage { schedules, cursor });
    let page = page.map_err(|failure| warn!(%failure, "schedules cannot be shown")).unwrap_or_default();
    ScheduleTold::Page { page }
}
