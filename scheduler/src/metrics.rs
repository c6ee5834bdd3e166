//! What the scheduler counts. Labels are models that workers announced, tenants that the settings name, priorities and
//! reasons: closed sets.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use taskyard_shared::load::LoadReport;
use taskyard_shared::mirror::Likeness;
use taskyard_shared::process::metrics::{CounterVec, GaugeVec, HistogramVec, IntCounterVec, IntGaugeVec};
use taskyard_shared::process::metrics::{MetricsError, Registry};
use taskyard_shared::workflow::WorkflowState;
use taskyard_shared::{ChoiceReason, Kind, State};

use crate::planner::{Compared, Demand, DispatchReason, Stats, WaitReason};
use crate::shadow::Regret;
use crate::wanted::Outlook;

/// Shared by all parts of the service.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Inner>);

struct Inner {
    accepted: IntCounterVec,
    dispatched: IntCounterVec,
    finished: IntCounterVec,
    dead_lettered: IntCounterVec,
    deadline_missed: IntCounterVec,
    turned_away: IntCounterVec,
    backlog: IntGaugeVec,
    oldest_age: GaugeVec,
    weighted_seconds: GaugeVec,
    drain_seconds: GaugeVec,
    workers_wanted: GaugeVec,
    outstanding: IntGaugeVec,
    estimate_coverage: GaugeVec,
    estimate_error: GaugeVec,
    start_coverage: GaugeVec,
    waiting: IntGaugeVec,
    decision_seconds: HistogramVec,
    decisions: IntCounterVec,
    dispatch_reasons: IntCounterVec,
    chosen: IntCounterVec,
    allocated_seconds: CounterVec,
    tenant_waiting: IntGaugeVec,
    tenant_running: IntGaugeVec,
    tenant_served: GaugeVec,
    active: IntGaugeVec,
    shard: IntGaugeVec,
    store_failures: IntCounterVec,
    credits_reclaimed: IntCounterVec,
    handed_back: IntCounterVec,
    watched_tasks: IntGaugeVec,
    workflows_finished: IntCounterVec,
    workflows_active: IntGaugeVec,
    schedules: IntGaugeVec,
    schedule_ticks: IntCounterVec,
    schedule_late: HistogramVec,
    paged: IntCounterVec,
    page_queues: IntGaugeVec,
    worker_slots: IntGaugeVec,
    model_workers: IntGaugeVec,
    shadow_ratio: GaugeVec,
    shadow_tasks: IntCounterVec,
    mirrored: IntCounterVec,
    mirror_seconds: CounterVec,
    /// Models that have a row in the gauges above, so that one that is gone is set to nothing.
    shown: Mutex<BTreeSet<String>>,
}

const FAST_SECONDS: &[f64] =
    &[1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.05];

const LATE_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0, 3600.0];

impl Metrics {
    pub fn new(registry: &Registry) -> Result<Self, MetricsError> {
        Ok(Self(Arc::new(Inner {
            accepted: registry.counters(
                "tasks_accepted_total",
                "Tasks taken in, by kind and model.",
                &["kind", "model"],
            )?,
            dispatched: registry.counters("tasks_dispatched_total", "Tasks handed to a ready queue.", &["model"])?,
            finished: registry.counters(
                "tasks_finished_total",
                "Tasks that reached a terminal state, by model and state.",
                &["model", "outcome"],
            )?,
            dead_lettered: registry.counters(
                "tasks_dead_lettered_total",
                "Messages put into the dead letters, by reason.",
                &["reason"],
            )?,
            deadline_missed: registry.counters(
                "deadline_missed_total",
                "Tasks with a deadline that ended after it or never ran.",
                &["model"],
            )?,
            turned_away: registry.counters(
                "tasks_turned_away_total",
                "Tasks that did not run because of their deadline or of too much that waits, by model and code: refused when they came, or shed.",
                &["model", "reason"],
            )?,
            backlog: registry.gauges("backlog_tasks", "Admitted tasks that are not dispatched.", &["model"])?,
            oldest_age: registry.float_gauges(
                "backlog_oldest_age_seconds",
                "Age of the oldest task that is not dispatched.",
                &["model"],
            )?,
            weighted_seconds: registry.float_gauges(
                "backlog_weighted_seconds",
                "Sum of priority times expected execution time over the waiting tasks.",
                &["model"],
            )?,
            drain_seconds: registry.float_gauges(
                "backlog_drain_seconds",
                "Expected execution time of the tasks that wait and may start, over the slots; one slot while there are none.",
                &["model"],
            )?,
            workers_wanted: registry.float_gauges(
                "workers_wanted",
                "Workers that the work that comes, what waits, and the deadlines take: this shard's part of them.",
                &["model"],
            )?,
            outstanding: registry.gauges(
                "outstanding_tasks",
                "Tasks dispatched whose completion has not come back.",
                &["model"],
            )?,
            estimate_coverage: registry.float_gauges(
                "estimate_coverage_ratio",
                "Part of the tasks that ran no longer than the 95 % quantile stated when they were admitted.",
                &["model"],
            )?,
            estimate_error: registry.float_gauges(
                "estimate_relative_error",
                "Sum of how far run times were from the stated means, by the sum of run times.",
                &["model"],
            )?,
            start_coverage: registry.float_gauges(
                "start_coverage_ratio",
                "Part of the tasks that had to wait and started by the 50 % or 95 % quantile predicted when they were admitted.",
                &["model", "predicted_quantile"],
            )?,
            waiting: registry.gauges("scheduler_waiting_tasks", "Waiting tasks, by why they wait.", &["reason"])?,
            decision_seconds: registry.histograms(
                "scheduler_decision_seconds",
                "Time the planner took for one decision.",
                &[],
                FAST_SECONDS,
            )?,
            decisions: registry.counters("scheduler_decisions_total", "Decisions of the planner.", &[])?,
            dispatch_reasons: registry.counters(
                "scheduler_dispatches_total",
                "Dispatches, by why this task and not another of its model.",
                &["reason"],
            )?,
            chosen: registry.counters(
                "model_choices_total",
                "Tasks admitted that left a choice among models, by the model chosen and why.",
                &["model", "reason"],
            )?,
            allocated_seconds: registry.float_counters(
                "allocation_expected_seconds_total",
                "Expected cost of such choices, priority times run time plus wait plus load: as chosen one by one, and of the \
                 best assignment of every eight at once.",
                &["assignment"],
            )?,
            tenant_waiting: registry.gauges(
                "tenant_waiting_tasks",
                "Tasks that wait and may start, of each tenant in the settings.",
                &["tenant"],
            )?,
            tenant_running: registry.gauges(
                "tenant_running_tasks",
                "Tasks that were dispatched and have not come back, of each tenant in the settings.",
                &["tenant"],
            )?,
            tenant_served: registry.float_gauges(
                "tenant_served_seconds",
                "Run time of what came back since this scheduler became active, of each tenant in the settings.",
                &["tenant"],
            )?,
            active: registry.gauges("scheduler_active", "1 when this scheduler is active.", &[])?,
            shard: registry.gauges("scheduler_shard", "1 for the shard that this scheduler has.", &["shard"])?,
            store_failures: registry.counters(
                "store_failures_total",
                "Calls of the store that failed, by call.",
                &["call"],
            )?,
            watched_tasks: registry.gauges(
                "scheduler_watched_tasks",
                "Tasks that run for longer than their workers keep deliveries, and are watched over.",
                &[],
            )?,
            paged: registry.counters(
                "tasks_paged_total",
                "Tasks of the backlog that went out of the scheduler's memory into the broker, and in again.",
                &["direction"],
            )?,
            page_queues: registry.gauges(
                "scheduler_page_queues",
                "Queues of the broker that hold a part of the backlog.",
                &[],
            )?,
            handed_back: registry.counters(
                "tasks_handed_back_total",
                "Tasks that schedulers sent to themselves, since they held them for long or somebody runs them.",
                &[],
            )?,
            credits_reclaimed: registry.counters(
                "credits_reclaimed_total",
                "Credits given back because nobody held their task any more.",
                &[],
            )?,
            workflows_finished: registry.counters(
                "workflows_finished_total",
                "Workflows that reached a terminal state, by state.",
                &["outcome"],
            )?,
            workflows_active: registry.gauges("workflows_active", "Workflows that run, of this scheduler's shard.", &[])?,
            schedules: registry.gauges("schedules", "Schedules that this scheduler keeps.", &[])?,
            schedule_ticks: registry.counters(
                "schedule_ticks_total",
                "Ticks of schedules, by what became of them: fired, missed, or overlapped with what the one before made.",
                &["outcome"],
            )?,
            schedule_late: registry.histograms(
                "schedule_late_seconds",
                "From a tick's time until what it makes was confirmed by the broker.",
                &[],
                LATE_SECONDS,
            )?,
            worker_slots: registry.gauges(
                "yard_slots",
                "Slots of all live workers as they report them, by model and state (busy or free).",
                &["model", "state"],
            )?,
            model_workers: registry.gauges("model_workers", "Live workers that serve a model.", &["model"])?,
            shadow_ratio: registry.float_gauges(
                "shadow_weighted_delay_ratio",
                "Sum of weight times time to the end over the tasks of the last window, over what another order would have made it.",
                &["model", "policy"],
            )?,
            shadow_tasks: registry.counters(
                "shadow_tasks_total",
                "Tasks that were compared with what other orders would have made of them.",
                &["model"],
            )?,
            mirrored: registry.counters(
                "mirrored_tasks_total",
                "Tasks of the share of a version in the shadow, by how its answer compares with theirs.",
                &["model", "outcome"],
            )?,
            mirror_seconds: registry.float_counters(
                "mirrored_run_seconds_total",
                "Run time of the tasks that were compared with their copies, and of the copies.",
                &["model", "of"],
            )?,
            shown: Mutex::new(BTreeSet::new()),
        })))
    }

    pub fn accepted(&self, kind: Kind, model: &str) {
        self.0.accepted.with_label_values(&[kind.as_str(), model]).inc();
    }

    pub fn dispatched(&self, model: &str, tasks: usize) {
        self.0.dispatched.with_label_values(&[model]).inc_by(tasks as u64);
    }

    pub fn finished(&self, model: &str, state: State) {
        // A task that was refused has no model of ours: its name is the sender's and no label.
        let model = if model.is_empty() { "_unknown" } else { model };
        self.0.finished.with_label_values(&[model, state.as_str()]).inc();
        if state == State::Expired {
            self.0.deadline_missed.with_label_values(&[model]).inc();
        }
    }

    pub fn workflow_finished(&self, state: WorkflowState) {
        self.0.workflows_finished.with_label_values(&[state.as_str()]).inc();
    }

    /// So many more.
    pub fn workflows_active(&self, more: i64) {
        self.0.workflows_active.with_label_values::<&str>(&[]).add(more);
    }

    pub fn schedules(&self, count: usize) {
        self.0.schedules.with_label_values::<&str>(&[]).set(count as i64);
    }

    /// A tick of a schedule, so many seconds late.
    pub fn fired(&self, late_seconds: f64) {
        self.0.schedule_ticks.with_label_values(&["fired"]).inc();
        self.0.schedule_late.with_label_values::<&str>(&[]).observe(late_seconds);
    }

    /// Ticks of schedules that were not fired.
    pub fn not_fired(&self, missed: usize, overlapped: usize) {
        self.0.schedule_ticks.with_label_values(&["missed"]).inc_by(missed as u64);
        self.0.schedule_ticks.with_label_values(&["overlapped"]).inc_by(overlapped as u64);
    }

    /// By its deadline, before it passed.
    pub fn chosen(&self, model: &str, reason: ChoiceReason) {
        self.0.chosen.with_label_values(&[model, reason.as_str()]).inc();
    }

    pub fn allocated(&self, Compared { chosen_seconds, exact_seconds }: Compared) {
        self.0.allocated_seconds.with_label_values(&["chosen"]).inc_by(chosen_seconds);
        self.0.allocated_seconds.with_label_values(&["exact"]).inc_by(exact_seconds);
    }

    pub fn turned_away(&self, model: &str, reason: &str, has_deadline: bool) {
        self.0.turned_away.with_label_values(&[model, reason]).inc();
        if has_deadline {
            self.0.deadline_missed.with_label_values(&[model]).inc();
        }
    }

    pub fn dead_lettered(&self, reason: &str) {
        self.0.dead_lettered.with_label_values(&[reason]).inc();
    }

    /// `reasons` as in [`DispatchReason::ALL`].
    pub fn decided(&self, decisions: u64, took: Duration, reasons: [u64; DispatchReason::ALL.len()]) {
        for (reason, count) in DispatchReason::ALL.iter().zip(reasons).filter(|(_, count)| *count > 0) {
            self.0.dispatch_reasons.with_label_values(&[reason.as_str()]).inc_by(count);
        }
        if decisions > 0 {
            self.0.decisions.with_label_values::<&str>(&[]).inc_by(decisions);
            self.0.decision_seconds.with_label_values::<&str>(&[]).observe(took.as_secs_f64() / decisions as f64);
        }
    }

    /// Active with this shard, or standing by.
    pub fn active(&self, shard: Option<u32>) {
        self.0.active.with_label_values::<&str>(&[]).set(shard.is_some().into());
        self.0.shard.reset();
        if let Some(shard) = shard {
            self.0.shard.with_label_values(&[&shard.to_string()]).set(1);
        }
    }

    pub fn store_failed(&self, call: &str) {
        self.0.store_failures.with_label_values(&[call]).inc();
    }

    pub fn watched(&self, tasks: usize) {
        self.0.watched_tasks.with_label_values::<&str>(&[]).set(tasks as i64);
    }

    pub fn paged(&self, direction: &str, tasks: u64) {
        self.0.paged.with_label_values(&[direction]).inc_by(tasks);
    }

    pub fn page_queues(&self, queues: usize) {
        self.0.page_queues.with_label_values::<&str>(&[]).set(queues as i64);
    }

    pub fn handed_back(&self, tasks: usize) {
        self.0.handed_back.with_label_values::<&str>(&[]).inc_by(tasks as u64);
    }

    pub fn credits_reclaimed(&self, credits: usize) {
        self.0.credits_reclaimed.with_label_values::<&str>(&[]).inc_by(credits as u64);
    }

    /// Once a second.
    pub fn planner(&self, stats: &Stats, now_us: u64) {
        let mut shown = self.0.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone = std::mem::take(&mut *shown);
        for model in &stats.models {
            let labels = [&*model.model];
            gone.remove(&*model.model);
            shown.insert(model.model.to_string());
            self.0.backlog.with_label_values(&labels).set(model.waiting as i64);
            let age = model.oldest_arrival_us.map_or(0.0, |at_us| now_us.saturating_sub(at_us) as f64 / 1e6);
            self.0.oldest_age.with_label_values(&labels).set(age);
            self.0.weighted_seconds.with_label_values(&labels).set(model.weighted_seconds);
            self.0.outstanding.with_label_values(&labels).set(model.outstanding as i64);
            if let Some((coverage, error)) = model.calibration.coverage().zip(model.calibration.relative_error()) {
                self.0.estimate_coverage.with_label_values(&labels).set(coverage);
                self.0.estimate_error.with_label_values(&labels).set(error);
            }
            let starts = model.starts;
            for (quantile, count) in [("0.5", starts.by_q50), ("0.95", starts.by_q95)] {
                if let Some(coverage) = starts.coverage(count) {
                    self.0.start_coverage.with_label_values(&[&*model.model, quantile]).set(coverage);
                }
            }
        }
        for model in gone {
            let labels = [model.as_str()];
            self.0.backlog.with_label_values(&labels).set(0);
            self.0.oldest_age.with_label_values(&labels).set(0.0);
            self.0.weighted_seconds.with_label_values(&labels).set(0.0);
            self.0.outstanding.with_label_values(&labels).set(0);
            self.0.drain_seconds.with_label_values(&labels).set(0.0);
            let _unknown = self.0.workers_wanted.remove_label_values(&labels);
        }
        for tenant in &stats.tenants {
            let labels = [&*tenant.tenant];
            self.0.tenant_waiting.with_label_values(&labels).set(tenant.queued as i64);
            self.0.tenant_running.with_label_values(&labels).set(tenant.running as i64);
            self.0.tenant_served.with_label_values(&labels).set(tenant.served_seconds);
        }
        for reason in WaitReason::ALL {
            self.0.waiting.with_label_values(&[reason.as_str()]).set(stats.waiting(reason) as i64);
        }
    }

    /// Once a second.
    pub fn demand(&self, demand: &[Demand], outlooks: &[Outlook]) {
        for (demand, outlook) in demand.iter().zip(outlooks) {
            let labels = [&*demand.model];
            self.0.drain_seconds.with_label_values(&labels).set(demand.queued_seconds / demand.slots.max(1) as f64);
            self.0.workers_wanted.with_label_values(&labels).set(outlook.workers);
        }
    }

    /// Of the last windows, and no others.
    pub fn shadow(&self, regrets: &[Regret]) {
        self.0.shadow_ratio.reset();
        for Regret { model, tasks, ratios } in regrets {
            for (policy, ratio) in ratios {
                self.0.shadow_ratio.with_label_values(&[model.as_str(), policy]).set(*ratio);
            }
            self.0.shadow_tasks.with_label_values(&[model]).inc_by(*tasks as u64);
        }
    }

    /// A task of a version's share, and how alike its copy is.
    pub fn mirrored(&self, version: &str, likeness: Likeness) {
        self.0.mirrored.with_label_values(&[version, likeness.as_str()]).inc();
    }

    pub fn mirror_ran(&self, version: &str, task_seconds: f64, copy_seconds: f64) {
        self.0.mirror_seconds.with_label_values(&[version, "task"]).inc_by(task_seconds.max(0.0));
        self.0.mirror_seconds.with_label_values(&[version, "copy"]).inc_by(copy_seconds.max(0.0));
    }

    pub fn workers(&self, loads: &[LoadReport]) {
        self.0.worker_slots.reset();
        self.0.model_workers.reset();
        for (model, load) in loads.iter().flat_map(|report| &report.models) {
            let busy = i64::from(load.busy);
            let free = i64::from(load.slots.saturating_sub(load.busy));
            self.0.worker_slots.with_label_values(&[model.as_str(), "busy"]).add(busy);
            self.0.worker_slots.with_label_values(&[model.as_str(), "free"]).add(free);
            if load.slots > 0 {
                self.0.model_workers.with_label_values(&[model]).inc();
            }
        }
    }
}
