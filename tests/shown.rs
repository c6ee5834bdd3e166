//! `docs/faults.md` names the test that shows each row: as a file, then functions in it. All of them are there.

use std::path::Path;

fn read(path: &str) -> String {
    let whole = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(whole).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What is in parentheses, and the rest.
fn apart(line: &str) -> (String, String) {
    let (mut inside, mut rest, mut depth) = (String::new(), String::new(), 0);
    for character in line.chars() {
        depth += i32::from(character == '(') - i32::from(character == ')');
        if depth > 0 { &mut inside } else { &mut rest }.push(character);
    }
    (inside, rest)
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn is_name(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// Named in a page and not there; and how many names there are.
fn missing(page: &str) -> (Vec<String>, usize) {
    let (mut missing, mut count) = (Vec::new(), 0);
    let ledger = ["check", "plan"].map(|file| read(&format!("tests/faults/{file}.rs"))).concat();
    for line in page.lines() {
        let (inside, rest) = apart(line);
        let mut file = None;
        for word in quoted(&rest) {
            if word.ends_with(".rs") {
                file = Some((word, read(word)));
            } else if let (Some((path, text)), true) = (&file, is_name(word)) {
                count += 1;
                if !text.contains(&format!("fn {word}(")) {
                    missing.push(format!("{path} {word}"));
                }
            }
        }
        // Rules and faults of the ledger.
        if line.contains("the ledger (") {
            let is_there =
                |word: &&str| [format!("\"{word}\""), format!("Rule::{word},")].iter().any(|has| ledger.contains(has));
            missing.extend(quoted(&inside).filter(|word| !is_there(word)).map(str::to_owned));
        }
    }
    (missing, count)
}

#[test]
fn every_test_that_the_page_of_faults_names_is_there() {
    let (missing, count) = missing(&read("docs/faults.md"));
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(count > 200, "{count} names are found");
}

#[test]
fn a_name_that_is_not_there_is_found() {
    let page = "| a | b | `tests/shown.rs` `missing`, `nobody`; `tests/tidy.rs` `missing` |\n| c | the ledger (`Lost`, `Found`) |";
    assert_eq!(
        missing(page),
        (vec!["tests/shown.rs nobody".into(), "tests/tidy.rs missing".into(), "Found".into()], 3)
    );
}
