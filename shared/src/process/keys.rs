//! Keys to the HTTP API: made, kept as hashes, compared.
//!
//! A key is 256 random bits, so it is kept as its plain SHA-256: what makes passwords need a slow and salted hash, that they can be
//! guessed, does not hold for it. Every comparison looks at every key's every byte, so how long it takes tells nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::settings::KeySettings;
use crate::time::Timestamp;

/// What a key begins with, so that programs that look for leaked secrets know one.
const PREFIX: &str = "tyk_";
/// Longest text that is taken for a key.
const KEY_BYTES: usize = 512;
/// As a tenant: all of them.
pub const EVERY_TENANT: &str = "*";

/// SHA-256 of a key.
pub type Digest = [u8; 32];

pub fn digest(key: &str) -> Digest {
    Sha256::digest(key.as_bytes()).into()
}

/// 64 hexadecimal digits, or nothing.
pub fn parse_digest(text: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    if text.len() != 2 * digest.len() || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'))?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(digest)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A key that was just made. Its text is nowhere else.
pub struct NewKey(String);

impl NewKey {
    /// # Errors
    /// When the operating system gives no random bits.
    pub fn generate() -> std::io::Result<Self> {
        let mut bits = [0u8; 32];
        getrandom::fill(&mut bits).map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(Self(format!("{PREFIX}{}", hex(&bits))))
    }

    pub fn text(&self) -> &str {
        &self.0
    }

    /// What the settings hold of it.
    pub fn sha256(&self) -> String {
        hex(&digest(&self.0))
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewKey(***)")
    }
}

/// What may be done with a key. None includes another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Scope {
    Submit,
    Read,
    Control,
    Admin,
}

impl Scope {
    pub const ALL: [Scope; 4] = [Scope::Submit, Scope::Read, Scope::Control, Scope::Admin];

    pub fn name(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Read => "read",
            Self::Control => "control",
            Self::Admin => "admin",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == text)
    }
}

/// What a key opens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The key's name in the settings, for logs.
    pub name: Arc<str>,
    /// `None` is all of them.
    pub tenant: Option<Arc<str>>,
    pub scopes: Vec<Scope>,
    expires: Option<Timestamp>,
}

/// Why a key opens nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closed {
    Unknown,
    Expired,
}

/// All keys. Without any, none is asked for.
#[derive(Clone, Default, Debug)]
pub struct Keys(Vec<(Digest, Grant)>);

impl Keys {
    /// # Errors
    /// The name of the key that cannot be one, and why. None of those that [`super::config`] has read.
    pub fn new(settings: &BTreeMap<String, KeySettings>) -> Result<Self, String> {
        let mut keys: Vec<(Digest, Grant)> = Vec::with_capacity(settings.len());
        for (name, key) in settings {
            let (digest, grant) =
                key.grant(name).map_err(|(field, problem)| format!("keys.{name}.{field} {problem}"))?;
            if keys.iter().any(|(other, _)| *other == digest) {
                return Err(format!("keys.{name}.sha256 is that of another key, too"));
            }
            keys.push((digest, grant));
        }
        Ok(Self(keys))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the key that somebody came with opens at this time.
    ///
    /// # Errors
    /// When it is none of these, or no longer.
    pub fn open(&self, presented: &str, now: Timestamp) -> Result<&Grant, Closed> {
        if presented.len() > KEY_BYTES {
            return Err(Closed::Unknown);
        }
        let presented = digest(presented);
        let mut found = None;
        for (digest, grant) in &self.0 {
            let same: Choice = digest.ct_eq(&presented);
            if bool::from(same) {
                found = Some(grant);
            }
        }
        let grant = found.ok_or(Closed::Unknown)?;
        if grant.expires.is_some_and(|expires| now >= expires) {
            return Err(Closed::Expired);
        }
        Ok(grant)
    }
}

impl Grant {
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}

impl KeySettings {
    /// What this key opens; else the field that is wrong, and how.
    pub(super) fn grant(&self, name: &str) -> Result<(Digest, Grant), (&'static str, String)> {
        let digest = parse_digest(&self.sha256)
            .ok_or(("sha256", "must be the 64 hexadecimal digits that `taskyard keys new` prints".to_owned()))?;
        let mut scopes = Vec::new();
        for text in &self.scopes {
            let scope = Scope::parse(text).ok_or_else(|| {
                let known = Scope::ALL.map(Scope::name).join(", ");
                ("scopes", format!("holds what is none: there are {known}"))
            })?;
            if scopes.contains(&scope) {
                return Err(("scopes", format!("holds {} twice", scope.name())));
            }
            scopes.push(scope);
        }
        if scopes.is_empty() {
            return Err(("scopes", "must hold at least one".to_owned()));
        }
        let tenant = match self.tenant.as_str() {
            EVERY_TENANT => None,
            tenant if crate::decode::is_tenant(tenant) => Some(tenant.into()),
            _ => return Err(("tenant", "must be \"*\", or 1 to 128 bytes without control characters".to_owned())),
        };
        if tenant.is_some() && scopes.contains(&Scope::Admin) {
            return Err(("scopes", "holds admin, which is for tenant \"*\" only".to_owned()));
        }
        let expires = match &self.expires {
            None => None,
            Some(text) => {
                let problem = |_| ("expires", "must be a time such as 2030-01-01T00:00:00Z".to_owned());
                Some(text.parse::<Timestamp>().map_err(problem)?)
            }
        };
        Ok((digest, Grant { name: name.into(), tenant, scopes, expires }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(key: &NewKey, tenant: &str, scopes: &[&str], expires: Option<&str>) -> KeySettings {
        KeySettings {
            sha256: key.sha256(),
            tenant: tenant.to_owned(),
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            expires: expires.map(str::to_owned),
        }
    }

    #[test]
    fn a_key_opens_what_its_settings_say_until_it_expires() {
        let (blue, all) = (NewKey::generate().unwrap(), NewKey::generate().unwrap());
        let keys = Keys::new(&BTreeMap::from([
            ("blue".to_owned(), settings(&blue, "blue", &["submit", "read"], Some("2030-01-01T00:00:00Z"))),
            ("all".to_owned(), settings(&all, "*", &["admin"], None)),
        ]))
        .unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let grant = keys.open(blue.text(), at("2029-12-31T23:59:59Z")).unwrap();
        assert_eq!((&*grant.name, grant.tenant.as_deref()), ("blue", Some("blue")));
        assert!(grant.has(Scope::Submit) && grant.has(Scope::Read) && !grant.has(Scope::Control));
        assert_eq!(keys.open(blue.text(), at("2030-01-01T00:00:00Z")), Err(Closed::Expired));
        assert_eq!(keys.open(all.text(), at("2099-01-01T00:00:00Z")).unwrap().tenant, None);

        let now = Timestamp::now();
        let near = format!("{}0", blue.text());
        let hash = blue.sha256();
        for wrong in ["", "tyk_", &near, &hash, &blue.text()[..blue.text().len() - 1], &"x".repeat(1 << 20)] {
            assert_eq!(keys.open(wrong, now), Err(Closed::Unknown));
        }
        assert!(Keys::default().open("", now).is_err());
    }

    #[test]
    fn keys_are_long_never_the_same_and_not_shown() {
        let (one, other) = (NewKey::generate().unwrap(), NewKey::generate().unwrap());
        assert_eq!(one.text().len(), PREFIX.len() + 64);
        assert_ne!(one.text(), other.text());
        assert_eq!(format!("{one:?}"), "NewKey(***)");
        assert_eq!(parse_digest(&one.sha256()), Some(digest(one.text())));
    }

    #[test]
    fn what_is_no_key_is_refused_with_its_field() {
        let key = NewKey::generate().unwrap();
        let good = settings(&key, "blue", &["read"], None);
        let refused = |settings: KeySettings| settings.grant("k").err().map(|(field, _)| field);
        assert_eq!(refused(good.clone()), None);
        for sha256 in ["", key.text(), &"g".repeat(64), &"+1".repeat(32), &"é".repeat(32)] {
            assert_eq!(refused(KeySettings { sha256: sha256.to_owned(), ..good.clone() }), Some("sha256"));
        }
        for (tenant, scopes, expires, field) in [
            ("", vec!["read"], None, "tenant"),
            ("a\nb", vec!["read"], None, "tenant"),
            ("blue", vec![], None, "scopes"),
            ("blue", vec!["read", "read"], None, "scopes"),
            ("blue", vec!["root"], None, "scopes"),
            ("blue", vec!["admin"], None, "scopes"),
            ("blue", vec!["read"], Some("tomorrow"), "expires"),
        ] {
            assert_eq!(refused(settings(&key, tenant, &scopes, expires)), Some(field));
        }
        let twice = [("a".to_owned(), good.clone()), ("b".to_owned(), good)].into();
        assert!(Keys::new(&twice).unwrap_err().starts_with("keys.b.sha256"));
    }
}
