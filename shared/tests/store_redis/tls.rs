//! `rediss://`: whose certificate is taken.

use std::process::{Command, Stdio};

use taskyard_shared::store::redis::RedisStore;
use taskyard_shared::store::{Store, StoreError, contract};

use super::server::{Server, topology};
use super::settings;

/// Set for the copy of this program that trusts the test's own authority: the trusted ones are read from the
/// environment, which a test cannot change for itself.
const TRUSTING: &str = "STORE_REDIS_TLS_URL";

/// An authority, and a certificate for `localhost` by it. `false`, when there is no `openssl`.
fn certificates(directory: &std::path::Path) -> bool {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        command.args(arguments.split(' ')).current_dir(directory).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    std::fs::write(directory.join("names"), "subjectAltName=DNS:localhost\n").expect("a file");
    openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem")
        && openssl("req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr")
        && openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.pem",
        )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_certificate_of_a_trusted_authority_is_taken() {
    let connect = |url: &str| RedisStore::connect(&settings(url, 10_000), &topology(), contract::LASTING);
    if let Ok(url) = std::env::var(TRUSTING) {
        let product = connect(&url).expect("a store").ping().await.expect("the server is trusted");
        assert!(product.contains('.'), "{product}");
        // The same server by a name that its certificate does not have.
        let other = connect(&url.replace("localhost", "127.0.0.1")).expect("a store").ping().await;
        assert!(matches!(&other, Err(StoreError::Unreachable(text)) if text.contains("certificate")), "{other:?}");
        return;
    }
    let directory = tempfile::tempdir().expect("a folder");
    let file = |name: &str| directory.path().join(name).display().to_string();
    if !certificates(directory.path()) {
        return println!("skipped: openssl cannot make certificates");
    }
    let [certificate, key, authority] = ["server.pem", "server.key", "ca.pem"].map(file);
    let Some(server) = Server::started_with_tls(&certificate, &key, &authority).await else { return };
    let url = format!("rediss://localhost:{}/0", server.port);

    let stranger = connect(&url).expect("a store").ping().await;
    assert!(matches!(&stranger, Err(StoreError::Unreachable(text)) if text.contains("certificate")), "{stranger:?}");
    let careless = match connect(&format!("{url}#insecure")) {
        Ok(store) => store.ping().await,
        Err(error) => Err(error),
    };
    assert!(matches!(&careless, Err(StoreError::Refused(_))), "nobody turns the check off: {careless:?}");

    let trusting = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "tls::only_a_certificate_of_a_trusted_authority_is_taken"])
        .env(TRUSTING, &url)
        .env("SSL_CERT_FILE", &authority)
        .output()
        .expect("this program again");
    assert!(trusting.status.success(), "{}", String::from_utf8_lossy(&trusting.stdout));
}
