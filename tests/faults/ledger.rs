//! The ledger: what was seen from outside, one JSON line each, in files that are only appended to. Written before what a line
//! says can be seen by anybody, so that a run that is torn off can be judged too.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use taskyard_shared::State;
use uuid::Uuid;

use crate::schedule::Ticks;
use crate::workflows::Workflows;

/// Milliseconds since 1970, by this machine's clock: all of a ledger is written on one.
pub fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// By which way a task was published.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    Single,
    Batch,
    Http,
    /// Many to a request.
    HttpBatch,
}

impl Way {
    /// Whether its result comes to the reply queue. Over HTTP it is looked up.
    pub fn is_told(self) -> bool {
        !matches!(self, Self::Http | Self::HttpBatch)
    }
}

/// How a task is to end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Meant {
    /// `succeeded`.
    Succeeds,
    /// `failed`, after as many attempts as it has.
    Fails,
    /// `rejected`: no such model.
    Refused,
    /// It has a deadline: `succeeded`, `expired` or `rejected`.
    MayBeLate,
    /// Its publisher tries to cancel it: `succeeded` or `cancelled`.
    MayBeCancelled,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attempted {
    pub at: u64,
    pub id: Uuid,
    pub way: Way,
    pub meant: Meant,
    pub max_attempts: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Accepted {
    pub at: u64,
    pub id: Uuid,
}

/// Not accepted, or not known to be. Published again under the same id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NotAccepted {
    pub at: u64,
    pub ids: Vec<Uuid>,
    pub why: String,
}

/// A result that came to the reply queue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Told {
    pub at: u64,
    pub id: Uuid,
    pub state: State,
    pub attempt: u32,
    /// The execution whose effect it is.
    pub run: Option<String>,
    pub code: Option<String>,
    /// Of the whole content.
    pub digest: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Started,
    Finished,
    /// As its input said.
    Failed,
}

/// Written by the executor.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Executed {
    pub at: u64,
    pub what: What,
    pub id: Uuid,
    pub attempt: u32,
    pub run: String,
}

/// A fault, once it is healed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Suffered {
    pub from: u64,
    pub until: u64,
    pub kind: String,
    pub detail: String,
}

impl Suffered {
    /// Records are gone afterwards: what had ended is not known any more.
    pub fn loses_records(&self) -> bool {
        self.kind == "store_flush"
    }

    /// Whether attempts may be cut by it. What the time is said to be is no reason to run anything again.
    pub fn cuts_attempts(&self) -> bool {
        self.kind != "role_clock"
    }
}

/// A task's record at the end, or that there is none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Recorded {
    pub id: Uuid,
    pub state: Option<State>,
    pub attempt: u32,
    pub run: Option<String>,
    pub code: Option<String>,
}

/// A process that ended, or did not when it was told to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ended {
    pub at: u64,
    pub role: String,
    pub how: String,
    /// What the run did not bring about itself and does not allow.
    pub is_wrong: bool,
}

/// Messages left in a queue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Left {
    pub queue: String,
    pub ready: u64,
    pub unacked: u64,
}

/// What a process holds of the machine when all is over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    pub role: String,
    /// Descriptors that are open.
    pub files: usize,
    pub resident_mb: u64,
}

/// Urgent tasks published behind a backlog of idle ones, after all is healed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Overtaking {
    pub backlog: usize,
    pub urgent: usize,
    /// Most tasks of the backlog that began between the confirm of an urgent one and its start.
    pub most_before: usize,
    pub allowed: usize,
}

/// All of it, read back.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    pub attempted: HashMap<Uuid, Attempted>,
    pub accepted: HashMap<Uuid, u64>,
    pub not_accepted: Vec<NotAccepted>,
    pub told: HashMap<Uuid, Vec<Told>>,
    pub executed: HashMap<Uuid, Vec<Executed>>,
    pub faults: Vec<Suffered>,
    pub recorded: HashMap<Uuid, Recorded>,
    pub ended: Vec<Ended>,
    pub left: Vec<Left>,
    pub held: Vec<Held>,
    /// Ids in the dead letters.
    pub dead: Vec<Uuid>,
    /// Lines of logs that say of a panic.
    pub panics: Vec<String>,
    pub overtaking: Option<Overtaking>,
    pub workflows: Workflows,
    pub ticks: Ticks,
    /// Tasks that were waited for in vain when the run gave up.
    pub gave_up: Option<String>,
}

pub const ATTEMPTED: &str = "attempted";
pub const ACCEPTED: &str = "accepted";
pub const NOT_ACCEPTED: &str = "not_accepted";
pub const TOLD: &str = "told";
pub const EXECUTED: &str = "executed";
pub const FAULTS: &str = "faults";
pub const RECORDED: &str = "recorded";
pub const ENDED: &str = "ended";
pub const LEFT: &str = "left";
pub const HELD: &str = "held";
pub const DEAD: &str = "dead";

/// The files of one run.
pub struct Files {
    pub folder: PathBuf,
    open: Mutex<HashMap<&'static str, File>>,
}

impl Files {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), open: Mutex::default() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.jsonl"))
    }

    /// Appends the lines with one write.
    pub fn write<T: Serialize>(&self, name: &'static str, lines: &[T]) {
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line).unwrap();
            text.push(b'\n');
        }
        let mut open = self.open.lock().unwrap();
        let file = open
            .entry(name)
            .or_insert_with(|| File::options().create(true).append(true).open(self.path(name)).unwrap());
        file.write_all(&text).unwrap();
    }

    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Vec<T> {
        let Ok(file) = File::open(self.path(name)) else { return Vec::new() };
        let parse = |line: std::io::Result<String>| {
            let line = line.unwrap();
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{name}: {error}: {line}"))
        };
        BufReader::new(file).lines().map(parse).collect()
    }

    pub fn ledger(&self) -> Ledger {
        let mut ledger = Ledger { faults: self.read(FAULTS), ended: self.read(ENDED), ..Ledger::default() };
        ledger.attempted = self.read::<Attempted>(ATTEMPTED).into_iter().map(|line| (line.id, line)).collect();
        ledger.accepted = self.read::<Accepted>(ACCEPTED).into_iter().map(|line| (line.id, line.at)).collect();
        ledger.not_accepted = self.read(NOT_ACCEPTED);
        for told in self.read::<Told>(TOLD) {
            ledger.told.entry(told.id).or_default().push(told);
        }
        for executed in self.read::<Executed>(EXECUTED) {
            ledger.executed.entry(executed.id).or_default().push(executed);
        }
        ledger.workflows = Workflows::read(self, &mut ledger.executed);
        ledger.ticks = Ticks::read(self, &mut ledger.executed);
        ledger.recorded = self.read::<Recorded>(RECORDED).into_iter().map(|line| (line.id, line)).collect();
        ledger.left = self.read(LEFT);
        ledger.held = self.read(HELD);
        ledger.dead = self.read(DEAD);
        ledger
    }
}
