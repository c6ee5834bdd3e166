//! A workflow on its way between schedulers: what was published, with all that it left open filled in.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::{
    Machine, OnFailure, Plan, StepError, Workflow, WorkflowId, WorkflowRecord, WorkflowState, decode_workflow,
};
use crate::decode::Invalid;
use crate::envelope::{Carried, Reply, keyed};
use crate::task::Priority;
use crate::time::Timestamp;
use crate::wire::{self, Unreadable};

/// The version of orders. Fields are only added to it.
const VERSION: u32 = 1;

/// Ids made from an idempotency key live in this name space.
const KEYED_IDS: Uuid = Uuid::from_u128(0x0d3c_9a52_6f1e_5c47_a2b8_74e9_11c0_5d33);

/// A workflow as schedulers hand it to themselves on the queues `workflows.<shard>`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkflowOrder {
    v: u32,
    pub id: WorkflowId,
    pub tenant: String,
    pub priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    pub accepted: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
    /// Who published the same workflow again while it ran, and is told as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub followers: Vec<Reply>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
    /// As it was published.
    pub workflow: Box<RawValue>,
}

impl WorkflowOrder {
    /// Reads what was published and fills in what it leaves open, from the message that carried it and then from the defaults.
    ///
    /// # Errors
    /// When it cannot be taken, its graph among the reasons.
    pub fn read(body: &[u8], carried: &Carried, now: Timestamp) -> Result<(Self, Plan), Invalid> {
        Self::of(decode_workflow(body)?, body, carried, now)
    }

    /// The same of a body that was decoded.
    ///
    /// # Errors
    /// When it cannot be taken, its graph among the reasons.
    pub fn of(workflow: Workflow, body: &[u8], carried: &Carried, now: Timestamp) -> Result<(Self, Plan), Invalid> {
        let text = std::str::from_utf8(body).unwrap_or_default().trim();
        let raw = RawValue::from_string(text.to_owned()).map_err(|error| Invalid::field("body", error))?;
        let tenant = carried.tenant(workflow.tenant.clone())?;
        let id = match (workflow.id, &workflow.idempotency_key) {
            (Some(id), _) => id,
            (None, key) => match (carried.id("workflow")?, key) {
                (Some(id), _) => WorkflowId(id),
                (None, Some(key)) => Self::keyed(&tenant, key),
                (None, None) => WorkflowId(Uuid::now_v7()),
            },
        };
        let priority = carried.priority(workflow.priority)?;
        let deadline = carried.deadline(workflow.deadline, workflow.deadline_ms, now)?;
        let order = Self {
            v: VERSION,
            id,
            tenant,
            priority,
            deadline,
            accepted: now,
            reply: carried.reply.clone(),
            followers: Vec::new(),
            traceparent: carried.traceparent.clone(),
            tracestate: carried.tracestate.clone(),
            workflow: raw,
        };
        Ok((order, Plan::new(workflow)?))
    }

    /// The id that an idempotency key stands for.
    pub fn keyed(tenant: &str, key: &str) -> WorkflowId {
        WorkflowId(keyed(&KEYED_IDS, tenant, key))
    }

    /// Reads an order as a scheduler wrote it, and its graph anew.
    ///
    /// # Errors
    /// When it is of a version of which nothing is known here, or cannot be read.
    pub fn again(body: &[u8]) -> Result<(Self, Plan), Unreadable> {
        let order = wire::read_order(body, VERSION, |order: &Self| order.v)?;
        let invalid = |invalid: Invalid| Unreadable::Order(invalid.to_string());
        let workflow = decode_workflow(order.workflow.get().as_bytes()).map_err(invalid)?;
        let plan = Plan::new(workflow).map_err(invalid)?;
        Ok((order, plan))
    }

    /// The same workflow again has the same fingerprint: it covers the steps as they are written, `on_failure` and the tenant.
    pub fn fingerprint(&self, plan: &Plan) -> u128 {
        let seed = plan.fingerprint() as u64 ^ (plan.fingerprint() >> 64) as u64;
        xxh3_128_with_seed(self.tenant.as_bytes(), seed)
    }
}

impl WorkflowOrder {
    /// Who is told of its end.
    pub fn replies(&self) -> impl Iterator<Item = &Reply> {
        self.reply.iter().chain(&self.followers)
    }

    /// Whether all are told by this one who are told by the other.
    pub fn tells_all_of(&self, other: &Self) -> bool {
        other.replies().all(|reply| self.replies().any(|own| own == reply))
    }

    /// The workflow as it is shown.
    pub fn record(&self, machine: &Machine, state: WorkflowState) -> WorkflowRecord {
        let (steps, counts) = machine.records(self.id);
        WorkflowRecord {
            id: self.id,
            state,
            tenant: self.tenant.clone(),
            priority: self.priority,
            on_failure: machine.plan().on_failure,
            deadline: self.deadline,
            accepted: self.accepted,
            finished: None,
            error: machine.error().cloned(),
            counts,
            steps,
            outputs: machine.outputs(),
            metadata: machine.plan().metadata.clone(),
        }
    }

    /// One that was accepted and has not begun.
    pub fn queued(&self, plan: Plan) -> WorkflowRecord {
        self.record(&Machine::new(Arc::new(plan)), WorkflowState::Queued)
    }

    /// This one, if it cannot be taken after all.
    pub fn refused_again(&self, code: &str, message: String, now: Timestamp) -> WorkflowRecord {
        let carried = Carried {
            message_id: Some(self.id.0.to_string()),
            app_id: Some(self.tenant.clone()),
            ..Carried::default()
        };
        Self::refused(&carried, code, message, now)
    }

    /// One that could not be taken.
    pub fn refused(carried: &Carried, code: &str, message: String, now: Timestamp) -> WorkflowRecord {
        let id = carried.message_id.as_ref().and_then(|id| id.parse().ok()).unwrap_or_else(Uuid::now_v7);
        WorkflowRecord {
            id: WorkflowId(id),
            state: WorkflowState::Rejected,
            tenant: carried.app_id.clone().unwrap_or_else(|| "default".to_owned()),
            priority: Priority::default(),
            on_failure: OnFailure::default(),
            deadline: None,
            accepted: now,
            finished: Some(now),
            error: Some(StepError { code: code.to_owned(), message }),
            counts: BTreeMap::new(),
            steps: Vec::new(),
            outputs: BTreeMap::new(),
            metadata: BTreeMap::new(),
        }
    }
}
