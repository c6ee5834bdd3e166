//! Runs one history: the schedulers and workers that ship, on a simulated broker and store, in one thread and on a clock that jumps to
//! whatever is next.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use serde_json::value::to_raw_value;
use taskyard_scheduler::Scheduler;
use taskyard_shared::broker::{Broker, Destination, Message, Properties};
use taskyard_shared::load::ModelSpec;
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::settings::Settings;
use taskyard_shared::store::Store;
use taskyard_shared::workflow::WorkflowId;
use taskyard_shared::{TaskError, TaskId, TaskResult, Timestamp, Topology};
use taskyard_worker::{Answer, Handler, Job, Worker};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::broker::{Back, Hub, SimulatedBroker};
use crate::history::{Fault, Flow, History, Kind, Meant, SCHEDULERS, Task, Upon, WORKERS, flow_id, task_id};
use crate::link::{Link, mixed};
use crate::store::{Records, SimulatedStore};
use crate::trace::Trace;

/// After the last fault everything comes to its end within this time.
const PATIENCE: Duration = Duration::from_secs(240);
/// Quiet for so long is the end.
const QUIET: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A role that is told to stop does so within this time.
const STOPS_IN: Duration = Duration::from_secs(90);

pub const MAX_ATTEMPTS: u32 = 3;

/// Of each workflow; the parts of `parts` are made as it runs.
pub const STEPS: [(&str, Option<u32>); 4] = [("first", None), ("parts", Some(0)), ("parts", Some(1)), ("join", None)];
/// The correlation ids of those who publish a workflow.
pub const FIRST: &str = "first";
pub const AGAIN: &str = "again";

/// A year from which nothing depends.
const EPOCH_US: i64 = 1_800_000_000_000_000;

thread_local! {
    /// When the simulation began, and how far the wall clock was set since.
    static WALL: Cell<Option<(Instant, i64)>> = const { Cell::new(None) };
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

fn wall_clock() -> Timestamp {
    let since_us = WALL.get().map_or(0, |(begun, set_us)| begun.elapsed().as_micros() as i64 + set_us);
    Timestamp::from_micros(EPOCH_US + since_us)
}

/// One run of a model on one task.
#[derive(Clone, Debug)]
pub struct Execution {
    pub id: Uuid,
    pub at_ms: u64,
    pub has_finished: bool,
    pub has_failed: bool,
}

/// All that could be seen from outside.
pub struct Seen {
    pub accepted: BTreeSet<Uuid>,
    /// When what came to the replies, and what.
    pub told: Vec<(u64, Message)>,
    pub dead: Vec<Uuid>,
    pub executions: Vec<Execution>,
    pub records: BTreeMap<Uuid, Option<TaskResult>>,
    /// Queues that are not empty: ready and unacked.
    pub left: Vec<(String, usize, usize)>,
    /// It did not come to its end in time.
    pub gave_up: bool,
    /// What roles ended with, by themselves or when they were told to stop.
    pub wrong_ends: Vec<String>,
    pub panics: u32,
    pub ended_ms: u64,
    pub digest: u64,
    pub lines: Vec<String>,
}

/// Counts panics of this thread, and keeps quiet about those that are simulated.
pub fn count_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            before(panic);
        }));
    });
}

pub fn run(history: &History, with_lines: bool) -> Seen {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    // Nonces, and waits before trying again.
    fastrand::seed(history.seed);
    PANICS.set(0);
    let seen = runtime.block_on(async {
        WALL.set(Some((Instant::now(), 0)));
        Timestamp::simulate(Some(wall_clock));
        World::new(history, with_lines).run().await
    });
    drop(runtime);
    Timestamp::simulate(None);
    WALL.set(None);
    Seen { panics: PANICS.get(), ..seen }
}

#[derive(Default)]
struct Log(Mutex<Vec<Execution>>);

/// Does what the input says.
struct Doer {
    log: Arc<Log>,
    trace: Arc<Trace>,
}

#[async_trait]
impl Handler for Doer {
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        let mut runs = Vec::new();
        let mut longest_ms = 0;
        for job in &batch {
            let input: serde_json::Value = serde_json::from_str(job.input.get()).unwrap();
            longest_ms = longest_ms.max(input["ms"].as_u64().unwrap_or(0));
            let mut log = self.log.0.lock().unwrap();
            let (at_ms, id) = (self.trace.now_ms(), job.id.0);
            self.trace.note("model", format_args!("runs {id}, attempt {}, as {}", job.attempt, log.len()));
            log.push(Execution { id, at_ms, has_finished: false, has_failed: false });
            runs.push((log.len() - 1, input));
        }
        sleep(Duration::from_millis(longest_ms)).await;
        let mut log = self.log.0.lock().unwrap();
        let answer = |((run, input), job): ((usize, serde_json::Value), &Job)| {
            let retryable = u64::from(job.attempt) <= input["fails_at_first"].as_u64().unwrap_or(0);
            if retryable || input["fails"] == true {
                log[run].has_failed = true;
                return Err(TaskError { code: "as_told".into(), message: "as told".into(), retryable });
            }
            log[run].has_finished = true;
            Ok(to_raw_value(&json!({"run": run, "seen": input["from"]})).unwrap())
        };
        runs.into_iter().zip(&batch).map(answer).collect()
    }
}

/// A process.
struct Life {
    link: Arc<Link>,
    stop: CancellationToken,
    kill: CancellationToken,
    ended: JoinHandle<Result<(), String>>,
}

struct World {
    history: History,
    trace: Arc<Trace>,
    hub: Arc<Hub>,
    records: Arc<Records>,
    topology: Topology,
    settings: Settings,
    log: Arc<Log>,
    lives: Mutex<BTreeMap<Upon, Life>>,
    /// Counts processes that were started.
    started: Mutex<u64>,
    client: Arc<Link>,
    accepted: Mutex<BTreeSet<Uuid>>,
    wrong_ends: Mutex<Vec<String>>,
    /// What is still to be done: to publish, to restart.
    pending: Mutex<u32>,
}

fn spec(name: &str, expected_ms: f64, max_batch: u32) -> ModelSpec {
    ModelSpec {
        name: name.into(),
        version: "1".into(),
        handler: "simulated".into(),
        capabilities: Vec::new(),
        slots: 2,
        timeout_ms: 30_000,
        max_attempts: MAX_ATTEMPTS,
        max_batch,
        max_delay_ms: 2,
        memory_mb: 0,
        gpus: 0,
        expected_ms: Some(expected_ms),
        quality: None,
    }
}

fn models() -> [ModelSpec; 2] {
    [spec("short", 5.0, 3), spec("long", 400.0, 1)]
}

impl World {
    fn new(history: &History, with_lines: bool) -> Arc<Self> {
        let trace = Arc::new(Trace::new(with_lines));
        let topology = Topology::new("yard");
        let mut settings = Settings::default();
        let scheduler = &mut settings.scheduler;
        scheduler.window_tasks = history.window;
        scheduler.shards = history.shards;
        scheduler.shadow_every_s = 0;
        scheduler.max_held_s = 20;
        scheduler.report_every_ms = 400;
        scheduler.workflows = 4;
        let worker = &mut settings.worker;
        worker.lease_ms = 1_500;
        worker.alone_s = 3;
        worker.max_held_s = 3;
        worker.drain_s = 10;
        worker.report_every_ms = 400;
        worker.retry_first_ms = 40;
        worker.retry_most_ms = 2_000;
        Arc::new(Self {
            hub: Hub::new(trace.clone(), topology.replies("client")),
            records: Records::new(trace.clone()),
            trace,
            topology,
            settings,
            log: Arc::default(),
            lives: Mutex::default(),
            started: Mutex::default(),
            client: Link::new("client".into(), mixed(history.seed)),
            accepted: Mutex::default(),
            wrong_ends: Mutex::default(),
            pending: Mutex::new(0),
            history: history.clone(),
        })
    }

    async fn run(self: Arc<Self>) -> Seen {
        for number in 0..SCHEDULERS {
            self.start(Upon::Scheduler(number));
        }
        for number in 0..WORKERS {
            self.start(Upon::Worker(number));
        }
        let broker = SimulatedBroker { hub: self.hub.clone(), link: self.client.clone() };
        let queues = taskyard_shared::messages::work_queues(&self.topology);
        while broker.declare(&queues).await.is_err() {
            sleep(LOOK_EVERY).await;
        }
        self.publish_all();
        for fault in &self.history.faults {
            sleep_until(self.moment(fault.at_ms)).await;
            self.trace.note("fault", format_args!("{:?} {:?}", fault.upon, fault.kind));
            self.inflict(fault);
        }
        let gave_up = !self.come_to_rest().await;
        self.seen(gave_up).await
    }

    fn moment(&self, at_ms: u32) -> Instant {
        let begun = WALL.get().map_or_else(Instant::now, |(begun, _)| begun);
        begun + Duration::from_millis(u64::from(at_ms))
    }

    fn start(self: &Arc<Self>, upon: Upon) {
        let number = {
            let mut started = self.started.lock().unwrap();
            *started += 1;
            *started
        };
        let link = Link::new(format!("{upon:?} {number}"), mixed(self.history.seed ^ (number << 32)));
        self.trace.note(&link.name, "starts");
        let broker: Arc<dyn Broker> = Arc::new(SimulatedBroker { hub: self.hub.clone(), link: link.clone() });
        let store: Arc<dyn Store> = Arc::new(SimulatedStore { records: self.records.clone(), link: link.clone() });
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let (topology, registry) = (self.topology.clone(), Registry::new().unwrap());
        let ended = match upon {
            Upon::Worker(number) => {
                let mut settings = self.settings.worker.clone();
                settings.id = format!("worker-{number}");
                let mut worker = Worker::new(broker, store, topology, settings, &registry).unwrap();
                for spec in models() {
                    worker = worker.model(spec, Arc::new(Doer { log: self.log.clone(), trace: self.trace.clone() }));
                }
                let running = worker.run(stop.clone(), kill.clone());
                tokio::spawn(async move { running.await.map_err(|failure| failure.to_string()) })
            }
            _ => {
                let settings = self.settings.scheduler.clone();
                let scheduler = Scheduler::new(broker, store, topology, settings, models().to_vec(), &registry);
                let running = scheduler.unwrap().run(stop.clone());
                tokio::spawn(async move { running.await.map_err(|failure| failure.to_string()) })
            }
        };
        self.lives.lock().unwrap().insert(upon, Life { link, stop, kill, ended });
    }

    fn inflict(self: &Arc<Self>, fault: &Fault) {
        let time = |ms: u32| Duration::from_millis(u64::from(ms));
        let links: Vec<Arc<Link>> = match fault.upon {
            Upon::Client => vec![self.client.clone()],
            Upon::All => {
                let lives = self.lives.lock().unwrap();
                lives.values().map(|life| life.link.clone()).chain([self.client.clone()]).collect()
            }
            role => self.lives.lock().unwrap().get(&role).map(|life| life.link.clone()).into_iter().collect(),
        };
        match fault.kind {
            Kind::Publish(publishing) => links.iter().for_each(|link| link.arm_publishing(publishing)),
            Kind::Call(calling) => links.iter().for_each(|link| link.arm_calling(calling)),
            Kind::Cut { lands, back, away_ms } => {
                for link in &links {
                    self.hub.end_sessions(link, back);
                    link.cut(lands, time(away_ms));
                }
            }
            Kind::Crash { acks_lost, away_ms } => {
                self.hub.lose(acks_lost);
                for link in &links {
                    self.hub.end_sessions(link, Back::default());
                    link.cut(false, time(away_ms));
                }
            }
            Kind::Stall { for_ms } => links.iter().for_each(|link| link.stall(time(for_ms))),
            Kind::Kill { lands, down_ms } => {
                // One that is down already is not killed again.
                let Some(life) = self.lives.lock().unwrap().remove(&fault.upon) else { return };
                self.hub.end_sessions(&life.link, Back::default());
                life.link.kill(lands);
                life.stop.cancel();
                life.kill.cancel();
                self.later(time(down_ms), fault.upon);
            }
            Kind::Stop { down_ms } => {
                let Some(life) = self.lives.lock().unwrap().remove(&fault.upon) else { return };
                life.stop.cancel();
                *self.pending.lock().unwrap() += 1;
                let (world, upon) = (self.clone(), fault.upon);
                tokio::spawn(async move {
                    let wrong = match timeout(STOPS_IN, life.ended).await {
                        Ok(Ok(Ok(()))) => None,
                        Ok(Ok(Err(failure))) => Some(failure),
                        Ok(Err(panicked)) => Some(panicked.to_string()),
                        Err(_) => Some("it does not stop".to_owned()),
                    };
                    world.wrong_ends.lock().unwrap().extend(wrong.map(|wrong| format!("{upon:?}: {wrong}")));
                    world.hub.end_sessions(&life.link, Back::default());
                    life.link.kill(false);
                    life.kill.cancel();
                    world.later(time(down_ms), upon);
                    *world.pending.lock().unwrap() -= 1;
                });
            }
            Kind::StoreAway { for_ms } => self.records.go_away(time(for_ms)),
            Kind::Flush => self.records.flush(),
            Kind::Clock { by_ms } => {
                WALL.set(WALL.get().map(|(begun, set_us)| (begun, set_us + i64::from(by_ms) * 1_000)));
            }
        }
    }

    /// Starts a role again after a time.
    fn later(self: &Arc<Self>, after: Duration, upon: Upon) {
        *self.pending.lock().unwrap() += 1;
        let world = self.clone();
        tokio::spawn(async move {
            sleep(after).await;
            world.start(upon);
            *world.pending.lock().unwrap() -= 1;
        });
    }

    fn publish_all(self: &Arc<Self>) {
        let mut by_moment: BTreeMap<(u32, u32), Vec<Task>> = BTreeMap::new();
        for task in &self.history.tasks {
            let apart = if self.history.together { 0 } else { task.number };
            by_moment.entry((task.at_ms, apart)).or_default().push(*task);
            if let Some(again_ms) = task.again_ms {
                by_moment.entry((task.at_ms + again_ms, task.number + 1)).or_default().push(*task);
            }
            if let Meant::MayBeCancelled(after_ms) = task.meant {
                self.cancel_at(task.at_ms + after_ms, task_id(task.number), false);
            }
        }
        for ((at_ms, _), tasks) in by_moment {
            let ids = tasks.iter().map(|task| task_id(task.number)).collect();
            self.publish_at(at_ms, self.tasks_message(&tasks), ids);
        }
        for flow in &self.history.flows {
            let id = flow_id(flow.number);
            self.publish_at(flow.at_ms, self.flow_message(flow, FIRST), vec![id]);
            if let Some(again_ms) = flow.again_ms {
                self.publish_at(flow.at_ms + again_ms, self.flow_message(flow, AGAIN), vec![id]);
            }
            if let Meant::MayBeCancelled(after_ms) = flow.meant {
                self.cancel_at(flow.at_ms + after_ms, id, true);
            }
        }
    }

    /// Until it is confirmed.
    fn publish_at(self: &Arc<Self>, at_ms: u32, message: Message, ids: Vec<Uuid>) {
        *self.pending.lock().unwrap() += 1;
        let world = self.clone();
        tokio::spawn(async move {
            sleep_until(world.moment(at_ms)).await;
            let broker = SimulatedBroker { hub: world.hub.clone(), link: world.client.clone() };
            while broker.publish(vec![message.clone()]).await.iter().any(Result::is_err) {
                sleep(Duration::from_millis(150)).await;
            }
            world.accepted.lock().unwrap().extend(ids);
            *world.pending.lock().unwrap() -= 1;
        });
    }

    fn cancel_at(self: &Arc<Self>, at_ms: u32, id: Uuid, is_flow: bool) {
        *self.pending.lock().unwrap() += 1;
        let world = self.clone();
        tokio::spawn(async move {
            sleep_until(world.moment(at_ms)).await;
            let store = world.records.current();
            world.trace.note("client", format_args!("cancels {id}"));
            match is_flow {
                true => drop(store.cancel_workflow(WorkflowId(id)).await),
                false => drop(store.cancel(vec![TaskId(id)]).await),
            }
            *world.pending.lock().unwrap() -= 1;
        });
    }

    fn message(&self, body: serde_json::Value, id: Option<Uuid>) -> Message {
        let properties = Properties {
            message_id: id.map(|id| id.to_string()),
            reply_to: Some(self.topology.replies("client")),
            ..Properties::default()
        };
        let to = Destination::Exchange { name: self.topology.tasks_exchange(), key: "any".into() };
        Message { to, body: body.to_string().into(), properties, persistent: true, mandatory: true }
    }

    fn tasks_message(&self, tasks: &[Task]) -> Message {
        let body = |task: &Task| {
            let (fails_at_first, fails) = match task.meant {
                Meant::FailsAtFirst(times) => (times, false),
                meant => (0, meant == Meant::Fails),
            };
            let model = match (task.meant, task.is_long) {
                (Meant::Refused, _) => "nobodys",
                (_, true) => "long",
                (_, false) => "short",
            };
            let input = json!({"ms": task.runs_ms, "fails_at_first": fails_at_first, "fails": fails});
            let mut body =
                json!({"id": task_id(task.number), "model": model, "priority": task.priority, "input": input});
            if let Meant::MayBeLate(after_ms) = task.meant {
                let at = Timestamp::from_micros(EPOCH_US).plus_ms(u64::from(task.at_ms + after_ms));
                body["deadline"] = json!(at.to_string());
            }
            body
        };
        match tasks {
            [task] => self.message(body(task), Some(task_id(task.number))),
            tasks => self.message(tasks.iter().map(body).collect(), None),
        }
    }

    /// A step, two that take from it, and one that joins them.
    fn flow_message(&self, flow: &Flow, publisher: &str) -> Message {
        let id = flow_id(flow.number);
        let first = json!({"name": "first", "model": "short", "input": {"ms": 3, "fails": flow.meant == Meant::Fails}});
        let body = json!({"id": id, "tasks": [
            {"name": "join", "model": "long", "input": {"ms": 60, "from": {"$from": "parts"}}},
            {"name": "parts", "model": "short", "for_each": [0, 1], "input": {
                "n": {"$item": ""}, "ms": 2, "from": {"$from": "first"}}},
            first,
        ]});
        let mut message = self.message(body, Some(id));
        message.properties.kind = Some("workflow".into());
        message.properties.correlation_id = Some(publisher.into());
        message
    }

    /// Waits until nothing is left to do; `false` when that takes too long.
    async fn come_to_rest(&self) -> bool {
        let until = Instant::now() + PATIENCE;
        let mut quiet_since: Option<(Instant, usize)> = None;
        let mut is_healed = false;
        while Instant::now() < until {
            sleep(LOOK_EVERY).await;
            let is_idle = *self.pending.lock().unwrap() == 0 && self.lost().is_empty() && self.left().is_empty();
            if *self.pending.lock().unwrap() == 0 && !is_healed {
                is_healed = true;
                self.client.disarm();
                self.lives.lock().unwrap().values().for_each(|life| life.link.disarm());
            }
            let told = self.hub.told_count();
            quiet_since = match (is_idle, quiet_since) {
                (true, Some((since, before))) if before == told => {
                    if since.elapsed() >= QUIET {
                        return true;
                    }
                    Some((since, told))
                }
                (true, _) => Some((Instant::now(), told)),
                (false, _) => None,
            };
        }
        false
    }

    /// Accepted, and not told.
    fn lost(&self) -> BTreeSet<Uuid> {
        let told: BTreeSet<Uuid> = self.hub.told().iter().filter_map(|(_, message)| told_id(message)).collect();
        self.accepted.lock().unwrap().difference(&told).copied().collect()
    }

    /// What is in the queues and should not be.
    fn left(&self) -> Vec<(String, usize, usize)> {
        let dead = self.topology.dead();
        self.hub.left().into_iter().filter(|(name, _, unacked)| *name != dead || *unacked > 0).collect()
    }

    async fn seen(&self, gave_up: bool) -> Seen {
        let steps = self
            .history
            .flows
            .iter()
            .flat_map(|flow| STEPS.map(|(step, item)| WorkflowId(flow_id(flow.number)).task(step, item).0));
        let ids: Vec<Uuid> = self.history.tasks.iter().map(|task| task_id(task.number)).chain(steps).collect();
        let records = self.records.current().get(ids.iter().copied().map(TaskId).collect()).await.unwrap();
        let mut wrong_ends = self.wrong_ends.lock().unwrap().clone();
        for (upon, life) in &mut *self.lives.lock().unwrap() {
            if life.ended.is_finished() {
                wrong_ends.push(format!("{upon:?} ended by itself"));
            }
        }
        let dead = self.hub.messages(&self.topology.dead());
        let dead = dead.iter().map(|letter| letter.properties.message_id.as_deref().unwrap_or_default());
        Seen {
            accepted: self.accepted.lock().unwrap().clone(),
            told: self.hub.told(),
            dead: dead.map(|id| id.parse().unwrap_or_default()).collect(),
            executions: self.log.0.lock().unwrap().clone(),
            records: ids.into_iter().zip(records).collect(),
            left: self.left(),
            gave_up,
            wrong_ends,
            panics: 0,
            ended_ms: self.trace.now_ms(),
            digest: self.trace.digest(),
            lines: self.trace.lines(),
        }
    }
}

/// Of the task or the workflow that a reply is about.
pub fn told_id(message: &Message) -> Option<Uuid> {
    let told: serde_json::Value = serde_json::from_slice(&message.body).ok()?;
    told["id"].as_str()?.parse().ok()
}
