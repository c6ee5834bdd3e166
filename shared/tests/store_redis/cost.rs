//! What calls cost: figures to read, from a server of its own.
//!
//! `cargo test --release -p taskyard-shared --test store_redis -- --ignored --nocapture what_calls_cost`

use std::sync::Arc;
use std::time::{Duration, Instant};

use taskyard_shared::store::redis::RedisStore;
use taskyard_shared::store::{Accept, Guard, Store, contract};
use taskyard_shared::{TaskId, Topology};

use super::faults::{claim, settle, task};
use super::server::Server;
use super::settings;

/// Processor time of the server so far.
async fn spent(server: &Server) -> Duration {
    let info: String = redis::from_redis_value(server.command(&["INFO", "cpu"]).await).expect("a text");
    let of = |name: &str| -> f64 {
        info.lines().find_map(|line| line.strip_prefix(name)).and_then(|value| value.parse().ok()).expect("a figure")
    };
    Duration::from_secs_f64(of("used_cpu_user:") + of("used_cpu_sys:"))
}

/// Processor time of this process so far.
fn spent_here() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    // User and system time, in hundredths of a second.
    Duration::from_millis(fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn what_calls_cost() {
    let Some(server) = Server::started(&[]).await else { return };
    println!("| call | batch | callers | tasks/s | server, µs a task | ours, µs a task | median call, µs |");
    println!("|---|---|---|---|---|---|---|");
    for (batch, callers, total) in
        [(1, 1, 20_000), (16, 1, 64_000), (100, 1, 100_000), (1_000, 1, 100_000), (1, 16, 64_000), (16, 16, 128_000)]
    {
        let store = RedisStore::connect(&settings(&server.url(), 10_000), &Topology::new("cost"), contract::LASTING);
        let store: Arc<dyn Store> = Arc::new(store.expect("a store"));
        let tasks = || -> Arc<Vec<Vec<Accept>>> {
            let size = batch;
            let batch = |_| (0..size).map(|_| described(task(TaskId::new()))).collect();
            Arc::new((0..total / size).map(batch).collect())
        };
        let mut batches = tasks();
        for call in ["accept", "dispatched", "claim", "renew", "settle", "get", "accept, short", "settle, short"] {
            if call == "accept, short" {
                batches = tasks();
            }
            let (before, own, began) = (spent(&server).await, spent_here(), Instant::now());
            let running = (0..callers).map(|caller| {
                let (store, batches) = (store.clone(), batches.clone());
                tokio::spawn(async move {
                    let mut times = Vec::new();
                    for batch in batches.iter().skip(caller).step_by(callers) {
                        let began = Instant::now();
                        do_call(&*store, call, batch).await;
                        times.push(began.elapsed());
                    }
                    times
                })
            });
            let mut times = Vec::new();
            for caller in running.collect::<Vec<_>>() {
                times.extend(caller.await.expect("a caller"));
            }
            let took = began.elapsed();
            let server_us = (spent(&server).await - before).as_secs_f64() * 1e6 / total as f64;
            times.sort();
            println!(
                "| {call} | {batch} | {callers} | {:.0} | {server_us:.1} | {:.1} | {:.0} |",
                total as f64 / took.as_secs_f64(),
                (spent_here() - own).as_secs_f64() * 1e6 / total as f64,
                times[times.len() / 2].as_secs_f64() * 1e6,
            );
        }
        let used: String = redis::from_redis_value(server.command(&["INFO", "memory"]).await).expect("a text");
        let used = used.lines().find_map(|line| line.strip_prefix("used_memory_dataset:")).expect("a figure");
        println!("{} finished tasks: {} bytes each", 2 * total, used.parse::<usize>().expect("a number") / (2 * total));
        server.command(&["FLUSHALL"]).await;
    }
}

/// A result of about 1 KiB in the end.
fn described(mut task: Accept) -> Accept {
    task.record.metadata.insert("note".to_owned(), "n".repeat(200));
    task
}

async fn do_call(store: &dyn Store, call: &str, batch: &[Accept]) {
    use taskyard_shared::store::Renew;
    match call {
        "accept" | "accept, short" => drop(store.accept(batch.to_vec()).await.expect("accept")),
        "dispatched" => {
            let models = batch.iter().map(|task| (task.id, "sentiment@1".to_owned())).collect();
            store.dispatched(models).await.expect("dispatched");
        }
        "claim" => drop(store.claim(batch.iter().map(|task| claim(task.id, 1)).collect()).await.expect("claim")),
        "renew" => {
            let leases = batch.iter().map(|task| Renew { id: task.id, nonce: 1, lease_ms: 60_000 }).collect();
            drop(store.renew(leases).await.expect("renew"));
        }
        "settle" | "settle, short" => {
            let settlements = batch.iter().map(|task| {
                let mut settlement = settle(task, 1);
                if call == "settle, short" {
                    settlement.guard = Guard::First { nonce: 1 };
                }
                let output = format!(r#"{{"text":"{}"}}"#, "o".repeat(400));
                Arc::make_mut(&mut settlement.result).output =
                    Some(serde_json::value::RawValue::from_string(output).expect("JSON"));
                settlement
            });
            drop(store.settle(settlements.collect()).await.expect("settle"));
        }
        _ => drop(store.get(batch.iter().map(|task| task.id).collect()).await.expect("get")),
    }
}
