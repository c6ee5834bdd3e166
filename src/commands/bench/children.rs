//! Processes of this same binary that a run starts, and ends whatever comes of it.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use taskyard_shared::process::settings::Settings;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{ChildStderr, Command};
use tokio::sync::oneshot;

use super::roles::{Kind, Source};
use crate::failure::Failure;

/// For a child to listen, and for it to end when it is asked to.
const START_LIMIT: Duration = Duration::from_secs(30);
const END_LIMIT: Duration = Duration::from_secs(10);

/// A folder of this run's own, deleted with it.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(parent: &Path, name: &str) -> Result<Self, Failure> {
        let path = parent.join(name);
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes settings where nobody else may read them: there are passwords in them.
    pub fn settings(&self, name: &str, settings: &Settings) -> Result<PathBuf, Failure> {
        let text = toml::to_string(settings).map_err(|failure| Failure::Internal(failure.to_string()))?;
        let path = self.0.join(name);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be deleted is in the folder for temporary files, or where the user wanted it.
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

/// One running child; killed when dropped.
pub struct Child {
    role: String,
    process: tokio::process::Child,
    pid: u32,
    metrics: String,
}

impl Child {
    /// Starts `taskyard --config FILE ARGUMENTS` and waits until it listens.
    pub async fn start(role: &str, arguments: &[&str], settings: &Path) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        // The file has everything: what the environment says is in it already, but for what is the run's own.
        let ours = |name: &OsString| name.to_string_lossy().starts_with("TASKYARD_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| ours(name)) {
            command.env_remove(name);
        }
        command.arg("--config").arg(settings).args(arguments);
        // Not in the terminal's group: Ctrl-C is for the parent, which ends its children in order.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut process = command.spawn()?;
        let (Some(pid), Some(log)) = (process.id(), process.stderr.take()) else {
            return Err(Failure::Internal(format!("the {role} ended at once")));
        };
        let (heard, listening) = oneshot::channel();
        let reading = tokio::spawn(read_log(role.to_owned(), log, heard));
        let address = tokio::select! {
            Ok(address) = listening => address,
            ended = process.wait() => {
                let last = reading.await.unwrap_or_default();
                return Err(Failure::Failed(format!("the {role} ended ({}): {last}", ended?)));
            }
            () = tokio::time::sleep(START_LIMIT) => {
                return Err(Failure::Failed(format!("the {role} does not listen after {} s", START_LIMIT.as_secs())));
            }
        };
        Ok(Self { role: role.to_owned(), process, pid, metrics: format!("http://{address}/metrics") })
    }

    pub fn source(&self) -> Source {
        let kind = Kind::Process { pid: self.pid, metrics: Some(self.metrics.clone()) };
        Source { role: self.role.clone(), kind }
    }

    pub fn role(&self) -> &str {
        &self.role
    }

    /// Kills it with SIGKILL.
    pub async fn kill(mut self) -> Result<(), Failure> {
        Ok(self.process.kill().await?)
    }

    /// Asks it to end, and kills it when it does not.
    pub async fn stop(mut self) {
        if let (Ok(None), Ok(pid)) = (self.process.try_wait(), i32::try_from(self.pid)) {
            // It fails when the child was faster.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if tokio::time::timeout(END_LIMIT, self.process.wait()).await.is_err() {
            tracing::warn!(role = %self.role, "does not end: killed");
            let _gone = self.process.kill().await;
        }
    }
}

#[derive(Deserialize)]
struct Line {
    message: Option<String>,
    level: Option<String>,
    address: Option<String>,
}

/// Passes warnings on, and tells the address once it is said. Answers the last line.
async fn read_log(role: String, log: ChildStderr, heard: oneshot::Sender<String>) -> String {
    let mut heard = Some(heard);
    let mut lines = BufReader::new(log).lines();
    let mut last = String::new();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<Line>(&line) {
            Ok(Line { address: Some(address), .. }) if heard.is_some() => {
                if let Some(heard) = heard.take() {
                    // Nobody waits for it any more.
                    let _gone = heard.send(address);
                }
            }
            Ok(Line { level: Some(level), message, .. }) if level == "WARN" || level == "ERROR" => {
                tracing::warn!(role, level, "{}", message.unwrap_or_default());
            }
            Ok(_) => {}
            Err(_) => tracing::warn!(role, "{line}"),
        }
        last = line;
    }
    last
}
