//! What a data task asks for, and what it makes of rows; nothing here touches the world.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use taskyard_shared::artifacts::Reference;

use super::table::{Row, text};

/// The input of a data task.
#[derive(Deserialize, Debug)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Order {
    /// Cuts a table into parts of so many rows, in their order.
    Split {
        from: Source,
        #[serde(default = "ten_thousand")]
        part_rows: usize,
    },
    /// Makes the rows of one part fit for use.
    Clean {
        from: Source,
        /// New names of columns, by their old ones.
        #[serde(default)]
        rename: BTreeMap<String, String>,
        /// A row that has nothing in one of these is left out.
        #[serde(default)]
        required: Vec<String>,
        /// Of rows that say the same here, but for case, the first is kept.
        #[serde(default)]
        unique: Option<String>,
    },
    /// Puts parts together again, in the order they are given in.
    Join {
        parts: Vec<Part>,
        /// A table for each value of this column, instead of one.
        #[serde(default)]
        by: Option<String>,
        #[serde(default)]
        unique: Option<String>,
        /// With `by` and `unique`: what a table of this name says stands in no other.
        #[serde(default)]
        apart: Option<String>,
    },
    /// The best of some results, by a number that each has.
    Top {
        of: Vec<Value>,
        /// A JSON pointer.
        by: String,
        #[serde(default = "one")]
        keep: usize,
        /// The smallest numbers are the best.
        #[serde(default)]
        least: bool,
    },
}

fn ten_thousand() -> usize {
    10_000
}
fn one() -> usize {
    1
}

/// Where rows come from.
#[derive(Deserialize, Debug)]
#[serde(untagged)]
pub(super) enum Source {
    There(Reference),
    Here(Here),
}

/// A part, or what a task that cleaned one gave.
#[derive(Deserialize, Debug)]
#[serde(untagged)]
pub(super) enum Part {
    There(Reference),
    Cleaned { part: Reference },
}

impl Part {
    pub fn reference(&self) -> Reference {
        match self {
            Self::There(part) | Self::Cleaned { part } => *part,
        }
    }
}

/// In the task itself.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Here {
    Csv(String),
    Rows(Vec<Row>),
}

impl Order {
    /// # Errors
    /// What is wrong with it, for whoever sent it.
    pub fn read(input: &RawValue) -> Result<Self, String> {
        let order: Self = serde_json::from_str(input.get()).map_err(|bad| bad.to_string())?;
        match &order {
            Self::Split { part_rows: 0, .. } => Err("part_rows must be at least 1".into()),
            Self::Top { keep: 0, .. } => Err("keep must be at least 1".into()),
            Self::Join { apart: Some(_), by, unique, .. } if by.is_none() || unique.is_none() => {
                Err("apart needs by and unique".into())
            }
            _ => Ok(order),
        }
    }
}

/// How many rows were left out, and why.
#[derive(Default, PartialEq, Eq, Debug, serde::Serialize)]
pub(super) struct Dropped {
    pub empty: usize,
    pub repeated: usize,
}

/// White space is made one space, or none at the ends, in every text.
pub(super) fn clean(
    rows: Vec<Row>,
    rename: &BTreeMap<String, String>,
    required: &[String],
    unique: Option<&str>,
) -> (Vec<Row>, Dropped) {
    let mut dropped = Dropped::default();
    let mut seen = HashSet::new();
    let tidied = rows.into_iter().map(|row| -> Row {
        row.into_iter().map(|(name, value)| (rename.get(&name).cloned().unwrap_or(name), tidied(value))).collect()
    });
    let kept = tidied
        .filter(|row| {
            let is_whole = required.iter().all(|name| text(row, name).is_some_and(|text| !text.is_empty()));
            dropped.empty += usize::from(!is_whole);
            is_whole
        })
        .collect::<Vec<_>>()
        .into_iter()
        .filter(|row| {
            let is_new = unique.is_none_or(|name| seen.insert(said(row, name)));
            dropped.repeated += usize::from(!is_new);
            is_new
        })
        .collect();
    (kept, dropped)
}

fn tidied(value: Value) -> Value {
    match value {
        Value::String(text) => text.split_whitespace().collect::<Vec<_>>().join(" ").into(),
        other => other,
    }
}

/// What two rows have in common that say the same.
fn said(row: &Row, name: &str) -> String {
    text(row, name).unwrap_or_default().to_lowercase()
}

/// The tables by their names, and what was left out. Without `by` there is one, without a name.
pub(super) fn join(
    rows: Vec<Row>,
    by: Option<&str>,
    unique: Option<&str>,
    apart: Option<&str>,
) -> (BTreeMap<String, Vec<Row>>, Dropped) {
    let mut tables: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for row in rows {
        let name = by.and_then(|by| text(&row, by)).unwrap_or_default();
        tables.entry(name).or_default().push(row);
    }
    let mut dropped = Dropped::default();
    if let Some(unique) = unique {
        for table in tables.values_mut() {
            let mut seen = HashSet::new();
            let before = table.len();
            table.retain(|row| seen.insert(said(row, unique)));
            dropped.repeated += before - table.len();
        }
        if let Some(apart) = apart {
            let kept: BTreeSet<String> = tables.get(apart).into_iter().flatten().map(|row| said(row, unique)).collect();
            for (_, table) in tables.iter_mut().filter(|(name, _)| *name != apart) {
                let before = table.len();
                table.retain(|row| !kept.contains(&said(row, unique)));
                dropped.repeated += before - table.len();
            }
        }
    }
    (tables, dropped)
}

/// The best first; equals in their order. Those without the number are left out.
pub(super) fn top(of: Vec<Value>, by: &str, keep: usize, least: bool) -> Vec<Value> {
    let mut ranked: Vec<(f64, Value)> = of
        .into_iter()
        .filter_map(|value| Some((value.pointer(by)?.as_f64()?, value)))
        .map(|(number, value)| (if least { number } else { -number }, value))
        .collect();
    ranked.sort_by(|left, right| left.0.total_cmp(&right.0));
    ranked.truncate(keep);
    ranked.into_iter().map(|(_, value)| value).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(value: Value) -> Vec<Row> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn orders_that_make_no_sense_are_refused() {
        let read = |value: Value| Order::read(&serde_json::value::to_raw_value(&value).unwrap());
        assert!(read(json!({"do": "split", "from": {"csv": "a\n1\n"}})).is_ok());
        assert!(read(json!({"do": "clean", "from": {"rows": [{"a": 1}]}})).is_ok());
        for (value, said) in [
            (json!({}), "do"),
            (json!({"do": "melt"}), "melt"),
            (json!({"do": "split", "from": {"$ref": "http://h/x"}}), "Source"),
            (json!({"do": "split", "from": {"csv": ""}, "part_rows": 0}), "part_rows"),
            (json!({"do": "split", "from": {"csv": ""}, "rows": 1}), "rows"),
            (json!({"do": "top", "of": [], "by": "/a", "keep": 0}), "keep"),
            (json!({"do": "join", "parts": [], "apart": "test"}), "apart"),
        ] {
            let problem = read(value.clone()).unwrap_err();
            assert!(problem.contains(said), "{value}: {problem}");
        }
    }

    #[test]
    fn cleaning_trims_renames_and_leaves_out() {
        let from = rows(json!([
            {"text": "  Where is\n my card? ", "intent": "arrival", "n": 1},
            {"text": "where is my CARD?", "intent": "arrival"},
            {"text": " ", "intent": "arrival"},
            {"text": "Lost it", "intent": ""},
            {"text": "Lost it"},
            {"text": "Lost it", "intent": "lost"},
        ]));
        let rename = BTreeMap::from([("intent".to_owned(), "label".to_owned())]);
        let (kept, dropped) = clean(from, &rename, &["text".into(), "label".into()], Some("text"));
        let expected = json!([
            {"text": "Where is my card?", "label": "arrival", "n": 1},
            {"text": "Lost it", "label": "lost"},
        ]);
        assert_eq!((kept, dropped), (rows(expected), Dropped { empty: 3, repeated: 1 }));
    }

    #[test]
    fn tables_are_joined_in_order_and_kept_apart() {
        let from = rows(json!([
            {"split": "train", "text": "a"}, {"split": "test", "text": "b"}, {"split": "train", "text": "B"},
            {"split": "train", "text": "c"}, {"split": "train", "text": "A"}, {"text": "d"},
        ]));
        let (tables, dropped) = join(from.clone(), Some("split"), Some("text"), Some("test"));
        let texts = |name: &str| tables[name].iter().filter_map(|row| text(row, "text")).collect::<String>();
        assert_eq!((texts("train"), texts("test"), texts("")), ("ac".into(), "b".into(), "d".into()));
        assert_eq!(dropped, Dropped { empty: 0, repeated: 2 });
        let (tables, _) = join(from.clone(), None, None, None);
        assert_eq!(tables[""], from);
    }

    #[test]
    fn the_best_come_first_and_equals_stay_in_order() {
        let of = vec![
            json!({"m": {"a": 1}, "n": 0}),
            json!({"m": {"a": 3}}),
            json!({"m": {}}),
            json!({"m": {"a": 1}, "n": 1}),
        ];
        assert_eq!(top(of.clone(), "/m/a", 2, false), [of[1].clone(), of[0].clone()]);
        assert_eq!(top(of.clone(), "/m/a", 9, true), [of[0].clone(), of[3].clone(), of[1].clone()]);
    }
}
