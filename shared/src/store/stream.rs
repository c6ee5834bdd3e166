//! What a task says while it runs: its partial outputs in order, and how far it has come.
//!
//! A stream belongs to one attempt. When the next attempt says something, what the one before said is forgotten: it counts for
//! nothing any more. The numbers go on, so that a reader goes on where it was.

use bytes::Bytes;

use crate::task::TaskId;

/// What one attempt's stream holds: bytes of partial outputs, and how many of them. What is said beyond it is left out, with a
/// mark where that begins.
pub const STREAM_BYTES: usize = 1 << 20;
pub const STREAM_PARTS: usize = 20_000;
/// Forgotten so long after it was last added to; milliseconds.
pub const STREAM_MS: u64 = 3_600_000;
/// One read answers no more of a stream, but at least one part.
pub const READ_BYTES: usize = 64 << 10;

/// What an attempt adds to its task's stream.
#[derive(Clone, Debug)]
pub struct Append {
    pub id: TaskId,
    pub attempt: u32,
    /// Of the attempt, as in its claim.
    pub nonce: u128,
    /// In the order in which it was said.
    pub said: Vec<Said>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Said {
    /// A part of the output. Never empty.
    Partial(Bytes),
    /// How far it is. Only the last one is kept.
    Progress(Bytes),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Appended {
    Kept,
    /// The stream is full: parts were left out, and a mark says where.
    Full,
    /// The task has ended, or another attempt has it: nothing was changed.
    Stale,
}

/// Which part of a stream is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadStream {
    pub id: TaskId,
    /// Only what has a greater number.
    pub after: u64,
    /// Most partial outputs; 0 for the progress alone.
    pub most: usize,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stream {
    /// Of the attempt that said all of this; 0 when there is no stream.
    pub attempt: u32,
    /// By number.
    pub partials: Vec<Part>,
    /// The last that was said, whatever its number.
    pub progress: Option<Part>,
    /// There is more to read.
    pub more: bool,
    /// The greatest number so far.
    pub last: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// From 1, over partial outputs and progress together.
    pub number: u64,
    /// Empty where parts were left out because the stream was full.
    pub body: Bytes,
}
