//! Workflows' records in the server; `workflow.lua` has the layout in words.

use bytes::Bytes;
use redis::Value;

use super::link::{array, bytes, optional_bytes, unexpected};
use super::{PAGE_TASKS, RedisStore, SCAN_TASKS, STRETCH_TASKS, count, number, pair, record, script};
use crate::store::{
    MISSED_MS, StoreError, WORKFLOW_BYTES, WorkflowAccepted, WorkflowFilter, WorkflowPage, WorkflowSeen, WorkflowWrite,
    cursor,
};
use crate::workflow::{WorkflowId, WorkflowSummary};

/// Marks and fingerprint.
const HEAD_BYTES: usize = 17;
const ENDED: u8 = 1;
const UNWANTED: u8 = 2;

impl RedisStore {
    fn workflow_key(&self, id: WorkflowId) -> String {
        format!("{}{}", self.keys.workflow, id.0.as_simple())
    }

    async fn call(
        &self,
        what: &str,
        id: WorkflowId,
        ms: &str,
        written: [&[u8]; 2],
    ) -> Result<(i64, Vec<u8>), StoreError> {
        let [record, summary] = written;
        let arguments = [what.as_bytes(), ms.as_bytes(), record, summary, self.listed.as_bytes()];
        let summary = format!("{}{}", self.keys.workflow_summary, id.0.as_simple());
        let keys = [&*self.workflow_key(id), &summary, &self.keys.workflows, &self.keys.workflow_ends];
        let answer = script::WORKFLOW.call(&self.link, &keys, &arguments).await?;
        match pair(answer)? {
            [Value::Int(kind), record] => Ok((kind, bytes(record)?)),
            _ => Err(unexpected("workflow")),
        }
    }

    fn kept_ms(&self, write: &WorkflowWrite) -> &str {
        if write.has_ended { &self.finished_ms } else { &self.unfinished_ms }
    }

    async fn write_as(&self, what: &str, write: &WorkflowWrite) -> Result<(i64, Vec<u8>), StoreError> {
        let written = [&*written(write)?, &super::json(&write.summary)?];
        self.call(what, write.id, self.kept_ms(write), written).await
    }

    pub(super) async fn accept_one(&self, write: WorkflowWrite) -> Result<WorkflowAccepted, StoreError> {
        let (kind, known) = self.write_as("accept", &write).await?;
        match kind {
            0 => Ok(WorkflowAccepted::New { is_unwanted: is_unwanted(&known) }),
            1 => Ok(WorkflowAccepted::Known(seen(known)?)),
            2 => Ok(WorkflowAccepted::Conflict(seen(known)?)),
            _ => Err(unexpected("workflow")),
        }
    }

    pub(super) async fn write_one(&self, write: WorkflowWrite) -> Result<Option<WorkflowSeen>, StoreError> {
        let (kind, known) = self.write_as("write", &write).await?;
        if kind == 0 { seen(known).map(Some) } else { Ok(None) }
    }

    pub(super) async fn cancel_one(&self, id: WorkflowId) -> Result<Option<WorkflowSeen>, StoreError> {
        let missed = String::from_utf8_lossy(&number(MISSED_MS)).into_owned();
        let (kind, known) = self.call("cancel", id, &missed, [b"", b""]).await?;
        if kind == 0 { Ok(None) } else { seen(known).map(Some) }
    }

    pub(super) async fn see_one(&self, id: WorkflowId) -> Result<Option<WorkflowSeen>, StoreError> {
        let mut command = redis::cmd("GET");
        command.arg(self.workflow_key(id));
        let record = optional_bytes(self.command(command).await?)?;
        record.filter(|record| record.len() > 1).map(seen).transpose()
    }

    pub(super) async fn list_some(
        &self,
        filter: &WorkflowFilter,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<WorkflowPage, StoreError> {
        let limit = limit.min(PAGE_TASKS);
        let mut from = cursor.map(cursor::read).transpose()?;
        let mut workflows = Vec::new();
        for _ in 0..SCAN_TASKS / STRETCH_TASKS {
            let left = limit - workflows.len();
            let most = number(if filter.is_empty() { left.min(STRETCH_TASKS) } else { STRETCH_TASKS });
            let place = from.map(number).unwrap_or_default();
            let arguments: [&[u8]; 3] = [self.keys.workflow_summary.as_bytes(), &place, &most];
            let answer = script::LIST_WORKFLOWS.call(&self.link, &[&self.keys.workflows], &arguments).await?;

            let mut answer = array(answer)?.into_iter();
            let end = answer.next().ok_or_else(|| unexpected("list")).and_then(count)?;
            while let (Some(place), Some(summary)) = (answer.next(), answer.next()) {
                if workflows.len() == limit {
                    return Ok(WorkflowPage { workflows, cursor: from.map(cursor::write) });
                }
                let place = count(place)?;
                match record::parsed::<WorkflowSummary>(&bytes(summary)?, "the summary of a workflow") {
                    Ok(summary) if filter.matches(&summary) => {
                        workflows.push(summary);
                        from = Some(place);
                    }
                    Ok(_) => {}
                    // One that cannot be read must not keep the others from being listed.
                    Err(error) => tracing::warn!(%error, "a listed workflow cannot be read"),
                }
            }
            if end == 0 {
                return Ok(WorkflowPage { workflows, cursor: None });
            }
            from = Some(end);
            if workflows.len() == limit {
                break;
            }
        }
        Ok(WorkflowPage { workflows, cursor: from.map(cursor::write) })
    }
}

fn written(write: &WorkflowWrite) -> Result<Vec<u8>, StoreError> {
    if write.record.len() > WORKFLOW_BYTES {
        let bytes = write.record.len();
        return Err(StoreError::Refused(format!("workflow {}: its record of {bytes} bytes is too large", write.id.0)));
    }
    let mut out = Vec::with_capacity(HEAD_BYTES + write.record.len());
    out.push(if write.has_ended { ENDED } else { 0 });
    out.extend_from_slice(&write.fingerprint.to_le_bytes());
    out.extend_from_slice(&write.record);
    Ok(out)
}

fn is_unwanted(record: &[u8]) -> bool {
    record.first().is_some_and(|marks| marks & UNWANTED != 0)
}

fn seen(record: Vec<u8>) -> Result<WorkflowSeen, StoreError> {
    if record.len() < HEAD_BYTES {
        return Err(StoreError::Corrupt("the record of a workflow".to_owned()));
    }
    let (is_unwanted, has_ended) = (is_unwanted(&record), record.first().is_some_and(|marks| marks & ENDED != 0));
    Ok(WorkflowSeen { record: Bytes::from(record).slice(HEAD_BYTES..), is_unwanted, has_ended })
}
