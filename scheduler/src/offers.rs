//! What the live workers offer for each model, and what that is room for.

use std::collections::BTreeMap;

use taskyard_shared::load::LoadReport;

use crate::depth::{Depths, UNKNOWN_SECONDS};
use crate::planner::Room;
use crate::shard::Shard;

/// Most tasks in one message.
const TOGETHER: usize = 64;
/// So long a worker may be busy with the tasks of one message: another that has free slots gets none of them.
const TOGETHER_MS: f64 = 2.0;

/// All workers of one model.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Offer {
    /// Slots times batch.
    slots: usize,
    /// Slots alone.
    calls: usize,
    workers: usize,
    /// Tasks that one call of the handler takes.
    batch: usize,
}

#[derive(Default)]
pub(crate) struct Offers {
    by_model: BTreeMap<String, Offer>,
}

impl Offers {
    /// Takes the newest reports for all that there is, and answers the models of which something changed.
    pub fn update(&mut self, loads: &[LoadReport]) -> Vec<String> {
        let mut by_model: BTreeMap<String, Offer> = BTreeMap::new();
        for report in loads.iter().filter(|report| !report.draining) {
            // One that holds a model in its file alone offers nothing of it.
            for (model, load) in report.models.iter().filter(|(_, load)| load.slots > 0) {
                let offer = by_model.entry(model.clone()).or_default();
                let batch = load.max_batch.max(1) as usize;
                offer.slots += load.slots as usize * batch;
                offer.calls += load.slots as usize;
                offer.workers += 1;
                offer.batch = offer.batch.max(batch);
            }
        }
        let before = std::mem::replace(&mut self.by_model, by_model);
        let gone = before.keys().filter(|model| !self.by_model.contains_key(*model));
        let changed = self.by_model.iter().filter(|(model, offer)| before.get(*model) != Some(offer));
        gone.chain(changed.map(|(model, _)| model)).cloned().collect()
    }

    /// Tasks that its workers run at once; 0 when there are none.
    pub fn slots(&self, model: &str) -> usize {
        self.by_model.get(model).map_or(0, |offer| offer.slots)
    }

    /// Tasks that one of its workers runs at once, on average; `None` when there are none.
    pub fn per_worker(&self, model: &str) -> Option<f64> {
        self.by_model.get(model).map(|offer| offer.slots as f64 / offer.workers.max(1) as f64)
    }

    /// Calls of the handler that its workers run at once: a shard's part of them.
    pub fn calls(&self, model: &str, shard: Shard) -> usize {
        self.by_model.get(model).map_or(0, |offer| shard.part(Room::from(offer.calls)).slots)
    }

    /// Slots, and what is sent ahead so that they do not idle: a shard's part of both. `mean_seconds` is what its tasks take.
    pub fn room(&self, model: &str, depths: &Depths, mean_seconds: Option<f64>, shard: Shard) -> Room {
        match self.slots(model) {
            0 => Room::from(0),
            slots => {
                let (ahead, grain) = (depths.ahead(model, mean_seconds), self.together(model, mean_seconds));
                let all = Room { slots, ahead, grain };
                shard.part(all)
            }
        }
    }

    /// How many tasks may travel to a worker in one message. They are bound to that worker, so together they are as many as
    /// one call of its handler takes, or as its slots are through with in a moment.
    pub fn together(&self, model: &str, mean_seconds: Option<f64>) -> usize {
        let Some(offer) = self.by_model.get(model) else { return 1 };
        let each_ms = (mean_seconds.unwrap_or(UNKNOWN_SECONDS) * 1e3).max(1e-3);
        let in_time = (offer.slots / offer.workers.max(1)) as f64 * TOGETHER_MS / each_ms;
        (in_time as usize).clamp(offer.batch.max(1), TOGETHER.max(offer.batch))
    }
}
