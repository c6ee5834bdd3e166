//! The handler `process` with real children: those that do as they should, and those that crash, hang, lie and flood.

mod handlers_kit;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join;
use futures_util::poll;
use handlers_kit::{eventually, failure, in_time, job, load_error, message, models, models_in, output, root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use taskyard_worker::handlers::process::ProcessHandler;
use taskyard_worker::handlers::{ModelCache, build};
use taskyard_worker::{Answer, Handler, Job};
use tempfile::TempDir;

/// What every child here begins with.
const PRELUDE: &str = r#"
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

const BATCHES: &str = "max_batch = 8";

/// A child in Python, in a folder of its own.
struct Python {
    folder: TempDir,
    handler: Arc<ProcessHandler>,
}

impl Python {
    async fn start(model: &str, script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("child.py"), format!("{PRELUDE}\n{script}")).unwrap();
        let settings = &models(&format!(
            "[models.child]\nhandler = \"process\"\n{model}\n\
             [models.child.process]\ncommand = [\"python3\", \"child.py\"]"
        ))["child"];
        let process = settings.process.as_ref().unwrap();
        let handler = ProcessHandler::start("child", process, settings.slots, settings.max_batch, folder.path());
        Self { handler: Arc::new(in_time("the start", handler).await.unwrap()), folder }
    }

    async fn ask(&self, batch: Vec<Job>) -> Vec<Answer> {
        in_time("the answers", self.handler.execute(batch)).await
    }

    async fn ask_one(&self, input: impl ToString) -> Answer {
        self.ask(vec![job(input)]).await.pop().unwrap()
    }

    /// Asks for something that is not answered, and gives up once the child has written `working` in its folder.
    /// Gives what the child wrote there.
    async fn ask_and_drop(&self, batch: Vec<Job>) -> Value {
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
const WORKING: &str = r#"
def working(*pids):
    with open("working.new", "w") as sign:
        json.dump([os.getpid(), *pids], sign)
    os.rename("working.new", "working")
"#;

/// Whether a process runs; one that only waits to be buried does not.
fn runs(pid: &Value) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_i64().unwrap())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

async fn all_gone(pids: &Value) {
    for pid in pids.as_array().unwrap() {
        eventually(&format!("{pid} is gone"), || !runs(pid)).await;
    }
}

#[tokio::test]
async fn the_example_shouts_in_batches_and_alone() {
    let folder = root().join("examples");
    let settings = &models_in(&folder.join("models.toml"))["shout"];
    let handler = build("shout", settings, &folder, &ModelCache::default()).await.unwrap();
    let batch = [r#"{"text": "one"}"#, "{\n \"text\":\r\n \"zwölf\"}", "[]", r#"{"text": 7}"#, r#"{"text": "a\nb"}"#];
    let answers = in_time("the answers", handler.execute(batch.map(job).to_vec())).await;
    assert_eq!(output(&answers[0]), json!({"text": "ONE"}));
    assert_eq!(output(&answers[1]), json!({"text": "ZWÖLF"}));
    assert_eq!(failure(&answers[2]), ("bad_input", false));
    assert_eq!(failure(&answers[3]), ("bad_input", false));
    assert_eq!(output(&answers[4]), json!({"text": "A\nB"}));
    let answers = handler.execute(vec![job(r#"{"text": "alone"}"#)]).await;
    assert_eq!(output(&answers[0]), json!({"text": "ALONE"}));
    handler.close().await;
}

#[tokio::test]
async fn answers_come_in_any_order_among_progress_and_noise() {
    let script = r#"
for batch in batches():
    print("loading: 40%")
    for task in batch:
        say({"id": task["id"], "progress": 0.5, "message": "half"})
        say({"id": task["id"], "partial": None})
    say({"id": "00000000-0000-7000-8000-000000000000", "output": "of a stranger"})
    for task in reversed(batch):
        answer(task, [task["attempt"], task["input"]])
        answer(task, "once more")
"#;
    let child = Python::start(BATCHES, script).await;
    let answers = child.ask((0..5).map(job).collect()).await;
    assert_eq!(answers.iter().map(output).collect::<Vec<_>>(), [0, 1, 2, 3, 4].map(|n| json!([1, n])));
    // The last repetition comes after the call.
    eventually("the noise is counted", || child.handler.protocol_errors() == 7).await;
}

#[tokio::test]
async fn a_models_own_error_passes_through() {
    let script = r#"
for task in tasks():
    say({"id": task["id"], "error": {"code": "out_of_memory", "message": "no room", "retryable": True}})
"#;
    let child = Python::start("", script).await;
    let answer = child.ask_one("{}").await;
    assert_eq!((failure(&answer), message(&answer)), (("out_of_memory", true), "no room"));
}

#[tokio::test]
async fn no_shell_reads_the_command_and_nothing_of_a_task_gets_into_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("child.py"),
        format!("{PRELUDE}\nfor task in tasks():\n    answer(task, [sys.argv[1:], task['input']])\n"),
    )
    .unwrap();
    let toml = r#"
        [models.child]
        handler = "process"
        [models.child.process]
        command = ["python3", "child.py", "; touch pwned", "$(touch pwned)", "a\nb", "*"]
    "#;
    let handler = handlers_kit::load(toml, folder.path()).await.unwrap();
    for text in
        ["; touch pwned", "$(touch pwned)", "`touch pwned`", "--output=pwned", "a\n{\"cancel\": 1}\n", "\"'\\\0"]
    {
        let answers = in_time("an answer", handler.execute(vec![job(json!(text))])).await;
        assert_eq!(output(&answers[0]), json!([["; touch pwned", "$(touch pwned)", "a\nb", "*"], text]));
    }
    assert!(!folder.path().join("pwned").exists());
    handler.close().await;
}

#[tokio::test]
async fn a_child_has_its_own_environment_its_own_group_and_three_files() {
    // Not Python, which adds to its environment.
    let script = r#"
while read -r line; do
    id=${line#*:\"}
    echo "{\"id\": \"${id%%\"*}\", \"output\": $$}"
done
"#;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("child.sh"), script).unwrap();
    let toml = r#"
        [models.child]
        handler = "process"
        [models.child.process]
        command = ["/bin/sh", "child.sh"]
        environment = { MODEL_SIZE = "large" }
    "#;
    let handler = handlers_kit::load(toml, folder.path()).await.unwrap();
    let answers = in_time("an answer", handler.execute(vec![job("{}")])).await;
    let pid = output(&answers[0]);
    let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let keys: BTreeSet<&str> = environment.split_terminator('\0').filter_map(|pair| pair.split('=').next()).collect();
    let expected = ["HOME", "LANG", "PATH"].into_iter().filter(|key| std::env::var_os(key).is_some());
    assert_eq!(keys, expected.chain(["MODEL_SIZE"]).collect());
    assert!(environment.contains("MODEL_SIZE=large"));
    let files: BTreeSet<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|file| file.parse::<u32>().unwrap() < 10) // a shell keeps its own ones above
        .collect();
    assert_eq!(files, ["0", "1", "2"].map(str::to_owned).into());
    let group = nix::unistd::getpgid(Some(Pid::from_raw(i32::try_from(pid.as_i64().unwrap()).unwrap()))).unwrap();
    assert_eq!(i64::from(group.as_raw()), pid.as_i64().unwrap());
    handler.close().await;
    assert!(!runs(&pid));
}

#[tokio::test]
async fn a_child_that_dies_in_a_batch_fails_what_it_has_not_answered() {
    let script = r#"
for batch in batches():
    answer(batch[0], os.getpid())
    if len(batch) > 1:
        os._exit(3)
"#;
    let child = Python::start(BATCHES, script).await;
    let answers = child.ask((0..3).map(job).collect()).await;
    let first = output(&answers[0]);
    for answer in &answers[1..] {
        assert_eq!(failure(answer), ("crashed", true));
        assert!(message(answer).contains("exit status: 3"), "{}", message(answer));
    }
    assert!(!runs(&first));
    assert_ne!(output(&child.ask_one(1).await), first);
}

#[tokio::test]
async fn what_a_child_said_before_its_end_counts() {
    let script = r#"
for batch in batches():
    for task in batch:
        sys.stdout.write(json.dumps({"id": task["id"], "output": [os.getpid(), "x" * 100000]}) + "\n")
    sys.stdout.flush()
    os._exit(1)
"#;
    let child = Python::start(BATCHES, script).await;
    for _ in 0..3 {
        let answers = child.ask((0..8).map(job).collect()).await;
        let outputs: Vec<Value> = answers.iter().map(output).collect();
        assert!(outputs.iter().all(|output| output[1].as_str().unwrap().len() == 100_000));
        eventually("it is gone", || !runs(&outputs[0][0])).await;
    }
}

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
async fn a_line_that_is_too_long_fails_its_own_task_only() {
    let script = r#"
for batch in batches():
    for task in batch:
        answer(task, "x" * (9 << 20) if task["input"] == "huge" else os.getpid())
"#;
    let child = Python::start(BATCHES, script).await;
    let answers = child.ask(vec![job(1), job("\"huge\""), job(3)]).await;
    assert_eq!(failure(&answers[1]), ("output_too_large", false));
    assert_eq!(output(&answers[0]), output(&answers[2]));
    assert_eq!(output(&answers[0]), output(&child.ask_one(1).await), "the child is kept");
}

#[tokio::test]
async fn a_huge_line_that_may_be_anybodys_fails_the_batch() {
    let script = r#"
for batch in batches():
    print("{" + " " * (9 << 20), flush=True)
"#;
    let child = Python::start(BATCHES, script).await;
    let answers = child.ask(vec![job(1), job(2)]).await;
    assert_eq!(answers.iter().map(failure).collect::<Vec<_>>(), [("bad_answer", true); 2]);
}

#[tokio::test]
async fn a_child_that_only_makes_noise_is_given_up() {
    let script = r#"
for task in tasks():
    if task["input"] == "noise":
        while True:
            print("noise")
    answer(task, os.getpid())
"#;
    let child = Python::start("", script).await;
    let first = output(&child.ask_one(1).await);
    let answer = child.ask_one("\"noise\"").await;
    assert_eq!(failure(&answer), ("bad_answer", true), "{}", message(&answer));
    assert!(!runs(&first));
    assert_ne!(output(&child.ask_one(1).await), first);
}

#[tokio::test]
async fn noise_without_being_asked_ends_the_child() {
    let script = format!(
        "{WORKING}{}",
        r#"
for task in tasks():
    answer(task, os.getpid())
    working()
    while task["input"] == "then noise":
        print("noise")
"#
    );
    let child = Python::start("", &script).await;
    let first = output(&child.ask_one("\"then noise\"").await);
    eventually("it is gone", || !runs(&first)).await;
    assert_ne!(output(&child.ask_one(1).await), first);
}

#[tokio::test]
async fn stderr_may_be_flooded_and_a_pipe_may_be_read_late() {
    let script = r#"
sys.stderr.write("one line of five megabytes " + "x" * (5 << 20))
for n in range(20000):
    print("line", n, file=sys.stderr)
# A megabyte of noise, while a request of megabytes waits to be read.
for n in range(500):
    print("x" * 2000)
sys.stdout.flush()
for task in tasks():
    answer(task, len(task["input"]))
"#;
    let child = Python::start("", script).await;
    let text = json!("y".repeat(4 << 20));
    assert_eq!(output(&child.ask_one(text).await), json!(4 << 20));
}

#[tokio::test]
async fn a_child_that_reads_no_more_is_replaced() {
    let script = r#"
if os.path.exists("second"):
    for task in tasks():
        answer(task, "second")
os.close(0)
open("second", "w").close()
time.sleep(1000)
"#;
    let child = Python::start("", script).await;
    eventually("it has closed its stdin", || child.folder.path().join("second").exists()).await;
    assert_eq!(failure(&child.ask_one(1).await), ("crashed", true));
    assert_eq!(output(&child.ask_one(1).await), json!("second"));
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
async fn one_child_serves_calls_in_a_row_and_each_slot_has_its_own() {
    let script = r#"
for task in tasks():
    me = os.getpid()
    if task["input"] == "both":
        open("here-%d" % me, "w").close()
        # Answers only once another child is at work at the same time.
        while len([name for name in os.listdir() if name.startswith("here-")]) < 2:
            time.sleep(0.001)
    answer(task, me)
"#;
    let child = Python::start("slots = 3", script).await;
    let mut alone = BTreeSet::new();
    for n in 0..5 {
        alone.insert(output(&child.ask_one(n).await).as_i64().unwrap());
    }
    assert_eq!(alone.len(), 1);
    let (first, second) = join(child.ask_one("\"both\""), child.ask_one("\"both\"")).await;
    assert_ne!(output(&first), output(&second));
    let (handler, pids) = (child.handler, json!([output(&first), output(&second)]));
    in_time("the close", handler.close()).await;
    for pid in pids.as_array().unwrap() {
        assert!(!runs(pid), "close waits for their ends");
    }
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

#[tokio::test]
async fn a_wrong_command_shows_at_once() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("notes.txt"), "no program").unwrap();
    let cases = [
        ("command = []", "process.command is empty"),
        ("command = [\"\"]", "process.command is empty"),
        ("command = [\"no-such-program-here\"]", "no-such-program-here cannot be started"),
        ("command = [\"./notes.txt\"]", "notes.txt cannot be started"),
        ("command = [\"sh\", \"gone.sh\"]", "sh ended at once, exit status: 2"),
        ("command = [\"sh\", \"-c\", \"echo no weights >&2; exit 7\"]", "sh ended at once, exit status: 7: no weights"),
        ("command = [\"sh\", \"-c\", \"kill -9 $$\"]", "signal: 9"),
        ("command = [\"sh\"]\ndirectory = \"gone\"", "gone is not a folder"),
        ("command = [\"sh\"]\nenvironment = { \"A=B\" = \"canary\" }", "\"A=B\" is not a name"),
    ];
    for (process, expected) in cases {
        let toml = format!("[models.child]\nhandler = \"process\"\n[models.child.process]\n{process}");
        let error = load_error(&toml, folder.path()).await;
        assert!(error.starts_with("model child: ") && error.contains(expected), "{error}");
        assert!(!error.contains('\n') && !error.contains("canary"), "{error}");
    }
}
