//! Inputs that a task only names, and outputs too large for a result, with the whole yard around them.

use taskyard_shared::artifacts::{ArtifactId, Artifacts};
use taskyard_shared::process::settings::WorkerSettings;

use super::deployment::{code, output};
use super::*;

struct Echo;

#[async_trait]
impl Handler for Echo {
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        batch.into_iter().map(|job| Ok(job.input)).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_input_names_reaches_the_model_and_a_large_output_is_named_by_the_result() {
    let mut yard = Yard::new(|_| {}).await;
    let artifacts = Artifacts::in_memory();
    let settings = WorkerSettings { max_output_bytes: 100, ..yard.settings.worker.clone() };
    let registry = Registry::new().unwrap();
    let worker =
        Worker::new(yard.broker.clone(), yard.store.clone(), yard.topology.clone(), settings, &registry).unwrap();
    let worker = worker.artifacts(artifacts.clone(), None).model(spec("m"), Arc::new(Echo));
    tokio::spawn(worker.run(CancellationToken::new(), CancellationToken::new()));
    let _scheduler = yard.scheduler(&[spec("m")]);

    let small = artifacts.put("{\"text\": \"kept\"}".into()).await.unwrap();
    let named = yard.one(json!({"model": "m", "input": {"$ref": small}})).await;
    assert_eq!((named.state, output(&named)), (State::Succeeded, json!({"text": "kept"})));

    let text = format!("\"{}\"", "x".repeat(200));
    let large = artifacts.put(text.clone().into()).await.unwrap();
    // What comes back is named by the same content.
    let named = yard.one(json!({"model": "m", "input": {"$ref": large}})).await;
    assert_eq!((named.state, output(&named)), (State::Succeeded, json!({"$ref": large})));
    let inline = yard.one(json!({"model": "m", "input": "y".repeat(200)})).await;
    let id: ArtifactId = output(&inline)["$ref"].as_str().unwrap().parse().unwrap();
    assert_eq!(artifacts.get(id, 1_000).await.unwrap(), format!("\"{}\"", "y".repeat(200)));

    let missing = yard.one(json!({"model": "m", "input": {"$ref": ArtifactId::of(b"never put")}})).await;
    assert_eq!((missing.state, code(&missing), missing.attempt), (State::Failed, "bad_input", 1));
    let counted = "taskyard_payloads_total{place=\"artifact\",what=\"input\"} 2";
    eventually("the count", || registry.render().unwrap().contains(counted)).await;
}
