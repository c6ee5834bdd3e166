//! TLS to broker and store: whom to trust, who we are, and in words why a server was not taken.
//!
//! The files are read anew for every connection, so that a certificate is changed by changing the file.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, RootCertStore};

use super::settings::TlsSettings;

/// What the files hold, as PEM that was found to be in order. No `Debug`: the key is in it.
pub struct Credentials {
    /// Who is trusted; the system's authorities when there are none.
    pub authorities: Option<Vec<u8>>,
    pub identity: Option<Identity>,
}

/// A client's certificate with those that lead to its authority, and its key.
pub struct Identity {
    pub certificates: Vec<u8>,
    pub key: Vec<u8>,
}

impl Credentials {
    /// `section` is where the settings stand, `broker.tls` or `store.tls`, for the sentence.
    ///
    /// # Errors
    /// One sentence that names the setting and the file. Nothing of a key is in it.
    pub fn read(settings: &TlsSettings, section: &str) -> Result<Self, String> {
        let read = |name: &str, path: &Path| match path.as_os_str().is_empty() {
            true => Ok(None),
            false => std::fs::read(path)
                .map(Some)
                .map_err(|error| format!("{section}.{name}: {} cannot be read: {error}", path.display())),
        };
        let bad = |name: &str, path: &Path, what: &str| format!("{section}.{name}: {} {what}", path.display());
        let authorities = read("ca_file", &settings.ca_file)?;
        if let Some(pem) = &authorities {
            let refused = || bad("ca_file", &settings.ca_file, "holds no certificate in PEM that can be trusted");
            let mut roots = RootCertStore::empty();
            for certificate in certificates(pem).ok_or_else(refused)? {
                roots.add(certificate).map_err(|_| refused())?;
            }
        }
        let identity = match (read("cert_file", &settings.cert_file)?, read("key_file", &settings.key_file)?) {
            (Some(pem), Some(key)) => {
                let what = "holds no certificate in PEM";
                certificates(&pem).ok_or_else(|| bad("cert_file", &settings.cert_file, what))?;
                let what = "holds no private key in PEM";
                private_key(&key).ok_or_else(|| bad("key_file", &settings.key_file, what))?;
                Some(Identity { certificates: pem, key })
            }
            (None, None) => None,
            _ => return Err(format!("{section}.cert_file and {section}.key_file belong together")),
        };
        Ok(Self { authorities, identity })
    }
}

/// Those in a PEM file; nothing when there are none, or one cannot be read.
pub fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
    Some(all).filter(|all| !all.is_empty())
}

pub fn private_key(pem: &[u8]) -> Option<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).ok()
}

/// Why there was no connection, when it is TLS that failed: what to look at, and where it is set.
pub fn explain(error: &(dyn Error + 'static), section: &str, host: &str) -> Option<String> {
    let Some(fault) = fault(error) else {
        return is_end(error).then(|| "the other end left in the TLS handshake: is that the port for TLS?".to_owned());
    };
    Some(match fault {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the server's certificate has expired".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the server's certificate is not valid yet, by this machine's clock".to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("the server's certificate is not for the name {host}")
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!(
                    "the server's certificate is by an authority that is not trusted here; {section}.ca_file names one"
                )
            }
            other => format!("the server's certificate cannot be taken: {other:?}"),
        },
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            format!("the server asks for a client's certificate: {section}.cert_file and {section}.key_file")
        }
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError),
        ) => format!("the server does not take the client's certificate of {section}.cert_file: {alert:?}"),
        rustls::Error::AlertReceived(alert) => format!("the server ended the TLS handshake: {alert:?}"),
        rustls::Error::InvalidMessage(_) => {
            "what answers there does not speak TLS: is that the port for it?".to_owned()
        }
        other => format!("TLS failed: {other}"),
    })
}

/// Why a connection may have ended right after TLS stood. A server that is shown no certificate, or one that it does not take, says
/// so, and hangs up in the same moment: then what it said is lost as often as not.
pub fn explain_hang_up(error: &(dyn Error + 'static), section: &str) -> Option<String> {
    let mut outer = Some(error);
    while let Some(error) = outer {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if let Some(
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof,
        ) = kind
        {
            let why = "it may ask for a client's certificate, or not take this one";
            return Some(format!("the server hung up: {why}: {section}.cert_file and {section}.key_file"));
        }
        outer = inner(error);
    }
    None
}

/// The error of TLS within one that wraps it.
fn fault<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut error = Some(error);
    while let Some(outer) = error {
        if let Some(fault) = outer.downcast_ref() {
            return Some(fault);
        }
        error = inner(outer);
    }
    None
}

/// Whether the other end left before TLS stood; later it may leave for any reason.
fn is_end(error: &(dyn Error + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(outer) = error {
        let ended = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
        if outer.downcast_ref().is_some_and(ended) && outer.to_string().contains("handshake") {
            return true;
        }
        error = inner(outer);
    }
    false
}

/// What an error wraps. An I/O error does not tell of what it holds as its source, and neither does one that is shared.
fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(held) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        return Some(held);
    }
    if let Some(shared) = error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
        return Some(&**shared);
    }
    error.source()
}
