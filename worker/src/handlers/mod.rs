//! One module per way to run a model.

pub mod onnx;
