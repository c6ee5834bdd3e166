//! The journal under the embedded adapters: entries that outlive the process, written by many callers in one commit.
//!
//! Callers fill a [`Batch`] and submit it. One thread owns the redb database: it takes whatever is waiting, applies it
//! in one transaction, commits, and only then answers, so that a hundred callers share one flush of the disk.
//!
//! Entries are not rows. Up to [`CHUNK_ENTRIES`] of them are written together as one row, a chunk, and beside it stands
//! a mask of those that are still alive; the row goes when the last one dies. A task's messages and records come and go
//! in batches, so this turns hundreds of B-tree operations into a handful. The price: one entry that lives on keeps the
//! disk space of its chunk, at most [`CHUNK_BYTES`] and one entry.
//!
//! An entry is replaced by putting the new one and killing the old one in the same batch. Entries that are merely done
//! with are killed without a batch and without waiting: their masks are kept in memory and written with the next commit,
//! so there is no queue of them that could grow.

pub mod codec;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Most entries of one chunk: as many as a mask has bits.
pub const CHUNK_ENTRIES: u64 = 64;
/// A chunk over this many bytes is closed.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Most bytes of batches that wait for the disk; callers beyond that wait in [`Journal::reserve`].
const WAITING_BYTES: usize = 64 << 20;
/// What a batch counts for beside its entries.
const BATCH_BYTES: usize = 1 << 10;

/// Names one entry, for as long as it lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Address(NonZeroU64);

impl Address {
    fn new(chunk: u64, slot: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(chunk * CHUNK_ENTRIES + slot))
    }

    fn chunk(self) -> u64 {
        (self.0.get() - 1) / CHUNK_ENTRIES
    }

    fn bit(self) -> u64 {
        1 << ((self.0.get() - 1) % CHUNK_ENTRIES)
    }
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{0} is open in another process")]
    InUse(String),
    #[error("{0}")]
    Corrupt(String),
    /// Nothing is written until there is room again.
    #[error("the disk is full: {0}")]
    Full(String),
    /// Nothing is written any more: the files have to be opened anew.
    #[error("cannot read or write: {0}")]
    Failed(String),
    #[error("the journal was closed")]
    Closed,
}

/// Told once what became of a batch, on the journal's own thread: it must be quick and must not wait.
type Done = Box<dyn FnOnce(Result<(), JournalError>) + Send>;

/// One row to be: its number and its entries, each with its length before it.
struct Chunk {
    number: u64,
    entries: u64,
    bytes: Vec<u8>,
}

/// What is to be written in one transaction.
pub struct Batch {
    shared: Arc<Shared>,
    chunks: Vec<Chunk>,
    kills: Vec<Address>,
    keep: bool,
    done: Option<Done>,
    /// Room among the waiting bytes; given back when the batch is written.
    _room: OwnedSemaphorePermit,
}

impl Batch {
    /// Adds an entry, which `encode` appends to the buffer it is given.
    pub fn put(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Address {
        let full = |chunk: &Chunk| chunk.entries >= CHUNK_ENTRIES || chunk.bytes.len() >= CHUNK_BYTES;
        if self.chunks.last().is_none_or(full) {
            let number = self.shared.next_chunk.fetch_add(1, Ordering::Relaxed);
            self.chunks.push(Chunk { number, entries: 0, bytes: Vec::new() });
        }
        let last = self.chunks.len() - 1;
        let chunk = &mut self.chunks[last];
        codec::put_framed(&mut chunk.bytes, encode);
        let slot = chunk.entries;
        chunk.entries += 1;
        Address::new(chunk.number, slot)
    }

    /// Ends an entry together with this batch: neither without the other.
    pub fn kill(&mut self, address: Address) {
        self.kills.push(address);
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.kills.is_empty()
    }

    /// Hands the batch over, behind all that were handed over before, without waiting. `done` hears of its commit, or
    /// why it failed. A batch that failed and is to be kept is tried again until it is written: its owner's memory is
    /// the truth. One that is not kept leaves no trace.
    pub fn submit(mut self, keep: bool, done: Option<Done>) {
        self.keep = keep;
        self.done = done;
        let shared = self.shared.clone();
        let mut state = shared.lock();
        for chunk in &self.chunks {
            let mask = u64::MAX >> (CHUNK_ENTRIES - chunk.entries);
            let alive = Alive { mask, full: mask, written: false, landed: false, dirty: false };
            state.chunks.insert(chunk.number, alive);
        }
        if state.stopped {
            drop(state);
            if let Some(done) = self.done.take() {
                done(Err(JournalError::Closed));
            }
            return;
        }
        let wake = state.is_idle() || self.done.is_some();
        state.awaited |= self.done.is_some();
        state.waiting.push_back(self);
        drop(state);
        if wake {
            shared.work.notify_one();
        }
    }

    /// Hands the batch over and answers when it is on disk.
    ///
    /// # Errors
    /// Why it is not.
    pub fn commit(self, keep: bool) -> impl Future<Output = Result<(), JournalError>> + Send + 'static {
        let (answer, answered) = tokio::sync::oneshot::channel();
        // Nobody may be waiting any more: the batch is written all the same.
        self.submit(keep, Some(Box::new(move |result| drop(answer.send(result)))));
        async move { answered.await.unwrap_or(Err(JournalError::Closed)) }
    }
}

/// Which entries of a chunk live.
#[derive(Clone, Copy)]
struct Alive {
    mask: u64,
    /// The mask it began with.
    full: u64,
    /// Its row is in the database, or may be.
    written: bool,
    /// Its row is in the database, surely.
    landed: bool,
    /// Its number is in [`State::dirty`].
    dirty: bool,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Batch>,
    /// Somebody waits for one of them, so that they are written at once.
    awaited: bool,
    chunks: HashMap<u64, Alive>,
    /// Chunks whose mask changed since it was written.
    dirty: Vec<u64>,
    /// No new batches, and the writer ends when all is written.
    stopped: bool,
}

impl State {
    /// Nothing is to be written. While something is, the writer is awake or has its time set.
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.dirty.is_empty()
    }

    fn kill(&mut self, addresses: impl IntoIterator<Item = Address>) {
        // Those of one chunk mostly come together: one look-up for each run of them.
        let mut run = None;
        for address in addresses {
            match &mut run {
                Some((chunk, bits)) if *chunk == address.chunk() => *bits |= address.bit(),
                _ => {
                    if let Some((chunk, bits)) = run.replace((address.chunk(), address.bit())) {
                        self.kill_bits(chunk, bits);
                    }
                }
            }
        }
        if let Some((chunk, bits)) = run {
            self.kill_bits(chunk, bits);
        }
    }

    fn kill_bits(&mut self, chunk: u64, bits: u64) {
        if let Some(alive) = self.chunks.get_mut(&chunk) {
            alive.mask &= !bits;
            self.mark_dirty(chunk);
        }
    }

    fn mark_dirty(&mut self, chunk: u64) {
        if let Some(alive) = self.chunks.get_mut(&chunk)
            && !alive.dirty
        {
            alive.dirty = true;
            self.dirty.push(chunk);
        }
    }
}

struct Shared {
    state: Mutex<State>,
    /// Wakes the writer.
    work: Condvar,
    next_chunk: AtomicU64,
    /// Room for waiting bytes, in units of 1 KiB.
    room: Arc<Semaphore>,
    broken: AtomicBool,
    why_broken: Mutex<Option<JournalError>>,
    /// Wakes who waits for room when there will be none.
    broke: Notify,
    commits: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock, so a poisoned one is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self) -> Option<JournalError> {
        if !self.broken.load(Ordering::Acquire) {
            return None;
        }
        self.why_broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A durable set of entries. Dropping it writes what is due and closes the file.
pub struct Journal {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Journal {
    /// Opens or creates `dir/name.redb` and shows every living entry to `visit`, in the order they were put.
    ///
    /// # Errors
    /// [`JournalError::InUse`] when somebody has it open, [`JournalError::Corrupt`] when it is not whole or when `visit`
    /// says so, [`JournalError::Failed`] when the folder cannot be used.
    pub fn open(
        dir: &Path,
        name: &'static str,
        visit: impl FnMut(Address, &[u8]) -> Result<(), String>,
    ) -> Result<Self, JournalError> {
        let opened = writer::open(dir, name, visit)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { chunks: opened.chunks, ..State::default() }),
            work: Condvar::new(),
            next_chunk: AtomicU64::new(opened.next_chunk),
            room: Arc::new(Semaphore::new(WAITING_BYTES >> 10)),
            broken: AtomicBool::new(false),
            why_broken: Mutex::new(None),
            broke: Notify::new(),
            commits: AtomicU64::new(0),
        });
        let writer = writer::Writer::new(shared.clone(), opened.place, opened.database);
        let thread = std::thread::Builder::new()
            .name(format!("{name}-journal"))
            .spawn(move || writer.run())
            .map_err(|error| JournalError::Failed(error.to_string()))?;
        Ok(Self { shared, writer: Mutex::new(Some(thread)) })
    }

    /// Whether these entries are on disk. One that has been replaced counts as such.
    pub fn have_landed(&self, entries: &[Address]) -> bool {
        let state = self.shared.lock();
        entries.iter().all(|entry| state.chunks.get(&entry.chunk()).is_none_or(|chunk| chunk.landed))
    }

    /// Waits until there is room for about so many bytes of entries, and answers an empty batch.
    ///
    /// # Errors
    /// When nothing can be written now.
    pub async fn reserve(&self, bytes: usize) -> Result<Batch, JournalError> {
        let units = (bytes.saturating_add(BATCH_BYTES) >> 10).clamp(1, WAITING_BYTES >> 10);
        let broke = self.shared.broke.notified();
        if let Some(error) = self.shared.error() {
            return Err(error);
        }
        let room = tokio::select! {
            biased;
            room = self.shared.room.clone().acquire_many_owned(u32::try_from(units).unwrap_or(u32::MAX)) => room,
            () = broke => return Err(self.shared.error().unwrap_or(JournalError::Closed)),
        };
        let room = room.map_err(|_| JournalError::Closed)?;
        Ok(Batch {
            shared: self.shared.clone(),
            chunks: Vec::new(),
            kills: Vec::new(),
            keep: false,
            done: None,
            _room: room,
        })
    }

    /// Ends entries some time soon, without waiting. Until then they come again when the journal is opened.
    pub fn kill(&self, addresses: impl IntoIterator<Item = Address>) {
        let mut addresses = addresses.into_iter().peekable();
        if addresses.peek().is_none() {
            return;
        }
        let mut state = self.shared.lock();
        let wake = state.is_idle();
        state.kill(addresses);
        drop(state);
        if wake {
            self.shared.work.notify_one();
        }
    }

    /// Why nothing is written now; `None` while all is well.
    pub fn error(&self) -> Option<JournalError> {
        self.shared.error()
    }

    /// Commits so far: how many callers share one shows in their number.
    pub fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    /// Writes what is due and closes the file. Blocks while it does.
    pub fn close(&self) {
        self.shared.lock().stopped = true;
        self.shared.work.notify_one();
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A last owner may go on the journal's own thread, which cannot wait for itself.
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the journal's thread panicked");
        }
        self.shared.room.close();
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}
