//! One connection and its channels, from connect to its first error. It is never repaired: [`super::link`] builds the
//! next one.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapin::{Channel, Connection};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::endpoint::{Endpoint, Socket};
use super::errors::{Failure, within};
use crate::broker::BrokerError;

/// How long a channel stays open after the last ack on it, in a quorum queue. RabbitMQ's channel sends a quorum queue 32
/// commands at once and keeps the rest in memory, and what it keeps when it is closed is lost: those messages, though
/// acked, come again.
const ACKS_LINGER: Duration = Duration::from_secs(1);
/// For the broker to answer a polite close.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

pub(super) struct Session {
    /// Counts the sessions of one link, from 1.
    pub(super) number: u64,
    pub(super) connection: Connection,
    socket: Socket,
    opened_at: Instant,
    /// Milliseconds after `opened_at` at which something was last confirmed.
    confirmed_at_ms: AtomicU64,
    /// Likewise, at which the last ack was sent that may linger. 0 when there was none.
    acked_at_ms: AtomicU64,
    over: CancellationToken,
    reason: OnceLock<BrokerError>,
}

impl Session {
    pub(super) async fn open(endpoint: &Endpoint, name: &str, number: u64) -> Result<Self, BrokerError> {
        let (connection, socket) = endpoint.connect(name).await?;
        Ok(Self {
            number,
            connection,
            socket,
            opened_at: Instant::now(),
            confirmed_at_ms: AtomicU64::new(0),
            acked_at_ms: AtomicU64::new(0),
            over: CancellationToken::new(),
            reason: OnceLock::new(),
        })
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.over.is_cancelled() && self.connection.status().connected()
    }

    /// Gives the session up. The first reason stays.
    pub(super) fn fail(&self, reason: BrokerError) {
        // The first one wins.
        let _ = self.reason.set(reason);
        self.over.cancel();
        self.socket.cut();
    }

    /// Resolves once the session was given up.
    pub(super) async fn failed(&self) {
        self.over.cancelled().await;
    }

    /// Why it ended, when somebody said so.
    pub(super) fn reason(&self) -> Option<BrokerError> {
        self.reason.get().cloned()
    }

    pub(super) async fn channel(&self, limit: Duration) -> Result<Channel, Failure> {
        within(limit, self.connection.create_channel()).await
    }

    pub(super) fn note_confirm(&self) {
        self.confirmed_at_ms.fetch_max(self.now_ms(), Ordering::Relaxed);
    }

    pub(super) fn note_acks(&self) {
        self.acked_at_ms.fetch_max(self.now_ms().max(1), Ordering::Relaxed);
    }

    /// Until the acks so far are believed to have been carried out.
    pub(super) async fn acks_done(&self) {
        let acked_at_ms = self.acked_at_ms.load(Ordering::Relaxed);
        if acked_at_ms > 0 {
            tokio::time::sleep_until(self.opened_at + Duration::from_millis(acked_at_ms) + ACKS_LINGER).await;
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.opened_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the broker confirmed anything to anybody since then.
    pub(super) fn confirmed_since(&self, then: Instant) -> bool {
        let last = self.opened_at + Duration::from_millis(self.confirmed_at_ms.load(Ordering::Relaxed));
        last >= then
    }

    /// Says goodbye if the broker still listens, and ends the socket.
    pub(super) async fn end(&self) {
        // Before its consumers see the end, so that they can tell it from a cut.
        let _ = self.reason.set(BrokerError::Closed);
        if self.is_alive() {
            self.acks_done().await;
            // Whatever comes of it, the socket is cut next.
            let _ = within(CLOSE_LIMIT, self.connection.close(200, "bye".into())).await;
        }
        self.fail(BrokerError::Closed);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.socket.cut();
    }
}

/// Closes a channel in the background. lapin closes a dropped channel too, but takes an error at that for the end of
/// the whole connection.
pub(super) fn retire(channel: Channel) {
    if !channel.status().connected() {
        return;
    }
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(async move {
            // A channel that cannot be closed is closed already, or goes with its connection.
            let _ = within(CLOSE_LIMIT, channel.close(200, "bye".into())).await;
        });
    }
}
