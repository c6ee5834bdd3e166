//! With all healed, urgent tasks overtake a backlog of idle ones.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use crate::ledger::{EXECUTED, Executed, Meant, Overtaking, What, now_ms};
use crate::load::{Books, Task};
use crate::yard::MAX_ATTEMPTS;

const BACKLOG: usize = 300;
const URGENT: usize = 10;

/// A slot and a delivery ahead of it on each of three workers, and what is under way while an urgent one is taken in.
const ALLOWED: usize = 30;

const PATIENCE: Duration = Duration::from_secs(60);

fn probe(n: usize, priority: u8) -> Task {
    let id = Uuid::new_v4();
    let input = json!({"n": n, "ms": 20});
    let body = json!({"id": id, "model": "probe", "priority": priority, "input": input});
    Task { id, meant: Meant::Succeeds, body, max_attempts: MAX_ATTEMPTS }
}

/// `publish` comes back once all are accepted.
pub async fn overtake(books: &Books, publish: impl AsyncFn(&[Task])) -> Overtaking {
    let idle: Vec<Task> = (0..BACKLOG).map(|n| probe(n, 1)).collect();
    publish(&idle).await;
    let idle: HashSet<Uuid> = idle.iter().map(|task| task.id).collect();
    told_of(books, idle.iter().copied(), 10).await;
    let urgent: Vec<Task> = (0..URGENT).map(|n| probe(n, 9)).collect();
    publish(&urgent).await;
    let accepted_at = now_ms();
    let urgent: HashSet<Uuid> = urgent.iter().map(|task| task.id).collect();
    told_of(books, urgent.iter().chain(&idle).copied(), BACKLOG + URGENT).await;

    let lines: Vec<Executed> = books.files.read(EXECUTED);
    let starts: Vec<Executed> = lines.into_iter().filter(|line| line.what == What::Started).collect();
    let idle_before = |at: u64| {
        starts.iter().filter(|line| idle.contains(&line.id) && line.at >= accepted_at && line.at < at).count()
    };
    let most_before = starts
        .iter()
        .filter(|line| urgent.contains(&line.id))
        .map(|line| idle_before(line.at))
        .max()
        .unwrap_or(BACKLOG);
    Overtaking { backlog: BACKLOG, urgent: URGENT, most_before, allowed: ALLOWED }
}

/// Waits until so many of these were told; no longer than a minute.
async fn told_of(books: &Books, ids: impl Iterator<Item = Uuid>, at_least: usize) {
    let ids: Vec<Uuid> = ids.collect();
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let told = {
            let known = books.known.lock().unwrap();
            ids.iter().filter(|id| known.told.contains(*id)).count()
        };
        if told >= at_least {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
