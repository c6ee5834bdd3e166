//! How a task's record looks in the server, and how it is read back.

use redis::Value;
use serde::de::DeserializeOwned;

use super::link::{array, bytes, optional_bytes, unexpected};
use crate::envelope::Reply;
use crate::lifecycle::State;
use crate::outcome::TaskResult;
use crate::store::{RECORD_BYTES, StoreError};
use crate::task::TaskId;
use crate::time::Timestamp;

/// Fields that [`task`] reads, in its order. `common.lua` has the same row.
pub(super) const VIEW: [&str; 7] = ["state", "record", "tries", "model", "sent", "began", "worker"];

/// The record as it is kept.
///
/// # Errors
/// [`StoreError::Refused`] for one that is too large.
pub(super) fn written(task: &TaskResult) -> Result<Vec<u8>, StoreError> {
    let text = serde_json::to_vec(task).map_err(|error| StoreError::Refused(format!("task {}: {error}", task.id.0)))?;
    if text.len() > RECORD_BYTES {
        return Err(StoreError::Refused(format!(
            "task {}: its record of {} bytes is too large",
            task.id.0,
            text.len()
        )));
    }
    Ok(text)
}

/// The place of a task in the list: microseconds, exact as the double that it becomes.
pub(super) fn score(task: &TaskResult) -> i64 {
    task.timings.accepted.unwrap_or_else(Timestamp::now).as_micros().clamp(0, (1 << 53) - 1)
}

/// Reads a view: `None` when there is no record.
pub(super) fn task(view: Value) -> Result<Option<TaskResult>, StoreError> {
    let view: [Value; VIEW.len()] =
        array(view)?.try_into().map_err(|_| unexpected("a record with another number of fields"))?;
    let [state, record, tries, model, sent, began, worker] = view;
    let (Some(state), Some(record)) = (optional_bytes(state)?, optional_bytes(record)?) else {
        return Ok(None);
    };
    let mut task: TaskResult = parsed(&record, "a record")?;
    let state = State::ALL
        .into_iter()
        .find(|known| known.as_str().as_bytes() == state)
        .ok_or_else(|| StoreError::Corrupt(format!("task {}: unknown state", task.id.0)))?;
    if state.is_terminal() {
        // Its result was written as the record.
        return Ok(Some(task));
    }
    task.state = state;
    if let Some(tries) = optional_bytes(tries)? {
        task.attempt = parsed(&tries, "a number of attempts")?;
    }
    if let Some(model) = optional_bytes(model)? {
        task.model = Some(text(model)?);
    }
    if let Some(sent) = optional_bytes(sent)? {
        task.timings.dispatched = Some(Timestamp::from_micros(parsed(&sent, "an instant")?));
    }
    if state == State::Running {
        task.worker = optional_bytes(worker)?.map(text).transpose()?;
        let began = optional_bytes(began)?.map(|began| parsed(&began, "an instant")).transpose()?;
        task.timings.started = began.map(Timestamp::from_micros);
    }
    Ok(Some(task))
}

/// Reads a view of a record that is there.
pub(super) fn present(view: Value) -> Result<Box<TaskResult>, StoreError> {
    task(view)?.map(Box::new).ok_or_else(|| unexpected("no record"))
}

/// Reads a result as it was settled.
pub(super) fn result(record: Value) -> Result<Box<TaskResult>, StoreError> {
    parsed(&bytes(record)?, "a result")
}

/// Reads the followers: JSON, each between line feeds.
pub(super) fn followers(tell: Value) -> Result<Vec<Reply>, StoreError> {
    let Some(tell) = optional_bytes(tell)? else { return Ok(Vec::new()) };
    tell.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| parsed(line, "a follower")).collect()
}

pub(super) fn parsed<T: DeserializeOwned>(json: &[u8], what: &str) -> Result<T, StoreError> {
    serde_json::from_slice(json).map_err(|error| StoreError::Corrupt(format!("{what}: {error}")))
}

pub(super) fn text(bytes: Vec<u8>) -> Result<String, StoreError> {
    String::from_utf8(bytes).map_err(|_| StoreError::Corrupt("a text that is not UTF-8".to_owned()))
}

/// Where a page ends: behind this task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Cursor {
    pub id: TaskId,
    pub score: i64,
}

impl Cursor {
    pub(super) fn write(&self) -> String {
        format!("{:014x}{}", self.score, self.id.0.simple())
    }

    pub(super) fn read(cursor: &str) -> Result<Self, StoreError> {
        let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if cursor.len() != 14 + 32 || !cursor.bytes().all(digits) {
            return Err(StoreError::BadCursor);
        }
        let score = i64::from_str_radix(&cursor[..14], 16).map_err(|_| StoreError::BadCursor)?;
        let id = cursor[14..].parse().map_err(|_| StoreError::BadCursor)?;
        if score >= 1 << 53 { Err(StoreError::BadCursor) } else { Ok(Self { id: TaskId(id), score }) }
    }
}

#[cfg(test)]
mod tests {
    use super::Cursor;
    use crate::lifecycle::State;
    use crate::task::TaskId;

    #[test]
    fn a_state_is_named_as_on_the_wire() {
        for state in State::ALL {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("{:?}", state.as_str()));
        }
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        for score in [0, 1, 1_732_456_789_123_456, (1 << 53) - 1] {
            let cursor = Cursor { id: TaskId::new(), score };
            assert_eq!(Cursor::read(&cursor.write()), Ok(cursor));
        }
    }
}
