//! What the tasks of a page have in common: it stands on every page, so that a scheduler that finds one knows what it is.

use serde::{Deserialize, Serialize};
use taskyard_shared::Priority;
use taskyard_shared::broker::Properties;
use taskyard_shared::messages::PAGE_HEADER;
use xxhash_rust::xxh3::xxh3_64;

use crate::planner::{Away, Estimate};

/// Lines of tenants that have none of their own are kept in so many queues for each model and priority.
const BUCKETS: u64 = 8;

/// Whose tasks they are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Whose {
    Tenant(String),
    /// Of several tenants, who happen to have this number.
    Bucket(u64),
}

impl Whose {
    pub fn bucket(tenant: &str) -> Self {
        Self::Bucket(number(tenant) % BUCKETS)
    }

    pub fn is_of(&self, tenant: &str) -> bool {
        match self {
            Self::Tenant(name) => name == tenant,
            Self::Bucket(_) => *self == Self::bucket(tenant),
        }
    }
}

/// A number for a tenant's name: the same in every process.
pub(super) fn number(tenant: &str) -> u64 {
    xxh3_64(tenant.as_bytes())
}

/// A line of which the head is in memory and the rest in the broker.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub model: String,
    pub priority: Priority,
    pub whose: Whose,
}

/// What stands on a page.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Label {
    #[serde(flatten)]
    pub line: Line,
    pub tasks: u64,
    /// What they were expected to take, in microseconds.
    pub work_us: u64,
    /// The same of each task, in their order: of so many the mean, the deviation and the 95th percentile, in seconds.
    #[serde(default)]
    pub expected: Vec<(usize, [f64; 3])>,
}

impl Label {
    /// `None` on what is no page of ours.
    pub fn of(properties: &Properties) -> Option<Self> {
        serde_json::from_str(properties.headers.get(PAGE_HEADER)?).ok()
    }

    pub fn text(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// What its tasks are expected to take, one after the other, shortly.
    pub fn shortly(expected: impl Iterator<Item = Option<Estimate>>) -> Vec<(usize, [f64; 3])> {
        let mut all: Vec<(usize, [f64; 3])> = Vec::new();
        // Zeros for nothing known: no estimate has those.
        for each in
            expected.map(|one| one.map_or([0.0; 3], |one| [one.mean_seconds, one.deviation_seconds, one.q95_seconds]))
        {
            match all.last_mut() {
                Some((count, last)) if *last == each => *count += 1,
                _ => all.push((1, each)),
            }
        }
        all
    }

    /// What each task was expected to take, as far as it is known.
    pub fn expected(&self) -> impl Iterator<Item = Option<Estimate>> {
        let known = |&[mean_seconds, deviation_seconds, q95_seconds]: &[f64; 3]| {
            (mean_seconds > 0.0).then_some(Estimate { mean_seconds, deviation_seconds, q95_seconds })
        };
        // Of what stands on a message, no more than a page has.
        let each = self.expected.iter().flat_map(move |(count, one)| std::iter::repeat_n(known(one), *count));
        each.chain(std::iter::repeat(None))
    }

    pub fn away(&self) -> Away {
        Away { tasks: self.tasks, work_us: self.work_us }
    }
}

#[cfg(test)]
mod tests {
    use super::{Estimate, Label, Line, Whose};
    use taskyard_shared::Priority;
    use taskyard_shared::broker::Properties;
    use taskyard_shared::messages::PAGE_HEADER;

    #[test]
    fn a_label_is_read_as_it_was_written() {
        let tenants = ["a", "ümlaut \"quoted\"\n"].map(|name| Whose::Tenant(name.into()));
        for whose in tenants.into_iter().chain([Whose::bucket("a"), Whose::bucket("b")]) {
            let line = Line { model: "m".into(), priority: Priority::try_from(7).unwrap(), whose };
            let expected = vec![(99, [0.001, 0.0, 0.001]), (1, [1.0 / 3.0, 0.25, 2.0])];
            let label = Label { line, tasks: 100, work_us: 5, expected };
            let headers = [(PAGE_HEADER.to_owned(), label.text().unwrap())].into();
            assert_eq!(Label::of(&Properties { headers, ..Properties::default() }), Some(label));
        }
        assert_eq!(Label::of(&Properties::default()), None);
        // Those of before said nothing of each task.
        let old = r#"{"model":"m","priority":4,"whose":{"tenant":"a"},"tasks":2,"work_us":5}"#;
        let headers = [(PAGE_HEADER.to_owned(), old.to_owned())].into();
        let label = Label::of(&Properties { headers, ..Properties::default() }).unwrap();
        assert_eq!(label.expected().take(2).collect::<Vec<_>>(), [None, None]);
        // As it lies in queues: written back the same.
        for written in [
            r#"{"model":"m","priority":4,"whose":{"tenant":"a"},"tasks":2,"work_us":5,"expected":[[2,[0.5,0.25,1.0]]]}"#,
            r#"{"model":"m","priority":4,"whose":{"bucket":3},"tasks":0,"work_us":0,"expected":[]}"#,
        ] {
            let headers = [(PAGE_HEADER.to_owned(), written.to_owned())].into();
            let label = Label::of(&Properties { headers, ..Properties::default() }).unwrap();
            assert_eq!(label.text().unwrap(), written);
        }
        assert_eq!(Whose::bucket("a"), Whose::Bucket(7), "the same in every version");
        assert!(Whose::bucket("a").is_of("a") && !Whose::Tenant("a".into()).is_of("b"));
    }

    #[test]
    fn what_each_task_takes_is_known_again() {
        let estimate =
            |seconds: f64| Estimate { mean_seconds: seconds, deviation_seconds: 0.5, q95_seconds: 2.0 * seconds };
        let all = [Some(estimate(0.001)), Some(estimate(0.001)), None, Some(estimate(7.0)), Some(estimate(0.001))];
        let expected = Label::shortly(all.into_iter());
        assert_eq!(expected.len(), 4);
        let line = Line { model: "m".into(), priority: Priority::default(), whose: Whose::bucket("a") };
        let label = Label { line, tasks: 5, work_us: 5, expected };
        assert_eq!(label.expected().take(6).collect::<Vec<_>>(), [&all[..], &[None]].concat());
    }
}
