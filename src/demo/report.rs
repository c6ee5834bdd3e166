//! What the demonstration prints, and whether it succeeded.

use std::collections::BTreeMap;

use taskyard_shared::{State, TaskError};

use super::inputs::Item;
use crate::failure::Failure;
use crate::output::tell;

/// What one task came to.
#[derive(Clone, PartialEq)]
pub struct Sample {
    pub right: bool,
    pub answer: Option<(String, f64)>,
    pub state: State,
    pub error: Option<TaskError>,
    pub worker: String,
    pub attempt: u32,
    pub model: String,
    pub waited_seconds: f64,
    pub ran_seconds: f64,
    /// From acceptance to the end.
    pub turnaround_seconds: f64,
}

/// One run over all items.
pub struct Run {
    pub policy: String,
    pub killed: Option<String>,
    samples: Vec<Option<Sample>>,
    /// Second results of a task that differ from its first: none may be.
    repeated: usize,
    /// The same result told once more, which a receiver tells by its id.
    told_again: usize,
}

impl Run {
    pub fn new(policy: &str, tasks: usize) -> Self {
        Self { policy: policy.to_owned(), killed: None, samples: vec![None; tasks], repeated: 0, told_again: 0 }
    }

    pub fn take(&mut self, at: usize, sample: Sample) {
        match &mut self.samples[at] {
            Some(first) if *first == sample => self.told_again += 1,
            Some(_) => self.repeated += 1,
            empty => *empty = Some(sample),
        }
    }

    pub fn answered(&self) -> usize {
        self.samples.iter().flatten().count()
    }

    fn lost(&self) -> usize {
        self.samples.len() - self.answered()
    }

    fn wrong(&self) -> usize {
        self.samples.iter().flatten().filter(|sample| !sample.right).count()
    }

    /// Sums of priority times run time, and of priority times completion time; seconds.
    fn sums(&self, items: &[Item]) -> (f64, f64) {
        let pairs = items.iter().zip(&self.samples).filter_map(|(item, sample)| Some((item, sample.as_ref()?)));
        pairs.fold((0.0, 0.0), |(work, delay), (item, sample)| {
            let priority = f64::from(item.priority.get());
            (work + priority * sample.ran_seconds, delay + priority * sample.turnaround_seconds)
        })
    }
}

pub fn print(items: &[Item], first_come: &Run, chosen: &Run) {
    tell!("\nSome results of the run under {}:", chosen.policy);
    for model in ["intents", "sentiment", "file-type"] {
        let shown = items.iter().zip(&chosen.samples).filter(|(item, _)| item.model == model).take(3);
        for (item, sample) in shown {
            if let Some(Sample { answer: Some((label, score)), worker, .. }) = sample {
                let text: String = item.shown.chars().take(64).collect();
                tell!("  {model:<10} {text:<64}  {label} ({score:.2})  on {worker}");
            }
        }
    }
    tell!("\nMedian wait in ms, the same tasks first come, first served and under {}:", chosen.policy);
    tell!("  {:<10} {:>8} {:>6} {:>10} {:>10}", "model", "priority", "tasks", "fifo", chosen.policy);
    let mut groups: BTreeMap<(&str, std::cmp::Reverse<u8>), Vec<usize>> = BTreeMap::new();
    for (at, item) in items.iter().enumerate() {
        groups.entry((item.model, std::cmp::Reverse(item.priority.get()))).or_default().push(at);
    }
    for ((model, priority), members) in &groups {
        let median = |run: &Run| {
            let mut waits: Vec<f64> =
                members.iter().filter_map(|&at| run.samples[at].as_ref()).map(|sample| sample.waited_seconds).collect();
            waits.sort_by(f64::total_cmp);
            waits.get(waits.len() / 2).copied().unwrap_or(f64::NAN) * 1e3
        };
        let (before, after) = (median(first_come), median(chosen));
        tell!("  {model:<10} {:>8} {:>6} {before:>10.0} {after:>10.0}", priority.0, members.len());
    }
    let (work_before, delay_before) = first_come.sums(items);
    let (work_after, delay_after) = chosen.sums(items);
    tell!("\n  {:<26} {:>10} {:>10}", "", "fifo", chosen.policy);
    tell!(
        "  {:<26} {work_before:>10.1} {work_after:>10.1}   priority x run time: whatever the order",
        "sum p*t, seconds"
    );
    tell!(
        "  {:<26} {delay_before:>10.1} {delay_after:>10.1}   priority x completion time: what ordering is for",
        "sum p*C, seconds"
    );
    tell!("  {:<26} {:>10} {:>10}", "lost", first_come.lost(), chosen.lost());
    tell!("  {:<26} {:>10} {:>10}", "repeated results", first_come.repeated, chosen.repeated);
    tell!("  {:<26} {:>10} {:>10}", "wrong answers", first_come.wrong(), chosen.wrong());
    if let Some(killed) = &chosen.killed {
        let again = chosen.samples.iter().flatten().filter(|sample| sample.attempt > 1).count();
        tell!("  {killed} was killed half way: {again} tasks that it had begun ran again elsewhere.");
    }
}

/// Every task one result, every known answer right.
pub fn judge(runs: &[&Run]) -> Result<(), Failure> {
    for run in runs {
        let Run { policy, repeated, told_again, .. } = run;
        if run.lost() > 0 || *repeated > 0 || run.wrong() > 0 {
            for sample in run.samples.iter().flatten().filter(|sample| !sample.right).take(5) {
                let reason = sample.error.as_ref().map_or(String::new(), |error| format!(": {}", error.message));
                eprintln!("wrong under {policy}: {} {:?} {:?}{reason}", sample.model, sample.state, sample.answer);
            }
            let (lost, wrong) = (run.lost(), run.wrong());
            return Err(Failure::Failed(format!("under {policy}: {lost} lost, {repeated} repeated, {wrong} wrong")));
        }
        if *told_again > 0 {
            tell!("  ({told_again} results under {policy} were told twice, the same both times.)");
        }
    }
    Ok(())
}
