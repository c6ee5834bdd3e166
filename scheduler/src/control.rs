//! Answers what gateways ask of this scheduler: to cancel waiting tasks, to give them another priority, to pause models, to
//! explain.
//!
//! What is asked of a task that is not here is remembered for a while: it may be on its way, read from intake and not yet
//! admitted, or with a worker and to be tried again. The record says the same for longer, and whoever reads a task looks there.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::broker::{Broker, BrokerError, Consumer, Delivery, Verdict};
use taskyard_shared::control::{Answer, Ask, CANCELLED, Fate, Place, Question, Told, VERSION, Waiting};
use taskyard_shared::{Priority, Reply, State, TaskId, Timestamp, messages};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::core::{Core, Event};
use crate::finish::Finished;
use crate::held::Held;
use crate::planner::AHEAD_LIMIT;
use crate::schedule::AskedOfSchedules;
use crate::workflow::Unwanted;

/// Questions read at once.
pub(crate) const PREFETCH: u16 = 64;
/// Questions that wait for an end to be written.
const AT_ONCE: usize = 64;
/// So long, and of so many tasks, it is remembered what was asked of them.
const REMEMBERED: Duration = Duration::from_secs(60);
const WISHES: usize = 100_000;

/// A question on its way to the core. Who asked hears nothing when the answer is dropped.
pub(crate) struct Asked {
    pub ask: Ask,
    pub answer: oneshot::Sender<Told>,
}

/// Reads the questions to one shard.
pub(crate) struct Desk {
    pub broker: Arc<dyn Broker>,
    pub shard: u32,
    pub events: mpsc::Sender<Event>,
    /// Has the paused models read anew.
    pub pauses: mpsc::Sender<oneshot::Sender<Told>>,
    /// Runs the workflows of the shard.
    pub workflows: mpsc::Sender<Unwanted>,
    /// Keeps the schedules, if this shard does.
    pub schedules: Option<mpsc::Sender<AskedOfSchedules>>,
    pub closing: CancellationToken,
}

impl Desk {
    /// Reads until the session is cut, or closing.
    pub async fn run(self, mut consumer: Box<dyn Consumer>) -> Result<(), BrokerError> {
        let acker = consumer.acker();
        let mut answering: JoinSet<()> = JoinSet::new();
        loop {
            let deliveries = tokio::select! {
                biased;
                () = self.closing.cancelled() => return Ok(()),
                deliveries = consumer.next_batch(usize::from(PREFETCH)) => deliveries?,
            };
            for delivery in &deliveries {
                while answering.len() >= AT_ONCE {
                    answering.join_next().await;
                }
                while answering.try_join_next().is_some() {}
                let Some((answer, reply)) = self.take(delivery).await else { continue };
                answering.spawn(send(self.broker.clone(), self.shard, answer, reply));
            }
            // Whoever asked does not wait for long: what is lost is asked again.
            acker.settle(deliveries.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
        }
    }

    async fn take(&self, delivery: &Delivery) -> Option<(oneshot::Receiver<Told>, Reply)> {
        let question = match serde_json::from_slice::<Question>(&delivery.body) {
            Ok(question) if question.v == VERSION => question,
            Ok(Question { v, .. }) => {
                warn!(v, "a question of a version of which this scheduler knows nothing is dropped");
                return None;
            }
            Err(failure) => {
                warn!(%failure, "a question cannot be read and is dropped");
                return None;
            }
        };
        let reply = messages::reply_of(&delivery.properties)?;
        let (answer, answered) = oneshot::channel();
        let taken = match question.ask {
            Ask::ReadPaused {} => self.pauses.send(answer).await.is_ok(),
            Ask::CancelWorkflow { id } => self.workflows.send((id, answer)).await.is_ok(),
            Ask::Schedule { ask } => match &self.schedules {
                Some(schedules) => schedules.send((ask, answer)).await.is_ok(),
                None => false,
            },
            ask => self.events.send(Event::Asked(Asked { ask, answer })).await.is_ok(),
        };
        taken.then_some((answered, reply))
    }
}

async fn send(broker: Arc<dyn Broker>, shard: u32, answer: oneshot::Receiver<Told>, reply: Reply) {
    let Ok(told) = answer.await else { return };
    let message = match messages::answer(&reply, &Answer { v: VERSION, shard, told }) {
        Ok(message) => message,
        Err(failure) => return warn!(%failure, "an answer could not be built"),
    };
    for answer in broker.publish(vec![message]).await {
        if let Err(failure) = answer {
            debug!(%failure, "an answer did not reach who asked");
        }
    }
}

/// What was asked of a task that is not here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wish {
    Cancel,
    Priority(Priority),
}

#[derive(Default)]
pub(crate) struct Wishes {
    by_task: HashMap<TaskId, (Wish, Instant)>,
    by_age: VecDeque<(Instant, TaskId)>,
}

impl Wishes {
    fn note(&mut self, id: TaskId, wish: Wish, now: Instant) {
        while self.by_age.len() >= WISHES {
            self.forget_oldest();
        }
        match self.by_task.get(&id) {
            // Nobody takes that back.
            Some((Wish::Cancel, _)) => {}
            _ => {
                self.by_task.insert(id, (wish, now));
                self.by_age.push_back((now, id));
            }
        }
    }

    fn take(&mut self, id: TaskId) -> Option<Wish> {
        // Mostly there is none at all.
        if self.by_task.is_empty() {
            return None;
        }
        self.by_task.remove(&id).map(|(wish, _)| wish)
    }

    /// Forgets what was asked for long ago.
    pub fn forget(&mut self, now: Instant) {
        while self.by_age.front().is_some_and(|&(at, _)| now.duration_since(at) >= REMEMBERED) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((at, id)) = self.by_age.pop_front()
            && self.by_task.get(&id).is_some_and(|&(_, noted)| noted == at)
        {
            self.by_task.remove(&id);
        }
    }
}

impl Core {
    pub fn answer(&mut self, Asked { ask, answer }: Asked) {
        match ask {
            Ask::Cancel { ids } => {
                let fates: Vec<_> = ids.into_iter().map(|id| (id, self.cancel(id))).collect();
                tell_fates(fates, answer);
            }
            Ask::Reprioritize { ids, priority } => {
                let fates = ids.into_iter().map(|id| (id, self.reprioritize(id, priority))).collect();
                let _gone = answer.send(Told::Fates { fates });
            }
            Ask::Explain { id } => match self.place(id) {
                Place::Unknown {} => self.look_for_paged(id, answer),
                place => drop(answer.send(Told::Place { place })),
            },
            Ask::Quote { task } => {
                let _gone = answer.send(Told::Quote { quote: Box::new(self.quote(*task)) });
            }
            // The reader of the loads does that.
            Ask::ReadPaused {} | Ask::CancelWorkflow { .. } | Ask::Schedule { .. } => {}
        }
    }

    /// Ends a task that waits; what became of it is known once that is written.
    fn cancel(&mut self, id: TaskId) -> Pending {
        let waiting = match self.planner.handle_cancel(id) {
            true => self.held.remove(&id),
            false => {
                let unknown = self.unknown.iter().position(|task| task.envelope.id == id);
                unknown.map(|at| self.unknown.swap_remove(at)).or_else(|| self.break_off_deployment(id))
            }
        };
        match waiting {
            Some(task) => {
                let (told, fate) = oneshot::channel();
                self.finished.push(cancelled(task, Some(told)));
                Pending::Later(fate)
            }
            None => {
                self.wishes.note(id, Wish::Cancel, Instant::now());
                Pending::Now(self.fate_of_absent(id))
            }
        }
    }

    fn reprioritize(&mut self, id: TaskId, priority: Priority) -> Fate {
        if self.planner.handle_reprioritize(id, priority) {
            if let Some(task) = self.held.get_mut(&id) {
                task.envelope.priority = priority;
            }
            self.part_strays(&[id]);
            return Fate::Done;
        }
        if let Some(task) = self.unknown.iter_mut().find(|task| task.envelope.id == id) {
            task.envelope.priority = priority;
            return Fate::Done;
        }
        let fate = self.fate_of_absent(id);
        if fate == Fate::Unknown {
            self.wishes.note(id, Wish::Priority(priority), Instant::now());
        }
        fate
    }

    fn fate_of_absent(&self, id: TaskId) -> Fate {
        if self.outstanding.contains_key(&id) || self.deploying.carries_out(id) || self.watch.holds(id) {
            Fate::Dispatched
        } else {
            Fate::Unknown
        }
    }

    /// A task that came, as it was asked for before it did; nothing when it is to be cancelled.
    pub fn as_wished(&mut self, mut task: Held) -> Option<Held> {
        match self.wishes.take(task.envelope.id) {
            None => {}
            Some(Wish::Priority(priority)) => task.envelope.priority = priority,
            Some(Wish::Cancel) => {
                self.end_unwanted(task);
                return None;
            }
        }
        Some(task)
    }

    /// A task waits again that was about to be dispatched.
    pub fn carry_out_wish(&mut self, id: TaskId) {
        match self.wishes.take(id) {
            None => {}
            Some(Wish::Cancel) => drop(self.cancel(id)),
            Some(Wish::Priority(priority)) => {
                self.reprioritize(id, priority);
            }
        }
    }

    /// Ends a task that came though it is not wanted, and with it a copy of it that waits.
    pub fn end_unwanted(&mut self, mut task: Held) {
        let id = task.envelope.id;
        if self.in_limbo.remove(&id) && !self.held.contains_key(&id) {
            // It was ended, or dispatched, while its copy was on the way.
            return self.ack(task.receipt.into_iter().collect());
        }
        if self.outstanding.remove(&id).is_some() {
            self.planner.handle_completion(id, None);
        }
        if self.planner.handle_cancel(id)
            && let Some(copy) = self.held.remove(&id)
        {
            self.ack(copy.receipt.into_iter().collect());
        }
        if let Ok(chosen) = self.choose_model(&task.envelope) {
            task.model = chosen.spec.name.clone();
        }
        self.finished.push(cancelled(task, None));
    }

    pub fn set_paused(&mut self, paused: HashSet<String>, answer: Option<oneshot::Sender<Told>>) {
        let before = std::mem::replace(&mut self.paused, paused);
        let changed: Vec<String> = self.paused.symmetric_difference(&before).cloned().collect();
        for model in changed {
            let is_paused = self.paused.contains(&model);
            info!(task.model = %model, paused = is_paused, "paused or resumed");
            self.planner.handle_pause(&model, is_paused);
            if let Some(shadow) = &mut self.shadow {
                shadow.handle_change(&model, self.clock.now_us());
            }
        }
        if let Some(answer) = answer {
            let _gone = answer.send(Told::PausedRead {});
        }
    }

    fn place(&self, id: TaskId) -> Place {
        let Some(explained) = self.planner.explain(id) else {
            if let Some(task) = self.unknown.iter().find(|task| task.envelope.id == id) {
                return Place::Waiting(Box::new(of_unknown_model(task)));
            }
            return match self.fate_of_absent(id) {
                Fate::Dispatched => Place::Dispatched {},
                _ => Place::Unknown {},
            };
        };
        let model = &*explained.model;
        let (expected_start, expected_finish) = self.expected(self.planner.predict(id, self.clock.now_us()));
        let at = |us: u64| Timestamp::from_micros(i64::try_from(us).unwrap_or(i64::MAX));
        Place::Waiting(Box::new(Waiting {
            reason: explained.reason.as_str().to_owned(),
            model: model.to_owned(),
            priority: self.held.get(&id).map(|task| task.envelope.priority).unwrap_or_default(),
            since: at(explained.arrival_us),
            starts: explained.starts_us.map(at),
            ahead_in_lane: explained.ahead_in_lane.map(|ahead| ahead as u64),
            ahead_uncounted: explained.ahead_in_lane.is_some_and(|ahead| ahead >= AHEAD_LIMIT),
            queued_in_model: explained.queued_in_model as u64,
            dispatched_in_model: explained.outstanding as u64,
            capacity: explained.capacity as u64,
            policy: self.planner.policy().to_owned(),
            expected_start,
            expected_finish,
        }))
    }
}

/// In the first moments, while it may still be announced.
fn of_unknown_model(task: &Held) -> Waiting {
    Waiting {
        reason: "unknown_model".to_owned(),
        model: task.envelope.model().unwrap_or_default().to_owned(),
        priority: task.envelope.priority,
        since: task.envelope.accepted,
        starts: task.envelope.extras.not_before,
        ahead_in_lane: None,
        ahead_uncounted: false,
        queued_in_model: 0,
        dispatched_in_model: 0,
        capacity: 0,
        policy: String::new(),
        expected_start: None,
        expected_finish: None,
    }
}

fn cancelled(task: Held, told: Option<oneshot::Sender<Fate>>) -> Finished {
    let message = "it was cancelled while it waited".to_owned();
    Finished { task, state: State::Cancelled, code: CANCELLED, message, told, output: None }
}

/// What became of a task that was to be cancelled.
enum Pending {
    Now(Fate),
    Later(oneshot::Receiver<Fate>),
}

/// Tells once all are known. Those whose end could not be written are left out.
fn tell_fates(fates: Vec<(TaskId, Pending)>, answer: oneshot::Sender<Told>) {
    tokio::spawn(async move {
        let mut known = Vec::with_capacity(fates.len());
        for (id, pending) in fates {
            match pending {
                Pending::Now(fate) => known.push((id, fate)),
                Pending::Later(fate) => known.extend(fate.await.ok().map(|fate| (id, fate))),
            }
        }
        let _gone = answer.send(Told::Fates { fates: known });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn priority(number: u8) -> Wish {
        Wish::Priority(Priority::try_from(number).unwrap())
    }

    #[test]
    fn the_last_wish_counts_unless_it_was_to_cancel() {
        let (mut wishes, now, id) = (Wishes::default(), Instant::now(), TaskId::new());
        wishes.note(id, priority(1), now);
        wishes.note(id, priority(2), now);
        assert_eq!(wishes.take(id), Some(priority(2)));
        assert_eq!(wishes.take(id), None, "it is carried out once");
        wishes.note(id, Wish::Cancel, now);
        wishes.note(id, priority(3), now);
        assert_eq!(wishes.take(id), Some(Wish::Cancel));
    }

    #[test]
    fn wishes_are_forgotten_by_age_and_by_number() {
        let (mut wishes, now) = (Wishes::default(), Instant::now());
        let ids: Vec<TaskId> = (0..WISHES + 10).map(|_| TaskId::new()).collect();
        for id in &ids {
            wishes.note(*id, Wish::Cancel, now);
        }
        assert_eq!((wishes.by_task.len(), wishes.by_age.len()), (WISHES, WISHES));
        assert_eq!((wishes.take(ids[0]), wishes.take(ids[10])), (None, Some(Wish::Cancel)));
        let later = now + REMEMBERED / 2;
        wishes.note(ids[10], Wish::Cancel, later);
        wishes.forget(now + REMEMBERED);
        assert_eq!((wishes.by_task.len(), wishes.by_age.len()), (1, 1));
        assert_eq!(wishes.take(ids[10]), Some(Wish::Cancel), "noted anew");
        wishes.forget(later + REMEMBERED);
        assert!(wishes.by_task.is_empty() && wishes.by_age.is_empty());
    }
}
