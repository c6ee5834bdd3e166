//! Artifacts as files: what a task names is put into a folder of its own for the child, and files that its output names become
//! artifacts.
//!
//! In the input every `{"$ref": "artifact:…"}` becomes `{"$file": "PATH"}`; in the output it is the other way round. The folder is
//! gone when the answer is there.

use std::path::Path;

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use taskyard_shared::TaskError;
use taskyard_shared::artifacts::{ARTIFACT_BYTES, ArtifactId, Artifacts, SCHEME};
use tempfile::TempDir;

use crate::handler::{Answer, Job, codes, error};
use crate::handlers::answer::{bad_input, unavailable};

/// Artifacts that one input may name.
const FILES_MOST: usize = 1_000;

pub(super) struct Files {
    pub artifacts: Artifacts,
}

/// A place in a value where a name stands, to be replaced.
type Found<'a> = (String, &'a mut Value);

impl Files {
    /// Brings what the input names into a new folder, and has it name the files there.
    pub async fn bring(&self, job: &mut Job) -> Result<TempDir, TaskError> {
        let folder = tempfile::Builder::new().prefix("taskyard-").tempdir().map_err(unwritten)?;
        if !job.input.get().contains(SCHEME) {
            return Ok(folder);
        }
        let mut input: Value =
            serde_json::from_str(job.input.get()).map_err(|failure| bad_input(format!("the input: {failure}")))?;
        let mut found = Vec::new();
        find(&mut input, "$ref", "", &mut found);
        found.retain(|(_, value)| value["$ref"].as_str().is_some_and(|name| name.starts_with(SCHEME)));
        if found.len() > FILES_MOST {
            return Err(bad_input(format!("the input names {} artifacts, more than {FILES_MOST}", found.len())));
        }
        for (number, (key, value)) in found.into_iter().enumerate() {
            let name = value["$ref"].as_str().unwrap_or_default();
            let id: ArtifactId = name.parse().map_err(|problem| bad_input(format!("$ref: {problem}")))?;
            let content = self.artifacts.get(id, ARTIFACT_BYTES).await.map_err(|failure| unavailable(&failure))?;
            let place = folder.path().join(format!("{number}{}", ending(&key)));
            tokio::fs::write(&place, content).await.map_err(unwritten)?;
            let place = place.to_str().ok_or_else(|| unwritten(std::io::ErrorKind::InvalidFilename.into()))?;
            *value = json!({"$file": place});
        }
        job.input = to_raw_value(&input).map_err(|failure| bad_input(format!("the input: {failure}")))?;
        Ok(folder)
    }

    /// Keeps the files that the output names, and has it name the artifacts.
    pub async fn take(&self, folder: &Path, output: Box<RawValue>) -> Answer {
        if !output.get().contains("$file") {
            return Ok(output);
        }
        let bad =
            |problem: String| error(codes::BAD_ANSWER, format!("the output of the model's process: {problem}"), false);
        let mut value: Value = serde_json::from_str(output.get()).map_err(|failure| bad(failure.to_string()))?;
        let mut found = Vec::new();
        find(&mut value, "$file", "", &mut found);
        if found.is_empty() {
            return Ok(output);
        }
        let folder = tokio::fs::canonicalize(folder).await.map_err(unwritten)?;
        for (_, value) in found {
            let Some(name) = value["$file"].as_str() else { return Err(bad("$file is no path".into())) };
            let place = tokio::fs::canonicalize(folder.join(name)).await;
            let place = place.map_err(|failure| bad(format!("{name:?}: {failure}")))?;
            let found = tokio::fs::metadata(&place).await.map_err(unwritten)?;
            // Not what a link leads to outside.
            if !place.starts_with(&folder) || !found.is_file() {
                return Err(bad(format!("{name:?} is no file in its task's folder")));
            }
            if found.len() > ARTIFACT_BYTES {
                return Err(bad(format!("{name:?} has {} bytes, over {ARTIFACT_BYTES}", found.len())));
            }
            let content = tokio::fs::read(&place).await.map_err(unwritten)?;
            let id = self.artifacts.put(content.into()).await.map_err(|failure| unavailable(&failure))?;
            *value = json!({"$ref": id});
        }
        to_raw_value(&value).map_err(|failure| bad(failure.to_string()))
    }
}

/// All objects that have this member alone, with the key that each stands under.
fn find<'a>(value: &'a mut Value, member: &str, key: &str, found: &mut Vec<Found<'a>>) {
    let is_name = |members: &Map<String, Value>| members.len() == 1 && members.contains_key(member);
    match value {
        Value::Object(members) if is_name(members) => found.push((key.to_owned(), value)),
        Value::Object(members) => members.iter_mut().for_each(|(key, value)| find(value, member, key, found)),
        Value::Array(values) => values.iter_mut().for_each(|value| find(value, member, key, found)),
        _ => {}
    }
}

/// `.onnx` of `model.onnx`: libraries go by it. Nothing else of a key gets into a path.
fn ending(key: &str) -> String {
    let ending = key.rsplit_once('.').map_or("", |(_, ending)| ending);
    match (1..=16).contains(&ending.len()) && ending.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        true => format!(".{ending}"),
        false => String::new(),
    }
}

/// The worker's own disk: another worker may have room.
fn unwritten(failure: std::io::Error) -> TaskError {
    error(codes::UNAVAILABLE, format!("the folder of the task cannot be used: {failure}"), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_ending_of_its_key_and_nothing_else_of_it() {
        for (key, expected) in [
            ("model.onnx", ".onnx"),
            ("a.tar.gz", ".gz"),
            ("rows", ""),
            ("../../etc/x.", ""),
            ("x./../y", ""),
            ("a.\u{0}", ""),
        ] {
            assert_eq!(ending(key), expected, "{key}");
        }
    }
}
