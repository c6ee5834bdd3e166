//! What a yard is told to keep to itself, and what it is given to work on, is in nothing that it says, however much it says and
//! whatever goes wrong.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;

use serde_json::{Value, json};
use taskyard_shared::process::keys::NewKey;

use crate::harness::ports::free_port;
use crate::harness::{Place, Redis, eventually, rabbitmqctl, servers};
use crate::yard::Yard;

const BROKER: &str = "broker-canary-3f0c";
const STORE: &str = "store-canary-81d2";
const SERVER: &str = "server-canary-77ab";
const HEADER: &str = "header-canary-5e19";
const CHILD: &str = "child-canary-c04d";
const INPUT: &str = "input-canary-92e6";
/// The base64 of `webhook-canary-0123456789abcdef01`.
const WEBHOOK: &str = "d2ViaG9vay1jYW5hcnktMDEyMzQ1Njc4OWFiY2RlZjAx";

/// The broker's user that the roles are, deleted at the end.
struct User(String);

impl User {
    fn new(place: &Place) -> Self {
        let name = format!("canary-{}", place.namespace);
        rabbitmqctl(&["add_user", &name, BROKER]);
        rabbitmqctl(&["set_permissions", "-p", &place.vhost, &name, ".*", ".*", ".*"]);
        Self(name)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _gone = Command::new("rabbitmqctl").args(["delete_user", &self.0]).output();
    }
}

fn redis(password: &str, port: u16) -> Option<Redis> {
    let arguments = ["--port", &port.to_string(), "--requirepass", password, "--appendonly", "no"].map(str::to_owned);
    Redis::started(arguments.into())
}

/// Answers every request with 1.
fn model_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 64 << 10];
            let _read = stream.read(&mut request);
            let _answered = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\n1");
        }
    });
    port
}

fn models() -> String {
    format!(
        r#"
[models.remote]
handler = "http"
[models.remote.http]
url = "http://ann:{SERVER}@127.0.0.1:{}/predict"
headers = {{ X-Token = "{HEADER}" }}

[models.away]
handler = "http"
max_attempts = 1
[models.away.http]
url = "http://ann:{SERVER}@127.0.0.1:{}/predict"
headers = {{ X-Token = "{HEADER}" }}

[models.child]
handler = "process"
max_attempts = 1
[models.child.process]
command = ["python3", "child.py"]
environment = {{ TOKEN = "{CHILD}" }}
"#,
        model_server(),
        free_port()
    )
}

/// Answers, and dies of what it is told to.
const PROGRAM: &str = "
import json, sys
for line in sys.stdin:
    task = json.loads(line)
    if isinstance(task['input'], dict):
        sys.exit(3)
    print(json.dumps({'id': task['id'], 'output': 1}), flush=True)
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_secret_is_in_nothing_that_a_yard_says_however_much_it_says() {
    let Some(servers) = servers("secrets") else { return };
    let mut yard = Yard::new(&servers, &models());
    yard.write("child.py", PROGRAM);
    let user = User::new(&yard.place);
    let port = free_port();
    let Some(redis) = redis(STORE, port) else { return };
    let key = NewKey::generate().unwrap();
    let listen = format!("127.0.0.1:{}", free_port());
    let host = servers.amqp.rsplit_once('@').map_or(servers.amqp.trim_start_matches("amqp://"), |(_, host)| host);
    let broker = format!("amqp://{}:{BROKER}@{host}/{}", user.0, yard.place.vhost);
    for (name, value) in [
        ("BROKER__URL", broker),
        ("STORE__URL", format!("redis://:{STORE}@127.0.0.1:{port}/0")),
        // The broker's client says nothing unless it is named.
        ("LOG__LEVEL", "trace,lapin=trace".to_owned()),
        ("GATEWAY__LISTEN", listen.clone()),
        ("GATEWAY__WEBHOOKS__SECRET", format!("whsec_{WEBHOOK}")),
        ("GATEWAY__WEBHOOKS__ALLOW", r#"["127.0.0.0/8"]"#.to_owned()),
        ("GATEWAY__WEBHOOKS__MAX_ATTEMPTS", "1".to_owned()),
        ("KEYS__ALL__SHA256", key.sha256()),
        ("KEYS__ALL__TENANT", "*".to_owned()),
        ("KEYS__ALL__SCOPES", r#"["submit", "read", "control", "admin"]"#.to_owned()),
    ] {
        yard.environment.push((format!("TASKYARD__{name}"), value));
    }
    let yard = &yard;
    let mut said: Vec<(&str, String)> = Vec::new();
    let (scheduler, worker, gateway) = tokio::task::block_in_place(|| {
        let gateway = yard.role(&["gateway"]);
        gateway.wait_for_line("listening");
        (yard.scheduler(), yard.worker(), gateway)
    });

    // All goes well, and then each thing that may fail does.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let hook = json!({"url": format!("http://127.0.0.1:{}/hook", free_port())});
    for (model, input, state) in [
        ("remote", json!(INPUT), "succeeded"),
        ("child", json!(INPUT), "succeeded"),
        ("away", json!(INPUT), "failed"),
        ("child", json!({"die": INPUT}), "failed"),
        ("nowhere", json!(INPUT), "rejected"),
    ] {
        let body = json!({"model": model, "input": input, "webhook": hook}).to_string();
        let request = http.post(format!("http://{listen}/v1/tasks")).bearer_auth(key.text()).body(body);
        let request = request.header("content-type", "application/json").header("prefer", "wait=60");
        let answer = request.send().await.unwrap().text().await.unwrap();
        let task: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(task["state"], state, "{model}: {answer}");
        said.push(("result", answer));
    }
    for (path, key) in [("v1/tasks", "a-wrong-key"), ("v1/models", key.text()), ("metrics", key.text()), ("readyz", "")]
    {
        let request = http.get(format!("http://{listen}/{path}")).bearer_auth(key);
        said.push(("answer", request.send().await.unwrap().text().await.unwrap()));
    }
    gateway.wait_for_line("webhook");

    // Neither server takes the password any more.
    tokio::task::block_in_place(|| {
        drop(redis);
        let _redis = self::redis("another", port);
        rabbitmqctl(&["change_password", &user.0, "another"]);
        rabbitmqctl(&["close_all_connections", "--vhost", &yard.place.vhost, "the password is another"]);
        for role in [&scheduler, &worker, &gateway] {
            role.wait_for_line("ACCESS_REFUSED");
        }
        for arguments in [&["scheduler"][..], &["worker"], &["gateway"]] {
            let mut late = yard.role(arguments);
            assert_ne!(late.wait(), Some(0));
            said.push(("a role that cannot connect", late.lines().join("\n")));
        }
        for arguments in [&["config", "show"][..], &["doctor"]] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_taskyard"));
            let output = command.args(arguments).envs(yard.environment.iter().cloned()).output().unwrap();
            said.push(("a command", String::from_utf8_lossy(&output.stdout).into_owned()));
            said.push(("a command", String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        eventually("the store's refusal", || {
            worker.lines().iter().any(|line| line.contains("WRONGPASS")).then_some(())
        });
    });
    for (name, role) in [("scheduler", &scheduler), ("worker", &worker), ("gateway", &gateway)] {
        said.extend(role.lines().into_iter().map(|line| (name, line)));
    }
    for library in ["lapin::", "hyper"] {
        assert!(
            said.iter().any(|(_, line)| line.contains(library)),
            "{library} says nothing, so that this proves nothing"
        );
    }

    let mut given_away = Vec::new();
    // The user and the password of a URL as a header has them.
    let basic = "YW5uOnNlcnZlci1jYW5hcnktNzdhYg==";
    for secret in [BROKER, STORE, SERVER, basic, HEADER, CHILD, INPUT, WEBHOOK, "webhook-canary", key.text()] {
        // Libraries show bytes as numbers.
        let bytes = format!("{:?}", secret.as_bytes());
        let forms = [secret.to_owned(), bytes.trim_matches(['[', ']']).to_owned()];
        let tells = |line: &str| forms.iter().any(|form| line.contains(form.as_str()));
        // An answer about a task may have what the task has, and so may the broker's client where somebody asked for that.
        let may_tell = |who: &str, line: &str| secret == INPUT && (who == "result" || line.contains(" lapin::"));
        let from = said.iter().filter(|(who, line)| tells(line) && !may_tell(who, line));
        given_away.extend(
            from.map(|(who, line)| format!("{secret} by {who}: {}", line.chars().take(400).collect::<String>())),
        );
    }
    assert!(given_away.is_empty(), "{} times: {:#?}", given_away.len(), &given_away[..given_away.len().min(10)]);
}
