//! Looks through the dead letters without taking them away.
//!
//! The queue is their only home: nothing else has to be kept in step with it, and whoever reads it with a tool of his own
//! sees the same. A queue has no look-up, so all of it is taken and what is not settled goes back to where it was. It is
//! taken in parts, each by a consumer whose prefetch bounds what is in memory at once. See decision 12.

use std::sync::Arc;
use std::time::{Duration, Instant};

use taskyard_shared::Topology;
use taskyard_shared::broker::{Broker, BrokerError, Consumer, Lock, Tag, Verdict};
use taskyard_shared::dead::Letter;
use tokio::sync::Mutex;

/// Letters looked at in one go, from the oldest on; what lies behind them is seen once they are gone.
const LOOKED_AT: usize = 50_000;
/// The first part, while it is not known how large letters are.
const FIRST_PART: usize = 32;
/// No part is larger.
const LARGEST_PART: usize = 4_096;
/// What a part takes in memory, about.
const PART_BYTES: usize = 32 << 20;
/// Parts of one look; each is a consumer, and a broker bounds how many a connection has.
const PARTS: usize = 100;
/// Letters in hand at once.
const STEP: usize = 256;
/// A look takes no longer, and has not seen all then.
const LONGEST: Duration = Duration::from_secs(20);
/// How long somebody else who looks is waited for.
const TURN: Duration = Duration::from_secs(10);
/// When nothing comes for so long, it is asked whether there is more.
const QUIET: Duration = Duration::from_millis(200);
/// How often a state is asked for that is waited for.
const AGAIN: Duration = Duration::from_millis(10);
/// How long letters that go back are waited for, so that the next look finds them.
const BACK: Duration = Duration::from_secs(2);

/// What somebody who looks wants of the letters.
pub(crate) trait Reader: Send {
    /// Whether this one is to be dealt with.
    fn wants(&mut self, letter: &Letter) -> bool;

    /// Deals with some, and answers which of them are done with: those leave the queue.
    fn deal(&mut self, letters: Vec<Letter>) -> impl Future<Output = Vec<bool>> + Send;

    /// Whether the rest is of no interest.
    fn has_enough(&self) -> bool {
        false
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("somebody else is looking through the dead letters")]
    Busy,
}

/// How far a look got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Looked {
    pub letters: usize,
    /// There is none that was not looked at.
    pub complete: bool,
}

pub(crate) struct DeadLetters {
    broker: Arc<dyn Broker>,
    queue: String,
    lock: String,
    /// Two that look at once would each see a part.
    turn: Mutex<()>,
}

impl DeadLetters {
    pub fn new(broker: Arc<dyn Broker>, topology: &Topology) -> Self {
        Self { broker, queue: topology.dead(), lock: topology.dead_lock(), turn: Mutex::new(()) }
    }

    /// Shows every letter to `reader`, the oldest first. Dropping the call leaves in the queue what was not done with.
    pub async fn look(&self, reader: &mut impl Reader) -> Result<Looked, Failure> {
        let began = Instant::now();
        let Ok(_turn) = tokio::time::timeout(TURN, self.turn.lock()).await else { return Err(Failure::Busy) };
        let _lock = self.take_lock(began + TURN).await?;
        let mut look = Look { letters: self, taken: Vec::new(), seen: 0, largest: 0 };
        let complete = look.through(reader, Instant::now() + LONGEST).await?;
        let letters = look.seen;
        look.give_back().await;
        Ok(Looked { letters, complete })
    }

    async fn take_lock(&self, until: Instant) -> Result<Box<dyn Lock>, Failure> {
        loop {
            if let Some(lock) = self.broker.try_lock(&self.lock).await? {
                return Ok(lock);
            }
            if Instant::now() >= until {
                return Err(Failure::Busy);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn ready(&self) -> Result<u64, BrokerError> {
        Ok(self.broker.queue_state(&self.queue).await?.map_or(0, |state| state.ready))
    }
}

/// One look, with what it has taken.
struct Look<'a> {
    letters: &'a DeadLetters,
    taken: Vec<Part>,
    seen: usize,
    /// Bytes of the largest body so far.
    largest: usize,
}

/// What one consumer took.
struct Part {
    consumer: Box<dyn Consumer>,
    /// Letters that it may have in hand.
    room: usize,
    /// Those that stay.
    kept: Vec<Tag>,
}

impl Look<'_> {
    /// Whether all that were there at its beginning came by. What dies meanwhile, perhaps of being tried again, is left to
    /// the next look.
    async fn through(&mut self, reader: &mut impl Reader, until: Instant) -> Result<bool, BrokerError> {
        let there = usize::try_from(self.letters.ready().await?).unwrap_or(usize::MAX);
        let most = there.min(LOOKED_AT);
        while self.seen < most {
            if reader.has_enough() || Instant::now() >= until {
                return Ok(false);
            }
            let left = most - self.seen;
            if self.taken.len() >= PARTS && self.is_full() {
                return Ok(false);
            }
            let part = self.part().await?;
            let step = STEP.min(part.room.saturating_sub(part.kept.len())).min(left);
            let Ok(deliveries) = tokio::time::timeout(QUIET, part.consumer.next_batch(step)).await else {
                // Others take letters too.
                if self.letters.ready().await? == 0 {
                    return Ok(true);
                }
                continue;
            };
            let (mut tags, mut wanted) = (Vec::new(), Vec::new());
            for delivery in deliveries? {
                self.seen += 1;
                self.largest = self.largest.max(delivery.body.len());
                let letter = Letter::read(&delivery.properties, delivery.body);
                if reader.wants(&letter) {
                    tags.push(delivery.tag);
                    wanted.push(letter);
                } else {
                    self.keep(delivery.tag);
                }
            }
            if !wanted.is_empty() {
                let done = reader.deal(wanted).await;
                self.settle(tags, &done).await;
            }
        }
        Ok(there <= LOOKED_AT)
    }

    /// The consumer that has room: one more, once the last is full.
    async fn part(&mut self) -> Result<&mut Part, BrokerError> {
        if self.is_full() {
            let room = match self.largest {
                0 => FIRST_PART,
                bytes => (PART_BYTES / bytes).clamp(1, LARGEST_PART),
            };
            let consumer = self.letters.broker.consume(&self.letters.queue, room as u16).await?;
            self.taken.push(Part { consumer, room, kept: Vec::new() });
        }
        // There is one now.
        self.taken.last_mut().ok_or_else(|| BrokerError::Refused("no consumer".to_owned()))
    }

    fn is_full(&self) -> bool {
        self.taken.last().is_none_or(|part| part.kept.len() >= part.room)
    }

    fn keep(&mut self, tag: Tag) {
        if let Some(part) = self.taken.last_mut() {
            part.kept.push(tag);
        }
    }

    async fn settle(&mut self, tags: Vec<Tag>, done: &[bool]) {
        let is_done = |at: usize| done.get(at).copied().unwrap_or(false);
        let mut settled = Vec::new();
        for (at, tag) in tags.into_iter().enumerate() {
            if is_done(at) { settled.push(tag) } else { self.keep(tag) }
        }
        if let Some(part) = self.taken.last().filter(|_| !settled.is_empty()) {
            // One of which the broker does not hear comes again, and is done with again: that changes nothing.
            let _void = part.consumer.acker().settle(settled, Verdict::Ack).await;
        }
    }

    /// Gives back what stays, and waits until it is there again.
    async fn give_back(mut self) {
        let kept: usize = self.taken.iter().map(|part| part.kept.len()).sum();
        // None may be there to take what goes back.
        for part in &mut self.taken {
            let _gone = part.consumer.cancel().await;
        }
        for part in &mut self.taken {
            let _void = part.consumer.acker().settle(std::mem::take(&mut part.kept), Verdict::Requeue).await;
        }
        self.taken.clear();
        let until = Instant::now() + BACK;
        while Instant::now() < until && self.letters.ready().await.is_ok_and(|ready| ready < kept as u64) {
            tokio::time::sleep(AGAIN).await;
        }
    }
}
