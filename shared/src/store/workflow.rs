//! What is written of workflows, and read.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::workflow::{WorkflowId, WorkflowRecord, WorkflowState, WorkflowSummary};

/// A workflow's record, to be written whole.
#[derive(Clone, Debug)]
pub struct WorkflowWrite {
    pub id: WorkflowId,
    /// Of what it asks for.
    pub fingerprint: u128,
    /// It has ended: it is kept for the retention time, and never written again.
    pub has_ended: bool,
    /// What lists show of it.
    pub summary: WorkflowSummary,
    /// A [`WorkflowRecord`] as JSON; at most [`WORKFLOW_BYTES`].
    pub record: Bytes,
}

impl WorkflowWrite {
    /// # Errors
    /// When the record cannot be written down.
    pub fn new(record: &WorkflowRecord, fingerprint: u128) -> Result<Self, serde_json::Error> {
        Ok(Self {
            id: record.id,
            fingerprint,
            has_ended: record.state.is_terminal(),
            summary: record.summary(),
            record: serde_json::to_vec(record)?.into(),
        })
    }
}

/// A workflow's record as it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkflowSeen {
    pub record: Bytes,
    /// Somebody asked to cancel it.
    pub is_unwanted: bool,
    pub has_ended: bool,
}

#[derive(Clone, Debug)]
pub enum WorkflowAccepted {
    /// Recorded. It may be one that somebody asked to cancel before it came.
    New {
        is_unwanted: bool,
    },
    Known(WorkflowSeen),
    /// Known, but with another content. Nothing was changed.
    Conflict(WorkflowSeen),
}

/// A workflow's record cannot be larger than this.
pub const WORKFLOW_BYTES: usize = 16 << 20;

/// Which workflows a list is to hold. Empty fields do not filter.
#[derive(Clone, Debug, Default)]
pub struct WorkflowFilter {
    pub state: Option<WorkflowState>,
    pub tenant: Option<String>,
    pub metadata: BTreeMap<String, String>,
}

impl WorkflowFilter {
    pub fn matches(&self, workflow: &WorkflowSummary) -> bool {
        self.state.is_none_or(|state| state == workflow.state)
            && self.tenant.as_ref().is_none_or(|tenant| *tenant == workflow.tenant)
            && self.metadata.iter().all(|(key, value)| workflow.metadata.get(key) == Some(value))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state.is_none() && self.tenant.is_none() && self.metadata.is_empty()
    }
}

/// Newest first.
#[derive(Clone, Debug, Default)]
pub struct WorkflowPage {
    pub workflows: Vec<WorkflowSummary>,
    /// Where the next page begins; opaque. `None` at the end.
    pub cursor: Option<String>,
}
