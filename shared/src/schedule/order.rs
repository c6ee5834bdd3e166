//! A schedule as the scheduler keeps it in the queue `schedules`, and what a tick of it publishes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{SCHEDULE_LABEL, Schedule, TICK_LABEL, Work, decode_schedule};
use crate::decode::Invalid;
use crate::envelope::{Carried, Envelope};
use crate::task::TaskId;
use crate::time::Timestamp;
use crate::wire::{self, Unreadable};
use crate::workflow::{Plan, WorkflowId, WorkflowOrder, members_of};

/// The version of orders. Fields are only added to it.
const VERSION: u32 = 1;

/// Ids of what ticks publish are made in this name space.
const TICK_IDS: Uuid = Uuid::from_u128(0x3be1_6f0c_88d2_5e19_b7a4_90c5_2d6e_41f8);

/// A schedule, where it stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScheduleOrder {
    v: u32,
    pub tenant: String,
    pub name: String,
    /// Counts what was written of it: of two the larger one holds.
    pub revision: u64,
    /// It is no more, and kept for a while so that no older one is taken for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
    pub paused: bool,
    pub created: Timestamp,
    pub changed: Timestamp,
    /// The ticks up to here are dealt with.
    pub seen: Timestamp,
    /// The last tick that was fired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Fired>,
    /// As it was sent.
    pub schedule: Box<RawValue>,
}

/// A tick that was fired.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Fired {
    /// When it was due.
    pub tick: Timestamp,
    /// When it was fired.
    pub fired: Timestamp,
    /// What it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<WorkflowId>,
}

/// What a tick publishes.
#[derive(Debug)]
pub enum Published {
    Task(Box<Envelope>),
    Workflow { order: Box<WorkflowOrder>, plan: Box<Plan> },
}

impl Published {
    pub fn id(&self) -> Uuid {
        match self {
            Self::Task(envelope) => envelope.id.0,
            Self::Workflow { order, .. } => order.id.0,
        }
    }

    pub fn fired(&self, tick: Timestamp, fired: Timestamp) -> Fired {
        let (task, workflow) = match self {
            Self::Task(envelope) => (Some(envelope.id), None),
            Self::Workflow { order, .. } => (None, Some(order.id)),
        };
        Fired { tick, fired, task, workflow }
    }
}

impl ScheduleOrder {
    /// A new one, of which no tick up to `now` counts.
    pub fn new(tenant: String, name: String, paused: bool, schedule: Box<RawValue>, now: Timestamp) -> Self {
        Self {
            v: VERSION,
            tenant,
            name,
            revision: 0,
            removed: false,
            paused,
            created: now,
            changed: now,
            seen: now,
            last: None,
            schedule,
        }
    }

    /// Reads an order as a scheduler wrote it.
    ///
    /// # Errors
    /// When it is of a version of which nothing is known here, or cannot be read.
    pub fn read(body: &[u8]) -> Result<Self, Unreadable> {
        wire::read_order(body, VERSION, |order: &Self| order.v)
    }

    /// What it says.
    ///
    /// # Errors
    /// When a field cannot be taken: it was, by a scheduler that knew more.
    pub fn decoded(&self) -> Result<Schedule, Invalid> {
        decode_schedule(self.schedule.get().as_bytes())
    }

    /// The id of what a tick makes: the same whoever fires it, and however often.
    pub fn tick_id(&self, namespace: &str, tick: Timestamp) -> Uuid {
        let (of, tenant) = (namespace.len(), self.tenant.len());
        let name = format!("{of}:{namespace}:{tenant}:{}:{}:{}", self.tenant, self.name, tick.as_micros());
        Uuid::new_v5(&TICK_IDS, name.as_bytes())
    }

    /// What a tick publishes, if it is fired now.
    ///
    /// # Errors
    /// When the times that it comes to cannot be written.
    pub fn publish(&self, work: &Work, namespace: &str, tick: Timestamp, now: Timestamp) -> Result<Published, Invalid> {
        let id = self.tick_id(namespace, tick);
        let labels = [(SCHEDULE_LABEL, self.name.clone()), (TICK_LABEL, tick.to_string())];
        let labels = labels.map(|(label, value)| (label.to_owned(), value));
        match work {
            Work::Task(task) => {
                let mut task = task.clone();
                (task.id, task.tenant) = (Some(TaskId(id)), Some(self.tenant.clone()));
                task.metadata.extend(labels);
                Envelope::new(*task, &Carried::default(), now).map(|envelope| Published::Task(Box::new(envelope)))
            }
            Work::Workflow(workflow, raw) => {
                let mut metadata = workflow.metadata.clone();
                metadata.extend(labels);
                let body = self.workflow_body(raw, id, &metadata).map_err(|error| Invalid::field("workflow", error))?;
                let (order, plan) = WorkflowOrder::read(body.as_bytes(), &Carried::default(), now)?;
                Ok(Published::Workflow { order: Box::new(order), plan: Box::new(plan) })
            }
        }
    }

    /// The workflow as it was written, with what is this tick's.
    fn workflow_body(
        &self,
        raw: &RawValue,
        id: Uuid,
        metadata: &BTreeMap<String, String>,
    ) -> Result<String, serde_json::Error> {
        let mut body = format!(
            "{{\"id\":\"{id}\",\"tenant\":{},\"metadata\":{}",
            serde_json::to_string(&self.tenant)?,
            serde_json::to_string(metadata)?
        );
        for (name, value) in members_of(raw).unwrap_or_default() {
            if !matches!(&*name, "id" | "tenant" | "metadata") {
                body.push(',');
                body.push_str(&serde_json::to_string(&name)?);
                body.push(':');
                body.push_str(value.get());
            }
        }
        body.push('}');
        Ok(body)
    }
}
