//! The real adapters behind a switchboard: calls can be made to fail, to hang, or to be cut.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use taskyard_shared::broker::embedded::EmbeddedBroker;
use taskyard_shared::broker::{
    Acker, Broker, BrokerError, BrokerInfo, Consumer, Delivery, Lock, Message, PublishError, QueueSpec, QueueState,
};
use taskyard_shared::load::{LoadReport, ModelSpec};
use taskyard_shared::store::embedded::EmbeddedStore;
use taskyard_shared::store::{
    Accept, Accepted, Append, Appended, Claim, Claimed, Filter, Leased, Page, ReadStream, Release, Released, Renew,
    Renewed, Settle, Settled, Store, StoreError, Stream, TakeTokens, TokensTaken, WorkflowAccepted, WorkflowFilter,
    WorkflowPage, WorkflowSeen, WorkflowWrite,
};
use taskyard_shared::workflow::WorkflowId;
use taskyard_shared::{Priority, Reply, TaskId, TaskResult};
use tokio::sync::watch;

pub struct FaultyBroker {
    inner: Arc<EmbeddedBroker>,
    /// What publishing answers instead of doing it.
    refusal: Mutex<Option<PublishError>>,
    hangs: AtomicBool,
    away: AtomicBool,
    /// Counts cuts; a consumer of an older session is dead.
    cuts: watch::Sender<u64>,
    pub published: AtomicU64,
    pub refused: AtomicU64,
}

impl FaultyBroker {
    pub fn new(inner: EmbeddedBroker) -> Self {
        Self {
            inner: Arc::new(inner),
            refusal: Mutex::default(),
            hangs: AtomicBool::new(false),
            away: AtomicBool::new(false),
            cuts: watch::Sender::new(0),
            published: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// The broker itself, which no fault touches.
    pub fn inner(&self) -> Arc<EmbeddedBroker> {
        self.inner.clone()
    }

    pub fn refuse_with(&self, refusal: Option<PublishError>) {
        *self.refusal.lock().unwrap() = refusal;
    }

    /// Publishes get no answer, as under an alarm.
    pub fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::SeqCst);
    }

    /// Not connected: nothing can be published, declared or consumed.
    pub fn go_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
        if away {
            self.cut();
        }
    }

    /// Every consumer's session ends, and what is in an exclusive queue is lost, as when a connection breaks.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    fn check(&self) -> Result<(), BrokerError> {
        match self.away.load(Ordering::SeqCst) {
            true => Err(BrokerError::Unreachable("it is away".into())),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Broker for FaultyBroker {
    async fn declare(&self, queues: &[QueueSpec]) -> Result<(), BrokerError> {
        self.check()?;
        self.inner.declare(queues).await
    }

    async fn declare_exchanges(&self, names: &[String]) -> Result<(), BrokerError> {
        self.check()?;
        self.inner.declare_exchanges(names).await
    }

    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<(), PublishError>> {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let refusal = self.refusal.lock().unwrap().clone();
        let refusal = refusal.or_else(|| self.check().err().map(|error| PublishError::Unknown(error.to_string())));
        if let Some(refusal) = refusal {
            self.refused.fetch_add(messages.len() as u64, Ordering::SeqCst);
            return vec![Err(refusal); messages.len()];
        }
        self.published.fetch_add(messages.len() as u64, Ordering::SeqCst);
        self.inner.publish(messages).await
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError> {
        self.check()?;
        let cuts = self.cuts.subscribe();
        let session = *cuts.borrow();
        Ok(Box::new(FaultyConsumer { inner: self.inner.consume(queue, prefetch).await?, cuts, session }))
    }

    async fn queue_state(&self, queue: &str) -> Result<Option<QueueState>, BrokerError> {
        self.check()?;
        self.inner.queue_state(queue).await
    }

    async fn try_lock(&self, name: &str) -> Result<Option<Box<dyn Lock>>, BrokerError> {
        self.inner.try_lock(name).await
    }

    async fn info(&self) -> Result<BrokerInfo, BrokerError> {
        self.check()?;
        self.inner.info().await
    }

    fn is_ready(&self) -> bool {
        self.inner.is_ready() && !self.away.load(Ordering::SeqCst)
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

struct FaultyConsumer {
    inner: Box<dyn Consumer>,
    cuts: watch::Receiver<u64>,
    session: u64,
}

#[async_trait]
impl Consumer for FaultyConsumer {
    async fn next_batch(&mut self, most: usize) -> Result<Vec<Delivery>, BrokerError> {
        let session = self.session;
        tokio::select! {
            biased;
            _ = self.cuts.wait_for(|cuts| *cuts != session) => Err(BrokerError::Cut("as asked".into())),
            batch = self.inner.next_batch(most) => batch,
        }
    }

    fn acker(&self) -> Arc<dyn Acker> {
        self.inner.acker()
    }

    async fn cancel(&mut self) -> Result<(), BrokerError> {
        self.inner.cancel().await
    }
}

pub struct FaultyStore {
    inner: Mutex<Arc<EmbeddedStore>>,
    away: AtomicBool,
    hangs: AtomicBool,
    /// Calls that reached it.
    pub calls: AtomicU64,
}

impl FaultyStore {
    pub fn new(inner: EmbeddedStore) -> Self {
        Self {
            inner: Mutex::new(Arc::new(inner)),
            away: AtomicBool::new(false),
            hangs: AtomicBool::new(false),
            calls: AtomicU64::new(0),
        }
    }

    /// The store itself, which no fault touches.
    pub fn inner(&self) -> Arc<EmbeddedStore> {
        self.inner.lock().unwrap().clone()
    }

    /// It loses all that it had, and has this.
    pub fn replace(&self, inner: EmbeddedStore) {
        *self.inner.lock().unwrap() = Arc::new(inner);
    }

    pub fn go_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    /// Calls get no answer.
    pub fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::SeqCst);
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        match self.away.load(Ordering::SeqCst) {
            true => Err(StoreError::Unreachable("it is away".into())),
            false => Ok(()),
        }
    }
}

/// Every call is the inner store's, after the check.
macro_rules! checked {
    ($(async fn $name:ident(&self $(, $argument:ident: $type:ty)*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for FaultyStore {
            $(async fn $name(&self $(, $argument: $type)*) -> Result<$answer, StoreError> {
                self.check().await?;
                self.inner().$name($($argument),*).await
            })*
        }
    };
}

checked! {
    async fn accept(&self, tasks: Vec<Accept>) -> Vec<Accepted>;
    async fn accept_known(&self, tasks: Vec<Accept>) -> Vec<Accepted>;
    async fn dispatched(&self, tasks: Vec<(TaskId, String)>) -> ();
    async fn claim(&self, claims: Vec<Claim>) -> Vec<Claimed>;
    async fn renew(&self, leases: Vec<Renew>) -> Vec<Renewed>;
    async fn leased(&self, ids: Vec<TaskId>) -> Vec<Leased>;
    async fn settle(&self, settlements: Vec<Settle>) -> Vec<Settled>;
    async fn release(&self, releases: Vec<Release>) -> Vec<Released>;
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
    async fn accept_workflow(&self, workflow: WorkflowWrite) -> WorkflowAccepted;
    async fn write_workflow(&self, workflow: WorkflowWrite) -> Option<WorkflowSeen>;
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
