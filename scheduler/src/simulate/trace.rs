//! Reads a trace: one row a task, as CSV, gzipped or not. Columns are found by their names, others are left alone.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

/// More rows than any simulation needs, and few enough for memory.
const ROWS_MOST: usize = 20_000_000;
/// A thousand years: longer times are a mistake, and would not fit into microseconds.
const SECONDS_MOST: f64 = 3.2e10;
const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// What a row says a task takes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Work {
    Seconds(f64),
    Tokens { input: f64, output: f64 },
}

#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// Seconds since the first row; absent in a trace that has no arrivals.
    pub arrival_s: Option<f64>,
    pub work: Work,
    /// Input tokens, also when the time is known.
    pub input_tokens: Option<f64>,
    /// Index into [`Trace::models`].
    pub model: u32,
    /// Index into [`Trace::classes`].
    pub class: u32,
    /// Index into [`Trace::tenants`].
    pub tenant: u32,
}

/// Rows in the order of their arrival.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Trace {
    pub rows: Vec<Row>,
    /// Names, in the order in which they came.
    pub models: Vec<String>,
    pub classes: Vec<String>,
    pub tenants: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("{} cannot be read: {error}", path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("{} ends in .gz and is not gzip", .0.display())]
    NotGzip(PathBuf),
    #[error("{} has no row below its header", .0.display())]
    Empty(PathBuf),
    #[error(
        "{} needs a column `service_s` or `runtime`, or the columns `input_tokens` and `output_tokens`; it has {found}",
        path.display()
    )]
    NoWork { path: PathBuf, found: String },
    #[error("{}, line {line}: {fault}", path.display())]
    Row { path: PathBuf, line: u64, fault: String },
}

/// Names by number, in the order in which they come.
#[derive(Default)]
struct Numbers {
    names: Vec<String>,
    numbers: BTreeMap<String, u32>,
}

impl Numbers {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        let number = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        number
    }
}

/// Where the columns stand that are used.
struct Columns {
    arrival: Option<usize>,
    seconds: Option<usize>,
    input: Option<usize>,
    output: Option<usize>,
    model: Option<usize>,
    class: Option<usize>,
    tenant: Option<usize>,
}

impl Columns {
    fn find(header: &csv::StringRecord) -> Option<Self> {
        let at = |names: &[&str]| names.iter().find_map(|name| header.iter().position(|column| column.trim() == *name));
        let columns = Self {
            arrival: at(&["arrival_s"]),
            seconds: at(&["service_s", "runtime"]),
            input: at(&["input_tokens"]),
            output: at(&["output_tokens"]),
            model: at(&["model", "func", "setup"]),
            class: at(&["class"]),
            tenant: at(&["user", "app"]),
        };
        (columns.seconds.is_some() || columns.input.is_some() && columns.output.is_some()).then_some(columns)
    }
}

impl Trace {
    /// Reads a file.
    ///
    /// # Errors
    /// One sentence that names the file and, for a bad row, its line.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        let unreadable = |error| TraceError::Unreadable { path: path.to_owned(), error };
        let mut file = std::fs::File::open(path).map_err(unreadable)?;
        let mut start = Vec::new();
        file.by_ref().take(MAGIC.len() as u64).read_to_end(&mut start).map_err(unreadable)?;
        let is_gzip = start == MAGIC;
        let whole = std::io::Cursor::new(start).chain(std::io::BufReader::new(file));
        if is_gzip {
            Self::parse(path, MultiGzDecoder::new(whole))
        } else if path.extension().is_some_and(|extension| extension == "gz") {
            Err(TraceError::NotGzip(path.to_owned()))
        } else {
            Self::parse(path, whole)
        }
    }

    /// Reads CSV; the path is for errors.
    fn parse(path: &Path, text: impl Read) -> Result<Self, TraceError> {
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text);
        let failed = |error: csv::Error| {
            let line = error.position().map_or(1, csv::Position::line);
            match error.into_kind() {
                csv::ErrorKind::Io(error) => TraceError::Unreadable { path: path.to_owned(), error },
                csv::ErrorKind::Utf8 { .. } => {
                    TraceError::Row { path: path.to_owned(), line, fault: "it is not UTF-8".to_owned() }
                }
                other => TraceError::Row { path: path.to_owned(), line, fault: format!("it is not CSV: {other:?}") },
            }
        };
        let mut header = reader.headers().map_err(failed)?.clone();
        // Some editors begin a file with a byte-order mark.
        if let Some(first) = header.get(0).and_then(|first| first.strip_prefix('\u{feff}')) {
            header = std::iter::once(first).chain(header.iter().skip(1)).collect();
        }
        let columns = Columns::find(&header).ok_or_else(|| TraceError::NoWork {
            path: path.to_owned(),
            found: match header.iter().map(|name| format!("`{}`", name.trim())).collect::<Vec<_>>().join(", ") {
                names if names.is_empty() || names == "``" => "no columns".to_owned(),
                names => names,
            },
        })?;
        let (mut models, mut classes, mut tenants) = (Numbers::default(), Numbers::default(), Numbers::default());
        let mut rows = Vec::new();
        let mut record = csv::StringRecord::new();
        while reader.read_record(&mut record).map_err(failed)? {
            let line = record.position().map_or(0, csv::Position::line);
            let fault = |fault: String| TraceError::Row { path: path.to_owned(), line, fault };
            if rows.len() == ROWS_MOST {
                return Err(fault(format!("there are more than {ROWS_MOST} rows")));
            }
            let number = |column: Option<usize>, what: &str| match column {
                Some(at) => number(&record, at, what).map(Some).map_err(fault),
                None => Ok(None),
            };
            let name = |column: Option<usize>| column.and_then(|at| record.get(at)).unwrap_or("").trim().to_owned();
            let input_tokens = number(columns.input, "input_tokens")?;
            let output_tokens = number(columns.output, "output_tokens")?;
            let seconds = number(columns.seconds, header.get(columns.seconds.unwrap_or(0)).unwrap_or("service_s"))?;
            let work = match (seconds, input_tokens, output_tokens) {
                (Some(seconds), ..) => Work::Seconds(seconds),
                (None, Some(input), Some(output)) => Work::Tokens { input, output },
                // The columns were found above.
                (None, ..) => return Err(fault("it says nothing of the work".to_owned())),
            };
            let arrival_s = number(columns.arrival, "arrival_s")?;
            let model = models.number(match name(columns.model).as_str() {
                "" => "model",
                name => name,
            });
            let (class, tenant) = (classes.number(&name(columns.class)), tenants.number(&name(columns.tenant)));
            rows.push(Row { arrival_s, work, input_tokens, model, class, tenant });
        }
        if rows.is_empty() {
            return Err(TraceError::Empty(path.to_owned()));
        }
        // Stable, so that rows of one instant stay in their order.
        rows.sort_by(|a, b| a.arrival_s.unwrap_or(0.0).total_cmp(&b.arrival_s.unwrap_or(0.0)));
        let first = rows.first().and_then(|row| row.arrival_s).unwrap_or(0.0);
        rows.iter_mut().filter_map(|row| row.arrival_s.as_mut()).for_each(|arrival_s| *arrival_s -= first);
        Ok(Self { rows, models: models.names, classes: classes.names, tenants: tenants.names })
    }
}

fn number(record: &csv::StringRecord, at: usize, what: &str) -> Result<f64, String> {
    let text = record.get(at).map(str::trim).ok_or_else(|| format!("`{what}` is missing"))?;
    match text.parse::<f64>() {
        Ok(value) if value.is_nan() => Err(format!("`{what}` is not a number")),
        Ok(value) if value < 0.0 => Err(format!("`{what}` is negative: {text}")),
        Ok(value) if value > SECONDS_MOST => Err(format!("`{what}` is too large: {text}")),
        Ok(value) => Ok(value),
        Err(_) if text.is_empty() => Err(format!("`{what}` is empty")),
        Err(_) => Err(format!("`{what}` is not a number: {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn parse(text: &str) -> Result<Trace, String> {
        Trace::parse(Path::new("t.csv"), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn every_documented_set_of_columns_is_read() {
        let tokens =
            parse("arrival_s,class,input_tokens,output_tokens,prefix\n5.5,conv,10,2,x\n7,code,20,3,y\n").unwrap();
        assert_eq!(tokens.classes, ["conv", "code"]);
        assert_eq!(tokens.rows[1].work, Work::Tokens { input: 20.0, output: 3.0 });
        assert_eq!((tokens.rows[0].arrival_s, tokens.rows[1].arrival_s), (Some(0.0), Some(1.5)));
        let timed = parse("arrival_s,model,user,service_s\n0,bert,ann,0.25\n1,gpt,bob,2e0\n").unwrap();
        assert_eq!((&timed.models[1], &timed.tenants[1]), (&"gpt".to_owned(), &"bob".to_owned()));
        assert_eq!(timed.rows[1].work, Work::Seconds(2.0));
        let functions = parse("\u{feff}arrival_s,app,func,service_s\n0,4,27,0.078\n").unwrap();
        assert_eq!((&functions.models[0], &functions.tenants[0]), (&"27".to_owned(), &"4".to_owned()));
        let runtimes = parse("runtime\n3\n1\n").unwrap();
        assert_eq!(
            runtimes.rows.iter().map(|row| row.work).collect::<Vec<_>>(),
            [Work::Seconds(3.0), Work::Seconds(1.0)]
        );
        assert_eq!(runtimes.rows[0].arrival_s, None);
        let both = parse("setup,arrival_s,input_tokens,output_tokens,service_s\n\"a, b\",0,2358,531,17.5\n").unwrap();
        assert_eq!((both.rows[0].work, both.rows[0].input_tokens), (Work::Seconds(17.5), Some(2358.0)));
        assert_eq!(both.models, ["a, b"]);
    }

    #[test]
    fn rows_out_of_order_are_put_in_order() {
        let trace = parse("arrival_s,service_s\n3,30\n1,10\n2,20\n1,11\n").unwrap();
        let seconds: Vec<Work> = trace.rows.iter().map(|row| row.work).collect();
        assert_eq!(seconds, [10.0, 11.0, 20.0, 30.0].map(Work::Seconds));
        assert_eq!(trace.rows[3].arrival_s, Some(2.0));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, words) in [
            ("", "it has no columns"),
            ("arrival_s,service_s\n", "no row below its header"),
            ("when,work\n1,2\n", "it has `when`, `work`"),
            ("arrival_s,input_tokens\n1,2\n", "needs a column `service_s`"),
            ("arrival_s,service_s\n1,2\n2,-1\n", "line 3: `service_s` is negative: -1"),
            ("arrival_s,service_s\n-1,2\n", "line 2: `arrival_s` is negative"),
            ("arrival_s,service_s\n1,NaN\n", "line 2: `service_s` is not a number"),
            ("arrival_s,service_s\n1,inf\n", "line 2: `service_s` is too large"),
            ("arrival_s,service_s\n1\n", "line 2: `service_s` is missing"),
            ("arrival_s,service_s\n1,\n", "line 2: `service_s` is empty"),
            ("arrival_s,service_s\n1,1\n1,soon\n", "line 3: `service_s` is not a number: \"soon\""),
            ("runtime\n1e300\n", "line 2: `runtime` is too large"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words) && error.starts_with("t.csv"), "{text:?}: {error}");
        }
    }

    #[test]
    fn gzip_is_known_by_its_first_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let text = b"arrival_s,service_s\n0,1\n";
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(text).unwrap();
        let packed = packed.finish().unwrap();
        for (name, bytes) in [("a.csv", &text[..]), ("b.csv.gz", &packed), ("c.csv", &packed)] {
            std::fs::write(folder.path().join(name), bytes).unwrap();
            assert_eq!(Trace::read(&folder.path().join(name)).unwrap().rows.len(), 1, "{name}");
        }
        let read = |name: &str| Trace::read(&folder.path().join(name)).unwrap_err().to_string();
        std::fs::write(folder.path().join("d.csv.gz"), text).unwrap();
        assert!(read("d.csv.gz").contains("is not gzip"));
        std::fs::write(folder.path().join("e.csv.gz"), &packed[..packed.len() / 2]).unwrap();
        assert!(read("e.csv.gz").contains("cannot be read"), "{}", read("e.csv.gz"));
        assert!(read("missing.csv").contains("missing.csv cannot be read"));
        std::fs::write(folder.path().join("f.csv"), [b'r', 0xff, b'\n', b'1']).unwrap();
        assert!(read("f.csv").contains("UTF-8"), "{}", read("f.csv"));
    }
}
