//! What comes out of the planner, and the names of the reasons. The names are metric labels.

use std::sync::Arc;

use taskyard_shared::TaskId;

/// What the shell is to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Decision {
    /// Send the task to its model's ready queue. It counts against the model's credit from now on. With
    /// [`DispatchReason::Passes`] its worker is to begin it before what it was sent earlier and has not begun.
    Dispatch { id: TaskId, model: Arc<str>, reason: DispatchReason },
    /// Tell that the task's deadline passed while it waited. The planner has forgotten it.
    Expire { id: TaskId, model: Arc<str> },
    /// Tell that the task gave way: it was admitted, and now not all that were can be done in time. The planner has
    /// forgotten it.
    Shed { id: TaskId, model: Arc<str>, reason: ShedReason },
}

/// Why a task that was admitted is not to run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ShedReason {
    /// It, or another of more worth, would miss its deadline.
    Deadline,
    /// More waits for its model than may, and it is worth the least.
    Overload,
}

impl ShedReason {
    pub const ALL: [Self; 2] = [Self::Deadline, Self::Overload];

    /// Its code in results.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deadline => "deadline_shed",
            Self::Overload => "overloaded",
        }
    }
}

/// Why this task and not another of its model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DispatchReason {
    /// No other lane of its model had a task that could go.
    OnlyLane,
    /// The policy put it before every other lane's head.
    BestScore,
    /// The policy put another lane's head level with it, and it came first.
    Oldest,
    /// It is so much more pressing than what was sent ahead that it goes past that, even when every credit is taken.
    Passes,
    /// Its band of priorities has a share of the model's time for certain, and had less.
    Floor,
    /// The policy's choice would have made it late, or one whose deadline is later.
    Deadline,
}

impl DispatchReason {
    pub const ALL: [Self; 6] =
        [Self::OnlyLane, Self::BestScore, Self::Oldest, Self::Passes, Self::Floor, Self::Deadline];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnlyLane => "only_lane",
            Self::BestScore => "best_score",
            Self::Oldest => "oldest",
            Self::Passes => "passes",
            Self::Floor => "floor",
            Self::Deadline => "deadline",
        }
    }
}

/// Why a task waits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum WaitReason {
    /// Its earliest start is yet to come.
    NotBefore,
    /// Its model is paused.
    Paused,
    /// No worker has offered a slot for its model.
    NoWorker,
    /// No worker holds its model, and some could.
    NotLoaded,
    /// As many of its tenant's tasks are out as may be.
    TenantLimit,
    /// Its tenant was served more than others that wait, by more than the allowance.
    FairShare,
    /// Every credit of its model is taken.
    NoCredit,
    /// A credit is free, and the next decisions hand it out.
    NextDecision,
    /// It waits in the broker behind others of its model, priority and tenant, which are in memory.
    Paged,
}

impl WaitReason {
    pub const ALL: [Self; 9] = [
        Self::NotBefore,
        Self::Paused,
        Self::NoWorker,
        Self::NotLoaded,
        Self::TenantLimit,
        Self::FairShare,
        Self::NoCredit,
        Self::NextDecision,
        Self::Paged,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotBefore => "not_before",
            Self::Paused => "paused",
            Self::NoWorker => "no_worker",
            Self::NotLoaded => "not_loaded",
            Self::TenantLimit => "tenant_limit",
            Self::FairShare => "fair_share",
            Self::NoCredit => "no_credit",
            Self::NextDecision => "next_decision",
            Self::Paged => "paged",
        }
    }
}
