//! A broker that does what was measured of RabbitMQ at its worst: see [`Link`] for what is done to what is published. When a link is cut
//! its deliveries are void and go back, at their place or behind all others, marked as redelivered or not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use taskyard_shared::broker::{
    Acker, Broker, BrokerError, BrokerInfo, Consumer, Delivery, Destination, Lock, Message, PublishError, QueueSpec,
    QueueState, Tag, Verdict,
};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep};

use crate::link::{Link, Publishing};
use crate::trace::Trace;

/// A confirm is waited for no longer.
const CONFIRM: Duration = Duration::from_secs(10);
/// An ack of less than this ago may not be on disk when the broker is killed.
const ACK_UNSAFE: Duration = Duration::from_millis(50);
/// What lands late lands after this.
const LATE: Duration = Duration::from_secs(12);

/// How deliveries come back after a cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Back {
    /// Behind what waits, instead of at their place.
    pub behind: bool,
    /// Not marked as redelivered.
    pub unmarked: bool,
}

struct Entry {
    message: Arc<Message>,
    redelivered: bool,
    saved: Arc<Saved>,
}

/// Whether what was published together is on disk. It may be read before that, and is confirmed after.
#[derive(Default)]
struct Saved(AtomicU8);

impl Saved {
    const YES: u8 = 1;
    const LOST: u8 = 2;

    fn save(&self) -> bool {
        self.0.compare_exchange(0, Self::YES, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Answers whether it is.
    fn survives(&self) -> bool {
        self.0.compare_exchange(0, Self::LOST, Ordering::SeqCst, Ordering::SeqCst) == Err(Self::YES)
    }
}

#[derive(Default)]
struct Queue {
    ready: BTreeMap<u64, Entry>,
    max_length: Option<u64>,
    consumers: BTreeSet<u64>,
    arrived: Arc<Notify>,
}

struct Session {
    queue: String,
    link: Arc<Link>,
    epoch: u64,
    prefetch: usize,
    takes: bool,
    /// By number: the place in the queue, and what stood there.
    held: BTreeMap<u64, (u64, Entry)>,
}

#[derive(Default)]
struct State {
    queues: BTreeMap<String, Queue>,
    /// Queues that take all of an exchange.
    exchanges: BTreeMap<String, BTreeSet<String>>,
    sessions: BTreeMap<u64, Session>,
    locks: BTreeMap<String, (Arc<Link>, u64)>,
    /// Just now, from which queue and place.
    acked: VecDeque<(Instant, String, u64, Entry)>,
    places: u64,
    numbers: u64,
}

pub struct Hub {
    state: Mutex<State>,
    pub trace: Arc<Trace>,
    /// What is sent here is read at once.
    sink: String,
    told: Mutex<Vec<(u64, Message)>>,
}

impl Hub {
    pub fn new(trace: Arc<Trace>, sink: String) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), trace, sink, told: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What was sent to the sink, and when.
    pub fn told(&self) -> Vec<(u64, Message)> {
        self.told.lock().unwrap().clone()
    }

    pub fn told_count(&self) -> usize {
        self.told.lock().unwrap().len()
    }

    /// Whatever is ready or unacked, by queue.
    pub fn left(&self) -> Vec<(String, usize, usize)> {
        let state = self.state();
        let unacked = |name: &str| {
            state.sessions.values().filter(|session| session.queue == name).map(|session| session.held.len()).sum()
        };
        let all = state.queues.iter().map(|(name, queue)| (name.clone(), queue.ready.len(), unacked(name)));
        all.filter(|(_, ready, unacked)| ready + unacked > 0).collect()
    }

    /// The messages that wait in a queue.
    pub fn messages(&self, queue: &str) -> Vec<Arc<Message>> {
        let state = self.state();
        let waiting = state.queues.get(queue).into_iter().flat_map(|queue| queue.ready.values());
        waiting.map(|entry| entry.message.clone()).collect()
    }

    /// It is killed: what was not confirmed is gone, whoever has read it, and acks of the last moment may be.
    pub fn lose(&self, with_acks: bool) {
        let mut state = self.state();
        let state = &mut *state;
        for queue in state.queues.values_mut() {
            queue.ready.retain(|_, entry| entry.saved.survives());
        }
        for session in state.sessions.values_mut() {
            session.held.retain(|_, (_, entry)| entry.saved.survives());
        }
        for (at, queue, place, entry) in std::mem::take(&mut state.acked) {
            if with_acks
                && at.elapsed() < ACK_UNSAFE
                && entry.saved.survives()
                && let Some(queue) = state.queues.get_mut(&queue)
            {
                give_back(queue, &mut state.places, place, entry, Back::default());
            }
        }
    }

    /// A link's sessions end, and what they held goes back.
    pub fn end_sessions(&self, link: &Arc<Link>, back: Back) {
        let numbers: Vec<u64> = {
            let state = self.state();
            let own = state.sessions.iter().filter(|(_, session)| Arc::ptr_eq(&session.link, link));
            own.map(|(&number, _)| number).collect()
        };
        for number in numbers {
            self.end_session(number, back);
        }
        self.state().locks.retain(|_, (owner, _)| !Arc::ptr_eq(owner, link));
    }

    fn end_session(&self, number: u64, back: Back) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(session) = state.sessions.remove(&number) else { return };
        if let Some(queue) = state.queues.get_mut(&session.queue) {
            queue.consumers.remove(&number);
            for (place, entry) in session.held.into_values() {
                give_back(queue, &mut state.places, place, entry, back);
            }
            queue.arrived.notify_waiters();
        }
    }

    fn land(&self, who: &str, message: &Message, saved: &Arc<Saved>) -> Result<(), PublishError> {
        let mut state = self.state();
        let state = &mut *state;
        let names: Vec<String> = match &message.to {
            Destination::Queue(name) if *name == self.sink => {
                self.trace
                    .note(who, format_args!("tells {:?} {}", message.properties.message_id, digest(&message.body)));
                self.told.lock().unwrap().push((self.trace.now_ms(), message.clone()));
                return Ok(());
            }
            Destination::Queue(name) => vec![name.clone()],
            Destination::Exchange { name, .. } => state.exchanges.get(name).into_iter().flatten().cloned().collect(),
        };
        let mut is_routed = false;
        for name in names {
            let Some(queue) = state.queues.get_mut(&name) else { continue };
            if queue.max_length.is_some_and(|most| queue.ready.len() as u64 >= most) {
                return Err(PublishError::Full);
            }
            is_routed = true;
            state.places += 1;
            // A mark has a random name.
            let named = message.properties.kind.as_deref() != Some("mark");
            let id = message.properties.message_id.as_deref().filter(|_| named).unwrap_or_default();
            self.trace.note(who, format_args!("lands in {name} {id} {} bytes", message.body.len()));
            let entry = Entry { message: Arc::new(message.clone()), redelivered: false, saved: saved.clone() };
            queue.ready.insert(state.places, entry);
            queue.arrived.notify_waiters();
        }
        match is_routed || !message.mandatory {
            true => Ok(()),
            false => Err(PublishError::Unroutable),
        }
    }

    fn take(&self, number: u64, most: usize) -> Result<Vec<Delivery>, BrokerError> {
        let mut state = self.state();
        let state = &mut *state;
        let gone = || BrokerError::Cut("the session is over".into());
        let session = state.sessions.get_mut(&number).ok_or_else(gone)?;
        if !session.takes {
            return Err(gone());
        }
        let queue = state.queues.get_mut(&session.queue).ok_or_else(gone)?;
        // Others that read the queue get their part.
        let share = queue.ready.len().div_ceil(queue.consumers.len().max(1));
        let count = session.prefetch.saturating_sub(session.held.len()).min(most).min(share);
        let mut given = Vec::with_capacity(count);
        while given.len() < count
            && let Some((place, entry)) = queue.ready.pop_first()
        {
            state.numbers += 1;
            given.push(Delivery {
                tag: Tag { session: number, number: state.numbers },
                body: entry.message.body.clone(),
                properties: entry.message.properties.clone(),
                routing_key: session.queue.clone(),
                redelivered: entry.redelivered,
            });
            session.held.insert(state.numbers, (place, entry));
        }
        if !given.is_empty() {
            self.trace.note(&session.link.name, format_args!("takes {} of {}", given.len(), session.queue));
        }
        Ok(given)
    }

    /// Answers how many were void.
    fn settle(&self, number: u64, tags: &[Tag], verdict: Verdict) -> usize {
        let mut state = self.state();
        let state = &mut *state;
        let Some(session) = state.sessions.get_mut(&number) else { return tags.len() };
        let Some(queue) = state.queues.get_mut(&session.queue) else { return tags.len() };
        self.trace.note(&session.link.name, format_args!("{verdict:?} {} of {}", tags.len(), session.queue));
        for tag in tags {
            let Some((place, entry)) = session.held.remove(&tag.number) else { continue };
            match verdict {
                Verdict::Requeue => give_back(queue, &mut state.places, place, entry, Back::default()),
                _ => state.acked.push_back((Instant::now(), session.queue.clone(), place, entry)),
            }
        }
        while state.acked.front().is_some_and(|(at, ..)| at.elapsed() >= ACK_UNSAFE) {
            state.acked.pop_front();
        }
        queue.arrived.notify_waiters();
        0
    }
}

fn give_back(queue: &mut Queue, places: &mut u64, place: u64, mut entry: Entry, back: Back) {
    entry.redelivered |= !back.unmarked;
    let place = match back.behind {
        true => {
            *places += 1;
            *places
        }
        false => place,
    };
    queue.ready.insert(place, entry);
}

fn digest(body: &Bytes) -> String {
    let folded = body.iter().fold(0_u64, |sum, byte| crate::link::mixed(sum ^ u64::from(*byte)));
    format!("{folded:016x}")
}

/// The broker, as one process sees it.
pub struct SimulatedBroker {
    pub hub: Arc<Hub>,
    pub link: Arc<Link>,
}

impl SimulatedBroker {
    fn check(&self) -> Result<(), BrokerError> {
        match (self.link.is_dead(), self.link.is_away()) {
            (true, _) => Err(BrokerError::Closed),
            (false, true) => Err(BrokerError::Unreachable("it is away".into())),
            (false, false) => Ok(()),
        }
    }

    async fn pass(&self) -> Result<(), BrokerError> {
        self.check()?;
        let epoch = self.link.epoch();
        self.link.pass().await;
        match self.link.epoch() == epoch {
            true => self.check(),
            false => Err(BrokerError::Cut("on the way".into())),
        }
    }
}

#[async_trait]
impl Broker for SimulatedBroker {
    async fn declare(&self, queues: &[QueueSpec]) -> Result<(), BrokerError> {
        self.pass().await?;
        {
            let mut state = self.hub.state();
            for spec in queues {
                let queue = state.queues.entry(spec.name.clone()).or_default();
                queue.max_length = spec.max_length;
                for (exchange, _) in &spec.bindings {
                    state.exchanges.entry(exchange.clone()).or_default().insert(spec.name.clone());
                }
            }
        }
        self.pass().await
    }

    async fn declare_exchanges(&self, names: &[String]) -> Result<(), BrokerError> {
        self.pass().await?;
        let mut state = self.hub.state();
        for name in names {
            state.exchanges.entry(name.clone()).or_default();
        }
        Ok(())
    }

    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<(), PublishError>> {
        let count = messages.len();
        let all = |failure: PublishError| vec![Err(failure); count];
        if messages.is_empty() {
            return Vec::new();
        }
        if self.link.is_away() {
            tokio::task::yield_now().await;
            return all(PublishError::Unknown("it is away".into()));
        }
        // Events are nobody's loss.
        let matters = messages.iter().any(|message| message.persistent);
        let fault = matters.then(|| self.link.next_publishing()).flatten();
        if let Some(fault) = fault {
            self.hub.trace.note(&self.link.name, format_args!("publishes {count}: {fault:?}"));
        }
        if fault == Some(Publishing::Refused) {
            self.link.pass().await;
            return all(PublishError::Full);
        }
        let (confirm, confirmed) = oneshot::channel();
        let (hub, link, epoch) = (self.hub.clone(), self.link.clone(), self.link.epoch());
        // It is under way whatever becomes of who waits for the confirm.
        tokio::spawn(async move {
            if fault == Some(Publishing::Late) {
                sleep(LATE).await;
            }
            link.pass().await;
            if !link.arrives(epoch) || fault == (Some(Publishing::Unconfirmed { lands: false })) {
                return;
            }
            let saved = Arc::new(Saved::default());
            let land = || messages.iter().map(|message| hub.land(&link.name, message, &saved)).collect::<Vec<_>>();
            let answers = land();
            if fault == Some(Publishing::Twice) {
                land();
            }
            link.pass().await;
            if saved.save() && !matches!(fault, Some(Publishing::Unconfirmed { .. } | Publishing::Late)) {
                let _given_up = confirm.send(answers);
            } else {
                // Kept until then, or waiting would end at once.
                sleep(LATE).await;
                drop(confirm);
            }
        });
        tokio::select! {
            biased;
            () = self.link.cut_since(epoch) => all(PublishError::Unknown("cut".into())),
            answers = confirmed => match answers {
                Ok(answers) => answers,
                Err(_) => all(PublishError::Unknown("lost".into())),
            },
            () = sleep(CONFIRM) => all(PublishError::Unknown("no confirm in time".into())),
        }
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError> {
        self.pass().await?;
        let mut state = self.hub.state();
        let state = &mut *state;
        let found = state.queues.get_mut(queue).ok_or_else(|| BrokerError::Refused(format!("no queue {queue}")))?;
        state.numbers += 1;
        let number = state.numbers;
        found.consumers.insert(number);
        let session = Session {
            queue: queue.to_owned(),
            link: self.link.clone(),
            epoch: self.link.epoch(),
            prefetch: usize::from(prefetch.max(1)),
            takes: true,
            held: BTreeMap::new(),
        };
        let (epoch, arrived) = (session.epoch, found.arrived.clone());
        state.sessions.insert(number, session);
        let ends = Ends { hub: self.hub.clone(), link: self.link.clone(), number, epoch };
        Ok(Box::new(SimulatedConsumer { acker: Arc::new(ends), arrived }))
    }

    async fn queue_state(&self, queue: &str) -> Result<Option<QueueState>, BrokerError> {
        self.pass().await?;
        let state = self.hub.state();
        let seen =
            |queue: &Queue| QueueState { ready: queue.ready.len() as u64, consumers: queue.consumers.len() as u32 };
        Ok(state.queues.get(queue).map(seen))
    }

    async fn try_lock(&self, name: &str) -> Result<Option<Box<dyn Lock>>, BrokerError> {
        self.pass().await?;
        let mut state = self.hub.state();
        let epoch = self.link.epoch();
        if let Some((owner, since)) = state.locks.get(name)
            && owner.epoch() == *since
        {
            return Ok(None);
        }
        state.locks.insert(name.to_owned(), (self.link.clone(), epoch));
        self.hub.trace.note(&self.link.name, format_args!("holds {name}"));
        let (hub, link, name) = (self.hub.clone(), self.link.clone(), name.to_owned());
        Ok(Some(Box::new(Held { hub, link, epoch, name })))
    }

    async fn info(&self) -> Result<BrokerInfo, BrokerError> {
        self.check()?;
        Ok(BrokerInfo { product: "simulated".into(), version: "0".into(), queue_type: "simulated".into() })
    }

    fn is_ready(&self) -> bool {
        !self.link.is_away()
    }

    async fn close(&self) {}
}

struct Held {
    hub: Arc<Hub>,
    link: Arc<Link>,
    epoch: u64,
    name: String,
}

impl Lock for Held {
    fn is_held(&self) -> bool {
        self.link.epoch() == self.epoch
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.hub.state();
        let is_own = |(owner, epoch): &(Arc<Link>, u64)| Arc::ptr_eq(owner, &self.link) && *epoch == self.epoch;
        if state.locks.get(&self.name).is_some_and(is_own) {
            state.locks.remove(&self.name);
        }
    }
}

/// One consumer's session, until it is dropped.
struct Ends {
    hub: Arc<Hub>,
    link: Arc<Link>,
    number: u64,
    epoch: u64,
}

#[async_trait]
impl Acker for Ends {
    async fn settle(&self, tags: Vec<Tag>, verdict: Verdict) -> usize {
        self.link.pass().await;
        match self.link.epoch() == self.epoch {
            true => self.hub.settle(self.number, &tags, verdict),
            false => tags.len(),
        }
    }
}

struct SimulatedConsumer {
    acker: Arc<Ends>,
    arrived: Arc<Notify>,
}

#[async_trait]
impl Consumer for SimulatedConsumer {
    async fn next_batch(&mut self, most: usize) -> Result<Vec<Delivery>, BrokerError> {
        let Ends { hub, link, number, epoch } = &*self.acker;
        loop {
            let arrived = self.arrived.notified();
            if link.epoch() != *epoch {
                return Err(BrokerError::Cut("the session is over".into()));
            }
            let is_stalled = link.is_stalled();
            if !is_stalled {
                let given = hub.take(*number, most)?;
                if !given.is_empty() {
                    return Ok(given);
                }
            }
            tokio::select! {
                biased;
                () = link.cut_since(*epoch) => {}
                () = link.unstalled(), if is_stalled => {}
                () = arrived, if !is_stalled => {}
            }
        }
    }

    fn acker(&self) -> Arc<dyn Acker> {
        self.acker.clone()
    }

    async fn cancel(&mut self) -> Result<(), BrokerError> {
        if let Some(session) = self.acker.hub.state().sessions.get_mut(&self.acker.number) {
            session.takes = false;
        }
        Ok(())
    }
}

impl Drop for SimulatedConsumer {
    fn drop(&mut self) {
        self.acker.hub.end_session(self.acker.number, Back::default());
    }
}
