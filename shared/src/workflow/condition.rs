//! When a step runs: what is to hold of a result.

use std::cmp::Ordering;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::limits;
use super::template::check_path;

/// Either a comparison of what is found in a step's result, all of whose operators must hold, or `all`, `any` or `not` of
/// others. What is not found counts as `null`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// The step's name.
    #[serde(rename = "$from")]
    pub from: Option<String>,
    /// A JSON pointer into its result; without it `/output`.
    pub path: Option<String>,
    /// Whether anything but `null` is found.
    pub exists: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    pub eq: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub ne: Option<Value>,
    /// Numbers by their value, texts by their bytes; other things are neither less nor greater.
    pub lt: Option<Value>,
    pub lte: Option<Value>,
    pub gt: Option<Value>,
    pub gte: Option<Value>,
    #[serde(rename = "in")]
    pub one_of: Option<Vec<Value>>,
    pub all: Option<Vec<Condition>>,
    pub any: Option<Vec<Condition>>,
    pub not: Option<Box<Condition>>,
}

/// `null` is a value to compare with.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Condition {
    pub(super) fn check(&self, depth: usize) -> Result<(), String> {
        if depth > limits::CONDITION_DEPTH {
            return Err(format!("is nested deeper than {}", limits::CONDITION_DEPTH));
        }
        let compares = [&self.eq, &self.ne, &self.lt, &self.lte, &self.gt, &self.gte].into_iter().any(Option::is_some)
            || self.exists.is_some()
            || self.one_of.is_some();
        let of_others =
            [self.all.is_some(), self.any.is_some(), self.not.is_some()].into_iter().filter(|is| *is).count();
        match (&self.from, compares, of_others) {
            (Some(_), true, 0) => check_path(self.path()),
            (Some(_), false, 0) => Err("compares with nothing: give exists, eq, ne, lt, lte, gt, gte or in".to_owned()),
            (None, false, 1) if self.path.is_none() => self.parts().try_for_each(|part| part.check(depth + 1)),
            _ => Err("must be either a comparison with $from, or one of all, any and not".to_owned()),
        }
    }

    pub(super) fn path(&self) -> &str {
        self.path.as_deref().unwrap_or("/output")
    }

    fn parts(&self) -> impl Iterator<Item = &Condition> {
        let several = self.all.iter().chain(&self.any).flatten();
        several.chain(self.not.as_deref())
    }

    /// The steps whose results it looks at.
    pub(super) fn steps<'a>(&'a self, out: &mut Vec<(&'a str, &'a str)>) {
        out.extend(self.from.as_deref().map(|from| (from, self.path())));
        self.parts().for_each(|part| part.steps(out));
    }

    /// `found` is what stands at a path in the result of a step.
    pub(super) fn holds(&self, found: &impl Fn(&str, &str) -> Option<Value>) -> bool {
        if let Some(all) = &self.all {
            return all.iter().all(|part| part.holds(found));
        }
        if let Some(any) = &self.any {
            return any.iter().any(|part| part.holds(found));
        }
        if let Some(not) = &self.not {
            return !not.holds(found);
        }
        let Some(from) = &self.from else { return false };
        let value = found(from, self.path()).unwrap_or(Value::Null);
        let is = |with: &Option<Value>, wanted: fn(Ordering) -> bool| {
            with.as_ref().is_none_or(|with| order(&value, with).is_some_and(wanted))
        };
        self.exists.is_none_or(|exists| exists != value.is_null())
            && self.eq.as_ref().is_none_or(|with| same(&value, with))
            && self.ne.as_ref().is_none_or(|with| !same(&value, with))
            && self.one_of.as_ref().is_none_or(|several| several.iter().any(|with| same(&value, with)))
            && is(&self.lt, Ordering::is_lt)
            && is(&self.lte, Ordering::is_le)
            && is(&self.gt, Ordering::is_gt)
            && is(&self.gte, Ordering::is_ge)
    }
}

fn same(one: &Value, other: &Value) -> bool {
    order(one, other).map_or_else(|| one == other, Ordering::is_eq)
}

fn order(one: &Value, other: &Value) -> Option<Ordering> {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64()?.partial_cmp(&other.as_f64()?),
        (Value::String(one), Value::String(other)) => Some(one.cmp(other)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_hold_of_what_is_found() {
        let output = json!({"n": 3, "s": "b", "list": [1], "nothing": null});
        let found =
            |step: &str, path: &str| (step == "x").then(|| output.pointer(path.strip_prefix("/output")?).cloned())?;
        for (condition, holds) in [
            (json!({"$from": "x", "path": "/output/n", "gt": 2, "lte": 3.0}), true),
            (json!({"$from": "x", "path": "/output/n", "gt": 3}), false),
            (json!({"$from": "x", "path": "/output/n", "eq": 3.0}), true),
            (json!({"$from": "x", "path": "/output/s", "lt": "c", "ne": "a"}), true),
            (json!({"$from": "x", "path": "/output/s", "gt": 1}), false),
            (json!({"$from": "x", "path": "/output/s", "in": ["a", "b"]}), true),
            (json!({"$from": "x", "path": "/output/list", "eq": [1]}), true),
            (json!({"$from": "x", "path": "/output/none", "exists": false}), true),
            (json!({"$from": "x", "path": "/output/nothing", "eq": null}), true),
            (json!({"$from": "y", "exists": true}), false),
            (json!({"any": [{"$from": "y", "exists": true}, {"not": {"$from": "y", "exists": true}}]}), true),
            (json!({"all": []}), true),
        ] {
            let read: Condition = serde_json::from_value(condition.clone()).unwrap();
            assert_eq!(read.check(0), Ok(()), "{condition}");
            assert_eq!(read.holds(&found), holds, "{condition}");
        }
    }

    #[test]
    fn what_says_nothing_is_refused() {
        for bad in [
            json!({}),
            json!({"$from": "x"}),
            json!({"eq": 1}),
            json!({"$from": "x", "eq": 1, "not": {"$from": "x", "eq": 1}}),
            json!({"all": [], "any": []}),
            json!({"all": [{"$from": "x"}]}),
            json!({"$from": "x", "path": "/rows", "eq": 1}),
        ] {
            assert!(serde_json::from_value::<Condition>(bad.clone()).unwrap().check(0).is_err(), "{bad}");
        }
        let mut deep = json!({"$from": "x", "exists": true});
        for _ in 0..=limits::CONDITION_DEPTH {
            deep = json!({"not": deep});
        }
        assert!(serde_json::from_value::<Condition>(deep).unwrap().check(0).is_err());
    }
}
