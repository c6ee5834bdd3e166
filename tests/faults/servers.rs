//! A RabbitMQ and a Redis of this run's own, so that they can be killed: each in a folder, on ports of its own.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::ports::free_port;
use crate::tweaks::Tweaks;

/// A broker on two busy cores takes up to half a minute to start.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// A group of processes that does not outlive this one, even if this one is killed: its leader waits for the end of what it
/// reads, and then kills the group. It is killed when this is dropped.
pub struct Group {
    guard: Child,
}

impl Group {
    pub fn new() -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "read never; kill -KILL 0"]).process_group(0).stdin(Stdio::piped());
        Self { guard: command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap() }
    }

    /// For whoever is to be started in it.
    pub fn id(&self) -> i32 {
        i32::try_from(self.guard.id()).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        // A group that has ended is what a signal to end it wants.
        let _ended = killpg(Pid::from_raw(self.id()), signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let _reaped = self.guard.wait();
    }
}

/// A server, in a group of its own.
struct Server {
    child: Child,
    group: Group,
}

impl Server {
    fn spawn(command: &mut Command, log: &Path) -> Self {
        let group = Group::new();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let errors = log.try_clone().unwrap();
        command.process_group(group.id()).stdin(Stdio::null()).stdout(log).stderr(errors);
        Self { child: command.spawn().unwrap(), group }
    }

    fn signal(&self, signal: Signal) {
        self.group.signal(signal);
    }

    fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    async fn ended(&mut self, limit: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let _reaped = self.child.wait();
    }
}

async fn answers(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).await.is_ok()
}

/// A broker, and not only a port: whoever has the port may be another, or a broker that is about to end.
async fn speaks_amqp(port: u16) -> bool {
    let greeting = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"AMQP\0\0\x09\x01").await?;
        // Its first frame: of a method, on channel 0.
        let mut frame = [0; 3];
        stream.read_exact(&mut frame).await.map(|_| frame == [1, 0, 0])
    };
    tokio::time::timeout(Duration::from_secs(5), greeting).await.is_ok_and(|spoken| spoken.unwrap_or(false))
}

/// The folder of `rabbitmq-server` and `rabbitmqctl`: that of `TASKYARD_FAULTS_RABBITMQ`; or Debian's own, since what Debian
/// has in `PATH` changes to another user; or nothing, when they are in `PATH`. `None` when there is none.
pub fn rabbitmq_programs() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("TASKYARD_FAULTS_RABBITMQ") {
        return Some(PathBuf::from(folder));
    }
    let debian = PathBuf::from("/usr/lib/rabbitmq/bin");
    if debian.join("rabbitmq-server").exists() {
        return Some(debian);
    }
    has_program("rabbitmq-server").then(PathBuf::new)
}

pub fn has_program(name: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(name).exists())
}

pub struct Rabbit {
    programs: PathBuf,
    folder: PathBuf,
    node: String,
    distribution_port: u16,
    pub port: u16,
    tweaks: Option<Tweaks>,
    server: Option<Server>,
}

impl Rabbit {
    pub async fn start(programs: PathBuf, folder: &Path, tweaks: Option<Tweaks>) -> Self {
        let folder = folder.join("rabbitmq");
        std::fs::create_dir_all(folder.join("home")).unwrap();
        let port = free_port();
        let settings = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\n\
             vm_memory_high_watermark.absolute = 2GB\n\
             disk_free_limit.absolute = 50MB\n\
             log.file.level = warning\n"
        );
        std::fs::write(folder.join("rabbitmq.conf"), settings).unwrap();
        std::fs::write(folder.join("enabled_plugins"), "[].\n").unwrap();
        let node = format!("taskyard-faults-{}-{port}@localhost", std::process::id());
        let mut rabbit = Self { programs, folder, node, distribution_port: free_port(), port, tweaks, server: None };
        rabbit.begin().await;
        rabbit
    }

    pub fn url(&self, port: u16) -> String {
        format!("amqp://guest:guest@127.0.0.1:{port}/%2f")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        // Where it leaves what it has to say when it is killed at a bad time.
        command
            .current_dir(&self.folder)
            .env("HOME", self.folder.join("home"))
            .env("RABBITMQ_NODENAME", &self.node)
            .env("RABBITMQ_CONFIG_FILE", self.folder.join("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.folder.join("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", self.folder.join("data"))
            .env("RABBITMQ_LOG_BASE", self.folder.join("log"))
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            // It shares two cores with everything else: it is not to spin while it waits.
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+sbwt none +sbwtdcpu none +sbwtdio none");
        command
    }

    async fn begin(&mut self) {
        let begun = Instant::now();
        loop {
            let mut command = self.command("rabbitmq-server");
            command.envs(self.tweaks.iter().flat_map(Tweaks::environment));
            let mut server = Server::spawn(&mut command, &self.folder.join("output"));
            while server.child.try_wait().unwrap().is_none() {
                if speaks_amqp(self.port).await {
                    self.server = Some(server);
                    return;
                }
                assert!(begun.elapsed() < START_PATIENCE, "RabbitMQ does not start: {}", self.folder.display());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            // The name of a node that was just killed may still be taken.
            assert!(begun.elapsed() < START_PATIENCE, "RabbitMQ ends at its start: {}", self.folder.display());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    pub fn tweaks(&self) -> &Tweaks {
        self.tweaks.as_ref().expect("its disk is only slow where there is a compiler")
    }

    pub async fn kill_and_start(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
        self.gone().await;
        self.begin().await;
    }

    /// What was waited for is the script that starts it: the broker itself takes a moment longer.
    async fn gone(&self) {
        let begun = Instant::now();
        while answers(self.port).await {
            assert!(begun.elapsed() < START_PATIENCE, "RabbitMQ does not end: {}", self.folder.display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// In good order, as an operator does it.
    pub async fn restart(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.signal(Signal::SIGTERM);
            if !server.ended(Duration::from_secs(60)).await {
                server.kill();
            }
        }
        self.gone().await;
        self.begin().await;
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(server) = &self.server {
            server.signal(signal);
        }
    }

    /// All that it wrote into its log.
    pub fn log(&self) -> String {
        let files = std::fs::read_dir(self.folder.join("log")).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|file| file.is_file()).map(|file| std::fs::read_to_string(file).unwrap()).collect()
    }

    pub async fn control(&self, arguments: &[&str]) -> String {
        let mut command = tokio::process::Command::from(self.command("rabbitmqctl"));
        let Output { status, stdout, stderr } = command.args(arguments).output().await.unwrap();
        assert!(status.success(), "rabbitmqctl {arguments:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8_lossy(&stdout).into_owned()
    }

    /// Name, ready and unacknowledged messages of every queue.
    pub async fn queues(&self) -> Vec<(String, u64, u64)> {
        let columns = ["name", "messages_ready", "messages_unacknowledged"];
        let arguments = [&["list_queues", "--quiet", "--no-table-headers"], &columns[..]].concat();
        let row = |line: &str| {
            let mut parts = line.split_whitespace();
            Some((parts.next()?.to_owned(), parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
        };
        self.control(&arguments).await.lines().filter_map(row).collect()
    }
}

pub struct Redis {
    folder: PathBuf,
    pub port: u16,
    tweaks: Option<Tweaks>,
    server: Option<Server>,
}

impl Redis {
    pub async fn start(folder: &Path, tweaks: Option<Tweaks>) -> Self {
        let folder = folder.join("redis");
        std::fs::create_dir_all(&folder).unwrap();
        let mut redis = Self { folder, port: free_port(), tweaks, server: None };
        redis.begin().await;
        redis
    }

    pub fn url(&self, port: u16) -> String {
        format!("redis://127.0.0.1:{port}/0")
    }

    /// `appendfsync always`: what it has answered survives a kill, so that only a flush loses records.
    pub async fn begin(&mut self) {
        // So that it is told of a file that may not grow, and not killed.
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; exec redis-server \"$@\"", "sh"]);
        command.envs(self.tweaks.iter().flat_map(Tweaks::environment));
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--appendonly", "yes", "--appendfsync", "always", "--dir"]).arg(&self.folder);
        self.server = Some(Server::spawn(&mut command, &self.folder.join("output")));
        let begun = Instant::now();
        // While it reads its file it answers every command with an error.
        while self.command(&["PING"]).await.trim() != "PONG" {
            assert!(begun.elapsed() < START_PATIENCE, "Redis does not start: {}", self.folder.display());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
    }

    pub fn tweaks(&self) -> &Tweaks {
        self.tweaks.as_ref().expect("its disk is only slow where there is a compiler")
    }

    /// None of its files may grow any more, until it is started again.
    pub fn fill_disk(&self) {
        let Some(server) = &self.server else { return };
        let pid = server.child.id().to_string();
        let status = Command::new("prlimit").args(["--pid", &pid, "--fsize=1:"]).status().unwrap();
        assert!(status.success(), "prlimit: {status}");
    }

    pub async fn command(&self, arguments: &[&str]) -> String {
        let mut command = tokio::process::Command::new("redis-cli");
        let output = command.args(["-p", &self.port.to_string()]).args(arguments).output().await.unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
