//! Cron expressions: five fields as `crontab(5)` has them, or six with seconds before them.

/// Which values a field takes, as bits.
type Bits = u64;

/// What a cron expression says, without a time zone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cron {
    pub(super) seconds: Bits,
    pub(super) minutes: Bits,
    pub(super) hours: Bits,
    days: Bits,
    /// `L`: the last day of the month, whichever that is.
    last_day: bool,
    months: Bits,
    /// From Sunday, which is 0.
    weekdays: Bits,
    /// Both kinds of days are restricted: then either will do. Otherwise both must hold.
    either_day: bool,
}

/// A field of an expression.
struct Field {
    name: &'static str,
    least: u32,
    most: u32,
    /// Names of the values, from `least` on.
    names: &'static [&'static str],
}

const SECOND: Field = Field { name: "second", least: 0, most: 59, names: &[] };
const MINUTE: Field = Field { name: "minute", least: 0, most: 59, names: &[] };
const HOUR: Field = Field { name: "hour", least: 0, most: 23, names: &[] };
const DAY: Field = Field { name: "day of month", least: 1, most: 31, names: &[] };
const MONTH: Field = Field {
    name: "month",
    least: 1,
    most: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
/// 7 is Sunday too.
const WEEKDAY: Field =
    Field { name: "day of week", least: 0, most: 7, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

const ALL_HOURS: Bits = (1 << 24) - 1;
/// Of an expression.
const CHARACTERS: usize = 256;

impl Cron {
    /// Reads an expression, or one of `@yearly`, `@annually`, `@monthly`, `@weekly`, `@daily`, `@midnight` and `@hourly`.
    ///
    /// # Errors
    /// What is wrong, with the field.
    pub fn read(text: &str) -> Result<Self, String> {
        if text.len() > CHARACTERS {
            return Err(format!("is over {CHARACTERS} bytes"));
        }
        let text = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other if other.starts_with('@') => {
                return Err("knows @yearly, @monthly, @weekly, @daily and @hourly alone of these words".to_owned());
            }
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let (seconds, [minute, hour, day, month, weekday]) = match fields[..] {
            [second, minute, hour, day, month, weekday] => (SECOND.read(second)?, [minute, hour, day, month, weekday]),
            [minute, hour, day, month, weekday] => (1, [minute, hour, day, month, weekday]),
            _ => return Err(format!("has {} fields: 5 are wanted, or 6 with seconds first", fields.len())),
        };
        let (days, last_day) = days(day)?;
        let weekdays = WEEKDAY.read(weekday)?;
        Ok(Self {
            seconds,
            minutes: MINUTE.read(minute)?,
            hours: HOUR.read(hour)?,
            days,
            last_day,
            months: MONTH.read(month)?,
            weekdays: (weekdays | weekdays >> 7) & 0x7f,
            either_day: !day.starts_with('*') && !weekday.starts_with('*'),
        })
    }

    /// It runs in every hour of a day that it runs on.
    pub(super) fn is_hourly(&self) -> bool {
        self.hours == ALL_HOURS
    }

    /// Whether it runs on a day. `month` and `day` from 1, `weekday` from Sunday, which is 0.
    pub(super) fn has_day(&self, month: i8, day: i8, weekday: i8, days_in_month: i8) -> bool {
        if !has(self.months, month) {
            return false;
        }
        let by_date = has(self.days, day) || self.last_day && day == days_in_month;
        let by_weekday = has(self.weekdays, weekday);
        if self.either_day { by_date || by_weekday } else { by_date && by_weekday }
    }
}

/// Whether a value is among them.
pub(super) fn has(bits: Bits, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| bits.checked_shr(value).is_some_and(|rest| rest & 1 == 1))
}

/// The first value from `from` on.
pub(super) fn first(bits: Bits, from: i8) -> Option<i8> {
    let from = u32::try_from(from).ok()?;
    let rest = bits.checked_shr(from)?;
    (rest != 0).then(|| i8::try_from(from + rest.trailing_zeros()).ok()).flatten()
}

/// Days of the month, among which there may be the last one.
fn days(text: &str) -> Result<(Bits, bool), String> {
    let is_last = |part: &&str| part.eq_ignore_ascii_case("l");
    let others: Vec<&str> = text.split(',').filter(|part| !is_last(part)).collect();
    let has_last = text.split(',').any(|part| is_last(&part));
    match others.is_empty() {
        true => Ok((0, has_last)),
        false => Ok((DAY.read(&others.join(","))?, has_last)),
    }
}

impl Field {
    fn read(&self, text: &str) -> Result<Bits, String> {
        let mut bits = 0;
        for part in text.split(',') {
            let (range, step) = match part.split_once('/') {
                Some((range, step)) => (range, Some(step)),
                None => (part, None),
            };
            let (from, to) = match range.split_once('-') {
                _ if range == "*" => (self.least, self.most),
                Some((from, to)) => (self.value(from)?, self.value(to)?),
                // `5/15` goes on to the end, as in most other programs.
                None if step.is_some() => (self.value(range)?, self.most),
                None => (self.value(range)?, self.value(range)?),
            };
            if from > to {
                return Err(format!("{}: {range:?} ends before it begins", self.name));
            }
            let step = match step.map(str::parse::<u32>) {
                None => 1,
                Some(Ok(step)) if (1..=self.most).contains(&step) => step,
                Some(_) => return Err(format!("{}: the step of {part:?} must be from 1 to {}", self.name, self.most)),
            };
            bits |= (from..=to).step_by(step as usize).fold(0, |bits, value| bits | 1 << value);
        }
        Ok(bits)
    }

    fn value(&self, text: &str) -> Result<u32, String> {
        let named = self.names.iter().position(|name| text.eq_ignore_ascii_case(name));
        if let Some(at) = named.and_then(|at| u32::try_from(at).ok()) {
            return Ok(self.least + at);
        }
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let value = is_number.then(|| text.parse().ok()).flatten();
        let good = value.filter(|value| (self.least..=self.most).contains(value));
        good.ok_or_else(|| format!("{}: {text:?} must be from {} to {}", self.name, self.least, self.most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(bits: Bits) -> Vec<i8> {
        (0..64).filter(|value| has(bits, *value)).collect()
    }

    #[test]
    fn fields_are_lists_of_ranges_with_steps_and_names() {
        let cron = Cron::read(" 5,10-12,*/30  9-17/4 1,L jan-MAR,Dec Mon-fri ").unwrap();
        assert_eq!(values(cron.minutes), [0, 5, 10, 11, 12, 30]);
        assert_eq!(values(cron.hours), [9, 13, 17]);
        assert_eq!((values(cron.days), cron.last_day), (vec![1], true));
        assert_eq!(values(cron.months), [1, 2, 3, 12]);
        assert_eq!(values(cron.weekdays), [1, 2, 3, 4, 5]);
        assert_eq!(values(cron.seconds), [0], "without seconds at the full minute");
        let seconds = Cron::read("10/20 * * * * *").unwrap();
        assert_eq!(values(seconds.seconds), [10, 30, 50]);
        assert!(seconds.is_hourly());
    }

    #[test]
    fn sunday_is_0_and_7_and_words_stand_for_the_usual() {
        for text in ["0 0 * * 0", "0 0 * * 7", "0 0 * * SUN", "@weekly"] {
            assert_eq!(values(Cron::read(text).unwrap().weekdays), [0], "{text}");
        }
        assert_eq!(values(Cron::read("0 0 * * 5-7").unwrap().weekdays), [0, 5, 6]);
        assert_eq!(Cron::read("@daily"), Cron::read("0 0 * * *"));
        assert_eq!(Cron::read("@yearly"), Cron::read("0 0 1 1 *"));
    }

    #[test]
    fn of_two_restricted_kinds_of_days_either_will_do() {
        // The 13th, and every Friday.
        let either = Cron::read("0 0 13 * 5").unwrap();
        assert!(either.has_day(1, 13, 2, 31) && either.has_day(1, 16, 5, 31) && !either.has_day(1, 14, 3, 31));
        // Every other day, if it is a Friday.
        let both = Cron::read("0 0 */2 * 5").unwrap();
        assert!(both.has_day(1, 13, 5, 31) && !both.has_day(1, 13, 4, 31) && !both.has_day(1, 16, 5, 31));
        let last = Cron::read("0 0 L * *").unwrap();
        assert!(last.has_day(2, 28, 0, 28) && !last.has_day(2, 28, 0, 29) && last.has_day(12, 31, 0, 31));
    }

    #[test]
    fn what_is_no_expression_is_refused_with_its_field() {
        for (text, part) in [
            ("", "0 fields"),
            ("* * * *", "4 fields"),
            ("* * * * * * *", "7 fields"),
            ("60 * * * *", "minute"),
            ("* 24 * * *", "hour"),
            ("* * 0 * *", "day of month"),
            ("* * 32 * *", "day of month"),
            ("* * * 13 *", "month"),
            ("* * * foo *", "month"),
            ("* * * * 8", "day of week"),
            ("5-1 * * * *", "ends before it begins"),
            ("*/0 * * * *", "step"),
            ("*/99 * * * *", "step"),
            ("1/ * * * *", "step"),
            ("1, * * * *", "minute"),
            ("+1 * * * *", "minute"),
            ("-1 * * * *", "minute"),
            ("1--2 * * * *", "minute"),
            ("* * L-1 * *", "day of month"),
            ("@reboot", "@daily"),
            ("@every 5m", "@daily"),
            ("99999999999999999999 * * * *", "minute"),
        ] {
            let refused = Cron::read(text).unwrap_err();
            assert!(refused.contains(part), "{text:?}: {refused}");
        }
        assert!(Cron::read(&"1,".repeat(200)).is_err());
    }
}
