//! What a task leaves open and the message that carried it says.

use uuid::Uuid;

use super::Reply;
use crate::decode::{Invalid, is_tenant};
use crate::task::{DEFAULT_TENANT, Priority, limits};
use crate::time::Timestamp;

/// What the properties of the message that carried a task say about it. The body wins over them.
#[derive(Clone, Default, Debug)]
pub struct Carried {
    pub message_id: Option<String>,
    pub priority: Option<u8>,
    pub app_id: Option<String>,
    /// Milliseconds, as AMQP has it.
    pub expiration: Option<String>,
    pub reply: Option<Reply>,
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
}

impl Carried {
    /// Whose trace it is part of. What does not follow its grammar is left out, and the state with it, as W3C Trace Context has it.
    pub fn trace(&mut self, traceparent: Option<&str>, tracestate: Option<&str>) {
        self.traceparent = traceparent.filter(|text| is_traceparent(text)).map(str::to_owned);
        let has_trace = self.traceparent.is_some();
        self.tracestate = tracestate.filter(|text| has_trace && text.len() <= TRACESTATE_BYTES).map(str::to_owned);
    }
}

/// Most of a `tracestate` that is handed on.
const TRACESTATE_BYTES: usize = 512;

/// Version, trace, parent and flags. A later version is taken where it has these and no more.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(5, '-').collect();
    let hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let [version, trace, parent, flags] = parts.as_slice() else { return false };
    [version.len(), trace.len(), parent.len(), flags.len()] == [2, 32, 16, 2]
        && parts.iter().all(|part| hex(part))
        && *version != "ff"
        && !zero(trace)
        && !zero(parent)
}

/// What a body says, or else the message that carried it.
impl Carried {
    pub(crate) fn tenant(&self, said: Option<String>) -> Result<String, Invalid> {
        match (said, &self.app_id) {
            (Some(tenant), _) => Ok(tenant),
            (None, Some(app_id)) if is_tenant(app_id) => Ok(app_id.clone()),
            (None, Some(_)) => {
                Err(Invalid::field("app_id", "must be 1 to 128 bytes without control characters: it is the tenant"))
            }
            (None, None) => Ok(DEFAULT_TENANT.to_owned()),
        }
    }

    /// The message's id, which is that of a `what`.
    pub(crate) fn id(&self, what: &str) -> Result<Option<Uuid>, Invalid> {
        let bad = |_| Invalid::field("message_id", format!("must be a UUID: it is the {what}'s id"));
        self.message_id.as_ref().map(|id| id.parse().map_err(bad)).transpose()
    }

    pub(crate) fn priority(&self, said: Option<Priority>) -> Result<Priority, Invalid> {
        match (said, self.priority) {
            (Some(priority), _) => Ok(priority),
            (None, Some(property)) => {
                Priority::try_from(property).map_err(|message| Invalid::field("priority", message))
            }
            (None, None) => Ok(Priority::default()),
        }
    }

    pub(crate) fn deadline(
        &self,
        said: Option<Timestamp>,
        said_ms: Option<u64>,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Invalid> {
        match (said, said_ms, &self.expiration) {
            (Some(deadline), ..) => Ok(Some(deadline)),
            (None, Some(ms), _) => Ok(Some(now.plus_ms(ms))),
            (None, None, Some(text)) => {
                let ms: u64 =
                    text.parse().map_err(|_| Invalid::field("expiration", "must be a number of milliseconds"))?;
                Ok(Some(now.plus_ms(ms.min(limits::DURATION_MS))))
            }
            (None, None, None) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    #[test]
    fn a_trace_follows_its_grammar_or_is_left_out_with_its_state() {
        let kept = |traceparent: &str| {
            let mut carried = Carried::default();
            carried.trace(Some(traceparent), Some("vendor=1"));
            assert_eq!(carried.tracestate.is_some(), carried.traceparent.is_some(), "{traceparent:?}");
            carried.traceparent
        };
        for good in ["00-T-P-01", "00-T-P-00", "00-T-P-ff", "01-T-P-01", "fe-T-P-01"] {
            let good = good.replace('T', TRACE).replace('P', PARENT);
            assert_eq!(kept(&good).as_deref(), Some(&*good), "as it came");
        }
        let zeros = "0".repeat(32);
        for (what, bad) in [
            ("nothing", ""),
            ("dashes", "---"),
            ("another version than there can be", "ff-T-P-01"),
            ("a version that is no number", "0x-T-P-01"),
            ("a trace of zeros", &*format!("00-{zeros}-P-01")),
            ("a parent of zeros", &*format!("00-T-{}-01", &zeros[..16])),
            ("three parts", "00-T-P"),
            ("five parts", "00-T-P-01-more"),
            ("five parts of a later version", "01-T-P-01-more"),
            ("a dash behind it", "00-T-P-01-"),
            ("blanks", " 00-T-P-01"),
            ("two lines", "00-T-P-01\n"),
            ("a trace too short", &*format!("00-{}-P-01", &TRACE[1..])),
            ("a trace too long", "00-Ta-P-01"),
            ("a parent too short", &*format!("00-T-{}-01", &PARENT[1..])),
            ("flags of one digit", "00-T-P-1"),
            ("flags that are none", "00-T-P-0g"),
            ("digits of another script", &*format!("00-{}-P-01", "\u{661}".repeat(16))),
            ("a parent and flags in one", "00-TP--01"),
        ] {
            assert_eq!(kept(&bad.replace('T', TRACE).replace('P', PARENT)), None, "{what}");
        }
        assert_eq!(kept(&format!("00-{}-{PARENT}-01", TRACE.to_uppercase())), None, "capitals");
    }

    #[test]
    fn a_trace_without_a_parent_has_no_state_and_a_state_has_its_limit() {
        let state = |traceparent: Option<String>, bytes: usize| {
            let mut carried = Carried::default();
            carried.trace(traceparent.as_deref(), Some(&"a".repeat(bytes)));
            carried.tracestate
        };
        let traceparent = Some(format!("00-{TRACE}-{PARENT}-01"));
        assert_eq!(state(traceparent.clone(), TRACESTATE_BYTES).map(|state| state.len()), Some(TRACESTATE_BYTES));
        assert_eq!(state(traceparent, TRACESTATE_BYTES + 1), None);
        assert_eq!(state(None, 1), None);
    }
}
