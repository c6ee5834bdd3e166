//! The page queues of this scheduler, and what it knows of each: which line it holds, how much of it, and who reads it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use taskyard_shared::Priority;
use tokio::sync::watch;
use tokio::time::Instant;

use super::label::{Line, Whose, number};
use crate::planner::{Away, AwayByPriority, Takes};

/// Page queues of one shard, at most. Where there are more lines, some tenants' share one, and beyond that memory is the bound.
pub(super) const SLOTS_MOST: usize = 256;
/// So many queues are declared together, ahead of need: a quorum queue is not safe in its first seconds.
pub(super) const GROWS_BY: u32 = 16;
/// So many tenants' lines have a queue of their own.
const OWN_LINES: usize = 160;
/// Tenants with tasks in queues that they share, of whom it is remembered when the last one came.
const REMEMBERED: usize = 100_000;
/// Pages of one queue that are in memory, at most and at least.
const PREFETCH: (usize, usize) = (2, 32);

pub(super) struct Slot {
    /// Shard and number of the queue.
    pub queue: (u32, u32),
    pub line: Option<Line>,
    /// Tasks that came before this are not to be put at its end.
    newest_us: u64,
    /// The same by tenant, where several share it.
    newest_of: HashMap<u64, u64>,
    /// In the queue and not read, as far as is known.
    pub pages: u64,
    pub away: Away,
    /// Groups of pages on their way there.
    pub writing: usize,
    pub prefetch: usize,
    pub wanted: watch::Sender<bool>,
    /// Since when nothing of it is in memory though there is more.
    pub missing_since: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Slots {
    pub all: Vec<Slot>,
    by_line: BTreeMap<Line, usize>,
    /// Those that were found at the start, of which it is not known how new the last task is. What waits here may be older, and goes
    /// to another queue, as long as there is one: it is all put in order as it comes in.
    found: BTreeMap<Line, usize>,
    /// Those of the own shard that hold nothing.
    free: BTreeSet<usize>,
    pub is_growing: bool,
    /// Tenants that always have a line of their own.
    pub limited: BTreeSet<String>,
    remembered: usize,
}

impl Slots {
    /// A queue that exists. `None` for the pages in it when it is to hold a new line.
    pub fn add(&mut self, queue: (u32, u32), found: Option<(u64, u64)>, prefetch: usize) -> usize {
        let (pages, newest_us) = found.unwrap_or_default();
        let at = self.all.len();
        self.all.push(Slot {
            queue,
            line: None,
            newest_us,
            newest_of: HashMap::new(),
            pages,
            away: Away::default(),
            writing: 0,
            prefetch,
            wanted: watch::Sender::new(true),
            missing_since: None,
        });
        if found.is_none() {
            self.free.insert(at);
        }
        at
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// How many pages of the next queue may be in memory, of so many that may be together.
    pub fn prefetch(&self, budget: usize) -> usize {
        let busy = self.all.len() - self.free.len();
        (budget / (8 + busy)).clamp(PREFETCH.0, PREFETCH.1)
    }

    fn slot_of(&self, model: &str, priority: Priority, tenant: &str) -> Option<usize> {
        let line = |whose| Line { model: model.to_owned(), priority, whose };
        let (own, shared) = (line(Whose::Tenant(tenant.to_owned())), line(Whose::bucket(tenant)));
        let of = |lines: &BTreeMap<Line, usize>| lines.get(&own).or_else(|| lines.get(&shared)).copied();
        of(&self.by_line).or_else(|| of(&self.found).filter(|_| self.free.is_empty()))
    }

    /// Whether a tenant's line is to have a queue of its own.
    fn has_own(&self, tenant: &str) -> bool {
        self.by_line.len() < OWN_LINES || self.limited.contains(tenant)
    }

    /// What may be taken of a line.
    pub fn takes(&self, model: &str, priority: Priority, tenant: &str) -> Takes {
        let fresh = if self.free.is_empty() { Takes::Nothing } else { Takes::Fresh };
        let Some(slot) = self.slot_of(model, priority, tenant).and_then(|at| self.all.get(at)) else { return fresh };
        match &slot.line {
            Some(Line { whose: Whose::Tenant(_), .. }) => Takes::After { newest_us: slot.newest_us, away: slot.away },
            _ => match slot.newest_of.get(&number(tenant)) {
                Some(&newest_us) => Takes::After { newest_us: newest_us.max(slot.newest_us), away: slot.away },
                None if self.remembered >= REMEMBERED => Takes::Nothing,
                // What was found there may be this tenant's, and older.
                None if slot.newest_us > 0 => Takes::After { newest_us: slot.newest_us, away: slot.away },
                None => Takes::Fresh,
            },
        }
    }

    /// The queue for the end of a line, of which the first and the last task came at these times. `None` when there is none left.
    pub fn place(
        &mut self,
        model: &str,
        priority: Priority,
        tenant: &str,
        (oldest_us, newest_us): (u64, u64),
    ) -> Option<usize> {
        let at = match self.slot_of(model, priority, tenant) {
            Some(at) => at,
            None => {
                let whose = match self.has_own(tenant) {
                    true => Whose::Tenant(tenant.to_owned()),
                    false => Whose::bucket(tenant),
                };
                let line = Line { model: model.to_owned(), priority, whose };
                let at = self.free.pop_first()?;
                let slot = self.all.get_mut(at)?;
                slot.line = Some(line.clone());
                self.by_line.insert(line, at);
                at
            }
        };
        // Others may have taken the last free one since it was asked what may go.
        let slot = self.all.get_mut(at).filter(|slot| slot.newest_us <= oldest_us)?;
        match &slot.line {
            Some(Line { whose: Whose::Bucket(_), .. }) => {
                let newest = slot.newest_of.entry(number(tenant)).or_insert_with(|| {
                    self.remembered += 1;
                    0
                });
                *newest = newest_us.max(*newest);
            }
            _ => slot.newest_us = slot.newest_us.max(newest_us),
        }
        Some(at)
    }

    /// What was read says which line it is.
    pub fn found(&mut self, at: usize, line: Line) {
        let Some(slot) = self.all.get_mut(at) else { return };
        if slot.line.is_none() {
            self.free.remove(&at);
            slot.line = Some(line.clone());
            self.found.entry(line).or_insert(at);
        }
    }

    /// The queue holds nothing any more, nor does memory of what it held.
    pub fn release(&mut self, at: usize, own: u32) {
        let Some(slot) = self.all.get_mut(at) else { return };
        if let Some(line) = slot.line.take() {
            for lines in [&mut self.by_line, &mut self.found] {
                if lines.get(&line) == Some(&at) {
                    lines.remove(&line);
                }
            }
        }
        self.remembered = self.remembered.saturating_sub(slot.newest_of.len());
        slot.newest_of = HashMap::new();
        (slot.newest_us, slot.pages, slot.away, slot.missing_since) = (0, 0, Away::default(), None);
        if slot.queue.0 == own {
            self.free.insert(at);
        }
    }

    /// The numbers of the own queues are 0 to this.
    pub fn numbers(&self, own: u32) -> u32 {
        self.all.iter().filter(|slot| slot.queue.0 == own).count() as u32
    }

    /// What is away, by model and priority, and of each of the tenants with limits.
    pub fn sums(&self) -> (BTreeMap<Arc<str>, AwayByPriority>, BTreeMap<Arc<str>, u64>) {
        let (mut models, mut tenants) = (BTreeMap::<Arc<str>, AwayByPriority>::new(), BTreeMap::<Arc<str>, u64>::new());
        for slot in self.all.iter().filter(|slot| slot.away.tasks > 0) {
            let Some(line) = &slot.line else { continue };
            let model = models.entry(Arc::from(line.model.as_str())).or_default();
            model.entry(line.priority).or_default().add(slot.away);
            if let Whose::Tenant(tenant) = &line.whose
                && self.limited.contains(tenant)
            {
                *tenants.entry(Arc::from(tenant.as_str())).or_default() += slot.away.tasks;
            }
        }
        (models, tenants)
    }
}

#[cfg(test)]
mod tests {
    use taskyard_shared::Priority;

    use super::{Line, Slots, Whose};
    use crate::planner::Takes;

    fn slots(free: u32) -> Slots {
        let mut slots = Slots::default();
        for number in 0..free {
            slots.add((0, number), None, 2);
        }
        slots
    }

    fn line(model: &str) -> Line {
        Line { model: model.into(), priority: Priority::default(), whose: Whose::Tenant("a".into()) }
    }

    fn takes(slots: &Slots, model: &str) -> Takes {
        slots.takes(model, Priority::default(), "a")
    }

    fn place(slots: &mut Slots, model: &str, times: (u64, u64)) -> Option<usize> {
        slots.place(model, Priority::default(), "a", times)
    }

    #[test]
    fn what_goes_to_a_queue_is_no_older_than_what_is_there() {
        let mut slots = slots(2);
        assert_eq!(takes(&slots, "m"), Takes::Fresh);
        assert_eq!(place(&mut slots, "m", (10, 20)), Some(0));
        assert!(matches!(takes(&slots, "m"), Takes::After { newest_us: 20, .. }));
        assert_eq!(place(&mut slots, "m", (19, 30)), None);
        assert_eq!(place(&mut slots, "m", (20, 30)), Some(0));
        assert_eq!((place(&mut slots, "other", (1, 2)), place(&mut slots, "third", (1, 2))), (Some(1), None));
        assert_eq!(takes(&slots, "third"), Takes::Nothing);
        slots.release(0, 0);
        assert_eq!((takes(&slots, "m"), place(&mut slots, "third", (1, 2))), (Takes::Fresh, Some(0)));
    }

    #[test]
    fn nothing_is_added_to_a_queue_that_was_found_while_there_are_others() {
        let mut slots = slots(1);
        let found = slots.add((0, 1), Some((5, 1_000)), 2);
        slots.found(found, line("m"));
        assert_eq!(takes(&slots, "m"), Takes::Fresh, "what waits here may be older");
        assert_eq!(place(&mut slots, "m", (10, 20)), Some(0));
        assert!(matches!(takes(&slots, "m"), Takes::After { newest_us: 20, .. }));
        let mut slots = super::tests::slots(0);
        let found = slots.add((0, 1), Some((5, 1_000)), 2);
        slots.found(found, line("m"));
        assert!(matches!(takes(&slots, "m"), Takes::After { newest_us: 1_000, .. }), "there is no other");
        assert_eq!((place(&mut slots, "m", (999, 2_000)), place(&mut slots, "m", (1_000, 2_000))), (None, Some(found)));
        slots.release(found, 0);
        assert_eq!(takes(&slots, "m"), Takes::Fresh);
    }
}
