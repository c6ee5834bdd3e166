//! The handler `process`: a model in a program of its own, in any language.
//!
//! The program is a child that lives as long as the worker does, one for each slot that is in use: the first is started
//! with the worker, so that a wrong command shows at once. [`protocol`] says what the two write to each other.
//!
//! The command is a program and its arguments; no shell reads it, and nothing of a task gets into it. The child has an
//! environment of its own (`PATH`, `HOME`, `LANG` and what the settings say), is held to the limits of the settings, leads a process group, and inherits no
//! file but its three pipes. It should end when its stdin does: that is all it learns of a worker that was killed.
//!
//! A task that is cancelled or out of time is told to the child as `{"cancel": "id"}`. If it has not answered within the grace time of
//! the settings, the group gets SIGTERM, and SIGKILL a second later, and a new child takes its place; but not while the child works
//! on other tasks of the same call, which are nobody's to lose. A process that
//! leaves the group escapes this, though not its limits: starting the program through one that keeps it in, such as `bwrap`, sees to
//! that.

mod child;
mod files;
mod keeper;
mod limits;
mod lines;
mod protocol;
mod recycle;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use taskyard_shared::TaskError;
use taskyard_shared::artifacts::Artifacts;
use taskyard_shared::process::settings::ProcessSettings;
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::child::Command;
use self::files::Files;
use self::keeper::{Call, Idle, Keeper, closed};
use crate::handler::{Answer, Handler, Job};
use crate::handlers::LoadError;

/// Each is a process; more of them than this are a mistake.
const MOST_SLOTS: usize = 256;

/// A child that is killed has ended within this time.
const ENDING: Duration = Duration::from_secs(4);

/// A model's program, and those who keep its children.
pub struct ProcessHandler {
    slots: Arc<Semaphore>,
    /// As many as there are free slots.
    idle: Idle,
    keepers: TaskTracker,
    closing: CancellationToken,
    protocol_errors: Arc<AtomicU64>,
    grace: Duration,
    files: Option<Files>,
}

impl ProcessHandler {
    /// Starts the first child and watches it for a second.
    ///
    /// # Errors
    /// When the program cannot be started, or has ended by then.
    pub async fn start(
        name: &str,
        settings: &ProcessSettings,
        slots: u32,
        max_batch: u32,
        base_dir: &Path,
    ) -> Result<Self, LoadError> {
        let command = Arc::new(Command::new(name, settings, base_dir)?);
        let slots = usize::try_from(slots).ok().filter(|slots| *slots <= MOST_SLOTS).ok_or_else(|| {
            LoadError::process(name, format!("slots must be at most {MOST_SLOTS}: each is a process"))
        })?;
        let closing = CancellationToken::new();
        let grace = command.cancel_grace + ENDING;
        let protocol_errors = Arc::default();
        let keeper = || Keeper::new(Arc::clone(&command), max_batch > 1, closing.clone(), Arc::clone(&protocol_errors));
        let mut first = keeper();
        first.start_and_watch().await?;

        let (idle, keepers) = (Idle::default(), TaskTracker::new());
        for keeper in (1..slots).map(|_| keeper()).chain([first]) {
            let (own, calls) = mpsc::channel(1);
            idle.push(own.clone());
            keepers.spawn(keeper.run(own, calls, idle.clone()));
        }
        Ok(Self { slots: Arc::new(Semaphore::new(slots)), idle, keepers, closing, protocol_errors, grace, files: None })
    }

    /// Children get artifacts as files, and leave files that become artifacts.
    pub fn with_files(mut self, artifacts: Artifacts) -> Self {
        self.files = Some(Files { artifacts });
        self
    }

    /// Asks a child, as soon as one is free. `folders` are the jobs' own, or none.
    async fn ask(&self, batch: Vec<Job>, folders: Vec<PathBuf>) -> Vec<Answer> {
        let tasks = batch.len();
        if tasks == 0 {
            return Vec::new();
        }
        let unavailable = || vec![Err(closed()); tasks];
        let slot = tokio::select! {
            biased;
            () = self.closing.cancelled() => return unavailable(),
            slot = Arc::clone(&self.slots).acquire_owned() => slot,
        };
        let (Ok(slot), Some(keeper)) = (slot, self.idle.pop()) else { return unavailable() };
        let (reply, answers) = oneshot::channel();
        if keeper.try_send(Call { jobs: batch, folders, reply, slot }).is_err() {
            return unavailable();
        }
        answers.await.unwrap_or_else(|_| unavailable())
    }

    /// Those whose files could be brought are run; the others have their answers.
    async fn execute_on_files(&self, files: &Files, batch: Vec<Job>) -> Vec<Answer> {
        let mut places: Vec<Result<(), TaskError>> = Vec::with_capacity(batch.len());
        let (mut jobs, mut folders): (Vec<Job>, Vec<TempDir>) = Default::default();
        for mut job in batch {
            places.push(match files.bring(&mut job).await {
                Ok(folder) => {
                    jobs.push(job);
                    folders.push(folder);
                    Ok(())
                }
                Err(failed) => Err(failed),
            });
        }
        let asked = match jobs.is_empty() {
            true => Vec::new(),
            false => self.ask(jobs, folders.iter().map(|folder| folder.path().to_owned()).collect()).await,
        };
        let mut answers = asked.into_iter().zip(&folders);
        let mut all = Vec::with_capacity(places.len());
        for place in places {
            all.push(match place {
                Err(failed) => Err(failed),
                Ok(()) => match answers.next() {
                    Some((Ok(output), folder)) => files.take(folder.path(), output).await,
                    Some((Err(failed), _)) => Err(failed),
                    None => Err(closed()),
                },
            });
        }
        all
    }

    /// Lines that children wrote and that were no answers.
    pub fn protocol_errors(&self) -> u64 {
        self.protocol_errors.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Handler for ProcessHandler {
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        match &self.files {
            Some(files) => self.execute_on_files(files, batch).await,
            None => self.ask(batch, Vec::new()).await,
        }
    }

    fn grace(&self) -> Duration {
        self.grace
    }

    /// Ends the children: idle ones by closing their stdin, those that work by cancelling their tasks.
    async fn close(&self) {
        self.closing.cancel();
        self.keepers.close();
        self.keepers.wait().await;
    }
}

impl Drop for ProcessHandler {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}
