//! What orders waiting tasks. One policy, one small file.
//!
//! The planner compares few tasks instead of all of them, and a policy makes that exact by keeping to one rule: among
//! tasks of one priority, cost bucket and stage, the order by `lane_key`, then arrival, never contradicts the scores,
//! whatever the time. So the first of such a class has the class's best score, and it alone is compared.

mod cmu;
mod edf;
mod fair;
mod fifo;
mod strict;
mod wspt;

pub use cmu::Cmu;
pub use edf::Edf;
pub use fair::Fair;
pub use fifo::Fifo;
pub use strict::Strict;
pub use wspt::Wspt;

use taskyard_shared::{Kind, Priority, TaskId};

/// An order over waiting tasks.
pub trait Policy {
    fn name(&self) -> &'static str;

    /// The task with the largest score is dispatched; equal scores go by arrival. Never NaN.
    fn score(&self, task: &Waiting, at: Moment) -> f64;

    /// The order inside a lane, smallest first, for a policy that does not go by arrival there.
    fn lane_key(&self, _task: &Waiting) -> Option<u64> {
        None
    }

    /// The stage a task is in, for a policy whose scores change their order as time goes by: tasks of different
    /// stages wait in different lanes.
    fn stage(&self, _task: &Waiting, _now_us: u64) -> Stage {
        Stage::default()
    }

    /// Whether a task of this score is so much more pressing than one that was dispatched with that score, and may still
    /// be waiting for its slot, that it is to go past it. Both are scores of this policy, as of one moment.
    fn passes(&self, _score: f64, _dispatched: f64) -> bool {
        false
    }

    /// Whether tasks that cannot meet their deadlines are refused, and a task goes before the policy's choice when it
    /// would be late otherwise. A policy that says no is an order and nothing else.
    fn keeps_deadlines(&self) -> bool {
        false
    }

    /// The one to dispatch. Not to be overridden: it stands here so that each policy has the loop compiled around its
    /// score, which is much of what a decision costs.
    fn best(&self, tasks: &[Waiting], at: Moment) -> Option<Best> {
        let (mut best, rest) = tasks.split_first()?;
        let mut found = Best { index: 0, is_level: false, score: 0.0 };
        let mut top = self.score(best, at);
        for (index, task) in (1..).zip(rest) {
            let score = self.score(task, at);
            if score < top {
                continue;
            }
            let is_level = score == top;
            if !is_level || task.came_before(best) {
                (best, top, found.index) = (task, score, index);
            }
            found.is_level = is_level;
        }
        found.score = top;
        Some(found)
    }
}

/// When, and in what circumstances, tasks of a model are compared.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Moment {
    /// On the same clock as every other time the planner is given, in microseconds.
    pub now_us: u64,
    /// What a task of the model waits, as it goes, or one run of it if that is more. Microseconds.
    pub mean_wait_us: f64,
    pub typical: Typical,
}

/// A time at which nothing is known of waits, nor of a model.
impl From<u64> for Moment {
    fn from(now_us: u64) -> Self {
        Self { now_us, mean_wait_us: 0.0, typical: Typical::default() }
    }
}

impl Moment {
    /// How many tasks of a class run one after the other in a second.
    pub fn rate(&self, cost: CostBucket) -> f64 {
        match cost.typical_of() {
            Some(kind) => 1.0 / self.typical.seconds(kind),
            None => cost.rate(),
        }
    }

    /// What a task of a class takes, in seconds.
    pub fn seconds(&self, cost: CostBucket) -> f64 {
        1.0 / self.rate(cost)
    }
}

/// What a model's tasks that declare no cost take, by kind, as is known by now: in seconds, above 0. Of kinds of which some came.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Typical([Option<f64>; Kind::ALL.len()]);

impl Typical {
    /// A second where none came.
    pub fn seconds(&self, kind: Kind) -> f64 {
        self.0[kind as usize].unwrap_or(1.0)
    }

    pub fn knows(&self, kind: Kind) -> bool {
        self.0[kind as usize].is_some()
    }

    pub fn set(&mut self, kind: Kind, seconds: f64) {
        self.0[kind as usize] = Some(seconds);
    }
}

/// For policies whose scores are positive: by how much a score must be the larger one to pass. Two tasks of one class
/// that arrive one after the other are never so far apart.
const PASSING: f64 = 1.25;

/// The best of some tasks.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Best {
    pub index: usize,
    /// Another has the same score and came later.
    pub is_level: bool,
    pub score: f64,
}

/// How far a task has come on its way to its deadline, as a policy divides that way.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stage {
    pub number: u8,
    /// When it enters another stage. Always later than the time that was asked about.
    pub until_us: Option<u64>,
}

/// The policy of a name: `cmu`, `fair`, `fifo`, `strict`, `edf` or `wspt`. `ageing_seconds` is for `cmu`: see
/// [`Cmu::new`], and none for what follows the mean wait.
pub fn by_name(name: &str, ageing_seconds: Option<f64>) -> Option<Box<dyn Policy + Send>> {
    Some(match name {
        "cmu" => Box::new(ageing_seconds.map_or_else(Cmu::default, Cmu::new)),
        "fair" => Box::new(Fair),
        "fifo" => Box::new(Fifo),
        "strict" => Box::new(Strict),
        "edf" => Box::new(Edf),
        "wspt" => Box::new(Wspt),
        _ => return None,
    })
}

impl<P: Policy + Send + 'static> From<P> for Box<dyn Policy + Send> {
    fn from(policy: P) -> Self {
        Box::new(policy)
    }
}

/// A waiting task as a policy sees it. Times are microseconds.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub id: TaskId,
    pub priority: Priority,
    pub cost: CostBucket,
    pub kind: Kind,
    /// 95 of 100 such tasks are expected to run no longer.
    pub q95_seconds: f32,
    /// Since when it waits.
    pub arrival_us: u64,
    pub deadline_us: Option<u64>,
    /// When others need it to have ended; later than that it is no less needed.
    pub due_us: Option<u64>,
    /// From 1e-6 to 1e9.
    pub expected_seconds: f64,
    /// Its place among tasks that arrived at the same time.
    pub sequence: u64,
}

impl Waiting {
    /// What a second of this task's delay costs: its priority, plus one so that priority 0 still counts.
    pub fn weight(&self) -> f64 {
        f64::from(self.priority.get()) + 1.0
    }

    /// By when a policy is to have it ended: others may need it before its own deadline.
    pub fn wanted_us(&self) -> Option<u64> {
        self.due_us.into_iter().chain(self.deadline_us).min()
    }

    /// Whether this task arrived first.
    pub fn came_before(&self, other: &Self) -> bool {
        (self.arrival_us, self.sequence) < (other.arrival_us, other.sequence)
    }
}

/// Expected execution times that lie within a factor of √2 of each other count as one; and tasks of a kind that declare no cost are
/// all alike, whatever was expected of them when they came.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CostBucket(i8);

impl From<f64> for CostBucket {
    fn from(expected_seconds: f64) -> Self {
        Self((expected_seconds.log2() * 2.0).floor() as i8)
    }
}

impl CostBucket {
    /// Times are from 1e-6 to 1e9 seconds, which end at 60.
    const TYPICAL: i8 = 100;

    /// Of tasks of a kind that declare no cost.
    pub fn typical(kind: Kind) -> Self {
        Self(Self::TYPICAL + kind as i8)
    }

    /// The kind, for tasks that declare no cost.
    pub fn typical_of(self) -> Option<Kind> {
        Kind::ALL.get(usize::try_from(self.0.checked_sub(Self::TYPICAL)?).ok()?).copied()
    }

    /// How many run one after the other in a second, in the middle of the bucket: no time in it is further away than a factor of 2^¼.
    fn rate(self) -> f64 {
        // 2^-¼ and 2^-¾, times a whole power of two made from its exponent's bits.
        const FACTORS: [f64; 2] = [0.840_896_415_253_714_6, 0.594_603_557_501_360_5];
        let power = f64::from_bits(((1023 - i64::from(self.0 >> 1)) as u64) << 52);
        power * FACTORS[usize::from(self.0 & 1 == 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::CostBucket;

    #[test]
    fn a_bucket_is_no_further_from_its_times_than_the_fourth_root_of_two() {
        let mut seconds = 1e-6;
        while seconds <= 1e9 {
            let ratio = 1.0 / CostBucket::from(seconds).rate() / seconds;
            assert!((0.840..=1.190).contains(&ratio), "{seconds} s: {ratio}");
            seconds *= 1.01;
        }
    }
}
