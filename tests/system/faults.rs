//! Processes that are stopped and killed lose nothing.

use serde_json::json;
use taskyard_shared::State;

use crate::harness::{eventually, servers};
use crate::yard::Yard;

const PAUSE: &str = r#"
[models.pause]
handler = "simulated"
slots = 4
max_attempts = 10
[models.pause.simulated]
service_ms = 20.0
"#;

/// Some of its first attempts fail, and are tried again.
const SHAKY: &str = r#"
[models.pause]
handler = "simulated"
slots = 4
max_attempts = 50
[models.pause.simulated]
service_ms = 5.0
failure_ratio = 0.2
"#;

/// In any queue of the yard. Of what its scheduler lost sight of the result may be told again later.
fn nothing_is_left(yard: &Yard) {
    eventually("empty queues", || {
        let mut queues = yard.place.queues().into_iter();
        let is_left =
            queues.any(|(name, ready, unacked)| name.starts_with(&yard.place.namespace) && ready + unacked > 0);
        (!is_left).then_some(())
    });
}

fn tasks(count: usize) -> Vec<serde_json::Value> {
    (0..count).map(|n| json!({"model": "pause", "input": {"n": n}, "priority": n % 10})).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_stop_finishes_what_runs_and_gives_back_the_rest() {
    let Some(servers) = servers("drain") else { return };
    let yard = Yard::new(&servers, PAUSE);
    let _scheduler = yard.scheduler();
    let mut first = yard.worker();
    let mut publisher = yard.publisher().await;
    let ids = publisher.publish(tasks(200)).await;
    publisher.collect(&ids[..1]).await;
    first.signal("-TERM");
    assert_eq!(first.wait(), Some(0), "{:#?}", first.lines());
    let _second = yard.worker();
    publisher.collect(&ids).await;
    for id in &ids {
        let result = &publisher.results[id];
        assert_eq!((result.state, result.attempt), (State::Succeeded, 1), "what had begun was finished");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_schedulers_and_workers_lose_nothing_and_leave_nothing() {
    let Some(servers) = servers("kill") else { return };
    let yard = Yard::new(&servers, PAUSE);
    let mut schedulers = vec![yard.scheduler()];
    let mut workers = vec![yard.worker(), yard.worker()];
    let standby = yard.role(&["scheduler"]);
    standby.wait_for_line("standing by");
    let mut publisher = yard.publisher().await;
    let ids = publisher.publish(tasks(600)).await;
    publisher.collect(&ids[..1]).await;
    schedulers.remove(0).signal("-KILL");
    standby.wait_for_line("active");
    workers.remove(0).signal("-KILL");
    workers.push(yard.worker());
    publisher.collect(&ids).await;
    assert!(ids.iter().all(|id| publisher.results[id].state == State::Succeeded));
    assert_eq!(publisher.differing, 0, "a result took effect twice");
    nothing_is_left(&yard);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_active_schedulers_share_the_work_and_a_standby_takes_the_shard_of_a_killed_one() {
    let Some(servers) = servers("shards") else { return };
    let mut yard = Yard::new(&servers, SHAKY);
    yard.environment.push(("TASKYARD__SCHEDULER__SHARDS".into(), "2".into()));
    let first = yard.scheduler();
    let second = yard.scheduler();
    let standby = yard.role(&["scheduler"]);
    standby.wait_for_line("standing by");
    let _workers = [yard.worker(), yard.worker(), yard.worker()];
    let mut publisher = yard.publisher().await;
    let ids = publisher.publish(tasks(400)).await;
    publisher.collect(&ids).await;
    assert!(ids.iter().all(|id| publisher.results[id].state == State::Succeeded));
    assert_eq!(publisher.told_again, 0, "each has one result");

    let ids = publisher.publish(tasks(600)).await;
    publisher.collect(&ids[..1]).await;
    second.signal("-KILL");
    standby.wait_for_line("active");
    publisher.collect(&ids).await;
    assert!(ids.iter().all(|id| publisher.results[id].state == State::Succeeded));
    assert_eq!(publisher.differing, 0, "a result took effect twice");
    nothing_is_left(&yard);
    drop(first);
}
