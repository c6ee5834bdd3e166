//! Finished attempts.

use super::{Get, Put, Reader, Writer};
use crate::load::Completion;

impl Put for Completion {
    fn put(&self, out: &mut Writer) -> Option<()> {
        out.put("{\"id\":").id(self.id)?;
        out.put(",\"model\":").text(&self.model)?;
        out.put(",\"state\":").word(self.state.as_str())?;
        out.put(",\"ran_ms\":").any(&self.ran_ms)?;
        out.put(",\"idle_ms\":").any(&self.idle_ms)?;
        out.put(",\"worker\":").text(&self.worker)?;
        out.put("}");
        Some(())
    }
}

impl Get for Completion {
    fn get(from: &mut Reader<'_>) -> Option<Self> {
        from.want("{\"id\":")?;
        let id = from.id()?;
        from.want(",\"model\":")?;
        let model = from.owned()?;
        from.want(",\"state\":")?;
        let state = from.state()?;
        from.want(",\"ran_ms\":")?;
        let ran_ms = from.float()?;
        from.want(",\"idle_ms\":")?;
        let idle_ms = from.float()?;
        from.want(",\"worker\":")?;
        let worker = from.owned()?;
        from.want("}")?;
        Some(Self { id, model, state, ran_ms, idle_ms, worker })
    }
}
