//! One module per way to run a model, and [`build`], which makes the one that a model's settings ask for.

pub mod data;
pub mod http;
pub mod onnx;
pub mod process;
pub mod search;
pub mod simulated;
pub mod training;

pub(crate) mod answer;
mod registered;
mod rows;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use taskyard_shared::process::settings::ModelSettings;

use self::data::DataHandler;
pub use self::onnx::ModelCache;
use self::onnx::{OnnxError, OnnxHandler};
use self::process::ProcessHandler;
pub use self::registered::RecipeBook;
use self::search::SearchHandler;
use self::simulated::SimulatedHandler;
use self::training::TrainingHandler;
use crate::builder::{BuildError, Builder};
use crate::handler::Handler;
use crate::handlers::http::HttpHandler;

/// Why a model cannot be served, in one sentence that names the model and the file, program or setting at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    #[error("model {model}: {reason}")]
    Settings { model: String, reason: String },

    /// A file is missing, or is not what it should be.
    #[error("model {model}: {source}")]
    Onnx { model: String, source: OnnxError },

    /// The program of a `process` model cannot be started, or ends at once.
    #[error("model {model}: {reason}")]
    Process { model: String, reason: String },
}

impl LoadError {
    pub(crate) fn settings(model: &str, reason: impl Into<String>) -> Self {
        Self::Settings { model: model.to_owned(), reason: reason.into() }
    }

    pub(crate) fn process(model: &str, reason: impl Into<String>) -> Self {
        Self::Process { model: model.to_owned(), reason: reason.into() }
    }

    /// Whether a file that the settings name is not there.
    pub fn is_missing_file(&self) -> bool {
        matches!(self, Self::Onnx { source: OnnxError::FileMissing { .. }, .. })
    }
}

/// Loads the model `name`. Relative paths in its settings start at `base_dir`: the configuration file's folder.
///
/// # Errors
/// When the settings contradict themselves or the model cannot be loaded; nothing is left running then.
pub async fn build(
    name: &str,
    settings: &ModelSettings,
    base_dir: &Path,
    cache: &ModelCache,
) -> Result<Arc<dyn Handler>, LoadError> {
    check(name, settings)?;
    let missing = || LoadError::settings(name, format!("the table [models.{name}.{}] is missing", settings.handler));
    Ok(match settings.handler.as_str() {
        "onnx" => {
            let onnx = settings.onnx.clone().ok_or_else(missing)?;
            warn_of_idle_slots(name, settings.slots);
            let (model, base_dir, cache) = (name.to_owned(), base_dir.to_owned(), cache.clone());
            let loading = tokio::task::spawn_blocking(move || OnnxHandler::load(&model, &onnx, &base_dir, &cache));
            let loaded = loading.await.unwrap_or_else(|_| Err(LoadError::settings(name, "loading it broke off")));
            Arc::new(loaded?)
        }
        "http" => {
            let http = settings.http.as_ref().ok_or_else(missing)?;
            Arc::new(HttpHandler::new(name, http, settings.slots, settings.max_batch)?)
        }
        "process" => {
            let process = settings.process.as_ref().ok_or_else(missing)?;
            let artifacts = cache.artifacts().cloned();
            if process.files && artifacts.is_none() {
                return Err(LoadError::settings(name, "process.files needs artifacts.url, which is empty"));
            }
            let started = ProcessHandler::start(name, process, settings.slots, settings.max_batch, base_dir).await?;
            Arc::new(match artifacts.filter(|_| process.files) {
                Some(artifacts) => started.with_files(artifacts),
                None => started,
            })
        }
        "data" => {
            let data = settings.data.as_ref().ok_or_else(missing)?;
            Arc::new(DataHandler::new(data, cache.artifacts().cloned()))
        }
        "training" => {
            let training = settings.training.clone().ok_or_else(missing)?;
            let (model, base_dir, cache) = (name.to_owned(), base_dir.to_owned(), cache.clone());
            let loading =
                tokio::task::spawn_blocking(move || TrainingHandler::load(&model, &training, &base_dir, &cache));
            let loaded = loading.await.unwrap_or_else(|_| Err(LoadError::settings(name, "loading it broke off")));
            Arc::new(loaded?)
        }
        "search" => {
            let search = settings.search.as_ref().ok_or_else(missing)?;
            Arc::new(SearchHandler::new(search))
        }
        "simulated" => {
            let simulated = settings.simulated.as_ref().ok_or_else(missing)?;
            Arc::new(SimulatedHandler::new(name, simulated)?)
        }
        other => return Err(unknown_handler(name, other)),
    })
}

/// How to load a model of the settings, as often as it is wanted.
#[derive(Clone)]
pub struct Recipe {
    name: String,
    settings: ModelSettings,
    base_dir: PathBuf,
    cache: ModelCache,
}

impl Recipe {
    /// As [`build`] takes them; nothing is loaded yet.
    ///
    /// # Errors
    /// When the settings contradict themselves.
    pub fn new(name: &str, settings: &ModelSettings, base_dir: &Path, cache: &ModelCache) -> Result<Self, LoadError> {
        check(name, settings)?;
        let (name, settings) = (name.to_owned(), settings.clone());
        Ok(Self { name, settings, base_dir: base_dir.to_owned(), cache: cache.clone() })
    }
}

#[async_trait]
impl Builder for Recipe {
    async fn build(&self) -> Result<Arc<dyn Handler>, BuildError> {
        Ok(build(&self.name, &self.settings, &self.base_dir, &self.cache).await?)
    }
}

fn unknown_handler(name: &str, handler: &str) -> LoadError {
    LoadError::settings(
        name,
        format!("handler must be one of onnx, http, process, training, data, search, simulated, not {handler:?}"),
    )
}

/// What can be wrong whatever the handler is.
fn check(name: &str, settings: &ModelSettings) -> Result<(), LoadError> {
    for (key, value) in [("slots", settings.slots), ("max_batch", settings.max_batch)] {
        if value == 0 {
            return Err(LoadError::settings(name, format!("{key} must be at least 1")));
        }
    }
    let tables = [
        ("onnx", settings.onnx.is_some()),
        ("http", settings.http.is_some()),
        ("process", settings.process.is_some()),
        ("training", settings.training.is_some()),
        ("data", settings.data.is_some()),
        ("search", settings.search.is_some()),
        ("simulated", settings.simulated.is_some()),
    ];
    if tables.iter().all(|(table, _)| *table != settings.handler) {
        return Err(unknown_handler(name, &settings.handler));
    }
    match tables.iter().find(|(table, there)| *there && *table != settings.handler) {
        Some((table, _)) => {
            let reason = format!("there is a table [models.{name}.{table}], but its handler is {:?}", settings.handler);
            Err(LoadError::settings(name, reason))
        }
        None => Ok(()),
    }
}

/// A run in this process takes one core, so slots beyond the cores make each run slower and none sooner.
fn warn_of_idle_slots(name: &str, slots: u32) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if usize::try_from(slots).is_ok_and(|slots| slots > cores) {
        tracing::warn!(task.model = name, slots, cores, "the model has more slots than there are cores");
    }
}
