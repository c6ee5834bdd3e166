//! The estimator against streams of run times whose law is known.

use taskyard_shared::Kind;

use super::{Estimate, Estimator, Prior, Ran};

/// A stream of random numbers, the same in every run.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Log-normal with mean 1 and this coefficient of variation.
    fn log_normal(&mut self, variation: f64) -> f64 {
        let variance = (variation * variation).ln_1p();
        (variance.sqrt() * self.normal() - variance / 2.0).exp()
    }

    fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }
}

/// An estimator of one model, and what it said of each task that ran.
struct Yard {
    estimator: Estimator,
    covered: usize,
    ran: usize,
}

impl Yard {
    fn new() -> Self {
        let mut estimator = Estimator::new(0);
        estimator.set_prior("m", Prior::default());
        Self { estimator, covered: 0, ran: 0 }
    }

    fn says(&mut self, cost: Option<f64>) -> Estimate {
        self.estimator.estimate("m", Kind::Prediction, cost)
    }

    fn runs(&mut self, cost: Option<f64>, seconds: f64) {
        let said = self.says(cost);
        self.ran += 1;
        self.covered += usize::from(seconds <= said.q95_seconds);
        self.estimator.handle_ran("m", Kind::Prediction, cost, said, Ran { seconds, whole: true });
    }
}

/// A law of run times with mean 1: its name, deviation, 95 % quantile, and a draw.
type Law = (&'static str, f64, f64, fn(&mut Random) -> f64);

const LAWS: [Law; 6] = [
    ("fixed", 0.0, 1.0, |_| 1.0),
    ("log-normal 0.1", 0.1, 1.172, |random| random.log_normal(0.1)),
    ("log-normal 0.5", 0.5, 1.945, |random| random.log_normal(0.5)),
    ("exponential", 1.0, 2.996, Random::exponential),
    ("log-normal 1", 1.0, 2.781, |random| random.log_normal(1.0)),
    ("log-normal 3", 3.0, 3.839, |random| random.log_normal(3.0)),
];

fn within(share: f64, value: f64, of: f64) -> bool {
    (value / of).ln().abs() <= share.ln_1p()
}

#[test]
fn mean_deviation_and_quantile_come_out_right() {
    for (name, deviation, q95, law) in LAWS {
        for seed in 0..5 {
            let mut random = Random(seed << 32);
            let mut yard = Yard::new();
            (0..3000).for_each(|_| yard.runs(None, law(&mut random)));
            let said = yard.says(None);
            let share = 0.02 + 0.12 * deviation;
            assert!(within(share, said.mean_seconds, 1.0), "{name}, seed {seed}: {said:?}");
            assert!(within(0.05 + 0.3 * deviation, said.q95_seconds, q95), "{name}, seed {seed}: {said:?}");
            let least = 0.6 * deviation - 0.01;
            assert!((least..1.5 * deviation + 0.02).contains(&said.deviation_seconds), "{name}, seed {seed}: {said:?}");
            let coverage = yard.covered as f64 / yard.ran as f64;
            assert!(deviation == 0.0 || (0.935..0.97).contains(&coverage), "{name}, seed {seed}: {coverage} covered");
        }
    }
}

#[test]
fn ten_times_as_slow_or_as_fast_is_believed_within_tens_of_completions() {
    for (name, deviation, _, law) in LAWS.into_iter().filter(|law| law.1 <= 1.0) {
        for factor in [10.0, 0.1] {
            let right = (0..20).filter(|seed| {
                let mut random = Random(seed << 32);
                let mut yard = Yard::new();
                (0..1000).for_each(|_| yard.runs(None, law(&mut random)));
                (0..50).for_each(|_| yard.runs(None, factor * law(&mut random)));
                within(0.25, yard.says(None).mean_seconds, factor)
            });
            // At a coefficient of variation of 1 it is 13 or 14; the plain mean of 50, had one known of the jump, 18.
            let least = if deviation < 1.0 { 20 } else { 12 };
            let right = right.count();
            assert!(right >= least, "{name} times {factor}: {right} of 20 within a quarter");
        }
    }
}

#[test]
fn a_jump_counts_for_every_size_at_once() {
    let mut random = Random(1);
    let mut yard = Yard::new();
    let curve = |cost: f64| 0.2 + 0.01 * cost;
    for _ in 0..2000 {
        let cost = 100.0 * random.log_normal(2.0);
        yard.runs(Some(cost), curve(cost) * random.log_normal(0.3));
    }
    // Only small ones run after it.
    for _ in 0..60 {
        let cost = 10.0 + 20.0 * random.unit();
        yard.runs(Some(cost), 10.0 * curve(cost) * random.log_normal(0.3));
    }
    for cost in [10.0, 30.0, 100.0, 300.0, 1000.0] {
        let said = yard.says(Some(cost)).mean_seconds;
        assert!(within(0.25, said, 10.0 * curve(cost)), "cost {cost}: {said}");
    }
}

#[test]
fn no_jump_is_seen_where_there_is_none() {
    // Two far clusters as well, of which the rare one is nine tenths of the mean.
    let two: Law = ("two", 3.0, 9.1, |random| if random.unit() < 0.1 { 9.1 } else { 0.1 });
    for (name, deviation, _, law) in LAWS.into_iter().chain([two]) {
        let mut random = Random(7);
        let mut yard = Yard::new();
        (0..1000).for_each(|_| yard.runs(None, law(&mut random)));
        let off = (0..20_000).filter(|_| {
            yard.runs(None, law(&mut random));
            !within(0.1 + 0.3 * deviation, yard.says(None).mean_seconds, 1.0)
        });
        let off = off.count();
        assert!(off < 300, "{name}: {off} of 20,000 times far off");
    }
}

#[test]
fn an_outlier_changes_little() {
    let mut random = Random(3);
    let mut yard = Yard::new();
    (0..500).for_each(|_| yard.runs(None, random.log_normal(0.3)));
    yard.runs(None, 1e6);
    let said = yard.says(None);
    assert!(within(0.3, said.mean_seconds, 1.0) && said.q95_seconds < 3.0, "{said:?}");
    for _ in 0..500 {
        yard.runs(None, random.log_normal(0.3));
    }
    assert!(within(0.2, yard.says(None).mean_seconds, 1.0), "{:?}", yard.says(None));
    // One of 20 takes a hundred times as long, though: that is most of the work, and no outlier.
    for number in 0..3000 {
        yard.runs(None, if number % 20 == 7 { 100.0 } else { 1.0 });
    }
    assert!(within(0.25, yard.says(None).mean_seconds, 5.95), "{:?}", yard.says(None));
}

#[test]
fn times_follow_the_declared_cost_as_they_really_do() {
    type Curve = fn(f64) -> f64;
    let curves: [(&str, Curve); 5] = [
        ("proportional", |cost| 0.01 * cost),
        ("a line", |cost| 0.5 + 0.01 * cost),
        ("none", |_| 1.0),
        ("a root", |cost| 0.1 * cost.sqrt()),
        ("a square", |cost| 1e-4 * cost * cost),
    ];
    for (name, curve) in curves {
        for (variation, share) in [(0.0, 0.1), (0.3, 0.2), (1.0, 0.5)] {
            let mut random = Random(5);
            let mut yard = Yard::new();
            for _ in 0..5000 {
                let cost = 100.0 * random.log_normal(2.0);
                yard.runs(Some(cost), curve(cost) * random.log_normal(variation));
            }
            for cost in [20.0, 50.0, 100.0, 200.0, 500.0] {
                let said = yard.says(Some(cost)).mean_seconds;
                assert!(within(share, said, curve(cost)), "{name}, {variation}, cost {cost}: {said}");
            }
            let coverage = yard.covered as f64 / yard.ran as f64;
            assert!(variation == 0.0 || (0.94..0.97).contains(&coverage), "{name}, {variation}: {coverage} covered");
        }
    }
}

#[test]
fn a_new_size_does_not_change_what_is_known_of_others() {
    let mut random = Random(9);
    let mut yard = Yard::new();
    (0..500).for_each(|_| yard.runs(Some(1.0), random.log_normal(0.2)));
    // A hundred times the cost and hardly more time: far from proportional.
    for _ in 0..30 {
        yard.runs(Some(100.0), 1.5 * random.log_normal(0.2));
        assert!(within(0.2, yard.says(Some(1.0)).mean_seconds, 1.0), "{:?}", yard.says(Some(1.0)));
    }
    assert!(within(0.25, yard.says(Some(100.0)).mean_seconds, 1.5), "{:?}", yard.says(Some(100.0)));
}

#[test]
fn before_anything_ran_the_settings_count_and_the_cost_tells_tasks_apart() {
    let mut estimator = Estimator::new(0);
    let says = |estimator: &mut Estimator, cost| estimator.estimate("m", Kind::Prediction, cost).mean_seconds;
    assert!(within(0.01, says(&mut estimator, None), 0.05), "nothing is known");
    estimator.set_prior("m", Prior { expected_seconds: Some(3.0) });
    assert!(within(0.01, says(&mut estimator, None), 3.0));
    for cost in [10.0, 100.0, 1000.0] {
        estimator.handle_arrival("m", Kind::Prediction, Some(cost));
    }
    let [small, large] = [10.0, 1000.0].map(|cost| says(&mut estimator, Some(cost)));
    assert!(within(0.01, large / small, 100.0), "{small} and {large}");
    assert!(within(0.01, (small * large).sqrt(), 3.0), "{small} and {large} about what is expected");
    // What is said is worth less than what is measured.
    let said = Estimate::exact(3.0);
    let ran = Ran { seconds: 0.3, whole: true };
    (0..5).for_each(|_| estimator.handle_ran("m", Kind::Prediction, None, said, ran));
    assert!(within(0.25, says(&mut estimator, None), 0.3));
    // Of another kind nothing is known but what the model's tasks took.
    let training = estimator.estimate("m", Kind::Training, None).mean_seconds;
    assert!(within(0.01, training, 0.3), "{training}");
}

#[test]
fn what_was_cut_short_only_says_that_it_takes_longer() {
    let mut yard = Yard::new();
    (0..100).for_each(|_| yard.runs(None, 1.0));
    let said = yard.says(None);
    let fails = |yard: &mut Yard, seconds| {
        let ran = Ran { seconds, whole: false };
        yard.estimator.handle_ran("m", Kind::Prediction, None, said, ran);
    };
    (0..100).for_each(|_| fails(&mut yard, 0.001));
    assert_eq!(yard.says(None), said, "a failure at once teaches nothing");
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let ran = Ran { seconds: bad, whole: true };
        yard.estimator.handle_ran("m", Kind::Prediction, None, said, ran);
    }
    assert_eq!(yard.says(None), said, "nor does what is no time");
    (0..30).for_each(|_| fails(&mut yard, 20.0));
    assert!(yard.says(None).mean_seconds > 10.0, "{:?}", yard.says(None));
}

#[test]
fn every_estimate_is_a_time_whatever_is_fed() {
    let mut random = Random(11);
    let mut yard = Yard::new();
    let costs = [f64::MIN_POSITIVE, 1e-300, 1e-9, 1.0, 1e9, 1e300, f64::MAX];
    let times = [0.0, -1.0, 1e-9, 1e-6, 1.0, 1e9, 1e300];
    for round in 0..5000 {
        let pick = |random: &mut Random, among: &[f64]| among[(random.unit() * among.len() as f64) as usize];
        let (cost, seconds) = (pick(&mut random, &costs), pick(&mut random, &times));
        yard.runs(if round % 3 == 0 { None } else { Some(cost) }, seconds);
        for cost in costs.map(Some).into_iter().chain([None]) {
            let Estimate { mean_seconds, deviation_seconds, q95_seconds } = yard.says(cost);
            for seconds in [mean_seconds, q95_seconds] {
                assert!((1e-6..=1e9).contains(&seconds), "round {round}, cost {cost:?}: {seconds}");
            }
            assert!((0.0..=1e9).contains(&deviation_seconds), "round {round}, cost {cost:?}: {deviation_seconds}");
        }
    }
}

#[test]
fn what_was_learnt_is_kept_and_nonsense_is_not() {
    let mut random = Random(13);
    let mut yard = Yard::new();
    for _ in 0..500 {
        let cost = 100.0 * random.log_normal(1.0);
        yard.runs(Some(cost), cost * random.log_normal(0.5));
        yard.runs(None, random.log_normal(0.5));
    }
    let text = serde_json::to_string(&yard.estimator.learnt()).unwrap();
    let restored = |text: &str| {
        let mut estimator = Estimator::new(1);
        let count = serde_json::from_str(text).map_or(0, |learnt| estimator.restore(learnt));
        (count, estimator)
    };
    let (count, mut again) = restored(&text);
    assert_eq!(count, 1);
    for cost in [None, Some(3.0), Some(300.0)] {
        let (one, other) = (again.estimate("m", Kind::Prediction, cost), yard.says(cost));
        // The last digit of a number in a text may differ.
        assert!(within(1e-9, one.mean_seconds, other.mean_seconds), "{one:?} and {other:?}");
        assert!(within(1e-9, one.q95_seconds, other.q95_seconds), "{one:?} and {other:?}");
    }
    assert_eq!(again.restore(yard.estimator.learnt()), 0, "what is known already is not overwritten");
    let broken = [
        text.replace("\"version\":1", "\"version\":2"),
        text.replacen("\"variance\":", "\"variance\":-", 1),
        text.replacen("\"count\":", "\"count\":-", 1),
        text.replacen("\"mean_seconds\":", "\"mean_seconds\":-", 1),
        text.replacen("\"slope\":", "\"slope\":-", 1),
        text.replacen("\"q95\":", "\"q95\":1e9, \"was\":", 1),
        text[..text.len() / 2].to_owned(),
        "null".to_owned(),
    ];
    for broken in broken {
        assert_ne!(broken, text);
        assert_eq!(restored(&broken).0, 0, "{}", &broken[..200.min(broken.len())]);
    }
}

#[test]
fn models_beyond_the_bound_are_forgotten_the_least_used_first() {
    let mut estimator = Estimator::new(0);
    let ran = Ran { seconds: 1.0, whole: true };
    for number in 0..12_000 {
        estimator.handle_ran(&format!("m{number}"), Kind::Prediction, None, Estimate::exact(1.0), ran);
        estimator.handle_ran("busy", Kind::Prediction, None, Estimate::exact(1.0), ran);
        assert!(estimator.names.iter().count() <= super::MODELS_MOST);
    }
    let known = |name: &str| estimator.mean_seconds(name).is_some();
    assert!(known("busy") && known("m11999") && !known("m0"));
    assert!(estimator.models.len() <= super::MODELS_MOST, "their places are used again");
}
