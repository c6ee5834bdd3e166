//! One run, from the start of the servers to the verdict.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::broker::{Broker, QueueSpec};
use taskyard_shared::process::settings::QueueType;
use taskyard_shared::{TaskId, Topology};
use tokio::time::Instant;
use uuid::Uuid;

use crate::ledger::{EXECUTED, Executed, Files, HELD, Held, LEFT, Left, Overtaking, RECORDED, Way, What};
use crate::load::{Books, Caller, Known, Publisher, Task, Tasks};
use crate::nemesis::Nemesis;
use crate::observe::{bury, observe, recorded};
use crate::overtake::overtake;
use crate::plan::{self, Menu, Planned};
use crate::roles::{Role, panics};
use crate::yard::{NAMESPACE, ROLES, Servers, Yard};
use crate::{schedule, verdict, workflows};

/// After the last fault is healed something must end in this time, until all has.
const QUIET_PATIENCE: Duration = Duration::from_secs(60);

/// For acks that are under way when the last result is told.
const EMPTY_PATIENCE: Duration = Duration::from_secs(60);

const POLL: Duration = Duration::from_millis(500);

/// Tasks that are published before there is a yard.
const EARLY: usize = 50;

/// Records asked for at once.
const RECORDS: usize = 500;

pub struct Plan {
    pub seed: u64,
    pub tasks: usize,
    /// Beside the tasks, each of five steps' tasks.
    pub workflows: usize,
    pub faults: usize,
    /// The mean time from one fault to the next; milliseconds.
    pub every_ms: u64,
    pub queue_type: QueueType,
    /// Tasks that a scheduler has in memory; more wait in the broker.
    pub window_tasks: u64,
    pub menu: Menu,
}

/// Runs it and prints the table. Panics when a promise was broken, with the seed and where the ledger is.
pub async fn run(plan: Plan, programs: PathBuf) {
    let begun = Instant::now();
    let files = Arc::new(Files::new(&verdict::folder(plan.seed)));
    let planned = plan::plan(plan.seed, plan.faults, ROLES, plan.every_ms, &plan.menu);
    let servers = Servers::start(programs, plan.queue_type, &files.folder).await;
    let mut rig = Rig::new(&servers, files.clone()).await;
    // Who publishes before there is a yard is refused until there is one.
    let early = tokio::spawn(rig.early(&plan));
    let yard = Arc::new(Yard::start(servers, plan.window_tasks, &files).await);
    early.await.unwrap();
    eprintln!("the yard stands after {:.1} s", begun.elapsed().as_secs_f64());
    let schedule = schedule::Client::put(&yard.api, files.clone()).await;
    rig.load(&yard, &plan, planned).await;
    eprintln!("published, and all faults healed after {:.1} s", begun.elapsed().as_secs_f64());
    let gave_up = rig.drain(&yard).await;
    schedule.end().await;
    let overtaking = if gave_up.is_none() { Some(rig.overtake().await) } else { None };
    let pages = rig.look_at_queues(&yard).await;
    // The urgent ones overtook a backlog of more than that, if it came to that.
    assert!(pages > 0 || plan.window_tasks > 200 || gave_up.is_some(), "nothing of the backlog went to pages");
    rig.look_at_records(&yard).await;
    files.write(HELD, &yard.roles.iter().map(Role::held).collect::<Vec<Held>>());
    rig.end();
    let logs = yard.logs.clone();
    let Ok(yard) = Arc::try_unwrap(yard) else { panic!("somebody still uses the yard") };
    yard.end().await;

    let mut ledger = files.ledger();
    ledger.panics = panics(&logs);
    ledger.gave_up = gave_up;
    ledger.overtaking = overtaking;
    let about = [
        ("seed", plan.seed.to_string()),
        ("queue type", format!("{:?}", plan.queue_type)),
        ("window", format!("{} tasks", plan.window_tasks)),
    ];
    verdict::judge(plan.seed, &about, &ledger, &files, begun.elapsed());
}

/// What stands outside the yard: clients, and those who read what comes of it.
struct Rig {
    broker: Arc<dyn Broker>,
    books: Books,
    replies: String,
    workflow_replies: String,
    workflows: Arc<std::sync::Mutex<workflows::Known>>,
    readers: Vec<tokio::task::JoinHandle<()>>,
}

impl Rig {
    async fn new(servers: &Servers, files: Arc<Files>) -> Self {
        let broker: Arc<dyn Broker> = Arc::new(servers.broker().await);
        let topology = Topology::new(NAMESPACE);
        let replies = format!("{NAMESPACE}.ledger");
        let workflow_replies = format!("{replies}.workflows");
        broker.declare(&[QueueSpec::durable(&replies), QueueSpec::durable(&workflow_replies)]).await.unwrap();
        broker.declare_exchanges(&[topology.tasks_exchange()]).await.unwrap();
        let books = Books { files: files.clone(), known: Arc::new(std::sync::Mutex::new(Known::default())) };
        let known = Arc::<std::sync::Mutex<workflows::Known>>::default();
        let readers = vec![
            tokio::spawn(observe(broker.clone(), replies.clone(), books.clone())),
            tokio::spawn(bury(broker.clone(), topology.dead(), files.clone())),
            tokio::spawn(workflows::observe(broker.clone(), workflow_replies.clone(), files, known.clone())),
        ];
        Self { broker, books, replies, workflow_replies, workflows: known, readers }
    }

    fn publisher(&self, broker: Arc<dyn Broker>, way: Way) -> Publisher {
        Publisher { broker, replies: self.replies.clone(), books: self.books.clone(), way }
    }

    /// Publishes some tasks before any queue takes them.
    fn early(&self, plan: &Plan) -> impl Future<Output = ()> + Send + use<> {
        let publisher = self.publisher(self.broker.clone(), Way::Single);
        let mut tasks = Tasks::new(plan.seed ^ 0x6561_726c, Way::Single, EARLY, Duration::from_secs(1));
        let tasks: Vec<Task> = (0..EARLY).map(|n| tasks.next(n)).collect();
        async move { publisher.publish(&tasks).await }
    }

    /// Publishes all and has all faults done, side by side.
    async fn load(&mut self, yard: &Arc<Yard>, plan: &Plan, planned: Vec<Planned>) {
        let last_fault = planned.last().map_or(0, |planned| planned.at_ms);
        let duration = Duration::from_millis(last_fault) + Duration::from_secs(5);
        eprintln!("{} tasks and {} faults in {} s", plan.tasks, planned.len(), duration.as_secs());
        let (single, batch) = (plan.tasks * 2 / 5, plan.tasks * 2 / 5);
        let tasks = |way| Tasks::new(plan.seed, way, plan.tasks, duration);
        let (first, second) = (Arc::new(yard.servers().broker().await), Arc::new(yard.servers().broker().await));
        let singles = self.publisher(first, Way::Single).run(tasks(Way::Single), single, duration);
        let batches = self.publisher(second, Way::Batch).run(tasks(Way::Batch), batch, duration);
        let calls =
            Caller::new(&yard.api, &self.books, Way::Http).run(tasks(Way::Http), plan.tasks - single - batch, duration);
        let client = workflows::Client {
            post: workflows::Post::Message {
                broker: Arc::new(yard.servers().broker().await),
                replies: self.workflow_replies.clone(),
            },
            api: yard.api.clone(),
            files: self.books.files.clone(),
            known: self.workflows.clone(),
        };
        let workflows = client.run(plan.seed, plan.workflows, duration);
        let faults = Nemesis::new(yard.clone(), self.books.files.clone()).carry_out(planned);
        tokio::join!(singles, batches, calls, workflows, faults);
    }

    /// Waits until every accepted task has ended; else says what is missing.
    async fn drain(&self, yard: &Yard) -> Option<String> {
        let mut before = usize::MAX;
        let mut moved = Instant::now();
        let store = yard.servers().store().await;
        let mut found: HashSet<Uuid> = HashSet::new();
        loop {
            let (untold, unfound) = {
                let known = self.books.known.lock().unwrap();
                let untold: Vec<Uuid> = known.to_be_told.difference(&known.told).copied().collect();
                (untold, known.to_be_found.difference(&found).copied().collect::<Vec<Uuid>>())
            };
            // Records are asked for when little else is missing.
            let mut unknown = Vec::new();
            if untold.len() < RECORDS {
                for ids in unfound.chunks(RECORDS) {
                    let Ok(records) = store.get(ids.iter().copied().map(TaskId).collect()).await else { continue };
                    for (id, record) in ids.iter().zip(records) {
                        match record {
                            Some(record) if record.state.is_terminal() => drop(found.insert(*id)),
                            Some(_) => {}
                            None => unknown.push(*id),
                        }
                    }
                }
            }
            if !unknown.is_empty() {
                // What has run to its end and is not known any more went with a flush, or did so without having run. The
                // check looks into that.
                let ran = self.executed().filter(|line| line.what != What::Started).map(|line| line.id);
                let mut may_be_gone: HashSet<Uuid> = ran.collect();
                may_be_gone.extend(&self.books.known.lock().unwrap().may_not_run);
                found.extend(unknown.into_iter().filter(|id| may_be_gone.contains(id)));
            }
            let waited_for: Vec<Uuid> = {
                let known = self.workflows.lock().unwrap();
                known.confirmed.difference(&known.told).copied().collect()
            };
            let left =
                waited_for.len() + untold.len() + self.books.known.lock().unwrap().to_be_found.len() - found.len();
            if left == 0 {
                return None;
            }
            if left < before {
                (before, moved) = (left, Instant::now());
            }
            if moved.elapsed() > QUIET_PATIENCE {
                let some: Vec<Uuid> = untold.iter().chain(&unfound).chain(&waited_for).take(5).copied().collect();
                return Some(format!("{left} tasks do not end, such as {some:?}"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn executed(&self) -> impl Iterator<Item = Executed> {
        self.books.files.read::<Executed>(EXECUTED).into_iter()
    }

    async fn overtake(&self) -> Overtaking {
        let publisher = self.publisher(self.broker.clone(), Way::Single);
        overtake(&self.books, async |tasks| publisher.publish(tasks).await).await
    }

    /// Nothing is left in any queue, a moment after the last result.
    /// Answers how many queues there are for what is too much for memory.
    async fn look_at_queues(&self, yard: &Yard) -> usize {
        let begun = Instant::now();
        loop {
            let queues = yard.servers().rabbit.lock().await.queues().await;
            // That a schedule was removed is kept for a while, lest an ack that was lost bring it back.
            let queues = queues.into_iter().filter(|(queue, ..)| *queue != Topology::new(NAMESPACE).schedules());
            let left: Vec<Left> = queues.map(|(queue, ready, unacked)| Left { queue, ready, unacked }).collect();
            let is_empty = left.iter().all(|left| left.ready + left.unacked == 0);
            if is_empty || begun.elapsed() > EMPTY_PATIENCE {
                self.books.files.write(LEFT, &left);
                return left.iter().filter(|left| left.queue.contains(".page.")).count();
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn look_at_records(&self, yard: &Yard) {
        let store = yard.servers().store().await;
        let ids: Vec<Uuid> = {
            let known = self.books.known.lock().unwrap();
            known.to_be_told.iter().chain(&known.to_be_found).copied().collect()
        };
        for ids in ids.chunks(RECORDS) {
            let records = store.get(ids.iter().copied().map(TaskId).collect()).await.unwrap();
            let lines: Vec<_> = ids.iter().zip(&records).map(|(id, record)| recorded(*id, record.as_ref())).collect();
            self.books.files.write(RECORDED, &lines);
        }
    }

    fn end(self) {
        for reader in self.readers {
            reader.abort();
        }
    }
}
