//! The whole state as text: sorted, so that two equal states read alike. For tests and for reading, not for parsing.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use super::Planner;
use super::groups::Class;
use super::models::Model;
use super::shares::Standing;
use super::tasks::{NEVER, Place, Record};

impl Planner {
    /// All tasks, model by model and lane by lane, each lane in its order. Takes time and room in their number.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write_description(&mut text);
        text
    }

    fn write_description(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "policy {}, {} waiting, {} outstanding", self.policy(), self.waiting(), self.all_outstanding)?;
        for (name, model) in self.models.by_name() {
            let Model { backlog, capacity, is_paused, .. } = model;
            writeln!(
                out,
                "model {name}: {} of {} credits taken, {} queued, {} delayed, {} weighted seconds{}",
                capacity.outstanding(),
                capacity.total,
                backlog.queued,
                backlog.delayed,
                backlog.weighted_seconds(),
                if *is_paused { ", paused" } else { "" },
            )?;
            // Of how long it waits nothing is said.
            let at = backlog.moment(0);
            let lanes = backlog.shares.waiting().flat_map(|flow| {
                let tenant = self.tenants.name(flow.tenant);
                flow.lanes.iter().map(move |(class, lane)| ((*class, tenant), (flow.standing, lane)))
            });
            for ((Class { priority, cost, stage }, tenant), (standing, lane)) in lanes.collect::<BTreeMap<_, _>>() {
                let priority = priority.get();
                write!(out, "  priority {priority}, about {:.3e} s, stage {stage}, {tenant}", at.seconds(cost))?;
                match standing {
                    Standing::Idle | Standing::Eligible => writeln!(out)?,
                    Standing::Parked => writeln!(out, ", over its share")?,
                    Standing::Limited => writeln!(out, ", at its limit")?,
                }
                lane.iter().try_for_each(|(_, task)| self.write_task(out, self.tasks.get(task)))?;
            }
            let mut delayed: Vec<_> = self.tasks.iter().map(|(_, record)| record).filter(|r| r.is_delayed()).collect();
            delayed.retain(|record| self.models.name(record.model) == name);
            delayed.sort_unstable_by_key(|record| (record.alarm_us(), record.waiting.sequence));
            if !delayed.is_empty() {
                writeln!(out, "  delayed")?;
                delayed.into_iter().try_for_each(|record| self.write_task(out, Some(record)))?;
            }
            if capacity.outstanding() > 0 {
                writeln!(out, "  dispatched")?;
                capacity.iter().try_for_each(|&(_, task)| self.write_task(out, self.tasks.get(task)))?;
            }
        }
        let expired: Vec<_> = self.expired.iter().copied().collect();
        let shed: Vec<_> = self.shed.iter().map(|&(task, _)| task).collect();
        for (told, leaving) in [("expired", expired), ("gave way", shed)] {
            if !leaving.is_empty() {
                writeln!(out, "{told}, to be told")?;
                leaving.into_iter().try_for_each(|task| self.write_task(out, self.tasks.get(task)))?;
            }
        }
        Ok(())
    }

    fn write_task(&self, out: &mut String, record: Option<&Record>) -> fmt::Result {
        let Some(record) = record else { return Ok(()) };
        let Record { waiting, place, claim_us, expires_us, .. } = record;
        write!(out, "    {} since {} takes {} s", waiting.id.0, waiting.arrival_us, waiting.expected_seconds)?;
        match place {
            Place::Delayed { start_us } => write!(out, " starts {start_us}")?,
            Place::Dispatched { at_us, .. } => write!(out, " dispatched {at_us}")?,
            Place::Lane { stage } => stage.until_us.map_or(Ok(()), |at_us| write!(out, " next stage {at_us}"))?,
            Place::Leaving => {}
        }
        match *expires_us {
            NEVER => {}
            at_us if waiting.deadline_us.is_none() => write!(out, " expires {at_us}, has given way")?,
            at_us => write!(out, " deadline {at_us}")?,
        }
        if record.has_claim() {
            write!(out, " too late from {claim_us}")?;
        }
        writeln!(out)
    }
}
