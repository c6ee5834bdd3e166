//! Lines of a pipe, each of bounded length.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// Most bytes of one line that are passed over; whoever sends more sends no lines.
const MOST_SKIPPED_BYTES: usize = 256 << 20;

pub(super) struct Lines<R> {
    reader: BufReader<R>,
    most_bytes: usize,
    line: Vec<u8>,
    /// The line was given as too long already, and its rest is passed over: so many bytes of it so far.
    skips: Option<usize>,
}

#[derive(PartialEq, Debug)]
pub(super) enum Line {
    /// Without the line break.
    Whole(Vec<u8>),
    /// The first bytes of a line that is longer than lines may be. What comes next is the line after it.
    TooLong(Vec<u8>),
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub fn new(pipe: R, most_bytes: usize) -> Self {
        Self { reader: BufReader::with_capacity(16 * 1024, pipe), most_bytes, line: Vec::new(), skips: None }
    }

    /// The next line, or nothing at the end. May be dropped at any time without a byte being lost.
    ///
    /// # Errors
    /// When the pipe cannot be read, or a line does not end after very much more than it may have.
    pub async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let bytes = self.reader.fill_buf().await?;
            if bytes.is_empty() {
                let rest = std::mem::take(&mut self.line);
                return Ok((!rest.is_empty()).then_some(Line::Whole(rest)));
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            let consumed = end.map_or(bytes.len(), |end| end + 1);
            if let Some(skipped) = self.skips {
                let skipped = skipped + consumed;
                self.skips = end.is_none().then_some(skipped);
                self.reader.consume(consumed);
                if self.skips.is_some() && skipped > MOST_SKIPPED_BYTES {
                    return Err(io::Error::other("a line without an end"));
                }
                continue;
            }
            let room = self.most_bytes - self.line.len();
            let fits = part.len() <= room;
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            self.reader.consume(consumed);
            match (fits, end) {
                (true, None) => {}
                (true, Some(_)) => return Ok(Some(Line::Whole(std::mem::take(&mut self.line)))),
                (false, _) => {
                    self.skips = end.is_none().then_some(0);
                    return Ok(Some(Line::TooLong(std::mem::take(&mut self.line))));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(text: &[u8], most_bytes: usize) -> Vec<Line> {
        let mut lines = Lines::new(text, most_bytes);
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            found.push(line);
        }
        found
    }

    fn whole(text: &str) -> Line {
        Line::Whole(text.into())
    }

    #[tokio::test]
    async fn lines_end_at_breaks_and_at_the_end() {
        assert_eq!(lines(b"one\n\ntwo\nrest", 100).await, [whole("one"), whole(""), whole("two"), whole("rest")]);
        assert_eq!(lines(b"", 100).await, []);
    }

    #[tokio::test]
    async fn a_long_line_is_told_once_and_passed_over() {
        let long = [b"abcd".as_slice(), &[b'x'; 50_000], b"\nnext\nabcd\nabcde\n"].concat();
        let too_long = || Line::TooLong("abcd".into());
        assert_eq!(lines(&long, 4).await, [too_long(), whole("next"), whole("abcd"), too_long()]);
    }
}
