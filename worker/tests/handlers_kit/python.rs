//! Children in Python, for the tests of the handler `process`.

use std::sync::Arc;

use serde_json::Value;
use taskyard_worker::handlers::process::ProcessHandler;
use taskyard_worker::{Answer, Handler, Job};
use tempfile::TempDir;

use super::{eventually, in_time, job, models};

/// What every child begins with.
pub const PRELUDE: &str = r#"
import json, os, signal, subprocess, sys, time

def say(value):
    print(json.dumps(value), flush=True)

def answer(task, output):
    say({"id": task["id"], "output": output})

def batches():
    for line in sys.stdin:
        value = json.loads(line)
        yield value if isinstance(value, list) else [value]

def tasks():
    for batch in batches():
        for task in batch:
            yield task
"#;

pub const BATCHES: &str = "max_batch = 8";

/// A child in Python, in a folder of its own.
pub struct Python {
    pub folder: TempDir,
    pub handler: Arc<ProcessHandler>,
}

impl Python {
    pub async fn start(model: &str, script: &str) -> Self {
        Self::start_with(model, "", script).await
    }

    /// The same with more settings of its process.
    pub async fn start_with(model: &str, more: &str, script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("child.py"), format!("{PRELUDE}\n{script}")).unwrap();
        let settings = &models(&format!(
            "[models.child]\nhandler = \"process\"\n{model}\n\
             [models.child.process]\ncommand = [\"python3\", \"child.py\"]\n{more}"
        ))["child"];
        let process = settings.process.as_ref().unwrap();
        let handler = ProcessHandler::start("child", process, settings.slots, settings.max_batch, folder.path());
        Self { handler: Arc::new(in_time("the start", handler).await.unwrap()), folder }
    }

    pub async fn ask(&self, batch: Vec<Job>) -> Vec<Answer> {
        in_time("the answers", self.handler.execute(batch)).await
    }

    pub async fn ask_one(&self, input: impl ToString) -> Answer {
        self.ask(vec![job(input)]).await.pop().unwrap()
    }

    /// Asks for something that is not answered, and gives up once the child has written `working` in its folder.
    /// Gives what the child wrote there.
    pub async fn ask_and_drop(&self, batch: Vec<Job>) -> Value {
        let handler = Arc::clone(&self.handler);
        let call = tokio::spawn(async move { handler.execute(batch).await });
        let sign = self.folder.path().join("working");
        eventually("the child works", || sign.exists()).await;
        assert!(!call.is_finished());
        call.abort();
        let wrote = serde_json::from_slice(&std::fs::read(&sign).unwrap()).unwrap();
        std::fs::remove_file(sign).unwrap();
        wrote
    }
}

/// For a child: says that it works, and with which process ids.
pub const WORKING: &str = r#"
def working(*pids):
    with open("working.new", "w") as sign:
        json.dump([os.getpid(), *pids], sign)
    os.rename("working.new", "working")
"#;

/// Whether a process runs; one that only waits to be buried does not.
pub fn runs(pid: &Value) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_i64().unwrap())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

pub async fn all_gone(pids: &Value) {
    for pid in pids.as_array().unwrap() {
        eventually(&format!("{pid} is gone"), || !runs(pid)).await;
    }
}
