//! Takes tasks into the planner, or refuses them with a reason.

use std::time::Duration;

use taskyard_shared::{ChoiceReason, Kind, State, Target, TaskId, Timestamp};
use tokio::time::Instant;

use crate::choose::Chosen;
use crate::core::Core;
use crate::held::Held;
use crate::planner::{Arrival, Refusal};

/// So many tasks that wait no more may be remembered by their age, beside as many as do wait.
const AGES_KEPT: usize = 16_384;

impl Core {
    pub fn admit(&mut self, task: Held) {
        let Some(task) = self.as_wished(task) else { return };
        if task.envelope.deadline.is_some_and(|deadline| deadline <= Timestamp::now()) {
            let message = "the deadline had passed when the task came".into();
            return self.refuse(task, State::Expired, "expired", message);
        }
        match self.choose_model(&task.envelope) {
            Ok(chosen) if task.envelope.kind == Kind::Deployment => self.deploy(task, chosen.spec),
            Ok(chosen) => self.admit_to(task, chosen),
            Err(_) if self.models_may_still_come() => self.unknown.push(task),
            Err((code, message)) => self.refuse(task, State::Rejected, code, message),
        }
    }

    /// To the first of these models that takes it.
    pub fn admit_to(&mut self, mut task: Held, chosen: Chosen) {
        let Chosen { spec, others, choice, bids } = chosen;
        let id = task.envelope.id;
        let now_us = self.clock.now_us();
        let is_new = task.envelope.attempts == 0 && task.page.is_none();
        if task.model != spec.name {
            // What was expected of it was of another model.
            task.expected = None;
        }
        task.model = spec.name.clone();
        // Extras are made when one is set.
        if choice != task.envelope.extras.choice {
            task.envelope.extras.choice = choice;
        }
        let mut others = others.into_iter();
        let refusal = loop {
            let arrival = self.arrival(&task);
            let answer = match task.page {
                Some(_) => self.planner.handle_page_in(arrival, now_us),
                None => self.planner.handle_arrival(arrival, now_us),
            };
            match answer {
                Ok(()) => {
                    if is_new {
                        self.metrics.accepted(task.envelope.kind, &task.model);
                    }
                    if let Some(choice) = &task.envelope.extras.choice {
                        self.metrics.chosen(&task.model, choice.reason);
                    }
                    if task.model == spec.name
                        && let Some(compared) = self.allocation_regret.handle_choice(&bids, now_us)
                    {
                        self.metrics.allocated(compared);
                    }
                    self.note_age(task.since, id);
                    self.held.insert(id, task);
                    return self.watch_patience(id);
                }
                // The same task twice: one of them is enough, and the store knows whom to tell.
                Err(Refusal::Duplicate) if self.held.contains_key(&id) => {
                    return self.ack(task.receipt.into_iter().collect());
                }
                // It was dispatched, and nobody has told that it ended. That may have been lost, and its record be forgotten: then this is
                // another of its id.
                Err(Refusal::Duplicate) => return self.watch(vec![task]),
                // Of its tenant, whatever the model.
                Err(refusal @ Refusal::TooManyWaiting) => break refusal,
                Err(refusal) => match others.next() {
                    // Another may have the time, or the room.
                    Some(other) => {
                        task.model = other.name.clone();
                        task.expected = None;
                        let bid = bids.iter().find(|(model, _)| **model == *other.name);
                        if let (Some(choice), Some((_, bid))) = (&mut task.envelope.extras.choice, bid) {
                            choice.reason = match refusal {
                                Refusal::Overloaded { .. } => ChoiceReason::Overload,
                                _ => ChoiceReason::Deadline,
                            };
                            choice.run_seconds = bid.run_seconds;
                            choice.queue_seconds = Some(bid.queue_seconds).filter(|seconds| seconds.is_finite());
                            choice.load_seconds = bid.load_seconds;
                        }
                    }
                    None => break refusal,
                },
            }
        };
        let message = match refusal {
            Refusal::DeadlineUnreachable { finish_us } => {
                let deadline_us = task.envelope.deadline.map_or(finish_us, |at| self.clock.micros(at));
                let late = finish_us.saturating_sub(deadline_us) as f64 / 1e6;
                format!(
                    "it, or others of more worth per second, would miss the deadline: it would end {late:.3} s after it"
                )
            }
            Refusal::TooManyWaiting => {
                "as many tasks of its tenant wait as may: see max_waiting of the tenant".to_owned()
            }
            Refusal::Overloaded { seconds } => format!(
                "what waits takes longer than may be, and is worth more per second; {seconds:.0} s are to be worked off first"
            ),
            Refusal::Duplicate => String::new(),
        };
        self.refuses |= matches!(refusal, Refusal::Overloaded { .. });
        self.metrics.turned_away(&task.model, refusal.as_str(), task.envelope.deadline.is_some());
        self.refuse(task, State::Rejected, refusal.as_str(), message);
    }

    fn note_age(&mut self, since: Instant, id: TaskId) {
        // Tasks that do not wait any more stay until their time, unless there are many of them.
        if self.by_age.len() >= 2 * self.held.len() + AGES_KEPT {
            let held = &self.held;
            self.by_age.retain(|(since, id)| held.get(id).is_some_and(|task| task.since == *since));
        }
        self.by_age.push_back((since, id));
    }

    pub fn refuse_over_rate(&mut self, task: Held) {
        let message = "its tenant sends more in a second than it may: see max_per_second of the tenant".into();
        let chosen = self.choose_model(&task.envelope);
        let model = chosen.map_or_else(|_| "_unknown".to_owned(), |chosen| chosen.spec.name.clone());
        self.metrics.turned_away(&model, "quota_rate", task.envelope.deadline.is_some());
        self.refuse(task, State::Rejected, "quota_rate", message);
    }

    pub fn arrival(&self, task: &Held) -> Arrival {
        let envelope = &task.envelope;
        Arrival {
            id: envelope.id,
            model: task.model.clone(),
            tenant: envelope.tenant.to_string(),
            priority: envelope.priority,
            kind: envelope.kind,
            cost: envelope.extras.cost,
            expected: task.expected,
            deadline_us: envelope.deadline.map(|at| self.clock.micros(at)),
            due_us: envelope.extras.due.map(|at| self.clock.micros(at)),
            not_before_us: envelope.extras.not_before.map(|at| self.clock.micros(at)),
            // A task that was delayed by who sent it has waited since its time came; one that is tried again, since it was
            // accepted.
            arrived_us: match (envelope.attempts, envelope.extras.not_before) {
                (0, Some(start)) => Some(self.clock.micros(envelope.accepted.max(start))),
                _ => Some(self.clock.micros(envelope.accepted)),
            },
            is_known: task.is_known || envelope.attempts > 0,
        }
    }

    pub fn models_may_still_come(&self) -> bool {
        self.started.elapsed() < Duration::from_millis(self.settings.unknown_model_grace_ms)
    }

    /// A copy that this scheduler sent round, or that one sent which had the shard before.
    pub fn take_round(&mut self, task: Held) {
        let id = task.envelope.id;
        if self.in_limbo.remove(&id) && !self.held.contains_key(&id) {
            // It was dispatched while its copy was on the way.
            return self.ack(task.receipt.into_iter().collect());
        }
        self.take_back(task);
    }

    pub fn take_back(&mut self, mut task: Held) {
        let id = task.envelope.id;
        self.stop_watching(id);
        if task.envelope.extras.mirrors.is_some() {
            // A copy is tried once.
            return self.end_unwanted(task);
        }
        if let Some(held) = self.held.get_mut(&id) {
            // A copy of what waits already.
            if held.receipt.is_some() {
                return self.ack(task.receipt.into_iter().collect());
            }
            (held.receipt, held.since) = (task.receipt, task.since);
            self.note_age(task.since, id);
            return;
        }
        if self.outstanding.remove(&id).is_some() {
            self.planner.handle_completion(id, None);
        }
        // The choice among models is made anew.
        let leaves_a_choice = matches!(task.envelope.target, Target::Capability(_));
        if leaves_a_choice || !task.envelope.extras.alternatives.is_empty() {
            task.envelope.chosen = None;
        }
        self.admit(task);
    }
}
