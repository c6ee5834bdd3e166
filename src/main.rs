//! `taskyard`: one binary, one role or client command per subcommand.

mod client;
mod commands;
mod output;

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
    /// Submits tasks, and looks them up
    Task(commands::task::TaskArgs),
    /// The models that workers serve
    Models(commands::models::ModelsArgs),
    /// The workers and how busy they are
    Workers(commands::workers::WorkersArgs),
    /// What waits in the broker
    Queues(commands::queues::QueuesArgs),
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

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Task(arguments) => commands::task::run(arguments).await.into(),
        Command::Models(arguments) => commands::models::run(arguments).await.into(),
        Command::Workers(arguments) => commands::workers::run(arguments).await.into(),
        Command::Queues(arguments) => commands::queues::run(arguments).await.into(),
        Command::Schema { action: SchemaAction::Export } => match export_schemas() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("taskyard: cannot write the schemas: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

fn export_schemas() -> std::io::Result<()> {
    let schemas: serde_json::Map<_, _> =
        taskyard_shared::schema::schemas().into_iter().map(|(name, schema)| (name.to_owned(), schema.into())).collect();
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &schemas)?;
    writeln!(out)
}
