//! What can go wrong between a model file and an answer.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Failure of loading or running a model. [`BadInput`](OnnxError::BadInput) concerns one item of one call; everything
/// else concerns the model or the run.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    #[error("{}: no such file", path.display())]
    FileMissing { path: PathBuf },

    #[error("{}: cannot be read: {source}", path.display())]
    FileUnreadable { path: PathBuf, source: Arc<io::Error> },

    /// The file is there but is not what it should be: not a model, not a tokenizer, broken numbers.
    #[error("{}: {reason}", path.display())]
    InvalidFile { path: PathBuf, reason: String },

    #[error("{}: its sha256 is {found}, the settings say {expected}", path.display())]
    WrongChecksum { path: PathBuf, expected: String, found: String },

    /// The files are valid, each by itself, but their inputs, outputs or dimensions do not fit.
    #[error("{}: {reason}", path.display())]
    WrongShape { path: PathBuf, reason: String },

    /// Item `index` of the call cannot be worked on; the others could be.
    #[error("input {index}: {reason}")]
    BadInput { index: usize, reason: String },

    #[error("{}: the run failed: {reason}", path.display())]
    RunFailed { path: PathBuf, reason: String },

    /// Nobody waits for the answer any more.
    #[error("stopped before it ran")]
    Stopped,
}

impl OnnxError {
    pub(super) fn from_io(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        if source.kind() == io::ErrorKind::NotFound {
            Self::FileMissing { path }
        } else {
            Self::FileUnreadable { path, source: Arc::new(source) }
        }
    }

    pub(super) fn invalid_file(path: &Path, reason: impl Into<String>) -> Self {
        Self::InvalidFile { path: path.to_path_buf(), reason: reason.into() }
    }

    pub(super) fn wrong_shape(path: &Path, reason: impl Into<String>) -> Self {
        Self::WrongShape { path: path.to_path_buf(), reason: reason.into() }
    }

    pub(super) fn run_failed(path: &Path, reason: impl Into<String>) -> Self {
        Self::RunFailed { path: path.to_path_buf(), reason: reason.into() }
    }
}
