//! The tree and the profile against a plain list.

use proptest::prelude::*;

use super::profile::Profile;
use super::tree::{Entry, Factors, Key, Tree, Violation};

/// When each of the entries is begun, one after the other, each on the slot that has the least to do.
fn fluid_level_us(free_us: &[f64], work_us: f64, share: f64) -> f64 {
    // By bisection on how much is done by then.
    let done = |at_us: f64| share * free_us.iter().map(|free_us| (at_us - free_us).max(0.0)).sum::<f64>();
    let first = free_us.iter().copied().fold(f64::INFINITY, f64::min);
    let (mut low, mut high) = (first, first + 1e12);
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        if done(middle) < work_us { low = middle } else { high = middle }
    }
    if work_us == 0.0 { first } else { high }
}

fn profile(free_us: &[f64], share: f64) -> Profile {
    let mut profile = Profile::default();
    profile.set(0.0, free_us.iter().copied(), share);
    profile
}

fn near(one: f64, other: f64) -> bool {
    (one - other).abs() <= 1e-3 + 1e-9 * one.abs()
}

#[derive(Clone, Debug)]
enum Step {
    Insert { deadline_us: u64, expected_us: u64, weight: u8 },
    Remove { which: u16 },
    RemoveFirst,
    Factors { own: f64, work: f64, slots: u8 },
    Ask { free_us: Vec<u64>, until: Option<u16> },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..2000u64, 1..100u64, 1..11u8)
            .prop_map(|(deadline_us, expected_us, weight)| Step::Insert { deadline_us: deadline_us * 1000, expected_us: expected_us * 1000, weight }),
        4 => any::<u16>().prop_map(|which| Step::Remove { which }),
        3 => Just(Step::RemoveFirst),
        1 => (0.5..3.0, 0.5..2.0, 1..6u8).prop_map(|(own, work, slots)| Step::Factors { own, work, slots }),
        3 => (prop::collection::vec(0..500u64, 1..6), prop::option::of(any::<u16>()))
            .prop_map(|(free_ms, until)| Step::Ask { free_us: free_ms.into_iter().map(|ms| ms * 1000).collect(), until }),
    ]
}

/// The rules in the plainest form.
fn first_violation(entries: &[Entry], factors: &Factors, free_us: &[f64], until: Key) -> Option<(Key, f64)> {
    let mut before_us = 0.0;
    for entry in entries.iter().take_while(|entry| entry.key() < until) {
        let latest_us = entry.deadline_us as f64 - factors.own * entry.expected_us;
        if latest_us < fluid_level_us(free_us, before_us, 1.0) - 1.0 - 1e-3 {
            let done_us = free_us.iter().map(|free_us| (latest_us - free_us).max(0.0)).sum::<f64>();
            return Some((entry.key(), before_us - done_us));
        }
        before_us += factors.work * entry.expected_us;
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_level_is_when_so_much_is_done(
        free_ms in prop::collection::vec(0..1000u64, 1..20), work_ms in 0..20_000u64, given in prop::option::of(1..500u64),
        share in 0.5..1.0,
    ) {
        let mut free_us: Vec<f64> = free_ms.iter().map(|ms| *ms as f64 * 1e3).collect();
        let mut profile = profile(&free_us, share);
        if let Some(given) = given {
            profile.give(given as f64 * 1e3);
            free_us.sort_by(f64::total_cmp);
            free_us[0] += given as f64 * 1e3;
        }
        let work_us = work_ms as f64 * 1e3;
        let level_us = profile.level_us(work_us);
        prop_assert!(near(level_us, fluid_level_us(&free_us, work_us, share)), "{level_us}");
        prop_assert!(profile.level_of_all_us(work_us) >= level_us - 1e-3);
        if work_us >= profile.uneven_us() {
            prop_assert!(near(profile.level_of_all_us(work_us), level_us));
        }
        prop_assert!(near(profile.done_us(level_us), work_us));
    }

    #[test]
    fn the_tree_answers_as_a_list_does(steps in prop::collection::vec(step(), 1..800)) {
        let mut tree = Tree::default();
        let mut list: Vec<Entry> = Vec::new();
        let mut factors = Factors { work: 1.0, own: 1.0, rate: 1.0 };
        for (sequence, step) in (0u64..).zip(steps) {
            match step {
                Step::Insert { deadline_us, expected_us, weight } => {
                    let entry = Entry {
                        deadline_us, sequence, expected_us: expected_us as f64, weight: weight.into(), task: sequence as u32,
                    };
                    tree.insert(entry);
                    list.push(entry);
                    list.sort_by_key(Entry::key);
                }
                Step::Remove { which } if !list.is_empty() => {
                    let entry = list.remove(usize::from(which) % list.len());
                    prop_assert_eq!(tree.remove(entry.key()), Some(entry));
                    prop_assert_eq!(tree.remove(entry.key()), None);
                }
                Step::RemoveFirst if !list.is_empty() => {
                    let entry = list.remove(0);
                    prop_assert_eq!(tree.first(), Some(&entry));
                    prop_assert_eq!(tree.remove(entry.key()), Some(entry));
                }
                Step::Factors { own, work, slots } => {
                    factors = Factors { own, work, rate: slots.into() };
                    // Another rate, so that they are taken over at once.
                    tree.set_factors(Factors { rate: 0.5, ..factors });
                    tree.set_factors(factors);
                }
                Step::Ask { free_us, until } => {
                    let slots = factors.rate as usize;
                    let free_us: Vec<f64> = (0..slots).map(|slot| free_us[slot % free_us.len()] as f64).collect();
                    let until = until.filter(|_| !list.is_empty()).map(|which| list[usize::from(which) % list.len()].key());
                    let profile = profile(&free_us, 1.0);
                    let found = tree.first_violation(&profile, 0.0, until);
                    let expected = first_violation(&list, &factors, &free_us, until.unwrap_or((u64::MAX, 0)));
                    prop_assert_eq!(found.map(|found| found.entry.key()), expected.map(|(key, _)| key));
                    let (Some(Violation { entry, excess_us }), Some((_, excess))) = (found, expected) else { continue };
                    prop_assert!(excess_us > excess - 1e-3 && (excess_us < excess + 1e-3 || excess_us > excess), "{excess_us} for {excess}");
                    // Whoever gives way, it was enough.
                    let enough = |other: &&Entry| other.key() < entry.key() && other.expected_us * factors.work >= excess_us && other.dearness() > entry.dearness();
                    let best = list.iter().filter(enough).map(Entry::dearness).max_by(f64::total_cmp);
                    let dearest = tree.dearest(excess_us, entry.dearness(), entry.key());
                    prop_assert_eq!(dearest.map(|entry| entry.dearness()), best);
                    let before: f64 = list.iter().filter(|other| other.key() < entry.key()).map(|other| other.expected_us * factors.work).sum();
                    prop_assert!(near(tree.work_before_us(entry.key()), before));
                }
                Step::Remove { .. } | Step::RemoveFirst => {}
            }
            prop_assert_eq!(tree.is_empty(), list.is_empty());
        }
        prop_assert_eq!(tree.entries(), list);
    }
}

/// With equal weights it is the longest that gives way, as in Moore and Hodgson's rule.
#[test]
fn the_longest_gives_way() {
    let mut tree = Tree::default();
    for (sequence, (deadline_us, expected_us)) in
        [(60_000, 50_000.0), (70_000, 10_000.0), (80_000, 30_000.0)].into_iter().enumerate()
    {
        tree.insert(Entry { deadline_us, sequence: sequence as u64, expected_us, weight: 5.0, task: sequence as u32 });
    }
    let Violation { entry, excess_us } = tree.first_violation(&profile(&[0.0], 1.0), 0.0, None).unwrap();
    assert_eq!((entry.task, excess_us), (2, 10_000.0));
    assert_eq!(tree.dearest(excess_us, entry.dearness(), entry.key()).unwrap().task, 0);
}
