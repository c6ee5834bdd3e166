//! What the scheduler holds of a task beside its place in the planner.

use std::collections::HashMap;

use taskyard_shared::broker::Receipt;
use taskyard_shared::store::Accept;
use taskyard_shared::{Envelope, Priority, State, TaskId};
use tokio::time::Instant;

use crate::planner::Estimate;

/// What a task takes beside its input, about, in bytes.
const EACH_BYTES: usize = 1_000;

/// A task that waits here: its envelope, and the delivery that owns it until it is handed on.
pub(crate) struct Held {
    /// Boxed: a task is handed on from place to place, and an envelope is large.
    pub envelope: Box<Envelope>,
    /// Nothing while a task held for long is on its way round through the broker.
    pub receipt: Option<Receipt>,
    pub since: Instant,
    /// It came back, or is read again: it is not refused for others that wait.
    pub is_known: bool,
    /// The page queue that it came from, by its place among those, if it was kept in one.
    pub page: Option<usize>,
    /// What it was expected to take when it went there: if it declares its cost it comes back to the place that it had by that, whatever was
    /// learnt since.
    pub expected: Option<Estimate>,
    /// The model it was admitted for.
    pub model: String,
}

impl Held {
    pub fn bytes(&self) -> usize {
        self.envelope.input.get().len() + EACH_BYTES
    }

    /// To ask what its record says of a task that was accepted before.
    pub fn accept_again(&self) -> Accept {
        let Self { envelope, .. } = self;
        Accept {
            id: envelope.id,
            fingerprint: envelope.fingerprint(),
            // It was accepted once, whatever its key leads to now.
            alias: None,
            record: envelope.result(State::Queued),
            follower: None,
        }
    }
}

/// All that wait here, by id: how many bytes they take, and how many of them came from each page queue.
#[derive(Default)]
pub(crate) struct Holdings {
    /// Boxed: a table has up to twice as many places as tasks.
    tasks: HashMap<TaskId, Box<Held>>,
    bytes: usize,
    from_page: Vec<usize>,
}

impl Holdings {
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many of them came from this page queue.
    pub fn of_page(&self, page: usize) -> usize {
        self.from_page.get(page).copied().unwrap_or(0)
    }

    pub fn contains_key(&self, id: &TaskId) -> bool {
        self.tasks.contains_key(id)
    }

    pub fn get(&self, id: &TaskId) -> Option<&Held> {
        self.tasks.get(id).map(Box::as_ref)
    }

    pub fn get_mut(&mut self, id: &TaskId) -> Option<&mut Held> {
        self.tasks.get_mut(id).map(Box::as_mut)
    }

    pub fn insert(&mut self, id: TaskId, task: Held) {
        self.bytes += task.bytes();
        if let Some(page) = task.page {
            if self.from_page.len() <= page {
                self.from_page.resize(page + 1, 0);
            }
            if let Some(count) = self.from_page.get_mut(page) {
                *count += 1;
            }
        }
        if let Some(before) = self.tasks.insert(id, Box::new(task)) {
            self.left(&before);
        }
    }

    pub fn remove(&mut self, id: &TaskId) -> Option<Held> {
        let task = self.tasks.remove(id)?;
        self.left(&task);
        Some(*task)
    }

    /// It waits in another line than the rest of its page, and counts for that no more. Its receipt is the caller's to replace.
    pub fn leave_page(&mut self, id: &TaskId) -> Option<&mut Held> {
        let page = self.tasks.get_mut(id)?.page.take();
        if let Some(count) = page.and_then(|page| self.from_page.get_mut(page)) {
            *count = count.saturating_sub(1);
        }
        self.tasks.get_mut(id).map(Box::as_mut)
    }

    fn left(&mut self, task: &Held) {
        self.bytes = self.bytes.saturating_sub(task.bytes());
        if let Some(count) = task.page.and_then(|page| self.from_page.get_mut(page)) {
            *count = count.saturating_sub(1);
        }
    }
}

/// A task that is with the workers.
pub(crate) struct Outstanding {
    pub model: String,
    pub at: Instant,
    /// From when on it could run; microseconds since the epoch.
    pub arrived_us: u64,
    pub priority: Priority,
}
