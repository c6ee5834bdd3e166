//! Calls of the store that must be answered: what waits for it is held until it is back.

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::StoreError;
use crate::retry::Backoff;

/// Calls until the store answers; `None` when `closing` came first. `what` says in the log what waits.
pub async fn until_answered<T, F: Future<Output = Result<T, StoreError>>>(
    what: &'static str,
    closing: &CancellationToken,
    call: impl Fn() -> F,
) -> Option<T> {
    let mut tries = 0;
    loop {
        match call().await {
            Ok(answer) => return Some(answer),
            Err(failure) => {
                tries += 1;
                if tries == 1 {
                    warn!(%failure, "{what} wait for the store");
                }
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(Backoff::RECONNECT.delay(tries, fastrand::f64())) => {}
                    () = closing.cancelled() => return None,
                }
            }
        }
    }
}
