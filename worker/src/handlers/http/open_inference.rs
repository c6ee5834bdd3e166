//! The Open Inference protocol, version 2 (KServe, Triton, MLServer, OpenVINO): `POST {url}/v2/models/{model}/infer`.
//!
//! The input is the request object, `{"inputs": [{"name", "shape", "datatype", "data"}]}`; it gets the task's id as its
//! `id` unless it has one. The output is the response object. An `http.url` that ends in `/infer` is used as it is, for
//! a model that has another name or version at its server. A batch is sent as one request a task, at the same time: such
//! servers form batches by themselves, and only they know which dimension is the batch's.

use reqwest::Url;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};
use taskyard_shared::TaskError;

use super::{bad_answer, bad_input};
use crate::handler::{Answer, Job};
use crate::handlers::answer::{clean, output};

pub(super) fn endpoint(mut url: Url, model: &str) -> Url {
    if !url.path().ends_with("/infer") {
        // Only addresses without a host refuse, and those were refused before.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["v2", "models", model, "infer"]);
        }
    }
    url
}

#[derive(Deserialize)]
struct Request {
    /// There even when it is `null`.
    #[serde(default, deserialize_with = "present")]
    id: Option<IgnoredAny>,
    inputs: Vec<IgnoredAny>,
}

#[derive(Deserialize)]
struct Response {
    #[serde(rename = "outputs")]
    _outputs: Vec<IgnoredAny>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IgnoredAny>, D::Error> {
    IgnoredAny::deserialize(deserializer).map(Some)
}

/// The body of a request: the input, with an `id`. What the tensors are is for the server to judge.
pub(super) fn request(job: &Job) -> Result<String, TaskError> {
    let input = job.input.get().trim();
    let Some(rest) = input.strip_prefix('{') else {
        return Err(bad_input("the input must be an Open Inference request object"));
    };
    let Request { id, inputs } = serde_json::from_str(input).map_err(|error| {
        let reason = clean(error.to_string().as_bytes(), 200);
        bad_input(format!("the input is not an Open Inference request: {reason}"))
    })?;
    if inputs.is_empty() {
        return Err(bad_input("the input is not an Open Inference request: inputs is empty"));
    }
    Ok(match id {
        Some(_) => input.to_owned(),
        // There is a member after it: `inputs`.
        None => format!("{{\"id\":\"{}\",{rest}", job.id.0),
    })
}

pub(super) fn response(text: &str) -> Answer {
    if !text.trim_start().starts_with('{') || serde_json::from_str::<Response>(text).is_err() {
        return Err(bad_answer("the model server did not answer with an Open Inference response"));
    }
    output(text)
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use taskyard_shared::TaskId;

    use super::*;

    fn job(input: &str) -> Job {
        Job::new(TaskId::default(), 1, RawValue::from_string(input.to_owned()).unwrap())
    }

    #[test]
    fn the_address_names_the_model_unless_it_already_does() {
        let cases = [
            ("http://host:8000", "http://host:8000/v2/models/digits.v1/infer"),
            ("http://host:8000/", "http://host:8000/v2/models/digits.v1/infer"),
            ("http://host/triton/?key=1", "http://host/triton/v2/models/digits.v1/infer?key=1"),
            ("http://host/v2/models/x/versions/2/infer", "http://host/v2/models/x/versions/2/infer"),
        ];
        for (url, expected) in cases {
            assert_eq!(endpoint(url.parse().unwrap(), "digits.v1").as_str(), expected);
        }
    }

    #[test]
    fn a_request_gets_the_tasks_id_and_keeps_its_own() {
        let job_without = job(r#" { "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.50]}]}"#);
        let body = request(&job_without).unwrap();
        let read: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(read["id"], job_without.id.0.to_string());
        assert!(body.contains("1.50"), "the input's own text: {body}");
        let own = r#"{"id": "mine", "inputs": [{}]}"#;
        assert_eq!(request(&job(own)).unwrap(), own);
    }

    #[test]
    fn what_is_no_request_is_a_bad_input() {
        for input in ["[]", "1", "{}", r#"{"inputs": {}}"#, r#"{"inputs": []}"#, r#"{"inputs":[1],"inputs":[2]}"#] {
            let refused = request(&job(input)).unwrap_err();
            assert_eq!((refused.code.as_str(), refused.retryable), ("bad_input", false), "{input}");
        }
    }
}
