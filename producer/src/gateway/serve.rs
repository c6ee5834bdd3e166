//! Connections: so many at once, each with a limit on how long a head may take to come and an answer to be read.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use taskyard_shared::process::metrics::{IntCounter, IntGauge};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::metrics::Counted;
use super::problem::{Code, Problem};

/// The head of a request: its bytes and its headers.
const HEAD_BYTES: usize = 64 << 10;
const HEADERS: usize = 64;
/// Connections beyond the most that are told so at once; the rest is closed without a word.
const REFUSED_AT_ONCE: usize = 64;
/// How long running requests may go on once the gateway stops.
const DRAIN: Duration = Duration::from_secs(10);
/// And for the first request of a connection that was made before, to come.
const FIRST: Duration = Duration::from_secs(1);
/// After an `accept` that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Limits {
    pub(super) connections: usize,
    /// For the head of a request to come, which is also how long a connection may idle; and for an answer to move on.
    pub(super) timeout: Duration,
}

pub(super) struct Counts {
    pub(super) open: IntGauge,
    pub(super) refused: IntCounter,
}

/// How long an ended connection is still read from, so that what the caller sends does not take the answer away.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_READS: usize = 16;

/// Serves until `stop`, then lets the requests of those who had connected finish.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    counts: Counts,
    stop: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(limits.connections.clamp(1, Semaphore::MAX_PERMITS)));
    let refusals = Arc::new(Semaphore::new(REFUSED_AT_ONCE));
    let refusal = refusal().await;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.timeout).max_headers(HEADERS).max_buf_size(HEAD_BYTES);
    let service = TowerToHyperService::new(router);
    let connections = TaskTracker::new();
    let abort = CancellationToken::new();
    let admit = |stream: TcpStream| {
        let Ok(place) = room.clone().try_acquire_owned() else {
            counts.refused.inc();
            if let Ok(place) = refusals.clone().try_acquire_owned() {
                let refusal = refusal.clone();
                connections.spawn(async move {
                    // Whoever does not read it is not waited for.
                    let _ = timeout(LINGER, refuse(stream, &refusal)).await;
                    drop(place);
                });
            }
            return;
        };
        // Answers are small: they are not held back to be sent together.
        let _ = stream.set_nodelay(true);
        let stream = Moving::new(stream, limits.timeout);
        let spoken = stream.spoken.clone();
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        let (stop, abort, open) = (stop.clone(), abort.clone(), counts.open.clone());
        connections.spawn(async move {
            let _open = Counted::new(open);
            let mut connection = pin!(connection);
            let ending = async {
                stop.cancelled().await;
                // One on which nothing has come yet would be closed at once, though its request may be on its way.
                let _said = timeout(FIRST, spoken.cancelled()).await;
            };
            let served = tokio::select! {
                biased;
                // First: what has come is read before it is said that it was the last.
                served = connection.as_mut() => Some(served),
                () = ending => None,
            };
            let served = match served {
                Some(served) => served,
                None => {
                    connection.as_mut().graceful_shutdown();
                    abort.run_until_cancelled(connection).await.unwrap_or(Ok(()))
                }
            };
            if let Err(error) = served {
                // Callers that leave, stall or speak no HTTP: their affair.
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    };
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => admit(stream),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Whoever has connected is answered: the listener is asked itself, since the runtime may not have heard of them yet.
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, _)) = listener.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            stream.map_or_else(|error| tracing::warn!(%error, "a connection could not be accepted"), &admit);
        }
    }
    connections.close();
    if timeout(DRAIN, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections were cut: their requests did not end in time");
        abort.cancel();
        connections.wait().await;
    }
}

/// The whole answer to a connection that is one too many.
async fn refusal() -> Arc<[u8]> {
    let problem = Problem::new(Code::TooManyConnections, "too many connections are open");
    let (mut parts, body) = problem.into_response().into_parts();
    let body = to_bytes(body, HEAD_BYTES).await.unwrap_or_default();
    let mut answer =
        format!("HTTP/1.1 {}\r\nconnection: close\r\ncontent-length: {}\r\n", parts.status, body.len()).into_bytes();
    // It does not pass what marks all other answers.
    parts.headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    for (name, value) in &parts.headers {
        answer.extend_from_slice(name.as_str().as_bytes());
        answer.extend_from_slice(b": ");
        answer.extend_from_slice(value.as_bytes());
        answer.extend_from_slice(b"\r\n");
    }
    answer.extend_from_slice(b"\r\n");
    answer.extend_from_slice(&body);
    answer.into()
}

async fn refuse(stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    let mut stream = Moving::new(stream, LINGER);
    stream.write_all(answer).await?;
    stream.shutdown().await
}

/// A stream whose writes have to move on, and whose end lingers.
struct Moving {
    stream: TcpStream,
    limit: Duration,
    /// Cancelled once something was read.
    spoken: CancellationToken,
    /// Runs while a write waits for the other end.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Runs once our side is closed.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl Moving {
    fn new(stream: TcpStream, limit: Duration) -> Self {
        Self { stream, limit, spoken: CancellationToken::new(), stalled: None, lingering: None }
    }

    fn judge<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the answer is not read"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Moving {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if polled.is_ready() {
            self.spoken.cancel();
        }
        polled
    }
}

impl AsyncWrite for Moving {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, buffer);
        self.judge(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.judge(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(context, flushed)
    }

    /// Closing a socket that holds unread bytes resets it, and the caller may never see the answer: so they are read
    /// for a moment, and thrown away.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        }
        let lingering = this.lingering.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + LINGER)));
        if lingering.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        // A caller that sends without end gets its turn again, and the others theirs.
        for _ in 0..LINGER_READS {
            let mut waste = [0; 4096];
            let mut buffer = ReadBuf::new(&mut waste);
            match ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
