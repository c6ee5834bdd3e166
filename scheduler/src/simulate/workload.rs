//! What comes in one run: every task with its true time, drawn once and then the same for every policy.

use std::collections::BTreeMap;

use fastrand::Rng;
use taskyard_shared::Kind;

use super::arrivals::Arrivals;
use super::distribution::{Service, normal};
use super::hosts::Hosts;
use super::scenario::{Declared, LoadBy, Scenario};
use super::trace::{Trace, Work};

pub const NO_DEADLINE: u64 = u64::MAX;

/// A task as the simulator knows it. Times are microseconds from the run's start.
#[derive(Clone, PartialEq, Debug)]
pub struct Task {
    pub arrival_us: u64,
    /// How long it runs.
    pub service_us: u64,
    pub deadline_us: u64,
    pub model: u32,
    pub tenant: u32,
    /// Index into [`Workload::class_mean_s`].
    pub class: u32,
    pub kind: Kind,
    pub priority: u8,
    /// As declared; 0 without.
    pub cost: f64,
    /// By what factor a noisy estimate of its time is off.
    pub noise: f64,
}

impl Task {
    /// What a second of its delay costs, as the planner sees it.
    pub fn weight(&self) -> f64 {
        f64::from(self.priority) + 1.0
    }

    pub fn service_s(&self) -> f64 {
        self.service_us as f64 / 1e6
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Model {
    pub name: String,
    pub slots: usize,
}

#[derive(Clone, PartialEq, Debug)]
pub struct TenantShare {
    pub name: String,
    pub weight: f64,
}

/// In the order of arrival.
#[derive(Clone, PartialEq, Debug)]
pub struct Workload {
    pub tasks: Vec<Task>,
    pub models: Vec<Model>,
    pub tenants: Vec<TenantShare>,
    /// The true mean time of each class: of a model, a kind, and a factor of √2 in the declared cost; one before and one
    /// after a jump.
    pub class_mean_s: Vec<f64>,
    /// When the jump is.
    pub jump_us: Option<u64>,
}

/// Random numbers for one purpose: drawing more of one kind changes no other.
fn rng(seed: u32, purpose: u64) -> Rng {
    Rng::with_seed((u64::from(seed) << 32 | purpose).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Draws an index by parts.
struct Lots {
    sums: Vec<f64>,
}

impl Lots {
    fn new(parts: impl Iterator<Item = f64>) -> Self {
        let sums = parts.scan(0.0, |sum, part| {
            *sum += part;
            Some(*sum)
        });
        Self { sums: sums.collect() }
    }

    fn draw(&self, rng: &mut Rng) -> usize {
        let at = rng.f64() * self.sums.last().copied().unwrap_or(0.0);
        self.sums.partition_point(|&sum| sum <= at).min(self.sums.len().saturating_sub(1))
    }
}

/// A task before its times are scaled.
struct Raw {
    at: f64,
    seconds: f64,
    input_tokens: Option<f64>,
    model: u32,
    class: u32,
    tenant: u32,
}

impl Workload {
    /// One run's tasks. `trace` is the one the scenario names.
    pub fn draw(scenario: &Scenario, trace: Option<&Trace>, seed: u32, load: f64) -> Self {
        let mut workload = match trace {
            Some(trace) => from_trace(scenario, trace, seed),
            None => synthetic(scenario, seed),
        };
        workload.scale(scenario, load, trace.is_some());
        workload.finish(scenario, seed)
    }
}

/// Tasks, models and tenants, and what the scaling needs to know.
struct Draft {
    raw: Vec<Raw>,
    models: Vec<Model>,
    tenants: Vec<TenantShare>,
    class_names: Vec<String>,
    class_means: Vec<f64>,
    /// Arrivals are drawn: one a unit of time on average.
    drawn_arrivals: bool,
    /// The mean service time where it is known without looking at the tasks, in seconds.
    mean_s: Option<f64>,
    declared: Declared,
}

fn synthetic(scenario: &Scenario, seed: u32) -> Draft {
    let count = scenario.tasks.unwrap_or(20_000);
    let classes = Lots::new(scenario.classes.iter().map(|class| class.share));
    let shares = (1..=scenario.models.count).map(|rank| (rank as f64).powf(-scenario.models.zipf));
    let models = Lots::new(shares);
    let times = scenario.arrivals.unwrap_or_default().draw(count, &mut rng(seed, 1));
    let (mut of_class, mut of_model, mut of_service) = (rng(seed, 2), rng(seed, 3), rng(seed, 4));
    let raw = times.into_iter().map(|at| {
        let class = classes.draw(&mut of_class);
        let service = scenario.classes.get(class).map(|class| class.service);
        let seconds = service.map_or(0.0, |service| service.draw(&mut of_service));
        let model = models.draw(&mut of_model) as u32;
        Raw { at, seconds, input_tokens: None, model, class: class as u32, tenant: 0 }
    });
    let means: Vec<f64> = scenario.classes.iter().map(|class| Service::mean_seconds(&class.service)).collect();
    let shares: f64 = scenario.classes.iter().map(|class| class.share).sum();
    let mean_s = scenario.classes.iter().zip(&means).map(|(class, mean)| class.share * mean).sum::<f64>() / shares;
    let slots = scenario.models.slots;
    Draft {
        raw: raw.collect(),
        models: (0..scenario.models.count).map(|number| Model { name: format!("model-{number}"), slots }).collect(),
        tenants: vec![TenantShare { name: "default".to_owned(), weight: 1.0 }],
        class_names: scenario.classes.iter().map(|class| class.name.clone()).collect(),
        class_means: means,
        drawn_arrivals: true,
        mean_s: Some(mean_s),
        declared: scenario.cost.declared.unwrap_or(Declared::True),
    }
}

fn from_trace(scenario: &Scenario, trace: &Trace, seed: u32) -> Draft {
    let settings = scenario.trace.as_ref();
    let has_arrivals = trace.rows.iter().all(|row| row.arrival_s.is_some());
    let in_order = has_arrivals && !settings.is_some_and(|settings| settings.draw);
    let default_count = scenario.tasks.unwrap_or(trace.rows.len());
    let count = if in_order { default_count.min(trace.rows.len()) } else { default_count };
    let seconds = |work: Work| match (work, settings) {
        (Work::Seconds(seconds), Some(settings)) => seconds * settings.service_scale,
        (Work::Tokens { input, output }, Some(settings)) => {
            let ms = input * settings.input_ms_per_token + output * settings.output_ms_per_token;
            ms / 1e3 * settings.service_scale
        }
        (_, None) => 0.0,
    };

    // Models with few rows share one worker: alone each would have one of its own, at the same load.
    let mut rows_of = vec![0usize; trace.models.len()];
    for row in &trace.rows {
        if let Some(rows) = rows_of.get_mut(row.model as usize) {
            *rows += 1;
        }
    }
    let least = settings.map_or(0, |settings| settings.rows_least);
    let slots = scenario.models.slots;
    let mut models: Vec<Model> = Vec::new();
    let mut other = None;
    let number_of: Vec<u32> = trace
        .models
        .iter()
        .zip(&rows_of)
        .map(|(name, &rows)| {
            if rows < least && trace.models.len() > 1 {
                return *other.get_or_insert_with(|| {
                    models.push(Model { name: "other".to_owned(), slots });
                    models.len() as u32 - 1
                });
            }
            models.push(Model { name: name.clone(), slots });
            models.len() as u32 - 1
        })
        .collect();

    let process = match scenario.arrivals {
        Some(process) if process != (Arrivals::Trace {}) => Some(process),
        _ if in_order => None,
        _ => Some(Arrivals::default()),
    };
    let drawn = process.map(|process| process.draw(count, &mut rng(seed, 1)));
    let mut of_row = rng(seed, 2);
    let raw = (0..count).filter_map(|number| {
        let at_row = if in_order { number } else { of_row.usize(..trace.rows.len()) };
        let row = trace.rows.get(at_row)?;
        let at = match &drawn {
            Some(times) => *times.get(number)?,
            None => row.arrival_s?,
        };
        Some(Raw {
            at,
            seconds: seconds(row.work),
            input_tokens: row.input_tokens,
            model: number_of.get(row.model as usize).copied().unwrap_or(0),
            class: row.class,
            tenant: row.tenant,
        })
    });
    let raw: Vec<Raw> = raw.collect();

    let mut sums = vec![(0.0, 0.0); trace.classes.len()];
    for task in &raw {
        if let Some((sum, tasks)) = sums.get_mut(task.class as usize) {
            *sum += task.seconds;
            *tasks += 1.0;
        }
    }
    let has_tokens = trace.rows.iter().all(|row| row.input_tokens.is_some());
    let tokens_only = trace.rows.iter().any(|row| matches!(row.work, Work::Tokens { .. }));
    let declared = scenario.cost.declared.unwrap_or(if tokens_only { Declared::Input } else { Declared::True });
    let name = |name: &String| if name.is_empty() { "default".to_owned() } else { name.clone() };
    Draft {
        raw,
        models,
        tenants: trace.tenants.iter().map(|tenant| TenantShare { name: name(tenant), weight: 1.0 }).collect(),
        class_names: trace.classes.clone(),
        class_means: sums.into_iter().map(|(sum, tasks)| sum / f64::max(tasks, 1.0)).collect(),
        drawn_arrivals: drawn.is_some(),
        mean_s: None,
        declared: if declared == Declared::Input && !has_tokens { Declared::None } else { declared },
    }
}

impl Draft {
    /// Stretches the arrivals, or the service times, to the load; every model with slots of its own then has the same.
    fn scale(&mut self, scenario: &Scenario, load: f64, exact: bool) {
        let tasks = self.raw.len() as f64;
        let mut work = vec![0.0; self.models.len()];
        for task in &self.raw {
            if let Some(work) = work.get_mut(task.model as usize) {
                *work += task.seconds;
            }
        }
        let total: f64 = work.iter().sum();
        let own: f64 = self.models.iter().map(|model| model.slots as f64).sum();
        let slots = scenario.hosts.as_ref().map_or(own, Hosts::capacity);
        let last = self.raw.last().map_or(0.0, |task| task.at);
        // A trace's own work over its own span; by the distributions' means when these are known, so that the load is
        // what theory calls so.
        let span = if exact && !self.drawn_arrivals { last } else { tasks };
        let expected = self.mean_s.map_or(total, |mean_s| mean_s * tasks);
        if !(span > 0.0 && expected > 0.0) {
            return;
        }
        let (stretch, all_faster) = match scenario.load_by {
            LoadBy::Arrivals => (expected / (load * slots * span), 1.0),
            LoadBy::Speed => (1.0, load * slots * span / expected),
        };
        let factors: Vec<f64> = work
            .iter()
            .zip(&self.models)
            .map(|(&work, model)| match self.models.len() {
                1 => all_faster,
                // Slots that are shared need not be shared evenly.
                _ if scenario.hosts.is_some() => all_faster,
                _ if work > 0.0 => all_faster * total * model.slots as f64 / (slots * work),
                _ => 1.0,
            })
            .collect();
        for task in &mut self.raw {
            task.at *= stretch;
            task.seconds *= factors.get(task.model as usize).copied().unwrap_or(1.0);
        }
    }

    fn finish(self, scenario: &Scenario, seed: u32) -> Workload {
        let us = |seconds: f64| (seconds * 1e6) as u64;
        let (mut of_priority, mut of_tenant) = (rng(seed, 5), rng(seed, 6));
        let (mut of_deadline, mut of_cost, mut of_noise) = (rng(seed, 7), rng(seed, 8), rng(seed, 9));
        let priorities = Lots::new(scenario.priorities.iter().copied());
        let tenant_lots = Lots::new(scenario.tenants.iter().map(|tenant| tenant.traffic));
        let last = self.raw.last().map_or(0.0, |task| task.at);
        let jump_s = scenario.jump.as_ref().map(|jump| jump.at * last);
        let jumps = |task: &Raw, model: &str| {
            scenario.jump.as_ref().filter(|jump| {
                let class = self.class_names.get(task.class as usize);
                task.at >= jump.at * last
                    && jump.class.as_ref().is_none_or(|name| Some(name) == class)
                    && jump.model.as_ref().is_none_or(|name| name == model)
            })
        };
        let sigma = scenario.cost.sigma;
        let kinds = Kind::ALL;

        let mut classes: BTreeMap<(u32, usize, Option<i32>, bool), u32> = BTreeMap::new();
        let mut sums: Vec<(f64, f64)> = Vec::new();
        let mut tasks = Vec::with_capacity(self.raw.len());
        for task in &self.raw {
            let model = self.models.get(task.model as usize).map_or("", |model| model.name.as_str());
            let factor = jumps(task, model).map_or(1.0, |jump| jump.factor);
            let service_s = (task.seconds * factor).max(1e-6);
            let noise = (sigma * normal(&mut of_noise)).exp();
            let cost = match self.declared {
                Declared::True => Some(task.seconds),
                Declared::Input => task.input_tokens,
                Declared::Class => self.class_means.get(task.class as usize).copied(),
                Declared::None => None,
            };
            let cost = cost.map_or(0.0, |cost| cost.max(1e-6) * (sigma * normal(&mut of_cost)).exp());
            let kind = (task.class as usize).min(kinds.len() - 1);
            let bucket = (cost > 0.0).then(|| (2.0 * cost.log2()).floor() as i32);
            let class = *classes.entry((task.model, kind, bucket, factor != 1.0)).or_insert_with(|| {
                sums.push((0.0, 0.0));
                sums.len() as u32 - 1
            });
            if let Some((sum, count)) = sums.get_mut(class as usize) {
                *sum += service_s;
                *count += 1.0;
            }
            let deadline_us = match &scenario.deadlines {
                Some(deadlines) if of_deadline.f64() < deadlines.share => {
                    let slack =
                        deadlines.slack_least + (deadlines.slack_most - deadlines.slack_least) * of_deadline.f64();
                    us(task.at + slack * service_s + deadlines.constant_ms / 1e3).max(us(task.at) + 1)
                }
                _ => NO_DEADLINE,
            };
            tasks.push(Task {
                arrival_us: us(task.at),
                service_us: us(service_s).max(1),
                deadline_us,
                model: task.model,
                tenant: if scenario.tenants.is_empty() { task.tenant } else { tenant_lots.draw(&mut of_tenant) as u32 },
                class,
                kind: kinds.get(kind).copied().unwrap_or_default(),
                priority: priorities.draw(&mut of_priority) as u8,
                cost,
                noise,
            });
        }
        let tenants = match scenario.tenants.as_slice() {
            [] => self.tenants,
            tenants => {
                tenants.iter().map(|tenant| TenantShare { name: tenant.name.clone(), weight: tenant.weight }).collect()
            }
        };
        Workload {
            tasks,
            models: self.models,
            tenants,
            class_mean_s: sums.into_iter().map(|(sum, count)| sum / f64::max(count, 1.0)).collect(),
            jump_us: jump_s.map(us),
        }
    }
}
