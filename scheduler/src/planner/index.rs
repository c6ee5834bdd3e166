//! From an id or a name to the small number under which its owner keeps it.
//!
//! An open-addressed table of eight bytes a slot, so that a look-up among a million costs one cache line; the owner
//! compares the key itself. It cannot be iterated, so its order decides nothing. Ids and names are chosen by outsiders,
//! who could fill one stretch of it if they knew the hash: its seed is an argument, like the time.

use std::num::NonZeroU32;

pub(super) struct Index {
    /// A power of two of slots, at most half of them taken. An entry stands at its hash's place or, when that is
    /// taken, in the stretch of taken slots that begins there.
    slots: Vec<Option<Entry>>,
    len: usize,
    seed: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    hash: u32,
    /// Never zero, so that an empty slot needs no room to say so.
    number_plus_one: NonZeroU32,
}

impl Index {
    pub(super) fn new(seed: u64) -> Self {
        Self { slots: vec![None; 16], len: 0, seed }
    }

    /// The hash of a key, for the other calls.
    pub(super) fn hash(&self, key: &[u8]) -> u32 {
        let factor = fold(self.seed ^ 0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93) | 1;
        let mut state = fold(self.seed ^ key.len() as u64 ^ 0x2545_f491_4f6c_dd1d, factor);
        for chunk in key.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            state = fold(state ^ u64::from_le_bytes(word), factor);
        }
        fold(state, factor.rotate_left(32)) as u32
    }

    /// The number with this hash whose key is the one looked for, as the owner says.
    pub(super) fn find(&self, hash: u32, is_key: impl Fn(u32) -> bool) -> Option<u32> {
        let mut at = self.home(hash);
        while let Some(entry) = self.slots[at] {
            let number = entry.number_plus_one.get() - 1;
            if entry.hash == hash && is_key(number) {
                return Some(number);
            }
            at = self.after(at);
        }
        None
    }

    /// Enters a number, below [`u32::MAX`], whose key is not in it.
    pub(super) fn insert(&mut self, hash: u32, number: u32) {
        if (self.len + 1) * 2 > self.slots.len() {
            let larger = vec![None; self.slots.len() * 2];
            for entry in std::mem::replace(&mut self.slots, larger).into_iter().flatten() {
                self.put(entry);
            }
        }
        self.put(Entry { hash, number_plus_one: NonZeroU32::MIN.saturating_add(number) });
        self.len += 1;
    }

    pub(super) fn remove(&mut self, hash: u32, number: u32) {
        let mut hole = self.home(hash);
        loop {
            match self.slots[hole] {
                Some(entry) if entry.number_plus_one.get() - 1 == number => break,
                Some(_) => hole = self.after(hole),
                None => return,
            }
        }
        self.len -= 1;
        // What stands behind the hole moves up, unless that would put it before its hash's place.
        let mut at = hole;
        loop {
            at = self.after(at);
            let Some(entry) = self.slots[at] else { break };
            let from_home = at.wrapping_sub(self.home(entry.hash)) & (self.slots.len() - 1);
            let from_hole = at.wrapping_sub(hole) & (self.slots.len() - 1);
            if from_home >= from_hole {
                self.slots[hole] = Some(entry);
                hole = at;
            }
        }
        self.slots[hole] = None;
    }

    fn put(&mut self, entry: Entry) {
        let mut at = self.home(entry.hash);
        while self.slots[at].is_some() {
            at = self.after(at);
        }
        self.slots[at] = Some(entry);
    }

    fn home(&self, hash: u32) -> usize {
        hash as usize & (self.slots.len() - 1)
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }
}

/// Multiplies, and folds the product's halves together.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::Index;

    proptest! {
        /// Few hashes, so that stretches collide, wrap around and close up.
        #[test]
        fn it_holds_what_a_tree_holds(steps in prop::collection::vec((0..40u32, any::<bool>()), 0..400)) {
            let mut index = Index::new(0);
            let mut tree = BTreeMap::new();
            let hash = |key: u32| (key / 4).wrapping_sub(3);
            for (key, enters) in steps {
                prop_assert_eq!(index.find(hash(key), |number| number == key), tree.get(&key).copied());
                if enters && tree.insert(key, key).is_none() {
                    index.insert(hash(key), key);
                } else if !enters && tree.remove(&key).is_some() {
                    index.remove(hash(key), key);
                }
            }
            for key in 0..40 {
                prop_assert_eq!(index.find(hash(key), |number| number == key), tree.get(&key).copied());
            }
            prop_assert_eq!(index.len, tree.len());
        }
    }

    #[test]
    fn hashes_spread_and_depend_on_the_seed() {
        let ids: Vec<[u8; 16]> = (0..10_000u128).map(|number| (number << 64 | 0x7000).to_be_bytes()).collect();
        for seed in [0, 1, u64::MAX] {
            let index = Index::new(seed);
            let places: std::collections::BTreeSet<u32> = ids.iter().map(|id| index.hash(id) & 0x3fff).collect();
            // Thrown at random, 10,000 hit 7,485 of 16,384 places; the deviation is about 50.
            assert!((7_200..7_800).contains(&places.len()), "seed {seed}: {}", places.len());
        }
        assert_ne!(Index::new(0).hash(b"a"), Index::new(1).hash(b"a"));
        assert_ne!(Index::new(0).hash(b"a"), Index::new(0).hash(b"a\0"), "a name is not its own padding");
    }
}
