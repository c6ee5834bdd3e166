//! One attempt at a batch of tasks, as a row of steps: claim, start, execute, judge, hand over to be settled.
//!
//! A batch is most often one task. Each member has its own claim, its own lease and its own outcome; they only share the
//! handler's call. The first attempt at a short task is begun without a claim, which would take as long as the task: of
//! two workers that run it, as after a crash of the scheduler they may, the one that settles first has it. Once it turns
//! out to be long, or when its message comes a second time, it is claimed like any other. What may have ended its worker
//! before runs by itself ([`crate::alone`]), and what runs for long is watched over by its scheduler ([`crate::long`]).

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroU64;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::select_all;
use taskyard_shared::control::CANCELLED;
use taskyard_shared::events::Events;
use taskyard_shared::store::{Beside, Claim, Claimed, Guard};
use taskyard_shared::{Envelope, State, TaskError, Timestamp, Usage, time};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::alone::Alone;
use crate::claims::{Claimer, Closed};
use crate::handler::{Answer, Handler, Job, codes, error};
use crate::held::Held;
use crate::lane::ModelLane;
use crate::leases::{Lease, Leases};
use crate::long::{Long, until};
use crate::meanwhile::{Meanwhile, Pump};
use crate::metrics::Metrics;
use crate::payloads::Payloads;
use crate::settle::{Outcome, Settlement, unrun};
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
    pub payloads: Payloads,
    /// What may end its worker runs with nothing beside it.
    pub alone: Alone,
    pub long: Long,
    /// Takes what tasks say while they run.
    pub pump: Arc<Pump>,
    pub events: Events,
    pub metrics: Metrics,
    /// Those whose tokens are counted apart.
    pub tenants: BTreeSet<String>,
}

impl Yard {
    /// Counts what an attempt took, whatever became of it.
    fn count(&self, lane: &ModelLane, envelope: &Envelope, usage: &Usage) {
        let tenant = self.tenants.get(&*envelope.tenant).map_or(OTHERS, String::as_str);
        self.metrics.used(&lane.spec.name, tenant, usage);
    }
}

/// Stands for tenants that the settings do not name: as a label each of them would be a series for ever.
const OTHERS: &str = "_other";

/// An attempt that was begun without a claim and still runs after this time is claimed then.
const CLAIMED_LATE: Duration = Duration::from_millis(100);

/// How the message of one that is cancelled begins.
const WHILE_IT_RAN: &str = "it was cancelled while it ran";

/// Longer than it takes to tell a member that it is to stop.
const UNTOLD: Duration = Duration::from_secs(1);

/// Handing on what runs for long is waited for no longer.
const HAND_ON_MOST: Duration = Duration::from_secs(1);
/// What could not be handed on is tried again after this.
const AGAIN: Duration = Duration::from_secs(10);

/// By what right a member runs.
enum Right {
    /// It has claimed the task: the record names it, and its lease is renewed.
    Claimed { attempt: u32, lease: Lease },
    /// The first attempt at a short task that nobody else has been given. Claiming would take longer than running it:
    /// whoever settles first has the task.
    First { nonce: u128 },
    /// Its late claim found that the task is another's, and this is what becomes of the delivery.
    Lost(Outcome),
}

/// A member of the batch that runs.
struct Member {
    held: Held,
    right: Right,
}

impl Member {
    fn nonce(&self) -> u128 {
        match &self.right {
            Right::Claimed { lease, .. } => lease.nonce,
            Right::First { nonce } => *nonce,
            Right::Lost(_) => 0,
        }
    }

    fn attempt(&self) -> u32 {
        match &self.right {
            Right::Claimed { attempt, .. } => *attempt,
            Right::First { .. } | Right::Lost(_) => 1,
        }
    }

    /// Whether it has lost its right because somebody asked to cancel the task.
    fn is_unwanted(&self) -> bool {
        match &self.right {
            Right::Claimed { lease, .. } => lease.is_unwanted(),
            Right::First { .. } => false,
            Right::Lost(outcome) => outcome.is_cancelled(),
        }
    }

    /// Waits until this attempt has lost its right to the task.
    async fn lost(&self) {
        match &self.right {
            Right::Claimed { lease, .. } => lease.lost.cancelled().await,
            Right::First { .. } => std::future::pending().await,
            Right::Lost(_) => {}
        }
    }
}

/// Runs a batch from claim to settlement. Answers the deliveries that were not begun, when the worker is closing.
pub(crate) async fn attempt(yard: &Yard, lane: &ModelLane, handler: &dyn Handler, batch: Vec<Held>) -> Vec<Held> {
    let batch = drop_expired(yard, batch).await;
    // A first attempt without a claim may have been begun, and have ended the worker that it was with.
    let (mut suspects, batch): (Vec<Held>, Vec<Held>) =
        batch.into_iter().partition(|held| lane.is_short() && held.redelivered && held.envelope.attempts == 0);
    let mut not_begun = Vec::new();
    if !batch.is_empty() {
        let _beside = yard.alone.beside().await;
        let begun = begin(yard, lane, batch, Beside::Others).await;
        suspects.extend(begun.lost);
        not_begun.extend(begun.not_begun);
        run(yard, lane, handler, begun.running).await;
    }
    for held in suspects {
        match not_begun.is_empty() {
            // Boxed, as what is rare: each attempt is a future that is as large as the largest of its ways.
            true => not_begun.extend(Box::pin(run_alone(yard, lane, handler, held)).await),
            false => not_begun.push(held),
        }
    }
    not_begun
}

/// Runs one with nothing beside it, for as long as that is promised.
async fn run_alone(yard: &Yard, lane: &ModelLane, handler: &dyn Handler, held: Held) -> Vec<Held> {
    let (place, beside) = match yard.alone.place().await {
        Some(place) => (Some(place), Beside::Nothing),
        // What runs here takes too long to be waited for.
        None => (None, Beside::OthersAnyway),
    };
    let _beside = match place {
        Some(_) => None,
        None => Some(yard.alone.beside().await),
    };
    let envelope = held.envelope.clone();
    let begun = begin(yard, lane, vec![held], beside).await;
    let nonce = begun.running.first().map(Member::nonce);
    let running = run(yard, lane, handler, begun.running);
    match (place, nonce) {
        (Some(place), Some(nonce)) => {
            // What happens from now on is not held against it, nor while its end waits to be written: where the broker is away
            // many would do so, and all be held to have been by themselves when the worker ends. No attempt is begun by this:
            // the task may just have been given back.
            let others_come = async {
                let beside = Beside::OthersAnyway;
                let claim = Claim { beside, max_attempts: 0, ..claim(yard, lane, &envelope, nonce) };
                let _closed = yard.claimer.claim(vec![claim], vec![envelope]).await;
            };
            let mut running = pin!(running);
            match tokio::time::timeout(place.longest(), &mut running).await {
                // The place is kept until that is known.
                Ok(()) => others_come.await,
                Err(_) => {
                    let _beside = place.let_others_in();
                    tokio::join!(running, others_come);
                }
            }
        }
        _ => running.await,
    }
    begun.not_begun
}

/// The handler's call with what was begun, and what comes of it.
async fn run(yard: &Yard, lane: &ModelLane, handler: &dyn Handler, mut batch: Vec<Member>) {
    if batch.is_empty() {
        return;
    }
    let started = Timestamp::now();
    let clock = Instant::now();
    for member in &batch {
        let run = Run { attempt: member.attempt(), started, ran_ms: 0.0, usage: None };
        let envelope = &member.held.envelope;
        if envelope.extras.mirrors.is_none() {
            let running = || run.begun(yard, lane, envelope);
            yard.events.state(Some(&lane.name), running, State::Running, envelope.extras.traceparent.as_deref());
        }
    }
    let answers = execute(yard, lane, handler, &mut batch).await;
    // A batch's time is shared among its members, so that a tenant is charged for what it used.
    let ran = clock.elapsed();
    lane.ran(batch.len(), ran);
    let ran_ms = time::milliseconds(ran / batch.len() as u32);
    for (member, (answer, usage)) in batch.into_iter().zip(answers) {
        if let Some(usage) = &usage {
            yard.count(lane, &member.held.envelope, usage);
        }
        let verdict = judge(yard, lane, &member.held.envelope, member.attempt(), answer);
        let run = Run { attempt: member.attempt(), started, ran_ms, usage };
        hand_over(yard, lane, member, verdict, run).await;
    }
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

/// What became of those that were to be begun.
#[derive(Default)]
struct Begun {
    running: Vec<Member>,
    /// Their last attempt was lost: they are to run with nothing beside them.
    lost: Vec<Held>,
    /// The worker is closing.
    not_begun: Vec<Held>,
}

/// Takes the right to run each member; what may not run goes its own way.
async fn begin(yard: &Yard, lane: &ModelLane, batch: Vec<Held>, beside: Beside) -> Begun {
    let short = lane.is_short() && beside == Beside::Others;
    let (unclaimed, to_claim): (Vec<Held>, Vec<Held>) =
        batch.into_iter().partition(|held| short && !held.redelivered && held.envelope.attempts == 0);
    let mut running: Vec<Member> =
        unclaimed.into_iter().map(|held| Member { held, right: Right::First { nonce: nonce() } }).collect();
    if to_claim.is_empty() {
        return Begun { running, ..Begun::default() };
    }
    let claims: Vec<Claim> =
        to_claim.iter().map(|held| Claim { beside, ..claim(yard, lane, &held.envelope, nonce()) }).collect();
    let nonces: Vec<u128> = claims.iter().map(|claim| claim.nonce).collect();
    let envelopes: Vec<Arc<Envelope>> = to_claim.iter().map(|held| held.envelope.clone()).collect();
    let claimed = match Box::pin(yard.claimer.claim(claims, envelopes)).await {
        Ok(claimed) => claimed,
        // Nothing is begun any more, so what needed no claim goes back too.
        Err(Closed) => {
            let not_begun = running.into_iter().map(|member| member.held).chain(to_claim).collect();
            return Begun { not_begun, ..Begun::default() };
        }
    };
    let mut lost = Vec::new();
    for ((held, claimed), nonce) in to_claim.into_iter().zip(claimed).zip(nonces) {
        if let Claimed::Lost = claimed {
            lost.push(held);
            continue;
        }
        match right(yard, lane, &held, nonce, claimed) {
            Right::Lost(outcome) => settle(yard, Settlement { held, outcome }).await,
            right => running.push(Member { held, right }),
        }
    }
    Begun { running, lost, not_begun: Vec::new() }
}

fn nonce() -> u128 {
    u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..))
}

fn claim(yard: &Yard, lane: &ModelLane, envelope: &Envelope, nonce: u128) -> Claim {
    Claim {
        id: envelope.id,
        worker: yard.worker.clone(),
        nonce,
        lease_ms: yard.lease.as_millis() as u64,
        max_attempts: envelope.extras.max_attempts.unwrap_or(lane.spec.max_attempts),
        attempts: envelope.attempts,
        beside: Beside::Others,
    }
}

/// What an answer to a claim comes to.
fn right(yard: &Yard, lane: &ModelLane, held: &Held, nonce: u128, claimed: Claimed) -> Right {
    Right::Lost(match claimed {
        Claimed::Run { attempt } => {
            return Right::Claimed { attempt, lease: yard.leases.hold(held.envelope.id, nonce) };
        }
        Claimed::Busy { for_ms } => {
            debug!(task.id = %held.envelope.id.0, for_ms, "another attempt holds the lease: given back for later");
            Outcome::Later { after_ms: for_ms, begun: true }
        }
        Claimed::Terminal { result, followers } => Outcome::TellAgain { result: result.into(), followers },
        Claimed::Exhausted { attempts } => {
            let message = format!("{attempts} attempts were begun and none came to an end: it may crash its worker");
            let mut result = unrun(&held.envelope, State::Failed, codes::ATTEMPTS_EXHAUSTED, &message);
            result.attempt = attempts;
            debug!(task.id = %held.envelope.id.0, task.model = %lane.spec.name, attempts, "no attempt is left");
            Outcome::Terminal { result: Arc::new(result), guard: Guard::Unclaimed, dead: true }
        }
        Claimed::Fatal { attempts, worker } => {
            let place = worker.as_deref().unwrap_or("unknown");
            let message = format!(
                "its worker was lost while it ran, and so was {place} when nothing else ran there: it is taken to end its workers"
            );
            let mut result = unrun(&held.envelope, State::Failed, codes::WORKER_LOST, &message);
            (result.attempt, result.worker) = (attempts, worker);
            Outcome::Terminal { result: Arc::new(result), guard: Guard::Unclaimed, dead: true }
        }
        // Only who asks for it is told so, and runs it then.
        Claimed::Lost => Outcome::Later { after_ms: 0, begun: true },
        Claimed::Unwanted { attempts } => {
            let mut result = unrun(&held.envelope, State::Cancelled, CANCELLED, "it was cancelled before it ran");
            result.attempt = attempts;
            Outcome::Terminal { result: Arc::new(result), guard: Guard::Unclaimed, dead: false }
        }
        // The claimer accepted it anew and claimed again; a store that forgets as fast as that is not kept waiting for.
        Claimed::Unknown => Outcome::Later { after_ms: 1000, begun: false },
    })
}

/// The handler's call: within the time limit, and ended when no member has a right to its task any more.
async fn execute(
    yard: &Yard,
    lane: &ModelLane,
    handler: &dyn Handler,
    batch: &mut [Member],
) -> Vec<(Answer, Option<Usage>)> {
    let limit = batch
        .iter()
        .map(|member| member.held.envelope.timeout_ms.map_or(lane.spec.timeout_ms, NonZeroU64::get))
        .min()
        .map_or(Duration::ZERO, Duration::from_millis);
    let jobs: Vec<Job> = batch
        .iter()
        .map(|member| Job {
            id: member.held.envelope.id,
            attempt: member.attempt(),
            input: member.held.envelope.input.clone(),
            meanwhile: yard.pump.line(&member.held.envelope, &lane.name, member.attempt(), member.nonce()),
        })
        .collect();
    let mut lines: Vec<Line> = jobs.iter().map(|job| Line { meanwhile: job.meanwhile.clone(), told: None }).collect();
    let answers = call(yard, lane, handler, batch, jobs, limit, &mut lines).await;
    // The result comes behind what the task said before it.
    for line in &lines {
        line.meanwhile.end().await;
    }
    answers.into_iter().zip(&lines).map(|(answer, line)| (answer, line.meanwhile.usage())).collect()
}

/// What goes between a member and the yard while it runs.
struct Line {
    meanwhile: Meanwhile,
    /// When it was told to stop.
    told: Option<Instant>,
}

/// Waits for the next member that is to stop and was not told so.
async fn unwanted(batch: &[Member], lines: &[Line]) -> usize {
    let claimed = batch.iter().zip(lines).enumerate();
    let claimed =
        claimed.filter(|(_, (member, line))| line.told.is_none() && !matches!(member.right, Right::First { .. }));
    let waiting: Vec<_> = claimed
        .map(|(at, (member, _))| {
            Box::pin(async move {
                member.lost().await;
                match member.is_unwanted() {
                    true => at,
                    false => std::future::pending().await,
                }
            })
        })
        .collect();
    match waiting.is_empty() {
        true => std::future::pending().await,
        false => select_all(waiting).await.0,
    }
}

/// Waits until no member has a right to its task any more, nor time to stop by itself.
async fn every_right_lost(batch: &[Member], lines: &[Line], grace: Duration) {
    for (member, line) in batch.iter().zip(lines) {
        member.lost().await;
        if member.is_unwanted() {
            // It is told first.
            until(Some(line.told.map_or_else(|| Instant::now() + UNTOLD, |told| told + grace))).await;
        }
    }
}

async fn call(
    yard: &Yard,
    lane: &ModelLane,
    handler: &dyn Handler,
    batch: &mut [Member],
    jobs: Vec<Job>,
    limit: Duration,
    lines: &mut [Line],
) -> VecDeque<Answer> {
    let size = batch.len();
    let all = |code: &str, message: &str, retryable| -> VecDeque<Answer> {
        (0..size).map(|_| Err(error(code, message, retryable))).collect()
    };
    let execution = yard.payloads.around(handler, jobs, yard.max_output_bytes);
    let mut call = pin!(tokio::time::timeout(limit, AssertUnwindSafe(execution).catch_unwind()));
    let (begun, grace) = (Instant::now(), handler.grace());
    let mut unclaimed = batch.iter().any(|member| matches!(member.right, Right::First { .. }));
    // What could not be handed on is tried again.
    let mut hand_on_at = yard.long.due(batch.iter().map(|member| &member.held));
    let answers = loop {
        let mut hands_on = false;
        tokio::select! {
            biased;
            answers = &mut call => break answers,
            () = tokio::time::sleep_until(begun + CLAIMED_LATE), if unclaimed => {
                unclaimed = false;
            }
            () = until(hand_on_at), if hand_on_at.is_some() => hands_on = true,
            at = unwanted(batch, lines) => {
                if let Some(line) = lines.get_mut(at) {
                    line.meanwhile.cancel();
                    line.told = Some(Instant::now());
                }
                continue;
            }
            () = every_right_lost(batch, lines, grace) => {
                if !batch.iter().all(|member| member.is_unwanted()) {
                    warn!(task.model = %lane.spec.name, "the lease was lost while running: the attempt was stopped");
                }
                let stopped = |member: &Member| match member.is_unwanted() {
                    true => error(CANCELLED, "it was cancelled while it ran, and was stopped", false),
                    false => error(codes::LEASE_LOST, "the worker was given up for dead", true),
                };
                return batch.iter().map(|member| Err(stopped(member))).collect();
            }
        }
        tokio::select! {
            biased;
            answers = &mut call => break answers,
            () = async {
                match hands_on {
                    true => Box::pin(hand_on(yard, batch)).await,
                    false => Box::pin(claim_late(yard, lane, batch, lines)).await,
                }
            } => {}
        }
        if hands_on {
            let kept = batch.iter().any(|member| member.held.receipt.is_some());
            hand_on_at = kept.then(|| Instant::now() + AGAIN);
        }
    };
    match answers {
        Err(_) => all(codes::TIMED_OUT, &format!("stopped at its time limit of {} ms", limit.as_millis()), true),
        Ok(Err(_)) => all(codes::HANDLER_FAILED, "the handler panicked", true),
        Ok(Ok(answers)) if answers.len() == size => answers.into(),
        Ok(Ok(answers)) => {
            let message = format!("the handler gave {} answers to {size} tasks", answers.len());
            all(codes::BAD_ANSWER, &message, false)
        }
    }
}

/// Those that hold a lease are watched over by it from now on, and no longer by their deliveries.
async fn hand_on(yard: &Yard, batch: &mut [Member]) {
    let leased = batch.iter_mut().filter(|member| matches!(member.right, Right::Claimed { .. }));
    let kept = leased.map(|member| &mut member.held).filter(|held| held.receipt.is_some());
    // A broker that is away does not keep it from hearing that a lease is lost, or a task cancelled.
    if tokio::time::timeout(HAND_ON_MOST, yard.long.hand_on(kept.collect())).await.is_err() {
        warn!("what runs for long is not handed on yet");
    }
}

/// Claims what was begun without a claim. While the store is away the attempts go on as they are. Cancel safe: a claim
/// whose answer nobody waited for is its own attempt's, and settling it as a first attempt finds its nonce there.
async fn claim_late(yard: &Yard, lane: &ModelLane, batch: &mut [Member], lines: &[Line]) {
    let late: Vec<((&mut Member, &Line), u128)> = batch
        .iter_mut()
        .zip(lines)
        .filter_map(|(member, line)| match member.right {
            Right::First { nonce } => Some(((member, line), nonce)),
            Right::Claimed { .. } | Right::Lost(_) => None,
        })
        .collect();
    let beside = Beside::OthersAnyway;
    let claim = |((member, _), nonce): &((&mut Member, &Line), u128)| Claim {
        beside,
        ..claim(yard, lane, &member.held.envelope, *nonce)
    };
    let claims = late.iter().map(claim).collect();
    let envelopes = late.iter().map(|((member, _), _)| member.held.envelope.clone()).collect();
    let Ok(claimed) = yard.claimer.claim(claims, envelopes).await else { return };
    for (((member, line), nonce), claimed) in late.into_iter().zip(claimed) {
        member.right = right(yard, lane, &member.held, nonce, claimed);
        line.meanwhile.is_attempt(member.attempt());
    }
}

async fn hand_over(yard: &Yard, lane: &ModelLane, member: Member, verdict: Verdict, run: Run) {
    let ran_ms = run.ran_ms;
    let Member { held, right } = member;
    let (guard, nonce, lease) = match right {
        Right::Claimed { attempt, lease } => (Guard::Fence { attempt, nonce: lease.nonce }, lease.nonce, Some(lease)),
        Right::First { nonce } => (Guard::First { nonce }, nonce, None),
        Right::Lost(outcome) => return settle(yard, Settlement { held, outcome }).await,
    };
    let again = |counts, after, error| Outcome::Retry {
        attempt: if counts { run.attempt } else { run.attempt.saturating_sub(1) },
        counts,
        nonce,
        after,
        error,
        ran_ms,
    };
    let unwanted = lease.as_ref().is_some_and(Lease::is_unwanted);
    let outcome = match verdict {
        // It is not tried again, and was perhaps stopped for that.
        Verdict::Retry { error: why, .. } | Verdict::GiveBack(why) | Verdict::Fail(why) if unwanted => {
            let mut result = run.result(yard, lane, &held.envelope, State::Cancelled);
            result.error = Some(error(CANCELLED, how_it_stopped(&why), false));
            Outcome::Terminal { result: Arc::new(result), guard, dead: false }
        }
        Verdict::Retry { after, error } => again(true, after, error),
        Verdict::GiveBack(error) => again(false, Duration::ZERO, error),
        Verdict::Succeed(output) => {
            let mut result = run.result(yard, lane, &held.envelope, State::Succeeded);
            result.output = Some(output);
            Outcome::Terminal { result: Arc::new(result), guard, dead: false }
        }
        Verdict::Fail(error) => {
            let mut result = run.result(yard, lane, &held.envelope, State::Failed);
            result.error = Some(error);
            Outcome::Terminal { result: Arc::new(result), guard, dead: true }
        }
    };
    // The lease is renewed until the settlement is done: it travels with it.
    let held = match lease {
        Some(lease) => held.leased(lease),
        None => held,
    };
    settle(yard, Settlement { held, outcome }).await;
}

/// What became of a task that was cancelled while it ran, for people.
fn how_it_stopped(why: &TaskError) -> String {
    match why.code.as_str() {
        CANCELLED if why.message.starts_with(WHILE_IT_RAN) => why.message.clone(),
        CANCELLED => format!("{WHILE_IT_RAN}, and stopped by itself: {}", why.message),
        codes::LEASE_LOST => format!("{WHILE_IT_RAN}, and was stopped"),
        code => format!("{WHILE_IT_RAN}, and ended with {code}: {}", why.message),
    }
}

struct Run {
    attempt: u32,
    started: Timestamp,
    ran_ms: f64,
    usage: Option<Usage>,
}

impl Run {
    /// The task while it runs.
    fn begun(&self, yard: &Yard, lane: &ModelLane, envelope: &Envelope) -> taskyard_shared::TaskResult {
        let mut result = self.result(yard, lane, envelope, State::Running);
        (result.timings.finished, result.timings.waited_ms, result.timings.ran_ms) = (None, None, None);
        result
    }

    fn result(&self, yard: &Yard, lane: &ModelLane, envelope: &Envelope, state: State) -> taskyard_shared::TaskResult {
        let mut result = envelope.result(state);
        result.model = Some(lane.full_name.clone());
        result.attempt = self.attempt;
        result.worker = Some(yard.worker.clone());
        result.timings.started = Some(self.started);
        result.timings.finished = Some(Timestamp::now());
        result.timings.waited_ms = Some(self.started.ms_since(envelope.accepted).max(0.0));
        result.timings.ran_ms = Some(self.ran_ms);
        result.usage = self.usage;
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
