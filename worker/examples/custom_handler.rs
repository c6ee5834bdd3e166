//! A model written in Rust: it counts the words of a text.
//!
//! It serves the model `words` beside the other workers of a yard, until it is told to stop:
//!
//! ```sh
//! export TASKYARD__BROKER__URL=amqp://guest:guest@127.0.0.1:5672 TASKYARD__STORE__URL=redis://127.0.0.1:6379
//! cargo run -p taskyard-worker --example custom_handler
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use taskyard_shared::Topology;
use taskyard_shared::load::ModelSpec;
use taskyard_shared::process::connect::{open_broker, open_store};
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::shutdown::Shutdown;
use taskyard_shared::process::{config, telemetry};
use taskyard_worker::handler::{codes, error};
use taskyard_worker::{Answer, Handler, Job, Worker};

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
async fn main() -> Result<(), Box<dyn Error>> {
    // Settings, connections and signals as `taskyard worker` has them; see its `roles.rs` for metrics and health too.
    let settings = config::load(None)?.settings;
    settings.require_shared("custom_handler")?;
    telemetry::init(&settings.log)?;
    let shutdown = Shutdown::on_signals()?;
    let broker = open_broker(&settings).await?;
    let store = open_store(&settings).await?;
    let topology = Topology::new(&settings.broker.namespace);
    let spec = ModelSpec {
        name: "words".to_owned(),
        version: "1".to_owned(),
        handler: "count-words".to_owned(),
        capabilities: vec!["text-statistics".to_owned()],
        slots: 2,
        timeout_ms: 1_000,
        max_attempts: 3,
        max_batch: 16,
        max_delay_ms: 2,
        memory_mb: 1,
        gpus: 0,
        expected_ms: Some(0.1),
        quality: None,
    };
    let worker = Worker::new(broker.clone(), store, topology, settings.worker, &Registry::new()?)?
        .model(spec, Arc::new(CountWords));
    worker.run(shutdown.drain, shutdown.now).await?;
    broker.close().await;
    Ok(())
}
