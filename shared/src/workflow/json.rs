//! JSON that is looked into without being parsed: what is found is the bytes that came.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// An object's members in their order, those of one name among them.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(name) = map.next_key::<Name<'de>>()? {
                    members.push((name.0, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// A name, borrowed unless it has escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a name")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// An object's members. `None` for anything else.
pub(crate) fn object(raw: &RawValue) -> Option<Vec<(Cow<'_, str>, &RawValue)>> {
    if !raw.get().starts_with('{') {
        return None;
    }
    serde_json::from_str::<Members<'_>>(raw.get()).ok().map(|members| members.0)
}

/// An array's members. `None` for anything else.
pub fn members(raw: &RawValue) -> Option<Vec<&RawValue>> {
    if !raw.get().starts_with('[') {
        return None;
    }
    serde_json::from_str(raw.get()).ok()
}

/// What an RFC 6901 pointer finds.
pub(super) fn find<'a>(raw: &'a RawValue, path: &str) -> Option<&'a RawValue> {
    if path.is_empty() {
        return Some(raw);
    }
    let mut here = raw;
    for token in path.strip_prefix('/')?.split('/') {
        here = match here.get().as_bytes().first()? {
            b'{' => {
                let name = token.replace("~1", "/").replace("~0", "~");
                // Of several members of one name the last counts, as in most parsers.
                object(here)?.into_iter().rev().find(|(member, _)| *member == name)?.1
            }
            b'[' if token == "0" || !token.starts_with('0') => {
                members(here)?.get(token.parse::<usize>().ok()?).copied()?
            }
            _ => return None,
        };
    }
    Some(here)
}

/// Whether it is an RFC 6901 pointer.
pub(super) fn is_pointer(path: &str) -> bool {
    let escapes = |token: &str| token.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    path.is_empty() || path.starts_with('/') && path.split('/').all(escapes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn a_pointer_finds_the_bytes_that_came() {
        let value = raw(
            r#"{"a": {"b/c": [1.50, {"~d": 12345678901234567890123}]}, "a\u0062": null, "": true, "x": 1, "x": 2}"#,
        );
        let found = |path: &str| find(&value, path).map(RawValue::get);
        assert_eq!(found("/a/b~1c/0"), Some("1.50"));
        assert_eq!(found("/a/b~1c/1/~0d"), Some("12345678901234567890123"));
        assert_eq!(found("/ab"), Some("null"), "an escaped name");
        assert_eq!(found("/"), Some("true"), "the name may be empty");
        assert_eq!(found("/x"), Some("2"));
        assert_eq!(found("").map(str::len), Some(value.get().len()));
        for nothing in ["/a/b", "/a/b~1c/2", "/a/b~1c/-", "/a/b~1c/01", "/ab/c", "a", "/a/b~1c/0/0"] {
            assert_eq!(found(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn pointers_follow_their_grammar() {
        assert!(["", "/", "/a", "/a~0/b~1", "/a//b"].into_iter().all(is_pointer));
        assert!(["a", "a/b", "/~", "/~2", "/a~"].into_iter().all(|bad| !is_pointer(bad)));
    }
}
