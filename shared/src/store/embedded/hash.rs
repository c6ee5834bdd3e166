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

impl IdHasher {
    fn mix(&mut self, word: u64) {
        // All bits of a product of 128 bits, folded into 64.
        let product = u128::from(self.state ^ word) * u128::from(self.key);
        self.state = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.mix(u64::from_le_bytes(word));
        }
    }

    /// The length of what follows, which is always the same.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_that_are_alike_are_far_apart() {
        let by_id = ById::default();
        let of = |id: u128| by_id.hash_one(TaskId(uuid::Uuid::from_u128(id)));
        // A map looks at the lowest bits first, and then at the highest.
        for shift in [0, 8, 32, 64, 100] {
            let hashes: Vec<u64> = (0..4_096_u128).map(|id| of(id << shift)).collect();
            assert_eq!(hashes.iter().collect::<HashSet<_>>().len(), hashes.len());
            for bits in [|hash: &u64| hash & 0xfff, |hash: &u64| hash >> 52] {
                let places = hashes.iter().map(bits).collect::<HashSet<_>>().len();
                // As many balls thrown at random leave a third of the places empty.
                assert!(places > 2_300, "{places} places at a shift of {shift}");
            }
        }
    }
}
