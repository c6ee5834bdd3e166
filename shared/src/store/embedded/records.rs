//! The records and what may happen to them: the settlement protocol, without locks, clocks or disk of its own.
//!
//! Time is an argument, in milliseconds since the Unix epoch; it never runs backwards. What changes is written into the
//! batch that the caller brings, if it brings one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::entry;
use super::pack::{Progress, View, alias_of, identity_of, pack, same_content};
use crate::envelope::Reply;
use crate::journal::{Address, Batch, Journal};
use crate::lifecycle::State;
use crate::store::{Claim, FOLLOWERS, Guard, Release, Released, Renew, Renewed, Retention};
use crate::task::TaskId;
use crate::time::Timestamp;

/// What a record is taken to need beside its packed bytes: its places in the map, the queues and the list.
const RECORD_OVERHEAD_BYTES: usize = 256;
/// Records not finished that each call looks at, whether they have been forgotten by everybody. There is no hurry.
const SWEEP: usize = 8;

/// One task's record.
pub(super) struct Record {
    /// Its place in the list, which also tells it from an earlier one of the same id.
    pub seq: u64,
    /// When it was finished, or else last touched.
    pub touched_ms: u64,
    /// Of the attempt that holds it, or that settled it; meant only if `held`.
    pub nonce: u128,
    pub held: bool,
    pub state: State,
    pub attempt: u32,
    pub packed: Arc<[u8]>,
    pub address: Option<Address>,
    /// `None` once it is finished.
    pub live: Option<Box<Live>>,
}

#[derive(Default)]
pub(super) struct Live {
    pub model: Option<Arc<str>>,
    pub worker: Option<Arc<str>>,
    pub started: Option<Timestamp>,
    pub followers: Vec<Reply>,
    /// When the lease ends.
    pub lease_ms: u64,
}

impl Record {
    fn holds(&self, nonce: u128) -> bool {
        self.held && self.nonce == nonce
    }

    fn bytes(&self) -> usize {
        self.packed.len() + RECORD_OVERHEAD_BYTES
    }

    fn view(&self, id: TaskId) -> View {
        let progress = self.live.as_ref().map(|live| {
            let Live { model, worker, started, .. } = &**live;
            let (model, worker, started) = (model.clone(), worker.clone(), *started);
            (self.state, Progress { attempt: self.attempt, model, worker, started })
        });
        View { id, packed: self.packed.clone(), progress }
    }

    fn write(&mut self, id: TaskId, batch: &mut Option<Batch>) {
        if let Some(batch) = batch {
            if let Some(old) = self.address {
                batch.kill(old);
            }
            self.address = Some(batch.put(|out| entry::put_record(out, id, self)));
        }
    }
}

impl Live {
    fn follow(&mut self, follower: Option<Reply>) -> bool {
        match follower {
            Some(follower) if self.followers.len() < FOLLOWERS && !self.followers.contains(&follower) => {
                self.followers.push(follower);
                true
            }
            _ => false,
        }
    }
}

/// A task to be taken in, already packed.
pub(super) struct Entrant {
    pub id: TaskId,
    pub identity: Vec<u8>,
    pub state: State,
    pub attempt: u32,
    pub packed: Arc<[u8]>,
    pub follower: Option<Reply>,
}

pub(super) enum Entered {
    New,
    Known(View),
    Conflict(View),
}

pub(super) enum Held {
    Run { attempt: u32 },
    Busy { for_ms: u64 },
    Terminal(View),
    Exhausted { attempts: u32 },
    Unknown,
}

/// A settlement, its task already packed.
pub(super) struct Ending {
    pub id: TaskId,
    pub guard: Guard,
    pub state: State,
    pub task: Vec<u8>,
}

pub(super) enum Ended {
    Done(View),
    Again(View),
    Stale,
    Already(View),
}

pub(super) struct Records {
    retention: Retention,
    records: HashMap<TaskId, Box<Record>>,
    aliases: HashMap<Box<str>, TaskId>,
    /// Those that lists show, by number; among them some that are forgotten.
    order: VecDeque<(u64, TaskId)>,
    /// By when they were finished.
    finished: VecDeque<(u64, TaskId)>,
    /// By number.
    unfinished: BTreeMap<u64, TaskId>,
    /// How far the unfinished ones were looked at.
    swept: u64,
    next_seq: u64,
    bytes: usize,
}

impl Records {
    pub fn new(retention: Retention) -> Self {
        Self {
            retention,
            records: HashMap::new(),
            aliases: HashMap::new(),
            order: VecDeque::new(),
            finished: VecDeque::new(),
            unfinished: BTreeMap::new(),
            swept: 0,
            next_seq: 1,
            bytes: 0,
        }
    }

    /// Memory of all records, as an estimate.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn weight(packed: usize) -> usize {
        packed + RECORD_OVERHEAD_BYTES
    }

    /// The number after the newest record's.
    pub fn end(&self) -> u64 {
        self.next_seq
    }

    /// Takes in what a journal had. `order` and the queues are made by [`restored`](Self::restored).
    pub fn restore(&mut self, id: TaskId, record: Record) {
        self.next_seq = self.next_seq.max(record.seq + 1);
        self.bytes += record.bytes();
        if let Some(alias) = alias_of(identity_of(&record.packed)) {
            // Of two with the same key the older one has expired.
            let newer = |known: &TaskId| self.records.get(known).is_none_or(|known| known.seq < record.seq);
            if self.aliases.get(alias).is_none_or(newer) {
                self.aliases.insert(alias.into(), id);
            }
        }
        self.records.insert(id, Box::new(record));
    }

    /// After the last [`restore`](Self::restore). To be opened again counts as a touch of what is not finished.
    pub fn restored(&mut self, now_ms: u64) {
        let mut finished = Vec::new();
        for (id, record) in &mut self.records {
            self.order.push_back((record.seq, *id));
            if record.live.is_some() {
                record.touched_ms = now_ms;
                self.unfinished.insert(record.seq, *id);
            } else {
                finished.push((record.touched_ms, (record.seq, *id)));
            }
        }
        finished.sort_unstable();
        self.finished = finished.into_iter().map(|(_, waiting)| waiting).collect();
        self.order.make_contiguous().sort_unstable();
        self.trim_order();
    }

    fn expired(&self, record: &Record, now_ms: u64) -> bool {
        let kept_ms = if record.live.is_some() { self.retention.unfinished_ms } else { self.retention.finished_ms };
        record.touched_ms.saturating_add(kept_ms) <= now_ms
    }

    fn find(&self, id: TaskId, now_ms: u64) -> Option<&Record> {
        self.records.get(&id).map(|record| &**record).filter(|record| !self.expired(record, now_ms))
    }

    /// A record that is not finished, touched.
    fn touch(&mut self, id: TaskId, now_ms: u64) -> Option<&mut Record> {
        self.find(id, now_ms)?;
        let record = self.records.get_mut(&id)?;
        if record.live.is_some() {
            record.touched_ms = now_ms;
        }
        Some(record)
    }

    fn trim_order(&mut self) {
        while self.order.len() > self.retention.listed {
            self.order.pop_front();
        }
    }

    fn insert(&mut self, id: TaskId, record: Record) -> &mut Record {
        self.next_seq = record.seq + 1;
        self.bytes += record.bytes();
        self.order.push_back((record.seq, id));
        self.trim_order();
        if record.live.is_some() {
            self.unfinished.insert(record.seq, id);
        } else {
            self.finished.push_back((record.seq, id));
        }
        self.records.entry(id).insert_entry(Box::new(record)).into_mut()
    }

    fn remove(&mut self, id: TaskId) -> Option<Address> {
        let record = self.records.remove(&id)?;
        self.bytes -= record.bytes();
        self.unfinished.remove(&record.seq);
        if let Some(alias) = alias_of(identity_of(&record.packed))
            && self.aliases.get(alias) == Some(&id)
        {
            self.aliases.remove(alias);
        }
        record.address
    }

    /// Forgets finished records whose time is over, at most so many, and looks at a few that are not finished.
    fn sweep(&mut self, now_ms: u64, most: usize, mut forget: impl FnMut(Address)) {
        for _ in 0..most {
            let Some(&(seq, id)) = self.finished.front() else { break };
            if let Some(record) = self.records.get(&id)
                && record.seq == seq
            {
                if !self.expired(record, now_ms) {
                    break;
                }
                self.remove(id).into_iter().for_each(&mut forget);
            }
            self.finished.pop_front();
        }
        for _ in 0..SWEEP {
            let Some((&seq, &id)) = self.unfinished.range(self.swept..).next() else {
                self.swept = 0;
                break;
            };
            self.swept = seq + 1;
            if self.find(id, now_ms).is_none() {
                self.remove(id).into_iter().for_each(&mut forget);
            }
        }
        while let Some((seq, id)) = self.order.front()
            && self.records.get(id).is_none_or(|record| record.seq != *seq)
        {
            self.order.pop_front();
        }
    }

    /// Forgets finished records whose time is over, at most so many: in the batch, or without one at once.
    pub fn sweep_into(&mut self, now_ms: u64, most: usize, batch: &mut Option<Batch>, journal: Option<&Journal>) {
        self.sweep(now_ms, most, |address| match (&mut *batch, journal) {
            (Some(batch), _) => batch.kill(address),
            (None, Some(journal)) => journal.kill([address]),
            (None, None) => {}
        });
    }

    pub fn accept(&mut self, entrant: Entrant, now_ms: u64, batch: &mut Option<Batch>) -> Entered {
        let Entrant { id, identity, state, attempt, packed, follower } = entrant;
        let alias = alias_of(&identity);
        let known = self.find(id, now_ms).map(|_| id).or_else(|| {
            let first = *self.aliases.get(alias?)?;
            self.find(first, now_ms).map(|_| first)
        });
        if let Some(known) = known
            && let Some(record) = self.records.get_mut(&known)
        {
            if !same_content(identity_of(&record.packed), &identity) {
                return Entered::Conflict(record.view(known));
            }
            if let Some(live) = &mut record.live {
                record.touched_ms = now_ms;
                if live.follow(follower) {
                    record.write(known, batch);
                }
            }
            return Entered::Known(record.view(known));
        }
        // What stands there has expired.
        if let (Some(address), Some(batch)) = (self.remove(id), &mut *batch) {
            batch.kill(address);
        }
        if let Some(alias) = alias {
            self.aliases.insert(alias.into(), id);
        }
        let live = (!state.is_terminal()).then(|| {
            let mut live = Box::<Live>::default();
            live.follow(follower);
            live
        });
        let record = Record {
            seq: self.next_seq,
            touched_ms: now_ms,
            nonce: 0,
            held: false,
            state,
            attempt,
            packed,
            address: None,
            live,
        };
        self.insert(id, record).write(id, batch);
        Entered::New
    }

    pub fn dispatched(&mut self, id: TaskId, model: Arc<str>, now_ms: u64, batch: &mut Option<Batch>) {
        if let Some(record) = self.touch(id, now_ms)
            && record.state == State::Queued
            && let Some(live) = &mut record.live
        {
            live.model = Some(model);
            record.state = State::Dispatched;
            record.write(id, batch);
        }
    }

    pub fn claim(
        &mut self,
        claim: &Claim,
        worker: Arc<str>,
        started: Timestamp,
        now_ms: u64,
        batch: &mut Option<Batch>,
    ) -> Held {
        let id = claim.id;
        let Some(record) = self.touch(id, now_ms) else { return Held::Unknown };
        let holds = record.holds(claim.nonce);
        let Some(live) = &mut record.live else { return Held::Terminal(record.view(id)) };
        let until_ms = now_ms.saturating_add(claim.lease_ms);
        if holds {
            // Its answer was lost.
            live.lease_ms = until_ms;
            return Held::Run { attempt: record.attempt };
        }
        if live.lease_ms > now_ms {
            return Held::Busy { for_ms: live.lease_ms - now_ms };
        }
        let begun = record.attempt.max(claim.attempts);
        if begun >= claim.max_attempts {
            return Held::Exhausted { attempts: begun };
        }
        live.lease_ms = until_ms;
        live.worker = Some(worker);
        live.started = Some(started);
        (record.nonce, record.held) = (claim.nonce, true);
        (record.state, record.attempt) = (State::Running, begun + 1);
        record.write(id, batch);
        Held::Run { attempt: record.attempt }
    }

    pub fn renew(&mut self, renew: &Renew, now_ms: u64) -> Renewed {
        let Some(record) = self.touch(renew.id, now_ms) else { return Renewed::Unknown };
        let holds = record.holds(renew.nonce);
        match &mut record.live {
            Some(live) if holds => {
                live.lease_ms = now_ms.saturating_add(renew.lease_ms);
                Renewed::Renewed
            }
            _ => Renewed::Lost,
        }
    }

    pub fn release(&mut self, release: &Release, now_ms: u64, batch: &mut Option<Batch>) -> Released {
        let Some(record) = self.touch(release.id, now_ms) else { return Released::Released };
        let holds = record.holds(release.nonce);
        let Some(live) = record.live.as_mut().filter(|_| holds) else { return Released::Stale };
        live.lease_ms = 0;
        live.worker = None;
        live.started = None;
        record.held = false;
        record.state = State::Queued;
        record.attempt = record.attempt.saturating_sub(u32::from(!release.counts));
        record.write(release.id, batch);
        Released::Released
    }

    pub fn settle(&mut self, ending: Ending, now_ms: u64, batch: &mut Option<Batch>) -> Ended {
        let Ending { id, guard, state, task } = ending;
        let nonce = match guard {
            Guard::Fence { nonce, .. } | Guard::First { nonce } => Some(nonce),
            Guard::Unclaimed => None,
        };
        if self.find(id, now_ms).is_none() {
            if let (Some(address), Some(batch)) = (self.remove(id), &mut *batch) {
                batch.kill(address);
            }
            let record = Record {
                seq: self.next_seq,
                touched_ms: now_ms,
                nonce: nonce.unwrap_or(0),
                held: nonce.is_some(),
                state,
                attempt: match guard {
                    Guard::Fence { attempt, .. } => attempt,
                    Guard::First { .. } => 1,
                    Guard::Unclaimed => 0,
                },
                packed: pack(&[], &[], &task),
                address: None,
                live: None,
            };
            let record = self.insert(id, record);
            record.write(id, batch);
            return Ended::Done(record.view(id));
        }
        let Some(record) = self.records.get_mut(&id) else { return Ended::Stale };
        let holds = nonce.is_some_and(|nonce| record.holds(nonce));
        let fits = match guard {
            Guard::Fence { attempt, .. } => holds && record.attempt == attempt,
            Guard::First { .. } | Guard::Unclaimed => holds,
        };
        let Some(live) = &record.live else {
            return if fits { Ended::Again(record.view(id)) } else { Ended::Already(record.view(id)) };
        };
        let may_write = match guard {
            Guard::Fence { .. } => fits,
            Guard::First { .. } | Guard::Unclaimed => fits || live.lease_ms <= now_ms,
        };
        if !may_write {
            return Ended::Stale;
        }
        let packed = pack(identity_of(&record.packed), &live.followers, &task);
        self.bytes = self.bytes + packed.len() - record.packed.len();
        record.packed = packed;
        record.live = None;
        record.held = nonce.is_some();
        record.nonce = nonce.unwrap_or(0);
        if let Guard::First { .. } = guard {
            record.attempt = record.attempt.max(1);
        }
        record.state = state;
        record.touched_ms = now_ms;
        record.write(id, batch);
        self.unfinished.remove(&record.seq);
        self.finished.push_back((record.seq, id));
        Ended::Done(record.view(id))
    }

    pub fn follow(&mut self, id: TaskId, follower: Reply, now_ms: u64, batch: &mut Option<Batch>) -> Option<View> {
        let record = self.touch(id, now_ms)?;
        if record.live.as_mut().is_some_and(|live| live.follow(Some(follower))) {
            record.write(id, batch);
        }
        Some(record.view(id))
    }

    pub fn get(&self, id: TaskId, now_ms: u64) -> Option<View> {
        self.find(id, now_ms).map(|record| record.view(id))
    }

    /// Records before `end` in the list, newest first, in a state, with their numbers: at most `looks` are looked at.
    /// Answers also where to go on; `None` at the end.
    pub fn list(&self, end: u64, state: Option<State>, looks: usize, now_ms: u64) -> (Vec<(u64, View)>, Option<u64>) {
        let after = self.order.partition_point(|(seq, _)| *seq < end);
        let start = after.saturating_sub(looks);
        let mut found = Vec::new();
        for &(seq, id) in self.order.range(start..after).rev() {
            if let Some(record) = self.find(id, now_ms)
                && record.seq == seq
                && state.is_none_or(|state| state == record.state)
            {
                found.push((seq, record.view(id)));
            }
        }
        let next = (start > 0).then(|| self.order.get(start).map_or(0, |(seq, _)| *seq));
        (found, next)
    }
}
