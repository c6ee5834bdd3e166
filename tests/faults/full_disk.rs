//! What a yard in one process does when its disk is full: it refuses what it would have to keep, and loses nothing that it took.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::disk::Disk;
use crate::embedded::Kitchen;
use crate::ledger::{ENDED, Ended, Files};
use crate::load::http;
use crate::roles::{Order, panics};

const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the answer is as wanted.
async fn eventually<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let asking = async {
        loop {
            match ask().await {
                Some(answer) => return answer,
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_what_is_new_and_loses_nothing_that_was_taken() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("disk");
    let Some(disk) = Disk::mount(&place, 8) else { return eprintln!("skipped: nothing may be mounted here") };
    let files = Arc::new(Files::new(folder.path()));
    let kitchen = Kitchen::new(100, &files, Some(&disk), &place);
    let role = kitchen.start("dev".into()).await;
    let http = http();
    let url = |id: Uuid| format!("{}/v1/tasks/{id}", kitchen.api());
    let put = async |id: Uuid| {
        let body = json!({"model": "slow", "input": {"n": 0, "ms": 50, "much": "x".repeat(100_000)}});
        http.put(url(id)).json(&body).send().await.unwrap().status().as_u16()
    };
    let state = async |id: Uuid| -> Option<String> {
        let shown: Value = http.get(url(id)).send().await.ok()?.error_for_status().ok()?.json().await.ok()?;
        shown["state"].as_str().map(str::to_owned)
    };

    let mut taken: Vec<Uuid> = Vec::new();
    for _ in 0..10 {
        taken.push(Uuid::new_v4());
        assert_eq!(put(taken[taken.len() - 1]).await, 202);
    }
    disk.fill();
    // There is room in the files that it has already, and no more.
    let refused = loop {
        let id = Uuid::new_v4();
        match put(id).await {
            202 => taken.push(id),
            503 => break id,
            other => panic!("{other}"),
        }
        assert!(taken.len() < 200, "a full disk takes everything");
    };
    for id in &taken {
        assert!(state(*id).await.is_some(), "what was taken is shown");
    }

    // It is killed, and comes up as long as there is room for that; else it ends until there is.
    let (done, works) = oneshot::channel();
    role.order(Order::Kill { away: Duration::ZERO, done }).await;
    let has_ended = || files.read::<Ended>(ENDED).iter().any(|ended| ended.how.contains("Some(3)"));
    eventually("it to be up or not", async || (state(taken[0]).await.is_some() || has_ended()).then_some(())).await;
    disk.free();
    works.await.unwrap();
    for id in &taken {
        eventually("its end", async || (state(*id).await.as_deref() == Some("succeeded")).then_some(())).await;
    }
    assert_eq!(state(refused).await, None, "what was refused is not there");
    assert_eq!(put(refused).await, 202);
    eventually("its end", async || (state(refused).await.as_deref() == Some("succeeded")).then_some(())).await;
    role.end().await;
    let wrong: Vec<Ended> = files.read::<Ended>(ENDED).into_iter().filter(|ended| ended.is_wrong).collect();
    assert_eq!((wrong, panics(&kitchen.logs)), (vec![], vec![]));
}
