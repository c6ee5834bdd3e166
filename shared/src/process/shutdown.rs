//! How a process is asked to stop: the first SIGTERM or SIGINT means drain, the second means now.

use std::io;
use std::pin::pin;
use std::task::Poll;

use futures_util::stream::{self, Stream, StreamExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Two tokens that a role watches. Clones are the same tokens.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Take nothing new, finish what runs, then end.
    pub drain: CancellationToken,
    /// Give back what runs and end. Never without `drain`.
    pub now: CancellationToken,
}

impl Shutdown {
    /// Takes over SIGTERM and SIGINT of this process. Call it first thing within the runtime: before, a signal ends the
    /// process at once.
    pub fn on_signals() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        Ok(Self::on(stream::poll_fn(move |context| {
            if terminate.poll_recv(context).is_ready() {
                return Poll::Ready(Some("SIGTERM"));
            }
            interrupt.poll_recv(context).map(|_| Some("SIGINT"))
        })))
    }

    /// The same with requests to stop from elsewhere, each with the name it goes by in the log.
    pub fn on(requests: impl Stream<Item = &'static str> + Send + 'static) -> Self {
        let shutdown = Self::default();
        let Self { drain, now } = shutdown.clone();
        tokio::spawn(async move {
            let mut requests = pin!(requests);
            let Some(name) = requests.next().await else { return };
            tracing::info!(signal = name, "draining; a second signal ends without waiting");
            drain.cancel();
            let Some(name) = requests.next().await else { return };
            tracing::warn!(signal = name, "ending without waiting");
            now.cancel();
        });
        shutdown
    }

    /// Asks for both at once, as when a part that the process cannot do without has failed.
    pub fn end_now(&self) {
        self.drain.cancel();
        self.now.cancel();
    }
}
