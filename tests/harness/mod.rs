//! What system tests share: servers to test against, real processes of the real binary, and waiting for events.
//!
//! A test that needs a server asks [`servers`]; without the variables `TASKYARD_TEST_AMQP` and `TASKYARD_TEST_REDIS` it
//! says that it is skipped, and with `TASKYARD_TEST_REQUIRE_SERVERS` set it fails instead.
#![allow(dead_code)] // Each test target uses a part of it.

#[path = "../../shared/tests/support/ports.rs"]
pub mod ports;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Where RabbitMQ and Redis are; the AMQP address has no virtual host.
pub struct Servers {
    pub amqp: String,
    pub redis: String,
}

pub fn servers(test: &str) -> Option<Servers> {
    let read = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (read("TASKYARD_TEST_AMQP"), read("TASKYARD_TEST_REDIS")) {
        (Some(amqp), Some(redis)) => Some(Servers { amqp: amqp.trim_end_matches('/').to_owned(), redis }),
        _ if read("TASKYARD_TEST_REQUIRE_SERVERS").is_some() => {
            panic!("{test} needs TASKYARD_TEST_AMQP and TASKYARD_TEST_REDIS, and servers are required")
        }
        _ => {
            eprintln!("skipped: {test} needs TASKYARD_TEST_AMQP and TASKYARD_TEST_REDIS");
            None
        }
    }
}

/// Polls until it is true. Panics after a generous while, with what was waited for.
pub fn eventually<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(begun.elapsed() < Duration::from_secs(90), "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A virtual host and a namespace of one test's own, deleted at the end.
pub struct Place {
    pub vhost: String,
    pub namespace: String,
    pub amqp: String,
    pub redis: String,
}

impl Place {
    pub fn new(servers: &Servers) -> Self {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let vhost = format!("taskyard-test-{unique}");
        rabbitmqctl(&["add_vhost", &vhost]);
        rabbitmqctl(&["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"]);
        Self {
            amqp: format!("{}/{vhost}", servers.amqp),
            vhost,
            namespace: format!("t{}", &unique[..12]),
            redis: servers.redis.clone(),
        }
    }

    /// `name` of a queue → ready messages and unacknowledged ones.
    pub fn queues(&self) -> Vec<(String, u64, u64)> {
        let listed = rabbitmqctl(&[
            "list_queues",
            "-p",
            &self.vhost,
            "--quiet",
            "--no-table-headers",
            "name",
            "messages_ready",
            "messages_unacknowledged",
        ]);
        let row = |line: &str| -> Option<(String, u64, u64)> {
            let mut parts = line.split_whitespace();
            Some((parts.next()?.to_owned(), parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
        };
        listed.lines().filter_map(row).collect()
    }
}

impl Place {
    /// The yard's part of Redis is empty, as after a flush.
    pub fn flush_store(&self) {
        let script = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end";
        let pattern = format!("{}:*", self.namespace);
        let _gone = Command::new("redis-cli").args(["-u", &self.redis, "EVAL", script, "0", &pattern]).output();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _gone = Command::new("rabbitmqctl").args(["delete_vhost", &self.vhost]).output();
        self.flush_store();
    }
}

pub fn rabbitmqctl(arguments: &[&str]) -> String {
    let output = Command::new("rabbitmqctl").args(arguments).output().expect("rabbitmqctl runs");
    assert!(output.status.success(), "rabbitmqctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A process of the binary; killed when dropped.
pub struct Role {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Role {
    /// Starts `taskyard ARGUMENTS` with the settings as environment variables, and keeps what it writes to stderr.
    pub fn start(arguments: &[&str], environment: &[(String, String)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_taskyard"))
            .args(arguments)
            .envs(environment.iter().cloned())
            .env("NO_COLOR", "1")
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = lines.clone();
        let stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        Self { child, lines }
    }

    pub fn wait_for_line(&self, part: &str) {
        let lines = self.lines.clone();
        eventually(&format!("a line with {part:?}; there are {:#?}", self.lines()), || {
            lines.lock().unwrap().iter().any(|line| line.contains(part)).then_some(())
        });
    }

    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: &str) {
        let killed = Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap();
        assert!(killed.success());
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// The exit code, once it has ended.
    pub fn wait(&mut self) -> Option<i32> {
        eventually("the process to end", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            for line in self.lines().iter().rev().take(30).rev() {
                eprintln!("[{}] {line}", self.child.id());
            }
        }
    }
}

/// A `redis-server` of a test's own; killed when dropped.
pub struct Redis {
    child: Child,
    arguments: Vec<String>,
}

impl Redis {
    /// `None`, said aloud, when the program is not installed.
    pub fn started(arguments: Vec<String>) -> Option<Self> {
        if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            assert!(std::env::var_os("TASKYARD_TEST_REQUIRE_SERVERS").is_none(), "redis-server is not installed");
            eprintln!("skipped: redis-server is not installed");
            return None;
        }
        Some(Self { child: Self::spawn(&arguments), arguments })
    }

    fn spawn(arguments: &[String]) -> Child {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", ""]).args(arguments).stdout(Stdio::null()).spawn().unwrap()
    }

    pub fn end(&mut self) {
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }

    pub fn start_again(&mut self) {
        self.child = Self::spawn(&self.arguments);
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.end();
    }
}

/// Settings of a yard at a place, as environment variables.
pub fn environment(place: &Place) -> Vec<(String, String)> {
    [
        ("TASKYARD__BROKER__URL", place.amqp.as_str()),
        ("TASKYARD__BROKER__NAMESPACE", &place.namespace),
        ("TASKYARD__STORE__URL", &place.redis),
        ("TASKYARD__ADMIN__LISTEN", "127.0.0.1:0"),
        ("TASKYARD__WORKER__LEASE_MS", "1000"),
        ("TASKYARD__WORKER__REPORT_EVERY_MS", "200"),
        ("TASKYARD__SCHEDULER__REPORT_EVERY_MS", "200"),
        ("TASKYARD__WORKER__RETRY_FIRST_MS", "50"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

/// Writes a configuration file with these models.
pub fn models_file(folder: &Path, models: &str) -> PathBuf {
    let file = folder.join("models.toml");
    std::fs::write(&file, models).unwrap();
    file
}
