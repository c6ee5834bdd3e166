//! The handler `data`: cuts tables into parts, cleans them, puts them together, and finds the best of some results.
//!
//! Tables are artifacts, so that what travels in tasks is their names. Rows are objects; parts that are written are an object a line.

mod order;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;
use taskyard_shared::TaskError;
use taskyard_shared::artifacts::{ARTIFACT_BYTES, Artifacts, Reference};
use taskyard_shared::process::settings::DataSettings;
use tokio::sync::Semaphore;

use self::order::{Dropped, Here, Order, Source, clean, join, top};
use self::table::{Room, Row};
use crate::handler::{Answer, Handler, Job, codes, error};
use crate::handlers::answer::{bad_input, unavailable, written};

const NOWHERE: &str = "tables need a place to be kept, and artifacts.url is empty";

/// Tables that one task may make, by cutting one up or by a column's values.
const TABLES: usize = 10_000;

/// Rows in, rows out.
pub struct DataHandler {
    artifacts: Option<Artifacts>,
    max_rows: usize,
    max_bytes: u64,
    /// Tables that are read at once. An attempt that is given up does not end the reading that it has begun.
    readers: Arc<Semaphore>,
}

/// A table that was written.
struct Written {
    table: Reference,
    rows: usize,
}

impl DataHandler {
    pub fn new(settings: &DataSettings, artifacts: Option<Artifacts>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            artifacts,
            max_rows: settings.max_rows,
            max_bytes: settings.max_mb.saturating_mul(1 << 20),
            readers: Arc::new(Semaphore::new(cores)),
        }
    }

    async fn carry_out(&self, job: &Job) -> Answer {
        match Order::read(&job.input).map_err(bad_input)? {
            Order::Split { from, part_rows } => {
                let rows = self.rows(from).await?;
                if rows.len().div_ceil(part_rows) > TABLES {
                    return Err(bad_input(format!("part_rows would make more than {TABLES} parts")));
                }
                let mut parts = Vec::new();
                for part in rows.chunks(part_rows) {
                    parts.push(self.keep(part).await?.table);
                }
                written(&json!({"parts": parts, "rows": rows.len()}))
            }
            Order::Clean { from, rename, required, unique } => {
                let rows = self.rows(from).await?;
                let (rows, dropped) = clean(rows, &rename, &required, unique.as_deref());
                let part = self.keep(&rows).await?;
                written(&json!({"part": part.table, "rows": part.rows, "dropped": dropped}))
            }
            Order::Join { parts, by, unique, apart } => {
                let (mut rows, mut room) = (Vec::new(), self.room());
                for part in parts {
                    rows.extend(self.fetch(part.reference(), &mut room).await?);
                }
                let (tables, dropped) = join(rows, by.as_deref(), unique.as_deref(), apart.as_deref());
                self.joined(tables, by.is_some(), dropped).await
            }
            Order::Top { of, by, keep, least } => {
                let results = of.len();
                let kept = top(of, &by, keep, least);
                if kept.is_empty() {
                    return Err(bad_input(format!("none of the {results} results has a number at {by}")));
                }
                written(&json!({"best": kept[0], "kept": kept, "of": results}))
            }
        }
    }

    async fn joined(&self, tables: BTreeMap<String, Vec<Row>>, is_grouped: bool, dropped: Dropped) -> Answer {
        if !is_grouped {
            let rows: Vec<Row> = tables.into_values().flatten().collect();
            let table = self.keep(&rows).await?;
            return written(&json!({"part": table.table, "rows": table.rows, "dropped": dropped}));
        }
        if tables.len() > TABLES {
            return Err(bad_input(format!("by would make more than {TABLES} tables")));
        }
        let (mut kept, mut counts) = (BTreeMap::new(), BTreeMap::new());
        for (name, rows) in tables {
            let table = self.keep(&rows).await?;
            counts.insert(name.clone(), table.rows);
            kept.insert(name, table.table);
        }
        written(&json!({"tables": kept, "rows": counts, "dropped": dropped}))
    }

    async fn rows(&self, from: Source) -> Result<Vec<Row>, TaskError> {
        let mut room = self.room();
        match from {
            Source::There(reference) => self.fetch(reference, &mut room).await,
            Source::Here(Here::Csv(text)) => table::read(text.as_bytes(), &mut room).map_err(bad_input),
            Source::Here(Here::Rows(rows)) => {
                rows.iter().try_for_each(|row| room.take(row)).map_err(bad_input)?;
                Ok(rows)
            }
        }
    }

    fn room(&self) -> Room {
        Room::new(self.max_rows, self.max_bytes)
    }

    async fn fetch(&self, from: Reference, room: &mut Room) -> Result<Vec<Row>, TaskError> {
        let broke_off = || error(codes::HANDLER_FAILED, "reading a table broke off", true);
        let turn = self.readers.clone().acquire_owned().await.map_err(|_| broke_off())?;
        let most = self.max_bytes.min(ARTIFACT_BYTES);
        let content = self.artifacts()?.get(from.to, most).await.map_err(|failure| unavailable(&failure))?;
        let mut left = *room;
        let read = tokio::task::spawn_blocking(move || {
            let read = table::read(&content, &mut left);
            drop(turn);
            read.map(|rows| (rows, left))
        });
        let read = read.await.map_err(|_| broke_off())?;
        let (rows, left) = read.map_err(|problem| bad_input(format!("{}: {problem}", from.to)))?;
        *room = left;
        Ok(rows)
    }

    async fn keep(&self, rows: &[Row]) -> Result<Written, TaskError> {
        let content = table::write(rows).map_err(|failure| error(codes::HANDLER_FAILED, failure.to_string(), false))?;
        let id = self.artifacts()?.put(content.into()).await.map_err(|failure| unavailable(&failure))?;
        Ok(Written { table: Reference { to: id }, rows: rows.len() })
    }

    fn artifacts(&self) -> Result<&Artifacts, TaskError> {
        self.artifacts.as_ref().ok_or_else(|| error(codes::NO_ARTIFACTS, NOWHERE, false))
    }
}

#[async_trait]
impl Handler for DataHandler {
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(batch.len());
        for job in &batch {
            answers.push(self.carry_out(job).await);
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::value::RawValue;
    use taskyard_shared::TaskId;

    use super::*;

    async fn ask(handler: &DataHandler, input: Value) -> Result<Value, TaskError> {
        let input = RawValue::from_string(input.to_string()).unwrap();
        let answers = handler.execute(vec![Job::new(TaskId::new(), 1, input)]).await;
        answers.into_iter().next().unwrap().map(|output| serde_json::from_str(output.get()).unwrap())
    }

    #[tokio::test]
    async fn a_table_goes_through_parts_and_comes_together_again() {
        let artifacts = Artifacts::in_memory();
        let handler = DataHandler::new(&DataSettings { max_rows: 1000, max_mb: 1 }, Some(artifacts.clone()));
        let csv = "split,text\ntrain, a \ntrain,b\ntest,A\ntrain,\ntest,c\n";
        let split = ask(&handler, json!({"do": "split", "from": {"csv": csv}, "part_rows": 2})).await.unwrap();
        assert_eq!((split["rows"].as_u64(), split["parts"].as_array().map(Vec::len)), (Some(5), Some(3)));
        let mut parts = Vec::new();
        for part in split["parts"].as_array().unwrap() {
            let cleaned = ask(&handler, json!({"do": "clean", "from": part, "required": ["text"]})).await.unwrap();
            // The last as a whole, the others by their names: both will do.
            parts.push(if parts.len() == 2 { cleaned } else { cleaned["part"].clone() });
        }
        let order = json!({"do": "join", "parts": parts, "by": "split", "unique": "text", "apart": "test"});
        let joined = ask(&handler, order).await.unwrap();
        assert_eq!((joined["rows"]["train"].clone(), joined["rows"]["test"].clone()), (json!(1), json!(2)));
        let test: Reference = serde_json::from_value(joined["tables"]["test"].clone()).unwrap();
        let text = artifacts.get(test.to, 1000).await.unwrap();
        assert_eq!(text, "{\"split\":\"test\",\"text\":\"A\"}\n{\"split\":\"test\",\"text\":\"c\"}\n");
        let whole = ask(&handler, json!({"do": "join", "parts": parts})).await.unwrap();
        assert_eq!(whole["rows"], 4);
        assert_eq!(ask(&handler, json!({"do": "join", "parts": []})).await.unwrap()["rows"], 0);
    }

    #[tokio::test]
    async fn what_cannot_be_done_says_why() {
        let artifacts = Artifacts::in_memory();
        let table = artifacts.put("[{},{},{}]".into()).await.unwrap();
        let other = artifacts.put("[1]".into()).await.unwrap();
        let handler = DataHandler::new(&DataSettings { max_rows: 2, max_mb: 1 }, Some(artifacts));
        for (input, code) in [
            (json!({"do": "clean", "from": {"$ref": table}}), codes::BAD_INPUT),
            (json!({"do": "clean", "from": {"$ref": other}}), codes::BAD_INPUT),
            (json!({"do": "clean", "from": {"rows": [{}, {}, {}]}}), codes::BAD_INPUT),
            (json!({"do": "clean", "from": {"$ref": format!("artifact:{}", "0".repeat(64))}}), codes::BAD_INPUT),
            (json!({"do": "top", "of": [{}], "by": "/a"}), codes::BAD_INPUT),
        ] {
            let failure = ask(&handler, input.clone()).await.unwrap_err();
            assert_eq!((failure.code.as_str(), failure.retryable), (code, false), "{input}: {failure:?}");
        }
        let nowhere = DataHandler::new(&DataSettings { max_rows: 2, max_mb: 1 }, None);
        let failure = ask(&nowhere, json!({"do": "split", "from": {"csv": "a\n1\n"}})).await.unwrap_err();
        assert_eq!(failure.code, codes::NO_ARTIFACTS);
        assert!(ask(&nowhere, json!({"do": "top", "of": [{"a": 1}], "by": "/a"})).await.is_ok());
    }
}
