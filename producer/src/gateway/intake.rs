//! Taking tasks in: look up those that a caller named, publish the new ones, record them.
//!
//! "Accepted" is the broker's confirm and nothing else. The record comes after it; and when the store is away, tasks are accepted all
//! the same, to be recorded by the scheduler. A record is no confirm: schedulers read what the broker has not yet written to its disk, record it,
//! and it may be gone with the broker a moment later.

use std::time::Duration;

use bytes::Bytes;
use taskyard_shared::broker::{Message, PublishError};
use taskyard_shared::messages::COUNTED_HEADER;
use taskyard_shared::store::{Accept, Accepted};
use taskyard_shared::{Envelope, Reply, State, TaskId, TaskResult};

use super::Shared;
use super::problem::{Code, Problem};
use super::request::Incoming;
use crate::batch::pack;
use crate::publish::encode;

/// One store call on the way in. With [`PUBLISH_LIMIT`], a caller hears within 2 s that the broker is away.
pub(super) const STORE_LIMIT: Duration = Duration::from_millis(500);
/// One task's publish with its confirm.
const PUBLISH_LIMIT: Duration = Duration::from_millis(1400);
/// A batch's.
pub(super) const BATCH_PUBLISH_LIMIT: Duration = Duration::from_secs(5);

/// Tasks in one store call: the records that it answers may be large.
const STORE_TASKS: usize = 256;

/// Each task's record, or why it was not taken, in their order.
pub(super) type Taken = Result<TaskResult, Problem>;

impl Shared {
    /// Takes one task in. `reply` is where its result is awaited.
    pub(super) async fn take_one(&self, incoming: Incoming, reply: Option<Reply>) -> Taken {
        let taken = self.take(vec![incoming], reply).await.pop();
        taken.unwrap_or_else(|| Err(Problem::new(Code::Internal, "the task was lost on the way in")))
    }

    /// Takes tasks in; several are published as batches.
    pub(super) async fn take(&self, mut incoming: Vec<Incoming>, reply: Option<Reply>) -> Vec<Taken> {
        let mut taken: Vec<Option<Taken>> = Vec::new();
        taken.resize_with(incoming.len(), || None);
        for (index, problem) in self.put_inputs(&mut incoming).await {
            taken[index] = Some(Err(problem));
        }
        let again = self.answer_known(&mut incoming, reply.as_ref(), &mut taken).await;
        let is_counted = self.push_back(&incoming, &again, &mut taken).await;

        let mut fresh: Vec<(usize, Bytes)> = Vec::with_capacity(incoming.len());
        for (index, incoming) in
            incoming.iter().enumerate().filter(|(index, _)| taken[*index].is_none()).collect::<Vec<_>>()
        {
            match encode(&incoming.envelope) {
                Ok(body) => fresh.push((index, body.into())),
                Err(invalid) => taken[index] = Some(Err(invalid.into())),
            }
        }
        self.publish(&incoming, &mut fresh, (reply.as_ref(), is_counted), &mut taken).await;
        self.record(&incoming, &fresh, &mut taken).await;
        let lost = || Err(Problem::new(Code::Internal, "the task was lost on the way in"));
        let own = |(incoming, taken): (&Incoming, Option<Taken>)| match taken.unwrap_or_else(lost) {
            // However alike the tasks are: what is another tenant's is not told.
            Ok(record) if *record.tenant != *incoming.envelope.tenant => Err(conflict(&record)),
            taken => taken,
        };
        incoming.iter().zip(taken).map(own).collect()
    }

    /// A named task that has a record came before: it is answered from there, or refused when it differs. While it waits or runs its first
    /// message may be one that was never confirmed, so it is sent again under the id that it has, and schedulers tell the two apart. Answers
    /// which these are.
    async fn answer_known(
        &self,
        incoming: &mut [Incoming],
        reply: Option<&Reply>,
        taken: &mut [Option<Taken>],
    ) -> Vec<bool> {
        let mut again = vec![false; incoming.len()];
        let named: Vec<usize> =
            (0..incoming.len()).filter(|index| incoming[*index].named && taken[*index].is_none()).collect();
        // By id alone: however many wait here for one task, they are one follower.
        let follower = reply.map(|reply| Reply { correlation_id: None, ..reply.clone() });
        for named in named.chunks(STORE_TASKS) {
            let accepts = named.iter().map(|index| accept(&incoming[*index].envelope, follower.clone())).collect();
            // Nothing is recorded of a new one before it is published: that may fail, and its record would say that it was accepted.
            let answers = self.records.ask(STORE_LIMIT, |store| async move { store.accept_known(accepts).await }).await;
            for (index, answer) in named.iter().zip(answers.unwrap_or_default()) {
                taken[*index] = match answer {
                    Accepted::New => None,
                    Accepted::Known(record) | Accepted::Unwanted(record)
                        if is_unsure(record.state) && !self.confirmed.has(record.id) =>
                    {
                        again[*index] = true;
                        // By its key it may be known under another.
                        incoming[*index].envelope.id = record.id;
                        None
                    }
                    Accepted::Known(record) | Accepted::Unwanted(record) => Some(Ok(*record)),
                    Accepted::Conflict(record) => Some(Err(conflict(&record))),
                };
            }
        }
        again
    }

    /// Publishes, and keeps in `fresh` what was confirmed.
    async fn publish(
        &self,
        incoming: &[Incoming],
        fresh: &mut Vec<(usize, Bytes)>,
        (reply, is_counted): (Option<&Reply>, bool),
        taken: &mut [Option<Taken>],
    ) {
        if fresh.is_empty() {
            return;
        }
        if !self.broker.is_ready() {
            for (index, _) in fresh.drain(..) {
                taken[index] = Some(Err(refused(&PublishError::Unknown(String::new()), incoming[index].envelope.id)));
            }
            return;
        }
        let (confirms, groups) = if let [(index, body)] = fresh.as_slice() {
            let message = self.publisher.single(&incoming[*index].envelope, body.clone(), reply);
            let message = counted(message, is_counted);
            (self.publisher.publish(vec![message], PUBLISH_LIMIT).await, std::iter::once(0..1).collect::<Vec<_>>())
        } else {
            let bodies: Vec<&[u8]> = fresh.iter().map(|(_, body)| body.as_ref()).collect();
            let (messages, groups) = pack(&bodies)
                .into_iter()
                .map(|pack| (counted(self.publisher.array(pack.body, reply), is_counted), pack.tasks))
                .unzip();
            (self.publisher.publish(messages, BATCH_PUBLISH_LIMIT).await, groups)
        };
        for (group, confirm) in groups.into_iter().zip(&confirms) {
            let Err(error) = confirm else { continue };
            if matches!(error, PublishError::Unroutable) {
                // Somebody deleted the queue: have it declared again.
                self.declare_again.notify_one();
            }
            tracing::debug!(%error, tasks = group.len(), "tasks were not accepted");
            for (index, _) in &fresh[group] {
                taken[*index] = Some(Err(refused(error, incoming[*index].envelope.id)));
            }
        }
        fresh.retain(|(index, _)| taken[*index].is_none());
        self.confirmed.add(fresh.iter().map(|(index, _)| incoming[*index].envelope.id));
    }

    /// Records what was confirmed, unless the scheduler was faster.
    async fn record(&self, incoming: &[Incoming], fresh: &[(usize, Bytes)], taken: &mut [Option<Taken>]) {
        for fresh in fresh.chunks(STORE_TASKS) {
            // The reply travels with the task, so that it is told with or without a record.
            let accepts = fresh.iter().map(|(index, _)| accept(&incoming[*index].envelope, None)).collect();
            let answers = self.records.ask(STORE_LIMIT, |store| async move { store.accept(accepts).await }).await;
            if answers.is_err() {
                self.metrics.unrecorded.inc_by(fresh.len() as u64);
            }
            let mut answers = answers.unwrap_or_default().into_iter();
            for (index, _) in fresh {
                let envelope = &incoming[*index].envelope;
                taken[*index] = Some(match answers.next() {
                    None | Some(Accepted::New) => Ok(envelope.result(State::Queued)),
                    Some(Accepted::Known(record) | Accepted::Unwanted(record)) => Ok(*record),
                    Some(Accepted::Conflict(record)) => Err(conflict(&record)),
                });
            }
        }
    }
}

/// Whether a task in this state may be known from a message that the broker never confirmed. What is dispatched was confirmed by a queue, and
/// what is blocked is its workflow's.
fn is_unsure(state: State) -> bool {
    matches!(state, State::Queued | State::Running)
}

/// Says that the scheduler need not count its tasks.
fn counted(mut message: Message, is_counted: bool) -> Message {
    if is_counted {
        message.properties.headers.insert(COUNTED_HEADER.to_owned(), "1".to_owned());
    }
    message
}

fn accept(envelope: &Envelope, follower: Option<Reply>) -> Accept {
    Accept {
        id: envelope.id,
        fingerprint: envelope.fingerprint(),
        alias: envelope.alias(),
        record: envelope.result(State::Queued),
        follower,
    }
}

pub(super) fn conflict(record: &TaskResult) -> Problem {
    Problem::new(Code::Conflict, "a task of other content has this id or idempotency key").of_task(record.id)
}

fn refused(error: &PublishError, id: TaskId) -> Problem {
    match error {
        PublishError::Full => Problem::new(Code::OverCapacity, "the broker's queue is full; nothing was accepted"),
        PublishError::TooLarge => Problem::new(Code::TooLarge, "the task is larger than the broker takes").at("input"),
        PublishError::Unroutable | PublishError::Unknown(_) => {
            Problem::new(Code::BrokerUnavailable, "the broker did not confirm; send the task again with this id")
        }
    }
    .of_task(id)
}
