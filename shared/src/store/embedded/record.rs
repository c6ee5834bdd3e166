//! One task's record, as it is held: a million finished ones must be bearable, and they are hardly ever read.
//!
//! The task itself is packed into one piece of memory. What changes while it is not finished stands beside it, so that a
//! claim moves no bytes; what most tasks never have stands apart.

use std::sync::Arc;

use crate::envelope::{Correlation, Reply};
use crate::journal::Address;
use crate::journal::codec::{Malformed, Reader};
use crate::lifecycle::State;
use crate::outcome::TaskResult;
use crate::store::{FOLLOWERS, Filter, pack};
use crate::task::{Priority, TaskId};
use crate::time::Timestamp;

/// What a record is taken to need beside its packed bytes: its places in the map, the queues and the list.
const OVERHEAD_BYTES: usize = 256;
/// And a follower beside its names.
const FOLLOWER_BYTES: usize = 64;

pub(super) struct Record {
    /// Its place in the list, which also tells it from an earlier one of the same id.
    pub seq: u64,
    /// When it was finished, or else last touched.
    pub touched_ms: u64,
    /// When the lease ends.
    pub lease_ms: u64,
    /// Of the attempt that holds it, or that settled it; meant only if `held`.
    pub nonce: u128,
    /// Of the content; meant only if `told_apart`.
    pub fingerprint: u128,
    /// The task as it was accepted, or its result once it has ended.
    pub task: Arc<[u8]>,
    pub address: Option<Address>,
    pub more: Option<Box<More>>,
    pub attempt: u32,
    pub state: State,
    pub held: bool,
    /// The attempt that holds it has its worker to itself.
    pub alone: bool,
    /// Somebody asked to cancel it.
    pub unwanted: bool,
    /// The one that it was given, if it was given another than it was accepted with; until it has ended.
    pub priority: Option<Priority>,
    /// Not when only a settlement made the record, or when the fingerprint was made in another way.
    pub told_apart: bool,
}

/// What most tasks never have.
#[derive(Default)]
pub(super) struct More {
    /// The tenant's idempotency key.
    pub alias: Option<Box<str>>,
    pub followers: Vec<Reply>,
    /// Of the dispatch, and of the attempt that holds it; gone once it has ended.
    pub model: Option<Arc<str>>,
    pub worker: Option<Arc<str>>,
    pub started: Option<Timestamp>,
}

impl Record {
    pub fn open(&self) -> bool {
        !self.state.is_terminal()
    }

    pub fn holds(&self, nonce: u128) -> bool {
        self.held && self.nonce == nonce
    }

    pub fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    pub fn alias(&self) -> Option<&str> {
        self.more.as_ref()?.alias.as_deref()
    }

    pub fn followers(&self) -> &[Reply] {
        self.more.as_ref().map_or(&[], |more| &more.followers)
    }

    /// Memory, as an estimate.
    pub fn bytes(&self) -> usize {
        let beside = self.more.as_ref().map_or(0, |more| {
            let texts = more.followers.iter().map(|follower| {
                FOLLOWER_BYTES + follower.to.len() + follower.correlation_id.as_ref().map_or(0, Correlation::heap_bytes)
            });
            more.alias.as_ref().map_or(0, |alias| alias.len()) + texts.sum::<usize>()
        });
        Self::weight(self.task.len() + beside)
    }

    /// That of a record whose task takes so many bytes.
    pub fn weight(task_bytes: usize) -> usize {
        task_bytes + OVERHEAD_BYTES
    }

    /// Whether it was added.
    pub fn follow(&mut self, follower: Option<Reply>) -> bool {
        match follower {
            Some(follower) if self.followers().len() < FOLLOWERS && !self.followers().contains(&follower) => {
                self.more().followers.push(follower);
                true
            }
            _ => false,
        }
    }

    pub fn view(&self, id: TaskId) -> View {
        let progress = self.open().then(|| {
            let more = self.more.as_ref();
            Progress {
                state: self.state,
                attempt: self.attempt,
                priority: self.priority,
                model: more.and_then(|more| more.model.clone()),
                worker: more.and_then(|more| more.worker.clone()),
                started: more.and_then(|more| more.started),
            }
        });
        View { id, task: self.task.clone(), progress }
    }
}

/// What has become of a task that is not finished, beside what it was accepted with.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    state: State,
    attempt: u32,
    priority: Option<Priority>,
    model: Option<Arc<str>>,
    worker: Option<Arc<str>>,
    started: Option<Timestamp>,
}

/// A record as it stood at one moment, to be unpacked when no lock is held.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub id: TaskId,
    pub task: Arc<[u8]>,
    /// `None` once it is finished.
    pub progress: Option<Progress>,
}

impl View {
    pub fn task(&self) -> Result<TaskResult, Malformed> {
        self.unpack(true)
    }

    /// Without its output, when that is not needed to tell.
    pub fn matches(&self, filter: &Filter) -> Result<bool, Malformed> {
        self.unpack(false).map(|task| filter.matches(&task))
    }

    fn unpack(&self, with_output: bool) -> Result<TaskResult, Malformed> {
        let mut task = pack::task(self.id, &mut Reader::new(&self.task), with_output)?;
        if let Some(progress) = &self.progress {
            task.state = progress.state;
            task.attempt = progress.attempt;
            task.priority = progress.priority.unwrap_or(task.priority);
            if let Some(model) = &progress.model {
                task.model = Some(model.to_string());
            }
            task.worker = progress.worker.as_deref().map(str::to_owned);
            task.timings.started = progress.started;
        }
        Ok(task)
    }
}
