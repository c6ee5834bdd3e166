//! The tenants that matter now, by number, and what some of them are given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::fair::TenantLimits;
use super::names::Names;

/// A tenant that limits were set for.
#[derive(Default)]
pub(super) struct Limited {
    pub(super) limits: TenantLimits,
    /// Its tasks that are out, over all models.
    pub(super) running: usize,
    /// Its tasks that wait at other schedulers.
    pub(super) elsewhere: usize,
    /// Its tasks that were taken out, and wait where the planner does not see them.
    pub(super) away: usize,
    /// Run time of what it was given, in microseconds: as expected, then as measured.
    pub(super) served_us: u128,
    /// Its models, and its flow in each.
    pub(super) flows: BTreeSet<(u32, u32)>,
}

impl Limited {
    pub(super) fn is_at_limit(&self) -> bool {
        self.limits.running_most.is_some_and(|most| self.running >= most)
    }
}

pub(super) struct Tenants {
    names: Names,
    limited: BTreeMap<u32, Limited>,
}

impl Tenants {
    pub(super) fn new(seed: u64) -> Self {
        Self { names: Names::new(seed), limited: BTreeMap::new() }
    }

    pub(super) fn find(&self, name: &str) -> Option<u32> {
        self.names.find(name)
    }

    pub(super) fn name(&self, tenant: u32) -> &Arc<str> {
        self.names.name(tenant)
    }

    /// One more flow, or limits, of this tenant are known. Each is [released](Self::release) once.
    pub(super) fn acquire(&mut self, name: &str) -> u32 {
        self.names.acquire(name)
    }

    /// A flow of this tenant was forgotten.
    pub(super) fn release(&mut self, tenant: u32, model: u32, flow: u32) {
        if let Some(limited) = self.limited.get_mut(&tenant) {
            limited.flows.remove(&(model, flow));
        }
        self.names.release(tenant);
    }

    pub(super) fn limited(&self, tenant: u32) -> Option<&Limited> {
        self.limited.get(&tenant)
    }

    pub(super) fn limited_mut(&mut self, tenant: u32) -> Option<&mut Limited> {
        self.limited.get_mut(&tenant)
    }

    /// Sets or, with `None`, lifts what a tenant is given.
    pub(super) fn set(&mut self, name: &str, limited: Option<Limited>) -> Option<u32> {
        let known = self.find(name);
        match limited {
            Some(limited) => {
                let tenant = known.filter(|tenant| self.limited.contains_key(tenant));
                let tenant = tenant.unwrap_or_else(|| self.acquire(name));
                self.limited.insert(tenant, limited);
                Some(tenant)
            }
            None => {
                let tenant = known?;
                if self.limited.remove(&tenant).is_some() {
                    self.names.release(tenant);
                }
                Some(tenant)
            }
        }
    }

    /// Those with limits, in no order that means anything.
    pub(super) fn all_limited_mut(&mut self) -> impl Iterator<Item = (Arc<str>, &mut Limited)> {
        let Self { names, limited } = self;
        limited.iter_mut().map(|(&tenant, limited)| (names.name(tenant).clone(), limited))
    }

    /// Those with limits, by name.
    pub(super) fn by_name(&self) -> Vec<(&Arc<str>, &Limited)> {
        let mut tenants: Vec<_> = self.limited.iter().map(|(&tenant, limited)| (self.name(tenant), limited)).collect();
        tenants.sort_unstable_by_key(|(name, _)| *name);
        tenants
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.names.iter().count()
    }
}
