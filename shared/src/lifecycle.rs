//! The states of a task, and which may follow which.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for other tasks.
    Blocked,
    Queued,
    Dispatched,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    Expired,
    Rejected,
}

impl State {
    pub const ALL: [State; 9] = [
        State::Blocked,
        State::Queued,
        State::Dispatched,
        State::Running,
        State::Succeeded,
        State::Failed,
        State::Cancelled,
        State::Expired,
        State::Rejected,
    ];

    /// As on the wire, and as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Blocked => "blocked",
            State::Queued => "queued",
            State::Dispatched => "dispatched",
            State::Running => "running",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
            State::Expired => "expired",
            State::Rejected => "rejected",
        }
    }

    /// A terminal state never changes.
    pub fn is_terminal(self) -> bool {
        match self {
            State::Blocked | State::Queued | State::Dispatched | State::Running => false,
            State::Succeeded | State::Failed | State::Cancelled | State::Expired | State::Rejected => true,
        }
    }

    /// Whether a task in this state may go to `next`.
    ///
    /// Only forwards, but for a retry, which goes back to `queued` from `dispatched` or `running`.
    /// Success needs a run; every other end may come at any time before one.
    pub fn may_become(self, next: State) -> bool {
        match (self, next) {
            (from, _) if from.is_terminal() => false,
            (_, State::Blocked) => false,
            (State::Blocked, State::Queued) => true,
            (State::Queued, State::Dispatched) => true,
            (State::Dispatched, State::Running) => true,
            (State::Dispatched | State::Running, State::Queued) => true,
            (State::Running, State::Succeeded) => true,
            (_, State::Succeeded) => false,
            (_, to) => to.is_terminal(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::State;

    #[test]
    fn a_terminal_state_never_changes() {
        for from in State::ALL.into_iter().filter(|state| state.is_terminal()) {
            for to in State::ALL {
                assert!(!from.may_become(to), "{from:?} became {to:?}");
            }
        }
    }

    #[test]
    fn success_needs_a_run() {
        let before: Vec<_> = State::ALL.into_iter().filter(|from| from.may_become(State::Succeeded)).collect();
        assert_eq!(before, [State::Running]);
    }

    #[test]
    fn a_retry_goes_back_to_queued_and_nothing_goes_back_further() {
        assert!(State::Running.may_become(State::Queued));
        assert!(State::Dispatched.may_become(State::Queued));
        assert!(!State::Running.may_become(State::Dispatched));
        assert!(State::ALL.into_iter().all(|from| !from.may_become(State::Blocked)));
    }
}
