//! Writes JSON into a buffer, value by value. Signs and names are put as they are.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::task::TaskId;
use crate::time::Timestamp;

#[derive(Debug)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// What was written, in no more memory than it takes: it may wait in a queue.
    pub(super) fn done(mut self) -> Vec<u8> {
        self.0.shrink_to_fit();
        self.0
    }

    /// JSON, as it is.
    pub fn put(&mut self, json: &str) -> &mut Self {
        self.0.extend_from_slice(json.as_bytes());
        self
    }

    pub fn text(&mut self, text: &str) -> Option<()> {
        if text.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
            return self.any(text);
        }
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
        self.0.extend_from_slice(text.as_str().as_bytes());
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
