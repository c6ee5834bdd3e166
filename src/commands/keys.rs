//! `taskyard keys`: makes keys to the HTTP API. Nothing is asked of a yard: what the gateway needs of a key goes into its settings.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use taskyard_shared::process::config::check_key;
use taskyard_shared::process::exit::Exit;
use taskyard_shared::process::keys::NewKey;
use taskyard_shared::process::settings::KeySettings;

use super::{finish, say};
use crate::client::Failure;
use crate::output::{Format, Output, pipe_may_close};

#[derive(Args, Clone, Debug)]
pub struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
    /// How data is printed
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Format,
}

#[derive(Subcommand, Clone, Debug)]
enum KeysCommand {
    /// Makes a key: prints it once, and the lines of the gateway's settings that let it in
    New(NewArgs),
}

#[derive(Args, Clone, Debug)]
struct NewArgs {
    /// Its name in the settings
    #[arg(long)]
    name: String,
    /// The one tenant whose tasks it submits, sees and changes; * for all
    #[arg(long)]
    tenant: String,
    /// What may be done with it, of submit, read, control and admin, separated by commas
    #[arg(long, value_delimiter = ',', required = true)]
    scopes: Vec<String>,
    /// Until when it holds, such as 2030-01-01T00:00:00Z; without it for ever
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// Writes the key into this new file, for its owner alone, instead of printing it
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// A key that was made.
#[derive(Serialize)]
struct Made {
    name: String,
    /// Not when it was written to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(flatten)]
    settings: KeySettings,
}

pub fn run(arguments: KeysArgs) -> Exit {
    let KeysArgs { command: KeysCommand::New(arguments), output } = arguments;
    finish(new(arguments, output))
}

fn new(arguments: NewArgs, format: Format) -> Result<Exit, Failure> {
    let failed = |error: io::Error| Failure::new(Exit::Failed, format!("no key can be made: {error}"));
    let NewArgs { name, tenant, scopes, expires, key_file } = arguments;
    let key = NewKey::generate().map_err(failed)?;
    let settings = KeySettings { sha256: key.sha256(), tenant, scopes, expires };
    check_key(&name, &settings).map_err(|problem| Failure::new(Exit::Usage, problem))?;
    if let Some(path) = &key_file {
        write_new(path, key.text()).map_err(|error| {
            Failure::new(Exit::Usage, format!("cannot write the key to {}: {error}", path.display()))
        })?;
    }
    let made = Made { name, key: key_file.is_none().then(|| key.text().to_owned()), settings };
    if let Err(error) = print(&made, format) {
        // Nobody has the lines that let it in.
        let left = key_file.as_deref().filter(|path| std::fs::remove_file(path).is_err());
        let left = left.map(|path| format!("; a key is left in {}", path.display())).unwrap_or_default();
        return Err(Failure::new(Exit::Failed, format!("standard output cannot be written: {error}{left}")));
    }
    say(match made.key {
        Some(_) => "the key is shown this once; the lines below it are for the gateway's settings",
        None => "the lines are for the gateway's settings",
    });
    Ok(Exit::Ok)
}

/// A file that others cannot read and that was not there.
fn write_new(path: &Path, key: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{key}")?;
    file.sync_all()
}

fn print(made: &Made, format: Format) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if format != Format::Table {
        return Output { format, colour: false, out: &mut out }.one(made, |_| Vec::new());
    }
    let written = made.key.as_ref().map_or(Ok(()), |key| writeln!(out, "{key}\n")).and_then(|()| lines(made, &mut out));
    pipe_may_close(written.and_then(|()| out.flush()))
}

/// As the settings have it.
fn lines(made: &Made, out: &mut impl Write) -> io::Result<()> {
    let table = toml::Table::try_from(&made.settings).map_err(io::Error::other)?;
    // A name may have dots, and is then no bare key.
    writeln!(out, "[keys.{}]", toml::Value::String(made.name.clone()))?;
    write!(out, "{table}")
}
