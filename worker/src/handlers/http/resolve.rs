//! Names to addresses for the client, in the moment of connecting: only those that may be connected to.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use taskyard_shared::process::egress::Reach;

/// The port is the client's to set.
const ANY_PORT: u16 = 0;

pub(super) struct Within(pub(super) Reach);

impl Resolve for Within {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.0.clone();
        Box::pin(async move {
            let addresses = reach.resolve(name.as_str(), ANY_PORT).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::TcpListener;

    use super::*;

    /// Asks a server on this machine by its name, and says what came of it.
    async fn asked(reach: Reach) -> Result<(), reqwest::Error> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = axum::Router::new().fallback(async || "here");
        let url = format!("http://localhost:{}/", listener.local_addr().unwrap().port());
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let client = reqwest::Client::builder().no_proxy().dns_resolver(Arc::new(Within(reach))).build().unwrap();
        let answer = client.get(url).send().await.map(|_| ());
        server.abort();
        answer
    }

    #[tokio::test]
    async fn a_client_connects_to_where_a_name_may_lead_and_nowhere_else() {
        asked(Reach::Named).await.unwrap();
        asked(Reach::Public(vec!["127.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()])).await.unwrap();
        let refused = asked(Reach::Public(Vec::new())).await.unwrap_err();
        assert!(refused.is_connect(), "{refused:?}");
        assert!(super::super::exchange::causes(refused).contains("a loopback address, which is not connected to"));
    }

    #[tokio::test]
    async fn what_the_settings_name_does_not_lead_to_the_link() {
        let name: Name = "169.254.169.254".parse().unwrap();
        assert!(Within(Reach::Named).resolve(name).await.is_err());
    }
}
