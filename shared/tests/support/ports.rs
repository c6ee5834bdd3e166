//! Ports for servers that are told where to listen.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below what the system hands out by itself: such a port would be taken by any listener or connection of a test beside
/// this one before the server is there.
const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;

/// A port that is free now, and that no other call in this process gets.
pub fn free_port() -> u16 {
    static CALLS: AtomicU16 = AtomicU16::new(0);
    // Processes beside each other begin far from each other.
    let begin = std::process::id().wrapping_mul(977);
    for _ in 0..COUNT {
        let offset = begin.wrapping_add(CALLS.fetch_add(1, Ordering::Relaxed).into()) % u32::from(COUNT);
        let port = FIRST + u16::try_from(offset).expect("less than COUNT");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port from {FIRST} to {} is free", FIRST + COUNT - 1);
}
