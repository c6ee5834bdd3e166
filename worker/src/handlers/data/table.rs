//! Rows as files have them: CSV with a header, a JSON array of objects, or an object a line; as they are or as gzip.

use std::io::Read;

use serde_json::{Map, Value};

pub(super) type Row = Map<String, Value>;

/// A row's value of this name, as text. Nothing when there is none, or it is neither text nor a number.
pub(super) fn text(row: &Row, name: &str) -> Option<String> {
    match row.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// At most `most` rows of at most `most_bytes` unpacked.
///
/// # Errors
/// Where it is not what it should be.
pub(super) fn read(content: &[u8], most: usize, most_bytes: u64) -> Result<Vec<Row>, String> {
    let unpacked;
    let content = match content {
        [0x1f, 0x8b, ..] => {
            let mut bytes = Vec::new();
            let mut packed = flate2::read::MultiGzDecoder::new(content).take(most_bytes.saturating_add(1));
            packed.read_to_end(&mut bytes).map_err(|bad| format!("not gzip: {bad}"))?;
            if bytes.len() as u64 > most_bytes {
                return Err(format!("it has more than {most_bytes} bytes unpacked"));
            }
            unpacked = bytes;
            &unpacked[..]
        }
        plain => plain,
    };
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let rows = match content.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => Vec::new(),
        Some(b'[') => serde_json::from_slice(content).map_err(|bad| bad.to_string())?,
        Some(b'{') => lines(content, most)?,
        Some(_) => csv(content, most)?,
    };
    match rows.len() > most {
        true => Err(format!("it has more than {most} rows")),
        false => Ok(rows),
    }
}

fn lines(content: &[u8], most: usize) -> Result<Vec<Row>, String> {
    let lines = content.split(|byte| *byte == b'\n').enumerate();
    lines
        .filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace))
        .take(most.saturating_add(1))
        .map(|(at, line)| serde_json::from_slice(line).map_err(|bad| format!("line {}: {bad}", at + 1)))
        .collect()
}

fn csv(content: &[u8], most: usize) -> Result<Vec<Row>, String> {
    let mut reader = csv::Reader::from_reader(content);
    let names = reader.headers().map_err(|bad| bad.to_string())?.clone();
    let mut rows = Vec::new();
    for record in reader.records().take(most.saturating_add(1)) {
        let record = record.map_err(|bad| bad.to_string())?;
        rows.push(names.iter().zip(&record).map(|(name, value)| (name.to_owned(), value.into())).collect());
    }
    Ok(rows)
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
            assert_eq!(read(content, 2, 1000).unwrap(), expected);
        }
        assert_eq!(read(b" \n", 0, 0).unwrap(), rows(json!([])));
        assert_eq!(text(&expected[0], "label").as_deref(), Some("x"));
        assert_eq!(text(&rows(json!([{"n": 1.5}]))[0], "n").as_deref(), Some("1.5"));
    }

    #[test]
    fn what_is_no_table_or_too_large_is_refused() {
        let lines = b"{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n";
        assert!(read(lines, 2, 1000).unwrap_err().contains("more than 2 rows"));
        assert!(read(b"a\n1\n2\n3\n", 2, 1000).unwrap_err().contains("more than 2 rows"));
        assert!(read(b"[{},{},{}]", 2, 1000).unwrap_err().contains("more than 2 rows"));
        assert!(read(b"{\"a\":1}\n[]", 2, 1000).unwrap_err().starts_with("line 2"));
        assert!(read(b"[1]", 2, 1000).is_err());
        assert!(read(b"a,b\n1\n", 2, 1000).is_err());
        assert!(read(&[0x1f, 0x8b, 8, 0, 1], 2, 1000).unwrap_err().starts_with("not gzip"));
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(&vec![b' '; 1 << 20]).unwrap();
        let bomb = packed.finish().unwrap();
        assert!(read(&bomb, 2, 1000).unwrap_err().contains("more than 1000 bytes"));
    }
}
