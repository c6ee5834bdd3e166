//! The Rust client: submit tasks over the broker, and await their results.
//!
//! A task is accepted once the broker confirmed it. Results come to a reply queue of the client's own; after a cut the
//! client asks again for every result that it still awaits, under the same ids, which runs nothing twice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use taskyard_shared::broker::{Broker, BrokerError, Message, PublishError};
use taskyard_shared::retry::Backoff;
use taskyard_shared::{
    Carried, Envelope, Invalid, Target, Task, TaskId, TaskResult, Timestamp, Topology, decode_tasks,
};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::batch::pack;
use crate::publish::{Publisher, encode};
use crate::random;
use crate::results::{Inbox, Session, TooManyWaiting, Waiter};

/// A task for a model; everything else is left open and can be set.
///
/// # Errors
/// When the input cannot be written as JSON.
pub fn task(model: impl Into<String>, input: &impl Serialize) -> Result<Task, Invalid> {
    let input = serde_json::value::to_raw_value(input).map_err(|error| Invalid::field("input", error))?;
    Ok(Task::new(Target::Model(model.into().into()), input))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most results awaited at once.
    pub waiting: usize,
    /// How long a publish is tried, and setting up the reply queue.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { waiting: 10_000, timeout: Duration::from_secs(10) }
    }
}

/// Why a task was not submitted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubmitError {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// [`PublishError::Unknown`] after trying for as long as [`Limits::timeout`] says. Submitting it again with this
    /// id is harmless if it landed after all.
    #[error("task {} was not accepted: {error}", .id.0)]
    Publish { id: TaskId, error: PublishError },
    #[error(transparent)]
    TooManyWaiting(#[from] TooManyWaiting),
    #[error("the reply queue could not be set up within {0} ms")]
    NoReplyQueue(u64),
}

impl SubmitError {
    /// Whether submitting it again later can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Publish { error, .. } => !matches!(error, PublishError::TooLarge),
            Self::TooManyWaiting(_) | Self::NoReplyQueue(_) => true,
            Self::Invalid(_) => false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WaitError {
    /// The task goes on: nobody was told to stop it.
    #[error("task {} has no result after {after_ms} ms", .id.0)]
    TimedOut { id: TaskId, after_ms: u64 },
}

/// A task that the broker has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Submitted {
    pub id: TaskId,
    pub accepted: Timestamp,
}

/// Submits tasks to one yard. Cheap to clone; the reply queue goes with the last clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    broker: Arc<dyn Broker>,
    publisher: Publisher,
    inbox: Inbox,
    limits: Limits,
    /// What to ask again after a cut, by waiter.
    awaited: Mutex<HashMap<Uuid, Asked>>,
    running: OnceLock<DropGuard>,
}

#[derive(Clone)]
enum Asked {
    /// By a message of its own.
    Alone(Box<Message>),
    /// As a member of a batch.
    Member(Bytes),
}

struct Prepared {
    envelope: Envelope,
    body: Bytes,
}

impl Prepared {
    fn new(task: Task) -> Result<Self, Invalid> {
        let envelope = Envelope::new(task, &Carried::default(), Timestamp::now())?;
        let body = encode(&envelope)?;
        // The rules for what comes from outside hold for what is built in Rust, too.
        for task in decode_tasks(&body)? {
            task?;
        }
        Ok(Self { envelope, body: body.into() })
    }

    fn submitted(&self) -> Submitted {
        Submitted { id: self.envelope.id, accepted: self.envelope.accepted }
    }

    /// Its result may carry another id than its own, so that only the correlation id tells.
    fn may_be_another(&self, named: bool) -> bool {
        named && self.envelope.extras.idempotency_key.is_some()
    }
}

impl Client {
    pub fn new(broker: Arc<dyn Broker>, topology: Topology) -> Self {
        Self::with_limits(broker, topology, Limits::default())
    }

    pub fn with_limits(broker: Arc<dyn Broker>, topology: Topology, limits: Limits) -> Self {
        let inbox = Inbox::new(topology.replies(&format!("client-{}", Uuid::new_v4())), limits.waiting);
        Self {
            inner: Arc::new(Inner {
                publisher: Publisher::new(broker.clone(), &topology),
                broker,
                inbox,
                limits,
                awaited: Mutex::default(),
                running: OnceLock::new(),
            }),
        }
    }

    /// Declares the tasks exchange and the queues that all roles share, for a client that comes before every other process.
    ///
    /// # Errors
    /// As [`Broker::declare`] has them.
    pub async fn declare(&self) -> Result<(), BrokerError> {
        self.inner.publisher.declare().await
    }

    /// Name of the queue that results come to.
    pub fn reply_queue(&self) -> String {
        self.inner.inbox.reply().to.into()
    }

    /// Submits one task.
    ///
    /// # Errors
    /// When it is not valid, or not known to be accepted.
    pub async fn submit(&self, task: Task) -> Result<Submitted, SubmitError> {
        let prepared = Prepared::new(task)?;
        let message = self.inner.publisher.single(&prepared.envelope, prepared.body.clone(), None);
        self.inner.publish_one(prepared.envelope.id, message).await?;
        Ok(prepared.submitted())
    }

    /// Submits many tasks in few messages. One answer per task, in their order.
    pub async fn submit_batch(&self, tasks: Vec<Task>) -> Vec<Result<Submitted, SubmitError>> {
        let mut answers: Vec<_> = tasks.into_iter().map(|task| Prepared::new(task).map_err(Into::into)).collect();
        self.inner.publish_batch(&mut answers, |prepared| prepared, false).await;
        answers.into_iter().map(|answer| answer.map(|prepared| prepared.submitted())).collect()
    }

    /// Submits one task whose result is wanted.
    ///
    /// # Errors
    /// As [`submit`](Self::submit), and when too many results are awaited or there is no reply queue.
    pub async fn request(&self, task: Task) -> Result<Pending, SubmitError> {
        let named = task.id.is_some();
        let prepared = Prepared::new(task)?;
        self.start().await?;
        let waiter = self.inner.inbox.wait_for(prepared.envelope.id)?;
        let mut reply = waiter.reply();
        reply.array = !prepared.may_be_another(named);
        let message = self.inner.publisher.single(&prepared.envelope, prepared.body.clone(), Some(&reply));
        let pending = Pending::new(&self.inner, prepared.submitted(), waiter, Asked::Alone(Box::new(message.clone())));
        self.inner.publish_one(prepared.envelope.id, message).await?;
        Ok(pending)
    }

    /// Submits many tasks whose results are wanted. One answer per task, in their order.
    ///
    /// # Errors
    /// When there is no reply queue.
    pub async fn request_batch(&self, tasks: Vec<Task>) -> Result<Vec<Result<Pending, SubmitError>>, SubmitError> {
        self.start().await?;
        let mut answers = Vec::with_capacity(tasks.len());
        for task in tasks {
            answers.push(self.prepare_member(task));
        }
        self.inner.publish_batch(&mut answers, |(prepared, _)| prepared, true).await;
        Ok(answers.into_iter().map(|answer| answer.map(|(_, pending)| pending)).collect())
    }

    fn prepare_member(&self, task: Task) -> Result<(Prepared, Pending), SubmitError> {
        if task.id.is_some() && task.idempotency_key.is_some() {
            let message = "cannot be given with an id in a batch whose results are awaited";
            return Err(Invalid::field("idempotency_key", message).into());
        }
        let prepared = Prepared::new(task)?;
        let waiter = self.inner.inbox.wait_for(prepared.envelope.id)?;
        let pending = Pending::new(&self.inner, prepared.submitted(), waiter, Asked::Member(prepared.body.clone()));
        Ok((prepared, pending))
    }

    /// Submits one task and awaits its result.
    ///
    /// # Errors
    /// The outer one when it was not submitted, the inner one when `limit` passed without a result.
    pub async fn submit_and_wait(
        &self,
        task: Task,
        limit: Duration,
    ) -> Result<Result<Arc<TaskResult>, WaitError>, SubmitError> {
        Ok(self.request(task).await?.result(limit).await)
    }

    /// Starts the reply queue with the first result that is wanted.
    async fn start(&self) -> Result<(), SubmitError> {
        let inner = &self.inner;
        inner.running.get_or_init(|| {
            let stop = CancellationToken::new();
            let (inbox, broker) = (inner.inbox.clone(), inner.broker.clone());
            tokio::spawn({
                let stop = stop.clone();
                async move { inbox.run(broker, stop).await }
            });
            let again = ask_again(Arc::downgrade(inner), inner.inbox.sessions());
            tokio::spawn(stop.clone().run_until_cancelled_owned(again));
            stop.drop_guard()
        });
        if inner.inbox.ready_within(inner.limits.timeout).await {
            Ok(())
        } else {
            Err(SubmitError::NoReplyQueue(inner.limits.timeout.as_millis().try_into().unwrap_or(u64::MAX)))
        }
    }
}

impl Inner {
    async fn publish_one(&self, id: TaskId, message: Message) -> Result<(), SubmitError> {
        match self.publish(vec![message]).await.pop() {
            Some(Err(error)) => Err(SubmitError::Publish { id, error }),
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// Publishes all, and what was not confirmed again until the time-out: the same id twice is one task.
    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<(), PublishError>> {
        let until = Instant::now() + self.limits.timeout;
        let mut answers = vec![Ok(()); messages.len()];
        let mut open: Vec<usize> = (0..messages.len()).collect();
        let mut attempt = 0;
        loop {
            let batch = open.iter().map(|index| messages[*index].clone()).collect();
            let confirms = self.publisher.publish(batch, until.saturating_duration_since(Instant::now())).await;
            for (index, confirm) in open.iter().zip(confirms) {
                answers[*index] = confirm;
            }
            open.retain(|index| matches!(answers[*index], Err(PublishError::Unknown(_))));
            attempt += 1;
            let pause = Backoff::RECONNECT.delay(attempt, random());
            if open.is_empty() || Instant::now() + pause >= until {
                return answers;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Publishes those that are good so far; one that fails becomes its error.
    async fn publish_batch<T>(
        &self,
        answers: &mut [Result<T, SubmitError>],
        prepared: impl Fn(&T) -> &Prepared,
        replied: bool,
    ) {
        let good: Vec<usize> = (0..answers.len()).filter(|index| answers[*index].is_ok()).collect();
        let bodies: Vec<Bytes> = answers
            .iter()
            .filter_map(|answer| answer.as_ref().ok().map(|answer| prepared(answer).body.clone()))
            .collect();
        let packs = pack(&bodies);
        let reply = replied.then(|| self.inbox.reply());
        let messages = packs.iter().map(|pack| self.publisher.array(pack.body.clone(), reply.as_ref())).collect();
        let confirms = self.publish(messages).await;
        for (pack, confirm) in packs.iter().zip(confirms) {
            let Err(error) = confirm else { continue };
            for index in &good[pack.tasks.clone()] {
                if let Ok(answer) = &answers[*index] {
                    let id = prepared(answer).envelope.id;
                    answers[*index] = Err(SubmitError::Publish { id, error: error.clone() });
                }
            }
        }
    }

    /// Publishes everything that is still awaited once more; whether all of it was confirmed.
    async fn repeat(&self) -> bool {
        let (mut messages, mut members) = (Vec::new(), Vec::new());
        for asked in self.awaited().values() {
            match asked {
                Asked::Alone(message) => messages.push(message.as_ref().clone()),
                Asked::Member(body) => members.push(body.clone()),
            }
        }
        let reply = self.inbox.reply();
        messages.extend(pack(&members).into_iter().map(|pack| self.publisher.array(pack.body, Some(&reply))));
        self.publish(messages).await.iter().all(Result::is_ok)
    }

    fn awaited(&self) -> MutexGuard<'_, HashMap<Uuid, Asked>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Results that were sent while the reply queue was gone are lost: whenever it is back, the tasks that are awaited are
/// published again. A known task is answered, not run again.
async fn ask_again(client: Weak<Inner>, mut sessions: watch::Receiver<Session>) {
    const PAUSE: Duration = Duration::from_secs(1);
    while sessions.changed().await.is_ok() {
        let mut session = *sessions.borrow_and_update();
        while session.up && session.number > 1 {
            let Some(inner) = client.upgrade() else { return };
            if inner.repeat().await {
                break;
            }
            drop(inner);
            tokio::time::sleep(PAUSE).await;
            session = *sessions.borrow_and_update();
        }
    }
}

/// A task that was accepted and whose result is wanted. Dropping it gives up the result, not the task.
pub struct Pending {
    submitted: Submitted,
    waiter: Waiter,
    client: Arc<Inner>,
}

impl Pending {
    fn new(client: &Arc<Inner>, submitted: Submitted, waiter: Waiter, asked: Asked) -> Self {
        client.awaited().insert(waiter.correlation(), asked);
        Self { submitted, waiter, client: client.clone() }
    }

    pub fn id(&self) -> TaskId {
        self.submitted.id
    }

    pub fn submitted(&self) -> Submitted {
        self.submitted
    }

    /// The result: any terminal state, so look at [`TaskResult::state`]. May be called again.
    ///
    /// # Errors
    /// When `limit` passed without one.
    pub async fn result(&mut self, limit: Duration) -> Result<Arc<TaskResult>, WaitError> {
        tokio::time::timeout(limit, self.waiter.result()).await.map_err(|_| WaitError::TimedOut {
            id: self.submitted.id,
            after_ms: limit.as_millis().try_into().unwrap_or(u64::MAX),
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.client.awaited().remove(&self.waiter.correlation());
    }
}
