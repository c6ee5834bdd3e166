//! Why settings were refused, in one sentence that names the key and the layer. No value that may hold a secret is
//! part of a sentence.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The layer that set a value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Origin {
    /// `settings.default.toml`, or the default of a model's setting.
    Default,
    File {
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    Environment {
        variable: String,
    },
}

/// As `config show` prints it: `default`, `file:PATH` or `environment:VARIABLE`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, .. } => write!(f, "file:{}", path.display()),
            Self::Environment { variable } => write!(f, "environment:{variable}"),
        }
    }
}

impl Origin {
    /// Where to go and change it, for the start of a sentence.
    fn place(&self) -> String {
        match self {
            Self::Default => "default settings".to_owned(),
            Self::File { path, line } => format!("{}:{line}", path.display()),
            Self::Environment { variable } => format!("environment variable {variable}"),
        }
    }
}

/// Why settings were refused. Its text is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}:{line}:{column}: not TOML: {message}", path.display())]
    Syntax { path: PathBuf, line: usize, column: usize, message: String },
    #[error("{}: {key} is not a setting{}", origin.place(), suggestion.as_ref().map(|key| format!("; did you mean {key}?")).unwrap_or_default())]
    UnknownKey { key: String, origin: Origin, suggestion: Option<String> },
    #[error("{}: {key} must be {expected}, not {found}", origin.place())]
    WrongType { key: String, origin: Origin, expected: String, found: String },
    #[error("{}: {key} is set twice, here and by {}", origin.place(), other.place())]
    Twice { key: String, origin: Origin, other: Origin },
    #[error("{}: {key} cannot be read from the file {}: {problem}", origin.place(), path.display())]
    Secret { key: String, origin: Origin, path: PathBuf, problem: String },
    #[error("{}: {key} {problem}", origin.place())]
    Value { key: String, origin: Origin, problem: String },
    #[error(
        "{key} is embedded:, which is for one process alone, but `{role}` shares it with others: give {key} the URL of a \
         server, or run `taskyard dev`"
    )]
    NotShared { key: &'static str, role: String },
    #[error(
        "gateway.listen is {listen}, which others can reach, and there are no keys: make one with `taskyard keys new`, or listen \
         on 127.0.0.1, or serve everybody with gateway.anonymous = \"anywhere\""
    )]
    NoKeys { listen: SocketAddr },
}
