//! Records of released versions stay readable: processes of two versions share a server while one is rolled out.

use taskyard_shared::store::redis::RedisStore;
use taskyard_shared::store::{
    Accept, Accepted, Claimed, Guard, Settle, Settled, Store, WorkflowAccepted, WorkflowWrite, contract,
};
use taskyard_shared::workflow::{WorkflowRecord, WorkflowState};
use taskyard_shared::{State, TaskResult};

use super::faults::{claim, settle, task};
use super::{server, settings};

/// Format, stamp, fingerprint; no idempotency key, no follower.
const HEAD: &str = "01887766554433221102\
    0f00000000000000000000000000000000000000";
/// One attempt was begun, its lease ended long ago, on the model `m` by the worker `w`.
const RUNNING: &str = "030100000001\
    11000000000000000000000000000000e8030000000000004d00000000000000000000000000000001000100\
    6d77";
const ENDED: &str = "040100000001\
    1100000000000000000000000000000000000000000000000000000000000000000000000000000000000000";
/// `golden/result.v1.json`, packed.
const TASK: &str = "040004010764656661756c74010b73656e74696d656e7440310103772d31000180c0c9c4baeba40601a09c0101a8c30101e0f30101\
    000000000000294001cdcccccccccc08400001137b226c6162656c223a2262656172697368227d";

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("text"));
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal digits")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_version_1_are_read_and_gone_on_with() {
    server::in_a_namespace(async |url, topology| {
        let golden: TaskResult = serde_json::from_str(include_str!("../golden/result.v1.json")).expect("a result");
        let store = RedisStore::connect(&settings(url, 30_000), topology, contract::LASTING).expect("a store");
        let client = redis::Client::open(url).expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
        let key = topology.key(&format!("record:{}", golden.id.0.simple()));
        let mut write = async |run: &str| {
            let record = bytes(&[HEAD, run, TASK].concat());
            redis::cmd("SET").arg(&key).arg(record).query_async::<()>(&mut connection).await.expect("SET");
        };
        let again = Accept { id: golden.id, ..task(golden.id) };

        write(ENDED).await;
        let shown = store.get(vec![golden.id]).await.expect("get").remove(0).expect("a record");
        assert_eq!(serde_json::to_string(&shown).unwrap(), serde_json::to_string(&golden).unwrap());
        assert!(matches!(store.claim(vec![claim(golden.id, 2)]).await.expect("claim")[..], [Claimed::Terminal { .. }]));
        assert!(matches!(store.accept(vec![again.clone()]).await.expect("accept")[..], [Accepted::Known(_)]));
        assert!(matches!(store.settle(vec![settle(&again, 0x11)]).await.expect("settle")[..], [Settled::Again { .. }]));

        write(RUNNING).await;
        let shown = store.get(vec![golden.id]).await.expect("get").remove(0).expect("a record");
        let run = (shown.state, shown.attempt, shown.model.as_deref(), shown.worker.as_deref());
        assert_eq!(run, (State::Running, 1, Some("m"), Some("w")));
        assert!(matches!(
            store.claim(vec![claim(golden.id, 2)]).await.expect("claim")[..],
            [Claimed::Run { attempt: 2 }]
        ));
        assert!(matches!(store.settle(vec![settle(&again, 0x11)]).await.expect("settle")[..], [Settled::Stale]));
        let result = TaskResult { state: State::Succeeded, attempt: 2, ..again.record.clone() };
        let end = Settle::new(Guard::Fence { attempt: 2, nonce: 2 }, result);
        assert!(matches!(store.settle(vec![end]).await.expect("settle")[..], [Settled::Done { .. }]));
    })
    .await;
}

/// Marks: it has ended. Then 16 bytes of fingerprint.
const WORKFLOW: &str = "010f000000000000000000000000000000";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workflow_of_version_1_is_read_and_is_not_another() {
    server::in_a_namespace(async |url, topology| {
        let golden = include_str!("../golden/workflow-record.v1.json").trim_end();
        let record: WorkflowRecord = serde_json::from_str(golden).expect("a record");
        let store = RedisStore::connect(&settings(url, 30_000), topology, contract::LASTING).expect("a store");
        let client = redis::Client::open(url).expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
        let mut write = async |marks: u8| {
            let mut bytes = [bytes(WORKFLOW), golden.as_bytes().to_vec()].concat();
            bytes[0] = marks;
            let key = topology.key(&format!("workflow:{}", record.id.0.simple()));
            redis::cmd("SET").arg(&key).arg(bytes).query_async::<()>(&mut connection).await.expect("SET");
        };

        write(1).await;
        let seen = store.workflow(record.id).await.expect("a look").expect("a record");
        assert_eq!((&*seen.record, seen.has_ended, seen.is_unwanted), (golden.as_bytes(), true, false));
        let again = WorkflowWrite::new(&record, 0xf).expect("a record");
        let other = WorkflowWrite { fingerprint: 0xe, ..again.clone() };
        for (write, is_known) in [(again.clone(), true), (other, false)] {
            match store.accept_workflow(write).await.expect("accept") {
                WorkflowAccepted::Known(seen) => assert!(is_known && seen.has_ended),
                WorkflowAccepted::Conflict(seen) => assert!(!is_known && seen.has_ended),
                WorkflowAccepted::New { .. } => panic!("it was there"),
            }
        }

        write(2).await;
        let seen = store.workflow(record.id).await.expect("a look").expect("a record");
        assert_eq!((seen.has_ended, seen.is_unwanted), (false, true), "to be cancelled");
        assert!(store.write_workflow(again).await.expect("written").is_none(), "it is gone on with");
        let seen = store.workflow(record.id).await.expect("a look").expect("a record");
        let end: WorkflowRecord = serde_json::from_slice(&seen.record).expect("a record");
        assert_eq!((end.state, seen.has_ended), (WorkflowState::Failed, true));
    })
    .await;
}
