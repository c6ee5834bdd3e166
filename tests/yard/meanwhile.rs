//! What tasks say while they run, and that they stop when they are told to: real children of the handler `process`, over HTTP.

use serde_json::{Value, json};
use taskyard_shared::process::settings::ModelSettings;
use taskyard_worker::handlers::process::ProcessHandler;
use tempfile::TempDir;

use super::control::Api;
use super::*;

/// Reads tasks in a thread, and works on each in one of its own, so that a child hears of cancellations while it works.
const CHILD: &str = r#"
import json, os, sys, threading, time

lock, cancelled = threading.Lock(), {}

def say(value):
    with lock:
        print(json.dumps(value), flush=True)

def work(task):
    id, todo = task["id"], task["input"]
    stop = cancelled[id]
    if todo.get("do") == "fail once" and task["attempt"] == 1:
        say({"id": id, "partial": "first"})
        return say({"id": id, "error": {"code": "once", "message": "as told", "retryable": True}})
    for n, word in enumerate(todo.get("words", [])):
        say({"id": id, "progress": n / len(todo["words"]), "message": f"word {n}"})
        say({"id": id, "partial": word})
    if "until" in todo:
        while not os.path.exists(todo["until"]):
            if stop.is_set() and todo.get("heeds", True):
                return say({"id": id, "error": {"code": "cancelled", "message": "put down", "retryable": False}})
            time.sleep(0.005)
    say({"id": id, "output": {"words": len(todo.get("words", [])), "attempt": task["attempt"]}})

for line in sys.stdin:
    value = json.loads(line)
    if isinstance(value, dict) and "cancel" in value:
        if value["cancel"] in cancelled: cancelled[value["cancel"]].set()
        continue
    for task in value if isinstance(value, list) else [value]:
        cancelled[task["id"]] = threading.Event()
        threading.Thread(target=work, args=[task], daemon=True).start()
"#;

struct Spoken {
    yard: Yard,
    api: Api,
    folder: TempDir,
}

impl Spoken {
    async fn new(max_batch: u32, grace_ms: u64) -> Self {
        let yard = Yard::new(|settings| settings.worker.lease_ms = 60_000).await;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("child.py"), CHILD).unwrap();
        let settings: ModelSettings = toml::from_str(&format!(
            "handler = \"process\"\n[process]\ncommand = [\"python3\", \"child.py\"]\ncancel_grace_ms = {grace_ms}"
        ))
        .unwrap();
        let process = settings.process.as_ref().unwrap();
        let handler = ProcessHandler::start("m", process, 1, max_batch, folder.path()).await.unwrap();
        let spec = ModelSpec { expected_ms: Some(1_000.0), max_batch, max_delay_ms: 50, ..spec("m") };
        let worker = Worker::new(
            yard.broker.clone(),
            yard.store.clone(),
            yard.topology.clone(),
            yard.settings.worker.clone(),
            &yard.registry,
        );
        let worker = worker.unwrap().model(spec.clone(), Arc::new(handler));
        tokio::spawn(worker.run(CancellationToken::new(), CancellationToken::new()));
        yard.scheduler(&[spec]);
        let api = Api::new(&yard).await;
        Self { yard, api, folder }
    }

    async fn submit(&self, input: Value) -> Uuid {
        let (status, task) = self.api.post("/v1/tasks", json!({"model": "m", "input": input})).await;
        assert_eq!(status, 202, "{task}");
        task["id"].as_str().unwrap().parse().unwrap()
    }

    /// A task goes on when this file is there.
    fn sign(&self, name: &str) -> (String, std::path::PathBuf) {
        let path = self.folder.path().join(name);
        (path.to_str().unwrap().to_owned(), path)
    }

    /// Asks until the task is so.
    async fn until(&self, id: &Uuid, is_so: impl Fn(&Value) -> bool) -> Value {
        let asking = async {
            loop {
                let (_, task) = self.api.get(&format!("/v1/tasks/{id}")).await;
                if is_so(&task) {
                    return task;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{id} does not come so far"))
    }

    async fn running(&self, id: &Uuid) {
        self.until(id, |task| task["state"] == "running").await;
    }
}

/// Name, id and data of each event, until the stream ends or there are so many.
async fn events(api: &Api, id: &Uuid, last: Option<&str>, most: usize) -> Vec<(String, String, Value)> {
    let mut stream = api.events(id, last).await;
    assert_eq!(stream.status().as_u16(), 200);
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let (mut text, mut found) = (String::new(), Vec::new());
    let reading = async {
        while let Some(chunk) = stream.chunk().await.unwrap() {
            text.push_str(std::str::from_utf8(&chunk).unwrap());
            while let Some((event, rest)) = text.split_once("\n\n") {
                let field = |name: &str| {
                    event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_default()
                };
                found.push((field("event").to_owned(), field("id").to_owned(), field("data").parse().unwrap()));
                text = rest.to_owned();
                if found.len() == most {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the stream goes on");
    found
}

fn named<'a>(events: &'a [(String, String, Value)], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|(event, ..)| event == name).map(|(.., data)| data).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_task_says_is_followed_in_order_to_its_result_from_any_place() {
    let spoken = Spoken::new(1, 1_000).await;
    let (until, sign) = spoken.sign("go");
    let words: Vec<String> = (0..200).map(|n| format!("w{n}")).collect();
    let id = spoken.submit(json!({"words": words, "until": until})).await;
    // It says all of it and waits: the last progress is shown with the task.
    let task = spoken.until(&id, |task| task["progress"]["message"] == "word 199").await;
    assert_eq!(task["progress"]["progress"], 0.995, "{task}");
    assert_eq!(spoken.api.get(&format!("/v1/tasks/{}/events", Uuid::new_v4())).await.0, 404);

    let first = events(&spoken.api, &id, None, 100).await;
    std::fs::write(sign, "").unwrap();
    let (_, last, _) = first.last().unwrap();
    let rest = events(&spoken.api, &id, Some(last), usize::MAX).await;
    let all = [first.clone(), rest].concat();
    let partials: Vec<&str> = named(&all, "partial").iter().map(|data| data["partial"].as_str().unwrap()).collect();
    assert_eq!(partials, words, "in order, once, over a reader that came back");
    assert!(named(&all, "partial").iter().all(|data| data["attempt"] == 1));
    let progress: Vec<f64> = named(&all, "progress").iter().map(|data| data["progress"].as_f64().unwrap()).collect();
    assert!(progress.is_sorted() && progress.last() == Some(&0.995), "{progress:?}");
    assert_eq!(all[0].0, "state");
    assert_eq!(all.last().unwrap().0, "result");
    let result = named(&all, "result");
    assert_eq!((result.len(), &result[0]["output"]), (1, &json!({"words": 200, "attempt": 1})));

    // Who comes late hears all of it as well; who has seen the end is told not to come back.
    let late = events(&spoken.api, &id, None, usize::MAX).await;
    assert_eq!(named(&late, "partial").len(), 200);
    assert_eq!(spoken.api.events(&id, Some(&all.last().unwrap().1)).await.status().as_u16(), 204);
    assert_eq!(spoken.api.events(&id, Some("17")).await.status().as_u16(), 400);
    assert!(spoken.api.get(&format!("/v1/tasks/{id}")).await.1["progress"].is_null(), "it has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_told_from_the_attempt_before_it() {
    let spoken = Spoken::new(1, 1_000).await;
    let id = spoken.submit(json!({"do": "fail once", "words": ["a", "b"]})).await;
    let all = events(&spoken.api, &id, None, usize::MAX).await;
    let said: Vec<(u64, &str)> = named(&all, "partial")
        .iter()
        .map(|data| (data["attempt"].as_u64().unwrap(), data["partial"].as_str().unwrap()))
        .filter(|(attempt, _)| *attempt == 2)
        .collect();
    assert_eq!(said, [(2, "a"), (2, "b")]);
    assert_eq!(named(&all, "result")[0]["attempt"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_cancelled_stops_by_itself_or_is_stopped_and_says_which() {
    let spoken = Spoken::new(1, 100).await;
    let (until, _) = spoken.sign("never");
    // The lease is renewed every 20 s: only by looking for cancellations is it told so soon.
    let heeds = spoken.submit(json!({"until": until})).await;
    spoken.running(&heeds).await;
    let began = std::time::Instant::now();
    assert_eq!(spoken.api.cancel(&heeds).await.0, 202);
    let task = spoken.until(&heeds, |task| task["state"] == "cancelled").await;
    assert!(began.elapsed() < Duration::from_secs(10), "not by the renewal of its lease");
    assert_eq!(task["error"]["code"], "cancelled");
    assert_eq!(task["error"]["message"], "it was cancelled while it ran, and stopped by itself: put down");

    let deaf = spoken.submit(json!({"until": until, "heeds": false})).await;
    spoken.running(&deaf).await;
    assert_eq!(spoken.api.cancel(&deaf).await.0, 202);
    let task = spoken.until(&deaf, |task| task["state"] == "cancelled").await;
    let message = "it was cancelled while it ran; it did not stop by itself within 100 ms, and its process was ended";
    assert_eq!(task["error"]["message"], message);
    // Its slot has another child.
    let next = spoken.submit(json!({})).await;
    spoken.until(&next, |task| task["state"] == "succeeded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn others_in_the_same_child_are_not_lost_with_one_that_is_cancelled() {
    let spoken = Spoken::new(2, 1).await;
    let (never, _) = spoken.sign("never");
    let (until, sign) = spoken.sign("go");
    let bodies = vec![
        json!({"model": "m", "input": {"until": never, "heeds": false}}),
        json!({"model": "m", "input": {"until": until, "words": ["a"]}}),
    ];
    let ids = spoken.yard.publish(bodies).await;
    for id in &ids {
        spoken.running(id).await;
    }
    // Together in one call, or the other would not run.
    assert_eq!(spoken.api.cancel(&ids[0]).await.0, 202);
    std::fs::write(sign, "").unwrap();
    let other = spoken.until(&ids[1], |task| task["state"] == "succeeded").await;
    assert_eq!(other["attempt"], 1, "it ran once");
    let task = spoken.until(&ids[0], |task| task["state"] == "cancelled").await;
    assert!(task["error"]["message"].as_str().unwrap().contains("its process was ended"), "{task}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_hears_nothing_is_stopped_at_once() {
    let mut yard = Yard::new(|settings| settings.worker.lease_ms = 60_000).await;
    let handler = Arc::new(Obedient::default());
    let spec = ModelSpec { expected_ms: Some(1_000.0), ..spec("m") };
    yard.worker("w", vec![(spec.clone(), handler.clone())]);
    yard.scheduler(&[spec]);
    let api = Api::new(&yard).await;
    let ids = yard.publish(vec![json!({"model": "m", "input": {"do": "hang"}})]).await;
    eventually("the task to run", || handler.runs.load(Ordering::SeqCst) == 1).await;
    assert_eq!(api.cancel(&ids[0]).await.0, 202);
    yard.collect(&ids).await;
    let error = yard.result(&ids[0]).error.as_ref().unwrap();
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("cancelled", "it was cancelled while it ran, and was stopped")
    );
}
