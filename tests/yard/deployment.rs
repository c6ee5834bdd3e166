//! Deployment tasks: versions of a model that are pinned, rolled out and retired while its tasks go on.

use std::collections::BTreeMap;

use taskyard_shared::deployment::Deployed;
use taskyard_shared::load::LoadState;
use taskyard_worker::{BuildError, Builder};

use super::holding::{Placed, candidates, holds, makes, reported};
use super::*;

/// Cannot be loaded.
struct Broken;

#[async_trait]
impl Builder for Broken {
    async fn build(&self) -> Result<Arc<dyn Handler>, BuildError> {
        Err("the file is cut off".into())
    }
}

fn version(name: &str, version: &str) -> ModelSpec {
    ModelSpec { name: name.into(), version: version.into(), memory_mb: 60, ..spec("m") }
}

pub(super) fn deployment(model: &str, input: serde_json::Value) -> serde_json::Value {
    json!({"kind": "deployment", "model": model, "input": input})
}

impl Yard {
    pub(super) async fn one(&mut self, body: serde_json::Value) -> TaskResult {
        let ids = self.publish(vec![body]).await;
        self.collect(&ids).await;
        self.result(&ids[0]).clone()
    }

    async fn deployed(&self) -> Deployed {
        let written = self.store.fetch(Deployed::KEY).await.unwrap();
        written.map(|bytes| Deployed::read(&bytes).unwrap()).unwrap_or_default()
    }
}

pub(super) fn code(result: &TaskResult) -> &str {
    result.error.as_ref().map_or("", |error| &error.code)
}

pub(super) fn output(result: &TaskResult) -> serde_json::Value {
    serde_json::from_str(result.output.as_ref().expect("an output").get()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_rolled_out_in_the_others_place_and_the_other_is_retired() {
    let mut yard = Yard::new(|settings| settings.worker.memory_mb = 100).await;
    let models = [("m", "1"), ("m@2", "2")].map(|(name, number)| (version(name, number), makes(name, 60).1));
    let specs: Vec<ModelSpec> = models.iter().map(|(spec, _)| spec.clone()).collect();
    let worker = Placed::start(&yard, "w", &candidates(&models));
    let stop = yard.scheduler(&specs);
    let plain = || json!({"model": "m", "input": {}});
    assert_eq!(yard.one(plain()).await.model.as_deref(), Some("m@1"), "its table has no other name");

    // There is room for one of them.
    let rolled = yard.one(deployment("m@2", json!({"action": "roll_out"}))).await;
    assert_eq!((rolled.state, rolled.attempt), (State::Succeeded, 1), "{rolled:?}");
    assert_eq!(output(&rolled), json!({"action": "roll_out", "model": "m@2", "workers": ["w"], "share": 1.0}));
    holds(&yard, "w", &["m@2"]).await;
    assert_eq!(yard.one(plain()).await.model.as_deref(), Some("m@2"));
    assert_eq!(yard.deployed().await.pins, BTreeMap::from([("m@2".to_owned(), 1)]));

    let refused = yard.one(deployment("m@2", json!({"action": "retire"}))).await;
    assert_eq!((refused.state, code(&refused)), (State::Failed, "in_use"));
    let retired = yard.one(deployment("m@1", json!({"action": "retire"}))).await;
    assert_eq!(retired.state, State::Succeeded, "{retired:?}");
    let late = yard.one(json!({"model": "m@1", "input": {}})).await;
    assert_eq!((late.state, code(&late)), (State::Rejected, "retired_model"));

    // The next scheduler finds all of it.
    stop.cancel();
    yard.scheduler(&specs);
    assert_eq!(yard.one(plain()).await.model.as_deref(), Some("m@2"));
    assert_eq!(code(&yard.one(json!({"model": "m@1", "input": {}})).await), "retired_model");
    // And a retired version can be rolled out again.
    let again = json!({"kind": "deployment", "model": "m@1", "timeout_ms": 200, "input": {"action": "roll_out"}});
    let no_room = yard.one(again.clone()).await;
    assert_eq!(code(&no_room), "timeout", "the other is pinned: {no_room:?}");
    assert_eq!(yard.one(deployment("m@2", json!({"action": "unpin"}))).await.state, State::Succeeded);
    let back = yard.one(deployment("m@1", json!({"action": "roll_out"}))).await;
    assert_eq!(back.state, State::Succeeded, "{back:?}");
    assert_eq!(yard.one(plain()).await.model.as_deref(), Some("m@1"));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_cannot_be_loaded_gets_no_tasks_and_says_why() {
    let mut yard = Yard::new(|settings| settings.worker.memory_mb = 200).await;
    let (plain, _) = makes("m", 60);
    let plain = ModelSpec { version: "1".into(), ..plain };
    let broken = version("m@2", "2");
    let models =
        [(plain.clone(), makes("m", 60).1 as Arc<dyn Builder>), (broken.clone(), Arc::new(Broken) as Arc<dyn Builder>)];
    let workers = [Placed::start(&yard, "one", &models), Placed::start(&yard, "two", &models)];
    yard.scheduler(&[plain, broken]);
    let failed = yard.one(deployment("m@2", json!({"action": "roll_out", "workers": 2}))).await;
    assert_eq!((failed.state, code(&failed)), (State::Failed, "load_failed"), "{failed:?}");
    let message = &failed.error.as_ref().unwrap().message;
    assert!(message.contains("one: ") && message.contains("two: the file is cut off"), "{message}");
    assert_eq!(yard.one(json!({"model": "m", "input": {}})).await.model.as_deref(), Some("m@1"));
    let deployed = yard.deployed().await;
    assert!(deployed.pins.is_empty() && deployed.traffic.is_empty(), "{deployed:?}");
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_gets_its_share_on_every_shard() {
    let mut yard = Yard::new(|settings| settings.scheduler.shards = 2).await;
    let models = [version("m", "1"), version("m@2", "2")];
    yard.worker("w", models.iter().map(|spec| (spec.clone(), Arc::default())).collect());
    for _ in 0..2 {
        yard.scheduler(&models);
    }
    // Whichever shard reads them, the first one carries them out.
    for share in [0.1, 0.2, 0.3] {
        let rolled = yard.one(deployment("m@2", json!({"action": "roll_out", "share": share}))).await;
        assert_eq!(rolled.state, State::Succeeded, "{rolled:?}");
    }
    // The other shard reads it with its next look at the models.
    let mut canaries = 0;
    let until = std::time::Instant::now() + PATIENCE;
    while canaries == 0 {
        assert!(std::time::Instant::now() < until);
        let ids = yard.publish(vec![json!({"model": "m", "input": {}}); 40]).await;
        yard.collect(&ids).await;
        canaries = ids.iter().filter(|id| yard.result(id).model.as_deref() == Some("m@2")).count();
    }
    let ids = yard.publish(vec![json!({"model": "m", "input": {}}); 1000]).await;
    yard.collect(&ids).await;
    let canaries = ids.iter().filter(|id| yard.result(id).model.as_deref() == Some("m@2")).count();
    assert!((100..400).contains(&canaries), "{canaries} of 1000");
    let named = yard.one(json!({"model": "m@1", "input": {}})).await;
    assert_eq!(named.model.as_deref(), Some("m@1"), "who names a version gets it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_keeps_a_model_loaded_until_it_is_taken_back() {
    let mut yard = Yard::new(|settings| settings.worker.memory_mb = 100).await;
    let models = [makes("a", 60), makes("b", 60)];
    let specs: Vec<ModelSpec> = models.iter().map(|(spec, _)| spec.clone()).collect();
    let worker = Placed::start(&yard, "w", &candidates(&models));
    yard.scheduler(&specs);
    let pinned = yard.one(deployment("b", json!({"action": "pin"}))).await;
    assert_eq!(output(&pinned), json!({"action": "pin", "model": "b@1", "workers": ["w"]}));
    // Nothing makes room for another while it is pinned.
    let ids = yard.publish(vec![json!({"model": "a", "input": {}})]).await;
    let api = control::Api::new(&yard).await;
    api.explained(&ids[0], "not_loaded").await;
    reported(&yard, "w", "the pinned one", |report| report.models["b"].state == LoadState::Loaded).await;
    assert_eq!(yard.one(deployment("b", json!({"action": "unpin"}))).await.state, State::Succeeded);
    yard.collect(&ids).await;
    assert_eq!(yard.result(&ids[0]).state, State::Succeeded);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_deployment_is_refused_and_one_under_way_can_be_cancelled() {
    let mut yard = Yard::new(|settings| settings.worker.memory_mb = 100).await;
    let models = [makes("m", 60)];
    models[0].1.hangs.store(true, Ordering::SeqCst);
    let specs: Vec<ModelSpec> = models.iter().map(|(spec, _)| spec.clone()).collect();
    let worker = Placed::start(&yard, "w", &candidates(&models));
    yard.scheduler(&specs);
    for input in [json!({}), json!({"action": "pin", "workers": 0}), json!({"action": "pin", "model": "m"}), json!(7)] {
        let refused = yard.one(deployment("m", input.clone())).await;
        assert_eq!((refused.state, code(&refused)), (State::Rejected, "invalid_deployment"), "{input}");
    }
    let by_capability = json!({"kind": "deployment", "capability": "obeying", "input": {"action": "pin"}});
    assert_eq!(code(&yard.one(by_capability).await), "invalid_deployment");
    let later = json!({"kind": "deployment", "model": "m", "delay_ms": 1, "input": {"action": "pin"}});
    assert_eq!(code(&yard.one(later).await), "invalid_deployment");
    let due = json!({"kind": "deployment", "model": "m", "deadline_ms": 100, "input": {"action": "pin"}});
    assert_eq!(code(&yard.one(due).await), "timeout");
    let unknown = yard.one(deployment("m@7", json!({"action": "pin"}))).await;
    assert_eq!(code(&unknown), "unknown_model");
    let brief = json!({"kind": "deployment", "model": "m", "timeout_ms": 50, "input": {"action": "pin"}});
    let late = yard.one(brief).await;
    assert_eq!((late.state, code(&late)), (State::Failed, "timeout"));
    assert!(yard.deployed().await.pins.is_empty());

    let api = control::Api::new(&yard).await;
    let ids = yard.publish(vec![deployment("m", json!({"action": "pin"}))]).await;
    api.explained(&ids[0], "dispatched").await;
    assert_eq!(api.cancel(&ids[0]).await, (200, "cancelled".to_owned()));
    yard.collect(&ids).await;
    assert_eq!(yard.result(&ids[0]).state, State::Cancelled);
    worker.stop().await;
}
