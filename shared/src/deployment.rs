//! What deployment tasks ask for, and what came of all of them: which versions get a model's tasks, and which are to stay loaded.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::artifacts::Reference;
use crate::decode::is_name;
use crate::mirror::Mirror;
use crate::task::{TaskId, limits};

/// Workers that one version may be pinned to.
const WORKERS_MOST: u32 = 10_000;
/// A canary's share is told apart in so many parts.
const PARTS: u128 = 1_000_000;

/// The input of a deployment task, about the model that it names.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Workers that have the model are to have another like it, made of other files.
    Register(Box<Variant>),
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
    /// It is loaded and pinned, and then runs this share of the tasks that name the model alone a second time, with nobody told of its
    /// answers. A share of 0 ends that.
    Shadow {
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
        let (workers, share) = match &order {
            Self::Pin { workers } => (*workers, 1.0),
            Self::RollOut { workers, share } | Self::Shadow { workers, share } => (*workers, *share),
            Self::Unpin {} | Self::Retire {} => (1, 1.0),
            Self::Register(variant) => {
                variant.check()?;
                (1, 1.0)
            }
        };
        if !(1..=WORKERS_MOST).contains(&workers) {
            return Err(format!("workers must be from 1 to {WORKERS_MOST}, not {workers}"));
        }
        if let Self::Shadow { .. } = order {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("share must be from 0 to 1, not {share}"));
            }
        } else if !(share > 0.0 && share <= 1.0) {
            return Err(format!("share must be above 0 and at most 1, not {share}"));
        }
        Ok(order)
    }

    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Register(_) => "register",
            Self::Pin { .. } => "pin",
            Self::Unpin {} => "unpin",
            Self::RollOut { .. } => "roll_out",
            Self::Shadow { .. } => "shadow",
            Self::Retire {} => "retire",
        }
    }
}

/// What makes a registered model another than the one it is like.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Its own: `name`, or `name@version`.
    pub name: String,
    /// Artifacts, by the names of files that they are written to.
    pub files: BTreeMap<String, Reference>,
    /// Which of the files is which, in place of the settings of the same names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_ms: Option<f64>,
}

/// Files of one model.
const FILES_MOST: usize = 64;

impl Variant {
    fn check(&self) -> Result<(), String> {
        if !is_model(&self.name) {
            return Err("name must match [a-z0-9][a-z0-9._-]{0,127}, perhaps with @ and a version".to_owned());
        }
        if self.files.is_empty() || self.files.len() > FILES_MOST {
            return Err(format!("files must be from 1 to {FILES_MOST}, not {}", self.files.len()));
        }
        if let Some(name) = self.files.keys().find(|name| !is_file(name)) {
            return Err(format!("files: {name:?} must match [A-Za-z0-9][A-Za-z0-9._-]{{0,127}}"));
        }
        let roles = [("file", &self.file), ("tokenizer", &self.tokenizer), ("head", &self.head)];
        if roles.iter().all(|(_, role)| role.is_none()) {
            return Err("one of file, tokenizer and head must say which of the files it is".to_owned());
        }
        for (role, name) in roles {
            if let Some(name) = name
                && !self.files.contains_key(name)
            {
                return Err(format!("{role}: {name:?} is not one of files"));
            }
        }
        if let Some(bad) = self.capabilities.iter().flatten().find(|name| !is_name(name, limits::MODEL_BYTES)) {
            return Err(format!("capabilities: {bad:?} must match [a-z0-9][a-z0-9._-]{{0,127}}"));
        }
        if self.quality.is_some_and(|quality| !(0.0..=1.0).contains(&quality)) {
            return Err("quality must be from 0 to 1".to_owned());
        }
        match self.expected_ms {
            Some(expected) if !(expected > 0.0 && expected <= limits::DURATION_MS as f64) => {
                Err("expected_ms must be above 0".to_owned())
            }
            _ => Ok(()),
        }
    }
}

fn is_model(name: &str) -> bool {
    let (base, version) = name.split_once('@').unwrap_or((name, "1"));
    is_name(base, limits::MODEL_BYTES) && is_name(version, limits::VERSION_BYTES)
}

/// A name in a folder, and no way out of it.
fn is_file(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.len() <= 128
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

/// A model that a deployment made.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Registration {
    /// The model whose settings it has, but for what the variant says.
    pub like: String,
    pub variant: Variant,
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
    /// Models that stand in no settings, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub registered: BTreeMap<String, Registration>,
    /// Versions that run a part of their model's tasks a second time, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mirrors: BTreeMap<String, Mirror>,
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
        Self {
            v: Self::VERSION,
            pins: BTreeMap::new(),
            retired: BTreeSet::new(),
            traffic: BTreeMap::new(),
            registered: BTreeMap::new(),
            mirrors: BTreeMap::new(),
        }
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
        assert_eq!(read(r#"{"action": "shadow"}"#), Ok(Order::Shadow { workers: 1, share: 1.0 }));
        assert_eq!(read(r#"{"action": "shadow", "share": 0}"#), Ok(Order::Shadow { workers: 1, share: 0.0 }));
        for (text, why) in [
            (r#"{"action": "shadow", "share": -0.1}"#, "share must be"),
            (r#"{"action": "shadow", "share": 1.1}"#, "share must be"),
            (r#"{"action": "shadow", "workers": 0}"#, "workers must be"),
            (r#"{"action": "retire", "share": 1}"#, "share"),
            (r#"{"action": "pin", "workers": 0}"#, "workers must be"),
            (r#"{"action": "roll_out", "share": 0}"#, "share must be"),
            (r#"{"action": "roll_out", "share": 1.5}"#, "share must be"),
            (r#"{"action": "explode"}"#, "explode"),
            (r#"{"action": "register", "name": "M", "files": {}}"#, "name must match"),
            (r#"{"action": "register", "name": "m@2", "files": {}}"#, "files must be"),
            (r#"{"action": "register", "name": "m@2", "files": {"a": "b"}}"#, "invalid type"),
            (&register(r#"{"../a": REF}"#, r#""head": "../a""#), "must match"),
            (&register(r#"{"a": REF}"#, r#""quality": 1"#), "must say which"),
            (&register(r#"{"a": REF}"#, r#""head": "b""#), "is not one of files"),
            (&register(r#"{"a": REF}"#, r#""head": "a", "quality": 2"#), "quality"),
            (&register(r#"{"a": REF}"#, r#""head": "a", "handler": "process""#), "handler"),
            ("{}", "action"),
            ("7", "invalid type"),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }

    fn register(files: &str, more: &str) -> String {
        let files = files.replace("REF", &format!(r#"{{"$ref": "artifact:{}"}}"#, "0".repeat(64)));
        format!(r#"{{"action": "register", "name": "m@2", "files": {files}, {more}}}"#)
    }

    #[test]
    fn a_registration_is_read_and_kept() {
        let text = register(r#"{"head.json": REF, "head.f32": REF}"#, r#""head": "head.json", "quality": 0.9"#);
        let Ok(Order::Register(variant)) = read(&text) else { panic!("{:?}", read(&text)) };
        assert_eq!((variant.name.as_str(), variant.head.as_deref()), ("m@2", Some("head.json")));
        let registered = BTreeMap::from([("m@2".to_owned(), Registration { like: "m".into(), variant: *variant })]);
        let deployed = Deployed { registered, ..Deployed::default() };
        assert_eq!(Deployed::read(&serde_json::to_vec(&deployed).unwrap()).unwrap(), deployed);
        let before = br#"{"v":1,"pins":{},"retired":[],"traffic":{}}"#;
        assert_eq!(Deployed::read(before).unwrap(), Deployed::default());
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
