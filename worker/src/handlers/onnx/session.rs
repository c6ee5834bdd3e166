//! One loaded ONNX model and how it is run: from many threads at once, each run on one core.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rten::{DataType, Dimension, Model, ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueOrView, ValueType};

use sha2::{Digest, Sha256};

use super::error::OnnxError;

/// Pools of one thread each, idle between runs and shared by all models of the process.
///
/// A run takes one and gives it back, so there are never more than runs at the same time: slots give the
/// parallelism, not the runtime. One pool for all would put every run in a single file; the runtime's own
/// default would let each run spread over all cores and so over the other slots.
static IDLE_POOLS: Mutex<Vec<Arc<ThreadPool>>> = Mutex::new(Vec::new());

pub(super) struct Session {
    model: Model,
    path: PathBuf,
    /// Of the file, in hex; made when first asked for, as it costs a second over a large file.
    sha256: OnceLock<String>,
}

impl Session {
    /// Reads the model and packs its weights for the processor. For a sentence encoder of 23 MB this takes some
    /// 15 ms more to load and saves 4 ms of every run. `sha256`, in lower-case hex, is what the file must have.
    pub(super) fn load(path: &Path, sha256: Option<&str>) -> Result<Self, OnnxError> {
        let bytes = std::fs::read(path).map_err(|source| OnnxError::from_io(path, source))?;
        let found = OnceLock::new();
        if let Some(expected) = sha256 {
            same_checksum(path, expected, found.get_or_init(|| checksum(&bytes)))?;
        }
        let mut options = ModelOptions::with_all_ops();
        options.prepack_weights(true);
        // The runtime answers most broken files with an error; a panic must not take the worker with it.
        let model = catch_unwind(AssertUnwindSafe(|| options.load(bytes)))
            .map_err(|_| OnnxError::invalid_file(path, "not a valid ONNX model: the runtime gave up reading it"))?
            .map_err(|error| OnnxError::invalid_file(path, format!("not a valid ONNX model: {error}")))?;
        Ok(Self { model, path: path.to_path_buf(), sha256: found })
    }

    /// Holds a session that is loaded already against a checksum.
    pub(super) fn check(&self, sha256: &str) -> Result<(), OnnxError> {
        same_checksum(&self.path, sha256, self.sha256()?)
    }

    /// Of its file, in hex.
    pub(super) fn sha256(&self) -> Result<&str, OnnxError> {
        if let Some(found) = self.sha256.get() {
            return Ok(found);
        }
        let bytes = std::fs::read(&self.path).map_err(|source| OnnxError::from_io(&self.path, source))?;
        Ok(self.sha256.get_or_init(|| checksum(&bytes)))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The model's inputs by name.
    pub(super) fn inputs(&self) -> Vec<(&str, NodeId)> {
        self.names(self.model.input_ids())
    }

    /// The model's output of this name.
    pub(super) fn output(&self, name: &str) -> Result<NodeId, OnnxError> {
        let outputs = self.names(self.model.output_ids());
        outputs.iter().find(|(found, _)| *found == name).map(|(_, id)| *id).ok_or_else(|| {
            OnnxError::wrong_shape(&self.path, format!("no output {name}; the model has {}", list(&outputs)))
        })
    }

    /// The model's input of this name, which must take 32-bit (or, in the file, 64-bit) integers.
    pub(super) fn integer_input(&self, name: &str) -> Result<NodeId, OnnxError> {
        let inputs = self.inputs();
        let id = inputs.iter().find(|(found, _)| *found == name).map(|(_, id)| *id).ok_or_else(|| {
            OnnxError::wrong_shape(&self.path, format!("no input {name}; the model has {}", list(&inputs)))
        })?;
        match self.model.node_info(id).and_then(|info| info.dtype()) {
            None | Some(ValueType::Tensor(DataType::Int32)) => Ok(id),
            Some(_) => Err(OnnxError::wrong_shape(&self.path, format!("input {name} does not take integers"))),
        }
    }

    /// The fixed size of a node's last dimension, if the model declares one.
    pub(super) fn last_dimension(&self, id: NodeId) -> Option<usize> {
        match self.model.node_info(id)?.shape()?.last()? {
            Dimension::Fixed(size) => Some(*size),
            Dimension::Symbolic(_) => None,
        }
    }

    /// Runs the model on one thread.
    pub(super) fn run(&self, inputs: Vec<(NodeId, ValueOrView<'_>)>, output: NodeId) -> Result<Value, OnnxError> {
        let pool = take_pool();
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(&pool)));
        let answer = catch_unwind(AssertUnwindSafe(|| self.model.run(inputs, &[output], Some(options))));
        give_back(pool);
        let mut values = answer
            .map_err(|_| OnnxError::run_failed(&self.path, "the runtime gave up"))?
            .map_err(|error| OnnxError::run_failed(&self.path, error.to_string()))?;
        values.pop().ok_or_else(|| OnnxError::run_failed(&self.path, "no output came back"))
    }

    fn names(&self, ids: &[NodeId]) -> Vec<(&str, NodeId)> {
        ids.iter().map(|id| (self.model.node_info(*id).and_then(|info| info.name()).unwrap_or_default(), *id)).collect()
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Session").field("path", &self.path).finish_non_exhaustive()
    }
}

fn checksum(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn same_checksum(path: &Path, expected: &str, found: &str) -> Result<(), OnnxError> {
    if found == expected {
        return Ok(());
    }
    let (path, expected, found) = (path.to_path_buf(), expected.to_owned(), found.to_owned());
    Err(OnnxError::WrongChecksum { path, expected, found })
}

fn list(nodes: &[(&str, NodeId)]) -> String {
    nodes.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn take_pool() -> Arc<ThreadPool> {
    let idle = IDLE_POOLS.lock().unwrap_or_else(PoisonError::into_inner).pop();
    idle.unwrap_or_else(|| Arc::new(ThreadPool::with_num_threads(1)))
}

fn give_back(pool: Arc<ThreadPool>) {
    IDLE_POOLS.lock().unwrap_or_else(PoisonError::into_inner).push(pool);
}
