//! Instants as they cross the wire: RFC 3339, UTC, to the microsecond.

use std::cell::Cell;
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

thread_local! {
    static SIMULATED: Cell<Option<fn() -> Timestamp>> = const { Cell::new(None) };
}

/// Microseconds since the Unix epoch. The clock is read elsewhere; this is only the value.
///
/// Never zero within, so that an optional one takes no more room: a waiting task has four. What `i64` orders, this orders likewise.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(NonZeroU64);

/// Turns the order of `i64` into that of `u64`, and back. The least of all `i64` becomes zero, and counts as the one after it.
const SIGN: u64 = 1 << 63;

impl Timestamp {
    pub fn from_micros(micros: i64) -> Self {
        Self(NonZeroU64::new(micros.cast_unsigned() ^ SIGN).unwrap_or(NonZeroU64::MIN))
    }

    pub fn as_micros(self) -> i64 {
        (self.0.get() ^ SIGN).cast_signed()
    }

    /// The wall clock, for the shells around the planner.
    pub fn now() -> Self {
        match SIMULATED.get() {
            None => Self::from_micros(jiff::Timestamp::now().as_microsecond()),
            Some(clock) => clock(),
        }
    }

    /// Has [`now`](Self::now) read another clock on this thread from here on: one that a simulation moves. `None`: the wall clock again.
    pub fn simulate(clock: Option<fn() -> Self>) {
        SIMULATED.set(clock);
    }

    /// As it is written on the wire, if that has a short way.
    pub(crate) fn canonical(self) -> Option<canonical::Text> {
        canonical::written(self.as_micros())
    }

    /// Of the form that is written on the wire, if that is what it is.
    pub(crate) fn of_canonical(text: &[u8]) -> Option<Self> {
        canonical::read(text).map(Self::from_micros)
    }

    pub fn plus_ms(self, ms: u64) -> Self {
        Self::from_micros(self.as_micros().saturating_add_unsigned(ms.saturating_mul(1000)))
    }

    /// Milliseconds from `earlier` to this; less than 0 when it is later.
    pub fn ms_since(self, earlier: Self) -> f64 {
        self.as_micros().saturating_sub(earlier.as_micros()) as f64 / 1000.0
    }
}

/// A length of time as messages have it, in milliseconds.
///
/// Whole nanoseconds over a million: a decimal of few digits, so that it is short on the wire, and what is read back is
/// the same number to the last bit. That does not hold for any float, since JSON numbers of more than 15 digits are
/// read without the care that it would take; it holds for all that are made here or by [`Timestamp::ms_since`].
pub fn milliseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e6
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Timestamp").field(&self.as_micros()).finish()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = canonical::written(self.as_micros()) {
            return f.write_str(text.as_str());
        }
        // A year that RFC 3339 cannot write is an error, not a text that nobody can read back.
        let instant = jiff::Timestamp::from_microsecond(self.as_micros()).map_err(|_| fmt::Error)?;
        write!(f, "{instant:.6}")
    }
}

impl FromStr for Timestamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(micros) = canonical::read(text.as_bytes()) {
            return Ok(Self::from_micros(micros));
        }
        text.parse::<jiff::Timestamp>()
            .map(|instant| Self::from_micros(instant.as_microsecond()))
            .map_err(|_| "must be an RFC 3339 instant such as 2026-01-31T12:00:00Z".to_owned())
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(text) = canonical::written(self.as_micros()) {
            return serializer.serialize_str(text.as_str());
        }
        let instant = jiff::Timestamp::from_microsecond(self.as_micros()).map_err(ser::Error::custom)?;
        serializer.collect_str(&format_args!("{instant:.6}"))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl de::Visitor<'_> for Text {
            type Value = Timestamp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

/// The one form that we write ourselves, `2026-01-31T12:00:00.000000Z`, without a calendar's generality: there are
/// several instants in every message, and they would be half its cost.
mod canonical {
    /// The first and the last instant of this form here, in microseconds: from 1970 as far as the calendar's own
    /// implementation goes.
    const RANGE: std::ops::Range<i64> = 0..253_402_207_200_000_000;
    const DAY_SECONDS: i64 = 24 * 3600;

    pub(crate) struct Text([u8; 27]);

    impl Text {
        pub(crate) fn as_str(&self) -> &str {
            // Only digits and the signs between them.
            std::str::from_utf8(&self.0).unwrap_or_default()
        }

        pub(crate) fn as_bytes(&self) -> &[u8] {
            &self.0
        }

        /// The last two digits of a number.
        fn set(&mut self, at: usize, number: u32) {
            self.0[at..at + 2].copy_from_slice(&PAIRS[(number % 100) as usize]);
        }
    }

    /// From `00` to `99`.
    const PAIRS: [[u8; 2]; 100] = {
        let mut pairs = [[0; 2]; 100];
        let mut number = 0;
        while number < 100 {
            pairs[number] = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
            number += 1;
        }
        pairs
    };

    /// `None` for an instant out of range.
    pub(super) fn written(micros: i64) -> Option<Text> {
        if !RANGE.contains(&micros) {
            return None;
        }
        let (seconds, fraction) = (micros / 1_000_000, (micros % 1_000_000) as u32);
        let (year, month, day) = date((seconds / DAY_SECONDS) as u32);
        let second = (seconds % DAY_SECONDS) as u32;
        let mut text = Text(*b"0000-00-00T00:00:00.000000Z");
        text.set(0, year / 100);
        text.set(2, year);
        text.set(5, month);
        text.set(8, day);
        text.set(11, second / 3600);
        text.set(14, second / 60 % 60);
        text.set(17, second % 60);
        text.set(20, fraction / 10_000);
        text.set(22, fraction / 100);
        text.set(24, fraction);
        Some(text)
    }

    /// `None` for any other form, and for what is no instant.
    pub(super) fn read(text: &[u8]) -> Option<i64> {
        let fraction = match text.get(19..)? {
            [b'Z'] => 0,
            [b'.', digits @ .., b'Z'] if digits.len() == 6 => number(digits)?,
            _ => return None,
        };
        let [_, _, _, _, b'-', _, _, b'-', _, _, b'T', _, _, b':', _, _, b':', _, _, _, ..] = text else { return None };
        let (year, month, day) = (number(&text[..4])?, number(&text[5..7])?, number(&text[8..10])?);
        let (hour, minute, second) = (number(&text[11..13])?, number(&text[14..16])?, number(&text[17..19])?);
        // A leap second, and what lies before 1970, is left to the calendar.
        if hour > 23 || minute > 59 || second > 59 || year < 1970 || day == 0 || day > days_of(year, month)? {
            return None;
        }
        let seconds = i64::from(days(year, month, day)) * DAY_SECONDS + i64::from(hour * 3600 + minute * 60 + second);
        let micros = seconds * 1_000_000 + i64::from(fraction);
        RANGE.contains(&micros).then_some(micros)
    }

    fn number(digits: &[u8]) -> Option<u32> {
        let mut number = 0;
        for byte in digits {
            if !byte.is_ascii_digit() {
                return None;
            }
            number = number * 10 + u32::from(byte - b'0');
        }
        Some(number)
    }

    fn days_of(year: u32, month: u32) -> Option<u32> {
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        match month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => Some(31),
            4 | 6 | 9 | 11 => Some(30),
            2 => Some(28 + u32::from(leap)),
            _ => None,
        }
    }

    // Years begin in March here, so that the day that may be missing is the last: Howard Hinnant, "chrono-compatible
    // low-level date algorithms". An era is 400 years, which are always as many days.
    const ERA_DAYS: u32 = 146_097;
    /// From March 1 of year 0 to 1970.
    const BEFORE_1970_DAYS: u32 = 719_468;

    /// Year, month and day, from the days since 1970.
    fn date(days: u32) -> (u32, u32, u32) {
        let days = days + BEFORE_1970_DAYS;
        let (era, day_of_era) = (days / ERA_DAYS, days % ERA_DAYS);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        (era * 400 + year_of_era + next_year, month, day)
    }

    /// Days since 1970, of a date that is not before.
    fn days(year: u32, month: u32, day: u32) -> u32 {
        let year = year - u32::from(month <= 2);
        let (era, year_of_era) = (year / 400, year % 400);
        let day_of_year = (153 * if month > 2 { month - 3 } else { month + 9 } + 2) / 5 + day - 1;
        era * ERA_DAYS + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - BEFORE_1970_DAYS
    }
}

impl schemars::JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "date-time"})
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::time::Duration;

    use super::{Timestamp, canonical, milliseconds};

    #[test]
    fn an_instant_beyond_rfc_3339_is_an_error_and_not_a_text() {
        assert!(serde_json::to_string(&Timestamp::from_micros(i64::MAX)).is_err());
        assert_eq!(serde_json::to_string(&Timestamp::from_micros(0)).unwrap(), r#""1970-01-01T00:00:00.000000Z""#);
    }

    #[test]
    fn an_optional_instant_takes_no_more_room_and_the_order_is_that_of_numbers() {
        assert_eq!(size_of::<Option<Timestamp>>(), size_of::<i64>());
        let instants = [i64::MIN + 1, -1, 0, 1, 1_790_000_000_000_000, i64::MAX].map(Timestamp::from_micros);
        assert!(instants.is_sorted_by(|one, next| one < next));
        assert_eq!(instants.map(Timestamp::as_micros), [i64::MIN + 1, -1, 0, 1, 1_790_000_000_000_000, i64::MAX]);
        assert_eq!(Timestamp::from_micros(i64::MIN), instants[0]);
    }

    #[test]
    fn every_day_is_written_and_read_as_the_calendar_does() {
        for day in 0..2_932_896 {
            let micros = day * 86_400_000_000 + day;
            let calendar = jiff::Timestamp::from_microsecond(micros).unwrap();
            let text = canonical::written(micros).unwrap();
            assert_eq!(canonical::read(text.as_str().as_bytes()), Some(micros));
            if day % 29 == 0 {
                assert_eq!(text.as_str(), format!("{calendar:.6}"));
            }
        }
    }

    #[test]
    fn the_ends_of_the_range_join_the_calendar() {
        for micros in [-1, 0, 253_402_207_199_999_999, 253_402_207_200_000_000] {
            let calendar = jiff::Timestamp::from_microsecond(micros).map(|instant| format!("{instant:.6}"));
            let written = serde_json::to_string(&Timestamp::from_micros(micros));
            assert_eq!(written.ok(), calendar.ok().map(|text| format!("{text:?}")), "{micros}");
        }
    }

    proptest! {
        #[test]
        fn an_instant_is_written_and_read_as_the_calendar_does(
            micros in -62_135_596_800_000_000..253_402_207_200_000_000_i64,
        ) {
            let calendar = format!("{:.6}", jiff::Timestamp::from_microsecond(micros).unwrap());
            prop_assert_eq!(&Timestamp::from_micros(micros).to_string(), &calendar);
            prop_assert_eq!(calendar.parse::<Timestamp>().unwrap().as_micros(), micros);
        }

        #[test]
        fn lengths_of_time_are_read_as_they_were_written(
            nanos in 0..1_000_000_000_000_000_u64,
            micros in 0..1_000_000_000_000_i64,
        ) {
            let since = Timestamp::from_micros(micros).ms_since(Timestamp::from_micros(0));
            for ms in [milliseconds(Duration::from_nanos(nanos)), since] {
                let text = serde_json::to_string(&ms).unwrap();
                prop_assert!(text.len() <= 17, "{}", text);
                prop_assert_eq!(serde_json::from_str::<f64>(&text).unwrap().to_bits(), ms.to_bits());
            }
        }

        #[test]
        fn what_looks_like_an_instant_is_read_as_the_calendar_does(
            date in "(19[67]|20[0-3]|999|000)[0-9]-[01][0-9]-[0-3][0-9]",
            time in "[Tt ][0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{6}|\\.[0-9]{1,9})?(Z|z|\\+01:00)",
        ) {
            let text = date + &time;
            let calendar = text.parse::<jiff::Timestamp>().ok().map(|instant| instant.as_microsecond());
            prop_assert_eq!(text.parse::<Timestamp>().ok().map(Timestamp::as_micros), calendar);
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(
            text in "\\PC{0,30}",
            bytes in proptest::collection::vec(any::<u8>(), 20..28),
        ) {
            let _ = (text.parse::<Timestamp>(), canonical::read(&bytes));
        }
    }
}
