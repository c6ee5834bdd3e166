//! Webhooks: what is sent to a task's URL when it has ended, as it waits in the queue for it, and how it is signed.
//!
//! By [Standard Webhooks](https://www.standardwebhooks.com): HMAC-SHA256 over id, time and body, so that the receiver knows who sent it
//! and when. The id is made from task and state, so that a delivery that comes twice is known by it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::Sha256;

use crate::envelope::Envelope;
use crate::lifecycle::State;
use crate::outcome::TaskResult;
use crate::task::TaskId;
use crate::time::Timestamp;

/// The version of [`Hook`].
pub const VERSION: u32 = 1;

/// How a secret begins.
const PREFIX: &str = "whsec_";

/// A delivery that is to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hook {
    pub v: u32,
    /// The header `webhook-id`.
    pub id: String,
    pub task: TaskId,
    pub tenant: String,
    pub url: String,
    /// Attempts that were made.
    #[serde(default)]
    pub attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// What is sent, to the byte.
    pub payload: Box<RawValue>,
}

#[derive(Serialize)]
struct Payload<'a> {
    r#type: String,
    timestamp: Timestamp,
    data: &'a TaskResult,
}

impl Hook {
    /// What is to be sent of a task that has ended so; nothing when it wants nothing sent of that.
    pub fn of(envelope: &Envelope, result: &TaskResult) -> Option<Self> {
        let webhook = envelope.extras.webhook.as_ref().filter(|webhook| wants(&webhook.events, result.state))?;
        let payload = Payload {
            r#type: format!("task.{}", result.state.as_str()),
            timestamp: result.timings.finished.unwrap_or_else(Timestamp::now),
            data: result,
        };
        Some(Self {
            v: VERSION,
            id: format!("{}.{}", result.id.0, result.state.as_str()),
            task: result.id,
            tenant: result.tenant.clone(),
            url: webhook.url.clone(),
            attempts: 0,
            not_before: None,
            // A result can be written, so this can.
            payload: serde_json::value::to_raw_value(&payload).ok()?,
        })
    }
}

/// Whether a name is one of an event that webhooks know: a terminal state, with `task.` before it or not.
pub fn is_event(name: &str) -> bool {
    let name = name.strip_prefix("task.").unwrap_or(name);
    State::ALL.into_iter().any(|state| state.is_terminal() && state.as_str() == name)
}

/// None named is all of them.
fn wants(events: &[String], state: State) -> bool {
    state.is_terminal()
        && (events.is_empty()
            || events.iter().any(|event| event.strip_prefix("task.").unwrap_or(event) == state.as_str()))
}

/// What deliveries are signed with. It cannot be printed.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// `whsec_` and base64 of 24 to 64 bytes.
    ///
    /// # Errors
    /// A sentence for people, without the secret.
    pub fn read(text: &str) -> Result<Self, String> {
        let bad = || "must be whsec_ and the base64 of 24 to 64 random bytes".to_owned();
        let bytes = STANDARD.decode(text.strip_prefix(PREFIX).ok_or_else(bad)?).map_err(|_| bad())?;
        if (24..=64).contains(&bytes.len()) { Ok(Self(bytes)) } else { Err(bad()) }
    }

    /// One part of the header `webhook-signature`. `seconds` is the header `webhook-timestamp`, since the Unix epoch.
    pub fn sign(&self, id: &str, seconds: i64, body: &[u8]) -> String {
        // HMAC takes keys of any length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { return String::new() };
        mac.update(format!("{id}.{seconds}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_signs_as_the_standard_has_it() {
        // The example of its specification.
        let secret = Secret::read("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        for bad in ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_AAAA", "whsec_!"] {
            assert!(Secret::read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn events_are_terminal_states_by_either_name() {
        assert!(is_event("succeeded") && is_event("task.failed") && !is_event("queued") && !is_event("task.progress"));
        let named = ["task.failed".to_owned()];
        assert!(wants(&[], State::Expired) && wants(&named, State::Failed) && !wants(&named, State::Succeeded));
        assert!(!wants(&[], State::Running));
    }
}
