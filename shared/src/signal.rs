//! What an active scheduler says of its shard, about once a second: how much waits, whether that is too much, and how many
//! workers would do. Gateways push back by it and autoscalers scale by it. It is kept in the store as JSON, one value a shard.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::task::{Kind, Priority};
use crate::time::Timestamp;

/// Of the shape. Whoever reads another one leaves it alone.
pub const VERSION: u32 = 1;

/// Who comes while too much waits is let in only when it is worth so many times what would give way.
pub const DEARER: f64 = 1.1;

/// Costs at which a model's times are told: these powers of 4.
const POWERS: std::ops::RangeInclusive<i32> = -5..=12;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Signal {
    pub v: u32,
    pub shard: u32,
    /// How many shards there are.
    pub shards: u32,
    pub at: Timestamp,
    /// All models that are known.
    pub models: BTreeMap<String, ModelSignal>,
    /// All tenants that have a quota.
    pub tenants: BTreeMap<String, TenantSignal>,
}

/// One model, as far as the shard has it.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct ModelSignal {
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Tasks that wait.
    pub waiting: u64,
    /// How long the slots take for what may start now, in seconds. None without workers.
    pub drain_seconds: Option<f64>,
    /// The shard's part of the workers that are wanted; with one shard a whole number.
    pub workers_wanted: f64,
    /// While so much waits that tasks of little worth are refused.
    pub overload: Option<Overload>,
}

/// What is refused, and for how long.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Overload {
    /// Weight per expected second of the task that would give way.
    pub least_worth: f64,
    /// When it is expected to be over; seconds.
    pub retry_after_s: u32,
    /// Whose tasks are refused. None: everybody's.
    #[serde(default)]
    pub tenants: Option<Vec<String>>,
    pub times: BTreeMap<Kind, Times>,
}

/// What tasks of one kind are expected to take. Seconds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Times {
    /// Without a declared cost.
    pub plain: f64,
    /// With the costs that [`Times::costs`] gives, in their order.
    pub by_cost: Vec<f64>,
}

/// A tenant that has a quota. What is not limited is absent.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct TenantSignal {
    /// Its tasks that wait on this shard.
    pub waiting: u64,
    /// Most that may wait on all shards together.
    pub max_waiting: Option<u64>,
    pub rate: Option<Rate>,
}

/// Tasks that may come.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Rate {
    pub per_second: f64,
    /// As many may come at once after a while in which none came.
    pub burst: f64,
}

impl Signal {
    /// The store's key for the signal of a shard.
    pub fn key(shard: u32) -> String {
        format!("signal.{shard}")
    }
}

impl Times {
    /// As `seconds` says, which is given a declared cost or none.
    pub fn of(seconds: impl Fn(Option<f64>) -> f64) -> Self {
        Self { plain: seconds(None), by_cost: Self::costs().map(|cost| seconds(Some(cost))).collect() }
    }

    /// The costs at which times are told.
    pub fn costs() -> impl Iterator<Item = f64> {
        POWERS.map(|power| 4f64.powi(power))
    }

    /// What a task of this declared cost is expected to take: between two told ones as a power of the cost, and beyond them as
    /// at the end.
    pub fn seconds(&self, cost: Option<f64>) -> f64 {
        let Some(cost) = cost.filter(|cost| cost.is_finite() && *cost > 0.0) else { return self.plain };
        let place = (cost.log2() / 2.0 - f64::from(*POWERS.start())).max(0.0);
        let at = |index: usize| self.by_cost.get(index).or(self.by_cost.last()).copied().unwrap_or(self.plain);
        let (low, high) = (at(place as usize), at(place as usize + 1));
        if low > 0.0 && high > 0.0 { low * (high / low).powf(place.fract()) } else { low }
    }
}

impl Overload {
    /// Whether a new task would be worth too little.
    pub fn refuses(&self, tenant: &str, kind: Kind, priority: Priority, cost: Option<f64>) -> bool {
        if self.tenants.as_ref().is_some_and(|tenants| !tenants.iter().any(|crowding| crowding == tenant)) {
            return false;
        }
        let Some(seconds) = self.times.get(&kind).map(|times| times.seconds(cost)).filter(|seconds| *seconds > 0.0)
        else {
            return false;
        };
        (f64::from(priority.get()) + 1.0) / seconds <= self.least_worth * DEARER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_between_two_told_ones_follow_the_power_of_the_cost() {
        let times = Times::of(|cost| cost.map_or(7.0, |cost| 0.01 * cost.powf(0.8)));
        assert_eq!(times.seconds(None), 7.0);
        for cost in [0.001, 0.3, 1.0, 5.0, 100.0, 16e6] {
            let (told, true_seconds) = (times.seconds(Some(cost)), 0.01 * cost.powf(0.8));
            assert!((told / true_seconds - 1.0).abs() < 1e-9, "{cost}: {told} and not {true_seconds}");
        }
        assert_eq!(times.seconds(Some(1e12)), times.seconds(Some(4f64.powi(12))));
        assert_eq!(times.seconds(Some(1e-12)), times.seconds(Some(4f64.powi(-5))));
        for strange in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
            assert_eq!(times.seconds(Some(strange)), 7.0);
        }
        assert_eq!(Times { plain: 1.0, by_cost: Vec::new() }.seconds(Some(3.0)), 1.0, "as somebody else may write it");
    }

    #[test]
    fn what_is_worth_clearly_more_comes_in() {
        let times = BTreeMap::from([(Kind::Prediction, Times::of(|cost| cost.unwrap_or(1.0)))]);
        let mut overload = Overload { least_worth: 5.0, retry_after_s: 3, tenants: None, times };
        let refuses =
            |priority: u8, cost| overload.refuses("shop", Kind::Prediction, priority.try_into().unwrap(), cost);
        assert!(refuses(0, None) && refuses(4, None));
        assert!(!refuses(5, None), "6 per second against 5");
        assert!(!refuses(0, Some(0.1)) && refuses(9, Some(4.0)));
        assert!(!overload.refuses("shop", Kind::Training, 0.try_into().unwrap(), None), "nothing is known of these");
        overload.tenants = Some(vec!["bank".into()]);
        let refuses = |tenant| overload.refuses(tenant, Kind::Prediction, 0.try_into().unwrap(), None);
        assert!(refuses("bank") && !refuses("shop"));
    }
}
