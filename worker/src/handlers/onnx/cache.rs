//! Model files that are in memory, so that models which stand on the same encoder share it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use taskyard_shared::artifacts::Artifacts;

use super::error::OnnxError;
use super::session::Session;
use super::text::TextEncoder;

/// Loads each file once, whatever the path it is named by. It keeps nothing alive by itself: a file's memory is freed
/// with the last model that uses it. Clones share their contents.
#[derive(Clone, Debug, Default)]
pub struct ModelCache {
    loaded: Arc<Mutex<Loaded>>,
    artifacts: Option<Artifacts>,
}

#[derive(Debug, Default)]
struct Loaded {
    /// By canonical path.
    sessions: HashMap<PathBuf, Weak<Session>>,
    /// By canonical path of the model and of the tokenizer, and by the limit of tokens.
    encoders: HashMap<(PathBuf, PathBuf, usize), Weak<TextEncoder>>,
}

impl ModelCache {
    /// For models that keep what they make.
    pub fn with_artifacts(artifacts: Option<Artifacts>) -> Self {
        Self { artifacts, ..Self::default() }
    }

    pub(in crate::handlers) fn artifacts(&self) -> Option<&Artifacts> {
        self.artifacts.as_ref()
    }

    /// How many model files are in memory.
    pub fn files_loaded(&self) -> usize {
        self.lock().sessions.values().filter(|session| session.strong_count() > 0).count()
    }

    pub(super) fn session(&self, file: &Path, sha256: Option<&str>) -> Result<Arc<Session>, OnnxError> {
        self.lock().session(file, sha256)
    }

    pub(in crate::handlers) fn encoder(
        &self,
        file: &Path,
        sha256: Option<&str>,
        tokenizer: &Path,
        max_tokens: usize,
    ) -> Result<Arc<TextEncoder>, OnnxError> {
        let key = (canonical(file)?, canonical(tokenizer)?, max_tokens);
        let mut loaded = self.lock();
        let session = loaded.session(file, sha256)?;
        if let Some(encoder) = loaded.encoders.get(&key).and_then(Weak::upgrade) {
            return Ok(encoder);
        }
        let encoder = Arc::new(TextEncoder::new(session, tokenizer, max_tokens)?);
        loaded.encoders.insert(key, Arc::downgrade(&encoder));
        Ok(encoder)
    }

    /// Held while a file is loaded, so that whoever asks for it meanwhile waits instead of loading it as well.
    fn lock(&self) -> std::sync::MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loaded {
    fn session(&mut self, file: &Path, sha256: Option<&str>) -> Result<Arc<Session>, OnnxError> {
        let key = canonical(file)?;
        if let Some(session) = self.sessions.get(&key).and_then(Weak::upgrade) {
            sha256.map_or(Ok(()), |expected| session.check(expected))?;
            return Ok(session);
        }
        // Errors name the file as the settings do, so it is not loaded by its canonical path.
        let session = Arc::new(Session::load(file, sha256)?);
        self.sessions.insert(key, Arc::downgrade(&session));
        Ok(session)
    }
}

fn canonical(path: &Path) -> Result<PathBuf, OnnxError> {
    fs::canonicalize(path).map_err(|source| OnnxError::from_io(path, source))
}
