//! Keeps one connection up: watches the session it has, and when that ends builds the next, for as long as it takes.
//!
//! lapin's own recovery is not used: when its tries run out, streams and confirms hang without a word.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::Event;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;

use super::endpoint::Endpoint;
use super::errors::broker_error;
use super::session::Session;
use crate::broker::BrokerError;
use crate::retry::Backoff;

/// lapin tells of most ends of a connection as an event, but not of all.
const CHECK_EVERY: Duration = Duration::from_millis(500);

#[derive(Clone)]
enum State {
    Up {
        session: Arc<Session>,
        /// The broker takes no messages: memory or disk is short.
        blocked: bool,
    },
    Down(BrokerError),
    Closed,
}

pub(super) struct Link {
    state: watch::Receiver<State>,
    stop: CancellationToken,
    task: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Link {
    /// `name` is what the broker's operator sees.
    pub(super) fn start(endpoint: Arc<Endpoint>, name: String, first: Session) -> Self {
        let stop = CancellationToken::new();
        let session = Arc::new(first);
        let (sender, state) = watch::channel(State::Up { session: session.clone(), blocked: false });
        let keeper = Keeper { endpoint, name, sender, stop: stop.clone() };
        let task = tokio::spawn(keeper.run(session));
        Self { state, stop, task: std::sync::Mutex::new(Some(task)) }
    }

    /// The session that stands, waiting for one until `deadline`.
    pub(super) async fn session(&self, deadline: Instant) -> Result<Arc<Session>, BrokerError> {
        self.wait(deadline, true).await
    }

    /// The same, waiting out an alarm too.
    pub(super) async fn unblocked(&self, deadline: Instant) -> Result<Arc<Session>, BrokerError> {
        self.wait(deadline, false).await
    }

    async fn wait(&self, deadline: Instant, even_blocked: bool) -> Result<Arc<Session>, BrokerError> {
        let mut state = self.state.clone();
        let usable = |state: &State| match state {
            // A session that has just ended is not for use, though the keeper may not have seen it yet.
            State::Up { session, blocked } => session.is_alive() && (even_blocked || !blocked),
            State::Down(_) => false,
            State::Closed => true,
        };
        // The reason is told when time runs out, so how waiting ended does not matter.
        let _ = timeout_at(deadline, state.wait_for(usable)).await;
        let state = self.state.borrow().clone();
        match state {
            State::Up { session, blocked } if session.is_alive() => {
                if blocked && !even_blocked {
                    return Err(BrokerError::Unreachable("it takes no messages for now (memory or disk alarm)".into()));
                }
                Ok(session)
            }
            State::Up { session, .. } => {
                Err(session.reason().unwrap_or_else(|| BrokerError::Cut("it just ended".into())))
            }
            State::Down(reason) => Err(reason),
            State::Closed => Err(BrokerError::Closed),
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        match &*self.state.borrow() {
            State::Up { session, blocked } => session.is_alive() && !blocked,
            State::Down(_) | State::Closed => false,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.stop.is_cancelled()
    }

    pub(super) async fn close(&self) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(task) = task {
            // It ends by itself; if it panicked there is nothing left to close.
            let _ = task.await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Keeper {
    endpoint: Arc<Endpoint>,
    name: String,
    sender: watch::Sender<State>,
    stop: CancellationToken,
}

impl Keeper {
    async fn run(self, mut session: Arc<Session>) {
        loop {
            let Some(reason) = self.watch(&session).await else { break };
            tracing::warn!(broker.link = %self.name, broker.session = session.number, reason = %reason, "lost the broker");
            session.fail(reason.clone());
            self.sender.send_replace(State::Down(reason));
            let Some(next) = self.connect(session.number + 1).await else {
                self.sender.send_replace(State::Closed);
                return;
            };
            tracing::info!(broker.link = %self.name, broker.session = next.number, "back at the broker");
            session = Arc::new(next);
            self.sender.send_replace(State::Up { session: session.clone(), blocked: false });
        }
        self.sender.send_replace(State::Closed);
        session.end().await;
    }

    /// Why the session ended, or `None` when the link is to stop.
    async fn watch(&self, session: &Arc<Session>) -> Option<BrokerError> {
        let mut events = pin!(session.connection.events_listener());
        let mut check = interval(CHECK_EVERY);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_error = None;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = session.failed() => {}
                Some(event) = events.next() => {
                    if let Event::Error(error) = event {
                        last_error = Some(error);
                    }
                }
                _ = check.tick() => {}
            }
            if !session.is_alive() {
                let told = last_error.as_ref().map(|error| match broker_error(error) {
                    // On a connection that is gone every error is a cut.
                    BrokerError::Refused(text) => BrokerError::Cut(text),
                    other => other,
                });
                return Some(
                    session.reason().or(told).unwrap_or_else(|| BrokerError::Cut("the connection was closed".into())),
                );
            }
            self.note_blocked(session);
        }
    }

    fn note_blocked(&self, session: &Session) {
        let now = session.connection.status().blocked();
        let changed = self.sender.send_if_modified(|state| match state {
            State::Up { blocked, .. } if *blocked != now => {
                *blocked = now;
                true
            }
            _ => false,
        });
        if changed && now {
            tracing::warn!(broker.link = %self.name, "the broker takes no messages for now: memory or disk alarm");
        } else if changed {
            tracing::info!(broker.link = %self.name, "the broker takes messages again");
        }
    }

    /// The next session, or `None` when the link is to stop.
    async fn connect(&self, number: u64) -> Option<Session> {
        let mut attempt = 1;
        loop {
            let wait = Backoff::RECONNECT.delay(attempt, fastrand::f64());
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(wait) => {}
            }
            let opened = tokio::select! {
                () = self.stop.cancelled() => return None,
                opened = Session::open(&self.endpoint, &self.name, number) => opened,
            };
            match opened {
                Ok(session) => return Some(session),
                Err(reason) => {
                    // Once, and not each time: it may go on for hours. Readiness tells the rest.
                    if attempt == 1 {
                        tracing::warn!(broker.link = %self.name, reason = %reason, "the broker is not back yet");
                    }
                    self.sender.send_replace(State::Down(reason));
                    attempt = attempt.saturating_add(1);
                }
            }
        }
    }
}
