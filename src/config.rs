//! `taskyard config`: the settings in effect, and whether they can be used.

use std::io::{self, Write};
use std::path::Path;

use clap::Subcommand;
use serde::Serialize;
use taskyard_shared::process::config::{ConfigError, Loaded, Setting, load};
use taskyard_shared::process::exit::Exit;

use crate::output::{Format, Output, colour};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Subcommand)]
pub enum Command {
    /// Prints every setting, its value and the layer that set it; passwords are masked.
    Show,
    /// Reads the settings as a role would, and says what is wrong with them.
    Check,
}

/// Runs the command on the settings of `file` and the environment.
pub fn run(command: Command, format: Format, file: Option<&Path>) -> Exit {
    let mut out = io::stdout().lock();
    let output = Output { format, colour: colour(), out: &mut out };
    let mut words = io::stderr().lock();
    execute(command, load(file), output, &mut words).unwrap_or_else(|error| {
        // With standard error gone as well, the exit code is all that is left.
        let _ = writeln!(words, "taskyard: cannot write: {error}");
        Exit::Failed
    })
}

#[derive(Serialize)]
struct Row {
    key: String,
    value: toml::Value,
    layer: String,
}

impl From<Setting> for Row {
    fn from(Setting { key, value, origin }: Setting) -> Self {
        Self { key, value, layer: origin.to_string() }
    }
}

fn execute(
    command: Command,
    loaded: Result<Loaded, ConfigError>,
    mut output: Output<'_>,
    words: &mut dyn Write,
) -> io::Result<Exit> {
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            writeln!(words, "taskyard: {error}")?;
            return Ok(Exit::Usage);
        }
    };
    match command {
        Command::Show => {
            let rows: Vec<Row> = loaded.show().into_iter().map(Row::from).collect();
            output.rows(&["key", "value", "layer"], &rows, |Row { key, value, layer }| {
                vec![key.clone(), value.to_string(), layer.clone()]
            })?;
        }
        Command::Check => writeln!(words, "taskyard: the settings can be used")?,
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use taskyard_shared::process::config::load_from;

    use super::*;

    /// Exit code, standard output, standard error.
    fn executed(command: Command, format: Format, variables: &[(&str, &str)]) -> (Exit, String, String) {
        let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let (mut out, mut words) = (Vec::new(), Vec::new());
        let output = Output { format, colour: false, out: &mut out };
        let exit = execute(command, load_from(None, variables), output, &mut words).unwrap();
        (exit, String::from_utf8(out).unwrap(), String::from_utf8(words).unwrap())
    }

    const URL: (&str, &str) = ("TASKYARD__BROKER__URL", "amqp://u:s3cret@h");

    #[test]
    fn show_prints_every_setting_with_its_layer_and_no_password() {
        let (exit, table, words) = executed(Command::Show, Format::Table, &[URL]);
        assert_eq!((exit, words.as_str()), (Exit::Ok, ""));
        let row =
            |key: &str| table.lines().find(|line| line.starts_with(key)).map(|line| line.split_whitespace().collect());
        let found: Option<Vec<&str>> = row("broker.url");
        assert_eq!(found, Some(vec!["broker.url", "\"amqp://u:***@h\"", "environment:TASKYARD__BROKER__URL"]));
        assert_eq!(row("worker.id"), Some(vec!["worker.id", "\"\"", "default"]));
        assert!(!table.contains("s3cret"));

        let (_, lines, _) = executed(Command::Show, Format::Jsonl, &[URL]);
        let rows: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.len(), table.lines().count() - 1);
        assert!(rows.contains(&serde_json::json!({"key": "broker.heartbeat_s", "value": 10, "layer": "default"})));
    }

    #[test]
    fn check_says_in_one_sentence_what_is_wrong() {
        let (exit, out, words) = executed(Command::Check, Format::Table, &[URL]);
        assert_eq!((exit, out.as_str(), words.as_str()), (Exit::Ok, "", "taskyard: the settings can be used\n"));
        for command in [Command::Check, Command::Show] {
            let (exit, out, words) = executed(command, Format::Json, &[("TASKYARD__BROKER__ULR", "x")]);
            assert_eq!((exit, out.as_str()), (Exit::Usage, ""));
            let sentence =
                "environment variable TASKYARD__BROKER__ULR: broker.ulr is not a setting; did you mean broker.url?";
            assert_eq!(words, format!("taskyard: {sentence}\n"));
        }
    }
}
