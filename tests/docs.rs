//! What the pages say is held against what stands in the sources: error codes, metrics, commands, fields, links.
//!
//! Sources are read as text, since most of this is private to its crate. Each search says what it must at least find.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use taskyard_producer::gateway::problem::Code;
use taskyard_shared::State;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn reference() -> String {
    read("docs/reference.md")
}

/// A source without its tests, every stretch of white space one space.
fn source(path: &str) -> String {
    let text = read(path);
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The section under a heading, up to the next heading of any level.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let (_, after) = page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading:?}"));
    let end = ["\n# ", "\n## ", "\n### "].iter().filter_map(|next| after.find(next)).min();
    &after[..end.unwrap_or(after.len())]
}

/// Rows of the tables of a section, cell by cell, without their heads.
fn rows(section: &str) -> Vec<Vec<String>> {
    let lines: Vec<&str> = section.lines().collect();
    let rule = |line: &str| line.starts_with("|-") || line.starts_with("| -");
    let is_head = |at: usize| lines.get(at + 1).is_some_and(|next| rule(next));
    let cells = |line: &str| {
        let line = line.replace("\\|", "\u{1}");
        let cells = line.trim().trim_matches('|').split('|');
        cells.map(|cell| cell.trim().replace('\u{1}', "|")).collect()
    };
    let row = |(at, line): (usize, &&str)| (line.starts_with('|') && !rule(line) && !is_head(at)).then(|| cells(line));
    lines.iter().enumerate().filter_map(row).collect()
}

/// Everything between backquotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// What stands in the first column of a section's tables, in backquotes.
fn named(page: &str, heading: &str) -> BTreeSet<String> {
    rows(section(page, heading)).iter().flat_map(|row| quoted(&row[0])).map(str::to_owned).collect()
}

/// Every word in quotes right after one of the marks.
fn after(text: &str, marks: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for mark in marks {
        let words = text.match_indices(mark).filter_map(|(at, _)| text[at + mark.len()..].split_once('"'));
        let words: Vec<&str> = words.map(|(word, _)| word).collect();
        assert!(!words.is_empty(), "{mark:?} is found nowhere");
        let word =
            |word: &&str| !word.is_empty() && word.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        found.extend(words.into_iter().filter(word).map(str::to_owned));
    }
    found
}

fn set<const N: usize>(words: [&str; N]) -> BTreeSet<String> {
    words.map(str::to_owned).into()
}

/// As it stands in JSON.
fn word(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).unwrap().as_str().unwrap().to_owned()
}

#[test]
fn codes_of_what_was_sent_are_those_of_the_decoder_and_of_the_intake() {
    let page = reference();
    let decoder = after(&source("shared/src/decode.rs"), &["body(\"", "Self::new(\""]);
    let intake = after(&source("scheduler/src/intake.rs"), &["code: \""]);
    assert!(decoder.contains("depth") && intake.contains("conflict"));
    assert_eq!(named(&page, "### Of what was sent"), &decoder | &intake);
}

#[test]
fn codes_of_the_scheduler_are_those_it_refuses_with() {
    let page = reference();
    let core =
        ["core", "admit", "choose", "deploying"].map(|name| source(&format!("scheduler/src/{name}.rs"))).concat();
    let refused =
        after(&core, &["State::Expired, \"", "State::Rejected, \"", "|| (\"", "Err((\"", "=> (\"", "End::Failed(\""]);
    assert!(refused.is_superset(&set(["unknown_model", "unknown_capability", "expired", "unwritable"])), "{refused:?}");
    let decision = source("scheduler/src/planner/decision.rs");
    let (_, shed) = decision.split_once("impl ShedReason").unwrap();
    let (shed, _) = shed.split_once("pub enum DispatchReason").unwrap();
    let admit = source("scheduler/src/planner/admit.rs");
    let marks =
        ["Self::DeadlineUnreachable { .. } => \"", "Self::TooManyWaiting => \"", "Self::Overloaded { .. } => \""];
    let turned_away = &after(&admit, &marks) | &after(shed, &["=> \""]);
    assert_eq!(named(&page, "### Of the scheduler"), &refused | &turned_away);
    assert_eq!(after(&source("worker/src/attempt.rs"), &["State::Expired, \""]), set(["expired"]));
}

#[test]
fn codes_of_running_are_those_of_the_handler_contract() {
    let handler = source("worker/src/handler.rs");
    let (_, codes) = handler.split_once("pub mod codes").unwrap();
    let made: BTreeSet<String> =
        codes.split(": &str = \"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect();
    assert!(made.contains("attempts_exhausted") && made.len() > 6, "{made:?}");
    assert_eq!(named(&reference(), "### Of running it"), made);
}

#[test]
fn codes_of_workflows_are_those_that_steps_end_with() {
    let made = after(&source("shared/src/workflow/machine.rs"), &["error(\""]);
    assert!(made.contains("missing_output") && made.len() > 8, "{made:?}");
    assert_eq!(named(&reference(), "### Of workflows"), made);
}

#[test]
fn codes_of_http_have_their_status() {
    let page = reference();
    let mut written = BTreeMap::new();
    for heading in ["### Of what was sent", "### Of HTTP alone"] {
        for row in rows(section(&page, heading)) {
            written.insert(quoted(&row[0])[0].to_owned(), row[1].parse::<u16>().unwrap());
        }
    }
    let made: BTreeMap<String, u16> = Code::ALL.iter().map(|code| (word(code), code.status().as_u16())).collect();
    assert_eq!(written, made);
}

#[test]
fn reasons_of_dead_letters_are_those_that_messages_between_roles_are_buried_with() {
    let between = after(&source("shared/src/wire/envelopes.rs"), &["=> \""]);
    let webhooks = after(&source("producer/src/webhooks/mod.rs"), &["reason: \"", "over(\""]);
    let written: BTreeSet<String> = rows(section(&reference(), "## Dead letters"))
        .iter()
        .filter_map(|row| row[0].strip_prefix('`')?.strip_suffix('`').map(str::to_owned))
        .collect();
    assert_eq!(written, &between | &webhooks);
    let sources = source("shared/src/messages.rs") + &source("shared/src/dead.rs");
    let headers = after_any(&sources, "_HEADER: &str = \"");
    assert!(headers.len() == 16, "{headers:?}");
    for header in headers {
        assert!(reference().contains(&header), "{header}");
    }
}

/// Every text in quotes right after the mark, whatever is in it.
fn after_any(text: &str, mark: &str) -> BTreeSet<String> {
    text.split(mark).skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())).collect()
}

/// Name → kind and labels, as the sources make them.
fn metrics_made() -> BTreeMap<String, (&'static str, String)> {
    let mut made = BTreeMap::new();
    let makers = [
        ("counter", "counter"),
        ("counters", "counter"),
        ("gauge", "gauge"),
        ("gauges", "gauge"),
        ("float_gauge", "gauge"),
        ("float_counters", "counter"),
        ("float_gauges", "gauge"),
        ("histogram", "histogram"),
        ("histograms", "histogram"),
    ];
    for path in metrics_sources() {
        let text = source(path.to_str().unwrap());
        for (maker, kind) in makers {
            for (at, mark) in text.match_indices(&format!(".{maker}(")) {
                let call = text[at + mark.len()..].trim_start();
                let Some((name, rest)) = call.strip_prefix('"').and_then(|call| call.split_once('"')) else { continue };
                // Up to the end of the call: what is made next has labels of its own.
                let call = rest.split(")?").next().unwrap();
                let labels =
                    call.split_once("&[").and_then(|(_, labels)| labels.split_once(']')).map_or("", |(l, _)| l);
                let labels = labels.replace('"', "").trim().trim_end_matches(',').to_owned();
                made.insert(format!("taskyard_{name}"), (kind, labels));
            }
        }
        for (mark, kind) in [("Counter::new(\"", "counter"), ("Gauge::new(\"", "gauge")] {
            made.extend(after_any(&text, mark).into_iter().map(|name| (name, (kind, String::new()))));
        }
    }
    made
}

/// Files called `metrics.rs`, and those in folders called `metrics`.
fn metrics_sources() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let in_folder = path.parent().and_then(Path::file_name).is_some_and(|name| name == "metrics");
            if path.is_dir() {
                walk(&path, found);
            } else if path.file_name().is_some_and(|name| name == "metrics.rs") || in_folder {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for part in ["src", "producer/src", "scheduler/src", "shared/src", "worker/src"] {
        walk(&root().join(part), &mut found);
    }
    assert!(found.len() >= 5, "{found:?}");
    found.into_iter().map(|path| path.strip_prefix(root()).unwrap().to_owned()).collect()
}

#[test]
fn every_metric_is_written_down_with_its_kind_and_labels() {
    let made = metrics_made();
    assert!(made.len() > 35, "{made:?}");
    let mut written = BTreeMap::new();
    for row in rows(section(&reference(), "## Metrics")) {
        let kind = ["counter", "gauge", "histogram"].into_iter().find(|kind| *kind == row[1]).unwrap_or_default();
        written.insert(row[0].trim_matches('`').to_owned(), (kind, row[2].clone()));
    }
    assert_eq!(written, made);
}

#[test]
fn no_metric_has_a_label_that_prometheus_keeps_for_summaries_and_histograms() {
    for (name, (_, labels)) in metrics_made() {
        assert!(!labels.split(", ").any(|label| ["quantile", "le"].contains(&label)), "{name}: {labels}");
    }
}

#[test]
fn every_field_state_and_call_is_written_down() {
    let page = reference();
    let schemas = taskyard_shared::schema::schemas();
    for (name, heading) in [("task", "## Tasks"), ("result", "## Results")] {
        let (_, schema) = schemas.iter().find(|(known, _)| *known == name).unwrap();
        let schema = serde_json::to_value(schema).unwrap();
        let mut fields: BTreeSet<String> = schema["properties"].as_object().unwrap().keys().cloned().collect();
        if name == "task" {
            fields.extend(set(["model", "capability"]));
        }
        let written = named(&page, heading);
        assert_eq!(written, fields, "{heading}");
    }
    assert_eq!(named(&page, "## States"), State::ALL.map(word).into());

    let routes = source("producer/src/gateway/routes.rs");
    let calls: BTreeSet<String> = routes
        .split("method: Verb::")
        .skip(1)
        .filter_map(|route| {
            let (method, rest) = route.split_once(',')?;
            let path = rest.split_once("path: \"")?.1.split_once('"')?.0;
            Some(format!("{} {path}", method.to_uppercase()))
        })
        .collect();
    assert!(calls.len() > 10, "{calls:?}");
    assert_eq!(named(&page, "## HTTP API"), calls);

    let queues = named(&page, "## Queues");
    let topology = source("shared/src/topology.rs");
    for name in after_any(&topology, "self.name(\"") {
        assert!(queues.contains(&format!("taskyard.{name}")), "{name}");
    }
}

#[test]
fn every_setting_of_a_model_is_written_down() {
    let page = reference();
    let settings: toml::Table = read("shared/src/process/settings.models.toml").parse().unwrap();
    let model = settings["models"]["NAME"].as_table().unwrap();
    let own: BTreeSet<String> =
        model.iter().filter(|(_, value)| !value.is_table()).map(|(key, _)| key.clone()).collect();
    assert_eq!(named(&page, "## Models"), own);
    for table in model.iter().filter(|(_, value)| value.is_table()).map(|(key, _)| key) {
        assert!(!section(&page, &format!("### `{table}`")).is_empty());
    }
}

fn taskyard(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_taskyard")).args(arguments).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

/// Commands and options that a command's help names.
fn helped(help: &str) -> (Vec<String>, Vec<String>) {
    let commands =
        help.split_once("\nCommands:\n").map_or("", |(_, rest)| rest.split("\n\n").next().unwrap_or_default());
    let commands = commands.lines().filter_map(|line| line.split_whitespace().next());
    let commands = commands.filter(|name| *name != "help").map(str::to_owned).collect();
    let options = help.split_whitespace().filter(|word| word.starts_with("--"));
    let options = options.map(|word| word.trim_end_matches([',', '.', ']', '>']).to_owned());
    (commands, options.filter(|option| !["--help", "--version", "--"].contains(&option.as_str())).collect())
}

#[test]
fn every_command_and_option_is_written_down() {
    let page = section(&reference(), "## Commands").to_owned();
    let mut open: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    while let Some(path) = open.pop() {
        let arguments: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let (works, help) = taskyard(&arguments);
        assert!(works, "{arguments:?}");
        let (commands, options) = helped(&help);
        if let Some((last, before)) = path.split_last() {
            seen += 1;
            let whole = format!("`taskyard {}", path.join(" "));
            // One that may be left out stands in brackets.
            let optional = format!("`taskyard {} [{last}]`", before.join(" "));
            assert!(page.contains(&whole) || page.contains(&optional), "{whole}");
        }
        for option in options {
            assert!(page.contains(&option), "{option} of taskyard {}", path.join(" "));
        }
        open.extend(commands.into_iter().map(|command| [path.as_slice(), &[command]].concat()));
    }
    assert!(seen > 20, "{seen}");
}

/// Every page that a reader comes to.
fn pages() -> Vec<String> {
    let mut pages: Vec<String> =
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md", "docs/reference.md"].map(str::to_owned).into();
    for folder in ["docs", "docs/decisions", "demo", "scheduler/src/planner", "tests/stack"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path.strip_prefix(root()).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    pages.sort();
    pages.dedup();
    pages
}

/// `taskyard WORDS --options` as pages write them, in code: the words, and the options after them.
fn commands_in(page: &str) -> Vec<(Vec<String>, Vec<String>)> {
    let mut found = Vec::new();
    let starts = ["taskyard ", "cargo run -- "].map(|mark| page.match_indices(mark).collect::<Vec<_>>());
    for (at, mark) in starts.concat() {
        let before = page[..at].chars().next_back();
        let code = page[..at].rsplit('\n').next().unwrap_or_default();
        let in_code = code.matches('`').count() % 2 == 1 || page[..at].matches("```").count() % 2 == 1;
        if !in_code || before.is_some_and(|before| before.is_alphanumeric() || "/.-_".contains(before)) {
            continue;
        }
        let rest = page[at + mark.len()..].split(['`', '\n', '#']).next().unwrap_or_default().replace("\\|", "|");
        let words: Vec<&str> = rest.split_whitespace().collect();
        let is_word = |word: &&&str| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'|');
        let named: Vec<&str> = words.iter().take_while(is_word).copied().collect();
        let options = words[named.len()..].iter().map(|word| word.trim_start_matches('['));
        let options = options.filter(|word| word.starts_with("--")).map(|word| word.trim_end_matches(']').to_owned());
        let options: Vec<String> = options.collect();
        // `taskyard task submit|get` names several.
        let mut all = vec![Vec::new()];
        for word in named {
            let each = |path: &Vec<String>| {
                word.split('|').map(|one| [path.as_slice(), &[one.to_owned()]].concat()).collect::<Vec<_>>()
            };
            all = all.iter().flat_map(each).collect();
        }
        found.extend(all.into_iter().map(|path| (path, options.clone())));
    }
    found
}

#[test]
fn every_command_on_a_page_exists() {
    let mut all = BTreeSet::new();
    for page in pages() {
        all.extend(commands_in(&read(&page)));
    }
    assert!(all.len() > 15, "{all:?}");
    for (path, options) in all {
        let arguments: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let (works, help) = taskyard(&arguments);
        assert!(works, "taskyard {}", path.join(" "));
        let known = helped(&help).1;
        for option in options {
            assert!(known.contains(&option), "{option} of taskyard {}: {known:?}", path.join(" "));
        }
    }
}

/// As headings are linked to: small letters, hyphens for spaces, nothing else.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|character| character.is_alphanumeric() || matches!(character, '-' | '_')).collect()
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let mut links = 0;
    for page in pages() {
        let text = read(&page);
        let folder = Path::new(&page).parent().unwrap().to_owned();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            links += 1;
            let (file, part) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { PathBuf::from(&page) } else { folder.join(file) };
            assert!(root().join(&path).exists(), "{page} links to {target}");
            if !part.is_empty() {
                let there = read(path.to_str().unwrap());
                let headings = there.lines().filter(|line| line.starts_with('#'));
                assert!(
                    headings.map(|line| anchor(line.trim_start_matches('#'))).any(|known| known == part),
                    "{page}: #{part}"
                );
            }
        }
    }
    assert!(links > 20, "{links}");
}
