//! Shadow traffic: a version that runs a part of its model's tasks a second time, and what came of it. Callers call it `shadow`, as the
//! deployment does; inside it is a mirror, since the scheduler has a shadow of another kind (how other orders would have done).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::deployment::{Deployed, base};
use crate::task::TaskId;
use crate::time::Timestamp;

/// The tenant of copies: outside of everybody's quotas, and with the least weight.
pub const TENANT: &str = "taskyard.shadow";
/// The metadata of a copy that names the task it is a copy of.
pub const METADATA: &str = "shadow_of";
/// Tasks that differ and are remembered by their ids, the newest.
pub const DIFFERING_MOST: usize = 2;

/// A version that is tried out.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Mirror {
    /// Over 0, at most 1.
    pub share: f64,
    pub since: Timestamp,
}

impl Mirror {
    /// Whether the task is one of its share: always the same answer for the same task, and another for another version or a canary.
    fn takes(&self, version: &str, task: TaskId) -> bool {
        let part = xxh3_64_with_seed(task.0.as_bytes(), xxh3_64(version.as_bytes())) as f64 / u64::MAX as f64;
        part < self.share || self.share >= 1.0
    }
}

impl Deployed {
    /// The versions that are to run a task a second time, which names a model alone and goes to `to`; and since when they are.
    pub fn mirrored<'a>(
        &'a self,
        model: &'a str,
        to: &'a str,
        task: TaskId,
    ) -> impl Iterator<Item = (&'a str, Timestamp)> {
        let of_model = self.mirrors.iter().filter(move |(version, _)| base(version) == model && *version != to);
        of_model
            .filter(move |(version, mirror)| mirror.takes(version, task))
            .map(|(version, mirror)| (version.as_str(), mirror.since))
    }
}

/// What a second run came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Likeness {
    Same,
    Different,
    /// The copy did not succeed.
    Failed,
    /// There was no copy: too many waited, no worker had it loaded, or it was lost.
    Skipped,
    /// The task itself left nothing to compare with.
    Unknown,
}

impl Likeness {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Different => "different",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Unknown => "unknown",
        }
    }
}

/// A task whose copy gave another answer, and the copy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Differing {
    pub task: TaskId,
    pub copy: TaskId,
}

/// What came of the tasks of a version's share since it began.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Tally {
    pub since: Timestamp,
    pub same: u64,
    pub different: u64,
    pub failed: u64,
    pub skipped: u64,
    pub unknown: u64,
    /// Run times of those that are the same or different, of the task and of its copy; milliseconds, summed.
    pub task_ms: f64,
    pub copy_ms: f64,
    /// The newest that differ, at most [`DIFFERING_MOST`].
    #[serde(default)]
    pub differing: Vec<Differing>,
}

impl Tally {
    pub fn new(since: Timestamp) -> Self {
        let (same, different, failed, skipped, unknown) = (0, 0, 0, 0, 0);
        let (task_ms, copy_ms, differing) = (0.0, 0.0, Vec::new());
        Self { since, same, different, failed, skipped, unknown, task_ms, copy_ms, differing }
    }

    pub fn count(&mut self, likeness: Likeness) {
        let count = match likeness {
            Likeness::Same => &mut self.same,
            Likeness::Different => &mut self.different,
            Likeness::Failed => &mut self.failed,
            Likeness::Skipped => &mut self.skipped,
            Likeness::Unknown => &mut self.unknown,
        };
        *count = count.saturating_add(1);
    }

    pub fn differs(&mut self, differing: Differing) {
        self.differing.push(differing);
        let excess = self.differing.len().saturating_sub(DIFFERING_MOST);
        self.differing.drain(..excess);
    }

    /// And what another shard counted.
    pub fn add(&mut self, other: Self) {
        self.same = self.same.saturating_add(other.same);
        self.different = self.different.saturating_add(other.different);
        self.failed = self.failed.saturating_add(other.failed);
        self.skipped = self.skipped.saturating_add(other.skipped);
        self.unknown = self.unknown.saturating_add(other.unknown);
        self.task_ms += other.task_ms;
        self.copy_ms += other.copy_ms;
        other.differing.into_iter().for_each(|differing| self.differs(differing));
    }

    /// What a compared task took on average, and its copy; milliseconds.
    pub fn mean_ms(&self) -> Option<(f64, f64)> {
        let compared = self.same.saturating_add(self.different);
        (compared > 0).then(|| (self.task_ms / compared as f64, self.copy_ms / compared as f64))
    }
}

/// What a shard counted, by version: JSON, in the store under [`Tallies::key`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Tallies {
    v: u32,
    pub versions: BTreeMap<String, Tally>,
}

impl Tallies {
    const VERSION: u32 = 1;

    pub fn new(versions: BTreeMap<String, Tally>) -> Self {
        Self { v: Self::VERSION, versions }
    }

    pub fn key(shard: u32) -> String {
        format!("mirrored.{shard}")
    }

    /// # Errors
    /// What cannot be read, or is of a later version.
    pub fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let tallies: Self = serde_json::from_slice(bytes)?;
        match tallies.v {
            Self::VERSION => Ok(tallies),
            other => Err(serde::de::Error::custom(format!("tallies of version {other}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::{Canary, Traffic};

    fn mirror(share: f64) -> Mirror {
        Mirror { share, since: Timestamp::from_micros(1_700_000_000_000_000) }
    }

    #[test]
    fn the_share_is_by_task_and_not_that_of_a_canary() {
        let canary = Some(Canary { to: "m@3".into(), share: 0.25 });
        let mut deployed = Deployed::default();
        deployed.mirrors.extend([("m@2".to_owned(), mirror(0.25)), ("n@2".to_owned(), mirror(1.0))]);
        deployed.traffic.insert("m".to_owned(), Traffic { to: "m@1".into(), canary });
        let again = Deployed::read(&serde_json::to_vec(&deployed).unwrap()).unwrap();
        assert_eq!(again, deployed);
        let ids: Vec<TaskId> = (0..10_000).map(|_| TaskId::new()).collect();
        let is_taken = |id: &&TaskId| deployed.mirrored("m", "m@1", **id).map(|(version, _)| version).eq(["m@2"]);
        let taken: Vec<&TaskId> = ids.iter().filter(is_taken).collect();
        assert!((2_200..2_800).contains(&taken.len()), "{}", taken.len());
        assert!(taken.iter().all(|id| again.mirrored("m", "m@1", **id).map(|(version, _)| version).eq(["m@2"])));
        let to_canary = taken.iter().filter(|id| deployed.route("m", ***id) == Some("m@3")).count();
        assert!((400..900).contains(&to_canary), "a quarter of them: {to_canary}");
        assert!(
            ids.iter().all(|id| deployed.mirrored("n", "n@1", *id).map(|(version, _)| version).eq(["n@2"])),
            "all of them"
        );
        assert!(ids.iter().all(|id| deployed.mirrored("n", "n@2", *id).next().is_none()), "it has it already");
        assert!(ids.iter().all(|id| deployed.mirrored("other", "other", *id).next().is_none()));
    }

    #[test]
    fn tallies_add_up_and_are_read_as_they_are_written() {
        let id = |number| TaskId(uuid::Uuid::from_u128(number));
        let mut tally = Tally::new(mirror(1.0).since);
        assert_eq!(tally.mean_ms(), None);
        let all = [Likeness::Same, Likeness::Different, Likeness::Failed, Likeness::Skipped, Likeness::Unknown];
        all.into_iter().for_each(|likeness| tally.count(likeness));
        (tally.task_ms, tally.copy_ms) = (4.0, 1.0);
        (1..=3).for_each(|number| tally.differs(Differing { task: id(number), copy: id(10 + number) }));
        assert_eq!(tally.differing.iter().map(|one| one.task).collect::<Vec<_>>(), [id(2), id(3)], "the newest");
        let mut sum = tally.clone();
        sum.add(tally.clone());
        assert_eq!((sum.same, sum.different, sum.failed, sum.skipped, sum.unknown), (2, 2, 2, 2, 2));
        assert_eq!((sum.mean_ms(), sum.differing.len()), (Some((2.0, 0.5)), DIFFERING_MOST));
        let tallies = Tallies::new(BTreeMap::from([("m@2".to_owned(), tally)]));
        assert_eq!(Tallies::read(&serde_json::to_vec(&tallies).unwrap()).unwrap(), tallies);
        assert!(Tallies::read(br#"{"v":2,"versions":{}}"#).is_err());
    }
}
