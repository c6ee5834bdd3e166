//! Reading a request: its path, query, headers and body, each bounded, each refused with a problem.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use taskyard_shared::task::limits;
use taskyard_shared::{Carried, Envelope, Invalid, Task, TaskId, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::{Code, Problem};

/// Room in memory for bodies that are being read or worked on.
const ROOM_UNIT_BYTES: usize = 1024;

/// What a page has when nobody says, and at most.
const PAGE: usize = 50;
const PAGE_MOST: usize = 500;

/// Bounds the memory that request bodies take together.
#[derive(Clone)]
pub(super) struct BodyRoom(Arc<Semaphore>);

/// A body, and its share of the room for as long as it is held.
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _room: Vec<OwnedSemaphorePermit>,
}

impl BodyRoom {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new((bytes / ROOM_UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS))))
    }

    pub(super) fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let units = u32::try_from(bytes.div_ceil(ROOM_UNIT_BYTES)).unwrap_or(u32::MAX);
        self.0
            .clone()
            .try_acquire_many_owned(units)
            .map_err(|_| Problem::new(Code::OverCapacity, "too many large bodies are being read at once"))
    }

    /// Reads a body of at most `most_bytes` within `limit`. One that says that it is larger is not read at all.
    pub(super) async fn read(
        &self,
        headers: &HeaderMap,
        body: Body,
        most_bytes: usize,
        limit: Duration,
    ) -> Result<Held, Problem> {
        let too_large = || Problem::new(Code::TooLarge, format!("the body is over {most_bytes} bytes"));
        let said = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if said.is_some_and(|length| length > most_bytes as u64) {
            return Err(too_large());
        }
        let reading = async {
            let mut stream = body.into_data_stream();
            let mut bytes = BytesMut::new();
            let mut room = Vec::new();
            let mut reserved = 0;
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(|_| Problem::new(Code::BodyIncomplete, "the body ended too early"))?;
                if bytes.len() + chunk.len() > most_bytes {
                    return Err(too_large());
                }
                if bytes.len() + chunk.len() > reserved {
                    // In doubling steps, so that a body in small chunks does not take a permit for each.
                    let more = (bytes.len() + chunk.len() - reserved).max(reserved).min(most_bytes);
                    room.push(self.take(more)?);
                    reserved += more;
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(Held { bytes: bytes.freeze(), _room: room })
        };
        tokio::time::timeout(limit, reading).await.unwrap_or_else(|_| {
            let detail = format!("the body did not arrive within {} ms", limit.as_millis());
            Err(Problem::new(Code::BodyTimeout, detail))
        })
    }
}

/// What a body may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Media {
    Json,
    NdJson,
}

/// The content type, which must be one of these.
pub(super) fn media(headers: &HeaderMap, allowed: &[Media]) -> Result<Media, Problem> {
    let refuse = |detail: &str| Err(Problem::new(Code::UnsupportedMediaType, detail.to_owned()).at("content-type"));
    if headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        let problem = Problem::new(Code::UnsupportedMediaType, "compressed bodies are not read");
        return Err(problem.at("content-encoding"));
    }
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return refuse("the content type must be given");
    };
    let name = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let media = match name.as_str() {
        "application/json" => Media::Json,
        "application/x-ndjson" => Media::NdJson,
        _ => return refuse("the content type is none that this call reads"),
    };
    if allowed.contains(&media) { Ok(media) } else { refuse("the content type is none that this call reads") }
}

/// The `{id}` of a path. What is no UUID was never accepted.
pub(super) async fn path_id(parts: &mut Parts) -> Option<TaskId> {
    let Path(text) = Path::<String>::from_request_parts(parts, &()).await.ok()?;
    text.parse().ok().map(TaskId)
}

/// The query, each name at most once and known to the route.
#[derive(Clone, Debug, Default)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// `known` are names; one that ends in a dot is the beginning of names.
    pub(super) fn read(parts: &Parts, known: &[&str]) -> Result<Self, Problem> {
        let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri) else {
            return Err(Problem::new(Code::InvalidParameter, "the query cannot be read"));
        };
        let mut seen = std::collections::BTreeSet::new();
        for (name, _) in &pairs {
            let is_known = known.iter().any(|known| match known.strip_suffix('.') {
                Some(_) => name.len() > known.len() && name.starts_with(known),
                None => name == known,
            });
            if !is_known {
                return Err(Problem::new(Code::UnknownParameter, format!("{name:?} is not known here")).at(short(name)));
            }
            if !seen.insert(name) {
                return Err(Problem::new(Code::UnknownParameter, format!("{name:?} is given twice")).at(short(name)));
            }
        }
        Ok(Self(pairs))
    }

    /// How many are wanted on a page.
    pub(super) fn limit(&self) -> Result<usize, Problem> {
        let Some(text) = self.get("limit") else { return Ok(PAGE) };
        match text.parse::<u64>() {
            Ok(limit) if limit > 0 => Ok(usize::try_from(limit).unwrap_or(usize::MAX).min(PAGE_MOST)),
            _ => Err(Problem::new(Code::InvalidParameter, "limit: must be a number above 0").at("limit")),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Those that begin so, without that beginning.
    pub(super) fn beginning(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value.as_str())))
    }
}

fn short(name: &str) -> String {
    name.chars().take(64).collect()
}

/// A body that is one JSON object of ours.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    if let Err(error) = std::str::from_utf8(body) {
        return Err(Problem::new(Code::Utf8, format!("body: {error}")).at("body"));
    }
    // Of a type of ours serde also reads an array, field by field in their order.
    let is_object = match body.trim_ascii_start().first() {
        None => return Err(Problem::new(Code::Empty, "body: is empty").at("body")),
        Some(first) => *first == b'{',
    };
    if !is_object && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok() {
        return Err(Problem::new(Code::Shape, "body: must be an object").at("body"));
    }
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Problem::new(Code::InvalidField, error.to_string()).at("body"),
        _ => Problem::new(Code::Json, error.to_string()).at("body"),
    })
}

/// `30s`, `500ms`, `2m`, or seconds without a unit.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" | "" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

/// How long a caller wants to wait: `Prefer: wait=SECONDS` (RFC 7240). Other preferences are passed over.
pub(super) fn preferred_wait(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    for value in headers.get_all("prefer") {
        for preference in value.to_str().unwrap_or_default().split(',') {
            let preference = preference.split(';').next().unwrap_or_default();
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            if name.trim().eq_ignore_ascii_case("wait") {
                let seconds = value.trim().trim_matches('"').parse().map_err(|_| {
                    Problem::new(Code::InvalidHeader, "prefer: wait must be a number of seconds").at("prefer")
                })?;
                return Ok(Some(Duration::from_secs(seconds)));
            }
        }
    }
    Ok(None)
}

/// What the headers say about a task, and whether that names it.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    pub(super) idempotency_key: Option<String>,
    pub(super) carried: Carried,
}

impl Said {
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut said = Self::default();
        if let Some(value) = headers.get("idempotency-key") {
            let text = value.to_str().unwrap_or_default().trim();
            let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
            if text.is_empty()
                || text.len() > limits::IDEMPOTENCY_KEY_BYTES
                || !text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
            {
                let detail = format!(
                    "idempotency-key: must be 1 to {} printable ASCII characters",
                    limits::IDEMPOTENCY_KEY_BYTES
                );
                return Err(Problem::new(Code::InvalidHeader, detail).at("idempotency-key"));
            }
            said.idempotency_key = Some(text.to_owned());
        }
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        said.carried.trace(text("traceparent"), text("tracestate"));
        Ok(said)
    }
}

/// A task that came in, every default filled in.
pub(super) struct Incoming {
    pub(super) envelope: Envelope,
    /// The caller named it, by id or idempotency key: it may be known already.
    pub(super) named: bool,
}

impl Incoming {
    /// By the same rules as over AMQP.
    pub(super) fn new(mut task: Task, said: &Said, now: Timestamp) -> Result<Self, Problem> {
        match (&task.idempotency_key, &said.idempotency_key) {
            (Some(body), Some(header)) if body != header => {
                return Err(Invalid::field("idempotency_key", "differs from the header Idempotency-Key").into());
            }
            (None, Some(header)) => task.idempotency_key = Some(header.clone()),
            _ => {}
        }
        let named = task.id.is_some() || task.idempotency_key.is_some();
        Ok(Self { envelope: Envelope::new(task, &said.carried, now)?, named })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_or_are_seconds() {
        assert_eq!(duration("30s"), Some(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(duration("7"), Some(Duration::from_secs(7)));
        for bad in ["", "s", "-1s", "1.5s", "1h ", "99999999999999999999", "18446744073709551615m", "１s"] {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
    }
}
