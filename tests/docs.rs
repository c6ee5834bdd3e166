//! The reference tells the truth: every metric and every error code of the source is in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Texts between quotes that follow `before`, with only white space between.
fn quoted_after<'a>(text: &'a str, before: &str) -> BTreeSet<&'a str> {
    text.match_indices(before)
        .filter_map(|(at, _)| text[at + before.len()..].trim_start().strip_prefix('"')?.split('"').next())
        .collect()
}

#[test]
fn every_metric_of_the_source_is_in_the_reference() {
    let reference = read("docs/reference.md");
    for file in ["scheduler/src/metrics.rs", "worker/src/metrics.rs", "producer/src/gateway/metrics.rs"] {
        let source = read(file);
        let mut names = BTreeSet::new();
        for maker in ["counter", "counters", "gauge", "gauges", "float_gauges", "histogram", "histograms"] {
            names.extend(quoted_after(&source, &format!("registry.{maker}(")));
        }
        assert!(names.len() > 3, "{file}: {names:?}");
        for name in names {
            assert!(reference.contains(name), "{name} of {file} is not in the reference");
        }
    }
}

#[test]
fn every_error_code_of_the_source_is_in_the_reference() {
    let reference = read("docs/reference.md");
    let handler = read("worker/src/handler.rs");
    let codes: BTreeSet<&str> = handler
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub const ")?.split_once(": &str = \"")?.1.strip_suffix("\";"))
        .collect();
    assert!(codes.len() > 5, "{codes:?}");
    let decode = read("shared/src/decode.rs");
    let core = read("scheduler/src/core.rs");
    let mut all = codes;
    all.extend(quoted_after(&decode, "body("));
    all.extend(quoted_after(&core, "State::Rejected,"));
    all.extend(quoted_after(&core, "State::Expired,"));
    for code in all {
        assert!(reference.contains(&format!("`{code}`")), "{code} is not in the reference");
    }
}

#[test]
fn every_file_that_the_pages_link_to_is_there() {
    for page in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/reference.md", "docs/stack.md"] {
        let text = read(page);
        let folder = root().join(page).parent().map(Path::to_path_buf).unwrap();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if !target.contains("://") && !target.starts_with('#') {
                let path = target.split('#').next().unwrap();
                assert!(folder.join(path).exists(), "{page} links to {target}, which is not there");
            }
        }
    }
}
