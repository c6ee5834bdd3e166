//! The lines that worker and child exchange: JSON, one value a line.
//!
//! To the child: `{"id", "attempt", "input"}`, with a `"folder"` where its files are, or an array of these, and `{"cancel": "id"}`. From it, in any order:
//! `{"id", "output"}` or `{"id", "error": {"code", "message", "retryable"}}` once for each task, and before that any
//! number of `{"id", "progress", …}` and `{"id", "partial": …}`.

use std::path::{Path, PathBuf};

use serde::de::Deserializer;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use taskyard_shared::{TaskError, TaskId};

use crate::handler::{Answer, Job, codes, error};
use crate::handlers::answer::{MESSAGE_BYTES, clean, output};

/// Longest code of an error that a child may make up.
const CODE_BYTES: usize = 64;

/// What a line from the child says.
#[derive(Debug)]
pub(super) enum Said {
    Answer(TaskId, Answer),
    /// How far the task is, and perhaps what it does.
    Progress(TaskId, f64, Option<String>),
    Partial(TaskId, Box<RawValue>),
    /// Something else; the reason is for the log.
    Nonsense(String),
}

#[derive(Serialize)]
struct Request<'a> {
    id: TaskId,
    attempt: u32,
    input: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    folder: Option<&'a Path>,
}

#[derive(Serialize)]
struct Cancel {
    cancel: TaskId,
}

/// What asks for these tasks: one line with an array where the child expects arrays, else a line for each.
pub(super) fn request(jobs: &[Job], folders: &[PathBuf], as_array: bool) -> serde_json::Result<Vec<u8>> {
    let requests = jobs.iter().enumerate().map(|(at, job)| Request {
        id: job.id,
        attempt: job.attempt,
        input: &job.input,
        folder: folders.get(at).map(PathBuf::as_path),
    });
    let mut lines = Vec::new();
    if as_array {
        push_line(&mut lines, &requests.collect::<Vec<_>>())?;
    } else {
        for request in requests {
            push_line(&mut lines, &request)?;
        }
    }
    Ok(lines)
}

/// The lines that cancel these tasks.
pub(super) fn cancel(ids: impl Iterator<Item = TaskId>) -> serde_json::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for id in ids {
        push_line(&mut lines, &Cancel { cancel: id })?;
    }
    Ok(lines)
}

fn push_line(lines: &mut Vec<u8>, value: &impl Serialize) -> serde_json::Result<()> {
    let start = lines.len();
    serde_json::to_writer(&mut *lines, value)?;
    // An input keeps the white space it came with. Inside a JSON string a line break cannot stand as it is, so every
    // one here is between two tokens, where a space does as well.
    lines[start..].iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
    lines.push(b'\n');
    Ok(())
}

#[derive(Deserialize)]
struct Response<'a> {
    id: TaskId,
    /// `null` is an output too.
    #[serde(borrow, default, deserialize_with = "present")]
    output: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    progress: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    /// `null` is a part too.
    #[serde(borrow, default, deserialize_with = "present")]
    partial: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Failure {
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    retryable: bool,
}

fn present<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Reads a line from the child.
pub(super) fn read(line: &[u8]) -> Said {
    let Ok(text) = std::str::from_utf8(line) else {
        return Said::Nonsense("it is not UTF-8".to_owned());
    };
    if !text.trim_start().starts_with('{') {
        return Said::Nonsense("it is not a JSON object".to_owned());
    }
    let response: Response = match serde_json::from_str(text) {
        Ok(response) => response,
        Err(error) => return Said::Nonsense(clean(error.to_string().as_bytes(), 200)),
    };
    match response {
        Response { id, output: Some(text), error: None, .. } => Said::Answer(id, output(text.get())),
        Response { id, output: None, error: Some(text), .. } => Said::Answer(id, Err(failure(text))),
        Response { id, output: Some(_), error: Some(_), .. } => {
            let message = "the model's process answered with both an output and an error";
            Said::Answer(id, Err(error(codes::BAD_ANSWER, message, true)))
        }
        Response { id, partial: Some(part), .. } => match output(part.get()) {
            Ok(part) => Said::Partial(id, part),
            Err(error) => Said::Nonsense(error.message),
        },
        Response { id, progress: Some(progress), message, .. } => match serde_json::from_str(progress.get()) {
            Ok(progress) => {
                let message = message.and_then(|message| serde_json::from_str::<String>(message.get()).ok());
                Said::Progress(id, progress, message.map(|message| clean(message.as_bytes(), MESSAGE_BYTES)))
            }
            Err(_) => Said::Nonsense("its progress is no number".to_owned()),
        },
        Response { .. } => Said::Nonsense("it has none of output, error, progress and partial".to_owned()),
    }
}

/// A model's own error passes through, if it is one.
fn failure(text: &RawValue) -> TaskError {
    match serde_json::from_str::<Failure>(text.get()) {
        Ok(Failure { code, message, retryable }) if is_code(&code) => {
            TaskError { code, message: clean(message.as_bytes(), MESSAGE_BYTES), retryable }
        }
        _ => {
            let message = "the model's process answered with an error that is not {code, message, retryable}";
            error(codes::BAD_ANSWER, message, true)
        }
    }
}

fn is_code(code: &str) -> bool {
    (1..=CODE_BYTES).contains(&code.len())
        && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(input: &str) -> Job {
        Job::new(TaskId::default(), 2, RawValue::from_string(input.to_owned()).unwrap())
    }

    #[test]
    fn a_request_is_one_line_whatever_the_input() {
        let job = job("{\n  \"text\": \"a\\nb\",\r\n \"n\": 1.50 }");
        let line = String::from_utf8(request(std::slice::from_ref(&job), &[], false).unwrap()).unwrap();
        let id = job.id.0;
        let expected =
            format!("{{\"id\":\"{id}\",\"attempt\":2,\"input\":{{   \"text\": \"a\\nb\",   \"n\": 1.50 }}}}\n");
        assert_eq!(line, expected);
        let array = request(&[job.clone(), job.clone()], &[], true).unwrap();
        assert_eq!(array.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(serde_json::from_slice::<Vec<serde_json::Value>>(&array).unwrap().len(), 2);
        assert_eq!(request(&[job.clone(), job], &[], false).unwrap(), expected.repeat(2).as_bytes());
    }

    #[test]
    fn one_task_stands_in_an_array_where_arrays_are_expected() {
        let job = job("1");
        assert!(request(std::slice::from_ref(&job), &[], true).unwrap().starts_with(b"["));
        assert!(request(std::slice::from_ref(&job), &[], false).unwrap().starts_with(b"{"));
    }

    #[test]
    fn answers_and_errors_are_told_from_everything_else() {
        let id = TaskId::default();
        let said = |rest: &str| read(format!("{{\"id\": \"{}\"{rest}}}", id.0).as_bytes());

        for text in ["null", "{\"a\": [1]}", "1.50"] {
            let Said::Answer(found, Ok(output)) = said(&format!(", \"output\": {text}")) else { panic!("{text}") };
            assert_eq!((found, output.get()), (id, text));
        }
        let error = |rest: &str| match said(rest) {
            Said::Answer(found, Err(error)) if found == id => error,
            other => panic!("{rest}: {other:?}"),
        };
        let own = error(r#", "error": {"code": "out_of_memory", "message": "a\u001b[31m\nb", "retryable": true}"#);
        assert_eq!(own, TaskError { code: "out_of_memory".into(), message: "a [31m b".into(), retryable: true });
        for rest in [
            r#", "error": "no""#,
            r#", "error": {"message": "no code"}"#,
            r#", "error": {"code": "a\nb"}"#,
            r#", "error": {"code": ""}"#,
            r#", "output": 1, "error": {"code": "both"}"#,
        ] {
            assert_eq!(error(rest).code, codes::BAD_ANSWER, "{rest}");
        }
        match said(r#", "progress": 0.4, "message": "ha\nlf""#) {
            Said::Progress(found, progress, message) => {
                assert_eq!((found, progress, message.as_deref()), (id, 0.4, Some("ha lf")));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(said(r#", "progress": 1, "message": null"#), Said::Progress(_, 1.0, None)));
        for text in ["null", "{\"token\": [1]}", "1.50"] {
            let Said::Partial(found, part) = said(&format!(", \"partial\": {text}")) else { panic!("{text}") };
            assert_eq!((found, part.get()), (id, text));
        }
        assert!(matches!(said(r#", "progress": "half""#), Said::Nonsense(_)));
        let deep = format!(", \"output\": {}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(!error(&deep).retryable);
    }

    #[test]
    fn what_a_library_prints_is_nonsense() {
        let lines: [&[u8]; 9] = [
            b"",
            b"Loading the model: 40%",
            b"[1, 2]",
            b"{}",
            b"{\"id\": \"7\", \"output\": 1}",
            b"{\"output\": 1}",
            b"{\"id\": \"01890a5d-ac96-774b-bcce-b302099a8057\"}",
            b"{\"id\": \"01890a5d-ac96-774b-bcce-b302099a8057\", \"output\": 1} {",
            b"\xff\xfe",
        ];
        for line in lines {
            assert!(matches!(read(line), Said::Nonsense(_)), "{}", String::from_utf8_lossy(line));
        }
    }
}
