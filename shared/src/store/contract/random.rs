//! Many random calls on a few tasks: alone, each answer is compared with a model of a few lines; at the same time, only
//! what must hold whatever the order is checked.
//!
//! Leases are either dead at once (0 ms) or outlive the check, so that no answer depends on the time it takes.

use std::sync::Mutex;

use super::*;
use crate::store::FOLLOWERS;

const TASKS: usize = 4;
const CALLS: usize = 1_500;
const MAX_ATTEMPTS: u32 = 4;

#[derive(Clone, Debug)]
enum Call {
    Accept { fingerprint: char, follower: Option<u32> },
    Dispatched,
    Claim { nonce: u128, lease_ms: u64, attempts: u32 },
    Renew { nonce: u128, lease_ms: u64 },
    Settle { nonce: u128, attempt: u32, output: u32 },
    SettleFirst { nonce: u128, output: u32 },
    SettleUnclaimed,
    Release { nonce: u128, counts: bool },
    Follow { follower: u32 },
    Cancel,
    Reprioritize { priority: Option<u8> },
    Get,
}

/// What is drawn more often comes up more often.
fn draw(random: &mut fastrand::Rng, nonces: &mut Vec<u128>) -> Call {
    let nonce = |random: &mut fastrand::Rng, nonces: &mut Vec<u128>| {
        if nonces.is_empty() || random.u8(..4) == 0 {
            nonces.push(random.u128(1..));
        }
        // Recent ones, mostly: those that hold something.
        let back = random.usize(..nonces.len().min(4));
        nonces[nonces.len() - 1 - back]
    };
    let lease_ms = [0, 0, LONG_MS][random.usize(..3)];
    match random.u8(..29) {
        0..3 => Call::Accept {
            fingerprint: if random.u8(..6) == 0 { 'b' } else { 'a' },
            follower: random.bool().then(|| random.u32(..20)),
        },
        3..5 => Call::Dispatched,
        5..12 => Call::Claim { nonce: nonce(random, nonces), lease_ms, attempts: random.u32(..3).saturating_sub(1) },
        12..14 => Call::Renew { nonce: nonce(random, nonces), lease_ms },
        14..16 => {
            Call::Settle { nonce: nonce(random, nonces), attempt: random.u32(1..=MAX_ATTEMPTS), output: random.u32(..) }
        }
        16 => Call::SettleUnclaimed,
        17..20 => Call::Release { nonce: nonce(random, nonces), counts: random.u8(..3) == 0 },
        20 => Call::SettleFirst { nonce: nonce(random, nonces), output: random.u32(..) },
        // Seldom: what is to be cancelled is not claimed any more.
        26 if random.u8(..4) == 0 => Call::Cancel,
        27 => Call::Reprioritize { priority: random.bool().then(|| random.u8(..10)) },
        21..24 => Call::Follow { follower: random.u32(..20) },
        _ => Call::Get,
    }
}

/// What is to be true of one task.
#[derive(Clone)]
struct Model {
    id: TaskId,
    /// It was to be cancelled before it had a record.
    missed: bool,
    record: Option<Record>,
}

#[derive(Clone)]
struct Record {
    fingerprint: Option<char>,
    shown: TaskResult,
    nonce: Option<u128>,
    /// The attempt that gave it back last. Its claim comes too late from then on, while nobody holds the task.
    given_back_by: Option<u128>,
    leased: bool,
    unwanted: bool,
    attempts: u32,
    followers: Vec<Reply>,
}

impl Record {
    fn new(fingerprint: Option<char>, shown: TaskResult) -> Self {
        Self {
            fingerprint,
            attempts: shown.attempt,
            shown,
            nonce: None,
            given_back_by: None,
            leased: false,
            unwanted: false,
            followers: Vec::new(),
        }
    }

    fn open(&self) -> bool {
        !self.shown.state.is_terminal()
    }

    fn follow(&mut self, follower: Option<Reply>) {
        if let Some(follower) = follower.filter(|follower| self.open() && !self.followers.contains(follower))
            && self.followers.len() < FOLLOWERS
        {
            self.followers.push(follower);
        }
    }
}

impl Model {
    fn accepted(&self, fingerprint: char) -> Accept {
        Accept { fingerprint: u128::from(u32::from(fingerprint)), ..acceptance(self.id) }
    }

    /// Does the call, and answers in words.
    fn call(&mut self, call: &Call) -> String {
        let id = self.id;
        let shown = |record: &Option<Record>| record.as_ref().map_or("none".to_owned(), |record| words(&record.shown));
        match (call, &mut self.record) {
            (Call::Accept { fingerprint, follower }, None) => {
                let mut record = Record::new(Some(*fingerprint), queued(id));
                record.follow(follower.map(numbered));
                record.unwanted = std::mem::take(&mut self.missed);
                let answer = match record.unwanted {
                    true => format!("unwanted as {}", words(&record.shown)),
                    false => "new".to_owned(),
                };
                self.record = Some(record);
                answer
            }
            (Call::Accept { fingerprint, follower }, Some(record)) => {
                if record.fingerprint.is_some_and(|known| known != *fingerprint) {
                    return format!("conflict with {}", words(&record.shown));
                }
                record.follow(follower.map(numbered));
                let known = if record.open() && record.unwanted { "unwanted" } else { "known" };
                format!("{known} as {}", words(&record.shown))
            }
            (Call::Cancel, record) => {
                match record {
                    Some(record) => record.unwanted = true,
                    None => self.missed = true,
                }
                shown(record)
            }
            (Call::Reprioritize { priority }, record) => {
                if let Some(record) = record.as_mut().filter(|record| record.shown.state == State::Queued) {
                    let given = priority.map(|given| Priority::try_from(given).expect("a priority"));
                    record.shown.priority = given.unwrap_or_default();
                }
                shown(record)
            }
            (Call::Dispatched, record) => {
                if let Some(record) = record.as_mut().filter(|record| record.shown.state == State::Queued) {
                    record.shown.state = State::Dispatched;
                    record.shown.model = Some("sentiment@2".to_owned());
                }
                shown(record)
            }
            (Call::Claim { .. }, None) => "unknown".to_owned(),
            (Call::Claim { nonce, lease_ms, attempts }, Some(record)) => {
                let begun = record.attempts.max(*attempts);
                if !record.open() {
                    format!("terminal {} for {:?}", words(&record.shown), record.followers)
                } else if record.nonce == Some(*nonce) {
                    record.leased = *lease_ms > 0;
                    format!("run {}", record.attempts)
                } else if record.leased || (record.nonce.is_none() && record.given_back_by == Some(*nonce)) {
                    "busy".to_owned()
                } else if record.unwanted {
                    format!("unwanted {}", record.attempts)
                } else if begun >= MAX_ATTEMPTS {
                    format!("exhausted {begun}")
                } else {
                    (record.attempts, record.nonce, record.leased) = (begun + 1, Some(*nonce), *lease_ms > 0);
                    record.given_back_by = None;
                    (record.shown.state, record.shown.attempt) = (State::Running, begun + 1);
                    record.shown.worker = Some("worker-1".to_owned());
                    format!("run {}", begun + 1)
                }
            }
            (Call::Renew { nonce, lease_ms }, record) => {
                let known = record.is_some();
                match record.as_mut().filter(|record| record.open() && record.nonce == Some(*nonce)) {
                    None if !known => format!("{:?}", Renewed::Unknown),
                    Some(record) => {
                        record.leased = *lease_ms > 0;
                        let renewed = if record.unwanted { Renewed::CancelRequested } else { Renewed::Renewed };
                        format!("{renewed:?}")
                    }
                    None => format!("{:?}", Renewed::Lost),
                }
            }
            (Call::Settle { nonce, attempt, output }, record) => {
                let result = succeeded(id, *attempt, &output.to_string());
                let record = record.get_or_insert_with(|| Record {
                    nonce: Some(*nonce),
                    attempts: *attempt,
                    ..Record::new(None, TaskResult { attempt: *attempt, ..queued(id) })
                });
                match (record.open(), record.nonce == Some(*nonce) && record.attempts == *attempt) {
                    (true, true) => {
                        record.shown = result;
                        format!("done for {:?}", record.followers)
                    }
                    (false, true) => format!("again for {:?}", record.followers),
                    (true, false) => "stale".to_owned(),
                    (false, false) => format!("already {}", words(&record.shown)),
                }
            }
            (Call::SettleFirst { nonce, output }, record) => {
                let record = record.get_or_insert_with(|| Record::new(None, queued(id)));
                match (record.open(), record.nonce == Some(*nonce)) {
                    (true, own) if own || !record.leased => {
                        (record.shown, record.nonce) = (succeeded(id, 1, &output.to_string()), Some(*nonce));
                        record.attempts = record.attempts.max(1);
                        format!("done for {:?}", record.followers)
                    }
                    (true, _) => "stale".to_owned(),
                    (false, true) => format!("again for {:?}", record.followers),
                    (false, false) => format!("already {}", words(&record.shown)),
                }
            }
            (Call::SettleUnclaimed, record) => {
                let record = record.get_or_insert_with(|| Record::new(None, queued(id)));
                if !record.open() {
                    format!("already {}", words(&record.shown))
                } else if record.leased {
                    "stale".to_owned()
                } else {
                    (record.shown, record.nonce) = (expired(id), None);
                    format!("done for {:?}", record.followers)
                }
            }
            (Call::Release { nonce, counts }, record) => {
                let known = record.is_some();
                match record.as_mut().filter(|record| record.open() && record.nonce.is_none_or(|held| held == *nonce)) {
                    Some(record) => {
                        record.attempts -= u32::from(record.nonce.is_some() && !counts);
                        (record.nonce, record.leased, record.given_back_by) = (None, false, Some(*nonce));
                        (record.shown.state, record.shown.attempt) = (State::Queued, record.attempts);
                        record.shown.worker = None;
                        format!("{:?}", Released::Released)
                    }
                    None if !known => format!("{:?}", Released::Released),
                    None => format!("{:?}", Released::Stale),
                }
            }
            (Call::Follow { follower }, record) => {
                if let Some(record) = record {
                    record.follow(Some(numbered(*follower)));
                }
                shown(record)
            }
            (Call::Get, record) => shown(record),
        }
    }
}

fn numbered(number: u32) -> Reply {
    follower(&number.to_string())
}

/// What the model can know of a record.
fn words(task: &TaskResult) -> String {
    format!(
        "{:?} {} attempt {} by {:?} on {:?} with {:?}",
        task.state,
        task.priority.get(),
        task.attempt,
        task.worker,
        task.model,
        task.output.as_ref().map(|output| output.get()),
    )
}

/// The same call to the store, and its answer in the same words.
async fn ask(desk: &Desk, model: &Model, call: &Call) -> String {
    let id = model.id;
    let shown = |task: Option<TaskResult>| task.as_ref().map_or("none".to_owned(), words);
    match call.clone() {
        Call::Accept { fingerprint, follower } => {
            let task = Accept { follower: follower.map(numbered), ..model.accepted(fingerprint) };
            match desk.accept(task).await {
                Accepted::New => "new".to_owned(),
                Accepted::Known(known) => format!("known as {}", words(&known)),
                Accepted::Unwanted(known) => format!("unwanted as {}", words(&known)),
                Accepted::Conflict(known) => format!("conflict with {}", words(&known)),
            }
        }
        Call::Dispatched => {
            desk.dispatched(id, "sentiment@2").await;
            shown(desk.get(id).await)
        }
        Call::Claim { nonce, lease_ms, attempts } => {
            let claim = Claim { attempts, max_attempts: MAX_ATTEMPTS, ..claim_of(id, nonce, lease_ms) };
            match desk.claim(claim).await {
                Claimed::Run { attempt } => format!("run {attempt}"),
                Claimed::Busy { .. } => "busy".to_owned(),
                Claimed::Terminal { result, followers } => format!("terminal {} for {followers:?}", words(&result)),
                Claimed::Exhausted { attempts } => format!("exhausted {attempts}"),
                Claimed::Lost => "lost".to_owned(),
                Claimed::Fatal { attempts, .. } => format!("fatal {attempts}"),
                Claimed::Unwanted { attempts } => format!("unwanted {attempts}"),
                Claimed::Unknown => "unknown".to_owned(),
            }
        }
        Call::Renew { nonce, lease_ms } => format!("{:?}", desk.renew(id, nonce, lease_ms).await),
        Call::Settle { nonce, attempt, output } => {
            settled(desk.settle(attempt, nonce, &succeeded(id, attempt, &output.to_string())).await)
        }
        Call::SettleFirst { nonce, output } => {
            settled(desk.settle_first(nonce, &succeeded(id, 1, &output.to_string())).await)
        }
        Call::SettleUnclaimed => settled(desk.settle_unclaimed(&expired(id)).await),
        Call::Release { nonce, counts } => format!("{:?}", desk.release(id, nonce, counts).await),
        Call::Follow { follower } => shown(desk.follow(id, numbered(follower)).await),
        Call::Cancel => shown(desk.cancel(id).await),
        Call::Reprioritize { priority } => shown(desk.reprioritize(id, priority).await),
        Call::Get => shown(desk.get(id).await),
    }
}

fn settled(answer: Settled) -> String {
    match answer {
        Settled::Done { followers } => format!("done for {followers:?}"),
        Settled::Again { followers } => format!("again for {followers:?}"),
        Settled::Stale => "stale".to_owned(),
        Settled::Already(result) => format!("already {}", words(&result)),
    }
}

pub async fn answers_are_those_of_a_simple_model(store: Arc<dyn Store>) {
    let seed = fastrand::u64(..);
    let random = &mut fastrand::Rng::with_seed(seed);
    let desk = Desk(store);
    let new = || (Model { id: TaskId::new(), missed: false, record: None }, Vec::new(), Vec::new());
    let mut tasks: Vec<(Model, Vec<u128>, Vec<String>)> = (0..TASKS).map(|_| new()).collect();
    for _ in 0..CALLS {
        let (model, nonces, history) = &mut tasks[random.usize(..TASKS)];
        let call = draw(random, nonces);
        let expected = model.call(&call);
        history.push(format!("{call:?} -> {expected}"));
        let answer = ask(&desk, model, &call).await;
        assert_eq!(answer, expected, "seed {seed}, after\n{}", history.join("\n"));
        // A finished task is boring after a while.
        if model.record.as_ref().is_some_and(|record| !record.open()) && random.u8(..8) == 0 {
            (*model, *nonces, *history) = new();
        }
    }
}

pub async fn whatever_happens_a_task_is_settled_once(store: Arc<dyn Store>) {
    let ids: Arc<Vec<TaskId>> = Arc::new((0..TASKS).map(|_| TaskId::new()).collect());
    let done = Arc::new(Mutex::new(Vec::new()));
    let callers = (0..8).map(|_| {
        let (desk, ids, done) = (Desk(store.clone()), ids.clone(), done.clone());
        tokio::spawn(async move {
            let mut attempts = Vec::new();
            for _ in 0..100 {
                let id = ids[fastrand::usize(..TASKS)];
                match fastrand::u8(..11) {
                    10 => {
                        let (nonce, result) = (nonce(), succeeded(id, 1, &fastrand::u32(..).to_string()));
                        // Seldom, or there would be nothing left to fight for.
                        if fastrand::u8(..8) == 0
                            && let Settled::Done { .. } = desk.settle_first(nonce, &result).await
                        {
                            done.lock().expect("no caller has panicked").push((id, text(&result)));
                        }
                    }
                    0 => drop(desk.accept(acceptance(id)).await),
                    1..5 => {
                        let (nonce, lease_ms) = (nonce(), [0, LONG_MS][fastrand::usize(..2)]);
                        let claim = Claim { max_attempts: u32::MAX, ..claim_of(id, nonce, lease_ms) };
                        if let Claimed::Run { attempt } = desk.claim(claim).await {
                            attempts.push((id, nonce, attempt));
                        }
                    }
                    // Most attempts end unsettled, or there would be nothing left to fight for.
                    5..9 if !attempts.is_empty() => {
                        let (id, nonce, _) = attempts.swap_remove(fastrand::usize(..attempts.len()));
                        desk.release(id, nonce, fastrand::bool()).await;
                    }
                    9 if !attempts.is_empty() => {
                        let (id, nonce, attempt) = attempts[fastrand::usize(..attempts.len())];
                        let result = succeeded(id, attempt, &fastrand::u32(..).to_string());
                        if let Settled::Done { .. } = desk.settle(attempt, nonce, &result).await {
                            done.lock().expect("no caller has panicked").push((id, text(&result)));
                        }
                    }
                    _ => drop(desk.get(id).await),
                }
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.expect("a caller");
    }
    let desk = Desk(store);
    for id in ids.iter() {
        let result = expired(*id);
        if let Settled::Done { .. } = desk.settle_unclaimed(&result).await {
            done.lock().expect("no caller has panicked").push((*id, text(&result)));
        }
        let written: Vec<_> =
            done.lock().expect("no caller has panicked").iter().filter(|done| done.0 == *id).cloned().collect();
        match desk.show(*id).await {
            task if task.state.is_terminal() => assert_eq!(written, [(*id, text(&task))]),
            task => assert!(written.is_empty(), "{task:?} was settled: {written:?}"),
        }
    }
}
