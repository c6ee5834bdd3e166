//! The broken builds in `tests/faults/mutants/`: `run.sh` there says whether the ledger finds them out, which takes too long for every
//! day. Here each is only looked at, so that none falls behind the code that it breaks.

use std::path::Path;
use std::process::Command;

use crate::harness::root;
use crate::plan;

/// What a patch says of itself.
fn said<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let head = text.split("\ndiff ").next()?;
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn applies(patch: &Path) -> std::process::Output {
    Command::new("git").current_dir(root()).args(["apply", "--check"]).arg(patch).output().unwrap()
}

#[test]
fn every_broken_build_says_what_shows_it_and_still_applies() {
    let is_checkout = Command::new("git").current_dir(root()).args(["rev-parse", "--show-toplevel"]).output();
    let top = is_checkout.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let may_apply = Path::new(&top) == root();
    if !may_apply {
        eprintln!("not looked at whether the patches apply: this is no checkout of its own");
    }
    let mut count = 0;
    for entry in std::fs::read_dir(root().join("tests/faults/mutants")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "patch") {
            continue;
        }
        count += 1;
        let (name, text) = (path.display(), std::fs::read_to_string(&path).unwrap());
        assert!(said(&text, "Breaks").is_some() && said(&text, "Red").is_some(), "{name} does not say what it is");
        for setting in said(&text, "Run").unwrap_or_default().split_whitespace() {
            let (variable, value) = setting.split_once('=').unwrap_or_else(|| panic!("{name}: {setting}"));
            assert!(variable.starts_with("TASKYARD_FAULTS_"), "{name}: {setting}");
            let mut kinds = value.split(',').filter(|_| variable == "TASKYARD_FAULTS_WITHOUT");
            assert_eq!(kinds.find(|kind| !plan::is_kind(kind)), None, "{name}: no such fault");
        }
        if may_apply {
            let checked = applies(&path);
            assert!(checked.status.success(), "{name}: {}", String::from_utf8_lossy(&checked.stderr));
        }
    }
    assert!(count >= 10, "{count} patches");
}
