//! `/v1/artifacts`: files in and out, for tasks that name what they work on; and large inputs, which go the same way by themselves.
//!
//! An artifact is named by its content. Whoever has the name has had the content, or was given the name by somebody who had: so any
//! key with the scope may read it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use taskyard_shared::Envelope;
use taskyard_shared::artifacts::{ArtifactError, ArtifactId, Artifacts, Reference, SCHEME};

use super::Shared;
use super::problem::{Code, Problem};
use super::request::Incoming;

/// The slowest that a large body may come, on top of what any body has.
const SLOWEST_BYTES_A_SECOND: u64 = 256 << 10;
/// Inputs that are put at once, of one call.
const AT_ONCE: usize = 4;

/// What was put, as a task names it.
#[derive(Serialize, JsonSchema)]
pub(super) struct PutArtifact {
    /// `artifact:` and the SHA-256 of the content in hexadecimal digits.
    #[serde(rename = "$ref")]
    to: String,
    bytes: usize,
}

/// `POST /v1/artifacts`
pub(super) async fn post(State(gateway): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let artifacts = gateway.artifacts()?;
    let most = gateway.settings.max_artifact_bytes;
    let limit = gateway.request_limit() + time_for(&parts.headers, most);
    let held = gateway.bodies.read(&parts.headers, body, most, limit).await?;
    if held.bytes.is_empty() {
        return Err(Problem::new(Code::Empty, "body: is empty").at("body"));
    }
    let bytes = held.bytes.len();
    let id = artifacts.put(held.bytes.clone()).await.map_err(|failure| problem(&failure))?;
    Ok((StatusCode::CREATED, Json(PutArtifact { to: id.to_string(), bytes })).into_response())
}

/// `GET /v1/artifacts/{id}`
pub(super) async fn get(
    State(gateway): State<Arc<Shared>>,
    id: Result<Path<String>, axum::extract::rejection::PathRejection>,
) -> Result<Response, Problem> {
    let artifacts = gateway.artifacts()?;
    let Path(text) = id.map_err(|_| missing())?;
    let name = if text.starts_with(SCHEME) { text } else { format!("{SCHEME}{text}") };
    let id: ArtifactId = name.parse().map_err(|_| missing())?;
    let size = artifacts.size(id).await.map_err(|failure| problem(&failure))?;
    let most = gateway.settings.max_artifact_bytes;
    let bytes = usize::try_from(size).ok().filter(|bytes| *bytes <= most);
    let bytes = bytes.ok_or_else(|| Problem::new(Code::TooLarge, format!("it has {size} bytes, over {most}")))?;
    let room = gateway.bodies.take(bytes)?;
    let content = artifacts.get(id, size).await.map_err(|failure| problem(&failure))?;
    // The room is given back with the last of the content.
    let chunks = stream::iter([content]).map(move |content| {
        let _held = &room;
        Ok::<Bytes, std::convert::Infallible>(content)
    });
    let mut response = Body::from_stream(chunks).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    // A browser shows none of it, whatever it is.
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    Ok(response)
}

/// What a body of the size that it says may take.
fn time_for(headers: &HeaderMap, most: usize) -> Duration {
    let said = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    Duration::from_secs(said.unwrap_or(0).min(most as u64) / SLOWEST_BYTES_A_SECOND)
}

impl Shared {
    fn artifacts(&self) -> Result<&Artifacts, Problem> {
        let nowhere = || Problem::new(Code::ArtifactsUnavailable, "artifacts.url is empty: none are kept here");
        self.artifacts.as_ref().ok_or_else(nowhere)
    }

    /// Inputs that are too large to travel are put where artifacts are, and their tasks name them. Where none are kept all travel.
    /// Answers what could not be put, by its place.
    pub(super) async fn put_inputs(&self, incoming: &mut [Incoming]) -> Vec<(usize, Problem)> {
        let Some(artifacts) = self.artifacts.as_ref().filter(|_| self.settings.inline_bytes > 0) else {
            return Vec::new();
        };
        let is_large = |envelope: &Envelope| envelope.input.get().len() > self.settings.inline_bytes;
        let large = incoming.iter_mut().enumerate().filter(|(_, incoming)| is_large(&incoming.envelope));
        let put = large.map(|(index, incoming)| async move {
            put_input(artifacts, &mut incoming.envelope).await.err().map(|problem| (index, problem))
        });
        stream::iter(put.collect::<Vec<_>>()).buffered(AT_ONCE).filter_map(std::future::ready).collect().await
    }
}

async fn put_input(artifacts: &Artifacts, envelope: &mut Envelope) -> Result<(), Problem> {
    let input = std::mem::replace(&mut envelope.input, RawValue::NULL.to_owned());
    let put = artifacts.put(String::from(Box::<str>::from(input)).into()).await;
    let id = put.map_err(|failure| problem(&failure).of_task(envelope.id))?;
    envelope.input = to_raw_value(&Reference { to: id })
        .map_err(|failure| Problem::new(Code::Internal, failure.to_string()).of_task(envelope.id))?;
    Ok(())
}

fn missing() -> Problem {
    Problem::new(Code::ArtifactNotFound, "there is no artifact of this name: it was never put, or was removed")
}

/// What the object store says of itself is for the log, not for callers.
fn problem(failure: &ArtifactError) -> Problem {
    match failure {
        ArtifactError::Missing(_) => missing(),
        ArtifactError::TooLarge { .. } => Problem::new(Code::TooLarge, failure.to_string()),
        ArtifactError::Url(_) | ArtifactError::Folder(_) | ArtifactError::Spoilt(_) | ArtifactError::Unreachable(_) => {
            tracing::warn!(%failure, "an artifact cannot be put or read");
            Problem::new(Code::ArtifactsUnavailable, "artifacts cannot be put or read now")
        }
    }
}
