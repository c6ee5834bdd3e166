//! Rows as files have them: CSV with a header, a JSON array of objects, or an object a line; as they are or as gzip.

use std::io::Read;

use serde_json::{Map, Value};

use crate::handlers::rows;

pub(super) type Row = Map<String, Value>;

/// A row's value of this name, as text. Nothing when there is none, or it is neither text nor a number.
pub(super) fn text(row: &Row, name: &str) -> Option<String> {
    match row.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// What the rows of one task may take yet.
#[derive(Clone, Copy)]
pub(super) struct Room {
    rows: usize,
    /// Of memory, and of a file unpacked.
    bytes: u64,
    /// As they were to begin with, for whoever has too many.
    most: (usize, u64),
}

/// What a map of up to `MAP_CELLS` cells takes in memory beside its texts. It is a B-tree, whose nodes may be half full.
const MAP_BYTES: u64 = 700;
const MAP_CELLS: usize = 6;
/// Columns of a CSV file.
const COLUMNS: usize = 10_000;

impl Room {
    pub fn new(rows: usize, bytes: u64) -> Self {
        Self { rows, bytes, most: (rows, bytes) }
    }

    /// Takes one more row in.
    ///
    /// # Errors
    /// When it is one too many.
    pub fn take(&mut self, row: &Row) -> Result<(), String> {
        self.rows = self.rows.checked_sub(1).ok_or_else(|| format!("there are more than {} rows", self.most.0))?;
        self.bytes = self.bytes.checked_sub(map_bytes(row)).ok_or_else(|| self.too_much())?;
        Ok(())
    }

    fn too_much(&self) -> String {
        format!("it takes more than {} bytes of memory", self.most.1)
    }
}

fn map_bytes(map: &Row) -> u64 {
    let cells = map.iter().map(|(name, value)| name.len() as u64 + value_bytes(value));
    cells.sum::<u64>() + MAP_BYTES * map.len().div_ceil(MAP_CELLS).max(1) as u64
}

fn value_bytes(value: &Value) -> u64 {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len() as u64,
        Value::Array(values) => values.iter().map(|value| 32 + value_bytes(value)).sum(),
        Value::Object(map) => map_bytes(map),
    }
}

/// The rows, for which there must be room.
///
/// # Errors
/// Where it is not what it should be.
pub(super) fn read(content: &[u8], room: &mut Room) -> Result<Vec<Row>, String> {
    let unpacked;
    let content = match content {
        [0x1f, 0x8b, ..] => {
            let mut bytes = Vec::new();
            let mut packed = flate2::read::MultiGzDecoder::new(content).take(room.bytes.saturating_add(1));
            packed.read_to_end(&mut bytes).map_err(|bad| format!("not gzip: {bad}"))?;
            if bytes.len() as u64 > room.bytes {
                return Err(room.too_much());
            }
            unpacked = bytes;
            &unpacked[..]
        }
        plain => plain,
    };
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let mut found = Vec::new();
    let mut take = |row: Row| {
        room.take(&row)?;
        found.push(row);
        Ok(())
    };
    match content.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => {}
        Some(b'[' | b'{') => {
            rows::each(content, |row| take(serde_json::from_slice(row).map_err(|bad| bad.to_string())?))?;
        }
        Some(_) => csv(content, take)?,
    }
    Ok(found)
}

fn csv(content: &[u8], mut take: impl FnMut(Row) -> Result<(), String>) -> Result<(), String> {
    let mut reader = csv::Reader::from_reader(content);
    let names = reader.headers().map_err(|bad| bad.to_string())?.clone();
    if names.len() > COLUMNS {
        return Err(format!("it has more than {COLUMNS} columns"));
    }
    for record in reader.records() {
        let record = record.map_err(|bad| bad.to_string())?;
        take(names.iter().zip(&record).map(|(name, value)| (name.to_owned(), value.into())).collect())?;
    }
    Ok(())
}

/// An object a line.
///
/// # Errors
/// When a row cannot be written, which is none of these.
pub(super) fn write(rows: &[Row]) -> serde_json::Result<Vec<u8>> {
    let mut content = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut content, row)?;
        content.push(b'\n');
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::json;

    use super::*;

    fn rows(value: Value) -> Vec<Row> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_table_is_the_same_in_every_form() {
        let expected = rows(json!([{"text": "a, \"b\"\nc", "label": "x"}, {"text": "é", "label": ""}]));
        let csv = "\u{feff}text,label\n\"a, \"\"b\"\"\nc\",x\né,\n".as_bytes();
        let array = serde_json::to_vec(&expected).unwrap();
        let lines = write(&expected).unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(csv).unwrap();
        let packed = packed.finish().unwrap();
        for content in [csv, &array, &lines, &packed] {
            assert_eq!(read(content, &mut Room::new(2, 10_000)).unwrap(), expected);
        }
        assert_eq!(read(b" \n", &mut Room::new(0, 0)).unwrap(), rows(json!([])));
        assert_eq!(text(&expected[0], "label").as_deref(), Some("x"));
        assert_eq!(text(&rows(json!([{"n": 1.5}]))[0], "n").as_deref(), Some("1.5"));
    }

    #[test]
    fn what_is_no_table_or_too_large_is_refused() {
        let refused = |content: &[u8]| read(content, &mut Room::new(2, 10_000)).unwrap_err();
        assert!(refused(b"{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n").contains("more than 2 rows"));
        assert!(refused(b"a\n1\n2\n3\n").contains("more than 2 rows"));
        // Without a look at the rest.
        assert!(refused(b"[{},{},{},nonsense").contains("more than 2 rows"));
        assert!(refused(b"{\"a\":1}\n[]").starts_with("line 2"));
        refused(b"[1]");
        refused(b"[{}");
        refused(b"a,b\n1\n");
        assert!(refused(format!("{}\n", ",".repeat(COLUMNS)).as_bytes()).contains("columns"));
        assert!(refused(&[0x1f, 0x8b, 8, 0, 1]).starts_with("not gzip"));
        let packed = |content: &[u8]| {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            packed.write_all(content).unwrap();
            packed.finish().unwrap()
        };
        assert!(refused(&packed(&vec![b' '; 1 << 20])).contains("more than 10000 bytes"));
    }

    #[test]
    fn small_rows_are_counted_as_what_they_take() {
        let small = "{\"a\":1},".repeat(100);
        let content = format!("[{}]", small.trim_end_matches(','));
        let mut room = Room::new(1_000, 100 * 800);
        assert_eq!(read(content.as_bytes(), &mut room).unwrap().len(), 100);
        // What is left is for the next part.
        assert!(read(content.as_bytes(), &mut room).unwrap_err().contains("of memory"));
        let deep = format!("{{\"a\":[{}0]}}", "0,".repeat(10_000));
        assert!(read(deep.as_bytes(), &mut Room::new(1, 100_000)).unwrap_err().contains("of memory"));
    }
}
