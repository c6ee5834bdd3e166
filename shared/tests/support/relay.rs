//! A relay between a client and a server that behaves as bad networks and bad brokers do: it cuts, swallows and slows
//! what passes, and can speak AMQP to the client in the server's name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Pass,
    /// Connections are taken and stay open, and nothing passes.
    BlackHole,
    /// New connections are ended at once.
    Refuse,
}

#[derive(Clone)]
enum Order {
    Cut,
    /// Bytes for the client, put between two AMQP frames.
    Say(Arc<[u8]>),
}

pub struct Relay {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    orders: broadcast::Sender<Order>,
    accepted: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Relays to `server`, a host and port.
    pub async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mode = watch::Sender::new(Mode::Pass);
        let orders = broadcast::Sender::new(16);
        let (accepted, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let task = tokio::spawn(accept(
            listener,
            server.to_owned(),
            mode.clone(),
            orders.clone(),
            accepted.clone(),
            open.clone(),
        ));
        Self { address, mode, orders, accepted, open, task }
    }

    /// Ends all connections; new ones are relayed.
    pub fn cut(&self) {
        // With no connection there is nothing to cut.
        let _ = self.orders.send(Order::Cut);
    }

    /// Ends all connections and refuses new ones until [`pass`](Self::pass).
    pub fn take_down(&self) {
        self.mode.send_replace(Mode::Refuse);
        self.cut();
    }

    /// From now on bytes vanish in both directions, on old connections and new ones.
    pub fn black_hole(&self) {
        self.mode.send_replace(Mode::BlackHole);
    }

    /// Heals: what was held back goes on, and new connections are relayed.
    pub fn pass(&self) {
        self.mode.send_replace(Mode::Pass);
    }

    /// Tells every client that the broker takes no messages for now: `connection.blocked`.
    pub fn say_blocked(&self) {
        let reason = b"low on memory";
        let mut arguments = vec![u8::try_from(reason.len()).expect("short")];
        arguments.extend(reason);
        self.say(60, &arguments);
    }

    /// Takes that back: `connection.unblocked`.
    pub fn say_unblocked(&self) {
        self.say(61, &[]);
    }

    /// Ends every connection in the server's name, as an operator does: `connection.close`.
    pub fn say_closed(&self) {
        let reason = b"CONNECTION_FORCED - test";
        let mut arguments = 320_u16.to_be_bytes().to_vec();
        arguments.push(u8::try_from(reason.len()).expect("short"));
        arguments.extend(reason);
        arguments.extend([0; 4]);
        self.say(50, &arguments);
    }

    /// A method of AMQP's class `connection`, to every client.
    fn say(&self, method: u16, arguments: &[u8]) {
        let mut frame = vec![1, 0, 0];
        frame.extend(u32::try_from(4 + arguments.len()).expect("short").to_be_bytes());
        frame.extend(10_u16.to_be_bytes());
        frame.extend(method.to_be_bytes());
        frame.extend(arguments);
        frame.push(0xce);
        let _ = self.orders.send(Order::Say(frame.into()));
    }

    /// Connections taken so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Connections that the client has not ended.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn accept(
    listener: TcpListener,
    server: String,
    mode: watch::Sender<Mode>,
    orders: broadcast::Sender<Order>,
    accepted: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
) {
    while let Ok((client, _)) = listener.accept().await {
        accepted.fetch_add(1, Ordering::SeqCst);
        if *mode.borrow() == Mode::Refuse {
            continue;
        }
        open.fetch_add(1, Ordering::SeqCst);
        let (server, mode, orders, open) = (server.clone(), mode.subscribe(), orders.subscribe(), open.clone());
        tokio::spawn(async move {
            relay(client, &server, mode, orders).await;
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn relay(client: TcpStream, server: &str, mode: watch::Receiver<Mode>, mut orders: broadcast::Receiver<Order>) {
    let Ok(upstream) = TcpStream::connect(server).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = upstream.into_split();
    let mut cuts = orders.resubscribe();
    let cut =
        async { while !matches!(cuts.recv().await, Ok(Order::Cut) | Err(broadcast::error::RecvError::Closed)) {} };
    tokio::select! {
        () = cut => {}
        () = upwards(from_client, to_server, mode.clone()) => {}
        () = downwards(from_server, to_client, mode, &mut orders) => {}
    }
}

async fn upwards(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 64 * 1024];
    let mut held = Vec::new();
    loop {
        if *mode.borrow_and_update() != Mode::BlackHole && !held.is_empty() {
            if to.write_all(&held).await.is_err() {
                return;
            }
            held.clear();
        }
        // In a black hole it reads on, so as to notice when the client has gone.
        tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(read @ 1..) => held.extend_from_slice(&buffer[..read]),
                _ => return,
            },
            changed = mode.changed() => if changed.is_err() { return },
        }
    }
}

async fn downwards(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    orders: &mut broadcast::Receiver<Order>,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut frames = Frames::default();
    let mut to_say: Vec<Arc<[u8]>> = Vec::new();
    loop {
        if frames.at_boundary() {
            for words in to_say.drain(..) {
                if to.write_all(&words).await.is_err() {
                    return;
                }
            }
        }
        let read = tokio::select! {
            order = orders.recv() => match order {
                Ok(Order::Say(words)) => {
                    to_say.push(words);
                    continue;
                }
                Ok(Order::Cut) | Err(_) => return,
            },
            read = from.read(&mut buffer) => read.unwrap_or(0),
        };
        // Out of a black hole not even the end of the server comes.
        if mode.wait_for(|mode| *mode != Mode::BlackHole).await.is_err() {
            return;
        }
        if read == 0 {
            return;
        }
        frames.pass(&buffer[..read]);
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// Where in the stream of AMQP frames the server is.
#[derive(Default)]
struct Frames {
    header: Vec<u8>,
    /// Bytes of the frame still to come, its end octet among them.
    left: usize,
}

impl Frames {
    fn at_boundary(&self) -> bool {
        self.left == 0 && self.header.is_empty()
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            if let [_, _, _, a, b, c, d] = self.header[..] {
                self.left = u32::from_be_bytes([a, b, c, d]) as usize + 1;
                self.header.clear();
            }
        }
    }
}
