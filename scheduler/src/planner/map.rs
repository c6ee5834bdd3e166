//! The one hash map of the planner.
//!
//! Ids and names are chosen by outsiders, so a hash that they can compute would let them fill one bucket. The seed is
//! therefore an argument, like the time. It changes no decision: nothing here can be iterated.
#![allow(clippy::disallowed_types, reason = "seeded by an argument and never iterated")]

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};

pub(super) struct Map<K, V>(HashMap<K, V, Seed>);

impl<K: Hash + Eq, V> Map<K, V> {
    pub(super) fn new(seed: u64) -> Self {
        Self(HashMap::with_hasher(Seed(seed)))
    }

    pub(super) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.0.insert(key, value);
    }

    pub(super) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.0.remove(key);
    }
}

#[derive(Clone)]
struct Seed(u64);

impl BuildHasher for Seed {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        let factor = fold(self.0 ^ 0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93) | 1;
        Folded { state: self.0 ^ 0x2545_f491_4f6c_dd1d, factor }
    }
}

/// Multiplies each word into the state and folds the product's halves together.
struct Folded {
    state: u64,
    factor: u64,
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

impl Hasher for Folded {
    fn write_u64(&mut self, word: u64) {
        self.state = fold(self.state ^ word, self.factor);
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn finish(&self) -> u64 {
        fold(self.state, self.factor.rotate_left(32))
    }
}
