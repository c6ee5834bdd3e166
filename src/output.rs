//! How commands print: `-o table|json|jsonl`, data on standard output, words on standard error.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON value.
    Json,
    /// One JSON value a line.
    Jsonl,
}

/// Where data goes, and how. A reader that stops reading is no error: `taskyard … | head` ends in good order.
pub struct Output<'a> {
    pub format: Format,
    /// Whether the table may use colours.
    pub colour: bool,
    pub out: &'a mut dyn Write,
}

impl Output<'_> {
    /// Prints `rows`; for a table, `cells` gives each row's texts under `headers`.
    pub fn rows<T: Serialize>(
        &mut self,
        headers: &[&str],
        rows: &[T],
        cells: impl Fn(&T) -> Vec<String>,
    ) -> io::Result<()> {
        let written = match self.format {
            Format::Json => self.json(&rows),
            Format::Jsonl => rows.iter().try_for_each(|row| self.json_line(row)),
            Format::Table => self.table(headers, rows.iter().map(cells).collect()),
        };
        pipe_may_close(written.and_then(|()| self.out.flush()))
    }

    /// Prints one thing; as a table, its fields one below the other.
    pub fn one<T: Serialize>(
        &mut self,
        thing: &T,
        fields: impl Fn(&T) -> Vec<(&'static str, String)>,
    ) -> io::Result<()> {
        let written = match self.format {
            Format::Json => self.json(thing),
            Format::Jsonl => self.json_line(thing),
            Format::Table => {
                let rows = fields(thing).into_iter().map(|(name, text)| vec![name.to_owned(), text]).collect();
                self.columns(rows, &[false, false], 0)
            }
        };
        pipe_may_close(written.and_then(|()| self.out.flush()))
    }

    fn json<T: Serialize + ?Sized>(&mut self, value: &T) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.out, value)?;
        writeln!(self.out)
    }

    fn json_line<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        writeln!(self.out)
    }

    fn table(&mut self, headers: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
        let number = |text: &String| text.is_empty() || text == "-" || text.parse::<f64>().is_ok();
        let right: Vec<bool> = (0..headers.len())
            .map(|column| !rows.is_empty() && rows.iter().filter_map(|row| row.get(column)).all(number))
            .collect();
        let head = headers.iter().map(|header| header.to_uppercase()).collect();
        self.columns([vec![head], rows].concat(), &right, usize::from(self.colour))
    }

    /// Prints aligned columns, the first `bold` lines bold and the columns of `right` to the right.
    fn columns(&mut self, rows: Vec<Vec<String>>, right: &[bool], bold: usize) -> io::Result<()> {
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| visible(cell)).collect()).collect();
        let width = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..right.len()).map(width).collect();
        for (number, row) in rows.iter().enumerate() {
            let mut line = String::new();
            for (column, ((cell, width), right)) in row.iter().zip(&widths).zip(right).enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                // By hand: a format's width is at most 65,535.
                let space = std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()));
                if *right {
                    line.extend(space);
                    line.push_str(cell);
                } else {
                    line.push_str(cell);
                    // Behind the last cell it would only be taken off again.
                    line.extend(space.take(if column + 1 < row.len() { usize::MAX } else { 0 }));
                }
            }
            let line = line.trim_end();
            if number < bold { writeln!(self.out, "\x1b[1m{line}\x1b[0m")? } else { writeln!(self.out, "{line}")? }
        }
        Ok(())
    }
}

/// On one line, whatever was in it: texts of strangers must not steer the terminal.
pub fn visible(text: &str) -> String {
    escaped(text, &[])
}

/// The same of a text of several lines.
pub fn visible_lines(text: &str) -> String {
    escaped(text, &['\n', '\t'])
}

fn escaped(text: &str, kept: &[char]) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !kept.contains(&c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// A line on standard output for people. Whoever stops reading, as `head` does, misses the rest, and nothing else happens.
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _gone = writeln!(std::io::stdout(), $($text)*);
    }};
}
pub(crate) use tell;

/// A reader that stops reading is no error.
pub fn pipe_may_close(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Whether standard output takes colours: a terminal, and no `NO_COLOR`.
pub fn colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Row {
        name: &'static str,
        tasks: u32,
    }

    const ROWS: [Row; 2] = [Row { name: "sentiment", tasks: 7 }, Row { name: "a\nb\x1b[31m", tasks: 1200 }];

    fn printed(format: Format, colour: bool, rows: &[Row]) -> String {
        let mut out = Vec::new();
        let cells = |row: &Row| vec![row.name.to_owned(), row.tasks.to_string()];
        Output { format, colour, out: &mut out }.rows(&["name", "tasks"], rows, cells).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_table_is_aligned_with_numbers_to_the_right_and_nothing_that_steers_the_terminal() {
        let expected = concat!("NAME            TASKS\n", "sentiment           7\n", "a\\nb\\u{1b}[31m   1200\n");
        assert_eq!(printed(Format::Table, false, &ROWS), expected);
        assert!(printed(Format::Table, true, &ROWS).starts_with("\x1b[1mNAME"));
        assert_eq!(printed(Format::Table, false, &[]), "NAME  TASKS\n");
    }

    #[test]
    fn json_is_one_array_and_jsonl_a_value_a_line() {
        let array: serde_json::Value = serde_json::from_str(&printed(Format::Json, true, &ROWS)).unwrap();
        assert_eq!(array[1], serde_json::json!({"name": "a\nb\u{1b}[31m", "tasks": 1200}));
        let lines = printed(Format::Jsonl, true, &ROWS);
        assert_eq!(lines.lines().next(), Some(r#"{"name":"sentiment","tasks":7}"#));
        assert_eq!(lines.lines().count(), 2);
    }

    #[test]
    fn one_thing_is_its_fields_one_below_the_other() {
        let mut out = Vec::new();
        let fields = |row: &Row| vec![("name", row.name.to_owned()), ("tasks", row.tasks.to_string())];
        Output { format: Format::Table, colour: false, out: &mut out }.one(&ROWS[0], fields).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "name   sentiment\ntasks  7\n");
    }

    #[test]
    fn cells_may_be_as_long_as_they_are() {
        let mut out = Vec::new();
        let long = "x".repeat(70_000);
        let cells = |row: &Row| vec![long.repeat(row.tasks as usize / 7), row.tasks.to_string(), long.clone()];
        let mut output = Output { format: Format::Table, colour: false, out: &mut out };
        output.rows(&["name", "tasks", "more"], &ROWS[..1], cells).unwrap();
        let fields = |_: &Row| vec![("id", "1".to_owned()), ("output", long.clone())];
        output.one(&ROWS[0], fields).unwrap();
        let printed = String::from_utf8(out).unwrap();
        let lengths: Vec<usize> = printed.lines().map(str::len).collect();
        assert_eq!(lengths, [70_000 + 2 + 5 + 2 + 4, 70_000 + 2 + 5 + 2 + 70_000, 8 + 1, 8 + 70_000]);
    }

    #[test]
    fn a_closed_pipe_is_no_error_and_a_full_disk_is() {
        struct Broken(io::ErrorKind);
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for format in [Format::Table, Format::Json, Format::Jsonl] {
            let print = |kind| {
                Output { format, colour: false, out: &mut Broken(kind) }
                    .rows(&["name"], &ROWS, |_| vec!["x".to_owned()])
            };
            assert!(print(io::ErrorKind::BrokenPipe).is_ok());
            assert_eq!(print(io::ErrorKind::StorageFull).unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
    }
}
