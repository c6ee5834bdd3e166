//! A task that kills the worker process that runs it is found out, and takes nobody with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use taskyard_shared::State;
use uuid::Uuid;

use crate::control::Operator;
use crate::harness::{eventually, servers};
use crate::yard::Yard;

/// A process model that kills the worker which it belongs to, when its input says so.
const DEADLY: &str = r#"
import json, os, sys, time

for line in sys.stdin:
    tasks = json.loads(line)
    for task in tasks if isinstance(tasks, list) else [tasks]:
        if "cancel" in task:
            continue
        if task["input"].get("kill"):
            os.kill(os.getppid(), 9)
            sys.exit()
        time.sleep(task["input"].get("seconds", 0.002))
        print(json.dumps({"id": task["id"], "output": task["input"]}), flush=True)
"#;

/// Two that are the same but for this: tasks of `short` run without a claim at first and travel many to a message; several of
/// each share a call, and a worker runs several at once.
const MODELS: &str = r#"
[models.short]
handler = "process"
slots = 2
max_batch = 4
max_attempts = 5
expected_ms = 2.0
[models.short.process]
command = ["python3", "deadly.py"]

[models.long]
handler = "process"
slots = 3
max_attempts = 5
expected_ms = 1000.0
[models.long.process]
command = ["python3", "deadly.py"]
"#;

/// Starts a worker whenever there is none, as a supervisor does.
struct Supervisor {
    stop: Arc<AtomicBool>,
    ended: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    fn new(yard: &Yard) -> Self {
        let (stop, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (start, stopping, ends) = (yard.starter(&["worker"]), stop.clone(), ended.clone());
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::SeqCst) {
                let mut worker = start();
                while !stopping.load(Ordering::SeqCst) && !worker.has_ended() {
                    std::thread::yield_now();
                    std::thread::park_timeout(std::time::Duration::from_millis(20));
                }
                ends.fetch_add(usize::from(worker.has_ended()), Ordering::SeqCst);
            }
        });
        Self { stop, ended, thread: Some(thread) }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_kills_its_worker_twice_is_a_dead_letter_and_its_neighbours_succeed() {
    for model in ["short", "long"] {
        let Some(servers) = servers(&format!("poison-{model}")) else { return };
        let mut yard = Yard::new(&servers, MODELS);
        yard.write("deadly.py", DEADLY);
        let operator = Operator::new(&mut yard);
        let yard = operator.yard;
        let _scheduler = yard.scheduler();
        let mut publisher = yard.publisher().await;
        // They wait for the first worker, so that they travel together.
        let deadly = |n: usize| n == 9 || n == 31;
        let body = |n: usize| match deadly(n) {
            true => json!({"model": model, "input": {"kill": true, "n": n}, "priority": 5}),
            false => json!({"model": model, "input": {"n": n, "seconds": 0.02}, "priority": 5}),
        };
        let ids = publisher.publish((0..60).map(body).collect()).await;
        let workers = [Supervisor::new(yard), Supervisor::new(yard)];
        publisher.collect(&ids).await;

        let poison: Vec<Uuid> = (0..60).filter(|n| deadly(*n)).map(|n| ids[n]).collect();
        for (n, id) in ids.iter().enumerate() {
            let result = &publisher.results[id];
            let code = result.error.as_ref().map_or("", |error| error.code.as_str());
            match deadly(n) {
                true => assert_eq!((result.state, code), (State::Failed, "worker_lost"), "{model} {n}: {result:?}"),
                false => assert_eq!((result.state, code), (State::Succeeded, ""), "{model} {n}: {result:?}"),
            }
        }
        assert_eq!(publisher.differing, 0, "a result took effect twice");
        // Each was begun twice, perhaps once both by one worker; and once more where no worker was free for it alone in time.
        let ended: usize = workers.iter().map(|workers| workers.ended.load(Ordering::SeqCst)).sum();
        assert!((3..=6).contains(&ended), "{model}: {ended} workers were killed");

        let letters = eventually("the dead letters", || {
            let (_, letters) = operator.says(&["dead", "list", "--reason", "worker_lost"]);
            (letters.as_array()?.len() == 2).then_some(letters)
        });
        for letter in letters.as_array().unwrap() {
            let id: Uuid = letter["id"].as_str().unwrap().parse().unwrap();
            assert!(poison.contains(&id), "{letter}");
            assert!(letter["worker"].is_string() && letter["message"].as_str().unwrap().contains("lost"), "{letter}");
            assert!(letter["attempts"].as_u64() <= Some(3), "{letter}");
            let (_, shown) = operator.says(&["dead", "show", &id.to_string()]);
            assert_eq!(shown["task"]["input"]["kill"], Value::Bool(true));
        }
        let (_, all) = operator.says(&["dead", "list"]);
        assert_eq!(all.as_array().unwrap().len(), 2, "{all}");
    }
}
