//! Reads the settings: compiled-in defaults, the file of `--config`, the environment; later layers win, leaf by leaf.
//!
//! Every leaf keeps the layer that set it, a key that nobody knows is refused, and what passes has been checked: a role
//! that got [`Settings`] need not look for zeros, bad names or URLs of the wrong kind.
//!
//! The environment: `TASKYARD__BROKER__URL` is `broker.url`, and `TASKYARD__BROKER__URL_FILE` (or `url_file` in TOML)
//! is the path of a file that holds it, one newline at its end left off. Who else may read that file is not looked at:
//! container platforms mount secrets readable by all within the container. Variables that begin `TASKYARD_` with one
//! underscore are not settings.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use config::Config;
use toml::{Table, Value};

use super::secret::{MASK, masked, masked_url};
use super::settings::{Anonymous, Settings, TlsSettings};

mod error;
mod layer;
mod rules;
mod shape;
mod source;

pub use error::{ConfigError, Origin};
pub use rules::check_key;
use shape::{DEFAULTS, Key};

/// Settings, and where each came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub settings: Settings,
    /// Files named in the settings are relative to it: the configuration file's folder, or the working directory.
    pub base_dir: PathBuf,
    /// The layer that set each key that some layer set.
    pub origins: BTreeMap<String, Origin>,
    /// Keys whose values are not to be shown.
    pub secrets: BTreeSet<String>,
}

/// One setting as `config show` has it.
#[derive(Clone, PartialEq, Debug)]
pub struct Setting {
    pub key: String,
    /// Passwords masked.
    pub value: Value,
    pub origin: Origin,
}

/// Reads and checks the settings of this process.
pub fn load(file: Option<&Path>) -> Result<Loaded, ConfigError> {
    load_from(file, std::env::vars_os())
}

/// The same with an environment of the caller's.
pub fn load_from(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, ConfigError> {
    let base_dir = base_dir(file)?;
    let mut layers = layer::from_toml(DEFAULTS, None, &base_dir)?;
    let mut merged = Config::builder().add_source(layers.source());
    if let Some(path) = file {
        let above = layer::from_file(path, &base_dir)?;
        merged = merged.add_source(above.source());
        layers.cover(above);
    }
    let above = layer::from_environment(environment, &layers)?;
    let merged = merged.add_source(above.source());
    layers.cover(above);
    rules::check_leaves(&layers)?;
    let mut settings: Settings =
        merged.build().and_then(Config::try_deserialize).map_err(|error| ConfigError::Value {
            key: "settings".to_owned(),
            origin: Origin::Default,
            problem: format!("cannot be read: {error}"),
        })?;
    rules::check(&settings, &layers)?;
    let of_tls = [&mut settings.broker.tls, &mut settings.store.tls];
    for file in of_tls.into_iter().flat_map(TlsSettings::files).filter(|file| !file.as_os_str().is_empty()) {
        *file = base_dir.join(&*file);
    }
    let secrets = layers.leaves.iter().filter(|(_, leaf)| leaf.secret).map(|(key, _)| key.to_string()).collect();
    let origins = layers.leaves.into_iter().map(|(key, leaf)| (key.to_string(), leaf.origin)).collect();
    Ok(Loaded { settings, base_dir, origins, secrets })
}

/// The folder of the file, or the working directory.
fn base_dir(file: Option<&Path>) -> Result<PathBuf, ConfigError> {
    let path = file.unwrap_or(Path::new("."));
    let refused = |source| ConfigError::Read { path: path.to_owned(), source };
    let absolute = std::path::absolute(path).map_err(refused)?;
    Ok(match file {
        Some(_) => absolute.parent().map_or_else(|| absolute.clone(), Path::to_owned),
        None => absolute,
    })
}

impl Loaded {
    /// A file that the settings name.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.base_dir.join(path)
    }

    /// The layer that set `key`.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// Every setting in effect, by key, safe to be shown.
    pub fn show(&self) -> Vec<Setting> {
        let mut all = Vec::new();
        // Settings are made of types that TOML has: reading them back cannot fail.
        if let Ok(table) = Table::try_from(&self.settings) {
            self.flatten(&Key::default(), &Value::Table(table), &mut all);
        }
        all
    }

    fn flatten(&self, key: &Key, value: &Value, all: &mut Vec<Setting>) {
        if let Value::Table(table) = value {
            for (name, value) in table {
                self.flatten(&key.child(name), value, all);
            }
            return;
        }
        let name = key.to_string();
        let shown = match value {
            // Of a URL only the password and what its query says are secret, wherever it came from.
            Value::String(text) if name == "broker.url" || name == "store.url" => Value::String(masked_url(text)),
            _ if self.secrets.contains(&name) => Value::String(MASK.to_owned()),
            Value::String(text) if name == "artifacts.url" || key.pattern() == "models.*.http.url" => {
                Value::String(masked_url(text))
            }
            Value::String(text) => Value::String(masked(text)),
            Value::Array(items) => {
                let shown = |item: &Value| item.as_str().map_or_else(|| item.clone(), |text| masked(text).into());
                Value::Array(items.iter().map(shown).collect())
            }
            other => other.clone(),
        };
        all.push(Setting { origin: self.origin(&name), key: name, value: shown });
    }
}

/// What runs when nobody says otherwise.
impl Default for Settings {
    fn default() -> Self {
        toml::from_str(DEFAULTS).expect("the compiled-in defaults are settings")
    }
}

impl Settings {
    /// Whether broker and store can be shared with other processes, as a role that runs by itself needs them.
    /// `role` is the command, for the sentence.
    pub fn require_shared(&self, role: &str) -> Result<(), ConfigError> {
        for (key, url) in [("broker.url", &self.broker.url), ("store.url", &self.store.url)] {
            if is_embedded(url) {
                return Err(ConfigError::NotShared { key, role: role.to_owned() });
            }
        }
        Ok(())
    }

    /// Whether the gateway may listen where it is to: beyond this machine it asks for keys, unless somebody decided otherwise.
    pub fn require_keys(&self) -> Result<(), ConfigError> {
        let here = self.gateway.listen.ip().to_canonical().is_loopback();
        if here || !self.keys.is_empty() || self.gateway.anonymous == Anonymous::Anywhere {
            return Ok(());
        }
        Err(ConfigError::NoKeys { listen: self.gateway.listen })
    }
}

/// Whether a broker's or store's URL asks for the embedded adapter.
pub fn is_embedded(url: &str) -> bool {
    url.starts_with("embedded:")
}
