//! Envelopes as roles read them off their queues: one, or an array of them, of a version that is known here. Orders of workflows and
//! schedules are read in the same way.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::read_all;
use crate::envelope::{Envelope, VERSION};

/// Why a message between roles is none.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("not an envelope: {0}")]
    Json(#[from] serde_json::Error),
    #[error("an envelope of version {0}, of which nothing is known here")]
    Version(u32),
    #[error("not an order: {0}")]
    Order(String),
    #[error("an order of version {0}, of which nothing is known here")]
    OrderVersion(u32),
    /// Nobody would ever ack it.
    #[error("no envelope in it")]
    Empty,
}

impl Unreadable {
    /// The reason that its dead letter has.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Json(_) | Self::Empty | Self::Order(_) => "unreadable",
            Self::Version(_) | Self::OrderVersion(_) => "unsupported_version",
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Versions {
    One(Versioned),
    Many(Vec<Versioned>),
}

#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

/// One envelope, or an array of at least one.
///
/// # Errors
/// When it is neither, or one of them is of another version.
pub fn read_envelopes(body: &[u8]) -> Result<Vec<Envelope>, Unreadable> {
    match read_all::<Envelope>(body) {
        Ok(envelopes) => match envelopes.iter().find(|envelope| envelope.v != VERSION) {
            Some(other) => Err(Unreadable::Version(other.v)),
            None if envelopes.is_empty() => Err(Unreadable::Empty),
            None => Ok(envelopes),
        },
        // A later major version need not have these fields at all: say so rather than what is missing.
        Err(failure) => match other_version(body, VERSION) {
            Some(other) => Err(Unreadable::Version(other)),
            None => Err(failure.into()),
        },
    }
}

/// An order of a workflow or a schedule, of this version alone.
///
/// # Errors
/// When it is none, or of another version.
pub(crate) fn read_order<T: DeserializeOwned>(
    body: &[u8],
    version: u32,
    version_of: impl Fn(&T) -> u32,
) -> Result<T, Unreadable> {
    match serde_json::from_slice::<T>(body) {
        Ok(order) if version_of(&order) != version => Err(Unreadable::OrderVersion(version_of(&order))),
        Ok(order) => Ok(order),
        Err(failure) => match other_version(body, version) {
            Some(other) => Err(Unreadable::OrderVersion(other)),
            None => Err(Unreadable::Order(failure.to_string())),
        },
    }
}

/// The version that a message says it is of, if that is not this one.
fn other_version(body: &[u8], version: u32) -> Option<u32> {
    let versions = match serde_json::from_slice(body) {
        Ok(Versions::One(one)) => vec![one],
        Ok(Versions::Many(many)) => many,
        Err(_) => Vec::new(),
    };
    versions.iter().map(|versioned| versioned.v).find(|other| *other != version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_envelope_says_why() {
        let good = include_str!("../../tests/golden/envelope-least.v1.json").trim();
        let other = good.replacen("\"v\":1", "\"v\":2", 1);
        assert_ne!(other, good);
        assert_eq!(read_envelopes(good.as_bytes()).unwrap().len(), 1);
        assert_eq!(read_envelopes(format!("[{good},{good}]").as_bytes()).unwrap().len(), 2);
        for (body, code, message) in [
            ("", "unreadable", "not an envelope"),
            ("{", "unreadable", "not an envelope"),
            ("{}", "unreadable", "not an envelope"),
            ("[]", "unreadable", "no envelope"),
            ("[1]", "unreadable", "not an envelope"),
            (r#"{"v":1}"#, "unreadable", "not an envelope: missing field"),
            (r#"{"v":-1}"#, "unreadable", "not an envelope"),
            (r#"{"v":2}"#, "unsupported_version", "version 2"),
            (r#"[{"v":1},{"v":3,"all":"new"}]"#, "unsupported_version", "version 3"),
            (&other, "unsupported_version", "version 2"),
            (&format!("[{good},{other}]"), "unsupported_version", "version 2"),
        ] {
            let unreadable = read_envelopes(body.as_bytes()).unwrap_err();
            assert_eq!(unreadable.code(), code, "{body}");
            assert!(unreadable.to_string().contains(message), "{body}: {unreadable}");
        }
    }

    #[test]
    fn what_is_no_order_says_why() {
        #[derive(Debug, Deserialize)]
        struct Order {
            v: u32,
            name: String,
        }
        let read = |body: &str| read_order(body.as_bytes(), 1, |order: &Order| order.v).map(|order| order.name);
        assert_eq!(read(r#"{"v":1,"name":"a","later":2}"#).unwrap(), "a");
        for (body, code) in [
            ("", "unreadable"),
            ("{}", "unreadable"),
            ("[]", "unreadable"),
            (r#"{"v":1}"#, "unreadable"),
            (r#"{"v":"2"}"#, "unreadable"),
            (r#"{"v":2,"name":"a"}"#, "unsupported_version"),
            (r#"{"v":2,"called":"a"}"#, "unsupported_version"),
        ] {
            assert_eq!(read(body).unwrap_err().code(), code, "{body}");
        }
    }
}
