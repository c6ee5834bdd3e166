//! A yard whose every connection is TLS with a client's certificate, through a change of the authority and of all certificates.

use std::path::Path;

use serde_json::{Value, json};
use taskyard_shared::broker::QueueSpec;
use taskyard_shared::process::settings::{BrokerSettings, QueueType, Settings};
use taskyard_shared::{State, Topology};

use self::files::Files;
use self::rabbitmq::{LOGIN, Node};
use crate::harness::ports::free_port;
use crate::harness::{Redis, Role, models_file};
use crate::yard::Publisher;

#[path = "../../shared/tests/tls/files.rs"]
mod files;
#[path = "../../shared/tests/tls/rabbitmq.rs"]
mod rabbitmq;

const MODELS: &str = r#"
[models.pause]
handler = "simulated"
slots = 4
max_attempts = 20
[models.pause.simulated]
service_ms = 20.0

[models.nap]
handler = "simulated"
max_attempts = 20
[models.nap.simulated]
service_ms = 1500.0
"#;

/// One that speaks TLS alone. What it has answered survives a kill.
fn secret_redis(files: &Files, folder: &Path, port: u16) -> Option<Redis> {
    let (_, password) = LOGIN.split_once(':').unwrap();
    let (port, folder) = (port.to_string(), folder.display().to_string());
    let [ca, certificate, key] = ["ca.pem", "server.pem", "server.key"].map(|name| files.text(name));
    let arguments = [
        ["--port", "0"],
        ["--tls-port", &port],
        ["--requirepass", password],
        ["--appendonly", "yes"],
        ["--appendfsync", "always"],
        ["--dir", &folder],
        ["--tls-auth-clients", "yes"],
        ["--tls-ca-cert-file", &ca],
        ["--tls-cert-file", &certificate],
        ["--tls-key-file", &key],
    ];
    Redis::started(arguments.as_flattened().iter().map(|word| (*word).to_owned()).collect())
}

/// Roles that speak to these two alone.
struct SecretYard {
    environment: Vec<(String, String)>,
    models: String,
    api: String,
    http: reqwest::Client,
}

impl SecretYard {
    fn new(folder: &Path, files: &Files, node: &Node, redis: u16) -> Self {
        let tls = files.tls("ca.pem", "client");
        let listen = format!("127.0.0.1:{}", free_port());
        let (_, password) = LOGIN.split_once(':').unwrap();
        let mut environment = vec![
            ("TASKYARD__BROKER__URL".to_owned(), url(node)),
            ("TASKYARD__BROKER__QUEUE_TYPE".to_owned(), "classic".to_owned()),
            ("TASKYARD__STORE__URL".to_owned(), format!("rediss://:{password}@localhost:{redis}/0")),
            ("TASKYARD__ADMIN__LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
            ("TASKYARD__GATEWAY__LISTEN".to_owned(), listen.clone()),
            ("TASKYARD__LOG__LEVEL".to_owned(), "trace,lapin=trace".to_owned()),
        ];
        for (server, (name, file)) in ["BROKER", "STORE"].into_iter().flat_map(|server| {
            [("CA_FILE", &tls.ca_file), ("CERT_FILE", &tls.cert_file), ("KEY_FILE", &tls.key_file)]
                .map(|file| (server, file))
        }) {
            environment.push((format!("TASKYARD__{server}__TLS__{name}"), file.display().to_string()));
        }
        let models = models_file(folder, MODELS).display().to_string();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { environment, models, api: format!("http://{listen}/v1/tasks"), http }
    }

    fn role(&self, name: &str) -> Role {
        Role::start(&["--config", &self.models, name], &self.environment)
    }

    /// One that has no certificate for this server.
    fn stranger(&self, server: &str) -> Role {
        let of_its_own = |name: &str| {
            ["CERT_FILE", "KEY_FILE"].map(|file| format!("TASKYARD__{server}__TLS__{file}")).contains(&name.to_owned())
        };
        let environment: Vec<_> = self.environment.iter().filter(|(name, _)| !of_its_own(name)).cloned().collect();
        Role::start(&["--config", &self.models, "worker"], &environment)
    }

    async fn submit(&self, task: &Value) -> Value {
        let request = self.http.post(&self.api).header("content-type", "application/json").header("prefer", "wait=30");
        let answer = request.body(task.to_string()).send().await.unwrap();
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
    }
}

fn url(node: &Node) -> String {
    format!("amqps://{LOGIN}@localhost:{}/%2f", node.tls_port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_yard_over_tls_lives_through_another_authority_and_loses_nothing() {
    let files = Files::new();
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let Some(mut redis) = secret_redis(&files, folder.path(), port) else { return };
    let Some(mut node) = Node::started(&files).await else { return };
    let yard = SecretYard::new(folder.path(), &files, &node, port);
    let roles = tokio::task::block_in_place(|| {
        let started =
            [("scheduler", "active"), ("worker", "takes tasks"), ("gateway", "listening")].map(|(name, line)| {
                let role = yard.role(name);
                role.wait_for_line(line);
                role
            });
        let mut stranger = yard.stranger("BROKER");
        assert_eq!(stranger.wait(), Some(3));
        assert!(stranger.lines().iter().any(|line| line.contains("broker.tls.cert_file")), "{:#?}", stranger.lines());
        // Without the store there is work that can be done.
        yard.stranger("STORE").wait_for_line("store.tls.cert_file");
        started
    });

    let settings = BrokerSettings {
        url: url(&node),
        queue_type: QueueType::Classic,
        tls: files.tls("ca.pem", "client"),
        ..Settings::default().broker
    };
    let mut publisher = Publisher::with(&settings, Topology::new("taskyard"), QueueSpec::durable("replies")).await;
    let pauses = |count: usize| (0..count).map(|n| json!({"model": "pause", "input": {"n": n}, "priority": n % 10}));
    let mut ids = publisher.publish(pauses(50).collect()).await;
    publisher.collect(&ids).await;
    assert_eq!(yard.submit(&json!({"model": "pause", "input": 1})).await["state"], "succeeded");

    // Some run and many wait while both servers are killed. What was the authority is nobody when they are back.
    ids.extend(publisher.publish(pauses(400).chain([json!({"model": "nap", "input": 1})]).collect()).await);
    files.renew();
    node.crash().await;
    redis.end();
    redis.start_again();
    node.start().await;
    publisher.collect(&ids).await;
    for id in &ids {
        assert_eq!(publisher.results[id].state, State::Succeeded, "{:?}", publisher.results[id]);
    }
    assert_eq!(publisher.differing, 0, "a result took effect twice");
    assert_eq!(yard.submit(&json!({"model": "pause", "input": 2})).await["state"], "succeeded");

    // Nobody says the password, however much they say.
    let (_, password) = LOGIN.split_once(':').unwrap();
    for role in &roles {
        let said = role.lines();
        assert!(said.iter().any(|line| line.contains(" lapin::")), "{said:#?}");
        let told: Vec<_> = said.iter().filter(|line| line.contains(password)).collect();
        assert!(told.is_empty(), "{told:#?}");
    }
}
