//! The handler `http` against model servers that others wrote, at the versions that `model_servers/install.sh` installs.
//!
//! `TASKYARD_TEST_MODEL_SERVERS` names the folder that it installed them in. Without it everything here is skipped.

mod handlers_kit;
#[path = "../../shared/tests/support/ports.rs"]
mod ports;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use handlers_kit::{failure, in_time, job, load, message, output, root};
use ports::free_port;
use serde_json::{Value, json};
use taskyard_shared::process::egress::Reach;
use taskyard_shared::process::http_client;
use taskyard_worker::{Answer, Handler};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A server, for as long as the test runs.
struct Server {
    child: Child,
    url: String,
    folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // With all that it started.
        let group = self.child.id().and_then(|id| i32::try_from(id).ok()).map(nix::unistd::Pid::from_raw);
        if let Some(group) = group {
            let _gone = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Where a server is installed, if it is.
fn installed(name: &str) -> Option<PathBuf> {
    let Ok(folder) = std::env::var("TASKYARD_TEST_MODEL_SERVERS") else {
        println!("skipped: TASKYARD_TEST_MODEL_SERVERS is not set (worker/tests/model_servers/install.sh)");
        return None;
    };
    let programs = Path::new(&folder).join(name).join("bin");
    assert!(programs.join("python").exists(), "{} is not what install.sh makes", programs.display());
    Some(programs)
}

fn script(name: &str) -> PathBuf {
    root().join("worker/tests/model_servers").join(name)
}

fn start(program: &Path, arguments: &[&str], folder: &Path) -> Child {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).process_group(0).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// It does not say when it is ready, so it is asked.
async fn ready(mut child: Child, url: String, path: &str, folder: TempDir) -> Server {
    // Nobody reads what it prints, and it must not wait for that.
    let mut said = child.stdout.take().unwrap();
    tokio::spawn(async move { tokio::io::copy(&mut said, &mut tokio::io::sink()).await });
    let client = http_client::builder(Reach::Named).tls_certs_only([]).build().unwrap();
    let asking = async {
        while !client.get(format!("{url}{path}")).send().await.is_ok_and(|answer| answer.status().is_success()) {
            if let Some(ended) = child.try_wait().unwrap() {
                panic!("the server ended: {ended}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    in_time("the server", asking).await;
    Server { child, url, folder }
}

async fn llama(use_: &str) -> Option<Server> {
    let programs = installed("llama")?;
    let folder = tempfile::tempdir().unwrap();
    let (script, here) = (script("llama.py"), folder.path().to_str().unwrap());
    let mut child = start(&programs.join("python"), &[script.to_str().unwrap(), here, use_], folder.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = in_time("its address", lines.next_line()).await.unwrap().expect("its address");
    Some(Server { child, url, folder })
}

async fn handler(name: &str, url: &str, settings: &str) -> Arc<dyn Handler> {
    let toml =
        format!("[models.{name}]\nhandler = 'http'\nmax_batch = 8\n[models.{name}.http]\nurl = '{url}'\n{settings}");
    load(&toml, Path::new(".")).await.unwrap()
}

async fn ask(handler: &Arc<dyn Handler>, input: Value) -> Answer {
    in_time("the answer", handler.execute(vec![job(input)])).await.remove(0)
}

fn streamed(mut input: Value) -> Value {
    input["stream"] = json!(true);
    input
}

/// What a stream came to is what there would have been without one.
fn same(whole: &Value, streamed: &Value) {
    for path in [
        "/object",
        "/model",
        "/choices/0/message/role",
        "/choices/0/message/content",
        "/choices/0/text",
        "/choices/0/finish_reason",
        "/choices/0/index",
    ] {
        assert_eq!(whole.pointer(path), streamed.pointer(path), "{path} of {whole} and {streamed}");
    }
    for tokens in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert!(whole["usage"][tokens].is_u64(), "{whole}");
        assert_eq!(whole["usage"][tokens], streamed["usage"][tokens], "{tokens} of {whole} and {streamed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn llama_cpp_chats_and_completes_streamed_or_not() {
    let Some(server) = llama("chat").await else { return };
    let handler = handler("tiny", &server.url, "protocol = 'openai'").await;
    let chat = json!({
        "messages": [{"role": "user", "content": "Hello, where is my card? é"}], "max_tokens": 20, "temperature": 0,
    });
    let whole = output(&ask(&handler, chat.clone()).await);
    assert_eq!(
        (&whole["object"], &whole["choices"][0]["finish_reason"]),
        (&json!("chat.completion"), &json!("length"))
    );
    assert_eq!(whole["usage"]["completion_tokens"], 20);
    assert!(!whole["choices"][0]["message"]["content"].as_str().unwrap().is_empty(), "{whole}");
    same(&whole, &output(&ask(&handler, streamed(chat)).await));

    let prompt = json!({"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0});
    let whole = output(&ask(&handler, prompt.clone()).await);
    assert!(!whole["choices"][0]["text"].as_str().unwrap().is_empty(), "{whole}");
    same(&whole, &output(&ask(&handler, streamed(prompt)).await));

    // What is asked of its form is asked of the server.
    let schema = json!({"type": "json_schema", "json_schema": {"schema": {"enum": ["yes", "no"]}}});
    let formed =
        json!({"messages": [{"role": "user", "content": "Well?"}], "max_tokens": 20, "response_format": schema});
    for formed in [formed.clone(), streamed(formed)] {
        let answer = output(&ask(&handler, formed).await);
        let said: Value = serde_json::from_str(answer["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
        assert!(said == "yes" || said == "no", "{answer}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }

    // More at once than the server has slots.
    let many = (0..6)
        .map(|n| job(json!({"prompt": format!("{n} and"), "max_tokens": 5, "temperature": 0, "stream": n % 2 == 0})))
        .collect();
    let answers = in_time("six answers", handler.execute(many)).await;
    assert!(answers.iter().all(|answer| output(answer)["usage"]["completion_tokens"] == 5), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn llama_cpp_says_what_is_wrong_with_a_request() {
    let Some(mut server) = llama("chat").await else { return };
    let handler = handler("tiny", &server.url, "protocol = 'openai'").await;
    let long = json!({"prompt": "x".repeat(5_000), "max_tokens": 5});
    for (input, told) in [
        (json!({"messages": 5}), "array"),
        (json!({"messages": [{"role": "user", "content": "a"}], "temperature": "high"}), "temperature"),
        (long.clone(), "context"),
        (streamed(long), "context"),
    ] {
        let answer = ask(&handler, input.clone()).await;
        assert_eq!(failure(&answer), ("bad_input", false), "{input}");
        assert!(message(&answer).contains(told), "{}", message(&answer));
    }
    // It was not started for this, and will not be by another attempt.
    let answer = ask(&handler, json!({"input": "Hello"})).await;
    assert_eq!(failure(&answer), ("handler_failed", false), "{}", message(&answer));

    server.child.kill().await.unwrap();
    assert_eq!(failure(&ask(&handler, json!({"prompt": "a"})).await), ("unavailable", true));
}

#[tokio::test(flavor = "multi_thread")]
async fn llama_cpp_makes_vectors() {
    let Some(server) = llama("embeddings").await else { return };
    let handler = handler("tiny", &server.url, "protocol = 'openai'").await;
    let two = output(&ask(&handler, json!({"input": ["Where is my card?", "It was swallowed."]})).await);
    let vectors: Vec<&Vec<Value>> =
        two["data"].as_array().unwrap().iter().map(|one| one["embedding"].as_array().unwrap()).collect();
    assert_eq!(vectors.iter().map(|vector| vector.len()).collect::<Vec<_>>(), [64, 64]);
    assert_ne!(vectors[0], vectors[1]);
    assert!(two["usage"]["prompt_tokens"].as_u64().is_some_and(|tokens| tokens > 10), "{two}");
}

#[tokio::test(flavor = "multi_thread")]
async fn litserve_chats_streamed_or_not() {
    let Some(programs) = installed("litserve") else { return };
    let (port, folder) = (free_port().to_string(), tempfile::tempdir().unwrap());
    let arguments = [script("lit.py"), PathBuf::from(&port)];
    let arguments: Vec<&str> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
    let child = start(&programs.join("python"), &arguments, folder.path());
    let server = ready(child, format!("http://127.0.0.1:{port}"), "/health", folder).await;
    let handler = handler("echo", &server.url, "protocol = 'openai'").await;
    let chat = json!({"messages": [{"role": "user", "content": "where is my card"}]});
    let whole = output(&ask(&handler, chat.clone()).await);
    assert_eq!(whole["choices"][0]["message"]["content"], "where is my card ");
    assert_eq!(whole["usage"], json!({"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}));
    same(&whole, &output(&ask(&handler, streamed(chat)).await));
    let answer = ask(&handler, json!({"messages": 5})).await;
    assert_eq!(failure(&answer), ("bad_input", false), "{}", message(&answer));
    // It chats, and does nothing else.
    assert_eq!(failure(&ask(&handler, json!({"prompt": "Once"})).await), ("handler_failed", false));
}

#[tokio::test(flavor = "multi_thread")]
async fn mlserver_infers_by_the_open_inference_protocol() {
    let Some(programs) = installed("mlserver") else { return };
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().to_str().unwrap().to_owned();
    let ports = [free_port(), free_port(), free_port()].map(|port| port.to_string());
    let arguments = [script("digits.py").to_str().unwrap().to_owned(), here.clone()].into_iter().chain(ports.clone());
    let made = Command::new(programs.join("python")).args(arguments).status().await.unwrap();
    assert!(made.success());
    let child = start(&programs.join("mlserver"), &["start", &here], folder.path());
    let server = ready(child, format!("http://127.0.0.1:{}", ports[0]), "/v2/models/digits/ready", folder).await;

    let questions: Vec<Value> =
        serde_json::from_slice(&std::fs::read(server.folder.path().join("questions.json")).unwrap()).unwrap();
    let infer = |pixels: &Value| {
        let tensor = json!({"name": "predict", "shape": [1, 64], "datatype": "FP32", "data": pixels});
        json!({"inputs": [tensor]})
    };
    let handler = handler("digits", &server.url, "protocol = 'open-inference'").await;
    let calls = questions.chunks(8).map(|batch| {
        let jobs = batch.iter().map(|question| job(infer(&question["pixels"]))).collect();
        handler.execute(jobs)
    });
    let answers: Vec<Answer> = in_time("all digits", join_all(calls)).await.into_iter().flatten().collect();
    let right = answers.iter().zip(&questions).filter(|(answer, question)| {
        let response = output(answer);
        assert_eq!((&response["model_name"], &response["model_version"]), (&json!("digits"), &json!("1")));
        response["outputs"][0]["data"][0] == question["label"]
    });
    assert!(right.count() >= 17, "{answers:?}");
    let task = job(infer(&questions[0]["pixels"]));
    let id = task.id.0.to_string();
    assert_eq!(output(&handler.execute(vec![task]).await[0])["id"], json!(id));

    // By its version, and as an address says it.
    let address = format!("{}/v2/models/digits/versions/1/infer", server.url);
    let versioned = self::handler("other", &address, "protocol = 'open-inference'").await;
    assert!(ask(&versioned, infer(&questions[0]["pixels"])).await.is_ok());

    let absent = self::handler("absent", &server.url, "protocol = 'open-inference'").await;
    let answer = ask(&absent, infer(&questions[0]["pixels"])).await;
    assert_eq!(failure(&answer), ("handler_failed", false), "{}", message(&answer));
    for (input, told) in [
        (json!({"inputs": [{"name": "predict"}]}), "datatype"),
        (json!({"inputs": [{"name": "predict", "shape": [1, 64], "datatype": "FP99", "data": [1]}]}), "FP99"),
    ] {
        let answer = ask(&handler, input.clone()).await;
        assert_eq!(failure(&answer), ("bad_input", false), "{input}: {}", message(&answer));
        assert!(message(&answer).contains(told) || message(&answer).len() > 20, "{}", message(&answer));
    }
}
