//! What every handler does to outputs and messages before they leave it: outsiders' bytes are bounded and made safe here.

use serde::Serialize;
use serde_json::value::RawValue;
use taskyard_shared::TaskError;
use taskyard_shared::artifacts::ArtifactError;
use taskyard_shared::task::limits;

use crate::handler::{Answer, codes, error};

/// Longest message of a task's error, in bytes.
pub(super) const MESSAGE_BYTES: usize = 1024;

pub(crate) fn bad_input(message: impl Into<String>) -> TaskError {
    error(codes::BAD_INPUT, message, false)
}

/// What cannot be had now may be had later; what is not there at all was named wrongly.
pub(crate) fn unavailable(failure: &ArtifactError) -> TaskError {
    match failure.is_transient() {
        true => error(codes::UNAVAILABLE, failure.to_string(), true),
        false => bad_input(failure.to_string()),
    }
}

/// An output made here.
pub(super) fn written(output: &impl Serialize) -> Answer {
    serde_json::value::to_raw_value(output)
        .map_err(|failure| error(codes::HANDLER_FAILED, format!("the output cannot be written: {failure}"), false))
}

/// An output that came as JSON text from outside. It stays the text that came, unless that has line breaks.
///
/// A model that answers something else once may do better the next time, so `bad_answer` is worth another attempt;
/// but what is nested too deeply for its readers is so every time.
pub(super) fn output(text: &str) -> Answer {
    if depth(text) > limits::DEPTH {
        let message = format!("the output is nested deeper than {}", limits::DEPTH);
        return Err(error(codes::BAD_ANSWER, message, false));
    }
    RawValue::from_string(text.trim().to_owned())
        .map_err(|failure| error(codes::BAD_ANSWER, format!("the output is not JSON: {failure}"), true))
}

/// How deep arrays and objects are nested. The parser does not say: it passes over raw values at any depth.
pub(crate) fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in text.bytes() {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => in_string = false,
            (true, _) => {}
            (false, b'"') => in_string = true,
            (false, b'[' | b'{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            (false, _) => {}
        }
    }
    deepest
}

/// Bytes from outside as one line of text for a message or the log: at most `most_bytes` of them, and no control
/// characters, which could forge lines and colours.
pub(crate) fn clean(bytes: &[u8], most_bytes: usize) -> String {
    let cut = &bytes[..bytes.len().min(most_bytes)];
    let mut text: String = String::from_utf8_lossy(cut).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.truncate(text.trim_end().len());
    if cut.len() < bytes.len() {
        // A character cut in half is no fault of the sender's.
        text.truncate(text.trim_end_matches(char::REPLACEMENT_CHARACTER).len());
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_stays_the_text_that_came() {
        for text in ["null", " {\"a\" : 1e400}\n", "[1,2]", "\"[[[\\\"[[\""] {
            assert_eq!(output(text).unwrap().get(), text.trim());
        }
        for text in ["", "{", "{} {}", "nul", "\"\u{1}\""] {
            assert_eq!(output(text).unwrap_err().code, codes::BAD_ANSWER, "{text:?}");
        }
    }

    #[test]
    fn an_output_that_no_reader_would_take_is_refused() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert!(output(&nested(limits::DEPTH)).is_ok());
        for depth in [limits::DEPTH + 1, 100_000] {
            let refused = output(&nested(depth)).unwrap_err();
            assert_eq!((refused.code.as_str(), refused.retryable), (codes::BAD_ANSWER, false));
        }
    }

    #[test]
    fn text_from_outside_is_one_bounded_line() {
        assert_eq!(clean(b"a\nb\x1b[31mc\0\r\n", 100), "a b [31mc");
        assert_eq!(clean("ééé".as_bytes(), 3), "é…");
        assert_eq!(clean(&[b'x'; 100], 4), "xxxx…");
        assert_eq!(clean(b"\xff!", 10), "\u{fffd}!");
    }
}
