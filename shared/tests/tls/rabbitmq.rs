//! A RabbitMQ of the test's own: one port that speaks TLS and asks for a client's certificate, one that does not. It ends with the
//! test.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::server::ports::free_port;

/// It takes ten seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(180);

pub struct Node {
    child: Child,
    _folder: tempfile::TempDir,
    pub tls_port: u16,
    pub plain_port: u16,
}

/// Where the program is. Debian's on the path runs as a user of its own, who cannot read the test's folder; the one behind it does.
fn program() -> Option<PathBuf> {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let folders = ["/usr/lib/rabbitmq/bin".into()].into_iter().chain(std::env::split_paths(&on_path));
    folders.map(|folder: PathBuf| folder.join("rabbitmq-server")).find(|path| path.is_file())
}

impl Node {
    pub async fn started(ca: &str, certificate: &str, key: &str) -> Option<Self> {
        let Some(program) = program() else {
            let required = std::env::var_os("TASKYARD_TEST_REQUIRE_SERVERS").is_some_and(|value| value == "1");
            assert!(!required, "rabbitmq-server is not installed");
            println!("skipped: rabbitmq-server is not installed");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (tls_port, plain_port, distribution) = (free_port(), free_port(), free_port());
        let config = format!(
            "listeners.tcp.1 = 127.0.0.1:{plain_port}\n\
             listeners.ssl.1 = 127.0.0.1:{tls_port}\n\
             ssl_options.cacertfile = {ca}\n\
             ssl_options.certfile = {certificate}\n\
             ssl_options.keyfile = {key}\n\
             ssl_options.verify = verify_peer\n\
             ssl_options.fail_if_no_peer_cert = true\n\
             vm_memory_high_watermark.absolute = 1GB\n\
             disk_free_limit.absolute = 1MB\n"
        );
        std::fs::write(path("rabbitmq.conf"), config).unwrap();
        std::fs::write(path("enabled_plugins"), "[].\n").unwrap();
        let log = std::fs::File::create(path("log")).unwrap();
        let child = Command::new(program)
            .env("RABBITMQ_NODENAME", format!("taskyard-tls-{tls_port}@localhost"))
            .env("RABBITMQ_DIST_PORT", distribution.to_string())
            .env("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", path("data"))
            .env("RABBITMQ_LOG_BASE", path("logs"))
            .env("RABBITMQ_PID_FILE", path("pid"))
            .env("HOME", folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            // The script leaves the node a child of its own: they end together.
            .process_group(0)
            .spawn()
            .unwrap();
        let mut node = Self { child, _folder: folder, tls_port, plain_port };
        let listening = async {
            for port in [tls_port, plain_port] {
                while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                    assert!(node.child.try_wait().unwrap().is_none(), "{}", node.log());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        assert!(tokio::time::timeout(PATIENCE, listening).await.is_ok(), "no RabbitMQ: {}", node.log());
        Some(node)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self._folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        let _ended = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _reaped = self.child.wait();
    }
}
