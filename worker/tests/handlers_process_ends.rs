//! The handler `process` with real children: how they end, by themselves and with a call, and what comes after them.

mod handlers_kit;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::poll;
use handlers_kit::python::{BATCHES, Python, WORKING, all_gone, runs};
use handlers_kit::{eventually, failure, in_time, job, output};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use taskyard_worker::{Handler, Job};

#[tokio::test]
async fn a_child_that_is_killed_while_idle_is_replaced() {
    let child = Python::start("", "for task in tasks():\n    answer(task, os.getpid())").await;
    let first = output(&child.ask_one(1).await);
    kill(Pid::from_raw(i32::try_from(first.as_i64().unwrap()).unwrap()), Signal::SIGKILL).unwrap();
    eventually("it is gone", || !runs(&first)).await;
    let second = output(&child.ask_one(1).await);
    assert_ne!(second, first);
    assert_eq!(output(&child.ask_one(1).await), second, "and then it stays");
}

#[tokio::test]
async fn a_program_that_always_dies_is_started_again_ever_more_slowly() {
    let script = "open('starts', 'a').write('x')\nnext(batches())\nos._exit(1)";
    let child = Python::start("", script).await;
    let start = Instant::now();
    for _ in 0..4 {
        assert_eq!(failure(&child.ask_one(1).await), ("crashed", true));
    }
    // Half of 100, 200 and 400 ms, by the least jitter.
    assert!(start.elapsed() >= Duration::from_millis(350), "{:?}", start.elapsed());
    assert!(std::fs::read(child.folder.path().join("starts")).unwrap().len() <= 5);
}

#[tokio::test]
async fn a_dropped_call_leaves_no_process_behind_whatever_it_ignores() {
    let script = format!(
        "{WORKING}{}",
        r#"
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for batch in batches():
    if batch[0]["input"] == "hang":
        grandchild = subprocess.Popen(["sleep", "1000"])
        working(grandchild.pid)
        while True:
            time.sleep(1000)
    answer(batch[0], os.getpid())
"#
    );
    let child = Python::start(BATCHES, &script).await;
    let pids = child.ask_and_drop(vec![job("\"hang\""), job(2)]).await;
    assert_eq!(pids.as_array().unwrap().len(), 2);
    all_gone(&pids).await;
    // The slot is free again, with another child.
    assert_ne!(output(&child.ask_one(1).await), pids[0]);
}

#[tokio::test]
async fn a_child_that_stops_when_told_to_is_kept() {
    let script = format!(
        "{WORKING}{}",
        r#"
open_tasks = []
for batch in batches():
    for task in batch:
        if "cancel" in task:
            open("cancelled", "a").write(task["cancel"] + "\n")
            open_tasks.remove(task["cancel"])
            say({"id": task["cancel"], "error": {"code": "cancelled", "message": "", "retryable": False}})
        elif task["input"] == "pid":
            answer(task, [os.getpid(), len(open_tasks)])
        elif task["input"] == "now":
            answer(task, None)
        else:
            open_tasks.append(task["id"])
    if len(open_tasks) == 2:
        working()
"#
    );
    let child = Python::start(BATCHES, &script).await;
    let batch: Vec<Job> = ["1", "\"now\"", "2"].map(job).to_vec();
    let ids: Vec<String> = batch.iter().map(|job| job.id.0.to_string()).collect();
    let pids = child.ask_and_drop(batch).await;
    let answer = child.ask_one("\"pid\"").await;
    assert_eq!(output(&answer), json!([pids[0], 0]), "the same child, with nothing left to do");
    // Only what it had not answered was cancelled.
    let cancelled = std::fs::read_to_string(child.folder.path().join("cancelled")).unwrap();
    assert_eq!(cancelled.lines().collect::<Vec<_>>(), [&ids[0], &ids[2]]);
}

#[tokio::test]
async fn a_call_that_is_dropped_in_the_queue_never_reaches_a_child() {
    let script = format!(
        "{WORKING}{}",
        r#"
for task in tasks():
    if "cancel" in task:
        answer({"id": task["cancel"]}, None)
    elif task["input"] == "seen":
        answer(task, seen)
    else:
        working()
        seen = task["input"]
"#
    );
    let child = Python::start("", &script).await;
    let mut running = Box::pin(child.handler.execute(vec![job(1)]));
    assert!(poll!(&mut running).is_pending());
    let mut queued = Box::pin(child.handler.execute(vec![job(2)]));
    assert!(poll!(&mut queued).is_pending());
    let sign = child.folder.path().join("working");
    eventually("the first is worked on", || sign.exists()).await;
    drop(queued);
    drop(running);
    assert_eq!(output(&child.ask_one("\"seen\"").await), json!(1));
}

#[tokio::test]
async fn a_process_that_leaves_the_group_does_not_hold_the_slot() {
    let script = r#"
for task in tasks():
    if task["input"] == "escape":
        escaped = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        with open("escaped", "w") as file:
            file.write(str(escaped.pid))
        os._exit(1)
    answer(task, "well")
"#;
    let child = Python::start("", script).await;
    let answer = child.ask_one("\"escape\"").await;
    assert_eq!(failure(&answer), ("crashed", true));
    assert_eq!(output(&child.ask_one(1).await), json!("well"));
    let escaped = std::fs::read_to_string(child.folder.path().join("escaped")).unwrap();
    kill(Pid::from_raw(escaped.parse().unwrap()), Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn closing_ends_idle_children_politely_and_working_ones_soon() {
    let script = format!(
        "{WORKING}{}",
        r#"
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for task in tasks():
    if task["input"] == "hang":
        working()
        time.sleep(1000)
    answer(task, os.getpid())
open("bye", "w").close()
"#
    );
    let idle = Python::start("", &script).await;
    let pid = output(&idle.ask_one(1).await);
    in_time("the close", idle.handler.close()).await;
    assert!(!runs(&pid));
    assert!(idle.folder.path().join("bye").exists(), "it came to its own end");
    assert_eq!(failure(&idle.ask_one(1).await), ("unavailable", true));

    let busy = Python::start("", &script).await;
    let handler = Arc::clone(&busy.handler);
    let call = tokio::spawn(async move { handler.execute(vec![job("\"hang\"")]).await });
    let sign = busy.folder.path().join("working");
    eventually("it works", || sign.exists()).await;
    in_time("the close", busy.handler.close()).await;
    let answers = in_time("the answer", call).await.unwrap();
    assert_eq!(failure(&answers[0]), ("unavailable", true));
    let pids: Value = serde_json::from_slice(&std::fs::read(sign).unwrap()).unwrap();
    assert!(!runs(&pids[0]));
}

#[tokio::test]
async fn children_end_with_a_handler_that_is_dropped() {
    let child = Python::start("", "for task in tasks():\n    answer(task, os.getpid())").await;
    let pid = output(&child.ask_one(1).await);
    drop(child.handler);
    eventually("it is gone", || !runs(&pid)).await;
}

#[test]
fn children_end_with_the_runtime() {
    let script = format!("{WORKING}\nworking(subprocess.Popen(['sleep', '1000']).pid)\ntime.sleep(1000)");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (child, pids) = runtime.block_on(async {
        let child = Python::start("", &script).await;
        let sign = child.folder.path().join("working");
        eventually("it works", || sign.exists()).await;
        let pids: Value = serde_json::from_slice(&std::fs::read(sign).unwrap()).unwrap();
        (child, pids)
    });
    drop(runtime);
    tokio::runtime::Runtime::new().unwrap().block_on(all_gone(&pids));
    drop(child);
}
