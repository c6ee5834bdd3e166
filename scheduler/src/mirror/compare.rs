//! What a task and its copy came to, side by side.

use serde_json::value::RawValue;
use serde_json::{Number, Value};
use taskyard_shared::mirror::Likeness;
use taskyard_shared::{State, TaskResult};

/// Numbers with a fraction are the same when they are no further apart than this part of the larger one, or of 1 where both are below:
/// a model in fewer bits never gives the same scores.
const TOLERANCE: f64 = 0.01;

/// Codes of copies whose workers were lost, and with them what they would have answered. How soon another worker finds such a copy
/// decides whether it ends with one of these or is given back.
const LOST: [&str; 2] = ["attempts_exhausted", "worker_lost"];

/// How alike they are by their records, and what both took, in milliseconds, where there was something to compare.
pub(crate) fn judge(task: Option<TaskResult>, copy: Option<TaskResult>) -> (Likeness, Option<(f64, f64)>) {
    // One that was lost, or ended by somebody, says nothing of its version.
    let is_lost = |copy: &TaskResult| copy.error.as_ref().is_some_and(|error| LOST.contains(&&*error.code));
    let has_ended = |copy: &TaskResult| copy.state.is_terminal() && copy.state != State::Cancelled && !is_lost(copy);
    let Some(copy) = copy.filter(has_ended) else {
        return (Likeness::Skipped, None);
    };
    let Some(answer) = copy.output.filter(|_| copy.state == State::Succeeded) else { return (Likeness::Failed, None) };
    let task = task.filter(|task| task.state == State::Succeeded);
    let Some((output, timings)) = task.and_then(|task| Some((task.output?, task.timings))) else {
        return (Likeness::Unknown, None);
    };
    let likeness = if is_same(&output, &answer) { Likeness::Same } else { Likeness::Different };
    (likeness, Some((timings.ran_ms.unwrap_or(0.0), copy.timings.ran_ms.unwrap_or(0.0))))
}

fn is_same(one: &RawValue, other: &RawValue) -> bool {
    let parsed = |raw: &RawValue| serde_json::from_str::<Value>(raw.get());
    one.get() == other.get()
        || match (parsed(one), parsed(other)) {
            (Ok(one), Ok(other)) => are_same(&one, &other),
            // Such as a number that no float can hold.
            _ => false,
        }
}

fn are_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => is_near(one, other),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| are_same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let has = |(name, one)| other.get(name).is_some_and(|other| are_same(one, other));
            one.len() == other.len() && one.iter().all(has)
        }
        _ => one == other,
    }
}

fn is_near(one: &Number, other: &Number) -> bool {
    if !one.is_f64() && !other.is_f64() {
        return one == other;
    }
    let (Some(one), Some(other)) = (one.as_f64(), other.as_f64()) else { return false };
    (one - other).abs() <= TOLERANCE * one.abs().max(other.abs()).max(1.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use taskyard_shared::{Carried, Envelope, Target, Task, TaskError, Timestamp};

    use super::*;

    fn raw(value: &Value) -> Box<RawValue> {
        RawValue::from_string(value.to_string()).unwrap()
    }

    #[test]
    fn answers_are_the_same_but_for_the_last_digits_of_their_scores() {
        for (one, other, same) in [
            (json!({"label": "a", "score": 0.91}), json!({"score": 0.905, "label": "a"}), true),
            (json!({"label": "a", "score": 0.91}), json!({"label": "a", "score": 0.93}), false),
            (json!({"label": "a", "score": 0.91}), json!({"label": "b", "score": 0.91}), false),
            (json!({"scores": [0.002, 0.998]}), json!({"scores": [0.004, 0.996]}), true),
            (json!([1500.5]), json!([1510.0]), true),
            (json!([1500.5]), json!([1520.0]), false),
            (json!(-1.0), json!(1.0), false),
            (json!(1), json!(1.0), true),
            (json!(1_000), json!(1_001), false),
            (json!([1, 2]), json!([1, 2, 3]), false),
            (json!({"a": 1}), json!({"a": 1, "b": null}), false),
            (json!({"a": null}), json!({"b": null}), false),
            (json!("1.0"), json!(1.0), false),
            (json!(null), json!(false), false),
        ] {
            assert_eq!(is_same(&raw(&one), &raw(&other)), same, "{one} {other}");
            assert_eq!(is_same(&raw(&other), &raw(&one)), same, "{other} {one}");
        }
        let huge = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        assert!(is_same(&huge("1e999"), &huge("1e999")) && !is_same(&huge("1e999"), &huge("1e998")));
    }

    #[test]
    fn what_has_no_two_answers_is_told_apart() {
        let task = Task::new(Target::Model("m".into()), raw(&json!(1)));
        let envelope = Envelope::new(task, &Carried::default(), Timestamp::now()).unwrap();
        let ended = |state, output: Option<Value>, ran_ms| {
            let mut result = envelope.result(state);
            result.output = output.as_ref().map(raw);
            result.timings.ran_ms = Some(ran_ms);
            Some(result)
        };
        let one = || ended(State::Succeeded, Some(json!(1)), 4.0);
        let failed = || ended(State::Failed, None, 4.0);
        assert_eq!(judge(one(), one()), (Likeness::Same, Some((4.0, 4.0))));
        let other = ended(State::Succeeded, Some(json!(2)), 8.0);
        assert_eq!(judge(one(), other), (Likeness::Different, Some((4.0, 8.0))));
        assert_eq!(judge(one(), failed()), (Likeness::Failed, None));
        for (code, likeness) in [("worker_lost", Likeness::Skipped), ("own_code", Likeness::Failed)] {
            let mut copy = failed();
            let error = TaskError { code: code.into(), message: String::new(), retryable: false };
            copy.as_mut().unwrap().error = Some(error);
            assert_eq!(judge(one(), copy), (likeness, None), "{code}");
        }
        assert_eq!(judge(failed(), one()), (Likeness::Unknown, None));
        assert_eq!(judge(None, one()), (Likeness::Unknown, None));
        assert_eq!(judge(one(), ended(State::Queued, None, 0.0)), (Likeness::Skipped, None));
        assert_eq!(judge(one(), ended(State::Cancelled, None, 0.0)), (Likeness::Skipped, None));
        assert_eq!(judge(one(), None), (Likeness::Skipped, None));
    }
}
