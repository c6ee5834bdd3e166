//! The HTTP client of everything that is sent to an address which somebody else had a say in: model servers, webhooks, and inputs that
//! tasks name.
//!
//! Redirects are not followed, proxies of the environment are not used, and a name is led to an address in the moment of
//! connecting, within the [`Reach`] that it is given.

use std::error::Error;
use std::fmt::Write;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{ClientBuilder, redirect};

use super::egress::{Reach, Refused};

/// The port is the client's to set.
const ANY_PORT: u16 = 0;

struct Within(Reach);

impl Resolve for Within {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.0.clone();
        Box::pin(async move {
            let addresses = reach.resolve(name.as_str(), ANY_PORT).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// A client that connects by name within `reach`. Addresses in a URL are its caller's to check: no name is led anywhere then.
pub fn builder(reach: Reach) -> ClientBuilder {
    // The client panics without a provider, even when it will never speak TLS. The binary installs one first of all;
    // this is for those who use these crates by themselves. An error means that somebody was faster, which is as good.
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    reqwest::Client::builder()
        .user_agent(concat!("taskyard/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .no_proxy()
        .dns_resolver(Arc::new(Within(reach)))
        .referer(false)
}

/// Whether a name led to no address that may be connected to: trying again changes nothing.
pub fn is_refused(failure: &reqwest::Error) -> bool {
    let mut cause = failure.source();
    while let Some(inner) = cause {
        let carried = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if inner.is::<Refused>() || carried.is_some_and(|carried| carried.is::<Refused>()) {
            return true;
        }
        cause = inner.source();
    }
    false
}

/// An error and what caused it, without the address: that may hold a password.
pub fn causes(failure: reqwest::Error) -> String {
    let failure = failure.without_url();
    let mut text = failure.to_string();
    let mut cause = failure.source();
    while let Some(inner) = cause {
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Asks a server on this machine by its name, and says what came of it.
    async fn asked(reach: Reach) -> Result<(), reqwest::Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = axum::Router::new().fallback(async || "here");
        let url = format!("http://localhost:{}/", listener.local_addr().unwrap().port());
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let answer = builder(reach).build().unwrap().get(url).send().await.map(|_| ());
        server.abort();
        answer
    }

    #[tokio::test]
    async fn a_client_connects_to_where_a_name_may_lead_and_nowhere_else() {
        asked(Reach::Named).await.unwrap();
        asked(Reach::Public(vec!["127.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()])).await.unwrap();
        let refused = asked(Reach::Public(Vec::new())).await.unwrap_err();
        assert!(refused.is_connect() && is_refused(&refused), "{refused:?}");
        let why = causes(refused);
        assert!(why.contains("a loopback address, which is not connected to") && !why.contains("localhost:"), "{why}");
    }

    #[tokio::test]
    async fn what_the_settings_name_does_not_lead_to_the_link() {
        let name: Name = "169.254.169.254".parse().unwrap();
        assert!(Within(Reach::Named).resolve(name).await.is_err());
    }
}
