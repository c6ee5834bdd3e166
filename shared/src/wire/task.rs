//! Tasks as our own clients publish them.

use super::{Reader, Wire, Writer};
use crate::lifecycle::State;
use crate::task::{Kind, Priority, Target, Task};

impl Wire for Task {
    fn put(&self, out: &mut Writer) -> Option<()> {
        let id = if self.id.is_some() { "{\"id\":" } else { "{" };
        out.put(id);
        if let Some(id) = self.id {
            out.id(id)?;
            out.put(",");
        }
        match &self.target {
            Target::Model(name) => out.put("\"model\":").text(name)?,
            Target::Capability(name) => out.put("\"capability\":").text(name)?,
        }
        out.put(",\"kind\":").word(self.kind.as_str())?;
        out.put(",\"input\":").raw(&self.input)?;
        out.some(",\"priority\":", self.priority.map(|priority| priority.get().into()), Writer::number)?;
        out.some(",\"tenant\":", self.tenant.as_deref(), Writer::text)?;
        out.some(",\"deadline\":", self.deadline, Writer::instant)?;
        out.some(",\"deadline_ms\":", self.deadline_ms, Writer::number)?;
        out.some(",\"not_before\":", self.not_before, Writer::instant)?;
        out.some(",\"delay_ms\":", self.delay_ms, Writer::number)?;
        out.some(",\"cost\":", self.cost.as_ref(), Writer::any)?;
        out.some(",\"timeout_ms\":", self.timeout_ms, Writer::number)?;
        out.some(",\"max_attempts\":", self.max_attempts.map(u64::from), Writer::number)?;
        out.some(",\"idempotency_key\":", self.idempotency_key.as_deref(), Writer::text)?;
        out.some(",\"metadata\":", Some(&self.metadata).filter(|metadata| !metadata.is_empty()), Writer::any)?;
        out.some(",\"webhook\":", self.webhook.as_ref(), Writer::any)?;
        out.put("}");
        Some(())
    }

    /// Tasks come from anybody: [`decode_tasks`](crate::decode_tasks) reads them.
    fn get(_: &mut Reader<'_>) -> Option<Self> {
        None
    }
}

impl Reader<'_> {
    /// A number of at most 32 bits.
    pub(super) fn small(&mut self) -> Option<u32> {
        self.number()?.try_into().ok()
    }

    pub(super) fn priority(&mut self) -> Option<Priority> {
        u8::try_from(self.number()?).ok()?.try_into().ok()
    }

    pub(super) fn kind(&mut self) -> Option<Kind> {
        let text = self.text()?;
        Kind::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    pub(super) fn state(&mut self) -> Option<State> {
        let text = self.text()?;
        State::ALL.into_iter().find(|state| state.as_str() == text)
    }
}
