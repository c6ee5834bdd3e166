//! Who may call what: keys, scopes, and one tenant's tasks out of another's sight. On the embedded broker and store.

mod yard;

use std::collections::BTreeMap;

use reqwest::{Method, RequestBuilder};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use taskyard_shared::load::ModelSpec;
use taskyard_shared::process::keys::{Keys, NewKey};
use taskyard_shared::process::settings::KeySettings;
use taskyard_shared::store::embedded::EmbeddedStore;
use taskyard_shared::store::{Accept, Guard, Retention, Settle, Store, WorkflowWrite};
use taskyard_shared::task::{Target, Task};
use taskyard_shared::workflow::{StepState, WorkflowId, WorkflowOrder, WorkflowState};
use taskyard_shared::{Carried, Envelope, State, TaskId, Timestamp};
use yard::{Got, RunningGateway, Yard, settings};

/// Calls that need no key, and no others.
const OPEN: [&str; 4] = ["/", "/healthz", "/openapi.json", "/readyz"];
/// Calls about the yard, which no key of one tenant opens.
const OF_THE_YARD: [&str; 11] = [
    "/metrics",
    "/v1/dead",
    "/v1/dead/discard",
    "/v1/dead/replay",
    "/v1/dead/{id}",
    "/v1/dead/{id}/discard",
    "/v1/dead/{id}/replay",
    "/v1/queues",
    "/v1/queues/{model}/pause",
    "/v1/queues/{model}/resume",
    "/v1/workers",
];
const SCOPES: [&str; 4] = ["submit", "read", "control", "admin"];

struct Door {
    gateway: RunningGateway,
    keys: BTreeMap<String, String>,
}

impl Door {
    /// `name`, tenant, scopes, expiry.
    async fn new(yard: &Yard, keys: &[(&str, &str, &[&str], Option<&str>)]) -> Self {
        let (mut settings_of, mut texts) = (BTreeMap::new(), BTreeMap::new());
        for (name, tenant, scopes, expires) in keys {
            let key = NewKey::generate().unwrap();
            let settings = KeySettings {
                sha256: key.sha256(),
                tenant: (*tenant).to_owned(),
                scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
                expires: expires.map(str::to_owned),
            };
            settings_of.insert((*name).to_owned(), settings);
            texts.insert((*name).to_owned(), key.text().to_owned());
        }
        let keys = Keys::new(&settings_of).unwrap();
        let gateway = yard.gateway_with_keys(settings(), keys).await;
        gateway.ready().await;
        Self { gateway, keys: texts }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.gateway.http.request(method, self.gateway.url(path))
    }

    async fn call(&self, key: &str, method: Method, path: &str, body: Option<&Value>) -> Got {
        let mut request = self.request(method, path).bearer_auth(&self.keys[key]);
        if let Some(body) = body {
            request = request.json(body);
        }
        self.gateway.send(request).await
    }

    async fn get(&self, key: &str, path: &str) -> Got {
        self.call(key, Method::GET, path, None).await
    }

    async fn post(&self, key: &str, path: &str, body: &Value) -> Got {
        self.call(key, Method::POST, path, Some(body)).await
    }
}

/// Every documented call: method, path with its names, path as it is asked.
async fn calls(door: &Door) -> Vec<(Method, String, String, Value)> {
    let document = door.gateway.get("/openapi.json").await.json;
    let mut calls = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let method = method.to_uppercase().parse().unwrap();
            let asked = path
                .replace("{id}", &TaskId::new().0.to_string())
                .replace("{model}", "echo")
                .replace("{name}", "nightly");
            assert!(!asked.contains('{'), "{path} has a name that this test does not fill in");
            calls.push((method, path.clone(), asked, operation.clone()));
        }
    }
    assert!(calls.len() > 15);
    calls
}

#[tokio::test]
async fn no_call_is_without_a_key_but_those_that_are_to_be() {
    let yard = Yard::new();
    let expired = Some("2020-01-01T00:00:00Z");
    let door = Door::new(&yard, &[("old", "*", &SCOPES, expired), ("all", "*", &SCOPES, None)]).await;
    let unknown = NewKey::generate().unwrap();
    let all = &door.keys["all"];
    let bad: Vec<(&str, Vec<String>)> = vec![
        ("missing", vec![]),
        ("unknown", vec![format!("Bearer {}", unknown.text())]),
        ("the hash", vec![format!("Bearer {}", unknown.sha256())]),
        ("expired", vec![format!("Bearer {}", door.keys["old"])]),
        ("cut", vec![format!("Bearer {}", &all[..all.len() - 1])]),
        ("empty", vec!["Bearer ".to_owned()]),
        ("another scheme", vec![format!("Basic {all}")]),
        ("no scheme", vec![all.clone()]),
        ("two", vec![format!("Bearer {all}"), format!("Bearer {all}")]),
    ];
    for (method, path, asked, operation) in calls(&door).await {
        let open = OPEN.contains(&path.as_str());
        assert_eq!(operation["security"].as_array().unwrap().is_empty(), open, "{method} {path}");
        for (what, headers) in &bad {
            // What else is wrong is not told to whoever has no key: the query, the body.
            let asked = if open { asked.clone() } else { format!("{asked}?nonsense=1") };
            let mut request = door.request(method.clone(), &asked);
            for header in headers {
                request = request.header("authorization", header);
            }
            let got = door.gateway.send(request).await;
            if open {
                assert!(matches!(got.status, 200 | 503), "{what}: {method} {path}: {got:?}");
            } else {
                assert_eq!((got.status, got.problem()), (401, "unauthorized"), "{what}: {method} {path}");
                assert_eq!(got.header("www-authenticate"), "Bearer realm=\"taskyard\"");
                assert!(!got.text.contains(all.as_str()), "{got:?}");
            }
        }
        let head = door.request(Method::HEAD, &asked);
        let got = door.gateway.send(head).await;
        assert!(open || method != Method::GET || got.status == 401, "HEAD {path}: {got:?}");
    }
    assert_eq!(yard.depth(&yard.topology.intake()).await, 0);
    let lower = door.request(Method::GET, "/v1/tasks").header("authorization", format!("bearer {all}"));
    assert_eq!(door.gateway.send(lower).await.status, 200);
    let metrics = door.get("all", "/metrics").await.text;
    let turned = |reason: &str| {
        let line = format!("taskyard_http_requests_turned_away_total{{reason=\"{reason}\"}} ");
        metrics.lines().find_map(|found| found.strip_prefix(&line)?.parse::<f64>().ok()).unwrap_or_default()
    };
    for reason in ["missing", "unknown", "expired", "unreadable"] {
        assert!(turned(reason) > 10.0, "{reason}: {}", turned(reason));
    }
}

#[tokio::test]
async fn a_key_opens_what_its_scopes_say_and_nothing_else() {
    let yard = Yard::new();
    let alone: Vec<(&str, &str, &[&str], Option<&str>)> =
        SCOPES.iter().map(|scope| (*scope, "*", std::slice::from_ref(scope), None)).collect();
    let mut keys = alone.clone();
    keys.push(("blue", "blue", &["submit", "read", "control"], None));
    let door = Door::new(&yard, &keys).await;
    for (method, path, asked, operation) in calls(&door).await {
        if OPEN.contains(&path.as_str()) {
            continue;
        }
        let needed = operation["security"][0]["key"][0].as_str().unwrap().to_owned();
        for scope in SCOPES {
            let got = door.call(scope, method.clone(), &asked, Some(&json!({}))).await;
            let code = got.json["code"].as_str().unwrap_or_default();
            assert_eq!(code == "forbidden", scope != needed, "{scope}: {method} {path}: {got:?}");
            assert_ne!(got.status, 401, "{scope}: {method} {path}");
            if code == "forbidden" {
                assert_eq!((got.status, got.problem()), (403, "forbidden"));
            }
        }
        let got = door.call("blue", method.clone(), &asked, Some(&json!({}))).await;
        let code = got.json["code"].as_str().unwrap_or_default();
        assert_eq!(code == "forbidden", OF_THE_YARD.contains(&path.as_str()), "{method} {path}: {got:?}");
    }
}

const TENANT: &[&str] = &["submit", "read", "control"];

async fn two_tenants(yard: &Yard) -> Door {
    Door::new(yard, &[("blue", "blue", TENANT, None), ("red", "red", TENANT, None), ("all", "*", &SCOPES, None)]).await
}

#[tokio::test]
async fn a_task_is_its_keys_tenants_whatever_it_says() {
    let yard = Yard::new();
    let door = two_tenants(&yard).await;
    let task = |tenant: Option<&str>| match tenant {
        Some(tenant) => json!({"model": "echo", "input": 1, "tenant": tenant}),
        None => json!({"model": "echo", "input": 1}),
    };
    for (key, said, becomes) in [
        ("blue", None, Some("blue")),
        ("blue", Some("blue"), Some("blue")),
        ("blue", Some("red"), None),
        ("blue", Some("default"), None),
        ("blue", Some("*"), None),
        ("all", None, Some("default")),
        ("all", Some("red"), Some("red")),
    ] {
        let one = door.post(key, "/v1/tasks", &task(said)).await;
        let put = door.call(key, Method::PUT, &format!("/v1/tasks/{}", TaskId::new().0), Some(&task(said))).await;
        let many = door.post(key, "/v1/batches", &json!([task(said)])).await;
        let quoted = door.post(key, "/v1/quote", &task(said)).await;
        match becomes {
            Some(tenant) => {
                assert_eq!((one.status, &one.json["tenant"]), (202, &json!(tenant)), "{key} {said:?}");
                assert_eq!((put.status, &put.json["tenant"]), (202, &json!(tenant)), "{key} {said:?}");
                assert_eq!((many.status, &many.json[0]["task"]["tenant"]), (202, &json!(tenant)));
                assert_eq!(quoted.problem(), "scheduler_unavailable");
            }
            None => {
                for got in [one, put, quoted] {
                    assert_eq!((got.status, got.problem(), &got.json["field"]), (403, "forbidden", &json!("tenant")));
                }
                assert_eq!((many.status, &many.json[0]["problem"]["code"]), (403, &json!("forbidden")));
            }
        }
    }
    // A good one beside a bad one is taken.
    let many = door.post("blue", "/v1/batches", &json!([task(Some("red")), task(None)])).await;
    assert_eq!((many.status, &many.json[0]["status"], &many.json[1]["status"]), (202, &json!(403), &json!(202)));
}

/// What a caller gets of an id, without what differs from call to call.
async fn told(door: &Door, key: &str, id: &str) -> Vec<(u16, Value)> {
    let path = format!("/v1/tasks/{id}");
    let mut told = Vec::new();
    for (method, path, body) in [
        (Method::GET, path.clone(), None),
        (Method::HEAD, path.clone(), None),
        (Method::GET, format!("{path}?wait=1ms"), None),
        (Method::GET, format!("{path}/explain"), None),
        (Method::GET, format!("{path}/events"), None),
        // What has the id of one is none of these either.
        (Method::GET, format!("/v1/workflows/{id}"), None),
        (Method::POST, format!("{path}/cancel"), None),
        (Method::POST, format!("{path}/retry"), None),
        (Method::POST, format!("{path}/reprioritize"), Some(json!({"priority": 9}))),
        (Method::POST, format!("{path}/reprioritize"), Some(json!({"priority": "high"}))),
    ] {
        let got = door.call(key, method, &path, body.as_ref()).await;
        told.push((got.status, got.json));
    }
    told
}

#[tokio::test]
async fn another_tenants_task_is_as_one_that_never_was() {
    let yard = Yard::new();
    let door = two_tenants(&yard).await;
    let task = json!({"model": "echo", "input": "secret", "metadata": {"run": "1"}, "idempotency_key": "k"});
    let blue = door.post("blue", "/v1/tasks", &task).await;
    let id = blue.json["id"].as_str().unwrap();

    let never = told(&door, "red", &TaskId::new().0.to_string()).await;
    assert_eq!(told(&door, "red", id).await, never);
    assert!(never.iter().all(|(status, _)| *status == 404), "{never:?}");
    let record = door.get("blue", &format!("/v1/tasks/{id}")).await;
    assert_eq!((record.status, &record.json), (200, &blue.json), "nothing of it was changed");

    // By filters: nothing, whatever they name.
    for query in ["", "?model=echo", "?metadata.run=1", "?state=queued"] {
        let got = door.get("red", &format!("/v1/tasks{query}")).await;
        assert_eq!((got.status, &got.json["tasks"]), (200, &json!([])), "{query}");
        let got = door.get("blue", &format!("/v1/tasks{query}")).await;
        assert_eq!(got.json["tasks"].as_array().unwrap().len(), 1, "{query}");
    }
    assert_eq!(door.get("red", "/v1/tasks?tenant=blue").await.problem(), "forbidden");
    for (path, extra) in [("cancel", json!({})), ("reprioritize", json!({"priority": 9}))] {
        let mut body = extra;
        body["model"] = "echo".into();
        let got = door.post("red", &format!("/v1/tasks/{path}"), &body).await;
        assert_eq!((got.status, &got.json["matched"]), (200, &json!(0)), "{got:?}");
        body["tenant"] = "blue".into();
        let got = door.post("red", &format!("/v1/tasks/{path}"), &body).await;
        assert_eq!((got.status, got.problem()), (403, "forbidden"));
    }
    assert_eq!(door.get("blue", &format!("/v1/tasks/{id}")).await.json["state"], "queued");

    // The same idempotency key is each tenant's own.
    let red = door.post("red", "/v1/tasks", &task).await;
    assert_eq!((red.status, &red.json["tenant"]), (202, &json!("red")));
    assert_ne!(red.json["id"], blue.json["id"]);
    // For whoever may see all there are both.
    assert_eq!(door.get("all", "/v1/tasks").await.json["tasks"].as_array().unwrap().len(), 2);
    assert_eq!(door.get("all", &format!("/v1/tasks/{id}")).await.status, 200);
}

#[tokio::test]
async fn another_tenants_workflow_is_as_one_that_never_was() {
    let yard = Yard::new();
    let door = two_tenants(&yard).await;
    let steps = json!([{"name": "a", "model": "echo", "input": "secret"}]);
    let workflow = json!({"tasks": steps, "metadata": {"run": "1"}, "idempotency_key": "k"});
    let blue = door.post("blue", "/v1/workflows", &workflow).await;
    assert_eq!((blue.status, &blue.json["tenant"]), (202, &json!("blue")), "{blue:?}");
    let id = blue.json["id"].as_str().unwrap();

    let never = told_of_workflow(&door, "red", &TaskId::new().0.to_string()).await;
    assert_eq!(told_of_workflow(&door, "red", id).await, never);
    assert!(never.iter().all(|(status, _)| *status == 404), "{never:?}");
    let record = door.get("blue", &format!("/v1/workflows/{id}")).await;
    assert_eq!((record.status, &record.json), (200, &blue.json), "nothing of it was changed");
    assert_eq!(door.get("all", &format!("/v1/workflows/{id}")).await.status, 200);

    // By filters: nothing, whatever they name.
    for query in ["", "?metadata.run=1", "?state=queued", "?limit=500"] {
        let got = door.get("red", &format!("/v1/workflows{query}")).await;
        assert_eq!((got.status, &got.json["workflows"]), (200, &json!([])), "{query}");
        let got = door.get("blue", &format!("/v1/workflows{query}")).await;
        assert_eq!(got.json["workflows"].as_array().unwrap().len(), 1, "{query}");
    }
    assert_eq!(door.get("red", "/v1/workflows?tenant=blue").await.problem(), "forbidden");
    assert_eq!(door.get("all", "/v1/workflows?tenant=blue").await.json["workflows"][0]["id"], *id);

    // Nor is it had by naming it: the key is each tenant's own, and an id is a conflict that tells nothing.
    let red = door.post("red", "/v1/workflows", &workflow).await;
    assert_eq!((red.status, &red.json["tenant"]), (202, &json!("red")));
    assert_ne!(red.json["id"], blue.json["id"]);
    let taken = door.post("red", "/v1/workflows", &json!({"tasks": steps, "id": id})).await;
    assert_eq!((taken.status, taken.problem()), (409, "conflict"));
    assert!(!taken.text.contains("secret") && !taken.text.contains("blue"), "{taken:?}");

    // And nobody submits as another.
    for (key, tenant, status) in [("blue", "red", 403), ("blue", "blue", 202), ("all", "red", 202)] {
        let got = door.post(key, "/v1/workflows", &json!({"tasks": steps, "tenant": tenant})).await;
        assert_eq!(got.status, status, "{key} as {tenant}: {got:?}");
    }
    // What a tenant's key may not send alone, it may not send as a step.
    let deploys = json!([{"name": "a", "model": "echo", "kind": "deployment", "input": {"action": "retire"}}]);
    let got = door.post("blue", "/v1/workflows", &json!({"tasks": deploys})).await;
    assert_eq!((got.status, got.problem(), &got.json["field"]), (403, "forbidden", &json!("tasks[0].kind")));
}

/// As [`told`], of a workflow.
async fn told_of_workflow(door: &Door, key: &str, id: &str) -> Vec<(u16, Value)> {
    let path = format!("/v1/workflows/{id}");
    let mut told = Vec::new();
    for (method, path) in [
        (Method::GET, path.clone()),
        (Method::HEAD, path.clone()),
        (Method::GET, format!("{path}?wait=1ms")),
        (Method::POST, format!("{path}/cancel")),
        (Method::GET, format!("/v1/tasks/{id}")),
        (Method::GET, format!("/v1/tasks/{id}/events")),
        (Method::POST, format!("/v1/tasks/{id}/cancel")),
    ] {
        let got = door.call(key, method, &path, None).await;
        told.push((got.status, got.json));
    }
    told
}

#[tokio::test]
async fn an_id_that_another_tenant_has_is_a_conflict_and_tells_nothing_of_its_task() {
    let yard = Yard::working().await;
    let door = two_tenants(&yard).await;
    let path = format!("/v1/tasks/{}", TaskId::new().0);
    // The very same content: only the tenant differs.
    let task = json!({"model": "echo", "input": "secret"});
    let put = |key: &'static str| {
        let request = door.request(Method::PUT, &path).bearer_auth(&door.keys[key]).header("prefer", "wait=20");
        door.gateway.send(request.json(&task))
    };
    let blue = put("blue").await;
    assert_eq!((blue.status, &blue.json["output"]), (200, &json!("secret")));
    let red = put("red").await;
    assert_eq!((red.status, red.problem()), (409, "conflict"));
    assert!(!red.text.contains("secret") && !red.text.contains("blue"), "{red:?}");
    assert_eq!(put("blue").await.json["output"], json!("secret"));
}

#[tokio::test]
async fn while_the_store_is_away_a_result_still_goes_to_its_own_tenant() {
    let yard = Yard::new();
    let door = two_tenants(&yard).await;
    let path = format!("/v1/tasks/{}", TaskId::new().0);
    let task = json!({"model": "echo", "input": "secret"});
    let put = |key: &'static str| {
        let request = door.request(Method::PUT, &path).bearer_auth(&door.keys[key]).header("prefer", "wait=20");
        door.gateway.send(request.json(&task))
    };
    // Nobody can be found to have the id before, so that both are taken in; the worker has its store.
    yard.store.go_away(true);
    let work = async {
        yard::eventually("both wait", || async { yard.depth(&yard.topology.intake()).await == 2 }).await;
        yard.work().await;
    };
    let (blue, red, ()) = tokio::join!(put("blue"), put("red"), work);
    let with_result: Vec<&Got> = [&blue, &red].into_iter().filter(|got| got.text.contains("secret")).collect();
    assert!(with_result.len() <= 1, "{blue:?} {red:?}");
    for (got, tenant) in [(&blue, "blue"), (&red, "red")] {
        assert!(got.json["code"] == "conflict" || got.json["tenant"] == tenant, "{got:?}");
    }
}

/// A workflow of this id as a scheduler writes it when it has ended.
fn ended(id: TaskId, tenant: &str, output: &str) -> WorkflowWrite {
    let body = json!({"id": id, "tenant": tenant, "tasks": [{"name": "a", "model": "echo", "input": 1}]}).to_string();
    let (order, plan) = WorkflowOrder::read(body.as_bytes(), &Carried::default(), Timestamp::now()).unwrap();
    let fingerprint = order.fingerprint(&plan);
    let mut record = order.queued(plan);
    record.state = WorkflowState::Succeeded;
    record.outputs = BTreeMap::from([("a".to_owned(), RawValue::from_string(format!("\"{output}\"")).unwrap())]);
    WorkflowWrite::new(&record, fingerprint).unwrap()
}

#[tokio::test]
async fn while_the_store_is_away_a_workflows_end_still_goes_to_its_own_tenant() {
    let yard = Yard::new();
    let door = two_tenants(&yard).await;
    let (blue, own) = (TaskId::new(), TaskId::new());
    yard.store.inner().accept_workflow(ended(blue, "blue", "secret")).await.unwrap();
    yard.store.inner().accept_workflow(ended(own, "red", "its own")).await.unwrap();
    let post = |id: TaskId| {
        let body = json!({"id": id, "tasks": [{"name": "a", "model": "echo", "input": 1}]});
        let request = door.request(Method::POST, "/v1/workflows").bearer_auth(&door.keys["red"]);
        door.gateway.send(request.header("prefer", "wait=20").json(&body))
    };
    // Nobody can be found to have the ids before: both are taken in, and wait.
    yard.store.go_away(true);
    let back = async {
        yard::eventually("both are accepted", || async { yard.depth(&yard.topology.intake()).await == 2 }).await;
        yard.store.go_away(false);
    };
    let (taken, mine, ()) = tokio::join!(post(blue), post(own), back);
    assert!(!taken.text.contains("secret") && !taken.text.contains("blue"), "{taken:?}");
    assert_eq!((taken.status, taken.problem()), (409, "conflict"));
    assert_eq!((mine.status, &mine.json["outputs"]), (200, &json!({"a": "its own"})), "{mine:?}");
}

#[tokio::test]
async fn what_a_step_does_is_told_of_its_own_tenants_task() {
    let yard = Yard::new();
    let door = two_tenants(&yard).await;
    for (tenant, shown) in [("red", "running"), ("blue", "queued")] {
        let id = TaskId::new();
        let body =
            json!({"id": id, "tenant": "red", "tasks": [{"name": "a", "model": "echo", "input": 1}]}).to_string();
        let (order, plan) = WorkflowOrder::read(body.as_bytes(), &Carried::default(), Timestamp::now()).unwrap();
        let fingerprint = order.fingerprint(&plan);
        let mut record = order.queued(plan);
        record.state = WorkflowState::Running;
        let step = WorkflowId(id.0).task("a", None);
        (record.steps[0].state, record.steps[0].task) = (StepState::Queued, Some(step));
        yard.store.inner().accept_workflow(WorkflowWrite::new(&record, fingerprint).unwrap()).await.unwrap();
        let envelope = task_of(step, tenant);
        let accept = Accept {
            id: step,
            fingerprint: envelope.fingerprint(),
            alias: None,
            record: envelope.result(State::Running),
            follower: None,
        };
        yard.store.inner().accept(vec![accept]).await.unwrap();
        let got = door.get("red", &format!("/v1/workflows/{}", id.0)).await;
        assert_eq!((got.status, &got.json["steps"][0]["state"]), (200, &json!(shown)), "{tenant}: {got:?}");
    }
}

fn task_of(id: TaskId, tenant: &str) -> Envelope {
    let input = RawValue::from_string("1".into()).unwrap();
    let mut task = Task::new(Target::Model("echo".into()), input);
    (task.id, task.tenant) = (Some(id), Some(tenant.into()));
    Envelope::new(task, &Carried::default(), Timestamp::now()).unwrap()
}

#[tokio::test]
async fn a_stream_ends_when_its_id_has_become_another_tenants() {
    let yard = Yard::new();
    let door = two_tenants(&yard).await;
    let id = TaskId::new();
    let path = format!("/v1/tasks/{}", id.0);
    let red = door.call("red", Method::PUT, &path, Some(&json!({"model": "echo", "input": 1}))).await;
    assert_eq!((red.status, &red.json["tenant"]), (202, &json!("red")));
    let stream = door.request(Method::GET, &format!("{path}/events")).bearer_auth(&door.keys["red"]);
    let mut stream = yard::within(stream.send()).await.unwrap();
    let first = yard::within(stream.chunk()).await.unwrap().unwrap();
    assert!(first.starts_with(b"event: state"), "{first:?}");
    // The store loses everything, and a worker settles what blue had sent under this id.
    let mut result = task_of(id, "blue").result(State::Succeeded);
    result.output = Some(RawValue::from_string("\"secret\"".into()).unwrap());
    let store = EmbeddedStore::in_memory(Retention::default());
    store.settle(vec![Settle::new(Guard::Unclaimed, result)]).await.unwrap();
    yard.store.replace(store);
    let mut rest = Vec::new();
    while let Some(more) = yard::within(stream.chunk()).await.unwrap() {
        rest.extend_from_slice(&more);
    }
    let rest = String::from_utf8_lossy(&rest);
    assert!(!rest.contains("secret") && !rest.contains("blue"), "{rest}");
    assert_eq!(door.get("red", &path).await.status, 404);
}

#[tokio::test]
async fn only_an_admin_deploys() {
    let yard = Yard::new();
    let door = Door::new(&yard, &[("all", "*", &SCOPES, None), ("most", "*", TENANT, None)]).await;
    let task = json!({"model": "echo", "kind": "deployment", "input": {"action": "retire"}});
    for (method, path) in
        [(Method::POST, "/v1/tasks".to_owned()), (Method::PUT, format!("/v1/tasks/{}", TaskId::new().0))]
    {
        let got = door.call("most", method, &path, Some(&task)).await;
        assert_eq!((got.status, got.problem(), &got.json["field"]), (403, "forbidden", &json!("kind")), "{path}");
    }
    let got = door.post("most", "/v1/batches", &json!([task])).await;
    assert_eq!((got.status, &got.json[0]["problem"]["code"]), (403, &json!("forbidden")));
    assert_eq!(door.post("all", "/v1/tasks", &task).await.status, 202);
}

#[tokio::test]
async fn only_an_admin_pauses_a_model() {
    let yard = Yard::new();
    let spec = ModelSpec {
        name: "echo".to_owned(),
        version: "1".to_owned(),
        handler: "simulated".to_owned(),
        capabilities: Vec::new(),
        slots: 1,
        timeout_ms: 1000,
        max_attempts: 3,
        max_batch: 1,
        max_delay_ms: 0,
        memory_mb: 0,
        gpus: 0,
        expected_ms: None,
        quality: None,
    };
    yard.store.announce(&[spec]).await.unwrap();
    let door = two_tenants(&yard).await;
    assert_eq!(door.post("blue", "/v1/queues/echo/pause", &json!({})).await.status, 403);
    assert!(yard.store.paused().await.unwrap().is_empty());
    let got = door.post("all", "/v1/queues/echo/pause", &json!({})).await;
    assert_eq!((got.status, &got.json["paused"]), (200, &json!(true)), "{got:?}");
}

#[tokio::test]
async fn without_keys_a_page_of_another_site_is_not_served() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let post = |header: &'static str, value: &'static str| {
        gateway.http.post(gateway.url("/v1/queues/echo/pause")).header(header, value)
    };
    for (header, value) in [("origin", "http://evil.example"), ("origin", "null"), ("host", "evil.example")] {
        let got = gateway.send(post(header, value)).await;
        assert_eq!((got.status, got.problem()), (403, "forbidden"), "{header}: {value}");
    }
    let turned_away = gateway.metric("taskyard_http_requests_turned_away_total{reason=\"page\"}").await;
    assert_eq!(turned_away, Some(3.0));
    let own = format!("http://{}", gateway.address);
    let got = gateway.send(gateway.http.post(gateway.url("/v1/queues/echo/pause")).header("origin", own)).await;
    assert_ne!(got.status, 403);
    // Whether the process lives is nobody's secret.
    assert_eq!(
        gateway.send(gateway.http.get(gateway.url("/healthz")).header("host", "evil.example")).await.status,
        200
    );

    // A page has no key.
    let door = Door::new(&yard, &[("key", "*", &["admin", "read"], None)]).await;
    let request = door.request(Method::GET, "/v1/queues").header("host", "yard.example").bearer_auth(&door.keys["key"]);
    assert_eq!(door.gateway.send(request).await.status, 200);
}
