//! One attempt at a batch of tasks, as a row of steps: claim, start, execute, judge, hand over to be settled.
//!
//! A batch is most often one task. Each member has its own claim, its own lease and its own outcome; they only share the
//! handler's call.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use taskyard_shared::store::{Claim, Claimed};
use taskyard_shared::{Envelope, State, Timestamp};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::claims::{Claimer, Closed};
use crate::handler::{Answer, Job, codes, error};
use crate::held::Held;
use crate::lane::ModelLane;
use crate::leases::{Lease, Leases};
use crate::settle::{Outcome, Settlement};
use crate::verdict::{Verdict, judge};

/// What every attempt of a worker shares.
pub(crate) struct Yard {
    pub worker: String,
    pub lease: Duration,
    pub claimer: Claimer,
    pub leases: Leases,
    pub settler: mpsc::Sender<Settlement>,
    pub retry: taskyard_shared::retry::Backoff,
    pub max_output_bytes: usize,
}

/// A member of the batch that holds its claim.
struct Member {
    held: Held,
    attempt: u32,
    lease: Lease,
}

/// Runs a batch from claim to settlement. Answers the deliveries that were not begun, when the worker is closing.
pub(crate) async fn attempt(yard: &Yard, lane: &ModelLane, batch: Vec<Held>) -> Vec<Held> {
    let batch = drop_expired(yard, batch).await;
    let (batch, not_begun) = claim(yard, lane, batch).await;
    if batch.is_empty() {
        return not_begun;
    }
    let started = Timestamp::now();
    let clock = Instant::now();
    let answers = execute(lane, &batch).await;
    // A batch's time is shared among its members, so that a tenant is charged for what it used.
    let ran_ms = clock.elapsed().as_secs_f64() * 1e3 / batch.len() as f64;
    for (member, answer) in batch.into_iter().zip(answers) {
        let verdict = judge(yard, lane, &member.held.envelope, member.attempt, answer);
        hand_over(yard, lane, member, verdict, started, ran_ms).await;
    }
    not_begun
}

/// A task whose deadline passed while it waited is not begun.
async fn drop_expired(yard: &Yard, batch: Vec<Held>) -> Vec<Held> {
    let now = Timestamp::now();
    let mut live = Vec::with_capacity(batch.len());
    for held in batch {
        if held.envelope.deadline.is_some_and(|deadline| deadline <= now) {
            settle(yard, Settlement::unclaimed(held, State::Expired, "expired", "the deadline passed before it ran"))
                .await;
        } else {
            live.push(held);
        }
    }
    live
}

/// Takes the right to run each member; what may not run goes its own way.
async fn claim(yard: &Yard, lane: &ModelLane, batch: Vec<Held>) -> (Vec<Member>, Vec<Held>) {
    let claims: Vec<Claim> = batch
        .iter()
        .map(|held| Claim {
            id: held.envelope.id,
            worker: yard.worker.clone(),
            nonce: u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..)),
            lease_ms: yard.lease.as_millis() as u64,
            max_attempts: held.envelope.max_attempts.unwrap_or(lane.spec.max_attempts),
            attempts: held.envelope.attempts,
        })
        .collect();
    let nonces: Vec<u128> = claims.iter().map(|claim| claim.nonce).collect();
    let envelopes: Vec<Arc<Envelope>> = batch.iter().map(|held| held.envelope.clone()).collect();
    let claimed = match yard.claimer.claim(claims, envelopes).await {
        Ok(claimed) => claimed,
        Err(Closed) => return (Vec::new(), batch),
    };
    let mut running = Vec::with_capacity(batch.len());
    for ((held, claimed), nonce) in batch.into_iter().zip(claimed).zip(nonces) {
        match claimed {
            Claimed::Run { attempt } => {
                let lease = yard.leases.hold(held.envelope.id, nonce);
                running.push(Member { held, attempt, lease });
            }
            Claimed::Busy { for_ms } => {
                debug!(task.id = %held.envelope.id.0, for_ms, "another attempt holds the lease: given back for later");
                settle(yard, Settlement { held, outcome: Outcome::Later { after_ms: for_ms } }).await;
            }
            Claimed::Terminal { result, followers } => {
                settle(yard, Settlement { held, outcome: Outcome::TellAgain { result, followers } }).await;
            }
            Claimed::Exhausted { attempts } => {
                let message =
                    format!("{attempts} attempts were begun and none came to an end: it may crash its worker");
                let mut settlement = Settlement::unclaimed(held, State::Failed, codes::ATTEMPTS_EXHAUSTED, &message);
                if let Outcome::Terminal { result, dead, .. } = &mut settlement.outcome {
                    result.attempt = attempts;
                    *dead = true;
                }
                settle(yard, settlement).await;
            }
            // The claimer accepted it anew and claimed again; a store that forgets as fast as that is not kept waiting for.
            Claimed::Unknown => settle(yard, Settlement { held, outcome: Outcome::Later { after_ms: 1000 } }).await,
        }
    }
    (running, Vec::new())
}

/// The handler's call: within the time limit, and ended when no member's lease is left.
async fn execute(lane: &ModelLane, batch: &[Member]) -> VecDeque<Answer> {
    let limit = batch
        .iter()
        .map(|member| member.held.envelope.timeout_ms.unwrap_or(lane.spec.timeout_ms))
        .min()
        .map_or(Duration::ZERO, Duration::from_millis);
    let jobs: Vec<Job> = batch
        .iter()
        .map(|member| Job {
            id: member.held.envelope.id,
            attempt: member.attempt,
            input: member.held.envelope.input.clone(),
        })
        .collect();
    let all = |code: &str, message: &str, retryable| -> VecDeque<Answer> {
        batch.iter().map(|_| Err(error(code, message, retryable))).collect()
    };
    let every_lease_lost = async {
        for member in batch {
            member.lease.lost.cancelled().await;
        }
    };
    let call = AssertUnwindSafe(lane.handler.execute(jobs)).catch_unwind();
    let answers = tokio::select! {
        answers = tokio::time::timeout(limit, call) => answers,
        () = every_lease_lost => {
            warn!(task.model = %lane.spec.name, "the lease was lost while running: the attempt was stopped");
            return all(codes::LEASE_LOST, "the worker was given up for dead", true);
        }
    };
    match answers {
        Err(_) => all(codes::TIMED_OUT, &format!("stopped at its time limit of {} ms", limit.as_millis()), true),
        Ok(Err(_)) => all(codes::HANDLER_FAILED, "the handler panicked", true),
        Ok(Ok(answers)) if answers.len() == batch.len() => answers.into(),
        Ok(Ok(answers)) => {
            let message = format!("the handler gave {} answers to {} tasks", answers.len(), batch.len());
            all(codes::BAD_ANSWER, &message, false)
        }
    }
}

async fn hand_over(yard: &Yard, lane: &ModelLane, member: Member, verdict: Verdict, started: Timestamp, ran_ms: f64) {
    let Member { held, attempt, lease } = member;
    let run = Run { attempt, started, ran_ms };
    let outcome = match verdict {
        Verdict::Retry { after, error } => {
            Outcome::Retry { attempt, counts: true, nonce: lease.nonce, after, error, ran_ms }
        }
        Verdict::GiveBack(error) => {
            let (attempt, after) = (attempt.saturating_sub(1), Duration::ZERO);
            Outcome::Retry { attempt, counts: false, nonce: lease.nonce, after, error, ran_ms }
        }
        Verdict::Succeed(output) => {
            let mut result = run.result(yard, lane, &held.envelope, State::Succeeded);
            result.output = Some(output);
            Outcome::Terminal { result: Box::new(result), fence: Some(lease.nonce), dead: false }
        }
        Verdict::Fail(error) => {
            let mut result = run.result(yard, lane, &held.envelope, State::Failed);
            result.error = Some(error);
            Outcome::Terminal { result: Box::new(result), fence: Some(lease.nonce), dead: true }
        }
    };
    // The lease is renewed until the settlement is done: it travels with it.
    settle(yard, Settlement { held: held.leased(lease), outcome }).await;
}

struct Run {
    attempt: u32,
    started: Timestamp,
    ran_ms: f64,
}

impl Run {
    fn result(&self, yard: &Yard, lane: &ModelLane, envelope: &Envelope, state: State) -> taskyard_shared::TaskResult {
        let mut result = envelope.result(state);
        result.model = Some(lane.full_name.clone());
        result.attempt = self.attempt;
        result.worker = Some(yard.worker.clone());
        result.timings.started = Some(self.started);
        result.timings.finished = Some(Timestamp::now());
        result.timings.waited_ms = Some(self.started.ms_since(envelope.accepted).max(0.0));
        result.timings.ran_ms = Some(self.ran_ms);
        result
    }
}

/// The settler ends only after every attempt has, so a closed channel means that the worker is going down at once; the
/// delivery then goes back to the queue with the connection.
async fn settle(yard: &Yard, settlement: Settlement) {
    if yard.settler.send(settlement).await.is_err() {
        warn!("the worker closed before an attempt was settled: its task comes again");
    }
}
