//! Counts what goes over a connection, where it is certain: on the wire.
//!
//! lapin does not tell how many confirms came, since one may stand for many messages, and how many frames its acks
//! became. So its stream is wrapped, and of every frame the first eleven bytes are looked at. Within TLS this is done on
//! the plain text, since the stream that is wrapped is the whole one.
//!
//! Where messages come in, lapin is also let take frames that are a little larger than what was agreed on, since RabbitMQ sends them.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::AsyncTcpStream;

use crate::broker::operations::{Operations, count};

/// The class of everything that is counted here.
const BASIC: u16 = 60;
const PUBLISH: u16 = 40;
const RETURN: u16 = 50;
const DELIVER: u16 = 60;
const ACK: u16 = 80;
const REJECT: u16 = 90;
const NACK: u16 = 120;

/// Type, channel and size.
const HEADER_BYTES: usize = 7;
/// Class and method.
const METHOD_BYTES: usize = 4;
const METHOD_END: usize = HEADER_BYTES + METHOD_BYTES;
const METHOD_FRAME: u8 = 1;
/// What a client begins with, before its first frame.
const PROTOCOL_HEADER_BYTES: usize = 8;

/// The class and the methods by which both sides agree on the size of frames.
const CONNECTION: u16 = 10;
const TUNE: u16 = 30;
const TUNE_OK: u16 = 31;
/// Where the size stands in their frames, behind the number of channels.
const FRAME_MAX_AT: usize = METHOD_END + 2;

/// RabbitMQ hands the headers of a message on in one frame, of which it holds the publisher to the size, and to which it adds what it
/// has counted: `x-delivery-count`, 26 bytes. At a frame larger than was agreed on lapin ends the connection, and at the next delivery
/// again. So it is told of a size with this bit, and the broker of one without. One bit of one byte, so that nothing is to be put
/// together where reads end between bytes.
pub(super) const SLACK_BYTES: u32 = 0x400;
const SLACK_BIT: u8 = 0x04;

/// A connection's stream, TLS or not, that counts.
pub(super) struct CountedStream {
    stream: AsyncTcpStream<<Tokio as Reactor>::TcpStream>,
    operations: Arc<Operations>,
    incoming: Frames,
    outgoing: Frames,
    /// Until the size of frames is agreed on, where there is to be slack.
    tune: Option<(FrameMax, FrameMax)>,
}

impl CountedStream {
    pub(super) fn new(stream: AsyncTcpStream<<Tokio as Reactor>::TcpStream>, operations: Arc<Operations>) -> Self {
        let outgoing = Frames { skip: PROTOCOL_HEADER_BYTES, ..Frames::default() };
        Self { stream, operations, incoming: Frames::default(), outgoing, tune: None }
    }

    /// One on which frames may come that are larger than agreed on by [`SLACK_BYTES`] at most.
    pub(super) fn with_slack(self) -> Self {
        let tune = (FrameMax::of(TUNE, 0), FrameMax::of(TUNE_OK, PROTOCOL_HEADER_BYTES));
        Self { tune: Some(tune), ..self }
    }

    fn raise(&mut self, bytes: &mut [u8]) {
        if let Some((tune, _)) = &mut self.tune {
            tune.pass(bytes, |byte| byte | SLACK_BIT);
        }
    }

    /// What is written before the size is agreed on is little, and is changed in a copy.
    fn poll_write_tuning(&mut self, context: &mut Context<'_>, parts: &[&[u8]]) -> Option<Poll<io::Result<usize>>> {
        let (_, tune_ok) = self.tune.as_mut()?;
        let mut bytes = parts.concat();
        let before = tune_ok.clone();
        tune_ok.pass(&mut bytes, |byte| byte & !SLACK_BIT);
        let written = Pin::new(&mut self.stream).poll_write(context, &bytes);
        // It has passed what was written, and no more.
        *tune_ok = before;
        if let Poll::Ready(Ok(length)) = written {
            tune_ok.pass(&mut bytes[..length], |byte| byte);
            if tune_ok.is_past {
                self.tune = None;
            }
            self.sent(std::iter::once(&bytes[..]), length);
        }
        Some(written)
    }

    fn received(&mut self, bytes: &[u8]) {
        let Self { operations, incoming, .. } = self;
        let (mut delivered, mut confirms, mut returned) = (0, 0, 0);
        incoming.read(bytes, |method| match method {
            DELIVER => delivered += 1,
            ACK | NACK => confirms += 1,
            RETURN => returned += 1,
            _ => {}
        });
        count(&operations.delivered, delivered);
        count(&operations.confirms, confirms);
        count(&operations.returned, returned);
        count(&operations.bytes_received, bytes.len() as u64);
    }

    fn sent<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>, mut length: usize) {
        let Self { operations, outgoing, .. } = self;
        count(&operations.bytes_sent, length as u64);
        let (mut published, mut acks, mut requeues) = (0, 0, 0);
        for part in parts {
            let written = &part[..part.len().min(length)];
            length -= written.len();
            outgoing.read(written, |method| match method {
                PUBLISH => published += 1,
                ACK => acks += 1,
                NACK | REJECT => requeues += 1,
                _ => {}
            });
        }
        count(&operations.published, published);
        count(&operations.acks, acks);
        count(&operations.requeues, requeues);
    }
}

impl AsyncRead for CountedStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Ok(length)) = read {
            self.raise(&mut buffer[..length]);
            self.received(&buffer[..length]);
        }
        read
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &mut [io::IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.stream).poll_read_vectored(context, buffers);
        if let Poll::Ready(Ok(mut length)) = read {
            for buffer in buffers.iter_mut() {
                let most = buffer.len().min(length);
                let part = &mut buffer[..most];
                length -= part.len();
                self.raise(part);
                self.received(part);
            }
        }
        read
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(written) = self.poll_write_tuning(context, &[buffer]) {
            return written;
        }
        let written = Pin::new(&mut self.stream).poll_write(context, buffer);
        if let Poll::Ready(Ok(length)) = written {
            self.sent(std::iter::once(buffer), length);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.tune.is_some() {
            let parts: Vec<&[u8]> = buffers.iter().map(|buffer| &**buffer).collect();
            if let Some(written) = self.poll_write_tuning(context, &parts) {
                return written;
            }
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        if let Poll::Ready(Ok(length)) = written {
            self.sent(buffers.iter().map(|buffer| &**buffer), length);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

/// Where in the stream of frames one direction is.
#[derive(Default)]
struct Frames {
    head: [u8; HEADER_BYTES + METHOD_BYTES],
    /// Bytes of `head` that have come.
    have: usize,
    /// Bytes until the next frame begins.
    skip: usize,
}

impl Frames {
    /// Tells the methods of the class `basic` among the frames that begin in it.
    fn read(&mut self, mut bytes: &[u8], mut method: impl FnMut(u16)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let needed = match self.head[0] {
                METHOD_FRAME if self.have >= HEADER_BYTES => HEADER_BYTES + METHOD_BYTES,
                _ => HEADER_BYTES,
            };
            let taken = bytes.len().min(needed - self.have);
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have < needed || (self.have == HEADER_BYTES && self.head[0] == METHOD_FRAME) {
                continue;
            }
            let [kind, _, _, size @ .., class0, class1, method0, method1] = self.head;
            if kind == METHOD_FRAME && u16::from_be_bytes([class0, class1]) == BASIC {
                method(u16::from_be_bytes([method0, method1]));
            }
            // And one byte that ends the frame.
            self.skip = (u32::from_be_bytes(size) as usize + HEADER_BYTES + 1).saturating_sub(self.have);
            self.have = 0;
        }
    }
}

/// Looks, in one direction, for the size of frames in the one method that has it.
#[derive(Clone)]
struct FrameMax {
    method: u16,
    head: [u8; FRAME_MAX_AT + 3],
    /// Bytes of `head` that have come.
    have: usize,
    /// Bytes until the next frame begins.
    skip: usize,
    is_past: bool,
}

impl FrameMax {
    fn of(method: u16, skip: usize) -> Self {
        Self { method, head: [0; FRAME_MAX_AT + 3], have: 0, skip, is_past: false }
    }

    /// Changes the last byte but one of the size, unless that is 0, which stands for none, or of bytes only.
    fn pass(&mut self, bytes: &mut [u8], change: impl Fn(u8) -> u8) {
        for byte in bytes {
            if self.is_past {
                return;
            }
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            self.head[self.have] = *byte;
            self.have += 1;
            let [kind, _, _, size @ .., class0, class1, method0, method1, _, _, _, _, _] = self.head;
            // And one byte that ends the frame.
            let left = (u32::from_be_bytes(size) as usize + HEADER_BYTES + 1).saturating_sub(self.have);
            let method = (u16::from_be_bytes([class0, class1]), u16::from_be_bytes([method0, method1]));
            let is_other = match self.have {
                HEADER_BYTES => kind != METHOD_FRAME,
                METHOD_END => method != (CONNECTION, self.method),
                _ => false,
            };
            if is_other {
                (self.have, self.skip) = (0, left);
            } else if self.have == self.head.len() {
                if self.head[FRAME_MAX_AT..] != [0; 3] {
                    *byte = change(*byte);
                }
                self.is_past = true;
            }
        }
    }
}

/// Tokio, with streams that count.
pub(super) fn runtime(operations: Arc<Operations>) -> Runtime<Kit> {
    let tokio = Tokio::current();
    Runtime::new(RuntimeParts::new(tokio.clone(), CountingReactor { tokio, operations }))
}

pub(super) type Kit = RuntimeParts<Tokio, CountingReactor>;

#[derive(Clone, Debug)]
pub(super) struct CountingReactor {
    tokio: Tokio,
    operations: Arc<Operations>,
}

impl Reactor for CountingReactor {
    type TcpStream = CountedStream;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.tokio.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.tokio.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.tokio.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.tokio.tcp_connect_addr(address);
        let operations = self.operations.clone();
        async move { Ok(CountedStream::new(AsyncTcpStream::Plain(connecting.await?), operations)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 1];
        frame.extend((payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        frame.push(0xCE);
        frame
    }

    fn method(class: u16, method: u16, arguments: usize) -> Vec<u8> {
        let mut payload = Vec::from(class.to_be_bytes());
        payload.extend(method.to_be_bytes());
        payload.extend(vec![1; arguments]);
        frame(METHOD_FRAME, &payload)
    }

    proptest! {
        /// However the bytes are cut, every method is told once and in order; what looks like one in a body is not.
        #[test]
        fn methods_are_found_wherever_reads_end(
            kinds in prop::collection::vec(0_usize..5, 1..20),
            cuts in prop::collection::vec(1_usize..40, 1..60),
        ) {
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for kind in kinds {
                match kind {
                    0 => bytes.extend(frame(3, &method(BASIC, ACK, 9))),
                    1 => bytes.extend(frame(8, &[])),
                    2 => bytes.extend(method(10, DELIVER, 3)),
                    other => {
                        let told = if other == 3 { DELIVER } else { ACK };
                        bytes.extend(method(BASIC, told, other * 7));
                        expected.push(told);
                    }
                }
            }
            let (mut frames, mut told) = (Frames::default(), Vec::new());
            let mut rest = &bytes[..];
            for cut in cuts.into_iter().cycle() {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                frames.read(now, |method| told.push(method));
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(told, expected);
        }

        /// However the bytes are cut, the size of frames alone is changed, once, and the way back is what the broker said.
        #[test]
        fn the_size_of_frames_has_slack_within_and_none_on_the_wire(
            said in prop::sample::select(vec![0_u32, 4_096, 8_192, 32_768, 65_536, 131_072, 131_071, 262_144, u32::MAX]),
            cuts in prop::collection::vec(1_usize..40, 1..60),
        ) {
            let tuning = |method: u16, size: u32| {
                let mut payload = [CONNECTION.to_be_bytes(), method.to_be_bytes(), [7, 255]].concat();
                payload.extend(size.to_be_bytes());
                payload.extend([0, 60]);
                frame(METHOD_FRAME, &payload)
            };
            let cut = |mut look: FrameMax, mut bytes: Vec<u8>, change: fn(u8) -> u8| {
                let mut at = 0;
                for cut in cuts.iter().cycle() {
                    let end = (at + cut).min(bytes.len());
                    look.pass(&mut bytes[at..end], change);
                    at = end;
                    if at == bytes.len() {
                        return bytes;
                    }
                }
                unreachable!("it is cut until all is through");
            };
            let start = method(CONNECTION, 10, 300);
            let heard = cut(
                FrameMax::of(TUNE, 0),
                [start.clone(), tuning(TUNE, said), tuning(TUNE, said)].concat(),
                |byte| byte | SLACK_BIT,
            );
            let within = if said == 0 { 0 } else { said | SLACK_BYTES };
            prop_assert_eq!(heard, [start.clone(), tuning(TUNE, within), tuning(TUNE, said)].concat());

            let protocol = b"AMQP\0\0\x09\x01".to_vec();
            let all = [protocol.clone(), start.clone(), tuning(TUNE_OK, within), tuning(TUNE_OK, within)].concat();
            let sent = cut(FrameMax::of(TUNE_OK, PROTOCOL_HEADER_BYTES), all, |byte| byte & !SLACK_BIT);
            let without = within & !SLACK_BYTES;
            prop_assert!(without <= said);
            prop_assert_eq!(sent, [protocol, start, tuning(TUNE_OK, without), tuning(TUNE_OK, within)].concat());
        }
    }
}
