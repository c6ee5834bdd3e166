//! What the broker writes into its journal, and how it is built anew from that.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::publish::Weight;
use super::queue::{Content, Entry, Queue, weight};
use super::routing::Routing;
use crate::broker::{Properties, QueueKind};
use crate::journal::Address;
use crate::journal::codec::{Malformed, Reader, put_option, put_str, put_u64};

const QUEUE: u8 = 1;
const EXCHANGE: u8 = 2;
const BINDING: u8 = 3;
const MESSAGE: u8 = 4;

pub(super) fn put_queue(out: &mut Vec<u8>, queue: &Queue) {
    out.push(QUEUE);
    put_u64(out, queue.number.into());
    put_str(out, &queue.name);
    put_option(out, queue.max_length, put_u64);
}

pub(super) fn put_exchange(out: &mut Vec<u8>, name: &str) {
    out.push(EXCHANGE);
    put_str(out, name);
}

pub(super) fn put_binding(out: &mut Vec<u8>, exchange: &str, pattern: &str, queue: u32) {
    out.push(BINDING);
    put_str(out, exchange);
    put_str(out, pattern);
    put_u64(out, queue.into());
}

pub(super) fn put_message(out: &mut Vec<u8>, queue: u32, content: &Content) {
    out.push(MESSAGE);
    put_u64(out, queue.into());
    put_str(out, &content.routing_key);
    let properties = &content.properties;
    for text in texts(properties) {
        put_option(out, text.as_deref(), put_str);
    }
    put_option(out, properties.priority, |out, priority| out.push(priority));
    put_u64(out, properties.headers.len() as u64);
    for (name, value) in &properties.headers {
        put_str(out, name);
        put_str(out, value);
    }
    out.extend_from_slice(&content.body);
}

/// In the order in which they are written.
fn texts(properties: &Properties) -> [&Option<String>; 8] {
    let Properties {
        message_id,
        correlation_id,
        reply_to,
        content_type,
        content_encoding,
        kind,
        app_id,
        priority: _,
        expiration,
        headers: _,
    } = properties;
    [message_id, correlation_id, reply_to, content_type, content_encoding, kind, app_id, expiration]
}

fn message(reader: &mut Reader<'_>) -> Result<Content, Malformed> {
    let routing_key = reader.str()?.into();
    let mut text = || Ok(reader.option(Reader::str)?.map(str::to_owned));
    let mut properties = Properties {
        message_id: text()?,
        correlation_id: text()?,
        reply_to: text()?,
        content_type: text()?,
        content_encoding: text()?,
        kind: text()?,
        app_id: text()?,
        expiration: text()?,
        priority: None,
        headers: BTreeMap::new(),
    };
    properties.priority = reader.option(Reader::u8)?;
    for _ in 0..reader.u64()? {
        let name = reader.str()?.to_owned();
        properties.headers.insert(name, reader.str()?.to_owned());
    }
    // A copy of its own: one message that stays must not keep a whole chunk in memory.
    let body = Bytes::copy_from_slice(reader.rest());
    Ok(Content { body, properties, routing_key, persistent: true })
}

/// What was found in a journal so far.
#[derive(Default)]
pub(super) struct Found {
    routing: Routing,
    queues: HashMap<u32, (Arc<Queue>, Vec<Entry>)>,
}

impl Found {
    pub fn take_in(&mut self, address: Address, entry: &[u8]) -> Result<(), String> {
        self.read(address, &mut Reader::new(entry)).map_err(|Malformed| Malformed.to_string())
    }

    fn read(&mut self, address: Address, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        match reader.u8()? {
            QUEUE => {
                let number = reader.u32()?;
                let name = reader.str()?.to_owned();
                let max_length = reader.option(Reader::u64)?;
                let queue = Arc::new(Queue::new(name, QueueKind::Durable, max_length, number));
                self.routing.add_queue(queue.clone());
                self.queues.insert(number, (queue, Vec::new()));
            }
            EXCHANGE => self.routing.add_exchange(reader.str()?),
            BINDING => {
                let (exchange, pattern) = (reader.str()?, reader.str()?);
                let (queue, _) = self.queues.get(&reader.u32()?).ok_or(Malformed)?;
                self.routing.add_binding(exchange, pattern, queue.clone());
            }
            MESSAGE => {
                let (_, entries) = self.queues.get_mut(&reader.u32()?).ok_or(Malformed)?;
                entries.push(Entry::found(Arc::new(message(reader)?), address));
            }
            _ => return Err(Malformed),
        }
        Ok(())
    }

    /// The queues with all their messages ready, and what these count for.
    pub fn finish(self) -> (Routing, Weight) {
        let mut weights = Vec::with_capacity(self.queues.len());
        for (queue, entries) in self.queues.into_values() {
            weights.push(weight(&entries));
            queue.restore(entries);
        }
        (self.routing, weights.into_iter().sum())
    }
}
