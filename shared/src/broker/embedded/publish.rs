//! Publishing: find the queues, keep places in them, have the journal write, and only then make the messages ready.

use std::iter::Sum;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::queue::{Content, Entry, Queue, weight};
use super::{MESSAGE_BYTES, Shared, record};
use crate::broker::operations::count;
use crate::broker::{Destination, Message, Properties, PublishError, QueueKind};
use crate::journal::JournalError;

/// What a message is taken to need beside its body and headers: its properties, its place in the queue.
const MESSAGE_OVERHEAD_BYTES: usize = 512;

/// What messages count for against the broker's limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Weight {
    pub messages: usize,
    pub bytes: usize,
}

impl Weight {
    pub fn of(body: &Bytes, properties: &Properties) -> Self {
        let headers: usize = properties.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        Self { messages: 1, bytes: body.len() + headers + MESSAGE_OVERHEAD_BYTES }
    }
}

impl Sum for Weight {
    fn sum<I: Iterator<Item = Self>>(weights: I) -> Self {
        weights.fold(Self::default(), |sum, weight| Self {
            messages: sum.messages + weight.messages,
            bytes: sum.bytes + weight.bytes,
        })
    }
}

pub(super) async fn publish(shared: &Arc<Shared>, messages: Vec<Message>) -> Vec<Result<(), PublishError>> {
    if shared.closed.load(Ordering::Acquire) {
        return messages.iter().map(|_| Err(PublishError::Unknown(JournalError::Closed.to_string()))).collect();
    }
    let operations = &shared.operations;
    count(&operations.published, messages.len() as u64);
    count(&operations.bytes_sent, messages.iter().map(|message| message.body.len() as u64).sum());
    let (mut answers, flight) = Flight::board(shared, messages);
    if flight.journal_bytes == 0 {
        flight.land();
        return answers;
    }
    let limit_ms = shared.limits.publish_timeout_ms;
    let failure = match tokio::time::timeout(Duration::from_millis(limit_ms), write(shared, flight)).await {
        Ok(Ok(())) => return answers,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the disk did not take it within {limit_ms} ms"),
    };
    // Those that need no disk waited for the others, to stay in order; they share their fate.
    for answer in answers.iter_mut().filter(|answer| answer.is_ok()) {
        *answer = Err(PublishError::Unknown(failure.clone()));
    }
    answers
}

/// Has the journal write what is durable. The messages become ready when it is, even if nobody waits any more.
async fn write(shared: &Shared, mut flight: Flight) -> Result<(), JournalError> {
    let Some(journal) = &shared.journal else { return Err(JournalError::Closed) };
    let mut batch = journal.reserve(flight.journal_bytes).await?;
    for lot in flight.lots.iter_mut().filter(|lot| lot.queue.kind == QueueKind::Durable) {
        for entry in lot.entries.iter_mut().filter(|entry| entry.content.persistent) {
            entry.address = Some(batch.put(|out| record::put_message(out, lot.queue.number, &entry.content)));
        }
    }
    let (answer, answered) = oneshot::channel();
    let done = move |result: Result<(), JournalError>| {
        match result {
            Ok(()) => flight.land(),
            Err(_) => drop(flight),
        }
        // The publisher may have gone.
        drop(answer.send(result));
    };
    batch.submit(false, Some(Box::new(done)));
    answered.await.unwrap_or(Err(JournalError::Closed))
}

/// Messages that have places in queues and are not there yet. Dropping it gives the places back.
struct Flight {
    shared: Arc<Shared>,
    lots: Vec<Lot>,
    /// About how much the journal has to write.
    journal_bytes: usize,
}

/// The messages for one queue, in order.
struct Lot {
    queue: Arc<Queue>,
    entries: Vec<Entry>,
}

/// Where a message goes: its routing key, and its lots by their place.
struct Way {
    key: Arc<str>,
    lots: Vec<usize>,
}

impl Flight {
    /// Keeps places for all messages that can have them, and answers for each whether it has.
    fn board(shared: &Arc<Shared>, messages: Vec<Message>) -> (Vec<Result<(), PublishError>>, Self) {
        let mut flight = Self { shared: shared.clone(), lots: Vec::new(), journal_bytes: 0 };
        let mut answers = Vec::with_capacity(messages.len());
        let routing = shared.routing.read().unwrap_or_else(PoisonError::into_inner);
        // Messages in a row mostly go the same way: the last one's is kept.
        let mut last: Option<(Destination, Way)> = None;
        for Message { to, body, properties, persistent, mandatory } in messages {
            if body.len() > MESSAGE_BYTES {
                answers.push(Err(PublishError::TooLarge));
                continue;
            }
            if last.as_ref().is_none_or(|(last, _)| *last != to) {
                let Some(queues) = routing.route(&to) else {
                    answers.push(Err(PublishError::Unroutable));
                    continue;
                };
                let (Destination::Queue(key) | Destination::Exchange { key, .. }) = &to;
                let key = key.as_str().into();
                let lots = queues.into_iter().map(|queue| flight.lot(queue)).collect();
                last = Some((to, Way { key, lots }));
            }
            answers.push(match &last {
                Some((_, way)) if !way.lots.is_empty() => {
                    flight.take(&way.lots, Content { body, properties, routing_key: way.key.clone(), persistent })
                }
                _ if mandatory => Err(PublishError::Unroutable),
                _ => Ok(()),
            });
        }
        drop(routing);
        (answers, flight)
    }

    fn lot(&mut self, queue: Arc<Queue>) -> usize {
        let found = self.lots.iter().position(|lot| Arc::ptr_eq(&lot.queue, &queue));
        found.unwrap_or_else(|| {
            self.lots.push(Lot { queue, entries: Vec::new() });
            self.lots.len() - 1
        })
    }

    /// Into all of the lots, or into none.
    fn take(&mut self, lots: &[usize], content: Content) -> Result<(), PublishError> {
        let one = Weight::of(&content.body, &content.properties);
        let all = Weight { messages: lots.len(), bytes: one.bytes * lots.len() };
        let fits = self.shared.hold(all);
        let admitted = if fits { lots.iter().take_while(|lot| self.lots[**lot].queue.admit()).count() } else { 0 };
        if admitted < lots.len() {
            for lot in &lots[..admitted] {
                self.lots[*lot].queue.leave(1);
            }
            if fits {
                self.shared.release(all);
            }
            return Err(PublishError::Full);
        }
        let content = Arc::new(content);
        for lot in lots {
            let lot = &mut self.lots[*lot];
            if content.persistent && lot.queue.kind == QueueKind::Durable && self.shared.journal.is_some() {
                self.journal_bytes += one.bytes;
            }
            lot.entries.push(Entry::new(content.clone()));
        }
        Ok(())
    }

    /// Makes all of them ready.
    fn land(mut self) {
        for lot in std::mem::take(&mut self.lots) {
            lot.queue.push(lot.entries);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        for lot in &self.lots {
            lot.queue.leave(lot.entries.len() as u64);
            self.shared.release(weight(&lot.entries));
        }
    }
}
