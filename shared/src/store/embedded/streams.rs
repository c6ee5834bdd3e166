//! What tasks say while they run. In memory alone: a restart forgets it, as it ends what said it.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::hash::ById;
use crate::store::stream::{READ_BYTES, STREAM_BYTES, STREAM_MS, STREAM_PARTS};
use crate::store::{Append, Appended, Part, ReadStream, Said, Stream};
use crate::task::TaskId;

/// Most bytes of all streams together; beyond it those that were not added to for the longest time are forgotten.
const ALL_BYTES: usize = 256 << 20;
/// About what a part takes beside its bytes.
const PART_BYTES: usize = 64;

#[derive(Default)]
pub(super) struct Streams {
    by_id: HashMap<TaskId, Spoken, ById>,
    /// By when they were last added to, and a number that tells those of one moment apart.
    by_age: BTreeMap<(u64, u64), TaskId>,
    bytes: usize,
    next: u64,
}

struct Spoken {
    attempt: u32,
    nonce: u128,
    last: u64,
    partials: Vec<(u64, Bytes)>,
    bytes: usize,
    is_full: bool,
    progress: Option<(u64, Bytes)>,
    age: (u64, u64),
}

impl Spoken {
    fn weight(&self) -> usize {
        let progress = self.progress.as_ref().map_or(0, |(_, body)| body.len());
        self.bytes + (self.partials.len() + 2) * PART_BYTES + progress
    }
}

impl Streams {
    /// `may_speak` is what the record says of the attempt.
    pub fn append(&mut self, append: &Append, may_speak: bool, now_ms: u64) -> Appended {
        self.forget(now_ms);
        let known = self.by_id.get(&append.id);
        let is_stale = known.is_some_and(|known| {
            append.attempt < known.attempt || append.attempt == known.attempt && append.nonce != known.nonce
        });
        if !may_speak || is_stale {
            return Appended::Stale;
        }
        let age = (now_ms, self.next);
        self.next += 1;
        let before = self.by_id.remove(&append.id);
        if let Some(before) = &before {
            self.by_age.remove(&before.age);
            self.bytes -= before.weight();
        }
        let mut spoken = match before {
            Some(before) if before.attempt == append.attempt => Spoken { age, ..before },
            before => Spoken {
                attempt: append.attempt,
                nonce: append.nonce,
                last: before.map_or(0, |before| before.last),
                partials: Vec::new(),
                bytes: 0,
                is_full: false,
                progress: None,
                age,
            },
        };
        for said in &append.said {
            match said {
                Said::Progress(body) => {
                    spoken.last += 1;
                    spoken.progress = Some((spoken.last, body.clone()));
                }
                Said::Partial(_) if spoken.is_full => {}
                Said::Partial(body) => {
                    spoken.last += 1;
                    spoken.is_full = spoken.bytes + body.len() > STREAM_BYTES || spoken.partials.len() >= STREAM_PARTS;
                    let body = if spoken.is_full { Bytes::new() } else { body.clone() };
                    spoken.bytes += body.len();
                    spoken.partials.push((spoken.last, body));
                }
            }
        }
        let answer = if spoken.is_full { Appended::Full } else { Appended::Kept };
        self.bytes += spoken.weight();
        self.by_age.insert(age, append.id);
        self.by_id.insert(append.id, spoken);
        answer
    }

    pub fn read(&mut self, read: &ReadStream, now_ms: u64) -> Stream {
        self.forget(now_ms);
        let Some(spoken) = self.by_id.get(&read.id) else { return Stream::default() };
        let part = |(number, body): &(u64, Bytes)| Part { number: *number, body: body.clone() };
        let mut stream = Stream {
            attempt: spoken.attempt,
            progress: spoken.progress.as_ref().map(part),
            last: spoken.last,
            ..Stream::default()
        };
        let from = spoken.partials.partition_point(|(number, _)| *number <= read.after);
        let mut bytes = 0;
        for partial in spoken.partials.iter().skip(from).take(if read.most == 0 { 0 } else { usize::MAX }) {
            bytes += partial.1.len();
            if stream.partials.len() == read.most || bytes > READ_BYTES && !stream.partials.is_empty() {
                stream.more = true;
                break;
            }
            stream.partials.push(part(partial));
        }
        stream
    }

    /// Those that are too old, or beyond what all may take.
    fn forget(&mut self, now_ms: u64) {
        while let Some((age, id)) = self.by_age.first_key_value() {
            if age.0.saturating_add(STREAM_MS) > now_ms && self.bytes <= ALL_BYTES {
                return;
            }
            let (age, id) = (*age, *id);
            self.by_age.remove(&age);
            if let Some(spoken) = self.by_id.remove(&id) {
                self.bytes -= spoken.weight();
            }
        }
    }
}
