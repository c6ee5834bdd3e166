//! What the store writes into its journal, and how it is read back.

use std::sync::Arc;

use uuid::Uuid;

use super::flows::{Flow, Listed};
use super::record::{More, Record};
use crate::envelope::{Correlation, Reply};
use crate::journal::codec::{Malformed, Reader, put_bytes, put_i64, put_option, put_str, put_u64, put_u128};
use crate::store::pack::{self, put_state, state};
use crate::task::{Priority, TaskId};
use crate::time::Timestamp;

/// A record as an earlier version wrote it: fingerprint and followers stand within what is packed.
const EARLIER_RECORD: u8 = 1;
const MODEL: u8 = 2;
/// A workflow that the list does not have, as all were written once.
const UNLISTED_WORKFLOW: u8 = 8;
const WORKFLOW: u8 = 9;
const VALUE: u8 = 3;
const RECORD: u8 = 6;
/// A [`RECORD`] that begins with its marks: 1 when somebody asked to cancel it, plus 2 times (n + 1) when it was given the
/// priority n, plus [`ALONE`].
const MARKED_RECORD: u8 = 7;
/// The same two with a fingerprint that leaves out the tenant: it says nothing today.
const TENANTLESS_RECORD: u8 = 4;
const TENANTLESS_MARKED_RECORD: u8 = 5;
/// The mark of one whose attempt has its worker to itself.
const ALONE: u8 = 32;

/// Leases are left out: nobody who held one is alive when it is read.
pub(super) fn put_record(out: &mut Vec<u8>, id: TaskId, record: &Record) {
    match marks_of(record) {
        0 => out.push(RECORD),
        marks => out.extend_from_slice(&[MARKED_RECORD, marks]),
    }
    put_u128(out, id.0.as_u128());
    put_u64(out, record.seq);
    put_u64(out, record.touched_ms);
    put_option(out, record.held.then_some(record.nonce), put_u128);
    put_state(out, record.state);
    put_u64(out, record.attempt.into());
    put_option(out, record.told_apart.then_some(record.fingerprint), put_u128);
    put_option(out, record.more.as_deref(), |out, more| {
        put_option(out, more.alias.as_deref(), put_str);
        put_followers(out, &more.followers);
        put_option(out, more.model.as_deref(), put_str);
        put_option(out, more.worker.as_deref(), put_str);
        put_option(out, more.started, |out, started| put_i64(out, started.as_micros()));
    });
    out.extend_from_slice(&record.task);
}

fn marks_of(record: &Record) -> u8 {
    let priority = record.priority.map_or(0, |priority| 2 * (priority.get() + 1));
    u8::from(record.unwanted) + priority + ALONE * u8::from(record.alone)
}

fn put_followers(out: &mut Vec<u8>, followers: &[Reply]) {
    put_u64(out, followers.len() as u64);
    for Reply { to, correlation_id, array } in followers {
        put_str(out, to);
        put_option(out, correlation_id.as_ref().map(Correlation::to_string).as_deref(), put_str);
        out.push(u8::from(*array));
    }
}

pub(super) fn put_model(out: &mut Vec<u8>, name: &str, json: &[u8]) {
    out.push(MODEL);
    put_str(out, name);
    put_bytes(out, json);
}

pub(super) fn put_value(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    out.push(VALUE);
    put_str(out, key);
    put_bytes(out, value);
}

pub(super) fn put_workflow(out: &mut Vec<u8>, id: Uuid, flow: &Flow) {
    let listed =
        flow.listed.as_ref().and_then(|listed| Some((listed.place, serde_json::to_vec(&listed.summary).ok()?)));
    out.push(if listed.is_some() { WORKFLOW } else { UNLISTED_WORKFLOW });
    out.push(u8::from(flow.has_ended) + 2 * u8::from(flow.is_unwanted));
    put_u128(out, id.as_u128());
    put_u64(out, flow.touched_ms);
    put_u128(out, flow.fingerprint);
    put_bytes(out, &flow.json);
    if let Some((place, summary)) = listed {
        put_u64(out, place);
        put_bytes(out, &summary);
    }
}

pub(super) enum Entry<'a> {
    Workflow(Uuid, Flow),
    Record(TaskId, Record),
    Model { name: &'a str, json: &'a [u8] },
    Value { key: &'a str, value: &'a [u8] },
}

pub(super) fn read(bytes: &[u8]) -> Result<Entry<'_>, Malformed> {
    let mut reader = Reader::new(bytes);
    match reader.u8()? {
        RECORD => record(reader, 0, false),
        MARKED_RECORD => {
            let marks = reader.u8()?;
            record(reader, marks, false)
        }
        TENANTLESS_RECORD => Ok(untold(record(reader, 0, false)?)),
        TENANTLESS_MARKED_RECORD => {
            let marks = reader.u8()?;
            Ok(untold(record(reader, marks, false)?))
        }
        EARLIER_RECORD => record(reader, 0, true),
        kind @ (WORKFLOW | UNLISTED_WORKFLOW) => {
            let marks = reader.u8()?;
            let id = Uuid::from_u128(reader.u128()?);
            let (has_ended, is_unwanted) = (marks & 1 != 0, marks & 2 != 0);
            let (touched_ms, fingerprint) = (reader.u64()?, reader.u128()?);
            let json = bytes::Bytes::copy_from_slice(reader.bytes()?);
            let listed = match kind {
                WORKFLOW => {
                    let place = reader.u64()?;
                    let summary = serde_json::from_slice(reader.bytes()?).map_err(|_| Malformed)?;
                    Some(Listed { place, summary })
                }
                _ => None,
            };
            let flow = Flow { fingerprint, has_ended, is_unwanted, touched_ms, json, listed, address: None };
            Ok(Entry::Workflow(id, flow))
        }
        MODEL => Ok(Entry::Model { name: reader.str()?, json: reader.bytes()? }),
        VALUE => Ok(Entry::Value { key: reader.str()?, value: reader.bytes()? }),
        _ => Err(Malformed),
    }
}

/// Without its fingerprint.
fn untold(entry: Entry<'_>) -> Entry<'_> {
    match entry {
        Entry::Record(id, record) => Entry::Record(id, Record { told_apart: false, fingerprint: 0, ..record }),
        other => other,
    }
}

fn record(mut reader: Reader<'_>, marks: u8, earlier: bool) -> Result<Entry<'_>, Malformed> {
    let priority = match marks % ALONE / 2 {
        0 => None,
        given => Some(Priority::try_from(given - 1).map_err(|_| Malformed)?),
    };
    let id = TaskId(Uuid::from_u128(reader.u128()?));
    let seq = reader.u64()?;
    let touched_ms = reader.u64()?;
    let nonce = reader.option(Reader::u128)?;
    let state = state(&mut reader)?;
    let attempt = reader.u32()?;
    let (fingerprint, more) = if earlier {
        (None, earlier_content(&mut reader)?)
    } else {
        (reader.option(Reader::u128)?, reader.option(more)?.map(Box::new))
    };
    // Read once here, so that it can be read at any later time.
    pack::task(id, &mut reader.clone(), true)?;
    let record = Record {
        seq,
        touched_ms,
        lease_ms: 0,
        nonce: nonce.unwrap_or(0),
        fingerprint: fingerprint.unwrap_or(0),
        task: reader.rest().into(),
        address: None,
        more,
        attempt,
        state,
        held: nonce.is_some(),
        alone: marks >= ALONE,
        unwanted: marks % 2 == 1,
        priority,
        told_apart: fingerprint.is_some(),
    };
    Ok(Entry::Record(id, record))
}

fn more(reader: &mut Reader<'_>) -> Result<More, Malformed> {
    Ok(More {
        alias: reader.option(Reader::str)?.map(Into::into),
        followers: followers(reader)?,
        model: reader.option(Reader::str)?.map(Into::into),
        worker: reader.option(Reader::str)?.map(Into::into),
        started: reader.option(Reader::i64)?.map(Timestamp::from_micros),
    })
}

fn followers(reader: &mut Reader<'_>) -> Result<Vec<Reply>, Malformed> {
    let mut followers = Vec::new();
    for _ in 0..reader.u64()? {
        followers.push(Reply {
            to: reader.str()?.into(),
            correlation_id: reader.option(Reader::str)?.map(Correlation::from),
            array: reader.u8()? != 0,
        });
    }
    Ok(followers)
}

/// What an earlier version wrote between a record's attempt and its task.
fn earlier_content(reader: &mut Reader<'_>) -> Result<Option<Box<More>>, Malformed> {
    let mut more = More::default();
    let of_open = reader.option(|reader| {
        more.model = reader.option(Reader::str)?.map(Arc::from);
        more.worker = reader.option(Reader::str)?.map(Arc::from);
        more.started = reader.option(Reader::i64)?.map(Timestamp::from_micros);
        followers(reader)
    })?;
    let mut identity = Reader::new(reader.bytes()?);
    if !identity.is_empty() {
        // Fingerprints that were made in other ways: they say nothing today.
        match identity.u8()? {
            1 | 3 => drop(identity.u128()?),
            2 => drop(identity.bytes()?),
            _ => return Err(Malformed),
        }
        more.alias = identity.option(Reader::str)?.map(Into::into);
    }
    let of_ended = followers(reader)?;
    more.followers = of_open.unwrap_or(of_ended);
    Ok(Some(Box::new(more)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lifecycle::State;
    use crate::outcome::TaskResult;
    use crate::store::pack::put_task;
    use crate::wire::tests::{any_reply, any_result};

    fn of_hex(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    fn read_record(bytes: &[u8]) -> (TaskId, Record) {
        match read(bytes).unwrap() {
            Entry::Record(id, record) => (id, record),
            _ => panic!("no record"),
        }
    }

    fn packed(task: &TaskResult) -> Arc<[u8]> {
        let mut bytes = Vec::new();
        put_task(&mut bytes, task);
        bytes.into()
    }

    #[test]
    fn records_of_an_earlier_version_are_read() {
        let task = "040004010764656661756c74010b73656e74696d656e7440310103772d31000180c0c9c4baeba40601a09c0101a8c30101e0f30101\
             000000000000294001cdcccccccccc08400001137b226c6162656c223a2262656172697368227d";
        let head = "01010000000000008000700000c4b3900105e8070109000000000000000000000000000000";
        let reply = Reply { to: "replies".into(), correlation_id: Some("c-1".into()), array: true };
        let golden: TaskResult =
            serde_json::from_str(include_str!("../../../tests/golden/result.v1.json")).expect("a result");

        let ended = "04020014010700000000000000000000000000000001016b01077265706c6965730103632d3101";
        let (id, record) = read_record(&of_hex(&[head, ended, task].concat()));
        assert_eq!((id, record.seq, record.touched_ms, record.attempt), (golden.id, 5, 1_000, 2));
        assert!(record.holds(9) && !record.open() && !record.told_apart, "its fingerprint was made in another way");
        assert_eq!((record.alias(), record.followers()), (Some("k"), &[reply.clone()][..]));
        assert_eq!(
            serde_json::to_string(&record.view(id).task().unwrap()).unwrap(),
            serde_json::to_string(&golden).unwrap()
        );

        let running = "03020101016d010177019a0101077265706c6965730103632d31010000";
        let (id, record) = read_record(&of_hex(&[head, running, task].concat()));
        assert!(record.holds(9) && record.open() && !record.told_apart);
        assert_eq!((record.alias(), record.followers()), (None, &[reply][..]));
        let shown = record.view(id).task().unwrap();
        assert_eq!((shown.state, shown.attempt), (State::Running, 2));
        assert_eq!((shown.model.as_deref(), shown.worker.as_deref()), (Some("m"), Some("w")));
        assert_eq!(shown.timings.started, Some(Timestamp::from_micros(77)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            task in any_result(),
            (seq, touched_ms, attempt) in any::<(u64, u64, u32)>(),
            (nonce, fingerprint) in any::<(Option<u128>, Option<u128>)>(),
            (unwanted, alone, priority) in (any::<bool>(), any::<bool>(), proptest::option::of(0..10_u8)),
            more in proptest::option::of((
                any::<Option<String>>(), proptest::collection::vec(any_reply(), 0..3),
                any::<Option<String>>(), any::<Option<String>>(), any::<Option<i64>>(),
            )),
        ) {
            let record = Record {
                seq,
                touched_ms,
                lease_ms: 0,
                nonce: nonce.unwrap_or(0),
                fingerprint: fingerprint.unwrap_or(0),
                task: packed(&task),
                address: None,
                more: more.clone().map(|(alias, followers, model, worker, started)| Box::new(More {
                    alias: alias.map(Into::into),
                    followers,
                    model: model.map(Into::into),
                    worker: worker.map(Into::into),
                    started: started.map(Timestamp::from_micros),
                })),
                attempt,
                state: task.state,
                held: nonce.is_some(),
                alone,
                unwanted,
                priority: priority.map(|priority| Priority::try_from(priority).unwrap()),
                told_apart: fingerprint.is_some(),
            };
            let mut bytes = Vec::new();
            put_record(&mut bytes, task.id, &record);
            let mut tenantless = bytes.clone();
            tenantless[0] -= 2;
            prop_assert!(!read_record(&tenantless).1.told_apart, "its fingerprint was made in another way");
            let (id, read) = read_record(&bytes);
            prop_assert_eq!(id, task.id);
            prop_assert_eq!((read.seq, read.touched_ms), (seq, touched_ms));
            prop_assert_eq!((read.attempt, read.state), (attempt, task.state));
            prop_assert_eq!((read.unwanted, read.alone, read.priority), (unwanted, alone, record.priority));
            prop_assert_eq!(read.held.then_some(read.nonce), nonce);
            prop_assert_eq!(read.told_apart.then_some(read.fingerprint), fingerprint);
            prop_assert_eq!((read.alias(), read.followers()), (record.alias(), record.followers()));
            prop_assert_eq!(format!("{:?}", read.view(id).task()), format!("{:?}", record.view(id).task()));
        }

        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(tag in 0..9_u8, bytes in any::<Vec<u8>>()) {
            let _ = read(&[&[tag], &bytes[..]].concat());
        }
    }
}
