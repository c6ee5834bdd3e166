//! What the server holds of the list of workflows.

use std::collections::BTreeMap;

use taskyard_shared::store::redis::RedisStore;
use taskyard_shared::store::{Retention, Store, WorkflowFilter, WorkflowWrite, contract};
use taskyard_shared::workflow::{OnFailure, WorkflowId, WorkflowRecord, WorkflowState};
use taskyard_shared::{Priority, TaskId, Timestamp, Topology};

use super::server::{self, eventually};
use super::settings;

fn open(url: &str, topology: &Topology, retention: Retention) -> RedisStore {
    RedisStore::connect(&settings(url, 30_000), topology, retention).expect("a store")
}

fn write(id: WorkflowId, tenant: &str, state: WorkflowState) -> WorkflowWrite {
    let record = WorkflowRecord {
        id,
        state,
        tenant: tenant.to_owned(),
        priority: Priority::default(),
        on_failure: OnFailure::default(),
        deadline: None,
        accepted: Timestamp::now(),
        finished: None,
        error: None,
        counts: BTreeMap::new(),
        steps: Vec::new(),
        outputs: BTreeMap::new(),
        metadata: BTreeMap::new(),
    };
    WorkflowWrite::new(&record, 7).expect("a record")
}

fn new() -> WorkflowId {
    WorkflowId(TaskId::new().0)
}

/// One page that holds all.
async fn listed(store: &RedisStore) -> Vec<WorkflowId> {
    let page = store.list_workflows(&WorkflowFilter::default(), None, 1_000).await.expect("list");
    assert_eq!(page.cursor, None);
    page.workflows.iter().map(|workflow| workflow.id).collect()
}

async fn count(url: &str, topology: &Topology, key: &str) -> redis::Value {
    server::command(url, &["ZCARD", &topology.key(key)]).await.expect("ZCARD")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workflows_that_are_forgotten_leave_nothing_behind() {
    server::in_a_namespace(async |url, topology| {
        let store = open(url, topology, Retention { finished_ms: 300, unfinished_ms: 600, listed: 100 });
        for number in 0..20 {
            let id = new();
            store.accept_workflow(write(id, "default", WorkflowState::Queued)).await.expect("accept");
            if number % 2 == 0 {
                store.write_workflow(write(id, "default", WorkflowState::Succeeded)).await.expect("write");
            }
        }
        eventually("every key expires", || async { server::keys(url, topology).await.is_empty().then_some(()) }).await;

        // While others live on: they go with one of the next writes.
        let lasting = open(url, topology, contract::LASTING);
        let first = new();
        lasting.accept_workflow(write(first, "default", WorkflowState::Queued)).await.expect("accept");
        for _ in 0..30 {
            store.write_workflow(write(new(), "default", WorkflowState::Failed)).await.expect("write");
        }
        eventually("they are forgotten", || async { (listed(&store).await == [first]).then_some(()) }).await;
        let (places, forgotten) = (topology.key("workflows"), ["2", "31"]);
        let last = eventually("they leave the list", || async {
            let id = new();
            lasting.write_workflow(write(id, "default", WorkflowState::Running)).await.expect("write");
            let left = server::command(url, &["ZCOUNT", &places, forgotten[0], forgotten[1]]).await;
            (left == Ok(redis::Value::Int(0))).then_some(id)
        })
        .await;
        assert_eq!(listed(&store).await[0], last);
        assert_eq!(count(url, topology, "workflows").await, count(url, topology, "workflows:ends").await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_workflows_goes_back_no_further_than_it_may() {
    server::in_a_namespace(async |url, topology| {
        let store = open(url, topology, Retention { listed: 10, ..contract::LASTING });
        let ids: Vec<_> = (0..25).map(|_| new()).collect();
        for id in &ids {
            store.accept_workflow(write(*id, "default", WorkflowState::Queued)).await.expect("accept");
        }
        let newest: Vec<_> = ids.iter().rev().take(10).copied().collect();
        assert_eq!(listed(&store).await, newest);
        assert_eq!(count(url, topology, "workflows:ends").await, redis::Value::Int(10));
        // One that was too many does not come back as the newest.
        store.write_workflow(write(ids[0], "default", WorkflowState::Running)).await.expect("write");
        assert_eq!(listed(&store).await, newest);
        assert_eq!(count(url, topology, "workflows:ends").await, redis::Value::Int(10));
        assert!(store.workflow(ids[0]).await.expect("get").is_some(), "it is only not listed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_workflows_among_many_are_found() {
    server::in_a_namespace(async |url, topology| {
        let store = open(url, topology, contract::LASTING);
        let mut expected = Vec::new();
        for number in 0..700 {
            let (id, is_one) = (new(), number % 100 == 0);
            let tenant = if is_one { "one" } else { "other" };
            store.accept_workflow(write(id, tenant, WorkflowState::Queued)).await.expect("accept");
            expected.extend(is_one.then_some(id));
        }
        expected.reverse();
        let filter = WorkflowFilter { tenant: Some("one".to_owned()), ..WorkflowFilter::default() };
        for limit in [1, 3, 7, 100] {
            let (mut found, mut cursor) = (Vec::new(), None);
            loop {
                let page = store.list_workflows(&filter, cursor.as_deref(), limit).await.expect("list");
                found.extend(page.workflows.iter().map(|workflow| workflow.id));
                cursor = page.cursor;
                if cursor.is_none() {
                    break;
                }
            }
            assert_eq!(found, expected, "by {limit}");
        }
        // As an earlier version left it: without a summary. It is listed once it is written again.
        let earlier = expected[3].0.simple().to_string();
        server::command(url, &["DEL", &topology.key(&format!("workflow-summary:{earlier}"))]).await.expect("DEL");
        server::command(url, &["ZREM", &topology.key("workflows"), &earlier]).await.expect("ZREM");
        assert!(store.workflow(expected[3]).await.expect("get").is_some());
        store.write_workflow(write(expected[3], "one", WorkflowState::Running)).await.expect("write");
        let page = store.list_workflows(&filter, None, 1).await.expect("list");
        assert_eq!(page.workflows[0].id, expected[3]);
    })
    .await;
}
