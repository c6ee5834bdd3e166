//! Reads JSON of a known form. `None` means that it is not of that form, whatever else it may be.

use memchr::memchr2;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::task::{TaskId, limits};
use crate::time::Timestamp;

/// How deep what is inside a message may be: with the message and an array around it no deeper than a body.
const NESTED: usize = limits::DEPTH - 2;

#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.rest.is_empty()
    }

    /// Steps over this, if it comes next.
    pub fn skip(&mut self, json: &str) -> bool {
        match self.rest.strip_prefix(json) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// This must come next.
    pub fn want(&mut self, json: &str) -> Option<()> {
        self.skip(json).then_some(())
    }

    fn take(&mut self, bytes: usize) -> Option<&'a str> {
        let (taken, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        Some(taken)
    }

    /// A text without escapes.
    pub fn text(&mut self) -> Option<&'a str> {
        self.want("\"")?;
        let end = self.rest.bytes().position(|byte| byte == b'"' || byte == b'\\' || byte < 0x20)?;
        let text = self.take(end)?;
        self.want("\"")?;
        Some(text)
    }

    pub fn owned(&mut self) -> Option<String> {
        self.text().map(str::to_owned)
    }

    pub fn boxed(&mut self) -> Option<Box<str>> {
        self.text().map(Box::from)
    }

    pub fn id(&mut self) -> Option<TaskId> {
        let text = self.text_of(36)?;
        Uuid::try_parse_ascii(text).ok().map(TaskId)
    }

    /// A text of so many bytes, whatever they are.
    fn text_of(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let text = self.rest.as_bytes().get(..bytes + 2)?;
        if text[0] != b'"' || text[bytes + 1] != b'"' {
            return None;
        }
        self.take(bytes + 2)?;
        Some(&text[1..=bytes])
    }

    /// Steps over space between signs.
    pub(crate) fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\n', '\t', '\r']);
    }

    /// How many bytes there are behind this.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    pub fn instant(&mut self) -> Option<Timestamp> {
        let mut ahead = *self;
        if let Some(instant) = ahead.text_of(27).and_then(Timestamp::of_canonical) {
            *self = ahead;
            return Some(instant);
        }
        self.text()?.parse().ok()
    }

    /// Digits, without a sign.
    pub fn number(&mut self) -> Option<u64> {
        let digits = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        let text = self.take(digits)?;
        // More could be over the limit, and `007` is no JSON.
        if digits > 19 || (digits > 1 && text.starts_with('0')) {
            return None;
        }
        text.parse().ok()
    }

    pub fn boolean(&mut self) -> Option<bool> {
        if self.skip("true") { Some(true) } else { self.want("false").map(|()| false) }
    }

    pub fn float(&mut self) -> Option<f64> {
        let end = self.rest.bytes().take_while(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E'));
        let end = end.count();
        let text = self.take(end)?;
        short_decimal(text.as_bytes()).or_else(|| serde_json::from_str(text).ok())
    }

    /// Any value; checked, and copied.
    pub fn raw(&mut self) -> Option<Box<RawValue>> {
        let end = end_of_value(self.rest.as_bytes())?;
        RawValue::from_string(self.take(end)?.to_owned()).ok()
    }

    /// A value that has no short way of its own.
    pub fn any<T: DeserializeOwned>(&mut self) -> Option<T> {
        let end = end_of_value(self.rest.as_bytes())?;
        serde_json::from_str(self.take(end)?).ok()
    }

    /// The same of an object: serde would read a type of ours from an array, too.
    pub fn object<T: DeserializeOwned>(&mut self) -> Option<T> {
        self.rest.starts_with('{').then(|| self.any())?
    }

    /// A value behind its name, if the name comes next.
    pub fn some<T>(&mut self, name: &str, get: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.skip(name) { get(self).map(Some) } else { Some(None) }
    }

    /// A value or `null`.
    pub fn or_null<T>(&mut self, get: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.skip("null") { Some(None) } else { get(self).map(Some) }
    }

    pub fn array<T>(&mut self, get: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        self.want("[")?;
        let mut values = Vec::new();
        if self.skip("]") {
            return Some(values);
        }
        loop {
            values.push(get(self)?);
            if self.skip("]") {
                return Some(values);
            }
            self.want(",")?;
        }
    }
}

/// `123.456`, of so few digits that the number and the power of ten are both exact, and their quotient so rightly
/// rounded.
fn short_decimal(text: &[u8]) -> Option<f64> {
    const POWERS: [f64; 7] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6];
    let point = text.iter().position(|byte| *byte == b'.')?;
    let (whole, fraction) = (&text[..point], &text[point + 1..]);
    let power = *POWERS.get(fraction.len()).filter(|_| !fraction.is_empty())?;
    if whole.is_empty() || whole.len() > 9 || (whole.len() > 1 && whole[0] == b'0') {
        return None;
    }
    let mut number = 0_u64;
    for byte in whole.iter().chain(fraction) {
        if !byte.is_ascii_digit() {
            return None;
        }
        number = number * 10 + u64::from(byte - b'0');
    }
    Some(number as f64 / power)
}

/// Where the value ends that begins here, if it is one.
fn end_of_value(json: &[u8]) -> Option<usize> {
    match json.first()? {
        b'"' => end_of_string(json, 1),
        b'{' | b'[' => {
            let (mut depth, mut at) = (0_usize, 0);
            loop {
                let byte = *json.get(at)?;
                at += 1;
                match byte {
                    b'"' => at = end_of_string(json, at)?,
                    // Deeper than that is for a closer look.
                    b'{' | b'[' if depth == NESTED => return None,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => {
                        depth -= 1;
                        if depth == 0 {
                            return Some(at);
                        }
                    }
                    _ => {}
                }
            }
        }
        _ => Some(
            json.iter()
                .position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\t' | b'\r'))
                .unwrap_or(json.len()),
        ),
    }
}

/// Where the string ends that began before `at`: behind its closing quote.
fn end_of_string(json: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let rest = json.get(at..)?;
        let found = memchr2(b'"', b'\\', rest)?;
        if rest[found] == b'"' {
            return Some(at + found + 1);
        }
        at += found + 2;
    }
}
