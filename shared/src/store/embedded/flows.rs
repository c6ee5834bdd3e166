//! Workflows' records.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use uuid::Uuid;

use super::entry;
use crate::journal::{Address, Batch};
use crate::store::{MISSED_MS, Retention, StoreError, WorkflowAccepted, WorkflowFilter, WorkflowSeen, WorkflowWrite};
use crate::workflow::WorkflowSummary;

/// Most workflows, ended ones among them.
const FLOWS: usize = 100_000;
/// Most memory that they take together.
const BYTES: usize = 1 << 30;
/// Most workflows without a record of which it is known that they are to be cancelled.
const MISSED: usize = 10_000;

pub(super) struct Flow {
    pub fingerprint: u128,
    pub has_ended: bool,
    pub is_unwanted: bool,
    /// When it ended, or else was last written.
    pub touched_ms: u64,
    pub json: Bytes,
    /// None in what was last written before there was a list.
    pub listed: Option<Listed>,
    pub address: Option<Address>,
}

/// What the list has of a workflow.
pub(super) struct Listed {
    /// The later it was taken in, the greater; it stays.
    pub place: u64,
    pub summary: WorkflowSummary,
}

impl Flow {
    fn seen(&self) -> WorkflowSeen {
        WorkflowSeen { record: self.json.clone(), is_unwanted: self.is_unwanted, has_ended: self.has_ended }
    }
}

#[derive(Default)]
pub(super) struct Flows {
    flows: BTreeMap<Uuid, Flow>,
    by_place: BTreeMap<u64, Uuid>,
    /// By when they were written; those written again since are there again.
    by_age: VecDeque<(u64, Uuid)>,
    /// Until when it is remembered that they are to be cancelled.
    missed: VecDeque<(u64, Uuid)>,
    bytes: usize,
}

impl Flows {
    pub fn restore(&mut self, id: Uuid, flow: Flow) {
        self.insert(id, flow);
    }

    fn insert(&mut self, id: Uuid, flow: Flow) {
        self.bytes += flow.json.len();
        if let Some(listed) = &flow.listed {
            self.by_place.insert(listed.place, id);
        }
        self.flows.insert(id, flow);
    }

    /// After the last [`restore`](Self::restore).
    pub fn restored(&mut self) {
        let mut by_age: Vec<(u64, Uuid)> = self.flows.iter().map(|(id, flow)| (flow.touched_ms, *id)).collect();
        by_age.sort_unstable();
        self.by_age = by_age.into();
    }

    fn is_over(flow: &Flow, now_ms: u64, retention: Retention) -> bool {
        let kept_ms = if flow.has_ended { retention.finished_ms } else { retention.unfinished_ms };
        flow.touched_ms.saturating_add(kept_ms) <= now_ms
    }

    /// Forgets what has been kept for long enough. One that is not over yet goes to the end of the line, where it would stand
    /// by its kind: few do, since most end soon.
    fn sweep(&mut self, now_ms: u64, retention: Retention, batch: &mut Option<Batch>) {
        for _ in 0..8 {
            let Some(&(touched_ms, id)) = self.by_age.front() else { return };
            let Some(flow) = self.flows.get(&id).filter(|flow| flow.touched_ms == touched_ms) else {
                self.by_age.pop_front();
                continue;
            };
            if Self::is_over(flow, now_ms, retention) {
                self.remove(id, batch);
                self.by_age.pop_front();
            } else if flow.has_ended || touched_ms.saturating_add(retention.finished_ms) > now_ms {
                return;
            } else {
                self.by_age.rotate_left(1);
            }
        }
    }

    fn remove(&mut self, id: Uuid, batch: &mut Option<Batch>) {
        if let Some(flow) = self.flows.remove(&id) {
            self.bytes -= flow.json.len();
            if let Some(listed) = &flow.listed {
                self.by_place.remove(&listed.place);
            }
            if let (Some(address), Some(batch)) = (flow.address, batch) {
                batch.kill(address);
            }
        }
    }

    fn find(&self, id: Uuid, now_ms: u64, retention: Retention) -> Option<&Flow> {
        self.flows.get(&id).filter(|flow| !Self::is_over(flow, now_ms, retention))
    }

    /// `place` is that of the record that it takes the place of.
    fn put(
        &mut self,
        write: WorkflowWrite,
        is_unwanted: bool,
        place: Option<u64>,
        now_ms: u64,
        batch: &mut Option<Batch>,
    ) {
        let WorkflowWrite { id, fingerprint, has_ended, summary, record: json } = write;
        self.remove(id.0, batch);
        let place = place.unwrap_or_else(|| self.by_place.last_key_value().map_or(0, |(newest, _)| newest + 1));
        let listed = Some(Listed { place, summary });
        let mut flow = Flow { fingerprint, has_ended, is_unwanted, touched_ms: now_ms, json, listed, address: None };
        flow.address = batch.as_mut().map(|batch| batch.put(|out| entry::put_workflow(out, id.0, &flow)));
        self.insert(id.0, flow);
        self.by_age.push_back((now_ms, id.0));
        // Those that were written again leave their earlier places behind.
        if self.by_age.len() > 2 * self.flows.len() + 64 {
            let flows = &self.flows;
            self.by_age.retain(|(touched_ms, id)| flows.get(id).is_some_and(|flow| flow.touched_ms == *touched_ms));
        }
    }

    fn take_missed(&mut self, id: Uuid, now_ms: u64) -> bool {
        self.missed.retain(|(until_ms, _)| *until_ms > now_ms);
        let before = self.missed.len();
        self.missed.retain(|(_, missed)| *missed != id);
        self.missed.len() < before
    }

    pub fn accept(
        &mut self,
        write: WorkflowWrite,
        now_ms: u64,
        retention: Retention,
        batch: &mut Option<Batch>,
    ) -> Result<WorkflowAccepted, StoreError> {
        self.sweep(now_ms, retention, batch);
        if let Some(known) = self.find(write.id.0, now_ms, retention) {
            return Ok(match known.fingerprint == write.fingerprint {
                true => WorkflowAccepted::Known(known.seen()),
                false => WorkflowAccepted::Conflict(known.seen()),
            });
        }
        if self.flows.len() >= FLOWS || self.bytes + write.record.len() > BYTES {
            return Err(StoreError::Full(format!(
                "{} workflows take {} bytes of memory",
                self.flows.len(),
                self.bytes
            )));
        }
        let is_unwanted = self.take_missed(write.id.0, now_ms);
        self.put(write, is_unwanted, None, now_ms, batch);
        Ok(WorkflowAccepted::New { is_unwanted })
    }

    pub fn write(
        &mut self,
        write: WorkflowWrite,
        now_ms: u64,
        retention: Retention,
        batch: &mut Option<Batch>,
    ) -> Result<Option<WorkflowSeen>, StoreError> {
        self.sweep(now_ms, retention, batch);
        let known = self.find(write.id.0, now_ms, retention);
        if let Some(ended) = known.filter(|known| known.has_ended) {
            return Ok(Some(ended.seen()));
        }
        // One that was let in must be able to end.
        let (is_new, is_marked) = (known.is_none(), known.is_some_and(|known| known.is_unwanted));
        let place = known.and_then(|known| known.listed.as_ref()).map(|listed| listed.place);
        if is_new && self.flows.len() >= FLOWS + FLOWS / 8 || self.bytes + write.record.len() > BYTES + BYTES / 8 {
            return Err(StoreError::Full(format!(
                "{} workflows take {} bytes of memory",
                self.flows.len(),
                self.bytes
            )));
        }
        let is_unwanted = is_marked || is_new && self.take_missed(write.id.0, now_ms);
        self.put(write, is_unwanted, place, now_ms, batch);
        Ok(None)
    }

    pub fn see(&self, id: Uuid, now_ms: u64, retention: Retention) -> Option<WorkflowSeen> {
        self.find(id, now_ms, retention).map(Flow::seen)
    }

    /// Those before the place `before` that match, newest first, of the next `most` of the list; each with its place. And where
    /// to go on, unless that was the end.
    pub fn list(
        &self,
        filter: &WorkflowFilter,
        before: u64,
        most: usize,
        now_ms: u64,
        retention: Retention,
    ) -> (Vec<(u64, WorkflowSummary)>, Option<u64>) {
        let too_many = self.by_place.len().saturating_sub(retention.listed);
        let from = if too_many == 0 { Some(&0) } else { self.by_place.keys().nth(too_many) };
        let Some(&from) = from.filter(|from| **from < before) else { return (Vec::new(), None) };
        let (mut found, mut next) = (Vec::new(), None);
        for (looked_at, (place, id)) in self.by_place.range(from..before).rev().enumerate() {
            if looked_at == most {
                return (found, next);
            }
            next = Some(*place);
            let listed = self.find(*id, now_ms, retention).and_then(|flow| flow.listed.as_ref());
            if let Some(listed) = listed.filter(|listed| filter.matches(&listed.summary)) {
                found.push((*place, listed.summary.clone()));
            }
        }
        (found, None)
    }

    pub fn cancel(
        &mut self,
        id: Uuid,
        now_ms: u64,
        retention: Retention,
        batch: &mut Option<Batch>,
    ) -> Option<WorkflowSeen> {
        if self.find(id, now_ms, retention).is_none() {
            self.missed.retain(|(until_ms, missed)| *until_ms > now_ms && *missed != id);
            if self.missed.len() >= MISSED {
                self.missed.pop_front();
            }
            self.missed.push_back((now_ms.saturating_add(MISSED_MS), id));
            return None;
        }
        let flow = self.flows.get_mut(&id)?;
        if !flow.has_ended && !flow.is_unwanted {
            flow.is_unwanted = true;
            if let Some(batch) = batch {
                if let Some(old) = flow.address {
                    batch.kill(old);
                }
                flow.address = Some(batch.put(|out| entry::put_workflow(out, id, flow)));
            }
        }
        Some(flow.seen())
    }
}
