//! How fast the embedded broker and store are on this machine, in memory and on disk.
//!
//! `cargo run --release -p taskyard-shared --example embedded_throughput [-- DIR [SECONDS]]`. DIR is where the durable
//! ones are kept while they are measured (a temporary folder by default).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mimalloc::MiMalloc;
use serde_json::value::RawValue;
use taskyard_shared::broker::embedded::EmbeddedBroker;
use taskyard_shared::broker::{Broker, Message, QueueSpec, Verdict};
use taskyard_shared::store::embedded::EmbeddedStore;
use taskyard_shared::store::{Accept, Accepted, Beside, Claim, Claimed, Guard, Retention, Settle, Settled, Store};
use taskyard_shared::{Kind, Priority, State, TaskId, TaskResult, Timestamp, Timings};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const BATCH: usize = 100;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = match arguments.next() {
        Some(dir) => dir.into(),
        None => std::env::temp_dir().join(format!("taskyard-throughput-{}", std::process::id())),
    };
    let time = Duration::from_secs(arguments.next().map_or(Ok(5), |text| text.parse())?);
    println!("batches of {BATCH}, {} s each, {} CPUs", time.as_secs(), std::thread::available_parallelism()?);

    for callers in [1, 4] {
        broker("broker in memory", Arc::new(EmbeddedBroker::in_memory()), callers, time).await?;
    }
    for callers in [1, 4, 16] {
        let dir = fresh(&dir)?;
        broker("broker on disk", Arc::new(EmbeddedBroker::open(&dir)?), callers, time).await?;
    }
    for callers in [1, 4] {
        for short in [true, false] {
            let in_memory = EmbeddedStore::in_memory(Retention::default());
            store("store in memory", Arc::new(in_memory), short, callers, time).await?;
        }
    }
    for callers in [1, 4, 16] {
        for short in [true, false] {
            let dir = fresh(&dir)?;
            let on_disk = EmbeddedStore::open(&dir, Retention::default())?;
            store("store on disk", Arc::new(on_disk), short, callers, time).await?;
        }
    }
    million(&fresh(&dir)?).await?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn fresh(dir: &Path) -> std::io::Result<std::path::PathBuf> {
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    Ok(dir.to_owned())
}

fn message(body: &Bytes) -> Message {
    let mut message = Message::to_queue("work", body.clone());
    message.properties.message_id = Some("0198c0de-0000-7000-8000-000000000001".to_owned());
    message.properties.correlation_id = Some("0198c0de-0000-7000-8000-000000000002".to_owned());
    message.properties.reply_to = Some("taskyard.replies.somebody".to_owned());
    message
}

/// `callers` publish, two consume and ack. The line is kept short, so that what is measured is the way through.
async fn broker(
    name: &str,
    broker: Arc<EmbeddedBroker>,
    callers: usize,
    time: Duration,
) -> Result<(), Box<dyn std::error::Error>> {
    broker.declare(&[QueueSpec::durable("work")]).await?;
    let (stop, published, consumed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let shared = Arc::new((stop, published, consumed));
    let body = Bytes::from(vec![b'x'; 400]);
    let (begin, cpu) = (Instant::now(), cpu_ms());
    let publishers: Vec<_> = (0..callers)
        .map(|_| {
            let (broker, shared, body) = (broker.clone(), shared.clone(), body.clone());
            tokio::spawn(async move {
                while !shared.0.load(Ordering::Relaxed) {
                    if shared.1.load(Ordering::Relaxed) > shared.2.load(Ordering::Relaxed) + 50_000 {
                        tokio::task::yield_now().await;
                        continue;
                    }
                    let answers = broker.publish((0..BATCH).map(|_| message(&body)).collect()).await;
                    assert!(answers.iter().all(Result::is_ok));
                    shared.1.fetch_add(BATCH as u64, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let consumers: Vec<_> = (0..2)
        .map(|_| {
            let (broker, shared) = (broker.clone(), shared.clone());
            tokio::spawn(async move {
                let Ok(mut consumer) = broker.consume("work", 1_000).await else { return };
                let acker = consumer.acker();
                while let Ok(batch) = consumer.next_batch(BATCH).await {
                    let count = batch.len() as u64;
                    acker.settle(batch.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
                    shared.2.fetch_add(count, Ordering::Relaxed);
                }
            })
        })
        .collect();
    tokio::time::sleep(time).await;
    shared.0.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.await?;
    }
    let took = begin.elapsed();
    let count = shared.2.load(Ordering::Relaxed);
    println!(
        "{name:18} {callers:3} publishers: {:8.0} messages/s published, consumed, acked; {:5.2} µs of CPU each{}",
        count as f64 / took.as_secs_f64(),
        (cpu_ms() - cpu) * 1000.0 / count as f64,
        per_commit(count, broker.commits()),
    );
    broker.close().await;
    for consumer in consumers {
        consumer.await?;
    }
    Ok(())
}

fn per_commit(count: u64, commits: u64) -> String {
    count.checked_div(commits).map_or(String::new(), |each| format!(", {each} in a commit"))
}

/// What the process has used so far, in milliseconds: unlike the rate, it hardly depends on what else runs.
fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // User and system time, in hundredths of a second.
    fields.iter().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() * 10.0
}

fn result(id: TaskId, state: State) -> Result<TaskResult, serde_json::Error> {
    let now = Timestamp::now();
    let finished = state.is_terminal();
    Ok(TaskResult {
        id,
        state,
        kind: Kind::Prediction,
        model: Some("intents@1".to_owned()),
        tenant: "default".to_owned(),
        priority: Priority::default(),
        attempt: u32::from(finished),
        output: if finished {
            Some(RawValue::from_string(r#"{"label":"card_arrival","score":0.973}"#.into())?)
        } else {
            None
        },
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
        metadata: [("source".to_owned(), "throughput".to_owned())].into(),
        choice: None,
        workflow: None,
        usage: None,
    })
}

/// Accepts and settles a batch of tasks; those that are not short are dispatched and claimed in between.
async fn life(store: &EmbeddedStore, short: bool) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let ids: Vec<_> = (0..BATCH).map(|_| TaskId::new()).collect();
    let mut accepts = Vec::with_capacity(BATCH);
    for id in &ids {
        let fingerprint = id.0.as_u128();
        accepts.push(Accept { id: *id, fingerprint, alias: None, record: result(*id, State::Queued)?, follower: None });
    }
    let accepted = store.accept(accepts).await?;
    assert!(accepted.iter().all(|answer| matches!(answer, Accepted::New)));
    if !short {
        store.dispatched(ids.iter().map(|id| (*id, "intents@1".to_owned())).collect()).await?;
        let claim = |id: &TaskId| Claim {
            id: *id,
            worker: "host-0123456789abcdef".to_owned(),
            nonce: id.0.as_u128(),
            lease_ms: 10_000,
            max_attempts: 3,
            attempts: 0,
            beside: Beside::Others,
        };
        let claimed = store.claim(ids.iter().map(claim).collect()).await?;
        assert!(claimed.iter().all(|answer| matches!(answer, Claimed::Run { attempt: 1 })));
    }
    let mut settlements = Vec::with_capacity(BATCH);
    for id in &ids {
        let nonce = id.0.as_u128();
        let guard = if short { Guard::First { nonce } } else { Guard::Fence { attempt: 1, nonce } };
        settlements.push(Settle::new(guard, result(*id, State::Succeeded)?));
    }
    let settled = store.settle(settlements).await?;
    assert!(settled.iter().all(|answer| matches!(answer, Settled::Done { .. })));
    Ok(())
}

async fn store(
    name: &str,
    store: Arc<EmbeddedStore>,
    short: bool,
    callers: usize,
    time: Duration,
) -> Result<(), Box<dyn std::error::Error>> {
    let (begin, cpu) = (Instant::now(), cpu_ms());
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let store = store.clone();
        running.spawn(async move {
            let mut count = 0_u64;
            while begin.elapsed() < time {
                life(&store, short).await?;
                count += BATCH as u64;
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(count)
        });
    }
    let mut count = 0;
    while let Some(counted) = running.join_next().await {
        count += counted?.map_err(|error| error.to_string())?;
    }
    println!(
        "{name:18} {callers:3} callers:    {:8.0} tasks/s accepted, {}settled; {:5.2} µs of CPU each{}",
        count as f64 / begin.elapsed().as_secs_f64(),
        if short { "" } else { "dispatched, claimed, " },
        (cpu_ms() - cpu) * 1000.0 / count as f64,
        per_commit(count, store.commits()),
    );
    Ok(())
}

/// What a million finished records cost.
async fn million(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let before = resident_mb();
    let store = EmbeddedStore::open(dir, Retention::default())?;
    let mut running = tokio::task::JoinSet::new();
    let store = Arc::new(store);
    for _ in 0..16 {
        let store = store.clone();
        running.spawn(async move {
            for _ in 0..1_000_000 / 16 / BATCH {
                life(&store, false).await?;
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        });
    }
    while let Some(done) = running.join_next().await {
        done?.map_err(|error| error.to_string())?;
    }
    println!("1,000,000 finished records: {} MB of memory", resident_mb().saturating_sub(before));
    let begin = Instant::now();
    drop(store);
    println!("closed in {:?}", begin.elapsed());
    let file = std::fs::metadata(dir.join("store.redb"))?.len();
    let begin = Instant::now();
    let store = EmbeddedStore::open(dir, Retention::default())?;
    println!("opened again in {:?}, from {} MB on disk", begin.elapsed(), file >> 20);
    drop(store);
    Ok(())
}

fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kb| kb >> 10)
}
