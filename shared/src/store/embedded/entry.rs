//! What the store writes into its journal, and how it is read back.

use uuid::Uuid;

use super::pack::{View, followers, put_followers};
use super::records::{Live, Record};
use crate::journal::codec::{Malformed, Reader, put_bytes, put_i64, put_option, put_str, put_u64, put_u128};
use crate::store::pack::{put_state, state};
use crate::task::TaskId;
use crate::time::Timestamp;

const RECORD: u8 = 1;
const MODEL: u8 = 2;
const VALUE: u8 = 3;

/// Leases are left out: nobody who held one is alive when it is read.
pub(super) fn put_record(out: &mut Vec<u8>, id: TaskId, record: &Record) {
    let Record { seq, touched_ms, nonce, held, state, attempt, packed, address: _, live } = record;
    out.push(RECORD);
    put_u128(out, id.0.as_u128());
    put_u64(out, *seq);
    put_u64(out, *touched_ms);
    put_option(out, held.then_some(*nonce), put_u128);
    put_state(out, *state);
    put_u64(out, (*attempt).into());
    put_option(out, live.as_ref(), |out, live| {
        let Live { model, worker, started, followers, lease_ms: _ } = &**live;
        put_option(out, model.as_deref(), put_str);
        put_option(out, worker.as_deref(), put_str);
        put_option(out, *started, |out, started| put_i64(out, started.as_micros()));
        put_followers(out, followers);
    });
    out.extend_from_slice(packed);
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

pub(super) enum Entry<'a> {
    Record(TaskId, Record),
    Model { name: &'a str, json: &'a [u8] },
    Value { key: &'a str, value: &'a [u8] },
}

pub(super) fn read(bytes: &[u8]) -> Result<Entry<'_>, Malformed> {
    let mut reader = Reader::new(bytes);
    match reader.u8()? {
        RECORD => record(reader),
        MODEL => Ok(Entry::Model { name: reader.str()?, json: reader.bytes()? }),
        VALUE => Ok(Entry::Value { key: reader.str()?, value: reader.bytes()? }),
        _ => Err(Malformed),
    }
}

fn record(mut reader: Reader<'_>) -> Result<Entry<'_>, Malformed> {
    let id = TaskId(Uuid::from_u128(reader.u128()?));
    let seq = reader.u64()?;
    let touched_ms = reader.u64()?;
    let nonce = reader.option(Reader::u128)?;
    let state = state(&mut reader)?;
    let attempt = reader.u32()?;
    let live = reader.option(|reader| {
        Ok(Box::new(Live {
            model: reader.option(Reader::str)?.map(Into::into),
            worker: reader.option(Reader::str)?.map(Into::into),
            started: reader.option(Reader::i64)?.map(Timestamp::from_micros),
            followers: followers(reader)?,
            lease_ms: 0,
        }))
    })?;
    let view = View { id, packed: reader.rest().into(), progress: None };
    // Read once here, so that it can be read at any later time.
    view.task()?;
    if live.is_none() != state.is_terminal() {
        return Err(Malformed);
    }
    let (held, nonce) = (nonce.is_some(), nonce.unwrap_or(0));
    let packed = view.packed;
    Ok(Entry::Record(id, Record { seq, touched_ms, nonce, held, state, attempt, packed, address: None, live }))
}
