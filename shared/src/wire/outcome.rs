//! Results.

use super::{Get, Put, Reader, Writer};
use crate::outcome::{TaskError, TaskResult, Timings};

impl Put for TaskResult {
    fn put(&self, out: &mut Writer) -> Option<()> {
        out.put("{\"id\":").id(self.id)?;
        out.put(",\"state\":").word(self.state.as_str())?;
        out.put(",\"kind\":").word(self.kind.as_str())?;
        out.put(",\"model\":").or_null(self.model.as_deref(), Writer::text)?;
        out.put(",\"tenant\":").text(&self.tenant)?;
        out.put(",\"priority\":").number(self.priority.get().into())?;
        out.put(",\"attempt\":").number(self.attempt.into())?;
        out.put(",\"output\":").or_null(self.output.as_deref(), Writer::raw)?;
        out.put(",\"error\":").or_null(self.error.as_ref(), put_error)?;
        out.put(",\"timings\":");
        put_timings(out, &self.timings)?;
        out.put(",\"worker\":").or_null(self.worker.as_deref(), Writer::text)?;
        if self.metadata.is_empty() {
            out.put(",\"metadata\":{}");
        } else {
            out.put(",\"metadata\":").any(&self.metadata)?;
        }
        out.some(",\"choice\":", self.choice.as_ref(), Writer::any)?;
        out.some(",\"workflow\":", self.workflow.as_ref(), Writer::any)?;
        out.some(",\"usage\":", self.usage.as_ref(), Writer::any)?;
        out.put("}");
        Some(())
    }
}

impl Get for TaskResult {
    fn get(from: &mut Reader<'_>) -> Option<Self> {
        from.want("{\"id\":")?;
        let id = from.id()?;
        from.want(",\"state\":")?;
        let state = from.state()?;
        from.want(",\"kind\":")?;
        let kind = from.kind()?;
        from.want(",\"model\":")?;
        let model = from.or_null(Reader::owned)?;
        from.want(",\"tenant\":")?;
        let tenant = from.owned()?;
        from.want(",\"priority\":")?;
        let priority = from.priority()?;
        from.want(",\"attempt\":")?;
        let attempt = from.small()?;
        from.want(",\"output\":")?;
        let output = from.or_null(Reader::raw)?;
        from.want(",\"error\":")?;
        let error = from.or_null(get_error)?;
        from.want(",\"timings\":")?;
        let timings = get_timings(from)?;
        from.want(",\"worker\":")?;
        let worker = from.or_null(Reader::owned)?;
        from.want(",\"metadata\":")?;
        let metadata = if from.skip("{}") { Default::default() } else { from.any()? };
        let choice = from.some(",\"choice\":", Reader::any)?;
        let workflow = from.some(",\"workflow\":", Reader::any)?;
        let usage = from.some(",\"usage\":", Reader::any)?;
        from.want("}")?;
        Some(Self {
            id,
            state,
            kind,
            model,
            tenant,
            priority,
            attempt,
            output,
            error,
            timings,
            worker,
            metadata,
            choice,
            workflow,
            usage,
        })
    }
}

fn put_error(out: &mut Writer, error: &TaskError) -> Option<()> {
    out.put("{\"code\":").text(&error.code)?;
    out.put(",\"message\":").text(&error.message)?;
    out.put(",\"retryable\":").boolean(error.retryable)?;
    out.put("}");
    Some(())
}

fn get_error(from: &mut Reader<'_>) -> Option<TaskError> {
    from.want("{\"code\":")?;
    let code = from.owned()?;
    from.want(",\"message\":")?;
    let message = from.owned()?;
    from.want(",\"retryable\":")?;
    let retryable = from.boolean()?;
    from.want("}")?;
    Some(TaskError { code, message, retryable })
}

fn put_timings(out: &mut Writer, timings: &Timings) -> Option<()> {
    out.put("{\"accepted\":").or_null(timings.accepted, Writer::instant)?;
    out.put(",\"dispatched\":").or_null(timings.dispatched, Writer::instant)?;
    out.put(",\"started\":").or_null(timings.started, Writer::instant)?;
    out.put(",\"finished\":").or_null(timings.finished, Writer::instant)?;
    out.put(",\"waited_ms\":").or_null(timings.waited_ms.as_ref(), Writer::any)?;
    out.put(",\"ran_ms\":").or_null(timings.ran_ms.as_ref(), Writer::any)?;
    out.put("}");
    Some(())
}

fn get_timings(from: &mut Reader<'_>) -> Option<Timings> {
    from.want("{\"accepted\":")?;
    let accepted = from.or_null(Reader::instant)?;
    from.want(",\"dispatched\":")?;
    let dispatched = from.or_null(Reader::instant)?;
    from.want(",\"started\":")?;
    let started = from.or_null(Reader::instant)?;
    from.want(",\"finished\":")?;
    let finished = from.or_null(Reader::instant)?;
    from.want(",\"waited_ms\":")?;
    let waited_ms = from.or_null(Reader::float)?;
    from.want(",\"ran_ms\":")?;
    let ran_ms = from.or_null(Reader::float)?;
    from.want("}")?;
    Some(Timings { accepted, dispatched, started, finished, waited_ms, ran_ms })
}
