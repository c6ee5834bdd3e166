//! Shadow traffic on real servers: what it says of a second version, and that nobody else hears of it.

use serde_json::{Value, json};
use taskyard_shared::broker::QueueSpec;
use uuid::Uuid;

use crate::control::Operator;
use crate::harness::{eventually, servers};
use crate::yard::Yard;

const MODELS: &str = r#"
[models.echo]
handler = "simulated"
slots = 4
[models.echo.simulated]
service_ms = 1.0

[models."echo@2"]
handler = "process"
[models."echo@2".process]
command = ["python3", "odd.py"]
"#;

/// Gives the input back, but for every tenth.
const ODD: &str = r#"
import json, sys
for line in sys.stdin:
    task = json.loads(line)
    if "id" in task:
        given = task["input"]
        output = "odd" if given["n"] % 10 == 3 else given
        print(json.dumps({"id": task["id"], "output": output}), flush=True)
"#;

const TASKS: u64 = 30;
const OUTCOMES: [&str; 5] = ["same", "different", "failed", "skipped", "unknown"];

#[tokio::test(flavor = "multi_thread")]
async fn a_version_in_the_shadow_is_compared_and_leaves_no_trace() {
    let Some(servers) = servers("shadow") else { return };
    let mut yard = Yard::new(&servers, MODELS);
    yard.write("odd.py", ODD);
    let operator = Operator::new(&mut yard);
    let yard = operator.yard;
    let _scheduler = yard.scheduler();
    let _worker = yard.worker();
    let mut publisher = yard.publisher().await;
    let heard = format!("heard-{}", Uuid::new_v4().simple());
    let events = QueueSpec::exclusive(&heard).bound(publisher.topology.events_exchange(), "task.#");
    publisher.broker.declare(&[events]).await.unwrap();

    let shadow = json!({"kind": "deployment", "model": "echo@2", "input": {"action": "shadow"}});
    let mut ids = publisher.publish(vec![shadow]).await;
    publisher.collect(&ids).await;
    let begun = &publisher.results[&ids[0]];
    assert!(begun.error.is_none(), "{begun:?}");
    // Fewer than there is room for copies, so that none is skipped.
    let tasks = publisher.publish((0..TASKS).map(|n| json!({"model": "echo", "input": {"n": n}})).collect()).await;
    publisher.collect(&tasks).await;
    for (n, id) in tasks.iter().enumerate() {
        let result = &publisher.results[id];
        let output: Value = serde_json::from_str(result.output.as_ref().unwrap().get()).unwrap();
        assert_eq!((result.model.as_deref(), output), (Some("echo@1"), json!({"n": n})));
    }
    ids.extend(&tasks);

    let shown = || {
        let (_, models) = operator.says(&["models", "list"]);
        models.as_array().unwrap().iter().find(|model| model["name"] == "echo@2").map(|model| model["shadow"].clone())
    };
    let shadow = eventually("all copies to be compared", || {
        let shadow = shown()?;
        let counted: u64 = OUTCOMES.iter().filter_map(|outcome| shadow[outcome].as_u64()).sum();
        (counted >= TASKS).then_some(shadow)
    });
    let counts = OUTCOMES.map(|outcome| shadow[outcome].as_u64().unwrap_or_default());
    assert_eq!(counts, [27, 3, 0, 0, 0], "{shadow}");
    for pair in shadow["differing"].as_array().unwrap() {
        let task = tasks.iter().position(|id| pair["task"] == json!(id.to_string())).expect("one of the tasks");
        assert_eq!(task % 10, 3, "{pair}");
        let (_, copy) = operator.says(&["task", "get", pair["copy"].as_str().unwrap()]);
        let copy = copy.get(0).unwrap_or(&copy);
        assert_eq!((&copy["output"], &copy["metadata"]["shadow_of"]), (&json!("odd"), &pair["task"]), "{copy}");
    }

    // The last thing that is heard of is a task that came after all copies had ended.
    let last = publisher.publish(vec![json!({"model": "echo@1", "input": {"n": 0}})]).await;
    publisher.collect(&last).await;
    ids.extend(&last);
    assert_eq!((publisher.results.len(), publisher.told_again), (ids.len(), 0), "a result for each, once");
    let mut consumer = publisher.broker.consume(&heard, 500).await.unwrap();
    let mut subjects: Vec<String> = Vec::new();
    let end = |event: &Value| {
        event["type"].as_str().is_some_and(|kind| kind.ends_with("succeeded"))
            && event["subject"] == json!(last[0].to_string())
    };
    let mut has_ended = false;
    while !has_ended {
        let batch = tokio::time::timeout(std::time::Duration::from_secs(90), consumer.next_batch(500)).await;
        for delivery in batch.expect("events").unwrap() {
            let event: Value = serde_json::from_slice(&delivery.body).unwrap();
            has_ended |= end(&event);
            subjects.extend(event["subject"].as_str().map(str::to_owned));
        }
    }
    let known: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    assert!(known.iter().all(|id| subjects.contains(id)), "every task is heard of");
    assert_eq!(subjects.iter().filter(|subject| !known.contains(subject)).collect::<Vec<_>>(), Vec::<&String>::new());
    let empty = || {
        let queues = yard.place.queues();
        // This one is held by the listener, who acks nothing.
        let left: Vec<_> = queues.iter().filter(|(name, ready, held)| *name != heard && ready + held > 0).collect();
        left.is_empty().then_some(())
    };
    eventually("all queues to be empty", empty);
}
