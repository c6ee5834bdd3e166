//! Runs tasks on models.
//!
//! What stands so far is the inference core that the `onnx` handler is made of.

pub mod handlers;
