//! Carries a plan out: does each fault at its time, heals it after its time, and writes both down.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::ledger::{FAULTS, Files, Suffered, now_ms};
use crate::plan::{Fault, Planned, Victim};
use crate::relay::Weather;
use crate::roles::Order;
use crate::tweaks::Tweaks;
use crate::yard::Yard;

/// RabbitMQ is to be up for so long between two ends of it, whatever they took.
const BETWEEN_BROKER_ENDS: Duration = Duration::from_secs(45);

/// Until a fault is healed, that of a process that waits for its servers included.
const HEAL_PATIENCE: Duration = Duration::from_secs(600);

pub struct Nemesis {
    yard: Arc<Yard>,
    files: Arc<Files>,
    /// One fault at a time upon each process; the servers have locks of their own.
    roles: Vec<Mutex<()>>,
    disk: Mutex<()>,
    broker_ended: Mutex<Option<Instant>>,
}

impl Nemesis {
    pub fn new(yard: Arc<Yard>, files: Arc<Files>) -> Arc<Self> {
        let roles = yard.roles.iter().map(|_| Mutex::new(())).collect();
        Arc::new(Self { yard, files, roles, disk: Mutex::new(()), broker_ended: Mutex::new(None) })
    }

    /// Does all of it, and ends when all is healed.
    pub async fn carry_out(self: Arc<Self>, planned: Vec<Planned>) {
        let begun = Instant::now();
        let mut faults = JoinSet::new();
        for Planned { at_ms, fault } in planned {
            tokio::time::sleep_until(begun + Duration::from_millis(at_ms)).await;
            let nemesis = self.clone();
            faults.spawn(async move {
                let healed = tokio::time::timeout(HEAL_PATIENCE, nemesis.suffer(fault)).await;
                assert!(healed.is_ok(), "{fault} is not healed");
            });
        }
        while let Some(ended) = faults.join_next().await {
            ended.unwrap();
        }
    }

    async fn suffer(&self, fault: Fault) {
        match fault.victim() {
            Victim::Role(role) => {
                let _alone = self.roles[role].lock().await;
                let from = now_ms();
                self.upon_role(fault, role).await;
                self.healed(fault, &self.yard.roles[role].name, from);
            }
            Victim::Broker => self.upon_broker(fault).await,
            Victim::Store => self.upon_store(fault).await,
            Victim::Disk => self.upon_disk(fault).await,
        }
    }

    fn healed(&self, fault: Fault, victim: &str, from: u64) {
        let detail = format!("{victim}: {fault}");
        self.files.write(FAULTS, &[Suffered { from, until: now_ms(), kind: fault.kind().into(), detail }]);
    }

    async fn upon_role(&self, fault: Fault, index: usize) {
        let role = &self.yard.roles[index];
        match fault {
            Fault::RoleKill { away_ms, .. } | Fault::RoleTerm { away_ms, .. } => {
                let (done, works) = oneshot::channel();
                let away = Duration::from_millis(away_ms);
                let kill = matches!(fault, Fault::RoleKill { .. });
                role.order(if kill { Order::Kill { away, done } } else { Order::Term { away, done } }).await;
                works.await.unwrap();
            }
            Fault::RoleStop { for_ms, .. } => {
                role.order(Order::Signal(Signal::SIGSTOP)).await;
                wait(for_ms).await;
                role.order(Order::Signal(Signal::SIGCONT)).await;
            }
            Fault::RoleClock { by_ms, for_ms, .. } => {
                role.tweaks().set_clock_ms(by_ms);
                wait(for_ms).await;
                role.tweaks().set_clock_ms(0);
            }
            Fault::LinkCut { server, .. } => self.yard.servers().link(index, server).cut(),
            Fault::LinkHole { server, for_ms, .. } => {
                self.yard.servers().link(index, server).set(Weather::Hole);
                wait(for_ms).await;
                self.yard.servers().link(index, server).set(Weather::Clear);
            }
            Fault::LinkDelay { server, each_ms, for_ms, .. } => {
                self.yard.servers().link(index, server).set(Weather::Delay(Duration::from_millis(each_ms)));
                wait(for_ms).await;
                self.yard.servers().link(index, server).set(Weather::Clear);
            }
            _ => unreachable!("{fault} is not upon a process"),
        }
    }

    async fn upon_broker(&self, fault: Fault) {
        let mut rabbit = self.yard.servers().rabbit.lock().await;
        if matches!(fault, Fault::BrokerKill | Fault::BrokerRestart) {
            let mut ended = self.broker_ended.lock().await;
            if let Some(before) = *ended {
                tokio::time::sleep_until(before + BETWEEN_BROKER_ENDS).await;
            }
            *ended = Some(Instant::now());
        }
        let from = now_ms();
        match fault {
            Fault::BrokerKill => rabbit.kill_and_start().await,
            Fault::BrokerRestart => rabbit.restart().await,
            Fault::BrokerStop { for_ms } => {
                rabbit.signal(Signal::SIGSTOP);
                wait(for_ms).await;
                rabbit.signal(Signal::SIGCONT);
            }
            Fault::BrokerAlarm { for_ms } => {
                rabbit.control(&["set_vm_memory_high_watermark", "0.00001"]).await;
                wait(for_ms).await;
                rabbit.control(&["set_vm_memory_high_watermark", "absolute", "2GB"]).await;
            }
            Fault::BrokerDiskAlarm { for_ms } => {
                rabbit.control(&["set_disk_free_limit", "9000000000000000"]).await;
                wait(for_ms).await;
                rabbit.control(&["set_disk_free_limit", "50MB"]).await;
            }
            Fault::BrokerSlow { each_ms, for_ms } => slow(rabbit.tweaks(), each_ms, for_ms).await,
            Fault::BrokerCloseConnections => {
                rabbit.control(&["close_all_connections", "an operator closes them"]).await;
            }
            _ => unreachable!("{fault} is not upon the broker"),
        }
        self.healed(fault, "broker", from);
    }

    async fn upon_store(&self, fault: Fault) {
        let mut redis = self.yard.servers().redis.lock().await;
        let from = now_ms();
        match fault {
            Fault::StoreKill { away_ms } => {
                redis.kill();
                wait(away_ms).await;
                redis.begin().await;
            }
            Fault::StorePause { for_ms } => {
                redis.command(&["CLIENT", "PAUSE", &for_ms.to_string(), "ALL"]).await;
                wait(for_ms).await;
            }
            Fault::StoreFull { for_ms } => {
                redis.fill_disk();
                wait(for_ms).await;
                // It ends itself with the first write, for it promised to have written what it answers.
                redis.kill();
                redis.begin().await;
            }
            Fault::StoreSlow { each_ms, for_ms } => slow(redis.tweaks(), each_ms, for_ms).await,
            Fault::StoreFlush => {
                redis.command(&["FLUSHALL"]).await;
            }
            _ => unreachable!("{fault} is not upon the store"),
        }
        self.healed(fault, "store", from);
    }

    async fn upon_disk(&self, fault: Fault) {
        let _alone = self.disk.lock().await;
        let from = now_ms();
        match fault {
            Fault::DiskFull { for_ms } => {
                let disk = self.yard.disk.as_ref().expect("a disk that can be full");
                disk.fill();
                wait(for_ms).await;
                disk.free();
            }
            Fault::DiskSlow { each_ms, for_ms } => slow(self.yard.roles[0].tweaks(), each_ms, for_ms).await,
            _ => unreachable!("{fault} is not upon the disk"),
        }
        self.healed(fault, "disk", from);
    }
}

async fn slow(tweaks: &Tweaks, each_ms: u64, for_ms: u64) {
    tweaks.set_flush_ms(each_ms);
    wait(for_ms).await;
    tweaks.set_flush_ms(0);
}

async fn wait(for_ms: u64) {
    tokio::time::sleep(Duration::from_millis(for_ms)).await;
}
