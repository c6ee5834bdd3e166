//! The records and what may happen to them: the settlement protocol, without locks, clocks or disk of its own.
//!
//! Time is an argument, in milliseconds since the Unix epoch; it never runs backwards. What changes is written into the
//! batch that the caller brings, if it brings one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::entry;
use super::hash::ById;
use super::record::{Record, View};
use crate::envelope::Reply;
use crate::journal::{Address, Batch, Journal};
use crate::lifecycle::State;
use crate::store::{Beside, Claim, Guard, Leased, MISSED_MS, Release, Released, Renew, Renewed, Retention};
use crate::task::{Priority, TaskId};
use crate::time::Timestamp;

/// Records not finished that each call looks at, whether they have been forgotten by everybody. There is no hurry.
const SWEEP: usize = 8;

/// Most tasks without a record of which it is known that they are to be cancelled.
const MISSED: usize = 100_000;

/// Writes a record anew, if there is a batch to write into.
fn write(record: &mut Record, id: TaskId, batch: &mut Option<Batch>) {
    if let Some(batch) = batch {
        if let Some(old) = record.address {
            batch.kill(old);
        }
        record.address = Some(batch.put(|out| entry::put_record(out, id, record)));
    }
}

/// Adds a follower that is not there yet. `bytes` are those of all records.
fn follow(record: &mut Record, follower: Option<Reply>, bytes: &mut usize, id: TaskId, batch: &mut Option<Batch>) {
    let before = record.bytes();
    if record.follow(follower) {
        *bytes = *bytes + record.bytes() - before;
        write(record, id, batch);
    }
}

/// A task to be taken in, already packed.
pub(super) struct Entrant {
    pub id: TaskId,
    pub fingerprint: u128,
    pub alias: Option<String>,
    pub state: State,
    pub attempt: u32,
    pub task: Arc<[u8]>,
    pub follower: Option<Reply>,
}

pub(super) enum Entered {
    New,
    Known(View),
    Unwanted(View),
    Conflict(View),
}

pub(super) enum Held {
    Run { attempt: u32 },
    Busy { for_ms: u64 },
    Terminal(View, Vec<Reply>),
    Exhausted { attempts: u32 },
    Lost,
    Fatal { attempts: u32, worker: Option<Arc<str>> },
    Unwanted { attempts: u32 },
    Unknown,
}

/// Tasks that were to be cancelled and had no record, the oldest first. A crash forgets them.
#[derive(Default)]
struct Missed {
    by_age: VecDeque<(u64, TaskId)>,
    until_ms: HashMap<TaskId, u64, ById>,
}

impl Missed {
    fn remember(&mut self, id: TaskId, now_ms: u64) {
        self.forget(now_ms);
        let until_ms = now_ms.saturating_add(MISSED_MS);
        self.until_ms.insert(id, until_ms);
        self.by_age.push_back((until_ms, id));
    }

    /// Whether it was there.
    fn take(&mut self, id: TaskId, now_ms: u64) -> bool {
        !self.until_ms.is_empty() && self.until_ms.remove(&id).is_some_and(|until_ms| until_ms > now_ms)
    }

    fn forget(&mut self, now_ms: u64) {
        while let Some(&(until_ms, id)) = self.by_age.front()
            && (until_ms <= now_ms || self.by_age.len() >= MISSED)
        {
            self.by_age.pop_front();
            if self.until_ms.get(&id) == Some(&until_ms) {
                self.until_ms.remove(&id);
            }
        }
    }
}

/// A settlement, its task already packed.
pub(super) struct Ending {
    pub id: TaskId,
    pub guard: Guard,
    pub state: State,
    pub task: Arc<[u8]>,
}

pub(super) enum Ended {
    Done(Vec<Reply>),
    Again(Vec<Reply>),
    Stale,
    Already(View),
}

pub(super) struct Records {
    retention: Retention,
    records: HashMap<TaskId, Box<Record>, ById>,
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
    missed: Missed,
    cancellations: u64,
}

impl Records {
    pub fn new(retention: Retention) -> Self {
        Self {
            retention,
            records: HashMap::default(),
            aliases: HashMap::new(),
            order: VecDeque::new(),
            finished: VecDeque::new(),
            unfinished: BTreeMap::new(),
            swept: 0,
            next_seq: 1,
            bytes: 0,
            missed: Missed::default(),
            cancellations: 0,
        }
    }

    /// Memory of all records, as an estimate.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number after the newest record's.
    pub fn end(&self) -> u64 {
        self.next_seq
    }

    /// Takes in what a journal had. `order` and the queues are made by [`restored`](Self::restored).
    pub fn restore(&mut self, id: TaskId, record: Record) {
        self.next_seq = self.next_seq.max(record.seq + 1);
        self.bytes += record.bytes();
        if let Some(alias) = record.alias() {
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
            if record.open() {
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
        let kept_ms = if record.open() { self.retention.unfinished_ms } else { self.retention.finished_ms };
        record.touched_ms.saturating_add(kept_ms) <= now_ms
    }

    fn find(&self, id: TaskId, now_ms: u64) -> Option<&Record> {
        self.records.get(&id).map(|record| &**record).filter(|record| !self.expired(record, now_ms))
    }

    /// A record that is not finished, touched.
    fn touch(&mut self, id: TaskId, now_ms: u64) -> Option<&mut Record> {
        self.find(id, now_ms)?;
        let record = self.records.get_mut(&id)?;
        if record.open() {
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
        if record.open() {
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
        if let Some(alias) = record.alias()
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

    /// `only_known`: one that is not known leaves nothing.
    pub fn accept(&mut self, entrant: Entrant, only_known: bool, now_ms: u64, batch: &mut Option<Batch>) -> Entered {
        let Entrant { id, fingerprint, alias, state, attempt, task, follower } = entrant;
        let known = self.find(id, now_ms).map(|_| id).or_else(|| {
            let first = *self.aliases.get(alias.as_deref()?)?;
            self.find(first, now_ms).map(|_| first)
        });
        if let Some(known) = known
            && let Some(record) = self.records.get_mut(&known)
        {
            if record.told_apart && record.fingerprint != fingerprint {
                return Entered::Conflict(record.view(known));
            }
            if record.open() {
                record.touched_ms = now_ms;
                follow(record, follower, &mut self.bytes, known, batch);
                if record.state == State::Blocked && state == State::Queued && !only_known {
                    // What it waited for has ended.
                    record.state = State::Queued;
                    write(record, known, batch);
                }
                if record.unwanted {
                    return Entered::Unwanted(record.view(known));
                }
            }
            return Entered::Known(record.view(known));
        }
        if only_known {
            return Entered::New;
        }
        let unwanted = self.missed.take(id, now_ms);
        // What stands there has expired.
        if let (Some(address), Some(batch)) = (self.remove(id), &mut *batch) {
            batch.kill(address);
        }
        let mut record = Record {
            seq: self.next_seq,
            touched_ms: now_ms,
            lease_ms: 0,
            nonce: 0,
            fingerprint,
            task,
            address: None,
            more: None,
            attempt,
            state,
            held: false,
            alone: false,
            unwanted,
            priority: None,
            told_apart: true,
        };
        if let Some(alias) = alias {
            self.aliases.insert(alias.as_str().into(), id);
            record.more().alias = Some(alias.into());
        }
        if record.open() {
            record.follow(follower);
        }
        let record = self.insert(id, record);
        write(record, id, batch);
        if record.unwanted { Entered::Unwanted(record.view(id)) } else { Entered::New }
    }

    pub fn cancel(&mut self, id: TaskId, now_ms: u64, batch: &mut Option<Batch>) -> Option<View> {
        let Some(record) = self.touch(id, now_ms) else {
            self.missed.remember(id, now_ms);
            return None;
        };
        let asked = record.open() && !record.unwanted;
        if asked {
            record.unwanted = true;
            write(record, id, batch);
        }
        let view = record.view(id);
        self.cancellations += u64::from(asked);
        Some(view)
    }

    pub fn reprioritize(
        &mut self,
        id: TaskId,
        priority: Option<Priority>,
        now_ms: u64,
        batch: &mut Option<Batch>,
    ) -> Option<View> {
        let record = self.touch(id, now_ms)?;
        if matches!(record.state, State::Blocked | State::Queued) && record.priority != priority {
            record.priority = priority;
            write(record, id, batch);
        }
        Some(record.view(id))
    }

    pub fn dispatched(&mut self, id: TaskId, model: Arc<str>, now_ms: u64, batch: &mut Option<Batch>) {
        if let Some(record) = self.touch(id, now_ms)
            && record.state == State::Queued
        {
            record.more().model = Some(model);
            record.state = State::Dispatched;
            write(record, id, batch);
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
        if !record.open() {
            return Held::Terminal(record.view(id), record.followers().to_vec());
        }
        let until_ms = now_ms.saturating_add(claim.lease_ms);
        if record.holds(claim.nonce) {
            // Its answer was lost.
            record.lease_ms = until_ms;
            let (attempt, alone) = (record.attempt, claim.beside == Beside::Nothing);
            if record.alone != alone {
                record.alone = alone;
                write(record, id, batch);
            }
            return Held::Run { attempt };
        }
        if record.lease_ms > now_ms {
            return Held::Busy { for_ms: record.lease_ms - now_ms };
        }
        if !record.held && record.nonce == claim.nonce {
            // It has given the task back: this was under way for longer than the attempt took.
            return Held::Busy { for_ms: 1 };
        }
        if record.unwanted {
            return Held::Unwanted { attempts: record.attempt };
        }
        if record.held && record.alone {
            let worker = record.more.as_ref().and_then(|more| more.worker.clone());
            return Held::Fatal { attempts: record.attempt, worker };
        }
        let begun = record.attempt.max(claim.attempts);
        if begun >= claim.max_attempts {
            return Held::Exhausted { attempts: begun };
        }
        if record.held && claim.beside == Beside::Others {
            return Held::Lost;
        }
        record.lease_ms = until_ms;
        (record.nonce, record.held, record.alone) = (claim.nonce, true, claim.beside == Beside::Nothing);
        (record.state, record.attempt) = (State::Running, begun + 1);
        let more = record.more();
        (more.worker, more.started) = (Some(worker), Some(started));
        write(record, id, batch);
        Held::Run { attempt: begun + 1 }
    }

    pub fn leased(&mut self, id: TaskId, now_ms: u64) -> Leased {
        let Some(record) = self.touch(id, now_ms) else { return Leased::Unknown };
        match record.open() {
            false => Leased::Ended,
            true if record.held && record.lease_ms > now_ms => Leased::Live,
            true => Leased::Over,
        }
    }

    /// Tasks that were asked to be cancelled while they had not ended.
    pub fn cancellations(&self) -> u64 {
        self.cancellations
    }

    /// Whether an attempt may say something for its task.
    pub fn may_speak(&mut self, id: TaskId, nonce: u128, now_ms: u64) -> bool {
        self.touch(id, now_ms).is_none_or(|record| record.open() && (!record.held || record.holds(nonce)))
    }

    pub fn renew(&mut self, renew: &Renew, now_ms: u64) -> Renewed {
        let Some(record) = self.touch(renew.id, now_ms) else { return Renewed::Unknown };
        if record.open() && record.holds(renew.nonce) {
            record.lease_ms = now_ms.saturating_add(renew.lease_ms);
            if record.unwanted { Renewed::CancelRequested } else { Renewed::Renewed }
        } else {
            Renewed::Lost
        }
    }

    pub fn release(&mut self, release: &Release, now_ms: u64, batch: &mut Option<Batch>) -> Released {
        let Some(record) = self.touch(release.id, now_ms) else { return Released::Released };
        if !record.open() || (record.held && !record.holds(release.nonce)) {
            return Released::Stale;
        }
        // What nobody holds is marked as well: a claim of that attempt which is still on its way comes too late.
        record.attempt = record.attempt.saturating_sub(u32::from(record.held && !release.counts));
        (record.lease_ms, record.held, record.alone, record.nonce) = (0, false, false, release.nonce);
        record.state = State::Queued;
        let more = record.more();
        (more.worker, more.started) = (None, None);
        write(record, release.id, batch);
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
                lease_ms: 0,
                nonce: nonce.unwrap_or(0),
                fingerprint: 0,
                task,
                address: None,
                more: None,
                attempt: match guard {
                    Guard::Fence { attempt, .. } => attempt,
                    Guard::First { .. } => 1,
                    Guard::Unclaimed => 0,
                },
                state,
                held: nonce.is_some(),
                alone: false,
                unwanted: false,
                priority: None,
                told_apart: false,
            };
            write(self.insert(id, record), id, batch);
            return Ended::Done(Vec::new());
        }
        let Some(record) = self.records.get_mut(&id) else { return Ended::Stale };
        let holds = nonce.is_some_and(|nonce| record.holds(nonce));
        let fits = match guard {
            Guard::Fence { attempt, .. } => holds && record.attempt == attempt,
            Guard::First { .. } | Guard::Unclaimed => holds,
        };
        if !record.open() {
            return if fits { Ended::Again(record.followers().to_vec()) } else { Ended::Already(record.view(id)) };
        }
        let may_write = match guard {
            Guard::Fence { .. } => fits,
            Guard::First { .. } | Guard::Unclaimed => fits || record.lease_ms <= now_ms,
        };
        if !may_write {
            return Ended::Stale;
        }
        self.bytes = self.bytes + task.len() - record.task.len();
        record.task = task;
        (record.held, record.alone) = (nonce.is_some(), false);
        record.nonce = nonce.unwrap_or(0);
        if let Guard::First { .. } = guard {
            record.attempt = record.attempt.max(1);
        }
        (record.state, record.touched_ms) = (state, now_ms);
        (record.unwanted, record.priority) = (false, None);
        if let Some(more) = &mut record.more {
            (more.model, more.worker, more.started) = (None, None, None);
        }
        if record.alias().is_none() && record.followers().is_empty() {
            record.more = None;
        }
        write(record, id, batch);
        let (seq, followers) = (record.seq, record.followers().to_vec());
        self.unfinished.remove(&seq);
        self.finished.push_back((seq, id));
        Ended::Done(followers)
    }

    pub fn follow(&mut self, id: TaskId, follower: Reply, now_ms: u64, batch: &mut Option<Batch>) -> Option<View> {
        self.touch(id, now_ms)?;
        let record = self.records.get_mut(&id)?;
        if record.open() {
            follow(record, Some(follower), &mut self.bytes, id, batch);
        }
        Some(record.view(id))
    }

    /// Where the journal has the end of a task, if it has ended.
    pub fn ended_at(&self, id: TaskId) -> Option<Address> {
        self.records.get(&id).filter(|record| !record.open())?.address
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
