//! Steps that never run: how they ended is in their records, and is told as of any task.

use taskyard_shared::Reply;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_never_runs_calls_its_webhook_and_tells_who_waits_for_it() {
    let (yard, handler, _scheduler) = running(|_| {}).await;
    let hook = json!({"url": "https://example.org/hook"});
    let body = json!({"tasks": [
        step("a", json!({"input": {"do": "wait"}})),
        step("fails", json!({"depends_on": ["a"], "input": {"do": "fail"}})),
        step("unrun", json!({"depends_on": ["fails"], "webhook": hook})),
    ]});
    let id = yard.publish_workflow(body).await;
    eventually("it to run", || handler.runs.load(Ordering::SeqCst) == 1).await;
    let unrun = WorkflowId(id).task("unrun", None);
    let waits = yard.topology.replies("waits");
    yard.broker.declare(&[QueueSpec::exclusive(&waits)]).await.unwrap();
    let follower = Reply { to: waits.as_str().into(), correlation_id: Some("w".into()), array: false };
    let blocked = yard.store.follow(vec![unrun], follower).await.unwrap().remove(0).unwrap();
    assert_eq!(blocked.state, State::Blocked);
    handler.gate.as_ref().unwrap().add_permits(1);

    assert_eq!(yard.told_end().await["state"], "failed");
    // All of it before the workflow's own end was told.
    assert_eq!(yard.task_of(id, "unrun").await.unwrap().state, State::Cancelled);
    let mut consumer = yard.broker.consume(&waits, 10).await.unwrap();
    let told = tokio::time::timeout(PATIENCE, consumer.next_batch(10)).await.expect("its end").unwrap();
    let told: TaskResult = serde_json::from_slice(&told[0].body).unwrap();
    assert_eq!((told.id, told.state), (unrun, State::Cancelled));
    let hooks = webhooks::hooks(&yard, 1).await;
    let payload = &hooks[&format!("{}.cancelled", unrun.0)]["payload"];
    assert_eq!((&payload["type"], &payload["data"]["id"]), (&json!("task.cancelled"), &json!(unrun)));
}
