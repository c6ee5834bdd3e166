//! The policies of a run, by name: `NAME[:AGEING_SECONDS][@TOLD][/OVERLOAD_SECONDS]`.
//!
//! `NAME` is one of the planner's, or `moore-hodgson`, which exists here alone. With hosts that hold some of the models,
//! `NAME-blind` is the same without placement: what loading costs plays no part. `TOLD` says what the planner knows of a
//! task's time: nothing but what it learns (the default), `class` the true mean of the task's class, `true` the task's
//! own time, `noisy` the task's own time times a factor whose logarithm has the standard deviation `cost.sigma`. With
//! `OVERLOAD_SECONDS` what takes the slots longer to work off gives way, least worth first.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::planner::policy;

/// What the planner is told of a task's time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    Learnt,
    Class,
    True,
    Noisy,
}

impl Told {
    const NAMED: [(Self, &'static str); 4] =
        [(Self::Learnt, "learnt"), (Self::Class, "class"), (Self::True, "true"), (Self::Noisy, "noisy")];
}

#[derive(Clone, PartialEq, Debug)]
pub struct PolicySpec {
    text: String,
    pub name: String,
    /// Instead of the scenario's.
    pub ageing_s: Option<f64>,
    pub told: Told,
    /// How long the slots may take for what waits, instead of the scenario's.
    pub overload_s: Option<f64>,
    /// Without placement, on hosts.
    pub is_blind: bool,
}

impl PolicySpec {
    /// Whether a scheduler can go by it.
    pub fn can_be_live(&self) -> bool {
        self.told == Told::Learnt && !self.is_blind
    }
}

/// What no planner can do: it knows true times.
pub const MOORE_HODGSON: &str = "moore-hodgson";
const BLIND: &str = "-blind";
const ON_HOSTS: [&str; 3] = ["cmu", "cmu-blind", "fifo-blind"];
const WITHOUT_DEADLINES: [&str; 6] = ["cmu", "wspt", "wspt@class", "wspt@true", "strict", "fifo"];
const WITH_DEADLINES: [&str; 8] = ["cmu", "wspt", "wspt@class", "wspt@true", "edf", "strict", "fifo", MOORE_HODGSON];

impl fmt::Display for PolicySpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.text)
    }
}

impl Serialize for PolicySpec {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&self.text)
    }
}

impl std::str::FromStr for PolicySpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (whole, overload_s) = match text.split_once('/') {
            None => (text, None),
            Some((whole, number)) => (whole, Some(seconds(text, number, "after / come seconds that may wait")?)),
        };
        let (rest, told) = match whole.split_once('@') {
            None => (whole, Told::Learnt),
            Some((rest, word)) => {
                let known = Told::NAMED.into_iter().find(|&(_, name)| name == word);
                let words = Told::NAMED.map(|(_, name)| name).join(", ");
                (rest, known.ok_or_else(|| format!("{text:?}: after @ comes one of {words}"))?.0)
            }
        };
        let (name, ageing_s) = match rest.split_once(':') {
            None => (rest, None),
            Some((name, number)) => (name, Some(seconds(text, number, "after : come seconds of ageing")?)),
        };
        let (name, is_blind) = name.strip_suffix(BLIND).map_or((name, false), |name| (name, true));
        if is_blind && name == MOORE_HODGSON {
            return Err(format!("{name:?} knows nothing of hosts"));
        }
        if name != MOORE_HODGSON && policy::by_name(name, None).is_none() {
            return Err(format!(
                "{name:?} is no policy: there are cmu, fair, fifo, strict, edf, wspt and {MOORE_HODGSON}"
            ));
        }
        let told = if name == MOORE_HODGSON { Told::True } else { told };
        if name == MOORE_HODGSON && overload_s.is_some() {
            return Err(format!("{text:?}: {MOORE_HODGSON} has no mark of overload"));
        }
        Ok(Self { text: text.to_owned(), name: name.to_owned(), ageing_s, told, overload_s, is_blind })
    }
}

fn seconds(text: &str, number: &str, what: &str) -> Result<f64, String> {
    let seconds = number.parse().ok().filter(|&seconds: &f64| seconds.is_finite() && seconds > 0.0);
    seconds.ok_or_else(|| format!("{text:?}: {what}, over 0"))
}

/// All that a scenario has a use for.
pub fn usual(deadlines: bool, hosts: bool) -> Vec<String> {
    let names: &[&str] = match (hosts, deadlines) {
        (true, _) => &ON_HOSTS,
        (false, true) => &WITH_DEADLINES,
        (false, false) => &WITHOUT_DEADLINES,
    };
    names.iter().map(|&name| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_what_is_none_is_said() {
        let spec: PolicySpec = "cmu:2.5@class".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.ageing_s, spec.told), ("cmu", Some(2.5), Told::Class));
        assert_eq!(spec.to_string(), "cmu:2.5@class");
        let spec: PolicySpec = "cmu-blind:2@true".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.is_blind, spec.can_be_live()), ("cmu", true, false));
        assert_eq!("moore-hodgson".parse::<PolicySpec>().unwrap().told, Told::True);
        let spec: PolicySpec = "wspt@true/30".parse().unwrap();
        assert_eq!((spec.told, spec.ageing_s, spec.overload_s), (Told::True, None, Some(30.0)));
        for (text, words) in [
            ("best", "is no policy: there are cmu, fair, fifo, strict, edf, wspt and moore-hodgson"),
            ("wspt@guess", "one of learnt, class"),
            ("cmu:-1", "over 0"),
            ("cmu/soon", "seconds that may wait, over 0"),
            ("moore-hodgson/3", "no mark"),
            ("", "is no policy"),
            ("moore-hodgson-blind", "knows nothing of hosts"),
        ] {
            let error = text.parse::<PolicySpec>().unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        for name in [usual(true, false), usual(false, false), usual(false, true)].iter().flatten() {
            name.parse::<PolicySpec>().unwrap();
        }
    }
}
