//! The memory of a model that is unloaded goes back to the system. Alone in its process, so that it is this model's.

mod handlers_kit;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use handlers_kit::{PATIENCE, job, models_in, output, root};
use mimalloc::MiMalloc;
use serde_json::json;
use taskyard_shared::Topology;
use taskyard_shared::broker::embedded::EmbeddedBroker;
use taskyard_shared::load::{LoadReport, LoadState, Placement};
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::settings::Settings;
use taskyard_shared::store::embedded::EmbeddedStore;
use taskyard_shared::store::{Retention, Store};
use taskyard_worker::handlers::{ModelCache, Recipe};
use taskyard_worker::{BuildError, Builder, Handler, Worker};
use tokio_util::sync::CancellationToken;

/// As the program has it: the system's own keeps a good part of what one thread allocated and another freed.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Has each handler run some tasks, so that it takes what a model in use takes.
struct InUse(Recipe);

#[async_trait]
impl Builder for InUse {
    async fn build(&self) -> Result<Arc<dyn Handler>, BuildError> {
        let handler = self.0.build().await?;
        for n in 0..4 {
            let batch =
                (0..8).map(|m| job(json!({"text": format!("Card {n} never came, nor did card {m}.")}))).collect();
            for answer in handler.execute(batch).await {
                assert!(output(&answer)["label"].is_string());
            }
        }
        Ok(handler)
    }
}

fn resident_mb() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096.0 / f64::from(1 << 20)
}

/// Waits until the model is so in the worker's report.
async fn state(store: &dyn Store, state: LoadState) -> LoadReport {
    let until = Instant::now() + PATIENCE;
    loop {
        let report = store.loads().await.unwrap().pop();
        match report {
            Some(report) if report.models["intents"].state == state => return report,
            report => assert!(Instant::now() < until, "never {state:?}: {report:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The allocator gives memory back when it is asked to, after a second; or when the runtime ends the thread that loaded the
/// model, after ten.
const SOON: Duration = Duration::from_secs(6);

/// Waits until the process is as small as this.
async fn shrinks_to(mb: f64) {
    let until = Instant::now() + SOON;
    while resident_mb() > mb {
        assert!(Instant::now() < until, "{} MB never became {mb}", resident_mb());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_an_unloaded_model_is_free_again() {
    let folder = root().join("models");
    let settings = &models_in(&folder.join("models.toml"))["intents"];
    let recipe = Recipe::new("intents", settings, &folder, &ModelCache::default()).unwrap();
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::in_memory(Retention::default()));
    let mut of_worker = Settings::default().worker;
    (of_worker.id, of_worker.memory_mb, of_worker.report_every_ms) = ("w".to_owned(), 500, 20);
    let place = async |models: &[&str]| {
        let placement = Placement::new(models.iter().map(|name| (*name).to_owned()).collect());
        let written = serde_json::to_vec(&placement).unwrap();
        store.put(&Placement::key("w"), written.into()).await.unwrap();
    };
    place(&[]).await;
    let broker = Arc::new(EmbeddedBroker::in_memory());
    let registry = Registry::new().unwrap();
    // Its size is not set: it is measured.
    let spec = taskyard_shared::load::ModelSpec { memory_mb: 0, ..settings.spec("intents") };
    let worker = Worker::new(broker, store.clone(), Topology::new("memory"), of_worker, &registry)
        .unwrap()
        .candidate(spec, Arc::new(InUse(recipe)));
    let stop = CancellationToken::new();
    let running = tokio::spawn(worker.run(stop.clone(), CancellationToken::new()));
    state(&*store, LoadState::Unloaded).await;
    let before = resident_mb();
    for _ in 0..3 {
        place(&["intents"]).await;
        let report = state(&*store, LoadState::Loaded).await;
        let loaded = resident_mb();
        assert!(loaded - before > 30.0, "{before} MB without the model, {loaded} MB with it");
        // What a load is measured to take depends on what was free before it.
        let counts = report.models["intents"].memory_mb as f64;
        assert!(counts > 30.0 && counts < 2.0 * (loaded - before), "it counts for {counts} MB");
        place(&[]).await;
        state(&*store, LoadState::Unloaded).await;
        shrinks_to(before + (loaded - before) / 3.0).await;
    }
    stop.cancel();
    running.await.unwrap().unwrap();
}
