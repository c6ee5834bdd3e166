//! What a worker counts. Labels are its own models, priorities, states, and tenants that the settings name: closed sets.

use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::broker::Missed;
use taskyard_shared::load::ModelLoad;
use taskyard_shared::process::metrics::{CounterVec, HistogramVec, IntCounterVec, IntGaugeVec};
use taskyard_shared::process::metrics::{MetricsError, Registry};
use taskyard_shared::{State, Usage};

use crate::settle::{Outcome, Settlement, Told};

/// Shared by all parts of the service.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Inner>);

struct Inner {
    finished: IntCounterVec,
    retried: IntCounterVec,
    dead_lettered: IntCounterVec,
    wait_seconds: HistogramVec,
    run_seconds: HistogramVec,
    deadline_met: IntCounterVec,
    deadline_missed: IntCounterVec,
    slots: IntGaugeVec,
    batch_size: HistogramVec,
    stale: IntCounterVec,
    void_acks: IntCounterVec,
    partials_left_out: IntCounterVec,
    replies_missed: IntCounterVec,
    model_loads: IntCounterVec,
    model_unloads: IntCounterVec,
    model_load_seconds: HistogramVec,
    tokens: IntCounterVec,
    token_cost: CounterVec,
    artifacts_removed: IntCounterVec,
    payloads: IntCounterVec,
}

const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];
const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

impl Metrics {
    pub fn new(registry: &Registry) -> Result<Self, MetricsError> {
        Ok(Self(Arc::new(Inner {
            finished: registry.counters(
                "tasks_finished_total",
                "Tasks that reached a terminal state, by model and state.",
                &["model", "outcome"],
            )?,
            retried: registry.counters(
                "tasks_retried_total",
                "Attempts that are to be followed by another, by the code of their error.",
                &["model", "reason"],
            )?,
            dead_lettered: registry.counters(
                "tasks_dead_lettered_total",
                "Messages put into the dead letters, by reason.",
                &["reason"],
            )?,
            wait_seconds: registry.histograms(
                "task_wait_seconds",
                "From acceptance to the start of the attempt that ended the task.",
                &["model", "priority"],
                SECONDS,
            )?,
            run_seconds: registry.histograms(
                "task_run_seconds",
                "Execution time of the attempt that ended the task.",
                &["model", "outcome"],
                SECONDS,
            )?,
            deadline_met: registry.counters(
                "deadline_met_total",
                "Tasks that ended before their deadline.",
                &["model"],
            )?,
            deadline_missed: registry.counters(
                "deadline_missed_total",
                "Tasks with a deadline that ended after it or never ran.",
                &["model"],
            )?,
            slots: registry.gauges(
                "worker_slots",
                "Slots of this worker, by state (busy or free).",
                &["model", "state"],
            )?,
            batch_size: registry.histograms("batch_size", "Tasks in one call of a handler.", &["model"], SIZES)?,
            stale: registry.counters(
                "attempts_fenced_total",
                "Attempts that had lost their right when they came to be settled.",
                &["model"],
            )?,
            void_acks: registry.counters(
                "void_acks_total",
                "Deliveries settled after their session was cut: they come again.",
                &[],
            )?,
            partials_left_out: registry.counters(
                "partial_outputs_left_out_total",
                "Partial outputs that no follower sees, beyond what is kept of an attempt or said when the store was away.",
                &["model"],
            )?,
            replies_missed: registry.counters(
                "replies_missed_total",
                "Results whose reply queue is gone or does not take them.",
                &["reason"],
            )?,
            model_loads: registry.counters(
                "worker_model_loads_total",
                "Times that a worker with a memory budget loaded a model, by what came of it (loaded or failed).",
                &["model", "outcome"],
            )?,
            model_unloads: registry.counters(
                "worker_model_unloads_total",
                "Times that a worker with a memory budget unloaded a model.",
                &["model"],
            )?,
            model_load_seconds: registry.histograms(
                "worker_model_load_seconds",
                "From the start of a load until the model takes tasks.",
                &["model"],
                SECONDS,
            )?,
            tokens: registry.counters(
                "tokens_total",
                "Tokens that model servers counted, of the prompt or the completion, by model and tenant.",
                &["model", "tenant", "kind"],
            )?,
            token_cost: registry.float_counters(
                "token_cost_total",
                "What these tokens cost, by the prices in the models' settings.",
                &["model", "tenant"],
            )?,
            artifacts_removed: registry.counters(
                "artifacts_removed_total",
                "Artifacts and notes that were put long ago and were removed.",
                &["what"],
            )?,
            payloads: registry.counters(
                "payloads_total",
                "Inputs that were fetched and outputs that were kept apart, by where they lie.",
                &["what", "place"],
            )?,
        })))
    }

    pub fn partials_left_out(&self, model: &str, count: u64) {
        if count > 0 {
            self.0.partials_left_out.with_label_values(&[model]).inc_by(count);
        }
    }

    pub fn settled(&self, settlement: &Settlement, told: &Told) {
        let envelope = &settlement.held.envelope;
        let model = envelope.model().unwrap_or("_unknown");
        match (&settlement.outcome, told) {
            (_, Told::Stale) => self.0.stale.with_label_values(&[model]).inc(),
            (Outcome::Terminal { result, dead, .. }, Told::End(_)) => {
                let outcome = result.state.as_str();
                self.0.finished.with_label_values(&[model, outcome]).inc();
                if *dead && envelope.extras.mirrors.is_none() {
                    self.dead_lettered(result.error.as_ref().map_or("failed", |error| known_code(&error.code)));
                }
                if let Some(ran_ms) = result.timings.ran_ms {
                    self.0.run_seconds.with_label_values(&[model, outcome]).observe(ran_ms / 1e3);
                }
                if let Some(waited_ms) = result.timings.waited_ms {
                    let priority = PRIORITIES[usize::from(result.priority.get())];
                    self.0.wait_seconds.with_label_values(&[model, priority]).observe(waited_ms / 1e3);
                }
                if let Some(deadline) = envelope.deadline {
                    let in_time = result.state == State::Succeeded
                        && result.timings.finished.is_some_and(|finished| finished <= deadline);
                    let counter = if in_time { &self.0.deadline_met } else { &self.0.deadline_missed };
                    counter.with_label_values(&[model]).inc();
                }
            }
            (Outcome::Retry { error, .. }, Told::Again) => {
                self.0.retried.with_label_values(&[model, known_code(&error.code)]).inc();
            }
            _ => {}
        }
    }

    /// What an attempt took. `tenant` is one that the settings name, or stands for all others.
    pub fn used(&self, model: &str, tenant: &str, usage: &Usage) {
        let Usage { prompt_tokens, completion_tokens, cost } = usage;
        for (kind, tokens) in [("prompt", prompt_tokens), ("completion", completion_tokens)] {
            self.0.tokens.with_label_values(&[model, tenant, kind]).inc_by(*tokens);
        }
        if let Some(cost) = cost.filter(|cost| *cost >= 0.0) {
            self.0.token_cost.with_label_values(&[model, tenant]).inc_by(cost);
        }
    }

    pub fn swept(&self, artifacts: u64, notes: u64) {
        self.0.artifacts_removed.with_label_values(&["artifact"]).inc_by(artifacts);
        self.0.artifacts_removed.with_label_values(&["note"]).inc_by(notes);
    }

    /// An `input` that was fetched, or an `output` that was kept, as an `artifact` or over `http`.
    pub fn payload(&self, what: &str, place: &str) {
        self.0.payloads.with_label_values(&[what, place]).inc();
    }

    pub fn dead_lettered(&self, reason: &str) {
        self.0.dead_lettered.with_label_values(&[reason]).inc();
    }

    pub fn batch(&self, model: &str, size: usize) {
        self.0.batch_size.with_label_values(&[model]).observe(size as f64);
    }

    pub fn slots(&self, model: &str, load: &ModelLoad) {
        let free = i64::from(load.slots.saturating_sub(load.busy));
        self.0.slots.with_label_values(&[model, "busy"]).set(load.busy.into());
        self.0.slots.with_label_values(&[model, "free"]).set(free);
    }

    pub fn loaded(&self, model: &str, took: Duration) {
        self.0.model_loads.with_label_values(&[model, "loaded"]).inc();
        self.0.model_load_seconds.with_label_values(&[model]).observe(took.as_secs_f64());
    }

    pub fn load_failed(&self, model: &str) {
        self.0.model_loads.with_label_values(&[model, "failed"]).inc();
    }

    pub fn unloaded(&self, model: &str) {
        self.0.model_unloads.with_label_values(&[model]).inc();
    }

    pub fn void_acks(&self, acks: usize) {
        self.0.void_acks.with_label_values::<&str>(&[]).inc_by(acks as u64);
    }

    pub fn missed(&self, missed: Missed) {
        let Missed { unroutable, too_large, hints: _ } = missed;
        self.0.replies_missed.with_label_values(&["unroutable"]).inc_by(unroutable as u64);
        self.0.replies_missed.with_label_values(&["too_large"]).inc_by(too_large as u64);
    }
}

const PRIORITIES: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// A model's own codes are its own affair, and no label.
fn known_code(code: &str) -> &'static str {
    use crate::handler::codes::*;
    [
        BAD_INPUT,
        HANDLER_FAILED,
        BAD_ANSWER,
        TIMED_OUT,
        CRASHED,
        UNAVAILABLE,
        OUTPUT_TOO_LARGE,
        LEASE_LOST,
        ATTEMPTS_EXHAUSTED,
        WORKER_LOST,
    ]
    .into_iter()
    .find(|known| *known == code)
    .unwrap_or("model_error")
}
