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
