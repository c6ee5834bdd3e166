//! Where the broker is and how it is reached: the URL taken apart, the socket, and the version that the broker tells.
//!
//! lapin keeps the server's properties to itself, and the version decides the queue type, so [`Endpoint::greet`] reads
//! them from a first connection of its own that goes no further than the broker's greeting.

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_rs::traits::Reactor;
use async_rs::{Runtime, Tokio};
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use lapin::protocol::{AMQPClass, connection::AMQPMethod, parse_class};
use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, ErrorKind};

use super::errors::{self, timed_out};
use super::traffic::{CountedStream, SLACK_BYTES, runtime};
use crate::broker::{BrokerError, Operations};
use crate::process::settings::{BrokerSettings, TlsSettings};
use crate::process::tls::{self, Credentials, Identity};

/// Where the settings of TLS stand.
const TLS: &str = "broker.tls";

const PROTOCOL_HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";
const FRAME_HEADER_BYTES: usize = 7;
const METHOD_FRAME: u8 = 1;
/// What a server that speaks TLS begins its answer with when it does not understand.
const TLS_ALERT: u8 = 21;
/// A greeting is some 500 bytes.
const MAX_GREETING_BYTES: usize = 64 * 1024;

/// What the broker says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Greeting {
    pub product: String,
    pub version: String,
}

/// Frames are no larger, unless the URL says so: each connection has buffers for 64 of them, and a larger message takes several.
const FRAME_BYTES: u32 = 32 << 10;

/// The same where messages come in, as large as RabbitMQ lets others have them. The headers of a message are one frame, RabbitMQ hands
/// it on as it came, and lapin ends the connection at one that is larger than was asked for: at every try, so that a single message
/// would stop whoever reads its queue for good.
const RECEIVED_FRAME_BYTES: u32 = 128 << 10;

/// No `Debug`: the URI would print its password.
pub(super) struct Endpoint {
    uri: AMQPUri,
    tls: TlsSettings,
    connect_limit: Duration,
    operations: Arc<Operations>,
    /// Messages of others come in on it.
    is_receiving: bool,
}

impl Endpoint {
    /// Of a connection on which messages go out.
    pub(super) fn new(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        Self::with_frames(settings, FRAME_BYTES, false)
    }

    /// Of one on which messages of others come in.
    pub(super) fn receiving(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        Self::with_frames(settings, RECEIVED_FRAME_BYTES, true)
    }

    fn with_frames(settings: &BrokerSettings, frame_bytes: u32, is_receiving: bool) -> Result<Self, BrokerError> {
        // The parser's own error can quote the URL, so it is not passed on.
        let unreadable = || BrokerError::Refused("broker.url is not amqp://user:password@host:port/vhost".to_owned());
        let mut uri: AMQPUri = settings.url.parse().map_err(|_| unreadable())?;
        if uri.authority.host.is_empty() {
            return Err(unreadable());
        }
        if uri.vhost.is_empty() {
            "/".clone_into(&mut uri.vhost);
        }
        uri.query.heartbeat = Some(settings.heartbeat_s);
        let frames = uri.query.frame_max.get_or_insert(frame_bytes);
        // 0 is what the broker says.
        if is_receiving && *frames != 0 {
            *frames |= SLACK_BYTES;
        }
        if uri.scheme == AMQPScheme::AMQPS {
            connector(&settings.tls)?;
        }
        let connect_limit = Duration::from_millis(settings.connect_timeout_ms);
        Ok(Self { uri, tls: settings.tls.clone(), connect_limit, operations: Arc::default(), is_receiving })
    }

    /// Host and port, for messages.
    pub(super) fn address(&self) -> String {
        format!("{}:{}", self.uri.authority.host, self.uri.authority.port)
    }

    /// Counts there instead of by itself.
    pub(super) fn counting(mut self, operations: Arc<Operations>) -> Self {
        self.operations = operations;
        self
    }

    /// Of all its connections together.
    pub(super) fn operations(&self) -> Arc<Operations> {
        self.operations.clone()
    }

    pub(super) fn connect_limit(&self) -> Duration {
        self.connect_limit
    }

    /// Reads product and version from the broker's greeting.
    pub(super) async fn greet(&self) -> Result<Greeting, BrokerError> {
        match tokio::time::timeout(self.connect_limit, self.read_greeting()).await {
            Ok(greeting) => greeting,
            Err(_) => Err(timed_out(self.connect_limit)),
        }
    }

    async fn read_greeting(&self) -> Result<Greeting, BrokerError> {
        let unreachable = |error: std::io::Error| self.unreachable(&self.io_text(&error));
        let foreign = || self.unreachable("what answers there does not speak AMQP 0-9-1");
        let runtime = lapin::runtime::default_runtime().map_err(|error| self.unreachable(&error.to_string()))?;
        let mut stream = open(&self.uri, &self.tls, &runtime).await.map_err(unreachable)?;
        stream.write_all(PROTOCOL_HEADER).await.map_err(unreachable)?;
        stream.flush().await.map_err(unreachable)?;

        let mut header = [0; FRAME_HEADER_BYTES];
        stream.read_exact(&mut header).await.map_err(unreachable)?;
        if header[0] == TLS_ALERT {
            return Err(
                self.unreachable("what answers there speaks TLS, and broker.url does not: write it with amqps://")
            );
        }
        let length = u32::from_be_bytes([header[3], header[4], header[5], header[6]]) as usize;
        if header[0] != METHOD_FRAME || length > MAX_GREETING_BYTES {
            return Err(foreign());
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.map_err(unreachable)?;
        match parse_class(payload.as_slice()) {
            Ok((_, AMQPClass::Connection(AMQPMethod::Start(start)))) => Ok(Greeting {
                product: property(&start.server_properties, "product"),
                version: property(&start.server_properties, "version"),
            }),
            _ => Err(foreign()),
        }
    }

    /// One try at a connection, under the connect time-out.
    pub(super) async fn connect(&self, name: &str) -> Result<(Connection, Socket), BrokerError> {
        let socket = Socket::default();
        let kept = socket.clone();
        let unfinished = CutOnDrop(Some(socket));
        let limit = self.connect_limit;
        let options = ConnectionProperties::default().with_connection_name(name.into());
        let plain = lapin::runtime::default_runtime().map_err(|error| self.connect_error(&error))?;
        let operations = self.operations.clone();
        let (tls, is_receiving) = (self.tls.clone(), self.is_receiving);
        let opening = Connection::connector(
            self.uri.clone(),
            runtime(operations.clone()),
            // This runs on lapin's own thread, which goes on when the caller has given up: hence the limit here too.
            async move |uri, _| {
                let stream = tokio::time::timeout(limit, open(&uri, &tls, &plain))
                    .await
                    .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
                match &stream {
                    AsyncTcpStream::Plain(plain) => kept.keep(plain.get_ref().as_fd())?,
                    AsyncTcpStream::Rustls(tls) => kept.keep(tls.get_ref().0.get_ref().as_fd())?,
                    _ => {}
                }
                let stream = CountedStream::new(stream, operations.clone());
                Ok(AsyncTcpStream::Plain(if is_receiving { stream.with_slack() } else { stream }))
            },
            options,
        );
        match tokio::time::timeout(self.connect_limit, opening).await {
            Ok(Ok(connection)) => Ok((connection, unfinished.finish())),
            Ok(Err(error)) => Err(self.connect_error(&error)),
            Err(_) => Err(timed_out(self.connect_limit)),
        }
    }

    fn unreachable(&self, detail: &str) -> BrokerError {
        BrokerError::Unreachable(format!("{}: {detail}", self.address()))
    }

    fn io_text(&self, error: &std::io::Error) -> String {
        let explained = match self.uri.scheme {
            AMQPScheme::AMQPS => {
                let explained = tls::explain(error, TLS, &self.uri.authority.host);
                explained.or_else(|| tls::explain_hang_up(error, TLS))
            }
            AMQPScheme::AMQP => None,
        };
        explained.unwrap_or_else(|| error.to_string())
    }

    fn connect_error(&self, error: &lapin::Error) -> BrokerError {
        let text = errors::text(error);
        match (errors::code(error), error.kind()) {
            (Some(errors::ACCESS_REFUSED), _) => BrokerError::Refused(format!(
                "user {:?} may not log in at {}: {text}",
                self.uri.authority.userinfo.username,
                self.address()
            )),
            (Some(errors::NOT_ALLOWED), _) => BrokerError::Refused(format!(
                "virtual host {:?} cannot be used at {}: {text}",
                self.uri.vhost,
                self.address()
            )),
            (None, ErrorKind::IOError(error)) => self.unreachable(&self.io_text(error)),
            _ => self.unreachable(&text),
        }
    }
}

type Plain = Runtime<Tokio>;

/// A connection's stream, with TLS as the URI says.
async fn open(
    uri: &AMQPUri,
    tls: &TlsSettings,
    runtime: &Plain,
) -> std::io::Result<AsyncTcpStream<<Tokio as Reactor>::TcpStream>> {
    let host = &uri.authority.host;
    let stream = AsyncTcpStream::connect(runtime, runtime.to_socket_addrs((host.clone(), uri.authority.port))).await?;
    match uri.scheme {
        AMQPScheme::AMQP => Ok(stream),
        AMQPScheme::AMQPS => stream.into_rustls(&connector(tls).map_err(std::io::Error::other)?, host).await,
    }
}

/// What the settings trust, and show.
fn connector(settings: &TlsSettings) -> Result<RustlsConnector, BrokerError> {
    let Credentials { authorities, identity } = Credentials::read(settings, TLS).map_err(BrokerError::Refused)?;
    let refused = |error: std::io::Error| BrokerError::Refused(format!("{TLS}: {error}"));
    let config = match authorities {
        Some(pem) => {
            let trusted = tls::certificates(&pem).unwrap_or_default();
            RustlsConnectorConfig::default().with_parsable_certificates(trusted)
        }
        None => RustlsConnectorConfig::new_with_native_certs().map_err(refused)?,
    };
    let identity = identity
        .and_then(|Identity { certificates, key }| Some((tls::certificates(&certificates)?, tls::private_key(&key)?)));
    match identity {
        Some((certificates, key)) => config.connector_with_single_cert(certificates, key),
        None => config.connector_with_no_client_auth(),
    }
    .map_err(refused)
}

fn property(table: &FieldTable, name: &str) -> String {
    match table.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        Some(AMQPValue::ShortString(text)) => text.to_string(),
        _ => String::from("unknown"),
    }
}

/// A second handle on a connection's socket, which ends it whatever lapin is waiting for.
///
/// lapin waits for ever on a peer that has gone silent when it is in the handshake or closing; each such wait would
/// keep a thread, a socket and its buffers.
#[derive(Clone, Default)]
pub(super) struct Socket(Arc<Mutex<SocketState>>);

#[derive(Default)]
struct SocketState {
    stream: Option<std::net::TcpStream>,
    cut: bool,
}

impl Socket {
    fn keep(&self, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        let stream = std::net::TcpStream::from(fd.try_clone_to_owned()?);
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.cut {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        state.stream = Some(stream);
        Ok(())
    }

    pub(super) fn cut(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.cut = true;
        if let Some(stream) = state.stream.take() {
            // It fails only when the peer was faster.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Ends the socket of a connection that did not come about, be it that the caller stopped waiting.
struct CutOnDrop(Option<Socket>);

impl CutOnDrop {
    fn finish(mut self) -> Socket {
        self.0.take().unwrap_or_default()
    }
}

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            socket.cut();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> BrokerSettings {
        BrokerSettings {
            url: url.to_owned(),
            namespace: "taskyard".to_owned(),
            queue_type: crate::process::settings::QueueType::Auto,
            heartbeat_s: 7,
            connect_timeout_ms: 1000,
            publish_timeout_ms: 1000,
            in_flight: 1,
            tls: TlsSettings::default(),
        }
    }

    #[test]
    fn an_unreadable_url_is_refused_without_being_quoted() {
        for url in [
            "amqp:secret",
            "http://user:secret@host",
            "secret",
            "amqp://u:secret@host:port",
            "amqp://u:secret@h?heartbeat=x",
        ] {
            let error = Endpoint::new(&settings(url)).err().unwrap();
            assert!(!error.is_transient());
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_heartbeat_is_the_settings_and_no_vhost_is_the_default_one() {
        for (url, vhost) in [("amqp://h", "/"), ("amqp://h/", "/"), ("amqp://h/%2f", "/"), ("amqp://h/yard", "yard")] {
            let endpoint = Endpoint::new(&settings(url)).ok().unwrap();
            assert_eq!(endpoint.uri.vhost, vhost, "{url}");
            assert_eq!(endpoint.uri.query.heartbeat, Some(7));
        }
    }

    #[test]
    fn frames_are_small_where_messages_go_out_unless_the_url_says_otherwise() {
        for (url, out, back) in [
            ("amqp://h", 32_768, 131_072),
            ("amqp://h?frame_max=262144", 262_144, 262_144),
            ("amqp://h?frame_max=0", 0, 0),
        ] {
            let endpoints = [Endpoint::new(&settings(url)), Endpoint::receiving(&settings(url))];
            let frames = endpoints.map(|endpoint| endpoint.ok().unwrap().uri.query.frame_max);
            let slack = if back == 0 { 0 } else { SLACK_BYTES };
            assert_eq!(frames, [Some(out), Some(back + slack)], "{url}");
        }
    }
}
