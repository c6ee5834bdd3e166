//! ONNX models in this process, on `rten`: one loaded model shared by every slot, and by every model that stands on it.

mod cache;
mod error;
mod file_type;
mod head;
mod serve;
mod session;
mod text;

pub use cache::ModelCache;
pub use error::OnnxError;
pub use file_type::{FileTypeClassifier, Prediction};
pub use head::Head;
pub use serve::OnnxHandler;
pub(super) use serve::{StopWhenDropped, checksum};
pub use text::{MAX_TEXT_BYTES, TextEncoder};
