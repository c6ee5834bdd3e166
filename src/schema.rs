//! `taskyard schema export`.

use std::io::Write;

use clap::Subcommand;

use crate::failure::Failure;
use crate::output::pipe_may_close;

#[derive(Subcommand)]
pub enum SchemaAction {
    /// Prints the schema of every message as one JSON object.
    Export,
}

pub fn run(action: SchemaAction) -> Result<(), Failure> {
    let SchemaAction::Export = action;
    let schemas: serde_json::Map<_, _> =
        taskyard_shared::schema::schemas().into_iter().map(|(name, schema)| (name.to_owned(), schema.into())).collect();
    let mut out = std::io::stdout().lock();
    let written =
        serde_json::to_writer_pretty(&mut out, &schemas).map_err(std::io::Error::from).and_then(|()| writeln!(out));
    pipe_may_close(written).map_err(|error| Failure::Internal(format!("the schemas cannot be written: {error}")))
}
