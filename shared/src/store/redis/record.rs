//! How a task's record looks in the server, and how it is read back. `common.lua` has the layout in words.

use redis::Value;
use serde::de::DeserializeOwned;

use super::link::{bytes, optional_bytes, unexpected};
use crate::envelope::Reply;
use crate::journal::codec::{Malformed, Reader};
use crate::lifecycle::State;
use crate::outcome::TaskResult;
use crate::store::pack::{self, put_state, put_task};
use crate::store::{Accept, Guard, RECORD_BYTES, StoreError};
use crate::task::{Priority, TaskId};
use crate::time::Timestamp;

const FORMAT: u8 = 1;
/// How fingerprints are made now. One that was made otherwise says nothing about one that is made so.
const FINGERPRINT: u8 = 2;
/// What stands before that which is kept to the end.
const HEAD_BYTES: usize = 30;
/// A run without model and worker.
const RUN_BYTES: usize = 50;
/// Room for a task of the usual size.
const TASK_BYTES: usize = 256;

/// The record of a task that is taken in. `alias` is the key of its idempotency key.
///
/// # Errors
/// [`StoreError::Refused`] for one that is too large.
pub(super) fn accepted(task: &Accept, alias: Option<&str>) -> Result<Vec<u8>, StoreError> {
    let mut out = Vec::with_capacity(HEAD_BYTES + RUN_BYTES + TASK_BYTES);
    out.push(FORMAT);
    out.extend_from_slice(&fastrand::u64(..).to_le_bytes());
    out.push(FINGERPRINT);
    out.extend_from_slice(&task.fingerprint.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    if alias.is_some() || task.follower.is_some() {
        let alias = alias.unwrap_or_default();
        let length = u16::try_from(alias.len()).map_err(|_| refused(task.id, "its idempotency key is too long"))?;
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(alias.as_bytes());
        if let Some(reply) = &task.follower {
            out.extend(follower(reply)?);
        }
        let kept = u32::try_from(out.len() - HEAD_BYTES).map_err(|_| refused(task.id, "its follower is too long"))?;
        out[HEAD_BYTES - 4..HEAD_BYTES].copy_from_slice(&kept.to_le_bytes());
    }
    put_run(&mut out, task.record.state, task.record.attempt, Held::Not, 0);
    put_checked(&mut out, &task.record)?;
    Ok(out)
}

/// What a settlement writes of a record: its run, and the result.
///
/// # Errors
/// [`StoreError::Refused`] for one that is too large.
pub(super) fn ended(guard: Guard, result: &TaskResult) -> Result<Vec<u8>, StoreError> {
    let output = result.output.as_ref().map_or(0, |output| output.get().len());
    let mut out = Vec::with_capacity(RUN_BYTES + TASK_BYTES + output);
    let (attempt, held, nonce) = match guard {
        Guard::Fence { attempt, nonce } => (attempt, Held::Claimed, nonce),
        Guard::First { nonce } => (1, Held::First, nonce),
        Guard::Unclaimed => (result.attempt, Held::Not, 0),
    };
    put_run(&mut out, result.state, attempt, held, nonce);
    put_checked(&mut out, result)?;
    Ok(out)
}

/// A priority as the scripts are told of it.
pub(super) fn given(priority: Option<Priority>) -> u8 {
    priority.map_or(0, |priority| priority.get() + 1)
}

/// Whether an attempt holds the task, or has settled it.
enum Held {
    Not,
    Claimed,
    First,
}

fn put_run(out: &mut Vec<u8>, state: State, attempt: u32, held: Held, nonce: u128) {
    let start = out.len();
    put_state(out, state);
    out.extend_from_slice(&attempt.to_le_bytes());
    out.push(held as u8);
    out.extend_from_slice(&self::nonce(nonce));
    // Neither lease nor model nor worker: the task says it all.
    out.resize(start + RUN_BYTES, 0);
}

pub(super) fn nonce(nonce: u128) -> [u8; 16] {
    nonce.to_le_bytes()
}

fn put_checked(out: &mut Vec<u8>, task: &TaskResult) -> Result<(), StoreError> {
    let start = out.len();
    put_task(out, task);
    match out.len() - start {
        bytes if bytes > RECORD_BYTES => Err(refused(task.id, &format!("its record of {bytes} bytes is too large"))),
        _ => Ok(()),
    }
}

fn refused(id: TaskId, why: &str) -> StoreError {
    StoreError::Refused(format!("task {}: {why}", id.0))
}

/// A follower as it is kept and compared: JSON, with a line feed on either side.
pub(super) fn follower(reply: &Reply) -> Result<Vec<u8>, StoreError> {
    let mut line = vec![b'\n'];
    serde_json::to_writer(&mut line, reply).map_err(|error| StoreError::Refused(error.to_string()))?;
    line.push(b'\n');
    Ok(line)
}

/// A record as it stands in the server.
struct Record<'a> {
    kept: &'a [u8],
    state: State,
    attempt: u32,
    /// The one that it was given, if it was given another than it was accepted with.
    priority: Option<Priority>,
    began: i64,
    sent: i64,
    model: &'a str,
    worker: &'a str,
    task: Reader<'a>,
}

impl<'a> Record<'a> {
    fn read(record: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(record);
        let [format, ..] = reader.array::<{ HEAD_BYTES - 4 }>()?;
        if format != FORMAT {
            return Err(Malformed);
        }
        let kept = u32::from_le_bytes(reader.array()?);
        let kept = reader.take(kept as usize)?;
        let state = pack::state(&mut reader)?;
        let attempt = u32::from_le_bytes(reader.array()?);
        let [marks] = reader.array()?;
        let priority = match marks / 16 {
            0 => None,
            given => Some(Priority::try_from(given - 1).map_err(|_| Malformed)?),
        };
        let (_nonce, _lease) = (reader.array::<16>()?, reader.array::<8>()?);
        let (began, sent) = (i64::from_le_bytes(reader.array()?), i64::from_le_bytes(reader.array()?));
        let (model, worker) = (u16::from_le_bytes(reader.array()?), u16::from_le_bytes(reader.array()?));
        let mut text = |bytes: u16| std::str::from_utf8(reader.take(bytes.into())?).map_err(|_| Malformed);
        let (model, worker) = (text(model)?, text(worker)?);
        Ok(Self { kept, state, attempt, priority, began, sent, model, worker, task: reader })
    }

    fn task(mut self, id: TaskId) -> Result<TaskResult, Malformed> {
        let mut task = pack::task(id, &mut self.task, true)?;
        if self.state.is_terminal() {
            // Its result was written as the task.
            return Ok(task);
        }
        (task.state, task.attempt) = (self.state, self.attempt);
        task.priority = self.priority.unwrap_or(task.priority);
        if !self.model.is_empty() {
            task.model = Some(self.model.to_owned());
        }
        if self.sent != 0 {
            task.timings.dispatched = Some(Timestamp::from_micros(self.sent));
        }
        if self.state == State::Running {
            task.worker = Some(self.worker.to_owned());
            task.timings.started = Some(Timestamp::from_micros(self.began));
        }
        Ok(task)
    }

    fn followers(&self) -> Option<&'a [u8]> {
        let length = u16::from_le_bytes(*self.kept.first_chunk()?);
        self.kept.get(2 + usize::from(length)..)
    }
}

/// Reads a record: `None` when there is none, or only the wish that its task be cancelled.
pub(super) fn task(id: TaskId, record: Value) -> Result<Option<TaskResult>, StoreError> {
    optional_bytes(record)?.filter(|record| record.len() > 1).map(|record| read(id, &record)).transpose()
}

fn read(id: TaskId, record: &[u8]) -> Result<TaskResult, StoreError> {
    Record::read(record).and_then(|record| record.task(id)).map_err(|error| corrupt(id, &error.to_string()))
}

fn corrupt(id: TaskId, what: &str) -> StoreError {
    StoreError::Corrupt(format!("the record of task {}: {what}", id.0))
}

/// Reads a record that is there.
pub(super) fn present(id: TaskId, record: Value) -> Result<Box<TaskResult>, StoreError> {
    task(id, record)?.map(Box::new).ok_or_else(|| unexpected("no record"))
}

/// Reads a finished record, and who is to be told besides.
pub(super) fn finished(id: TaskId, record: Value) -> Result<(Box<TaskResult>, Vec<Reply>), StoreError> {
    let record = bytes(record)?;
    let read = Record::read(&record).map_err(|error| corrupt(id, &error.to_string()))?;
    let followers = read.followers().map(lines).transpose()?.unwrap_or_default();
    let task = read.task(id).map_err(|error| corrupt(id, &error.to_string()))?;
    Ok((Box::new(task), followers))
}

/// Reads the followers: JSON, each between line feeds.
pub(super) fn followers(told: Value) -> Result<Vec<Reply>, StoreError> {
    optional_bytes(told)?.map(|told| lines(&told)).transpose().map(Option::unwrap_or_default)
}

fn lines(told: &[u8]) -> Result<Vec<Reply>, StoreError> {
    told.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| parsed(line, "a follower")).collect()
}

pub(super) fn parsed<T: DeserializeOwned>(json: &[u8], what: &str) -> Result<T, StoreError> {
    serde_json::from_slice(json).map_err(|error| StoreError::Corrupt(format!("{what}: {error}")))
}

pub(super) fn text(bytes: Vec<u8>) -> Result<String, StoreError> {
    String::from_utf8(bytes).map_err(|_| StoreError::Corrupt("a text that is not UTF-8".to_owned()))
}
