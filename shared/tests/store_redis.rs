//! The Redis store against the contract, on the server that `TASKYARD_TEST_REDIS` names, and against faults, on servers
//! of its own.

#[path = "store_redis/cost.rs"]
mod cost;
#[path = "store_redis/erase.rs"]
mod erase;
#[path = "store_redis/fail_over.rs"]
mod fail_over;
#[path = "store_redis/faults.rs"]
mod faults;
#[path = "store_redis/format.rs"]
mod format;
#[path = "store_redis/rights.rs"]
mod rights;
#[path = "store_redis/server.rs"]
mod server;
#[path = "store_redis/tls.rs"]
mod tls;
#[path = "store_redis/workflows.rs"]
mod workflows;

use std::sync::Arc;

use taskyard_shared::process::settings::{StoreSettings, TlsSettings};
use taskyard_shared::store::Retention;
use taskyard_shared::store::contract::Check;
use taskyard_shared::store::redis::RedisStore;

taskyard_shared::store_contract!(run);

async fn run(retention: Retention, check: Check) {
    server::in_a_namespace(async |url, topology| {
        let store = RedisStore::connect(&settings(url, 30_000), topology, retention).expect("a store");
        check(Arc::new(store)).await;
    })
    .await;
}

fn settings(url: &str, timeout_ms: u64) -> StoreSettings {
    StoreSettings {
        url: url.to_owned(),
        timeout_ms,
        finished_hours: 1,
        unfinished_hours: 1,
        listed_tasks: 1_000,
        tls: TlsSettings::default(),
    }
}
