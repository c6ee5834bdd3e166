//! Buckets of tokens, by which rates are kept to across processes.

use super::*;
use crate::store::{TakeTokens, TokensTaken};

/// A bucket that nobody else has.
fn bucket(per_second: f64, burst: f64) -> TakeTokens {
    TakeTokens { bucket: format!("tenant-{}", TaskId::new().0), tokens: 0, per_second, burst }
}

async fn take(store: &Arc<dyn Store>, bucket: &TakeTokens, tokens: u32) -> TokensTaken {
    let take = TakeTokens { tokens, ..bucket.clone() };
    store.take_tokens(vec![take]).await.expect("take_tokens").pop().expect("an answer")
}

pub async fn a_bucket_is_full_at_first_and_then_empty(store: Arc<dyn Store>) {
    let slow = bucket(0.01, 5.0);
    assert_eq!(take(&store, &slow, 3).await, TokensTaken { taken: 3, next_ms: 0 });
    let rest = take(&store, &slow, 3).await;
    assert_eq!(rest.taken, 2, "as many as there are");
    assert!((90_000..=100_000).contains(&rest.next_ms), "a hundredth in a second: {rest:?}");
    let none = take(&store, &slow, 1).await;
    assert!(none.taken == 0 && none.next_ms > 0, "{none:?}");
    assert_eq!(take(&store, &slow, 0).await, TokensTaken { taken: 0, next_ms: 0 });
}

pub async fn a_bucket_fills_again_at_its_rate_and_no_further(store: Arc<dyn Store>) {
    let quick = bucket(200.0, 10.0);
    assert_eq!(take(&store, &quick, 10).await.taken, 10);
    let began = std::time::Instant::now();
    let taken = std::sync::atomic::AtomicU32::new(0);
    eventually("twenty more", || async {
        let now = take(&store, &quick, 1).await.taken;
        (taken.fetch_add(now, std::sync::atomic::Ordering::Relaxed) + now >= 20).then_some(())
    })
    .await;
    let seconds = began.elapsed().as_secs_f64();
    assert!(seconds > 19.0 / 200.0 * 0.95, "20 tokens came in {seconds} s, at 200 in a second");

    let large = bucket(1000.0, 10.0);
    assert_eq!(take(&store, &large, 10).await.taken, 10);
    eventually("it is full", || async {
        (take(&store, &large, 0).await.taken == 0 && began.elapsed() > Duration::from_millis(300)).then_some(())
    })
    .await;
    let all = take(&store, &large, 1000).await;
    assert!(all.taken == 10 && all.next_ms <= 1, "no more than it holds: {all:?}");
}

pub async fn of_many_takers_at_once_no_two_get_one_token(store: Arc<dyn Store>) {
    let shared = bucket(0.001, 100.0);
    let takers = (0..40).map(|_| {
        let (store, shared) = (store.clone(), shared.clone());
        tokio::spawn(async move { take(&store, &shared, 4).await.taken })
    });
    let mut taken = 0;
    for taker in takers.collect::<Vec<_>>() {
        taken += taker.await.expect("a taker");
    }
    assert_eq!(taken, 100);
}

pub async fn buckets_do_not_meet_and_a_batch_sees_what_it_took(store: Arc<dyn Store>) {
    let (one, other) = (bucket(0.001, 3.0), bucket(0.001, 2.0));
    let takes = [&one, &other, &one, &other].map(|bucket| TakeTokens { tokens: 2, ..bucket.clone() });
    let taken = store.take_tokens(takes.to_vec()).await.expect("take_tokens");
    assert_eq!(taken.iter().map(|answer| answer.taken).collect::<Vec<_>>(), [2, 2, 1, 0]);
    assert!(store.take_tokens(Vec::new()).await.expect("take_tokens").is_empty());
}

pub async fn a_bucket_holds_no_more_than_its_newest_size(store: Arc<dyn Store>) {
    let large = bucket(0.001, 1000.0);
    assert_eq!(take(&store, &large, 1).await.taken, 1);
    let small = TakeTokens { burst: 5.0, ..large };
    assert_eq!(take(&store, &small, 50).await.taken, 5);
}
