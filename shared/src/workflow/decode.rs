//! From bytes to a workflow. Every refusal names its field, with the step's place: `tasks[3].input.data`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use super::json::object;
use super::template::{FROM, reference};
use super::{Condition, OnFailure, Over, Step, Workflow, limits};
use crate::decode::{self, Invalid, body, check_depth, check_duration, check_label, check_metadata, read};
use crate::task::limits as task_limits;

#[derive(Deserialize)]
struct RawWorkflow<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    tasks: Option<&'a RawValue>,
    #[serde(borrow)]
    priority: Option<&'a RawValue>,
    #[serde(borrow)]
    tenant: Option<&'a RawValue>,
    #[serde(borrow)]
    deadline: Option<&'a RawValue>,
    #[serde(borrow)]
    deadline_ms: Option<&'a RawValue>,
    #[serde(borrow)]
    on_failure: Option<&'a RawValue>,
    #[serde(borrow)]
    idempotency_key: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawStep<'a> {
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    depends_on: Option<&'a RawValue>,
    #[serde(borrow)]
    after: Option<&'a RawValue>,
    #[serde(borrow)]
    when: Option<&'a RawValue>,
    #[serde(borrow)]
    for_each: Option<&'a RawValue>,
}

fn refused(name: impl Into<String>, message: impl std::fmt::Display) -> Invalid {
    Invalid::field(name.into(), message)
}

/// Reads one workflow.
///
/// # Errors
/// With a field that names the step, such as `tasks[3].when`.
pub fn decode_workflow(bytes: &[u8]) -> Result<Workflow, Invalid> {
    if bytes.len() > task_limits::BODY_BYTES {
        return Err(body("too_large", format_args!("is over {} bytes", task_limits::BODY_BYTES)));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| body("utf8", error))?;
    check_depth(text)?;
    match text.trim_start().as_bytes().first() {
        None => return Err(body("empty", "is empty")),
        Some(b'{') => {}
        Some(_) => {
            serde_json::from_str::<&RawValue>(text).map_err(|error| body("json", error))?;
            return Err(body("shape", "a workflow must be an object"));
        }
    }
    let fields: RawWorkflow<'_> = serde_json::from_str(text).map_err(|error| body("json", error))?;
    let raw_tasks = fields.tasks.ok_or_else(|| refused("tasks", "must be given"))?;
    let raw_steps: Vec<&RawValue> = match raw_tasks.get().starts_with('[') {
        true => serde_json::from_str(raw_tasks.get()).map_err(|error| refused("tasks", error))?,
        false => return Err(refused("tasks", "must be an array of tasks")),
    };
    match raw_steps.len() {
        0 => return Err(refused("tasks", "must not be empty")),
        count if count > limits::STEPS => {
            return Err(Invalid {
                code: "too_large",
                ..refused("tasks", format_args!("holds over {} steps", limits::STEPS))
            });
        }
        _ => {}
    }
    let on_failure: OnFailure = read("on_failure", fields.on_failure)?.unwrap_or_default();
    let metadata: BTreeMap<String, String> = read("metadata", fields.metadata)?.unwrap_or_default();
    let seed = xxh3_64_with_seed(on_failure.as_str().as_bytes(), 0);
    let workflow = Workflow {
        id: read("id", fields.id)?,
        priority: read("priority", fields.priority)?,
        tenant: read("tenant", fields.tenant)?,
        deadline: read("deadline", fields.deadline)?,
        deadline_ms: read("deadline_ms", fields.deadline_ms)?,
        on_failure,
        idempotency_key: read("idempotency_key", fields.idempotency_key)?,
        metadata,
        fingerprint: xxh3_128_with_seed(raw_tasks.get().as_bytes(), seed),
        tasks: raw_steps.into_iter().enumerate().map(|(at, raw)| step(at, raw)).collect::<Result<_, _>>()?,
    };
    check(&workflow)?;
    Ok(workflow)
}

fn check(workflow: &Workflow) -> Result<(), Invalid> {
    if let Some(tenant) = &workflow.tenant {
        check_label("tenant", tenant, task_limits::TENANT_BYTES)?;
    }
    if let Some(key) = &workflow.idempotency_key {
        check_label("idempotency_key", key, task_limits::IDEMPOTENCY_KEY_BYTES)?;
        if workflow.id.is_some() {
            return Err(refused("idempotency_key", "at most one of id and idempotency_key may be given"));
        }
    }
    check_duration("deadline_ms", workflow.deadline_ms, 1)?;
    if workflow.deadline.is_some() && workflow.deadline_ms.is_some() {
        return Err(refused("deadline_ms", "at most one of deadline and deadline_ms may be given"));
    }
    check_metadata(&workflow.metadata)
}

fn step(at: usize, raw: &RawValue) -> Result<Step, Invalid> {
    // A fault of the step as a whole is one of `tasks[3]`, one of its fields one of `tasks[3].input`.
    let placed = |invalid: Invalid| Invalid {
        field: match &*invalid.field {
            "body" => format!("tasks[{at}]"),
            field => format!("tasks[{at}].{field}"),
        }
        .into(),
        id: None,
        ..invalid
    };
    fields(raw).map_err(placed)
}

fn fields(raw: &RawValue) -> Result<Step, Invalid> {
    let task = decode::decode_task(raw)?;
    let fields: RawStep<'_> = serde_json::from_str(raw.get()).map_err(|error| body("json", error))?;
    let name: String = read("name", fields.name)?.ok_or_else(|| refused("name", "must be given"))?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.len() > limits::NAME_BYTES
        || !name.bytes().all(allowed)
        || !name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
    {
        return Err(refused("name", "must match [A-Za-z0-9][A-Za-z0-9._-]{0,127}"));
    }
    for (field, is_there) in [
        ("id", task.id.is_some()),
        ("tenant", task.tenant.is_some()),
        ("idempotency_key", task.idempotency_key.is_some()),
    ] {
        if is_there {
            return Err(refused(field, "is the workflow's, and cannot be given to a step"));
        }
    }
    let when: Option<Condition> = read("when", fields.when)?;
    if let Some(when) = &when {
        when.check(0).map_err(|why| refused("when", why))?;
    }
    Ok(Step {
        name,
        depends_on: read("depends_on", fields.depends_on)?.unwrap_or_default(),
        after: read("after", fields.after)?.unwrap_or_default(),
        when,
        for_each: fields.for_each.map(over).transpose()?,
        task,
    })
}

fn over(raw: &RawValue) -> Result<Over, Invalid> {
    if let Some(members) = super::json::members(raw) {
        if members.len() > limits::ITEMS {
            return Err(refused("for_each", format_args!("holds over {} members", limits::ITEMS)));
        }
        return Ok(Over::Given(raw.to_owned()));
    }
    let members = object(raw).filter(|members| members.iter().any(|(name, _)| name == FROM));
    let members =
        members.ok_or_else(|| refused("for_each", "must be an array, or a reference to one: {\"$from\": …}"))?;
    let found = reference(members).map_err(|why| refused("for_each", why))?;
    if found.default.is_some() {
        return Err(refused("for_each", "\"default\" is not known here"));
    }
    Ok(Over::Output { from: found.step, path: found.path })
}
