//! Tasks as our own clients publish them.

use super::{Put, Reader, Writer};
use crate::lifecycle::State;
use crate::task::{Fields, Kind, Priority, Target, Task};

impl Put for Task {
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
        out.some(",\"min_quality\":", self.min_quality.as_ref(), Writer::any)?;
        let alternatives = Some(&self.alternatives).filter(|alternatives| !alternatives.is_empty());
        out.some(",\"alternatives\":", alternatives, Writer::any)?;
        out.put("}");
        Some(())
    }
}

impl Reader<'_> {
    /// A task as anybody may write it: fields in any order, with any space between them. Their values are not checked.
    /// `None` also for what is allowed but seldom, such as escapes in a name.
    pub(crate) fn task(&mut self) -> Option<Task> {
        let mut fields = Fields::default();
        let mut seen = 0_u32;
        self.want("{")?;
        loop {
            self.space();
            let name = self.text()?;
            self.space();
            self.want(":")?;
            self.space();
            // Once, each of them.
            let field = 1 << NAMES.iter().position(|known| *known == name)?;
            if seen & field != 0 {
                return None;
            }
            seen |= field;
            // Nothing at all, for every field but the input, to which it is a value like any other.
            if name == "input" || !self.skip("null") {
                match name {
                    "input" => fields.input = Some(self.raw()?),
                    "id" => fields.id = Some(self.id()?),
                    "model" => fields.model = Some(self.owned()?),
                    "capability" => fields.capability = Some(self.owned()?),
                    "kind" => fields.kind = Some(self.kind()?),
                    "priority" => fields.priority = Some(self.priority()?),
                    "tenant" => fields.tenant = Some(self.owned()?),
                    "deadline" => fields.deadline = Some(self.instant()?),
                    "deadline_ms" => fields.deadline_ms = Some(self.number()?),
                    "not_before" => fields.not_before = Some(self.instant()?),
                    "delay_ms" => fields.delay_ms = Some(self.number()?),
                    "cost" => fields.cost = Some(self.float()?),
                    "timeout_ms" => fields.timeout_ms = Some(self.number()?),
                    "max_attempts" => fields.max_attempts = Some(self.small()?),
                    "idempotency_key" => fields.idempotency_key = Some(self.owned()?),
                    "metadata" => fields.metadata = Some(self.any()?),
                    "webhook" => fields.webhook = Some(self.object()?),
                    "min_quality" => fields.min_quality = Some(self.float()?),
                    "alternatives" => fields.alternatives = Some(self.array(Self::object)?),
                    _ => return None,
                }
            }
            self.space();
            if self.skip("}") {
                break;
            }
            self.want(",")?;
        }
        fields.task()
    }
}

/// The fields of a task.
pub(crate) const NAMES: [&str; 19] = [
    "id",
    "model",
    "capability",
    "kind",
    "input",
    "priority",
    "tenant",
    "deadline",
    "deadline_ms",
    "not_before",
    "delay_ms",
    "cost",
    "timeout_ms",
    "max_attempts",
    "idempotency_key",
    "metadata",
    "webhook",
    "min_quality",
    "alternatives",
];

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
