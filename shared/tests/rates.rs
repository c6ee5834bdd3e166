//! Rates that several processes keep to together, on the embedded store and on one that is away.

use std::sync::Arc;
use std::time::Instant;

use taskyard_shared::signal::Rate;
use taskyard_shared::store::embedded::EmbeddedStore;
use taskyard_shared::store::{Grant, Rates, Retention, Store, Want};

fn want(tasks: u32, per_second: f64, burst: f64) -> Want {
    Want { tenant: "shop".into(), tasks, rate: Rate { per_second, burst } }
}

async fn take(rates: &Rates, want: Want) -> Grant {
    rates.take(&[want], 2).await.remove(0)
}

fn store() -> Arc<dyn Store> {
    Arc::new(EmbeddedStore::in_memory(Retention::default()))
}

#[tokio::test]
async fn two_processes_share_a_rate() {
    let store = store();
    let (one, other) = (Rates::new(store.clone()), Rates::new(store));
    assert_eq!(take(&one, want(6, 0.01, 10.0)).await, Grant { tasks: 6, retry_ms: 0 });
    let rest = take(&other, want(6, 0.01, 10.0)).await;
    assert!(rest.tasks == 4 && rest.retry_ms > 90_000, "{rest:?}");
    assert_eq!(take(&one, want(1, 0.01, 10.0)).await.tasks, 0);
}

#[tokio::test]
async fn a_bucket_that_is_empty_is_not_asked_for_until_it_is_not() {
    let rates = Rates::new(store());
    assert_eq!(take(&rates, want(3, 50.0, 3.0)).await.tasks, 3);
    let began = Instant::now();
    let (mut came, mut tries) = (0, 0);
    while came < 10 {
        came += take(&rates, want(1, 50.0, 3.0)).await.tasks;
        tries += 1;
        tokio::task::yield_now().await;
    }
    let seconds = began.elapsed().as_secs_f64();
    assert!(seconds > 9.0 / 50.0 * 0.9, "10 tasks in {seconds} s at 50 in a second, {tries} tries");
}

#[tokio::test]
async fn tenants_are_told_apart() {
    let rates = Rates::new(store());
    let other = |tasks| Want { tenant: "bank".into(), ..want(tasks, 0.01, 4.0) };
    let grants = rates.take(&[want(2, 0.01, 1.0), other(3), other(3)], 1).await;
    assert_eq!(grants.iter().map(|grant| grant.tasks).collect::<Vec<_>>(), [1, 3, 1]);
    assert!(rates.take(&[], 1).await.is_empty());
}
