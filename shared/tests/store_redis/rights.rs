//! The user of `deploy/redis`: what it may do is enough for a yard, and nothing that reaches beyond it is among it.

use std::sync::Arc;

use redis::ErrorKind;
use taskyard_shared::store::redis::RedisStore;
use taskyard_shared::store::{Store, contract};

use super::server::{Server, command};
use super::settings;

/// The rules of a user, as the server of `deploy/redis` is started with them.
fn rules(user: &str) -> Vec<&'static str> {
    let start = include_str!("../../../deploy/redis/start.sh");
    let line = start.lines().find_map(|line| line.strip_prefix(&format!("user {user} ")));
    line.unwrap_or_else(|| panic!("deploy/redis/start.sh has no user {user}")).split_whitespace().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_user_of_the_stack_reaches_the_yards_keys_and_nothing_else() {
    // What a server does not do for anybody by default is left to the rights here.
    let options = ["--enable-debug-command", "yes", "--enable-module-command", "yes"];
    let Some(server) = Server::started(&options).await else { return };
    server.command(&["SET", "foreign", "secret"]).await;
    server.command(&["SET", "taskyardx", "secret"]).await;
    for user in ["taskyard", "default"] {
        let rules = rules(user).into_iter().map(|rule| if rule.starts_with('>') { ">pass" } else { rule });
        let words: Vec<&str> = ["ACL", "SETUSER", user, "reset"].into_iter().chain(rules).collect();
        server.command(&words).await;
    }
    let url = format!("redis://taskyard:pass@127.0.0.1:{}/0", server.port);
    let topology = taskyard_shared::Topology::new("taskyard");
    let store = RedisStore::connect(&settings(&url, 30_000), &topology, contract::LASTING).expect("a store");
    let store: Arc<dyn Store> = Arc::new(store);
    contract::answers_are_those_of_a_simple_model(store.clone()).await;
    contract::lists_page_newest_first(store.clone()).await;
    contract::workflows_are_listed_newest_first_and_keep_their_places(store.clone()).await;
    contract::small_values_are_kept(store.clone()).await;
    contract::it_says_what_it_is(store).await;

    for denied in [
        // Of others.
        "GET foreign",
        "GET taskyardx",
        "SET foreign mine",
        "DEL foreign",
        "EXPIRE foreign 1",
        "DUMP foreign",
        "OBJECT ENCODING foreign",
        "RENAME taskyard:a foreign",
        "COPY foreign taskyard:a",
        "SUNIONSTORE taskyard:a foreign",
        "PUBLISH foreign x",
        "SUBSCRIBE foreign",
        // Of everybody.
        "FLUSHALL",
        "FLUSHDB",
        "SWAPDB 0 1",
        "KEYS *",
        "MIGRATE 127.0.0.1 1 foreign 0 1",
        "SORT taskyard:a BY foreign",
        // Of the server.
        "CONFIG GET requirepass",
        "CONFIG SET dir /",
        "ACL LIST",
        "ACL SETUSER taskyard +@all",
        "CLIENT LIST",
        "CLIENT KILL ID 1",
        "DEBUG OBJECT foreign",
        "MONITOR",
        "SAVE",
        "BGREWRITEAOF",
        "SHUTDOWN NOSAVE",
        "REPLICAOF NO ONE",
        "MODULE LOAD x.so",
        "SCRIPT FLUSH",
        "SCRIPT KILL",
        "FUNCTION FLUSH",
        "FUNCTION DELETE x",
        "FUNCTION LIST",
        "SLOWLOG GET",
        "LATENCY RESET",
    ] {
        let words: Vec<&str> = denied.split(' ').collect();
        let failure = command(&url, &words).await.err().unwrap_or_else(|| panic!("{denied} is allowed"));
        assert_eq!(failure.kind(), ErrorKind::Server(redis::ServerErrorKind::NoPerm), "{denied}: {failure}");
    }
    // A script has no more rights than whoever runs it.
    for script in ["return redis.call('GET', 'foreign')", "return redis.call('FLUSHALL')"] {
        let failure = command(&url, &["EVAL", script, "0"]).await.expect_err("a script reaches further");
        // Redis 7.0 says it in words of its own.
        let said = failure.to_string();
        assert!(said.contains("ACL") || said.contains("executing the script can't"), "{script}: {said}");
    }
    command(&server.url(), &["PING"]).await.expect_err("nobody is the user `default`");
    command(&url, &["PING"]).await.expect("and the server goes on");
}
