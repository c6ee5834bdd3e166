//! What deployment tasks ask for, and what came of all of them: which versions get a model's tasks, and which are to stay loaded.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::task::TaskId;

/// Workers that one version may be pinned to.
const WORKERS_MOST: u32 = 10_000;
/// A canary's share is told apart in so many parts.
const PARTS: u128 = 1_000_000;

/// The input of a deployment task, about the model that it names.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// So many workers are to hold it, whatever its demand.
    Pin {
        #[serde(default = "one")]
        workers: u32,
    },
    /// Its demand alone decides again.
    Unpin {},
    /// It is loaded and pinned, and then gets this share of the tasks that name the model without a version: all of them by default.
    RollOut {
        #[serde(default = "one")]
        workers: u32,
        #[serde(default = "whole")]
        share: f64,
    },
    /// It takes no new tasks, and is unloaded once those that wait are done.
    Retire {},
}

fn one() -> u32 {
    1
}

fn whole() -> f64 {
    1.0
}

impl Order {
    /// # Errors
    /// What is wrong with it, for whoever sent it.
    pub fn read(input: &RawValue) -> Result<Self, String> {
        let order: Self = serde_json::from_str(input.get()).map_err(|bad| bad.to_string())?;
        let (workers, share) = match order {
            Self::Pin { workers } => (workers, 1.0),
            Self::RollOut { workers, share } => (workers, share),
            Self::Unpin {} | Self::Retire {} => (1, 1.0),
        };
        if !(1..=WORKERS_MOST).contains(&workers) {
            return Err(format!("workers must be from 1 to {WORKERS_MOST}, not {workers}"));
        }
        if !(share > 0.0 && share <= 1.0) {
            return Err(format!("share must be above 0 and at most 1, not {share}"));
        }
        Ok(order)
    }

    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Pin { .. } => "pin",
            Self::Unpin {} => "unpin",
            Self::RollOut { .. } => "roll_out",
            Self::Retire {} => "retire",
        }
    }
}

/// What all deployments together came to: JSON, in the store under [`Deployed::KEY`]. Models stand here by the names of
/// their tables in the settings of workers, which may have a version: `sentiment`, `sentiment@2`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Deployed {
    v: u32,
    /// How many workers are to hold a model at least.
    pub pins: BTreeMap<String, u32>,
    /// These take no new tasks.
    pub retired: BTreeSet<String>,
    /// Who gets the tasks that name a model without a version, by that name. Models that were never rolled out are not here.
    pub traffic: BTreeMap<String, Traffic>,
}

/// Who gets a model's tasks.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Traffic {
    pub to: String,
    /// Another that gets a part of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Canary {
    pub to: String,
    /// Over 0, under 1.
    pub share: f64,
}

impl Default for Deployed {
    fn default() -> Self {
        Self { v: Self::VERSION, pins: BTreeMap::new(), retired: BTreeSet::new(), traffic: BTreeMap::new() }
    }
}

impl Deployed {
    pub const KEY: &str = "deployments";
    const VERSION: u32 = 1;

    /// # Errors
    /// What cannot be read, or is of a later version.
    pub fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let deployed: Self = serde_json::from_slice(bytes)?;
        match deployed.v {
            Self::VERSION => Ok(deployed),
            other => Err(serde::de::Error::custom(format!("deployments of version {other}"))),
        }
    }

    /// Who gets a task that names a model without a version, if that was said. The same task always goes the same way.
    pub fn route(&self, model: &str, task: TaskId) -> Option<&str> {
        let traffic = self.traffic.get(model)?;
        let part = (task.0.as_u128() % PARTS) as f64 / PARTS as f64;
        match &traffic.canary {
            Some(canary) if part < canary.share => Some(&canary.to),
            _ => Some(&traffic.to),
        }
    }

    /// Whether it gets tasks that name its model without a version.
    pub fn has_traffic(&self, name: &str) -> bool {
        let is_of =
            |traffic: &Traffic| traffic.to == name || traffic.canary.as_ref().is_some_and(|canary| canary.to == name);
        self.traffic.values().any(is_of)
    }
}

/// A model's name without its version.
pub fn base(name: &str) -> &str {
    name.split_once('@').map_or(name, |(base, _)| base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Order, String> {
        Order::read(&RawValue::from_string(text.to_owned()).unwrap())
    }

    #[test]
    fn orders_are_read_with_their_defaults_and_refused_with_a_reason() {
        assert_eq!(read(r#"{"action": "pin"}"#), Ok(Order::Pin { workers: 1 }));
        assert_eq!(read(r#"{"action": "unpin"}"#), Ok(Order::Unpin {}));
        assert_eq!(
            read(r#"{"action": "roll_out", "workers": 3, "share": 0.1}"#),
            Ok(Order::RollOut { workers: 3, share: 0.1 })
        );
        for (text, why) in [
            (r#"{"action": "retire", "share": 1}"#, "share"),
            (r#"{"action": "pin", "workers": 0}"#, "workers must be"),
            (r#"{"action": "roll_out", "share": 0}"#, "share must be"),
            (r#"{"action": "roll_out", "share": 1.5}"#, "share must be"),
            (r#"{"action": "explode"}"#, "explode"),
            ("{}", "action"),
            ("7", "invalid type"),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }

    #[test]
    fn a_canary_gets_its_share_and_a_task_always_the_same_version() {
        let canary = Some(Canary { to: "m@2".into(), share: 0.25 });
        let traffic = BTreeMap::from([("m".to_owned(), Traffic { to: "m".into(), canary })]);
        let deployed = Deployed { traffic, ..Deployed::default() };
        let read = Deployed::read(&serde_json::to_vec(&deployed).unwrap()).unwrap();
        assert_eq!(read, deployed);
        let ids: Vec<TaskId> = (0..10_000).map(|_| TaskId::new()).collect();
        let to_canary = ids.iter().filter(|id| deployed.route("m", **id) == Some("m@2")).count();
        assert!((2_200..2_800).contains(&to_canary), "{to_canary}");
        assert!(ids.iter().all(|id| deployed.route("m", *id) == read.route("m", *id)));
        assert_eq!(deployed.route("other", ids[0]), None);
        assert!(deployed.has_traffic("m@2") && !deployed.has_traffic("m@3"));
        assert!(Deployed::read(br#"{"v":2,"pins":{},"retired":[],"traffic":{}}"#).is_err());
    }
}
