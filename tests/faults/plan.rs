//! Which faults come, when and upon whom: all of it from the seed, before anything runs.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Broker and store, as a role's relay leads there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Server {
    Broker,
    Store,
}

/// Times in milliseconds. What lasts is healed after its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL; started again after a while.
    RoleKill {
        role: usize,
        away_ms: u64,
    },
    /// SIGTERM, and started again once it has ended.
    RoleTerm {
        role: usize,
        away_ms: u64,
    },
    /// SIGSTOP, then SIGCONT.
    RoleStop {
        role: usize,
        for_ms: u64,
    },
    /// Its clock is ahead by so much, or behind, and then right again.
    RoleClock {
        role: usize,
        by_ms: i64,
        for_ms: u64,
    },
    BrokerKill,
    BrokerRestart,
    BrokerStop {
        for_ms: u64,
    },
    BrokerAlarm {
        for_ms: u64,
    },
    BrokerDiskAlarm {
        for_ms: u64,
    },
    /// Each flush of its disk takes so much longer.
    BrokerSlow {
        each_ms: u64,
        for_ms: u64,
    },
    BrokerCloseConnections,
    StoreKill {
        away_ms: u64,
    },
    StorePause {
        for_ms: u64,
    },
    /// It can write nothing more to its disk, which ends it.
    StoreFull {
        for_ms: u64,
    },
    StoreSlow {
        each_ms: u64,
        for_ms: u64,
    },
    StoreFlush,
    /// Of the process that is broker and store as well.
    DiskFull {
        for_ms: u64,
    },
    DiskSlow {
        each_ms: u64,
        for_ms: u64,
    },
    LinkCut {
        role: usize,
        server: Server,
    },
    LinkHole {
        role: usize,
        server: Server,
        for_ms: u64,
    },
    LinkDelay {
        role: usize,
        server: Server,
        each_ms: u64,
        for_ms: u64,
    },
}

/// What a fault is done to. Two faults are never upon the same at once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Victim {
    Role(usize),
    Broker,
    Store,
    Disk,
}

impl Fault {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::RoleKill { .. } => "role_kill",
            Self::RoleTerm { .. } => "role_term",
            Self::RoleStop { .. } => "role_stop",
            Self::RoleClock { .. } => "role_clock",
            Self::BrokerKill => "broker_kill",
            Self::BrokerRestart => "broker_restart",
            Self::BrokerStop { .. } => "broker_stop",
            Self::BrokerAlarm { .. } => "broker_alarm",
            Self::BrokerDiskAlarm { .. } => "broker_disk_alarm",
            Self::BrokerSlow { .. } => "broker_slow",
            Self::BrokerCloseConnections => "broker_close_connections",
            Self::StoreKill { .. } => "store_kill",
            Self::StorePause { .. } => "store_pause",
            Self::StoreFull { .. } => "store_full",
            Self::StoreSlow { .. } => "store_slow",
            Self::StoreFlush => "store_flush",
            Self::DiskFull { .. } => "disk_full",
            Self::DiskSlow { .. } => "disk_slow",
            Self::LinkCut { .. } => "link_cut",
            Self::LinkHole { .. } => "link_hole",
            Self::LinkDelay { .. } => "link_delay",
        }
    }

    pub fn victim(&self) -> Victim {
        match self {
            Self::RoleKill { role, .. }
            | Self::RoleTerm { role, .. }
            | Self::RoleStop { role, .. }
            | Self::RoleClock { role, .. }
            | Self::LinkCut { role, .. }
            | Self::LinkHole { role, .. }
            | Self::LinkDelay { role, .. } => Victim::Role(*role),
            Self::BrokerKill
            | Self::BrokerRestart
            | Self::BrokerStop { .. }
            | Self::BrokerAlarm { .. }
            | Self::BrokerDiskAlarm { .. }
            | Self::BrokerSlow { .. }
            | Self::BrokerCloseConnections => Victim::Broker,
            Self::StoreKill { .. }
            | Self::StorePause { .. }
            | Self::StoreFull { .. }
            | Self::StoreSlow { .. }
            | Self::StoreFlush => Victim::Store,
            Self::DiskFull { .. } | Self::DiskSlow { .. } => Victim::Disk,
        }
    }

    /// How long the victim is believed to have with it, what it takes to come back included.
    fn lasts_ms(&self) -> u64 {
        match self {
            Self::RoleKill { away_ms, .. } | Self::RoleTerm { away_ms, .. } => away_ms + 2_000,
            Self::BrokerKill | Self::BrokerRestart => 15_000,
            Self::StoreKill { away_ms } => away_ms + 1_000,
            Self::RoleStop { for_ms, .. }
            | Self::RoleClock { for_ms, .. }
            | Self::BrokerStop { for_ms }
            | Self::BrokerAlarm { for_ms }
            | Self::BrokerDiskAlarm { for_ms }
            | Self::BrokerSlow { for_ms, .. }
            | Self::StorePause { for_ms }
            | Self::StoreFull { for_ms }
            | Self::StoreSlow { for_ms, .. }
            | Self::DiskFull { for_ms }
            | Self::DiskSlow { for_ms, .. }
            | Self::LinkHole { for_ms, .. }
            | Self::LinkDelay { for_ms, .. } => for_ms + 1_000,
            Self::BrokerCloseConnections | Self::StoreFlush | Self::LinkCut { .. } => 2_000,
        }
    }

    fn stops_the_broker(&self) -> bool {
        matches!(self, Self::BrokerKill | Self::BrokerRestart)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{self:?}")
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Planned {
    /// From the start of the load.
    pub at_ms: u64,
    pub fault: Fault,
}

/// RabbitMQ is to be up for a while between two ends of it.
const BETWEEN_BROKER_ENDS_MS: u64 = 45_000;

/// From the start of the load to the first fault: queues are to be older than two seconds.
const CALM_MS: u64 = 3_000;

/// The most that a clock is wrong by: longer than leases and heartbeats, shorter than what a run waits for.
pub const CLOCK_MS: i64 = 40_000;

/// Kinds of faults, and how often each comes beside the others.
pub type Menu = Vec<(&'static str, u32)>;

/// Of a yard on servers; cheap ones come more often.
pub const UPON_SERVERS: [(&str, u32); 19] = [
    ("role_kill", 24),
    ("role_term", 12),
    ("role_stop", 12),
    ("role_clock", 8),
    ("broker_kill", 6),
    ("broker_restart", 4),
    ("broker_stop", 4),
    ("broker_alarm", 5),
    ("broker_disk_alarm", 3),
    ("broker_slow", 5),
    ("broker_close_connections", 6),
    ("store_kill", 6),
    ("store_pause", 6),
    ("store_full", 4),
    ("store_slow", 5),
    ("store_flush", 5),
    ("link_cut", 16),
    ("link_hole", 8),
    ("link_delay", 8),
];

/// Of a yard in one process: mostly its kills.
pub const UPON_ONE_PROCESS: [(&str, u32); 6] =
    [("role_kill", 40), ("role_term", 10), ("role_stop", 6), ("role_clock", 8), ("disk_full", 8), ("disk_slow", 8)];

/// Those that need something of the machine which not every machine has: a compiler, and leave to mount.
pub const NEED_A_COMPILER: [&str; 4] = ["role_clock", "broker_slow", "store_slow", "disk_slow"];
pub const NEEDS_A_MOUNT: &str = "disk_full";

/// Whether there is a kind of fault of this name.
pub fn is_kind(name: &str) -> bool {
    UPON_SERVERS.iter().chain(&UPON_ONE_PROCESS).any(|(kind, _)| *kind == name)
}

/// So many faults of the menu upon so many roles, a mean of `every_ms` apart. The same seed, the same plan. The broker is killed first, and
/// every kind comes once before any comes again, in so far as `count` and the broker's time between two ends allow.
pub fn plan(seed: u64, count: usize, roles: usize, every_ms: u64, menu: &Menu) -> Vec<Planned> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut once: Vec<&str> = menu.iter().map(|(kind, _)| *kind).collect();
    random.shuffle(&mut once);
    // What takes longest comes first, so that a short run has time for it.
    once.sort_by_key(|kind| *kind == "broker_kill");
    let mut kinds: Vec<&str> = Vec::new();
    while kinds.len() < count {
        kinds.push(once.pop().unwrap_or_else(|| weighted(&mut random, menu)));
    }
    let mut free_at: BTreeMap<Victim, u64> = BTreeMap::new();
    let mut broker_may_end_at = 0;
    let mut now = CALM_MS;
    let mut planned = Vec::new();
    for kind in kinds {
        let mut fault = draw(&mut random, kind, roles);
        // Too early for another end of the broker.
        if fault.stops_the_broker() && now < broker_may_end_at {
            fault = draw(&mut random, "link_cut", roles);
        }
        let at_ms = now.max(free_at.get(&fault.victim()).copied().unwrap_or(0));
        if fault.stops_the_broker() {
            broker_may_end_at = at_ms + BETWEEN_BROKER_ENDS_MS;
        }
        free_at.insert(fault.victim(), at_ms + fault.lasts_ms());
        planned.push(Planned { at_ms, fault });
        now = at_ms.max(now) + random.u64(every_ms / 4..=every_ms * 7 / 4);
    }
    planned
}

fn weighted(random: &mut fastrand::Rng, menu: &Menu) -> &'static str {
    let mut left = random.u32(0..menu.iter().map(|(_, weight)| weight).sum());
    for (kind, weight) in menu {
        match left.checked_sub(*weight) {
            Some(rest) => left = rest,
            None => return kind,
        }
    }
    unreachable!("the weights sum up to what was drawn from")
}

fn draw(random: &mut fastrand::Rng, kind: &str, roles: usize) -> Fault {
    let role = random.usize(0..roles);
    let server = if random.u32(0..3) == 0 { Server::Store } else { Server::Broker };
    let away_ms = random.u64(100..2_000);
    match kind {
        "role_kill" => Fault::RoleKill { role, away_ms },
        "role_term" => Fault::RoleTerm { role, away_ms },
        // Shorter and longer than leases and heartbeats are.
        "role_stop" => Fault::RoleStop { role, for_ms: random.u64(500..14_000) },
        "role_clock" => Fault::RoleClock {
            role,
            by_ms: random.i64(1_000..CLOCK_MS) * if random.bool() { 1 } else { -1 },
            for_ms: random.u64(1_000..8_000),
        },
        "broker_kill" => Fault::BrokerKill,
        "broker_restart" => Fault::BrokerRestart,
        "broker_stop" => Fault::BrokerStop { for_ms: random.u64(1_000..15_000) },
        "broker_alarm" => Fault::BrokerAlarm { for_ms: random.u64(2_000..8_000) },
        "broker_disk_alarm" => Fault::BrokerDiskAlarm { for_ms: random.u64(2_000..8_000) },
        "broker_slow" => Fault::BrokerSlow { each_ms: random.u64(20..500), for_ms: random.u64(2_000..8_000) },
        "broker_close_connections" => Fault::BrokerCloseConnections,
        "store_kill" => Fault::StoreKill { away_ms: random.u64(200..5_000) },
        "store_pause" => Fault::StorePause { for_ms: random.u64(500..4_000) },
        "store_full" => Fault::StoreFull { for_ms: random.u64(500..5_000) },
        "store_slow" => Fault::StoreSlow { each_ms: random.u64(5..100), for_ms: random.u64(2_000..8_000) },
        "store_flush" => Fault::StoreFlush,
        "disk_full" => Fault::DiskFull { for_ms: random.u64(500..6_000) },
        "disk_slow" => Fault::DiskSlow { each_ms: random.u64(20..500), for_ms: random.u64(2_000..8_000) },
        "link_cut" => Fault::LinkCut { role, server },
        "link_hole" => Fault::LinkHole { role, server, for_ms: random.u64(1_000..14_000) },
        "link_delay" => {
            Fault::LinkDelay { role, server, each_ms: random.u64(20..300), for_ms: random.u64(1_000..8_000) }
        }
        _ => unreachable!("{kind} is not a fault"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers() -> Menu {
        UPON_SERVERS.to_vec()
    }

    #[test]
    fn a_seed_is_a_plan_and_another_seed_another() {
        assert_eq!(plan(1, 200, 6, 5_000, &servers()), plan(1, 200, 6, 5_000, &servers()));
        assert_ne!(plan(1, 200, 6, 5_000, &servers()), plan(2, 200, 6, 5_000, &servers()));
    }

    #[test]
    fn what_is_not_on_the_menu_does_not_come() {
        let mut menu = servers();
        menu.retain(|(kind, _)| !["store_flush", "broker_kill"].contains(kind));
        let planned = plan(1, 200, 6, 5_000, &menu);
        assert_eq!(planned.len(), 200);
        assert!(planned.iter().all(|planned| menu.iter().any(|(kind, _)| *kind == planned.fault.kind())));
    }

    #[test]
    fn no_victim_has_two_faults_at_once_and_the_broker_has_its_time() {
        for (seed, menu) in (0..200).flat_map(|seed| [(seed, servers()), (seed, UPON_ONE_PROCESS.to_vec())]) {
            let planned = plan(seed, 200, 6, 5_000, &menu);
            assert_eq!(planned.len(), 200);
            let mut free_at: BTreeMap<Victim, u64> = BTreeMap::new();
            let mut broker_end = None;
            for Planned { at_ms, fault } in &planned {
                assert!(*at_ms >= CALM_MS);
                assert!(free_at.get(&fault.victim()).is_none_or(|free| free <= at_ms), "seed {seed}: {fault}");
                free_at.insert(fault.victim(), at_ms + fault.lasts_ms());
                if fault.stops_the_broker() {
                    assert!(broker_end.is_none_or(|end| at_ms - end >= BETWEEN_BROKER_ENDS_MS), "seed {seed}");
                    broker_end = Some(*at_ms);
                }
            }
            let kinds: std::collections::BTreeSet<&str> = planned.iter().map(|planned| planned.fault.kind()).collect();
            // The broker's restart may have come too soon after its kill, and not again.
            let may_not_come = menu.iter().filter(|(kind, _)| *kind == "broker_restart").count();
            assert!(kinds.len() >= menu.len() - may_not_come, "seed {seed}: {kinds:?}");
        }
    }
}
