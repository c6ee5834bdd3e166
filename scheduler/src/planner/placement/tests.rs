use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000;

fn model(memory_mb: u64, load_seconds: f64) -> ModelNow {
    ModelNow {
        needs: Resources { slots: 4, memory_mb, gpu: 0 },
        load_seconds,
        mean_seconds: 0.1,
        waiting_seconds: 0.0,
        value: 1.0,
        offered: 0.0,
        oldest_us: None,
        unheld_us: None,
        latest_start_us: None,
        pin: None,
    }
}

fn waits(seconds: f64, since_us: u64) -> ModelNow {
    ModelNow { waiting_seconds: seconds, oldest_us: Some(since_us), ..model(1, 1.0) }
}

fn host(memory_mb: u64, models: &[(u32, u64)]) -> HostNow {
    let held = |&(model, loaded_us): &(u32, u64)| Held { model, loaded_us: Some(loaded_us), running: 0 };
    HostNow { has: Resources { slots: 4, memory_mb, gpu: 0 }, holds: models.iter().map(held).collect(), can_hold: None }
}

fn at(seconds: u64, hosts: &[HostNow], models: &[ModelNow]) -> Vec<Swap> {
    place(seconds * SECOND, &Rules::default(), hosts, models)
}

#[test]
fn what_has_work_is_loaded_and_what_has_none_is_left_alone() {
    let swaps = at(100, &[host(2, &[])], &[waits(5.0, 99 * SECOND), model(1, 1.0)]);
    assert_eq!(swaps, [Swap { host: 0, unload: vec![], load: Some(0), reason: SwapReason::Demand }]);
}

#[test]
fn a_swap_is_made_when_it_gains_more_than_loading_costs() {
    // The one that is there keeps nearly all slots busy.
    let busy = ModelNow { offered: 3.9, ..model(1, 1.0) };
    for (waiting, swaps) in [(0.2, 0), (200.0, 1)] {
        // Worth no more than what is there: it waits for its turn.
        let models = [busy.clone(), waits(waiting, 99 * SECOND)];
        assert_eq!(at(100, &[host(1, &[(0, 0)])], &models).len(), 0, "{waiting}");
        // Worth more.
        let models = [busy.clone(), ModelNow { value: 10.0, ..waits(waiting, 99 * SECOND) }];
        assert_eq!(at(100, &[host(1, &[(0, 0)])], &models).len(), swaps, "{waiting}");
    }
    // On a host with nothing to do it costs nothing.
    let models = [model(1, 1.0), waits(0.1, 99 * SECOND)];
    assert_eq!(at(100, &[host(1, &[(0, 0)])], &models).len(), 1);
}

#[test]
fn a_model_stays_for_its_time_unless_a_deadline_would_be_missed() {
    let idle = model(1, 1.0);
    let wanted = waits(50.0, 95 * SECOND);
    assert_eq!(at(100, &[host(1, &[(0, 99 * SECOND)])], &[idle.clone(), wanted.clone()]), []);
    assert_eq!(at(100, &[host(1, &[(0, 90 * SECOND)])], &[idle.clone(), wanted.clone()]).len(), 1);
    for (latest_s, reasons) in [(100, vec![]), (101, vec![SwapReason::Deadline]), (110, vec![])] {
        let pressed = ModelNow { latest_start_us: Some(latest_s * SECOND), ..wanted.clone() };
        let swaps = at(100, &[host(1, &[(0, 99 * SECOND)])], &[idle.clone(), pressed]);
        assert_eq!(swaps.iter().map(|swap| swap.reason).collect::<Vec<_>>(), reasons, "{latest_s}");
    }
}

#[test]
fn nobody_starves_beside_a_model_that_never_idles() {
    let busy = ModelNow { offered: 4.0, waiting_seconds: 100.0, oldest_us: Some(0), ..model(1, 1.0) };
    assert_eq!(at(100, &[host(1, &[(0, 0)])], &[busy.clone(), waits(0.1, 95 * SECOND)]), []);
    let swaps = at(100, &[host(1, &[(0, 0)])], &[busy.clone(), waits(0.1, 90 * SECOND)]);
    assert_eq!(swaps, [Swap { host: 0, unload: vec![0], load: Some(1), reason: SwapReason::Starving }]);
    // One that had its turn just now is not before one that has not, however old its tasks are.
    let had = ModelNow { unheld_us: Some(89 * SECOND), ..waits(1000.0, 0) };
    let swaps = at(100, &[host(1, &[(0, 0)])], &[busy.clone(), had.clone(), waits(0.1, 88 * SECOND)]);
    assert_eq!(swaps, [Swap { host: 0, unload: vec![0], load: Some(2), reason: SwapReason::Starving }]);
    let had = ModelNow { unheld_us: Some(95 * SECOND), value: 0.001, ..had };
    assert_eq!(at(100, &[host(1, &[(0, 0)])], &[busy, had]), []);
}

#[test]
fn a_hot_model_spreads_over_hosts_as_its_demand_grows() {
    let hosts = [host(2, &[(0, 0), (1, 0)]), host(2, &[(1, 0), (2, 0)]), host(2, &[(2, 0), (3, 0)])];
    let others = [model(1, 1.0), model(1, 1.0), model(1, 1.0)];
    for (offered, loads) in [(2.0, 0), (6.0, 1), (11.0, 2)] {
        let mut models = vec![ModelNow { offered, ..model(1, 1.0) }];
        models.extend(others.iter().cloned());
        let swaps = at(100, &hosts, &models);
        assert_eq!(swaps.len(), loads, "{offered}: {swaps:?}");
        assert!(swaps.iter().all(|swap| swap.load == Some(0)));
    }
}

#[test]
fn pins_go_before_everything() {
    let pinned = |pin| ModelNow { pin: Some(pin), ..model(1, 1.0) };
    // It stays, whatever waits.
    let models = [pinned(Pin::Stay(1)), waits(1000.0, 0)];
    assert_eq!(at(100, &[host(1, &[(0, 0)])], &models), []);
    // It is loaded though there is no work, and before its place is due.
    let models = [waits(10.0, 0), pinned(Pin::Stay(1))];
    let swaps = at(100, &[host(1, &[(0, 99 * SECOND)])], &models);
    assert_eq!(swaps, [Swap { host: 0, unload: vec![0], load: Some(1), reason: SwapReason::Pinned }]);
    // It goes, and does not come back for its work.
    let models = [ModelNow { pin: Some(Pin::Go), ..waits(10.0, 0) }];
    let swaps = at(100, &[host(1, &[(0, 99 * SECOND)])], &models);
    assert_eq!(swaps, [Swap { host: 0, unload: vec![0], load: None, reason: SwapReason::Pinned }]);
    assert_eq!(at(100, &[host(1, &[])], &models), []);
}

#[test]
fn a_host_that_holds_too_much_lets_go_of_what_is_needed_least() {
    let models = [waits(10.0, 0), model(1, 1.0), ModelNow { pin: Some(Pin::Stay(1)), ..model(1, 1.0) }];
    let swaps = at(100, &[host(2, &[(0, 0), (1, 0), (2, 0)])], &models);
    assert_eq!(swaps, [Swap { host: 0, unload: vec![1], load: None, reason: SwapReason::TooMuch }]);
}

#[test]
fn a_host_loads_only_what_it_can() {
    let unable = HostNow { can_hold: Some(vec![1]), ..host(4, &[]) };
    assert_eq!(at(100, &[unable], &[waits(10.0, 0), model(1, 1.0)]), []);
    assert_eq!(
        at(100, &[host(4, &[])], &[ModelNow { needs: Resources { gpu: 1, ..model(1, 1.0).needs }, ..waits(10.0, 0) }]),
        []
    );
}

/// What a run of calls, a second apart, on hosts that load and serve, came to.
struct Ran {
    loads: Vec<(u64, u32)>,
    /// For each model, the longest time in which it had work and no host held it, in seconds.
    unserved: Vec<u64>,
}

fn run(memory: &[u64], sizes: &[(u64, u64)], work: &[Vec<f64>]) -> Result<Ran, TestCaseError> {
    let rules = Rules::default();
    let mut hosts: Vec<HostNow> = memory.iter().map(|&memory_mb| host(memory_mb, &[])).collect();
    let mut waiting = vec![0.0; sizes.len()];
    let mut since: Vec<Option<u64>> = vec![None; sizes.len()];
    let mut held_us = vec![0; sizes.len()];
    let mut ran = Ran { loads: Vec::new(), unserved: vec![0; sizes.len()] };
    for (second, work) in work.iter().enumerate() {
        let now_us = (second as u64 + 1) * SECOND;
        for (number, work) in work.iter().enumerate() {
            waiting[number] += work;
            if waiting[number] > 0.0 {
                since[number].get_or_insert(now_us);
            }
        }
        let models: Vec<ModelNow> = (0..sizes.len())
            .map(|number| ModelNow {
                waiting_seconds: waiting[number],
                oldest_us: since[number],
                ..model(sizes[number].0, sizes[number].1 as f64)
            })
            .collect();
        let swaps = place(now_us, &rules, &hosts, &models);
        prop_assert_eq!(&swaps, &place(now_us, &rules, &hosts, &models));
        for swap in swaps {
            let holds = &mut hosts[swap.host as usize].holds;
            for gone in swap.unload {
                let at = holds.iter().position(|held| held.model == gone);
                let held = holds.remove(at.expect("it was held"));
                let stayed_us = held.loaded_us.map(|loaded_us| now_us - loaded_us);
                prop_assert!(stayed_us.is_some_and(|us| us >= 8 * sizes[gone as usize].1 * SECOND), "{:?}", stayed_us);
            }
            if let Some(load) = swap.load {
                prop_assert!(holds.iter().all(|held| held.model != load));
                holds.push(Held { model: load, loaded_us: None, running: second as u32 });
                ran.loads.push((now_us, swap.host));
            }
        }
        for (host, memory) in hosts.iter_mut().zip(memory) {
            let sum: u64 = host.holds.iter().map(|held| sizes[held.model as usize].0).sum();
            prop_assert!(sum <= *memory, "{} of {}", sum, memory);
            let mut slots = 4.0;
            for held in &mut host.holds {
                let began_s = u64::from(held.running);
                if held.loaded_us.is_none() && second as u64 >= began_s + sizes[held.model as usize].1 {
                    (held.loaded_us, held.running) = (Some(now_us), 0);
                }
                if held.loaded_us.is_some() {
                    let served = waiting[held.model as usize].min(slots);
                    slots -= served;
                    waiting[held.model as usize] -= served;
                    if waiting[held.model as usize] <= 0.0 {
                        since[held.model as usize] = None;
                    }
                }
            }
        }
        for number in 0..sizes.len() {
            let is_held = hosts.iter().flat_map(|host| &host.holds).any(|held| held.model == number as u32);
            if is_held {
                held_us[number] = now_us;
            } else if let Some(since_us) = since[number] {
                ran.unserved[number] = ran.unserved[number].max((now_us - since_us.max(held_us[number])) / SECOND);
            }
        }
    }
    Ok(ran)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn memory_suffices_stays_are_kept_and_all_work_finds_a_host(
        memory in prop::collection::vec(4u64..10, 1..4),
        sizes in prop::collection::vec((1u64..5, 1u64..4), 1..8),
        work in prop::collection::vec(prop::collection::vec(prop_oneof![9 => Just(0.0), 1 => 0.01..0.8], 8), 300),
    ) {
        let work: Vec<Vec<f64>> = work.into_iter().map(|work| work[..sizes.len()].to_vec()).collect();
        let ran = run(&memory, &sizes, &work)?;
        // Each load is of a second at least, and what is loaded stays for eight times that.
        let places: u64 = memory.iter().sum();
        prop_assert!(ran.loads.len() as u64 <= places * (1 + 300 / 9), "{} loads", ran.loads.len());
        // Its own bound, and three rounds of all others, each with its load and its stay. That holds of work that can be done: a
        // model of which ever more waits keeps the oldest task of all, and comes first again each time that it has to go.
        let turn: u64 = sizes.iter().map(|(_, load_s)| 9 * load_s + 1).sum();
        for (unserved, (_, load_s)) in ran.unserved.iter().zip(&sizes) {
            prop_assert!(*unserved <= 10 * load_s + 3 * turn, "{unserved} s of {} + 3 × {turn}", 10 * load_s);
        }
    }
}
