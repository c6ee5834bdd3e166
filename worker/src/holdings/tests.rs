use super::*;

const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8));

fn holdings(budget_mb: u64, models: &[(&str, u64)]) -> Holdings {
    let mut holdings = Holdings::new(Budget { memory_mb: budget_mb, gpus: 0 }, RETRY);
    for (name, memory_mb) in models {
        holdings.add(&spec(name, *memory_mb, 0), false);
    }
    holdings
}

fn spec(name: &str, memory_mb: u64, gpus: u32) -> ModelSpec {
    let read = serde_json::json!({"name": name, "version": "1", "handler": "simulated", "slots": 1, "timeout_ms": 1,
        "max_attempts": 1, "max_batch": 1, "max_delay_ms": 0, "memory_mb": memory_mb, "gpus": gpus});
    serde_json::from_value(read).unwrap()
}

#[test]
fn graphics_processors_are_counted_beside_memory() {
    let budget = Budget { memory_mb: 100, gpus: 2 };
    let mut holdings = Holdings::new(budget, RETRY);
    for (name, memory_mb, gpus) in [("a", 10, 1), ("b", 10, 2), ("c", 10, 1), ("d", 90, 0), ("e", 10, 3)] {
        holdings.add(&spec(name, memory_mb, gpus), false);
    }
    holdings.want_all();
    assert_eq!(settle(&mut holdings, Instant::now()), [0, 2], "one each, and no memory is left for the large one");
    want(&mut holdings, &["b", "a", "e"]);
    assert_eq!(settle(&mut holdings, Instant::now()), [1]);
    assert_eq!(holdings.state(4), LoadState::Failed);
    assert_eq!(holdings.too_large(4).as_deref(), Some("it takes 3 GPUs, and there are 2"));
    assert_eq!(holdings.too_large(1), None);
}

fn want(holdings: &mut Holdings, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(holdings.want(&names), Vec::<&str>::new());
}

/// Takes steps, each at once, until there are none, and answers what is held then.
fn settle(holdings: &mut Holdings, now: Instant) -> Vec<usize> {
    for _ in 0..100 {
        let steps = holdings.next(now);
        if steps.unload.is_empty() && steps.load.is_none() {
            return (0..holdings.models.len()).filter(|at| holdings.models[*at].phase == Phase::Held).collect();
        }
        for at in steps.unload {
            holdings.set_phase(at, Phase::Absent);
        }
        if let Some(at) = steps.load {
            holdings.loaded(at, 0);
        }
    }
    panic!("it never comes to rest");
}

#[test]
fn without_a_budget_everything_is_loaded_one_after_the_other() {
    let mut holdings = holdings(0, &[("a", 1_000_000), ("b", 0)]);
    assert!(!holdings.are_placed());
    holdings.want_all();
    let now = Instant::now();
    assert_eq!(holdings.next(now).load, Some(0));
    holdings.set_phase(0, Phase::Loading);
    assert_eq!(holdings.next(now), Steps::default());
    holdings.loaded(0, 7);
    assert_eq!(holdings.next(now).load, Some(1));
    holdings.loaded(1, 7);
    assert_eq!(holdings.next(now), Steps::default());
}

#[test]
fn without_a_placement_as_many_as_fit_are_held() {
    let mut holdings = holdings(100, &[("a", 60), ("b", 50), ("c", 40), ("d", 1)]);
    holdings.want_all();
    assert_eq!(settle(&mut holdings, Instant::now()), [0, 2]);
}

#[test]
fn a_load_waits_for_the_unload_that_makes_room() {
    let now = Instant::now();
    let mut holdings = holdings(100, &[("a", 60), ("b", 40), ("c", 60)]);
    holdings.want_all();
    settle(&mut holdings, now);
    want(&mut holdings, &["c", "b"]);
    assert_eq!(holdings.next(now), Steps { unload: vec![0], load: None, again_at: None });
    holdings.set_phase(0, Phase::Leaving);
    assert_eq!((holdings.next(now), holdings.state(0)), (Steps::default(), LoadState::Unloaded));
    holdings.set_phase(0, Phase::Absent);
    assert_eq!(holdings.next(now).load, Some(2));
}

#[test]
fn what_fits_beside_the_one_that_leaves_does_not_wait() {
    let now = Instant::now();
    let mut holdings = holdings(100, &[("a", 60), ("b", 90), ("c", 10)]);
    holdings.want_all();
    assert_eq!(settle(&mut holdings, now), [0, 2]);
    want(&mut holdings, &["b", "c"]);
    holdings.set_phase(2, Phase::Absent);
    holdings.set_phase(0, Phase::Leaving);
    assert_eq!(holdings.next(now).load, Some(2));
}

#[test]
fn the_budget_is_kept_whatever_is_asked_for() {
    let sizes = [60, 50, 40, 30, 20, 10, 0, 100, 101];
    let names: Vec<String> = (0..sizes.len()).map(|at| format!("m{at}")).collect();
    let models: Vec<(&str, u64)> = names.iter().map(String::as_str).zip(sizes).collect();
    let mut holdings = holdings(100, &models);
    let mut random = 7u64;
    for _ in 0..500 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let asked: Vec<&str> =
            (0..sizes.len()).filter(|at| random >> (20 + at) & 1 == 1).map(|at| models[at].0).collect();
        want(&mut holdings, &asked);
        let held = settle(&mut holdings, Instant::now());
        let taken: u64 = held.iter().map(|at| holdings.memory_mb(*at)).sum();
        assert!(taken <= 100, "{taken} MB for {asked:?}");
        assert!(held.iter().all(|at| asked.contains(&models[*at].0)), "{held:?} for {asked:?}");
        // Nothing that would fit is missing.
        for name in &asked {
            let at = models.iter().position(|(model, _)| model == name).unwrap();
            assert!(held.contains(&at) || taken + holdings.memory_mb(at) > 100, "{name} of {asked:?}");
        }
    }
}

#[test]
fn one_that_fails_is_left_alone_for_longer_and_longer_and_holds_up_no_other() {
    let now = Instant::now();
    let mut holdings = holdings(100, &[("a", 50), ("b", 50)]);
    holdings.want_all();
    holdings.set_phase(0, Phase::Loading);
    assert_eq!(holdings.failed(0, now, 1.0), Duration::from_secs(1));
    assert_eq!(holdings.state(0), LoadState::Failed);
    let steps = holdings.next(now);
    assert_eq!((steps.load, steps.again_at), (Some(1), Some(now + Duration::from_secs(1))));
    holdings.loaded(1, 0);
    assert_eq!(holdings.next(now + Duration::from_secs(1)).load, Some(0));
    assert_eq!(holdings.failed(0, now, 1.0), Duration::from_secs(2));
    // Not wanted any more it has not failed, but is not tried sooner for being wanted again.
    want(&mut holdings, &["b"]);
    assert_eq!((holdings.state(0), holdings.next(now)), (LoadState::Unloaded, Steps::default()));
    want(&mut holdings, &["a", "b"]);
    assert_eq!(holdings.next(now).load, None);
    holdings.loaded(0, 0);
    assert_eq!(holdings.failed(0, now, 1.0), Duration::from_secs(1));
}

#[test]
fn a_model_without_a_size_counts_as_it_was_measured() {
    let now = Instant::now();
    let mut holdings = holdings(100, &[("a", 0), ("b", 0), ("c", 90)]);
    assert_eq!(holdings.memory_mb(0), 1);
    want(&mut holdings, &["c", "a", "b"]);
    assert_eq!(holdings.next(now).load, Some(2));
    holdings.loaded(2, 500);
    assert_eq!((holdings.memory_mb(2), holdings.next(now).load), (90, Some(0)));
    // It turns out not to fit: it goes again, and is not tried once more.
    holdings.loaded(0, 20);
    assert_eq!(holdings.next(now).unload, [0]);
    holdings.set_phase(0, Phase::Leaving);
    assert_eq!(holdings.next(now), Steps::default());
    holdings.set_phase(0, Phase::Absent);
    assert_eq!(settle(&mut holdings, now), [1, 2]);
    want(&mut holdings, &["a"]);
    assert_eq!(settle(&mut holdings, now), [0]);
}

#[test]
fn one_that_can_never_fit_has_failed() {
    let mut holdings = Holdings::new(Budget { memory_mb: 100, gpus: 0 }, RETRY);
    holdings.add(&spec("always", 30, 0), true);
    holdings.add(&spec("large", 71, 0), false);
    holdings.add(&spec("fits", 70, 0), false);
    holdings.want_all();
    assert_eq!(settle(&mut holdings, Instant::now()), [0, 2]);
    assert_eq!(holdings.too_large(1).as_deref(), Some("it takes 71 MB, and there is room for 70"));
    assert_eq!(holdings.state(1), LoadState::Failed);
    assert_eq!(holdings.too_large(2), None);
    // The fixed one stays, asked for or not.
    want(&mut holdings, &[]);
    assert_eq!(settle(&mut holdings, Instant::now()), [0]);
}

#[test]
fn names_that_no_model_has_and_repetitions_are_passed_over() {
    let mut holdings = holdings(100, &[("a", 60), ("b", 40)]);
    let names = ["x", "b", "b", "a"].map(str::to_owned);
    assert_eq!(holdings.want(&names), ["x"]);
    assert_eq!(settle(&mut holdings, Instant::now()), [0, 1]);
}
