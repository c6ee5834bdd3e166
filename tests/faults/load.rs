//! The load: what is published, by whom, and what is written down about it. Whatever is not confirmed is published again under
//! its id, until it is.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use taskyard_shared::broker::{Broker, Destination, Message, Properties};
use taskyard_shared::messages::RESULTS_HEADER;
use taskyard_shared::{Topology, broker::PublishError};
use tokio::time::Instant;
use uuid::Uuid;

use crate::ledger::{ACCEPTED, ATTEMPTED, Accepted, Attempted, Files, Meant, NOT_ACCEPTED, NotAccepted, Way, now_ms};
use crate::yard::{MAX_ATTEMPTS, NAMESPACE, SLOW_SLOTS};

/// Most tasks that one client publishes at once, and in one batch message.
const AT_ONCE: usize = 100;
const BATCH: usize = 20;

/// How often a client looks whether something is due.
pub const EVERY: Duration = Duration::from_millis(50);

pub const AGAIN_AFTER: Duration = Duration::from_millis(200);
const HTTP_LIMIT: Duration = Duration::from_secs(10);

/// Mean time of a task of the model `slow`; milliseconds.
const SLOW_MS: u64 = 800;

pub struct Task {
    pub id: Uuid,
    pub meant: Meant,
    pub body: Value,
    pub max_attempts: u32,
}

/// Tasks of one client, from its seed.
pub struct Tasks {
    random: fastrand::Rng,
    way: Way,
    /// Of a thousand tasks.
    slow_per_mille: u64,
}

impl Tasks {
    /// `count` of all clients within `duration`: slow tasks are to take a third of their slots' time.
    pub fn new(seed: u64, way: Way, count: usize, duration: Duration) -> Self {
        let seconds = duration.as_secs().max(1);
        let slow = seconds * SLOW_SLOTS * 1_000 / SLOW_MS / 3;
        let slow_per_mille = (slow * 1_000 / (count as u64).max(1)).min(100);
        Self { random: fastrand::Rng::with_seed(seed ^ (way as u64 + 1) << 32), way, slow_per_mille }
    }

    pub fn next(&mut self, n: usize) -> Task {
        let random = &mut self.random;
        let id = Uuid::from_u128(random.u128(..));
        let (mut meant, mut max_attempts) = (Meant::Succeeds, MAX_ATTEMPTS);
        let mut input = json!({"n": n, "ms": random.u64(0..4)});
        let mut body = json!({
            "id": id,
            "model": "quick",
            "priority": random.u8(0..10),
            "tenant": format!("tenant-{}", random.u8(0..3)),
        });
        match random.u64(0..1_000) {
            0..10 => {
                (meant, max_attempts) = (Meant::Fails, 3);
                input["fails"] = json!(1_000);
            }
            10..50 => input["fails"] = json!(random.u32(1..3)),
            50..60 => {
                meant = Meant::Refused;
                body["model"] = json!("nowhere");
            }
            60..90 => {
                meant = Meant::MayBeLate;
                body["deadline_ms"] = json!(random.u64(200..3_000));
            }
            90..110 if !self.way.is_told() => meant = Meant::MayBeCancelled,
            drawn if drawn >= 1_000 - self.slow_per_mille => {
                body["model"] = json!("slow");
                input["ms"] = json!(random.u64(100..2 * SLOW_MS - 100));
            }
            _ => {}
        }
        if max_attempts != MAX_ATTEMPTS {
            body["max_attempts"] = json!(max_attempts);
        }
        body["input"] = input;
        Task { id, meant, body, max_attempts }
    }
}

/// What is known so far, for whoever waits for the rest.
#[derive(Default)]
pub struct Known {
    /// Accepted, and to be told of.
    pub to_be_told: HashSet<Uuid>,
    /// Accepted over HTTP.
    pub to_be_found: HashSet<Uuid>,
    /// Those of them that nobody asks about at the moment.
    pub to_be_asked: VecDeque<Uuid>,
    /// Those of them that may end without having run.
    pub may_not_run: HashSet<Uuid>,
    pub told: HashSet<Uuid>,
}

/// What publishers write to.
#[derive(Clone)]
pub struct Books {
    pub files: Arc<Files>,
    pub known: Arc<Mutex<Known>>,
}

impl Books {
    fn attempted(&self, way: Way, tasks: &[Task]) {
        let line = |task: &Task| Attempted {
            at: now_ms(),
            id: task.id,
            way,
            meant: task.meant,
            max_attempts: task.max_attempts,
        };
        self.files.write(ATTEMPTED, &tasks.iter().map(line).collect::<Vec<_>>());
    }

    fn accepted(&self, way: Way, ids: &[Uuid]) {
        let lines: Vec<Accepted> = ids.iter().map(|id| Accepted { at: now_ms(), id: *id }).collect();
        self.files.write(ACCEPTED, &lines);
        let mut known = self.known.lock().unwrap();
        if way.is_told() {
            known.to_be_told.extend(ids);
        } else {
            known.to_be_found.extend(ids);
            known.to_be_asked.extend(ids);
        }
    }

    fn not_accepted(&self, ids: Vec<Uuid>, why: String) {
        self.files.write(NOT_ACCEPTED, &[NotAccepted { at: now_ms(), ids, why }]);
    }
}

/// Publishes `count` tasks, evenly over `duration`, `most` at once.
async fn evenly<F>(mut tasks: Tasks, count: usize, duration: Duration, most: usize, mut publish: F)
where
    F: AsyncFnMut(Vec<Task>),
{
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut published = 0;
    while published < count {
        ticks.tick().await;
        let due = (count as f64 * begun.elapsed().as_secs_f64() / duration.as_secs_f64()) as usize;
        while published < due.min(count) {
            let next = (due.min(count) - published).min(most);
            publish((published..published + next).map(|n| tasks.next(n)).collect()).await;
            published += next;
        }
    }
}

/// A client over AMQP, one task to a message or `BATCH` of them.
pub struct Publisher {
    pub broker: Arc<dyn Broker>,
    pub replies: String,
    pub books: Books,
    pub way: Way,
}

impl Publisher {
    pub async fn run(self, tasks: Tasks, count: usize, duration: Duration) {
        evenly(tasks, count, duration, AT_ONCE, async |tasks| self.publish(&tasks).await).await;
    }

    /// Until all are accepted.
    pub async fn publish(&self, tasks: &[Task]) {
        self.books.attempted(self.way, tasks);
        let size = if self.way == Way::Batch { BATCH } else { 1 };
        let mut left: Vec<&[Task]> = tasks.chunks(size).collect();
        while !left.is_empty() {
            let messages = left.iter().map(|tasks| self.message(tasks)).collect();
            let answers = self.broker.publish(messages).await;
            let ids = |tasks: &[Task]| tasks.iter().map(|task| task.id).collect::<Vec<_>>();
            let (mut accepted, mut again) = (Vec::new(), Vec::new());
            for (tasks, answer) in left.iter().zip(answers) {
                match answer {
                    Ok(()) => accepted.extend(ids(tasks)),
                    Err(error) => {
                        let is_hopeless = matches!(error, PublishError::TooLarge);
                        assert!(!is_hopeless, "{error}");
                        self.books.not_accepted(ids(tasks), error.to_string());
                        again.push(*tasks);
                    }
                }
            }
            self.books.accepted(self.way, &accepted);
            left = again;
            if !left.is_empty() {
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
    }

    fn message(&self, tasks: &[Task]) -> Message {
        let mut properties = Properties {
            reply_to: Some(self.replies.clone()),
            content_type: Some("application/json".into()),
            ..Properties::default()
        };
        let body = match tasks {
            [task] if self.way == Way::Single => {
                properties.message_id = Some(task.id.to_string());
                task.body.to_string()
            }
            tasks => {
                properties.headers.insert(RESULTS_HEADER.into(), "array".into());
                Value::from(tasks.iter().map(|task| task.body.clone()).collect::<Vec<_>>()).to_string()
            }
        };
        let name = Topology::new(NAMESPACE).tasks_exchange();
        let to = Destination::Exchange { name, key: "any".into() };
        Message { to, body: body.into(), properties, persistent: true, mandatory: true }
    }
}

pub fn http() -> reqwest::Client {
    let _installed = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(HTTP_LIMIT).build().unwrap()
}

/// A client over HTTP, one task to a request or `BATCH` of them.
pub struct Caller {
    pub api: String,
    pub http: reqwest::Client,
    pub books: Books,
    pub way: Way,
}

impl Caller {
    pub fn new(api: &str, books: &Books, way: Way) -> Self {
        Self { api: api.to_owned(), http: http(), books: books.clone(), way }
    }

    pub async fn run(self, tasks: Tasks, count: usize, duration: Duration) {
        evenly(tasks, count, duration, BATCH, async |tasks| self.publish(&tasks).await).await;
    }

    /// Until all are accepted.
    pub async fn publish(&self, tasks: &[Task]) {
        self.books.attempted(self.way, tasks);
        match self.way {
            Way::HttpBatch => {
                for tasks in tasks.chunks(BATCH) {
                    self.post(tasks).await;
                }
            }
            _ => drop(futures_util::future::join_all(tasks.iter().map(|task| self.put(task))).await),
        }
    }

    async fn put(&self, task: &Task) {
        let url = format!("{}/v1/tasks/{}", self.api, task.id);
        loop {
            let why = match self.http.put(&url).json(&task.body).send().await {
                Ok(answer) if answer.status().is_success() => break,
                Ok(answer) => {
                    let status = answer.status();
                    let text = answer.text().await.unwrap_or_default();
                    assert!(is_for_later(status.as_u16()), "{status} to a task that is in order: {text}");
                    format!("{status}: {text}")
                }
                Err(error) => error.to_string(),
            };
            self.books.not_accepted(vec![task.id], why);
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        self.accepted(&[task]).await;
    }

    async fn post(&self, tasks: &[Task]) {
        /// What is said of one task.
        #[derive(Deserialize)]
        struct Answer {
            status: u16,
        }
        let mut left: Vec<&Task> = tasks.iter().collect();
        while !left.is_empty() {
            let body: Vec<&Value> = left.iter().map(|task| &task.body).collect();
            let asked = self.http.post(format!("{}/v1/batches", self.api)).json(&body).send().await;
            let (why, text) = match asked {
                Ok(answer) => (answer.status().to_string(), answer.text().await.unwrap_or_default()),
                Err(error) => (error.to_string(), String::new()),
            };
            // Where it was refused as a whole, or torn off, there is no answer for each.
            let answers: Vec<Answer> = serde_json::from_str(&text).unwrap_or_default();
            let is_accepted = |at: usize| answers.get(at).is_some_and(|answer| answer.status < 300);
            for answer in answers.iter().filter(|answer| answer.status >= 300) {
                assert!(is_for_later(answer.status), "tasks that are in order: {text}");
            }
            let (mut accepted, mut again) = (Vec::new(), Vec::new());
            for (at, task) in left.into_iter().enumerate() {
                if is_accepted(at) { &mut accepted } else { &mut again }.push(task);
            }
            self.accepted(&accepted).await;
            if !again.is_empty() {
                self.books.not_accepted(again.iter().map(|task| task.id).collect(), format!("{why}: {text}"));
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            left = again;
        }
    }

    async fn accepted(&self, tasks: &[&Task]) {
        self.books.accepted(self.way, &tasks.iter().map(|task| task.id).collect::<Vec<_>>());
        let may_not_run = |task: &&&Task| !matches!(task.meant, Meant::Succeeds | Meant::Fails);
        let ids = tasks.iter().filter(may_not_run).map(|task| task.id);
        self.books.known.lock().unwrap().may_not_run.extend(ids);
        for task in tasks.iter().filter(|task| task.meant == Meant::MayBeCancelled) {
            // Whether it comes in time, or at all, is not what this is about.
            let _asked = self.http.post(format!("{}/v1/tasks/{}/cancel", self.api, task.id)).send().await;
        }
    }
}

/// Whether a refusal says that the same may be taken later.
pub fn is_for_later(status: u16) -> bool {
    status >= 500 || status == 429
}
