//! From bytes to tasks. Nothing here panics or allocates by what a sender claims, and every refusal names its field.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::task::{Kind, Priority, Target, Task, TaskId, Webhook, limits};
use crate::time::Timestamp;

/// Why a body or one task of it cannot be taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Invalid {
    /// Stable, for programs: `empty`, `too_large`, `utf8`, `json`, `depth`, `shape` or `invalid_field`.
    pub code: &'static str,
    /// The field at fault; `body` when it is the message as a whole.
    pub field: Cow<'static, str>,
    pub message: String,
    /// The id of the task at fault, where it could be read.
    pub id: Option<TaskId>,
}

impl Invalid {
    /// A field that cannot be taken.
    pub fn field(name: &'static str, message: impl Display) -> Self {
        field(name, message)
    }
}

fn body(code: &'static str, message: impl Display) -> Invalid {
    Invalid { code, field: "body".into(), message: message.to_string(), id: None }
}

fn field(name: &'static str, message: impl Display) -> Invalid {
    Invalid { code: "invalid_field", field: name.into(), message: message.to_string(), id: None }
}

/// Reads one task, or a JSON array of tasks of which each is judged by itself.
///
/// # Errors
/// When the body as a whole cannot be read. A bad member of an array is an `Err` in its place.
pub fn decode_tasks(bytes: &[u8]) -> Result<Vec<Result<Task, Invalid>>, Invalid> {
    if bytes.len() > limits::BODY_BYTES {
        return Err(body("too_large", format_args!("is over {} bytes", limits::BODY_BYTES)));
    }
    let text =
        std::str::from_utf8(bytes).map_err(|error| body("utf8", error))?.trim_start_matches([' ', '\t', '\r', '\n']);
    check_depth(text)?;
    match text.as_bytes().first() {
        None => Err(body("empty", "is empty")),
        Some(b'{') => {
            let raw = serde_json::from_str::<&RawValue>(text).map_err(|error| body("json", error))?;
            decode_task(raw).map(|task| vec![Ok(task)])
        }
        Some(b'[') => {
            let members = serde_json::from_str::<Vec<&RawValue>>(text).map_err(|error| body("json", error))?;
            match members.len() {
                0 => Err(body("empty", "is an empty array")),
                count if count > limits::BATCH_TASKS => {
                    Err(body("too_large", format_args!("holds over {} tasks", limits::BATCH_TASKS)))
                }
                _ => Ok(members.into_iter().map(decode_task).collect()),
            }
        }
        Some(_) => match serde_json::from_str::<&RawValue>(text) {
            Ok(_) => Err(body("shape", "must be an object or an array of objects")),
            Err(error) => Err(body("json", error)),
        },
    }
}

/// Nesting is counted before parsing, since a payload kept as raw JSON is never walked by the parser's own limit.
fn check_depth(text: &str) -> Result<(), Invalid> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in text.bytes() {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => in_string = false,
            (true, _) => {}
            (false, b'"') => in_string = true,
            (false, b'[' | b'{') => {
                depth += 1;
                if depth > limits::DEPTH {
                    return Err(body("depth", format_args!("is nested deeper than {}", limits::DEPTH)));
                }
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            (false, _) => {}
        }
    }
    Ok(())
}

/// Each field as its own bytes, so that a bad one can be named. Unknown fields are passed over: a newer minor version.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    capability: Option<&'a RawValue>,
    #[serde(borrow)]
    kind: Option<&'a RawValue>,
    /// `null` is an input too.
    #[serde(borrow, default, deserialize_with = "present")]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    priority: Option<&'a RawValue>,
    #[serde(borrow)]
    tenant: Option<&'a RawValue>,
    #[serde(borrow)]
    deadline: Option<&'a RawValue>,
    #[serde(borrow)]
    deadline_ms: Option<&'a RawValue>,
    #[serde(borrow)]
    not_before: Option<&'a RawValue>,
    #[serde(borrow)]
    delay_ms: Option<&'a RawValue>,
    #[serde(borrow)]
    cost: Option<&'a RawValue>,
    #[serde(borrow)]
    timeout_ms: Option<&'a RawValue>,
    #[serde(borrow)]
    max_attempts: Option<&'a RawValue>,
    #[serde(borrow)]
    idempotency_key: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    webhook: Option<&'a RawValue>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn decode_task(raw: &RawValue) -> Result<Task, Invalid> {
    let text = raw.get();
    // A derived struct would also read a positional array.
    if !text.starts_with('{') {
        return Err(body("shape", "a task must be an object"));
    }
    if text.len() > limits::TASK_BYTES {
        return Err(body("too_large", format_args!("a task is over {} bytes", limits::TASK_BYTES)));
    }
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|error| body("json", error))?;
    let id = read::<TaskId>("id", fields.id)?;
    task_of(fields, id).map_err(|invalid| Invalid { id, ..invalid })
}

fn task_of(fields: Fields<'_>, id: Option<TaskId>) -> Result<Task, Invalid> {
    let target = match (fields.model, fields.capability) {
        (Some(model), None) => Target::Model(name("model", model, true)?),
        (None, Some(capability)) => Target::Capability(name("capability", capability, false)?),
        _ => return Err(field("model", "exactly one of model and capability must be given")),
    };
    let input = fields.input.ok_or_else(|| field("input", "must be given"))?;
    let deadline = read::<Timestamp>("deadline", fields.deadline)?;
    let deadline_ms = duration("deadline_ms", fields.deadline_ms, 1)?;
    if deadline.is_some() && deadline_ms.is_some() {
        return Err(field("deadline_ms", "at most one of deadline and deadline_ms may be given"));
    }
    let not_before = read::<Timestamp>("not_before", fields.not_before)?;
    let delay_ms = duration("delay_ms", fields.delay_ms, 0)?;
    if not_before.is_some() && delay_ms.is_some() {
        return Err(field("delay_ms", "at most one of not_before and delay_ms may be given"));
    }
    let cost = read::<f64>("cost", fields.cost)?;
    if cost.is_some_and(|cost| !(cost.is_finite() && cost > 0.0)) {
        return Err(field("cost", "must be a number above 0"));
    }
    let max_attempts = read::<u32>("max_attempts", fields.max_attempts)?;
    if max_attempts.is_some_and(|attempts| !(1..=limits::ATTEMPTS).contains(&attempts)) {
        return Err(field("max_attempts", format_args!("must be from 1 to {}", limits::ATTEMPTS)));
    }
    Ok(Task {
        id,
        target,
        kind: read::<Kind>("kind", fields.kind)?.unwrap_or_default(),
        input: input.to_owned(),
        priority: read::<Priority>("priority", fields.priority)?,
        tenant: label("tenant", fields.tenant, limits::TENANT_BYTES)?,
        deadline,
        deadline_ms,
        not_before,
        delay_ms,
        cost,
        timeout_ms: duration("timeout_ms", fields.timeout_ms, 1)?,
        max_attempts,
        idempotency_key: label("idempotency_key", fields.idempotency_key, limits::IDEMPOTENCY_KEY_BYTES)?,
        metadata: metadata(fields.metadata)?,
        webhook: webhook(fields.webhook)?,
    })
}

fn read<'a, T: Deserialize<'a>>(name: &'static str, raw: Option<&'a RawValue>) -> Result<Option<T>, Invalid> {
    raw.map(|raw| serde_json::from_str(raw.get()).map_err(|error| field(name, error))).transpose()
}

fn duration(name: &'static str, raw: Option<&RawValue>, least: u64) -> Result<Option<u64>, Invalid> {
    let value = read::<u64>(name, raw)?;
    if value.is_some_and(|ms| !(least..=limits::DURATION_MS).contains(&ms)) {
        return Err(field(name, format_args!("must be from {least} to {} ms", limits::DURATION_MS)));
    }
    Ok(value)
}

fn check_label(name: &'static str, text: &str, limit: usize) -> Result<(), Invalid> {
    if text.is_empty() || text.len() > limit || text.chars().any(char::is_control) {
        return Err(field(name, format_args!("must be 1 to {limit} bytes without control characters")));
    }
    Ok(())
}

fn label(name: &'static str, raw: Option<&RawValue>, limit: usize) -> Result<Option<String>, Invalid> {
    let value = read::<String>(name, raw)?;
    if let Some(text) = &value {
        check_label(name, text, limit)?;
    }
    Ok(value)
}

/// `[a-z0-9][a-z0-9._-]*`, at most `limit` bytes: the form of models, capabilities and versions.
pub(crate) fn is_name(text: &str, limit: usize) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    text.len() <= limit
        && text.bytes().all(allowed)
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

fn name(what: &'static str, raw: &RawValue, versioned: bool) -> Result<String, Invalid> {
    let text: String = serde_json::from_str(raw.get()).map_err(|error| field(what, error))?;
    let (base, version) = match text.split_once('@') {
        Some((base, version)) if versioned => (base, Some(version)),
        _ => (text.as_str(), None),
    };
    if is_name(base, limits::MODEL_BYTES) && version.is_none_or(|version| is_name(version, limits::VERSION_BYTES)) {
        Ok(text)
    } else {
        Err(field(what, "must match [a-z0-9][a-z0-9._-]{0,127}"))
    }
}

fn metadata(raw: Option<&RawValue>) -> Result<BTreeMap<String, String>, Invalid> {
    let entries = read::<BTreeMap<String, String>>("metadata", raw)?.unwrap_or_default();
    if entries.len() > limits::METADATA_ENTRIES {
        return Err(field("metadata", format_args!("holds over {} entries", limits::METADATA_ENTRIES)));
    }
    for (key, value) in &entries {
        check_label("metadata", key, limits::METADATA_KEY_BYTES)?;
        check_label("metadata", value, limits::METADATA_VALUE_BYTES)?;
    }
    Ok(entries)
}

fn webhook(raw: Option<&RawValue>) -> Result<Option<Webhook>, Invalid> {
    let value = read::<Webhook>("webhook", raw)?;
    if let Some(webhook) = &value {
        check_label("webhook", &webhook.url, limits::URL_BYTES)?;
        if !(webhook.url.starts_with("https://") || webhook.url.starts_with("http://")) {
            return Err(field("webhook", "url must be http or https"));
        }
    }
    Ok(value)
}
