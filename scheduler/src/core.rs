//! The one owner of the planner: turns what happened into the planner's events, and its decisions into work for others.
//!
//! Nothing here waits for the broker or the store. Publishing runs beside, a few groups at a time, and reports back.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::broker::{self, Broker, Receipt, Verdict};
use taskyard_shared::control::Told;
use taskyard_shared::deployment::Deployed;
use taskyard_shared::load::{Completion, LoadReport, ModelSpec};
use taskyard_shared::mirror::Tally;
use taskyard_shared::process::settings::{SchedulerSettings, TenantSettings};
use taskyard_shared::signal::TenantSignal;
use taskyard_shared::store::Store;
use taskyard_shared::{State, TaskId, Timestamp, Topology};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::choose::Impatient;
use crate::clock::Clock;
use crate::control::{Asked, Wishes};
use crate::deploying::Deploying;
use crate::depth::Depths;
use crate::dispatch::{Dispatched, PARCELS, Parcels, dispatch};
use crate::finish::{Finished, Finisher};
use crate::held::{Held, Holdings, Outstanding};
use crate::load_watch::unheld;
use crate::lost::Quiet;
use crate::memory;
use crate::metrics::Metrics;
use crate::mirror::Mirroring;
use crate::offers::Offers;
use crate::paging::{PagedIn, Paging};
use crate::placing::Placing;
use crate::planner::{
    AllocationRegret, Decision, DispatchReason, Fairness, Late, Learnt, Planner, Prior, Ran, ShedReason, TenantLimits,
    policy,
};
use crate::quotas::quotas;
use crate::room::Room;
use crate::shadow::Shadow;
use crate::shard::Shard;
use crate::wanted::Wanted;
use crate::watch::Watch;
use crate::workflow::Expected;

/// Most events handled before the planner is asked.
const EVENTS: usize = 256;
/// Tasks that are finished, or sent round, together.
pub(crate) const GROUP: usize = 256;
/// Groups of either kind, and of parcels, under way.
const GROUPS: usize = 4;
/// Dispatching pauses for so long after the broker did not take a task.
const PAUSE: Duration = Duration::from_millis(200);
/// While it waits for the pages that it found at the start, it looks again so often.
const SETTLING: Duration = Duration::from_millis(20);
/// The record of a dispatched task says so after this time, if the task has not ended by then.
const MARKED_AFTER: Duration = Duration::from_millis(100);
/// What is learnt of run times is kept so often, if there is something new.
const KEPT_EVERY: Duration = Duration::from_secs(10);

/// What happened.
pub(crate) enum Event {
    /// Published tasks, each taken in once.
    Arrived(Vec<Held>),
    /// Tasks that came back, to be tried again.
    Returned(Vec<Held>),
    /// Tasks held for long, on their way round through the broker.
    CameRound(Vec<Held>),
    /// Pages of the backlog that was kept in the broker.
    PagedIn(PagedIn),
    /// Tasks that run for long, to be watched over.
    Runs(Vec<Held>),
    /// Tasks that came beyond the rates of their tenants.
    OverQuota(Vec<Held>),
    /// Tasks that came, or came back, and that somebody asked to cancel.
    Unwanted(Vec<Held>),
    /// Somebody asks.
    Asked(Asked),
    /// These models are paused and no others.
    Paused {
        paused: HashSet<String>,
        answer: oneshot::Sender<Told>,
    },
    Completed(Vec<Completion>),
    /// What are tasks like these expected to take?
    Expected(Expected),
    /// What the store says of workers and models.
    Loads {
        loads: Vec<LoadReport>,
        models: Option<Vec<ModelSpec>>,
        paused: HashSet<String>,
        /// How many tasks of tenants with a quota wait on other shards.
        elsewhere: Option<BTreeMap<String, u64>>,
        /// Messages in intake.
        unread: Option<u64>,
        /// What deployments came to.
        deployed: Option<Box<Deployed>>,
        /// Messages in the ready queues of some models that no worker holds.
        left_behind: Vec<(String, u64)>,
    },
    /// What queue and workers together hold of a model, and which of the tasks asked for have ended.
    Counted {
        model: String,
        tasks: usize,
        ended: Vec<TaskId>,
        at: Instant,
    },
}

pub(crate) struct Core {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    pub topology: Topology,
    pub settings: SchedulerSettings,
    pub metrics: Metrics,
    pub room: Room,
    pub shard: Shard,
    pub closing: CancellationToken,
    pub clock: Clock,
    pub started: Instant,
    pub planner: Planner,
    pub held: Holdings,
    pub paging: Paging,
    pub outstanding: HashMap<TaskId, Outstanding>,
    /// What was asked of tasks that may be on their way here.
    pub wishes: Wishes,
    pub paused: HashSet<String>,
    /// Copies of these are on their way round through the broker.
    pub in_limbo: HashSet<TaskId>,
    /// Held tasks by age, for the way round.
    pub by_age: VecDeque<(Instant, TaskId)>,
    /// Waiting tasks that an alternative may have after a time.
    pub impatient: Impatient,
    /// What the choices among models cost, against the best assignment.
    pub allocation_regret: AllocationRegret,
    /// Tasks whose model is not known, in the first moments.
    pub unknown: Vec<Held>,
    pub models: BTreeMap<String, Arc<ModelSpec>>,
    pub offers: Offers,
    pub last_completion: HashMap<String, Instant>,
    depths: Depths,
    dispatching: JoinSet<Dispatched>,
    /// What each of these groups is: the models that others of theirs wait for, and how many parcels.
    under_way: HashMap<tokio::task::Id, (Vec<String>, usize)>,
    /// Dispatched tasks whose record does not say so yet, by the time from when it is to.
    to_mark: VecDeque<(Instant, TaskId)>,
    paused_until: Option<Instant>,
    pub finisher: Finisher,
    pub finishing: JoinSet<()>,
    pub finished: Vec<Finished>,
    pub acking: JoinSet<()>,
    /// When what is learnt was last kept, and from how many completions that was.
    kept: (Instant, u64),
    keeping: JoinSet<()>,
    pub wanted: Wanted,
    pub placing: Placing,
    pub deploying: Deploying,
    pub mirroring: Mirroring,
    pub watch: Watch,
    /// Tenants that have a quota.
    pub quotas: BTreeMap<String, TenantSignal>,
    /// When it was last said how much waits.
    pub signalled: Instant,
    pub signalling: JoinSet<()>,
    /// Something was refused since, which gateways are to know of before the next second.
    pub refuses: bool,
    /// What other orders would have made of the same tasks; nothing when nobody wants to know.
    pub shadow: Option<Shadow>,
    pub comparing: Option<tokio::task::JoinHandle<()>>,
}

/// What a core is made of.
pub(crate) struct Parts {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    pub topology: Topology,
    pub settings: SchedulerSettings,
    pub tenants: BTreeMap<String, TenantSettings>,
    pub metrics: Metrics,
    pub room: Room,
    pub models: BTreeMap<String, Arc<ModelSpec>>,
    pub shard: Shard,
    pub learnt: Learnt,
    pub deployed: Deployed,
    pub mirrored: BTreeMap<String, Tally>,
    pub paging: Paging,
    pub closing: CancellationToken,
    pub finisher: Finisher,
}

impl Core {
    pub fn new(parts: Parts) -> Self {
        let Parts {
            broker,
            store,
            topology,
            settings,
            tenants,
            metrics,
            room,
            models,
            shard,
            learnt,
            deployed,
            mirrored,
            mut paging,
            closing,
            finisher,
        } = parts;
        paging.set_limited(tenants.keys().cloned());
        // The name was checked with the settings; an unknown one falls back to the default policy.
        let policy = policy::by_name(&settings.policy, Some(settings.ageing_s).filter(|seconds| *seconds > 0.0))
            .unwrap_or_else(|| Box::new(policy::Cmu::default()));
        let floors = [settings.floor_low, settings.floor_middle, settings.floor_high];
        let fairness = Fairness::of_policy(policy.name(), settings.fair_allowance, floors);
        // Ids come from outsiders: nobody may know where their tables put them.
        let keeps_deadlines = policy.keeps_deadlines();
        let mut planner = Planner::with_seed(policy, fastrand::u64(..)).with_fairness(fairness);
        if let Some(late) = Late::by_name(&settings.late).filter(|_| keeps_deadlines) {
            planner.set_late(late);
        }
        planner.set_overload(Some(settings.overload_s));
        for spec in models.values() {
            planner.handle_model(&spec.name, prior(spec));
        }
        let restored = planner.restore(learnt);
        if restored > 0 {
            info!(models = restored, "run times are known from before");
        }
        for (name, tenant) in &tenants {
            let waiting_most = tenant.max_waiting.map(|most| most as usize);
            let running_most = tenant.max_running.map(|most| shard.least_one(most as usize));
            planner.handle_tenant(name, TenantLimits { weight: tenant.weight, running_most, waiting_most });
        }
        let clock = Clock::start();
        Self {
            planner,
            shadow: Shadow::new(Duration::from_secs(settings.shadow_every_s), clock.now_us()),
            comparing: None,
            clock,
            started: Instant::now(),
            held: Holdings::default(),
            paging,
            outstanding: HashMap::new(),
            wishes: Wishes::default(),
            paused: HashSet::new(),
            in_limbo: HashSet::new(),
            by_age: VecDeque::new(),
            impatient: Impatient::default(),
            allocation_regret: AllocationRegret::default(),
            unknown: Vec::new(),
            models,
            offers: Offers::default(),
            to_mark: VecDeque::new(),
            last_completion: HashMap::new(),
            depths: Depths::default(),
            dispatching: JoinSet::new(),
            under_way: HashMap::new(),
            paused_until: None,
            finisher,
            finishing: JoinSet::new(),
            finished: Vec::new(),
            acking: JoinSet::new(),
            kept: (Instant::now(), 0),
            keeping: JoinSet::new(),
            wanted: Wanted::default(),
            placing: Placing::default(),
            deploying: Deploying::new(deployed),
            mirroring: Mirroring::new(mirrored),
            watch: Watch::default(),
            quotas: quotas(&tenants),
            signalled: Instant::now(),
            signalling: JoinSet::new(),
            refuses: false,
            broker,
            store,
            topology,
            settings,
            metrics,
            room,
            shard,
            closing,
        }
    }

    /// Runs until closing. What is held then is not acked: it comes again, to whoever is active next.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>, requests: mpsc::Sender<Vec<Quiet>>) {
        let mut batch = Vec::with_capacity(EVENTS);
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wake = self.next_wake();
            tokio::select! {
                biased;
                () = self.closing.cancelled() => break,
                Some(ended) = self.dispatching.join_next_with_id(), if !self.dispatching.is_empty() => self.handle_dispatched(ended),
                Some(_) = self.finishing.join_next(), if !self.finishing.is_empty() => {}
                Some(_) = self.acking.join_next(), if !self.acking.is_empty() => {}
                ended = self.paging.next() => self.handle_paging(ended),
                Some(looked) = self.mirroring.looking.join_next(), if !self.mirroring.looking.is_empty() => {
                    looked.into_iter().for_each(|looked| self.note_looked(looked));
                }
                _ = second.tick() => self.every_second(&requests),
                count = events.recv_many(&mut batch, EVENTS) => {
                    if count == 0 {
                        break;
                    }
                    for event in batch.drain(..) {
                        self.handle(event);
                    }
                }
                () = sleep_until(wake) => {
                    self.paused_until = self.paused_until.filter(|until| *until > Instant::now());
                }
            }
            self.reconsider();
            self.await_pages();
            self.run_copies();
            self.decide();
            self.mark();
            self.finish();
            self.turn_pages();
            self.signal_soon();
            // What is refused is in memory until that is told.
            let tasks = self.held.len() + self.unknown.len() + self.finished.len() + self.watch.len();
            self.room.is_held(tasks, self.held.bytes());
        }
        self.keep_learnt();
        // Groups under way end by themselves, bounded by the publish time-out; what they acked is handed on.
        while self.dispatching.join_next().await.is_some() {}
        while self.acking.join_next().await.is_some() {}
        // They end at once when closing, and ack what they have told.
        while self.finishing.join_next().await.is_some() {}
        self.paging.finish().await;
        while self.keeping.join_next().await.is_some() {}
        while self.signalling.join_next().await.is_some() {}
        self.finish_tallies().await;
        if let Some(comparing) = self.comparing {
            let _panic = comparing.await;
        }
        // What is shown is of a shard, which may be another's from here on.
        self.metrics.shadow(&[]);
    }

    fn next_wake(&self) -> Option<Instant> {
        let timeout = self.planner.poll_timeout().map(|at_us| self.clock.instant(at_us));
        let decide_at = match self.paused_until {
            // While paused, what is due waits too.
            Some(paused) => Some(paused),
            // So does all, until what the broker has is known.
            None if self.paging.is_settling() => Some(Instant::now() + SETTLING),
            None if !self.may_send() => None,
            None => timeout,
        };
        let mark_at = self.to_mark.front().map(|&(at, _)| at);
        decide_at.into_iter().chain(mark_at).chain(self.impatient.first()).min()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrived(tasks) => tasks.into_iter().for_each(|task| self.admit(task)),
            Event::Returned(tasks) => tasks.into_iter().for_each(|task| self.take_back(task)),
            Event::CameRound(tasks) => tasks.into_iter().for_each(|task| self.take_round(task)),
            Event::PagedIn(pages) => self.page_in(pages),
            Event::Runs(tasks) => self.watch(tasks),
            Event::OverQuota(tasks) => tasks.into_iter().for_each(|task| self.refuse_over_rate(task)),
            Event::Unwanted(tasks) => tasks.into_iter().for_each(|task| self.end_unwanted(task)),
            Event::Asked(asked) => self.answer(asked),
            Event::Paused { paused, answer } => self.set_paused(paused, Some(answer)),
            Event::Completed(completions) => completions.into_iter().for_each(|done| self.complete(done)),
            Event::Loads { loads, models, paused, elsewhere, unread, deployed, left_behind } => {
                self.set_paused(paused, None);
                if let Some(elsewhere) = elsewhere {
                    self.set_elsewhere(&elsewhere);
                }
                if let Some(messages) = unread {
                    self.set_unread(messages);
                }
                if let Some(deployed) = deployed {
                    self.set_deployed(*deployed);
                }
                self.note_left_behind(&loads, left_behind);
                self.handle_loads(loads, models);
            }
            Event::Expected(expected) => self.expect(expected),
            Event::Counted { model, tasks, ended, at } => self.reconcile(&model, tasks, ended, at),
        }
    }

    fn complete(&mut self, done: Completion) {
        let now = Instant::now();
        let was = self.outstanding.remove(&done.id);
        if done.state.is_terminal() {
            self.stop_watching(done.id);
        }
        self.last_completion.insert(done.model.clone(), now);
        let is_copy = self.mirror_completed(&done);
        if let Some(was) = was {
            let ran = Ran { seconds: done.ran_ms / 1e3, whole: done.state == State::Succeeded };
            self.planner.handle_completion(done.id, (done.ran_ms > 0.0).then_some(ran));
            let is_backlogged = self.planner.backlog(&was.model) > 0;
            if !is_copy {
                self.shade(&was, done.ran_ms, is_backlogged);
            }
            if is_backlogged {
                let (slots, mean_seconds) =
                    (self.offers.slots(&was.model).max(1), self.planner.mean_seconds(&was.model));
                let times = (done.idle_ms, done.ran_ms);
                self.depths.kept_busy(&was.model, times, mean_seconds, slots, &self.settings);
            }
            self.set_capacity(&was.model);
        } else if done.state.is_terminal() && self.planner.handle_cancel(done.id) {
            // It ended by another copy while this one waited.
            if let Some(held) = self.held.remove(&done.id) {
                self.ack(held.receipt.into_iter().collect());
            }
        }
    }

    fn handle_loads(&mut self, loads: Vec<LoadReport>, models: Option<Vec<ModelSpec>>) {
        if let Some(models) = models {
            for spec in models {
                self.planner.handle_model(&spec.name, prior(&spec));
                self.models.insert(spec.name.clone(), Arc::new(spec));
            }
            let waiting = std::mem::take(&mut self.unknown);
            waiting.into_iter().for_each(|task| self.admit(task));
        }
        self.go_on_deploying(&loads);
        self.note_beside(&loads);
        self.planner.handle_loadable(unheld(&loads));
        self.place_models(&loads);
        for model in self.offers.update(&loads) {
            self.set_capacity(&model);
            if let Some(shadow) = &mut self.shadow {
                shadow.handle_change(&model, self.clock.now_us());
            }
        }
        self.metrics.workers(&loads);
    }

    pub fn set_capacity(&mut self, model: &str) {
        let mean_seconds = self.planner.mean_seconds(model);
        self.planner.handle_load(model, self.offers.room(model, &self.depths, mean_seconds, self.shard));
    }

    fn decide(&mut self) {
        if self.paused_until.is_some_and(|until| until > Instant::now()) || self.paging.is_settling() {
            return;
        }
        let now_us = self.clock.now_us();
        let started = Instant::now();
        let mut decisions = 0u64;
        let mut reasons = [0u64; DispatchReason::ALL.len()];
        let mut group = Parcels::default();
        while self.may_send() {
            let Some(decision) = self.planner.poll_decision(now_us) else { break };
            decisions += 1;
            match decision {
                Decision::Dispatch { id, model, reason } => {
                    reasons[reason as usize] += 1;
                    let Some(mut task) = self.held.remove(&id) else {
                        warn!(task.id = %id.0, "a task was chosen that is not held");
                        self.planner.handle_completion(id, None);
                        continue;
                    };
                    task.envelope.chosen = Some(model.as_ref().into());
                    task.envelope.dispatched = Some(Timestamp::now());
                    task.envelope.shard = self.shard.number;
                    let outstanding = Outstanding {
                        model: model.to_string(),
                        at: Instant::now(),
                        arrived_us: self.arrived_us(&task, now_us),
                        priority: task.envelope.priority,
                    };
                    self.outstanding.insert(id, outstanding);
                    self.mirror(&task);
                    if let Some(page) = task.page {
                        self.note_page_left(page);
                    }
                    group.add(task, reason == DispatchReason::Passes, |model| {
                        self.offers.together(model, self.planner.mean_seconds(model))
                    });
                    if group.is_full(self.parcels_under_way()) {
                        self.send(std::mem::take(&mut group));
                    }
                }
                Decision::Shed { id, model, reason } => {
                    if let Some(task) = self.held.remove(&id) {
                        self.metrics.turned_away(&model, reason.as_str(), task.envelope.deadline.is_some());
                        self.refuse(task, State::Rejected, reason.as_str(), shed_message(reason).into());
                    }
                }
                Decision::Expire { id, .. } => {
                    if let Some(task) = self.held.remove(&id) {
                        self.refuse(task, State::Expired, "expired", "the deadline passed while it waited".into());
                    }
                }
            }
        }
        if !group.is_empty() {
            self.send(group);
        }
        self.metrics.decided(decisions, started.elapsed(), reasons);
    }

    fn parcels_under_way(&self) -> usize {
        self.under_way.values().map(|(_, parcels)| parcels).sum()
    }

    fn may_send(&self) -> bool {
        self.dispatching.len() < GROUPS && self.parcels_under_way() < PARCELS
    }

    /// What is published at once may come to a queue in any order. So while a group is under way, others of its models wait in the
    /// planner: a queue gets its tasks in the order in which they were chosen.
    fn send(&mut self, group: Parcels) {
        let (models, parcels) = (group.models(), group.len());
        for model in &models {
            self.planner.handle_sending(model, true);
        }
        let (broker, topology, metrics) = (self.broker.clone(), self.topology.clone(), self.metrics.clone());
        let sending = dispatch(broker, topology, metrics, self.finisher.events.clone(), group);
        let id = self.dispatching.spawn(sending).id();
        self.under_way.insert(id, (models, parcels));
    }

    fn handle_dispatched(&mut self, ended: Result<(tokio::task::Id, Dispatched), tokio::task::JoinError>) {
        let id = ended.as_ref().map_or_else(tokio::task::JoinError::id, |(id, _)| *id);
        for model in self.under_way.remove(&id).map_or_else(Vec::new, |(models, _)| models) {
            self.planner.handle_sending(&model, false);
        }
        let Ok((_, Dispatched { sent, failed, unwritable })) = ended else {
            // A panic in there: the tasks are not acked, and come again with the next session.
            warn!("a group of tasks was not dispatched");
            return;
        };
        let mark_at = Instant::now() + MARKED_AFTER;
        self.to_mark.extend(sent.into_iter().map(|id| (mark_at, id)));
        if !failed.is_empty() {
            self.paused_until = Some(Instant::now() + PAUSE);
        }
        for mut task in failed {
            let id = task.envelope.id;
            if self.planner.handle_dispatch_failed(id) {
                self.outstanding.remove(&id);
                self.held.insert(id, task);
                self.carry_out_wish(id);
            } else {
                // It arrived after all, and was heard of since: a worker claims it before it runs it again, or it waits already, as a copy
                // that came back.
                task.envelope.attempts = task.envelope.attempts.max(1);
                self.take_back(task);
            }
        }
        for (task, message) in unwritable {
            self.outstanding.remove(&task.envelope.id);
            self.planner.handle_completion(task.envelope.id, None);
            self.refuse(task, State::Rejected, "unwritable", message);
        }
    }

    /// Writes into the records that tasks were dispatched. Most have ended before it is their turn, and their records
    /// say that instead.
    fn mark(&mut self) {
        let now = Instant::now();
        let due = self.to_mark.partition_point(|&(at, _)| at <= now);
        let marks: Vec<(TaskId, String)> = self
            .to_mark
            .drain(..due)
            .filter_map(|(_, id)| Some((id, self.outstanding.get(&id)?.model.clone())))
            .collect();
        if !marks.is_empty() {
            let (store, metrics) = (self.store.clone(), self.metrics.clone());
            self.finishing.spawn(async move {
                if let Err(failure) = store.dispatched(marks).await {
                    debug!(%failure, "the state was not written: it shows as queued until it runs");
                    metrics.store_failed("dispatched");
                }
            });
        }
    }

    /// To be finished without having run.
    pub fn refuse(&mut self, task: Held, state: State, code: &'static str, message: String) {
        debug!(task.id = %task.envelope.id.0, code, "finished without a run");
        if task.envelope.extras.mirrors.is_some() {
            return self.skip_copy(task.envelope.id);
        }
        self.finished.push(Finished { task, state, code, message, told: None, output: None });
    }

    fn finish(&mut self) {
        while !self.finished.is_empty() && self.finishing.len() < GROUPS {
            let rest = self.finished.split_off(self.finished.len().min(GROUP));
            let group = std::mem::replace(&mut self.finished, rest);
            self.finishing.spawn(self.finisher.clone().finish(group));
        }
    }

    pub fn ack(&mut self, receipts: Vec<Receipt>) {
        if !receipts.is_empty() {
            self.acking.spawn(async move {
                broker::settle(receipts, Verdict::Ack).await;
            });
        }
    }

    fn every_second(&mut self, requests: &mpsc::Sender<Vec<Quiet>>) {
        if !self.models_may_still_come() {
            let unknown = std::mem::take(&mut self.unknown);
            unknown.into_iter().for_each(|task| self.admit(task));
        }
        self.send_round();
        self.look_after_long_tasks();
        while self.keeping.try_join_next().is_some() {}
        while self.signalling.try_join_next().is_some() {}
        if self.kept.0.elapsed() >= KEPT_EVERY && self.keeping.is_empty() {
            self.keep_learnt();
        }
        self.wishes.forget(Instant::now());
        self.sum_pages();
        self.metrics.page_queues(self.paging.busy());
        let stats = self.planner.stats();
        let quiet = self.quiet(&stats);
        if !quiet.is_empty() {
            // When the counter is still busy with the last request, the next second comes soon enough.
            let _busy = requests.try_send(quiet);
        }
        self.metrics.planner(&stats, self.clock.now_us());
        self.signal(&stats);
        self.compare();
        self.look_after_copies();
    }

    /// Unless nothing new was learnt.
    fn keep_learnt(&mut self) {
        let from = self.planner.learnt_from();
        if from != self.kept.1 {
            self.kept = (Instant::now(), from);
            let learnt = self.planner.learnt();
            self.keeping.spawn(memory::keep(self.store.clone(), self.shard, self.metrics.clone(), learnt));
        }
    }

    /// What has been held for so long that the broker would lose patience goes round through it: published anew, then
    /// acked, then taken in again at its old place.
    fn send_round(&mut self) {
        let patience = Duration::from_secs(self.settings.max_held_s);
        let mut group = Vec::new();
        while let Some(&(since, id)) = self.by_age.front() {
            if since.elapsed() < patience || group.len() >= 4 * GROUP {
                break;
            }
            self.by_age.pop_front();
            if let Some(held) = self.held.get_mut(&id).filter(|held| held.since == since)
                && let Some(receipt) = held.receipt.take()
            {
                self.in_limbo.insert(id);
                group.push((held.envelope.clone(), receipt));
            }
        }
        if !group.is_empty() {
            info!(tasks = group.len(), "held for long: sent round through the broker");
            self.acking.spawn(self.finisher.clone().send_round(self.shard.number, group));
        }
    }
}

/// What a model's settings say of it.
fn prior(spec: &ModelSpec) -> Prior {
    Prior { expected_seconds: spec.expected_ms.map(|ms| ms / 1e3) }
}

fn shed_message(reason: ShedReason) -> &'static str {
    match reason {
        ShedReason::Deadline => "not all that wait can meet their deadlines, and this one gave way",
        ShedReason::Overload => "what waits takes longer than may be, and this one was worth the least per second",
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
