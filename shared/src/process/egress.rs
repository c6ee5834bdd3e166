//! Where a process of ours may connect to when somebody else had a say in it: by the address that a name led to, in the moment of
//! connecting. A check of the name alone would be passed by a name that leads to the inside, or leads elsewhere the second time.
//!
//! Whoever writes the settings may name what is on the inside, and does: a model server is there. So [`Reach::Named`] leaves out
//! only what no server has: addresses of the link, among them the one at which clouds give credentials to whoever asks, and those of
//! many. What a task names reaches [`Reach::Public`] addresses, and no others but the networks that are allowed besides.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use url::{Host, Url};

/// What kind of address it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Public,
    /// Of an inner network: RFC 1918, unique local, and what carriers share (RFC 6598).
    Private,
    Loopback,
    /// Of one link, among them 169.254.169.254.
    LinkLocal,
    /// Of nobody or of many: unspecified, multicast, broadcast, for documentation, reserved.
    Special,
}

impl Kind {
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => match carried(address) {
                Some(inner) => Self::of_v4(inner),
                None => Self::of_v6(address),
            },
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [a, b, c, _] = address.octets();
        match (a, b, c) {
            (127, ..) => Self::Loopback,
            (169, 254, _) => Self::LinkLocal,
            (10, ..) | (172, 16..=31, _) | (192, 168, _) | (100, 64..=127, _) => Self::Private,
            // This network, protocol assignments, documentation, relays to IPv6, benchmarks.
            (0, ..) | (192, 0, 0 | 2) | (198, 51, 100) | (203, 0, 113) | (192, 88, 99) | (198, 18 | 19, _) => {
                Self::Special
            }
            // Multicast, reserved, broadcast.
            (224.., ..) => Self::Special,
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let segments = address.segments();
        if address.is_loopback() {
            return Self::Loopback;
        }
        match segments[0] {
            first if first & 0xffc0 == 0xfe80 => Self::LinkLocal,
            // Unique local, and the site local of before.
            first if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 => Self::Private,
            // Documentation, benchmarks, ORCHID, Teredo.
            0x2001 if segments[1] < 0x200 || segments[1] == 0xdb8 => Self::Special,
            // All that was ever given out begins so.
            first if first & 0xe000 == 0x2000 => Self::Public,
            _ => Self::Special,
        }
    }
}

/// The IPv4 address that one of IPv6 stands for: mapped, compatible, translated by NAT64, or by 6to4.
fn carried(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0xffff) | (0x64, 0xff9b, 0, 0, 0, 0) => Some(v4(g, h)),
        // Not :: and ::1, which are its own.
        (0, 0, 0, 0, 0, 0) if g != 0 || h > 1 => Some(v4(g, h)),
        (0x2002, ..) => Some(v4(b, c)),
        _ => None,
    }
}

/// Addresses that begin alike: `10.0.0.0/8`, `fd00::/8`, or a single one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    pub fn holds(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (u32::from(own) ^ u32::from(other)).checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (u128::from(own) ^ u128::from(other)).checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no network such as 10.0.0.0/8");
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(bad)?,
            None => most,
        };
        Ok(Self { address, bits })
    }
}

/// How far a connection may go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reach {
    /// To what the settings name.
    Named,
    /// To what a task names: public addresses, and these networks.
    Public(Vec<Network>),
}

/// A name leads to no address that may be connected to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct Refused {
    kind: Kind,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Public => "a public",
            Kind::Private => "a private",
            Kind::Loopback => "a loopback",
            Kind::LinkLocal => "a link-local",
            Kind::Special => "a reserved or multicast",
        };
        // Not the address: who sent the task is told this, and need not learn the inner network.
        write!(f, "the name leads to {kind} address, which is not connected to")
    }
}

impl Reach {
    /// Public addresses and these networks, which were checked with the settings that they are from.
    pub fn public(besides: &[String]) -> Self {
        Self::Public(besides.iter().filter_map(|network| network.parse().ok()).collect())
    }

    /// Whether what stands in a URL may be connected to, as far as that is seen without asking where its name leads: not an address that
    /// may not, nor nothing at all.
    pub fn allows_url(&self, url: &Url) -> bool {
        match url.host() {
            Some(Host::Ipv4(address)) => self.allows(address.into()),
            Some(Host::Ipv6(address)) => self.allows(address.into()),
            Some(Host::Domain(_)) => true,
            None => false,
        }
    }

    /// Of a URL that has an address in place of a name, this is all that is asked: clients resolve names alone.
    pub fn allows(&self, address: IpAddr) -> bool {
        match self {
            Self::Named => !matches!(Kind::of(address), Kind::LinkLocal | Kind::Special),
            Self::Public(besides) => {
                Kind::of(address) == Kind::Public || besides.iter().any(|network| network.holds(address))
            }
        }
    }

    /// The addresses of a name that may be connected to.
    ///
    /// # Errors
    /// When the name leads nowhere, or to none of those: the I/O error then holds a [`Refused`].
    pub async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let (mut allowed, mut refused) = (Vec::new(), None);
        for address in tokio::net::lookup_host((host, port)).await? {
            match self.allows(address.ip()) {
                true => allowed.push(address),
                false => refused = Some(Refused { kind: Kind::of(address.ip()) }),
            }
        }
        match (allowed.is_empty(), refused) {
            (true, Some(refused)) => Err(io::Error::new(io::ErrorKind::PermissionDenied, refused)),
            (true, None) => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
            (false, _) => Ok(allowed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> Kind {
        Kind::of(text.parse().unwrap())
    }

    #[test]
    fn an_address_in_a_url_is_judged_and_a_name_is_left_to_the_moment_of_connecting() {
        let reach = Reach::public(&["10.0.0.0/8".to_owned(), "no network".to_owned()]);
        for (url, allowed) in [
            ("https://example.org/", true),
            ("http://localhost/", true),
            ("http://10.1.2.3/", true),
            ("http://127.0.0.1/", false),
            ("http://2130706433/", false),
            ("http://[::ffff:169.254.169.254]/", false),
            ("http://[2001:4860:4860::8888]/", true),
            ("data:text/plain,x", false),
        ] {
            assert_eq!(reach.allows_url(&url.parse().unwrap()), allowed, "{url}");
        }
    }

    #[test]
    fn every_way_to_write_an_inner_address_is_known() {
        for (kind_of, addresses) in [
            (
                Kind::Loopback,
                "127.0.0.1 127.255.255.254 ::1 ::ffff:127.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: ::127.0.0.1",
            ),
            (Kind::LinkLocal, "169.254.0.1 169.254.169.254 fe80::1 febf::1 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe"),
            (
                Kind::Private,
                "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.127.255.255 fc00::1 fd00:ec2::254",
            ),
            (Kind::Private, "::ffff:10.0.0.1 2002:a00:1:: fec0::1"),
            (
                Kind::Special,
                "0.0.0.0 0.1.2.3 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 192.0.2.1 198.18.0.1 ::",
            ),
            (Kind::Special, "ff02::1 2001:db8::1 2001::1 100::1 ::ffff:0.0.0.0 4000::1"),
            (Kind::Public, "1.1.1.1 100.63.255.255 100.128.0.0 172.15.0.1 172.32.0.1 169.253.0.1 223.255.255.255"),
            (Kind::Public, "2606:4700::1111 2001:4860:4860::8888 ::ffff:1.1.1.1 64:ff9b::101:101"),
        ] {
            for address in addresses.split(' ') {
                assert_eq!(kind(address), kind_of, "{address}");
            }
        }
    }

    #[test]
    fn networks_are_read_and_hold_what_begins_alike() {
        let holds = |network: &str, address: &str| network.parse::<Network>().unwrap().holds(address.parse().unwrap());
        assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("0.0.0.0/0", "9.9.9.9") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("127.0.0.1", "127.0.0.1") && !holds("127.0.0.1", "127.0.0.2"));
        assert!(holds("10.0.0.0/8", "::ffff:10.0.0.1"), "by another way of writing it");
        assert!(holds("fd00::/8", "fdff::1") && holds("::/0", "1::") && !holds("fd00::/8", "fe00::"));
        for bad in ["", "10", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "::/129", "localhost", "10.0.0.0/8/8"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_name_is_judged_by_where_it_leads() {
        let loopback = Reach::Public(vec!["127.0.0.0/8".parse().unwrap()]);
        for (reach, host, allowed) in [
            (&Reach::Named, "localhost", true),
            (&Reach::Named, "10.0.0.1", true),
            (&Reach::Named, "169.254.169.254", false),
            (&Reach::Named, "0.0.0.0", false),
            (&Reach::Public(Vec::new()), "localhost", false),
            (&Reach::Public(Vec::new()), "10.0.0.1", false),
            (&Reach::Public(Vec::new()), "1.1.1.1", true),
            (&loopback, "localhost", true),
            (&loopback, "10.0.0.1", false),
        ] {
            let resolved = reach.resolve(host, 80).await;
            assert_eq!(resolved.is_ok(), allowed, "{reach:?} {host} {resolved:?}");
            let refused = resolved.err().and_then(io::Error::into_inner);
            assert_eq!(refused.is_some_and(|inner| inner.is::<Refused>()), !allowed, "{host}");
        }
    }
}
