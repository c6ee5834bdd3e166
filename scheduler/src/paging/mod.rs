//! Keeps a backlog that is larger than memory in queues of the broker.
//!
//! Of each line (the waiting tasks of one model, priority and tenant) the head is in the planner and the rest in a queue, page by
//! page, in its order. So the planner always sees the tasks that it has to compare. What would run last goes out when the window
//! is nearly full; the pages come in again as the head gets shorter. Decision 15 has the reasons.

mod label;
mod read;
mod slots;
mod write;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::broker::{Broker, BrokerError, QueueSpec, QueueState};
use taskyard_shared::control::{ExpectedTime, Place, Told, Waiting};
use taskyard_shared::store::Store;
use taskyard_shared::{State, TaskId, TaskResult, Timestamp, Topology};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub(crate) use read::PagedIn;

use crate::core::{Core, Event};
use crate::held::{Held, Holdings};
use crate::metrics::Metrics;
use crate::planner::{Arrival, Away, Stats, Tail};
use read::Reader;
use slots::{GROWS_BY, SLOTS_MOST, Slots};
use write::{Pages, Written, divide, write};

/// Tasks of a page and the bytes of their inputs, at most.
const PAGE_TASKS: usize = 100;
const PAGE_BYTES: (usize, usize) = (16 << 10, 256 << 10);
/// At most such a part of the window is a page: each of many lines has one in memory, beside what has no place elsewhere.
const PAGE_PART: usize = 256;
/// From so much of the window on tasks go out, in tenths, until this is left.
const HIGH: usize = 7;
const LOW: usize = 6;
/// Queues are declared when so much of the window is full, in tenths.
const READY_AT: usize = 4;
/// Tasks that go out together, and groups of them under way.
const GROUP: usize = 2_048;
const GROUPS: usize = 4;
const GROUPS_MOST: usize = 16;
/// Of what is under way, the part of the window in bytes: it is in memory until it is written.
const PART_MOST: usize = 8;
/// When nothing could go out, it is tried again after this.
const PAUSE: Duration = Duration::from_millis(50);
/// What is away is added up so often.
const SUMS_EVERY: Duration = Duration::from_millis(100);
/// For so long a model's dispatch waits for tasks that are on their way in.
const AWAITED_FOR: Duration = Duration::from_secs(10);
/// And at the start for what was found in the broker.
const SETTLES_IN: Duration = Duration::from_secs(5);
/// For so long a session waits, at its start, for the readers of the one before to leave, and looks so often.
const LEFT_IN: Duration = Duration::from_secs(2);
const LOOKS_EVERY: Duration = Duration::from_millis(20);

/// What it takes to read page queues and to write to them.
#[derive(Clone)]
pub(crate) struct Desk {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    pub topology: Topology,
    pub metrics: Metrics,
    pub events: mpsc::Sender<Event>,
    pub closing: CancellationToken,
    /// For how long a delivery may be held.
    pub patience: Duration,
}

impl Desk {
    /// What is in a page queue, if there is one. What its reader before has in its hands is not counted, so it has until then to leave.
    async fn count(&self, shard: u32, number: u32, until: Instant) -> Result<Option<QueueState>, BrokerError> {
        let queue = self.topology.page(shard, number);
        loop {
            let state = self.broker.queue_state(&queue).await?;
            if state.is_none_or(|state| state.consumers == 0) || Instant::now() >= until {
                return Ok(state);
            }
            tokio::time::sleep(LOOKS_EVERY).await;
        }
    }
}

pub(crate) struct Paging {
    desk: Desk,
    own: u32,
    slots: Slots,
    /// Tasks of a page, and of all pages in memory together.
    page_tasks: usize,
    page_bytes: usize,
    window_tasks: usize,
    window_bytes: usize,
    readers: JoinSet<Result<(), BrokerError>>,
    writing: JoinSet<Written>,
    /// These wait for others of the same queue, so that they come there in their order.
    to_write: VecDeque<Pages>,
    /// Tasks and bytes of both.
    under_way: (u64, usize),
    growing: JoinSet<Result<(), BrokerError>>,
    looking: JoinSet<(Option<TaskResult>, oneshot::Sender<Told>)>,
    pause_until: Option<Instant>,
    summed: Instant,
    changed: bool,
    /// The planner was told of models whose next tasks are on their way.
    is_awaiting: bool,
    started: Instant,
}

impl Paging {
    /// Finds the page queues of these shards, the first of which is the own one, and begins to read them.
    ///
    /// # Errors
    /// When the broker does not say which there are.
    pub async fn open(desk: Desk, shards: &[u32], window: (usize, u64), now_us: u64) -> Result<Self, BrokerError> {
        let (window_tasks, window_mb) = window;
        let window_bytes = usize::try_from(window_mb << 20).unwrap_or(usize::MAX);
        let mut paging = Self {
            desk,
            own: shards.first().copied().unwrap_or_default(),
            slots: Slots::default(),
            page_tasks: (window_tasks / PAGE_PART).clamp(1, PAGE_TASKS),
            page_bytes: (window_bytes / PAGE_PART).clamp(PAGE_BYTES.0, PAGE_BYTES.1),
            window_tasks,
            window_bytes,
            readers: JoinSet::new(),
            writing: JoinSet::new(),
            to_write: VecDeque::new(),
            under_way: (0, 0),
            growing: JoinSet::new(),
            looking: JoinSet::new(),
            pause_until: None,
            summed: Instant::now(),
            changed: false,
            is_awaiting: false,
            started: Instant::now(),
        };
        let (mut pages, until) = (0, Instant::now() + LEFT_IN);
        for &shard in shards {
            for number in 0..SLOTS_MOST as u32 {
                // Their numbers have no gap.
                let Some(state) = paging.desk.count(shard, number, until).await? else { break };
                pages += state.ready;
                let found = (state.ready > 0 || shard != paging.own).then_some((state.ready, now_us));
                paging.add((shard, number), found);
            }
        }
        if pages > 0 {
            info!(pages, "a part of the backlog is in the broker");
        }
        Ok(paging)
    }

    fn add(&mut self, queue: (u32, u32), found: Option<(u64, u64)>) {
        let pages = (self.window_tasks / self.page_tasks).min(self.window_bytes / self.page_bytes);
        let prefetch = self.slots.prefetch(pages / 4);
        let slot = self.slots.add(queue, found, prefetch);
        let Some(wanted) = self.slots.all.get(slot).map(|slot| slot.wanted.subscribe()) else { return };
        let Desk { broker, store, topology, metrics, events, closing, patience } = self.desk.clone();
        let name = topology.page(queue.0, queue.1);
        let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
        let reader =
            Reader { broker, store, topology, metrics, slot, queue: name, prefetch, wanted, events, closing, patience };
        self.readers.spawn(reader.run());
    }

    /// Tenants that have limits are counted each by itself.
    pub fn set_limited(&mut self, tenants: impl Iterator<Item = String>) {
        self.slots.limited = tenants.collect();
    }

    fn of_window(&self, tenths: usize) -> (usize, usize) {
        (self.window_tasks * tenths / 10, self.window_bytes / 10 * tenths)
    }

    /// Whether more is held than so many tenths of the window.
    fn is_beyond(&self, tenths: usize, held: &Holdings) -> bool {
        let (most_tasks, most_bytes) = self.of_window(tenths);
        held.len() > most_tasks || held.bytes() > most_bytes
    }

    /// Page queues that hold something.
    pub fn busy(&self) -> usize {
        self.slots.all.iter().filter(|slot| slot.pages > 0).count()
    }

    /// What was found at the start is not all known yet.
    pub fn is_settling(&self) -> bool {
        let unknown = |slot: &slots::Slot| slot.pages > 0 && slot.line.is_none();
        self.started.elapsed() < SETTLES_IN && self.slots.all.iter().any(unknown)
    }

    /// Something ended that runs beside. The core is told what it has to do.
    pub async fn next(&mut self) -> Ended {
        loop {
            tokio::select! {
                biased;
                Some(written) = self.writing.join_next() => return Ended::Written(written.ok()),
                Some(found) = self.looking.join_next() => if let Ok((record, answer)) = found {
                    return Ended::Found(record.map(Box::new), answer);
                },
                Some(grown) = self.growing.join_next() => {
                    self.slots.is_growing = false;
                    match grown {
                        Ok(Ok(())) => return Ended::Grown,
                        Ok(Err(failure)) => warn!(%failure, "no queues could be declared for more of the backlog"),
                        Err(_) => {}
                    }
                    self.pause_until = Some(Instant::now() + PAUSE);
                }
                Some(ended) = self.readers.join_next() => if let Ok(Err(failure)) = ended {
                    return Ended::Cut(failure);
                },
                else => std::future::pending().await,
            }
        }
    }

    /// Waits for what is on its way to the broker, and then gives back what was read: whoever comes next counts what is there.
    pub async fn finish(&mut self) {
        while self.writing.join_next().await.is_some() {}
        self.readers.shutdown().await;
    }

    fn write(&mut self, pages: Pages) {
        let Desk { broker, topology, closing, .. } = &self.desk;
        self.writing.spawn(write(broker.clone(), topology.clone(), closing.clone(), pages));
    }

    /// A group of pages is in its queue: all that waited for it goes, together, since the broker takes as long for much as for little.
    fn written(&mut self, Written { slot: at, tasks, bytes, pages: unwritten, away, .. }: &Written) {
        let at = *at;
        let (tasks_before, bytes_before) = self.under_way;
        self.under_way = (tasks_before.saturating_sub(*tasks), bytes_before.saturating_sub(*bytes));
        if let Some(slot) = self.slots.all.get_mut(at) {
            slot.writing = slot.writing.saturating_sub(1);
            slot.pages = slot.pages.saturating_sub(*unwritten);
            slot.away.tasks = slot.away.tasks.saturating_sub(away.tasks);
            slot.away.work_us = slot.away.work_us.saturating_sub(away.work_us);
        }
        let (next, others) = std::mem::take(&mut self.to_write).into_iter().partition(|pages| pages.slot == at);
        self.to_write = others;
        let next: VecDeque<Pages> = next;
        if let Some(slot) = self.slots.all.get_mut(at) {
            slot.writing = slot.writing.saturating_sub(next.len().saturating_sub(1));
        }
        let mut next = next.into_iter();
        if let Some(mut pages) = next.next() {
            next.for_each(|more| pages.append(more));
            self.write(pages);
        }
    }

    fn grow(&mut self) {
        let from = self.slots.numbers(self.own);
        if self.slots.is_growing || from as usize >= SLOTS_MOST {
            return;
        }
        self.slots.is_growing = true;
        let (broker, topology, own) = (self.desk.broker.clone(), self.desk.topology.clone(), self.own);
        self.growing.spawn(async move {
            let queues: Vec<QueueSpec> =
                (from..from + GROWS_BY).map(|number| QueueSpec::durable(topology.page(own, number))).collect();
            // It answers once they are safe.
            broker.declare(&queues).await
        });
    }

    fn grown(&mut self) {
        let from = self.slots.numbers(self.own);
        for number in from..from + GROWS_BY {
            self.add((self.own, number), None);
        }
    }
}

/// What ended.
pub(crate) enum Ended {
    Written(Option<Written>),
    Found(Option<Box<TaskResult>>, oneshot::Sender<Told>),
    Grown,
    Cut(BrokerError),
}

impl Core {
    pub fn handle_paging(&mut self, ended: Ended) {
        match ended {
            Ended::Written(Some(written)) => {
                self.paging.written(&written);
                written.unwritable.into_iter().for_each(|task| self.admit(task));
            }
            // A panic in there: the tasks are not acked, and come again with the next session.
            Ended::Written(None) => {
                warn!("a part of the backlog was not written: the session begins anew");
                self.closing.cancel();
            }
            Ended::Found(record, answer) => {
                let place = record.and_then(|record| self.place_of_paged(&record)).unwrap_or(Place::Unknown {});
                let _gone = answer.send(Told::Place { place });
            }
            Ended::Grown => self.paging.grown(),
            Ended::Cut(failure) => {
                warn!(%failure, "a page queue is read no longer: the session begins anew");
                self.closing.cancel();
            }
        }
    }

    /// Pages came in.
    pub fn page_in(&mut self, PagedIn { slot: at, line, pages, away, tasks, unwanted }: PagedIn) {
        if let Some(line) = line {
            self.paging.slots.found(at, line);
        }
        if let Some(slot) = self.paging.slots.all.get_mut(at) {
            slot.pages = slot.pages.saturating_sub(pages);
            if slot.pages == 0 && slot.writing == 0 {
                slot.away = Away::default();
            } else if slot.away.tasks < away.tasks {
                // Of what was found at the start it is not known how much it is: as much on each page as on these.
                let each = |sum: u64| sum / pages.max(1) * slot.pages;
                slot.away = Away { tasks: each(away.tasks), work_us: each(away.work_us) };
            } else {
                slot.away.tasks -= away.tasks;
                slot.away.work_us = slot.away.work_us.saturating_sub(away.work_us);
            }
        }
        self.paging.changed = true;
        self.metrics.paged("in", away.tasks);
        let ids: Vec<TaskId> = tasks.iter().map(|task| task.envelope.id).collect();
        for task in tasks {
            let id = task.envelope.id;
            match self.held.contains_key(&id) {
                // It is with the workers, and this a copy of it.
                false if self.outstanding.contains_key(&id) => self.ack(task.receipt.into_iter().collect()),
                _ => self.take_back(task),
            }
        }
        unwanted.into_iter().for_each(|task| self.end_unwanted(task));
        self.part_strays(&ids);
    }

    /// Tasks that came by a page and wait in another line than the rest of it, since their priority is another by now. They would keep
    /// their pages from being acked, and so the next ones from coming, until it is their turn. So they part from them. (Those for which
    /// another model was chosen stay with them: the next page may be all of such.)
    pub fn part_strays(&mut self, ids: &[TaskId]) {
        let Self { held, paging, .. } = self;
        let strays = |id: &TaskId| {
            let task = held.get(id)?;
            let line = paging.slots.all.get(task.page?)?.line.as_ref()?;
            (line.priority != task.envelope.priority).then_some(*id)
        };
        let strays: Vec<TaskId> = ids.iter().filter_map(strays).collect();
        let group: Vec<_> = strays
            .iter()
            .filter_map(|id| {
                let task = held.leave_page(id)?;
                Some((task.envelope.clone(), task.receipt.take()?))
            })
            .collect();
        if !group.is_empty() {
            self.in_limbo.extend(group.iter().map(|(envelope, _)| envelope.id));
            self.acking.spawn(self.finisher.clone().send_round(self.shard.number, group));
        }
    }

    /// Before decisions: where the head of a line is on its way here, nothing of its model goes meanwhile, for it would not be in order.
    pub fn await_pages(&mut self) {
        let now = Instant::now();
        let Self { paging, held, planner, .. } = self;
        let mut is_any = false;
        for (at, slot) in paging.slots.all.iter_mut().enumerate() {
            slot.missing_since = match slot.pages > 0 && held.of_page(at) == 0 {
                true => slot.missing_since.or(Some(now)),
                false => None,
            };
            is_any |= slot.missing_since.is_some();
        }
        if !is_any && !paging.is_awaiting {
            return;
        }
        let missing = |slot: &&slots::Slot| {
            slot.missing_since.is_some_and(|since| now.saturating_duration_since(since) < AWAITED_FOR)
        };
        let lines = paging.slots.all.iter().filter(missing).filter_map(|slot| slot.line.as_ref());
        let models: Vec<&str> = lines.map(|line| line.model.as_str()).collect();
        paging.is_awaiting = !models.is_empty();
        planner.handle_awaited(models.into_iter());
    }

    /// A task that came by this page queue was dispatched: it may have been the last of them that was here.
    pub fn note_page_left(&mut self, at: usize) {
        if self.held.of_page(at) == 0 && self.paging.slots.all.get(at).is_some_and(|slot| slot.pages > 0) {
            self.await_pages();
        }
    }

    /// Once a turn: what is too much for the window goes out, and what is wanted of the rest comes in.
    pub fn turn_pages(&mut self) {
        self.page_out(Instant::now());
        let Self { paging, held, .. } = self;
        let (mut busy, mut from_pages) = (0, 0);
        for at in 0..paging.slots.all.len() {
            let here = held.of_page(at);
            let Some(slot) = paging.slots.all.get_mut(at) else { continue };
            if slot.pages > 0 || slot.writing > 0 || here > 0 {
                (busy, from_pages) = (busy + 1, from_pages + here);
            } else if slot.line.is_some() {
                paging.slots.release(at, paging.own);
                paging.changed = true;
            }
        }
        // Each has its part of what may be in memory of all, when that is much.
        let most = paging.window_tasks / 2;
        let part = if from_pages < most { most } else { (most / busy.max(1)).max(paging.page_tasks) };
        // Beyond that no more than it takes to go on: what is here and older than what is away has no other place.
        let has_room = !paging.is_beyond(HIGH, held);
        for (at, slot) in paging.slots.all.iter().enumerate() {
            let here = held.of_page(at);
            let is_wanted = here == 0 || has_room && here < part.min(slot.prefetch * paging.page_tasks);
            slot.wanted.send_if_modified(|wanted| std::mem::replace(wanted, is_wanted) != is_wanted);
        }
        // Limits of tenants are kept to as exactly as what is in memory.
        if paging.changed && (paging.summed.elapsed() >= SUMS_EVERY || !paging.slots.limited.is_empty()) {
            self.sum_pages();
        }
    }

    /// What is away counts for whoever wants to know how much waits.
    pub fn sum_pages(&mut self) {
        (self.paging.summed, self.paging.changed) = (Instant::now(), false);
        let (models, tenants) = self.paging.slots.sums();
        self.planner.handle_paged(&models, &tenants);
    }

    fn page_out(&mut self, now: Instant) {
        let Paging { window_tasks, window_bytes, page_tasks, .. } = self.paging;
        let (tasks, bytes) = (self.held.len(), self.held.bytes());
        if !self.paging.is_beyond(READY_AT, &self.held) {
            return;
        }
        if self.paging.slots.free() < GROWS_BY as usize / 2 {
            self.paging.grow();
        }
        let groups = self.paging.writing.len() + self.paging.to_write.len();
        let (tasks_out, bytes_out) = self.paging.under_way;
        let is_busy = groups >= GROUPS_MOST
            || self.paging.to_write.len() >= GROUPS
            || tasks_out >= (window_tasks / 4).max(GROUP) as u64
            || bytes_out >= window_bytes / PART_MOST;
        if !self.paging.is_beyond(HIGH, &self.held) || is_busy {
            return;
        }
        if self.paging.pause_until.is_some_and(|until| until > now) {
            return;
        }
        let (low_tasks, low_bytes) = self.paging.of_window(LOW);
        let each_bytes = bytes / tasks.max(1);
        let too_many = tasks.saturating_sub(low_tasks).max(bytes.saturating_sub(low_bytes) / each_bytes.max(1));
        let flows = self.planner.waiting_lines().max(1);
        let most = window_tasks.min(window_bytes / each_bytes.max(1));
        let keep = (most / 4 / flows).clamp(1, 2 * page_tasks);
        let (slots, now_us) = (&self.paging.slots, self.clock.now_us());
        let tails = self.planner.page_out(too_many.clamp(1, GROUP), keep, now_us, |model, priority, tenant| {
            slots.takes(model, priority, tenant)
        });
        let count: usize = tails.iter().map(|tail| tail.tasks.len()).sum();
        if count == 0 {
            self.paging.pause_until = Some(now + PAUSE);
        }
        for tail in tails {
            self.write_tail(tail);
        }
    }

    fn write_tail(&mut self, Tail { model, tenant, priority, tasks, work_us, oldest_us, newest_us }: Tail) {
        let tasks = tasks.into_iter().filter_map(|(id, expected)| {
            let task = self.held.remove(&id)?;
            Some(Held { expected: Some(expected), ..task })
        });
        // A copy of what goes round is acked when it comes and nobody holds the task: it must not be all that there is of it.
        let (held, goes_round): (Vec<Held>, Vec<Held>) = tasks.partition(|task| task.receipt.is_some());
        goes_round.into_iter().for_each(|task| self.put_back(task));
        if held.is_empty() {
            return;
        }
        let Some(at) = self.paging.slots.place(&model, priority, &tenant, (oldest_us, newest_us)) else {
            // There was one when it was asked; others took it.
            held.into_iter().for_each(|task| self.put_back(task));
            self.paging.pause_until = Some(Instant::now() + PAUSE);
            return;
        };
        let pages = divide(held, self.paging.page_tasks, self.paging.page_bytes);
        let tasks = pages.iter().map(Vec::len).sum::<usize>() as u64;
        let Some(slot) = self.paging.slots.all.get_mut(at) else { return };
        let Some(line) = slot.line.clone() else { return };
        slot.pages += pages.len() as u64;
        slot.away.add(Away { tasks, work_us });
        slot.writing += 1;
        let is_first = slot.writing == 1;
        let bytes = pages.iter().flatten().map(Held::bytes).sum();
        let pages = Pages { slot: at, queue: slot.queue, line, pages, tasks, work_us, bytes };
        let (tasks_before, bytes_before) = self.paging.under_way;
        self.paging.under_way = (tasks_before + tasks, bytes_before.saturating_add(bytes));
        match is_first {
            true => self.paging.write(pages),
            false => self.paging.to_write.push_back(pages),
        }
        self.paging.changed = true;
        self.metrics.paged("out", tasks);
    }

    /// A task that was taken out of the planner and stays.
    fn put_back(&mut self, task: Held) {
        let now_us = self.clock.now_us();
        match self.planner.handle_page_in(self.arrival(&task), now_us) {
            Ok(()) => self.held.insert(task.envelope.id, task),
            Err(_) => self.admit(task),
        }
    }

    /// Asks for the record of a task that is not here, to say where it is if a part of the backlog is in the broker.
    pub fn look_for_paged(&mut self, id: TaskId, answer: oneshot::Sender<Told>) {
        if self.paging.busy() == 0 {
            let _gone = answer.send(Told::Place { place: Place::Unknown {} });
            return;
        }
        let store = self.store.clone();
        self.paging.looking.spawn(async move {
            let record = store.get(vec![id]).await.ok().and_then(|mut records| records.pop().flatten());
            (record, answer)
        });
    }

    /// Where a task is that has this record and is not here: in the broker, behind others of its line, if there is any of that.
    fn place_of_paged(&self, record: &TaskResult) -> Option<Place> {
        if record.state != State::Queued || self.held.contains_key(&record.id) {
            return None;
        }
        let lines = self.paging.slots.all.iter().enumerate().filter(|(_, slot)| slot.pages > 0);
        let is_its = |line: &label::Line| {
            line.whose.is_of(&record.tenant) && record.model.as_ref().is_none_or(|model| *model == line.model)
        };
        let lines = lines.filter_map(|(at, slot)| Some((at, slot, slot.line.as_ref().filter(|line| is_its(line))?)));
        // It may have been given another priority since it went there.
        let (at, slot, line) = lines.max_by_key(|(_, _, line)| line.priority == record.priority)?;
        let stats: Stats = self.planner.stats();
        let model = stats.models.iter().find(|model| *model.model == *line.model)?;
        let since = record.timings.accepted?;
        let here = self.held.of_page(at) as u64;
        // Behind all that is there, at worst.
        let ahead = here + slot.away.tasks;
        let (expected_start, expected_finish) = self.expected_of_paged(record, line, since);
        Some(Place::Waiting(Box::new(Waiting {
            reason: crate::planner::WaitReason::Paged.as_str().to_owned(),
            model: line.model.clone(),
            priority: record.priority,
            since,
            starts: None,
            ahead_in_lane: Some(ahead),
            ahead_uncounted: false,
            queued_in_model: model.waiting as u64,
            dispatched_in_model: model.outstanding as u64,
            capacity: model.capacity as u64,
            policy: self.planner.policy().to_owned(),
            expected_start,
            expected_finish,
        })))
    }

    /// As if it were the last of its line.
    fn expected_of_paged(
        &self,
        record: &TaskResult,
        line: &label::Line,
        since: Timestamp,
    ) -> (Option<ExpectedTime>, Option<ExpectedTime>) {
        let now_us = self.clock.now_us();
        let arrival = Arrival {
            id: record.id,
            model: line.model.clone(),
            tenant: record.tenant.clone(),
            priority: line.priority,
            kind: record.kind,
            cost: None,
            expected: None,
            deadline_us: None,
            due_us: None,
            not_before_us: None,
            arrived_us: Some(self.clock.micros(since).max(now_us)),
            is_known: true,
        };
        self.expected(self.planner.quote(&arrival, now_us))
    }
}
