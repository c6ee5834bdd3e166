//! Names by number, so that no text is cloned or compared on a task's way. A name nobody uses is forgotten.

use std::sync::Arc;

use super::index::Index;

pub(super) struct Names {
    numbers: Index,
    entries: Vec<Entry>,
    free: Vec<u32>,
    nameless: Arc<str>,
}

struct Entry {
    name: Arc<str>,
    uses: usize,
}

impl Names {
    pub(super) fn new(seed: u64) -> Self {
        Self { numbers: Index::new(seed), entries: Vec::new(), free: Vec::new(), nameless: "".into() }
    }

    pub(super) fn find(&self, name: &str) -> Option<u32> {
        let is_name = |number| &**self.name(number) == name;
        self.numbers.find(self.numbers.hash(name.as_bytes()), is_name)
    }

    pub(super) fn name(&self, number: u32) -> &Arc<str> {
        &self.entries[number as usize].name
    }

    /// The name's number, used once more. Numbers are small: a forgotten one is given again.
    pub(super) fn acquire(&mut self, name: &str) -> u32 {
        if let Some(number) = self.find(name) {
            self.entries[number as usize].uses += 1;
            return number;
        }
        let entry = Entry { name: name.into(), uses: 1 };
        let number = match self.free.pop() {
            Some(number) => {
                self.entries[number as usize] = entry;
                number
            }
            None => {
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
        };
        self.numbers.insert(self.numbers.hash(name.as_bytes()), number);
        number
    }

    /// Used once less; forgotten with the last use. Answers whether it was that.
    pub(super) fn release(&mut self, number: u32) -> bool {
        let entry = &mut self.entries[number as usize];
        entry.uses -= 1;
        if entry.uses == 0 {
            let name = std::mem::replace(&mut entry.name, self.nameless.clone());
            self.numbers.remove(self.numbers.hash(name.as_bytes()), number);
            self.free.push(number);
            return true;
        }
        false
    }

    /// The names in use.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Arc<str>)> {
        (0..).zip(&self.entries).filter(|(_, entry)| entry.uses > 0).map(|(number, entry)| (number, &entry.name))
    }
}

#[cfg(test)]
mod tests {
    use super::Names;

    #[test]
    fn a_name_lives_as_long_as_its_uses_and_its_number_is_given_again() {
        let mut names = Names::new(0);
        let numbers = ["a", "b", "a"].map(|name| names.acquire(name));
        assert_eq!(numbers, [0, 1, 0]);
        names.release(0);
        assert_eq!((names.find("a"), &**names.name(0)), (Some(0), "a"));
        names.release(0);
        assert_eq!((names.find("a"), names.find("b"), names.iter().count()), (None, Some(1), 1));
        assert_eq!((names.acquire("c"), &**names.name(0)), (0, "c"));
    }
}
