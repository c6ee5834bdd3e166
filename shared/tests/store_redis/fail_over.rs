//! A replica takes the place of its primary without the last writes: what they said is as if it had never been said.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use redis::Value;
use taskyard_shared::TaskId;
use taskyard_shared::store::redis::RedisStore;
use taskyard_shared::store::{Accepted, Claimed, Settled, Store, StoreError, contract};
use tokio::net::{TcpListener, TcpStream};

use super::faults::{claim, settle, task};
use super::server::{Server, eventually, topology};
use super::settings;

/// An address that leads to whichever server is the primary. Connections that stand stay where they are.
async fn address(primary: &Arc<AtomicU16>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let primary = primary.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let Ok(mut far) = TcpStream::connect(("127.0.0.1", primary.load(Ordering::SeqCst))).await else { continue };
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fail_over_that_loses_the_last_writes_is_survived_and_fences_who_made_them() {
    let Some(old) = Server::started(&[]).await else { return };
    let Some(new) = Server::started(&["--replicaof", "127.0.0.1", &old.port.to_string()]).await else { return };
    let primary = Arc::new(AtomicU16::new(old.port));
    let url = format!("redis://127.0.0.1:{}/0", address(&primary).await);
    let store = RedisStore::connect(&settings(&url, 30_000), &topology(), contract::LASTING).expect("a store");
    let [kept, ended, lost] = [(); 3].map(|()| task(TaskId::new()));
    store.accept(vec![kept.clone(), ended.clone()]).await.expect("accept");
    let claims = vec![claim(kept.id, 1), claim(ended.id, 2)];
    assert!(matches!(store.claim(claims).await.expect("claim")[..], [Claimed::Run { .. }, Claimed::Run { .. }]));
    eventually("the replica has it", || async {
        matches!(old.command(&["WAIT", "1", "1000"]).await, Value::Int(1)).then_some(())
    })
    .await;

    // From here on the old primary is alone with what it is told.
    new.command(&["REPLICAOF", "NO", "ONE"]).await;
    assert!(matches!(store.settle(vec![settle(&ended, 2)]).await.expect("settle")[..], [Settled::Done { .. }]));
    store.accept(vec![lost.clone()]).await.expect("accept");
    assert!(matches!(store.claim(vec![claim(lost.id, 3)]).await.expect("claim")[..], [Claimed::Run { attempt: 1 }]));

    primary.store(new.port, Ordering::SeqCst);
    old.command(&["REPLICAOF", "127.0.0.1", &new.port.to_string()]).await;
    // The connection still leads to the old one, which says that it is none to be written to.
    let refused = store.accept(vec![lost.clone()]).await;
    assert!(refused.as_ref().is_err_and(StoreError::is_transient), "{refused:?}");
    let again = eventually("the new one is asked", || async { store.accept(vec![lost.clone()]).await.ok() }).await;
    assert!(matches!(again[..], [Accepted::New]), "{again:?}");

    // Who began before it, and is known to the new one, goes on.
    assert!(matches!(store.settle(vec![settle(&kept, 1)]).await.expect("settle")[..], [Settled::Done { .. }]));
    assert!(matches!(store.settle(vec![settle(&kept, 1)]).await.expect("settle")[..], [Settled::Again { .. }]));
    // An end that went with the last writes is come to once more, by the attempt that has the task and by no other.
    assert!(matches!(store.claim(vec![claim(ended.id, 4)]).await.expect("claim")[..], [Claimed::Busy { .. }]));
    assert!(matches!(store.settle(vec![settle(&ended, 4)]).await.expect("settle")[..], [Settled::Stale]));
    assert!(matches!(store.settle(vec![settle(&ended, 2)]).await.expect("settle")[..], [Settled::Done { .. }]));
    // A claim that went with them is none, though the number of its attempt is the same.
    assert!(matches!(store.settle(vec![settle(&lost, 3)]).await.expect("settle")[..], [Settled::Stale]));
    assert!(matches!(store.claim(vec![claim(lost.id, 5)]).await.expect("claim")[..], [Claimed::Run { attempt: 1 }]));
    assert!(matches!(store.settle(vec![settle(&lost, 3)]).await.expect("settle")[..], [Settled::Stale]));
    assert!(matches!(store.settle(vec![settle(&lost, 5)]).await.expect("settle")[..], [Settled::Done { .. }]));
}
