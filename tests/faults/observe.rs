//! Reads the reply queue, as the services do that published: writes down what it is told, then acks.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::sync::Arc;

use serde::Deserialize;
use taskyard_shared::TaskResult;
use taskyard_shared::broker::{Broker, Delivery, Verdict};
use uuid::Uuid;

use crate::ledger::{DEAD, Files, Recorded, TOLD, Told, now_ms};
use crate::load::{AGAIN_AFTER, Books};

/// The output of the executor.
#[derive(Deserialize)]
struct Output {
    run: String,
}

/// Whose effect a result is.
fn run_of(result: &TaskResult) -> Option<String> {
    let output = result.output.as_ref()?;
    Some(serde_json::from_str::<Output>(output.get()).unwrap().run)
}

fn code_of(result: &TaskResult) -> Option<String> {
    result.error.as_ref().map(|error| error.code.clone())
}

pub fn told(result: &TaskResult) -> Told {
    let mut digest = DefaultHasher::new();
    digest.write(serde_json::to_string(result).unwrap().as_bytes());
    Told {
        at: now_ms(),
        id: result.id.0,
        state: result.state,
        attempt: result.attempt,
        run: run_of(result),
        code: code_of(result),
        digest: digest.finish(),
    }
}

pub fn recorded(id: Uuid, record: Option<&TaskResult>) -> Recorded {
    Recorded {
        id,
        state: record.map(|record| record.state),
        attempt: record.map_or(0, |record| record.attempt),
        run: record.and_then(run_of),
        code: record.and_then(code_of),
    }
}

fn results(body: &[u8]) -> Vec<TaskResult> {
    match body.first() {
        Some(b'[') => serde_json::from_slice(body).unwrap(),
        _ => vec![serde_json::from_slice(body).unwrap()],
    }
}

/// Until it is stopped.
pub async fn observe(broker: Arc<dyn Broker>, replies: String, books: Books) {
    let each = |deliveries: &[Delivery]| {
        let lines: Vec<Told> =
            deliveries.iter().flat_map(|delivery| results(&delivery.body)).map(|result| told(&result)).collect();
        books.files.write(TOLD, &lines);
        books.known.lock().unwrap().told.extend(lines.iter().map(|line| line.id));
    };
    read(broker, &replies, each).await;
}

/// Writes down whose dead letters there are, until it is stopped.
pub async fn bury(broker: Arc<dyn Broker>, dead: String, files: Arc<Files>) {
    let each = |deliveries: &[Delivery]| {
        let id = |delivery: &Delivery| -> Uuid {
            delivery.properties.message_id.as_deref().unwrap_or_default().parse().unwrap()
        };
        files.write(DEAD, &deliveries.iter().map(id).collect::<Vec<_>>());
    };
    read(broker, &dead, each).await;
}

pub async fn read(broker: Arc<dyn Broker>, queue: &str, each: impl Fn(&[Delivery])) {
    loop {
        if let Ok(mut consumer) = broker.consume(queue, 500).await {
            let acker = consumer.acker();
            while let Ok(deliveries) = consumer.next_batch(500).await {
                each(&deliveries);
                acker.settle(deliveries.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
            }
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}
