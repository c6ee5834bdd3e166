//! What lapin's errors come to in the port's words. Nothing here quotes the URL: it holds the password.

use std::time::Duration;

use lapin::ErrorKind;

use crate::broker::BrokerError;

/// Reply codes of AMQP 0-9-1 that mean something to this adapter.
pub(super) const ACCESS_REFUSED: u16 = 403;
pub(super) const NOT_FOUND: u16 = 404;
pub(super) const RESOURCE_LOCKED: u16 = 405;
pub(super) const PRECONDITION_FAILED: u16 = 406;
pub(super) const NOT_ALLOWED: u16 = 530;

/// One call to the broker that did not succeed.
pub(super) enum Failure {
    TimedOut(Duration),
    Amqp(lapin::Error),
}

impl Failure {
    /// The reply code, when the broker gave one.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Failure::TimedOut(_) => None,
            Failure::Amqp(error) => code(error),
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Failure::TimedOut(limit) => timed_out(*limit).to_string(),
            Failure::Amqp(error) => text(error),
        }
    }
}

impl From<Failure> for BrokerError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::TimedOut(limit) => timed_out(limit),
            Failure::Amqp(error) => broker_error(&error),
        }
    }
}

/// Runs one call under a time limit.
pub(super) async fn within<T>(limit: Duration, call: impl Future<Output = lapin::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(Failure::Amqp),
        Err(_) => Err(Failure::TimedOut(limit)),
    }
}

pub(super) fn timed_out(limit: Duration) -> BrokerError {
    BrokerError::TimedOut(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
}

/// The reply code, when it is the broker that ended the channel or connection.
pub(super) fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// The broker's own words where it gave any.
pub(super) fn text(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        _ => error.to_string(),
    }
}

/// An error on a session that once stood.
pub(super) fn broker_error(error: &lapin::Error) -> BrokerError {
    let text = text(error);
    match error.kind() {
        // A soft error ends one channel for something that was asked on it; a hard one ends the connection.
        ErrorKind::ProtocolError(_) if error.is_amqp_soft_error() => BrokerError::Refused(text),
        ErrorKind::ChannelsLimitReached | ErrorKind::SerialisationError(_) => BrokerError::Refused(text),
        _ => BrokerError::Cut(text),
    }
}
