//! `taskyard artifact`: files in and out, for tasks that name what they work on.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use taskyard_shared::process::exit::Exit;

use super::{ClientArgs, finish};
use crate::client::Failure;

#[derive(Args, Clone, Debug)]
pub struct ArtifactArgs {
    #[command(subcommand)]
    command: ArtifactCommand,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Subcommand, Clone, Debug)]
enum ArtifactCommand {
    /// Keeps files, and prints how tasks name each
    Put(PutArgs),
    /// Reads one, to standard output or into a file
    Get(GetArgs),
}

#[derive(Args, Clone, Debug)]
struct PutArgs {
    /// Files, or - for standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

#[derive(Args, Clone, Debug)]
struct GetArgs {
    /// artifact: and the SHA-256, as `put` printed it
    #[arg(value_name = "NAME")]
    name: String,
    /// Where it goes; standard output when it is not given
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What the API says of a file that it keeps.
#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(rename = "$ref")]
    to: String,
    bytes: u64,
    #[serde(default)]
    file: String,
}

pub async fn run(arguments: ArtifactArgs) -> Exit {
    let client = &arguments.client;
    finish(match &arguments.command {
        ArtifactCommand::Put(put) => put.run(client).await,
        ArtifactCommand::Get(get) => get.run(client).await,
    })
}

impl PutArgs {
    async fn run(&self, client: &ClientArgs) -> Result<Exit, Failure> {
        let api = client.api()?;
        let mut kept = Vec::with_capacity(self.files.len());
        for file in &self.files {
            let answer = api.upload("v1/artifacts", read(file)?).await?;
            kept.push(Kept { file: file.display().to_string(), ..api.decode(&answer)? });
        }
        client.print(|output| {
            output.rows(&["artifact", "bytes", "file"], &kept, |kept| {
                vec![kept.to.clone(), kept.bytes.to_string(), kept.file.clone()]
            })
        })?;
        Ok(Exit::Ok)
    }
}

impl GetArgs {
    async fn run(&self, client: &ClientArgs) -> Result<Exit, Failure> {
        let is_name =
            |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b':');
        if !is_name(&self.name) {
            return Err(Failure::new(Exit::Usage, "NAME must be artifact: and 64 hexadecimal digits"));
        }
        let (api, path) = (client.api()?, format!("v1/artifacts/{}", self.name));
        let Some(file) = &self.out else {
            let mut out = io::stdout().lock();
            let unwritten = |error| Failure::new(Exit::Failed, format!("standard output cannot be written: {error}"));
            api.download(&path, |chunk| out.write_all(chunk).map_err(unwritten)).await?;
            out.flush().map_err(unwritten)?;
            return Ok(Exit::Ok);
        };
        let unwritten = |error: io::Error| Failure::new(Exit::Failed, format!("{}: {error}", file.display()));
        // Beside its place until it is whole: what stood there stays if it does not come.
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut whole = tempfile::NamedTempFile::new_in(folder).map_err(unwritten)?;
        api.download(&path, |chunk| whole.write_all(chunk).map_err(unwritten)).await?;
        whole.as_file().sync_all().map_err(unwritten)?;
        whole.persist(file).map_err(|failure| unwritten(failure.error))?;
        Ok(Exit::Ok)
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let unread = |error: io::Error| Failure::new(Exit::Usage, format!("{}: {error}", file.display()));
    if file != Path::new("-") {
        return std::fs::read(file).map_err(unread);
    }
    let mut content = Vec::new();
    io::stdin().lock().read_to_end(&mut content).map_err(unread)?;
    Ok(content)
}
