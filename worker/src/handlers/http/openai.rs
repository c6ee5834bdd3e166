//! What OpenAI's API has become a standard of: chat, completions and embeddings, as vLLM, llama.cpp, Ollama and others serve them.
//!
//! The input is the request without its model, which the settings name: with `messages` it goes to `/chat/completions`, with
//! `prompt` to `/completions`, with `input` to `/embeddings`. The output is the response object, with its `usage`. With
//! `"stream": true` the server streams, and what comes is put together to the response that it would have given otherwise.
//!
//! What the server says that it used becomes the attempt's usage, with its cost where the settings name prices.

use reqwest::Url;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use taskyard_shared::process::settings::HttpSettings;
use taskyard_shared::{TaskError, Usage};

use super::{bad_answer, bad_input};
use crate::handler::Job;
use crate::handlers::answer::{clean, written};

/// Where a request goes, by what it must have.
const CALLS: [(&str, &str); 3] = [("messages", "chat/completions"), ("prompt", "completions"), ("input", "embeddings")];

/// The server's address, up to the version.
pub(super) fn endpoint(mut url: Url) -> Url {
    if !url.path().trim_end_matches('/').ends_with("/v1") {
        // Only addresses without a host refuse, and those were refused before.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("v1");
        }
    }
    url
}

pub(super) struct Request {
    pub url: Url,
    pub body: String,
    pub streams: bool,
}

/// # Errors
/// When the input is none of the requests.
pub(super) fn request(url: &Url, model: &str, job: &Job) -> Result<Request, TaskError> {
    let mut body: Map<String, Value> = serde_json::from_str(job.input.get())
        .map_err(|_| bad_input("the input must be an object: a request with messages, prompt or input"))?;
    let mut calls = CALLS.iter().filter(|(member, _)| body.contains_key(*member));
    let (Some((_, path)), None) = (calls.next(), calls.next()) else {
        return Err(bad_input("the input must have one of messages, prompt and input"));
    };
    match body.insert("model".to_owned(), model.into()) {
        None => {}
        Some(asked) if asked == model => {}
        Some(_) => {
            return Err(bad_input(format!("the model is {model}, as the settings say: leave it out of the input")));
        }
    }
    let streams = match body.get("stream") {
        None | Some(Value::Bool(false) | Value::Null) => false,
        Some(Value::Bool(true)) if *path != "embeddings" => true,
        Some(_) => return Err(bad_input("stream must be true or false, and embeddings are not streamed")),
    };
    if streams {
        // Otherwise nobody says what it cost.
        body.insert("stream_options".to_owned(), json!({"include_usage": true}));
    }
    let mut url = url.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path.split('/'));
    }
    Ok(Request { url, body: Value::Object(body).to_string(), streams })
}

/// What 1,000 tokens cost.
#[derive(Clone, Copy, Default)]
pub(super) struct Prices {
    prompt: Option<f64>,
    completion: Option<f64>,
}

impl Prices {
    pub fn new(settings: &HttpSettings) -> Self {
        Self { prompt: settings.prompt_price_per_1000, completion: settings.completion_price_per_1000 }
    }

    pub fn are_given(self) -> bool {
        self.prompt.is_some() || self.completion.is_some()
    }

    /// What a response says that it took. Nothing when it says nothing: servers may leave it out.
    fn usage(self, response: &Map<String, Value>) -> Option<Usage> {
        let usage = response.get("usage")?.as_object()?;
        let tokens = |name: &str| usage.get(name).and_then(Value::as_u64);
        let (prompt, completion, total) =
            (tokens("prompt_tokens"), tokens("completion_tokens"), tokens("total_tokens"));
        let completion_tokens = completion.unwrap_or_else(|| match (total, prompt) {
            (Some(total), Some(prompt)) => total.saturating_sub(prompt),
            _ => 0,
        });
        let prompt_tokens =
            prompt.or(total.map(|total| total.saturating_sub(completion_tokens))).or(completion.and(Some(0)))?;
        let price = |tokens: u64, price: Option<f64>| tokens as f64 * price.unwrap_or(0.0);
        let cost = (price(prompt_tokens, self.prompt) + price(completion_tokens, self.completion)) / 1000.0;
        Some(Usage { prompt_tokens, completion_tokens, cost: self.are_given().then_some(cost) })
    }
}

/// An output, and what it took.
pub(super) type Completed = (Box<RawValue>, Option<Usage>);

/// # Errors
/// When it is not what such a server answers.
pub(super) fn response(text: &str, prices: Prices) -> Result<Completed, TaskError> {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(body)) if body.contains_key("choices") || body.contains_key("data") => {
            Ok((crate::handlers::answer::output(text)?, prices.usage(&body)))
        }
        _ => Err(bad_answer("the model server did not answer with choices or data")),
    }
}

/// A response that comes in pieces, as server-sent events.
#[derive(Default)]
pub(super) struct Streamed {
    /// What is left of a line that is not whole yet.
    rest: Vec<u8>,
    /// The response so far.
    whole: Map<String, Value>,
    choices: Vec<Map<String, Value>>,
    is_done: bool,
}

impl Streamed {
    /// Takes bytes in, and answers the chunks that are whole now.
    ///
    /// # Errors
    /// When they are no such chunks, or the server says that it failed.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Vec<Value>, TaskError> {
        self.rest.extend_from_slice(bytes);
        let mut chunks = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            let data = data.trim_ascii();
            if data == b"[DONE]" {
                self.is_done = true;
                continue;
            }
            let chunk: Value = serde_json::from_slice(data)
                .map_err(|_| bad_answer("the model server streamed something that is no JSON"))?;
            if let Some(failure) = chunk.get("error") {
                return Err(bad_answer(format!(
                    "the model server broke off: {}",
                    clean(failure.to_string().as_bytes(), 300)
                )));
            }
            self.add(&chunk);
            chunks.push(chunk);
        }
        Ok(chunks)
    }

    fn add(&mut self, chunk: &Value) {
        for (name, value) in chunk.as_object().into_iter().flatten() {
            if name != "choices" && !value.is_null() {
                self.whole.insert(name.clone(), value.clone());
            }
        }
        for choice in chunk.get("choices").and_then(Value::as_array).into_iter().flatten() {
            let index = choice.get("index").and_then(Value::as_u64).unwrap_or(0) as usize;
            // Servers give as many as were asked for, which are few.
            if index >= 128 {
                continue;
            }
            while self.choices.len() <= index {
                self.choices.push(Map::new());
            }
            let Some(whole) = self.choices.get_mut(index) else { continue };
            for (name, value) in choice.as_object().into_iter().flatten() {
                match (name.as_str(), value) {
                    (_, Value::Null) => {}
                    ("delta", Value::Object(delta)) => {
                        let message = whole.entry("message").or_insert_with(|| Value::Object(Map::new()));
                        if let Value::Object(message) = message {
                            delta.iter().for_each(|(name, value)| grow(message, name, value));
                        }
                    }
                    ("text", _) => grow(whole, name, value),
                    _ => {
                        whole.insert(name.clone(), value.clone());
                    }
                }
            }
        }
    }

    /// The response, put together.
    ///
    /// # Errors
    /// When it ended before its end.
    pub fn finish(mut self, prices: Prices) -> Result<Completed, TaskError> {
        if !self.is_done {
            return Err(crate::handler::error(
                crate::handler::codes::CRASHED,
                "the model server's stream ended before its end",
                true,
            ));
        }
        if let Some(Value::String(object)) = self.whole.get_mut("object") {
            *object = object.replace(".chunk", "");
        }
        let choices = self.choices.into_iter().map(Value::Object).collect();
        self.whole.insert("choices".to_owned(), Value::Array(choices));
        Ok((written(&self.whole)?, prices.usage(&self.whole)))
    }
}

/// Texts follow one another; arrays of calls to tools grow by their index; anything else is what was said last.
fn grow(into: &mut Map<String, Value>, name: &str, value: &Value) {
    match (into.get_mut(name), value) {
        (_, Value::Null) => {}
        (Some(Value::String(text)), Value::String(more)) if name != "role" && name != "id" && name != "type" => {
            text.push_str(more);
        }
        (Some(Value::Object(known)), Value::Object(more)) => {
            more.iter().for_each(|(name, value)| grow(known, name, value))
        }
        (Some(Value::Array(known)), Value::Array(more)) => {
            for piece in more {
                let index = piece.get("index").and_then(Value::as_u64);
                let there = known
                    .iter_mut()
                    .find(|other| index.is_some() && other.get("index").and_then(Value::as_u64) == index);
                match (there, piece) {
                    (Some(Value::Object(there)), Value::Object(piece)) => {
                        piece.iter().for_each(|(name, value)| grow(there, name, value));
                    }
                    _ => known.push(piece.clone()),
                }
            }
        }
        _ => {
            into.insert(name.to_owned(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use taskyard_shared::TaskId;

    use super::*;

    fn ask(url: &str, input: Value) -> Result<Request, TaskError> {
        let url = endpoint(Url::parse(url).unwrap());
        let input = RawValue::from_string(input.to_string()).unwrap();
        request(&url, "llama", &Job::new(TaskId::new(), 1, input))
    }

    #[test]
    fn requests_go_where_what_they_have_goes() {
        for (url, input, goes) in [
            ("http://h", json!({"messages": []}), "http://h/v1/chat/completions"),
            ("http://h/v1/", json!({"prompt": "a"}), "http://h/v1/completions"),
            ("http://h/openai/v1", json!({"input": "a", "model": "llama"}), "http://h/openai/v1/embeddings"),
            ("http://h/base/?key=1", json!({"input": ["a"], "stream": false}), "http://h/base/v1/embeddings?key=1"),
        ] {
            let request = ask(url, input).unwrap();
            assert_eq!(request.url.as_str(), goes);
            assert!(request.body.contains(r#""model":"llama""#) && !request.streams);
        }
        let streamed = ask("http://h", json!({"messages": [], "stream": true})).unwrap();
        assert!(streamed.streams && streamed.body.contains(r#""include_usage":true"#));
        for input in [
            json!([]),
            json!({}),
            json!({"messages": [], "prompt": "a"}),
            json!({"prompt": "a", "model": "other"}),
            json!({"input": "a", "stream": true}),
            json!({"prompt": "a", "stream": 1}),
        ] {
            assert_eq!(ask("http://h", input).map(|request| request.body).unwrap_err().code, "bad_input");
        }
    }

    #[test]
    fn pieces_come_together_to_what_was_not_streamed() {
        let stream = concat!(
            ": comment\n\n",
            r#"data: {"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":"Hel"},"finish_reason":null}]}"#,
            "\n\n",
            r#"data: {"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"lo é"}},{"index":1,"delta":{"content":"Hi"}}]}"#,
            "\r\n\r\n",
            r#"data:{"id":"c1","choices":[{"index":1,"delta":{"tool_calls":[{"index":0,"id":"t","function":{"name":"f","arguments":"{\"a\""}}]}}]}"#,
            "\n\n",
            r#"data: {"id":"c1","choices":[{"index":1,"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]},"finish_reason":"stop"},{"index":0,"delta":{},"finish_reason":"length"}]}"#,
            "\n\n",
            r#"data: {"id":"c1","choices":[],"usage":{"total_tokens":9}}"#,
            "\n\ndata: [DONE]\n\n",
        );
        // In every way it may be cut.
        for size in [1, 7, 64, 10_000] {
            let mut streamed = Streamed::default();
            let chunks: usize = stream.as_bytes().chunks(size).map(|bytes| streamed.take(bytes).unwrap().len()).sum();
            assert_eq!(chunks, 5);
            let (output, usage) = streamed.finish(Prices { prompt: Some(1000.0), completion: None }).unwrap();
            assert_eq!(usage, Some(Usage { prompt_tokens: 9, completion_tokens: 0, cost: Some(9.0) }));
            let output: Value = serde_json::from_str(output.get()).unwrap();
            let call = json!({"index": 0, "id": "t", "function": {"name": "f", "arguments": "{\"a\":1}"}});
            let expected = json!({"id": "c1", "object": "chat.completion", "usage": {"total_tokens": 9}, "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "Hello é"}, "finish_reason": "length"},
                {"index": 1, "message": {"content": "Hi", "tool_calls": [call]}, "finish_reason": "stop"},
            ]});
            assert_eq!(output, expected);
        }
    }

    #[test]
    fn a_stream_that_breaks_off_is_no_answer() {
        let mut cut = Streamed::default();
        cut.take(b"data: {\"choices\":[{\"index\":0,\"text\":\"a\"}]}\n\n").unwrap();
        assert_eq!(cut.finish(Prices::default()).unwrap_err().code, "crashed");
        assert_eq!(Streamed::default().take(b"data: nonsense\n").unwrap_err().code, "bad_answer");
        let failed = Streamed::default().take(b"data: {\"error\":{\"message\":\"out of memory\"}}\n").unwrap_err();
        assert!(failed.message.contains("out of memory"));
        let response = |text| response(text, Prices::default());
        assert!(response("{\"choices\":[]}").is_ok() && response("{\"data\":[]}").is_ok());
        assert!(response("{}").is_err() && response("[]").is_err() && response("<html>").is_err());
    }

    #[test]
    fn what_was_used_is_counted_in_every_form_and_priced() {
        let prices = Prices { prompt: Some(0.5), completion: Some(2.0) };
        let usage = |usage: Value| {
            let text = json!({"choices": [], "usage": usage}).to_string();
            response(&text, prices).unwrap().1.map(|usage| (usage.prompt_tokens, usage.completion_tokens, usage.cost))
        };
        let chat = json!({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150});
        assert_eq!(usage(chat), Some((100, 50, Some(0.15))));
        // Embeddings make no tokens.
        assert_eq!(usage(json!({"prompt_tokens": 8, "total_tokens": 8})), Some((8, 0, Some(0.004))));
        assert_eq!(usage(json!({"total_tokens": 8})), Some((8, 0, Some(0.004))));
        assert_eq!(usage(json!({"completion_tokens": 3})), Some((0, 3, Some(0.006))));
        for none in [json!(null), json!({}), json!("many"), json!({"prompt_tokens": -1}), json!({"prompt_tokens": 1.5})]
        {
            assert_eq!(usage(none.clone()), None, "{none}");
        }
        let free = response("{\"choices\":[],\"usage\":{\"prompt_tokens\":1}}", Prices::default()).unwrap().1;
        assert_eq!(free.and_then(|usage| usage.cost), None);
    }
}
