//! Calls that a page in somebody's browser makes. Without keys a gateway serves whoever reaches it, and a page that comes from anywhere
//! reaches what its reader's machine reaches.

use std::net::Ipv4Addr;

use axum::http::header;
use axum::http::request::Parts;
use axum::http::uri::Authority;

/// Why a call is that of a page from elsewhere, if it is. `is_local`: the gateway listens on a loopback address, so that only names of this
/// machine lead to it, and another that does was made to (DNS rebinding).
pub(super) fn from_elsewhere(parts: &Parts, is_local: bool) -> Option<&'static str> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = match (parts.uri.authority(), hosts.next(), hosts.next()) {
        (Some(authority), _, _) => Some(authority.clone()),
        (None, Some(host), None) => match Authority::try_from(host.as_bytes()) {
            Ok(host) => Some(host),
            Err(_) => return Some("its Host is none"),
        },
        // Nothing that a browser sends.
        (None, None, _) => None,
        (None, Some(_), Some(_)) => return Some("it has two Hosts"),
    };
    if is_local && host.as_ref().is_some_and(|host| !is_of_this_machine(host.host())) {
        return Some("its Host is not this machine's: call it at 127.0.0.1, or set gateway.keys");
    }
    // Browsers say of which page a call is whenever it is of another than the one that it goes to.
    for origin in parts.headers.get_all(header::ORIGIN) {
        let page = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, page)| page);
        let is_same = page.zip(host.as_ref()).is_some_and(|(page, host)| page.eq_ignore_ascii_case(host.as_str()));
        if !is_same {
            return Some("its Origin is another site");
        }
    }
    None
}

fn is_of_this_machine(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    // What is written as an address was not looked up.
    host == "localhost" || host.ends_with(".localhost") || host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let request =
            headers.iter().fold(Request::builder().uri(uri), |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_page_is_known_by_its_origin_and_a_rebound_name_by_itself() {
        // Where it is called, of which page; whether it is served here alone, and on a network.
        for (host, origin, here, beyond) in [
            (Some("127.0.0.1:8080"), None, true, true),
            (Some("localhost:8080"), None, true, true),
            (Some("LOCALHOST."), None, true, true),
            (Some("yard.localhost:8080"), None, true, true),
            (Some("[::1]:8080"), None, true, true),
            (None, None, true, true),
            (Some("127.0.0.1:8080"), Some("http://127.0.0.1:8080"), true, true),
            (Some("localhost:8080"), Some("http://LocalHost:8080"), true, true),
            (Some("gateway:8080"), None, false, true),
            (Some("gateway:8080"), Some("https://gateway:8080"), false, true),
            (Some("evil.example"), None, false, true),
            (Some("127.0.0.1.evil.example:8080"), None, false, true),
            (Some("evil.example:8080"), Some("http://evil.example:8080"), false, true),
            (Some("localhost.evil.example"), None, false, true),
            (Some("127.0.0.1:8080"), Some("http://evil.example"), false, false),
            (Some("127.0.0.1:8080"), Some("http://127.0.0.1:9999"), false, false),
            (Some("127.0.0.1:8080"), Some("null"), false, false),
            (Some("127.0.0.1:8080"), Some(""), false, false),
            (None, Some("http://evil.example"), false, false),
            (Some("a b"), None, false, false),
        ] {
            let of = |(name, value): (&'static str, Option<&'static str>)| value.map(|value| (name, value));
            let headers: Vec<_> = [("host", host), ("origin", origin)].into_iter().filter_map(of).collect();
            let parts = parts("/v1/queues/m/pause", &headers);
            assert_eq!(from_elsewhere(&parts, true).is_none(), here, "{host:?}, {origin:?}, on this machine");
            assert_eq!(from_elsewhere(&parts, false).is_none(), beyond, "{host:?}, {origin:?}, on a network");
        }
        let absolute = parts("http://evil.example/v1/tasks", &[("host", "127.0.0.1:8080")]);
        assert!(from_elsewhere(&absolute, true).is_some());
        let two = parts("/v1/tasks", &[("host", "127.0.0.1"), ("host", "evil.example")]);
        assert!(from_elsewhere(&two, false).is_some());
    }
}
