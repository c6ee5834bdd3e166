//! One layer of settings: a TOML text or the environment, held against the shape, as values by key.
//!
//! Written out rather than left to the `config` crate, which guesses a variable's type from its text (a namespace `007`
//! would be 7), knows no lines, and no longer knows the layer when a key turns out to be unknown.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Value;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin};
use super::shape::{Key, Names, SETTINGS, Shape, Type, nearest};

/// Longest configuration file and longest secret.
const FILE_BYTES: u64 = 4 << 20;
const SECRET_BYTES: u64 = 64 << 10;

/// Of an unknown key as much is told.
const KEY_CHARACTERS: usize = 200;

const PREFIX: &str = "TASKYARD__";
/// `url_file` says which file holds `url`.
const FROM_FILE: &str = "_file";

pub(super) struct Leaf {
    pub value: Value,
    pub origin: Origin,
    /// The value came from a file of its own, or is of a kind that is not shown.
    pub secret: bool,
}

#[derive(Default)]
pub(super) struct Layer {
    pub leaves: BTreeMap<Key, Leaf>,
    /// Tables that were written down, with or without something in them.
    pub sections: BTreeMap<Key, Origin>,
}

impl Layer {
    /// Puts `above` over this one.
    pub fn cover(&mut self, above: Layer) {
        self.leaves.extend(above.leaves);
        self.sections.extend(above.sections);
    }

    /// Names in `models`, `tenants` or `keys`.
    fn names<'a>(&'a self, section: &'a str) -> impl Iterator<Item = &'a str> {
        let of = move |key: &'_ Key| key.0.first().is_some_and(|first| first == section);
        self.sections.keys().filter(move |key| of(key) && key.0.len() == 2).map(|key| key.0[1].as_str())
    }

    fn insert(&mut self, key: Key, leaf: Leaf) -> Result<(), ConfigError> {
        for depth in 1..key.0.len() {
            self.sections.entry(Key(key.0[..depth].to_vec())).or_insert_with(|| leaf.origin.clone());
        }
        if let Some(other) = self.leaves.get(&key) {
            let (origin, other) = (leaf.origin, other.origin.clone());
            return Err(ConfigError::Twice { key: key.to_string(), origin, other });
        }
        self.leaves.insert(key, leaf);
        Ok(())
    }
}

/// Reads `--config FILE`.
pub(super) fn from_file(path: &Path, folder: &Path) -> Result<Layer, ConfigError> {
    let refused = |source| ConfigError::Read { path: path.to_owned(), source };
    let bytes = read(path, FILE_BYTES).map_err(refused)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let (line, column) = position(&String::from_utf8_lossy(valid), valid.len());
        ConfigError::Syntax { path: path.to_owned(), line, column, message: "not UTF-8".to_owned() }
    })?;
    from_toml(&text, Some(path), folder)
}

/// Reads a TOML text: a file's, or the compiled-in defaults when there is no `path`. Secrets' files are relative to
/// `folder`.
pub(super) fn from_toml(text: &str, path: Option<&Path>, folder: &Path) -> Result<Layer, ConfigError> {
    let table = DeTable::parse(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(text.len(), |span| span.start));
        // Only the message: the error's own text quotes the line, which may hold a password.
        let path = path.map_or_else(PathBuf::new, Path::to_owned);
        ConfigError::Syntax { path, line, column, message: error.message().to_owned() }
    })?;
    let mut reader = TomlReader { text, path, folder, layer: Layer::default() };
    reader.table(&SETTINGS, &Key::default(), table.get_ref())?;
    Ok(reader.layer)
}

struct TomlReader<'a> {
    text: &'a str,
    path: Option<&'a Path>,
    folder: &'a Path,
    layer: Layer,
}

impl TomlReader<'_> {
    fn origin(&self, span: Range<usize>) -> Origin {
        match self.path {
            Some(path) => Origin::File { path: path.to_owned(), line: position(self.text, span.start).0 },
            None => Origin::Default,
        }
    }

    fn table(&mut self, shape: &Shape, key: &Key, table: &DeTable<'_>) -> Result<(), ConfigError> {
        for (name, value) in table {
            let origin = self.origin(name.span());
            let name = name.get_ref().as_ref();
            let (known, name, from_file) = match shape {
                Shape::Section(children) => match find(children, name) {
                    Some((shape, stem, from_file)) => (shape, stem.to_owned(), from_file),
                    None => return Err(unknown(key, name, origin, children)),
                },
                Shape::Named(Names::Headers, of) => {
                    let name = name.to_ascii_lowercase();
                    let stem = name.strip_suffix(FROM_FILE);
                    (of.as_ref(), stem.unwrap_or(&name).to_owned(), stem.is_some())
                }
                Shape::Named(_, of) => (of.as_ref(), name.to_owned(), false),
                Shape::Leaf(_) => return Err(unknown(key, name, origin, &BTreeMap::new())),
            };
            self.value(known, key.child(&name), value.get_ref(), origin, from_file)?;
        }
        Ok(())
    }

    fn value(
        &mut self,
        shape: &Shape,
        key: Key,
        value: &DeValue<'_>,
        origin: Origin,
        from_file: bool,
    ) -> Result<(), ConfigError> {
        match (shape, value) {
            (Shape::Leaf(of), DeValue::String(path)) if from_file => {
                let value = read_secret(&key, *of, &self.folder.join(path.as_ref()), &origin)?;
                self.layer.insert(key, Leaf { value, origin, secret: true })
            }
            (Shape::Leaf(_), found) if from_file => Err(wrong_type(&key, origin, "the path of a file", found)),
            (Shape::Leaf(of), found) => match typed(*of, found) {
                Ok(value) => {
                    let secret = is_secret(&key);
                    self.layer.insert(key, Leaf { value, origin, secret })
                }
                Err(found) => Err(wrong_type(&key, origin, of, found)),
            },
            (_, DeValue::Table(table)) => {
                self.layer.sections.insert(key.clone(), origin);
                self.table(shape, &key, table)
            }
            (_, found) => Err(wrong_type(&key, origin, "a table", found)),
        }
    }
}

/// The child called `name`, or the one whose value `name` says is in a file; with the child's own name.
fn find<'a, 'b>(children: &'a BTreeMap<String, Shape>, name: &'b str) -> Option<(&'a Shape, &'b str, bool)> {
    if let Some(shape) = children.get(name) {
        return Some((shape, name, false));
    }
    let stem = name.strip_suffix(FROM_FILE)?;
    match children.get(stem) {
        Some(shape @ Shape::Leaf(_)) => Some((shape, stem, true)),
        _ => None,
    }
}

fn unknown(key: &Key, name: &str, origin: Origin, known: &BTreeMap<String, Shape>) -> ConfigError {
    let suggestion = nearest(name, known.keys()).map(|near| key.child(near).to_string());
    let mut named = key.child(name).to_string();
    if let Some((end, _)) = named.char_indices().nth(KEY_CHARACTERS) {
        named.truncate(end);
        named.push('…');
    }
    ConfigError::UnknownKey { key: named, origin, suggestion }
}

fn wrong_type(key: &Key, origin: Origin, expected: impl ToString, found: &DeValue<'_>) -> ConfigError {
    let found = match found {
        DeValue::String(_) => "a string".to_owned(),
        DeValue::Integer(number) => format!("{number}"),
        DeValue::Float(number) => format!("{number}"),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    };
    ConfigError::WrongType { key: key.to_string(), origin, expected: expected.to_string(), found }
}

/// The value as `of`; else the part that does not fit.
fn typed<'a, 'i>(of: Type, value: &'a DeValue<'i>) -> Result<Value, &'a DeValue<'i>> {
    match (of, value) {
        (Type::Text, DeValue::String(text)) => Ok(Value::String(text.to_string())),
        (Type::Switch, DeValue::Boolean(is_on)) => Ok(Value::Boolean(*is_on)),
        (Type::Integer, DeValue::Integer(number)) => {
            i64::from_str_radix(number.as_str(), number.radix()).map(Value::Integer).map_err(|_| value)
        }
        (Type::Number, DeValue::Integer(number)) if number.radix() == 10 => {
            number.as_str().parse().map(Value::Float).map_err(|_| value)
        }
        (Type::Number, DeValue::Float(number)) => number.as_str().parse().map(Value::Float).map_err(|_| value),
        (Type::Texts, DeValue::Array(items)) => {
            items.iter().map(|item| typed(Type::Text, item.get_ref())).collect::<Result<_, _>>().map(Value::Array)
        }
        _ => Err(value),
    }
}

/// Line and column, from 1, of a byte of `text`.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    (line, String::from_utf8_lossy(&before[line_start..]).chars().count() + 1)
}

/// Reads the variables that begin `TASKYARD__`; all others are somebody else's. `below` are the layers under this one:
/// a model declared there as `a-b` may be called `A_B` here, as a shell cannot write the hyphen.
pub(super) fn from_environment(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    below: &Layer,
) -> Result<Layer, ConfigError> {
    let mut ours: Vec<(String, OsString)> = variables
        .into_iter()
        .filter_map(|(name, value)| {
            let name = name.to_string_lossy().into_owned();
            name.starts_with(PREFIX).then_some((name, value))
        })
        .collect();
    ours.sort();
    let mut layer = Layer::default();
    for (variable, value) in ours {
        let origin = Origin::Environment { variable: variable.escape_debug().to_string() };
        let place = resolve(&SETTINGS, &Key::default(), &variable[PREFIX.len()..], &origin, below)?;
        let text = value.into_string().map_err(|_| ConfigError::WrongType {
            key: place.key.to_string(),
            origin: origin.clone(),
            expected: place.of.to_string(),
            found: "bytes that are not UTF-8".to_owned(),
        })?;
        let (value, secret) = if place.from_file {
            (read_secret(&place.key, place.of, Path::new(&text), &origin)?, true)
        } else {
            (parse(&place.key, place.of, &text, &origin)?, is_secret(&place.key))
        };
        layer.insert(place.key, Leaf { value, origin, secret })?;
    }
    Ok(layer)
}

/// The setting that a variable means.
struct Place {
    key: Key,
    of: Type,
    from_file: bool,
}

fn resolve(shape: &Shape, key: &Key, rest: &str, origin: &Origin, below: &Layer) -> Result<Place, ConfigError> {
    let (name, after) = match rest.split_once("__") {
        Some((name, after)) => (name, Some(after)),
        None => (rest, None),
    };
    let name = name.to_ascii_lowercase();
    let (shape, key, from_file, after) = match shape {
        Shape::Section(children) => match find(children, &name) {
            Some((shape, stem, from_file)) => (shape, key.child(stem), from_file, after),
            None => return Err(unknown(key, &name, origin.clone(), children)),
        },
        Shape::Named(names @ (Names::Models | Names::Tenants | Names::Keys), of) => {
            let section = match names {
                Names::Models => "models",
                Names::Tenants => "tenants",
                _ => "keys",
            };
            let written = |known: &str| known.replace(['-', '.'], "_");
            let exact = below.names(section).find(|known| *known == name);
            let known = exact.or_else(|| below.names(section).find(|known| written(known) == name)).unwrap_or(&name);
            (of.as_ref(), key.child(known), false, after)
        }
        Shape::Named(Names::Headers, of) => {
            let stem = name.strip_suffix(FROM_FILE);
            (of.as_ref(), key.child(&stem.unwrap_or(&name).replace('_', "-")), stem.is_some(), after)
        }
        // Any name, with underscores as the child will see them.
        Shape::Named(Names::Variables, of) => (of.as_ref(), key.child(rest), false, None),
        Shape::Leaf(_) => return Err(unknown(key, &name, origin.clone(), &BTreeMap::new())),
    };
    match (shape, after) {
        (Shape::Leaf(of), None) => Ok(Place { key, of: *of, from_file }),
        (Shape::Leaf(_), Some(after)) => {
            Err(unknown(&key, &after.to_ascii_lowercase(), origin.clone(), &BTreeMap::new()))
        }
        (_, Some(after)) => resolve(shape, &key, after, origin, below),
        (_, None) => Err(ConfigError::WrongType {
            key: key.to_string(),
            origin: origin.clone(),
            expected: "a section, one variable for each of its settings".to_owned(),
            found: "one value".to_owned(),
        }),
    }
}

/// A value as text, as the environment and secrets' files have it. Text stays as it is; an array is written as TOML or
/// JSON writes it.
fn parse(key: &Key, of: Type, text: &str, origin: &Origin) -> Result<Value, ConfigError> {
    let value = match of {
        Type::Text => Some(Value::String(text.to_owned())),
        Type::Switch => text.trim().parse().ok().map(Value::Boolean),
        Type::Integer => text.trim().parse().ok().map(Value::Integer),
        Type::Number => text.trim().parse().ok().map(Value::Float),
        Type::Texts => DeValue::parse(text.trim()).ok().and_then(|value| typed(of, value.get_ref()).ok()),
    };
    value.ok_or_else(|| ConfigError::WrongType {
        key: key.to_string(),
        origin: origin.clone(),
        expected: of.to_string(),
        // Never the text itself: what was put into the wrong variable may be a secret.
        found: if text.is_empty() { "empty" } else { "what is there" }.to_owned(),
    })
}

/// Reads a file that holds one value; one newline at its end is not part of it.
fn read_secret(key: &Key, of: Type, path: &Path, origin: &Origin) -> Result<Value, ConfigError> {
    let refused = |problem: String| ConfigError::Secret {
        key: key.to_string(),
        origin: origin.clone(),
        path: path.to_owned(),
        problem,
    };
    let bytes = read(path, SECRET_BYTES).map_err(|error| refused(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| refused("it is not UTF-8".to_owned()))?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    if text.is_empty() {
        return Err(refused("it is empty".to_owned()));
    }
    parse(key, of, text, origin)
}

fn read(path: &Path, most_bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most_bytes {
        return Err(std::io::Error::other(format!("it is longer than {most_bytes} bytes")));
    }
    Ok(bytes)
}

/// Values that `config show` hides whole. Passwords in URLs are hidden by [`masked`](super::super::secret::masked).
fn is_secret(key: &Key) -> bool {
    let pattern = key.pattern();
    pattern.ends_with("http.headers.*")
        || pattern.ends_with("process.environment.*")
        || pattern.ends_with("webhooks.secret")
        || pattern.ends_with("webhooks.old_secret")
}
