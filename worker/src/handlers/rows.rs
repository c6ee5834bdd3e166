//! The rows of a file, one after the other, so that no more of them is held than is wanted.

use std::fmt;

use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Longest text of one row. What becomes of it takes up to thirty times as much memory.
pub(super) const ROW_BYTES: usize = 4 << 20;

/// Gives the text of each row to `take`, until there are no more or it wants none: the elements of a JSON array, or a line each.
///
/// # Errors
/// Where it is not what it should be, and what `take` says.
pub(super) fn each<'a>(content: &'a [u8], mut take: impl FnMut(&'a [u8]) -> Result<(), String>) -> Result<(), String> {
    let mut take = |row: &'a [u8]| match row.len() > ROW_BYTES {
        true => Err(format!("a row has more than {ROW_BYTES} bytes")),
        false => take(row),
    };
    if content.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        let mut reader = serde_json::Deserializer::from_slice(content);
        reader.deserialize_seq(Elements(&mut take)).and_then(|()| reader.end()).map_err(|bad| bad.to_string())
    } else {
        let lines = content.split(|byte| *byte == b'\n').enumerate();
        let mut lines = lines.filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace));
        lines.try_for_each(|(at, line)| take(line).map_err(|bad| format!("line {}: {bad}", at + 1)))
    }
}

struct Elements<F>(F);

impl<'de, F: FnMut(&'de [u8]) -> Result<(), String>> Visitor<'de> for Elements<F> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an array of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut rows: A) -> Result<(), A::Error> {
        while let Some(row) = rows.next_element::<&'de RawValue>()? {
            (self.0)(row.get().as_bytes()).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[u8]) -> Result<Vec<String>, String> {
        let mut rows = Vec::new();
        each(content, |row| {
            rows.push(String::from_utf8_lossy(row).into_owned());
            if rows.len() > 3 { Err("enough".into()) } else { Ok(()) }
        })?;
        Ok(rows)
    }

    #[test]
    fn rows_come_one_by_one_and_no_more_than_are_wanted() {
        assert_eq!(read(b" [{\"a\": [1, \"]\"]}, 2]\n").unwrap(), ["{\"a\": [1, \"]\"]}", "2"]);
        assert_eq!(read(b"{\"a\": 1}\n\n 2 \r\n").unwrap(), ["{\"a\": 1}", " 2 \r"]);
        assert!(read(b"").unwrap().is_empty());
        // What comes after it is not looked at.
        assert!(read(b"[1, 2, 3, 4, nonsense").unwrap_err().starts_with("enough"));
        assert_eq!(read(b"1\n2\n3\n4\nnonsense").unwrap_err(), "line 4: enough");
        for bad in ["[1, 2", "[1] 2", "[1 2]", "[nonsense]"] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
        let long = format!("\"{}\"", "x".repeat(ROW_BYTES));
        for content in [format!("[{long}]"), long] {
            assert!(read(content.as_bytes()).unwrap_err().contains("a row has more than"));
        }
    }
}
