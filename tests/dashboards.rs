//! A dashboard that names a metric or a label that nobody exports shows an empty panel, and says nothing. So every name
//! in `deploy/grafana/dashboards` is looked up in the sources that make metrics: all files called `metrics.rs`, and
//! those in folders called `metrics`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Methods of the registry that make a metric: its first argument is the name, without the prefix.
const MAKERS: [&str; 9] =
    ["counter", "counters", "float_gauge", "float_gauges", "gauge", "gauges", "histogram", "histograms", "int_gauge"];
/// Given by Prometheus itself, and labels that a scrape adds.
const SCRAPED: [&str; 1] = ["up"];
const SCRAPE_LABELS: [&str; 2] = ["instance", "job"];
const KEYWORDS: [&str; 13] = [
    "and",
    "bool",
    "by",
    "group_left",
    "group_right",
    "ignoring",
    "inf",
    "nan",
    "offset",
    "on",
    "or",
    "unless",
    "without",
];

#[derive(Debug)]
struct Metric {
    histogram: bool,
    /// Nothing when they are not written beside the name.
    labels: Option<BTreeSet<String>>,
}

/// What an expression of PromQL names: metrics, and labels in selectors and groupings.
#[derive(Default, Debug)]
struct Named {
    metrics: BTreeSet<String>,
    labels: BTreeSet<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, wanted: &dyn Fn(&Path) -> bool, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the project can be read") {
        let path = entry.expect("a folder of the project can be read").path();
        if path.is_dir() {
            files(&path, wanted, found);
        } else if wanted(&path) {
            found.push(path);
        }
    }
}

fn is_metrics_source(path: &Path) -> bool {
    let file = path.file_name().is_some_and(|name| name == "metrics.rs");
    let folder = path.parent().and_then(Path::file_name).is_some_and(|name| name == "metrics");
    file || (folder && path.extension().is_some_and(|extension| extension == "rs"))
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_' || character == ':'
}

/// A string literal at the start of `text`, and what follows it. Names hold no escapes.
fn literal(text: &str) -> Option<(&str, &str)> {
    text.trim_start().strip_prefix('"')?.split_once('"')
}

/// The arguments up to the closing bracket of a call, whose opening bracket is already taken off.
fn arguments(text: &str) -> &str {
    let (mut depth, mut quoted, mut escaped) = (1, false, false);
    for (at, character) in text.char_indices() {
        match (quoted, character) {
            (true, _) if escaped => escaped = false,
            (true, '\\') => escaped = true,
            (_, '"') => quoted = !quoted,
            (false, '(') => depth += 1,
            (false, ')') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..at];
        }
    }
    text
}

/// The metrics that a source makes: `registry.counters("name", "help", &["label"])`, or `Kind::new("full_name", …)`.
fn made_in(source: &str) -> BTreeMap<String, Metric> {
    let source = source.split("#[cfg(test)]").next().unwrap_or(source);
    let mut made = BTreeMap::new();
    for (at, _) in source.match_indices('(') {
        let (before, after) = (&source[..at], &source[at + 1..]);
        let Some((name, _)) = literal(after) else { continue };
        let callee = before.rsplit(|character| !is_word(character)).next().unwrap_or("");
        let histogram = callee.to_lowercase().contains("histogram");
        if MAKERS.contains(&callee) && before.ends_with(&format!(".{callee}")) {
            let list = arguments(after).split_once("&[").and_then(|(_, rest)| rest.split_once(']'));
            let labels = list.map_or_else(BTreeSet::new, |(list, _)| {
                list.split(',').filter_map(|label| literal(label).map(|(label, _)| label.to_owned())).collect()
            });
            made.insert(format!("taskyard_{name}"), Metric { histogram, labels: Some(labels) });
        } else if callee.ends_with("::new") && (name.starts_with("taskyard_") || name.starts_with("process_")) {
            made.insert(name.to_owned(), Metric { histogram, labels: None });
        }
    }
    made
}

fn named_in(expression: &str) -> Named {
    let mut named = Named::default();
    let mut rest = expression;
    while let Some(start) = rest.find(|character: char| is_word(character) || "{[\"".contains(character)) {
        let end_of = |close: char| rest[start + 1..].find(close).map_or(rest.len(), |at| start + 1 + at + 1);
        let at = match rest[start..].chars().next() {
            Some('{') => {
                // Values of matchers here hold no commas.
                let end = end_of('}');
                let selector = rest[start + 1..end - 1].split(',');
                named.labels.extend(selector.filter_map(|matcher| {
                    matcher
                        .split(['=', '!'])
                        .next()
                        .map(|label| label.trim().to_owned())
                        .filter(|label| !label.is_empty())
                }));
                end
            }
            Some('[') => end_of(']'),
            Some('"') => end_of('"'),
            _ => {
                let end = rest[start..].find(|character| !is_word(character)).map_or(rest.len(), |at| start + at);
                let word = &rest[start..end];
                let follows = rest[end..].trim_start();
                if matches!(word, "by" | "on" | "without" | "ignoring") && follows.starts_with('(') {
                    let close = rest[end..].find(')').map_or(rest.len(), |at| end + at);
                    let list = rest[end..close].trim_start().trim_start_matches('(');
                    named.labels.extend(list.split(',').map(|label| label.trim().to_owned()));
                    close
                } else {
                    let number = word.starts_with(|character: char| character.is_ascii_digit());
                    let function = ["(", "by ", "by(", "without"].iter().any(|next| follows.starts_with(next));
                    if !number && !function && !KEYWORDS.contains(&word.to_lowercase().as_str()) {
                        named.metrics.insert(word.to_owned());
                    }
                    end
                }
            }
        };
        rest = &rest[at..];
    }
    named
}

/// Every value under a key, at any depth.
fn texts_under<'a>(value: &'a serde_json::Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    serde_json::Value::String(text) if name == key => found.push(text),
                    _ => texts_under(value, key, found),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| texts_under(value, key, found)),
        _ => {}
    }
}

/// The metric behind a series' name: a histogram's series have endings of their own.
fn metric<'a>(made: &'a BTreeMap<String, Metric>, series: &str) -> Result<&'a Metric, String> {
    let stem = ["_bucket", "_sum", "_count"].iter().find_map(|ending| series.strip_suffix(ending));
    match (made.get(series), stem.and_then(|stem| made.get(stem))) {
        (_, Some(metric)) if metric.histogram => Ok(metric),
        (Some(metric), _) if metric.histogram => Err(format!("{series} is a histogram: use _bucket, _sum or _count")),
        (Some(metric), _) => Ok(metric),
        (None, _) => Err(format!("nobody makes {series}")),
    }
}

fn faults(expression: &str, made: &BTreeMap<String, Metric>) -> Vec<String> {
    let named = named_in(expression);
    let mut faults = Vec::new();
    // Labels are known when every metric of the expression wrote its own beside its name.
    let mut known: Option<BTreeSet<String>> =
        Some(SCRAPE_LABELS.iter().map(|label| (*label).to_owned()).chain(["le".to_owned()]).collect());
    for series in named.metrics.iter().filter(|series| !SCRAPED.contains(&series.as_str())) {
        match metric(made, series) {
            Ok(Metric { labels: Some(labels), .. }) => {
                known = known.map(|known| known.union(labels).cloned().collect());
            }
            Ok(Metric { labels: None, .. }) => known = None,
            Err(fault) => {
                faults.push(fault);
                known = None;
            }
        }
    }
    if let Some(known) = known {
        faults.extend(named.labels.difference(&known).map(|label| format!("no metric of it has the label {label}")));
    }
    faults
}

fn made() -> BTreeMap<String, Metric> {
    let mut sources = Vec::new();
    for part in ["producer", "scheduler", "shared", "src", "worker"] {
        files(&root().join(part), &is_metrics_source, &mut sources);
    }
    let read = |source: &PathBuf| std::fs::read_to_string(source).expect("a source can be read");
    sources.iter().flat_map(|source| made_in(&read(source))).collect()
}

#[test]
fn every_metric_and_label_of_a_dashboard_exists() {
    let made = made();
    assert!(made.len() > 20, "the sources make metrics: {:?}", made.keys());
    let mut dashboards = Vec::new();
    files(
        &root().join("deploy/grafana/dashboards"),
        &|path| path.extension().is_some_and(|e| e == "json"),
        &mut dashboards,
    );
    assert!(!dashboards.is_empty());
    for dashboard in dashboards {
        let text = std::fs::read_to_string(&dashboard).expect("a dashboard can be read");
        let value: serde_json::Value = serde_json::from_str(&text).expect("a dashboard is JSON");
        let mut expressions = Vec::new();
        texts_under(&value, "expr", &mut expressions);
        assert!(expressions.len() > 20, "{}: {} expressions", dashboard.display(), expressions.len());
        let wrong: Vec<String> = expressions
            .iter()
            .flat_map(|expression| {
                faults(expression, &made).into_iter().map(move |fault| format!("{fault}: {expression}"))
            })
            .collect();
        assert!(wrong.is_empty(), "{}:\n{}", dashboard.display(), wrong.join("\n"));
    }
}

#[test]
fn a_name_that_nobody_makes_is_found() {
    let source = r#"
        slots: registry.int_gauge("worker_slots", "Slots (of one), by state.", &["model", "state"]),
        runs: registry.histogram("task_run_seconds", "Time \"run\".", &["model"], SECONDS),
        held: IntGauge::new("taskyard_held", "Held")?,
    "#;
    let made = made_in(source);
    let names: Vec<&str> = made.keys().map(String::as_str).collect();
    assert_eq!(names, ["taskyard_held", "taskyard_task_run_seconds", "taskyard_worker_slots"]);
    for right in [
        r#"sum by (model) (taskyard_worker_slots{state="busy", job="worker"}) or vector(0)"#,
        "histogram_quantile(0.5, sum by (le, model) (rate(taskyard_task_run_seconds_bucket[$__rate_interval])))",
        r#"count(up{job="worker"} == 1) + taskyard_held"#,
    ] {
        assert_eq!(faults(right, &made), Vec::<String>::new(), "{right}");
    }
    for (wrong, fault) in [
        ("sum(taskyard_worker_slot)", "nobody makes taskyard_worker_slot"),
        ("rate(taskyard_worker_slots_bucket[5m])", "nobody makes taskyard_worker_slots_bucket"),
        ("taskyard_task_run_seconds", "taskyard_task_run_seconds is a histogram: use _bucket, _sum or _count"),
        (r#"taskyard_worker_slots{stat="busy"}"#, "no metric of it has the label stat"),
        ("sum by (priority) (taskyard_worker_slots)", "no metric of it has the label priority"),
    ] {
        assert_eq!(faults(wrong, &made), [fault], "{wrong}");
    }
}
