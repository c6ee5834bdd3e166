//! What a ledger must say. Pure: a ledger goes in, what is wrong with it comes out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use taskyard_shared::State;
use uuid::Uuid;

use crate::ledger::{Attempted, Ledger, Meant, Suffered, Told, What};

/// A fault's consequences may show for so long after it was healed: a lease, a heartbeat's two misses, a process's start.
const AFTERMATH_MS: u64 = 20_000;

/// The longest time without a fault in which no task comes to its end although some wait.
const STALLED_MS: u64 = 60_000;

/// What a process may hold when all is at rest, however many connections it has lost and made.
const FILES_MOST: usize = 200;
const RESIDENT_MB_MOST: u64 = 400;

/// A promise that was broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Rule {
    /// Confirmed, and nothing is known of its end.
    Lost,
    /// It ended, by its record, and its publisher was not told.
    NotTold,
    /// An end of a task that nobody published.
    Unexpected,
    /// Two different ends, or the same with another content.
    TwoEnds,
    /// It ended in a state that it was not meant to.
    WrongEnd,
    /// The result shows an execution that did not come to its end, or none.
    StrangeEffect,
    /// The record says something else than what was told, or is gone although the store was not flushed.
    WrongRecord,
    TooManyAttempts,
    /// It ran again although nothing had happened.
    UnexplainedRepeat,
    /// It was refused, and ran.
    RefusedAndRan,
    /// No dead letter of a task that has to have one, or one of another.
    WrongDeadLetter,
    Stray,
    Panicked,
    WrongExit,
    /// A process has more files open, or more memory, than what it does takes.
    Grown,
    /// No task came to its end for long, while nothing was wrong.
    Stalled,
    /// The run ended before its tasks did.
    GaveUp,
    /// Urgent tasks waited behind idle ones.
    NotOvertaken,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    pub rule: Rule,
    pub what: String,
}

/// Counts for the table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    pub attempted: usize,
    pub accepted: usize,
    /// Publishes that were refused or not known to be accepted, and done again.
    pub published_again: usize,
    pub ends: BTreeMap<&'static str, usize>,
    pub results: usize,
    /// Results told again with the same content.
    pub told_again: usize,
    /// Results told again with another content after the store was flushed.
    pub told_again_after_flush: usize,
    pub executions: usize,
    /// Executions beyond the first of a task, those after a failure that was meant not counted.
    pub repeats: usize,
    /// Tasks that were not meant to fail and did, for the workers that were lost with them.
    pub suspected: usize,
    /// Records that a flush took with it.
    pub forgotten: usize,
    pub faults: BTreeMap<String, usize>,
    /// Workflows, by the state they ended in.
    pub workflows: BTreeMap<&'static str, usize>,
    pub steps_executed: usize,
    /// Ticks of the schedule that had to come, and executions of ticks beyond the first.
    pub ticks: usize,
    pub ticks_repeated: usize,
    /// Longest time without an end while no fault was active; milliseconds.
    pub longest_quiet_ms: u64,
    /// Most that a process held at the end.
    pub files_open: usize,
    pub resident_mb: u64,
}

pub struct Verdict {
    pub broken: Vec<Broken>,
    pub figures: Figures,
}

impl Verdict {
    pub fn rules(&self) -> BTreeMap<Rule, usize> {
        let mut rules = BTreeMap::new();
        for broken in &self.broken {
            *rules.entry(broken.rule).or_default() += 1;
        }
        rules
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{:?}: {}", self.rule, self.what)
    }
}

pub fn check(ledger: &Ledger) -> Verdict {
    let mut checker = Checker { ledger, suspected: HashSet::new(), broken: Vec::new(), figures: Figures::default() };
    checker.tasks();
    checker.workflows();
    checker.ticks();
    checker.strangers();
    checker.dead_letters();
    checker.processes();
    checker.sizes();
    checker.liveness();
    checker.end_state();
    Verdict { broken: checker.broken, figures: checker.figures }
}

/// The code of a task that is taken to be what ends its workers, since two were lost while it ran. Nobody can tell that from faults
/// which come one upon the other.
pub const WORKER_LOST: &str = "worker_lost";

struct Checker<'a> {
    ledger: &'a Ledger,
    /// Tasks that ended so, and had as many faults.
    suspected: HashSet<Uuid>,
    broken: Vec<Broken>,
    figures: Figures,
}

/// How a task ended, as far as the ledger knows.
struct End {
    state: State,
    attempt: u32,
    run: Option<String>,
    code: Option<String>,
}

impl Checker<'_> {
    fn broke(&mut self, rule: Rule, what: impl Into<String>) {
        self.broken.push(Broken { rule, what: what.into() });
    }

    /// Whether the store lost its records in this time.
    fn flushed(&self, from: u64, until: u64) -> bool {
        self.ledger.faults.iter().any(|fault| fault.loses_records() && fault.from <= until && from <= fault.until)
    }

    /// Faults that may have had a part in what happened in this time.
    fn suffered(&self, from: u64, until: u64) -> impl Iterator<Item = &Suffered> {
        let overlaps = move |fault: &&Suffered| fault.from <= until && from <= fault.until + AFTERMATH_MS;
        self.ledger.faults.iter().filter(|fault| fault.cuts_attempts()).filter(overlaps)
    }

    fn tasks(&mut self) {
        let ledger = self.ledger;
        self.figures.attempted = ledger.attempted.len();
        self.figures.accepted = ledger.accepted.len();
        self.figures.published_again = ledger.not_accepted.iter().map(|line| line.ids.len()).sum();
        for fault in &ledger.faults {
            *self.figures.faults.entry(fault.kind.clone()).or_default() += 1;
        }
        for attempted in ledger.attempted.values() {
            let end = self.end(attempted);
            self.executions(attempted, end.as_ref());
            if let Some(end) = end {
                *self.figures.ends.entry(end.state.as_str()).or_default() += 1;
                self.meant(attempted, &end);
            }
        }
    }

    /// The one end of a task; what is wrong with it is noted.
    fn end(&mut self, task: &Attempted) -> Option<End> {
        let ledger = self.ledger;
        let id = task.id;
        let told = ledger.told.get(&id).map_or(&[][..], Vec::as_slice);
        self.figures.results += told.len();
        self.told_once(task, told);
        let record = ledger.recorded.get(&id);
        let recorded = record.and_then(|record| {
            let state = record.state?;
            Some(End { state, attempt: record.attempt, run: record.run.clone(), code: record.code.clone() })
        });
        if let Some(first) = told.first() {
            match &recorded {
                Some(end) if !told.iter().any(|told| told.state == end.state && told.run == end.run) => {
                    self.broke(
                        Rule::WrongRecord,
                        format!(
                            "{id} was told as {} of {:?}, and its record says {} of {:?}",
                            first.state.as_str(),
                            first.run,
                            end.state.as_str(),
                            end.run
                        ),
                    );
                }
                None if record.is_some() => {
                    if self.flushed(task.at, u64::MAX) {
                        self.figures.forgotten += 1;
                    } else {
                        self.broke(Rule::WrongRecord, format!("{id} has no record, and the store was not flushed"));
                    }
                }
                Some(_) | None => {}
            }
            let (state, attempt) = (first.state, first.attempt);
            return Some(End { state, attempt, run: first.run.clone(), code: first.code.clone() });
        }
        if !ledger.accepted.contains_key(&id) {
            return recorded.filter(|end| end.state.is_terminal());
        }
        match recorded {
            Some(end) if end.state.is_terminal() => {
                if task.way.is_told() {
                    self.broke(Rule::NotTold, format!("{id} ended as {}", end.state.as_str()));
                }
                Some(end)
            }
            Some(end) => {
                self.broke(Rule::Lost, format!("{id} stands as {}", end.state.as_str()));
                None
            }
            None => {
                // Its record went with a flush, and nobody was to be told: the executor alone knows of it.
                let executed = ledger.executed.get(&id).map_or(&[][..], Vec::as_slice);
                let ended = executed.iter().filter(|line| line.what == What::Finished).map(|line| line.at).min();
                let is_forgotten = match (task.way.is_told(), task.meant) {
                    (true, _) => false,
                    (false, Meant::Succeeds) => ended.is_some_and(|at| self.flushed(at, u64::MAX)),
                    (false, _) => self.flushed(task.at, u64::MAX),
                };
                match is_forgotten {
                    true => self.figures.forgotten += 1,
                    false => self.broke(Rule::Lost, format!("{id}, {:?}, {:?}", task.way, task.meant)),
                }
                None
            }
        }
    }

    /// Told again is told the same.
    fn told_once(&mut self, task: &Attempted, told: &[Told]) {
        let Some((first, again)) = told.split_first() else { return };
        let last = told.iter().map(|told| told.at).max().unwrap_or(first.at);
        let differing = again.iter().filter(|told| told.digest != first.digest).count();
        self.figures.told_again += again.len() - differing;
        if differing == 0 {
            return;
        }
        if self.flushed(self.first_finish(task, told), last) {
            self.figures.told_again_after_flush += differing;
            return;
        }
        let ends: Vec<String> = told
            .iter()
            .map(|told| format!("{} attempt {} of {:?} at {}", told.state.as_str(), told.attempt, told.run, told.at))
            .collect();
        self.broke(Rule::TwoEnds, format!("{}: {}", task.id, ends.join("; ")));
    }

    /// When the first of the executions that were told came to its end: only a flush after that can have taken its effect. Of an
    /// end without an execution nobody knows when it was come to.
    fn first_finish(&self, task: &Attempted, told: &[Told]) -> u64 {
        let lines = self.ledger.executed.get(&task.id).map_or(&[][..], Vec::as_slice);
        let finished = |told: &Told| {
            let run = told.run.as_deref()?;
            lines.iter().find(|line| line.what == What::Finished && line.run == run).map(|line| line.at)
        };
        let finishes: Option<Vec<u64>> = told.iter().map(finished).collect();
        finishes.and_then(|finishes| finishes.into_iter().min()).unwrap_or(task.at)
    }

    fn meant(&mut self, task: &Attempted, end: &End) {
        let may = match task.meant {
            Meant::Succeeds => &[State::Succeeded][..],
            Meant::Fails => &[State::Failed],
            Meant::Refused => &[State::Rejected],
            Meant::MayBeLate => &[State::Succeeded, State::Expired, State::Rejected],
            Meant::MayBeCancelled => &[State::Succeeded, State::Cancelled],
        };
        let starts = self.ledger.executed.get(&task.id).into_iter().flatten().filter(|line| line.what == What::Started);
        // Who was lost before the model wrote a line had the task all the same.
        let began = starts.map(|line| line.at).min().or_else(|| self.ledger.accepted.get(&task.id).copied());
        let is_suspected = end.state == State::Failed
            && end.code.as_deref() == Some(WORKER_LOST)
            && began.is_some_and(|began| self.suffered(began, u64::MAX).take(2).count() == 2);
        if is_suspected && task.meant != Meant::Fails {
            self.suspected.insert(task.id);
            self.figures.suspected += 1;
        } else if !may.contains(&end.state) {
            let codes: Vec<_> = self.ledger.told.get(&task.id).into_iter().flatten().map(|told| &told.code).collect();
            let what = format!("{}, {:?}, ended as {} {codes:?}", task.id, task.meant, end.state.as_str());
            self.broke(Rule::WrongEnd, what);
        }
    }

    fn executions(&mut self, task: &Attempted, end: Option<&End>) {
        let ledger = self.ledger;
        let id = task.id;
        let lines = ledger.executed.get(&id).map_or(&[][..], Vec::as_slice);
        let outcomes: HashMap<&str, What> =
            lines.iter().filter(|line| line.what != What::Started).map(|line| (line.run.as_str(), line.what)).collect();
        let mut starts: Vec<_> = lines.iter().filter(|line| line.what == What::Started).collect();
        starts.sort_by_key(|line| line.at);
        self.figures.executions += starts.len();
        if let Some(End { state: State::Succeeded, run, .. }) = end {
            let is_its_own = run.as_deref().is_some_and(|run| outcomes.get(run) == Some(&What::Finished));
            if !is_its_own {
                self.broke(Rule::StrangeEffect, format!("{id} shows {run:?}, which did not finish it"));
            }
        }
        let (Some(first), Some(last)) = (starts.first(), starts.last()) else { return };
        if task.meant == Meant::Refused {
            self.broke(Rule::RefusedAndRan, id.to_string());
        }
        let faults = self.suffered(first.at, last.at).count();
        let allowed = task.max_attempts as usize + faults;
        let attempts = starts.len().max(end.map_or(0, |end| end.attempt as usize));
        if attempts > allowed {
            let what = format!("{id} has {attempts} of {} and {faults} faults", task.max_attempts);
            self.broke(Rule::TooManyAttempts, what);
        }
        for pair in starts.windows(2) {
            let [before, after] = pair else { continue };
            if outcomes.get(before.run.as_str()) == Some(&What::Failed) {
                continue;
            }
            self.figures.repeats += 1;
            if self.suffered(before.at, after.at).next().is_none() {
                let what = format!("{id} ran at {} ({}) and at {} ({})", before.at, before.run, after.at, after.run);
                self.broke(Rule::UnexplainedRepeat, what);
            }
        }
    }

    fn workflows(&mut self) {
        let ledger = self.ledger;
        let (wrong, ends) = ledger
            .workflows
            .check(|from, until| self.flushed(from, until), |from, until| self.suffered(from, until).count());
        self.figures.workflows = ends;
        self.figures.steps_executed = ledger.workflows.executions();
        self.broken.extend(wrong);
    }

    fn ticks(&mut self) {
        let ledger = self.ledger;
        self.figures.ticks = ledger.ticks.scheduled.map_or(0, |scheduled| scheduled.due().count());
        for id in ledger.ticks.lost() {
            self.broke(Rule::Lost, format!("{id}, a tick of the schedule"));
        }
        for (id, before, after) in ledger.ticks.repeats() {
            self.figures.ticks_repeated += 1;
            if self.suffered(before, after).next().is_none() {
                self.broke(Rule::UnexplainedRepeat, format!("{id}, a tick, ran at {before} and at {after}"));
            }
        }
    }

    fn strangers(&mut self) {
        let ledger = self.ledger;
        let seen: HashSet<&Uuid> = ledger.told.keys().chain(ledger.executed.keys()).collect();
        for id in seen {
            if !ledger.attempted.contains_key(id) {
                self.broke(Rule::Unexpected, id.to_string());
            }
        }
    }

    fn dead_letters(&mut self) {
        let ledger = self.ledger;
        let dead: HashSet<&Uuid> = ledger.dead.iter().collect();
        for task in ledger.attempted.values().filter(|task| ledger.accepted.contains_key(&task.id)) {
            let must = matches!(task.meant, Meant::Fails | Meant::Refused) || self.suspected.contains(&task.id);
            if must != dead.contains(&task.id) {
                let what = if must { "has no dead letter" } else { "has one" };
                self.broke(Rule::WrongDeadLetter, format!("{}, {:?}, {what}", task.id, task.meant));
            }
        }
    }

    fn processes(&mut self) {
        for line in self.ledger.panics.clone() {
            self.broke(Rule::Panicked, line);
        }
        for ended in self.ledger.ended.iter().filter(|ended| ended.is_wrong) {
            self.broken
                .push(Broken { rule: Rule::WrongExit, what: format!("{} at {}: {}", ended.role, ended.at, ended.how) });
        }
    }

    fn sizes(&mut self) {
        for held in &self.ledger.held {
            self.figures.files_open = self.figures.files_open.max(held.files);
            self.figures.resident_mb = self.figures.resident_mb.max(held.resident_mb);
            if held.files > FILES_MOST || held.resident_mb > RESIDENT_MB_MOST {
                self.broken.push(Broken { rule: Rule::Grown, what: format!("{held:?}") });
            }
        }
    }

    /// From the first accepted task to the last end there is no long time without an end and without a fault.
    fn liveness(&mut self) {
        let ledger = self.ledger;
        if let Some(what) = &ledger.gave_up {
            self.broke(Rule::GaveUp, what.clone());
        }
        let Some(begin) = ledger.accepted.values().min().copied() else { return };
        let told = ledger.told.values().flatten().map(|told| told.at);
        let finished = ledger.executed.values().flatten().filter(|line| line.what != What::Started).map(|line| line.at);
        let mut ends: Vec<u64> = told.chain(finished).filter(|at| *at >= begin).collect();
        ends.sort_unstable();
        let mut faults: Vec<(u64, u64)> = ledger.faults.iter().map(|fault| (fault.from, fault.until)).collect();
        faults.sort_unstable();
        let mut before = begin;
        let mut longest = (0, begin);
        for end in ends {
            // Only a gap that is long at all is worth the sum over the faults.
            if end - before > longest.0 {
                longest = longest.max((end - before - covered(&faults, before, end), before));
            }
            before = end;
        }
        self.figures.longest_quiet_ms = longest.0;
        if longest.0 > STALLED_MS {
            let what = format!("no end for {} ms without a fault, from {}", longest.0, longest.1);
            self.broke(Rule::Stalled, what);
        }
    }

    fn end_state(&mut self) {
        for left in self.ledger.left.iter().filter(|left| left.ready + left.unacked > 0) {
            let what = format!("{}: {} ready, {} unacknowledged", left.queue, left.ready, left.unacked);
            self.broken.push(Broken { rule: Rule::Stray, what });
        }
        if let Some(overtaking) = &self.ledger.overtaking
            && overtaking.most_before > overtaking.allowed
        {
            let what = format!("{overtaking:?}");
            self.broke(Rule::NotOvertaken, what);
        }
    }
}

/// How much of the time the faults take, which are sorted by their begin; where they overlap it counts once.
fn covered(faults: &[(u64, u64)], from: u64, until: u64) -> u64 {
    let mut sum = 0;
    let mut reached = from;
    for (begin, end) in faults {
        let (begin, end) = ((*begin).max(reached), (*end).min(until));
        if begin < end {
            sum += end - begin;
            reached = end;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ended, Executed, Held, Left, Overtaking, Recorded, Way};

    /// A ledger in which three tasks went as they should: one succeeded, one over HTTP too, one failed.
    fn good() -> Ledger {
        let mut ledger = Ledger::default();
        task(&mut ledger, 1, Way::Single, Meant::Succeeds);
        told(&mut ledger, 1, State::Succeeded, Some("a"));
        executed(&mut ledger, 1, "a", 200, What::Finished);
        record(&mut ledger, 1, Some(State::Succeeded), Some("a"));

        task(&mut ledger, 2, Way::Http, Meant::Succeeds);
        executed(&mut ledger, 2, "b", 200, What::Finished);
        record(&mut ledger, 2, Some(State::Succeeded), Some("b"));

        task(&mut ledger, 3, Way::Batch, Meant::Fails);
        told(&mut ledger, 3, State::Failed, None);
        executed(&mut ledger, 3, "c", 200, What::Failed);
        executed(&mut ledger, 3, "d", 300, What::Failed);
        record(&mut ledger, 3, Some(State::Failed), None);
        ledger.dead.push(id(3));
        ledger
    }

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn task(ledger: &mut Ledger, number: u128, way: Way, meant: Meant) {
        let task = Attempted { at: 100, id: id(number), way, meant, max_attempts: 2 };
        ledger.attempted.insert(task.id, task);
        ledger.accepted.insert(id(number), 110);
    }

    fn told(ledger: &mut Ledger, number: u128, state: State, run: Option<&str>) {
        let line = Told {
            at: 1_000,
            id: id(number),
            state,
            attempt: 1,
            run: run.map(str::to_owned),
            code: (state == State::Failed && run.is_none()).then(|| WORKER_LOST.into()),
            digest: run.map_or(0, |run| u64::from(run.as_bytes()[0])),
        };
        ledger.told.entry(line.id).or_default().push(line);
    }

    fn executed(ledger: &mut Ledger, number: u128, run: &str, at: u64, what: What) {
        for (at, what) in [(at, What::Started), (at + 5, what)] {
            let line = Executed { at, what, id: id(number), attempt: 1, run: run.into() };
            ledger.executed.entry(line.id).or_default().push(line);
        }
    }

    fn record(ledger: &mut Ledger, number: u128, state: Option<State>, run: Option<&str>) {
        let record = Recorded { id: id(number), state, attempt: 1, run: run.map(str::to_owned), code: None };
        ledger.recorded.insert(record.id, record);
    }

    fn fault(ledger: &mut Ledger, kind: &str, from: u64, until: u64) {
        ledger.faults.push(Suffered { from, until, kind: kind.into(), detail: String::new() });
    }

    /// What breaks, once each.
    fn rules(ledger: &Ledger) -> Vec<Rule> {
        check(ledger).rules().into_keys().collect()
    }

    #[test]
    fn a_good_ledger_is_good() {
        let verdict = check(&good());
        assert_eq!(verdict.broken, vec![]);
        assert_eq!(verdict.figures.ends, BTreeMap::from([("succeeded", 2), ("failed", 1)]));
        assert_eq!((verdict.figures.executions, verdict.figures.repeats), (4, 0));
    }

    #[test]
    fn a_task_without_an_end_is_lost() {
        let mut ledger = good();
        task(&mut ledger, 9, Way::Single, Meant::Succeeds);
        assert_eq!(rules(&ledger), [Rule::Lost]);
        record(&mut ledger, 9, Some(State::Running), None);
        assert_eq!(rules(&ledger), [Rule::Lost], "it runs for ever");
        record(&mut ledger, 9, None, None);
        fault(&mut ledger, "store_flush", 500, 500);
        assert_eq!(rules(&ledger), [Rule::Lost], "a flush is no excuse where the publisher is to be told");
    }

    #[test]
    fn over_http_an_end_goes_with_a_flush_only_after_it_was_come_to() {
        let mut ledger = good();
        record(&mut ledger, 2, None, None);
        assert_eq!(rules(&ledger), [Rule::Lost]);
        fault(&mut ledger, "store_flush", 150, 150);
        assert_eq!(rules(&ledger), [Rule::Lost], "it ended after the flush");
        fault(&mut ledger, "store_flush", 900, 900);
        assert_eq!(rules(&ledger), []);
    }

    #[test]
    fn an_end_that_is_not_told_is_seen() {
        let mut ledger = good();
        ledger.told.remove(&id(1));
        assert_eq!(rules(&ledger), [Rule::NotTold]);
    }

    #[test]
    fn what_was_never_confirmed_may_be_lost_but_not_end_twice() {
        let mut ledger = good();
        task(&mut ledger, 9, Way::Single, Meant::Succeeds);
        ledger.accepted.remove(&id(9));
        assert_eq!(rules(&ledger), []);
        for run in ["x", "y"] {
            told(&mut ledger, 9, State::Succeeded, Some(run));
            executed(&mut ledger, 9, run, 200, What::Finished);
        }
        fault(&mut ledger, "role_kill", 150, 160);
        assert_eq!(rules(&ledger), [Rule::TwoEnds]);
    }

    #[test]
    fn told_again_is_the_same_unless_the_store_was_flushed() {
        let mut ledger = good();
        told(&mut ledger, 1, State::Succeeded, Some("a"));
        assert_eq!(rules(&ledger), []);
        assert_eq!(check(&ledger).figures.told_again, 1);

        told(&mut ledger, 1, State::Succeeded, Some("z"));
        executed(&mut ledger, 1, "z", 300, What::Finished);
        fault(&mut ledger, "role_kill", 250, 260);
        assert_eq!(rules(&ledger), [Rule::TwoEnds]);
        fault(&mut ledger, "store_flush", 2_000, 2_000);
        assert_eq!(rules(&ledger), [Rule::TwoEnds], "a flush afterwards explains nothing");
        fault(&mut ledger, "store_flush", 190, 190);
        assert_eq!(rules(&ledger), [Rule::TwoEnds], "neither does one that was over when both had yet to end");
        fault(&mut ledger, "store_flush", 280, 280);
        assert_eq!(rules(&ledger), []);
        assert_eq!(check(&ledger).figures.told_again_after_flush, 1);
    }

    #[test]
    fn an_effect_is_that_of_an_execution_that_finished() {
        let mut ledger = good();
        ledger.executed.get_mut(&id(1)).unwrap().retain(|line| line.what == What::Started);
        assert_eq!(rules(&ledger), [Rule::StrangeEffect]);
    }

    #[test]
    fn a_record_says_what_was_told() {
        let mut ledger = good();
        record(&mut ledger, 1, Some(State::Succeeded), Some("another"));
        assert_eq!(rules(&ledger), [Rule::WrongRecord]);
        record(&mut ledger, 1, Some(State::Running), None);
        assert_eq!(rules(&ledger), [Rule::WrongRecord]);
        record(&mut ledger, 1, None, None);
        assert_eq!(rules(&ledger), [Rule::WrongRecord]);
        fault(&mut ledger, "store_flush", 500, 500);
        assert_eq!(rules(&ledger), []);
    }

    #[test]
    fn a_task_ends_as_it_was_meant_to() {
        let mut ledger = good();
        task(&mut ledger, 9, Way::Single, Meant::Succeeds);
        told(&mut ledger, 9, State::Rejected, None);
        assert_eq!(rules(&ledger), [Rule::WrongEnd]);
        ledger.attempted.get_mut(&id(9)).unwrap().meant = Meant::MayBeLate;
        assert_eq!(rules(&ledger), []);
    }

    #[test]
    fn a_task_that_lost_two_workers_may_fail_and_then_has_a_dead_letter() {
        let mut ledger = good();
        task(&mut ledger, 9, Way::Single, Meant::Succeeds);
        told(&mut ledger, 9, State::Failed, None);
        ledger.dead.push(id(9));
        executed(&mut ledger, 9, "x", 200, What::Finished);
        fault(&mut ledger, "role_kill", 200, 210);
        let wrong = [Rule::WrongEnd, Rule::WrongDeadLetter];
        assert_eq!(rules(&ledger), wrong, "one kill is not enough");
        fault(&mut ledger, "role_kill", 220, 230);
        assert_eq!(rules(&ledger), []);
        assert_eq!(check(&ledger).figures.suspected, 1);
        ledger.dead.pop();
        assert_eq!(rules(&ledger), [Rule::WrongDeadLetter]);
        ledger.dead.push(id(9));
        ledger.executed.remove(&id(9));
        assert_eq!(rules(&ledger), [], "both were lost before the model wrote a line");
        ledger.told.get_mut(&id(9)).unwrap()[0].code = Some("meant_to_fail".into());
        assert_eq!(rules(&ledger), wrong, "its own failure");
    }

    #[test]
    fn a_repeat_has_its_fault_and_attempts_their_limit() {
        let mut ledger = good();
        executed(&mut ledger, 1, "again", 300, What::Finished);
        assert_eq!(rules(&ledger), [Rule::UnexplainedRepeat]);
        fault(&mut ledger, "role_kill", 400, 500);
        assert_eq!(rules(&ledger), [Rule::UnexplainedRepeat], "that came later");
        fault(&mut ledger, "role_clock", 250, 260);
        assert_eq!(rules(&ledger), [Rule::UnexplainedRepeat], "a clock ends no attempt");
        fault(&mut ledger, "role_kill", 250, 260);
        assert_eq!(rules(&ledger), []);
        executed(&mut ledger, 1, "third", 310, What::Finished);
        assert_eq!(rules(&ledger), [], "two and a crash");
        executed(&mut ledger, 1, "fourth", 320, What::Finished);
        assert_eq!(rules(&ledger), [Rule::TooManyAttempts]);
    }

    #[test]
    fn what_nobody_published_and_what_was_refused_does_not_run() {
        let mut ledger = good();
        executed(&mut ledger, 99, "x", 200, What::Finished);
        assert_eq!(rules(&ledger), [Rule::Unexpected]);
        task(&mut ledger, 99, Way::Single, Meant::Refused);
        told(&mut ledger, 99, State::Rejected, None);
        ledger.dead.push(id(99));
        assert_eq!(rules(&ledger), [Rule::RefusedAndRan]);
    }

    #[test]
    fn dead_letters_are_of_those_that_failed_and_of_no_others() {
        let mut ledger = good();
        ledger.dead.push(id(1));
        assert_eq!(rules(&ledger), [Rule::WrongDeadLetter]);
        ledger.dead.clear();
        assert_eq!(rules(&ledger), [Rule::WrongDeadLetter]);
    }

    #[test]
    fn nothing_is_left_nobody_panics_and_processes_end_as_told() {
        let mut ledger = good();
        ledger.left.push(Left { queue: "ready".into(), ready: 0, unacked: 0 });
        assert_eq!(rules(&ledger), []);
        ledger.left.push(Left { queue: "retry".into(), ready: 0, unacked: 1 });
        ledger.panics.push("panicked at".into());
        let ended = |is_wrong| Ended { at: 1, role: "worker".into(), how: "exit code 1".into(), is_wrong };
        ledger.ended.extend([ended(false), ended(true)]);
        ledger.gave_up = Some("one task".into());
        ledger.overtaking = Some(Overtaking { backlog: 300, urgent: 10, most_before: 50, allowed: 20 });
        let expected = [Rule::Stray, Rule::Panicked, Rule::WrongExit, Rule::GaveUp, Rule::NotOvertaken];
        assert_eq!(rules(&ledger), expected);
        assert_eq!(check(&ledger).broken.len(), 5);
    }

    #[test]
    fn a_process_that_has_grown_is_seen() {
        let mut ledger = good();
        let held = |files, resident_mb| Held { role: "worker".into(), files, resident_mb };
        ledger.held = vec![held(FILES_MOST, RESIDENT_MB_MOST)];
        assert_eq!(rules(&ledger), []);
        for grown in [held(FILES_MOST + 1, 1), held(1, RESIDENT_MB_MOST + 1)] {
            ledger.held = vec![held(1, 1), grown];
            assert_eq!(check(&ledger).rules(), BTreeMap::from([(Rule::Grown, 1)]));
        }
    }

    #[test]
    fn a_long_quiet_is_seen_unless_a_fault_explains_it() {
        let mut ledger = good();
        task(&mut ledger, 9, Way::Single, Meant::Succeeds);
        executed(&mut ledger, 9, "late", 100_000, What::Finished);
        told(&mut ledger, 9, State::Succeeded, Some("late"));
        assert_eq!(rules(&ledger), [Rule::Stalled]);
        fault(&mut ledger, "broker_stop", 20_000, 70_000);
        fault(&mut ledger, "role_kill", 30_000, 40_000);
        assert_eq!(rules(&ledger), []);
        assert_eq!(check(&ledger).figures.longest_quiet_ms, 100_005 - 1_000 - 50_000);
    }

    #[test]
    fn time_that_two_faults_share_counts_once() {
        assert_eq!(covered(&[(0, 10), (5, 15), (30, 40), (90, 200)], 8, 100), 7 + 10 + 10);
    }
}
