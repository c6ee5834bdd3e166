//! How much one tenant may have before another, and what each band of priorities has for certain.

use taskyard_shared::Priority;

/// The bands of priorities that have a floor: 0 to 2, 3 to 6 and 7 to 9.
pub const BANDS: usize = 3;

/// The first priority of each band but the lowest.
pub(super) const BAND_STARTS: [u8; BANDS - 1] = [3, 7];

/// The rules beside the policy. The default is none: what the policy says goes.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Fairness {
    /// A tenant may be served more than the least served one that waits, by so many times what its model's slots do in a
    /// mean run: among the tenants within it the policy chooses. 0 is start-time fair queueing. None: tenants do not matter.
    pub allowance: Option<f64>,
    /// The least share of a model's time that each band has while it waits, lowest band first. 0 is none.
    pub floors: [f64; BANDS],
}

impl Fairness {
    pub const ALLOWANCE: f64 = 3.0;
    pub const FLOORS: [f64; BANDS] = [0.02, 0.05, 0.1];

    /// What goes with a policy: `cmu` has what is given here, `fair` is start-time fair queueing and nothing else, and the
    /// others are pure orders.
    pub fn of_policy(policy: &str, allowance: f64, floors: [f64; BANDS]) -> Self {
        match policy {
            "cmu" => Self { allowance: Some(allowance), floors },
            "fair" => Self { allowance: Some(0.0), ..Self::default() },
            _ => Self::default(),
        }
    }

    /// How far a tenant may be ahead, in weighted microseconds, with runs of so many microseconds on so many slots.
    pub(super) fn allowance_us(&self, mean_us: f64, slots: usize) -> u64 {
        match self.allowance {
            // Too much, and not a number, saturate.
            Some(allowance) => (allowance * mean_us * slots.max(1) as f64) as u64,
            None => u64::MAX,
        }
    }

    /// How much a tenant that comes back may go before the others at most, if it had so much less than they: `CREDIT` allowances.
    pub(super) fn credit_us(&self, mean_us: f64, slots: usize) -> u64 {
        match self.allowance {
            Some(allowance) => (CREDIT * allowance * mean_us * slots.max(1) as f64) as u64,
            None => 0,
        }
    }

    /// What so many seconds count for a tenant of this weight: weighted microseconds, at least one.
    pub(super) fn charge_us(&self, seconds: f64, weight: f64) -> u64 {
        match self.allowance {
            Some(_) => ((seconds * 1e6 / weight).ceil() as u64).clamp(1, CHARGE_MOST_US),
            None => 0,
        }
    }
}

/// As in the naive planner of the tests.
const CREDIT: f64 = 1.5;

/// No single charge is so large that sums of them reach their end: over three years.
const CHARGE_MOST_US: u64 = 100_000_000_000_000;

/// What a tenant is given.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TenantLimits {
    /// How much it gets while others wait too, relative to them. Taken as 0.01 at least and 100 at most.
    pub weight: f64,
    /// Most of its tasks that are out at once, over all models. At least 1.
    pub running_most: Option<usize>,
    /// Most of its tasks that wait, over all models and [elsewhere](super::Planner::handle_elsewhere): a new one beyond that is
    /// refused.
    pub waiting_most: Option<usize>,
}

impl Default for TenantLimits {
    fn default() -> Self {
        Self { weight: 1.0, running_most: None, waiting_most: None }
    }
}

impl TenantLimits {
    pub(super) fn sound(self) -> Self {
        let weight = if self.weight.is_finite() { self.weight.clamp(0.01, 100.0) } else { 1.0 };
        Self { weight, running_most: self.running_most.map(|most| most.max(1)), ..self }
    }
}

/// The band of a priority.
pub(super) fn band(priority: Priority) -> usize {
    BAND_STARTS.partition_point(|&start| start <= priority.get())
}
