//! The handler `training`: learns to tell texts apart, from rows of texts with their labels.
//!
//! What it makes is a head for a sentence encoder, which the handler `onnx` serves as a `text-classification`. It is fitted by
//! multinomial logistic regression (L-BFGS, by `linfa`) on the encoder's vectors.
//!
//! What was done is kept as it goes, in the artifacts: vectors by their texts, the weights under the task's id every
//! [`ROUND`](fit::ROUND) iterations. Another attempt, wherever it runs, goes on from there.

mod fit;
mod order;
mod vectors;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use taskyard_shared::artifacts::{ARTIFACT_BYTES, Artifacts, Reference};
use taskyard_shared::process::settings::TrainingSettings;
use taskyard_shared::{TaskError, TaskId};

use self::fit::{Examples, Measured, ROUND, Weights, goes_on};
use self::order::{Labelled, Order, Row, Rows, read_rows, split};
use self::vectors::{CHUNK, Vectors};
use crate::handler::{Answer, Handler, Job, codes, error};
use crate::handlers::LoadError;
use crate::handlers::answer::{bad_input, unavailable, written};
use crate::handlers::onnx::{ModelCache, StopWhenDropped, checksum};

const NOWHERE: &str = "training needs a place for what it makes, and artifacts.url is empty";

/// Making vectors is so much of all the work, for how far it is.
const VECTORS_PART: f64 = 0.8;

/// An encoder to learn on, and where what is learnt goes.
pub struct TrainingHandler {
    /// Nothing where there is no place for what it would make.
    trainer: Option<Trainer>,
}

struct Trainer {
    vectors: Vectors,
    max_rows: usize,
}

impl TrainingHandler {
    /// Loads the encoder. Blocks for as long as that takes. Without a place for artifacts its tasks fail.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn load(
        name: &str,
        settings: &TrainingSettings,
        base_dir: &Path,
        cache: &ModelCache,
    ) -> Result<Self, LoadError> {
        let sha256 = settings.sha256.as_deref().map(|hex| checksum(name, hex)).transpose()?;
        let fails = |source| LoadError::Onnx { model: name.to_owned(), source };
        let (file, tokenizer) = (base_dir.join(&settings.file), base_dir.join(&settings.tokenizer));
        let encoder = cache.encoder(&file, sha256.as_deref(), &tokenizer, settings.max_tokens).map_err(fails)?;
        let checksum = encoder.checksum().map_err(fails)?.into();
        let Some(artifacts) = cache.artifacts().cloned() else {
            tracing::warn!(task.model = name, "{NOWHERE}: its tasks fail");
            return Ok(Self { trainer: None });
        };
        let vectors = Vectors { encoder, checksum, artifacts };
        Ok(Self { trainer: Some(Trainer { vectors, max_rows: settings.max_rows }) })
    }
}

impl Trainer {
    async fn train(&self, job: &Job, stop: &Arc<AtomicBool>) -> Answer {
        let began = Instant::now();
        let order = Order::read(&job.input).map_err(bad_input)?;
        let (learnt, tested) = self.rows(&order).await?;
        let learnt = Labelled::new(learnt).map_err(bad_input)?;
        let (tested, strange) = learnt.to_test(tested);
        let rows = (learnt.texts.len(), tested.texts.len());
        let all = rows.0 + rows.1;

        let mut done = 0;
        let mut matrices = Vec::new();
        for texts in [&learnt.texts, &tested.texts] {
            let mut numbers = Vec::with_capacity(texts.len() * self.dimensions());
            for chunk in texts.chunks(CHUNK) {
                numbers.extend(self.vectors.of(chunk, stop).await?);
                done += chunk.len();
                report(job, VECTORS_PART * done as f64 / all as f64, format!("{done} of {all} vectors"));
            }
            let shape = (texts.len(), self.dimensions());
            matrices.push(Array2::from_shape_vec(shape, numbers).map_err(|failure| failed(failure.to_string()))?);
        }
        let (Some(test), Some(train)) = (matrices.pop(), matrices.pop()) else { return Err(broke_off()) };
        let classes = learnt.labels.len();
        let train = Arc::new(Examples::new(train, learnt.of, classes));

        let identity = identity(&order, &learnt.labels, &learnt.texts);
        let fitted = self.fit(job, &order, &learnt.labels, &identity, &train).await?;
        let test = Examples::new(test, tested.of, classes);
        let measured = test.measure(&fitted.weights);
        let output = self.keep(&order, &learnt.labels, rows, strange, &fitted, measured, began).await?;
        // It has been of use: what is left of it is only in the way.
        if let Err(failure) = self.artifacts().remove_note(&place(job.id)).await {
            tracing::debug!(%failure, task.id = %job.id.0, "a checkpoint is left behind");
        }
        Ok(output)
    }

    fn dimensions(&self) -> usize {
        self.vectors.encoder.dimensions()
    }

    fn artifacts(&self) -> &Artifacts {
        &self.vectors.artifacts
    }

    /// The rows to learn from, and those to test on.
    async fn rows(&self, order: &Order) -> Result<(Vec<Row>, Vec<Row>), TaskError> {
        let rows = self.fetch(&order.rows, self.max_rows).await?;
        Ok(match &order.test_rows {
            Some(tested) => {
                let left = self.max_rows - rows.len();
                (rows, self.fetch(tested, left).await?)
            }
            None => split(rows, order.held_out),
        })
    }

    async fn fetch(&self, rows: &Rows, most: usize) -> Result<Vec<Row>, TaskError> {
        let references = match rows {
            Rows::Here(rows) => return checked(rows.clone(), most),
            Rows::There(reference) => std::slice::from_ref(reference),
            Rows::Parts(references) => references,
        };
        let mut rows = Vec::new();
        for reference in references {
            let content =
                self.artifacts().get(reference.to, ARTIFACT_BYTES).await.map_err(|failure| unavailable(&failure))?;
            let left = most - rows.len();
            let read = tokio::task::spawn_blocking(move || read_rows(&content, left)).await.map_err(|_| broke_off())?;
            rows.extend(read.map_err(|problem| bad_input(format!("{}: {problem}", reference.to)))?);
        }
        Ok(rows)
    }

    /// Goes on from the checkpoint if there is one, to where it gets no better.
    async fn fit(
        &self,
        job: &Job,
        order: &Order,
        labels: &[String],
        identity: &str,
        train: &Arc<Examples>,
    ) -> Result<Fitted, TaskError> {
        let resumed = self.checkpoint(job.id, identity, labels.len()).await?;
        let resumed_from = resumed.as_ref().map(|(iterations, _)| *iterations);
        let (mut iterations, mut weights) = match resumed {
            Some((iterations, weights)) => (iterations, Some(weights)),
            None => (0, self.warm(order, labels.len()).await?),
        };
        let mut loss = weights.as_ref().map(|weights| train.loss(weights));
        while iterations < order.max_iterations {
            let (examples, from, left, l2) =
                (Arc::clone(train), weights.clone(), order.max_iterations - iterations, order.l2);
            // A round takes a moment, so one that nobody waits for any more may as well end.
            let round = tokio::task::spawn_blocking(move || {
                let weights = examples.improve(from.as_ref(), left, l2)?;
                let loss = examples.loss(&weights);
                Ok::<_, String>((weights, loss))
            });
            let (next, next_loss) = match round.await.map_err(|_| broke_off())? {
                Ok(next) => next,
                // Where no step makes it better the search gives up: the best there is has been found.
                Err(problem) if weights.is_some() => {
                    tracing::debug!(task.id = %job.id.0, iterations, %problem, "the fit ends");
                    break;
                }
                Err(problem) => return Err(failed(problem)),
            };
            iterations += ROUND.min(order.max_iterations - iterations);
            let is_better = loss.is_none_or(|before| goes_on(before, next_loss));
            (weights, loss) = (Some(next), Some(next_loss));
            let part = VECTORS_PART + (1.0 - VECTORS_PART) * iterations as f64 / order.max_iterations as f64;
            report(job, part, format!("iteration {iterations}: loss {next_loss:.4}"));
            if !is_better {
                break;
            }
            if let Some(weights) = &weights {
                self.keep_checkpoint(job.id, identity, iterations, weights).await?;
            }
        }
        match (weights, loss) {
            (Some(weights), Some(loss)) => Ok(Fitted { weights, loss, iterations, resumed_from }),
            _ => Err(failed("nothing was learnt".to_owned())),
        }
    }

    async fn warm(&self, order: &Order, labels: usize) -> Result<Option<Weights>, TaskError> {
        let Some(Reference { to }) = order.warm_start else { return Ok(None) };
        let bytes = self.artifacts().get(to, ARTIFACT_BYTES).await.map_err(|failure| unavailable(&failure))?;
        let weights = Weights::from_bytes(&bytes, self.dimensions(), labels);
        weights.map(Some).map_err(|problem| bad_input(format!("warm_start: {to} {problem}")))
    }

    async fn checkpoint(&self, id: TaskId, identity: &str, labels: usize) -> Result<Option<(u64, Weights)>, TaskError> {
        let kept = self.artifacts().note(&place(id), ARTIFACT_BYTES).await.map_err(|failure| unavailable(&failure))?;
        let Some(kept) = kept else { return Ok(None) };
        // One line of JSON, then the weights. What cannot be read is not gone on from.
        let read = || {
            let end = kept.iter().position(|byte| *byte == b'\n')?;
            let (line, rest) = kept.split_at_checked(end)?;
            let checkpoint: Checkpoint = serde_json::from_slice(line).ok()?;
            let weights = Weights::from_bytes(rest.get(1..)?, self.dimensions(), labels).ok()?;
            (checkpoint.identity == identity).then_some((checkpoint.iterations, weights))
        };
        Ok(read())
    }

    async fn keep_checkpoint(
        &self,
        id: TaskId,
        identity: &str,
        iterations: u64,
        weights: &Weights,
    ) -> Result<(), TaskError> {
        let checkpoint = Checkpoint { identity: identity.to_owned(), iterations };
        let mut bytes = serde_json::to_vec(&checkpoint).map_err(|failure| failed(failure.to_string()))?;
        bytes.push(b'\n');
        bytes.extend(weights.to_bytes());
        self.artifacts().put_note(&place(id), bytes.into()).await.map_err(|failure| unavailable(&failure))
    }

    /// Writes the head's two files, and what there is to say about it.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the answer, and this is where they meet")]
    async fn keep(
        &self,
        order: &Order,
        labels: &[String],
        rows: (usize, usize),
        strange: usize,
        fitted: &Fitted,
        measured: Measured,
        began: Instant,
    ) -> Answer {
        let (head_file, weights_file) = (format!("{}.head.json", order.name), format!("{}.head.f32", order.name));
        let head = json!({
            "name": order.name,
            "labels": labels,
            "dimensions": self.dimensions(),
            "weights": weights_file,
            "encoder_sha256": *self.vectors.checksum,
            "max_tokens": self.vectors.encoder.max_tokens(),
            "l2": order.l2,
            "iterations": fitted.iterations,
            "rows": {"train": rows.0, "test": rows.1},
            "metrics": measured,
        });
        let head = serde_json::to_vec_pretty(&head).map_err(|failure| failed(failure.to_string()))?;
        let put = async |content: Vec<u8>| {
            let id = self.artifacts().put(Bytes::from(content)).await.map_err(|failure| unavailable(&failure))?;
            Ok::<_, TaskError>(Reference { to: id })
        };
        let weights = put(fitted.weights.to_bytes()).await?;
        let head = put(head).await?;
        written(&Output {
            name: &order.name,
            files: [(head_file, head), (weights_file, weights)].into(),
            weights,
            metrics: Metrics { measured, train_loss: fitted.loss },
            labels: labels.len(),
            rows: RowCounts { train: rows.0, test: rows.1, of_unknown_labels: strange },
            l2: order.l2,
            iterations: fitted.iterations,
            resumed_from: fitted.resumed_from,
            seconds: began.elapsed().as_secs_f64(),
            note: order.note.as_deref(),
        })
    }
}

struct Fitted {
    weights: Weights,
    /// On what it learnt from.
    loss: f64,
    iterations: u64,
    /// Iterations that an earlier attempt had made.
    resumed_from: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Checkpoint {
    /// Of what is learnt, and how.
    identity: String,
    iterations: u64,
}

/// The output of a training task.
#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
    /// What serves it needs, by their names.
    files: std::collections::BTreeMap<String, Reference>,
    /// For a `warm_start`.
    weights: Reference,
    metrics: Metrics,
    labels: usize,
    rows: RowCounts,
    l2: f64,
    iterations: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed_from: Option<u64>,
    /// Of this attempt.
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Metrics {
    #[serde(flatten)]
    measured: Measured,
    train_loss: f64,
}

#[derive(Serialize)]
struct RowCounts {
    train: usize,
    test: usize,
    /// Rows to test on whose labels were not among those learnt: they are left out.
    of_unknown_labels: usize,
}

#[async_trait]
impl Handler for TrainingHandler {
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        let Some(trainer) = &self.trainer else {
            return vec![Err(error(codes::NO_ARTIFACTS, NOWHERE, false)); batch.len()];
        };
        let stop = StopWhenDropped::default();
        let mut answers = Vec::with_capacity(batch.len());
        for job in &batch {
            answers.push(trainer.train(job, stop.flag()).await);
        }
        answers
    }
}

fn report(job: &Job, part: f64, message: String) {
    job.meanwhile.progress(part, Some(&message));
}

/// What a checkpoint must have been made of to be gone on from.
fn identity(order: &Order, labels: &[String], texts: &[String]) -> String {
    let mut digest = Sha256::new();
    digest.update(order.l2.to_le_bytes());
    digest.update(format!("{:?}", order.warm_start));
    for text in labels.iter().chain(texts) {
        digest.update(text.len().to_le_bytes());
        digest.update(text.as_bytes());
    }
    format!("{:x}", digest.finalize())
}

fn place(id: TaskId) -> String {
    format!("checkpoints/{}", id.0)
}

fn checked(rows: Vec<Row>, most: usize) -> Result<Vec<Row>, TaskError> {
    match rows.len() > most {
        true => Err(bad_input(format!("there are more than {most} rows (training.max_rows, with those to test on)"))),
        false => Ok(rows),
    }
}

fn failed(message: String) -> TaskError {
    error(codes::HANDLER_FAILED, message, false)
}

fn broke_off() -> TaskError {
    error(codes::HANDLER_FAILED, "the training broke off", true)
}
