//! Where a task is found in the map of records: a hash for ids alone, an eighth of the time of the general one.
//!
//! Callers choose ids, so that the hash is keyed by what is drawn anew for each map: nobody can choose many that meet in
//! one place without knowing it.

use std::hash::{BuildHasher, Hasher};

use crate::task::TaskId;

#[derive(Clone)]
pub(super) struct ById {
    keys: [u64; 2],
}

impl Default for ById {
    fn default() -> Self {
        let drawn = || std::collections::hash_map::RandomState::new().hash_one(TaskId::new());
        Self { keys: [drawn(), drawn() | 1] }
    }
}

impl BuildHasher for ById {
    type Hasher = IdHasher;

    fn build_hasher(&self) -> IdHasher {
        IdHasher { state: self.keys[0], key: self.keys[1] }
    }
}

pub(super) struct IdHasher {
    state: u64,
    key: u64,
}

/// All bits of a product, folded into half as many.
fn folded(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Odd, and as many ones as zeros, without a pattern: the golden ratio's digits.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.state = folded(self.state ^ u64::from_le_bytes(word), self.key);
        }
    }

    /// The length of what follows, which is always the same.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        // A drawn key may have few ones in some part of it, and then spreads badly alone.
        folded(self.state, SPREAD)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_that_are_alike_are_far_apart() {
        for _ in 0..200 {
            let by_id = ById::default();
            let of = |id: u128| by_id.hash_one(TaskId(uuid::Uuid::from_u128(id)));
            // A map looks at the lowest bits first, and then at the highest.
            for shift in [0, 8, 32, 60, 64, 100] {
                let hashes: Vec<u64> = (0..1_024_u128).map(|id| of(id << shift)).collect();
                for bits in [|hash: &u64| hash & 0x3ff, |hash: &u64| hash >> 54] {
                    let places = hashes.iter().map(bits).collect::<HashSet<_>>().len();
                    // As many balls thrown at random leave a third of the places empty.
                    assert!(places > 512, "{places} places at a shift of {shift}, keys {:x?}", by_id.keys);
                }
            }
        }
    }
}
