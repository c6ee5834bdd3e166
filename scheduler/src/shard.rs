//! The part of a yard that one of its active schedulers has: a share of the credits, and queues of its own.

use uuid::Uuid;

use crate::planner::Room;

/// Shard `number` of `of`. Each has the slots of a model that its number comes to when they are dealt out in turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shard {
    pub number: u32,
    /// How many there are, at least 1.
    pub of: u32,
}

/// The shard that looks after what has this id: the same whoever asks.
pub(crate) fn shard_of(id: Uuid, shards: u32) -> u32 {
    let bits = id.as_u128();
    // The low bits of a UUID are random, whatever its version.
    ((bits as u64 ^ (bits >> 64) as u64) % u64::from(shards.max(1))) as u32
}

impl Shard {
    /// Of so many slots and tasks sent ahead. Nobody's tasks wait for ever: while a model has any slot, each shard has room
    /// for one task, though together they may then have a little more than there is.
    pub fn part(self, all: Room) -> Room {
        let (slots, ahead) = (self.share(all.slots), self.share(all.ahead));
        let none_left = all.slots > 0 && slots + ahead == 0;
        Room { slots: slots + usize::from(none_left), ahead, ..all }
    }

    /// Of a limit that is nobody's to be without: each shard has its part, and one at least.
    pub fn least_one(self, all: usize) -> usize {
        self.share(all).max(1)
    }

    fn share(self, whole: usize) -> usize {
        let (number, of) = (self.number as usize, self.of.max(1) as usize);
        whole / of + usize::from(number < whole % of)
    }
}

#[cfg(test)]
mod tests {
    use super::{Room, Shard};

    fn parts(of: u32, all: Room) -> Vec<Room> {
        (0..of).map(|number| Shard { number, of }.part(all)).collect()
    }

    #[test]
    fn the_parts_are_the_whole_and_none_is_nothing() {
        for of in 1..=64 {
            for slots in 0..200 {
                for ahead in [0, 1, 3, 17, 512] {
                    let parts = parts(of, Room { slots, ahead, grain: 5 });
                    let room = |part: &Room| part.slots + part.ahead;
                    assert!(parts.iter().all(|part| part.grain == 5));
                    if slots == 0 {
                        assert!(parts.iter().all(|part| part.slots == 0), "no slot, nothing to give");
                        continue;
                    }
                    assert_eq!(parts.iter().map(|part| part.ahead).sum::<usize>(), ahead);
                    assert!(parts.iter().all(|part| room(part) > 0), "{slots} and {ahead} among {of}: {parts:?}");
                    // Those of which the division left nothing have one each.
                    let beyond = (of as usize).saturating_sub(slots.max(ahead));
                    assert_eq!(parts.iter().map(|part| part.slots).sum::<usize>(), slots + beyond);
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_divided_evenly_goes_to_the_first_ones() {
        let slots = |of, slots| parts(of, Room::from(slots)).iter().map(|part| part.slots).collect::<Vec<_>>();
        assert_eq!(slots(1, 7), [7]);
        assert_eq!(slots(3, 7), [3, 2, 2]);
        assert_eq!(slots(4, 2), [1, 1, 1, 1]);
    }
}
