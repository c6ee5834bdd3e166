//! A record packed into one piece of memory: a million finished ones must be bearable, and they are hardly ever read.
//!
//! A packed record is its identity (fingerprint and idempotency key), its followers, and the task as it is shown. What
//! changes while a task is not finished stands beside it, so that a claim moves no bytes.

use std::sync::Arc;

use crate::envelope::Reply;
use crate::journal::codec::{Malformed, Reader, put_bytes, put_option, put_str, put_u64, put_u128};
use crate::lifecycle::State;
use crate::outcome::TaskResult;
use crate::store::{Filter, pack};
use crate::task::TaskId;
use crate::time::Timestamp;

/// What tells whether a task that comes again is the same one, and under which key it may come.
pub(super) fn identity(fingerprint: u128, alias: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(24 + alias.map_or(0, str::len));
    out.push(FINGERPRINT);
    put_u128(&mut out, fingerprint);
    put_option(&mut out, alias, put_str);
    out
}

/// How a fingerprint is made. One that was made otherwise says nothing about one that is made so.
const FINGERPRINT: u8 = 3;

/// Steps over a fingerprint and answers its bytes.
fn fingerprint<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let start = reader.rest();
    match reader.u8()? {
        1 | FINGERPRINT => drop(reader.u128()?),
        2 => drop(reader.bytes()?),
        _ => return Err(Malformed),
    }
    Ok(&start[..start.len() - reader.rest().len()])
}

/// Whether two identities have the same fingerprint. One that has none, because its record was made by a settlement,
/// is the same as any, and so is one that an older version made.
pub(super) fn same_content(one: &[u8], other: &[u8]) -> bool {
    match (fingerprint(&mut Reader::new(one)), fingerprint(&mut Reader::new(other))) {
        (Ok(one), Ok(other)) => one == other || one.first() != other.first(),
        _ => one.is_empty() || other.is_empty(),
    }
}

pub(super) fn alias_of(identity: &[u8]) -> Option<&str> {
    let mut reader = Reader::new(identity);
    fingerprint(&mut reader).ok()?;
    reader.option(Reader::str).ok()?
}

pub(super) fn put_followers(out: &mut Vec<u8>, followers: &[Reply]) {
    put_u64(out, followers.len() as u64);
    for Reply { to, correlation_id, array } in followers {
        put_str(out, to);
        put_option(out, correlation_id.as_deref(), put_str);
        out.push(u8::from(*array));
    }
}

pub(super) fn followers(reader: &mut Reader<'_>) -> Result<Vec<Reply>, Malformed> {
    let mut followers = Vec::new();
    for _ in 0..reader.u64()? {
        followers.push(Reply {
            to: reader.str()?.to_owned(),
            correlation_id: reader.option(Reader::str)?.map(str::to_owned),
            array: reader.u8()? != 0,
        });
    }
    Ok(followers)
}

/// One record's packed bytes: its identity, with its length before it; its followers once it is finished; the task.
pub(super) fn pack(identity: &[u8], followers: &[Reply], task: &[u8]) -> Arc<[u8]> {
    let mut out = Vec::with_capacity(identity.len() + task.len() + 8);
    put_bytes(&mut out, identity);
    put_followers(&mut out, followers);
    out.extend_from_slice(task);
    out.into()
}

pub(super) fn identity_of(packed: &[u8]) -> &[u8] {
    // Packed by this file, or checked when it was read from the journal.
    Reader::new(packed).bytes().unwrap_or_default()
}

/// What has become of a task that is not finished, beside what it was accepted with.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub attempt: u32,
    pub model: Option<Arc<str>>,
    pub worker: Option<Arc<str>>,
    pub started: Option<Timestamp>,
}

/// A record as it stood at one moment, to be unpacked when no lock is held.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub id: TaskId,
    pub packed: Arc<[u8]>,
    /// `None` once it is finished.
    pub progress: Option<(State, Progress)>,
}

impl View {
    pub fn task(&self) -> Result<TaskResult, Malformed> {
        self.unpack(true)
    }

    /// Without its output, when that is not needed to tell.
    pub fn matches(&self, filter: &Filter) -> Result<bool, Malformed> {
        self.unpack(false).map(|task| filter.matches(&task))
    }

    /// Those of a finished task.
    pub fn followers(&self) -> Result<Vec<Reply>, Malformed> {
        let mut reader = Reader::new(&self.packed);
        reader.bytes()?;
        followers(&mut reader)
    }

    fn unpack(&self, with_output: bool) -> Result<TaskResult, Malformed> {
        let mut reader = Reader::new(&self.packed);
        reader.bytes()?;
        followers(&mut reader)?;
        let mut task = pack::task(self.id, &mut reader, with_output)?;
        if let Some((state, progress)) = &self.progress {
            task.state = *state;
            task.attempt = progress.attempt;
            if let Some(model) = &progress.model {
                task.model = Some(model.to_string());
            }
            task.worker = progress.worker.as_deref().map(str::to_owned);
            task.timings.started = progress.started;
        }
        Ok(task)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::pack::put_task;
    use crate::wire::tests::any_result;

    fn any_follower() -> impl Strategy<Value = Reply> {
        (".*", any::<Option<String>>(), any::<bool>()).prop_map(|(to, correlation_id, array)| Reply {
            to,
            correlation_id,
            array,
        })
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            task in any_result(),
            told in proptest::collection::vec(any_follower(), 0..4),
            print in any::<u128>(),
            alias in any::<Option<String>>(),
        ) {
            let mut bytes = Vec::new();
            put_task(&mut bytes, &task);
            let identity = identity(print, alias.as_deref());
            let view = View { id: task.id, packed: pack(&identity, &told, &bytes), progress: None };
            prop_assert_eq!(format!("{:?}", view.task().unwrap()), format!("{task:?}"));
            prop_assert_eq!(view.followers().unwrap(), told);
            prop_assert_eq!(identity_of(&view.packed), &identity);
            prop_assert_eq!(alias_of(&identity), alias.as_deref());
        }

        #[test]
        fn fingerprints_are_the_same_only_when_they_are(one in any::<u128>(), other in any::<u128>(), older in ".*") {
            let bytes = identity(one, None);
            prop_assert!(same_content(&bytes, &identity(one, Some("key"))));
            prop_assert_eq!(same_content(&bytes, &identity(other, None)), one == other);
            prop_assert!(same_content(&bytes, &[]));
            let mut old = vec![2];
            put_str(&mut old, &older);
            put_option(&mut old, None, put_str);
            prop_assert!(same_content(&bytes, &old));
        }

        #[test]
        fn any_bytes_are_unpacked_or_refused_without_a_panic(bytes in any::<Vec<u8>>()) {
            let view = View { id: TaskId::new(), packed: bytes.into(), progress: None };
            let _ = (view.task(), view.followers(), view.matches(&Filter::default()));
        }
    }
}
