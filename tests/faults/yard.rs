//! What a run is upon: two servers, the processes of a yard, and a relay between each of them and each server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::join_all;
use taskyard_shared::broker::rabbitmq::RabbitMq;
use taskyard_shared::process::settings::{QueueType, Settings};
use taskyard_shared::store::Store;
use tokio::sync::Mutex;

use crate::disk::Disk;
use crate::harness::ports::free_port;
use crate::harness::root;
use crate::ledger::{EXECUTED, Files};
use crate::plan::Server;
use crate::relay::Relay;
use crate::roles::{Recipe, Role};
use crate::servers::{Rabbit, Redis};
use crate::tweaks::Library;

pub const NAMESPACE: &str = "faults";

/// Attempts that tasks of these models have, unless they say otherwise.
pub const MAX_ATTEMPTS: u32 = 20;

/// The slots of the model `slow` on all workers.
pub const SLOW_SLOTS: u64 = 6;

const SCHEDULERS: usize = 2;
const WORKERS: usize = 3;

/// Schedulers, workers, a gateway.
pub const ROLES: usize = SCHEDULERS + WORKERS + 1;

pub struct Yard {
    pub roles: Vec<Role>,
    pub api: String,
    pub logs: PathBuf,
    /// Of a yard that is one process there are none.
    pub servers: Option<Servers>,
    /// The disk of a yard that is one process, where it can be filled.
    pub disk: Option<Disk>,
}

pub struct Servers {
    pub rabbit: Mutex<Rabbit>,
    pub redis: Mutex<Redis>,
    links: Vec<(Relay, Relay)>,
    /// Of the servers themselves, past the relays.
    settings: Settings,
    library: Option<Library>,
    /// Settings of the yard beside those of every run: names without their prefix, and values.
    set: Vec<(String, String)>,
}

impl Servers {
    pub async fn start(programs: PathBuf, queue_type: QueueType, folder: &Path) -> Self {
        let library = Library::build(folder);
        let tweaks = |name: &str| library.as_ref().map(|library| library.tweaks(name));
        let (rabbit, redis) =
            tokio::join!(Rabbit::start(programs, folder, tweaks("rabbitmq")), Redis::start(folder, tweaks("redis")));
        let mut settings = Settings::default();
        settings.broker.url = rabbit.url(rabbit.port);
        settings.broker.namespace = NAMESPACE.into();
        settings.broker.queue_type = queue_type;
        settings.store.url = redis.url(redis.port);
        Self {
            rabbit: Mutex::new(rabbit),
            redis: Mutex::new(redis),
            links: Vec::new(),
            settings,
            library,
            set: Vec::new(),
        }
    }

    pub fn set(&mut self, name: &str, value: String) {
        self.set.push((name.to_owned(), value));
    }

    pub fn link(&self, role: usize, server: Server) -> &Relay {
        match server {
            Server::Broker => &self.links[role].0,
            Server::Store => &self.links[role].1,
        }
    }

    /// A connection of one's own to the broker.
    pub async fn broker(&self) -> RabbitMq {
        RabbitMq::connect(&self.settings.broker).await.unwrap()
    }

    pub async fn store(&self) -> Arc<dyn Store> {
        taskyard_shared::process::connect::open_store(&self.settings).await.unwrap()
    }
}

impl Yard {
    /// Relays and roles.
    pub async fn start(mut servers: Servers, window_tasks: u64, files: &Arc<Files>) -> Self {
        let folder = &files.folder;
        let logs = folder.join("logs");
        std::fs::create_dir_all(&logs).unwrap();
        let (rabbit, redis) = (servers.rabbit.get_mut(), servers.redis.get_mut());
        let models = models_file(folder, &files.path(EXECUTED), WORKERS);
        let gateway_port = free_port();
        let mut recipes = Vec::new();
        for (name, role) in names() {
            let (to_broker, to_store) = (Relay::start(rabbit.port).await, Relay::start(redis.port).await);
            let ready: &[&str] = match role {
                "scheduler" => &["active", "standing by"],
                "worker" => &["takes tasks"],
                _ => &["the HTTP API"],
            };
            let mut environment = environment(servers.settings.broker.queue_type);
            let mut set = |name: &str, value: String| environment.push((format!("TASKYARD__{name}"), value));
            set("BROKER__URL", rabbit.url(to_broker.port));
            set("STORE__URL", redis.url(to_store.port));
            set("SCHEDULER__WINDOW_TASKS", window_tasks.to_string());
            set("GATEWAY__LISTEN", format!("127.0.0.1:{gateway_port}"));
            servers.set.iter().for_each(|(name, value)| set(name, value.clone()));
            let arguments = ["--config".to_owned(), models.display().to_string(), role.to_owned()].to_vec();
            let tweaks = servers.library.as_ref().map(|library| Arc::new(library.tweaks(&name)));
            recipes.push(Recipe { name, before: vec![], tweaks, arguments, environment, ready, logs: logs.clone() });
            servers.links.push((to_broker, to_store));
        }
        let roles = join_all(recipes.into_iter().map(|recipe| Role::start(recipe, files.clone()))).await;
        let api = format!("http://127.0.0.1:{gateway_port}");
        Self { roles, api, logs, servers: Some(servers), disk: None }
    }

    pub fn servers(&self) -> &Servers {
        self.servers.as_ref().expect("a yard on servers")
    }

    /// Ends every process in good order.
    pub async fn end(self) {
        for role in self.roles {
            role.end().await;
        }
    }
}

/// A name for each process, and its role.
fn names() -> Vec<(String, &'static str)> {
    let several = |role: &'static str, count: usize| (1..=count).map(move |number| (format!("{role}-{number}"), role));
    several("scheduler", SCHEDULERS).chain(several("worker", WORKERS)).chain(several("gateway", 1)).collect()
}

pub fn environment(queue_type: QueueType) -> Vec<(String, String)> {
    let queue_type = match queue_type {
        QueueType::Auto => "auto",
        QueueType::Classic => "classic",
        QueueType::Quorum => "quorum",
    };
    [
        ("BROKER__NAMESPACE", NAMESPACE),
        ("BROKER__QUEUE_TYPE", queue_type),
        ("BROKER__HEARTBEAT_S", "4"),
        ("BROKER__PUBLISH_TIMEOUT_MS", "5000"),
        ("ADMIN__LISTEN", "127.0.0.1:0"),
        ("WORKER__LEASE_MS", "3000"),
        ("WORKER__DRAIN_S", "10"),
        ("WORKER__RETRY_FIRST_MS", "50"),
        ("WORKER__RETRY_MOST_MS", "2000"),
    ]
    .into_iter()
    .map(|(name, value)| (format!("TASKYARD__{name}"), value.to_owned()))
    .collect()
}

/// `quick` takes milliseconds, many to a call, and has no claim at first; `slow` is claimed and holds a lease; `probe` has one
/// slot on each worker, for seeing who comes first; `patient` as well, for what takes minutes.
pub fn models_file(folder: &Path, executed: &Path, workers: usize) -> PathBuf {
    let executor = root().join("tests/faults/executor.py");
    let model = |name: &str, slots: usize, max_batch: usize, timeout_s: u32| {
        format!(
            "[models.{name}]\nhandler = \"process\"\nslots = {slots}\nmax_batch = {max_batch}\n\
             max_attempts = {MAX_ATTEMPTS}\ntimeout_ms = {timeout_s}000\n\
             [models.{name}.process]\ncommand = [\"python3\", {executor:?}, {executed:?}]\n\n"
        )
    };
    let slow_slots = usize::try_from(SLOW_SLOTS).unwrap() / workers;
    let text = [
        model("quick", 2, 16, 30),
        model("slow", slow_slots, 1, 30),
        model("probe", 1, 1, 30),
        model("patient", 1, 1, 300),
    ]
    .concat();
    let file = folder.join("models.toml");
    std::fs::write(&file, text).unwrap();
    file
}
