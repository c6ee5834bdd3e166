//! The messages that every task costs several of, written and read straight as the bytes that they are on the wire.
//!
//! What is written is, byte for byte, what serde writes; it only takes a fraction of the time, since nothing in between
//! has to be general. Reading expects what is written here, fields in their order and nothing in between. Whatever looks
//! otherwise (another order, a field of a later version, a text with escapes) is read by serde, as is whatever is
//! wrong, so that there is one place that says what may be read and what an error is called.

mod completion;
mod envelope;
mod envelopes;
mod outcome;
mod read;
mod task;
#[cfg(test)]
pub(crate) mod tests;
mod write;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use envelopes::read_order;
pub use envelopes::{Unreadable, read_envelopes};
pub use read::Reader;
pub(crate) use task::NAMES as TASK_FIELDS;
pub use write::Writer;

/// A message with a short way to its bytes.
pub trait Put: Serialize {
    /// Writes it. `None`, with anything written, for what only serde can write, or nobody.
    fn put(&self, out: &mut Writer) -> Option<()>;
}

/// A message with a short way from its bytes.
pub trait Get: DeserializeOwned {
    /// Reads what [`Put::put`] wrote. `None`, anywhere, for anything else.
    fn get(from: &mut Reader<'_>) -> Option<Self>;
}

/// One message.
///
/// # Errors
/// For an instant that RFC 3339 cannot write.
pub fn write<T: Put>(message: &T) -> serde_json::Result<Vec<u8>> {
    match Writer::written(|out| message.put(out)) {
        Some(json) => Ok(json),
        None => serde_json::to_vec(message),
    }
}

/// Several messages, as an array.
///
/// # Errors
/// As [`write`].
pub fn write_all<T: Put>(messages: &[&T]) -> serde_json::Result<Vec<u8>> {
    match Writer::written(|out| out.array(messages, |out, message| message.put(out))) {
        Some(json) => Ok(json),
        None => serde_json::to_vec(messages),
    }
}

/// One message.
///
/// # Errors
/// When it is none.
pub fn read<T: Get>(body: &[u8]) -> serde_json::Result<T> {
    if let Ok(text) = std::str::from_utf8(body) {
        let mut reader = Reader::new(text);
        if let Some(message) = T::get(&mut reader)
            && reader.is_done()
        {
            return Ok(message);
        }
        return serde_json::from_str(text);
    }
    serde_json::from_slice(body)
}

/// One message, or an array of them.
///
/// # Errors
/// When it is neither.
pub fn read_all<T: Get>(body: &[u8]) -> serde_json::Result<Vec<T>> {
    if body.first() != Some(&b'[') {
        return read(body).map(|message| vec![message]);
    }
    let Ok(text) = std::str::from_utf8(body) else { return serde_json::from_slice(body) };
    let mut reader = Reader::new(text);
    if let Some(messages) = reader.array(T::get)
        && reader.is_done()
    {
        return Ok(messages);
    }
    serde_json::from_str(text)
}
