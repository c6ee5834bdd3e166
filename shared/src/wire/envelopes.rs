//! Envelopes as roles read them off their queues: one, or an array of them, of a version that is known here.

use serde::Deserialize;

use super::read_all;
use crate::envelope::{Envelope, VERSION};

/// Why a message between roles is none.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("not an envelope: {0}")]
    Json(#[from] serde_json::Error),
    #[error("an envelope of version {0}, of which nothing is known here")]
    Version(u32),
    /// Nobody would ever ack it.
    #[error("no envelope in it")]
    Empty,
}

impl Unreadable {
    /// The reason that its dead letter has.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Json(_) | Self::Empty => "unreadable",
            Self::Version(_) => "unsupported_version",
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
        Err(failure) => {
            let versions = match serde_json::from_slice(body) {
                Ok(Versions::One(one)) => vec![one],
                Ok(Versions::Many(many)) => many,
                Err(_) => Vec::new(),
            };
            match versions.iter().find(|versioned| versioned.v != VERSION) {
                Some(other) => Err(Unreadable::Version(other.v)),
                None => Err(failure.into()),
            }
        }
    }
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
}
