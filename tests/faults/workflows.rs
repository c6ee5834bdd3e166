//! Workflows among the load: what is published, what is told, and what that must say. Their steps are tasks whose ids are made from
//! the workflow's, so the executor's lines say which of them ran.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use taskyard_shared::broker::{Broker, Destination, Message, Properties};
use taskyard_shared::workflow::WorkflowId;
use taskyard_shared::{State, Topology};
use uuid::Uuid;

use crate::check::{Broken, Rule, WORKER_LOST};
use crate::ledger::{Executed, Files, Meant, What, now_ms};
use crate::load::{AGAIN_AFTER, EVERY, http, is_for_later};
use crate::observe::read;
use crate::yard::NAMESPACE;

pub const PUBLISHED: &str = "workflows_published";
pub const CONFIRMED: &str = "workflows_confirmed";
pub const TOLD: &str = "workflows_told";

/// Of a step some of whose tasks failed. In these workflows nothing but lost workers fails one.
const ITEMS_FAILED: &str = "items_failed";

/// Tasks that the step `parts` is.
const PARTS: u32 = 3;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Published {
    pub at: u64,
    pub id: Uuid,
    pub meant: Meant,
}

/// A workflow's end, as it came to the reply queue.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Told {
    pub at: u64,
    pub id: Uuid,
    pub state: State,
    /// Of the last step: whose effect it is, and what it was given.
    pub joined: Option<Joined>,
    pub code: Option<String>,
}

/// What the executor answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Effect {
    pub run: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Part {
    pub run: String,
    pub seen: Effect,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Joined {
    pub run: String,
    pub seen: Given,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Given {
    pub first: Effect,
    pub parts: Vec<Part>,
}

/// What is known so far, for whoever waits for the rest.
#[derive(Default)]
pub struct Known {
    pub confirmed: HashSet<Uuid>,
    pub told: HashSet<Uuid>,
}

/// How workflows are published.
pub enum Post {
    Message { broker: Arc<dyn Broker>, replies: String },
    Http,
}

/// A client that publishes workflows.
pub struct Client {
    pub post: Post,
    pub api: String,
    pub files: Arc<Files>,
    pub known: Arc<Mutex<Known>>,
}

impl Client {
    /// `count` of them, evenly over `duration`.
    pub async fn run(self, seed: u64, count: usize, duration: Duration) {
        let http = http();
        let mut random = fastrand::Rng::with_seed(seed ^ 0x776f_726b);
        let begun = tokio::time::Instant::now();
        let mut ticks = tokio::time::interval(EVERY);
        for number in 0..count {
            while begun.elapsed().as_secs_f64() < duration.as_secs_f64() * number as f64 / count as f64 {
                ticks.tick().await;
            }
            let id = Uuid::from_u128(random.u128(..));
            let meant = match random.u8(0..10) {
                0 => Meant::Fails,
                1 => Meant::MayBeCancelled,
                _ => Meant::Succeeds,
            };
            self.publish(&http, id, meant, body(id, number, meant, &mut random)).await;
            if meant == Meant::MayBeCancelled {
                // Whether it comes in time, or at all, is not what this is about.
                let _asked = http.post(format!("{}/v1/workflows/{id}/cancel", self.api)).send().await;
            }
        }
    }

    /// Until it is confirmed.
    async fn publish(&self, http: &reqwest::Client, id: Uuid, meant: Meant, body: Value) {
        self.files.write(PUBLISHED, &[Published { at: now_ms(), id, meant }]);
        loop {
            let is_confirmed = match &self.post {
                Post::Message { broker, replies } => {
                    broker.publish(vec![message(id, &body, replies)]).await.iter().all(Result::is_ok)
                }
                Post::Http => match http.post(format!("{}/v1/workflows", self.api)).json(&body).send().await {
                    Ok(answer) => {
                        let status = answer.status();
                        assert!(status.is_success() || is_for_later(status.as_u16()), "{answer:?}");
                        status.is_success()
                    }
                    Err(_) => false,
                },
            };
            if is_confirmed {
                break;
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        self.files.write(CONFIRMED, &[id]);
        self.known.lock().unwrap().confirmed.insert(id);
    }
}

fn message(id: Uuid, body: &Value, replies: &str) -> Message {
    Message {
        to: Destination::Exchange { name: Topology::new(NAMESPACE).tasks_exchange(), key: "any".into() },
        body: body.to_string().into(),
        properties: Properties {
            kind: Some("workflow".into()),
            message_id: Some(id.to_string()),
            reply_to: Some(replies.to_owned()),
            ..Properties::default()
        },
        persistent: true,
        mandatory: true,
    }
}

/// One step, several that take from it, and one that takes from all of them.
fn body(id: Uuid, number: usize, meant: Meant, random: &mut fastrand::Rng) -> Value {
    let mut first = json!({"name": "first", "model": "quick", "input": {"n": number, "ms": random.u64(0..4)}});
    if meant == Meant::Fails {
        first["input"]["fails"] = json!(1_000);
        first["max_attempts"] = json!(2);
    }
    let last = if random.u8(0..4) == 0 { ("slow", 400) } else { ("quick", 2) };
    json!({"id": id, "priority": random.u8(0..10), "tasks": [
        {"name": "join", "model": last.0, "input": {"n": number, "ms": last.1, "from": {
            "first": {"$from": "first"}, "parts": {"$from": "parts"}}}},
        {"name": "parts", "model": "quick", "for_each": (0..PARTS).collect::<Vec<u32>>(), "input": {
            "n": {"$item": ""}, "ms": 1, "from": {"$from": "first"}}},
        first,
    ]})
}

/// How a workflow stands, as it is told and looked up.
#[derive(Deserialize)]
struct Seen {
    id: Uuid,
    state: State,
    #[serde(default)]
    outputs: HashMap<String, Joined>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    code: String,
}

impl Seen {
    fn told(mut self) -> Told {
        let joined = self.outputs.remove("join");
        Told { at: now_ms(), id: self.id, state: self.state, joined, code: self.error.map(|error| error.code) }
    }
}

/// Writes down what is told until it is stopped.
pub async fn observe(broker: Arc<dyn Broker>, replies: String, files: Arc<Files>, known: Arc<Mutex<Known>>) {
    read(broker, &replies, |deliveries| {
        let told = deliveries.iter().map(|delivery| serde_json::from_slice::<Seen>(&delivery.body).unwrap().told());
        let lines: Vec<Told> = told.collect();
        files.write(TOLD, &lines);
        known.lock().unwrap().told.extend(lines.iter().map(|line| line.id));
    })
    .await;
}

/// Looks up what has not ended until it is stopped, and writes down how it ended.
pub async fn ask(api: String, files: Arc<Files>, known: Arc<Mutex<Known>>) {
    let http = http();
    loop {
        let waited_for: Vec<Uuid> = {
            let known = known.lock().unwrap();
            known.confirmed.difference(&known.told).copied().collect()
        };
        for id in waited_for {
            if let Some(end) = look_up(&http, &api, id).await {
                files.write(TOLD, &[end]);
                known.lock().unwrap().told.insert(id);
            }
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// How it ended, if it has.
pub async fn look_up(http: &reqwest::Client, api: &str, id: Uuid) -> Option<Told> {
    let answer = http.get(format!("{api}/v1/workflows/{id}")).send().await.ok()?;
    let seen: Seen = answer.error_for_status().ok()?.json().await.ok()?;
    seen.state.is_terminal().then(|| seen.told())
}

/// All of it, read back.
#[derive(Clone, Debug, Default)]
pub struct Workflows {
    pub published: Vec<Published>,
    pub confirmed: HashSet<Uuid>,
    pub told: HashMap<Uuid, Vec<Told>>,
    /// Of steps' tasks, by their ids.
    pub executed: HashMap<Uuid, Vec<Executed>>,
}

impl Workflows {
    /// Takes out of `executed` what is of steps.
    pub fn read(files: &Files, executed: &mut HashMap<Uuid, Vec<Executed>>) -> Self {
        let published: Vec<Published> = files.read(PUBLISHED);
        let mut told: HashMap<Uuid, Vec<Told>> = HashMap::new();
        for line in files.read::<Told>(TOLD) {
            told.entry(line.id).or_default().push(line);
        }
        let steps = published.iter().flat_map(|line| steps(line.id)).map(|(_, id)| id);
        let executed = steps.filter_map(|id| executed.remove_entry(&id)).collect();
        Self { published, confirmed: files.read(CONFIRMED).into_iter().collect(), told, executed }
    }

    /// What is wrong, and how many ended in which state. Between two times: `flushed` says whether the store was emptied, `suffered` how many
    /// faults may have cut attempts.
    pub fn check(
        &self,
        flushed: impl Fn(u64, u64) -> bool,
        suffered: impl Fn(u64, u64) -> usize,
    ) -> (Vec<Broken>, BTreeMap<&'static str, usize>) {
        let (mut wrong, mut ends) = (Vec::new(), BTreeMap::new());
        let mut broke = |rule, what| wrong.push(Broken { rule, what });
        for workflow in &self.published {
            let id = workflow.id;
            let told = self.told.get(&id).map_or(&[][..], Vec::as_slice);
            let Some((first, again)) = told.split_first() else {
                if self.confirmed.contains(&id) {
                    broke(Rule::Lost, format!("workflow {id}, {:?}", workflow.meant));
                }
                continue;
            };
            *ends.entry(first.state.as_str()).or_default() += 1;
            let may = match workflow.meant {
                Meant::Fails => &[State::Failed][..],
                Meant::MayBeCancelled => &[State::Succeeded, State::Cancelled],
                _ => &[State::Succeeded],
            };
            // A step that lost its workers, which takes two, fails it as any other; of several tasks the step's own code says it.
            let is_suspected = first.state == State::Failed
                && first.code.as_deref().is_some_and(|code| [WORKER_LOST, ITEMS_FAILED].contains(&code))
                && suffered(workflow.at, first.at) >= 2;
            if !may.contains(&first.state) && !is_suspected {
                let what =
                    format!("workflow {id}, {:?}, ended as {} {:?}", workflow.meant, first.state.as_str(), first.code);
                broke(Rule::WrongEnd, what);
            }
            for told in again {
                let is_other = (told.state, &told.joined) != (first.state, &first.joined);
                if is_other && !flushed(workflow.at, told.at) {
                    broke(Rule::TwoEnds, format!("workflow {id}: {first:?}, then {told:?}"));
                }
            }
            if first.state == State::Succeeded {
                let is_flushed = flushed(workflow.at, first.at);
                if let Some(what) = self.strange_effect(id, first.joined.as_ref(), is_flushed) {
                    broke(Rule::StrangeEffect, what);
                }
            }
        }
        (wrong, ends)
    }

    /// A result shows what its steps did, each of them the effect of one execution which came to its end, and each was given what
    /// the others show. Where the store lost what a step gave, that step alone runs again, and the others keep what they were given.
    fn strange_effect(&self, id: Uuid, joined: Option<&Joined>, is_flushed: bool) -> Option<String> {
        let Some(Joined { run, seen: Given { first, parts } }) = joined else {
            return Some(format!("workflow {id} succeeded and shows nothing"));
        };
        let is_mixed = parts.iter().any(|part| part.seen != *first) && !is_flushed;
        if parts.len() != PARTS as usize || is_mixed {
            return Some(format!("workflow {id} joins what was not made of the same: {joined:?}"));
        }
        let workflow = WorkflowId(id);
        let items = (0..).zip(parts).map(|(item, part)| (workflow.task("parts", Some(item)), &part.run));
        let shown = [(workflow.task("first", None), &first.run), (workflow.task("join", None), run)];
        let strange = shown.into_iter().chain(items).find(|(task, run)| {
            let lines = self.executed.get(&task.0).map_or(&[][..], Vec::as_slice);
            !lines.iter().any(|line| line.what == What::Finished && line.run == **run)
        });
        strange.map(|(task, run)| format!("workflow {id} shows {run} of its task {}, which did not finish it", task.0))
    }

    /// Executions of steps.
    pub fn executions(&self) -> usize {
        self.executed.values().flatten().filter(|line| line.what == What::Started).count()
    }
}

/// The tasks of a workflow's steps.
fn steps(id: Uuid) -> impl Iterator<Item = (&'static str, Uuid)> {
    let workflow = WorkflowId(id);
    let parts = (0..PARTS).map(move |item| ("parts", workflow.task("parts", Some(item)).0));
    [("first", workflow.task("first", None).0), ("join", workflow.task("join", None).0)].into_iter().chain(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that went as it should.
    fn good() -> Workflows {
        let id = Uuid::from_u128(1);
        let first = Effect { run: "first".into() };
        let part = |item: u32| Part { run: format!("part{item}"), seen: first.clone() };
        let given = Given { first: first.clone(), parts: (0..PARTS).map(part).collect() };
        let joined = Joined { run: "join".into(), seen: given };
        let runs = ["first", "join", "part0", "part1", "part2"];
        let line = |id: Uuid, run: &str, what| Executed { at: 5, what, id, attempt: 1, run: run.into() };
        let executed = steps(id)
            .zip(runs)
            .map(|((_, task), run)| (task, vec![line(task, run, What::Started), line(task, run, What::Finished)]));
        Workflows {
            published: vec![Published { at: 1, id, meant: Meant::Succeeds }],
            confirmed: [id].into(),
            told: [(id, vec![Told { at: 9, id, state: State::Succeeded, joined: Some(joined), code: None }])].into(),
            executed: executed.collect(),
        }
    }

    fn wrong(change: impl FnOnce(&mut Workflows, &mut Vec<Told>)) -> Vec<Rule> {
        wrong_after(0, change)
    }

    fn wrong_after(faults: usize, change: impl FnOnce(&mut Workflows, &mut Vec<Told>)) -> Vec<Rule> {
        let mut workflows = good();
        let id = workflows.published[0].id;
        let mut told = workflows.told.remove(&id).unwrap();
        change(&mut workflows, &mut told);
        if !told.is_empty() {
            workflows.told.insert(id, told);
        }
        workflows.check(|_, _| false, |_, _| faults).0.into_iter().map(|broken| broken.rule).collect()
    }

    #[test]
    fn a_workflow_that_went_as_it_should_is_good_and_each_thing_that_may_be_wrong_is_seen() {
        assert_eq!(wrong(|_, _| {}), []);
        assert_eq!(wrong(|_, told| told.clear()), [Rule::Lost]);
        assert_eq!(wrong(|_, told| told[0].state = State::Failed), [Rule::WrongEnd]);
        assert_eq!(wrong(|_, told| told[0].joined = None), [Rule::StrangeEffect]);
        assert_eq!(wrong(|workflows, _| workflows.executed.clear()), [Rule::StrangeEffect]);
        let other = |told: &mut Vec<Told>| {
            let joined = told[0].joined.as_mut().unwrap();
            joined.seen.parts[1].seen.run = "another".into();
        };
        assert_eq!(wrong(|_, told| other(told)), [Rule::StrangeEffect]);
        let again = |told: &mut Vec<Told>| {
            told.push(told[0].clone());
            told[1].joined.as_mut().unwrap().run = "again".into();
        };
        assert_eq!(wrong(|_, told| again(told)), [Rule::TwoEnds]);
        assert_eq!(wrong(|_, told| told.push(told[0].clone())), [], "told again is told the same");
    }

    #[test]
    fn a_step_is_held_to_have_lost_its_workers_after_two_faults_and_no_sooner() {
        for (code, is_excused) in [(WORKER_LOST, true), (ITEMS_FAILED, true), ("meant_to_fail", false)] {
            for (faults, are_enough) in [(1, false), (2, true)] {
                let fails =
                    |told: &mut Vec<Told>| (told[0].state, told[0].code) = (State::Failed, Some(code.to_owned()));
                let wrong = wrong_after(faults, |_, told| fails(told));
                assert_eq!(wrong.is_empty(), is_excused && are_enough, "{code} after {faults}: {wrong:?}");
            }
        }
    }
}
