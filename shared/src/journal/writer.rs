//! The journal's thread: opens the database, and turns waiting batches into transactions.
//!
//! A disk that is full is not the end: the database is opened anew every so often, what is owed is written, and the
//! journal takes batches again. Any other failure is final, because after a failed flush nobody can say what the disk
//! holds of the pages that the kernel has since called clean.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};

use super::codec::{Malformed, Reader};
use super::{Address, Alive, Batch, CHUNK_ENTRIES, JournalError, Shared};

/// Whose journal it is, and the format of its entries.
const ABOUT: TableDefinition<&str, &str> = TableDefinition::new("about");
/// Number → entries.
const CHUNKS: TableDefinition<u64, &[u8]> = TableDefinition::new("chunks");
/// Number → mask of the entries that live; a chunk that is whole has none.
const ALIVE: TableDefinition<u64, u64> = TableDefinition::new("alive");

const FORMAT: &str = "1";
/// Pages that redb keeps in memory. Little is ever read again, so this is mostly room for a transaction.
const CACHE_BYTES: usize = 64 << 20;
/// A transaction takes no further batch beyond this.
const TRANSACTION_BYTES: usize = 16 << 20;
/// What nobody waits for gathers for so long before it costs a commit.
const GATHER: Duration = Duration::from_millis(5);
/// How often a journal whose disk was full looks whether there is room.
const RETRY: Duration = Duration::from_millis(500);

pub(super) struct Opened {
    pub database: Database,
    pub place: PathBuf,
    pub chunks: HashMap<u64, Alive>,
    pub next_chunk: u64,
}

pub(super) fn open(
    dir: &Path,
    name: &str,
    mut visit: impl FnMut(Address, &[u8]) -> Result<(), String>,
) -> Result<Opened, JournalError> {
    let place = dir.join(format!("{name}.redb"));
    let usable = |error: std::io::Error| failed(&place, redb::Error::from(redb::StorageError::Io(error)));
    // Inputs and outputs are for this user alone. What is there already stays as somebody made it.
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(usable)?;
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&place) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(usable(error)),
        _ => {}
    }
    let known = |error: redb::Error| failed(&place, error);
    let database = builder().set_check_integrity_on_open(true).create(&place).map_err(|error| known(error.into()))?;
    prepare(&database, name, &place)?;
    // The file's name is safe only when its folder is.
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(usable)?;
    let corrupt = |what: String| JournalError::Corrupt(format!("{}: {what}", place.display()));
    let mut chunks = HashMap::new();
    let mut next_chunk = 0;
    read(&database, |number, bytes, mask| {
        next_chunk = next_chunk.max(number.saturating_add(1));
        let Some(bytes) = bytes else { return Ok(()) };
        let mut entries = 0;
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let entry = reader.framed().map_err(|Malformed| corrupt(Malformed.to_string()))?;
            if entries == CHUNK_ENTRIES {
                return Err(corrupt("a chunk has too many entries".into()));
            }
            let address = Address::new(number, entries);
            if mask & address.bit() != 0 {
                visit(address, entry).map_err(corrupt)?;
            }
            entries += 1;
        }
        if entries == 0 {
            return Err(corrupt("a chunk has no entries".into()));
        }
        let full = u64::MAX >> (CHUNK_ENTRIES - entries);
        chunks.insert(number, Alive { mask: mask & full, full, written: true, landed: true, dirty: false });
        Ok(())
    })
    .map_err(|error| match error {
        ReadError::Visit(error) => error,
        ReadError::Database(error) => known(error),
    })?;
    Ok(Opened { database, place, chunks, next_chunk })
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Makes the tables of a new database, and makes sure that an old one is ours.
fn prepare(database: &Database, name: &str, place: &Path) -> Result<(), JournalError> {
    let ours = format!("taskyard {name} {FORMAT}");
    let prepared = (|| -> Result<Option<String>, redb::Error> {
        let transaction = database.begin_write()?;
        let foreign =
            transaction.list_tables()?.map(|table| table.name().to_owned()).find(|table| table != ABOUT.name());
        let mut about = transaction.open_table(ABOUT)?;
        let found = about.get("journal")?.map(|value| value.value().to_owned());
        let found = match (found, foreign) {
            (None, None) => {
                about.insert("journal", ours.as_str())?;
                None
            }
            (None, Some(table)) => Some(format!("a table {table:?}")),
            (Some(found), _) => (found != ours).then_some(found),
        };
        drop(about);
        if found.is_none() {
            transaction.open_table(CHUNKS)?;
            transaction.open_table(ALIVE)?;
            transaction.commit()?;
        }
        Ok(found)
    })();
    match prepared.map_err(|error| failed(place, error))? {
        None => Ok(()),
        Some(found) => Err(JournalError::Corrupt(format!("{}: holds {found}, not {ours:?}", place.display()))),
    }
}

enum ReadError {
    Visit(JournalError),
    Database(redb::Error),
}

/// Shows every chunk with its mask, and every mask without a chunk.
fn read(
    database: &Database,
    mut each: impl FnMut(u64, Option<&[u8]>, u64) -> Result<(), JournalError>,
) -> Result<(), ReadError> {
    let database_error = |error: redb::Error| ReadError::Database(error);
    let transaction = database.begin_read().map_err(|error| database_error(error.into()))?;
    let alive = transaction.open_table(ALIVE).map_err(|error| database_error(error.into()))?;
    let mut masks = HashMap::new();
    for row in alive.iter().map_err(|error| database_error(error.into()))? {
        let (number, mask) = row.map_err(|error| database_error(error.into()))?;
        masks.insert(number.value(), mask.value());
    }
    let chunks = transaction.open_table(CHUNKS).map_err(|error| database_error(error.into()))?;
    for row in chunks.iter().map_err(|error| database_error(error.into()))? {
        let (number, bytes) = row.map_err(|error| database_error(error.into()))?;
        let mask = masks.remove(&number.value()).unwrap_or(u64::MAX);
        each(number.value(), Some(bytes.value()), mask).map_err(ReadError::Visit)?;
    }
    for (number, mask) in masks {
        each(number, None, mask).map_err(ReadError::Visit)?;
    }
    Ok(())
}

fn failed(place: &Path, error: redb::Error) -> JournalError {
    let place = place.display();
    match error {
        redb::Error::DatabaseAlreadyOpen => JournalError::InUse(place.to_string()),
        redb::Error::Corrupted(what) => JournalError::Corrupt(format!("{place}: {what}")),
        redb::Error::UpgradeRequired(version) => {
            JournalError::Corrupt(format!("{place}: is in the old file format {version}"))
        }
        redb::Error::Io(error) => match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                JournalError::Full(format!("{place}: {error}"))
            }
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => JournalError::Corrupt(format!("{place}: {error}")),
            _ => JournalError::Failed(format!("{place}: {error}")),
        },
        error => JournalError::Failed(format!("{place}: {error}")),
    }
}

/// What one transaction writes.
struct Round {
    batches: Vec<Batch>,
    /// Each put chunk's mask beside the mask it began with, in the order of the batches' chunks.
    put: Vec<Alive>,
    /// Chunks whose masks changed.
    changed: Vec<(u64, u64)>,
}

enum Next {
    Write,
    /// The disk was full: see whether it still is.
    Heal,
    Stop,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    place: PathBuf,
    database: Option<Database>,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, place: PathBuf, database: Database) -> Self {
        Self { shared, place, database: Some(database) }
    }

    pub fn run(mut self) {
        loop {
            match self.wait() {
                Next::Write => self.write(false),
                Next::Heal => self.heal(),
                Next::Stop => break,
            }
        }
        if let Some(JournalError::Full(_)) = self.shared.error() {
            self.heal();
        }
        if let Some(error) = self.shared.error() {
            tracing::warn!(%error, "the journal was closed with entries unwritten");
        } else if let Some(database) = self.database.take()
            && let Err(error) = database.close()
        {
            tracing::warn!(%error, "the journal was not closed in good order");
        }
    }

    fn wait(&self) -> Next {
        let mut until = None;
        let mut state = self.shared.lock();
        loop {
            let pause = match self.shared.error() {
                Some(error) => {
                    // Whoever submits meanwhile wakes this, and is refused at once.
                    drop(state);
                    self.refuse_waiting(&error);
                    state = self.shared.lock();
                    if state.awaited {
                        continue;
                    }
                    if state.stopped {
                        return Next::Stop;
                    }
                    RETRY
                }
                None if state.awaited => return Next::Write,
                None if state.is_idle() && state.stopped => return Next::Stop,
                None if state.is_idle() => {
                    state = self.shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                None if state.stopped => return Next::Write,
                None => GATHER,
            };
            let left = until.get_or_insert_with(|| Instant::now() + pause).saturating_duration_since(Instant::now());
            if left.is_zero() {
                match self.shared.error() {
                    None => return Next::Write,
                    Some(JournalError::Full(_)) => return Next::Heal,
                    Some(_) => until = None,
                }
            }
            (state, _) = self.shared.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// One transaction of what waits; of all of it when it is `owed`, because masks that batches have changed may only
    /// be written together with those batches.
    fn write(&mut self, owed: bool) {
        let round = self.take(owed);
        match self.commit(&round) {
            Ok(()) => self.wrote(round),
            Err(error) => self.broke(round, error),
        }
    }

    fn take(&self, owed: bool) -> Round {
        let mut state = self.shared.lock();
        let state = &mut *state;
        let mut batches = Vec::new();
        let mut bytes = 0;
        while (owed || bytes < TRANSACTION_BYTES)
            && let Some(batch) = state.waiting.pop_front()
        {
            bytes += batch.chunks.iter().map(|chunk| chunk.bytes.len()).sum::<usize>();
            state.kill(batch.kills.iter().copied());
            batches.push(batch);
        }
        state.awaited = state.waiting.iter().any(|batch| batch.done.is_some());
        let mut put = Vec::new();
        for chunk in batches.iter().flat_map(|batch| &batch.chunks) {
            // Every submitted chunk is there until its row is gone.
            if let Some(alive) = state.chunks.get_mut(&chunk.number) {
                alive.written = true;
                put.push(*alive);
            }
        }
        let mut changed = Vec::new();
        for number in std::mem::take(&mut state.dirty) {
            if let Some(alive) = state.chunks.get_mut(&number) {
                alive.dirty = false;
                // One that waits to be put takes its mask along then.
                if alive.written {
                    changed.push((number, alive.mask));
                }
            }
        }
        Round { batches, put, changed }
    }

    fn commit(&self, round: &Round) -> Result<(), JournalError> {
        if round.put.is_empty() && round.changed.is_empty() {
            return Ok(());
        }
        let database = self.database.as_ref().ok_or(JournalError::Closed)?;
        (|| -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            {
                let mut chunks = transaction.open_table(CHUNKS)?;
                let mut masks = transaction.open_table(ALIVE)?;
                for (chunk, alive) in round.batches.iter().flat_map(|batch| &batch.chunks).zip(&round.put) {
                    if alive.mask != 0 {
                        chunks.insert(chunk.number, chunk.bytes.as_slice())?;
                        if alive.mask != alive.full {
                            masks.insert(chunk.number, alive.mask)?;
                        }
                    }
                }
                for &(number, mask) in &round.changed {
                    if mask == 0 {
                        chunks.remove(number)?;
                        masks.remove(number)?;
                    } else {
                        masks.insert(number, mask)?;
                    }
                }
            }
            transaction.commit()?;
            Ok(())
        })()
        .map_err(|error| failed(&self.place, error))?;
        self.shared.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn wrote(&self, round: Round) {
        let mut state = self.shared.lock();
        for &(number, mask) in &round.changed {
            if mask == 0 {
                state.chunks.remove(&number);
            }
        }
        for (chunk, alive) in round.batches.iter().flat_map(|batch| &batch.chunks).zip(&round.put) {
            if alive.mask == 0 {
                state.chunks.remove(&chunk.number);
            } else if let Some(alive) = state.chunks.get_mut(&chunk.number) {
                alive.landed = true;
            }
        }
        drop(state);
        for mut batch in round.batches {
            if let Some(done) = batch.done.take() {
                done(Ok(()));
            }
        }
    }

    /// Takes the round back into the state, so that a later one writes what is owed, and refuses whatever waits.
    fn broke(&mut self, round: Round, error: JournalError) {
        let mut state = self.shared.lock();
        for (number, _) in round.changed {
            state.mark_dirty(number);
        }
        for batch in round.batches.into_iter().rev() {
            state.waiting.push_front(batch);
        }
        drop(state);
        // It cannot be used after an error; dropping it frees the file for the next try.
        self.database = None;
        if self.shared.error().as_ref() != Some(&error) {
            tracing::warn!(%error, "the journal cannot be written");
        }
        *self.shared.why_broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        self.shared.broken.store(true, Ordering::Release);
        self.shared.broke.notify_waiters();
        self.refuse_waiting(&error);
    }

    /// Answers everybody who waits. Batches that are kept go on waiting, the others are undone.
    fn refuse_waiting(&self, error: &JournalError) {
        let mut refused = Vec::new();
        let mut state = self.shared.lock();
        state.awaited = false;
        for mut batch in std::mem::take(&mut state.waiting) {
            refused.extend(batch.done.take());
            if batch.keep {
                state.waiting.push_back(batch);
                continue;
            }
            for chunk in &batch.chunks {
                // A failed commit may have landed all the same: its row is removed.
                if let Some(alive) = state.chunks.get_mut(&chunk.number) {
                    alive.mask = 0;
                    alive.written = true;
                }
                state.mark_dirty(chunk.number);
            }
        }
        drop(state);
        for done in refused {
            done(Err(error.clone()));
        }
    }

    fn heal(&mut self) {
        if self.database.is_none() {
            match builder().open(&self.place) {
                Ok(database) => self.database = Some(database),
                Err(error) => {
                    tracing::debug!(%error, "the journal still cannot be opened");
                    return;
                }
            }
        }
        // A round that fails puts the error back.
        let was = self.shared.error();
        self.write(true);
        if self.database.is_some() && was.is_some() {
            self.shared.broken.store(false, Ordering::Release);
            tracing::info!("the journal is written again");
        }
    }
}
