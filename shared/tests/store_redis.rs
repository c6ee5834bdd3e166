//! The Redis store against the contract, on the server that `TASKYARD_TEST_REDIS` names, and against faults, on servers
//! of its own.

#[path = "store_redis/cost.rs"]
mod cost;
#[path = "store_redis/faults.rs"]
mod faults;
#[path = "store_redis/server.rs"]
mod server;
#[path = "store_redis/tls.rs"]
mod tls;

use std::sync::Arc;

use futures_util::FutureExt;
use taskyard_shared::process::settings::StoreSettings;
use taskyard_shared::store::Retention;
use taskyard_shared::store::contract::Check;
use taskyard_shared::store::redis::RedisStore;
use taskyard_shared::{TaskId, Topology};

taskyard_shared::store_contract!(run);

async fn run(retention: Retention, check: Check) {
    let Some(url) = server::shared_url() else { return };
    let namespace = Topology::new(format!("test-{}", TaskId::new().0.simple()));
    let store = RedisStore::connect(&settings(&url, 5_000), &namespace, retention).expect("a store");
    let outcome = std::panic::AssertUnwindSafe(check(Arc::new(store))).catch_unwind().await;
    server::forget(&url, &namespace).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn settings(url: &str, timeout_ms: u64) -> StoreSettings {
    StoreSettings { url: url.to_owned(), timeout_ms, finished_hours: 1, unfinished_hours: 1, listed_tasks: 1_000 }
}
