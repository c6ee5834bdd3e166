//! Workflows: published, run step by step, told of when they end; whatever is lost meanwhile.

mod again;
mod unrun;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use taskyard_shared::store::Filter;
use taskyard_shared::workflow::WorkflowId;

use super::*;

impl Yard {
    async fn publish_workflow(&self, body: Value) -> Uuid {
        self.publish_with(vec![body], |properties| properties.kind = Some("workflow".into())).await[0]
    }

    async fn publish_workflow_as(&self, id: Uuid, body: Value) {
        let as_it_is = |properties: &mut Properties| {
            properties.kind = Some("workflow".into());
            properties.message_id = Some(id.to_string());
            properties.correlation_id = Some(id.to_string());
        };
        self.publish_with(vec![body], as_it_is).await;
    }

    /// Waits until the end of so many workflows was told.
    async fn told_ends(&self, count: usize) -> Vec<Value> {
        let mut consumer = self.broker.consume(&self.replies, 100).await.unwrap();
        let acker = consumer.acker();
        let mut ends = Vec::new();
        while ends.len() < count {
            let batch =
                tokio::time::timeout(PATIENCE, consumer.next_batch(count - ends.len())).await.expect("an end").unwrap();
            for delivery in &batch {
                assert_eq!(delivery.properties.kind.as_deref(), Some("workflow"));
                let end: Value = serde_json::from_slice(&delivery.body).unwrap();
                assert_eq!(delivery.properties.message_id.as_deref(), end["id"].as_str());
                assert!(delivery.properties.correlation_id.is_some());
                ends.push(end);
            }
            acker.settle(batch.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
        }
        ends
    }

    pub(super) async fn told_end(&self) -> Value {
        self.told_ends(1).await.remove(0)
    }

    pub(super) async fn run_workflow(&self, body: Value) -> Value {
        self.publish_workflow(body).await;
        self.told_end().await
    }

    /// The record of a step's task.
    async fn task_of(&self, workflow: Uuid, step: &str) -> Option<TaskResult> {
        self.store.get(vec![WorkflowId(workflow).task(step, None)]).await.unwrap().remove(0)
    }

    async fn task_is(&self, workflow: Uuid, step: &str, state: State) {
        let asking = async {
            while self.task_of(workflow, step).await.is_none_or(|task| task.state != state) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{step} is never {state:?}"));
    }
}

fn step(name: &str, more: Value) -> Value {
    let mut step = json!({"name": name, "model": "m", "input": {}});
    step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    step
}

/// Each step's state, and the code of its error.
fn states(end: &Value) -> BTreeMap<&str, String> {
    let state = |step: &Value| match step["error"]["code"].as_str() {
        Some(code) => format!("{} {code}", step["state"].as_str().unwrap()),
        None => step["state"].as_str().unwrap().to_owned(),
    };
    end["steps"].as_array().unwrap().iter().map(|step| (step["name"].as_str().unwrap(), state(step))).collect()
}

fn are<const N: usize>(states: [(&'static str, &str); N]) -> BTreeMap<&'static str, String> {
    states.into_iter().map(|(step, state)| (step, state.to_owned())).collect()
}

fn wide() -> ModelSpec {
    ModelSpec { slots: 4, ..spec("m") }
}

/// A yard with a scheduler and a worker that has a gate.
async fn running(change: impl FnOnce(&mut Settings)) -> (Yard, Arc<Obedient>, CancellationToken) {
    let yard = Yard::new(change).await;
    let handler = Arc::new(Obedient { gate: Some(Arc::new(Semaphore::new(0))), ..Obedient::default() });
    yard.worker("w", vec![(wide(), handler.clone())]);
    let scheduler = yard.scheduler(&[wide()]);
    (yard, handler, scheduler)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diamond_passes_its_data_on_and_its_steps_are_tasks_that_name_it() {
    let (yard, handler, _scheduler) = running(|_| {}).await;
    let id = yard
        .publish_workflow(json!({"priority": 7, "metadata": {"of": "test"}, "tasks": [
            step("join", json!({"input": {"b": {"$from": "b"}, "c": {"$from": "c", "path": "/output/0"}}})),
            step("b", json!({"input": {"$from": "a", "path": "/output/rows"}})),
            step("c", json!({"input": [{"$from": "a", "path": "/output/rows/0"}, 2], "priority": 9})),
            step("a", json!({"input": {"rows": [1.25, {"as": "it  came"}]}})),
        ]}))
        .await;
    let end = yard.told_end().await;
    assert_eq!((end["id"].as_str(), end["state"].as_str()), (Some(&*id.to_string()), Some("succeeded")), "{end}");
    assert_eq!(end["outputs"], json!({"join": {"b": [1.25, {"as": "it  came"}], "c": 1.25}}));
    assert_eq!((&end["counts"], &end["metadata"]), (&json!({"succeeded": 4}), &json!({"of": "test"})));
    assert_eq!(handler.runs.load(Ordering::SeqCst), 4);
    let of = |end: &Value, at: usize| end["steps"][at]["task"].as_str().unwrap().parse::<Uuid>().unwrap();
    let tasks = yard.store.get(vec![TaskId(of(&end, 0)), TaskId(of(&end, 2))]).await.unwrap();
    let shown: Vec<_> = tasks
        .iter()
        .flatten()
        .map(|task| {
            let of = task.workflow.as_ref().unwrap();
            (task.state, of.id.0, of.step.as_str(), task.priority.get(), task.attempt)
        })
        .collect();
    assert_eq!(shown, [(State::Succeeded, id, "join", 7, 1), (State::Succeeded, id, "c", 9, 1)]);
    let kept = yard.store.workflow(WorkflowId(id)).await.unwrap().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&kept.record).unwrap(), end, "what is told is what is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fan_out_is_joined_in_the_order_of_its_array() {
    let (yard, handler, _scheduler) = running(|_| {}).await;
    let end = yard
        .run_workflow(json!({"tasks": [
            step("split", json!({"input": {"parts": (0..50).map(|n| json!({"n": n})).collect::<Vec<_>>()}})),
            step("part", json!({"for_each": {"$from": "split", "path": "/output/parts"}, "input": {"of": {"$item": "/n"}}})),
            step("none", json!({"for_each": [], "input": 1})),
            step("join", json!({"input": [{"$from": "part"}, {"$from": "none"}]})),
        ]}))
        .await;
    assert_eq!(end["state"], "succeeded", "{end}");
    let parts: Vec<Value> = (0..50).map(|n| json!({"of": n})).collect();
    assert_eq!(end["outputs"]["join"], json!([parts, []]));
    assert_eq!(end["steps"][1]["items"], json!({"total": 50, "succeeded": 50, "failed": 0}));
    assert_eq!(handler.runs.load(Ordering::SeqCst), 52);
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_are_taken_by_what_a_result_says_and_a_step_is_tried_again_by_itself() {
    let (yard, _handler, _scheduler) = running(|_| {}).await;
    let end = yard
        .run_workflow(json!({"tasks": [
            step("score", json!({"input": {"do": "fail once", "accuracy": 0.93}, "max_attempts": 3})),
            step("deploy", json!({"when": {"$from": "score", "path": "/output/accuracy", "gte": 0.9}})),
            step("complain", json!({"when": {"$from": "score", "path": "/output/accuracy", "lt": 0.9}})),
            step("join", json!({"after": "any_succeeded", "depends_on": ["deploy", "complain"]})),
        ]}))
        .await;
    assert_eq!(end["state"], "succeeded", "{end}");
    let expected = [
        ("score", "succeeded"),
        ("deploy", "succeeded"),
        ("complain", "skipped condition_false"),
        ("join", "succeeded"),
    ];
    assert_eq!(states(&end), are(expected));
    assert_eq!(end["steps"][0]["attempt"], 2, "{end}");
    let id = end["id"].as_str().unwrap().parse().unwrap();
    let skipped = yard.task_of(id, "complain").await.unwrap();
    assert_eq!((skipped.state, &*skipped.error.unwrap().code), (State::Cancelled, "condition_false"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_says_what_a_failure_does_to_the_others() {
    let (yard, handler, _scheduler) = running(|_| {}).await;
    let body = |policy: &str| {
        json!({"on_failure": policy, "tasks": [
            step("bad", json!({"input": {"do": "fail"}})),
            step("after", json!({"depends_on": ["bad"]})),
            step("cleanup", json!({"depends_on": ["after"], "after": "all_done"})),
            step("other", json!({"input": {"do": "wait"}})),
            step("next", json!({"depends_on": ["other"]})),
        ]})
    };
    for (policy, expected) in [
        (
            "cancel_dependents",
            [
                ("bad", "failed own_code"),
                ("after", "cancelled dependency_failed"),
                ("cleanup", "succeeded"),
                ("other", "succeeded"),
                ("next", "succeeded"),
            ],
        ),
        (
            "continue",
            [
                ("bad", "failed own_code"),
                ("after", "succeeded"),
                ("cleanup", "succeeded"),
                ("other", "succeeded"),
                ("next", "succeeded"),
            ],
        ),
        (
            "fail_fast",
            [
                ("bad", "failed own_code"),
                ("after", "cancelled fail_fast"),
                ("cleanup", "cancelled fail_fast"),
                // It runs without a claim, and cannot be stopped: it ends as it ends.
                ("other", "succeeded"),
                ("next", "cancelled fail_fast"),
            ],
        ),
    ] {
        let id = yard.publish_workflow(body(policy)).await;
        yard.task_is(id, "bad", State::Failed).await;
        if policy == "fail_fast" {
            yard.task_is(id, "next", State::Cancelled).await;
        }
        handler.gate.as_ref().unwrap().add_permits(1);
        let end = yard.told_end().await;
        let mut got = states(&end);
        // Whether it was begun before it was to be stopped is chance.
        if policy == "fail_fast" && got["other"].starts_with("cancelled") {
            got.insert("other", "succeeded".to_owned());
            handler.gate.as_ref().unwrap().acquire().await.unwrap().forget();
        }
        assert_eq!(got, are(expected), "{policy}: {end}");
        assert_eq!((&end["state"], &end["error"]["code"]), (&json!("failed"), &json!("own_code")));
        assert_eq!(end["error"]["message"], "step bad: as told");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_are_blocked_until_it_is_their_turn_and_an_end_that_was_asked_for_reaches_all() {
    let (yard, handler, _scheduler) = running(|_| {}).await;
    // Claimed, so that it can be stopped.
    let id = yard
        .publish_workflow(json!({"tasks": [
            step("first", json!({"input": {"do": "wait"}})),
            step("then", json!({"input": {"$from": "first"}})),
            step("last", json!({"depends_on": ["then"]})),
        ]}))
        .await;
    eventually("the first to run", || handler.runs.load(Ordering::SeqCst) == 1).await;
    yard.task_is(id, "last", State::Blocked).await;
    let blocked = Filter { state: Some(State::Blocked), ..Filter::default() };
    assert_eq!(yard.store.list(&blocked, None, 10).await.unwrap().tasks.len(), 2);
    assert!(yard.store.cancel_workflow(WorkflowId(id)).await.unwrap().is_some());
    let ask = taskyard_shared::control::Ask::CancelWorkflow { id: WorkflowId(id) };
    let question = taskyard_shared::control::Question::new(ask);
    let reply =
        taskyard_shared::Reply { to: yard.topology.replies("nobody").into(), correlation_id: None, array: false };
    let question = messages::question(&yard.topology, 0, &question, &reply).unwrap();
    assert_eq!(yard.broker.publish(vec![question]).await, [Ok(())]);
    yard.task_is(id, "last", State::Cancelled).await;
    handler.gate.as_ref().unwrap().add_permits(1);
    let end = yard.told_end().await;
    assert_eq!(end["state"], "cancelled", "{end}");
    assert_eq!(states(&end)["then"], "cancelled cancelled");
    assert_eq!(handler.runs.load(Ordering::SeqCst), 1);

    // One that is cancelled before it is published.
    let early = Uuid::new_v4();
    yard.store.cancel_workflow(WorkflowId(early)).await.unwrap();
    yard.publish_workflow_as(early, json!({"tasks": [step("a", json!({}))]})).await;
    let end = yard.told_end().await;
    assert_eq!((&end["state"], &end["counts"]), (&json!("cancelled"), &json!({"cancelled": 1})), "{end}");
    assert_eq!(handler.runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_workflow_again_is_the_same_workflow_and_another_under_its_id_is_refused() {
    let (yard, handler, _scheduler) = running(|_| {}).await;
    let id = Uuid::new_v4();
    let body = json!({"id": id, "tasks": [step("a", json!({"input": {"do": "wait"}}))]});
    yard.publish_workflow(body.clone()).await;
    eventually("it to run", || handler.runs.load(Ordering::SeqCst) == 1).await;
    yard.publish_workflow(body.clone()).await;
    yard.publish_workflow(json!({"id": id, "tasks": [step("b", json!({}))]})).await;
    let conflict = yard.told_end().await;
    assert_eq!((&conflict["state"], &conflict["error"]["code"]), (&json!("rejected"), &json!("conflict")));
    handler.gate.as_ref().unwrap().add_permits(1);
    let both = yard.told_ends(2).await;
    assert!(both.iter().all(|end| end["state"] == "succeeded" && end["id"] == json!(id)), "{both:?}");
    yard.publish_workflow(body).await;
    assert_eq!(yard.told_end().await, both[0], "after its end, too");
    // By a key of its tenant.
    let keyed = json!({"idempotency_key": "k", "tenant": "acme", "tasks": [step("a", json!({}))]});
    let nameless =
        |properties: &mut Properties| (properties.kind, properties.message_id) = (Some("workflow".into()), None);
    yard.publish_with(vec![keyed.clone(), keyed], nameless).await;
    let both = yard.told_ends(2).await;
    assert_eq!(both[0]["id"], both[1]["id"]);
    assert_eq!(handler.runs.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_workflow_is_answered_with_its_place_and_kept_as_a_dead_letter() {
    let (yard, _handler, _scheduler) = running(|_| {}).await;
    let table = [
        (json!({"tasks": []}), "invalid_field", "tasks: must not be empty"),
        (
            json!({"tasks": [step("a", json!({"depends_on": ["b"]})), step("b", json!({"depends_on": ["a"]}))]}),
            "invalid_field",
            "a → b → a",
        ),
        (
            json!({"tasks": [step("a", json!({"depends_on": ["x"]}))]}),
            "invalid_field",
            "tasks[0].depends_on[0]: no step is called \"x\"",
        ),
        (
            json!({"tasks": [step("a", json!({})), step("b", json!({"input": {"k": [{"$from": "a", "path": "/rows"}]}}))]}),
            "invalid_field",
            "tasks[1].input.k[0]: path \"/rows\"",
        ),
        (json!([1]), "shape", "body: a workflow must be an object"),
    ];
    for (body, code, message) in table {
        let end = yard.run_workflow(body.clone()).await;
        assert_eq!((&end["state"], &end["error"]["code"]), (&json!("rejected"), &json!(code)), "{body}");
        assert!(end["error"]["message"].as_str().unwrap().contains(message), "{body}: {end}");
    }
    assert_eq!(yard.dead(5).await, ["invalid_field", "invalid_field", "invalid_field", "invalid_field", "shape"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_dies_is_followed_by_one_that_repeats_no_step() {
    // Tasks of a model that is known to be short are run unclaimed, and may run twice when the scheduler dies meanwhile.
    let model = ModelSpec { expected_ms: Some(10_000.0), ..wide() };
    let yard = Yard::new(|_| {}).await;
    let handler = Arc::new(Obedient { gate: Some(Arc::new(Semaphore::new(0))), ..Obedient::default() });
    yard.worker("w", vec![(model.clone(), handler.clone())]);
    let scheduler = yard.scheduler(std::slice::from_ref(&model));
    let id = yard
        .publish_workflow(json!({"tasks": [
            step("a", json!({"input": {"n": 1}})),
            step("parts", json!({"for_each": [1, 2, 3], "input": [{"$item": ""}, {"$from": "a", "path": "/output/n"}]})),
            step("wait", json!({"input": {"do": "wait", "of": {"$from": "parts"}}})),
            step("z", json!({"input": {"$from": "wait", "path": "/output/of/2"}})),
        ]}))
        .await;
    eventually("the last but one to run", || handler.runs.load(Ordering::SeqCst) == 5).await;
    scheduler.cancel();
    let _second = yard.scheduler(&[model]);
    handler.gate.as_ref().unwrap().add_permits(1);
    let end = yard.told_end().await;
    assert_eq!((&end["state"], &end["outputs"]), (&json!("succeeded"), &json!({"z": [3, 1]})), "{end}");
    assert_eq!(end["id"], json!(id));
    assert_eq!(handler.runs.load(Ordering::SeqCst), 6, "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_lost_everything_costs_repeats_and_never_the_workflow() {
    let mut yard = Yard::new(|_| {}).await;
    let handler = Arc::new(Obedient { gate: Some(Arc::new(Semaphore::new(0))), ..Obedient::default() });
    let (_, kill) = yard.worker("w", vec![(wide(), handler.clone())]);
    let scheduler = yard.scheduler(&[wide()]);
    let body = json!({"tasks": [
        step("a", json!({"input": {"n": 1}})),
        step("wait", json!({"input": {"do": "wait", "of": {"$from": "a", "path": "/output/n"}}})),
        step("z", json!({"input": {"$from": "wait", "path": "/output/of"}})),
    ]});
    yard.publish_workflow(body).await;
    eventually("the second to run", || handler.runs.load(Ordering::SeqCst) == 2).await;
    // All processes end, and nothing is left but what the broker holds.
    scheduler.cancel();
    kill.cancel();
    yard.store = Arc::new(EmbeddedStore::in_memory(Retention::default()));
    let _second = yard.scheduler(&[wide()]);
    let open = Arc::new(Obedient { gate: Some(Arc::new(Semaphore::new(100))), ..Obedient::default() });
    yard.worker("v", vec![(wide(), open)]);
    let end = yard.told_end().await;
    assert_eq!((&end["state"], &end["outputs"]), (&json!("succeeded"), &json!({"z": 1})), "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_that_runs_for_long_goes_round_and_is_not_begun_again() {
    let (yard, handler, _scheduler) = running(|settings| settings.scheduler.max_held_s = 0).await;
    yard.publish_workflow(
        json!({"tasks": [step("a", json!({"input": {"do": "wait"}})), step("b", json!({"depends_on": ["a"]}))]}),
    )
    .await;
    eventually("it to run", || handler.runs.load(Ordering::SeqCst) == 1).await;
    let operations = yard.broker.operations().unwrap();
    let published = || operations.published.load(Ordering::Relaxed);
    let rounds = published() + 5;
    eventually("some rounds", || published() >= rounds).await;
    handler.gate.as_ref().unwrap().add_permits(1);
    assert_eq!(yard.told_end().await["state"], "succeeded");
    assert_eq!(handler.runs.load(Ordering::SeqCst), 2);
    let empty = async || yard.broker.queue_state(&yard.topology.workflows(0)).await.unwrap().unwrap().ready == 0;
    let waiting = async {
        while !empty().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("its last copy to be taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_not_begun_by_the_deadline_never_does() {
    let (yard, handler, _scheduler) = running(|_| {}).await;
    let end = async {
        yard.publish_workflow(json!({"deadline_ms": 300, "tasks": [
            step("a", json!({"input": {"do": "wait"}})),
            step("b", json!({"depends_on": ["a"]})),
        ]}))
        .await;
        let registry = || yard.registry.render().unwrap();
        eventually("it to run", || handler.runs.load(Ordering::SeqCst) == 1).await;
        assert!(registry().contains("taskyard_workflows_active 1"), "{}", registry());
        // It is told when what runs has ended, in time or not.
        let id = yard.store.list(&Filter::default(), None, 1).await.unwrap().tasks[0].workflow.clone().unwrap().id;
        yard.task_is(id.0, "b", State::Expired).await;
        handler.gate.as_ref().unwrap().add_permits(1);
        yard.told_end().await
    };
    let end = end.await;
    assert_eq!(end["state"], "expired", "{end}");
    assert_eq!(states(&end)["b"], "expired expired");
    let text = yard.registry.render().unwrap();
    assert!(text.contains("taskyard_workflows_finished_total{outcome=\"expired\"} 1"), "{text}");
    assert!(text.contains("taskyard_workflows_active 0"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_shards_run_workflows_and_each_has_one_end() {
    let (yard, handler, _first) = running(|settings| settings.scheduler.shards = 2).await;
    let registry = Registry::new().unwrap();
    tokio::spawn(yard.new_scheduler(&[wide()], &registry).run(CancellationToken::new()));
    let body = |n: usize| {
        json!({"tasks": [
            step("a", json!({"input": {"n": n}})),
            step("b", json!({"for_each": [1, 2], "input": [{"$item": ""}, {"$from": "a", "path": "/output/n"}]})),
        ]})
    };
    for n in 0..20 {
        yard.publish_workflow(body(n)).await;
    }
    let mut outputs: Vec<Value> = yard.told_ends(20).await.into_iter().map(|end| end["outputs"]["b"].clone()).collect();
    outputs.sort_by_key(|output| output[0][1].as_u64());
    assert_eq!(outputs, (0..20).map(|n| json!([[1, n], [2, n]])).collect::<Vec<_>>());
    assert_eq!(handler.runs.load(Ordering::SeqCst), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_graphs_of_every_shape_run_to_their_end() {
    let (yard, handler, _scheduler) = running(|_| {}).await;
    const STEPS: usize = 1_000;
    let chain = (0..STEPS).map(|n| match n {
        0 => step("s0", json!({"input": [0]})),
        n => step(&format!("s{n}"), json!({"input": [n, {"$from": format!("s{}", n - 1), "path": "/output/0"}]})),
    });
    let layered = (0..STEPS).map(|n| {
        let on: Vec<String> =
            if n < 10 { Vec::new() } else { (0..3).map(|k| format!("s{}", n / 10 * 10 - 10 + (n + k) % 10)).collect() };
        step(&format!("s{n}"), json!({"depends_on": on}))
    });
    let rows: Vec<usize> = (0..STEPS - 2).collect();
    let fan =
        [step("f", json!({"for_each": rows, "input": {"$item": ""}})), step("j", json!({"input": {"$from": "f"}}))];
    for tasks in [chain.collect::<Vec<_>>(), layered.collect(), fan.into()] {
        let before = handler.runs.load(Ordering::SeqCst);
        let count = tasks.len();
        let end = yard.run_workflow(json!({"tasks": tasks})).await;
        assert_eq!(end["state"], "succeeded", "{}", end["error"]);
        match count {
            2 => assert_eq!(end["outputs"]["j"], json!(rows)),
            _ => assert_eq!(handler.runs.load(Ordering::SeqCst) - before, STEPS),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_a_workflow_is_submitted_waited_for_and_cancelled() {
    let (yard, handler, _scheduler) = running(|_| {}).await;
    let api = super::control::Api::new(&yard).await;
    let body = json!({"tasks": [step("a", json!({"input": {"n": 7}})), step("b", json!({"input": {"$from": "a", "path": "/output/n"}}))]});
    let (status, accepted) = api.post("/v1/workflows", body.clone()).await;
    assert_eq!((status, &accepted["counts"]), (202, &json!({"blocked": 2})), "{accepted}");
    let path = format!("/v1/workflows/{}", accepted["id"].as_str().unwrap());
    let (status, end) = api.get(&format!("{path}?wait=30s")).await;
    assert_eq!((status, &end["state"], &end["outputs"]), (200, &json!("succeeded"), &json!({"b": 7})), "{end}");
    let (status, again) = api.post(&format!("{path}/cancel"), json!({})).await;
    assert_eq!(
        (status, &again["code"], &again["outcome"]),
        (409, &json!("already_finished"), &json!("already_finished"))
    );

    let keyed = json!({"idempotency_key": "nightly", "tasks": [
        step("a", json!({"input": {"do": "wait"}})),
        step("b", json!({"input": {"$from": "a"}})),
    ]});
    let (_, first) = api.post("/v1/workflows", keyed.clone()).await;
    eventually("it to run", || handler.runs.load(Ordering::SeqCst) == 3).await;
    let (status, second) = api.post("/v1/workflows", keyed).await;
    assert_eq!((status, &second["id"]), (202, &first["id"]));
    let other = json!({"idempotency_key": "nightly", "tasks": [step("a", json!({}))]});
    let (status, conflict) = api.post("/v1/workflows", other).await;
    assert_eq!((status, &conflict["code"]), (409, &json!("conflict")));
    let path = format!("/v1/workflows/{}", first["id"].as_str().unwrap());
    let (status, cancelled) = api.post(&format!("{path}/cancel"), json!({})).await;
    // By then the step that runs has been stopped, or not yet.
    let outcomes = [(200, json!("cancelled")), (202, json!("requested"))];
    assert!(outcomes.contains(&(status, cancelled["outcome"].clone())), "{status} {cancelled}");
    handler.gate.as_ref().unwrap().add_permits(1);
    let (_, end) = api.get(&format!("{path}?wait=30s")).await;
    assert_eq!(end["state"], "cancelled", "{end}");
    let (status, cancelled) = api.post(&format!("{path}/cancel"), json!({})).await;
    assert_eq!((status, &cancelled["outcome"]), (200, &json!("cancelled")));

    let step_task = end["steps"][1]["task"].as_str().unwrap();
    let (_, task) = api.get(&format!("/v1/tasks/{step_task}")).await;
    assert_eq!((&task["state"], &task["workflow"]["step"]), (&json!("cancelled"), &json!("b")), "{task}");
    // Nobody outside can send a task that is a step: not by its id, and not by what it says.
    let own = json!({"id": step_task, "model": "m", "input": 1});
    assert_eq!(api.post("/v1/tasks", own).await.0, 409);
    let forged = json!({"model": "m", "input": 1, "workflow": {"id": end["id"], "step": "b"}});
    assert_eq!(api.post("/v1/tasks", forged).await.1["workflow"], Value::Null);

    for (body, status, code, field) in [
        (json!({"tasks": []}), 422, "invalid_field", "tasks"),
        (json!({"tasks": [step("a", json!({"depends_on": ["a"]}))]}), 422, "invalid_field", "tasks[0].depends_on[0]"),
        (json!({"tasks": [step("a", json!({"kind": "x"}))]}), 422, "invalid_field", "tasks[0].kind"),
        (json!([]), 400, "shape", "body"),
    ] {
        let (got, problem) = api.post("/v1/workflows", body).await;
        assert_eq!((got, &problem["code"], &problem["field"]), (status, &json!(code), &json!(field)), "{problem}");
    }
    assert_eq!(api.get(&format!("/v1/workflows/{}", Uuid::new_v4())).await.0, 404);
    assert_eq!(api.get("/v1/workflows/none").await.0, 404);
    assert_eq!(api.post(&format!("/v1/workflows/{}/cancel", Uuid::new_v4()), json!({})).await.0, 404);
}

/// The example of `docs/workflows.md` does what the page says.
#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_the_page_runs() {
    let yard = Yard::new(|_| {}).await;
    yard.worker("w", vec![(spec("echo"), Arc::new(Obedient::default()))]);
    yard.scheduler(&[spec("echo")]);
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/workflows.md")).unwrap();
    let example = page.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let end = yard.run_workflow(serde_json::from_str(example).unwrap()).await;
    assert_eq!(end["state"], "succeeded", "{end}");
    let rated = ["good", "bad", "so so"].map(|text| json!({"text": text, "score": 0.9}));
    assert_eq!(end["outputs"], json!({"report": {"rated": rated, "first": "good"}}));
}

/// `cargo test --release --test yard -- --ignored --nocapture a_step_costs`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn a_step_costs_less_than_two_single_tasks() {
    const MANY: usize = 10_000;
    const IN_TURN: usize = 500;
    let (mut yard, _handler, _scheduler) = running(|_| {}).await;
    let micros = |started: std::time::Instant, count: usize| started.elapsed().as_micros() as f64 / count as f64;
    let task = |n: usize| json!({"model": "m", "input": {"n": n}});
    // So that all that is done for the first time is done.
    let ids = yard.publish((0..2_000).map(task).collect()).await;
    yard.collect(&ids).await;
    let started = std::time::Instant::now();
    let ids = yard.publish((0..MANY).map(task).collect()).await;
    yard.collect(&ids).await;
    let at_once = micros(started, MANY);
    let started = std::time::Instant::now();
    for n in 0..IN_TURN {
        let ids = yard.publish(vec![task(n)]).await;
        yard.collect(&ids).await;
    }
    let in_turn = micros(started, IN_TURN);
    println!("single tasks: {at_once:.0} µs each at once, {in_turn:.0} µs each in turn");
    let chain = (0..MANY).map(|n| match n {
        0 => step("s0", json!({})),
        n => step(&format!("s{n}"), json!({"depends_on": [format!("s{}", n - 1)]})),
    });
    let layered = (0..MANY).map(|n| {
        let layer = |n: usize| n / 100 * 100;
        let on: Vec<String> =
            if n < 100 { Vec::new() } else { (0..3).map(|k| format!("s{}", layer(n) - 100 + (n + k) % 100)).collect() };
        step(&format!("s{n}"), json!({"depends_on": on}))
    });
    let members: Vec<usize> = (0..MANY - 1).collect();
    let fan = vec![step("f", json!({"for_each": members, "input": {"$item": ""}}))];
    for (shape, tasks, single) in [
        ("layers of 100", layered.collect::<Vec<_>>(), at_once),
        ("for_each", fan, at_once),
        ("chain", chain.collect(), in_turn),
    ] {
        let started = std::time::Instant::now();
        let end = yard.run_workflow(json!({"tasks": tasks})).await;
        let each = micros(started, MANY);
        assert_eq!(end["state"], "succeeded");
        println!("{shape}: {each:.0} µs a step, {:.2} times a single task", each / single);
        assert!(each < 2.0 * single, "{shape}");
    }
}
