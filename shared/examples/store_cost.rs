//! What the embedded store costs: nanoseconds of processor time that a task takes of each call, in batches, and what its
//! record takes of memory.
//!
//! `cargo run --release -p taskyard-shared --example store_cost [-- TASKS [BATCH]]`. A round is as many tasks as are
//! said; records stay from one to the next, so that the store is the fuller the later it is. The best round is shown.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mimalloc::MiMalloc;
use serde_json::value::RawValue;
use taskyard_shared::store::embedded::EmbeddedStore;
use taskyard_shared::store::{
    Accept, Accepted, Beside, Claim, Claimed, Filter, Guard, Retention, Settle, Settled, Store,
};
use taskyard_shared::{Kind, Priority, State, TaskId, TaskResult, Timestamp, Timings};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const ROUNDS: usize = 5;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let tasks = arguments.next().map_or(Ok(100_000), |text| text.parse())?;
    let batch = arguments.next().map_or(Ok(100), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(measure(tasks, batch))
}

async fn measure(tasks: usize, batch: usize) -> Result<(), Failure> {
    let store = EmbeddedStore::in_memory(Retention::default());
    let before = resident_bytes();
    let mut best: Vec<(&str, f64)> = Vec::new();
    let mut note = |name: &'static str, took: Duration, tasks: usize| {
        let ns = took.as_secs_f64() * 1e9 / tasks as f64;
        match best.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = known.min(ns),
            None => best.push((name, ns)),
        }
    };
    for round in 0..ROUNDS {
        let ids: Vec<TaskId> = (0..tasks).map(|_| TaskId::new()).collect();
        let batches: Vec<&[TaskId]> = ids.chunks(batch).collect();
        // A short task on its first delivery: taken in, and settled.
        let calls = batches.iter().map(|ids| accepts(ids)).collect::<Result<Vec<_>, _>>()?;
        let begin = Instant::now();
        for call in calls {
            assert!(store.accept(call).await?.iter().all(|answer| matches!(answer, Accepted::New)));
        }
        note("accept", begin.elapsed(), tasks);
        let half = batches.len() / 2;
        let calls = batches[..half].iter().map(|ids| settlements(ids, true)).collect::<Result<Vec<_>, _>>()?;
        let count = calls.iter().map(Vec::len).sum();
        let begin = Instant::now();
        for call in calls {
            assert!(store.settle(call).await?.iter().all(|answer| matches!(answer, Settled::Done { .. })));
        }
        note("settle, a first attempt", begin.elapsed(), count);

        // A longer one: dispatched, claimed, and settled under its fence.
        let rest = &batches[half..];
        let count = rest.iter().map(|ids| ids.len()).sum();
        let calls: Vec<_> =
            rest.iter().map(|ids| ids.iter().map(|id| (*id, "intents@1".to_owned())).collect()).collect();
        let begin = Instant::now();
        for call in calls {
            store.dispatched(call).await?;
        }
        note("dispatched", begin.elapsed(), count);
        let calls: Vec<Vec<Claim>> = rest.iter().map(|ids| ids.iter().map(claim).collect()).collect();
        let begin = Instant::now();
        for call in calls {
            assert!(store.claim(call).await?.iter().all(|answer| matches!(answer, Claimed::Run { attempt: 1 })));
        }
        note("claim", begin.elapsed(), count);
        let calls = rest.iter().map(|ids| settlements(ids, false)).collect::<Result<Vec<_>, _>>()?;
        let begin = Instant::now();
        for call in calls {
            assert!(store.settle(call).await?.iter().all(|answer| matches!(answer, Settled::Done { .. })));
        }
        note("settle, after a claim", begin.elapsed(), count);

        let begin = Instant::now();
        for ids in &batches {
            assert!(store.get(ids.to_vec()).await?.iter().all(Option::is_some));
        }
        note("get", begin.elapsed(), tasks);
        let begin = Instant::now();
        let page = store.list(&Filter::default(), None, 1_000).await?;
        note("list, a page of 1,000", begin.elapsed(), page.tasks.len());
        if round == 0 {
            let bytes = resident_bytes().saturating_sub(before) / tasks as u64;
            println!("{tasks} finished records: about {bytes} bytes of memory each");
        }
    }
    for (name, ns) in best {
        println!("{name:26} {ns:8.0} ns");
    }
    Ok(())
}

fn result(id: TaskId, state: State) -> Result<TaskResult, serde_json::Error> {
    let now = Timestamp::now();
    let finished = state.is_terminal();
    let output = r#"{"label":"card_arrival","score":0.973}"#;
    Ok(TaskResult {
        id,
        state,
        kind: Kind::Prediction,
        model: Some("intents@1".to_owned()),
        tenant: "default".to_owned(),
        priority: Priority::default(),
        attempt: u32::from(finished),
        output: if finished { Some(RawValue::from_string(output.into())?) } else { None },
        error: None,
        timings: Timings {
            accepted: Some(now),
            dispatched: finished.then_some(now),
            started: finished.then_some(now),
            finished: finished.then_some(now),
            waited_ms: finished.then_some(1.5),
            ran_ms: finished.then_some(2.5),
        },
        worker: finished.then(|| "host-0123456789abcdef".to_owned()),
        metadata: Default::default(),
        choice: None,
        workflow: None,
        usage: None,
    })
}

fn accepts(ids: &[TaskId]) -> Result<Vec<Accept>, serde_json::Error> {
    let accept = |id: &TaskId| {
        let record = result(*id, State::Queued)?;
        Ok(Accept { id: *id, fingerprint: id.0.as_u128(), alias: None, record, follower: None })
    };
    ids.iter().map(accept).collect()
}

fn claim(id: &TaskId) -> Claim {
    Claim {
        id: *id,
        worker: "host-0123456789abcdef".to_owned(),
        nonce: id.0.as_u128(),
        lease_ms: 60_000,
        max_attempts: 3,
        attempts: 0,
        beside: Beside::Others,
    }
}

fn settlements(ids: &[TaskId], first: bool) -> Result<Vec<Settle>, serde_json::Error> {
    let settle = |id: &TaskId| {
        let nonce = id.0.as_u128();
        let guard = if first { Guard::First { nonce } } else { Guard::Fence { attempt: 1, nonce } };
        Ok(Settle { guard, result: Arc::new(result(*id, State::Succeeded)?) })
    };
    ids.iter().map(settle).collect()
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kb| kb << 10)
}
