//! Tasks between roles.

use std::num::NonZeroU64;

use super::{Get, Put, Reader, Writer};
use crate::envelope::{Correlation, Envelope, Extra, Reply};
use crate::task::{Target, TaskId};

impl Put for Envelope {
    fn put(&self, out: &mut Writer) -> Option<()> {
        let extra = &*self.extras;
        out.put("{\"v\":").number(self.v.into())?;
        out.put(",\"id\":").id(self.id)?;
        match &self.target {
            Target::Model(name) => out.put(",\"model\":").text(name)?,
            Target::Capability(name) => out.put(",\"capability\":").text(name)?,
        }
        out.some(",\"chosen\":", self.chosen.as_deref(), Writer::text)?;
        out.put(",\"kind\":").word(self.kind.as_str())?;
        out.put(",\"tenant\":").text(&self.tenant)?;
        out.put(",\"priority\":").number(self.priority.get().into())?;
        out.some(",\"deadline\":", self.deadline, Writer::instant)?;
        out.some(",\"not_before\":", extra.not_before, Writer::instant)?;
        out.some(",\"cost\":", extra.cost.as_ref(), Writer::any)?;
        out.some(",\"timeout_ms\":", self.timeout_ms.map(NonZeroU64::get), Writer::number)?;
        out.some(",\"max_attempts\":", extra.max_attempts.map(u64::from), Writer::number)?;
        out.some(",\"idempotency_key\":", extra.idempotency_key.as_deref(), Writer::text)?;
        out.some(",\"metadata\":", Some(&extra.metadata).filter(|metadata| !metadata.is_empty()), Writer::any)?;
        out.some(",\"webhook\":", extra.webhook.as_ref(), Writer::any)?;
        out.some(",\"min_quality\":", extra.min_quality.as_ref(), Writer::any)?;
        let alternatives = Some(&extra.alternatives).filter(|alternatives| !alternatives.is_empty());
        out.some(",\"alternatives\":", alternatives, Writer::any)?;
        out.some(",\"choice\":", extra.choice.as_ref(), Writer::any)?;
        out.put(",\"accepted\":").instant(self.accepted)?;
        out.some(",\"dispatched\":", self.dispatched, Writer::instant)?;
        out.put(",\"attempts\":").number(self.attempts.into())?;
        out.some(",\"reply\":", self.reply.as_ref(), put_reply)?;
        out.some(",\"traceparent\":", extra.traceparent.as_deref(), Writer::text)?;
        out.some(",\"tracestate\":", extra.tracestate.as_deref(), Writer::text)?;
        out.some(",\"last_error\":", extra.last_error.as_ref(), Writer::any)?;
        out.some(",\"shard\":", Some(self.shard).filter(|shard| *shard > 0).map(u64::from), Writer::number)?;
        out.some(",\"workflow\":", extra.workflow.as_ref(), Writer::any)?;
        out.some(",\"due\":", extra.due, Writer::instant)?;
        if let Some(original) = extra.mirrors {
            out.put(",\"mirrors\":").id(original)?;
        }
        out.put(",\"input\":").raw(&self.input)?;
        out.put("}");
        Some(())
    }
}

impl Get for Envelope {
    fn get(from: &mut Reader<'_>) -> Option<Self> {
        from.want("{\"v\":")?;
        let v = from.number()?.try_into().ok()?;
        from.want(",\"id\":")?;
        let id = from.id()?;
        let target = if from.skip(",\"model\":") {
            Target::Model(from.boxed()?)
        } else {
            from.want(",\"capability\":")?;
            Target::Capability(from.boxed()?)
        };
        let chosen = from.some(",\"chosen\":", Reader::boxed)?;
        from.want(",\"kind\":")?;
        let kind = from.kind()?;
        from.want(",\"tenant\":")?;
        let tenant = from.boxed()?;
        from.want(",\"priority\":")?;
        let priority = from.priority()?;
        let deadline = from.some(",\"deadline\":", Reader::instant)?;
        let not_before = from.some(",\"not_before\":", Reader::instant)?;
        let cost = from.some(",\"cost\":", Reader::float)?;
        let timeout_ms = from.some(",\"timeout_ms\":", Reader::number)?.and_then(NonZeroU64::new);
        let max_attempts = from.some(",\"max_attempts\":", Reader::small)?;
        let idempotency_key = from.some(",\"idempotency_key\":", Reader::boxed)?;
        let metadata = from.some(",\"metadata\":", Reader::any)?.unwrap_or_default();
        let webhook = from.some(",\"webhook\":", Reader::any)?;
        let min_quality = from.some(",\"min_quality\":", Reader::float)?;
        let alternatives = from.some(",\"alternatives\":", Reader::any)?.unwrap_or_default();
        let choice = from.some(",\"choice\":", Reader::any)?;
        from.want(",\"accepted\":")?;
        let accepted = from.instant()?;
        let dispatched = from.some(",\"dispatched\":", Reader::instant)?;
        from.want(",\"attempts\":")?;
        let attempts = from.small()?;
        let reply = from.some(",\"reply\":", get_reply)?;
        let traceparent = from.some(",\"traceparent\":", Reader::boxed)?;
        let tracestate = from.some(",\"tracestate\":", Reader::boxed)?;
        let last_error = from.some(",\"last_error\":", Reader::any)?;
        let shard = from.some(",\"shard\":", Reader::small)?.unwrap_or_default();
        let workflow = from.some(",\"workflow\":", Reader::any)?;
        let due = from.some(",\"due\":", Reader::instant)?;
        let mirrors = from.some(",\"mirrors\":", Reader::id)?;
        from.want(",\"input\":")?;
        let input = from.raw()?;
        from.want("}")?;
        let extra = Extra {
            not_before,
            cost,
            max_attempts,
            idempotency_key,
            metadata,
            webhook,
            min_quality,
            alternatives,
            choice,
            traceparent,
            tracestate,
            last_error,
            workflow,
            due,
            mirrors,
        };
        Some(Self {
            v,
            id,
            target,
            chosen,
            kind,
            tenant,
            priority,
            deadline,
            timeout_ms,
            accepted,
            dispatched,
            attempts,
            reply,
            shard,
            extras: extra.into(),
            input,
        })
    }
}

fn put_reply(out: &mut Writer, reply: &Reply) -> Option<()> {
    out.put("{\"to\":").text(&reply.to)?;
    out.some(",\"correlation_id\":", reply.correlation_id.as_ref(), put_correlation)?;
    out.put(if reply.array { ",\"array\":true}" } else { "}" });
    Some(())
}

fn put_correlation(out: &mut Writer, correlation: &Correlation) -> Option<()> {
    match correlation {
        Correlation::Id(id) => out.id(TaskId(*id)),
        Correlation::Text(text) => out.text(text),
    }
}

fn get_reply(from: &mut Reader<'_>) -> Option<Reply> {
    from.want("{\"to\":")?;
    let to = from.boxed()?;
    let correlation_id = from.some(",\"correlation_id\":", Reader::text)?.map(Correlation::from);
    let array = from.skip(",\"array\":true");
    from.want("}")?;
    Some(Reply { to, correlation_id, array })
}
