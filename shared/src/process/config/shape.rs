//! Which settings there are, of which type: read from the commented files that also are the reference, so that
//! what is documented, what is accepted and what is the default cannot differ.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

pub(super) const DEFAULTS: &str = include_str!("../settings.default.toml");
pub(super) const MODELS: &str = include_str!("../settings.models.toml");
pub(super) const TENANTS: &str = include_str!("../settings.tenants.toml");
pub(super) const KEYS: &str = include_str!("../settings.keys.toml");

/// Stands in the reference where the user writes a name of their own.
const ANY_NAME: &str = "NAME";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Type {
    Text,
    Switch,
    Integer,
    Number,
    Texts,
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "a string",
            Self::Switch => "true or false",
            Self::Integer => "a whole number",
            Self::Number => "a number",
            Self::Texts => "an array of strings such as [\"a\", \"b\"]",
        })
    }
}

/// Whose names a table with free keys holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Names {
    Models,
    Tenants,
    Keys,
    /// Header names: their case says nothing, and their values are secrets.
    Headers,
    /// Environment variables of a child: taken as they are written, and their values are secrets.
    Variables,
}

#[derive(Debug)]
pub(super) enum Shape {
    Leaf(Type),
    Section(BTreeMap<String, Shape>),
    Named(Names, Box<Shape>),
}

/// The shape of [`Settings`](super::super::settings::Settings).
pub(super) static SETTINGS: LazyLock<Shape> = LazyLock::new(|| {
    let parse = |text: &str| text.parse::<toml::Table>().expect("the compiled-in reference is TOML");
    let mut all = parse(DEFAULTS);
    all.extend(parse(MODELS));
    all.extend(parse(TENANTS));
    all.extend(parse(KEYS));
    shape("", &toml::Value::Table(all))
});

fn shape(key: &str, value: &toml::Value) -> Shape {
    match value {
        toml::Value::Integer(_) => Shape::Leaf(Type::Integer),
        toml::Value::Float(_) => Shape::Leaf(Type::Number),
        toml::Value::Array(_) => Shape::Leaf(Type::Texts),
        toml::Value::Boolean(_) => Shape::Leaf(Type::Switch),
        toml::Value::Table(table) => match table.get(ANY_NAME) {
            Some(any) => {
                let names = match key {
                    "models" => Names::Models,
                    "tenants" => Names::Tenants,
                    "keys" => Names::Keys,
                    "headers" => Names::Headers,
                    _ => Names::Variables,
                };
                Shape::Named(names, Box::new(shape(ANY_NAME, any)))
            }
            None => Shape::Section(table.iter().map(|(key, value)| (key.clone(), shape(key, value))).collect()),
        },
        _ => Shape::Leaf(Type::Text),
    }
}

/// The path to a setting, `broker.url`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Key(pub Vec<String>);

impl Key {
    pub fn child(&self, name: &str) -> Self {
        let mut path = self.0.clone();
        path.push(name.to_owned());
        Self(path)
    }

    pub fn parent(&self) -> Self {
        Self(self.0.split_last().map_or(&[][..], |(_, parents)| parents).to_vec())
    }

    /// The same path with every name of the user's replaced by `*`.
    pub fn pattern(&self) -> String {
        let free = |place: usize| {
            let after = |name: &str| place > 0 && self.0[place - 1] == name;
            (place == 1 && (after("models") || after("tenants") || after("keys")))
                || (place == 4 && (after("headers") || after("environment")))
        };
        let parts: Vec<&str> =
            self.0.iter().enumerate().map(|(place, part)| if free(place) { "*" } else { part.as_str() }).collect();
        parts.join(".")
    }
}

/// As TOML writes it: a part that is not bare is quoted.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, part) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str(".")?;
            }
            let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            if !part.is_empty() && part.bytes().all(bare) { f.write_str(part)? } else { write!(f, "{part:?}")? }
        }
        Ok(())
    }
}

/// The one of `known` that `given` was probably meant to be.
pub(super) fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    let given = given.to_ascii_lowercase();
    known
        .map(|name| (distance(&given, name), name))
        .filter(|(distance, name)| *distance <= 2 && *distance < name.len())
        .min()
        .map(|(_, name)| name)
}

/// Edits (insert, remove, replace, swap of neighbours) between two short texts.
fn distance(left: &str, right: &str) -> usize {
    const LONGEST: usize = 64;
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if left.len() > LONGEST || right.len() > LONGEST {
        return usize::MAX;
    }
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for i in 0..=left.len() {
        for j in 0..=right.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let changed = usize::from(left[i - 1] != right[j - 1]);
                let mut least = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + changed);
                if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[left.len()][right.len()]
}
