//! One queue: what waits in it, and what its consumers hold unsettled.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::publish::Weight;
use crate::broker::{Properties, QueueKind, QueueState, Verdict};
use crate::journal::Address;

/// A message, shared by all queues that it went to.
pub(super) struct Content {
    pub body: Bytes,
    pub properties: Properties,
    pub routing_key: Arc<str>,
    pub persistent: bool,
}

/// A message in one queue.
pub(super) struct Entry {
    pub content: Arc<Content>,
    /// Where the journal has it.
    pub address: Option<Address>,
    /// Its place among all that ever came into the queue.
    order: u64,
    redelivered: bool,
}

impl Entry {
    pub fn new(content: Arc<Content>) -> Self {
        Self { content, address: None, order: 0, redelivered: false }
    }

    pub fn found(content: Arc<Content>, address: Address) -> Self {
        Self { content, address: Some(address), order: 0, redelivered: true }
    }
}

pub(super) struct Queue {
    pub name: String,
    pub kind: QueueKind,
    pub max_length: Option<u64>,
    /// Names it in the journal.
    pub number: u32,
    /// Ready messages, and those that are on their way in.
    depth: AtomicU64,
    state: Mutex<State>,
    /// Something may be ready. Whoever wakes and leaves something passes it on.
    pub arrived: Notify,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Entry>,
    /// Those that were given back, by their old place. All of them come before `ready`.
    returned: BTreeMap<u64, Entry>,
    next_order: u64,
    consumers: HashMap<u64, Consuming>,
    /// Consumers that could take more now.
    with_room: usize,
    closed: bool,
}

/// What one consumer holds. Its tags are a count and, in the lowest 16 bits, the slot that the delivery lies in.
struct Consuming {
    prefetch: u16,
    slots: Vec<Option<(u64, Entry)>>,
    free: Vec<u16>,
    taking: bool,
    deliveries: u64,
    room: Arc<Notify>,
}

impl Consuming {
    fn held(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn room(&self) -> usize {
        if self.taking { usize::from(self.prefetch) - self.held() } else { 0 }
    }

    fn hold(&mut self, entry: Entry) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            // There are at most as many slots as `prefetch` says.
            (self.slots.len() - 1) as u16
        });
        let number = self.deliveries << 16 | u64::from(slot);
        self.deliveries += 1;
        self.slots[usize::from(slot)] = Some((number, entry));
        number
    }

    fn give_up(&mut self, number: u64) -> Option<Entry> {
        let slot = number as u16;
        let held = self.slots.get_mut(usize::from(slot))?;
        if held.as_ref().is_none_or(|(holds, _)| *holds != number) {
            return None;
        }
        self.free.push(slot);
        held.take().map(|(_, entry)| entry)
    }
}

/// One delivery, before it is made into what the port has.
pub(super) struct Given {
    pub number: u64,
    pub content: Arc<Content>,
    pub redelivered: bool,
}

pub(super) enum Taken {
    Given(Vec<Given>),
    /// Wait for [`Queue::arrived`].
    Empty,
    /// As much as it may hold: wait until something is settled.
    NoRoom,
    /// There is no such consumer any more.
    Gone,
}

impl Queue {
    pub fn new(name: String, kind: QueueKind, max_length: Option<u64>, number: u32) -> Self {
        Self {
            name,
            kind,
            max_length,
            number,
            depth: AtomicU64::new(0),
            state: Mutex::default(),
            arrived: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock, so a poisoned one is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a place for one message, unless the queue is full.
    pub fn admit(&self) -> bool {
        let before = self.depth.fetch_add(1, Ordering::Relaxed);
        let admitted = self.max_length.is_none_or(|most| before < most);
        if !admitted {
            self.leave(1);
        }
        admitted
    }

    /// Gives places back that were kept.
    pub fn leave(&self, messages: u64) {
        self.depth.fetch_sub(messages, Ordering::Relaxed);
    }

    /// Makes messages ready for which places were kept.
    pub fn push(&self, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let mut state = self.lock();
        for mut entry in entries {
            entry.order = state.next_order;
            state.next_order += 1;
            state.ready.push_back(entry);
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// Makes messages ready that were there before.
    pub fn restore(&self, entries: Vec<Entry>) {
        self.depth.fetch_add(entries.len() as u64, Ordering::Relaxed);
        self.push(entries);
    }

    /// What the consumers have room for is as good as delivered: it is theirs when they ask, so it is not counted as
    /// ready, just as `RabbitMQ` would have sent it to them.
    pub fn state(&self) -> QueueState {
        let state = self.lock();
        let consumers = state.consumers.values().filter(|consumer| consumer.taking).count();
        let room: usize = state.consumers.values().map(Consuming::room).sum();
        QueueState {
            ready: (state.returned.len() + state.ready.len()).saturating_sub(room) as u64,
            consumers: u32::try_from(consumers).unwrap_or(u32::MAX),
        }
    }

    /// Answers what wakes the consumer when it has room again; `None` when the queue is closed.
    pub fn add_consumer(&self, session: u64, prefetch: u16) -> Option<Arc<Notify>> {
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        let room = Arc::new(Notify::new());
        let consuming = Consuming {
            prefetch: prefetch.max(1),
            slots: Vec::new(),
            free: Vec::new(),
            taking: true,
            deliveries: 0,
            room: room.clone(),
        };
        state.consumers.insert(session, consuming);
        state.with_room += 1;
        Some(room)
    }

    /// The consumer takes nothing more, and goes on holding what it has.
    pub fn stop_consumer(&self, session: u64) {
        let mut state = self.lock();
        let state = &mut *state;
        if let Some(consumer) = state.consumers.get_mut(&session) {
            state.with_room -= usize::from(consumer.room() > 0);
            consumer.taking = false;
        }
        self.arrived.notify_one();
    }

    /// The consumer is gone; what it held is ready again.
    pub fn remove_consumer(&self, session: u64) {
        let mut state = self.lock();
        if let Some(consumer) = state.consumers.remove(&session) {
            state.with_room -= usize::from(consumer.room() > 0);
            let held = consumer.slots.into_iter().flatten().map(|(_, entry)| entry).collect();
            self.give_back(&mut state, held);
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// Ends all consumers; what they held is ready again.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.with_room = 0;
        for (_, consumer) in std::mem::take(&mut state.consumers) {
            let held = consumer.slots.into_iter().flatten().map(|(_, entry)| entry).collect();
            self.give_back(&mut state, held);
            consumer.room.notify_one();
        }
        drop(state);
        self.arrived.notify_waiters();
    }

    fn give_back(&self, state: &mut State, entries: Vec<Entry>) {
        self.depth.fetch_add(entries.len() as u64, Ordering::Relaxed);
        for mut entry in entries {
            entry.redelivered = true;
            state.returned.insert(entry.order, entry);
        }
    }

    /// At most `most`, at most what the consumer has room for, and at most its share among all that have room.
    pub fn take(&self, session: u64, most: usize) -> Taken {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(consumer) = state.consumers.get_mut(&session) else { return Taken::Gone };
        if !consumer.taking {
            return Taken::Gone;
        }
        let room = consumer.room();
        if room == 0 {
            return Taken::NoRoom;
        }
        let at_hand = state.returned.len() + state.ready.len();
        if at_hand == 0 {
            return Taken::Empty;
        }
        let count = at_hand.div_ceil(state.with_room.max(1)).min(room).min(most.max(1));
        let mut given = Vec::with_capacity(count);
        for _ in 0..count {
            let first = state.returned.pop_first().map(|(_, entry)| entry).or_else(|| state.ready.pop_front());
            let Some(entry) = first else { break };
            let (content, redelivered) = (entry.content.clone(), entry.redelivered);
            given.push(Given { number: consumer.hold(entry), content, redelivered });
        }
        state.with_room -= usize::from(consumer.room() == 0);
        self.depth.fetch_sub(given.len() as u64, Ordering::Relaxed);
        if given.len() < at_hand {
            self.arrived.notify_one();
        }
        Taken::Given(given)
    }

    /// Settles deliveries of one consumer, by their numbers; one that it does not hold is left alone. Answers what was
    /// acked; `None` when there is no such consumer any more.
    pub fn settle(&self, session: u64, numbers: impl Iterator<Item = u64>, verdict: Verdict) -> Option<Vec<Entry>> {
        let mut state = self.lock();
        let state = &mut *state;
        let consumer = state.consumers.get_mut(&session)?;
        let was_full = consumer.room() == 0;
        let settled: Vec<_> = numbers.filter_map(|number| consumer.give_up(number)).collect();
        if was_full && consumer.room() > 0 {
            state.with_room += 1;
            consumer.room.notify_one();
        }
        match verdict {
            Verdict::Ack => Some(settled),
            Verdict::Requeue => {
                self.give_back(state, settled);
                self.arrived.notify_one();
                Some(Vec::new())
            }
        }
    }
}

/// What entries count for against the broker's limits.
pub(super) fn weight(entries: &[Entry]) -> Weight {
    entries.iter().map(|entry| Weight::of(&entry.content.body, &entry.content.properties)).sum()
}
