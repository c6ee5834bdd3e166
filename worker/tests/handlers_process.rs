//! The handler `process` with real children: what they are asked, what they answer, and what else they may do.

mod handlers_kit;

use std::collections::BTreeSet;

use futures_util::future::join;
use handlers_kit::python::{BATCHES, PRELUDE, Python, WORKING, runs};
use handlers_kit::{eventually, failure, in_time, job, load_error, message, models_in, output, root};
use nix::unistd::Pid;
use serde_json::{Value, json};
use taskyard_shared::artifacts::{ArtifactId, Artifacts};
use taskyard_worker::Handler;
use taskyard_worker::handlers::{ModelCache, build};

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
    assert!(child.ask(Vec::new()).await.is_empty());
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

#[tokio::test]
async fn a_child_is_held_to_its_limits() {
    let script = r#"
import resource

def tried(what):
    try:
        what()
        return "done"
    except BaseException as failure:
        return type(failure).__name__

def many_files():
    files = [open("/dev/null") for _ in range(100)]

def large_file():
    with open("large", "wb") as file:
        for _ in range(3):
            file.write(b"x" * (1 << 20))
            file.flush()

names = ["RLIMIT_CORE", "RLIMIT_AS", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_CPU"]
for task in tasks():
    if task["input"] == "spin":
        while True:
            pass
    limits = {name: list(resource.getrlimit(getattr(resource, name))) for name in names}
    inner = subprocess.run(["sh", "-c", "ulimit -n"], capture_output=True, text=True).stdout.strip()
    answer(task, {
        "limits": limits,
        "inner": inner,
        "memory": tried(lambda: bytearray(1 << 30)),
        "files": tried(many_files),
        "file": tried(large_file),
    })
"#;
    let limits = "limits = { memory_mb = 512, open_files = 40, processes = 5000, file_mb = 2, cpu_s = 2 }";
    let child = Python::start_with("", limits, script).await;
    let got = output(&child.ask_one(1).await);
    let most = |name: &str| got["limits"][name].clone();
    assert_eq!(most("RLIMIT_CORE"), json!([0, 0]));
    assert_eq!(most("RLIMIT_AS"), json!([512 << 20, 512 << 20]));
    assert_eq!(most("RLIMIT_NOFILE"), json!([40, 40]));
    assert_eq!(most("RLIMIT_NPROC"), json!([5000, 5000]));
    assert_eq!(most("RLIMIT_FSIZE"), json!([2 << 20, 2 << 20]));
    assert_eq!(got["inner"], "40", "what it starts is held to them, too");
    assert_eq!(
        (&got["memory"], &got["files"], &got["file"]),
        (&json!("MemoryError"), &json!("OSError"), &json!("OSError"))
    );
    // The kernel ends it, and another serves the next.
    assert_eq!(failure(&child.ask_one("\"spin\"").await), ("crashed", true));
    assert_eq!(output(&child.ask_one(1).await)["memory"], "MemoryError");
}

#[tokio::test]
async fn a_child_has_no_limits_of_its_own_and_no_dumps_unless_they_are_set() {
    let script = r#"
import resource
for task in tasks():
    answer(task, [list(resource.getrlimit(of)) for of in (resource.RLIMIT_CORE, resource.RLIMIT_AS)])
"#;
    let child = Python::start("", script).await;
    assert_eq!(output(&child.ask_one(1).await), json!([[0, 0], [-1, -1]]));
}

#[tokio::test]
async fn a_child_gets_the_variables_that_are_named_and_no_others() {
    let script = "for task in tasks():\n    answer(task, sorted(os.environ))";
    // Cargo sets some for this program; none of them reaches the child unasked.
    assert!(std::env::var_os("CARGO_PKG_NAME").is_some() && std::env::var_os("CARGO_PKG_VERSION").is_some());
    let child =
        Python::start_with("", "inherit = [\"CARGO_PKG_NAME\", \"NOT_THERE\"]\nenvironment = { OWN = \"1\" }", script)
            .await;
    let got = output(&child.ask_one(1).await);
    let names: Vec<&str> = got.as_array().unwrap().iter().filter_map(|name| name.as_str()).collect();
    assert!(names.contains(&"CARGO_PKG_NAME") && names.contains(&"OWN") && names.contains(&"PATH"), "{names:?}");
    // Whatever Python, or what starts it, adds by itself, none is of this program's.
    assert!(names.iter().all(|name| *name == "CARGO_PKG_NAME" || !name.starts_with("CARGO")), "{names:?}");
}

#[tokio::test]
async fn a_child_that_was_given_enough_is_replaced_between_calls() {
    let script = "for batch in batches():\n    [answer(task, os.getpid()) for task in batch]";
    let child = Python::start_with("max_batch = 4", "recycle_after_tasks = 3", script).await;
    let mut pids = Vec::new();
    for tasks in [1, 1, 4, 1, 2, 1] {
        let answers = child.ask((0..tasks).map(job).collect()).await;
        let pid = output(&answers[0]);
        assert!(answers.iter().all(|answer| output(answer) == pid), "a call is not cut");
        pids.push(pid);
    }
    assert_eq!((&pids[0], &pids[1]), (&pids[2], &pids[1]), "two tasks, and a call that goes beyond three");
    assert_eq!(pids[3], pids[4], "three");
    assert_eq!(pids.iter().map(Value::to_string).collect::<BTreeSet<_>>().len(), 3);
}

#[tokio::test]
async fn a_child_that_has_grown_is_replaced_between_calls() {
    let script = r#"
kept = []
for task in tasks():
    kept.append(b"x" * (task["input"] << 20))
    answer(task, os.getpid())
"#;
    let child = Python::start_with("", "recycle_above_mb = 96", script).await;
    let mut pids = Vec::new();
    for megabytes in [1, 1, 128, 1] {
        pids.push(output(&child.ask_one(megabytes).await));
    }
    assert_eq!((&pids[0], &pids[1]), (&pids[1], &pids[2]));
    assert_ne!(pids[2], pids[3]);
}

/// A script whose model is served by the helper for Python.
async fn helped(model: &str, script: &str) -> Python {
    let helper = root().join("clients/python");
    let environment = format!("environment = {{ PYTHONPATH = {helper:?}, PYTHONDONTWRITEBYTECODE = \"1\" }}");
    Python::start_with(
        model,
        &environment,
        &format!("from taskyard_model import model, TaskError\n{script}\nserved.serve()"),
    )
    .await
}

#[tokio::test]
async fn a_python_function_is_a_model_with_the_helper() {
    let script = r#"
@model
def served(input, task):
    print("noise on stdout")
    task.progress(0.5, "half")
    if input == "bad":
        raise TaskError("out_of_memory", "no room", retryable=True)
    return [task.attempt, input]
"#;
    let child = helped("", script).await;
    assert_eq!(output(&child.ask_one("\"one\"").await), json!([1, "one"]));
    assert_eq!(failure(&child.ask_one("\"bad\"").await), ("out_of_memory", true));
    assert_eq!(child.handler.protocol_errors(), 0);

    let script = "@model(batch=True)\ndef served(inputs): return [len(inputs)] * len(inputs)";
    let child = helped(BATCHES, script).await;
    let answers = child.ask((0..5).map(job).collect()).await;
    assert_eq!(answers.iter().map(output).collect::<Vec<_>>(), [5, 5, 5, 5, 5].map(|n| json!(n)));
}

/// Starts a child that works on files, and gives the place of its artifacts.
async fn on_files(model: &str, script: &str) -> (tempfile::TempDir, std::sync::Arc<dyn Handler>, Artifacts) {
    let (folder, artifacts) = (tempfile::tempdir().unwrap(), Artifacts::in_memory());
    std::fs::write(folder.path().join("child.py"), format!("{PRELUDE}\n{script}")).unwrap();
    let toml = format!(
        "[models.child]\nhandler = \"process\"\n{model}\n\
         [models.child.process]\ncommand = [\"python3\", \"child.py\"]\nfiles = true"
    );
    let cache = ModelCache::with_artifacts(Some(artifacts.clone()));
    let handler = build("child", &handlers_kit::models(&toml)["child"], folder.path(), &cache).await.unwrap();
    (folder, handler, artifacts)
}

#[tokio::test]
async fn artifacts_are_files_to_the_child_and_its_files_become_artifacts() {
    let script = r#"
for batch in batches():
    for task in batch:
        model, rows = task["input"]["model.onnx"]["$file"], task["input"]["rows"][1]["$file"]
        assert model.endswith(".onnx") and os.path.dirname(model) == task["folder"]
        with open(os.path.join(task["folder"], "small"), "wb") as out:
            out.write(open(model, "rb").read()[:2] + open(rows, "rb").read())
        answer(task, {"files": {"small": {"$file": "small"}}, "same": {"$file": rows}, "folder": task["folder"]})
"#;
    let (_folder, handler, artifacts) = on_files(BATCHES, script).await;
    let model = artifacts.put(vec![0xff, 0, 1, 2].into()).await.unwrap();
    let rows = artifacts.put("rows".into()).await.unwrap();
    let whole = json!({"model.onnx": {"$ref": model}, "rows": [1, {"$ref": rows}], "other": {"$ref": "https://a/b"}});
    let missing = json!({"model.onnx": {"$ref": ArtifactId::of(b"never put")}, "rows": [1, {"$ref": rows}]});
    let answers = in_time("the answers", handler.execute([&whole, &missing, &whole].map(job).to_vec())).await;
    let small = artifacts.put(b"\xff\0rows".to_vec().into()).await.unwrap();
    for at in [0, 2] {
        let answer = output(&answers[at]);
        assert_eq!((&answer["files"], &answer["same"]), (&json!({"small": {"$ref": small}}), &json!({"$ref": rows})));
        assert!(!std::path::Path::new(answer["folder"].as_str().unwrap()).exists());
    }
    assert_ne!(output(&answers[0])["folder"], output(&answers[2])["folder"]);
    assert_eq!(failure(&answers[1]), ("bad_input", false));
    handler.close().await;
}

#[tokio::test]
async fn a_child_leaves_no_file_from_outside_its_folder() {
    let script = r#"
for task in tasks():
    os.symlink("/etc/hostname", os.path.join(task["folder"], "link"))
    os.mkdir(os.path.join(task["folder"], "inner"))
    answer(task, {"$file": task["input"]})
"#;
    let (_folder, handler, _artifacts) = on_files("", script).await;
    for name in ["/etc/hostname", "../child.py", "link", "inner", "none", ""] {
        let answers = in_time("an answer", handler.execute(vec![job(json!(name))])).await;
        assert_eq!(failure(&answers[0]), ("bad_answer", false), "{name}");
    }
    handler.close().await;
    let toml = "[models.child]\nhandler = \"process\"\n[models.child.process]\ncommand = [\"true\"]\nfiles = true";
    assert!(load_error(toml, std::path::Path::new(".")).await.contains("artifacts.url"));
}
