//! Claims of all attempts, many to one call of the store: whatever comes while a call is under way goes with the next.

use std::sync::Arc;

use taskyard_shared::store::{Accept, Accepted, Claim, Claimed, Store, until_answered};
use taskyard_shared::{Envelope, State};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Most claims in one call.
const CALL: usize = 512;

struct Request {
    claims: Vec<Claim>,
    envelopes: Vec<Arc<Envelope>>,
    answer: oneshot::Sender<Vec<Claimed>>,
}

/// The worker is closing: nothing more is begun.
#[derive(Debug)]
pub(crate) struct Closed;

#[derive(Clone)]
pub(crate) struct Claimer {
    requests: mpsc::Sender<Request>,
}

impl Claimer {
    /// Starts the loop; it ends with `closing`, or when every `Claimer` is dropped.
    pub fn start(store: Arc<dyn Store>, closing: CancellationToken) -> Self {
        let (requests, queue) = mpsc::channel(CALL);
        tokio::spawn(run(store, queue, closing));
        Self { requests }
    }

    /// Claims a batch. Waits while the store is away: what cannot be claimed is not begun.
    pub async fn claim(&self, claims: Vec<Claim>, envelopes: Vec<Arc<Envelope>>) -> Result<Vec<Claimed>, Closed> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request { claims, envelopes, answer }).await.map_err(|_| Closed)?;
        answered.await.map_err(|_| Closed)
    }
}

async fn run(store: Arc<dyn Store>, mut queue: mpsc::Receiver<Request>, closing: CancellationToken) {
    let mut requests = Vec::new();
    while queue.recv_many(&mut requests, CALL).await > 0 {
        let claims: Vec<Claim> = requests.iter().flat_map(|request| request.claims.iter().cloned()).collect();
        let envelopes: Vec<Arc<Envelope>> =
            requests.iter().flat_map(|request| request.envelopes.iter().cloned()).collect();
        let call = || claim_or_recreate(&*store, claims.clone(), &envelopes);
        let Some(claimed) = until_answered("claims", &closing, call).await else { return };
        let mut claimed = claimed.into_iter();
        for request in requests.drain(..) {
            let count = request.claims.len();
            let answers: Vec<Claimed> = claimed.by_ref().take(count).collect();
            // An attempt that no longer waits was dropped with its worker; its lease runs out.
            let _ = request.answer.send(answers);
        }
    }
}

/// The envelope has all that a record needs, so a store that lost the record gets it back.
async fn claim_or_recreate(
    store: &dyn Store,
    claims: Vec<Claim>,
    envelopes: &[Arc<Envelope>],
) -> Result<Vec<Claimed>, taskyard_shared::store::StoreError> {
    let mut claimed = store.claim(claims.clone()).await?;
    let unknown: Vec<usize> = (0..claimed.len()).filter(|&at| matches!(claimed[at], Claimed::Unknown)).collect();
    if unknown.is_empty() {
        return Ok(claimed);
    }
    let records = unknown
        .iter()
        .map(|&at| {
            let envelope = &envelopes[at];
            Accept {
                id: envelope.id,
                fingerprint: envelope.fingerprint(),
                // A key that leads elsewhere by now must not keep this task, which was accepted once, from running.
                alias: None,
                record: envelope.result(State::Dispatched),
                follower: None,
            }
        })
        .collect();
    let accepted = store.accept(records).await?;
    for (accepted, &at) in accepted.iter().zip(&unknown) {
        if let Accepted::Conflict(_) = accepted {
            warn!(task.id = %envelopes[at].id.0, "the record that came back has another content");
        }
    }
    let again = store.claim(unknown.iter().map(|&at| claims[at].clone()).collect()).await?;
    for (answer, at) in again.into_iter().zip(unknown) {
        claimed[at] = answer;
    }
    Ok(claimed)
}
