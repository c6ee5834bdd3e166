//! Models that deployments registered: the settings of a model that stands in the configuration, on files out of the artifacts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use taskyard_shared::artifacts::ARTIFACT_BYTES;
use taskyard_shared::deployment::{Registration, Variant};
use taskyard_shared::load::ModelSpec;
use taskyard_shared::process::settings::ModelSettings;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::{LoadError, ModelCache, build};
use crate::builder::{BuildError, Builder};
use crate::handler::Handler;
use crate::registrations::Foundry;

/// Makes models like those of a configuration.
pub struct RecipeBook {
    models: BTreeMap<String, ModelSettings>,
    base_dir: PathBuf,
    cache: ModelCache,
    /// The files of all of them, as long as the process lives.
    folder: Arc<OnceCell<TempDir>>,
}

impl RecipeBook {
    /// What [`Recipe`](super::Recipe) takes, of all models that others may be like.
    pub fn new(models: BTreeMap<String, ModelSettings>, base_dir: &Path, cache: &ModelCache) -> Self {
        Self { models, base_dir: base_dir.to_owned(), cache: cache.clone(), folder: Arc::default() }
    }
}

impl Foundry for RecipeBook {
    fn found(&self, name: &str, registration: &Registration) -> Option<(ModelSpec, Arc<dyn Builder>)> {
        let mut settings = self.models.get(&registration.like)?.clone();
        let Variant { capabilities, quality, expected_ms, .. } = &registration.variant;
        // Made of other files, what it can do, and how well, is another matter.
        settings.capabilities = capabilities.clone().unwrap_or_default();
        settings.quality = *quality;
        settings.expected_ms = expected_ms.or(settings.expected_ms);
        // A version in its name counts; without one it is the first of its own.
        settings.version = name.split_once('@').map_or("1", |(_, version)| version).to_owned();
        let spec = settings.spec(name);
        let builder = RegisteredRecipe {
            name: name.to_owned(),
            settings,
            variant: registration.variant.clone(),
            base_dir: self.base_dir.clone(),
            cache: self.cache.clone(),
            folder: self.folder.clone(),
        };
        Some((spec, Arc::new(builder)))
    }
}

struct RegisteredRecipe {
    name: String,
    settings: ModelSettings,
    variant: Variant,
    base_dir: PathBuf,
    cache: ModelCache,
    folder: Arc<OnceCell<TempDir>>,
}

impl RegisteredRecipe {
    /// Writes its files into a folder of their own.
    async fn fetch(&self) -> Result<TempDir, BuildError> {
        let nowhere = || LoadError::settings(&self.name, "it was registered, and artifacts.url is empty");
        let artifacts = self.cache.artifacts().ok_or_else(nowhere)?;
        let folder =
            self.folder.get_or_try_init(async || tempfile::Builder::new().prefix("taskyard-").tempdir()).await?;
        // Its name may be another's later, with other files. Two loads never write into the same folder.
        let folder = tempfile::Builder::new().prefix("model-").tempdir_in(folder.path())?;
        for (name, reference) in &self.variant.files {
            let content = artifacts.get(reference.to, ARTIFACT_BYTES).await?;
            tokio::fs::write(folder.path().join(name), content).await?;
        }
        Ok(folder)
    }

    fn on_files(&self, folder: &Path) -> Result<ModelSettings, LoadError> {
        let mut settings = self.settings.clone();
        let other = || {
            LoadError::settings(
                &self.name,
                format!("a model like one of handler {:?} cannot be registered", self.settings.handler),
            )
        };
        let onnx = settings.onnx.as_mut().ok_or_else(other)?;
        let place = |name: &Option<String>| name.as_ref().map(|name| folder.join(name));
        if let Some(file) = place(&self.variant.file) {
            onnx.file = file;
            // It was that of another file. This one was checked when it was fetched.
            onnx.sha256 = None;
        }
        onnx.tokenizer = place(&self.variant.tokenizer).or(onnx.tokenizer.take());
        onnx.head = place(&self.variant.head).or(onnx.head.take());
        Ok(settings)
    }
}

#[async_trait]
impl Builder for RegisteredRecipe {
    async fn build(&self) -> Result<Arc<dyn Handler>, BuildError> {
        // Gone when it is built: all that is needed of it is in memory then.
        let folder = self.fetch().await?;
        // Files that the variant does not name are those of the configuration: absolute ones stay as they are.
        let settings = self.on_files(folder.path())?;
        Ok(build(&self.name, &settings, &self.base_dir, &self.cache).await?)
    }
}
