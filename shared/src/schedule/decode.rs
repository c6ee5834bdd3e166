//! From bytes to a schedule. Every refusal names its field, with its place: `task.input`, `workflow.tasks[3].name`.

use jiff::tz::TimeZone;
use serde_json::value::RawValue;

use super::{CatchUp, Cron, Overlap, SCHEDULE_LABEL, Schedule, TICK_LABEL, Ticks, Work, limits};
use crate::decode::{self, Invalid, body, check_depth, check_duration, check_label, is_name, read};
use crate::task::limits as task_limits;
use crate::time::Timestamp;
use crate::wire::TASK_FIELDS;
use crate::workflow::{decode_workflow, members_of};

#[derive(Default)]
struct RawSchedule<'a> {
    name: Option<&'a RawValue>,
    tenant: Option<&'a RawValue>,
    cron: Option<&'a RawValue>,
    time_zone: Option<&'a RawValue>,
    task: Option<&'a RawValue>,
    workflow: Option<&'a RawValue>,
    catch_up: Option<&'a RawValue>,
    catch_up_window_ms: Option<&'a RawValue>,
    overlap: Option<&'a RawValue>,
    paused: Option<&'a RawValue>,
    until: Option<&'a RawValue>,
}

fn refused(name: impl Into<String>, message: impl std::fmt::Display) -> Invalid {
    Invalid::field(name.into(), message)
}

/// Whether a schedule can have this name.
pub fn is_schedule_name(text: &str) -> bool {
    is_name(text, limits::NAME_BYTES)
}

/// Reads one schedule.
///
/// # Errors
/// With the field, also one that is not known.
pub fn decode_schedule(bytes: &[u8]) -> Result<Schedule, Invalid> {
    if bytes.len() > limits::BODY_BYTES {
        return Err(body("too_large", format_args!("is over {} bytes", limits::BODY_BYTES)));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| body("utf8", error))?.trim();
    check_depth(text)?;
    if text.is_empty() {
        return Err(body("empty", "is empty"));
    }
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| body("json", error))?;
    let fields = fields(raw)?;
    let name: Option<String> = read("name", fields.name)?;
    if name.as_ref().is_some_and(|name| !is_schedule_name(name)) {
        return Err(refused("name", "must match [a-z0-9][a-z0-9._-]{0,127}"));
    }
    let tenant: Option<String> = read("tenant", fields.tenant)?;
    if let Some(tenant) = &tenant {
        check_label("tenant", tenant, task_limits::TENANT_BYTES)?;
    }
    let expression: String = read("cron", fields.cron)?.ok_or_else(|| refused("cron", "must be given"))?;
    let cron = Cron::read(&expression).map_err(|why| refused("cron", why))?;
    let time_zone: String = read("time_zone", fields.time_zone)?.unwrap_or_else(|| "UTC".to_owned());
    let zone = zone(&time_zone)?;
    let work = match (fields.task, fields.workflow) {
        (Some(raw), None) => task(raw)?,
        (None, Some(raw)) => workflow(raw)?,
        _ => return Err(refused("task", "exactly one of task and workflow must be given")),
    };
    let catch_up: CatchUp = read("catch_up", fields.catch_up)?.unwrap_or_default();
    let catch_up_window_ms: Option<u64> = read("catch_up_window_ms", fields.catch_up_window_ms)?;
    check_duration("catch_up_window_ms", catch_up_window_ms, 1)?;
    if catch_up == CatchUp::Skip && catch_up_window_ms.is_some() {
        return Err(refused("catch_up_window_ms", "is for catch_up latest and all"));
    }
    let overlap: Overlap = read("overlap", fields.overlap)?.unwrap_or_default();
    if catch_up == CatchUp::All && overlap == Overlap::Forbid {
        return Err(refused("overlap", "forbid is for catch_up skip and latest: all fires several at once"));
    }
    let until: Option<Timestamp> = read("until", fields.until)?;
    Ok(Schedule {
        name,
        tenant,
        ticks: Ticks::new(cron.clone(), zone, until),
        cron,
        expression,
        time_zone,
        work,
        catch_up,
        catch_up_window_ms,
        overlap,
        paused: read("paused", fields.paused)?,
        until,
    })
}

fn fields(raw: &RawValue) -> Result<RawSchedule<'_>, Invalid> {
    let members = members_of(raw).ok_or_else(|| body("shape", "a schedule must be an object"))?;
    let mut fields = RawSchedule::default();
    for (name, value) in members {
        let field = match &*name {
            "name" => &mut fields.name,
            "tenant" => &mut fields.tenant,
            "cron" => &mut fields.cron,
            "time_zone" => &mut fields.time_zone,
            "task" => &mut fields.task,
            "workflow" => &mut fields.workflow,
            "catch_up" => &mut fields.catch_up,
            "catch_up_window_ms" => &mut fields.catch_up_window_ms,
            "overlap" => &mut fields.overlap,
            "paused" => &mut fields.paused,
            "until" => &mut fields.until,
            other => {
                let shown: String = other.chars().take(64).collect();
                return Err(refused(shown, "is no field of a schedule"));
            }
        };
        if field.is_some() {
            return Err(refused(name, "is given twice"));
        }
        // What is null is not given.
        *field = Some(value).filter(|value| value.get() != "null");
    }
    Ok(fields)
}

fn zone(name: &str) -> Result<TimeZone, Invalid> {
    let is_plain = name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_+-".contains(&byte));
    let found = is_plain.then(|| TimeZone::get(name).ok()).flatten().filter(|zone| !zone.is_unknown());
    found.ok_or_else(|| refused("time_zone", "must be the IANA name of a time zone, such as Europe/Berlin"))
}

/// Fields that name one task alone, or one instant.
const ONCE: &str = "is not for what is published again and again";
const OF_THE_SCHEDULE: &str = "is the schedule's";

fn task(raw: &RawValue) -> Result<Work, Invalid> {
    let placed = |invalid: Invalid| placed("task", invalid);
    known(raw, &TASK_FIELDS).map_err(placed)?;
    let task = decode::decode_task(raw).map_err(placed)?;
    for (field, is_there, why) in [
        ("id", task.id.is_some(), ONCE),
        ("idempotency_key", task.idempotency_key.is_some(), ONCE),
        ("deadline", task.deadline.is_some(), "is an instant: deadline_ms is counted from each tick's task on"),
        ("not_before", task.not_before.is_some(), "is an instant: delay_ms is counted from each tick's task on"),
        ("tenant", task.tenant.is_some(), OF_THE_SCHEDULE),
    ] {
        if is_there {
            return Err(placed(refused(field, why)));
        }
    }
    check_labels(&task.metadata).map_err(placed)?;
    Ok(Work::Task(Box::new(task)))
}

fn workflow(raw: &RawValue) -> Result<Work, Invalid> {
    let placed = |invalid: Invalid| placed("workflow", invalid);
    known(raw, WORKFLOW_FIELDS).map_err(placed)?;
    let workflow = decode_workflow(raw.get().as_bytes()).map_err(placed)?;
    for (field, is_there, why) in [
        ("id", workflow.id.is_some(), ONCE),
        ("idempotency_key", workflow.idempotency_key.is_some(), ONCE),
        ("deadline", workflow.deadline.is_some(), "is an instant: deadline_ms is counted from each tick's workflow on"),
        ("tenant", workflow.tenant.is_some(), OF_THE_SCHEDULE),
    ] {
        if is_there {
            return Err(placed(refused(field, why)));
        }
    }
    check_labels(&workflow.metadata).map_err(placed)?;
    crate::workflow::Plan::new(workflow.clone()).map_err(placed)?;
    Ok(Work::Workflow(Box::new(workflow), raw.to_owned()))
}

/// What it is made of must have room for what a tick adds.
fn check_labels(metadata: &std::collections::BTreeMap<String, String>) -> Result<(), Invalid> {
    if metadata.contains_key(SCHEDULE_LABEL) || metadata.contains_key(TICK_LABEL) {
        return Err(refused(
            "metadata",
            format_args!("{SCHEDULE_LABEL} and {TICK_LABEL} are labels of the schedule's own"),
        ));
    }
    if metadata.len() + 2 > task_limits::METADATA_ENTRIES {
        let most = task_limits::METADATA_ENTRIES - 2;
        return Err(refused("metadata", format_args!("holds over {most} entries: each tick adds two")));
    }
    Ok(())
}

/// Of tasks and workflows unknown fields are passed over when they are published; here somebody waits to be told.
fn known(raw: &RawValue, names: &[&str]) -> Result<(), Invalid> {
    let members = members_of(raw).ok_or_else(|| body("shape", "must be an object"))?;
    match members.into_iter().find(|(name, _)| !names.contains(&&**name)) {
        Some((name, _)) => Err(refused(name.chars().take(64).collect::<String>(), "is not known")),
        None => Ok(()),
    }
}

const WORKFLOW_FIELDS: &[&str] =
    &["id", "tasks", "priority", "tenant", "deadline", "deadline_ms", "on_failure", "idempotency_key", "metadata"];

/// A fault of the whole is one of `task`, one of its fields one of `task.input`.
fn placed(place: &str, invalid: Invalid) -> Invalid {
    let field = match &*invalid.field {
        "body" => place.to_owned(),
        field => format!("{place}.{field}"),
    };
    Invalid { field: field.into(), id: None, ..invalid }
}
