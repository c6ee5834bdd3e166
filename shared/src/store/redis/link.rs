//! One connection to the server, made when it is first needed and made anew when it was lost.
//!
//! A call never outlasts the time-out, connecting included. While the server is away calls fail at once, and one in a
//! while tries to connect. A call that timed out takes its connection with it: on a link that went silent without a
//! word, TCP alone would notice after many minutes.
//!
//! All keys are in one slot of a cluster, so one node has them all: whichever node the URL names, the link goes to where
//! that one sends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    Pipeline, ProtocolVersion, PushInfo, PushKind, RedisError, ServerErrorKind, TlsCertificates, Value,
};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use crate::process::settings::{StoreSettings, TlsSettings};
use crate::process::tls::{self, Credentials, Identity};
use crate::store::StoreError;

/// Where the settings of TLS stand.
const TLS: &str = "store.tls";
/// After a failure to connect, so long nobody tries again.
const PAUSE: Duration = Duration::from_millis(100);
/// Most nodes of a cluster that one call is sent to.
const HOPS: usize = 4;

pub(super) struct Link {
    info: ConnectionInfo,
    tls: TlsSettings,
    /// Host and port: what may be said of the URL.
    address: String,
    timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<Session>,
    /// The node that has the keys, when it is not the one that the URL names.
    moved: Option<ConnectionAddr>,
    failed: Option<(Instant, StoreError)>,
}

#[derive(Clone)]
struct Session {
    connection: MultiplexedConnection,
    /// Set when the connection is of no more use.
    lost: Arc<AtomicBool>,
}

impl Link {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the URL is none of a Redis server. The URL is not in the message.
    pub(super) fn new(settings: &StoreSettings) -> Result<Self, StoreError> {
        let refused = |error: RedisError| StoreError::Refused(format!("store.url: {error}"));
        let info = settings.url.as_str().into_connection_info().map_err(refused)?;
        // The third version of the protocol lets us notice at once that the server has closed the connection.
        let protocol = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = info.set_redis_settings(protocol).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let address = info.addr().to_string();
        let timeout = Duration::from_millis(settings.timeout_ms.max(1));
        let link = Self { info, tls: settings.tls.clone(), address, timeout, state: Mutex::default() };
        link.client(None)?;
        Ok(link)
    }

    /// One round trip. The answers as they came; see [`Link::checked`].
    pub(super) async fn send(&self, commands: &Pipeline) -> Result<Vec<Value>, StoreError> {
        let deadline = Instant::now() + self.timeout;
        for _ in 0..HOPS {
            let answers = self.exchange(commands, deadline).await?;
            // A node that has not got the keys has done nothing.
            let Some(node) = answers.iter().find_map(moved_to) else { return Ok(answers) };
            self.go_to(node).await?;
        }
        Err(StoreError::Unreachable(format!("{}: sent from node to node", self.address)))
    }

    async fn exchange(&self, commands: &Pipeline, deadline: Instant) -> Result<Vec<Value>, StoreError> {
        let mut session = self.session(deadline).await?;
        let count = commands.cmd_iter().count();
        let answers = match timeout_at(deadline, session.connection.req_packed_commands(commands, 0, count)).await {
            Ok(Ok(answers)) if !answers.iter().any(is_of_no_more_use) => return Ok(answers),
            Ok(Ok(answers)) => Ok(answers),
            Ok(Err(error)) => Err(self.explain(error)),
            Err(_) => Err(StoreError::TimedOut(self.timeout_ms())),
        };
        session.lost.store(true, Ordering::Relaxed);
        answers
    }

    /// What connects to the server of the URL, or to another address, with what the files of TLS hold now.
    fn client(&self, address: Option<ConnectionAddr>) -> Result<Client, StoreError> {
        let info = match address {
            Some(address) => self.info.clone().set_addr(address),
            None => self.info.clone(),
        };
        if self.tls.is_empty() {
            return Client::open(info).map_err(|error| self.explain(error));
        }
        let Credentials { authorities, identity } = Credentials::read(&self.tls, TLS).map_err(StoreError::Refused)?;
        let client_tls = identity.map(|identity| {
            let Identity { certificates, key } = identity;
            ClientTlsConfig { client_cert: certificates, client_key: key }
        });
        Client::build_with_tls(info, TlsCertificates { client_tls, root_cert: authorities })
            .map_err(|error| self.explain(error))
    }

    /// From now on, to the node of a cluster at this address.
    async fn go_to(&self, (host, port): (String, u16)) -> Result<(), StoreError> {
        let address = match self.info.addr() {
            ConnectionAddr::Tcp(known, _) => {
                ConnectionAddr::Tcp(if host.is_empty() { known.clone() } else { host }, port)
            }
            ConnectionAddr::TcpTls { host: known, insecure, tls_params, .. } => ConnectionAddr::TcpTls {
                host: if host.is_empty() { known.clone() } else { host },
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            other => other.clone(),
        };
        let mut state = self.state.lock().await;
        (state.session, state.moved) = (None, Some(address));
        Ok(())
    }

    /// The answer, or the error that the server answered.
    pub(super) fn checked(&self, answer: Value) -> Result<Value, StoreError> {
        answer.extract_error().map_err(|error| self.explain(error))
    }

    async fn session(&self, deadline: Instant) -> Result<Session, StoreError> {
        let mut state = timeout_at(deadline, self.state.lock()).await.map_err(|_| self.silent())?;
        if let Some(session) = state.session.as_ref().filter(|session| !session.lost.load(Ordering::Relaxed)) {
            return Ok(session.clone());
        }
        state.session = None;
        if let Some((_, error)) = state.failed.as_ref().filter(|(at, _)| at.elapsed() < PAUSE) {
            return Err(error.clone());
        }
        let lost = Arc::new(AtomicBool::new(false));
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_push_sender(on_disconnect(lost.clone()));
        let client = self.client(state.moved.clone())?;
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        let connected = match timeout_at(deadline, connecting).await {
            Ok(connected) => connected.map_err(|error| match tls::explain_hang_up(&error, TLS) {
                Some(why) if self.is_tls() && self.fault_of_tls(&error).is_none() => {
                    StoreError::Unreachable(format!("{}: {why}", self.address))
                }
                _ if error.kind() == ErrorKind::InvalidClientConfig => self.explain(error),
                _ => match self.explain(error) {
                    // A password, a database, or no Redis at all: nothing can be asked of it until somebody has changed that.
                    StoreError::Refused(why) => {
                        let error = StoreError::Unreachable(why);
                        // It may have been away before, of which enough was said.
                        if state.failed.as_ref().is_none_or(|(_, before)| *before != error) {
                            warn!(%error, "the store takes no connection");
                        }
                        error
                    }
                    other => other,
                },
            }),
            Err(_) => Err(self.silent()),
        };
        match connected {
            Ok(connection) => {
                let session = Session { connection, lost };
                (state.session, state.failed) = (Some(session.clone()), None);
                Ok(session)
            }
            Err(error) => {
                // The node may be gone for good: next time, ask the one that the URL names.
                (state.moved, state.failed) = (None, Some((Instant::now(), error.clone())));
                Err(error)
            }
        }
    }

    fn timeout_ms(&self) -> u64 {
        u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX)
    }

    fn silent(&self) -> StoreError {
        let hint = if self.is_tls() { ": is that the port for TLS?" } else { "" };
        StoreError::Unreachable(format!("{}: no connection within {} ms{hint}", self.address, self.timeout_ms()))
    }

    fn is_tls(&self) -> bool {
        matches!(self.info.addr(), ConnectionAddr::TcpTls { .. })
    }

    fn fault_of_tls(&self, error: &RedisError) -> Option<String> {
        match (self.info.addr(), error.kind()) {
            (ConnectionAddr::TcpTls { host, .. }, ErrorKind::Io) => tls::explain(error, TLS, host),
            _ => None,
        }
    }

    fn explain(&self, error: RedisError) -> StoreError {
        if let Some(why) = self.fault_of_tls(&error) {
            return StoreError::Unreachable(format!("{}: {why}", self.address));
        }
        let text = format!("{}: {error}", self.address);
        match error.kind() {
            ErrorKind::Io => StoreError::Unreachable(text),
            ErrorKind::Server(kind) if is_away(kind) => StoreError::Unreachable(text),
            _ => match error.code() {
                Some("OOM" | "MISCONF") => StoreError::Full(text),
                // Redis 6 wraps what failed inside a script into an `ERR`.
                _ if text.contains("OOM command not allowed") => StoreError::Full(text),
                _ if text.contains(READ_ONLY) => StoreError::Unreachable(text),
                Some("NOREPLICAS" | "BUSY") => StoreError::Unreachable(text),
                _ => StoreError::Refused(text),
            },
        }
    }
}

/// Whether the server is there but cannot serve now, or is no longer the one that can.
fn is_away(kind: ServerErrorKind) -> bool {
    matches!(
        kind,
        ServerErrorKind::Ask
            | ServerErrorKind::BusyLoading
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::TryAgain
    )
}

/// How a server that is a replica by now refuses to write, wherever in the answer Redis 6 puts it.
const READ_ONLY: &str = "READONLY You can't write";

/// After a fail-over the same address may lead to another server: connect anew.
fn is_of_no_more_use(answer: &Value) -> bool {
    let Value::ServerError(error) = answer else { return false };
    error.kind() == Some(ServerErrorKind::ReadOnly) || error.details().is_some_and(|text| text.contains(READ_ONLY))
}

/// Host, empty for the same one, and port of the node that has the keys.
fn moved_to(answer: &Value) -> Option<(String, u16)> {
    match answer {
        Value::ServerError(error) if error.kind() == Some(ServerErrorKind::Moved) => {
            let (host, port) = error.details()?.split_ascii_whitespace().nth(1)?.rsplit_once(':')?;
            Some((host.to_owned(), port.parse().ok()?))
        }
        _ => None,
    }
}

pub(super) fn is_no_script(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::NoScript))
}

fn on_disconnect(lost: Arc<AtomicBool>) -> impl Fn(PushInfo) -> Result<(), RedisError> + Send + Sync + 'static {
    move |push| {
        if push.kind == PushKind::Disconnection {
            lost.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

pub(super) fn unexpected(what: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("unexpected answer: {what}"))
}

pub(super) fn array(answer: Value) -> Result<Vec<Value>, StoreError> {
    match answer {
        Value::Array(values) => Ok(values),
        other => Err(unexpected(format_args!("{} for an array", kind(&other)))),
    }
}

pub(super) fn bytes(answer: Value) -> Result<Vec<u8>, StoreError> {
    optional_bytes(answer)?.ok_or_else(|| unexpected("nothing for a text"))
}

pub(super) fn optional_bytes(answer: Value) -> Result<Option<Vec<u8>>, StoreError> {
    match answer {
        Value::BulkString(bytes) => Ok(Some(bytes)),
        Value::SimpleString(text) => Ok(Some(text.into_bytes())),
        Value::Nil => Ok(None),
        other => Err(unexpected(format_args!("{} for a text", kind(&other)))),
    }
}

/// What came, without its content: that may be anybody's data.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::BulkString(_) | Value::SimpleString(_) | Value::VerbatimString { .. } => "a text",
        Value::Okay => "OK",
        Value::Array(_) | Value::Set(_) => "an array",
        Value::Map(_) => "a map",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_became_a_replica_is_left_whichever_version_says_so() {
        for (answer, is_left) in [
            ("-READONLY You can't write against a read only replica.\r\n", true),
            ("-READONLY You can't write against a read only replica. script: 1f, on @user_script:3.\r\n", true),
            (
                "-ERR Error running script (call to f_1f): @user_script:3: -READONLY You can't write against a read only replica.\r\n",
                true,
            ),
            ("-ERR Error running script (call to f_1f): @user_script:3: user_script:3: attempt to index\r\n", false),
            ("-LOADING Redis is loading the dataset in memory\r\n", false),
            ("+OK\r\n", false),
        ] {
            let answer = redis::parse_redis_value(answer.as_bytes()).unwrap();
            assert_eq!(is_of_no_more_use(&answer), is_left, "{answer:?}");
            let Err(error) = answer.extract_error() else { continue };
            let settings = StoreSettings {
                url: "redis://127.0.0.1:1".into(),
                ..crate::process::settings::Settings::default().store
            };
            let is_away = matches!(Link::new(&settings).unwrap().explain(error), StoreError::Unreachable(_));
            assert!(is_away || !is_left);
        }
    }
}
