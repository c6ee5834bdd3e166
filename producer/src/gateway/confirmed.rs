//! The last tasks and workflows that the broker confirmed to this gateway. A record is no confirm; these need not be sent again while they
//! wait or run.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use taskyard_shared::TaskId;

/// So many are remembered. Of another the price is one message more.
const MOST: usize = 65_536;

#[derive(Default)]
pub(super) struct Confirmed(Mutex<Ids>);

#[derive(Default)]
struct Ids {
    all: HashSet<TaskId>,
    /// The oldest first.
    order: VecDeque<TaskId>,
}

impl Confirmed {
    pub(super) fn has(&self, id: TaskId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).all.contains(&id)
    }

    pub(super) fn add(&self, ids: impl IntoIterator<Item = TaskId>) {
        let mut confirmed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Ids { all, order } = &mut *confirmed;
        order.extend(ids.into_iter().filter(|id| all.insert(*id)));
        for oldest in order.drain(..order.len().saturating_sub(MOST)) {
            all.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_last_are_remembered_and_no_more() {
        let id = |number: usize| TaskId(Uuid::from_u128(number as u128));
        let confirmed = Confirmed::default();
        confirmed.add((0..MOST).map(id));
        confirmed.add([id(0), id(1)]);
        assert!(confirmed.has(id(0)), "what comes again takes no place");
        confirmed.add([id(MOST), id(MOST + 1)]);
        for (number, is_there) in [(0, false), (1, false), (2, true), (MOST + 1, true), (MOST + 2, false)] {
            assert_eq!(confirmed.has(id(number)), is_there, "{number}");
        }
    }
}
