//! Certificates and keys in files, for servers and clients.
#![allow(dead_code)] // Each test target uses a part of it.

use std::path::PathBuf;
use std::sync::Once;

use taskyard_shared::process::settings::TlsSettings;

use self::authority::Authority;

#[path = "authority.rs"]
mod authority;

/// As the binary does it.
fn provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
}

/// Everything that is needed, in files.
pub struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    /// Two authorities, `ca` and `other`; of the first a server's certificate for `localhost` alone, one that has expired, and a
    /// client's; of the second a client's.
    pub fn new() -> Self {
        provider();
        let files = Self { folder: tempfile::tempdir().unwrap() };
        files.renew();
        let other = Authority::new("somebody's");
        std::fs::write(files.path("other.pem"), other.pem()).unwrap();
        std::fs::write(files.path("nonsense.pem"), "no certificate").unwrap();
        other.issue(files.folder.path(), "stranger", &["client"], false);
        files
    }

    /// Another authority is `ca`, and issues anew what the one before has: nothing of that is good for anything with this.
    pub fn renew(&self) {
        let ca = Authority::new("the yard's");
        std::fs::write(self.path("ca.pem"), ca.pem()).unwrap();
        for (name, names, has_expired) in
            [("server", "localhost", false), ("expired", "localhost", true), ("client", "client", false)]
        {
            ca.issue(self.folder.path(), name, &[names], has_expired);
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        match name {
            "" => PathBuf::new(),
            name => self.folder.path().join(name),
        }
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `client` is the name of a certificate and its key.
    pub fn tls(&self, ca: &str, client: &str) -> TlsSettings {
        let of = |end: &str| if client.is_empty() { PathBuf::new() } else { self.path(&format!("{client}.{end}")) };
        TlsSettings { ca_file: self.path(ca), cert_file: of("pem"), key_file: of("key") }
    }
}
