//! What is published and what goes wrong, all of it fixed before anything runs. Drawn from a seed, or written down.

use std::fmt;

use uuid::Uuid;

use crate::broker::Back;
use crate::link::{Calling, Publishing};

/// How a task is meant to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meant {
    Succeeds,
    /// Its first so many attempts fail, and are worth another.
    FailsAtFirst(u32),
    Fails,
    /// Nobody has its model.
    Refused,
    /// It has so long, in milliseconds.
    MayBeLate(u32),
    /// After so many milliseconds somebody asks to cancel it.
    MayBeCancelled(u32),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Task {
    /// Also makes its id.
    pub number: u32,
    pub at_ms: u32,
    /// One whose tasks are claimed before they run, or else one whose tasks are not.
    pub is_long: bool,
    pub priority: u8,
    pub runs_ms: u32,
    pub meant: Meant,
    /// Published again after so many milliseconds.
    pub again_ms: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    pub number: u32,
    pub at_ms: u32,
    pub meant: Meant,
    /// Published again after so many milliseconds, by somebody else.
    pub again_ms: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Upon {
    Client,
    Scheduler(u8),
    Worker(u8),
    /// Broker, store, clock: not one process's own.
    All,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Of the next publish, or the next few.
    Publish(Publishing),
    /// Of the next call of the store.
    Call(Calling),
    /// The link to the broker, or with [`Upon::All`] all links.
    Cut {
        lands: bool,
        back: Back,
        away_ms: u32,
    },
    /// The broker is killed.
    Crash {
        acks_lost: bool,
        away_ms: u32,
    },
    /// Nothing gets through to or from it.
    Stall {
        for_ms: u32,
    },
    Kill {
        lands: bool,
        down_ms: u32,
    },
    Stop {
        down_ms: u32,
    },
    StoreAway {
        for_ms: u32,
    },
    Flush,
    /// The wall clock is set; milliseconds.
    Clock {
        by_ms: i32,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    pub at_ms: u32,
    pub upon: Upon,
    pub kind: Kind,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    /// Of what is drawn while it runs: how long ways take, nonces, waits before trying again.
    pub seed: u64,
    pub window: usize,
    pub shards: u32,
    /// Tasks of one moment are published in one message.
    pub together: bool,
    pub tasks: Vec<Task>,
    pub flows: Vec<Flow>,
    pub faults: Vec<Fault>,
}

/// How long a task takes that is to end just as something else is done about it, on either side of it. A first attempt without a claim is
/// claimed after 100 ms; the rest are the settings of `world.rs`: a lease is renewed after 500 and ends after 1,500, and what runs for 3,000
/// is handed on.
const EDGES_MS: [u32; 4] = [100, 500, 1_500, HANDED_ON_MS];
pub const HANDED_ON_MS: u32 = 3_000;
pub const BESIDE_MS: u32 = 12;

pub const SCHEDULERS: u8 = 2;
pub const WORKERS: u8 = 2;

pub fn task_id(number: u32) -> Uuid {
    Uuid::from_u128(0x7a5c_0000_0000_7000_8000_0000_0000_0000 | u128::from(number))
}

pub fn flow_id(number: u32) -> Uuid {
    Uuid::from_u128(0xf10a_0000_0000_7000_8000_0000_0000_0000 | u128::from(number))
}

impl History {
    pub fn drawn(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let random = &mut random;
        let lengths = Lengths::drawn(random);
        let bursts = random.u32(1..4);
        let mut tasks = Vec::new();
        for burst in 0..bursts {
            let at_ms = burst * random.u32(200..4_000);
            for _ in 0..random.u32(1..16) {
                let number = tasks.len() as u32;
                let at_ms = at_ms + if random.bool() { 0 } else { random.u32(0..500) };
                tasks.push(task(number, at_ms, lengths, random));
            }
        }
        let flows = (0..random.u32(0..3)).map(|number| flow(number, random.u32(0..4_000), random)).collect();
        let mut faults: Vec<Fault> = (0..random.u32(0..9)).map(|_| fault(random)).collect();
        faults.sort_by_key(|fault| fault.at_ms);
        Self {
            seed,
            window: [4, 8, 16, 1_000][random.usize(0..4)],
            shards: if random.u8(0..4) == 0 { 2 } else { 1 },
            together: random.bool(),
            tasks,
            flows,
            faults,
        }
    }

    pub fn flushes(&self) -> bool {
        self.faults.iter().any(|fault| fault.kind == Kind::Flush)
    }
}

/// How long the tasks of a history take. A model whose tasks take 50 ms on the average is taken for slow, and all of them are claimed from
/// then on.
#[derive(Clone, Copy)]
enum Lengths {
    /// Anything, and now and then much more than of their model is expected.
    Any,
    /// At most those that end at an edge.
    Edges,
}

impl Lengths {
    fn drawn(random: &mut fastrand::Rng) -> Self {
        if random.bool() { Self::Any } else { Self::Edges }
    }

    fn of(self, is_long: bool, random: &mut fastrand::Rng) -> u32 {
        let beside = |edge_ms: u32, random: &mut fastrand::Rng| edge_ms - BESIDE_MS + random.u32(0..2 * BESIDE_MS);
        match (self, is_long, random.u8(0..8)) {
            (Self::Edges, false, 0..2) => beside(EDGES_MS[0], random),
            (Self::Edges, true, 0..4) => beside(EDGES_MS[random.usize(1..EDGES_MS.len())], random),
            (_, true, 0) => random.u32(2_000..6_000),
            (_, true, _) => random.u32(50..800),
            // One that turns out to be long.
            (Self::Any, false, 0) => random.u32(100..1_500),
            (_, false, _) => random.u32(0..6),
        }
    }
}

fn task(number: u32, at_ms: u32, lengths: Lengths, random: &mut fastrand::Rng) -> Task {
    let is_long = random.u8(0..4) == 0;
    let meant = match random.u8(0..16) {
        0 | 1 => Meant::FailsAtFirst(random.u32(1..3)),
        2 => Meant::Fails,
        3 => Meant::Refused,
        4 => Meant::MayBeLate(random.u32(1..6_000)),
        5 => Meant::MayBeCancelled(random.u32(0..3_000)),
        _ => Meant::Succeeds,
    };
    let runs_ms = lengths.of(is_long, random);
    let again_ms = (random.u8(0..8) == 0).then(|| random.u32(0..8_000));
    Task { number, at_ms, is_long, priority: random.u8(0..10), runs_ms, meant, again_ms }
}

fn flow(number: u32, at_ms: u32, random: &mut fastrand::Rng) -> Flow {
    let meant = match random.u8(0..6) {
        0 => Meant::Fails,
        1 => Meant::MayBeCancelled(random.u32(0..3_000)),
        _ => Meant::Succeeds,
    };
    let again_ms = (random.u8(0..4) == 0).then(|| random.u32(0..8_000));
    Flow { number, at_ms, meant, again_ms }
}

fn fault(random: &mut fastrand::Rng) -> Fault {
    let at_ms = random.u32(0..9_000);
    let process = |random: &mut fastrand::Rng| match random.u8(0..9) {
        0 => Upon::Client,
        1..=4 => Upon::Scheduler(random.u8(0..SCHEDULERS)),
        _ => Upon::Worker(random.u8(0..WORKERS)),
    };
    let role = |random: &mut fastrand::Rng| match random.bool() {
        true => Upon::Scheduler(random.u8(0..SCHEDULERS)),
        false => Upon::Worker(random.u8(0..WORKERS)),
    };
    let cut = |random: &mut fastrand::Rng| Kind::Cut {
        lands: random.bool(),
        back: Back { behind: random.bool(), unmarked: random.u8(0..4) == 0 },
        away_ms: random.u32(0..4_000),
    };
    let (upon, kind) = match random.u8(0..20) {
        0..=3 => {
            let publishing = match random.u8(0..6) {
                0 => Publishing::Late,
                1 => Publishing::Refused,
                2 => Publishing::Twice,
                _ => Publishing::Unconfirmed { lands: random.bool() },
            };
            (process(random), Kind::Publish(publishing))
        }
        4..=7 => {
            let calling = match random.u8(0..3) {
                0 => Calling::Late,
                _ => Calling::Unanswered { done: random.bool() },
            };
            (role(random), Kind::Call(calling))
        }
        8..=10 => (process(random), cut(random)),
        11 => match random.bool() {
            true => (Upon::All, cut(random)),
            false => (Upon::All, Kind::Crash { acks_lost: random.bool(), away_ms: random.u32(100..4_000) }),
        },
        12 | 13 => (process(random), Kind::Stall { for_ms: random.u32(100..16_000) }),
        14..=16 => (role(random), Kind::Kill { lands: random.bool(), down_ms: random.u32(0..5_000) }),
        17 => (role(random), Kind::Stop { down_ms: random.u32(0..5_000) }),
        18 => match random.bool() {
            true => (Upon::All, Kind::StoreAway { for_ms: random.u32(100..8_000) }),
            false => (Upon::All, Kind::Clock { by_ms: random.i32(-20_000..20_000) }),
        },
        _ => match random.u8(0..4) {
            0 => (Upon::All, Kind::Flush),
            _ => (role(random), Kind::Kill { lands: random.bool(), down_ms: random.u32(0..5_000) }),
        },
    };
    Fault { at_ms, upon, kind }
}

/// As it is written in a test.
impl fmt::Display for History {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, window, shards, together, .. } = self;
        writeln!(to, "History {{ seed: {seed}, window: {window}, shards: {shards}, together: {together},")?;
        write_list(to, "tasks", &self.tasks)?;
        write_list(to, "flows", &self.flows)?;
        write_list(to, "faults", &self.faults)?;
        write!(to, "}}")
    }
}

fn write_list(to: &mut fmt::Formatter<'_>, name: &str, list: &[impl fmt::Debug]) -> fmt::Result {
    writeln!(to, "    {name}: vec![")?;
    for one in list {
        writeln!(to, "        {one:?},")?;
    }
    writeln!(to, "    ],")
}
