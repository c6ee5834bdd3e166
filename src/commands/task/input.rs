//! What `task submit` reads: inputs from the command line, a file or standard input, one or many.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::value::RawValue;

use crate::client::Failure;
use taskyard_shared::process::exit::Exit;
use taskyard_shared::task::limits::BODY_BYTES;

/// JSON values, one after another; from a pipe they are read as they come.
pub struct Values {
    place: String,
    stream: serde_json::StreamDeserializer<'static, serde_json::de::IoRead<Bounded>, Box<RawValue>>,
    /// What the next value may have.
    left: Arc<AtomicUsize>,
    failed: bool,
}

/// Ends a value that has no end.
struct Bounded {
    source: BufReader<Box<dyn Read + Send>>,
    left: Arc<AtomicUsize>,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.load(Ordering::Relaxed);
        let most = buffer.len().min(left);
        let read = self.source.read(&mut buffer[..most])?;
        if read == 0 && left == 0 {
            return Err(io::Error::other(format!("a value is longer than {BODY_BYTES} bytes, and no more is taken")));
        }
        self.left.store(left - read, Ordering::Relaxed);
        Ok(read)
    }
}

impl Values {
    /// `-` is standard input, `@FILE` a file, and anything else is the JSON itself.
    pub fn of(argument: &str) -> Result<Self, Failure> {
        match argument.strip_prefix('@') {
            Some(path) => Self::file(path),
            None if argument == "-" => Ok(Self::new("standard input", Box::new(io::stdin()))),
            None => Ok(Self::new("--input", Box::new(io::Cursor::new(argument.to_owned())))),
        }
    }

    /// `-` is standard input.
    pub fn lines(path: &str) -> Result<Self, Failure> {
        if path == "-" { Self::of(path) } else { Self::file(path) }
    }

    fn file(path: &str) -> Result<Self, Failure> {
        let refused = |error| Failure::new(Exit::Usage, format!("{path} cannot be read: {error}"));
        Ok(Self::new(path, Box::new(File::open(path).map_err(refused)?)))
    }

    fn new(place: &str, source: Box<dyn Read + Send>) -> Self {
        let left = Arc::new(AtomicUsize::new(0));
        let source = Bounded { source: BufReader::with_capacity(1 << 16, source), left: left.clone() };
        let stream = serde_json::Deserializer::from_reader(source).into_iter();
        Self { place: place.to_owned(), stream, left, failed: false }
    }
}

impl Iterator for Values {
    type Item = Result<Box<RawValue>, Failure>;

    /// Ends with the first value that cannot be read: where the next one begins is not known.
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        self.left.store(BODY_BYTES, Ordering::Relaxed);
        let value = self.stream.next()?.map_err(|error| {
            self.failed = true;
            match error.io_error_kind() {
                Some(io::ErrorKind::Other) => Failure::new(Exit::Usage, format!("{}: {error}", self.place)),
                _ => Failure::new(Exit::Usage, format!("{} is not JSON: {error}", self.place)),
            }
        });
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(argument: &str) -> Vec<Result<String, Exit>> {
        let values = Values::of(argument).unwrap();
        values.map(|value| value.map(|value| value.get().to_owned()).map_err(|failure| failure.exit)).collect()
    }

    #[test]
    fn one_value_or_many_on_lines_of_their_own_or_over_several() {
        assert_eq!(read(r#"{"a": 1}"#), [Ok(r#"{"a": 1}"#.to_owned())]);
        assert_eq!(read("{\n  \"a\": 1\n}"), [Ok("{\n  \"a\": 1\n}".to_owned())]);
        assert_eq!(read("1\n\n\"two\"\r\n[3]\n"), ["1", "\"two\"", "[3]"].map(|text| Ok(text.to_owned())));
        assert_eq!(read(""), []);
    }

    #[test]
    fn what_is_no_json_ends_it() {
        assert_eq!(read("1 {\"a\" 2 3"), [Ok("1".to_owned()), Err(Exit::Usage)]);
        assert_eq!(read("hello"), [Err(Exit::Usage)]);
    }

    #[test]
    fn a_value_without_an_end_is_not_read_to_its_end() {
        let mut values = Values::new("a pipe", Box::new((&b"1 \""[..]).chain(io::repeat(b'a'))));
        assert_eq!(values.next().unwrap().unwrap().get(), "1");
        let failure = values.next().unwrap().err().unwrap();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("longer than 8388608 bytes"), "{failure}");
        // What is longer together is not.
        let many = format!("\"{}\"", "a".repeat(BODY_BYTES / 3)).repeat(5);
        assert_eq!(read(&many).len(), 5);
    }

    #[test]
    fn files_are_read_and_missing_ones_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inputs.jsonl");
        std::fs::write(&path, "1\n2\n").unwrap();
        assert_eq!(read(&format!("@{}", path.display())).len(), 2);
        let failure = Values::of("@/no/such/file").err().unwrap();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("/no/such/file"));
    }
}
