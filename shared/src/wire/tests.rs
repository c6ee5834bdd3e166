//! The short way and serde's agree, on what is written and on what is read.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::num::NonZeroU64;

use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Get, Put, Reader, read, read_all, write, write_all};
use crate::envelope::{Correlation, Envelope, Extra, Reply};
use crate::lifecycle::State;
use crate::load::Completion;
use crate::outcome::{ChoiceReason, ModelChoice, TaskError, TaskResult, Timings, Usage};
use crate::task::{Alternative, Kind, Priority, Target, Task, TaskId, Webhook};
use crate::time::Timestamp;
use crate::workflow::{StepOf, WorkflowId};

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![8 => "[a-zA-Z0-9@._:-]{0,12}", 1 => "\\PC{0,8}", 1 => ".{0,8}", 1 => "[\"\\\\\u{0}-\u{1f}é]{1,3}"]
}

fn any_json() -> impl Strategy<Value = Box<RawValue>> {
    let json = prop_oneof![
        Just(r#"{"text": "as it  came"}"#.to_owned()),
        Just(r#"{"a":[1.50,2e3,{"b":"}]\"\\"}],"c":null}"#.to_owned()),
        Just("null".to_owned()),
        Just("-0.5".to_owned()),
        Just("[ ]".to_owned()),
        any_text().prop_map(|text| serde_json::Value::from(text).to_string()),
    ];
    json.prop_map(|json| RawValue::from_string(json).expect("JSON"))
}

fn any_instant() -> impl Strategy<Value = Timestamp> {
    prop_oneof![8 => 0..4_000_000_000_000_000_i64, 1 => any::<i64>()].prop_map(Timestamp::from_micros)
}

fn any_float() -> impl Strategy<Value = f64> {
    prop_oneof![4 => (0..1_000_000_u32).prop_map(|micros| f64::from(micros) / 1e3), 1 => any::<f64>()]
}

fn any_id() -> impl Strategy<Value = TaskId> {
    any::<u128>().prop_map(|number| TaskId(Uuid::from_u128(number)))
}

fn any_priority() -> impl Strategy<Value = Priority> {
    (0..10_u8).prop_map(|priority| Priority::try_from(priority).expect("a priority"))
}

fn any_error() -> impl Strategy<Value = TaskError> {
    (any_text(), any_text(), any::<bool>()).prop_map(|(code, message, retryable)| TaskError {
        code,
        message,
        retryable,
    })
}

pub(crate) fn any_reply() -> impl Strategy<Value = Reply> {
    let correlation = prop_oneof![any_text(), any_id().prop_map(|id| id.0.to_string())];
    (any_text(), of(correlation), any::<bool>()).prop_map(|(to, correlation_id, array)| Reply {
        to: to.into(),
        correlation_id: correlation_id.map(Correlation::from),
        array,
    })
}

fn any_target() -> impl Strategy<Value = Target> {
    (any_text(), any::<bool>())
        .prop_map(|(name, model)| if model { Target::Model(name.into()) } else { Target::Capability(name.into()) })
}

fn any_webhook() -> impl Strategy<Value = Webhook> {
    (any_text(), vec(any_text(), 0..2)).prop_map(|(url, events)| Webhook { url, events })
}

fn any_alternative() -> impl Strategy<Value = Alternative> {
    (any_text(), any::<u64>()).prop_map(|(model, wait_ms)| Alternative { model, wait_ms })
}

fn any_choice() -> impl Strategy<Value = ModelChoice> {
    (0..ChoiceReason::ALL.len(), any::<u32>(), any_float(), of(any_float()), any_float()).prop_map(
        |(reason, candidates, run_seconds, queue_seconds, load_seconds)| ModelChoice {
            reason: ChoiceReason::ALL[reason],
            candidates,
            run_seconds,
            queue_seconds,
            load_seconds,
        },
    )
}

fn any_usage() -> impl Strategy<Value = Usage> {
    (any::<u64>(), any::<u64>(), of(any_float())).prop_map(|(prompt_tokens, completion_tokens, cost)| Usage {
        prompt_tokens,
        completion_tokens,
        cost,
    })
}

fn any_step() -> impl Strategy<Value = StepOf> {
    (any_id(), any_text(), any::<Option<u32>>()).prop_map(|(id, step, item)| StepOf {
        id: WorkflowId(id.0),
        step,
        item,
    })
}

fn any_metadata() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop_oneof![2 => Just(BTreeMap::new()), 1 => btree_map(any_text(), any_text(), 0..3)]
}

prop_compose! {
    pub(crate) fn any_result()(
        (id, state, kind, priority) in (any_id(), 0..9_usize, 0..5_usize, any_priority()),
        (model, tenant, worker, attempt) in (of(any_text()), any_text(), of(any_text()), any::<u32>()),
        (output, error, metadata, choice) in (of(any_json()), of(any_error()), any_metadata(), of(any_choice())),
        (accepted, dispatched, started, finished) in
            (of(any_instant()), of(any_instant()), of(any_instant()), of(any_instant())),
        (waited_ms, ran_ms, workflow, usage) in (of(any_float()), of(any_float()), of(any_step()), of(any_usage())),
    ) -> TaskResult {
        let timings = Timings { accepted, dispatched, started, finished, waited_ms, ran_ms };
        let (state, kind) = (State::ALL[state], Kind::ALL[kind]);
        TaskResult {
            id, state, kind, model, tenant, priority, attempt, output, error, timings, worker, metadata, choice, workflow,
            usage,
        }
    }
}

prop_compose! {
    fn any_envelope()(
        (v, id, target, chosen, kind) in (any::<u32>(), any_id(), any_target(), of(any_text()), 0..5_usize),
        (tenant, priority, deadline, not_before) in
            (any_text(), any_priority(), of(any_instant()), of(any_instant())),
        (cost, timeout_ms, max_attempts) in (of(any_float()), any::<Option<NonZeroU64>>(), any::<Option<u32>>()),
        (idempotency_key, metadata, webhook) in (of(any_text()), any_metadata(), of(any_webhook())),
        (accepted, dispatched, attempts) in (any_instant(), of(any_instant()), any::<u32>()),
        (reply, traceparent, tracestate) in (of(any_reply()), of(any_text()), of(any_text())),
        (min_quality, alternatives, choice) in (of(any_float()), vec(any_alternative(), 0..2), of(any_choice())),
        (last_error, shard, input) in (of(any_error()), prop_oneof![Just(0), any::<u32>()], any_json()),
        (workflow, due, mirrors) in (of(any_step()), of(any_instant()), of(any_id())),
    ) -> Envelope {
        let kind = Kind::ALL[kind];
        let (webhook, choice) = (webhook.map(Box::new), choice.map(Box::new));
        let (traceparent, tracestate) = (traceparent.map(String::into_boxed_str), tracestate.map(String::into_boxed_str));
        let (last_error, workflow) = (last_error.map(Box::new), workflow.map(Box::new));
        let (chosen, idempotency_key) = (chosen.map(String::into_boxed_str), idempotency_key.map(String::into_boxed_str));
        let (tenant, alternatives) = (tenant.into_boxed_str(), alternatives.into_boxed_slice());
        let extra = Extra {
            not_before, cost, max_attempts, idempotency_key, metadata, webhook, min_quality, alternatives, choice,
            traceparent, tracestate, last_error, workflow, due, mirrors,
        };
        Envelope {
            v, id, target, chosen, kind, tenant, priority, deadline, timeout_ms, accepted, dispatched, attempts, reply,
            shard, extras: extra.into(), input,
        }
    }
}

prop_compose! {
    fn any_completion()(
        (id, model, state, worker) in (any_id(), any_text(), 0..9_usize, any_text()),
        (ran_ms, idle_ms) in (any_float(), any_float()),
    ) -> Completion {
        Completion { id, model, state: State::ALL[state], ran_ms, idle_ms, worker }
    }
}

/// What is written is what serde writes, alone and in an array.
fn check_written<T: Put>(messages: &[T]) -> Result<(), TestCaseError> {
    let text = |written: serde_json::Result<Vec<u8>>| {
        written.map(|bytes| String::from_utf8(bytes).expect("UTF-8")).map_err(|error| error.to_string())
    };
    for message in messages {
        prop_assert_eq!(text(write(message)), text(serde_json::to_vec(message)));
    }
    let all: Vec<&T> = messages.iter().collect();
    prop_assert_eq!(text(write_all(&all)), text(serde_json::to_vec(&all)));
    Ok(())
}

/// What is read is what serde reads: of what was written, and of the same after a change somewhere.
fn check_read<T: Get + Put + Debug>(messages: &[T], at: usize, with: &str) -> Result<(), TestCaseError> {
    fn check<T: Get + Debug>(text: &str) -> Result<(), TestCaseError> {
        let words =
            |read: serde_json::Result<Vec<T>>| read.map(|read| format!("{read:?}")).map_err(|error| error.to_string());
        let one = || serde_json::from_str(text).map(|read| vec![read]);
        let expected = if text.starts_with('[') { serde_json::from_str(text) } else { one() };
        prop_assert_eq!(words(read_all(text.as_bytes())), words(expected), "{}", text);
        if !text.starts_with('[') {
            prop_assert_eq!(words(read(text.as_bytes()).map(|read| vec![read])), words(one()), "{}", text);
        }
        Ok(())
    }
    for text in [serde_json::to_string(&messages), serde_json::to_string(&messages.first())].into_iter().flatten() {
        check::<T>(&text)?;
        let mut changed = text;
        let at = (0..=at % (changed.len() + 1)).rev().find(|at| changed.is_char_boundary(*at)).unwrap_or(0);
        let end = (at + 1..=changed.len()).find(|end| changed.is_char_boundary(*end)).unwrap_or(changed.len());
        changed.replace_range(at..end, with);
        check::<T>(&changed)?;
    }
    Ok(())
}

const CHANGES: [&str; 14] = ["", "\"", "\\", "{", "}", "[", "]", ",", "0", "1", " ", "null", "-", "e"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn envelopes(messages in vec(any_envelope(), 0..3), at in any::<usize>(), with in 0..CHANGES.len()) {
        check_written(&messages)?;
        check_read(&messages, at, CHANGES[with])?;
    }

    #[test]
    fn results(messages in vec(any_result(), 0..3), at in any::<usize>(), with in 0..CHANGES.len()) {
        check_written(&messages)?;
        check_read(&messages, at, CHANGES[with])?;
    }

    #[test]
    fn completions(messages in vec(any_completion(), 0..3), at in any::<usize>(), with in 0..CHANGES.len()) {
        check_written(&messages)?;
        check_read(&messages, at, CHANGES[with])?;
    }

    #[test]
    fn tasks(
        envelope in any_envelope(),
        deadline_ms in any::<Option<u64>>(),
        delay_ms in any::<Option<u64>>(),
        bare in any::<bool>(),
    ) {
        let mut task = Task { deadline_ms, delay_ms, ..envelope.to_task() };
        if bare {
            (task.id, task.tenant, task.priority) = (None, None, None);
        }
        check_written(&[task])?;
    }
}

/// The short way is taken for what roles tell each other: serde is for the rest.
#[test]
fn what_is_usual_is_read_the_short_way() {
    fn is_read<T: Get>(text: &str) {
        let mut reader = Reader::new(text.trim_end());
        assert!(T::get(&mut reader).is_some() && reader.is_done(), "{text}");
    }
    is_read::<Envelope>(include_str!("../../tests/golden/envelope.v1.json"));
    is_read::<Envelope>(include_str!("../../tests/golden/envelope-least.v1.json"));
    is_read::<Envelope>(include_str!("../../tests/golden/envelope-shard.v1.json"));
    is_read::<Envelope>(include_str!("../../tests/golden/envelope-mirror.v1.json"));
    is_read::<TaskResult>(include_str!("../../tests/golden/result.v1.json"));
    let completions = include_str!("../../tests/golden/completions.v1.json").trim_end();
    assert!(Reader::new(completions).array(Completion::get).is_some());
}
