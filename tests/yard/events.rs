//! Lifecycle events over AMQP: what a queue hears that is bound to their exchange, and what nobody pays for when nobody listens.

use serde_json::{Value, json};
use taskyard_shared::broker::Delivery;
use taskyard_shared::events::MEDIA_TYPE;
use taskyard_worker::meanwhile::Meanwhile;

use super::*;

/// Says each of the input's words, and how far it is.
struct Talks;

#[async_trait]
impl Handler for Talks {
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        let say = |job: Job| {
            let words: Vec<String> = serde_json::from_str(job.input.get()).unwrap();
            let meanwhile: Meanwhile = job.meanwhile;
            for word in &words {
                meanwhile.partial(serde_json::value::to_raw_value(word).unwrap());
            }
            meanwhile.progress(0.5, Some("half"));
            Ok(job.input)
        };
        batch.into_iter().map(say).collect()
    }
}

async fn listening(yard: &Yard, pattern: &str) -> String {
    let queue = yard.topology.replies("listener");
    let spec = QueueSpec::exclusive(&queue).bound(yard.topology.events_exchange(), pattern);
    yard.broker.declare(&[spec]).await.unwrap();
    queue
}

/// What comes until there is one that is so.
async fn heard(yard: &Yard, queue: &str, mut is_last: impl FnMut(&Value) -> bool) -> Vec<(Delivery, Value)> {
    let mut consumer = yard.broker.consume(queue, 1000).await.unwrap();
    let mut heard = Vec::new();
    let listening = async {
        loop {
            for delivery in consumer.next_batch(1000).await.unwrap() {
                let event: Value = serde_json::from_slice(&delivery.body).unwrap();
                let last = is_last(&event);
                heard.push((delivery, event));
                if last {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, listening).await.expect("the event");
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_task_goes_through_is_published_in_order_with_what_it_says() {
    let mut yard = Yard::new(|_| {}).await;
    let queue = listening(&yard, "task.#").await;
    let spec = ModelSpec { expected_ms: Some(1_000.0), ..spec("a.b") };
    let (broker, store) = (yard.broker.clone(), yard.store.clone());
    let worker = Worker::new(broker, store, yard.topology.clone(), yard.settings.worker.clone(), &yard.registry);
    let worker = worker.unwrap().model(spec.clone(), Arc::new(Talks));
    tokio::spawn(worker.run(CancellationToken::new(), CancellationToken::new()));
    yard.scheduler(&[spec]);
    let words: Vec<String> = (0..300).map(|n| format!("w{n}")).collect();
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let ids = yard
        .publish_with(vec![json!({"model": "a.b", "input": words})], |properties| {
            properties.headers.insert("traceparent".into(), traceparent.into());
        })
        .await;
    // A scheduler tells of a dispatch once it is confirmed; a worker may have ended the task by then.
    let mut awaited = vec!["taskyard.task.dispatched", "taskyard.task.succeeded"];
    let all = heard(&yard, &queue, |event| {
        awaited.retain(|name| event["type"] != *name);
        awaited.is_empty()
    })
    .await;
    for (delivery, event) in &all {
        assert_eq!(delivery.properties.content_type.as_deref(), Some(MEDIA_TYPE));
        let topic = event["type"].as_str().unwrap().rsplit('.').next().unwrap();
        assert_eq!(delivery.routing_key, format!("task.{topic}.a.b"));
        assert_eq!((&event["specversion"], &event["source"]), (&json!("1.0"), &json!("/taskyard/yard")));
        assert_eq!((&event["subject"], &event["data"]["id"]), (&json!(ids[0]), &json!(ids[0])));
        assert_eq!(event["datacontenttype"], "application/json");
    }
    let of = |topic: &str| -> Vec<&Value> {
        let name = format!("taskyard.task.{topic}");
        all.iter().map(|(_, event)| event).filter(|event| event["type"] == *name).collect()
    };
    for state in ["queued", "dispatched", "running", "succeeded"] {
        let events = of(state);
        assert_eq!(events.len(), 1, "{state}");
        assert_eq!((&events[0]["data"]["state"], &events[0]["traceparent"]), (&json!(state), &json!(traceparent)));
    }
    for (state, moment) in [("dispatched", "dispatched"), ("running", "started"), ("succeeded", "finished")] {
        let event = of(state)[0];
        assert!(event["time"].is_string(), "{event}");
        assert_eq!(event["time"], event["data"]["timings"][moment], "{state}: {event}");
    }
    let said: Vec<&str> = of("partial").iter().map(|event| event["data"]["partial"].as_str().unwrap()).collect();
    assert_eq!(said, words, "in order, from the first on");
    assert_eq!(of("progress")[0]["data"]["message"], "half");
    let mut named: Vec<&str> = all.iter().map(|(_, event)| event["id"].as_str().unwrap()).collect();
    named.sort_unstable();
    named.dedup();
    assert_eq!(named.len(), all.len(), "each has an id of its own");
    yard.collect(&ids).await;
    assert_eq!(of("succeeded")[0]["data"]["output"], json!(words));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_listens_later_is_heard_soon_and_without_listeners_next_to_nothing_is_published() {
    let mut yard = Yard::new(|_| {}).await;
    yard.worker("w", vec![(spec("m"), Arc::new(Obedient::default()))]);
    yard.scheduler(&[spec("m")]);
    let ids = yard.publish((0..2000).map(|n| json!({"model": "m", "input": n})).collect()).await;
    yard.collect(&ids).await;
    let metrics = yard.registry.render().unwrap();
    assert!(metrics.contains("taskyard_events_published_total 0"), "{metrics}");

    let queue = listening(&yard, "task.succeeded.m").await;
    let publishing = async {
        loop {
            let ids = yard.publish(vec![json!({"model": "m", "input": "late"})]).await;
            let mut waiting = true;
            while waiting {
                let record = yard.store.get(vec![TaskId(ids[0])]).await.unwrap().pop().flatten();
                waiting = record.is_none_or(|record| !record.state.is_terminal());
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::select! {
        () = publishing => {}
        heard = heard(&yard, &queue, |event| event["data"]["output"] == "late") => assert!(!heard.is_empty()),
    }
}
