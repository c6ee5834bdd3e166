//! A layer as a source of the `config` crate, which lays one over the other.
//!
//! The layers are read here rather than by that crate, because an unknown key must be named with its line or its
//! variable, and because text must stay text: a namespace `007` is not the number 7.

use config::{Map, Source, Value, ValueKind};

use super::error::Origin;
use super::layer::Layer;
use super::shape::Key;

/// The values of one layer.
#[derive(Clone, Debug, Default)]
pub(super) struct LayerSource {
    root: Map<String, Value>,
}

impl Layer {
    pub(super) fn source(&self) -> LayerSource {
        let mut root = Map::new();
        for (Key(path), origin) in &self.sections {
            section(&mut root, path, origin);
        }
        for (Key(path), leaf) in &self.leaves {
            if let Some((name, parents)) = path.split_last()
                && let Some(table) = section(&mut root, parents, &leaf.origin)
            {
                table.insert(name.clone(), Value::new(Some(&leaf.origin.to_string()), kind(&leaf.value)));
            }
        }
        LayerSource { root }
    }
}

/// The table at `path`, made where it is missing; nothing when something else stands there.
fn section<'a>(
    root: &'a mut Map<String, Value>,
    path: &[String],
    origin: &Origin,
) -> Option<&'a mut Map<String, Value>> {
    path.iter().try_fold(root, |table, part| {
        let empty = || Value::new(Some(&origin.to_string()), ValueKind::Table(Map::new()));
        match &mut table.entry(part.clone()).or_insert_with(empty).kind {
            ValueKind::Table(table) => Some(table),
            _ => None,
        }
    })
}

fn kind(value: &toml::Value) -> ValueKind {
    match value {
        toml::Value::String(text) => ValueKind::String(text.clone()),
        toml::Value::Integer(number) => ValueKind::I64(*number),
        toml::Value::Float(number) => ValueKind::Float(*number),
        toml::Value::Boolean(truth) => ValueKind::Boolean(*truth),
        toml::Value::Datetime(date) => ValueKind::String(date.to_string()),
        toml::Value::Array(items) => ValueKind::Array(items.iter().map(|item| Value::new(None, kind(item))).collect()),
        toml::Value::Table(table) => {
            ValueKind::Table(table.iter().map(|(key, value)| (key.clone(), Value::new(None, kind(value)))).collect())
        }
    }
}

impl Source for LayerSource {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.root.clone())
    }
}
