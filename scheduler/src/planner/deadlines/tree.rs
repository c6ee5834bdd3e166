//! The waiting tasks of one model that have a claim to their deadline, by deadline, and what says in the logarithm of
//! their number whether all of them can be met.
//!
//! A B-tree: its nodes are arrays, so that few places of memory are touched. Beside each child stands what is needed to
//! pass over it: its work, and how soon its tightest task has to begin. Times are microseconds, and time itself is not in
//! the tree: as it goes by, all are shifted alike.

use super::super::tasks::Handle;
use super::profile::Profile;

/// Entries of a leaf, and children of an inner node.
const WIDTH: usize = 32;
/// A node with fewer is joined to its neighbour, when both fit into one with room to spare.
const NARROW: usize = WIDTH / 4;
/// Nodes that one search opens at most while not all slots are free, which is when little can be passed over.
const OPENED: usize = 256;
/// Rounding is not lateness.
const ROUNDING_US: f64 = 1.0;

/// The order: by deadline, then by arrival.
pub(super) type Key = (u64, u64);

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Entry {
    pub(super) deadline_us: u64,
    pub(super) sequence: u64,
    pub(super) expected_us: f64,
    /// What it is worth that the deadline is met. Positive.
    pub(super) weight: f32,
    pub(super) task: Handle,
}

impl Entry {
    pub(super) fn key(&self) -> Key {
        (self.deadline_us, self.sequence)
    }

    /// Expected time per weight: the task with the most is the first to give way.
    pub(super) fn dearness(&self) -> f64 {
        self.expected_us / f64::from(self.weight)
    }
}

/// What the sums of a tree were made with.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Factors {
    /// How long tasks run together, over what was expected of them.
    pub(super) work: f64,
    /// How long one task is taken to run when the question is whether it will be late, over what was expected of it.
    pub(super) own: f64,
    /// How many tasks run at once when every slot is free. Positive.
    pub(super) rate: f64,
}

impl Factors {
    fn work_us(&self, entry: &Entry) -> f64 {
        self.work * entry.expected_us
    }

    /// When it has to begin.
    pub(super) fn latest_us(&self, entry: &Entry) -> f64 {
        entry.deadline_us as f64 - self.own * entry.expected_us
    }
}

/// Of some entries that follow one another.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Sum {
    work_us: f64,
    /// The least, over the entries, of when it has to begin less the work before it, done by all slots.
    slack_us: f64,
    /// When the first of them has to begin.
    latest_us: f64,
    longest_us: f64,
    dearest: f64,
}

impl Sum {
    const NONE: Self =
        Self { work_us: 0.0, slack_us: f64::INFINITY, latest_us: f64::INFINITY, longest_us: 0.0, dearest: 0.0 };

    fn add(&mut self, next: &Self, rate: f64) {
        self.slack_us = self.slack_us.min(next.slack_us - self.work_us / rate);
        self.work_us += next.work_us;
        self.latest_us = self.latest_us.min(next.latest_us);
        self.longest_us = self.longest_us.max(next.longest_us);
        self.dearest = self.dearest.max(next.dearest);
    }

    fn of(entry: &Entry, factors: &Factors) -> Self {
        let latest_us = factors.latest_us(entry);
        Self {
            work_us: factors.work_us(entry),
            slack_us: latest_us,
            latest_us,
            longest_us: entry.expected_us,
            dearest: entry.dearness(),
        }
    }
}

enum Node {
    Leaf(Vec<Entry>),
    Inner(Vec<Child>),
}

struct Child {
    /// Of its last entry.
    last: Key,
    sum: Sum,
    node: Node,
}

impl Child {
    fn new(node: Node, factors: &Factors) -> Self {
        let mut child = Self { last: (0, 0), sum: Sum::NONE, node };
        child.refresh(factors);
        child
    }

    fn refresh(&mut self, factors: &Factors) {
        let mut sum = Sum::NONE;
        match &self.node {
            Node::Leaf(entries) => entries.iter().for_each(|entry| sum.add(&Sum::of(entry, factors), factors.rate)),
            Node::Inner(children) => children.iter().for_each(|child| sum.add(&child.sum, factors.rate)),
        }
        self.sum = sum;
        self.last = self.node.last().unwrap_or(self.last);
    }

    fn refresh_all(&mut self, factors: &Factors) {
        if let Node::Inner(children) = &mut self.node {
            children.iter_mut().for_each(|child| child.refresh_all(factors));
        }
        self.refresh(factors);
    }
}

impl Node {
    fn len(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Inner(children) => children.len(),
        }
    }

    fn last(&self) -> Option<Key> {
        match self {
            Self::Leaf(entries) => entries.last().map(Entry::key),
            Self::Inner(children) => children.last().map(|child| child.last),
        }
    }

    /// Answers the right half when it had to be split.
    fn insert(&mut self, entry: Entry, factors: &Factors) -> Option<Self> {
        match self {
            Self::Leaf(entries) => {
                let at = entries.partition_point(|other| other.key() < entry.key());
                // Tasks that come in the order of their deadlines fill their leaves.
                let half = if at == WIDTH { WIDTH } else { WIDTH / 2 };
                if entries.len() < WIDTH {
                    entries.insert(at, entry);
                    return None;
                }
                let mut right = Vec::with_capacity(WIDTH);
                right.extend(entries.drain(half..));
                match at.checked_sub(half) {
                    Some(at) => right.insert(at, entry),
                    None => entries.insert(at, entry),
                }
                Some(Self::Leaf(right))
            }
            Self::Inner(children) => {
                let at = children.partition_point(|child| child.last < entry.key()).min(children.len() - 1);
                let child = &mut children[at];
                let right = child.node.insert(entry, factors);
                child.refresh(factors);
                if let Some(right) = right {
                    children.insert(at + 1, Child::new(right, factors));
                }
                if children.len() <= WIDTH {
                    return None;
                }
                Some(Self::Inner(children.split_off(WIDTH / 2)))
            }
        }
    }

    fn remove(&mut self, key: Key, factors: &Factors) -> Option<Entry> {
        match self {
            Self::Leaf(entries) => {
                let at = entries.binary_search_by_key(&key, Entry::key).ok()?;
                Some(entries.remove(at))
            }
            Self::Inner(children) => {
                let at = children.partition_point(|child| child.last < key);
                let child = children.get_mut(at)?;
                let removed = child.node.remove(key, factors)?;
                let left = child.node.len();
                child.refresh(factors);
                if left == 0 {
                    children.remove(at);
                } else if left < NARROW {
                    join(children, at, factors);
                }
                Some(removed)
            }
        }
    }
}

/// Joins a narrow child to a neighbour that has room for it.
fn join(children: &mut Vec<Child>, at: usize, factors: &Factors) {
    let fits = |one: usize| match (children.get(one), children.get(one + 1)) {
        (Some(left), Some(right)) => left.node.len() + right.node.len() <= WIDTH * 3 / 4,
        _ => false,
    };
    let Some(left) = [at.checked_sub(1), Some(at)].into_iter().flatten().find(|&one| fits(one)) else { return };
    let right = children.remove(left + 1);
    let joined = &mut children[left];
    match (&mut joined.node, right.node) {
        (Node::Leaf(entries), Node::Leaf(more)) => entries.extend(more),
        (Node::Inner(children), Node::Inner(more)) => children.extend(more),
        // All leaves are equally deep.
        _ => return,
    }
    joined.refresh(factors);
}

/// An entry that cannot be met behind those before it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Violation {
    pub(super) entry: Entry,
    /// How much work before it has to go so that it is met; more than there is when nothing helps.
    pub(super) excess_us: f64,
}

pub(super) struct Tree {
    root: Child,
    factors: Factors,
    len: usize,
    /// Changes since the factors were set.
    changes: usize,
}

impl Default for Tree {
    fn default() -> Self {
        let factors = Factors { work: 1.0, own: 1.0, rate: 1.0 };
        Self { root: Child::new(Node::Leaf(Vec::new()), &factors), factors, len: 0, changes: 0 }
    }
}

impl Tree {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Makes all sums anew when the factors are others: at once for another rate, and otherwise when they differ by a
    /// twentieth, and so much was changed since the last time that it does not count.
    pub(super) fn set_factors(&mut self, factors: Factors) {
        let far = |one: f64, other: f64| (one / other).ln().abs() > 0.05;
        let other = far(factors.own, self.factors.own) || far(factors.work, self.factors.work);
        if factors.rate != self.factors.rate || other && self.changes >= self.len / 4 {
            self.factors = factors;
            self.changes = 0;
            self.root.refresh_all(&factors);
        }
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        let factors = self.factors;
        self.len += 1;
        self.changes += 1;
        if let Some(right) = self.root.node.insert(entry, &factors) {
            let left = std::mem::replace(&mut self.root.node, Node::Leaf(Vec::new()));
            self.root.node = Node::Inner(vec![Child::new(left, &factors), Child::new(right, &factors)]);
        }
        self.root.refresh(&factors);
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Entry> {
        let factors = self.factors;
        let removed = self.root.node.remove(key, &factors)?;
        self.len -= 1;
        self.changes += 1;
        while let Node::Inner(children) = &mut self.root.node
            && children.len() < 2
        {
            self.root.node = children.pop().map_or_else(|| Node::Leaf(Vec::new()), |child| child.node);
        }
        self.root.refresh(&factors);
        Some(removed)
    }

    /// When the first of all has to begin; without end when there are none.
    pub(super) fn soonest_us(&self) -> f64 {
        self.root.sum.latest_us
    }

    pub(super) fn first(&self) -> Option<&Entry> {
        let mut node = &self.root.node;
        loop {
            match node {
                Node::Leaf(entries) => return entries.first(),
                Node::Inner(children) => node = &children.first()?.node,
            }
        }
    }

    /// The first that has to begin before its turn comes, by more than `grace_us`, when all are run in the order of
    /// their deadlines on slots that get free as the profile says. Only those before `until` are asked about.
    pub(super) fn first_violation(&self, profile: &Profile, grace_us: f64, until: Option<Key>) -> Option<Violation> {
        let grace_us = grace_us + ROUNDING_US;
        let mut search = Search {
            profile,
            grace_us,
            rate: self.factors.rate,
            until: until.unwrap_or((u64::MAX, u64::MAX)),
            before_us: 0.0,
            opened: 0,
        };
        search.child(&self.root, &self.factors).ok().flatten()
    }

    /// The work of those before this one.
    pub(super) fn work_before_us(&self, key: Key) -> f64 {
        let mut node = &self.root.node;
        let mut work_us = 0.0;
        loop {
            match node {
                Node::Leaf(entries) => {
                    let before = entries.iter().take_while(|entry| entry.key() < key);
                    return work_us + before.map(|entry| self.factors.work_us(entry)).sum::<f64>();
                }
                Node::Inner(children) => {
                    let at = children.partition_point(|child| child.last < key);
                    work_us += children.iter().take(at).map(|child| child.sum.work_us).sum::<f64>();
                    let Some(child) = children.get(at) else { return work_us };
                    node = &child.node;
                }
            }
        }
    }

    /// Of those before `until`, the one that is dearest, dearer than `least`, and takes away so much work at least.
    pub(super) fn dearest(&self, work_us: f64, least: f64, until: Key) -> Option<Entry> {
        let mut best = None;
        let mut least = least;
        dearest(&self.root, work_us / self.factors.work, &mut least, until, &mut best);
        best
    }

    /// In their order.
    #[cfg(test)]
    pub(super) fn entries(&self) -> Vec<Entry> {
        fn collect(node: &Node, into: &mut Vec<Entry>, depth: usize, depths: &mut Vec<usize>) {
            match node {
                Node::Leaf(entries) => {
                    into.extend(entries);
                    depths.push(depth);
                }
                Node::Inner(children) => {
                    children.iter().for_each(|child| collect(&child.node, into, depth + 1, depths));
                }
            }
        }
        let (mut all, mut depths) = (Vec::new(), Vec::new());
        collect(&self.root.node, &mut all, 0, &mut depths);
        assert!(depths.iter().all(|depth| *depth == depths[0]), "all leaves are equally deep");
        all
    }
}

struct Search<'a> {
    profile: &'a Profile,
    grace_us: f64,
    rate: f64,
    until: Key,
    before_us: f64,
    opened: usize,
}

/// Everything after is no longer asked about.
struct Done;

impl Search<'_> {
    fn child(&mut self, child: &Child, factors: &Factors) -> Result<Option<Violation>, Done> {
        let Sum { work_us, slack_us, latest_us, .. } = child.sum;
        // Were all slots to get free together, the turns would come no sooner.
        let by_all = slack_us - self.before_us / self.rate >= self.profile.level_of_all_us(0.0) - self.grace_us;
        if by_all || latest_us >= self.profile.level_us(self.before_us + work_us) - self.grace_us {
            self.before_us += work_us;
            return if child.last >= self.until { Err(Done) } else { Ok(None) };
        }
        if self.before_us < self.profile.uneven_us() {
            self.opened += 1;
            if self.opened > OPENED {
                return Err(Done);
            }
        }
        match &child.node {
            Node::Leaf(entries) => {
                for entry in entries {
                    if entry.key() >= self.until {
                        return Err(Done);
                    }
                    let latest_us = factors.latest_us(entry);
                    if latest_us < self.profile.level_us(self.before_us) - self.grace_us {
                        let excess_us = self.before_us - self.profile.done_us(latest_us);
                        return Ok(Some(Violation { entry: *entry, excess_us }));
                    }
                    self.before_us += factors.work_us(entry);
                }
            }
            Node::Inner(children) => {
                for child in children {
                    if let Some(found) = self.child(child, factors)? {
                        return Ok(Some(found));
                    }
                }
            }
        }
        Ok(None)
    }
}

/// Answers whether there may be more before `until`.
fn dearest(child: &Child, least_us: f64, least: &mut f64, until: Key, best: &mut Option<Entry>) -> bool {
    if child.sum.longest_us >= least_us && child.sum.dearest > *least {
        match &child.node {
            Node::Leaf(entries) => {
                for entry in entries.iter().take_while(|entry| entry.key() < until) {
                    if entry.expected_us >= least_us && entry.dearness() > *least {
                        (*least, *best) = (entry.dearness(), Some(*entry));
                    }
                }
            }
            Node::Inner(children) => {
                for child in children {
                    if !dearest(child, least_us, least, until, best) {
                        break;
                    }
                }
            }
        }
    }
    child.last < until
}
