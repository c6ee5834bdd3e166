//! The binary as a user types it: what cannot be done ends with one sentence on stderr and the exit code that
//! docs/reference.md gives it.

mod harness;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::{eventually, root, servers};

/// Broker and store that nothing listens for.
const NOBODY: [(&str, &str); 2] = [
    ("TASKYARD__BROKER__URL", "amqp://operator:s3cret-word@127.0.0.1:1/%2f"),
    ("TASKYARD__STORE__URL", "redis://:s3cret-word@127.0.0.1:1/0"),
];
const ROLES: [&str; 3] = ["gateway", "scheduler", "worker"];

/// What a command came to.
struct Ran {
    what: String,
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    /// It ended with this exit code and one sentence, which holds all of these words.
    #[track_caller]
    fn refuses(&self, code: i32, words: &[&str]) {
        let Self { what, out, err, .. } = self;
        assert_eq!(self.code, Some(code), "{what}: {out}{err}");
        assert!(out.is_empty(), "{what}: data is for stdout, words are for stderr: {out}");
        assert_eq!(err.lines().count(), 1, "{what}: one line: {err}");
        assert!(err.starts_with("taskyard: "), "{what}: {err}");
        for word in words {
            assert!(err.contains(word), "{what}: {word:?} is not in: {err}");
        }
        assert!(!err.contains("s3cret-word"), "{what}: a password is shown: {err}");
    }
}

/// A command with the settings of these variables and no others.
fn command(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    let ours = |name: &OsString| name.to_string_lossy().starts_with("TASKYARD_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command.args(arguments).env("TASKYARD__LOG__LEVEL", "error,lapin=off").envs(environment.iter().copied());
    command.current_dir(root()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn taskyard(arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
    run(command(Path::new(env!("CARGO_BIN_EXE_taskyard")), arguments, environment))
}

/// Runs to the end, which must come: a command that serves instead of refusing is killed.
fn run(mut command: Command) -> Ran {
    let what = format!("{command:?}");
    let mut child = command.spawn().unwrap();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).unwrap();
        text
    });
    let begun = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if begun.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    };
    let mut err = String::new();
    stderr.read_to_string(&mut err).unwrap();
    Ran { what, code, out: read.join().unwrap(), err }
}

fn written(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn schema_export_prints_the_schema_of_every_message() {
    let ran = taskyard(&["schema", "export"], &[]);
    assert_eq!(ran.code, Some(0));
    let schemas: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(schemas["task"]["properties"]["deadline_ms"]["minimum"], 0);
    assert!(schemas["result"]["required"].as_array().unwrap().contains(&"state".into()));
}

#[test]
fn a_reader_that_stops_reading_is_no_error() {
    for arguments in [["schema", "export"], ["config", "show"]] {
        let mut child = command(Path::new(env!("CARGO_BIN_EXE_taskyard")), &arguments, &[]).spawn().unwrap();
        drop(child.stdout.take());
        let status = eventually("the command to end", || child.try_wait().unwrap());
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!((status.code(), err.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

/// Every command, with what it cannot be given. Nothing listens at the API that these would ask: whatever gets so far is seen by
/// its exit code, 3.
#[test]
fn a_wrong_command_is_a_usage_error_on_stderr() {
    const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
    let long = "x".repeat(10_000);
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["dance"], "dance"),
        (&["--nonsense"], "--nonsense"),
        (&["\u{1b}[2J"], "unrecognized"),
        (&[&long], "unrecognized"),
        (&["demo", "--policy", "best"], "best"),
        (&["dev", "--data"], "--data"),
        (&["gateway", "now"], "now"),
        (&["scheduler", "--policy", "fifo"], "--policy"),
        (&["worker", "--modles", "a"], "--modles"),
        (&["config"], "Usage"),
        (&["config", "mend"], "mend"),
        (&["config", "show", "-o", "xml"], "xml"),
        (&["schema"], "Usage"),
        (&["keys"], "Usage"),
        (&["keys", "new"], "--name"),
        (&["doctor", "--heal"], "--heal"),
        (&["task"], "Usage"),
        (&["task", "submit"], "--model"),
        (&["task", "submit", "--model", "m", "--capability", "c"], "cannot be used with"),
        (&["task", "submit", "--model", "m", "--input", "hello"], "--input is not JSON"),
        (&["task", "submit", "--model", "m", "--input", "{\"a\": 1"], "--input is not JSON"),
        (&["task", "submit", "--model", "m", "--input", ""], "there is no input"),
        (&["task", "submit", "--model", "m", "--input", "@/no/such/file"], "/no/such/file cannot be read"),
        (&["task", "submit", "--model", "m", "--input", "@/"], "/ is not JSON"),
        (&["task", "submit", "--model", "m", "--input", "1 2", "--id", ID], "several inputs"),
        (&["task", "submit", "--model", "m", "--input", "1", "--id", "7"], "7"),
        (&["task", "submit", "--model", "m", "--input", "1", "--priority", "10"], "0..=9"),
        (&["task", "submit", "--model", "m", "--input", "1", "--priority", "-1"], "-1 is not in 0..=9"),
        (&["task", "submit", "--model", "m", "--input", "1", "--priority", "high"], "high"),
        (&["task", "submit", "--model", "m", "--input", "1", "--deadline-ms", "1e3"], "1e3"),
        (&["task", "submit", "--model", "m", "--input", "1", "--delay-ms", "-5"], "must be a whole number from 0"),
        (&["task", "submit", "--model", "m", "--input", "1", "--deadline-ms", "-5"], "must be a whole number from 1"),
        (&["task", "submit", "--model", "m", "--input", "1", "--timeout-ms", "-5"], "must be a whole number from 1"),
        (&["task", "submit", "--model", "m", "--input", "1", "--max-attempts", "-5"], "-5 is not in 1..=100"),
        (&["task", "submit", "--model", "m", "--input", "1", "--cost", "nan"], "must be a number"),
        (&["task", "submit", "--model", "m", "--input", "1", "--cost", "inf"], "must be a number"),
        (&["task", "submit", "--model", "m", "--input", "1", "--cost", "-inf"], "-inf"),
        (&["task", "submit", "--model", "m", "--input", "1", "--min-quality", "NaN"], "must be a number"),
        (&["task", "quote", "--model", "m", "--input", "1", "--cost", "nan"], "must be a number"),
        (&["task", "submit", "--model", "m", "--input", "1", "--wait", "-1"], "must be a time such as"),
        (&["task", "submit", "--model", "m", "--input", "1", "--cost", "much"], "much"),
        (&["task", "submit", "--model", "m", "--input", "1", "--max-attempts", "99999999999"], "99999999999"),
        (&["task", "submit", "--model", "m", "--input", "1", "--metadata", "label"], "label"),
        (&["task", "submit", "--model", "m", "--input", "1", "--wait", "soon"], "soon"),
        (
            &["task", "submit", "--model", "m", "--input", "1", "--wait", "99999999999999999999s"],
            "99999999999999999999s",
        ),
        (&["task", "submit", "--model", "m", "--input", "1 2", "--follow"], "--follow is for one task"),
        (&["task", "submit", "--tasks", "/no/such/file"], "/no/such/file cannot be read"),
        (&["task", "quote", "--model", "m", "--input", "1 2"], "one task"),
        (&["task", "get"], "ID"),
        (&["task", "get", "7"], "7"),
        (&["task", "get", "../models"], "../models"),
        (&["task", "get", ID, "--api", "localhost"], "--api"),
        (&["task", "get", ID, "--api", "ftp://127.0.0.1"], "only http and https"),
        (&["task", "get", ID, "--api", ""], "--api"),
        (&["task", "get", ID, "--api-key-file", "/no/such/key"], "/no/such/key cannot be read"),
        (&["task", "get", ID, "--api-key-file", "/dev/null"], "holds no key"),
        (&["task", "wait", ID, "--timeout", "-1s"], "must be a time such as"),
        (&["task", "wait", ID, ID, "--follow"], "--follow is for one task"),
        (&["task", "list", "--state", "asleep"], "asleep"),
        (&["task", "list", "--limit", "0"], "0"),
        (&["task", "list", "--limit", "-1"], "-1 is not in 1.."),
        (&["task", "list", "--limit", "1e9"], "1e9"),
        (&["task", "list", "--metadata", "=x"], "=x"),
        (&["task", "cancel"], "ID"),
        (&["task", "cancel", ID, "--model", "m"], "cannot be used with"),
        (&["task", "retry", "7"], "7"),
        (&["task", "reprioritize", ID], "--priority"),
        (&["task", "reprioritize", ID, "--priority", "11"], "0..=9"),
        (&["task", "reprioritize", ID, "--priority", "-1"], "-1 is not in 0..=9"),
        (&["task", "explain", ID, ID], "unexpected"),
        (&["workflow"], "Usage"),
        (&["workflow", "submit"], "FILE"),
        (&["workflow", "submit", "/no/such/file"], "/no/such/file cannot be read"),
        (&["workflow", "get", "nightly"], "nightly"),
        (&["workflow", "cancel"], "ID"),
        (&["schedule"], "Usage"),
        (&["schedule", "add", "nightly", "--model", "m", "--input", "1"], "--cron"),
        (&["schedule", "add", "nightly", "--cron", "0 * * * *"], "--model"),
        (&["schedule", "add", "nightly", "--cron", "0 * * * *", "--model", "m"], "--input"),
        (&["schedule", "add", "nightly", "--cron", "0 * * * *", "--model", "m", "--input", "1 2"], "one input"),
        (&["schedule", "add", "Night/ly", "--cron", "0 * * * *", "--model", "m", "--input", "1"], "Night/ly"),
        (&["schedule", "add", "n", "--cron", "0 * * * *", "--model", "m", "--input", "1", "--until", "soon"], "soon"),
        (&["schedule", "add", "n", "--cron", "0 * * * *", "--task", "/no/such/file"], "/no/such/file cannot be read"),
        (&["schedule", "add", "n", "--cron", "0 * * * *", "--task", "/dev/null"], "/dev/null"),
        (&["schedule", "show", ".."], ".."),
        (&["schedule", "remove"], "NAME"),
        (&["dead"], "Usage"),
        (&["dead", "list", "--limit", "-1"], "-1 is not in 1.."),
        (&["schedule", "list", "--limit", "-1"], "-1 is not in 1.."),
        (&["workflow", "list", "--limit", "-1"], "-1 is not in 1.."),
        (&["dead", "show", "7"], "7"),
        (&["dead", "replay"], "ID"),
        (&["dead", "discard"], "ID"),
        (&["models", "drop"], "drop"),
        (&["workers", "shoot"], "shoot"),
        (&["queues", "pause"], "MODEL"),
        (&["queues", "-o", "csv"], "csv"),
        (&["simulate"], "SCENARIO"),
        (&["simulate", "--policy", "best", "scenario.toml"], "cmu, fair, fifo, strict, edf, wspt"),
        (&["simulate", "--seeds", "-1", "scenario.toml"], "-1 is not in 0.."),
        (&["simulate", "--load", "much", "scenario.toml"], "much"),
        (&["bench", "--tasks", "many"], "many"),
        (&["bench", "--tasks", "-1"], "must be a whole number from 1 to 100000000"),
        (&["bench", "--workers", "-1", "--own"], "-1 is not in 1..=64"),
        (&["bench", "--rate", "-1"], "must be a number above 0"),
        (&["bench", "--rate", "inf"], "must be a number above 0"),
        (&["health", "x"], "URL must be one such as http://"),
        (&["health", "ftp://127.0.0.1"], "URL must be one such as http://"),
    ];
    let mut wrong = Vec::new();
    for (arguments, words) in cases {
        let ran = taskyard(arguments, &[("TASKYARD_API", "http://127.0.0.1:1")]);
        // Data is for stdout, words are for stderr.
        let is_right = ran.code == Some(2) && ran.out.is_empty() && ran.err.contains(words);
        if !is_right || ran.err.contains("panicked") || ran.err.contains('\u{1b}') {
            wrong.push(format!("{arguments:?}, not {words:?}: {:?} {}{}", ran.code, ran.out, ran.err));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bad_settings_name_the_key_and_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, &str, &[&str]); 7] = [
        ("broken.toml", "[broker]\nurl = \"amqp://host\n", &["broken.toml:2:", "not TOML"]),
        ("section.toml", "[broker\n", &["section.toml:1:", "not TOML"]),
        ("unknown.toml", "[broker]\n\nulr = \"x\"\n", &["unknown.toml:3", "broker.ulr", "did you mean broker.url?"]),
        ("choice.toml", "[scheduler]\npolicy = \"best\"\n", &["choice.toml:2", "scheduler.policy", "cmu", "best"]),
        ("bounds.toml", "[worker]\nlease_ms = 3\n", &["bounds.toml:2", "worker.lease_ms", "200", "3"]),
        ("type.toml", "[broker]\nheartbeat_s = \"ten\"\n", &["type.toml:2", "broker.heartbeat_s", "a whole number"]),
        ("model.toml", "[models.a]\nslots = 2\n", &["model.toml:1", "models.a.handler", "must be given"]),
    ];
    for (name, text, words) in cases {
        let path = written(&folder, name, text);
        let path = path.to_str().unwrap();
        for arguments in
            [&["gateway"][..], &["scheduler"], &["worker"], &["dev"], &["config", "check"], &["config", "show"]]
        {
            taskyard(&[arguments, &["--config", path]].concat(), &NOBODY).refuses(2, words);
        }
        let doctor = taskyard(&["doctor", "--config", path], &NOBODY);
        assert_eq!(doctor.code, Some(2), "{}: {}", doctor.what, doctor.err);
        assert!(words.iter().all(|word| doctor.out.contains(word)), "{}: {}", doctor.what, doctor.out);
    }
    let missing = folder.path().join("missing.toml");
    taskyard(&["dev", "--config", missing.to_str().unwrap()], &[]).refuses(2, &["missing.toml", "No such file"]);
}

#[test]
fn bad_settings_in_the_environment_name_the_variable() {
    let cases: [(&str, &str, &[&str]); 7] = [
        ("TASKYARD__ARTIFACTS__URL", "file:relative", &["artifacts.url", "file:///FOLDER"]),
        (
            "TASKYARD__BROKER__URL",
            "amqp://u:s3cret-word@127.0.0.1:1/y?frame_max=1",
            &["broker.url", "frame_max", "4096"],
        ),
        ("TASKYARD__BROKER__ULR", "x", &["broker.ulr", "broker.url"]),
        ("TASKYARD__GATEWAY__LISTEN", "8080", &["gateway.listen", "127.0.0.1:8080"]),
        ("TASKYARD__WORKER__PREFETCH", "s3cret-word", &["worker.prefetch", "a whole number"]),
        ("TASKYARD__BROKER__URL_FILE", "/no/such/file", &["broker.url", "/no/such/file"]),
        ("TASKYARD__LOG__LEVEL", "loud", &["log.level", "loud"]),
    ];
    for (variable, value, words) in cases {
        taskyard(&["scheduler"], &[(variable, value)]).refuses(2, &[words, &[variable]].concat());
    }
}

#[test]
fn a_broker_that_is_not_there_is_3() {
    let folder = tempfile::tempdir().unwrap();
    let models = written(&folder, "models.toml", "[models.a]\nhandler = \"simulated\"\n[models.a.simulated]\n");
    let models = models.to_str().unwrap();
    for role in ROLES {
        let begun = Instant::now();
        taskyard(&[role, "--config", models], &NOBODY).refuses(3, &["broker", "127.0.0.1:1", "refused"]);
        assert!(begun.elapsed() < Duration::from_secs(20), "{role} says so soon");
    }
    let doctor = taskyard(&["doctor"], &NOBODY);
    assert_eq!(doctor.code, Some(3), "{}", doctor.err);
    assert!(doctor.out.contains("FAIL") && !doctor.out.contains("s3cret-word"), "{}", doctor.out);
}

#[test]
fn a_broker_that_says_nothing_or_something_else_is_3() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqp://operator:s3cret-word@{}", silent.local_addr().unwrap());
    let environment = [NOBODY[1], ("TASKYARD__BROKER__URL", &url), ("TASKYARD__BROKER__CONNECT_TIMEOUT_MS", "300")];
    taskyard(&["scheduler"], &environment).refuses(3, &["broker", "300 ms"]);

    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let url = format!("amqp://operator:s3cret-word@{address}");
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").unwrap();
        // Until the other end has seen it.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    taskyard(&["scheduler"], &[NOBODY[1], ("TASKYARD__BROKER__URL", &url)])
        .refuses(3, &[&address, "does not speak AMQP"]);
    answering.join().unwrap();
}

#[test]
fn a_role_by_itself_needs_servers() {
    for role in ROLES {
        taskyard(&[role], &[]).refuses(2, &["broker.url", "embedded:", role, "taskyard dev"]);
        taskyard(&[role], &NOBODY[..1]).refuses(2, &["store.url", "embedded:", role, "taskyard dev"]);
        let in_folder = [("TASKYARD__BROKER__URL", "embedded:data"), NOBODY[1]];
        taskyard(&[role], &in_folder).refuses(2, &["broker.url", "embedded:"]);
    }
}

#[test]
fn a_model_that_cannot_be_loaded_is_named_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = root().join("models");
    let shipped = shipped.to_str().unwrap();
    let onnx = |file: &str, sha256: &str| {
        format!(
            "[models.faces]\nhandler = \"onnx\"\n[models.faces.onnx]\ntask = \"file-type\"\nfile = {file:?}\n\
             config = \"{shipped}/magika/config.min.json\"\n{sha256}"
        )
    };
    written(&folder, "text.onnx", "this is no model");
    let wrong_sum = format!("sha256 = \"{}\"\n", "0".repeat(64));
    let cases: [(&str, String, &[&str]); 6] = [
        ("missing.toml", onnx("nowhere/faces.onnx", ""), &["model faces", "nowhere/faces.onnx", "no such file"]),
        ("text.toml", onnx("text.onnx", ""), &["model faces", "text.onnx"]),
        ("sum.toml", onnx(&format!("{shipped}/magika/model.onnx"), &wrong_sum), &["model faces", "sha256"]),
        (
            "program.toml",
            "[models.talk]\nhandler = \"process\"\n[models.talk.process]\ncommand = [\"no-such-program\"]\n".to_owned(),
            &["model talk", "no-such-program"],
        ),
        (
            "ends.toml",
            "[models.talk]\nhandler = \"process\"\n[models.talk.process]\ncommand = [\"false\"]\n".to_owned(),
            &["model talk", "false", "ended at once"],
        ),
        ("none.toml", "[log]\nformat = \"text\"\n".to_owned(), &["[models.NAME]", "--config"]),
    ];
    for (name, text, words) in cases {
        let path = written(&folder, name, &text);
        let environment = [("TASKYARD__GATEWAY__LISTEN", "127.0.0.1:0")];
        taskyard(&["dev", "--config", path.to_str().unwrap()], &environment).refuses(2, words);
    }
}

#[test]
fn a_port_that_is_taken_is_named_with_its_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    taskyard(&["dev"], &[("TASKYARD__GATEWAY__LISTEN", &address)])
        .refuses(2, &[&address, "another process listens there", "gateway.listen"]);

    let Some(servers) = servers("a port that is taken") else { return };
    let broker = format!("{}/%2f", servers.amqp);
    let environment = [
        ("TASKYARD__BROKER__URL", broker.as_str()),
        ("TASKYARD__STORE__URL", &servers.redis),
        ("TASKYARD__ADMIN__LISTEN", &address),
        ("TASKYARD__GATEWAY__LISTEN", &address),
    ];
    let models = root().join("models/models.toml");
    for (role, setting) in [("scheduler", "admin.listen"), ("gateway", "gateway.listen"), ("worker", "admin.listen")] {
        let words = [address.as_str(), "another process listens there", setting];
        taskyard(&[role, "--config", models.to_str().unwrap()], &environment).refuses(2, &words);
    }
}

#[test]
fn a_gateway_that_others_can_reach_wants_keys() {
    let everywhere = [("TASKYARD__GATEWAY__LISTEN", "0.0.0.0:0")];
    taskyard(&["dev"], &everywhere)
        .refuses(2, &["gateway.listen", "0.0.0.0:0", "taskyard keys new", "gateway.anonymous"]);
}

#[test]
fn a_key_is_made_and_its_lines_are_settings() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let new = ["keys", "new", "--name", "ci.2026", "--tenant", "blue", "--scopes", "submit,read"];
    let to_file = ["--key-file", file.to_str().unwrap(), "--expires", "2030-01-01T00:00:00Z"];

    let printed = taskyard(&new, &[]);
    assert_eq!(printed.code, Some(0), "{}", printed.err);
    let (key, lines) = printed.out.split_once("\n\n").unwrap();
    assert!(key.starts_with("tyk_") && !lines.contains(key) && !printed.err.contains(key));
    let path = written(&folder, "printed.toml", lines);
    assert_eq!(taskyard(&["config", "check", "--config", path.to_str().unwrap()], &[]).code, Some(0));

    let kept = taskyard(&[&new[..], &to_file].concat(), &[]);
    let key = std::fs::read_to_string(&file).unwrap();
    assert!(key.starts_with("tyk_") && key.ends_with('\n') && !kept.out.contains(key.trim()), "{}", kept.out);
    assert!(kept.out.contains("expires = "));
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions()) & 0o777, 0o600);
    let path = written(&folder, "kept.toml", &kept.out);
    assert_eq!(taskyard(&["config", "check", "--config", path.to_str().unwrap()], &[]).code, Some(0));
    // A key that is there is not written over.
    taskyard(&[&new[..], &to_file].concat(), &[]).refuses(2, &["key"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), key);

    let json: serde_json::Value =
        serde_json::from_str(&taskyard(&[&new[..], &["-o", "json"]].concat(), &[]).out).unwrap();
    assert_eq!((&json["tenant"], &json["scopes"]), (&"blue".into(), &serde_json::json!(["submit", "read"])));
    for (arguments, words) in [
        (["--name", "CI", "--tenant", "blue", "--scopes", "read"], "not a key's name"),
        (["--name", "ci", "--tenant", "", "--scopes", "read"], "tenant"),
        (["--name", "ci", "--tenant", "blue", "--scopes", "admin"], "admin"),
        (["--name", "ci", "--tenant", "*", "--scopes", "everything"], "submit, read, control, admin"),
    ] {
        taskyard(&[&["keys", "new"][..], &arguments].concat(), &[]).refuses(2, &[words]);
    }
}

#[test]
fn a_key_that_nobody_was_told_how_to_let_in_is_not_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let new = ["keys", "new", "--name", "ci", "--tenant", "blue", "--scopes", "read", "--key-file"];
    let mut command = command(Path::new(env!("CARGO_BIN_EXE_taskyard")), &new, &[]);
    // Full, and not waited for: what is written to it fails, as on a disk that is full.
    let (mut full, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    full.set_nonblocking(true).unwrap();
    while full.write(&[0; 4096]).is_ok() {}
    command.arg(&file).stdout(Stdio::from(std::os::fd::OwnedFd::from(full)));
    let output = command.output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("standard output cannot be written"), "{err}");
    assert!(!file.exists(), "the key is left: {err}");
}

#[test]
fn variables_that_are_no_text_are_refused() {
    use std::os::unix::ffi::OsStringExt;
    for name in ["TASKYARD_API", "TASKYARD_API_KEY", "TASKYARD_API_KEY_FILE"] {
        let mut command = command(Path::new(env!("CARGO_BIN_EXE_taskyard")), &["models"], &[]);
        if name != "TASKYARD_API" {
            command.env("TASKYARD_API", "http://127.0.0.1:1");
        }
        command.env(name, OsString::from_vec(b"http://127.0.0.1:1/\xff".to_vec()));
        run(command).refuses(2, &[name, "not UTF-8"]);
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_named_and_not_a_setting_that_nobody_set() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(&folder, "file", "");
    let data = file.join("data");
    let ran = taskyard(&["dev", "--data", data.to_str().unwrap()], &[("TASKYARD__GATEWAY__LISTEN", "127.0.0.1:0")]);
    ran.refuses(2, &["--data", data.to_str().unwrap(), "Not a directory"]);
    assert!(!ran.err.contains("artifacts.url"), "{}", ran.err);
}

#[test]
fn what_the_servers_refuse_is_2_and_an_unknown_model_too() {
    let Some(servers) = servers("refusals of servers") else { return };
    let (_, host) = servers.amqp.rsplit_once('@').unwrap();
    let stranger = format!("amqp://stranger:s3cret-word@{host}/%2f");
    let nowhere = format!("{}/no-such-virtual-host", servers.amqp);
    let there = format!("{}/%2f", servers.amqp);
    let with = |broker: &str, arguments: &[&str]| {
        taskyard(arguments, &[("TASKYARD__BROKER__URL", broker), ("TASKYARD__STORE__URL", &servers.redis)])
    };
    with(&stranger, &["scheduler"]).refuses(2, &["stranger", "may not log in", host]);
    with(&nowhere, &["scheduler"]).refuses(2, &["no-such-virtual-host", host]);
    let models = root().join("models/models.toml");
    let arguments = ["worker", "--models", "pause,paws", "--config", models.to_str().unwrap()];
    with(&there, &arguments)
        .refuses(2, &["no model paws", "file-type, intents, learn-text, pause, search, sentiment, tables"]);
    with(&there, &["worker"]).refuses(2, &["[models.NAME]", "--config"]);
}

/// The program looks for the project's folders around itself too, so it is tried from elsewhere.
#[test]
fn outside_the_projects_folder_there_is_nothing_to_demonstrate() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("taskyard");
    // Copied by another process: while this one has it open for writing, no thread of it can run it.
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_taskyard")).arg(&program).status().unwrap().success());
    for role in ["demo", "dev"] {
        let mut command = command(&program, &[role], &[]);
        command.current_dir(folder.path());
        run(command).refuses(4, &["models", "demo", "project's folder"]);
    }
}
