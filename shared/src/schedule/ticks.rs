//! When a schedule has its ticks: a cron expression on the clocks of a time zone. No clock is read here.
//!
//! Clocks that are put forward or back, as for summer time:
//!
//! - A tick whose local time is left out comes at the moment when the clocks are put forward. Several of them are one.
//! - A tick whose local time comes twice is one: the first.
//! - A schedule that runs in every hour follows the hours that pass instead: it has no tick in an hour that is left out, and
//!   those of an hour that comes twice it has twice.

use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{SignedDuration, Timestamp as Instant};

use super::cron::{Cron, first, has};
use crate::time::Timestamp;

/// How far a tick is looked for: over every combination of leap years and weekdays.
const DAYS_MOST: usize = 41 * 366;
const MICROS: i64 = 1_000_000;
const SECOND: SignedDuration = SignedDuration::from_secs(1);

/// The ticks of a schedule.
#[derive(Clone, Debug)]
pub struct Ticks {
    cron: Cron,
    zone: TimeZone,
    /// None come after it.
    until: Option<Timestamp>,
}

/// What is due of a schedule.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Due {
    /// Ticks that are to be fired, oldest first.
    pub fire: Vec<Timestamp>,
    /// Ticks that passed and are not fired; of more than [`COUNTED`] it is no longer counted how many.
    pub missed: usize,
}

/// What becomes of the ticks that passed while nobody could fire them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// All of the last so many milliseconds are fired, [`COUNTED`] at most: the last ones.
    All(Option<u64>),
    /// The last one is fired, if it is no older than so many milliseconds.
    Last(Option<u64>),
}

/// Ticks that are caught up with at once, and that are counted.
pub const COUNTED: usize = 1_000;

impl Ticks {
    pub fn new(cron: Cron, zone: TimeZone, until: Option<Timestamp>) -> Self {
        Self { cron, zone, until }
    }

    /// The first tick after an instant, if there is one within forty years.
    pub fn after(&self, instant: Timestamp) -> Option<Timestamp> {
        let second = instant.as_micros().div_euclid(MICROS);
        let from = Instant::from_second(second).ok()?;
        let next = if self.cron.is_hourly() { self.by_the_hour(from) } else { self.by_the_clock(from) }?;
        let next = Timestamp::from_micros(next.as_second().checked_mul(MICROS)?);
        self.until.is_none_or(|until| next <= until).then_some(next)
    }

    /// The next so many.
    pub fn following(&self, instant: Timestamp, count: usize) -> Vec<Timestamp> {
        std::iter::successors(self.after(instant), |last| self.after(*last)).take(count).collect()
    }

    /// Of the ticks after `since` and up to `now`, those that are to be fired.
    pub fn due(&self, since: Timestamp, now: Timestamp, reach: Reach) -> Due {
        if self.after(since).is_none_or(|first| first > now) {
            return Due::default();
        }
        let (within_ms, most) = match reach {
            Reach::All(within_ms) => (within_ms, COUNTED),
            Reach::Last(within_ms) => (within_ms, 1),
        };
        // A tick just so old still counts.
        let oldest = within_ms.map(|ms| {
            let micros = i64::try_from(ms).ok().and_then(|ms| ms.checked_mul(1_000)).unwrap_or(i64::MAX);
            Timestamp::from_micros(now.as_micros().saturating_sub(micros).saturating_sub(1))
        });
        let from = oldest.map_or(since, |oldest| oldest.max(since));
        let fire = self.last(from, now, most);
        let missed = self.up_to(since, now, COUNTED).len().saturating_sub(fire.len());
        Due { fire, missed }
    }

    /// The ticks after `since` and up to `now`, at most so many of the first.
    fn up_to(&self, since: Timestamp, now: Timestamp, most: usize) -> Vec<Timestamp> {
        let ticks = std::iter::successors(self.after(since), |last| self.after(*last));
        ticks.take_while(|tick| *tick <= now).take(most).collect()
    }

    /// At most so many of the last, oldest first.
    fn last(&self, since: Timestamp, now: Timestamp, most: usize) -> Vec<Timestamp> {
        let found = self.up_to(since, now, most + 1);
        if found.len() <= most {
            return found;
        }
        // The latest second from which on there are still more than that, halved towards.
        let (mut more, mut fewer) = (since.as_micros().div_euclid(MICROS), now.as_micros().div_euclid(MICROS) + 1);
        while fewer - more > 1 {
            let middle = more + (fewer - more) / 2;
            let from = Timestamp::from_micros(middle.saturating_mul(MICROS));
            match self.up_to(from, now, most + 1).len() > most {
                true => more = middle,
                false => fewer = middle,
            }
        }
        self.up_to(Timestamp::from_micros(fewer.saturating_mul(MICROS)), now, most)
    }

    /// Follows the seconds that pass, and looks at what the clocks say.
    fn by_the_hour(&self, after: Instant) -> Option<Instant> {
        let mut at = after.checked_add(SECOND).ok()?;
        let mut days = 0;
        while days < DAYS_MOST {
            let local = self.zone.to_datetime(at);
            if !self.has_day(local.date()) {
                let (next, skipped) = self.next_day(local.date().tomorrow().ok()?)?;
                days += skipped + 1;
                // Where clocks are put back over midnight, a day may have begun before.
                at = self.moment(next.at(0, 0, 0, 0))?.max(at.checked_add(SECOND).ok()?);
                continue;
            }
            let second = i64::from(local.second());
            let later = |seconds| at.checked_add(SignedDuration::from_secs(seconds)).ok();
            match has(self.cron.minutes, local.minute()).then(|| first(self.cron.seconds, local.second())).flatten() {
                Some(found) => return later(i64::from(found) - second),
                None => at = later(60 - second)?,
            }
        }
        None
    }

    /// Follows what the clocks say, and looks when that is.
    fn by_the_clock(&self, after: Instant) -> Option<Instant> {
        let mut from = self.zone.to_datetime(after).checked_add(SECOND).ok()?;
        let mut days = 0;
        while days < DAYS_MOST {
            let (day, skipped) = self.next_day(from.date())?;
            days += skipped;
            if skipped > 0 {
                from = day.at(0, 0, 0, 0);
            }
            match self.next_time(from) {
                Some(local) => {
                    let instant = self.moment(local)?;
                    if instant > after {
                        return Some(instant);
                    }
                    from = local.checked_add(SECOND).ok()?;
                }
                None => {
                    from = day.tomorrow().ok()?.at(0, 0, 0, 0);
                    days += 1;
                }
            }
        }
        None
    }

    /// The first day from this one on that has ticks, and how many were passed over.
    fn next_day(&self, from: Date) -> Option<(Date, usize)> {
        let mut day = from;
        for skipped in 0..DAYS_MOST {
            if self.has_day(day) {
                return Some((day, skipped));
            }
            day = day.tomorrow().ok()?;
        }
        None
    }

    fn has_day(&self, day: Date) -> bool {
        self.cron.has_day(day.month(), day.day(), day.weekday().to_sunday_zero_offset(), day.days_in_month())
    }

    /// The first time of its day from this one on.
    fn next_time(&self, from: DateTime) -> Option<DateTime> {
        let (hour, minute, second) = (from.hour(), from.minute(), from.second());
        let at = |hour, minute, second| Some(from.date().at(hour, minute, second, 0));
        if has(self.cron.hours, hour) {
            if has(self.cron.minutes, minute)
                && let Some(second) = first(self.cron.seconds, second)
            {
                return at(hour, minute, second);
            }
            if let Some(minute) = first(self.cron.minutes, minute + 1) {
                return at(hour, minute, first(self.cron.seconds, 0)?);
            }
        }
        let hour = first(self.cron.hours, hour + 1)?;
        at(hour, first(self.cron.minutes, 0)?, first(self.cron.seconds, 0)?)
    }

    /// When the clocks say so: the first time, or the moment when it is left out.
    fn moment(&self, local: DateTime) -> Option<Instant> {
        let at = |offset: Offset| offset.to_timestamp(local).ok();
        match self.zone.to_ambiguous_timestamp(local).offset() {
            AmbiguousOffset::Unambiguous { offset } => at(offset),
            AmbiguousOffset::Fold { before, .. } => at(before),
            AmbiguousOffset::Gap { before, .. } => {
                let later = at(before)?.checked_add(SECOND).ok()?;
                Some(self.zone.preceding(later).next()?.timestamp())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ticks(cron: &str, zone: &str) -> Ticks {
        Ticks::new(Cron::read(cron).unwrap(), TimeZone::get(zone).unwrap(), None)
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The next ones as the clocks of the zone show them, with the offset.
    fn next(cron: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
        let ticks = ticks(cron, zone);
        let shown = |tick: Timestamp| {
            let zoned = Instant::from_microsecond(tick.as_micros()).unwrap().to_zoned_datetime(ticks.zone.clone());
            zoned.strftime("%m-%d %H:%M:%S %:z").to_string()
        };
        ticks.following(at(from), count).into_iter().map(shown).collect()
    }

    #[test]
    fn ticks_are_after_the_instant_and_at_whole_seconds() {
        let ticks = ticks("30 9 * * 1-5", "UTC");
        let friday = at("2026-01-30T09:30:00Z");
        assert_eq!(ticks.after(at("2026-01-30T09:29:59.999999Z")), Some(friday));
        assert_eq!(ticks.after(friday), Some(at("2026-02-02T09:30:00Z")));
        assert_eq!(ticks.after(at("1969-12-30T23:59:59.5Z")), Some(at("1969-12-31T09:30:00Z")));
        let seconds = next("*/20 59 23 31 12 *", "UTC", "2026-12-31T23:59:10Z", 3);
        assert_eq!(seconds, ["12-31 23:59:20 +00:00", "12-31 23:59:40 +00:00", "12-31 23:59:00 +00:00"]);
    }

    #[test]
    fn months_end_as_they_do() {
        let months = next("0 0 31 * *", "UTC", "2026-01-31T00:00:00Z", 3);
        assert_eq!(months, ["03-31 00:00:00 +00:00", "05-31 00:00:00 +00:00", "07-31 00:00:00 +00:00"]);
        let last = next("0 12 L * *", "UTC", "2028-01-31T12:00:00Z", 3);
        assert_eq!(last, ["02-29 12:00:00 +00:00", "03-31 12:00:00 +00:00", "04-30 12:00:00 +00:00"]);
        let leap = ticks("0 0 29 2 *", "UTC").following(at("2093-01-01T00:00:00Z"), 2);
        assert_eq!(leap, [at("2096-02-29T00:00:00Z"), at("2104-02-29T00:00:00Z")], "2100 has none");
        assert_eq!(ticks("0 0 30 2 *", "UTC").after(at("2026-01-01T00:00:00Z")), None);
        assert_eq!(ticks("* * 30 2 *", "Europe/Berlin").after(at("2026-01-01T00:00:00Z")), None);
    }

    #[test]
    fn a_local_time_that_is_left_out_comes_when_the_clocks_go_forward() {
        // In Berlin 02:00 becomes 03:00.
        let day = next("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z", 3);
        assert_eq!(day, ["03-28 02:30:00 +01:00", "03-29 03:00:00 +02:00", "03-30 02:30:00 +02:00"]);
        let several = next("*/20 1-3 * * *", "Europe/Berlin", "2026-03-29T00:30:00Z", 4);
        let expected =
            ["03-29 01:40:00 +01:00", "03-29 03:00:00 +02:00", "03-29 03:20:00 +02:00", "03-29 03:40:00 +02:00"];
        assert_eq!(several, expected, "those left out are one, and the one that is then is the same");
        // Midnight itself, in Beirut.
        let midnight = next("0 0 * * *", "Asia/Beirut", "2026-03-28T12:00:00Z", 2);
        assert_eq!(midnight, ["03-29 01:00:00 +03:00", "03-30 00:00:00 +03:00"]);
        // A whole day, in Samoa.
        let samoa = next("0 9 * * *", "Pacific/Apia", "2011-12-29T12:00:00Z", 3);
        assert_eq!(samoa, ["12-29 09:00:00 -10:00", "12-31 00:00:00 +14:00", "12-31 09:00:00 +14:00"]);
    }

    #[test]
    fn a_local_time_that_comes_twice_is_one_tick() {
        // In Berlin 03:00 becomes 02:00.
        let day = next("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
        assert_eq!(day, ["10-25 02:30:00 +02:00", "10-26 02:30:00 +01:00"]);
        let between = next("30 2 * * *", "Europe/Berlin", "2026-10-25T01:00:00Z", 1);
        assert_eq!(between, ["10-26 02:30:00 +01:00"], "not again the second time");
    }

    #[test]
    fn what_runs_in_every_hour_follows_the_hours_that_pass() {
        let forward = next("30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 3);
        assert_eq!(forward, ["03-29 01:30:00 +01:00", "03-29 03:30:00 +02:00", "03-29 04:30:00 +02:00"]);
        let back = next("30 * * * *", "Europe/Berlin", "2026-10-24T23:00:00Z", 4);
        let expected =
            ["10-25 01:30:00 +02:00", "10-25 02:30:00 +02:00", "10-25 02:30:00 +01:00", "10-25 03:30:00 +01:00"];
        assert_eq!(back, expected);
        // Half an hour, on Lord Howe Island.
        let half = next("*/15 * * * *", "Australia/Lord_Howe", "2026-04-04T14:30:00Z", 4);
        let expected =
            ["04-05 01:45:00 +11:00", "04-05 01:30:00 +10:30", "04-05 01:45:00 +10:30", "04-05 02:00:00 +10:30"];
        assert_eq!(half, expected);
        // Where midnight is left out.
        let midnight = next("5 * 29 3 *", "Asia/Beirut", "2026-03-28T12:00:00Z", 1);
        assert_eq!(midnight, ["03-29 01:05:00 +03:00"]);
    }

    #[test]
    fn nothing_comes_after_the_end() {
        let ended = Ticks { until: Some(at("2026-01-02T00:00:00Z")), ..ticks("0 0 * * *", "UTC") };
        assert_eq!(ended.following(at("2025-12-31T12:00:00Z"), 9).len(), 2, "the end is among them");
        assert_eq!(ended.after(at("2026-01-02T00:00:00Z")), None);
    }

    #[test]
    fn what_was_missed_is_caught_up_with_as_far_as_it_is_to_be() {
        let ticks = ticks("0 * * * *", "UTC");
        let (since, now) = (at("2026-01-01T00:00:00Z"), at("2026-01-01T05:30:00Z"));
        let hours =
            |hours: &[u32]| hours.iter().map(|hour| at(&format!("2026-01-01T0{hour}:00:00Z"))).collect::<Vec<_>>();
        let due = |reach| {
            let Due { fire, missed } = ticks.due(since, now, reach);
            (fire, missed)
        };
        assert_eq!(due(Reach::All(None)), (hours(&[1, 2, 3, 4, 5]), 0));
        assert_eq!(due(Reach::All(Some(2 * 3_600_000))), (hours(&[4, 5]), 3));
        assert_eq!(due(Reach::All(Some(3_600_000 + 1_800_000))), (hours(&[4, 5]), 3), "one just so old counts");
        assert_eq!(due(Reach::Last(None)), (hours(&[5]), 4));
        assert_eq!(due(Reach::Last(Some(60_000))), (vec![], 5));
        assert_eq!(ticks.due(now, now, Reach::All(None)), Due::default());
        assert_eq!(ticks.due(now, since, Reach::All(None)), Due::default(), "clocks that went back");
    }

    #[test]
    fn of_very_many_that_were_missed_the_last_ones_are_taken() {
        let ticks = ticks("* * * * * *", "UTC");
        let (since, now) = (at("2020-01-01T00:00:00Z"), at("2026-01-01T00:00:00.5Z"));
        let Due { fire, missed } = ticks.due(since, now, Reach::All(None));
        assert_eq!((fire.len(), missed), (COUNTED, 0));
        assert_eq!((fire[0], fire[COUNTED - 1]), (at("2025-12-31T23:43:21Z"), at("2026-01-01T00:00:00Z")));
        let last = ticks.due(since, now, Reach::Last(None));
        assert_eq!((last.fire, last.missed), (vec![at("2026-01-01T00:00:00Z")], COUNTED - 1));
    }

    const ZONES: [&str; 6] =
        ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/Sao_Paulo"];

    fn any_field(least: u32, most: u32) -> impl Strategy<Value = String> {
        prop_oneof![
            Just("*".to_owned()),
            (1..=most.min(20)).prop_map(|step| format!("*/{step}")),
            proptest::collection::btree_set(least..=most, 1..4).prop_map(|set| set
                .iter()
                .map(u32::to_string)
                .collect::<Vec<_>>()
                .join(",")),
        ]
    }

    /// Of 2026; mostly the day before the clocks change in one of the zones.
    fn any_instant() -> impl Strategy<Value = i64> {
        let changes = ["03-28", "10-24", "03-07", "10-31", "04-04", "10-03"];
        let near = (proptest::sample::select(changes.to_vec()), 0..86_400_i64)
            .prop_map(|(day, second)| at(&format!("2026-{day}T00:00:00Z")).as_micros() / MICROS + second);
        prop_oneof![3 => near, 1 => 1_767_225_600_i64..1_798_761_600]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Minute by minute over two days, mostly around where the clocks change.
        #[test]
        fn a_walk_over_every_minute_finds_the_same(
            (minute, hour, day, month, weekday) in
                (any_field(0, 59), any_field(0, 23), any_field(1, 31), any_field(1, 12), any_field(0, 6)),
            zone in proptest::sample::select(&ZONES),
            from in any_instant(),
        ) {
            let text = format!("{minute} {hour} {day} {month} {weekday}");
            let ticks = ticks(&text, zone);
            let from = from.div_euclid(60) * 60;
            let to = from + 2 * 86_400;
            let found: Vec<i64> = std::iter::successors(ticks.after(Timestamp::from_micros(from * MICROS)), |last| ticks.after(*last))
                .map(|tick| tick.as_micros() / MICROS)
                .take_while(|tick| *tick <= to)
                .collect();
            prop_assert!(found.is_sorted_by(|a, b| a < b), "{text} in {zone}: {found:?}");
            let mut walked = Vec::new();
            for second in (from + 60..=to).step_by(60) {
                let instant = Instant::from_second(second).unwrap();
                let local = ticks.zone.to_datetime(instant);
                let is_time = |time: DateTime| {
                    has(ticks.cron.hours, time.hour()) && has(ticks.cron.minutes, time.minute()) && ticks.has_day(time.date())
                };
                let hourly = ticks.cron.is_hourly();
                let ambiguous = ticks.zone.to_ambiguous_timestamp(local).offset();
                let is_second_time = matches!(ambiguous, AmbiguousOffset::Fold { before, .. } if before.to_timestamp(local).unwrap() != instant);
                let mut is_tick = is_time(local) && (hourly || !is_second_time);
                // What is left out between the minute before and this one.
                let before = ticks.zone.to_datetime(Instant::from_second(second - 60).unwrap());
                let mut left_out = before.checked_add(SignedDuration::from_secs(60)).unwrap();
                while !hourly && left_out < local {
                    is_tick |= is_time(left_out);
                    left_out = left_out.checked_add(SignedDuration::from_secs(60)).unwrap();
                }
                if is_tick {
                    walked.push(second);
                }
            }
            prop_assert_eq!(found, walked, "{} in {}", text, zone);
        }

        #[test]
        fn catching_up_fires_each_tick_once_and_in_order(
            cron in proptest::sample::select(&["* * * * *", "*/7 3-5 * * *", "0 0 * * *", "15 2 29 2 *"]),
            steps in proptest::collection::vec(1_i64..2_000_000, 1..8),
        ) {
            let ticks = ticks(cron, "Europe/Berlin");
            let start = 1_767_225_600_i64;
            let (mut since, mut fired, mut missed) = (start, Vec::new(), 0);
            for step in steps {
                let now = since + step;
                let due = ticks.due(Timestamp::from_micros(since * MICROS), Timestamp::from_micros(now * MICROS), Reach::All(None));
                fired.extend(due.fire);
                missed += due.missed;
                since = now;
            }
            prop_assert!(fired.is_sorted_by(|a, b| a < b));
            prop_assert_eq!(missed, 0);
            let all = ticks.up_to(Timestamp::from_micros(start * MICROS), Timestamp::from_micros(since * MICROS), usize::MAX);
            prop_assert!(fired.iter().all(|tick| all.contains(tick)));
            if all.len() <= COUNTED {
                prop_assert_eq!(fired, all);
            }
        }
    }
}
