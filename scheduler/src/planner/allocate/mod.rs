//! Chooses among the models that could run a task.

mod regret;

pub use regret::{Compared, Regret};

use taskyard_shared::{ChoiceReason, Kind, Priority};

use super::Planner;

/// A model that could run a task.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub model: &'a str,
    /// How good its answers are, from 0 to 1, if that was said.
    pub quality: Option<f64>,
    /// How long it takes to be loaded first; 0 when some worker has it, or none can load it.
    pub load_seconds: f64,
    /// It stands back until the task waits for the first candidate, or has waited, for longer than this. Of no meaning for the
    /// first.
    pub after_seconds: Option<f64>,
}

/// What is known of a task that leaves a choice.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub priority: Priority,
    pub kind: Kind,
    pub cost: Option<f64>,
    pub min_quality: Option<f64>,
    pub deadline_us: Option<u64>,
    /// How long it has waited already.
    pub waited_seconds: f64,
}

/// What a candidate would cost the task, in expected seconds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Bid {
    /// Its place among the candidates.
    pub candidate: usize,
    pub run_seconds: f64,
    /// Infinite when it has no worker, or is paused.
    pub queue_seconds: f64,
    pub load_seconds: f64,
    /// Priority × run time, a priority of 0 counting as 1.
    pub weighted_seconds: f64,
    /// By how much the task delays those that come after it: its run time over the slots.
    pub adds_seconds: f64,
}

impl Bid {
    fn cost(&self) -> f64 {
        self.weighted_seconds + self.wait_seconds()
    }

    fn wait_seconds(&self) -> f64 {
        self.queue_seconds + self.load_seconds
    }
}

/// Those that may run the task, the one to take first, and why that one.
#[derive(Clone, PartialEq, Debug)]
pub struct Allocation {
    pub bids: Vec<Bid>,
    pub reason: ChoiceReason,
}

impl Planner {
    /// The candidate of least priority × run time + queue seconds + load time, of those that are good enough and, as long
    /// as there is one, would meet the deadline. `None` when none is good enough.
    ///
    /// With [`Candidate::after_seconds`] the first is the one that the task names.
    pub fn allocate(&self, request: &Request, candidates: &[Candidate<'_>], now_us: u64) -> Option<Allocation> {
        let all: Vec<Bid> =
            (0..).zip(candidates).map(|(at, candidate)| self.bid(at, request, candidate, now_us)).collect();
        let wait_seconds = all.first().map_or(0.0, Bid::wait_seconds).max(request.waited_seconds);
        let is_open = |bid: &Bid| {
            let after = candidates.get(bid.candidate).and_then(|candidate| candidate.after_seconds);
            bid.candidate == 0 || after.is_none_or(|after| wait_seconds > after)
        };
        let is_good = |bid: &Bid| {
            let quality = candidates.get(bid.candidate).and_then(|candidate| candidate.quality);
            request.min_quality.is_none_or(|least| quality.is_some_and(|quality| quality >= least))
        };
        let is_late = |bid: &Bid| {
            let end_us = now_us as f64 + (bid.wait_seconds() + bid.run_seconds) * 1e6;
            request.deadline_us.is_some_and(|deadline_us| end_us > deadline_us as f64)
        };
        // Without workers anywhere, the run time is all there is to tell them apart.
        let order = |one: &Bid, other: &Bid| {
            let cost = one.cost().total_cmp(&other.cost());
            cost.then(one.weighted_seconds.total_cmp(&other.weighted_seconds)).then(one.candidate.cmp(&other.candidate))
        };
        let mut open: Vec<Bid> = all.into_iter().filter(is_open).collect();
        open.sort_by(order);
        let cheapest = *open.first()?;
        let mut bids: Vec<Bid> = open.into_iter().filter(is_good).collect();
        bids.sort_by(|one, other| is_late(one).cmp(&is_late(other)).then(order(one, other)));
        let chosen = bids.first()?;
        let names_one = candidates.iter().any(|candidate| candidate.after_seconds.is_some());
        let reason = match chosen.candidate {
            _ if candidates.len() == 1 => ChoiceReason::OnlyCandidate,
            _ if !is_good(&cheapest) => ChoiceReason::Quality,
            candidate if candidate != cheapest.candidate => ChoiceReason::Deadline,
            0 if names_one => ChoiceReason::Named,
            _ if names_one => ChoiceReason::Alternative,
            _ => ChoiceReason::LeastCost,
        };
        Some(Allocation { bids, reason })
    }

    fn bid(&self, candidate: usize, request: &Request, model: &Candidate<'_>, now_us: u64) -> Bid {
        let run_seconds = self.expected(model.model, request.kind, request.cost).mean_seconds;
        let weight = f64::from(request.priority.get().max(1));
        let slots = self.slots(model.model).max(1) as f64;
        Bid {
            candidate,
            run_seconds,
            queue_seconds: self.queue_seconds(model.model, run_seconds, model.load_seconds > 0.0, now_us),
            load_seconds: model.load_seconds,
            weighted_seconds: weight * run_seconds,
            adds_seconds: run_seconds / slots,
        }
    }

    fn slots(&self, model: &str) -> usize {
        self.models.find(model).map_or(0, |model| self.models.get(model).capacity.slots())
    }
}
