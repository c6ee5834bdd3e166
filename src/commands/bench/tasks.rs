//! The tasks of a run: bodies put together from pieces, and results told apart by their ids.
//!
//! All of this is done for every task, on the machine that is measured: a body is a concatenation, and a result of the
//! usual shape is recognised by its first bytes. Any other is read as JSON.

use std::borrow::Cow;

use bytes::Bytes;
use memchr::memmem::Finder;
use serde::Deserialize;
use taskyard_shared::State;
use taskyard_shared::time::Timestamp;
use uuid::Uuid;

/// Digits of a task's number, at the end of its id.
const NUMBER_DIGITS: usize = 12;
/// What follows the id in a result of a task that went well.
const SUCCEEDED: &[u8] = b"\",\"state\":\"succeeded\"";

/// What the tasks of a run are like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Task n goes to model n modulo their number; so do tenants and priorities.
    pub models: Vec<String>,
    /// Of the input as JSON.
    pub size_bytes: usize,
    /// 1 leaves the priority to the default; n spreads them over the n lowest.
    pub priorities: u64,
    /// All of them have this one.
    pub priority: Option<u8>,
    /// 1 leaves the tenant to the default.
    pub tenants: u64,
}

/// The tasks of one run.
#[derive(Clone)]
pub struct Tasks {
    shape: Shape,
    /// The first 24 characters of every id.
    prefix: String,
    /// From the end of the model's name to the end of the input.
    input: String,
    /// `"id":"` and the prefix.
    mark: Finder<'static>,
}

/// One result.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Answer {
    pub task: u64,
    pub state: State,
    /// Only when the result was read in full.
    pub timings: Option<RunTimings>,
}

/// When a task ran.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
pub struct RunTimings {
    pub started: Timestamp,
    pub finished: Timestamp,
    pub ran_ms: f64,
}

#[derive(Deserialize)]
struct Read<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    /// The plain relay sends tasks back as they came.
    state: Option<State>,
    /// Not those of a task that never ran.
    #[serde(default, deserialize_with = "complete")]
    timings: Option<RunTimings>,
}

fn complete<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<RunTimings>, D::Error> {
    #[derive(Deserialize)]
    struct Partial {
        started: Option<Timestamp>,
        finished: Option<Timestamp>,
        ran_ms: Option<f64>,
    }
    let Partial { started, finished, ran_ms } = Partial::deserialize(deserializer)?;
    let both = started.zip(finished).zip(ran_ms);
    Ok(both.map(|((started, finished), ran_ms)| RunTimings { started, finished, ran_ms }))
}

impl Tasks {
    pub fn new(shape: Shape) -> Self {
        let id = Uuid::new_v4().to_string();
        let prefix = id[..id.len() - NUMBER_DIGITS].to_owned();
        // A string of this length, quotes included.
        let input = format!("\",\"input\":\"{}\"", "x".repeat(shape.size_bytes.saturating_sub(2)));
        let mark = Finder::new(&format!("\"id\":\"{prefix}")).into_owned();
        Self { shape, prefix, input, mark }
    }

    /// Of one task, as an array of several otherwise.
    pub fn body(&self, first: u64, count: u64) -> Bytes {
        let mut body = Vec::with_capacity(count as usize * (self.input.len() + 160) + 2);
        if count == 1 {
            self.put(&mut body, first);
            return body.into();
        }
        for task in first..first + count {
            body.push(if task == first { b'[' } else { b',' });
            self.put(&mut body, task);
        }
        body.push(b']');
        body.into()
    }

    fn put(&self, body: &mut Vec<u8>, task: u64) {
        body.extend_from_slice(b"{\"id\":\"");
        body.extend_from_slice(self.prefix.as_bytes());
        put_hex(body, task);
        body.extend_from_slice(b"\",\"model\":\"");
        let models = &self.shape.models;
        body.extend_from_slice(models[task as usize % models.len()].as_bytes());
        body.extend_from_slice(self.input.as_bytes());
        if self.shape.tenants > 1 {
            body.extend_from_slice(b",\"tenant\":\"t");
            put_hex(body, task % self.shape.tenants);
            body.push(b'"');
        }
        if let Some(priority) = self.priority(task) {
            body.extend_from_slice(b",\"priority\":");
            body.push(b'0' + priority.min(9));
        }
        body.push(b'}');
    }

    /// `None` leaves it to the default.
    pub fn priority(&self, task: u64) -> Option<u8> {
        let Shape { priorities, priority, .. } = self.shape;
        priority.or_else(|| (priorities > 1).then(|| u8::try_from(task % priorities).unwrap_or(9)))
    }

    /// The results in a message, of tasks of this run. Of others there are none.
    ///
    /// # Errors
    /// When it is not JSON of results.
    pub fn answers(&self, body: &[u8], full: bool, answers: &mut Vec<Answer>) -> serde_json::Result<()> {
        let before = answers.len();
        if !full && self.usual(body, answers) {
            return Ok(());
        }
        answers.truncate(before);
        let mut take = |read: Read<'_>| {
            let number = read.id.strip_prefix(&self.prefix).and_then(|digits| number(digits.as_bytes()));
            let (state, timings) = (read.state.unwrap_or(State::Succeeded), read.timings);
            answers.extend(number.map(|task| Answer { task, state, timings }));
        };
        if body.first() == Some(&b'[') {
            serde_json::from_slice::<Vec<Read<'_>>>(body)?.into_iter().for_each(take);
        } else {
            take(serde_json::from_slice(body)?);
        }
        Ok(())
    }

    /// Whether every result in it was recognised.
    fn usual(&self, body: &[u8], answers: &mut Vec<Answer>) -> bool {
        let before = answers.len();
        for at in self.mark.find_iter(body) {
            let digits = at + self.mark.needle().len();
            let after = digits + NUMBER_DIGITS;
            let Some(task) = body.get(digits..after).and_then(number) else { return false };
            if !body.get(after..).is_some_and(|rest| rest.starts_with(SUCCEEDED)) {
                return false;
            }
            answers.push(Answer { task, state: State::Succeeded, timings: None });
        }
        answers.len() > before
    }
}

fn put_hex(out: &mut Vec<u8>, number: u64) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |place: usize| DIGITS[(number >> (4 * place)) as usize & 15];
    out.extend((0..NUMBER_DIGITS).rev().map(digit));
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.len() != NUMBER_DIGITS {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| Some(number << 4 | u64::from(char::from(*digit).to_digit(16)?)))
}

#[cfg(test)]
mod tests {
    use taskyard_shared::decode::decode_tasks;

    use super::*;

    fn tasks() -> Tasks {
        let models = vec!["a-0".to_owned(), "a-1".to_owned()];
        Tasks::new(Shape { models, size_bytes: 256, priorities: 10, priority: None, tenants: 3 })
    }

    #[test]
    fn bodies_are_tasks_of_the_shape_that_was_asked_for() {
        let tasks = tasks();
        for (first, count) in [(0, 1), (41, 7)] {
            let read = decode_tasks(&tasks.body(first, count)).unwrap();
            assert_eq!(read.len() as u64, count);
            for (task, read) in (first..).zip(read) {
                let read = read.unwrap();
                assert_eq!(read.input.get().len(), 256);
                assert_eq!(read.priority.map(u8::from), Some((task % 10) as u8));
                let model = format!("a-{}", task % 2);
                assert_eq!(read.target, taskyard_shared::task::Target::Model(model.into()));
                assert_eq!(read.tenant, Some(format!("t{:012x}", task % 3)));
                assert!(read.id.unwrap().0.to_string().ends_with(&format!("{task:012x}")));
            }
        }
        let urgent = Tasks::new(Shape { priority: Some(9), ..tasks.shape });
        let read = decode_tasks(&urgent.body(5, 1)).unwrap();
        assert_eq!(read[0].as_ref().unwrap().priority.map(u8::from), Some(9));
    }

    #[test]
    fn results_are_told_by_their_ids_in_every_shape() {
        let tasks = tasks();
        let result =
            |task: u64, state: &str| format!("{{\"id\":\"{}{task:012x}\",\"state\":\"{state}\"}}", tasks.prefix);
        let read = |body: &str| {
            let mut answers = Vec::new();
            tasks.answers(body.as_bytes(), false, &mut answers).unwrap();
            answers.iter().map(|answer| (answer.task, answer.state)).collect::<Vec<_>>()
        };
        assert_eq!(read(&result(7, "succeeded")), [(7, State::Succeeded)]);
        let array = format!("[{},{}]", result(1, "succeeded"), result(2, "succeeded"));
        assert_eq!(read(&array), [(1, State::Succeeded), (2, State::Succeeded)]);
        let mixed = format!("[{},{}]", result(1, "succeeded"), result(2, "failed"));
        assert_eq!(read(&mixed), [(1, State::Succeeded), (2, State::Failed)]);
        let turned = format!("{{ \"state\": \"expired\", \"id\": \"{}00000000000a\", \"more\": [1] }}", tasks.prefix);
        assert_eq!(read(&turned), [(10, State::Expired)]);
        // As the plain relay sends it back.
        let relayed = tasks.body(3, 1);
        assert_eq!(read(std::str::from_utf8(&relayed).unwrap()), [(3, State::Succeeded)]);
        assert_eq!(read(&format!("{{\"id\":\"{}\",\"state\":\"succeeded\"}}", Uuid::new_v4())), []);
        assert!(tasks.answers(b"{", false, &mut Vec::new()).is_err());
    }

    #[test]
    fn a_full_reading_has_the_times_of_the_run_if_there_was_one() {
        let tasks = tasks();
        let read = |timings: &str| {
            let mut answers = Vec::new();
            let body =
                format!("{{\"id\":\"{}000000000001\",\"state\":\"succeeded\",\"timings\":{timings}}}", tasks.prefix);
            tasks.answers(body.as_bytes(), true, &mut answers).unwrap();
            answers[0].timings
        };
        let ran = r#"{"started":"2026-01-01T00:00:00.5Z","finished":"2026-01-01T00:00:01Z","ran_ms":500.0}"#;
        let timings = read(ran).unwrap();
        assert_eq!((timings.finished.ms_since(timings.started), timings.ran_ms), (500.0, 500.0));
        assert_eq!(read(r#"{"started":null,"finished":"2026-01-01T00:00:01Z"}"#), None);
    }
}
