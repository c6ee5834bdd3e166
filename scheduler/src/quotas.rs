//! What tenants may send: who of them has quotas, and the rates, which are kept to across schedulers and gateways.

use std::collections::BTreeMap;
use std::sync::Arc;

use taskyard_shared::process::settings::TenantSettings;
use taskyard_shared::signal::{Rate, TenantSignal};
use taskyard_shared::store::{Grant, Rates, Store, Want};

use crate::held::Held;

/// The tenants that have a quota, and which.
pub(crate) fn quotas(tenants: &BTreeMap<String, TenantSettings>) -> BTreeMap<String, TenantSignal> {
    let quota = |tenant: &TenantSettings| TenantSignal {
        waiting: 0,
        max_waiting: tenant.max_waiting.map(u64::from),
        rate: tenant.rate(),
    };
    let all = tenants.iter().map(|(name, tenant)| (name.clone(), quota(tenant)));
    all.filter(|(_, quota)| *quota != TenantSignal::default()).collect()
}

/// The rates, as intake keeps to them.
#[derive(Clone)]
pub(crate) struct Quotas {
    limits: Arc<BTreeMap<String, Rate>>,
    rates: Arc<Rates>,
    shards: u32,
}

impl Quotas {
    pub fn new(store: Arc<dyn Store>, tenants: &BTreeMap<String, TenantSettings>, shards: u32) -> Self {
        let limits = tenants.iter().filter_map(|(name, tenant)| Some((name.clone(), tenant.rate()?))).collect();
        Self { limits: Arc::new(limits), rates: Arc::new(Rates::new(store)), shards }
    }

    pub fn is_limited(&self, tenant: &str) -> bool {
        self.limits.contains_key(tenant)
    }

    /// Hands on the tasks that may come, the first ones of each tenant, and answers the others.
    pub async fn count(&self, tasks: Vec<Held>, to_admit: &mut Vec<Held>) -> Vec<Held> {
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for task in &tasks {
            *counts.entry(&task.envelope.tenant).or_default() += 1;
        }
        let wants = counts.into_iter().filter_map(|(tenant, tasks)| {
            Some(Want { tenant: tenant.to_owned(), tasks, rate: *self.limits.get(tenant)? })
        });
        let wants: Vec<Want> = wants.collect();
        let grants = self.rates.take(&wants, self.shards).await;
        let mut left: BTreeMap<String, Grant> = wants.into_iter().map(|want| want.tenant).zip(grants).collect();
        let mut over = Vec::new();
        for task in tasks {
            match left.get_mut(&*task.envelope.tenant) {
                Some(grant) if grant.tasks == 0 => over.push(task),
                Some(grant) => {
                    grant.tasks -= 1;
                    to_admit.push(task);
                }
                None => to_admit.push(task),
            }
        }
        over
    }
}
