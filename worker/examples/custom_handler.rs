//! A model written in Rust: it counts the words of a text.
//!
//! `cargo run -p taskyard-worker --example custom_handler`

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use taskyard_shared::TaskId;
use taskyard_worker::handler::{codes, error};
use taskyard_worker::{Answer, Handler, Job};

struct CountWords;

#[derive(Deserialize)]
struct Input {
    text: String,
}

#[derive(Serialize)]
struct Output {
    words: usize,
    most_frequent: Option<String>,
}

#[async_trait]
impl Handler for CountWords {
    /// Each task is answered in its place; a bad input fails its own task and no other.
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        // Work that takes more than a millisecond belongs in `tokio::task::spawn_blocking`, as other tasks run on this
        // thread too.
        batch.iter().map(|job| count(&job.input)).collect()
    }
}

fn count(input: &RawValue) -> Answer {
    let input: Input = serde_json::from_str(input.get())
        .map_err(|failure| error(codes::BAD_INPUT, format!("the input must be {{\"text\": …}}: {failure}"), false))?;
    let mut counts = BTreeMap::<String, usize>::new();
    for word in input.text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
    let words = counts.values().sum();
    let most_frequent = counts.into_iter().max_by_key(|(_, count)| *count).map(|(word, _)| word);
    to_raw_value(&Output { words, most_frequent })
        .map_err(|failure| error(codes::HANDLER_FAILED, failure.to_string(), false))
}

#[tokio::main]
async fn main() -> Result<(), serde_json::Error> {
    let inputs = [r#"{"text": "The yard, the queue and the worker."}"#, r#"{"words": 7}"#];
    let batch = inputs
        .iter()
        .map(|input| Ok(Job { id: TaskId::new(), attempt: 1, input: RawValue::from_string((*input).to_owned())? }))
        .collect::<Result<Vec<_>, serde_json::Error>>()?;
    for (input, answer) in inputs.iter().zip(CountWords.execute(batch).await) {
        match answer {
            Ok(output) => println!("{input}\n  → {output}"),
            Err(error) => println!("{input}\n  → {}: {}", error.code, error.message),
        }
    }
    Ok(())
}
