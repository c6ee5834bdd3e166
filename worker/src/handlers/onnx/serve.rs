//! The handler `onnx`: from a task's input to what the model says about it.
//!
//! | task | input | output |
//! |---|---|---|
//! | `text-classification` | `{"text": "…", "top": 3}` | `{"label", "score", "top": [{"label", "score"}, …]}` |
//! | `text-embedding` | `{"text": "…"}` | `{"vector": […]}` |
//! | `file-type` | `{"base64": "…"}` or `{"text": "…"}` | `{"label", "score"}` |
//!
//! A call runs on one thread (see [`Session`](super::session::Session)), so a model with as many slots as there are
//! cores uses all of them. A run that has begun cannot be cut short: of a call that is dropped, what has not run yet
//! is left out, and the rest ends some tens of milliseconds later.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use taskyard_shared::TaskError;
use taskyard_shared::process::settings::{OnnxSettings, OnnxTask};

use super::cache::ModelCache;
use super::error::OnnxError;
use super::file_type::{FileTypeClassifier, MAX_FILES_PER_RUN};
use super::head::Head;
use super::text::TextEncoder;
use crate::handler::{Answer, Handler, Job, codes, error};
use crate::handlers::LoadError;
use crate::handlers::answer::{bad_input, clean, written};

/// Labels in an answer when the input does not say how many.
const TOP: usize = 3;

/// A loaded model of one of the tasks of [`OnnxTask`].
pub struct OnnxHandler {
    model: Arc<Model>,
}

enum Model {
    Classification { encoder: Arc<TextEncoder>, head: Head },
    Embedding { encoder: Arc<TextEncoder> },
    FileType(FileTypeClassifier),
}

impl OnnxHandler {
    /// Loads the model `name`. Blocks for as long as reading and preparing its files takes.
    pub fn load(name: &str, settings: &OnnxSettings, base_dir: &Path, cache: &ModelCache) -> Result<Self, LoadError> {
        let sha256 = settings.sha256.as_deref().map(|hex| checksum(name, hex)).transpose()?;
        let sha256 = sha256.as_deref();
        let file = base_dir.join(&settings.file);
        let needed = |key: &str, path: &Option<PathBuf>| match path {
            Some(path) => Ok(base_dir.join(path)),
            None => Err(LoadError::settings(name, format!("onnx.{key} is missing: its task needs it"))),
        };
        let unused = |key: &str, path: &Option<PathBuf>| match path {
            Some(_) => Err(LoadError::settings(name, format!("onnx.{key} is of no use to its task"))),
            None => Ok(()),
        };
        let fails = |source| LoadError::Onnx { model: name.to_owned(), source };

        let model = match settings.task {
            OnnxTask::TextClassification => {
                unused("config", &settings.config)?;
                let (tokenizer, path) = (needed("tokenizer", &settings.tokenizer)?, needed("head", &settings.head)?);
                // The small file first: what is wrong with it shows before the large one is read.
                let head = Head::load(&path).map_err(fails)?;
                let encoder = cache.encoder(&file, sha256, &tokenizer, settings.max_tokens).map_err(fails)?;
                if head.dimensions() != encoder.dimensions() {
                    let (head, encoder) = (head.dimensions(), encoder.dimensions());
                    let reason = format!("takes vectors of {head} numbers, {} makes {encoder}", file.display());
                    return Err(fails(OnnxError::wrong_shape(&path, reason)));
                }
                Model::Classification { encoder, head }
            }
            OnnxTask::TextEmbedding => {
                unused("config", &settings.config)?;
                unused("head", &settings.head)?;
                let tokenizer = needed("tokenizer", &settings.tokenizer)?;
                let encoder = cache.encoder(&file, sha256, &tokenizer, settings.max_tokens).map_err(fails)?;
                Model::Embedding { encoder }
            }
            OnnxTask::FileType => {
                unused("tokenizer", &settings.tokenizer)?;
                unused("head", &settings.head)?;
                let config = needed("config", &settings.config)?;
                let classifier = FileTypeClassifier::new(&config, || cache.session(&file, sha256));
                Model::FileType(classifier.map_err(fails)?)
            }
        };
        Ok(Self { model: Arc::new(model) })
    }
}

/// Hexadecimal digits as they are compared.
pub(in crate::handlers) fn checksum(name: &str, hex: &str) -> Result<String, LoadError> {
    let hex = hex.trim().to_ascii_lowercase();
    if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(hex)
    } else {
        Err(LoadError::settings(name, "onnx.sha256 must be 64 hexadecimal digits"))
    }
}

#[async_trait]
impl Handler for OnnxHandler {
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        let (model, tasks) = (Arc::clone(&self.model), batch.len());
        let stop = StopWhenDropped::default();
        let stopped = Arc::clone(&stop.0);
        match tokio::task::spawn_blocking(move || model.answer(&batch, &stopped)).await {
            Ok(answers) => answers,
            // It panicked, or the process is going down. Neither says anything about the inputs.
            Err(_) => vec![Err(error(codes::HANDLER_FAILED, "the model's run broke off", true)); tasks],
        }
    }
}

/// Tells the blocking thread that nobody waits for it any more.
#[derive(Default)]
pub(in crate::handlers) struct StopWhenDropped(Arc<AtomicBool>);

impl StopWhenDropped {
    pub fn flag(&self) -> &Arc<AtomicBool> {
        &self.0
    }
}

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextToClassify<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
    top: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextToEmbed<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileToJudge {
    base64: Option<String>,
    text: Option<String>,
}

#[derive(Serialize)]
struct Classified<'a> {
    label: &'a str,
    score: f32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top: Vec<Ranked<'a>>,
}

#[derive(Serialize)]
struct Ranked<'a> {
    label: &'a str,
    score: f32,
}

#[derive(Serialize)]
struct Embedded<'a> {
    vector: &'a [f32],
}

impl Model {
    fn answer(&self, batch: &[Job], stop: &AtomicBool) -> Vec<Answer> {
        match self {
            Model::Classification { encoder, head } => {
                encoded(encoder, stop, batch.iter().map(|job| text_to_classify(&job.input)).collect(), |top, vector| {
                    let ranked = head.classify(vector, top).map_err(task_error)?;
                    let top: Vec<_> = ranked.iter().map(|(label, score)| Ranked { label, score: *score }).collect();
                    let Some(Ranked { label, score }) = top.first() else {
                        return Err(error(codes::HANDLER_FAILED, "the model has no labels", false));
                    };
                    written(&Classified { label, score: *score, top })
                })
            }
            Model::Embedding { encoder } => encoded(
                encoder,
                stop,
                batch.iter().map(|job| read(&job.input).map(|input: TextToEmbed| (input.text, ()))).collect(),
                |(), vector| written(&Embedded { vector }),
            ),
            Model::FileType(classifier) => {
                batch.chunks(MAX_FILES_PER_RUN).flat_map(|jobs| judged(classifier, stop, jobs)).collect()
            }
        }
    }
}

/// Vectors of the texts that could be read, each with what goes along with it, and what `answer` makes of them.
fn encoded<T>(
    encoder: &TextEncoder,
    stop: &AtomicBool,
    inputs: Vec<Result<(Cow<'_, str>, T), TaskError>>,
    answer: impl Fn(T, &[f32]) -> Answer,
) -> Vec<Answer> {
    let texts: Vec<&str> = inputs.iter().flatten().map(|(text, _)| text.as_ref()).collect();
    let mut vectors = encoder.encode_each(&texts, stop).into_iter();
    inputs
        .into_iter()
        .map(|input| {
            let (_, along) = input?;
            let vector = vectors.next().unwrap_or(Err(OnnxError::Stopped)).map_err(task_error)?;
            answer(along, &vector)
        })
        .collect()
}

fn judged(classifier: &FileTypeClassifier, stop: &AtomicBool, jobs: &[Job]) -> Vec<Answer> {
    let files: Vec<Result<Vec<u8>, TaskError>> = jobs.iter().map(|job| file_to_judge(&job.input)).collect();
    let readable: Vec<&[u8]> = files.iter().flatten().map(Vec::as_slice).collect();
    let predictions =
        if stop.load(Ordering::Relaxed) { Err(OnnxError::Stopped) } else { classifier.classify(&readable) };
    let mut predictions = match predictions {
        Ok(predictions) => predictions.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error); readable.len()],
    }
    .into_iter();
    files
        .into_iter()
        .map(|file| {
            file?;
            let found = predictions.next().unwrap_or(Err(OnnxError::Stopped)).map_err(task_error)?;
            written(&Classified { label: &found.label, score: found.score, top: Vec::new() })
        })
        .collect()
}

fn text_to_classify(input: &RawValue) -> Result<(Cow<'_, str>, usize), TaskError> {
    let TextToClassify { text, top } = read(input)?;
    match top.unwrap_or(TOP) {
        0 => Err(bad_input("top must be at least 1")),
        top => Ok((text, top)),
    }
}

fn file_to_judge(input: &RawValue) -> Result<Vec<u8>, TaskError> {
    match read(input)? {
        FileToJudge { base64: Some(base64), text: None } => {
            STANDARD.decode(base64).map_err(|error| bad_input(format!("base64 cannot be decoded: {error}")))
        }
        FileToJudge { base64: None, text: Some(text) } => Ok(text.into_bytes()),
        _ => Err(bad_input("the input needs exactly one of base64 and text")),
    }
}

/// Unknown fields are refused: one that is misspelt would be passed over in silence.
fn read<'a, T: Deserialize<'a>>(input: &'a RawValue) -> Result<T, TaskError> {
    // Else an array would be taken, its members as the fields in their order.
    if !input.get().trim_start().starts_with('{') {
        return Err(bad_input("the input must be a JSON object"));
    }
    serde_json::from_str(input.get()).map_err(|error| bad_input(clean(error.to_string().as_bytes(), 300)))
}

fn task_error(failure: OnnxError) -> TaskError {
    match failure {
        OnnxError::BadInput { reason, .. } => bad_input(reason),
        // Another worker's processor, or a little later this one's, may do better: the attempts are limited anyway.
        other => error(codes::HANDLER_FAILED, other.to_string(), true),
    }
}
