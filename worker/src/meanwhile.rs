//! What goes between a task and the rest of the yard while it runs: how far it is and parts of its output on the way out, the
//! wish that it stop on the way in.
//!
//! A handler says something without waiting for anybody. One loop of the worker, the [`Pump`], takes what all tasks have said to
//! the store, many tasks to a call: whatever comes while a call is under way goes with the next. Parts of outputs keep their
//! order and are never left out without a mark; of progress only the newest counts, a few times a second.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;
use taskyard_shared::events::{Events, Topic};
use taskyard_shared::progress::{MESSAGE_BYTES, Progress};
use taskyard_shared::store::stream::STREAM_BYTES;
use taskyard_shared::store::{Append, Appended, Said, Store, until_answered};
use taskyard_shared::{Envelope, TaskId, Timestamp, Usage};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::metrics::Metrics;

/// A task's progress goes out no more often.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// What was said last is waited for so long when a task ends, so that its result comes behind it.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Tasks in one call of the store, and bytes of each.
const CALL: usize = 256;
const TURN_BYTES: usize = 64 << 10;

/// A task's line to the rest of the yard while it runs. The default one leads nowhere. Cheap to clone.
#[derive(Clone, Default)]
pub struct Meanwhile(Option<Arc<Speaker>>);

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Meanwhile").field(&self.0.as_ref().map(|speaker| speaker.id)).finish()
    }
}

impl Meanwhile {
    /// Says how far the task is, from 0 to 1; what is beyond is taken for the nearer of the two.
    pub fn progress(&self, progress: f64, message: Option<&str>) {
        let Some(speaker) = self.0.as_ref().filter(|_| !progress.is_nan()) else { return };
        let message = message.filter(|message| !message.is_empty()).map(|message| cut(message, MESSAGE_BYTES));
        let said = Progress { progress: progress.clamp(0.0, 1.0), message, at: Timestamp::now() };
        let Ok(body) = serde_json::to_vec(&said) else { return };
        speaker.say(|pending| pending.progress = Some(body.into()));
    }

    /// Adds a part to the output that whoever follows the task sees before it ends. It is no part of the result.
    pub fn partial(&self, part: Box<RawValue>) {
        let Some(speaker) = &self.0 else { return };
        let body = Bytes::from(Box::<str>::from(part).into_string());
        speaker.say(|pending| {
            // The part that is too much is handed on: the store makes the mark of it.
            if pending.said_bytes > STREAM_BYTES {
                pending.left_out += 1;
                return;
            }
            pending.said_bytes += body.len();
            pending.partials.push(body);
        });
    }

    /// Says what the task took of a model server that counts tokens. It goes into the result, and is counted whatever comes of the
    /// attempt. Said twice, it adds up.
    pub fn used(&self, usage: Usage) {
        let Some(speaker) = &self.0 else { return };
        let mut pending = speaker.pending();
        let before = pending.usage.take();
        pending.usage = Some(before.map_or(usage, |before| sum(before, usage)));
    }

    pub(crate) fn usage(&self) -> Option<Usage> {
        self.0.as_ref().and_then(|speaker| speaker.pending().usage)
    }

    /// Waits until somebody wants the task stopped. A handler that heeds it says so by [`Handler::grace`](crate::Handler::grace).
    pub async fn cancelled(&self) {
        match &self.0 {
            Some(speaker) => speaker.cancelled.cancelled().await,
            None => std::future::pending().await,
        }
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.as_ref().is_some_and(|speaker| speaker.cancelled.is_cancelled())
    }

    pub(crate) fn cancel(&self) {
        if let Some(speaker) = &self.0 {
            speaker.cancelled.cancel();
        }
    }

    /// The attempt was claimed under this number.
    pub(crate) fn is_attempt(&self, attempt: u32) {
        if let Some(speaker) = &self.0 {
            speaker.attempt.store(attempt, Ordering::Relaxed);
        }
    }

    /// Nothing more is said from now on. Waits, for a moment at most, until what was is with the store.
    pub(crate) async fn end(&self) {
        let Some(speaker) = &self.0 else { return };
        let ended = async {
            loop {
                let told = speaker.told.notified();
                if speaker.close() {
                    return;
                }
                told.await;
            }
        };
        if tokio::time::timeout(LAST_WORDS, ended).await.is_err() {
            let mut pending = speaker.pending();
            pending.left_out += pending.partials.len() as u64;
            pending.partials.clear();
            debug!(task.id = %speaker.id.0, "what it said last did not reach the store in time");
        }
        let left_out = std::mem::take(&mut speaker.pending().left_out);
        speaker.pump.metrics.partials_left_out(&speaker.model, left_out);
    }
}

fn sum(one: Usage, other: Usage) -> Usage {
    Usage {
        prompt_tokens: one.prompt_tokens.saturating_add(other.prompt_tokens),
        completion_tokens: one.completion_tokens.saturating_add(other.completion_tokens),
        cost: one.cost.zip(other.cost).map(|(one, other)| one + other).or(one.cost).or(other.cost),
    }
}

fn cut(text: &str, most_bytes: usize) -> String {
    let mut end = text.len().min(most_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// One attempt at a task.
struct Speaker {
    id: TaskId,
    model: Arc<str>,
    attempt: AtomicU32,
    nonce: u128,
    /// Of what it says no event is made.
    is_quiet: bool,
    cancelled: CancellationToken,
    pending: Mutex<Pending>,
    /// Something of it has reached the store.
    told: Notify,
    /// How many things it has said.
    said: AtomicU64,
    pump: Arc<Pump>,
}

#[derive(Default)]
struct Pending {
    partials: Vec<Bytes>,
    progress: Option<Bytes>,
    /// When progress was taken to the store last.
    progressed: Option<Instant>,
    /// Of all parts that were said.
    said_bytes: usize,
    /// Parts that were not handed on.
    left_out: u64,
    /// What it took of a model server.
    usage: Option<Usage>,
    /// The pump knows that there is something.
    is_known: bool,
    /// Some of it is on its way.
    is_under_way: bool,
    is_ending: bool,
    /// The attempt has no right to the task any more.
    is_silenced: bool,
}

impl Pending {
    /// When there is something to take, if there is.
    fn due(&self) -> Option<Instant> {
        let now = Instant::now();
        match (&self.progress, self.progressed) {
            _ if !self.partials.is_empty() => Some(now),
            (Some(_), Some(before)) if !self.is_ending => Some(before + PROGRESS_EVERY),
            (Some(_), _) => Some(now),
            (None, _) => None,
        }
    }

    fn take(&mut self) -> Vec<Said> {
        let mut bytes = 0;
        let fits = self.partials.iter().take_while(|part| {
            let fits = bytes < TURN_BYTES;
            bytes += part.len();
            fits
        });
        let fits = fits.count();
        let mut said: Vec<Said> = self.partials.drain(..fits).map(Said::Partial).collect();
        let now = Instant::now();
        let is_due = self.is_ending || self.progressed.is_none_or(|before| now >= before + PROGRESS_EVERY);
        if is_due
            && self.partials.is_empty()
            && let Some(progress) = self.progress.take()
        {
            self.progressed = Some(now);
            said.push(Said::Progress(progress));
        }
        said
    }
}

impl Speaker {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(self: &Arc<Self>, what: impl FnOnce(&mut Pending)) {
        let mut pending = self.pending();
        if pending.is_ending || pending.is_silenced {
            return;
        }
        what(&mut pending);
        self.make_known(&mut pending);
    }

    fn make_known(self: &Arc<Self>, pending: &mut Pending) {
        if !pending.is_known && !pending.is_under_way && pending.due().is_some() {
            pending.is_known = true;
            self.pump.add(self.clone());
        }
    }

    /// Takes no more; whether all is with the store.
    fn close(self: &Arc<Self>) -> bool {
        let mut pending = self.pending();
        let is_new = !std::mem::replace(&mut pending.is_ending, true);
        if pending.is_silenced || pending.due().is_none() && !pending.is_under_way {
            return true;
        }
        if is_new && pending.is_known {
            // It may be waiting for the time of its next progress.
            self.pump.wake.notify_one();
        }
        self.make_known(&mut pending);
        false
    }
}

/// Takes what tasks say to the store.
pub(crate) struct Pump {
    waiting: Mutex<Vec<Arc<Speaker>>>,
    wake: Notify,
    metrics: Metrics,
    events: Events,
}

impl Pump {
    pub fn new(metrics: Metrics, events: Events) -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::default(), wake: Notify::new(), metrics, events })
    }

    pub fn line(self: &Arc<Self>, envelope: &Envelope, model: &Arc<str>, attempt: u32, nonce: u128) -> Meanwhile {
        Meanwhile(Some(Arc::new(Speaker {
            id: envelope.id,
            model: model.clone(),
            attempt: AtomicU32::new(attempt),
            nonce,
            is_quiet: envelope.extras.mirrors.is_some(),
            cancelled: CancellationToken::new(),
            pending: Mutex::default(),
            told: Notify::new(),
            said: AtomicU64::new(1),
            pump: self.clone(),
        })))
    }

    fn add(&self, speaker: Arc<Speaker>) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(speaker);
        self.wake.notify_one();
    }

    /// Runs until `closing`.
    pub async fn run(self: Arc<Self>, store: Arc<dyn Store>, closing: CancellationToken) {
        // Those whose next progress is not due yet, and those that did not fit.
        let mut later: Vec<Arc<Speaker>> = Vec::new();
        loop {
            let due = later.iter().filter_map(|speaker| speaker.pending().due()).min();
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                () = self.wake.notified() => {}
                () = crate::long::until(due), if due.is_some() => {}
            }
            let mut speakers = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            speakers.append(&mut later);
            let mut spoken = Vec::new();
            for speaker in speakers {
                if spoken.len() == CALL {
                    later.push(speaker);
                    continue;
                }
                match turn(&speaker) {
                    Some(append) if !append.said.is_empty() => spoken.push((speaker, append)),
                    Some(_) => later.push(speaker),
                    None => {}
                }
            }
            if spoken.is_empty() {
                continue;
            }
            for (speaker, append) in &spoken {
                self.publish(speaker, append);
            }
            let appends: Vec<Append> = spoken.iter().map(|(_, append)| append.clone()).collect();
            let call = || store.append(appends.clone());
            let Some(appended) = until_answered("progress and partial outputs", &closing, call).await else { return };
            for ((speaker, _), appended) in spoken.into_iter().zip(appended) {
                let mut pending = speaker.pending();
                pending.is_under_way = false;
                if appended == Appended::Stale {
                    pending.is_silenced = true;
                }
                if appended != Appended::Stale && pending.due().is_some() {
                    pending.is_known = true;
                    drop(pending);
                    later.push(speaker.clone());
                }
                speaker.told.notify_one();
            }
        }
    }
}

impl Pump {
    /// To whoever listens at the broker.
    fn publish(&self, speaker: &Speaker, append: &Append) {
        if speaker.is_quiet {
            return;
        }
        for said in &append.said {
            let number = speaker.said.fetch_add(1, Ordering::Relaxed);
            let of = (speaker.id, append.attempt, number);
            match said {
                Said::Partial(part) if self.events.wanted(Topic::Partial, &speaker.model) => {
                    self.events.partial(&speaker.model, of, part);
                }
                Said::Progress(progress) if self.events.wanted(Topic::Progress, &speaker.model) => {
                    self.events.progress(&speaker.model, of, progress);
                }
                Said::Partial(_) | Said::Progress(_) => {}
            }
        }
    }
}

/// What a speaker that is known has to say now; `None` when there is nothing to come of it.
fn turn(speaker: &Speaker) -> Option<Append> {
    let mut pending = speaker.pending();
    if pending.is_silenced || pending.due().is_none() {
        pending.is_known = false;
        return None;
    }
    let said = pending.take();
    (pending.is_known, pending.is_under_way) = (said.is_empty(), !said.is_empty());
    Some(Append { id: speaker.id, attempt: speaker.attempt.load(Ordering::Relaxed), nonce: speaker.nonce, said })
}
