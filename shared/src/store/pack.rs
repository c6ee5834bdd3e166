//! A task as it is shown, in few bytes: records are many, and hardly ever read.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::journal::codec::{Malformed, Reader, put_f64, put_i64, put_option, put_str, put_u64, put_u128};
use crate::lifecycle::State;
use crate::outcome::{ChoiceReason, ModelChoice, TaskError, TaskResult, Timings, Usage};
use crate::task::{Kind, Priority, TaskId};
use crate::time::Timestamp;
use crate::workflow::{StepOf, WorkflowId};

/// A state's number in a record. Those that end begin with [`State::Succeeded`]'s, 4.
pub(super) fn state_number(state: State) -> u8 {
    State::ALL.iter().position(|one| *one == state).unwrap_or_default() as u8
}

pub(super) fn put_state(out: &mut Vec<u8>, state: State) {
    out.push(state_number(state));
}

pub(super) fn state(reader: &mut Reader<'_>) -> Result<State, Malformed> {
    State::ALL.get(usize::from(reader.u8()?)).copied().ok_or(Malformed)
}

/// The task as it is shown, without its id.
pub(super) fn put_task(out: &mut Vec<u8>, task: &TaskResult) {
    let TaskResult {
        id: _,
        state,
        kind,
        model,
        tenant,
        priority,
        attempt,
        output,
        error,
        timings,
        worker,
        metadata,
        choice,
        workflow,
        usage,
    } = task;
    put_state(out, *state);
    out.push(Kind::ALL.iter().position(|one| one == kind).unwrap_or_default() as u8);
    out.push(priority.get());
    put_u64(out, (*attempt).into());
    put_str(out, tenant);
    put_option(out, model.as_deref(), put_str);
    put_option(out, worker.as_deref(), put_str);
    put_u64(out, metadata.len() as u64);
    for (name, value) in metadata {
        put_str(out, name);
        put_str(out, value);
    }
    put_timings(out, timings);
    put_option(out, error.as_ref(), |out, error| {
        put_str(out, &error.code);
        put_str(out, &error.message);
        out.push(u8::from(error.retryable));
    });
    put_option(out, output.as_ref(), |out, output| put_str(out, output.get()));
    // Seldom there, and added later: a record that ends before it has none.
    if let Some(choice) = choice {
        put_choice(out, choice);
    }
    if let Some(StepOf { id, step, item }) = workflow {
        out.push(STEP);
        put_u128(out, id.0.as_u128());
        put_str(out, step);
        put_option(out, *item, |out, item| put_u64(out, item.into()));
    }
    if let Some(Usage { prompt_tokens, completion_tokens, cost }) = usage {
        out.push(USAGE);
        put_u64(out, *prompt_tokens);
        put_u64(out, *completion_tokens);
        put_option(out, *cost, put_f64);
    }
}

/// Stands before the step that a task is, where otherwise the reason of a choice stands.
const STEP: u8 = 255;

/// Stands before what it took, in the same place.
const USAGE: u8 = 254;

fn usage(reader: &mut Reader<'_>) -> Result<Usage, Malformed> {
    if reader.u8()? != USAGE {
        return Err(Malformed);
    }
    Ok(Usage { prompt_tokens: reader.u64()?, completion_tokens: reader.u64()?, cost: reader.option(Reader::f64)? })
}

fn step(reader: &mut Reader<'_>) -> Result<StepOf, Malformed> {
    if reader.u8()? != STEP {
        return Err(Malformed);
    }
    Ok(StepOf {
        id: WorkflowId(Uuid::from_u128(reader.u128()?)),
        step: reader.str()?.to_owned(),
        item: reader.option(Reader::u32)?,
    })
}

fn put_choice(out: &mut Vec<u8>, choice: &ModelChoice) {
    let ModelChoice { reason, candidates, run_seconds, queue_seconds, load_seconds } = *choice;
    out.push(ChoiceReason::ALL.iter().position(|one| *one == reason).unwrap_or_default() as u8);
    put_u64(out, candidates.into());
    put_f64(out, run_seconds);
    put_option(out, queue_seconds, put_f64);
    put_f64(out, load_seconds);
}

fn choice(reader: &mut Reader<'_>) -> Result<ModelChoice, Malformed> {
    Ok(ModelChoice {
        reason: *ChoiceReason::ALL.get(usize::from(reader.u8()?)).ok_or(Malformed)?,
        candidates: reader.u32()?,
        run_seconds: reader.f64()?,
        queue_seconds: reader.option(Reader::f64)?,
        load_seconds: reader.f64()?,
    })
}

/// Instants after the first are written as the time since it: a few bytes instead of eight.
fn put_timings(out: &mut Vec<u8>, timings: &Timings) {
    let Timings { accepted, dispatched, started, finished, waited_ms, ran_ms } = timings;
    let first = accepted.map_or(0, Timestamp::as_micros);
    put_option(out, *accepted, |out, instant| put_i64(out, instant.as_micros()));
    for instant in [dispatched, started, finished] {
        put_option(out, *instant, |out, instant| put_i64(out, instant.as_micros().wrapping_sub(first)));
    }
    put_option(out, *waited_ms, put_f64);
    put_option(out, *ran_ms, put_f64);
}

fn timings(reader: &mut Reader<'_>) -> Result<Timings, Malformed> {
    let accepted = reader.option(Reader::i64)?;
    let mut later = || {
        let since = reader.option(Reader::i64)?;
        Ok(since.map(|since| Timestamp::from_micros(accepted.unwrap_or(0).wrapping_add(since))))
    };
    Ok(Timings {
        accepted: accepted.map(Timestamp::from_micros),
        dispatched: later()?,
        started: later()?,
        finished: later()?,
        waited_ms: reader.option(Reader::f64)?,
        ran_ms: reader.option(Reader::f64)?,
    })
}

pub(super) fn task(id: TaskId, reader: &mut Reader<'_>, with_output: bool) -> Result<TaskResult, Malformed> {
    let state = state(reader)?;
    let kind = *Kind::ALL.get(usize::from(reader.u8()?)).ok_or(Malformed)?;
    let priority = Priority::try_from(reader.u8()?).map_err(|_| Malformed)?;
    let attempt = reader.u32()?;
    let tenant = reader.str()?.to_owned();
    let model = reader.option(Reader::str)?.map(str::to_owned);
    let worker = reader.option(Reader::str)?.map(str::to_owned);
    let mut metadata = BTreeMap::new();
    for _ in 0..reader.u64()? {
        let name = reader.str()?.to_owned();
        metadata.insert(name, reader.str()?.to_owned());
    }
    let timings = timings(reader)?;
    let error = reader.option(|reader| {
        Ok(TaskError {
            code: reader.str()?.to_owned(),
            message: reader.str()?.to_owned(),
            retryable: reader.u8()? != 0,
        })
    })?;
    let output = match reader.option(Reader::str)? {
        Some(json) if with_output => Some(RawValue::from_string(json.to_owned()).map_err(|_| Malformed)?),
        _ => None,
    };
    let next = |reader: &Reader<'_>| reader.clone().u8().ok();
    let choice = match next(reader) {
        None | Some(STEP | USAGE) => None,
        Some(_) => Some(choice(reader)?),
    };
    let workflow = match next(reader) {
        None | Some(USAGE) => None,
        Some(_) => Some(step(reader)?),
    };
    let usage = if reader.is_empty() { None } else { Some(usage(reader)?) };
    Ok(TaskResult {
        id,
        state,
        kind,
        model,
        tenant,
        priority,
        attempt,
        output,
        error,
        timings,
        worker,
        metadata,
        choice,
        workflow,
        usage,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::tests::any_result;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(packed in any_result()) {
            let mut bytes = Vec::new();
            put_task(&mut bytes, &packed);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(format!("{:?}", task(packed.id, &mut reader, true).unwrap()), format!("{packed:?}"));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn any_bytes_are_unpacked_or_refused_without_a_panic(bytes in any::<Vec<u8>>()) {
            let _ = task(TaskId::new(), &mut Reader::new(&bytes), true);
        }
    }
}
