//! `taskyard artifact`: files in and out, for tasks that name what they work on.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use taskyard_shared::artifacts::ARTIFACT_BYTES;
use taskyard_shared::process::exit::Exit;

use super::files::{Target, read_whole};
use super::{ClientArgs, finish};
use crate::client::{Api, Failure};

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
    /// Where it goes, and takes the place of a file once all of it is there; standard output when it is not given
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
        let mut failed = None;
        for file in &self.files {
            match put(&api, file).await {
                Ok(one) => kept.push(one),
                Err(failure) => {
                    failed = Some(failure);
                    break;
                }
            }
        }
        // What was done is told before what was not.
        if !kept.is_empty() || failed.is_none() {
            client.print(|output| {
                output.rows(&["artifact", "bytes", "file"], &kept, |kept| {
                    vec![kept.to.clone(), kept.bytes.to_string(), kept.file.clone()]
                })
            })?;
        }
        failed.map_or(Ok(Exit::Ok), Err)
    }
}

async fn put(api: &Api, file: &Path) -> Result<Kept, Failure> {
    let answer = api.upload("v1/artifacts", read_whole(file, ARTIFACT_BYTES as usize)?).await?;
    Ok(Kept { file: file.display().to_string(), ..api.decode(&answer)? })
}

impl GetArgs {
    async fn run(&self, client: &ClientArgs) -> Result<Exit, Failure> {
        let is_name =
            |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b':');
        if !is_name(&self.name) {
            return Err(Failure::new(Exit::Usage, "NAME must be artifact: and 64 hexadecimal digits"));
        }
        let (api, path) = (client.api()?, format!("v1/artifacts/{}", self.name));
        let (place, target) = match &self.out {
            None => ("standard output".to_owned(), Ok(Target::Stdout)),
            Some(file) => (file.display().to_string(), Target::open(file)),
        };
        let unwritten = |error: io::Error| Failure::new(Exit::Failed, format!("{place} cannot be written: {error}"));
        let mut target = target.map_err(unwritten)?;
        api.download(&path, |chunk| target.write(chunk).map_err(unwritten)).await?;
        target.finish().map_err(unwritten)?;
        Ok(Exit::Ok)
    }
}
