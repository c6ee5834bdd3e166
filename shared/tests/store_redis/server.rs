//! The servers under test: the shared one, and private ones that a test may kill, fill and flush.

#[path = "../support/ports.rs"]
pub mod ports;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::FutureExt;
use redis::Value;
use taskyard_shared::{TaskId, Topology};

use self::ports::free_port;

/// How long a test waits for what has to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// `None`, said aloud, when there is none and none is demanded.
fn shared_url() -> Option<String> {
    let url = std::env::var("TASKYARD_TEST_REDIS").ok().filter(|url| !url.is_empty());
    if url.is_none() {
        skip("TASKYARD_TEST_REDIS is not set");
    }
    url
}

fn skip(reason: &str) {
    assert!(std::env::var_os("TASKYARD_TEST_REQUIRE_SERVERS").is_none_or(|value| value != "1"), "{reason}");
    println!("skipped: {reason}");
}

/// Sends one command on a connection of its own.
pub async fn command(url: &str, words: &[&str]) -> redis::RedisResult<Value> {
    let client = redis::Client::open(url).expect("a URL");
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
    let mut connection = client.get_multiplexed_async_connection_with_config(&patient).await?;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut connection).await
}

/// Every key of a namespace.
pub async fn keys(url: &str, topology: &Topology) -> Vec<String> {
    let client = redis::Client::open(url).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
    let pattern = format!("{}*", topology.namespace());
    let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1_000);
        let (next, keys): (String, Vec<String>) = scan.query_async(&mut connection).await.expect("SCAN");
        found.extend(keys);
        if next == "0" {
            return found;
        }
        cursor = next;
    }
}

/// Hands a namespace on the shared server to a test, and deletes what is in it afterwards, whatever came of the test.
pub async fn in_a_namespace(test: impl AsyncFnOnce(&str, &Topology)) {
    let Some(url) = shared_url() else { return };
    let topology = topology();
    let outcome = std::panic::AssertUnwindSafe(test(&url, &topology)).catch_unwind().await;
    forget(&url, &topology).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

async fn forget(url: &str, topology: &Topology) {
    for keys in keys(url, topology).await.chunks(500) {
        let mut words = vec!["UNLINK"];
        words.extend(keys.iter().map(String::as_str));
        command(url, &words).await.expect("UNLINK");
    }
}

pub fn topology() -> Topology {
    Topology::new(format!("test-{}", TaskId::new().0.simple()))
}

/// Asks until the answer is there.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let waiting = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("did not happen: {what}"))
}

/// A `redis-server` of the test's own. It keeps nothing on disk, and ends with the test.
pub struct Server {
    child: Option<Child>,
    directory: tempfile::TempDir,
    options: Vec<String>,
    pub port: u16,
}

impl Server {
    /// Not started yet. `None`, said aloud, when the program is not installed.
    pub fn planned(options: &[&str]) -> Option<Self> {
        if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            skip("redis-server is not installed");
            return None;
        }
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let directory = tempfile::tempdir().expect("a folder");
        Some(Self { child: None, directory, options, port: free_port() })
    }

    /// A node of a cluster of Redis 7 or later, with these slots of the 16,384.
    pub async fn node(first_slot: u16, last_slot: u16) -> Option<Self> {
        let bus = free_port().to_string();
        let server = Self::started(&["--cluster-enabled", "yes", "--cluster-port", &bus]).await?;
        let (first, last) = (first_slot.to_string(), last_slot.to_string());
        server.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await;
        Some(server)
    }

    /// One that listens for TLS only, at `port`.
    pub async fn started_with_tls(certificate: &str, key: &str, authority: &str) -> Option<Self> {
        Self::started_with_tls_asking(certificate, key, authority, "no").await
    }

    /// The same; `asks`, `yes` or `no`, is whether it asks for a client's certificate.
    pub async fn started_with_tls_asking(certificate: &str, key: &str, authority: &str, asks: &str) -> Option<Self> {
        let mut server = Self::planned(&["--tls-cert-file", certificate, "--tls-key-file", key])?;
        let tls_port = server.port.to_string();
        let more =
            ["--tls-ca-cert-file", authority, "--tls-auth-clients", asks, "--port", "0", "--tls-port", &tls_port];
        server.options.extend(more.map(str::to_owned));
        server.start().await;
        Some(server)
    }

    pub async fn started(options: &[&str]) -> Option<Self> {
        let mut server = Self::planned(options)?;
        server.start().await;
        Some(server)
    }

    pub async fn start(&mut self) {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--dir", &self.directory.path().display().to_string()])
            .args(&self.options)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server");
        self.child = Some(child);
        let address = ("127.0.0.1", self.port);
        eventually("the server listens", || async { tokio::net::TcpStream::connect(address).await.ok() }).await;
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it runs");
            child.wait().expect("it has ended");
        }
    }

    /// `STOP` holds it up, `CONT` lets it go on.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill");
        assert!(sent.success(), "{name}");
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub async fn command(&self, words: &[&str]) -> Value {
        command(&self.url(), words).await.expect("an answer")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
