//! Says when a task would start and end that nobody has published.

use taskyard_shared::control::{ExpectedTime, Quote, QuotedTask};
use taskyard_shared::{TaskError, Timestamp};

use crate::core::Core;
use crate::held::Held;
use crate::planner::Prediction;

impl Core {
    /// Changes nothing.
    pub fn quote(&self, task: QuotedTask) -> Quote {
        let nothing = Quote {
            model: None,
            choice: None,
            expected_start: None,
            expected_finish: None,
            deadline_probability: None,
            problem: None,
        };
        let Some(envelope) = task.into_envelope() else { return nothing };
        let deadline = envelope.deadline;
        let chosen = match self.choose_model(&envelope) {
            Ok(chosen) => chosen,
            Err((code, message)) => {
                return Quote {
                    problem: Some(TaskError { code: code.to_owned(), message, retryable: false }),
                    ..nothing
                };
            }
        };
        let model = chosen.spec.name.clone();
        let (envelope, since) = (Box::new(envelope), tokio::time::Instant::now());
        let held = Held { envelope, receipt: None, since, model, is_known: false, page: None, expected: None };
        let prediction = self.planner.quote(&self.arrival(&held), self.clock.now_us());
        let problem = match prediction {
            Some(_) => None,
            None => {
                let model = &held.model;
                let (code, message) = if self.paused.contains(model) {
                    ("paused", format!("{model} is paused"))
                } else if self.planner.is_loadable(model) {
                    ("not_loaded", format!("no worker holds {model}; one that can is to load it"))
                } else {
                    ("no_worker", format!("no worker offers a slot for {model}"))
                };
                Some(TaskError { code: code.to_owned(), message, retryable: true })
            }
        };
        let (expected_start, expected_finish) = self.expected(prediction);
        let left_seconds = |deadline: Timestamp| deadline.ms_since(Timestamp::now()) / 1e3;
        Quote {
            model: Some(chosen.spec.full_name()),
            choice: chosen.choice.map(|choice| *choice),
            expected_start,
            expected_finish,
            deadline_probability: prediction.zip(deadline).map(|(prediction, at)| prediction.in_time(left_seconds(at))),
            problem,
        }
    }

    /// Start and end of a prediction that was made now.
    pub fn expected(&self, prediction: Option<Prediction>) -> (Option<ExpectedTime>, Option<ExpectedTime>) {
        let Some(prediction) = prediction else { return (None, None) };
        let now = Timestamp::now();
        // A century is more than anybody waits, and less than a clock holds.
        let at = |seconds: f64| now.plus_ms((seconds.clamp(0.0, 3e9) * 1e3) as u64);
        let start = ExpectedTime { q50: at(prediction.start_q50_seconds), q95: at(prediction.start_q95_seconds) };
        let finish = ExpectedTime { q50: at(prediction.end_q50_seconds), q95: at(prediction.end_q95_seconds) };
        (Some(start), Some(finish))
    }
}
