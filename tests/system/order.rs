//! Priority holds at a backlog, on real RabbitMQ: by the order of starts, not by a stopwatch.

use serde_json::json;

use crate::harness::servers;
use crate::yard::Yard;

const ONE_SLOT: &str = r#"
[models.pause]
handler = "simulated"
slots = 1
[models.pause.simulated]
service_ms = 2.0
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_urgent_task_overtakes_a_backlog() {
    let Some(servers) = servers("order") else { return };
    let yard = Yard::new(&servers, ONE_SLOT);
    let _scheduler = yard.scheduler();
    let _worker = yard.worker();
    let mut publisher = yard.publisher().await;
    let low: Vec<serde_json::Value> = (0..3000).map(|n| json!({"model": "pause", "input": n, "priority": 0})).collect();
    let backlog = publisher.publish(low).await;
    let mut urgent = Vec::new();
    for n in 0..5 {
        // Each comes while the backlog is being worked off.
        let id = publisher.publish(vec![json!({"model": "pause", "input": {"urgent": n}, "priority": 9})]).await[0];
        publisher.collect(&[id]).await;
        urgent.push(id);
    }
    publisher.collect(&backlog).await;
    let started_before = |id: &uuid::Uuid| {
        let timings = &publisher.results[id].timings;
        let (accepted, started) = (timings.accepted.unwrap(), timings.started.unwrap());
        let starts = backlog.iter().map(|id| publisher.results[id].timings.started.unwrap());
        starts.filter(|start| *start > accepted && *start < started).count()
    };
    let mut overtaken: Vec<usize> = urgent.iter().map(started_before).collect();
    overtaken.sort_unstable();
    // The one that runs, what was sent ahead so that the slot does not idle, and what starts while the urgent task travels.
    // A queue of arrivals would start hundreds before it.
    assert!(overtaken[2] <= 40, "before each urgent task, so many of the backlog started: {overtaken:?}");
}
