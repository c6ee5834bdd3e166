//! `amqps://` and `rediss://` against real servers that speak TLS: who is taken, who is not, and whether the sentence says why.
//!
//! RabbitMQ and Redis are started here, on ports and in folders of their own. A test whose server is not installed says that it is
//! skipped, which is a failure when `TASKYARD_TEST_REQUIRE_SERVERS` is 1.

#[path = "tls/files.rs"]
mod files;
#[path = "tls/rabbitmq.rs"]
mod rabbitmq;
#[path = "store_redis/server.rs"]
#[allow(dead_code)]
mod server;

use taskyard_shared::Topology;
use taskyard_shared::broker::rabbitmq::RabbitMq;
use taskyard_shared::broker::{Broker, BrokerError, Message, QueueSpec, Verdict};
use taskyard_shared::process::settings::{BrokerSettings, QueueType, Settings, StoreSettings, TlsSettings};
use taskyard_shared::store::redis::RedisStore;
use taskyard_shared::store::{Store, StoreError, contract};

use self::files::Files;
use self::rabbitmq::{LOGIN, Node};
use self::server::Server;
use self::server::ports::free_port;

fn broker(url: &str, tls: TlsSettings) -> BrokerSettings {
    let broker = Settings::default().broker;
    BrokerSettings { url: url.to_owned(), queue_type: QueueType::Classic, tls, ..broker }
}

async fn refused_broker(url: &str, tls: TlsSettings) -> String {
    let error = RabbitMq::connect(&broker(url, tls)).await.err().unwrap_or_else(|| panic!("{url} is connected to"));
    assert!(matches!(error, BrokerError::Unreachable(_) | BrokerError::Refused(_)), "{error:?}");
    let text = error.to_string();
    assert!(!text.contains("s3cret"), "{text}");
    text
}

async fn a_message_goes_round(broker: &RabbitMq) {
    let queue = format!("tls-{}", taskyard_shared::TaskId::new().0);
    broker.declare(&[QueueSpec::exclusive(queue.clone())]).await.unwrap();
    let mut consumer = broker.consume(&queue, 1).await.unwrap();
    // More than one record of TLS.
    let body = vec![7; 100_000];
    let published = broker.publish(vec![Message::to_queue(queue, body.clone())]).await;
    assert!(published.iter().all(Result::is_ok), "{published:?}");
    let deliveries = consumer.next_batch(1).await.unwrap();
    assert_eq!(deliveries[0].body, body);
    consumer.acker().settle(vec![deliveries[0].tag], Verdict::Ack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_taken_for_its_certificate_alone() {
    let files = Files::new();
    let Some(node) = Node::started(&files).await else {
        return;
    };
    let url = format!("amqps://{LOGIN}@localhost:{}/%2f", node.tls_port);
    let known = || files.tls("ca.pem", "client");

    let connected = RabbitMq::connect(&broker(&url, known())).await.unwrap();
    a_message_goes_round(&connected).await;
    connected.close().await;

    let by_address = format!("amqps://{LOGIN}@127.0.0.1:{}/%2f", node.tls_port);
    let plain_port = format!("amqps://{LOGIN}@localhost:{}/%2f", node.plain_port);
    let plain_url = format!("amqp://{LOGIN}@localhost:{}/%2f", node.tls_port);
    let ca = "broker.tls.ca_file";
    for (url, tls, words) in [
        (&by_address, known(), ["not for the name 127.0.0.1", "certificate"]),
        (&url, files.tls("other.pem", "client"), ["not trusted here", ca]),
        (&url, files.tls("", "client"), ["not trusted here", ca]),
        (&url, files.tls("ca.pem", ""), ["client's certificate", "broker.tls.cert_file"]),
        (&url, files.tls("ca.pem", "stranger"), ["client's certificate", "broker.tls.cert_file"]),
        (&plain_port, known(), ["is that the port for", "TLS"]),
        (&plain_url, TlsSettings::default(), ["speaks TLS", "amqps://"]),
        (&url, files.tls("none.pem", "client"), ["cannot be read", ca]),
        (&url, files.tls("nonsense.pem", "client"), ["holds no certificate", ca]),
        (
            &url,
            TlsSettings { key_file: files.path("ca.pem"), ..known() },
            ["holds no private key", "broker.tls.key_file"],
        ),
    ] {
        let text = refused_broker(url, tls).await;
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    }
}

/// A certificate is looked at before anything is said, so that any server with one will do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_is_said_to_be_one() {
    let files = Files::new();
    let Some(server) = redis(&files, "expired", "no").await else { return };
    let text =
        refused_broker(&format!("amqps://u:s3cret@localhost:{}/%2f", server.port), files.tls("ca.pem", "")).await;
    assert!(text.contains("the server's certificate has expired"), "{text}");
    let text = refused_store(&format!("rediss://:s3cret@localhost:{}/0", server.port), files.tls("ca.pem", "")).await;
    assert!(text.contains("the server's certificate has expired"), "{text}");
}

async fn redis(files: &Files, certificate: &str, asks: &str) -> Option<Server> {
    let [pem, key, ca] = [format!("{certificate}.pem"), format!("{certificate}.key"), "ca.pem".to_owned()];
    Server::started_with_tls_asking(&files.text(&pem), &files.text(&key), &files.text(&ca), asks).await
}

fn store(url: &str, tls: TlsSettings) -> Result<RedisStore, StoreError> {
    let settings = StoreSettings { url: url.to_owned(), tls, ..Settings::default().store };
    RedisStore::connect(&settings, &Topology::new("tls"), contract::LASTING)
}

async fn refused_store(url: &str, tls: TlsSettings) -> String {
    let error = match store(url, tls) {
        Ok(store) => store.ping().await.err().unwrap_or_else(|| panic!("{url} is connected to")),
        Err(error) => error,
    };
    assert!(matches!(error, StoreError::Unreachable(_) | StoreError::Refused(_)), "{error:?}");
    let text = error.to_string();
    assert!(!text.contains("s3cret"), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_taken_for_its_certificate_alone() {
    let files = Files::new();
    let Some(server) = redis(&files, "server", "yes").await else { return };
    let plain = Server::started(&[]).await.unwrap();
    let url = format!("rediss://localhost:{}/0", server.port);
    let known = || files.tls("ca.pem", "client");

    let connected = store(&url, known()).unwrap();
    connected.put("key", vec![7; 100_000].into()).await.unwrap();
    assert_eq!(connected.fetch("key").await.unwrap().unwrap().len(), 100_000);

    let by_address = format!("rediss://127.0.0.1:{}/0", server.port);
    let plain_port = format!("rediss://localhost:{}/0", plain.port);
    let ca = "store.tls.ca_file";
    for (url, tls, words) in [
        (&by_address, known(), ["not for the name 127.0.0.1", "certificate"]),
        (&url, files.tls("other.pem", "client"), ["not trusted here", ca]),
        (&url, files.tls("", "client"), ["not trusted here", ca]),
        (&url, files.tls("ca.pem", ""), ["client's certificate", "store.tls.cert_file"]),
        (&url, files.tls("ca.pem", "stranger"), ["client's certificate", "store.tls.cert_file"]),
        (&plain_port, known(), ["is that the port for", "TLS"]),
        (&url, files.tls("none.pem", "client"), ["cannot be read", ca]),
        (&url, files.tls("nonsense.pem", "client"), ["holds no certificate", ca]),
    ] {
        let text = refused_store(url, tls).await;
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    }
}

/// What a file holds counts from the next connection on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_changed_by_changing_its_file() {
    let files = Files::new();
    let Some(server) = redis(&files, "server", "yes").await else { return };
    let copy = |from: &str, to: &str| std::fs::copy(files.path(from), files.path(to)).unwrap();
    let both = |from: &str| ["pem", "key"].map(|end| copy(&format!("{from}.{end}"), &format!("mine.{end}")));
    both("stranger");
    let store = store(&format!("rediss://localhost:{}/0", server.port), files.tls("ca.pem", "mine")).unwrap();
    store.ping().await.unwrap_err();
    both("client");
    server::eventually("it is taken", || async { store.ping().await.ok() }).await;
}
