//! A RabbitMQ of the test's own: one port that speaks TLS and asks for a client's certificate, one that does not. It ends with the
//! test.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;

use super::files::Files;
use super::free_port;

/// It takes ten seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// Who may do everything.
pub const LOGIN: &str = "yard:s3cret";

#[allow(dead_code)] // Each test target uses a part of it.
pub struct Node {
    program: PathBuf,
    child: Option<Child>,
    folder: tempfile::TempDir,
    pub tls_port: u16,
    pub plain_port: u16,
    distribution: u16,
}

/// Where the program is. Debian's on the path runs as a user of its own, who cannot read the test's folder; the one behind it does.
fn program() -> Option<PathBuf> {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let folders = ["/usr/lib/rabbitmq/bin".into()].into_iter().chain(std::env::split_paths(&on_path));
    folders.map(|folder: PathBuf| folder.join("rabbitmq-server")).find(|path| path.is_file())
}

#[allow(dead_code)]
impl Node {
    /// `None`, said aloud, when the program is not installed.
    pub async fn started(files: &Files) -> Option<Self> {
        let Some(program) = program() else {
            let required = std::env::var_os("TASKYARD_TEST_REQUIRE_SERVERS").is_some_and(|value| value == "1");
            assert!(!required, "rabbitmq-server is not installed");
            println!("skipped: rabbitmq-server is not installed");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let (tls_port, plain_port, distribution) = (free_port(), free_port(), free_port());
        let (user, password) = LOGIN.split_once(':').unwrap();
        let config = format!(
            "listeners.tcp.1 = 127.0.0.1:{plain_port}\n\
             listeners.ssl.1 = 127.0.0.1:{tls_port}\n\
             ssl_options.cacertfile = {}\n\
             ssl_options.certfile = {}\n\
             ssl_options.keyfile = {}\n\
             ssl_options.verify = verify_peer\n\
             ssl_options.fail_if_no_peer_cert = true\n\
             default_user = {user}\n\
             default_pass = {password}\n\
             vm_memory_high_watermark.absolute = 1GB\n\
             disk_free_limit.absolute = 1MB\n",
            files.text("ca.pem"),
            files.text("server.pem"),
            files.text("server.key"),
        );
        std::fs::write(folder.path().join("rabbitmq.conf"), config).unwrap();
        std::fs::write(folder.path().join("enabled_plugins"), "[].\n").unwrap();
        let mut node = Self { program, child: None, folder, tls_port, plain_port, distribution };
        node.start().await;
        Some(node)
    }

    /// Starts it, again too, with what it has on disk.
    pub async fn start(&mut self) {
        let path = |name: &str| self.folder.path().join(name);
        let log = std::fs::File::create(path("log")).unwrap();
        let mut child = Command::new(&self.program)
            .env("RABBITMQ_NODENAME", format!("taskyard-tls-{}@localhost", self.tls_port))
            .env("RABBITMQ_DIST_PORT", self.distribution.to_string())
            .env("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", path("data"))
            .env("RABBITMQ_LOG_BASE", path("logs"))
            .env("RABBITMQ_PID_FILE", path("pid"))
            .env("HOME", self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            // The script leaves the node a child of its own: they end together.
            .process_group(0)
            .spawn()
            .unwrap();
        let listening = async {
            for port in [self.tls_port, self.plain_port] {
                while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                    assert!(child.try_wait().unwrap().is_none(), "{}", self.log());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, listening).await.is_ok();
        self.child = Some(child);
        assert!(in_time, "no RabbitMQ: {}", self.log());
    }

    /// Ends it with SIGKILL, and waits until it is gone.
    pub async fn crash(&mut self) {
        self.kill();
        let gone = async {
            for port in [self.tls_port, self.plain_port, self.distribution] {
                while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        assert!(tokio::time::timeout(PATIENCE, gone).await.is_ok(), "RabbitMQ was killed and is still there");
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let group = format!("-{}", child.id());
            let _ended = Command::new("kill").args(["-KILL", "--", &group]).status();
            let _reaped = child.wait();
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
