//! A new version is rolled out: every role is replaced, one after another, under load.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use taskyard_shared::State;
use uuid::Uuid;

use crate::harness::ports::free_port;
use crate::harness::{Role, eventually, root, servers};
use crate::yard::Yard;

/// A program that writes down, outside of the yard, what it begins and ends.
fn models(executed: &Path) -> String {
    let executor = root().join("tests/faults/executor.py");
    format!(
        "[models.pause]\nhandler = \"process\"\nslots = 8\n\
         [models.pause.process]\ncommand = [\"python3\", {executor:?}, {executed:?}]\n"
    )
}

/// How often each task was begun.
fn begun(executed: &Path) -> HashMap<Uuid, usize> {
    let mut begun: HashMap<Uuid, usize> = HashMap::new();
    for line in std::fs::read_to_string(executed).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["what"] == "started" {
            *begun.entry(line["id"].as_str().unwrap().parse().unwrap()).or_default() += 1;
        }
    }
    begun
}

/// What a task takes.
const MS: u32 = 15;

/// Callers over HTTP at a time.
const CALLERS: usize = 4;

/// Callers at two gateways, as a load balancer has them: whoever does not take the connection is passed over.
struct Calls {
    http: reqwest::Client,
    gateways: [String; 2],
    is_over: AtomicBool,
    done: AtomicUsize,
    ids: Mutex<Vec<Uuid>>,
}

impl Calls {
    /// One task after another, until it is over: submitted, then waited for.
    async fn run(&self, caller: usize) {
        for n in 0.. {
            if self.is_over.load(Ordering::Acquire) {
                return;
            }
            let body = json!({"model": "pause", "input": {"n": n, "ms": MS, "caller": caller}}).to_string();
            let submitted = self
                .answer(caller + n, |api| {
                    let request = self.http.post(format!("{api}/v1/tasks")).header("content-type", "application/json");
                    request.body(body.clone())
                })
                .await;
            let id = submitted["id"].as_str().unwrap_or_else(|| panic!("no id: {submitted}")).to_owned();
            self.ids.lock().unwrap().push(id.parse().unwrap());
            loop {
                let task = self.answer(caller + n, |api| self.http.get(format!("{api}/v1/tasks/{id}?wait=10s"))).await;
                let state = task["state"].as_str().unwrap().to_owned();
                // A gateway that stops answers at once, with the task as it stands.
                if !["queued", "dispatched", "running"].contains(&&*state) {
                    assert_eq!((&*state, &task["attempt"]), ("succeeded", &json!(1)), "{task}");
                    break;
                }
            }
            self.done.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whoever took the connection answers, and well.
    async fn answer(&self, first: usize, request: impl Fn(&str) -> reqwest::RequestBuilder) -> Value {
        for gateway in (first..first + 1_000).map(|turn| &self.gateways[turn % 2]) {
            match request(gateway).send().await {
                Ok(answer) => {
                    let status = answer.status();
                    let text = answer.text().await.unwrap_or_else(|failure| panic!("{gateway}: cut short: {failure}"));
                    assert!(status.is_success(), "{gateway}: {status}: {text}");
                    return serde_json::from_str(&text).unwrap();
                }
                Err(failure) => {
                    assert!(failure.is_connect(), "{gateway} took a request and did not answer: {failure:?}")
                }
            }
        }
        panic!("no gateway takes a connection")
    }

    /// Some more tasks have been done.
    fn go_on(&self) {
        let goal = self.done.load(Ordering::Acquire) + 2 * CALLERS;
        eventually("callers to go on", || (self.done.load(Ordering::Acquire) >= goal).then_some(()));
    }
}

fn stop(mut role: Role) {
    role.signal("-TERM");
    assert_eq!(role.wait(), Some(0), "{:#?}", role.lines());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_role_is_replaced_under_load_and_no_request_fails_and_no_task_runs_twice() {
    let Some(servers) = servers("rolling restart") else { return };
    let folder = tempfile::tempdir().unwrap();
    let executed = folder.path().join("executed");
    let mut yard = Yard::new(&servers, &models(&executed));
    let listens = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let start_gateway = |yard: &mut Yard, listen: &String| {
        yard.environment.push(("TASKYARD__GATEWAY__LISTEN".into(), listen.clone()));
        let role = yard.role(&["gateway"]);
        yard.environment.pop();
        role.wait_for_line("listening");
        role
    };
    let mut gateways: Vec<Role> = listens.iter().map(|listen| start_gateway(&mut yard, listen)).collect();
    let mut schedulers = vec![yard.scheduler(), yard.role(&["scheduler"])];
    schedulers[1].wait_for_line("standing by");
    let mut workers = vec![yard.worker(), yard.worker()];
    let mut publisher = yard.publisher().await;
    let mut ids = Vec::new();

    let _installed = rustls::crypto::ring::default_provider().install_default();
    // A connection for each request: one that is kept may be closed by its gateway at the moment that it is used.
    let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
    let gateways_at = listens.clone().map(|listen| format!("http://{listen}"));
    let calls = Calls { http, gateways: gateways_at, is_over: false.into(), done: 0.into(), ids: Mutex::default() };
    let calls = Arc::new(calls);
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let calls = calls.clone();
            tokio::spawn(async move { calls.run(caller).await })
        })
        .collect();

    let here = tokio::runtime::Handle::current();
    // What goes out now is under way while a role is replaced.
    let mut go_on = || {
        let bodies =
            (0..300).map(|n| json!({"model": "pause", "input": {"n": n, "ms": MS}, "priority": n % 10})).collect();
        ids.extend(here.block_on(publisher.publish(bodies)));
        calls.go_on();
    };
    tokio::task::block_in_place(|| {
        go_on();
        // The new one is there before the old one goes, but for gateways, whose address is theirs.
        for old in std::mem::take(&mut workers) {
            workers.push(yard.worker());
            stop(old);
            go_on();
        }
        for old in std::mem::take(&mut schedulers) {
            stop(old);
            let new = yard.role(&["scheduler"]);
            // It may be the one that takes over.
            let is_up = |line: &String| ["active", "standing by"].iter().any(|up| line.contains(up));
            eventually("a scheduler", || new.lines().iter().any(is_up).then_some(()));
            schedulers.push(new);
            go_on();
        }
        for (old, listen) in std::mem::take(&mut gateways).into_iter().zip(&listens) {
            stop(old);
            go_on();
            gateways.push(start_gateway(&mut yard, listen));
            go_on();
        }
    });
    calls.is_over.store(true, Ordering::Release);
    for caller in callers {
        caller.await.unwrap();
    }

    publisher.collect(&ids).await;
    for id in &ids {
        let result = &publisher.results[id];
        assert_eq!((result.state, result.attempt), (State::Succeeded, 1), "{result:?}");
    }
    assert_eq!(publisher.differing, 0, "a result took effect twice");
    // An attempt at a short task is not claimed, so that its number alone does not tell of a second run.
    let begun = begun(&executed);
    let twice: Vec<_> = begun.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{} ran more than once: {:?}", twice.len(), &twice[..twice.len().min(5)]);
    ids.extend(calls.ids.lock().unwrap().iter());
    assert!(ids.iter().all(|id| begun.contains_key(id)) && begun.len() == ids.len(), "each of them, and no other");
    eventually("empty queues", || {
        let left = yard.place.queues().into_iter().filter(|(_, ready, unacked)| ready + unacked > 0).count();
        (left == 0).then_some(())
    });
}
