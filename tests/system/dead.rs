//! Dead letters on real servers: by the command line, in both types of queue, and without what the store knew.

use serde_json::{Value, json};
use taskyard_shared::State;
use taskyard_shared::dead::Letter;
use uuid::Uuid;

use crate::control::Operator;
use crate::harness::{eventually, models_file, servers};
use crate::yard::Yard;

const MODELS: &str = r#"
[models.pause]
handler = "simulated"
[models.pause.simulated]
service_ms = 1.0

[models.broken]
handler = "simulated"
max_attempts = 2
[models.broken.simulated]
service_ms = 1.0
failure_ratio = 1.0
"#;

const WITH_LATE: &str = r#"
[models.late]
handler = "simulated"
[models.late.simulated]
service_ms = 1.0
"#;

impl Yard {
    fn lie_dead(&self) -> u64 {
        let dead = format!("{}.dead", self.place.namespace);
        self.place.queues().iter().find(|(name, ..)| *name == dead).map_or(0, |(_, ready, unacked)| ready + unacked)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_looked_into_and_sent_again_whatever_the_type_of_the_queue() {
    for queue_type in ["classic", "quorum"] {
        let Some(servers) = servers(&format!("dead-{queue_type}")) else { return };
        let mut yard = Yard::new(&servers, MODELS);
        yard.environment.push(("TASKYARD__BROKER__QUEUE_TYPE".into(), queue_type.into()));
        let operator = Operator::new(&mut yard);
        let _scheduler = operator.yard.scheduler();
        let _worker = operator.yard.worker();
        operate(&operator).await;
    }
}

async fn operate(operator: &Operator<'_>) {
    let yard = operator.yard;
    let mut publisher = yard.publisher().await;
    let mut bodies: Vec<Value> = (0..5).map(|n| json!({"model": "late", "input": {"n": n}})).collect();
    bodies.extend((0..3).map(|n| json!({"model": "broken", "input": n})));
    let ids = publisher.publish(bodies).await;
    let unreadable = Uuid::new_v4();
    publisher.broker.publish(vec![publisher.message(unreadable, "{\"model\":")]).await.remove(0).unwrap();
    let all: Vec<Uuid> = ids.iter().copied().chain([unreadable]).collect();
    publisher.collect(&all).await;
    eventually("nine dead letters", || (yard.lie_dead() == 9).then_some(()));
    // The queue is all that they need: the store may lose what it knew.
    yard.place.flush_store();

    let count = |arguments: &[&str]| {
        let (code, listed) = operator.says(&[&["dead", "list"], arguments].concat());
        assert_eq!(code, Some(0), "{listed}");
        listed.as_array().unwrap().len()
    };
    assert_eq!((count(&[]), count(&["--reason", "json"]), count(&["--limit", "4"])), (9, 1, 4));
    assert_eq!((count(&["--model", "broken"]), count(&["--model", "nothing"])), (3, 0));
    let (code, shown) = operator.says(&["dead", "show", &ids[7].to_string()]);
    assert_eq!((code, &shown["reason"], &shown["attempts"]), (Some(0), &json!("handler_failed"), &json!(2)));
    assert_eq!(shown["task"]["input"], 2);
    let (code, shown) = operator.says(&["dead", "show", &unreadable.to_string()]);
    assert_eq!((code, &shown["body"]), (Some(0), &json!("{\"model\":")));

    let (code, done) = operator.says(&["dead", "discard", &unreadable.to_string(), &ids[5].to_string()]);
    assert_eq!((code, &done[0]["outcome"], &done[1]["outcome"]), (Some(0), &json!("discarded"), &json!("discarded")));
    assert_eq!(operator.exit(&["dead", "discard", &ids[5].to_string()]), Some(4));
    assert_eq!(operator.exit(&["dead", "show", &Uuid::new_v4().to_string()]), Some(4));
    assert_eq!(operator.exit(&["dead", "replay"]), Some(2));
    let (code, done) = operator.says(&["dead", "discard", "--all", "--model", "broken"]);
    assert_eq!((code, done), (Some(0), json!([{"outcome": "discarded", "letters": 2}])));
    assert_eq!(count(&[]), 5);
    // The broker counts what lies in a quorum queue every few seconds.
    eventually("the five that are left", || (yard.lie_dead() == 5).then_some(()));

    // Somebody serves the model now.
    let folder = tempfile::tempdir().unwrap();
    let models = models_file(folder.path(), WITH_LATE);
    let worker = yard.role_with(&models, &["worker"]);
    worker.wait_for_line("takes tasks");
    let probe = ["task", "submit", "--model", "late", "--input", "1", "--tenant", "probe", "--wait", "10s"];
    eventually("a scheduler to know the model", || (operator.exit(&probe) == Some(0)).then_some(()));
    // The probes that came too early died as the others did.
    operator.says(&["dead", "discard", "--all", "--tenant", "probe"]);
    let (code, done) = operator.says(&["dead", "replay", &ids[0].to_string()]);
    assert_eq!((code, &done[0]["outcome"]), (Some(0), &json!("replayed")));
    let again: Uuid = done[0]["task_id"].as_str().unwrap().parse().unwrap();
    publisher.collect(&[again]).await;
    assert_eq!(publisher.results[&again].state, State::Succeeded);
    assert_eq!(publisher.results[&again].metadata["replay_of"], ids[0].to_string());
    // Of a task whose record the store lost, the letter is enough.
    let (code, done) = operator.says(&["task", "retry", &ids[1].to_string()]);
    assert_eq!((code, &done[0]["outcome"], &done[0]["state"]), (Some(0), &json!("retried"), &Value::Null));
    assert_eq!(operator.exit(&["task", "retry", &Uuid::new_v4().to_string()]), Some(4));
    assert_eq!(operator.exit(&["task", "retry", &again.to_string()]), Some(1), "it has succeeded");
    let (code, done) = operator.says(&["dead", "replay", "--all"]);
    assert_eq!((code, done), (Some(0), json!([{"outcome": "replayed", "letters": 3}])));
    let replayed: Vec<Uuid> = ids[..5].iter().map(|id| Letter::replayed(*id).0).collect();
    publisher.collect(&replayed).await;
    assert!(replayed.iter().all(|id| publisher.results[id].state == State::Succeeded));
    assert_eq!(count(&[]), 0);
    eventually("an empty queue", || (yard.lie_dead() == 0).then_some(()));
}
