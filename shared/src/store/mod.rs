//! The store port: task records and who may settle them, results, load reports, announced models.
//!
//! Two adapters stand behind it, [`redis`] and [`embedded`], and [`contract`] is the suite that both pass. The store
//! is never the only copy of a task that is not finished: the broker has it. What it owns is the fence: of several
//! attempts at a task, the one whose (attempt, nonce) the record holds may settle it, once.
//!
//! Every call takes a batch and costs one round trip.

pub mod contract;
mod cursor;
pub mod embedded;
mod pack;
mod rates;
pub mod redis;
pub mod stream;
mod surely;
mod workflow;

pub use rates::{Grant, Rates, Want};
pub use stream::{Append, Appended, Part, ReadStream, Said, Stream};
pub use surely::until_answered;
pub use workflow::{WORKFLOW_BYTES, WorkflowAccepted, WorkflowFilter, WorkflowPage, WorkflowSeen, WorkflowWrite};

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::deployment::base;
use crate::envelope::Reply;
use crate::lifecycle::State;
use crate::load::{LoadReport, ModelSpec};
use crate::outcome::TaskResult;
use crate::task::{Priority, TaskId};
use crate::workflow::WorkflowId;

/// Most replies that one record keeps beside the envelope's own.
pub const FOLLOWERS: usize = 16;

/// A task that was to be cancelled and had no record yet is cancelled when it is accepted within this time; milliseconds.
pub const MISSED_MS: u64 = 3_600_000;

/// A task to be taken in, once.
#[derive(Clone, Debug)]
pub struct Accept {
    pub id: TaskId,
    /// From [`Envelope::fingerprint`](crate::envelope::Envelope::fingerprint).
    pub fingerprint: u128,
    /// The tenant's idempotency key, from [`Envelope::alias`](crate::envelope::Envelope::alias).
    pub alias: Option<String>,
    /// The task in its state `queued`, as look-ups show it.
    pub record: TaskResult,
    /// Told of the result, beside whom the envelope names. At most [`FOLLOWERS`]; the rest is left out.
    pub follower: Option<Reply>,
}

#[derive(Clone, Debug)]
pub enum Accepted {
    New,
    /// Known under this id, or under the same idempotency key as another id. The follower was added unless the task
    /// has finished.
    Known(Box<TaskResult>),
    /// As `Known`, and not finished; or new, and recorded. Somebody asked to cancel it: it is not to be run.
    Unwanted(Box<TaskResult>),
    /// Known, but with another content. Nothing was changed.
    Conflict(Box<TaskResult>),
}

/// The right to run one attempt.
#[derive(Clone, Debug)]
pub struct Claim {
    pub id: TaskId,
    pub worker: String,
    /// Random, drawn anew for each claim. 128 bits.
    pub nonce: u128,
    pub lease_ms: u64,
    pub max_attempts: u32,
    /// Attempts begun, by the envelope: counts when the record knows of fewer.
    pub attempts: u32,
    pub beside: Beside,
}

/// What may run on the worker beside the attempt. An attempt whose lease ends before it is settled or given back is lost, and
/// so perhaps is its worker, with all that ran there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beside {
    /// Anything. A task whose last attempt was lost is not run so: [`Claimed::Lost`].
    Others,
    /// Anything, even if the last attempt was lost.
    OthersAnyway,
    /// Nothing: if this attempt is lost as well, the task did it, and is not run again.
    Nothing,
}

#[derive(Clone, Debug)]
pub enum Claimed {
    /// Run it: this is attempt `attempt`, from 1.
    Run { attempt: u32 },
    /// Another attempt's lease lives for so long, in milliseconds.
    Busy { for_ms: u64 },
    /// It is finished; the result may have to be sent again. `followers` as [`Settled::Done`] has them.
    Terminal { result: Box<TaskResult>, followers: Vec<Reply> },
    /// As many attempts as it may have were begun, and none settled it.
    Exhausted { attempts: u32 },
    /// Its last attempt was lost, and may be what ended its worker: claim it with [`Beside::Nothing`]. Nothing was changed.
    Lost,
    /// An attempt that had its worker to itself was lost: no other is begun. The worker is the last one.
    Fatal { attempts: u32, worker: Option<String> },
    /// Somebody asked to cancel it, and no attempt runs: settle it as cancelled. So many attempts were begun before.
    Unwanted { attempts: u32 },
    /// There is no record: accept it again (the envelope has all that takes), then claim.
    Unknown,
}

#[derive(Clone, Debug)]
pub struct Renew {
    pub id: TaskId,
    pub nonce: u128,
    pub lease_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Renewed {
    Renewed,
    /// The attempt is no longer the record's: stop it.
    Lost,
    /// Renewed, and somebody asked to cancel it.
    CancelRequested,
    /// There is no record: the store lost it. The attempt goes on, since settling creates the record.
    Unknown,
}

/// Whether somebody runs a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leased {
    /// An attempt whose lease lives.
    Live,
    /// Nobody, and it has not ended.
    Over,
    /// Nobody: it has ended.
    Ended,
    /// There is no record.
    Unknown,
}

/// Who may write a terminal state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guard {
    /// The attempt that claimed with this nonce.
    Fence { attempt: u32, nonce: u128 },
    /// A first attempt that was never claimed (a short task on its first delivery): as `Fence`, but the record need not
    /// know of the attempt. Written when the task has not ended and no other attempt's lease lives. The record then
    /// holds attempt 1, or as many as were begun, and this nonce.
    First { nonce: u128 },
    /// Anybody while no attempt's lease lives: the scheduler, for a task that expired or is refused.
    Unclaimed,
}

#[derive(Clone, Debug)]
pub struct Settle {
    pub guard: Guard,
    /// In a terminal state. Written as the record, and kept for the retention time.
    pub result: Arc<TaskResult>,
}

impl Settle {
    pub fn new(guard: Guard, result: impl Into<Arc<TaskResult>>) -> Self {
        Self { guard, result: result.into() }
    }
}

#[derive(Clone, Debug)]
pub enum Settled {
    /// Written, now. To be told besides whom the envelope names: `followers`.
    Done { followers: Vec<Reply> },
    /// This very attempt had settled it before: an answer that was lost. To be told again.
    Again { followers: Vec<Reply> },
    /// The attempt was not, or no longer, the record's; nothing was written.
    Stale,
    /// It is terminal by another attempt; nothing was written.
    Already(Box<TaskResult>),
}

/// Gives an attempt back.
#[derive(Clone, Debug)]
pub struct Release {
    pub id: TaskId,
    pub nonce: u128,
    /// Whether the attempt counts. One cut short by shutdown does not.
    pub counts: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Released {
    /// `queued` again; or there is no record, so that nothing holds the task.
    Released,
    Stale,
}

/// Which tasks a list is to hold. Empty fields do not filter.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub state: Option<State>,
    pub model: Option<String>,
    pub tenant: Option<String>,
    pub metadata: BTreeMap<String, String>,
}

impl Filter {
    pub fn matches(&self, task: &TaskResult) -> bool {
        self.state.is_none_or(|state| state == task.state)
            && self.model.as_ref().is_none_or(|model| task.model.as_ref().is_some_and(|of| is_of(of, model)))
            && self.tenant.as_ref().is_none_or(|tenant| *tenant == task.tenant)
            && self.metadata.iter().all(|(key, value)| task.metadata.get(key) == Some(value))
    }
}

/// A model without a version stands for all of them: a record has the one that ran once that is known.
fn is_of(of: &str, model: &str) -> bool {
    of == model || !model.contains('@') && base(of) == model
}

/// Newest first.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub tasks: Vec<TaskResult>,
    /// Where the next page begins; opaque. `None` at the end.
    pub cursor: Option<String>,
}

/// Tokens wanted of one bucket.
#[derive(Clone, PartialEq, Debug)]
pub struct TakeTokens {
    pub bucket: String,
    pub tokens: u32,
    /// So many come in a second; above 0.
    pub per_second: f64,
    /// The bucket holds so many at most; at least 1.
    pub burst: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokensTaken {
    pub taken: u32,
    /// When there is one more, if fewer were taken than wanted; milliseconds.
    pub next_ms: u64,
}

/// One task's record cannot be larger than this: a larger output is a failure of its task.
pub const RECORD_BYTES: usize = 4 << 20;

#[async_trait]
pub trait Store: Send + Sync {
    /// Takes tasks in: creates each record, unless it is known. One that is blocked is queued when it comes again as queued.
    async fn accept(&self, tasks: Vec<Accept>) -> Result<Vec<Accepted>, StoreError>;

    /// What [`accept`](Self::accept) would answer of tasks that may be known; their followers are added. One that is not known is
    /// answered as new, and nothing is recorded of it.
    async fn accept_known(&self, tasks: Vec<Accept>) -> Result<Vec<Accepted>, StoreError>;

    /// Marks tasks as dispatched, and as `queued` again those that come back. Never touches a terminal record, never
    /// creates one, and leaves a `running` one alone. `model` is the one chosen.
    async fn dispatched(&self, tasks: Vec<(TaskId, String)>) -> Result<(), StoreError>;

    /// Takes the right to run. Raises the count of attempts, so that one that kills its worker counts too. Claiming again with
    /// the same nonce renews the lease and changes what the attempt runs beside.
    async fn claim(&self, claims: Vec<Claim>) -> Result<Vec<Claimed>, StoreError>;

    async fn renew(&self, leases: Vec<Renew>) -> Result<Vec<Renewed>, StoreError>;

    /// Whether attempts at these tasks are under way. Changes nothing.
    async fn leased(&self, ids: Vec<TaskId>) -> Result<Vec<Leased>, StoreError>;

    /// Writes terminal states. A record that is unknown is created: its task was accepted once.
    async fn settle(&self, settlements: Vec<Settle>) -> Result<Vec<Settled>, StoreError>;

    /// Asks for tasks to be cancelled, and answers their records. One that has not finished is marked: it is
    /// [`Accepted::Unwanted`], it is no more claimed, and whoever renews a lease of it is told. An id that has no record is
    /// remembered for [`MISSED_MS`], in case its task is yet to be accepted.
    async fn cancel(&self, ids: Vec<TaskId>) -> Result<Vec<Option<TaskResult>>, StoreError>;

    /// Gives tasks another priority, or with `None` the one that they were accepted with, and answers their records. One that
    /// is neither blocked nor queued is left alone.
    async fn reprioritize(&self, tasks: Vec<(TaskId, Option<Priority>)>)
    -> Result<Vec<Option<TaskResult>>, StoreError>;

    /// Gives attempts back, those also that were never claimed. A claim by one of them that is carried out after this is
    /// [`Claimed::Busy`]: it holds nothing, for nobody would end it.
    async fn release(&self, releases: Vec<Release>) -> Result<Vec<Released>, StoreError>;

    /// The records as they stand; `None` for an id never accepted, or forgotten after its retention.
    async fn get(&self, ids: Vec<TaskId>) -> Result<Vec<Option<TaskResult>>, StoreError>;

    /// Adds a follower to each task that has not finished, and answers its record.
    async fn follow(&self, ids: Vec<TaskId>, follower: Reply) -> Result<Vec<Option<TaskResult>>, StoreError>;

    /// The newest tasks that match, at most `limit` (itself at most 1,000). `cursor` as a page gave it.
    ///
    /// # Errors
    /// [`StoreError::BadCursor`] for a cursor that no page gave.
    async fn list(&self, filter: &Filter, cursor: Option<&str>, limit: usize) -> Result<Page, StoreError>;

    /// Keeps a worker's report for `ttl_ms`.
    async fn report_load(&self, report: &LoadReport, ttl_ms: u64) -> Result<(), StoreError>;

    /// A worker that leaves in good order.
    async fn remove_load(&self, worker: &str) -> Result<(), StoreError>;

    /// The reports that have not expired.
    async fn loads(&self) -> Result<Vec<LoadReport>, StoreError>;

    async fn announce(&self, models: &[ModelSpec]) -> Result<(), StoreError>;

    async fn models(&self) -> Result<Vec<ModelSpec>, StoreError>;

    /// Pauses a model, or has it go on. Kept until it is changed.
    async fn pause(&self, model: &str, paused: bool) -> Result<(), StoreError>;

    /// The models that are paused, by name.
    async fn paused(&self) -> Result<Vec<String>, StoreError>;

    /// Takes tokens out of buckets that all processes share, as many as there are. A bucket is full when it is first asked for.
    async fn take_tokens(&self, takes: Vec<TakeTokens>) -> Result<Vec<TokensTaken>, StoreError>;

    /// Takes a workflow in: creates its record, unless it is known.
    async fn accept_workflow(&self, workflow: WorkflowWrite) -> Result<WorkflowAccepted, StoreError>;

    /// Writes how far a workflow has come, creating its record if there is none. Answers the record when it had ended: then
    /// nothing is written.
    async fn write_workflow(&self, workflow: WorkflowWrite) -> Result<Option<WorkflowSeen>, StoreError>;

    /// `None` for an id never accepted, or forgotten after its retention.
    async fn workflow(&self, id: WorkflowId) -> Result<Option<WorkflowSeen>, StoreError>;

    /// Asks for a workflow to be cancelled, and answers its record. An id that has none is remembered for [`MISSED_MS`].
    async fn cancel_workflow(&self, id: WorkflowId) -> Result<Option<WorkflowSeen>, StoreError>;

    /// The newest workflows that match, as [`list`](Self::list) has tasks. One that was last written before there was a list is
    /// not in it until it is written again.
    ///
    /// # Errors
    /// [`StoreError::BadCursor`] for a cursor that no page gave.
    async fn list_workflows(
        &self,
        filter: &WorkflowFilter,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<WorkflowPage, StoreError>;

    /// Counts the tasks that were asked to be cancelled while they had not ended: when it has changed, leases are to be renewed.
    async fn cancellations(&self) -> Result<u64, StoreError>;
    /// Adds to the streams of tasks, see [`stream`].
    async fn append(&self, appends: Vec<Append>) -> Result<Vec<Appended>, StoreError>;
    /// What streams hold.
    async fn streams(&self, reads: Vec<ReadStream>) -> Result<Vec<Stream>, StoreError>;

    /// A small value of the scheduler's own, such as what the estimator has learnt.
    async fn put(&self, key: &str, value: Bytes) -> Result<(), StoreError>;

    async fn fetch(&self, key: &str) -> Result<Option<Bytes>, StoreError>;

    /// Whether it answers, and what it is: product and version.
    async fn ping(&self) -> Result<String, StoreError>;
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    #[error("the store did not answer within {0} ms")]
    TimedOut(u64),
    #[error("the store is full: {0}")]
    Full(String),
    #[error("not a cursor of a page")]
    BadCursor,
    #[error("the store's data cannot be read: {0}")]
    Corrupt(String),
    #[error("the store refused: {0}")]
    Refused(String),
}

impl StoreError {
    /// Whether trying again later can help without anybody changing something.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TimedOut(_) | Self::Full(_) => true,
            Self::BadCursor | Self::Corrupt(_) | Self::Refused(_) => false,
        }
    }
}

/// How records are kept, for both adapters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// A finished task's record; milliseconds.
    pub finished_ms: u64,
    /// A record of a task that has not finished, from when it was last touched; milliseconds.
    pub unfinished_ms: u64,
    /// Most tasks, and most workflows, that lists go back to.
    pub listed: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { finished_ms: 24 * 3600 * 1000, unfinished_ms: 30 * 24 * 3600 * 1000, listed: 100_000 }
    }
}
