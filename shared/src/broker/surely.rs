//! Publishing that does not give up: what must arrive is tried again until the broker has confirmed it.

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Broker, Message, PublishError};
use crate::retry::Backoff;

/// What a message that does not arrive means to its sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Work: it is tried again until it is confirmed.
    Work,
    /// Wanted by somebody who may be gone: tried again, unless no queue takes it or it is too large.
    Reply,
    /// Losing it costs little: tried once.
    Hint,
}

/// What became of messages that need not arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Missed {
    /// Replies that no queue took.
    pub unroutable: usize,
    /// Replies larger than the broker takes.
    pub too_large: usize,
    /// Hints that were not confirmed.
    pub hints: usize,
}

/// The owner closed before everything was confirmed: what is not acked comes again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("closed before everything was confirmed")]
pub struct Closing;

/// Publishes all, in order, and tries again what is needed and was not confirmed, until `closing`.
///
/// # Errors
/// [`Closing`] when that came first.
pub async fn publish_surely(
    broker: &dyn Broker,
    messages: Vec<(Message, Need)>,
    closing: &CancellationToken,
) -> Result<Missed, Closing> {
    let mut missed = Missed::default();
    let mut pending = messages;
    let mut tries = 0;
    while !pending.is_empty() {
        let answers = tokio::select! {
            biased;
            // First: what is done is done, also when closing, and whoever asked can ack.
            answers = broker.publish(pending.iter().map(|(message, _)| message.clone()).collect()) => answers,
            () = closing.cancelled() => return Err(Closing),
        };
        let mut failed = Vec::new();
        let mut last = None;
        for ((message, need), answer) in pending.into_iter().zip(answers) {
            match (answer, need) {
                (Ok(()), _) => {}
                (Err(_), Need::Hint) => missed.hints += 1,
                (Err(PublishError::Unroutable), Need::Reply) => missed.unroutable += 1,
                (Err(PublishError::TooLarge), Need::Reply) => missed.too_large += 1,
                (Err(failure), _) => {
                    last = Some(failure);
                    failed.push((message, need));
                }
            }
        }
        pending = failed;
        if let Some(failure) = last {
            tries += 1;
            if tries == 1 {
                warn!(%failure, messages = pending.len(), "messages wait for the broker");
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(Backoff::RECONNECT.delay(tries, fastrand::f64())) => {}
                () = closing.cancelled() => return Err(Closing),
            }
        }
    }
    Ok(missed)
}
