//! `taskyard`: one binary, one role or client command per subcommand.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "taskyard", version, about = "A work queue for AI models")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The wire format as JSON Schema.
    Schema {
        #[command(subcommand)]
        action: SchemaAction,
    },
}

#[derive(Subcommand)]
enum SchemaAction {
    /// Prints the schema of every message as one JSON object.
    Export,
}

fn main() -> ExitCode {
    let Cli { command: Command::Schema { action: SchemaAction::Export } } = Cli::parse();
    match export_schemas() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("taskyard: cannot write the schemas: {error}");
            ExitCode::FAILURE
        }
    }
}

fn export_schemas() -> std::io::Result<()> {
    let schemas: serde_json::Map<_, _> =
        taskyard_shared::schema::schemas().into_iter().map(|(name, schema)| (name.to_owned(), schema.into())).collect();
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &schemas)?;
    writeln!(out)
}
