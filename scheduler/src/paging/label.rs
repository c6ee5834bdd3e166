//! What the tasks of a page have in common: it stands on every page, so that a scheduler that finds one knows what it is.

use serde::{Deserialize, Serialize};
use taskyard_shared::Priority;
use taskyard_shared::broker::Properties;
use taskyard_shared::messages::PAGE_HEADER;

use crate::planner::Away;

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
    // FNV-1a.
    tenant.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A line of which the head is in memory and the rest in the broker.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub model: String,
    pub priority: Priority,
    pub whose: Whose,
}

/// What stands on a page.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Label {
    #[serde(flatten)]
    pub line: Line,
    pub tasks: u64,
    /// What they were expected to take, in microseconds.
    pub work_us: u64,
}

impl Label {
    /// `None` on what is no page of ours.
    pub fn of(properties: &Properties) -> Option<Self> {
        serde_json::from_str(properties.headers.get(PAGE_HEADER)?).ok()
    }

    pub fn text(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    pub fn away(&self) -> Away {
        Away { tasks: self.tasks, work_us: self.work_us }
    }
}

#[cfg(test)]
mod tests {
    use super::{Label, Line, Whose};
    use taskyard_shared::Priority;
    use taskyard_shared::broker::Properties;
    use taskyard_shared::messages::PAGE_HEADER;

    #[test]
    fn a_label_is_read_as_it_was_written() {
        let tenants = ["a", "ümlaut \"quoted\"\n"].map(|name| Whose::Tenant(name.into()));
        for whose in tenants.into_iter().chain([Whose::bucket("a"), Whose::bucket("b")]) {
            let line = Line { model: "m".into(), priority: Priority::try_from(7).unwrap(), whose };
            let label = Label { line, tasks: 100, work_us: 5 };
            let headers = [(PAGE_HEADER.to_owned(), label.text().unwrap())].into();
            assert_eq!(Label::of(&Properties { headers, ..Properties::default() }), Some(label));
        }
        assert_eq!(Label::of(&Properties::default()), None);
        assert!(Whose::bucket("a").is_of("a") && !Whose::Tenant("a".into()).is_of("b"));
    }
}
