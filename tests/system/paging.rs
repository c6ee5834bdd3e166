//! A backlog larger than the scheduler's memory, on real RabbitMQ and Redis: it keeps its order, and survives the scheduler.

use serde_json::json;
use taskyard_shared::State;

use crate::harness::{eventually, servers};
use crate::yard::Yard;

const ONE_SLOT: &str = r#"
[scheduler]
policy = "strict"
window_tasks = 200

[models.pause]
handler = "simulated"
slots = 1
[models.pause.simulated]
service_ms = 0.2
"#;

/// Messages in queues that hold a part of the backlog, and how many such queues there are.
fn pages(yard: &Yard) -> (u64, usize) {
    let queues = yard.place.queues();
    let pages = queues.iter().filter(|(name, ..)| name.contains(".page."));
    pages.fold((0, 0), |(sum, queues), (_, ready, unacked)| (sum + ready + unacked, queues + 1))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_many_windows_keeps_its_order_though_its_scheduler_is_killed() {
    let Some(servers) = servers("paging") else { return };
    let yard = Yard::new(&servers, ONE_SLOT);
    let mut publisher = yard.publisher().await;
    let first = yard.scheduler();
    let mut bodies: Vec<serde_json::Value> =
        (0..3_000).map(|n| json!({"model": "pause", "input": n, "priority": n % 10})).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut bodies);
    let mut ids = publisher.publish(bodies[..2_000].to_vec()).await;
    eventually("pages", || (pages(&yard).0 > 80).then_some(()));
    // Killed while pages are written, and again while they are read.
    first.signal("-KILL");
    let second = yard.scheduler();
    ids.extend(publisher.publish(bodies[2_000..].to_vec()).await);
    eventually("all to be read", || {
        let queues = yard.place.queues();
        queues.iter().any(|(name, ready, _)| name.ends_with(".intake") && *ready == 0).then_some(())
    });
    let _worker = yard.worker();
    publisher.collect(&ids[..1]).await;
    eventually("a part to have run", || {
        publisher.results.len();
        (pages(&yard).0 < 700).then_some(())
    });
    second.signal("-KILL");
    let _third = yard.scheduler();
    publisher.collect(&ids).await;
    assert!(ids.iter().all(|id| publisher.results[id].state == State::Succeeded));
    assert_eq!(publisher.differing, 0);
    // By their starts, but for what was under way when a scheduler was killed, and what the first moments of the next one brought.
    let mut started: Vec<_> = ids.iter().map(|id| &publisher.results[id]).collect();
    started.sort_by_key(|result| result.timings.started);
    let (mut highest_after, mut early) = (0, 0);
    for result in started.iter().rev() {
        let priority = result.priority.get();
        early += usize::from(priority < highest_after);
        highest_after = highest_after.max(priority);
    }
    assert!(early < 400, "{early} of 3,000 ran before one of a higher priority");
    eventually("nothing to be left", || (pages(&yard).0 == 0).then_some(()));
    assert!(pages(&yard).1 >= 16);
}
