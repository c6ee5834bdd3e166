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
