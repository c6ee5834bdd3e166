//! How many tasks must be on their way to a model's workers so that their slots do not idle, learnt from completions.

use std::collections::HashMap;

use taskyard_shared::process::settings::SchedulerSettings;

/// Tasks that run longer are not sent ahead.
const LONG_SECONDS: f64 = 0.25;
/// Seconds that a task is taken to run, of a model whose tasks were never measured.
pub(crate) const UNKNOWN_SECONDS: f64 = 0.05;
/// So many completions are looked at together before the depth is changed.
const WINDOW: u32 = 20;
/// Slots may idle for this share of their time before more is sent ahead, and below the lesser share less is.
const IDLE_MOST: f64 = 0.05;
const IDLE_LEAST: f64 = 0.02;

#[derive(Default)]
struct Depth {
    /// Tasks sent ahead of the slots.
    ahead: f64,
    idle_ms: f64,
    ran_ms: f64,
    seen: u32,
}

/// One for each model.
#[derive(Default)]
pub(crate) struct Depths {
    models: HashMap<String, Depth>,
}

impl Depths {
    /// A slot ran a task while others waited, after having had nothing to run for `idle_ms`. Sending more ahead costs an
    /// urgent task that comes later its turn, so it is as little as keeps the slots busy. `mean_seconds` is what the model's
    /// tasks take.
    pub fn kept_busy(
        &mut self,
        model: &str,
        (idle_ms, ran_ms): (f64, f64),
        mean_seconds: Option<f64>,
        slots: usize,
        settings: &SchedulerSettings,
    ) {
        let each_ms = mean_seconds.unwrap_or(UNKNOWN_SECONDS) * 1e3;
        let most = slots as f64 * settings.ready_latency_ms / each_ms.max(1e-3);
        let most = most.clamp(1.0, f64::from(settings.ready_extra_most.max(1)));
        if !self.models.contains_key(model) {
            self.models.insert(model.to_owned(), Depth::default());
        }
        let Some(depth) = self.models.get_mut(model) else { return };
        depth.idle_ms += idle_ms;
        depth.ran_ms += ran_ms;
        depth.seen += 1;
        if depth.seen < WINDOW {
            return;
        }
        let idle = depth.idle_ms / (depth.idle_ms + depth.ran_ms).max(1e-6);
        if idle > IDLE_MOST {
            depth.ahead = depth.ahead * 1.25 + 1.0;
        } else if idle < IDLE_LEAST {
            depth.ahead = (depth.ahead * 0.9 - 0.1).max(0.0);
        }
        // Slots may idle for reasons that sending more ahead does not mend.
        depth.ahead = depth.ahead.min(most);
        (depth.idle_ms, depth.ran_ms, depth.seen) = (0.0, 0.0, 0);
    }

    /// How many tasks to send ahead of the slots. At least one, but for a model whose tasks are long: its slots lose little by
    /// waiting for the next one, which would lose much if it were bound to a worker that is not free.
    pub fn ahead(&self, model: &str, mean_seconds: Option<f64>) -> usize {
        if mean_seconds.is_some_and(|seconds| seconds > LONG_SECONDS) {
            return 0;
        }
        self.models.get(model).map_or(1, |depth| depth.ahead.ceil().max(1.0) as usize)
    }
}

#[cfg(test)]
mod tests {
    use taskyard_shared::process::settings::Settings;

    use super::{Depths, SchedulerSettings};

    #[test]
    fn as_much_is_sent_ahead_as_keeps_slots_busy_and_no_more() {
        let mut depths = Depths::default();
        let settings = SchedulerSettings { ready_latency_ms: 6.0, ..Settings::default().scheduler };
        assert_eq!(depths.ahead("m", Some(0.002)), 1);
        for _ in 0..2_000 {
            depths.kept_busy("m", (5.0, 2.0), Some(0.002), 1, &settings);
        }
        assert_eq!(depths.ahead("m", Some(0.002)), 3, "6 ms of tasks of 2 ms, however idle the slot is");
        for _ in 0..2_000 {
            depths.kept_busy("m", (0.0, 2.0), Some(0.002), 1, &settings);
        }
        assert_eq!(depths.ahead("m", Some(0.002)), 1);
        assert_eq!(depths.ahead("long", Some(1.0)), 0);
        for _ in 0..20_000 {
            depths.kept_busy("brief", (5.0, 0.0), Some(0.0), 64, &settings);
        }
        assert_eq!(depths.ahead("brief", Some(0.0)), settings.ready_extra_most as usize, "never beyond the bound");
    }
}
