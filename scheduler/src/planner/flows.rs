//! What tenants are given, over all models: each has a flow in the shares of every model that it has tasks of.

use super::Planner;
use super::fair::TenantLimits;
use super::models::Model;
use super::tasks::{Place, Record};
use super::tenants::Limited;

impl Planner {
    /// What a tenant is given from now on. The default is what everybody is given.
    pub fn handle_tenant(&mut self, name: &str, limits: TenantLimits) {
        let limits = limits.sound();
        let number = self.tenants.find(name);
        let limited = number.and_then(|tenant| self.tenants.limited_mut(tenant)).map(std::mem::take);
        let limited = (limits != TenantLimits::default()).then(|| match limited {
            Some(limited) => Limited { limits, ..limited },
            None => {
                // Whatever is known of it already is counted once.
                let flows = number.map_or_else(Default::default, |tenant| self.models.flows_of(tenant));
                let is_running = |record: &Record| {
                    matches!(record.place, Place::Dispatched { .. }) && flows.contains(&(record.model, record.flow))
                };
                let running = self.tasks.iter().filter(|(_, record)| is_running(record)).count();
                Limited { limits, running, flows, ..Limited::default() }
            }
        });
        let is_counted = limited.is_some();
        let flows = limited.as_ref().map_or_else(
            || number.map_or_else(Default::default, |tenant| self.models.flows_of(tenant)),
            |limited| limited.flows.clone(),
        );
        let is_at_limit = limited.as_ref().is_some_and(Limited::is_at_limit);
        self.tenants.set(name, limited);
        for &(model, flow) in &flows {
            let Model { backlog, overload, .. } = self.models.get_mut(model);
            backlog.shares.set_weight(flow, limits.weight, is_counted);
            overload.set_weight(flow, backlog.shares.flow(flow).weight());
            self.set_flow_limited(model, flow, is_at_limit);
        }
    }

    /// How many tasks of a tenant wait at other schedulers: they count where a limit says how many may wait.
    pub fn handle_elsewhere(&mut self, name: &str, waiting: usize) {
        if let Some(limited) = self.tenants.find(name).and_then(|tenant| self.tenants.limited_mut(tenant)) {
            limited.elsewhere = waiting;
        }
    }

    /// Tasks of a tenant with limits that are here, or were taken out for a while, and are not dispatched.
    pub(super) fn waiting_of(&self, limited: &Limited) -> usize {
        let uses = |&(model, flow): &(u32, u32)| self.models.get(model).backlog.shares.flow(flow).uses as usize;
        (limited.flows.iter().map(uses).sum::<usize>() + limited.away).saturating_sub(limited.running)
    }

    /// Whether as many tasks of a tenant wait as may.
    pub(super) fn has_too_many_waiting(&self, name: &str) -> bool {
        let limited = self.tenants.find(name).and_then(|tenant| self.tenants.limited(tenant));
        limited.is_some_and(|limited| {
            let most = limited.limits.waiting_most;
            most.is_some_and(|most| self.waiting_of(limited).saturating_add(limited.elsewhere) >= most)
        })
    }

    pub(super) fn acquire_flow(&mut self, model: u32, name: &str) -> u32 {
        let shares = &mut self.models.get_mut(model).backlog.shares;
        if let Some(tenant) = self.tenants.find(name)
            && shares.find(tenant).is_some()
        {
            return shares.acquire(tenant);
        }
        // A flow counts as one use of its tenant's name.
        let tenant = self.tenants.acquire(name);
        let flow = shares.acquire(tenant);
        if let Some(limited) = self.tenants.limited_mut(tenant) {
            limited.flows.insert((model, flow));
            shares.set_weight(flow, limited.limits.weight, true);
        }
        flow
    }

    /// Lets go of the names of tenants whose flow in this model was forgotten.
    pub(super) fn let_tenants_go(&mut self, model: u32) {
        for (tenant, flow) in self.models.get_mut(model).backlog.shares.take_dropped() {
            self.tenants.release(tenant, model, flow);
        }
    }

    /// One more task of a flow is out, or one less. Its tenant may come to its limit so, or have room again.
    pub(super) fn count_running(&mut self, model: u32, flow: u32, is_out: bool) {
        let flow = self.models.get(model).backlog.shares.flow(flow);
        if !flow.is_counted {
            return;
        }
        let Some(limited) = self.tenants.limited_mut(flow.tenant) else { return };
        let was_at_limit = limited.is_at_limit();
        limited.running = if is_out { limited.running + 1 } else { limited.running.saturating_sub(1) };
        let is_at_limit = limited.is_at_limit();
        if was_at_limit != is_at_limit {
            for (model, flow) in limited.flows.clone() {
                self.set_flow_limited(model, flow, is_at_limit);
            }
        }
    }

    pub(super) fn set_flow_limited(&mut self, model: u32, flow: u32, is_limited: bool) {
        let Model { backlog, capacity, .. } = self.models.get_mut(model);
        backlog.set_limited(flow, is_limited, capacity.outstanding() == 0, &self.tasks);
        self.models.refresh_ready(model);
        if !is_limited {
            self.models.handle_came(model);
        }
    }
}
