//! Artifacts over the API, and inputs that are too large to travel with their tasks.

mod yard;

use serde_json::{Value, json};
use taskyard_producer::GatewayParts;
use taskyard_shared::artifacts::{ArtifactId, Artifacts};
use taskyard_shared::decode_tasks;
use taskyard_shared::process::keys::Keys;
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::settings::GatewaySettings;

use self::yard::{RunningGateway, Yard, settings};

async fn put(gateway: &RunningGateway, content: impl Into<reqwest::Body>) -> yard::Got {
    gateway.send(gateway.http.post(gateway.url("/v1/artifacts")).body(content)).await
}

async fn content(gateway: &RunningGateway, name: &str) -> (u16, Vec<u8>) {
    let answer = gateway.http.get(gateway.url(&format!("/v1/artifacts/{name}"))).send().await.unwrap();
    (answer.status().as_u16(), answer.bytes().await.unwrap().to_vec())
}

#[tokio::test]
async fn what_was_put_is_there_by_its_name_and_nothing_else_is() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let file: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let id = ArtifactId::of(&file);
    for _twice in 0..2 {
        let answer = put(&gateway, file.clone()).await;
        assert_eq!((answer.status, &answer.json), (201, &json!({"$ref": id.to_string(), "bytes": file.len()})));
    }
    for name in [id.to_string(), id.hex()] {
        assert_eq!(content(&gateway, &name).await, (200, file.clone()));
    }
    let other = ArtifactId::of(b"never put").hex();
    for name in [other.as_str(), "artifact:12", "..%2f..%2fetc%2fpasswd", "%ff"] {
        let answer = gateway.get(&format!("/v1/artifacts/{name}")).await;
        assert_eq!((answer.status, answer.problem()), (404, "artifact_not_found"), "{name}");
    }
    assert_eq!(put(&gateway, "").await.problem(), "empty");
}

#[tokio::test]
async fn a_file_over_the_limit_is_refused_both_ways() {
    let yard = Yard::new();
    let gateway = yard.gateway_with(GatewaySettings { max_artifact_bytes: 1_024, ..settings() }).await;
    assert_eq!(put(&gateway, vec![b'x'; 1_025]).await.problem(), "too_large");
    assert_eq!(put(&gateway, vec![b'x'; 1_024]).await.status, 201);
    let large = yard.artifacts.put(vec![b'x'; 2_000].into()).await.unwrap();
    assert_eq!(gateway.get(&format!("/v1/artifacts/{large}")).await.problem(), "too_large");
}

/// The inputs of what is in intake.
async fn inputs(yard: &Yard) -> Vec<Value> {
    let mut inputs = Vec::new();
    for delivery in yard.drain(&yard.topology.intake()).await {
        for task in decode_tasks(&delivery.body).unwrap() {
            inputs.push(serde_json::from_str(task.unwrap().input.get()).unwrap());
        }
    }
    inputs
}

#[tokio::test]
async fn a_large_input_is_named_by_its_task_and_the_same_again_is_the_same() {
    let yard = Yard::new();
    let gateway = yard.gateway_with(GatewaySettings { inline_bytes: 100, ..settings() }).await;
    let large = json!({"text": "x".repeat(200)});
    let id = uuid::Uuid::now_v7();
    let path = format!("/v1/tasks/{id}");
    for _twice in 0..2 {
        let answer = gateway.put(&path, &json!({"model": "m", "input": large})).await;
        assert_eq!((answer.status, answer.json["state"].as_str()), (202, Some("queued")));
    }
    let other = gateway.put(&path, &json!({"model": "m", "input": {"text": "y".repeat(200)}})).await;
    assert_eq!(other.problem(), "conflict");
    let small = gateway.post("/v1/tasks", &json!({"model": "m", "input": [1]})).await;
    assert_eq!(small.status, 202);

    let inputs = inputs(&yard).await;
    let name = inputs[0]["$ref"].as_str().unwrap();
    let kept = yard.artifacts.get(name.parse().unwrap(), 1 << 20).await.unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&kept).unwrap(), large);
    assert_eq!(inputs[1..], [json!([1])], "once, though it was sent twice");
}

#[tokio::test]
async fn without_a_place_for_artifacts_inputs_travel_and_files_are_refused() {
    let yard = Yard::new();
    let gateway = without_artifacts(&yard, None).await;
    assert_eq!(put(&gateway, "x").await.problem(), "artifacts_unavailable");
    assert_eq!(gateway.get("/v1/artifacts/12").await.problem(), "artifacts_unavailable");
    let large = json!({"text": "x".repeat(200)});
    assert_eq!(gateway.post("/v1/tasks", &json!({"model": "m", "input": large})).await.status, 202);
    assert_eq!(inputs(&yard).await, [large]);
}

#[tokio::test]
async fn a_task_whose_input_cannot_be_put_is_not_accepted() {
    let yard = Yard::new();
    let folder = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::in_folder(&folder.path().join("artifacts")).unwrap();
    // Where its folder should be is a file.
    std::fs::write(folder.path().join("artifacts/sha256"), "").unwrap();
    let gateway = without_artifacts(&yard, Some(artifacts)).await;
    let large = json!({"model": "m", "input": {"text": "x".repeat(200)}});
    let refused = gateway.post("/v1/tasks", &large).await;
    assert_eq!((refused.status, refused.problem()), (503, "artifacts_unavailable"));
    assert_eq!(gateway.post("/v1/tasks", &json!({"model": "m", "input": 1})).await.status, 202);
    assert_eq!(inputs(&yard).await, [json!(1)]);
}

async fn without_artifacts(yard: &Yard, artifacts: Option<Artifacts>) -> RunningGateway {
    let gateway = RunningGateway::start(GatewayParts {
        broker: yard.broker.clone(),
        store: yard.store.clone(),
        topology: yard.topology.clone(),
        settings: GatewaySettings { inline_bytes: 100, ..settings() },
        registry: Registry::new().unwrap(),
        keys: Keys::default(),
        artifacts,
    })
    .await;
    gateway.ready().await;
    gateway
}
