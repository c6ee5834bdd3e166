//! The vectors of many texts, a chunk at a time. A chunk that was made once, by this task or by another, is read again.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use taskyard_shared::TaskError;
use taskyard_shared::artifacts::Artifacts;

use super::broke_off;
use crate::handlers::answer::bad_input;
use crate::handlers::answer::unavailable;
use crate::handlers::onnx::{OnnxError, TextEncoder};

/// Texts whose vectors are made, and kept, together.
pub(super) const CHUNK: usize = 256;

pub(super) struct Vectors {
    pub encoder: Arc<TextEncoder>,
    /// Of the encoder's file, in hex.
    pub checksum: Arc<str>,
    pub artifacts: Artifacts,
}

impl Vectors {
    /// The vectors of at most [`CHUNK`] texts, one after another.
    pub async fn of(&self, texts: &[String], stop: &Arc<AtomicBool>) -> Result<Vec<f32>, TaskError> {
        let numbers = texts.len() * self.encoder.dimensions();
        let name = self.name(texts);
        // Without what was kept it only takes longer.
        let kept = self.artifacts.note(&name, (numbers * size_of::<f32>()) as u64).await.unwrap_or_default();
        if let Some(kept) = kept.and_then(|kept| read(&kept, numbers)) {
            return Ok(kept);
        }
        let (encoder, chunk, stopped) = (Arc::clone(&self.encoder), texts.to_vec(), Arc::clone(stop));
        let run = move || {
            let texts: Vec<&str> = chunk.iter().map(String::as_str).collect();
            encoder.encode_each(&texts, &stopped).into_iter().collect::<Result<Vec<_>, _>>()
        };
        let vectors = tokio::task::spawn_blocking(run).await.map_err(|_| broke_off())?;
        let vectors = vectors.map_err(|failure| match failure {
            OnnxError::BadInput { reason, .. } => bad_input(reason),
            failure => super::failed(failure.to_string()),
        })?;
        let vectors: Vec<f32> = vectors.into_iter().flatten().collect();
        let bytes: Vec<u8> = vectors.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.artifacts.put_note(&name, Bytes::from(bytes)).await.map_err(|failure| unavailable(&failure))?;
        Ok(vectors)
    }

    /// What the vectors are named by: all that they depend on.
    fn name(&self, texts: &[String]) -> String {
        let mut digest = Sha256::new();
        digest.update(self.checksum.as_bytes());
        digest.update(self.encoder.max_tokens().to_le_bytes());
        for text in texts {
            digest.update(text.len().to_le_bytes());
            digest.update(text.as_bytes());
        }
        format!("vectors/{:x}", digest.finalize())
    }
}

fn read(bytes: &[u8], numbers: usize) -> Option<Vec<f32>> {
    let (found, rest) = bytes.as_chunks::<4>();
    (rest.is_empty() && found.len() == numbers)
        .then(|| found.iter().map(|number| f32::from_le_bytes(*number)).collect())
}
