//! The client commands as a user types them, against a gateway on the embedded broker and store.

#[path = "../producer/tests/yard/mod.rs"]
mod yard;

mod client;

use client::{Ran, run, taskyard, taskyard_reading};
use serde_json::json;
use taskyard_shared::Timestamp;
use taskyard_shared::load::{LoadReport, ModelLoad, ModelSpec};
use taskyard_shared::process::keys::{Keys, NewKey};
use taskyard_shared::process::settings::KeySettings;
use taskyard_shared::store::Store;
use yard::Yard;

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_submitted_and_its_result_printed() {
    let yard = Yard::working().await;
    let gateway = yard.gateway().await;
    let submit = [
        "task",
        "submit",
        "--model",
        "echo",
        "--input",
        r#"{"text": "good"}"#,
        "--priority",
        "7",
        "--tenant",
        "blue",
        "--metadata",
        "run=1",
        "--wait",
        "20s",
        "-o",
        "json",
    ];
    let ran = taskyard(&gateway, &submit).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let task = ran.json();
    assert_eq!(task["state"], "succeeded");
    assert_eq!(task["output"], json!({"text": "good"}));
    assert_eq!(
        (&task["priority"], &task["tenant"], &task["metadata"]["run"]),
        (&json!(7), &json!("blue"), &json!("1"))
    );
    assert!(ran.err.is_empty(), "{}", ran.err);

    let id = task["id"].as_str().unwrap();
    let table = taskyard(&gateway, &["task", "get", id]).await;
    assert_eq!(table.code, 0);
    assert!(table.out.lines().any(|line| line.starts_with("state ") && line.ends_with(" succeeded")), "{}", table.out);
    let waited = taskyard(&gateway, &["task", "wait", id, "--timeout", "5s", "-o", "jsonl"]).await;
    assert_eq!((waited.code, waited.lines()), (0, vec![task]));
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_say_what_happened() {
    let yard = Yard::working().await;
    let gateway = yard.gateway().await;
    let nowhere = "01890a5d-ac96-774b-bcce-b302099a8057";
    let cases: &[(&[&str], i32, &str)] = &[
        (&["task", "submit", "--model", "echo", "--input", r#"{"fail": true}"#, "--wait"], 1, ""),
        (&["task", "submit", "--model", "echo", "--input", r#"{"fail": true}"#], 0, ""),
        (&["task", "submit", "--model", "echo", "--input", "hello"], 2, "not JSON"),
        (&["task", "submit", "--model", "echo", "--input", ""], 2, "no input"),
        (&["task", "submit", "--model", "echo", "--input", "@/no/such/file"], 2, "/no/such/file"),
        (&["task", "submit", "--model", "No Model", "--input", "1"], 2, "model"),
        (&["task", "submit", "--model", "echo", "--input", "1", "--priority", "10"], 2, "priority"),
        (&["task", "submit", "--model", "echo", "--input", "1", "--kind", "party"], 2, "kind"),
        (&["task", "submit", "--model", "echo", "--input", "1 2", "--id", nowhere], 2, "several"),
        (&["task", "submit", "--input", "1"], 2, "--model"),
        (&["task", "submit", "--model", "echo"], 2, "--input"),
        (&["task", "submit", "--model", "echo", "--capability", "echo", "--input", "1"], 2, "cannot be used with"),
        (&["task", "get", nowhere], 4, "not_found"),
        (&["task", "wait", nowhere], 4, "not_found"),
        (&["task", "get", "42"], 2, "42"),
        (&["task", "list", "--state", "done"], 2, "succeeded"),
        (&["task", "list", "--cursor", "forged"], 2, "cursor"),
        (&["task", "wait", nowhere, "--timeout", "soon"], 2, "soon"),
    ];
    for (arguments, code, words) in cases {
        let ran = taskyard(&gateway, arguments).await;
        assert_eq!(ran.code, *code, "{arguments:?}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains(words), "{arguments:?}: {}", ran.err);
        assert!(*code < 2 || ran.out.is_empty(), "{arguments:?}: {}", ran.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_sent_where_one_is_asked_for() {
    let yard = Yard::working().await;
    let (blue, stranger) = (NewKey::generate().unwrap(), NewKey::generate().unwrap());
    let settings = KeySettings {
        sha256: blue.sha256(),
        tenant: "blue".to_owned(),
        scopes: vec!["submit".to_owned(), "read".to_owned()],
        expires: None,
    };
    let keys = Keys::new(&[("blue".to_owned(), settings)].into()).unwrap();
    let gateway = yard.gateway_with_keys(yard::settings(), keys).await;
    gateway.ready().await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (blue, stranger) = (file("blue", &format!("{}\n", blue.text())), file("stranger", stranger.text()));
    let submit = ["task", "submit", "--model", "echo", "--input", "1", "--wait", "20s", "-o", "json"];
    let ran = taskyard(&gateway, &[&submit[..], &["--api-key-file", &blue]].concat()).await;
    assert_eq!((ran.code, ran.json()["tenant"].as_str()), (0, Some("blue")), "{}", ran.err);
    let cases: [(&[&str], &[&str], &str); 5] = [
        (&submit, &[], "--api-key-file"),
        (&submit, &["--api-key-file", &stranger], "unauthorized"),
        (&submit, &["--api-key-file", "/no/such/file"], "/no/such/file"),
        (&submit, &["--api-key-file", &blue, "--tenant", "red"], "forbidden"),
        (&["queues"], &["--api-key-file", &blue], "forbidden"),
    ];
    for (command, arguments, words) in cases {
        let ran = taskyard(&gateway, &[command, arguments].concat()).await;
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(words), "{arguments:?}: {}", ran.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_finished_in_time_is_5() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let ran =
        taskyard(&gateway, &["task", "submit", "--model", "echo", "--input", "1", "--wait", "100ms", "-o", "json"])
            .await;
    assert_eq!((ran.code, &ran.json()["state"]), (5, &json!("queued")), "{}", ran.err);
    assert!(ran.err.contains("still queued"), "{}", ran.err);
    let id = ran.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(taskyard(&gateway, &["task", "wait", &id, "--timeout", "100ms"]).await.code, 5);
    assert_eq!(taskyard(&gateway, &["task", "get", &id]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_cannot_be_reached_is_3_and_one_that_is_none_1() {
    let ran = run(&["task", "list", "--api", "http://127.0.0.1:1"], "").await;
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("http://127.0.0.1:1 cannot be reached: Connection refused"), "{}", ran.err);
    assert!(ran.err.contains("--api") && ran.err.lines().count() == 1, "{}", ran.err);
    let ran = run(&["models", "--api", "host:80"], "").await;
    assert_eq!((ran.code, ran.out.as_str()), (2, ""));

    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let ran = run(&["models", "--api", &gateway.url("/healthz")], "").await;
    assert_eq!(ran.code, 1, "{}", ran.err);
    yard.broker.go_away(true);
    let ran = taskyard(&gateway, &["task", "submit", "--model", "echo", "--input", "1"]).await;
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("broker_unavailable"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_inputs_are_many_tasks() {
    let yard = Yard::working().await;
    let gateway = yard.gateway().await;
    let inputs: String = (0..1200).map(|number| format!("{{\"number\":\n {number}}}\n")).collect();
    let submit = ["task", "submit", "--model", "echo", "--input", "-", "--wait", "20s", "-o", "jsonl"];
    let ran = taskyard_reading(&gateway, &submit, &inputs).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let numbers: Vec<u64> = ran.lines().iter().map(|task| task["output"]["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..1200).collect::<Vec<_>>());

    let tasks = r#"{"model": "echo", "input": 1, "priority": 9}
        {"model": "echo"}
        {"model": "echo", "input": {"fail": true}}"#;
    let ran = taskyard_reading(&gateway, &["task", "submit", "--tasks", "-", "--wait", "-o", "json"], tasks).await;
    assert_eq!(ran.code, 1);
    let printed = ran.json();
    assert_eq!(printed.as_array().unwrap().len(), 2);
    assert_eq!((&printed[0]["priority"], &printed[1]["state"]), (&json!(9), &json!("failed")));
    assert!(ran.err.contains("input 2 was refused: input: must be given [invalid_field]"), "{}", ran.err);

    let ran = taskyard_reading(&gateway, &["task", "submit", "--tasks", "-"], "{}\n{}\n").await;
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("2 of 2 were refused"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_and_go_on_where_they_ended() {
    let yard = Yard::working().await;
    let gateway = yard.gateway().await;
    for tenant in ["blue", "red"] {
        for number in 0..5 {
            let body =
                json!({"model": "echo", "tenant": tenant, "input": number, "metadata": {"n": number.to_string()}});
            assert_eq!(gateway.post_waiting(&body, "wait=20").await.status, 200);
        }
    }
    let ran = taskyard(&gateway, &["task", "list", "--tenant", "blue", "--limit", "3", "-o", "jsonl"]).await;
    assert_eq!(ran.code, 0);
    let outputs = |ran: &Ran| ran.lines().iter().map(|task| task["output"].clone()).collect::<Vec<_>>();
    assert_eq!(outputs(&ran), [4, 3, 2]);
    let cursor = ran.err.trim().rsplit(' ').next().unwrap();
    let ran = taskyard(&gateway, &["task", "list", "--tenant", "blue", "--cursor", cursor, "-o", "jsonl"]).await;
    assert_eq!(outputs(&ran), [1, 0]);
    let ran = taskyard(&gateway, &["task", "list", "--metadata", "n=2", "--state", "succeeded"]).await;
    assert_eq!(ran.out.lines().count(), 3, "{}", ran.out);
    assert!(ran.out.starts_with("ID "), "{}", ran.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn workflows_are_listed_and_the_list_goes_on_where_it_ended() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    for tenant in ["blue", "red"] {
        for number in 0..5 {
            let steps = json!([{"name": "a", "model": "echo", "input": 1}, {"name": "b", "model": "echo", "input": 2}]);
            let body = json!({"tasks": steps, "tenant": tenant, "metadata": {"n": number.to_string()}});
            assert_eq!(gateway.post("/v1/workflows", &body).await.status, 202);
        }
    }
    let list = async |more: &[&str]| taskyard(&gateway, &[&["workflow", "list"], more].concat()).await;
    let ran = list(&["--tenant", "blue", "--limit", "3", "-o", "jsonl"]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let labels = |ran: &Ran| ran.lines().iter().map(|one| one["metadata"]["n"].clone()).collect::<Vec<_>>();
    assert_eq!(labels(&ran), ["4", "3", "2"]);
    let cursor = ran.err.trim().rsplit(' ').next().unwrap();
    let ran = list(&["--tenant", "blue", "--cursor", cursor, "-o", "jsonl"]).await;
    assert_eq!(labels(&ran), ["1", "0"]);
    assert_eq!(ran.err, "", "that was all");
    let ran = list(&["-o", "json"]).await;
    assert_eq!(ran.json().as_array().unwrap().len(), 10);
    assert_eq!(ran.json()[0]["counts"], json!({"blocked": 2}));
    let ran = list(&["--metadata", "n=2", "--state", "queued"]).await;
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), 3, "{}", ran.out);
    assert!(lines[0].starts_with("ID ") && lines[1].contains("2 blocked") && lines[1].contains("red"), "{}", ran.out);
    assert_eq!(list(&["--state", "failed", "-o", "jsonl"]).await.out, "");
    let ran = list(&["--state", "blocked"]).await;
    assert!(ran.code == 2 && ran.err.contains("must be one of queued, running"), "{} {}", ran.code, ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_workers_and_queues_are_printed() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let store = yard.store.inner();
    let spec = ModelSpec {
        version: "1".to_owned(),
        name: "echo".into(),
        handler: "simulated".into(),
        capabilities: vec!["echoes".into()],
        slots: 2,
        timeout_ms: 1000,
        max_attempts: 3,
        max_batch: 4,
        max_delay_ms: 0,
        memory_mb: 0,
        gpus: 0,
        expected_ms: None,
        quality: None,
    };
    store.announce(&[spec]).await.unwrap();
    let report = LoadReport {
        worker: "w-1".into(),
        host: "host".into(),
        pid: 1,
        started: Timestamp::now(),
        at: Timestamp::now(),
        draining: false,
        memory_mb: 10,
        budget_mb: 0,
        budget_gpus: 0,
        slots: 0,
        models: [(
            "echo".to_owned(),
            ModelLoad { slots: 2, busy: 1, max_batch: 4, held: 3, finished: 5, ..ModelLoad::default() },
        )]
        .into(),
    };
    store.report_load(&report, 60_000).await.unwrap();

    let models = taskyard(&gateway, &["models"]).await;
    assert_eq!(models.code, 0, "{}", models.err);
    let row: Vec<&str> = models.out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["echo", "simulated", "echoes", "1", "2", "1", "3", "4", "1000"]);
    let models = taskyard(&gateway, &["models", "list", "-o", "json"]).await;
    assert_eq!(models.json()[0]["now"]["held"], 3);

    let workers = taskyard(&gateway, &["workers", "list"]).await;
    let row: Vec<&str> = workers.out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..9], ["w-1", "host", "serving", "echo", "2", "1", "3", "5", "10"]);

    gateway.post("/v1/tasks", &json!({"model": "echo", "input": 1})).await;
    let queues = taskyard(&gateway, &["queues", "-o", "jsonl"]).await.lines();
    assert_eq!(queues.len(), 5);
    assert_eq!((&queues[0]["queue"], &queues[0]["ready"]), (&json!("intake"), &json!(1)));
    let model = json!({
        "queue": "ready.echo", "model": "echo", "paused": false, "ready": 0, "takers": 1, "slots": 2, "busy": 1, "held": 3, "drain_seconds": null, "workers_wanted": null,
    });
    assert_eq!(queues[4], model);

    // Nobody schedules here: what is asked is kept.
    let paused = taskyard(&gateway, &["queues", "pause", "echo", "-o", "json"]).await;
    assert_eq!((paused.code, paused.json()), (0, json!({"model": "echo", "paused": true, "in_force": false})));
    assert!(paused.err.contains("not every scheduler"), "{}", paused.err);
    assert_eq!(taskyard(&gateway, &["queues", "-o", "jsonl"]).await.lines()[4]["paused"], true);
    assert_eq!(taskyard(&gateway, &["queues", "resume", "echo"]).await.code, 0);
    assert_eq!(taskyard(&gateway, &["queues", "pause", "nobody"]).await.code, 4);
    assert_eq!(taskyard(&gateway, &["queues", "pause", "a/b"]).await.code, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_are_cancelled_and_reprioritized_by_id_and_by_filter() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let mut ids = Vec::new();
    for n in 0..3 {
        let body = json!({"model": "echo", "input": n, "tenant": "a"});
        let accepted = gateway.post("/v1/tasks", &body).await;
        ids.push(accepted.json["id"].as_str().unwrap().to_owned());
    }
    let unknown = "0190a5a0-0000-7000-8000-000000000000";
    let explained = taskyard(&gateway, &["task", "explain", &ids[0]]).await;
    assert_eq!(explained.code, 0, "{}", explained.err);
    assert!(explained.out.contains("no_scheduler"), "{}", explained.out);
    assert_eq!(taskyard(&gateway, &["task", "explain", unknown]).await.code, 4);

    let moved = taskyard(&gateway, &["task", "reprioritize", &ids[0], "--priority", "9", "-o", "json"]).await;
    assert_eq!((moved.code, moved.json()[0]["outcome"].as_str()), (0, Some("requested")));
    assert_eq!(gateway.get(&format!("/v1/tasks/{}", ids[0])).await.json["priority"], 9);
    assert_eq!(taskyard(&gateway, &["task", "reprioritize", &ids[0], "--priority", "10"]).await.code, 2);

    let cancelled = taskyard(&gateway, &["task", "cancel", &ids[0], unknown, "-o", "jsonl"]).await;
    assert_eq!(cancelled.code, 4, "one of them is not known");
    let outcomes: Vec<_> = cancelled.lines().iter().map(|line| line["outcome"].clone()).collect();
    assert_eq!(outcomes, [json!("requested"), json!("not_found")]);
    assert_eq!(taskyard(&gateway, &["task", "cancel"]).await.code, 2, "not everything by mistake");
    assert_eq!(taskyard(&gateway, &["task", "cancel", &ids[0], "--tenant", "a"]).await.code, 2, "one or the other");

    let all = taskyard(&gateway, &["task", "cancel", "--tenant", "a", "-o", "json"]).await;
    assert_eq!((all.code, all.json()), (0, json!([{"outcome": "requested", "tasks": 3}])));
    let none = taskyard(&gateway, &["task", "cancel", "--tenant", "nobody", "-o", "json"]).await;
    assert_eq!((none.code, none.json()), (0, json!([])));
    yard.work().await;
    let done = gateway.post_waiting(&json!({"model": "echo", "input": 1}), "wait=10").await;
    let id = done.json["id"].as_str().unwrap();
    let late = taskyard(&gateway, &["task", "cancel", id, "-o", "json"]).await;
    assert_eq!((late.code, late.json()[0]["outcome"].as_str()), (1, Some("already_finished")));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_put_and_read_by_the_name_that_was_printed() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let content: Vec<u8> = (0..100_000u32).map(|n| (n % 253) as u8).collect();
    std::fs::write(&from, &content).unwrap();
    let put = taskyard(&gateway, &["artifact", "put", from.to_str().unwrap(), "-o", "json"]).await;
    assert_eq!(put.code, 0, "{}", put.err);
    let name = put.json()[0]["$ref"].as_str().unwrap().to_owned();
    let got = taskyard(&gateway, &["artifact", "get", &name, "--out", to.to_str().unwrap()]).await;
    assert_eq!((got.code, got.out.as_str()), (0, ""), "{}", got.err);
    assert_eq!(std::fs::read(&to).unwrap(), content);
    let piped = taskyard_reading(&gateway, &["artifact", "put", "-", "-o", "jsonl"], "{\"a\": 1}").await;
    let name = piped.lines()[0]["$ref"].as_str().unwrap().to_owned();
    assert_eq!(taskyard(&gateway, &["artifact", "get", &name]).await.out, "{\"a\": 1}");

    let other = format!("artifact:{}", "0".repeat(64));
    let missing = taskyard(&gateway, &["artifact", "get", &other, "--out", to.to_str().unwrap()]).await;
    assert_eq!(missing.code, 4, "{}", missing.err);
    assert_eq!(std::fs::read(&to).unwrap(), content, "what stood there stays");
    assert_eq!(taskyard(&gateway, &["artifact", "get", "../../v1/tasks"]).await.code, 2);
    assert_eq!(taskyard(&gateway, &["artifact", "put", "/no/such/file"]).await.code, 2);
    let place = folder.path().join("none/to");
    assert_eq!(taskyard(&gateway, &["artifact", "get", &name, "--out", place.to_str().unwrap()]).await.code, 1);
}
