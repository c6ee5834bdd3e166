//! Every task the planner knows, once: found by id, and referred to by a small handle everywhere else.

use taskyard_shared::TaskId;

use super::estimator::Estimate;
use super::index::Index;
use super::policy::{Stage, Waiting};

pub(super) type Handle = u32;

pub(super) struct Record {
    pub(super) waiting: Waiting,
    pub(super) model: u32,
    /// Of its tenant, in its model.
    pub(super) flow: u32,
    /// As declared; not a number when it was not. Small, since every waiting task has one.
    pub(super) cost: f32,
    /// Expected about the mean.
    pub(super) deviation_seconds: f32,
    /// From when on it is too late to begin for its deadline; [`NEVER`] without a claim to that.
    pub(super) claim_us: u64,
    /// When it is of no more use; [`NEVER`] without a deadline.
    pub(super) expires_us: u64,
    /// Nothing was known of its model when it came, and so not what it takes.
    pub(super) is_guess: bool,
    pub(super) place: Place,
}

pub(super) const NEVER: u64 = u64::MAX;

/// Where a task is. It is in one place at a time.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// It may not start yet.
    Delayed { start_us: u64 },
    /// In the lane of its class and tenant.
    Lane { stage: Stage },
    /// With the workers. `charged_us` is what its tenant was charged.
    Dispatched { at_us: u64, passes: bool, by_floor: bool, charged_us: u64 },
    /// Its deadline passed or it gave way, which is yet to be told.
    Leaving,
}

impl Record {
    /// What it was expected to take when it was admitted.
    pub(super) fn expected(&self) -> Estimate {
        Estimate {
            mean_seconds: self.waiting.expected_seconds,
            deviation_seconds: self.deviation_seconds.into(),
            q95_seconds: self.waiting.q95_seconds.into(),
        }
    }

    /// Its declared size.
    pub(super) fn cost(&self) -> Option<f64> {
        (!self.cost.is_nan()).then(|| self.cost.into())
    }

    /// Whether it is the task of this sequence, and in a lane.
    pub(super) fn is_queued(&self, sequence: u64) -> bool {
        self.waiting.sequence == sequence && matches!(self.place, Place::Lane { .. })
    }

    pub(super) fn has_claim(&self) -> bool {
        self.claim_us != NEVER
    }

    pub(super) fn is_delayed(&self) -> bool {
        matches!(self.place, Place::Delayed { .. })
    }

    /// When something is due for this task though nothing happens.
    pub(super) fn alarm_us(&self) -> Option<u64> {
        match self.place {
            Place::Delayed { start_us } => Some(start_us.min(self.expires_us)),
            Place::Lane { .. } => Some(self.claim_us.min(self.expires_us)).filter(|&at_us| at_us != NEVER),
            Place::Dispatched { .. } | Place::Leaving => None,
        }
    }
}

pub(super) struct Tasks {
    handles: Index,
    records: Vec<Option<Record>>,
    free: Vec<Handle>,
}

impl Tasks {
    pub(super) fn new(seed: u64) -> Self {
        Self { handles: Index::new(seed), records: Vec::new(), free: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.records.len() - self.free.len()
    }

    pub(super) fn find(&self, id: TaskId) -> Option<Handle> {
        let is_id = |handle| self.get(handle).is_some_and(|record| record.waiting.id == id);
        self.handles.find(self.handles.hash(id.0.as_bytes()), is_id)
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&Record> {
        self.records.get(handle as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut Record> {
        self.records.get_mut(handle as usize)?.as_mut()
    }

    /// Takes in a task whose id is not known yet.
    pub(super) fn insert(&mut self, record: Record) -> Handle {
        let hash = self.handles.hash(record.waiting.id.0.as_bytes());
        let handle = match self.free.pop() {
            Some(handle) => {
                self.records[handle as usize] = Some(record);
                handle
            }
            None => {
                self.records.push(Some(record));
                self.records.len() as Handle - 1
            }
        };
        self.handles.insert(hash, handle);
        handle
    }

    pub(super) fn remove(&mut self, handle: Handle) -> Option<Record> {
        let record = self.records.get_mut(handle as usize)?.take()?;
        self.handles.remove(self.handles.hash(record.waiting.id.0.as_bytes()), handle);
        self.free.push(handle);
        Some(record)
    }

    /// All of them, in no order that means anything.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Handle, &Record)> {
        self.records.iter().enumerate().filter_map(|(handle, record)| Some((handle as Handle, record.as_ref()?)))
    }
}
