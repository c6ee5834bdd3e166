//! A store that is away, does not answer, answers without having done it, does it without answering or after it was given up, and is
//! emptied. Behind it the embedded one, on the simulation's clock.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use taskyard_shared::load::{LoadReport, ModelSpec};
use taskyard_shared::store::embedded::EmbeddedStore;
use taskyard_shared::store::{
    Accept, Accepted, Append, Appended, Claim, Claimed, Filter, Leased, Page, ReadStream, Release, Released, Renew,
    Renewed, Retention, Settle, Settled, Store, StoreError, Stream, TakeTokens, TokensTaken, WorkflowAccepted,
    WorkflowFilter, WorkflowPage, WorkflowSeen, WorkflowWrite,
};
use taskyard_shared::workflow::WorkflowId;
use taskyard_shared::{Priority, Reply, TaskId, TaskResult};
use tokio::time::{Instant, sleep};

use crate::link::{Calling, Link};
use crate::trace::Trace;

/// A call is waited for no longer.
const TIMEOUT_MS: u64 = 2_000;
/// What is carried out late is after this.
const LATE: Duration = Duration::from_millis(3_000);

pub struct Records {
    current: Mutex<Arc<EmbeddedStore>>,
    away_until: Mutex<Instant>,
    trace: Arc<Trace>,
}

impl Records {
    pub fn new(trace: Arc<Trace>) -> Arc<Self> {
        let current = Mutex::new(Arc::new(EmbeddedStore::in_memory(Retention::default())));
        Arc::new(Self { current, away_until: Mutex::new(Instant::now()), trace })
    }

    pub fn current(&self) -> Arc<EmbeddedStore> {
        self.current.lock().unwrap().clone()
    }

    pub fn flush(&self) {
        *self.current.lock().unwrap() = Arc::new(EmbeddedStore::in_memory(Retention::default()));
    }

    pub fn go_away(&self, time: Duration) {
        *self.away_until.lock().unwrap() = Instant::now() + time;
    }

    fn is_away(&self) -> bool {
        *self.away_until.lock().unwrap() > Instant::now()
    }
}

/// The store, as one process sees it.
pub struct SimulatedStore {
    pub records: Arc<Records>,
    pub link: Arc<Link>,
}

impl SimulatedStore {
    fn check(&self) -> Result<(), StoreError> {
        match self.link.is_dead() || self.records.is_away() {
            true => Err(StoreError::Unreachable("it is away".into())),
            false => Ok(()),
        }
    }

    /// Up to where it is carried out.
    async fn before(&self, name: &str) -> Result<Option<Calling>, StoreError> {
        let fault = self.link.next_calling();
        if let Some(fault) = fault {
            self.records.trace.note(&self.link.name, format_args!("{name}: {fault:?}"));
        }
        let passed = tokio::time::timeout(Duration::from_millis(TIMEOUT_MS), self.link.pass()).await;
        passed.map_err(|_| StoreError::TimedOut(TIMEOUT_MS))?;
        self.check()?;
        match fault {
            Some(Calling::Unanswered { done: false }) => {
                sleep(Duration::from_millis(TIMEOUT_MS)).await;
                Err(StoreError::TimedOut(TIMEOUT_MS))
            }
            fault => Ok(fault),
        }
    }

    /// And back.
    async fn after<T>(
        &self,
        name: &str,
        fault: Option<Calling>,
        answer: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // What is reported of loads and learnt of run times differs from machine to machine, and comes often.
        if !matches!(
            name,
            "loads" | "models" | "paused" | "fetch" | "put" | "report_load" | "announce" | "cancellations"
        ) {
            self.records.trace.note(&self.link.name, name);
        }
        if fault.is_some() {
            sleep(Duration::from_millis(TIMEOUT_MS)).await;
            return Err(StoreError::TimedOut(TIMEOUT_MS));
        }
        let passed = tokio::time::timeout(Duration::from_millis(TIMEOUT_MS), self.link.pass()).await;
        passed.map_err(|_| StoreError::TimedOut(TIMEOUT_MS))?;
        self.check()?;
        answer
    }
}

macro_rules! calls {
    (
        may_be_late: $(async fn $late:ident(&self, $batch:ident: $batch_type:ty) -> $late_answer:ty;)*
        at_once: $(async fn $name:ident(&self $(, $argument:ident: $type:ty)*) -> $answer:ty;)*
    ) => {
        #[async_trait]
        impl Store for SimulatedStore {
            $(async fn $late(&self, $batch: $batch_type) -> Result<$late_answer, StoreError> {
                let fault = self.before(stringify!($late)).await?;
                if fault == Some(Calling::Late) {
                    let (records, link) = (self.records.clone(), self.link.name.clone());
                    tokio::spawn(async move {
                        sleep(LATE).await;
                        records.trace.note(&link, concat!(stringify!($late), " late"));
                        let _nobody_waits = records.current().$late($batch).await;
                    });
                    sleep(Duration::from_millis(TIMEOUT_MS)).await;
                    return Err(StoreError::TimedOut(TIMEOUT_MS));
                }
                let answer = self.records.current().$late($batch).await;
                self.after(stringify!($late), fault, answer).await
            })*
            $(async fn $name(&self $(, $argument: $type)*) -> Result<$answer, StoreError> {
                let fault = self.before(stringify!($name)).await?;
                let answer = self.records.current().$name($($argument),*).await;
                self.after(stringify!($name), fault, answer).await
            })*
        }
    };
}

calls! {
    may_be_late:
    async fn accept(&self, tasks: Vec<Accept>) -> Vec<Accepted>;
    async fn accept_known(&self, tasks: Vec<Accept>) -> Vec<Accepted>;
    async fn dispatched(&self, tasks: Vec<(TaskId, String)>) -> ();
    async fn claim(&self, claims: Vec<Claim>) -> Vec<Claimed>;
    async fn renew(&self, leases: Vec<Renew>) -> Vec<Renewed>;
    async fn settle(&self, settlements: Vec<Settle>) -> Vec<Settled>;
    async fn release(&self, releases: Vec<Release>) -> Vec<Released>;
    async fn accept_workflow(&self, workflow: WorkflowWrite) -> WorkflowAccepted;
    async fn write_workflow(&self, workflow: WorkflowWrite) -> Option<WorkflowSeen>;
    at_once:
    async fn leased(&self, ids: Vec<TaskId>) -> Vec<Leased>;
    async fn cancel(&self, ids: Vec<TaskId>) -> Vec<Option<TaskResult>>;
    async fn reprioritize(&self, tasks: Vec<(TaskId, Option<Priority>)>) -> Vec<Option<TaskResult>>;
    async fn get(&self, ids: Vec<TaskId>) -> Vec<Option<TaskResult>>;
    async fn follow(&self, ids: Vec<TaskId>, follower: Reply) -> Vec<Option<TaskResult>>;
    async fn list(&self, filter: &Filter, cursor: Option<&str>, limit: usize) -> Page;
    async fn report_load(&self, report: &LoadReport, ttl_ms: u64) -> ();
    async fn remove_load(&self, worker: &str) -> ();
    async fn loads(&self) -> Vec<LoadReport>;
    async fn announce(&self, models: &[ModelSpec]) -> ();
    async fn models(&self) -> Vec<ModelSpec>;
    async fn pause(&self, model: &str, paused: bool) -> ();
    async fn paused(&self) -> Vec<String>;
    async fn take_tokens(&self, takes: Vec<TakeTokens>) -> Vec<TokensTaken>;
    async fn workflow(&self, id: WorkflowId) -> Option<WorkflowSeen>;
    async fn cancel_workflow(&self, id: WorkflowId) -> Option<WorkflowSeen>;
    async fn list_workflows(&self, filter: &WorkflowFilter, cursor: Option<&str>, limit: usize) -> WorkflowPage;
    async fn cancellations(&self) -> u64;
    async fn append(&self, appends: Vec<Append>) -> Vec<Appended>;
    async fn streams(&self, reads: Vec<ReadStream>) -> Vec<Stream>;
    async fn put(&self, key: &str, value: Bytes) -> ();
    async fn fetch(&self, key: &str) -> Option<Bytes>;
    async fn ping(&self) -> String;
}
