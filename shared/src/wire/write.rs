//! Writes JSON into a buffer, value by value. Signs and names are put as they are.

use std::cell::Cell;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::task::TaskId;
use crate::time::Timestamp;

/// Most bytes that a thread keeps to write into.
const KEPT_BYTES: usize = 64 << 10;

thread_local! {
    static KEPT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

#[derive(Debug)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// What is written by `write`, in no more memory than it takes: it may wait in a queue.
    pub(super) fn written(write: impl FnOnce(&mut Self) -> Option<()>) -> Option<Vec<u8>> {
        let mut writer = Self(KEPT.take());
        writer.0.clear();
        let written = write(&mut writer).map(|()| writer.0.as_slice().to_vec());
        if writer.0.capacity() <= KEPT_BYTES {
            KEPT.set(writer.0);
        }
        written
    }

    /// JSON, as it is.
    pub fn put(&mut self, json: &str) -> &mut Self {
        self.0.extend_from_slice(json.as_bytes());
        self
    }

    pub fn text(&mut self, text: &str) -> Option<()> {
        // Looks at every byte, which takes less time than to stop at the first.
        if text.bytes().fold(false, |found, byte| found | (byte < 0x20) | (byte == b'"') | (byte == b'\\')) {
            return self.any(text);
        }
        self.word(text)
    }

    /// A text that has nothing to escape.
    pub fn word(&mut self, text: &str) -> Option<()> {
        self.0.push(b'"');
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(b'"');
        Some(())
    }

    pub fn id(&mut self, id: TaskId) -> Option<()> {
        let mut text = [b'"'; 38];
        id.0.as_hyphenated().encode_lower(&mut text[1..37]);
        self.0.extend_from_slice(&text);
        Some(())
    }

    pub fn number(&mut self, mut number: u64) -> Option<()> {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.0.extend_from_slice(&digits[at..]);
        Some(())
    }

    pub fn boolean(&mut self, value: bool) -> Option<()> {
        self.put(if value { "true" } else { "false" });
        Some(())
    }

    pub fn instant(&mut self, instant: Timestamp) -> Option<()> {
        let text = instant.canonical()?;
        self.0.push(b'"');
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(b'"');
        Some(())
    }

    pub fn raw(&mut self, json: &RawValue) -> Option<()> {
        self.put(json.get());
        Some(())
    }

    /// Whatever has no short way of its own.
    pub fn any<T: Serialize + ?Sized>(&mut self, value: &T) -> Option<()> {
        serde_json::to_writer(&mut self.0, value).ok()
    }

    /// Behind its name a value that is there; nothing otherwise.
    pub fn some<T>(
        &mut self,
        name: &str,
        value: Option<T>,
        put: impl FnOnce(&mut Self, T) -> Option<()>,
    ) -> Option<()> {
        match value {
            Some(value) => put(self.put(name), value),
            None => Some(()),
        }
    }

    /// A value that is there, or `null`.
    pub fn or_null<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T) -> Option<()>) -> Option<()> {
        match value {
            Some(value) => put(self, value),
            None => {
                self.put("null");
                Some(())
            }
        }
    }

    pub fn array<T>(&mut self, values: &[T], put: impl Fn(&mut Self, &T) -> Option<()>) -> Option<()> {
        self.put("[");
        for (at, value) in values.iter().enumerate() {
            if at > 0 {
                self.put(",");
            }
            put(self, value)?;
        }
        self.put("]");
        Some(())
    }
}
