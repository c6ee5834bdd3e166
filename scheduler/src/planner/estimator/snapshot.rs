//! What was learnt, as a value that can be written down and read again.

use serde::{Deserialize, Serialize};

use super::class::Class;
use super::{Estimator, MODELS_MOST};

/// Of what is learnt in another way, nothing is believed.
const VERSION: u32 = 1;

/// All that the estimator knows. Opaque: to be kept and given back.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct Learnt {
    version: u32,
    /// The one used least recently first.
    models: Vec<LearntModel>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct LearntModel {
    name: String,
    mean_seconds: Option<f64>,
    classes: Vec<Class>,
}

impl Estimator {
    /// How many completions it has learnt from: when it is the same as before, so is all else.
    pub(in super::super) fn completions(&self) -> u64 {
        self.completions
    }

    pub(in super::super) fn learnt(&self) -> Learnt {
        let mut models: Vec<(u64, LearntModel)> = Vec::new();
        for (number, name) in self.names.iter() {
            if let Some(model) = self.models.get(number as usize).filter(|model| model.mean_seconds.is_some()) {
                let learnt = LearntModel {
                    name: name.to_string(),
                    mean_seconds: model.mean_seconds,
                    classes: model.classes.clone(),
                };
                models.push((model.used, learnt));
            }
        }
        models.sort_by(|(used, one), (other_used, other)| (used, &one.name).cmp(&(other_used, &other.name)));
        Learnt { version: VERSION, models: models.into_iter().map(|(_, model)| model).collect() }
    }

    /// Takes over what was learnt before, of models of which nothing is known yet. Answers how many they were. What another
    /// version wrote, or what makes no sense, is left out.
    pub(in super::super) fn restore(&mut self, learnt: Learnt) -> usize {
        if learnt.version != VERSION {
            return 0;
        }
        let mut restored = 0;
        let skipped = learnt.models.len().saturating_sub(MODELS_MOST);
        for LearntModel { name, mean_seconds, classes } in learnt.models.into_iter().skip(skipped) {
            let is_sound = mean_seconds.is_some_and(|mean| mean > 0.0 && mean.is_finite())
                && classes.iter().all(Class::is_sound)
                && classes.len() <= Class::MOST;
            if !is_sound || self.mean_seconds(&name).is_some() {
                continue;
            }
            self.completions += 1;
            let used = self.completions;
            let model = self.model(&name);
            (model.mean_seconds, model.classes, model.used) = (mean_seconds, classes, used);
            restored += 1;
        }
        restored
    }
}
