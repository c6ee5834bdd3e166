//! What the wire costs: nanoseconds of one operation on one task, beside what copying the same bytes and reading or
//! writing them as any JSON take.
//!
//! `cargo run --release -p taskyard-shared --example codec_cost [-- WORD]`. WORD restricts it to operations whose names
//! hold it. The best of several rounds is shown: what else runs on the machine only ever makes it slower.

use std::hint::black_box;
use std::time::{Duration, Instant};

use mimalloc::MiMalloc;
use serde_json::value::RawValue;
use taskyard_shared::load::Completion;
use taskyard_shared::{
    Carried, Correlation, Envelope, Reply, State, TaskId, TaskResult, Timestamp, Timings, Topology, decode_tasks,
    messages, wire,
};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const ROUND: Duration = Duration::from_millis(40);
const ROUNDS: usize = 9;
const BATCH: usize = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let table = Table { word: std::env::args().nth(1).unwrap_or_default() };

    let now = Timestamp::now();
    let body = task_json(256);
    let small = br#"{"model":"echo","input":{"n":1}}"#.to_vec();
    let batch: Vec<u8> = format!("[{}]", vec![std::str::from_utf8(&body)?; BATCH].join(",")).into_bytes();
    for (name, bytes, count) in [("task", &body, 1), ("small task", &small, 1), ("array of 100 tasks", &batch, BATCH)] {
        table.baselines(name, bytes, count);
        table.row(&format!("{name}: decode_tasks"), bytes.len(), count, &mut || {
            black_box(decode_tasks(black_box(bytes)).is_ok());
        });
    }

    let carried = Carried {
        message_id: Some(TaskId::new().0.to_string()),
        reply: Some(Reply {
            to: "replies.client-7".into(),
            correlation_id: Some(Correlation::Id(TaskId::new().0)),
            array: true,
        }),
        ..Carried::default()
    };
    let task = decode_tasks(&body)?.remove(0)?;
    table.row("clone of a task", body.len(), 1, &mut || drop(black_box(task.clone())));
    table.row("clone of a task and Envelope::new", body.len(), 1, &mut || {
        drop(black_box(Envelope::new(black_box(task.clone()), &carried, now)));
    });
    let mut envelope = Envelope::new(task.clone(), &carried, now)?;
    (envelope.chosen, envelope.dispatched) = (Some("sentiment".into()), Some(now));
    let text = serde_json::to_vec(&envelope)?;
    table.baselines("envelope", &text, 1);
    table.row("envelope: write", text.len(), 1, &mut || drop(black_box(wire::write(black_box(&envelope)))));
    table.row("envelope: read", text.len(), 1, &mut || {
        drop(black_box(wire::read::<Envelope>(black_box(&text))));
    });
    table.row("envelope: fingerprint", envelope.input.get().len(), 1, &mut || {
        black_box(envelope.fingerprint());
    });
    table.row("envelope: result(Queued)", 0, 1, &mut || drop(black_box(envelope.result(State::Queued))));
    let topology = Topology::new("taskyard");
    table.row("messages::ready", text.len(), 1, &mut || {
        drop(black_box(messages::ready(&topology, "sentiment", &envelope)));
    });
    let outgoing = envelope.to_task();
    let text = serde_json::to_vec(&outgoing)?;
    table.row("a client's task: write", text.len(), 1, &mut || drop(black_box(wire::write(black_box(&outgoing)))));

    let result = result(&envelope)?;
    let text = serde_json::to_vec(&result)?;
    table.baselines("result", &text, 1);
    table.row("result: write", text.len(), 1, &mut || drop(black_box(wire::write(black_box(&result)))));
    table.row("result: read", text.len(), 1, &mut || {
        drop(black_box(wire::read::<TaskResult>(black_box(&text))));
    });
    table.row("result: clone", 0, 1, &mut || drop(black_box(result.clone())));
    if let Some(reply) = &envelope.reply {
        table.row("messages::result", text.len(), 1, &mut || drop(black_box(messages::result(reply, &result))));
    }
    let results = vec![&result; BATCH];
    table.row("messages::results of 100", text.len() * BATCH, BATCH, &mut || {
        drop(black_box(messages::results("replies", &results)));
    });

    let completions: Vec<_> = (0..BATCH).map(|_| completion(&envelope)).collect();
    let all: Vec<_> = completions.iter().collect();
    let text = serde_json::to_vec(&completions)?;
    table.baselines("completions, 100", &text, BATCH);
    table.row("completions, 100: write", text.len(), BATCH, &mut || {
        drop(black_box(wire::write_all(black_box(&all))));
    });
    table.row("completions, 100: read", text.len(), BATCH, &mut || {
        drop(black_box(wire::read_all::<Completion>(black_box(&text))));
    });

    let text = serde_json::to_vec(&now)?;
    table.row("instant: write", text.len(), 1, &mut || drop(black_box(serde_json::to_vec(black_box(&now)))));
    table.row("instant: read", text.len(), 1, &mut || {
        drop(black_box(serde_json::from_slice::<Timestamp>(black_box(&text))));
    });
    table.row("instant: now", 0, 1, &mut || {
        black_box(Timestamp::now());
    });
    table.row("id: new", 0, 1, &mut || {
        black_box(TaskId::new());
    });
    Ok(())
}

struct Table {
    /// Only operations whose names hold it.
    word: String,
}

impl Table {
    /// Measures an operation on `count` messages of `bytes` altogether.
    fn row(&self, name: &str, bytes: usize, count: usize, operation: &mut dyn FnMut()) {
        if name.contains(&self.word) {
            println!("{name:42} {:7} bytes {:9.1} ns", bytes / count, best(operation) / count as f64);
        }
    }

    /// What the same bytes cost anybody.
    fn baselines(&self, name: &str, bytes: &[u8], count: usize) {
        let all = bytes.len();
        self.row(&format!("{name}: copied"), all, count, &mut || drop(black_box(black_box(bytes).to_vec())));
        self.row(&format!("{name}: checked as JSON"), all, count, &mut || {
            black_box(serde_json::from_slice::<&RawValue>(black_box(bytes)).is_ok());
        });
        self.row(&format!("{name}: read as any JSON"), all, count, &mut || {
            drop(black_box(serde_json::from_slice::<serde_json::Value>(black_box(bytes))));
        });
        if let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes) {
            self.row(&format!("{name}: written as any JSON"), all, count, &mut || {
                drop(black_box(serde_json::to_vec(black_box(&value))));
            });
        }
    }
}

/// Nanoseconds of one operation.
fn best(operation: &mut dyn FnMut()) -> f64 {
    let (mut times, mut count) = (1_u32, 0);
    let mut best = f64::INFINITY;
    while count < ROUNDS {
        let begin = Instant::now();
        for _ in 0..times {
            operation();
        }
        let took = begin.elapsed();
        if took < ROUND / 2 {
            times *= 2;
            continue;
        }
        best = best.min(took.as_secs_f64() * 1e9 / f64::from(times));
        count += 1;
    }
    best
}

/// A task whose input is a text of about so many bytes.
fn task_json(bytes: usize) -> Vec<u8> {
    let text = "The yard takes work as it comes. ".repeat(bytes / 33 + 1);
    format!(
        r#"{{"id":"{}","model":"sentiment","input":{{"text":"{}"}},"priority":5,"tenant":"acme","deadline_ms":30000}}"#,
        TaskId::new().0,
        &text[..bytes]
    )
    .into_bytes()
}

fn result(envelope: &Envelope) -> Result<TaskResult, Box<dyn std::error::Error>> {
    let now = Timestamp::now();
    let mut result = envelope.result(State::Succeeded);
    result.model = Some("sentiment@1".to_owned());
    result.worker = Some("host-0123456789abcdef".to_owned());
    result.attempt = 1;
    result.output = Some(RawValue::from_string(r#"{"label":"card_arrival","score":0.973}"#.to_owned())?);
    result.timings = Timings {
        accepted: Some(envelope.accepted),
        dispatched: Some(now),
        started: Some(now),
        finished: Some(now),
        waited_ms: Some(12.345),
        ran_ms: Some(3.127),
    };
    Ok(result)
}

fn completion(envelope: &Envelope) -> Completion {
    Completion {
        id: envelope.id,
        model: "sentiment".to_owned(),
        state: State::Succeeded,
        ran_ms: 3.127,
        idle_ms: 0.25,
        worker: "host-0123456789abcdef".to_owned(),
    }
}
