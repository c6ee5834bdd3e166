//! How a process is stopped, by real signals to this one and by another source.

use std::process::Command;
use std::time::Duration;

use futures_util::stream;
use taskyard_shared::process::exit::Exit;
use taskyard_shared::process::shutdown::Shutdown;
use tokio_util::sync::CancellationToken;

async fn soon(what: &CancellationToken) {
    tokio::time::timeout(Duration::from_secs(10), what.cancelled()).await.expect("waited too long");
}

fn signal(name: &str) {
    let sent = Command::new("kill").args(["-s", name, &std::process::id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[tokio::test]
async fn the_first_signal_drains_and_the_second_ends() {
    let shutdown = Shutdown::on_signals().unwrap();
    assert!(!shutdown.drain.is_cancelled());
    signal("TERM");
    soon(&shutdown.drain).await;
    assert!(!shutdown.now.is_cancelled());
    signal("INT");
    soon(&shutdown.now).await;
}

#[tokio::test]
async fn one_request_from_elsewhere_only_drains() {
    let shutdown = Shutdown::on(stream::iter(["all done"]));
    soon(&shutdown.drain).await;
    tokio::task::yield_now().await;
    assert!(!shutdown.now.is_cancelled());
    shutdown.end_now();
    assert!(shutdown.now.is_cancelled());
}

#[test]
fn exit_codes_are_those_of_the_contract() {
    use Exit::*;
    assert_eq!([Ok, Failed, Usage, NotReachable, NotFound, TimedOut].map(Exit::code), [0, 1, 2, 3, 4, 5]);
}
