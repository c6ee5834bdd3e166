//! What the tests of all handlers use.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod python;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use taskyard_shared::TaskId;
use taskyard_shared::process::settings::ModelSettings;
use taskyard_worker::handlers::{LoadError, ModelCache, build};
use taskyard_worker::{Answer, Handler, Job};

/// Longer than anything here takes, on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[derive(Deserialize)]
struct File {
    models: BTreeMap<String, ModelSettings>,
}

/// The models of a configuration file.
pub fn models(toml: &str) -> BTreeMap<String, ModelSettings> {
    toml::from_str::<File>(toml).unwrap().models
}

pub fn models_in(path: &Path) -> BTreeMap<String, ModelSettings> {
    models(&std::fs::read_to_string(path).unwrap())
}

/// The one model of `toml`, built.
pub async fn load(toml: &str, base_dir: &Path) -> Result<Arc<dyn Handler>, LoadError> {
    let models = models(toml);
    let (name, settings) = models.first_key_value().unwrap();
    build(name, settings, base_dir, &ModelCache::default()).await
}

/// The sentence in which loading fails.
pub async fn load_error(toml: &str, base_dir: &Path) -> String {
    match load(toml, base_dir).await {
        Ok(_) => panic!("it loads:\n{toml}"),
        Err(error) => error.to_string(),
    }
}

pub fn job(input: impl ToString) -> Job {
    Job::new(TaskId::new(), 1, RawValue::from_string(input.to_string()).unwrap())
}

pub fn output(answer: &Answer) -> Value {
    serde_json::from_str(answer.as_ref().unwrap_or_else(|error| panic!("{error:?}")).get()).unwrap()
}

/// Code of the error, and whether it is retryable.
pub fn failure(answer: &Answer) -> (&str, bool) {
    match answer {
        Ok(output) => panic!("an output: {output}"),
        Err(error) => (&error.code, error.retryable),
    }
}

pub fn message(answer: &Answer) -> &str {
    match answer {
        Ok(output) => panic!("an output: {output}"),
        Err(error) => &error.message,
    }
}

/// Waits for something to come true. It looks again every few milliseconds, as there is nobody to tell it.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let looks = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(what, looks).await;
}

pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}
