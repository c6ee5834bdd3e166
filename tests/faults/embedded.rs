//! A yard in one process on the embedded broker and store, `taskyard dev` with a folder: killed, stopped, with a wrong clock and a full
//! disk. All of its load comes over HTTP, and what is left in the end is looked for in its folder.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskyard_shared::broker::embedded::EmbeddedBroker;
use taskyard_shared::broker::{Broker, Verdict};
use taskyard_shared::process::settings::{QueueType, Settings};
use taskyard_shared::store::Store;
use taskyard_shared::store::embedded::EmbeddedStore;
use taskyard_shared::{TaskId, Topology};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::ask::askers;
use crate::disk::Disk;
use crate::harness::ports::free_port;
use crate::ledger::{DEAD, EXECUTED, Files, HELD, LEFT, Left, RECORDED, TOLD, Way};
use crate::load::{Books, Caller, Known, Tasks};
use crate::nemesis::Nemesis;
use crate::observe::{recorded, told};
use crate::overtake::overtake;
use crate::plan;
use crate::roles::{Recipe, Role, panics};
use crate::run::Plan;
use crate::tweaks::{Library, Tweaks};
use crate::yard::{NAMESPACE, Yard, environment, models_file};
use crate::{schedule, verdict, workflows};

/// After the last fault is healed something must end in this time, until all has.
const QUIET_PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
/// What is under way between the parts of the yard when it is ended is carried on when it is started again.
const LOOKS: usize = 5;
/// Records asked for at once.
const RECORDS: usize = 500;

/// What it takes to start the process, again and again.
pub struct Kitchen {
    files: Arc<Files>,
    pub logs: PathBuf,
    models: PathBuf,
    port: u16,
    window_tasks: u64,
    tweaks: Option<Arc<Tweaks>>,
    /// Where it keeps everything, as it sees it and as it is seen from outside.
    data: PathBuf,
    outside: PathBuf,
    enter: Vec<String>,
}

impl Kitchen {
    /// `place` is a folder, of the disk if there is one.
    pub fn new(window_tasks: u64, files: &Arc<Files>, disk: Option<&Disk>, place: &Path) -> Self {
        let folder = &files.folder;
        let logs = folder.join("logs");
        std::fs::create_dir_all(&logs).unwrap();
        Self {
            files: files.clone(),
            models: models_file(folder, &files.path(EXECUTED), 1),
            port: free_port(),
            window_tasks,
            tweaks: Library::build(folder).map(|library| Arc::new(library.tweaks("dev"))),
            data: place.join("data"),
            outside: disk.map_or(place.to_owned(), Disk::outside).join("data"),
            enter: disk.map_or(vec![], Disk::enter),
            logs,
        }
    }

    pub fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub async fn start(&self, name: String) -> Role {
        let mut environment = environment(QueueType::Auto);
        let mut set = |name: &str, value: String| environment.push((format!("TASKYARD__{name}"), value));
        set("SCHEDULER__WINDOW_TASKS", self.window_tasks.to_string());
        set("GATEWAY__LISTEN", format!("127.0.0.1:{}", self.port));
        let text = |path: &Path| path.display().to_string();
        let arguments =
            ["--config".into(), text(&self.models), "dev".into(), "--data".into(), text(&self.data)].to_vec();
        let recipe = Recipe {
            name,
            before: self.enter.clone(),
            tweaks: self.tweaks.clone(),
            arguments,
            environment,
            ready: &["Ctrl-C ends it."],
            logs: self.logs.clone(),
        };
        Role::start(recipe, self.files.clone()).await
    }
}

/// Runs it and prints the table. Panics when a promise was broken, with the seed and where the ledger is.
/// `megabytes`: of its disk.
pub async fn run(mut plan: Plan, megabytes: u32) {
    let begun = Instant::now();
    let files = Arc::new(Files::new(&verdict::folder(plan.seed)));
    let place = files.folder.join("disk");
    let disk = Disk::mount(&place, megabytes);
    if disk.is_none() {
        eprintln!("no full disks: nothing may be mounted here");
        plan.menu.retain(|(kind, _)| *kind != plan::NEEDS_A_MOUNT);
    }
    let planned = plan::plan(plan.seed, plan.faults, 1, plan.every_ms, &plan.menu);
    let kitchen = Kitchen::new(plan.window_tasks, &files, disk.as_ref(), &place);
    let (logs, api) = (kitchen.logs.clone(), kitchen.api());
    let yard = Yard { roles: vec![kitchen.start("dev".into()).await], api, logs, servers: None, disk };
    let yard = Arc::new(yard);
    let clients = Clients::new(&yard, &files);
    let schedule = schedule::Client::put(&yard.api, files.clone()).await;

    let duration = Duration::from_millis(planned.last().map_or(0, |planned| planned.at_ms)) + Duration::from_secs(5);
    eprintln!("{} tasks and {} faults in {} s", plan.tasks, planned.len(), duration.as_secs());
    let faults = Nemesis::new(yard.clone(), files.clone()).carry_out(planned);
    tokio::join!(clients.load(&plan, duration), faults);
    eprintln!("published, and all faults healed after {:.1} s", begun.elapsed().as_secs_f64());
    let gave_up = clients.drain().await;
    schedule.end().await;
    let caller = Caller::new(&yard.api, &clients.books, Way::HttpBatch);
    let overtaking = match gave_up {
        None => Some(overtake(&clients.books, async |tasks| caller.publish(tasks).await).await),
        Some(_) => None,
    };
    clients.end();
    files.write(HELD, &[yard.roles[0].held()]);
    let Ok(Yard { mut roles, disk: _disk, .. }) = Arc::try_unwrap(yard) else { panic!("somebody still uses the yard") };
    let accepted: Vec<Uuid> = files.ledger().accepted.into_keys().collect();
    for look in 1.. {
        roles.pop().unwrap().end().await;
        if look_at_queues(&files, &kitchen.outside).await || look == LOOKS {
            break;
        }
        roles.push(kitchen.start(format!("dev-again-{look}")).await);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    look_at_records(&files, &kitchen.outside, &accepted).await;

    let mut ledger = files.ledger();
    ledger.panics = panics(&kitchen.logs);
    ledger.gave_up = gave_up;
    ledger.overtaking = overtaking;
    let about = [("seed", plan.seed.to_string()), ("queue type", "embedded".to_owned())];
    verdict::judge(plan.seed, &about, &ledger, &files, begun.elapsed());
}

/// What stands outside the yard: clients, and those who ask what came of it.
struct Clients {
    api: String,
    books: Books,
    workflows: Arc<Mutex<workflows::Known>>,
    askers: Vec<JoinHandle<()>>,
}

impl Clients {
    fn new(yard: &Yard, files: &Arc<Files>) -> Self {
        let books = Books { files: files.clone(), known: Arc::new(Mutex::new(Known::default())) };
        let known = Arc::<Mutex<workflows::Known>>::default();
        let mut askers = askers(&yard.api, &books);
        askers.push(tokio::spawn(workflows::ask(yard.api.clone(), files.clone(), known.clone())));
        Self { api: yard.api.clone(), books, workflows: known, askers }
    }

    async fn load(&self, plan: &Plan, duration: Duration) {
        let single = plan.tasks / 2;
        let caller = |way| Caller::new(&self.api, &self.books, way);
        let tasks = |way| Tasks::new(plan.seed, way, plan.tasks, duration);
        let singles = caller(Way::Http).run(tasks(Way::Http), single, duration);
        let batches = caller(Way::HttpBatch).run(tasks(Way::HttpBatch), plan.tasks - single, duration);
        let client = workflows::Client {
            post: workflows::Post::Http,
            api: self.api.clone(),
            files: self.books.files.clone(),
            known: self.workflows.clone(),
        };
        tokio::join!(singles, batches, client.run(plan.seed, plan.workflows, duration));
    }

    /// Waits until every accepted task has ended; else says what is missing.
    async fn drain(&self) -> Option<String> {
        let (mut before, mut moved) = (usize::MAX, Instant::now());
        loop {
            let left: Vec<Uuid> = {
                let (tasks, workflows) = (self.books.known.lock().unwrap(), self.workflows.lock().unwrap());
                let untold = tasks.to_be_found.difference(&tasks.told);
                untold.chain(workflows.confirmed.difference(&workflows.told)).copied().collect()
            };
            if left.is_empty() {
                return None;
            }
            if left.len() < before {
                (before, moved) = (left.len(), Instant::now());
            }
            if moved.elapsed() > QUIET_PATIENCE {
                return Some(format!("{} tasks do not end, such as {:?}", left.len(), &left[..left.len().min(5)]));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn end(self) {
        for asker in self.askers {
            asker.abort();
        }
    }
}

/// Writes down what is left in the queues of a yard that has ended, and whose dead letters there are. Answers whether nothing was left.
async fn look_at_queues(files: &Files, data: &Path) -> bool {
    let broker = EmbeddedBroker::open(&data.join("broker")).unwrap();
    let topology = Topology::new(NAMESPACE);
    // That a schedule was removed is kept for a while, lest an ack that was lost bring it back.
    let may_stay = [topology.schedules(), topology.dead()];
    let queues = broker.waiting().into_iter().filter(|(queue, _)| !may_stay.contains(queue));
    let left: Vec<Left> = queues.map(|(queue, ready)| Left { queue, ready, unacked: 0 }).collect();
    let is_empty = left.iter().all(|left| left.ready == 0);
    std::fs::write(files.path(LEFT), []).unwrap();
    files.write(LEFT, &left);
    std::fs::write(files.path(DEAD), []).unwrap();
    files.write(DEAD, &dead_letters(&broker, &topology.dead()).await);
    broker.close().await;
    is_empty
}

/// The tasks whose dead letters there are. They stay where they are.
async fn dead_letters(broker: &EmbeddedBroker, queue: &str) -> Vec<Uuid> {
    let count = broker.waiting().into_iter().find(|(name, _)| name == queue).map_or(0, |(_, ready)| ready);
    let mut consumer = broker.consume(queue, u16::MAX).await.unwrap();
    let (mut ids, mut tags) = (Vec::new(), Vec::new());
    while (ids.len() as u64) < count {
        for delivery in consumer.next_batch(RECORDS).await.unwrap() {
            ids.push(delivery.properties.message_id.as_deref().unwrap_or_default().parse().unwrap());
            tags.push(delivery.tag);
        }
    }
    consumer.acker().settle(tags, Verdict::Requeue).await;
    ids
}

/// Writes down the records of a yard that has ended: as what they say, and as what everybody is told once more.
async fn look_at_records(files: &Files, data: &Path, accepted: &[Uuid]) {
    let store = EmbeddedStore::open(&data.join("store"), Settings::default().retention()).unwrap();
    for ids in accepted.chunks(RECORDS) {
        let records = store.get(ids.iter().copied().map(TaskId).collect()).await.unwrap();
        let lines: Vec<_> = ids.iter().zip(&records).map(|(id, record)| recorded(*id, record.as_ref())).collect();
        files.write(RECORDED, &lines);
        let ended = records.iter().flatten().filter(|record| record.state.is_terminal());
        let lines: Vec<_> = ended.map(told).collect();
        files.write(TOLD, &lines);
    }
}
