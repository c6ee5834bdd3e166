//! The gateway over HTTP, on the embedded broker and store.

mod yard;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use taskyard_shared::TaskId;
use taskyard_shared::deployment::Deployed;
use taskyard_shared::load::{LoadReport, LoadState, ModelLoad, ModelSpec};
use taskyard_shared::store::{Store, WorkflowWrite};
use taskyard_shared::workflow::{WorkflowRecord, WorkflowState};
use taskyard_shared::{Timestamp, decode_tasks};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use yard::{RunningGateway, Yard, eventually, settings, within};

fn id(text: &Value) -> TaskId {
    TaskId(text.as_str().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_task_is_accepted_recorded_and_published() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let body = json!({"model": "echo", "input": {"text": "good"}, "priority": 9, "tenant": "blue",
        "metadata": {"run": "1"}, "deadline_ms": 60_000});
    let got = gateway.post("/v1/tasks", &body).await;
    assert_eq!(got.status, 202, "{got:?}");
    assert_eq!(got.header("content-type"), "application/json");
    assert_eq!(got.header("x-content-type-options"), "nosniff");
    assert_eq!(got.header("location"), format!("/v1/tasks/{}", got.json["id"].as_str().unwrap()));
    assert_eq!(got.json["state"], "queued");
    assert_eq!(got.json["tenant"], "blue");
    assert_eq!(got.json["priority"], 9);
    assert_eq!(got.json["metadata"]["run"], "1");
    assert!(got.json["output"].is_null() && got.json["error"].is_null());

    let looked_up = gateway.get(got.header("location")).await;
    assert_eq!((looked_up.status, &looked_up.json), (200, &got.json));

    let deliveries = yard.drain(&yard.topology.intake()).await;
    assert_eq!(deliveries.len(), 1);
    assert_eq!(deliveries[0].properties.message_id.as_deref(), got.json["id"].as_str());
    assert_eq!(deliveries[0].properties.reply_to, None);
    let task = decode_tasks(&deliveries[0].body).unwrap().remove(0).unwrap();
    assert_eq!(task.id, Some(id(&got.json["id"])));
    assert_eq!(task.tenant.as_deref(), Some("blue"));
    let accepted: Timestamp = got.json["timings"]["accepted"].as_str().unwrap().parse().unwrap();
    assert_eq!(task.deadline, Some(accepted.plus_ms(60_000)));
}

#[tokio::test]
async fn prefer_wait_answers_with_the_result() {
    let yard = Yard::working().await;
    let gateway = yard.gateway().await;
    let got = gateway.post_waiting(&json!({"model": "echo", "input": {"a": 1}}), "wait=20").await;
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(got.json["state"], "succeeded");
    assert_eq!(got.json["output"], json!({"a": 1}));
    assert_eq!(got.header("preference-applied"), "wait=20");
    assert_eq!(got.header("location"), format!("/v1/tasks/{}", got.json["id"].as_str().unwrap()));

    let failed =
        gateway.post_waiting(&json!({"model": "echo", "input": {"fail": true}}), "respond-async, wait=20").await;
    assert_eq!((failed.status, &failed.json["state"]), (200, &json!("failed")));
    assert_eq!(failed.json["error"]["code"], "handler");
}

#[tokio::test]
async fn a_wait_that_is_over_answers_with_the_task_as_it_stands() {
    let yard = Yard::new();
    let gateway =
        yard.gateway_with(taskyard_shared::process::settings::GatewaySettings { max_wait_s: 1, ..settings() }).await;
    let began = Instant::now();
    // A longer wait is shortened to the limit.
    let got = gateway.post_waiting(&json!({"model": "echo", "input": 1}), "wait=3600").await;
    assert_eq!((got.status, &got.json["state"]), (202, &json!("queued")));
    assert_eq!(got.header("preference-applied"), "wait=1");
    assert!(began.elapsed() >= Duration::from_secs(1) && began.elapsed() < Duration::from_secs(10));

    let path = got.header("location").to_owned();
    let got = gateway.get(&format!("{path}?wait=50ms")).await;
    assert_eq!((got.status, &got.json["state"]), (200, &json!("queued")));
    let got = gateway.post_waiting(&json!({"model": "echo", "input": 1}), "wait=0").await;
    assert_eq!((got.status, got.header("preference-applied")), (202, ""));
}

#[tokio::test]
async fn many_can_wait_for_one_result() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let got = gateway.post("/v1/tasks", &json!({"model": "echo", "input": "once"})).await;
    let path = format!("{}?wait=20s", got.header("location"));
    let waiting = async {
        let all = futures_util::future::join_all((0..20).map(|_| gateway.get(&path)));
        let work = async {
            eventually("all wait", || async { gateway.metric("taskyard_http_waiters").await == Some(20.0) }).await;
            yard.work().await;
        };
        tokio::join!(all, work).0
    };
    for got in within(waiting).await {
        assert_eq!((got.status, &got.json["output"]), (200, &json!("once")));
    }
    assert_eq!(yard.runs.load(Ordering::Relaxed), 1);
    assert_eq!(gateway.metric("taskyard_http_waiters").await, Some(0.0));
    assert_eq!(
        gateway.metric("taskyard_gateway_results_rechecked_total").await,
        Some(0.0),
        "by message, not by looking"
    );
}

#[tokio::test]
async fn a_put_is_idempotent_by_its_id() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let path = format!("/v1/tasks/{}", TaskId::new().0);
    let body = json!({"model": "echo", "input": {"a": 1}});
    let first = gateway.put(&path, &body).await;
    assert_eq!((first.status, first.header("location")), (202, path.as_str()));
    let again = gateway.put(&path, &body).await;
    assert_eq!((again.status, &again.json), (202, &first.json));

    let other = gateway.put(&path, &json!({"model": "echo", "input": {"a": 2}})).await;
    assert_eq!((other.status, other.problem()), (409, "conflict"));
    assert_eq!(other.json["task_id"], first.json["id"]);
    assert_eq!(yard.depth(&yard.topology.intake()).await, 1, "what is known, or refused, is not published");

    yard.work().await;
    let done = gateway.get(&format!("{path}?wait=20s")).await;
    assert_eq!(done.json["output"], json!({"a": 1}));
    let after = gateway.put(&path, &body).await;
    assert_eq!((after.status, &after.json["output"]), (200, &json!({"a": 1})));
    assert_eq!(gateway.put(&path, &json!({"model": "other", "input": {"a": 1}})).await.status, 409);
    assert_eq!(yard.runs.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_idempotency_key_names_one_task_of_a_tenant() {
    let yard = Yard::working().await;
    let gateway = yard.gateway().await;
    let post = |tenant: &str, input: u32, key: &'static str| {
        let body = json!({"model": "echo", "input": input, "tenant": tenant});
        let request = gateway.http.post(gateway.url("/v1/tasks")).header("prefer", "wait=20").json(&body);
        gateway.send(request.header("idempotency-key", key))
    };
    let first = post("blue", 1, "\"k-1\"").await;
    assert_eq!(first.status, 200);
    let again = post("blue", 1, "k-1").await;
    assert_eq!(again.json["id"], first.json["id"]);
    let other = post("blue", 2, "k-1").await;
    assert_eq!((other.status, other.problem()), (409, "conflict"));
    let foreign = post("red", 2, "k-1").await;
    assert_eq!(foreign.status, 200);
    assert_ne!(foreign.json["id"], first.json["id"]);
    assert_eq!(yard.runs.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_key_that_belongs_to_another_id_is_answered_with_that_task() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let body = json!({"model": "echo", "input": 1, "idempotency_key": "k"});
    let (one, two) = (TaskId::new(), TaskId::new());
    let first = gateway.put(&format!("/v1/tasks/{}", one.0), &body).await;
    assert_eq!(first.status, 202);
    let waiting = async {
        let request = gateway.http.put(gateway.url(&format!("/v1/tasks/{}", two.0))).header("prefer", "wait=20");
        gateway.send(request.json(&body)).await
    };
    let work = async {
        eventually("it waits", || async { gateway.metric("taskyard_http_waiters").await == Some(1.0) }).await;
        yard.work().await;
    };
    let (second, ()) = tokio::join!(waiting, work);
    assert_eq!((second.status, &second.json["state"]), (200, &json!("succeeded")));
    assert_eq!(id(&second.json["id"]), one);
    assert_eq!(second.header("location"), format!("/v1/tasks/{}", one.0));
    assert_eq!(yard.runs.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_id_that_was_never_accepted_is_not_found() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    for id in ["01890a5d-ac96-774b-bcce-b302099a8057", "42", "..%2f..", "%00", "%ff", &"a".repeat(8000)] {
        for query in ["", "?wait=20s"] {
            let got = gateway.get(&format!("/v1/tasks/{id}{query}")).await;
            assert_eq!((got.status, got.problem()), (404, "not_found"), "{id}");
        }
    }
}

#[tokio::test]
async fn lists_are_filtered_and_come_in_pages() {
    let yard = Yard::working().await;
    let gateway = yard.gateway().await;
    let mut submitted = Vec::new();
    for number in 0..12 {
        let tenant = if number % 3 == 0 { "blue" } else { "red" };
        let body = json!({"model": format!("model-{}", number % 2), "tenant": tenant, "metadata": {"parity": (number % 2).to_string()},
            "input": {"fail": number == 11}});
        let got = gateway.post_waiting(&body, "wait=20").await;
        assert_eq!(got.status, 200);
        submitted.push(got.json["id"].clone());
    }
    let ids = |got: &yard::Got| -> Vec<Value> {
        got.json["tasks"].as_array().unwrap().iter().map(|task| task["id"].clone()).collect()
    };
    let newest_first: Vec<Value> = submitted.iter().rev().cloned().collect();

    let (mut found, mut path) = (Vec::new(), "/v1/tasks?limit=5".to_owned());
    let mut pages = 0;
    loop {
        let got = gateway.get(&path).await;
        assert_eq!(got.status, 200);
        found.extend(ids(&got));
        pages += 1;
        match got.json["cursor"].as_str() {
            Some(cursor) => path = format!("/v1/tasks?limit=5&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(found, newest_first);
    assert!((3..=4).contains(&pages), "{pages}");

    let count = async |query: &str| ids(&gateway.get(&format!("/v1/tasks?{query}")).await).len();
    assert_eq!(count("").await, 12);
    assert_eq!(count("tenant=blue").await, 4);
    assert_eq!(count("model=model-1").await, 6);
    assert_eq!(count("metadata.parity=1&tenant=red").await, 4);
    assert_eq!(count("state=failed").await, 1);
    assert_eq!(count("state=running").await, 0);
    assert_eq!(count("tenant=nobody").await, 0);
    assert_eq!(count("limit=1000000000").await, 12);
}

#[tokio::test]
async fn workflows_are_listed_by_filters_and_in_pages() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let mut expected = Vec::new();
    for number in 0..12 {
        let tenant = if number % 3 == 0 { "blue" } else { "red" };
        let steps = json!([{"name": "a", "model": "echo", "input": 1}, {"name": "b", "model": "echo", "input": {"$from": "a"}}]);
        let body =
            json!({"tasks": steps, "tenant": tenant, "priority": 7, "metadata": {"parity": (number % 2).to_string()}});
        let got = gateway.post("/v1/workflows", &body).await;
        assert_eq!(got.status, 202, "{got:?}");
        // A summary: what the record says, without what may be large.
        let mut summary = got.json;
        for large in ["steps", "outputs", "error", "on_failure"] {
            assert!(summary.as_object_mut().unwrap().remove(large).is_some(), "{large}");
        }
        expected.insert(0, summary);
    }
    let all = gateway.get("/v1/workflows").await;
    assert_eq!((all.status, &all.json), (200, &json!({"workflows": expected, "cursor": null})));
    assert_eq!(expected[0]["counts"], json!({"blocked": 2}));

    let (mut found, mut path) = (Vec::new(), "/v1/workflows?limit=5".to_owned());
    loop {
        let got = gateway.get(&path).await;
        assert_eq!(got.status, 200, "{got:?}");
        let page = got.json["workflows"].as_array().unwrap();
        assert!(page.len() <= 5 && found.len() < 12, "{got:?}");
        found.extend(page.clone());
        match got.json["cursor"].as_str() {
            Some(cursor) => path = format!("/v1/workflows?limit=5&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(found, expected);

    // One ends: the list says so, and it stays where it is.
    let one = gateway.get(&format!("/v1/workflows/{}", expected[4]["id"].as_str().unwrap())).await;
    let mut record: WorkflowRecord = serde_json::from_str(&one.text).unwrap();
    (record.state, record.finished) = (WorkflowState::Failed, Some(Timestamp::now()));
    yard.store.inner().write_workflow(WorkflowWrite::new(&record, 7).unwrap()).await.unwrap();
    let got = gateway.get("/v1/workflows").await.json;
    assert_eq!(got["workflows"][4], serde_json::to_value(record.summary()).unwrap());

    let count = async |query: &str| {
        gateway.get(&format!("/v1/workflows?{query}")).await.json["workflows"].as_array().unwrap().len()
    };
    assert_eq!(count("tenant=blue").await, 4);
    assert_eq!(count("metadata.parity=1&tenant=red").await, 4);
    assert_eq!(count("state=failed").await, 1);
    assert_eq!(count("state=failed&tenant=nobody").await, 0);
    assert_eq!(count("state=queued").await, 11);
    assert_eq!(count("limit=1000000000").await, 12);
    for (query, code, field) in [
        ("state=blocked", "invalid_parameter", "state"),
        ("state=", "invalid_parameter", "state"),
        ("cursor=0", "invalid_parameter", "cursor"),
        ("limit=0", "invalid_parameter", "limit"),
        ("model=echo", "unknown_parameter", "model"),
    ] {
        let got = gateway.get(&format!("/v1/workflows?{query}")).await;
        assert_eq!((got.status, got.problem(), &got.json["field"]), (400, code, &json!(field)), "{query}");
    }
    yard.store.go_away(true);
    assert_eq!(gateway.get("/v1/workflows").await.problem(), "store_unavailable");
}

#[tokio::test]
async fn a_batch_is_answered_task_by_task() {
    let yard = Yard::working().await;
    let gateway = yard.gateway().await;
    let known = TaskId::new();
    assert_eq!(gateway.put(&format!("/v1/tasks/{}", known.0), &json!({"model": "echo", "input": 1})).await.status, 202);
    let batch = json!([
        {"model": "echo", "input": "first"},
        {"model": "Not A Model", "input": 1},
        {"model": "echo", "input": 1, "id": known.0.to_string()},
        {"model": "echo", "input": 2, "id": known.0.to_string()},
        {"model": "echo", "input": "last"},
    ]);
    let got = gateway.post("/v1/batches", &batch).await;
    assert_eq!((got.status, got.header("content-type")), (202, "application/json"));
    check_batch(&gateway, got.json.as_array().unwrap(), known).await;

    let lines: String = batch.as_array().unwrap().iter().map(|task| format!("{task}\r\n\n")).collect();
    let request = gateway.http.post(gateway.url("/v1/batches")).header("content-type", "application/x-ndjson");
    let got = gateway.send(request.body(lines)).await;
    assert_eq!((got.status, got.header("content-type")), (202, "application/x-ndjson"));
    let answers: Vec<Value> = got.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    check_batch(&gateway, &answers, known).await;
}

async fn check_batch(gateway: &RunningGateway, answers: &[Value], known: TaskId) {
    assert_eq!(answers.len(), 5, "{answers:?}");
    for (index, answer) in answers.iter().enumerate() {
        assert_eq!(answer["index"], index);
    }
    assert_eq!((&answers[1]["status"], &answers[1]["problem"]["code"]), (&json!(422), &json!("invalid_field")));
    assert_eq!(answers[1]["problem"]["field"], "model");
    assert!(answers[2]["status"] == 202 || answers[2]["status"] == 200);
    assert_eq!(id(&answers[2]["task"]["id"]), known);
    assert_eq!((&answers[3]["status"], &answers[3]["problem"]["code"]), (&json!(409), &json!("conflict")));
    for (index, input) in [(0, "first"), (4, "last")] {
        assert_eq!(answers[index]["status"], 202);
        let path = format!("/v1/tasks/{}?wait=20s", answers[index]["task"]["id"].as_str().unwrap());
        assert_eq!(gateway.get(&path).await.json["output"], input);
    }
}

#[tokio::test]
async fn a_line_that_is_no_json_fails_alone() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let lines = "{\"model\":\"echo\",\"input\":1}\n{\"model\":\n[1]\n[{\"model\":\"echo\",\"input\":1}]\n\u{feff}{}\n";
    let request = gateway.http.post(gateway.url("/v1/batches")).header("content-type", "application/x-ndjson");
    let got = gateway.send(request.body(lines)).await;
    assert_eq!(got.status, 202);
    let answers: Vec<Value> = got.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let codes: Vec<&Value> = answers.iter().map(|answer| &answer["problem"]["code"]).collect();
    assert_eq!(codes, [&Value::Null, &json!("json"), &json!("shape"), &json!("shape"), &json!("json")]);
    assert_eq!(yard.depth(&yard.topology.intake()).await, 1);
}

#[tokio::test]
async fn a_large_batch_travels_in_few_messages() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let batch: Vec<Value> = (0..2000).map(|number| json!({"model": "echo", "input": number})).collect();
    let got = gateway.post("/v1/batches", &json!(batch)).await;
    assert_eq!(got.status, 202);
    let answers = got.json.as_array().unwrap();
    assert!(answers.iter().all(|answer| answer["status"] == 202));
    let accepted: Vec<TaskId> = answers.iter().map(|answer| id(&answer["task"]["id"])).collect();
    let deliveries = yard.drain(&yard.topology.intake()).await;
    assert!(deliveries.len() <= 8, "{} messages", deliveries.len());
    let published: Vec<TaskId> = deliveries
        .iter()
        .flat_map(|delivery| decode_tasks(&delivery.body).unwrap())
        .map(|task| task.unwrap().id.unwrap())
        .collect();
    assert_eq!(published, accepted);
}

#[tokio::test]
async fn a_batch_of_which_nothing_is_good_says_so_in_its_status() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let got =
        gateway.post("/v1/batches", &json!([{"model": "echo"}, {"model": "echo", "input": 1, "priority": 10}])).await;
    assert_eq!(got.status, 422);
    let fields: Vec<&Value> = got.json.as_array().unwrap().iter().map(|answer| &answer["problem"]["field"]).collect();
    assert_eq!(fields, ["input", "priority"]);
}

#[tokio::test]
async fn trace_context_travels_with_the_task() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for traceparent in [good, "nonsense"] {
        let request = gateway.http.post(gateway.url("/v1/tasks")).header("traceparent", traceparent);
        let got = gateway.send(request.json(&json!({"model": "echo", "input": 1}))).await;
        assert_eq!(got.status, 202);
    }
    let deliveries = yard.drain(&yard.topology.intake()).await;
    let traces: Vec<Option<&String>> =
        deliveries.iter().map(|delivery| delivery.properties.headers.get("traceparent")).collect();
    assert_eq!(traces, [Some(&good.to_owned()), None]);
}

#[tokio::test]
async fn models_workers_and_queues_tell_the_yards_state() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let spec = |name: &str| ModelSpec {
        version: "1".to_owned(),
        name: name.into(),
        handler: "simulated".into(),
        capabilities: vec!["echoes".into()],
        slots: 2,
        timeout_ms: 1000,
        max_attempts: 3,
        max_batch: 1,
        max_delay_ms: 0,
        memory_mb: 0,
        gpus: 0,
        expected_ms: None,
        quality: None,
    };
    let store = yard.store.inner();
    store.announce(&[spec("idle"), spec("gone@2"), spec("echo")]).await.unwrap();
    let mut deployed = Deployed::default();
    deployed.retired = ["gone@2", "idle"].map(str::to_owned).into();
    store.put(Deployed::KEY, serde_json::to_vec(&deployed).unwrap().into()).await.unwrap();
    for (worker, draining) in [("w-2", true), ("w-1", false)] {
        let load = ModelLoad { slots: 2, busy: 1, max_batch: 1, held: 2, finished: 5, ..ModelLoad::default() };
        let unloaded = ModelLoad { state: LoadState::Unloaded, ..ModelLoad::default() };
        let report = LoadReport {
            worker: worker.into(),
            host: "host".into(),
            pid: 1,
            started: Timestamp::now(),
            at: Timestamp::now(),
            draining,
            memory_mb: 10,
            budget_mb: 0,
            budget_gpus: 0,
            slots: 0,
            models: [("echo".to_owned(), load), ("idle".to_owned(), unloaded)].into(),
        };
        store.report_load(&report, 60_000).await.unwrap();
    }
    gateway.post("/v1/tasks", &json!({"model": "echo", "input": 1})).await;

    let got = gateway.get("/v1/models").await;
    assert_eq!(got.status, 200);
    let models = got.json["models"].as_array().unwrap();
    assert_eq!(models.iter().map(|model| &model["name"]).collect::<Vec<_>>(), ["echo", "idle"]);
    assert_eq!(models[0]["now"], json!({"workers": 1, "slots": 2, "busy": 2, "held": 4}));
    assert_eq!(models[0]["capabilities"], json!(["echoes"]));
    assert_eq!(models[1]["now"]["workers"], 0);
    assert_eq!((&models[0]["retired"], &models[1]["retired"]), (&json!(null), &json!(true)));

    let got = gateway.get("/v1/workers").await;
    let workers = got.json["workers"].as_array().unwrap();
    assert_eq!(workers.iter().map(|worker| &worker["worker"]).collect::<Vec<_>>(), ["w-1", "w-2"]);
    assert_eq!(workers[0]["models"]["echo"]["finished"], 5);

    let got = gateway.get("/v1/queues").await;
    assert_eq!(got.status, 200);
    let expected = json!([
        {"model": "echo", "ready": 0, "workers": 1, "slots": 2, "busy": 2, "held": 4, "paused": false,
            "drain_seconds": null, "workers_wanted": null, "overloaded": false},
        {"model": "gone@2", "ready": 0, "workers": 0, "slots": 0, "busy": 0, "held": 0, "paused": false,
            "drain_seconds": null, "workers_wanted": null, "overloaded": false},
        {"model": "idle", "ready": 0, "workers": 0, "slots": 0, "busy": 0, "held": 0, "paused": false,
            "drain_seconds": null, "workers_wanted": null, "overloaded": false},
    ]);
    assert_eq!(got.json["models"], expected);
    let queues = got.json["queues"].as_array().unwrap();
    let names: BTreeSet<&str> = queues.iter().map(|queue| queue["name"].as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["intake", "retry", "completions", "dead"]));
    let intake = queues.iter().find(|queue| queue["name"] == "intake").unwrap();
    assert_eq!(intake["ready"], 1);
}

/// Events of a stream that has ended: the name of each, and its data as a reader puts it together.
fn events(text: &str) -> Vec<(String, String)> {
    let event = |block: &str| {
        let of = |field: &str| {
            let lines = block.split(['\n', '\r']).filter_map(|line| line.strip_prefix(field));
            lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
        };
        (of("event:"), of("data:"))
    };
    text.split("\n\n").filter(|block| !block.is_empty()).map(event).collect()
}

#[tokio::test]
async fn an_output_of_html_or_with_line_breaks_is_json_and_nothing_else() {
    let yard = Yard::working().await;
    let gateway = yard.gateway().await;
    // Line breaks in a text, which are escaped, and between values, which are kept as they came.
    let text = "<script>alert(1)</script>\r\n\r\nevent: result\ndata: {\"state\": \"forged\"}\n\n</pre>";
    let input = format!("{{\"html\":\n\n{},\r\n\r\n\"event:\":\r[1,\n\n2]}}", json!(text));
    let body = format!(r#"{{"model": "echo", "input": {input}}}"#);
    let request = gateway.http.post(gateway.url("/v1/tasks")).header("prefer", "wait=20");
    let waited = gateway.send(request.header("content-type", "application/json").body(body)).await;
    let output: Value = serde_json::from_str(&input).unwrap();
    let path = waited.header("location").to_owned();
    let looked_up = gateway.get(&path).await;
    for got in [&waited, &looked_up] {
        assert_eq!((got.status, &got.json["output"]), (200, &output), "{got:?}");
        assert_eq!(got.header("content-type"), "application/json");
        assert_eq!(got.header("x-content-type-options"), "nosniff");
    }

    let stream = gateway.get(&format!("{path}/events")).await;
    assert_eq!((stream.status, stream.header("content-type")), (200, "text/event-stream"));
    assert_eq!(stream.header("x-content-type-options"), "nosniff");
    assert!(stream.text.contains("<script>"), "{}", stream.text);
    let events = events(&stream.text);
    assert!(events.len() == 1 && events[0].0 == "result", "{events:?}");
    let result: Value = serde_json::from_str(&events[0].1).unwrap();
    assert_eq!((&result["state"], &result["output"]), (&json!("succeeded"), &output));

    for path in ["/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/tasks", "/v1/models", "/no/such/place"] {
        assert_eq!(gateway.get(path).await.header("x-content-type-options"), "nosniff", "{path}");
    }
}

#[tokio::test]
async fn requests_are_counted_by_route_and_status() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    gateway.post("/v1/tasks", &json!({"model": "echo", "input": 1})).await;
    gateway.get("/v1/tasks/42").await;
    gateway.get("/no/such/place").await;
    gateway.get("/no/such/place/either").await;
    for made_up in ["BREW", "X-1", "GETGET"] {
        let request = gateway.http.request(made_up.parse().unwrap(), gateway.url("/v1/tasks"));
        assert_eq!(gateway.send(request).await.status, 405, "{made_up}");
    }
    let metrics = gateway.get("/metrics").await;
    assert!(metrics.header("content-type").starts_with("text/plain"));
    for line in [
        r#"taskyard_http_requests_total{method="POST",route="/v1/tasks",status="202"} 1"#,
        r#"taskyard_http_requests_total{method="GET",route="/v1/tasks/{id}",status="404"} 1"#,
        r#"taskyard_http_requests_total{method="GET",route="unmatched",status="404"} 2"#,
        r#"taskyard_http_request_seconds_count{method="POST",route="/v1/tasks"} 1"#,
        // What callers make up is one label.
        r#"taskyard_http_requests_total{method="other",route="/v1/tasks",status="405"} 3"#,
    ] {
        assert!(metrics.text.lines().any(|found| found == line), "{line}\n{}", metrics.text);
    }
    for made_up in ["BREW", "X-1", "GETGET", "no/such/place", "/42"] {
        assert!(!metrics.text.contains(made_up), "{made_up}\n{}", metrics.text);
    }
}

#[tokio::test]
async fn every_documented_call_is_there_and_no_other() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let document = gateway.get("/openapi.json").await.json;
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    for path in [
        "/v1/tasks",
        "/v1/tasks/{id}",
        "/v1/batches",
        "/v1/models",
        "/v1/workers",
        "/v1/queues",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    for (path, operations) in paths {
        let url = gateway.url(&path.replace("{id}", "01890a5d-ac96-774b-bcce-b302099a8057"));
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let got = gateway.send(gateway.http.request(method.parse().unwrap(), &url)).await;
            let documented = operations.get(method.to_lowercase()).is_some();
            let code = got.json["code"].as_str().unwrap_or_default();
            assert_eq!(documented, code != "method_not_allowed", "{method} {path}: {got:?}");
            assert_ne!(code, "no_route", "{method} {path}");
            if !documented {
                assert_eq!((got.status, got.problem()), (405, "method_not_allowed"));
                assert!(got.header("allow").contains("GET") || got.header("allow").contains("POST"), "{got:?}");
            } else {
                // What came is an answer that the description has.
                let responses = operations[method.to_lowercase()]["responses"].as_object().unwrap();
                let response =
                    responses.get(&got.status.to_string()).unwrap_or_else(|| panic!("{method} {path}: {got:?}"));
                let media = got.header("content-type").split(';').next().unwrap();
                assert!(response["content"].get(media).is_some(), "{method} {path}: {media}");
            }
        }
    }
    // The page at / names them all.
    let index = gateway.get("/").await.text;
    assert!(paths.keys().all(|path| index.contains(path.as_str())));
}

#[tokio::test]
async fn waits_end_when_the_gateway_stops() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let began = Instant::now();
    let body = json!({"model": "echo", "input": 1});
    let waiting = gateway.post_waiting(&body, "wait=60");
    let stop = async {
        eventually("it waits", || async { gateway.metric("taskyard_http_waiters").await == Some(1.0) }).await;
        gateway.stop.cancel();
    };
    let (got, ()) = tokio::join!(waiting, stop);
    assert_eq!((got.status, &got.json["state"]), (202, &json!("queued")));
    let RunningGateway { task, address, .. } = gateway;
    within(task).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(30));
    assert!(TcpStream::connect(&address).await.is_err(), "it still listens");
}

#[tokio::test]
async fn whoever_has_connected_before_it_stops_is_answered() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let mut connected = Vec::new();
    for _ in 0..8 {
        connected.push(TcpStream::connect(&gateway.address).await.unwrap());
    }
    gateway.stop.cancel();
    eventually("it listens no more", || async { TcpStream::connect(&gateway.address).await.is_err() }).await;
    for stream in &mut connected {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    }
    for mut stream in connected {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    }
    within(gateway.task).await.unwrap();
}
