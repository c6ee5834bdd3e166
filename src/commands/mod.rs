//! The client commands: what a user asks of a running yard, over its HTTP API; `bench`, `doctor` and `health` look for
//! themselves.

pub mod artifact;
pub mod bench;
pub mod dead;
pub mod doctor;
pub mod files;
pub mod health;
pub mod keys;
pub mod models;
mod numbers;
mod pages;
pub mod queues;
pub mod schedule;
pub mod simulate;
pub mod task;
pub mod workers;
pub mod workflow;

use std::io::{self, Write};

use clap::{Args, Subcommand};
use taskyard_shared::process::exit::Exit;

use crate::client::{Api, ApiArgs, Failure};
use crate::output::{Format, Output, colour, visible};

/// What every client command takes.
#[derive(Args, Clone, Debug)]
pub struct ClientArgs {
    #[command(flatten)]
    pub api: ApiArgs,
    /// How data is printed
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub output: Format,
}

/// The one thing that can be asked of models and workers so far; it may be left out.
#[derive(Subcommand, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListCommand {
    /// Prints all of them
    List,
}

impl ClientArgs {
    fn api(&self) -> Result<Api, Failure> {
        Api::new(&self.api)
    }

    /// Prints to standard output.
    fn print(&self, print: impl FnOnce(&mut Output<'_>) -> io::Result<()>) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        print(&mut Output { format: self.output, colour: colour(), out: &mut out })
            .map_err(|error| Failure::new(Exit::Failed, format!("standard output cannot be written: {error}")))
    }
}

/// The exit code; a failure is said on standard error.
fn finish(done: Result<Exit, Failure>) -> Exit {
    done.unwrap_or_else(|failure| {
        say(&failure.message);
        failure.exit
    })
}

/// Words for people. What the other end wrote into them must not steer the terminal.
fn say(message: &str) {
    // With standard error gone as well, the exit code is all that is left.
    let _gone = writeln!(io::stderr(), "taskyard: {}", visible(message));
}

/// At most so many characters of a text.
fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
