//! Publishing with confirms. Each call takes a channel of its own, writes its messages and awaits their confirms
//! together, so calls neither wait for one another nor share the fate of a channel.
//!
//! That a call has its channel to itself also makes returns certain. The broker returns an unroutable message before it
//! confirms it, but lapin hands the return to whichever confirm comes next, and one confirm may stand for many
//! messages: a return says that *some* message of the channel was unroutable. Its own contents say which.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::convert::{short, to_amqp};
use super::errors::{self, Failure, timed_out, within};
use super::link::Link;
use super::session::{Session, retire};
use crate::broker::{BrokerError, Destination, Message, PublishError};

type Answer = Result<(), PublishError>;

/// Calls that publish at once; more wait for a channel.
const MAX_CHANNELS: usize = 64;
/// Bodies of one part of a call, so that what lapin copies is bounded in bytes too. A larger message goes alone.
const MAX_PART_BYTES: usize = 4 << 20;

pub(super) struct Publisher {
    pub(super) link: Link,
    /// One permit a message, so that what lapin holds in memory is bounded.
    in_flight: Arc<Semaphore>,
    most_in_flight: u32,
    channels: Arc<Semaphore>,
    idle: Mutex<Idle>,
    limit: Duration,
}

/// Channels in confirm mode with nothing outstanding, of one session.
#[derive(Default)]
struct Idle {
    session: u64,
    channels: Vec<Channel>,
}

impl Publisher {
    /// `channel_max` is the broker's.
    pub(super) fn new(link: Link, channel_max: u16, in_flight: usize, limit: Duration) -> Self {
        let most_in_flight = u32::try_from(in_flight.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        // Half: a channel that is being closed still counts.
        let channels = usize::from(channel_max / 2).clamp(1, MAX_CHANNELS);
        Self {
            link,
            in_flight: Arc::new(Semaphore::new(most_in_flight as usize)),
            most_in_flight,
            channels: Arc::new(Semaphore::new(channels)),
            idle: Mutex::default(),
            limit,
        }
    }

    pub(super) async fn publish(self: Arc<Self>, messages: Vec<Message>) -> Vec<Answer> {
        let count = messages.len();
        // On a task of its own: a caller that stops waiting must not leave a channel half written.
        match tokio::spawn(self.publish_all(messages)).await {
            Ok(answers) => answers,
            Err(error) => vec![Err(unknown(format!("publishing was broken off: {error}"))); count],
        }
    }

    async fn publish_all(self: Arc<Self>, mut messages: Vec<Message>) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(messages.len());
        let mut deadline = Instant::now() + self.limit;
        while !messages.is_empty() {
            let rest = messages.split_off(self.part(&messages));
            let sent = self.publish_some(&messages, deadline).await;
            // Each part that went through earns the next one its time.
            if sent.iter().all(Result::is_ok) {
                deadline = Instant::now() + self.limit;
            }
            answers.extend(sent);
            messages = rest;
        }
        answers
    }

    /// How many of the messages to publish together: at least one.
    fn part(&self, messages: &[Message]) -> usize {
        // Half of what may be in flight, so that a large call leaves room for others.
        let most = self.most_in_flight.div_ceil(2) as usize;
        let mut bytes = 0_usize;
        let fits = messages.iter().take(most).take_while(|message| {
            bytes = bytes.saturating_add(message.body.len());
            bytes <= MAX_PART_BYTES
        });
        fits.count().max(1)
    }

    async fn publish_some(&self, messages: &[Message], deadline: Instant) -> Vec<Answer> {
        match self.begin(messages.len(), deadline).await {
            Ok(lease) => lease.send(messages, deadline, self.limit).await,
            Err(reason) => vec![Err(unknown(reason)); messages.len()],
        }
    }

    async fn begin(&self, count: usize, deadline: Instant) -> Result<Lease<'_>, BrokerError> {
        let busy = || timed_out(self.limit);
        // What was left of the time is of no use to the reader.
        let whole = |failure| match failure {
            Failure::TimedOut(_) => busy(),
            other => other.into(),
        };
        let permits = u32::try_from(count).unwrap_or(u32::MAX);
        let in_flight = timeout_at(deadline, self.in_flight.clone().acquire_many_owned(permits)).await;
        let in_flight = in_flight.map_err(|_| busy())?.map_err(|_| BrokerError::Closed)?;
        let turn = timeout_at(deadline, self.channels.clone().acquire_owned()).await;
        let turn = turn.map_err(|_| busy())?.map_err(|_| BrokerError::Closed)?;
        loop {
            let session = self.link.unblocked(deadline).await?;
            match self.channel(&session, deadline).await {
                Ok(channel) => return Ok(Lease { publisher: self, session, channel, _permits: [in_flight, turn] }),
                // The session ended meanwhile; the next one may come in time.
                Err(_) if !session.is_alive() && Instant::now() < deadline => {}
                Err(failure) => return Err(whole(failure)),
            }
        }
    }

    async fn channel(&self, session: &Session, deadline: Instant) -> Result<Channel, Failure> {
        {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.session == session.number {
                while let Some(channel) = idle.channels.pop() {
                    if channel.status().connected() {
                        return Ok(channel);
                    }
                }
            }
        }
        let channel = session.channel(deadline.saturating_duration_since(Instant::now())).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        match within(left, channel.confirm_select(ConfirmSelectOptions::default())).await {
            Ok(()) => Ok(channel),
            Err(failure) => {
                retire(channel);
                Err(failure)
            }
        }
    }

    fn give_back(&self, session: &Session, channel: Channel) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.session < session.number {
            // Those of an older session are gone with it.
            *idle = Idle { session: session.number, channels: Vec::new() };
        }
        if idle.session == session.number {
            idle.channels.push(channel);
        }
    }

    /// Waits until nothing is under way, at most as long as a publish may take.
    pub(super) async fn settle_down(&self) {
        // What is still out when the time is up will be told that it is not known.
        let _ = tokio::time::timeout(self.limit, self.in_flight.acquire_many(self.most_in_flight)).await;
    }
}

/// A channel for one call.
struct Lease<'a> {
    publisher: &'a Publisher,
    session: Arc<Session>,
    channel: Channel,
    _permits: [OwnedSemaphorePermit; 2],
}

impl Lease<'_> {
    async fn send(self, messages: &[Message], deadline: Instant, limit: Duration) -> Vec<Answer> {
        let began = Instant::now();
        let written = AtomicUsize::new(0);
        let mut book = Book::new(messages);
        let mut sending = FuturesUnordered::new();
        let mut begun = 0;
        for (index, message) in messages.iter().enumerate() {
            let (exchange, key, properties) = match encode(message) {
                Ok(encoded) => encoded,
                Err(refusal) => {
                    book.answer(index, Err(refusal));
                    continue;
                }
            };
            begun += 1;
            let (channel, written) = (&self.channel, &written);
            let mut publishing: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move {
                let options = BasicPublishOptions { mandatory: message.mandatory, immediate: false };
                let confirm = channel.basic_publish(exchange, key, options, &message.body, properties).await;
                written.fetch_add(1, Ordering::Relaxed);
                let confirmation = match confirm {
                    Ok(confirm) => confirm.await,
                    Err(error) => Err(error),
                };
                (index, confirmation)
            });
            // The first poll puts the message into lapin's queue: in this loop, hence in order.
            match (&mut publishing).now_or_never() {
                Some((index, confirmation)) => book.note(index, confirmation),
                None => sending.push(publishing),
            }
        }

        let mut in_time = true;
        while in_time {
            match timeout_at(deadline, sending.next()).await {
                Ok(Some((index, confirmation))) => book.note(index, confirmation),
                Ok(None) => break,
                Err(_) => in_time = false,
            }
        }
        if !in_time {
            // lapin settles what one frame confirms one by one, and a return may hang on the last of them. This call
            // takes the lock that it holds meanwhile, so afterwards all of them can be read.
            let _ = self.channel.wait_for_confirms().now_or_never();
            while let Some(Some((index, confirmation))) = sending.next().now_or_never() {
                book.note(index, confirmation);
            }
        }
        drop(sending);

        if book.confirmed {
            self.session.note_confirm();
        }
        if in_time && book.failure.is_none() && self.channel.status().connected() {
            self.publisher.give_back(&self.session, self.channel.clone());
        } else if !in_time && self.is_stuck(began, written.into_inner() < begun) {
            self.session.fail(timed_out(limit));
        } else {
            retire(self.channel.clone());
        }
        book.close(limit)
    }

    /// Whether time ran out because the connection is dead, and not because one queue is.
    fn is_stuck(&self, began: Instant, unwritten: bool) -> bool {
        // What is not written is dropped with the session, and cannot land after all.
        unwritten || (!self.session.confirmed_since(began) && !self.session.connection.status().blocked())
    }
}

fn encode(message: &Message) -> Result<(ShortString, ShortString, BasicProperties), PublishError> {
    let (exchange, key) = match &message.to {
        Destination::Queue(queue) => ("", queue.as_str()),
        Destination::Exchange { name, key } => (name.as_str(), key.as_str()),
    };
    // No queue, exchange or binding can have a longer name.
    let exchange = short(exchange).map_err(|_| PublishError::Unroutable)?;
    let key = short(key).map_err(|_| PublishError::Unroutable)?;
    let properties = to_amqp(&message.properties, message.persistent).map_err(|_| PublishError::TooLarge)?;
    Ok((exchange, key, properties))
}

fn unknown(reason: impl ToString) -> PublishError {
    PublishError::Unknown(reason.to_string())
}

/// What became of the messages of one call.
struct Book<'a> {
    messages: &'a [Message],
    answers: Vec<Option<Answer>>,
    returned: Vec<BasicReturnMessage>,
    failure: Option<lapin::Error>,
    confirmed: bool,
}

impl<'a> Book<'a> {
    fn new(messages: &'a [Message]) -> Self {
        Self { messages, answers: vec![None; messages.len()], returned: Vec::new(), failure: None, confirmed: false }
    }

    fn answer(&mut self, index: usize, answer: Answer) {
        if let Some(slot) = self.answers.get_mut(index) {
            *slot = Some(answer);
        }
    }

    fn note(&mut self, index: usize, confirmation: lapin::Result<Confirmation>) {
        match confirmation {
            Ok(Confirmation::Ack(returned)) => {
                self.confirmed = true;
                self.returned.extend(returned);
                self.answer(index, Ok(()));
            }
            Ok(Confirmation::Nack(returned)) => {
                self.confirmed = true;
                self.returned.extend(returned);
                self.answer(index, Err(PublishError::Full));
            }
            Ok(Confirmation::NotRequested) => self.answer(index, Err(unknown("the channel gives no confirms"))),
            // It failed with its channel, and that is told for all of them at the end.
            Err(error) => self.failure = self.failure.take().or(Some(error)),
        }
    }

    fn close(mut self, limit: Duration) -> Vec<Answer> {
        for returned in std::mem::take(&mut self.returned) {
            match self.find(&returned) {
                Some(index) => self.answer(index, Err(PublishError::Unroutable)),
                None => tracing::error!(
                    exchange = %returned.exchange,
                    key = %returned.routing_key,
                    "the broker returned a message that was not among those published"
                ),
            }
        }
        let failure = self.failure.as_ref();
        self.messages
            .iter()
            .zip(self.answers)
            .map(|(message, answer)| answer.unwrap_or_else(|| Err(unanswered(message, failure, limit))))
            .collect()
    }

    /// The message that was returned. Of several that are the same it does not matter which.
    fn find(&self, returned: &BasicReturnMessage) -> Option<usize> {
        let id = returned.properties.message_id().as_ref().map(ShortString::as_str);
        self.messages.iter().enumerate().position(|(index, message)| {
            let (exchange, key) = match &message.to {
                Destination::Queue(queue) => ("", queue.as_str()),
                Destination::Exchange { name, key } => (name.as_str(), key.as_str()),
            };
            message.mandatory
                && self.answers.get(index) != Some(&Some(Err(PublishError::Unroutable)))
                && key == returned.routing_key.as_str()
                && exchange == returned.exchange.as_str()
                && message.properties.message_id.as_deref() == id
                && message.body == returned.data
        })
    }
}

/// What to say of a message that got no confirm.
fn unanswered(message: &Message, failure: Option<&lapin::Error>, limit: Duration) -> PublishError {
    let Some(error) = failure else { return unknown(timed_out(limit)) };
    let text = errors::text(error);
    match (errors::code(error), &message.to) {
        // One bad message closes the channel for all; the text says which it was, and the others are to be repeated.
        (Some(errors::NOT_FOUND), Destination::Exchange { name, .. }) if text.contains(&format!("'{name}'")) => {
            PublishError::Unroutable
        }
        (Some(errors::PRECONDITION_FAILED), _) if max_size(&text).is_some_and(|most| message.body.len() > most) => {
            PublishError::TooLarge
        }
        _ => unknown(text),
    }
}

/// From `PRECONDITION_FAILED - message size 17000000 is larger than configured max size 16777216`.
fn max_size(text: &str) -> Option<usize> {
    let (_, rest) = text.split_once("larger than")?;
    let digits: String = rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_read_from_both_wordings() {
        let old = "PRECONDITION_FAILED - message size 20971520 larger than max size 16777216";
        let new = "PRECONDITION_FAILED - message size 20971520 is larger than configured max size 16777216";
        assert_eq!(max_size(old), Some(16_777_216));
        assert_eq!(max_size(new), Some(16_777_216));
        assert_eq!(max_size("PRECONDITION_FAILED - something else 5"), None);
    }
}
