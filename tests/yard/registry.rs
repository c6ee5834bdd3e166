//! Models that are registered while workers run: made of artifacts, loaded, rolled out, and gone again.

use taskyard_shared::artifacts::{ArtifactId, Artifacts};
use taskyard_shared::process::settings::{ModelSettings, WorkerSettings};
use taskyard_worker::Foundry;
use taskyard_worker::handlers::{ModelCache, Recipe, RecipeBook};

use super::deployment::{code, deployment, output};
use super::holding::{reported, root};
use super::*;

/// A worker of the shipped `intents`, as the binary starts it.
struct Shipped {
    spec: ModelSpec,
    settings: ModelSettings,
    cache: ModelCache,
}

impl Shipped {
    fn new(artifacts: Option<&Artifacts>) -> Self {
        let loaded = taskyard_shared::process::config::load(Some(&root().join("models/models.toml"))).unwrap();
        let settings = loaded.settings.models["intents"].clone();
        let spec = settings.spec("intents");
        Self { spec, settings, cache: ModelCache::with_artifacts(artifacts.cloned()) }
    }

    fn start(&self, yard: &Yard, id: &str) -> CancellationToken {
        let settings = WorkerSettings { id: id.into(), ..yard.settings.worker.clone() };
        let (folder, stop) = (root().join("models"), CancellationToken::new());
        let recipe = Recipe::new("intents", &self.settings, &folder, &self.cache).unwrap();
        let book: Arc<dyn Foundry> =
            Arc::new(RecipeBook::new([("intents".to_owned(), self.settings.clone())].into(), &folder, &self.cache));
        let registry = Registry::new().unwrap();
        let worker = Worker::new(yard.broker.clone(), yard.store.clone(), yard.topology.clone(), settings, &registry);
        let worker = worker.unwrap().candidate(self.spec.clone(), Arc::new(recipe)).foundry(book);
        tokio::spawn(worker.run(stop.clone(), CancellationToken::new()));
        stop
    }
}

/// The head of another model that stands on the same encoder, as artifacts.
async fn head(artifacts: &Artifacts) -> serde_json::Value {
    let mut files = serde_json::Map::new();
    for name in ["finance-sentiment.head.json", "finance-sentiment.head.f32"] {
        let content = std::fs::read(root().join("models/heads").join(name)).unwrap();
        files.insert(name.into(), json!({"$ref": artifacts.put(content.into()).await.unwrap()}));
    }
    files.into()
}

fn register(name: &str, files: &serde_json::Value) -> serde_json::Value {
    let input = json!({"action": "register", "name": name, "files": files, "head": "finance-sentiment.head.json"});
    deployment("intents", input)
}

async fn label(yard: &mut Yard, model: &str) -> (String, String) {
    let result = yard.one(json!({"model": model, "input": {"text": "Shares fall after a profit warning"}})).await;
    assert_eq!(result.state, State::Succeeded, "{result:?}");
    (result.model.clone().unwrap(), output(&result)["label"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registered_model_is_served_rolled_out_and_rolled_back() {
    for memory_mb in [0, 1000] {
        let mut yard = Yard::new(|settings| settings.worker.memory_mb = memory_mb).await;
        let artifacts = Artifacts::in_memory();
        let files = head(&artifacts).await;
        let shipped = Shipped::new(Some(&artifacts));
        let first = shipped.start(&yard, "first");
        yard.scheduler(std::slice::from_ref(&shipped.spec));

        let registered = yard.one(register("intents@2", &files)).await;
        assert_eq!(registered.state, State::Succeeded, "{registered:?}");
        assert_eq!(output(&registered), json!({"action": "register", "model": "intents@2", "workers": ["first"]}));
        let (_, intent) = label(&mut yard, "intents").await;
        assert_eq!(label(&mut yard, "intents@2").await, ("intents@2".into(), "bearish".into()));
        assert_ne!(intent, "bearish");
        assert_eq!(
            code(
                &yard
                    .one(register("intents@2", &json!({"finance-sentiment.head.json": {"$ref": ArtifactId::of(b"")}})))
                    .await
            ),
            "conflict"
        );

        assert_eq!(yard.one(deployment("intents@2", json!({"action": "roll_out"}))).await.state, State::Succeeded);
        assert_eq!(label(&mut yard, "intents").await, ("intents@2".into(), "bearish".into()));

        // Whoever comes later has it, too.
        let second = shipped.start(&yard, "second");
        reported(&yard, "second", "both models", |report| report.models.contains_key("intents@2")).await;
        first.cancel();
        assert_eq!(label(&mut yard, "intents").await, ("intents@2".into(), "bearish".into()));

        assert_eq!(yard.one(deployment("intents@1", json!({"action": "roll_out"}))).await.state, State::Succeeded);
        assert_eq!(label(&mut yard, "intents").await, ("intents@1".into(), intent));
        if memory_mb > 0 {
            assert_eq!(yard.one(deployment("intents@2", json!({"action": "unpin"}))).await.state, State::Succeeded);
        }
        let retired = yard.one(deployment("intents@2", json!({"action": "retire"}))).await;
        assert_eq!(retired.state, State::Succeeded, "{retired:?}");
        reported(&yard, "second", "the one that is left", |report| !report.models.contains_key("intents@2")).await;
        assert_eq!(code(&yard.one(json!({"model": "intents@2", "input": {}})).await), "retired_model");
        second.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_cannot_be_loaded_is_taken_back_and_says_why() {
    let mut yard = Yard::new(|_| {}).await;
    let artifacts = Artifacts::in_memory();
    let good = head(&artifacts).await;
    let shipped = Shipped::new(Some(&artifacts));
    shipped.start(&yard, "w");
    yard.scheduler(std::slice::from_ref(&shipped.spec));
    let before = label(&mut yard, "intents").await;

    let mut cut = good.clone();
    let weights = std::fs::read(root().join("models/heads/finance-sentiment.head.f32")).unwrap();
    let short = artifacts.put(weights[..100].to_vec().into()).await.unwrap();
    cut["finance-sentiment.head.f32"] = json!({"$ref": short});
    let mut absent = good.clone();
    absent["finance-sentiment.head.f32"] = json!({"$ref": ArtifactId::of(b"never put")});
    for (files, why) in [(&cut, "has 100 bytes"), (&absent, "there is no artifact:")] {
        let failed = yard.one(register("intents@2", files)).await;
        assert_eq!((failed.state, code(&failed)), (State::Failed, "load_failed"), "{failed:?}");
        assert!(failed.error.as_ref().unwrap().message.contains(why), "{failed:?}");
        reported(&yard, "w", "it is gone", |report| !report.models.contains_key("intents@2")).await;
        assert_eq!(yard.one(json!({"model": "intents@2", "input": {}})).await.state, State::Rejected);
        assert_eq!(label(&mut yard, "intents").await, before);
    }
    // The name is free for one that can be loaded.
    let registered = yard.one(register("intents@2", &good)).await;
    assert_eq!(registered.state, State::Succeeded, "{registered:?}");
    assert_eq!(label(&mut yard, "intents@2").await.1, "bearish");
    let refused =
        yard.one(deployment("intents", json!({"action": "register", "name": "intents@3", "files": {}}))).await;
    assert_eq!((refused.state, code(&refused)), (State::Rejected, "invalid_deployment"));
}
