//! What every store keeps to, as checks that each adapter runs against itself. A check's name is the promise.
//!
//! An adapter's test file names one function, and [`store_contract!`](crate::store_contract) makes a test of each
//! check:
//!
//! ```ignore
//! taskyard_shared::store_contract!(run);
//!
//! /// Opens a store that keeps records as `retention` says, hands it to the check, and cleans up.
//! async fn run(retention: Retention, check: Check) {
//!     check(Arc::new(open(retention))).await;
//! }
//! ```
//!
//! Checks may share one store and run at the same time: each works on ids, tenants and names of its own. A lease that
//! has to end is short or 0 ms, which is dead at once, and is waited for by asking again, never by sleeping it out.

mod accept;
mod alone;
mod claim;
mod first;
mod listing;
mod marks;
mod random;
mod release;
mod rest;
mod settle;
mod streams;
mod tokens;
mod workflows;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

use super::{
    Accept, Accepted, Beside, Claim, Claimed, Guard, Leased, Release, Released, Renew, Renewed, Retention, Settle,
    Settled, Store, StoreError,
};
use crate::envelope::Reply;
use crate::lifecycle::State;
use crate::outcome::{ChoiceReason, ModelChoice, TaskError, TaskResult, Timings, Usage};
use crate::task::{Kind, Priority, TaskId};
use crate::time::Timestamp;
use crate::workflow::{StepOf, WorkflowId};

pub use accept::*;
pub use alone::*;
pub use claim::*;
pub use first::*;
pub use listing::*;
pub use marks::*;
pub use random::*;
pub use release::*;
pub use rest::*;
pub use settle::*;
pub use streams::*;
pub use tokens::*;
pub use workflows::*;

/// One promise, to be shown by a store. It panics where the store breaks it.
pub type Check = fn(Arc<dyn Store>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// A test of every check of the contract. `$run` is an `async fn(Retention, Check)`.
#[macro_export]
macro_rules! store_contract {
    ($run:path) => {
        $crate::store_contract! { $run, $crate::store::contract::LASTING =>
            a_new_task_is_shown_as_it_was_accepted
            an_id_never_accepted_has_no_record
            a_second_accept_is_known
            a_second_accept_shows_how_far_the_task_has_come
            another_content_is_a_conflict
            an_idempotency_key_leads_to_the_first_task
            an_idempotency_key_with_another_content_is_a_conflict
            idempotency_keys_of_other_tasks_do_not_meet
            a_batch_sees_what_it_has_itself_taken_in
            of_many_accepts_at_once_exactly_one_is_new
            of_what_is_not_known_asking_leaves_nothing
            what_is_known_is_asked_for_and_followed
            a_claim_runs_the_first_attempt
            one_claim_wins_and_the_others_are_busy
            of_many_claimants_at_once_exactly_one_wins
            the_same_claim_again_is_the_same_attempt
            a_claim_without_a_record_is_unknown
            a_dead_lease_is_taken_over_with_the_next_attempt
            a_renewed_lease_lives_on
            whether_somebody_runs_a_task_can_be_asked
            only_the_attempt_that_holds_it_renews_a_lease
            exhausted_after_max_attempts
            attempts_that_only_the_envelope_knows_of_count
            a_finished_task_is_not_claimed
            an_attempt_after_a_lost_one_has_its_worker_to_itself_and_is_the_last_if_it_is_lost
            what_others_were_let_run_beside_is_not_held_against_a_task
            what_was_asked_of_a_task_outlives_an_attempt_that_runs_alone
            a_dispatched_task_says_so_and_on_which_model
            dispatching_never_creates_and_never_touches_what_runs_or_has_ended
            a_settled_task_shows_its_result
            a_stale_attempt_cannot_settle
            the_right_nonce_of_another_attempt_number_is_stale
            settling_twice_by_the_same_attempt_is_told_apart
            of_many_settlements_at_once_exactly_one_is_done
            a_terminal_record_never_changes
            a_settle_without_a_record_creates_it
            an_unclaimed_task_can_be_settled_by_anybody
            unclaimed_settle_loses_against_a_live_lease
            an_attempt_that_an_unclaimed_settle_overtook_is_told_so
            a_first_attempt_settles_without_a_claim
            a_first_attempt_without_a_record_creates_it
            a_first_attempt_is_told_when_another_had_settled_it
            a_first_attempt_loses_against_the_live_lease_of_another
            a_first_attempt_that_did_claim_settles_all_the_same
            a_first_attempt_settles_behind_attempts_that_are_over
            of_a_first_attempt_and_claimants_at_once_exactly_one_is_done
            outputs_come_back_byte_for_byte
            a_released_task_is_claimed_again_at_once
            a_released_attempt_need_not_count
            a_released_attempt_holds_nothing
            a_claim_that_comes_after_its_attempt_was_given_back_is_refused
            followers_are_told_once_and_capped
            following_answers_the_record
            a_finished_task_gets_no_more_followers
            lists_page_newest_first
            lists_hold_what_matches
            a_list_of_nothing_ends
            a_forged_cursor_is_refused
            load_reports_expire
            the_newest_load_report_of_a_worker_counts
            a_worker_that_leaves_is_no_longer_counted
            the_newest_announcement_of_a_model_counts
            small_values_are_kept
            a_task_to_be_cancelled_is_not_claimed
            a_running_attempt_is_told_that_it_is_to_be_cancelled
            an_attempt_that_ends_before_it_is_told_counts
            a_task_that_is_cancelled_before_it_comes_is_unwanted
            a_batch_sees_which_of_its_tasks_are_unwanted
            a_waiting_task_is_given_another_priority
            of_a_cancellation_and_a_claim_at_once_one_is_first
            a_paused_model_stays_paused
            what_a_task_says_is_read_in_order_from_any_place
            only_the_attempt_that_has_a_task_speaks_for_it
            a_stream_that_is_full_says_where_it_was_cut
            many_tasks_speak_in_one_call
            who_looks_is_told_that_something_is_to_be_cancelled
            a_bucket_is_full_at_first_and_then_empty
            a_bucket_fills_again_at_its_rate_and_no_further
            of_many_takers_at_once_no_two_get_one_token
            buckets_do_not_meet_and_a_batch_sees_what_it_took
            a_bucket_holds_no_more_than_its_newest_size
            a_workflow_is_taken_in_once
            a_workflow_that_has_ended_stays_as_it_is
            a_workflow_to_be_cancelled_is_marked_until_it_ends
            workflows_are_listed_newest_first_and_keep_their_places
            a_list_of_workflows_holds_what_matches_as_it_was_last_written
            a_blocked_task_is_queued_once_it_comes_again_to_be_run
            batches_of_a_thousand_answer_in_order
            an_empty_batch_answers_nothing
            it_says_what_it_is
            answers_are_those_of_a_simple_model
            whatever_happens_a_task_is_settled_once
        }
        $crate::store_contract! { $run, $crate::store::contract::BRIEF =>
            a_finished_record_is_forgotten_after_its_time
            an_idempotency_key_is_forgotten_with_its_task
            a_workflow_that_has_ended_is_forgotten_after_its_time
            a_workflow_is_listed_until_it_is_forgotten
        }
    };
    ($run:path, $retention:expr => $($check:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                $run($retention, |store| Box::pin($crate::store::contract::$check(store))).await;
            }
        )*
    };
}

/// Nothing is forgotten while a check runs.
pub const LASTING: Retention = Retention { finished_ms: 600_000, unfinished_ms: 600_000, listed: 100_000 };

/// Finished records are forgotten while one waits for it.
pub const BRIEF: Retention = Retention { finished_ms: 150, unfinished_ms: 600_000, listed: 100_000 };

/// Longer than any check.
const LONG_MS: u64 = 600_000;

/// How long a check waits for something that has to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the answer is there; panics with `what` when it does not come.
async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let waiting = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("did not happen in {PATIENCE:?}: {what}"))
}

/// A tenant that no other check uses.
fn tenant() -> String {
    format!("tenant-{}", TaskId::new().0.simple())
}

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).expect("the check's own JSON")
}

/// A task as it is shown when it was just accepted.
fn queued(id: TaskId) -> TaskResult {
    TaskResult {
        id,
        state: State::Queued,
        kind: Kind::Prediction,
        model: Some("sentiment".to_owned()),
        tenant: "contract".to_owned(),
        priority: Priority::default(),
        attempt: 0,
        output: None,
        error: None,
        timings: Timings { accepted: Some(Timestamp::now()), ..Timings::default() },
        worker: None,
        metadata: BTreeMap::from([("source".to_owned(), "contract".to_owned())]),
        // As every adapter is to keep it.
        choice: Some(ModelChoice {
            reason: ChoiceReason::LeastCost,
            candidates: 3,
            run_seconds: 0.25,
            queue_seconds: Some(1.5),
            load_seconds: 0.0,
        }),
        workflow: Some(StepOf { id: WorkflowId(id.0), step: "clean".to_owned(), item: Some(7) }),
        usage: Some(Usage { prompt_tokens: 12, completion_tokens: 300, cost: Some(0.25) }),
    }
}

fn succeeded(id: TaskId, attempt: u32, output: &str) -> TaskResult {
    let now = Timestamp::now();
    TaskResult {
        state: State::Succeeded,
        model: Some("sentiment@1".to_owned()),
        attempt,
        output: Some(raw(output)),
        timings: Timings {
            accepted: Some(now),
            dispatched: Some(now),
            started: Some(now),
            finished: Some(now),
            waited_ms: Some(12.5),
            ran_ms: Some(3.25),
        },
        worker: Some("worker-1".to_owned()),
        ..queued(id)
    }
}

fn expired(id: TaskId) -> TaskResult {
    let error = TaskError { code: "expired".to_owned(), message: "too late".to_owned(), retryable: false };
    TaskResult { state: State::Expired, error: Some(error), ..queued(id) }
}

fn acceptance(id: TaskId) -> Accept {
    Accept { id, fingerprint: 0xf, alias: None, record: queued(id), follower: None }
}

fn claim_of(id: TaskId, nonce: u128, lease_ms: u64) -> Claim {
    Claim {
        id,
        worker: "worker-1".to_owned(),
        nonce,
        lease_ms,
        max_attempts: 3,
        attempts: 0,
        beside: Beside::OthersAnyway,
    }
}

fn follower(name: &str) -> Reply {
    Reply {
        to: format!("replies.{name}").into(),
        correlation_id: Some(format!("correlation-{name}").into()),
        array: false,
    }
}

/// A nonce that no other claim has.
fn nonce() -> u128 {
    TaskId(uuid::Uuid::new_v4()).0.as_u128()
}

fn text(task: &TaskResult) -> String {
    serde_json::to_string(task).expect("a task can be written")
}

/// Batches of one, for reading.
struct Desk(Arc<dyn Store>);

impl Desk {
    async fn accept(&self, task: Accept) -> Accepted {
        only(self.0.accept(vec![task]).await.expect("accept"))
    }

    async fn accept_known(&self, task: Accept) -> Accepted {
        only(self.0.accept_known(vec![task]).await.expect("accept_known"))
    }

    /// Takes a new task in.
    async fn open(&self, id: TaskId) {
        let answer = self.accept(acceptance(id)).await;
        assert!(matches!(answer, Accepted::New), "{answer:?}");
    }

    async fn dispatched(&self, id: TaskId, model: &str) {
        self.0.dispatched(vec![(id, model.to_owned())]).await.expect("dispatched");
    }

    async fn claim(&self, claim: Claim) -> Claimed {
        only(self.0.claim(vec![claim]).await.expect("claim"))
    }

    /// Claims, and must get attempt `attempt`.
    async fn run(&self, id: TaskId, nonce: u128, lease_ms: u64, attempt: u32) {
        let answer = self.claim(claim_of(id, nonce, lease_ms)).await;
        assert!(matches!(answer, Claimed::Run { attempt: got } if got == attempt), "{answer:?} is not {attempt}");
    }

    async fn renew(&self, id: TaskId, nonce: u128, lease_ms: u64) -> Renewed {
        only(self.0.renew(vec![Renew { id, nonce, lease_ms }]).await.expect("renew"))
    }

    async fn settle(&self, attempt: u32, nonce: u128, result: &TaskResult) -> Settled {
        let guard = Guard::Fence { attempt, nonce };
        only(self.0.settle(vec![Settle::new(guard, result.clone())]).await.expect("settle"))
    }

    async fn settle_first(&self, nonce: u128, result: &TaskResult) -> Settled {
        let guard = Guard::First { nonce };
        only(self.0.settle(vec![Settle::new(guard, result.clone())]).await.expect("settle"))
    }

    async fn settle_unclaimed(&self, result: &TaskResult) -> Settled {
        let guard = Guard::Unclaimed;
        only(self.0.settle(vec![Settle::new(guard, result.clone())]).await.expect("settle"))
    }

    async fn release(&self, id: TaskId, nonce: u128, counts: bool) -> Released {
        only(self.0.release(vec![Release { id, nonce, counts }]).await.expect("release"))
    }

    async fn follow(&self, id: TaskId, follower: Reply) -> Option<TaskResult> {
        only(self.0.follow(vec![id], follower).await.expect("follow"))
    }

    async fn cancel(&self, id: TaskId) -> Option<TaskResult> {
        only(self.0.cancel(vec![id]).await.expect("cancel"))
    }

    async fn reprioritize(&self, id: TaskId, priority: Option<u8>) -> Option<TaskResult> {
        let priority = priority.map(|priority| Priority::try_from(priority).expect("a priority"));
        only(self.0.reprioritize(vec![(id, priority)]).await.expect("reprioritize"))
    }

    async fn get(&self, id: TaskId) -> Option<TaskResult> {
        only(self.0.get(vec![id]).await.expect("get"))
    }

    /// The record, which must be there.
    async fn show(&self, id: TaskId) -> TaskResult {
        self.get(id).await.expect("a record")
    }

    /// A task that has succeeded, with the nonce that settled it.
    async fn finished(&self, id: TaskId) -> (u128, TaskResult) {
        let (nonce, result) = (nonce(), succeeded(id, 1, r#"{"label":"positive"}"#));
        self.open(id).await;
        self.run(id, nonce, LONG_MS, 1).await;
        let answer = self.settle(1, nonce, &result).await;
        assert!(matches!(answer, Settled::Done { .. }), "{answer:?}");
        (nonce, result)
    }
}

fn only<T>(mut answers: Vec<T>) -> T {
    assert_eq!(answers.len(), 1, "one question has one answer");
    answers.remove(0)
}
