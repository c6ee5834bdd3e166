//! How fairly tenants were served, as Jain's index.

use std::collections::BTreeMap;

use super::engine::{Course, End, Fate};
use super::summary::jain;
use super::workload::{Task, Workload};

/// Stretches into which the time with arrivals is cut.
const WINDOWS: u64 = 50;

fn overlap_s(end: &End, from_us: u64, to_us: u64) -> f64 {
    match end.fate {
        Fate::Done => end.ended_us.min(to_us).saturating_sub(end.started_us.max(from_us)) as f64 / 1e6,
        _ => 0.0,
    }
}

fn pairs<'a>(workload: &'a Workload, course: &'a Course) -> impl Iterator<Item = (&'a Task, &'a End)> {
    workload.tasks.iter().zip(&course.ends)
}

/// Over all tenants: the seconds each was served while tasks came, by its fair share of the seconds served in all.
///
/// Fair is weighted max-min: nobody gets more than was asked for, and what is left over goes to the others by weight.
pub fn shares(workload: &Workload, course: &Course) -> f64 {
    let horizon_us = workload.tasks.last().map_or(0, |task| task.arrival_us);
    let mut asked: BTreeMap<(u32, u32), f64> = BTreeMap::new();
    let mut served: BTreeMap<(u32, u32), f64> = BTreeMap::new();
    for (task, end) in pairs(workload, course) {
        let key = (task.model, task.tenant);
        *asked.entry(key).or_default() += task.service_s();
        *served.entry(key).or_default() += overlap_s(end, 0, horizon_us);
    }
    let mut fair_s: BTreeMap<u32, f64> = BTreeMap::new();
    let mut served_s: BTreeMap<u32, f64> = BTreeMap::new();
    for model in 0..workload.models.len() as u32 {
        let of_model = |map: &BTreeMap<(u32, u32), f64>| -> Vec<(u32, f64)> {
            map.range((model, 0)..=(model, u32::MAX)).map(|(&(_, tenant), &seconds)| (tenant, seconds)).collect()
        };
        let served = of_model(&served);
        for &(tenant, seconds) in &served {
            *served_s.entry(tenant).or_default() += seconds;
        }
        let capacity = served.iter().map(|(_, seconds)| seconds).sum();
        let weight = |tenant: u32| workload.tenants.get(tenant as usize).map_or(1.0, |tenant| tenant.weight);
        for (tenant, seconds) in max_min(&of_model(&asked), capacity, weight) {
            *fair_s.entry(tenant).or_default() += seconds;
        }
    }
    let part =
        |(tenant, &fair_s): (&u32, &f64)| (fair_s > 0.0).then(|| served_s.get(tenant).copied().unwrap_or(0.0) / fair_s);
    jain(&fair_s.iter().filter_map(part).collect::<Vec<f64>>())
}

/// What each gets of a capacity.
fn max_min(asked: &[(u32, f64)], capacity: f64, weight: impl Fn(u32) -> f64) -> Vec<(u32, f64)> {
    let mut asked: Vec<(u32, f64)> = asked.to_vec();
    // Those who ask for least by their weight are satisfied first.
    asked.sort_by(|a, b| (a.1 / weight(a.0)).total_cmp(&(b.1 / weight(b.0))).then(a.0.cmp(&b.0)));
    let mut left = capacity;
    let mut weights: f64 = asked.iter().map(|&(tenant, _)| weight(tenant)).sum();
    let mut given = Vec::with_capacity(asked.len());
    for (tenant, seconds) in asked {
        let share = if weights > 0.0 { left * weight(tenant) / weights } else { 0.0 };
        let gets = seconds.min(share);
        given.push((tenant, gets));
        left -= gets;
        weights -= weight(tenant);
    }
    given
}

/// Of those tenants alone that had tasks of a model waiting through a whole stretch of time: seconds served by weight.
/// The mean over the stretches in which there were two; `None` if there were none.
pub fn while_backlogged(workload: &Workload, course: &Course) -> Option<f64> {
    let horizon_us = workload.tasks.last().map_or(0, |task| task.arrival_us);
    let window_us = (horizon_us / WINDOWS).max(1);
    let window = |at_us: u64| (at_us / window_us).min(WINDOWS) as usize;
    // Changes of how many wait, and seconds served in each stretch.
    let mut changes: BTreeMap<(u32, u32), Vec<(u64, i32)>> = BTreeMap::new();
    let mut served: BTreeMap<(u32, u32), Vec<f64>> = BTreeMap::new();
    for (task, end) in pairs(workload, course) {
        let key = (task.model, task.tenant);
        let left_us = if end.fate == Fate::Done { end.started_us } else { end.ended_us };
        let changes = changes.entry(key).or_default();
        changes.push((task.arrival_us, 1));
        changes.push((left_us, -1));
        let served = served.entry(key).or_insert_with(|| vec![0.0; WINDOWS as usize]);
        if end.fate == Fate::Done {
            for at in window(end.started_us)..=window(end.ended_us) {
                let from_us = at as u64 * window_us;
                if let Some(seconds) = served.get_mut(at) {
                    *seconds += overlap_s(end, from_us, from_us + window_us);
                }
            }
        }
    }
    // Per model and stretch, what those got that waited all through it.
    let mut got: BTreeMap<(u32, usize), Vec<f64>> = BTreeMap::new();
    for ((model, tenant), mut changes) in changes {
        // Those who come at one moment come before those who leave at it.
        changes.sort_unstable_by_key(|&(at_us, sign)| (at_us, -sign));
        let mut waited = vec![true; WINDOWS as usize];
        let (mut waiting, mut since_us) = (0, 0);
        let mut idle = |from_us: u64, to_us: u64| {
            if from_us < to_us {
                let end = window(to_us - 1);
                waited.iter_mut().take(end + 1).skip(window(from_us)).for_each(|waited| *waited = false);
            }
        };
        for (at_us, sign) in changes {
            if waiting == 0 {
                idle(since_us, at_us);
            }
            waiting += sign;
            since_us = at_us;
        }
        idle(since_us, horizon_us.max(since_us + 1));
        let weight = workload.tenants.get(tenant as usize).map_or(1.0, |tenant| tenant.weight);
        let seconds = served.get(&(model, tenant)).into_iter().flatten();
        for (at, (waited, seconds)) in waited.into_iter().zip(seconds).enumerate() {
            if waited {
                got.entry((model, at)).or_default().push(seconds / weight);
            }
        }
    }
    let indices: Vec<f64> = got.into_values().filter(|got| got.len() > 1).map(|got| jain(&got)).collect();
    (!indices.is_empty()).then(|| indices.iter().sum::<f64>() / indices.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::max_min;

    #[test]
    fn nobody_gets_more_than_asked_for_and_the_rest_is_shared_by_weight() {
        let weight = |tenant: u32| if tenant == 2 { 2.0 } else { 1.0 };
        let given = max_min(&[(0, 1.0), (1, 100.0), (2, 100.0)], 10.0, weight);
        assert_eq!(given, [(0, 1.0), (2, 6.0), (1, 3.0)]);
        assert_eq!(max_min(&[(0, 1.0), (1, 2.0)], 10.0, |_| 1.0), [(0, 1.0), (1, 2.0)]);
    }
}
