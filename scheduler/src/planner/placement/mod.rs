//! Which host is to hold which models.
//!
//! One call looks at what hosts hold and what models need, and says what is to change: a function of its arguments. Most
//! changes are swaps: a model takes the place of others where that serves more, over the time it will stay, than loading it
//! costs. `README.md` of the planner has the rules. A call costs swaps × candidates × models held, whatever waits.

mod board;
mod resources;
#[cfg(test)]
mod tests;

pub use resources::Resources;

use board::{Board, Force};

/// How eager placement is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rules {
    /// A model stays for so many times what loading it took, at least.
    pub stay_loads: f64,
    /// A shorter stay is not reckoned with, in seconds: about a run, or the time between two calls.
    pub stay_least_seconds: f64,
    /// A model whose oldest task waits for so many times what loading it takes, and that no host holds, is loaded.
    pub starve_loads: f64,
    /// It is not loaded for that sooner than this, in seconds.
    pub starve_least_seconds: f64,
    /// Swaps in one call that are made for what they gain.
    pub swaps_most: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self { stay_loads: 8.0, stay_least_seconds: 1.0, starve_loads: 10.0, starve_least_seconds: 1.0, swaps_most: 4 }
    }
}

/// What is wanted of a model whatever its demand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pin {
    /// So many hosts hold it, at least, if they can.
    Stay(u32),
    /// None holds it.
    Go,
}

/// A model, as it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelNow {
    pub needs: Resources,
    pub load_seconds: f64,
    /// What a task of it takes.
    pub mean_seconds: f64,
    /// What its waiting tasks are expected to take.
    pub waiting_seconds: f64,
    /// What a second of them is worth: the mean of the weights that the policy gives. Over 0.
    pub value: f64,
    /// Arrival rate × mean time: the slots that it keeps busy, in the long run.
    pub offered: f64,
    /// Since when the oldest waits.
    pub oldest_us: Option<u64>,
    /// Since when no host holds it, if one did before.
    pub unheld_us: Option<u64>,
    /// When a waiting task must begin at the latest, for its deadline.
    pub latest_start_us: Option<u64>,
    pub pin: Option<Pin>,
}

/// A host, as it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct HostNow {
    pub has: Resources,
    /// What it was told to hold: loaded, or being loaded.
    pub holds: Vec<Held>,
    /// The models it can load, in order. `None` for all.
    pub can_hold: Option<Vec<u32>>,
}

/// A model on a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its place among the models.
    pub model: u32,
    /// `None` while it is being loaded.
    pub loaded_us: Option<u64>,
    /// Its tasks that run there.
    pub running: u32,
}

/// One change: a host is to hold this no more, and that instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Swap {
    pub host: u32,
    pub unload: Vec<u32>,
    pub load: Option<u32>,
    pub reason: SwapReason,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SwapReason {
    /// A pin says so.
    Pinned,
    /// The host has less than what it holds takes.
    TooMuch,
    /// A deadline would be missed otherwise.
    Deadline,
    /// Its tasks have waited for long, and no host holds it.
    Starving,
    /// It gains more than it costs.
    Demand,
}

/// What is to change now, in the order in which it was decided.
pub fn place(now_us: u64, rules: &Rules, hosts: &[HostNow], models: &[ModelNow]) -> Vec<Swap> {
    let mut board = Board::new(now_us, rules, hosts, models);
    board.unload_unwanted();
    for (number, model) in (0..).zip(models) {
        if let Some(Pin::Stay(count)) = model.pin {
            while board.holders(number) < count as usize && board.load(number, Force::Pin, SwapReason::Pinned) {}
        }
    }
    let mut pressing: Vec<(u64, u32)> = (0..)
        .zip(models)
        .filter_map(|(number, model)| Some((pressing_us(now_us, model)?, number)))
        .filter(|&(_, number)| board.holders(number) == 0)
        .collect();
    pressing.sort_unstable();
    for (_, number) in pressing {
        board.load(number, Force::Deadline, SwapReason::Deadline);
    }
    let mut starving: Vec<(u64, u32)> = (0..)
        .zip(models)
        .filter(|&(number, _)| board.holders(number) == 0)
        .filter_map(|(number, model)| Some((starving_us(now_us, rules, model)?, number)))
        .collect();
    starving.sort_unstable();
    for (_, number) in starving {
        if !board.load(number, Force::Starving, SwapReason::Starving) {
            board.promise(number);
        }
    }
    for _ in 0..rules.swaps_most {
        if !board.swap_for_gain() {
            break;
        }
    }
    board.swaps
}

/// Its latest start, if that can be kept when it is loaded now and hardly when it is loaded any later.
fn pressing_us(now_us: u64, model: &ModelNow) -> Option<u64> {
    let load_us = us(model.load_seconds);
    let latest_us = model.latest_start_us?;
    let is_possible = now_us.saturating_add(load_us) <= latest_us;
    (is_possible && now_us.saturating_add(load_us.saturating_mul(2)) >= latest_us).then_some(latest_us)
}

/// Since when it has gone without, if that is too long. A model that had its turn waits for the next from its end on: by its
/// oldest task alone, a model that more comes for than can be done would be in front of all others again.
fn starving_us(now_us: u64, rules: &Rules, model: &ModelNow) -> Option<u64> {
    let bound_us = us((rules.starve_loads * model.load_seconds).max(rules.starve_least_seconds));
    let since_us = model.oldest_us?.max(model.unheld_us.unwrap_or(0));
    (now_us.saturating_sub(since_us) >= bound_us).then_some(since_us)
}

fn us(seconds: f64) -> u64 {
    (seconds.max(0.0) * 1e6) as u64
}
