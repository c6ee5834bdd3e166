//! A step's input with holes: references to results, filled in when the step is to run.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::json::{find, is_pointer, members, object};
use super::limits;
use crate::task::limits::TASK_BYTES;

/// Stands in the input for what is found in a result.
pub(super) const FROM: &str = "$from";
/// For the member of a `for_each`, or what is found in it.
const ITEM: &str = "$item";
/// For what it holds, as it is: for data that has members of these names.
const LITERAL: &str = "$literal";

/// A place in an input, to be filled in.
#[derive(Clone, Debug)]
pub(super) struct Hole {
    /// The bytes of the input in whose place it stands.
    from: usize,
    to: usize,
    pub with: With,
}

#[derive(Clone, Debug)]
pub(super) enum With {
    Output(Reference),
    Item(String),
    Literal(Box<RawValue>),
}

/// What is found in the result of a step.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    pub step: String,
    pub path: String,
    pub default: Option<Box<RawValue>>,
}

/// What a path into a result may begin with.
const PARTS: [&str; 3] = ["/output", "/error", "/state"];

/// Whether a path can find anything in a result.
pub(super) fn check_path(path: &str) -> Result<(), String> {
    if path.len() > limits::PATH_BYTES {
        return Err(format!("path is over {} bytes", limits::PATH_BYTES));
    }
    let begins = |part: &str| path.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if !is_pointer(path) || !PARTS.into_iter().any(begins) {
        return Err(format!("path {path:?} must be a JSON pointer that begins with /output, /error or /state"));
    }
    Ok(())
}

/// Reads `{"$from": …}` with its `path` and `default`.
pub(super) fn reference(members: Vec<(Cow<'_, str>, &RawValue)>) -> Result<Reference, String> {
    let mut reference = Reference { step: String::new(), path: "/output".to_owned(), default: None };
    let text = |name: &str, raw: &RawValue| {
        serde_json::from_str::<String>(raw.get()).map_err(|_| format!("{name} must be a text"))
    };
    for (name, value) in members {
        match &*name {
            FROM => reference.step = text(FROM, value)?,
            "path" => reference.path = text("path", value)?,
            "default" => reference.default = Some(value.to_owned()),
            other => return Err(format!("{other:?} is not known beside {FROM:?}")),
        }
    }
    check_path(&reference.path)?;
    Ok(reference)
}

/// The holes of an input, in their order.
///
/// # Errors
/// Where in the input, as a path such as `.data[3]`, and what is wrong there.
pub(super) fn holes(input: &RawValue, is_fanned_out: bool) -> Result<Vec<Hole>, (String, String)> {
    let mut found = Vec::new();
    // Mostly there is none at all.
    if input.get().contains("\"$") || input.get().contains("\\u0024") {
        look(input, input.get(), is_fanned_out, &mut found)?;
    }
    Ok(found)
}

fn look(here: &RawValue, all: &str, is_fanned_out: bool, found: &mut Vec<Hole>) -> Result<(), (String, String)> {
    let within = |at: String| move |(path, why): (String, String)| (format!("{at}{path}"), why);
    let at_fault = |why: String| (String::new(), why);
    if let Some(inside) = members(here) {
        for (at, member) in inside.into_iter().enumerate() {
            look(member, all, is_fanned_out, found).map_err(within(format!("[{at}]")))?;
        }
    }
    let Some(inside) = object(here) else { return Ok(()) };
    let named = |name: &str| inside.iter().find(|(member, _)| member == name).map(|(_, value)| *value);
    let with = if named(FROM).is_some() {
        With::Output(reference(inside).map_err(at_fault)?)
    } else if let Some(path) = named(ITEM) {
        let path = serde_json::from_str::<String>(path.get()).ok().filter(|path| is_pointer(path));
        match path {
            _ if !is_fanned_out => {
                return Err(at_fault(format!("{ITEM:?} stands for a member of for_each, and there is none")));
            }
            Some(path) if inside.len() == 1 && path.len() <= limits::PATH_BYTES => With::Item(path),
            _ => {
                return Err(at_fault(format!(
                    "{ITEM:?} must stand alone, and be a JSON pointer into the member, or \"\""
                )));
            }
        }
    } else if let Some(value) = named(LITERAL) {
        if inside.len() > 1 {
            return Err(at_fault(format!("{LITERAL:?} must stand alone")));
        }
        With::Literal(value.to_owned())
    } else {
        for (name, member) in inside {
            look(member, all, is_fanned_out, found).map_err(within(format!(".{name}")))?;
        }
        return Ok(());
    };
    // What is found by a borrowing parser lies within what was parsed.
    let from = here.get().as_ptr() as usize - all.as_ptr() as usize;
    found.push(Hole { from, to: from + here.get().len(), with });
    Ok(())
}

/// Why an input could not be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Unfilled {
    Missing(String),
    TooLarge,
}

/// The input with its holes filled.
pub(super) fn fill<'a>(
    input: &RawValue,
    holes: &'a [Hole],
    output: impl Fn(&Reference) -> Option<Cow<'a, str>>,
    item: Option<&RawValue>,
) -> Result<Box<RawValue>, Unfilled> {
    if holes.is_empty() {
        return Ok(input.to_owned());
    }
    let text = input.get();
    let mut filled = String::with_capacity(text.len());
    let mut done = 0;
    for hole in holes {
        filled.push_str(text.get(done..hole.from).unwrap_or_default());
        match &hole.with {
            With::Literal(value) => filled.push_str(value.get()),
            With::Item(path) => {
                let value = item.and_then(|item| find(item, path));
                filled.push_str(
                    value.ok_or_else(|| Unfilled::Missing(format!("the member of for_each has no {path:?}")))?.get(),
                );
            }
            With::Output(reference) => match (output(reference), &reference.default) {
                (Some(value), _) => filled.push_str(&value),
                (None, Some(default)) => filled.push_str(default.get()),
                (None, None) => {
                    let Reference { step, path, .. } = reference;
                    return Err(Unfilled::Missing(format!("the result of step {step} has no {path:?}")));
                }
            },
        }
        if filled.len() > TASK_BYTES {
            return Err(Unfilled::TooLarge);
        }
        done = hole.to;
    }
    filled.push_str(text.get(done..).unwrap_or_default());
    if filled.len() > TASK_BYTES {
        return Err(Unfilled::TooLarge);
    }
    // It is JSON in place of JSON.
    RawValue::from_string(filled).map_err(|error| Unfilled::Missing(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn holes_are_filled_and_all_else_stays_as_it_came() {
        let input = raw(
            r#"{"n": 1.50, "a": [{"$from": "x", "path": "/output/r"}, {"$item": ""}], "b" : {"$from":"y","default": 7.0}, "c": {"$literal": {"$from": 1}}, "d": {"$item": "/k"}}"#,
        );
        let holes = holes(&input, true).unwrap();
        let output = |reference: &Reference| (reference.step == "x").then_some(Cow::Borrowed("[1e2]"));
        let filled = fill(&input, &holes, output, Some(&raw(r#"{"k": 3.10}"#))).unwrap();
        assert_eq!(filled.get(), r#"{"n": 1.50, "a": [[1e2], {"k": 3.10}], "b" : 7.0, "c": {"$from": 1}, "d": 3.10}"#);
        let missing = fill(&input, &holes, |_| None, Some(&raw("1")));
        assert!(matches!(missing, Err(Unfilled::Missing(why)) if why.contains("step x") && why.contains("/output/r")));
    }

    #[test]
    fn what_cannot_be_a_reference_is_refused_with_its_place() {
        for (input, place, why) in [
            (r#"{"a": [0, {"$from": 1}]}"#, ".a[1]", "must be a text"),
            (r#"{"a": {"b": {"$from": "x", "pth": ""}}}"#, ".a.b", "pth"),
            (r#"{"$from": "x", "path": "/rows"}"#, "", "/output"),
            (r#"{"$from": "x", "path": "output"}"#, "", "/output"),
            (r#"[{"$item": ""}]"#, "[0]", "for_each"),
            (r#"[{"$literal": 1, "b": 2}]"#, "[0]", "alone"),
            (r#"[{"\u0024from": 1}]"#, "[0]", "must be a text"),
        ] {
            let (at, message) = holes(&raw(input), false).unwrap_err();
            assert_eq!(at, place, "{input}");
            assert!(message.contains(why), "{input}: {message}");
        }
        assert!(holes(&raw(r#"{"price": "$from"}"#), false).unwrap().is_empty());
    }
}
