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
    BrokerKill,
    BrokerRestart,
    BrokerStop {
        for_ms: u64,
    },
    BrokerAlarm {
        for_ms: u64,
    },
    BrokerCloseConnections,
    StoreKill {
        away_ms: u64,
    },
    StorePause {
        for_ms: u64,
    },
    StoreFlush,
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
}

impl Fault {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::RoleKill { .. } => "role_kill",
            Self::RoleTerm { .. } => "role_term",
            Self::RoleStop { .. } => "role_stop",
            Self::BrokerKill => "broker_kill",
            Self::BrokerRestart => "broker_restart",
            Self::BrokerStop { .. } => "broker_stop",
            Self::BrokerAlarm { .. } => "broker_alarm",
            Self::BrokerCloseConnections => "broker_close_connections",
            Self::StoreKill { .. } => "store_kill",
            Self::StorePause { .. } => "store_pause",
            Self::StoreFlush => "store_flush",
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
            | Self::LinkCut { role, .. }
            | Self::LinkHole { role, .. }
            | Self::LinkDelay { role, .. } => Victim::Role(*role),
            Self::BrokerKill
            | Self::BrokerRestart
            | Self::BrokerStop { .. }
            | Self::BrokerAlarm { .. }
            | Self::BrokerCloseConnections => Victim::Broker,
            Self::StoreKill { .. } | Self::StorePause { .. } | Self::StoreFlush => Victim::Store,
        }
    }

    /// How long the victim is believed to have with it, what it takes to come back included.
    fn lasts_ms(&self) -> u64 {
        match self {
            Self::RoleKill { away_ms, .. } | Self::RoleTerm { away_ms, .. } => away_ms + 4_000,
            Self::BrokerKill | Self::BrokerRestart => 15_000,
            Self::StoreKill { away_ms } => away_ms + 1_000,
            Self::RoleStop { for_ms, .. }
            | Self::BrokerStop { for_ms }
            | Self::BrokerAlarm { for_ms }
            | Self::StorePause { for_ms }
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

/// Draws a fault of each kind with these weights, cheap ones more often.
const WEIGHTS: [(&str, u32); 14] = [
    ("role_kill", 24),
    ("role_term", 12),
    ("role_stop", 12),
    ("broker_kill", 6),
    ("broker_restart", 4),
    ("broker_stop", 4),
    ("broker_alarm", 5),
    ("broker_close_connections", 6),
    ("store_kill", 6),
    ("store_pause", 6),
    ("store_flush", 5),
    ("link_cut", 16),
    ("link_hole", 8),
    ("link_delay", 8),
];

/// Whether there is a kind of fault of this name.
pub fn is_kind(name: &str) -> bool {
    WEIGHTS.iter().any(|(kind, _)| *kind == name)
}

/// So many faults upon so many roles, a mean of `every_ms` apart, none of the kinds in `without`. The same seed, the same plan. The broker is killed first, and
/// every kind comes once before any comes again, in so far as `count` and the broker's time between two ends allow.
pub fn plan(seed: u64, count: usize, roles: usize, every_ms: u64, without: &[String]) -> Vec<Planned> {
    let mut random = fastrand::Rng::with_seed(seed);
    let weights: Vec<(&str, u32)> =
        WEIGHTS.into_iter().filter(|(kind, _)| !without.iter().any(|other| other == kind)).collect();
    let mut once: Vec<&str> = weights.iter().map(|(kind, _)| *kind).collect();
    random.shuffle(&mut once);
    // What takes longest comes first, so that a short run has time for it.
    once.sort_by_key(|kind| *kind == "broker_kill");
    let mut kinds: Vec<&str> = Vec::new();
    while kinds.len() < count {
        kinds.push(once.pop().unwrap_or_else(|| weighted(&mut random, &weights)));
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

fn weighted<'a>(random: &mut fastrand::Rng, weights: &[(&'a str, u32)]) -> &'a str {
    let mut left = random.u32(0..weights.iter().map(|(_, weight)| weight).sum());
    for (kind, weight) in weights {
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
        "broker_kill" => Fault::BrokerKill,
        "broker_restart" => Fault::BrokerRestart,
        "broker_stop" => Fault::BrokerStop { for_ms: random.u64(1_000..15_000) },
        "broker_alarm" => Fault::BrokerAlarm { for_ms: random.u64(2_000..8_000) },
        "broker_close_connections" => Fault::BrokerCloseConnections,
        "store_kill" => Fault::StoreKill { away_ms: random.u64(200..5_000) },
        "store_pause" => Fault::StorePause { for_ms: random.u64(500..4_000) },
        "store_flush" => Fault::StoreFlush,
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

    #[test]
    fn a_seed_is_a_plan_and_another_seed_another() {
        assert_eq!(plan(1, 200, 6, 5_000, &[]), plan(1, 200, 6, 5_000, &[]));
        assert_ne!(plan(1, 200, 6, 5_000, &[]), plan(2, 200, 6, 5_000, &[]));
    }

    #[test]
    fn what_is_left_out_does_not_come() {
        let without = ["store_flush".to_owned(), "broker_kill".to_owned()];
        let planned = plan(1, 200, 6, 5_000, &without);
        assert_eq!(planned.len(), 200);
        assert!(planned.iter().all(|planned| !without.iter().any(|kind| kind == planned.fault.kind())));
    }

    #[test]
    fn no_victim_has_two_faults_at_once_and_the_broker_has_its_time() {
        for seed in 0..200 {
            let planned = plan(seed, 200, 6, 5_000, &[]);
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
            assert!(kinds.contains("broker_kill"), "seed {seed}: {kinds:?}");
            assert!(kinds.len() >= WEIGHTS.len() - 1, "seed {seed}: {kinds:?}");
        }
    }
}
