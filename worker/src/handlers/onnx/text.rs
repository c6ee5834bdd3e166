//! Sentence vectors: a tokenizer and a BERT-like encoder, mean-pooled and L2-normalised.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rten_tensor::{AsView, NdTensor};
use tokenizers::{Tokenizer, TruncationParams};

use super::error::OnnxError;
use super::session::Session;

/// Longer texts are refused: all but the first `max_tokens` would be thrown away after much work.
pub const MAX_TEXT_BYTES: usize = 256 * 1024;

/// Most texts in one run. Gains end at about this many short texts; more would only cost memory.
const MAX_ROWS_PER_RUN: usize = 8;

/// Most tokens in one run, unless a single text has more: from 64 tokens a text on, batching gains nothing.
const MAX_TOKENS_PER_RUN: usize = 512;

const OUTPUT: &str = "last_hidden_state";

/// Turns texts into vectors whose scalar product is their likeness. Share it behind one `Arc`.
#[derive(Debug)]
pub struct TextEncoder {
    session: Arc<Session>,
    tokenizer: Tokenizer,
    inputs: Vec<(Input, rten::NodeId)>,
    output: rten::NodeId,
    dimensions: usize,
    max_tokens: usize,
}

#[derive(Debug, Clone, Copy)]
enum Input {
    TokenIds,
    AttentionMask,
    TokenTypes,
}

impl TextEncoder {
    /// Loads a model with the inputs `input_ids`, `attention_mask` and, if it has it, `token_type_ids`, and the
    /// output `last_hidden_state`. Texts are cut after `max_tokens` tokens, special ones included; the
    /// tokenizer file's own padding and truncation are not used.
    pub fn load(model: &Path, tokenizer: &Path, max_tokens: usize) -> Result<Self, OnnxError> {
        Self::new(Arc::new(Session::load(model, None)?), tokenizer, max_tokens)
    }

    /// The same on a model that is loaded already.
    pub(super) fn new(session: Arc<Session>, tokenizer: &Path, max_tokens: usize) -> Result<Self, OnnxError> {
        let inputs = encoder_inputs(&session)?;
        let output = session.output(OUTPUT)?;
        let dimensions = session.last_dimension(output).filter(|size| *size > 0).ok_or_else(|| {
            OnnxError::wrong_shape(session.path(), format!("the model does not say how wide its output {OUTPUT} is"))
        })?;
        let tokenizer = load_tokenizer(tokenizer, max_tokens)?;
        let encoder = Self { session, tokenizer, inputs, output, dimensions, max_tokens };
        encoder.check_longest_text()?;
        Ok(encoder)
    }

    /// Length of the vectors.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Tokens after which a text is cut.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Of the model's file: SHA-256 in hex. Reads the file if nobody asked before.
    pub fn checksum(&self) -> Result<String, OnnxError> {
        self.session.sha256().map(str::to_owned)
    }

    /// One vector per text, in the order of the texts; the first failure fails the call.
    ///
    /// Only texts of exactly the same number of tokens run together, so nothing is ever padded and a text's
    /// vector does not depend on its neighbours.
    pub fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, OnnxError> {
        self.encode_each(texts, &AtomicBool::new(false)).into_iter().collect()
    }

    /// The same, but what goes wrong with one text, or with one run, is the answer of these texts alone.
    ///
    /// `stop` is looked at between runs: what has not run when it is set is [`OnnxError::Stopped`].
    pub fn encode_each(&self, texts: &[&str], stop: &AtomicBool) -> Vec<Result<Vec<f32>, OnnxError>> {
        let mut vectors = vec![Err(OnnxError::Stopped); texts.len()];
        let mut by_length = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            match self.tokens(index, text) {
                Ok(tokens) => by_length.push((index, tokens)),
                Err(error) => vectors[index] = Err(error),
            }
        }
        by_length.sort_by_key(|(_, tokens)| tokens.len());

        for same_length in by_length.chunk_by(|left, right| left.1.len() == right.1.len()) {
            let length = same_length[0].1.len();
            for rows in same_length.chunks(rows_per_run(length)) {
                if stop.load(Ordering::Relaxed) {
                    return vectors;
                }
                let ids: Vec<i32> = rows.iter().flat_map(|(_, tokens)| tokens.iter().copied()).collect();
                match self.run(ids, rows.len(), length) {
                    Ok(found) => rows.iter().zip(found).for_each(|((index, _), vector)| vectors[*index] = Ok(vector)),
                    Err(error) => rows.iter().for_each(|(index, _)| vectors[*index] = Err(error.clone())),
                }
            }
        }
        vectors
    }

    fn tokens(&self, index: usize, text: &str) -> Result<Vec<i32>, OnnxError> {
        let bad_input = |reason: String| OnnxError::BadInput { index, reason };
        if text.len() > MAX_TEXT_BYTES {
            return Err(bad_input(format!("the text has {} bytes, at most {MAX_TEXT_BYTES} are taken", text.len())));
        }
        // A text that makes the tokenizer panic must not fail the texts beside it.
        let encoding = catch_unwind(AssertUnwindSafe(|| self.tokenizer.encode_fast(text, true)))
            .map_err(|_| bad_input("the tokenizer gave up on the text".to_owned()))?
            .map_err(|error| bad_input(format!("the text cannot be tokenized: {error}")))?;
        if encoding.is_empty() {
            return Err(bad_input("the text has no tokens".to_owned()));
        }
        encoding
            .get_ids()
            .iter()
            .map(|id| i32::try_from(*id).map_err(|_| bad_input(format!("token id {id} is out of range"))))
            .collect()
    }

    /// `ids` holds `rows` times `length` token ids; gives `rows` vectors.
    fn run(&self, ids: Vec<i32>, rows: usize, length: usize) -> Result<Vec<Vec<f32>>, OnnxError> {
        let size = [rows, length];
        let ids = NdTensor::from_data(size, ids);
        let ones = NdTensor::full(size, 1i32);
        let zeros = NdTensor::<i32, 2>::zeros(size);
        let inputs = self
            .inputs
            .iter()
            .map(|(input, id)| {
                let tensor = match input {
                    Input::TokenIds => &ids,
                    Input::AttentionMask => &ones,
                    Input::TokenTypes => &zeros,
                };
                (*id, tensor.view().into())
            })
            .collect();
        let value = self.session.run(inputs, self.output)?;
        let (shape, hidden) = value
            .into_shape_vec::<f32, 3>()
            .map_err(|error| OnnxError::wrong_shape(self.session.path(), format!("output {OUTPUT}: {error}")))?;
        if shape != [rows, length, self.dimensions] {
            let expected = [rows, length, self.dimensions];
            let reason = format!("output {OUTPUT} has the shape {shape:?} instead of {expected:?}");
            return Err(OnnxError::wrong_shape(self.session.path(), reason));
        }
        hidden
            .chunks_exact(length * self.dimensions)
            .map(|states| {
                mean_and_normalise(states, self.dimensions)
                    .ok_or_else(|| OnnxError::run_failed(self.session.path(), "the vector is not finite"))
            })
            .collect()
    }

    /// Runs the longest text there can be, so that a limit beyond the model's own shows now, not in a task.
    fn check_longest_text(&self) -> Result<(), OnnxError> {
        let ids = vec![0; self.max_tokens];
        self.run(ids, 1, self.max_tokens).map(drop).map_err(|error| match error {
            OnnxError::RunFailed { path, reason } => {
                let reason = format!("does not run on {} tokens: {reason}", self.max_tokens);
                OnnxError::WrongShape { path, reason }
            }
            other => other,
        })
    }
}

fn encoder_inputs(session: &Session) -> Result<Vec<(Input, rten::NodeId)>, OnnxError> {
    let mut inputs = vec![
        (Input::TokenIds, session.integer_input("input_ids")?),
        (Input::AttentionMask, session.integer_input("attention_mask")?),
    ];
    for (name, _) in session.inputs() {
        match name {
            "input_ids" | "attention_mask" => {}
            "token_type_ids" => inputs.push((Input::TokenTypes, session.integer_input(name)?)),
            other => {
                let reason = format!("the model needs an input {other} that a text encoder does not have");
                return Err(OnnxError::wrong_shape(session.path(), reason));
            }
        }
    }
    Ok(inputs)
}

fn load_tokenizer(path: &Path, max_tokens: usize) -> Result<Tokenizer, OnnxError> {
    let bytes = std::fs::read(path).map_err(|source| OnnxError::from_io(path, source))?;
    let invalid = |reason: String| OnnxError::invalid_file(path, format!("not a valid tokenizer: {reason}"));
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| invalid(error.to_string()))?;
    let specials = tokenizer.encode_fast("", true).map_err(|error| invalid(error.to_string()))?;
    let specials = specials.get_attention_mask().iter().filter(|mask| **mask == 1).count();
    if max_tokens <= specials {
        let reason = format!("a limit of {max_tokens} tokens leaves no room beside its {specials} special tokens");
        return Err(OnnxError::wrong_shape(path, reason));
    }
    let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
    tokenizer.with_padding(None);
    tokenizer.with_truncation(Some(truncation)).map_err(|error| invalid(error.to_string()))?;
    Ok(tokenizer)
}

fn rows_per_run(length: usize) -> usize {
    (MAX_TOKENS_PER_RUN / length.max(1)).clamp(1, MAX_ROWS_PER_RUN)
}

/// The mean of the states (one after the other, `dimensions` numbers each), of length one.
fn mean_and_normalise(states: &[f32], dimensions: usize) -> Option<Vec<f32>> {
    let mut vector = vec![0.0f32; dimensions];
    for state in states.chunks_exact(dimensions) {
        for (sum, number) in vector.iter_mut().zip(state) {
            *sum += number;
        }
    }
    // Dividing by the number of tokens and then by the norm is dividing by the norm of the sum.
    let norm = vector.iter().map(|number| number * number).sum::<f32>().sqrt();
    if !norm.is_finite() {
        return None;
    }
    let norm = norm.max(1e-12);
    vector.iter_mut().for_each(|number| *number /= norm);
    Some(vector)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use serde::Deserialize;

    use super::super::head::Head;
    use super::*;

    #[derive(Deserialize)]
    struct Known {
        text: String,
        expected: String,
        score: f32,
    }

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    fn encoder() -> TextEncoder {
        let folder = root().join("models/minilm");
        TextEncoder::load(&folder.join("model.onnx"), &folder.join("tokenizer.json"), 128).unwrap()
    }

    fn known_answers(file: &str) -> Vec<Known> {
        let lines = std::fs::read_to_string(root().join("demo").join(file)).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn check_known_answers(head: &str, file: &str) {
        let encoder = encoder();
        let head = Head::load(&root().join("models/heads").join(head)).unwrap();
        let known = known_answers(file);
        assert_eq!(known.len(), 160);
        let texts: Vec<&str> = known.iter().map(|item| item.text.as_str()).collect();
        let vectors = encoder.encode(&texts).unwrap();
        for (item, vector) in known.iter().zip(&vectors) {
            let (label, score) = head.classify(vector, 1).unwrap()[0];
            assert_eq!(label, item.expected, "{}", item.text);
            assert!((score - item.score).abs() < 1e-3, "{}: {score} instead of {}", item.text, item.score);
        }
    }

    #[test]
    fn intents_are_those_of_the_reference_runtime() {
        check_known_answers("banking77.head.json", "intents.jsonl");
    }

    #[test]
    fn sentiments_are_those_of_the_reference_runtime() {
        check_known_answers("finance-sentiment.head.json", "sentiment.jsonl");
    }

    #[test]
    fn a_vector_does_not_depend_on_its_neighbours() {
        let encoder = encoder();
        let texts = ["my card has not arrived", "", "my card has been stolen", "top up", "why was I charged a fee?"];
        let together = encoder.encode(&texts).unwrap();
        for (text, vector) in texts.iter().zip(&together) {
            let alone = &encoder.encode(&[text]).unwrap()[0];
            let difference = alone.iter().zip(vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference < 1e-5, "{text}: {difference}");
            let norm = vector.iter().map(|number| number * number).sum::<f32>().sqrt();
            assert!((norm - 1.0).abs() < 1e-5, "{text}: {norm}");
        }
    }

    #[test]
    fn no_texts_give_no_vectors() {
        assert!(encoder().encode(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_text_is_cut_at_the_limit_and_refused_far_beyond_it() {
        let encoder = encoder();
        let long = "card ".repeat(126);
        let longer = "card ".repeat(300);
        let vectors = encoder.encode(&[&long, &longer]).unwrap();
        assert_eq!(vectors[0], vectors[1]);
        let huge = "a".repeat(MAX_TEXT_BYTES + 1);
        assert!(matches!(encoder.encode(&["fine", &huge]), Err(OnnxError::BadInput { index: 1, .. })));
        let each = encoder.encode_each(&["fine", &huge, "fine too"], &AtomicBool::new(false));
        assert_eq!(each.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    }

    #[test]
    fn nothing_runs_once_stopped() {
        let stopped = encoder().encode_each(&["top up", "where is my refund"], &AtomicBool::new(true));
        assert!(stopped.iter().all(|one| matches!(one, Err(OnnxError::Stopped))) && stopped.len() == 2);
    }

    #[test]
    fn one_encoder_serves_several_threads() {
        let encoder = Arc::new(encoder());
        let alone = encoder.encode(&["where is my refund"]).unwrap();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let encoder = Arc::clone(&encoder);
                std::thread::spawn(move || encoder.encode(&["where is my refund"]).unwrap())
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), alone);
        }
    }

    #[test]
    fn broken_files_are_named_and_told_apart() {
        let folder = root().join("models/minilm");
        let (model, tokenizer) = (folder.join("model.onnx"), folder.join("tokenizer.json"));
        let magika = root().join("models/magika/model.onnx");
        let load = |model: &Path, tokenizer: &Path, tokens| TextEncoder::load(model, tokenizer, tokens).unwrap_err();

        let error = load(Path::new("gone.onnx"), &tokenizer, 128);
        assert!(matches!(error, OnnxError::FileMissing { .. }), "{error}");
        assert!(error.to_string().contains("gone.onnx"));
        let error = load(&tokenizer, &tokenizer, 128);
        assert!(matches!(error, OnnxError::InvalidFile { .. }), "{error}");
        let error = load(&model, &model, 128);
        assert!(matches!(error, OnnxError::InvalidFile { .. }), "{error}");
        let error = load(&magika, &tokenizer, 128);
        assert!(matches!(error, OnnxError::WrongShape { .. }), "{error}");
        for tokens in [0, 2, 513] {
            let error = load(&model, &tokenizer, tokens);
            assert!(matches!(error, OnnxError::WrongShape { .. }), "{tokens}: {error}");
        }
    }
}
