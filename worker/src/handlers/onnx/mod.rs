//! ONNX models in this process, on `rten`: one loaded model shared by every slot.

mod error;
mod file_type;
mod head;
mod session;
mod text;

pub use error::OnnxError;
pub use file_type::{FileTypeClassifier, Prediction};
pub use head::Head;
pub use text::{MAX_TEXT_BYTES, TextEncoder};
