//! What stands between a role and a server, and can cut, swallow and delay: a relay of TCP, one for each role and server.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const CHUNK_BYTES: usize = 64 << 10;

/// What becomes of bytes, in both directions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weather {
    Clear,
    /// Nothing comes through, and nobody is told: what was sent arrives when it is over.
    Hole,
    /// Each piece takes this much longer.
    Delay(Duration),
}

#[derive(Clone, Copy)]
struct State {
    weather: Weather,
    /// Connections opened before the last cut are closed.
    cuts: u64,
}

/// Listens on a port of its own until it is dropped.
pub struct Relay {
    pub port: u16,
    state: Arc<watch::Sender<State>>,
    accepting: JoinHandle<()>,
}

impl Relay {
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, watched) = watch::channel(State { weather: Weather::Clear, cuts: 0 });
        let accepting = tokio::spawn(async move {
            loop {
                // An error of one connection, such as one that is gone already, is not the listener's.
                if let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(carry(client, target, watched.clone()));
                }
            }
        });
        Self { port, state: Arc::new(state), accepting }
    }

    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    pub fn set(&self, weather: Weather) {
        self.state.send_modify(|state| state.weather = weather);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

/// One connection, until either end closes it or it is cut. A server that is not there looks like one that hangs up.
async fn carry(client: TcpStream, target: u16, mut state: watch::Receiver<State>) {
    let born = state.borrow_and_update().cuts;
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let _latency = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    tokio::select! {
        () = pump(client_reads, server_writes, state.clone()) => {}
        () = pump(server_reads, client_writes, state.clone()) => {}
        _ = state.wait_for(|state| state.cuts != born) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let Ok(length @ 1..) = from.read(&mut chunk).await else { return };
        let Ok(now) = state.wait_for(|state| state.weather != Weather::Hole).await.map(|state| *state) else { return };
        if let Weather::Delay(time) = now.weather {
            tokio::time::sleep(time).await;
        }
        if to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reads, mut writes) = stream.into_split();
                    let _ended = tokio::io::copy(&mut reads, &mut writes).await;
                });
            }
        });
        port
    }

    async fn ask(stream: &mut TcpStream) -> std::io::Result<u8> {
        stream.write_all(b"x").await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn a_relay_carries_swallows_for_a_while_and_cuts() {
        let relay = Relay::start(echo().await).await;
        let mut stream = TcpStream::connect(("127.0.0.1", relay.port)).await.unwrap();
        assert_eq!(ask(&mut stream).await.unwrap(), b'x');

        relay.set(Weather::Hole);
        let nothing = tokio::time::timeout(Duration::from_millis(200), ask(&mut stream)).await;
        assert!(nothing.is_err(), "something came through a hole");
        relay.set(Weather::Clear);
        assert_eq!(stream.read_u8().await.unwrap(), b'x', "what was swallowed arrives");

        relay.set(Weather::Delay(Duration::from_millis(50)));
        let begun = std::time::Instant::now();
        assert_eq!(ask(&mut stream).await.unwrap(), b'x');
        assert!(begun.elapsed() >= Duration::from_millis(100), "there and back");

        relay.cut();
        assert!(ask(&mut stream).await.is_err());
        relay.set(Weather::Clear);
        let mut stream = TcpStream::connect(("127.0.0.1", relay.port)).await.unwrap();
        assert_eq!(ask(&mut stream).await.unwrap(), b'x', "a new connection works");
    }
}
