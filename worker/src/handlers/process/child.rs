//! One child process: how it is started, what it says, and how it is ended together with everything it started.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use taskyard_shared::process::settings::{ProcessLimits, ProcessSettings};
use tokio::io::AsyncWriteExt;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::limits;
use super::lines::{Line, Lines};
use super::recycle::Recycle;
use crate::handlers::LoadError;
use crate::handlers::answer::clean;

/// Longest line on stdout; what a worker takes as an output is less.
pub(super) const LINE_BYTES: usize = 8 << 20;

/// Longest line on stderr that is logged whole, and most lines logged in a second.
const LOG_LINE_BYTES: usize = 2048;
const LOG_LINES: u32 = 100;

/// What a child inherits of the worker's environment.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LANG"];

/// From SIGTERM to SIGKILL.
const KILL_AFTER: Duration = Duration::from_secs(1);

/// For what a dead process leaves in its pipes, and for the kernel to bury it.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Writes that may wait for the child to read: a request and its cancellation.
const WRITES: usize = 4;

/// What to start. It cannot be printed: its environment holds secrets.
pub(super) struct Command {
    pub model: String,
    program: PathBuf,
    arguments: Vec<String>,
    directory: PathBuf,
    inherit: Vec<String>,
    environment: BTreeMap<String, String>,
    limits: ProcessLimits,
    /// How long a child may take to stop when it is told that a task is cancelled. Then it is ended.
    pub cancel_grace: Duration,
    pub recycle: Recycle,
}

impl Command {
    pub fn new(name: &str, settings: &ProcessSettings, base_dir: &Path) -> Result<Self, LoadError> {
        let invalid = |reason: String| LoadError::process(name, reason);
        let Some((program, arguments)) = settings.command.split_first().filter(|(program, _)| !program.is_empty())
        else {
            return Err(invalid("process.command is empty: it must be a program and its arguments".to_owned()));
        };
        if let Some(key) = settings.environment.keys().find(|key| key.is_empty() || key.contains(['=', '\0'])) {
            return Err(invalid(format!("process.environment: {key:?} is not a name of a variable")));
        }
        let directory = match &settings.directory {
            Some(directory) => base_dir.join(directory),
            None => base_dir.to_owned(),
        };
        // An empty path is the working directory, but not to the calls that change to it.
        let directory = if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
        let directory = directory
            .canonicalize()
            .ok()
            .filter(|directory| directory.is_dir())
            .ok_or_else(|| invalid(format!("process.directory: {} is not a folder", directory.display())))?;
        // A bare name is looked for in PATH. Any other is relative to the child's folder, which would otherwise depend
        // on the platform.
        let program = if program.contains('/') { directory.join(program) } else { PathBuf::from(program) };
        Ok(Self {
            model: name.to_owned(),
            program,
            arguments: arguments.to_vec(),
            directory,
            inherit: settings.inherit.clone(),
            environment: settings.environment.clone(),
            limits: settings.limits.clone(),
            cancel_grace: Duration::from_millis(settings.cancel_grace_ms),
            recycle: Recycle::new(settings),
        })
    }

    pub fn program(&self) -> std::path::Display<'_> {
        self.program.display()
    }

    /// Starts it as the leader of a process group of its own.
    pub fn start(&self) -> io::Result<Child> {
        let names = INHERITED.into_iter().chain(self.inherit.iter().map(String::as_str));
        let inherited: Vec<(&str, OsString)> =
            names.filter_map(|key| std::env::var_os(key).map(|value| (key, value))).collect();
        let mut process = tokio::process::Command::new(&self.program)
            .args(&self.arguments)
            .current_dir(&self.directory)
            .env_clear()
            .envs(inherited)
            .envs(&self.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pipes = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let id = process.id().and_then(|id| i32::try_from(id).ok());
        let ((Some(stdin), Some(stdout), Some(stderr)), Some(id)) = (pipes, id) else {
            return Err(io::Error::other("the process has no pipes or no id"));
        };
        // Dropped with an error, it is killed.
        limits::set(id, &self.limits)?;
        let (writes, queue) = mpsc::channel(WRITES);
        let last_words = Arc::default();
        let log = log(stderr, self.model.clone(), id, Arc::clone(&last_words));
        tracing::debug!(task.model = self.model, process.pid = id, "the model's process started");
        Ok(Child {
            process,
            group: Pid::from_raw(id),
            writes,
            writer: Some(tokio::spawn(write(stdin, queue))),
            stdout: Some(Lines::new(stdout, LINE_BYTES)),
            log: tokio::spawn(log),
            last_words,
            status: None,
            given: 0,
            ends_by: None,
        })
    }
}

/// What a child did.
#[derive(Debug)]
pub(super) enum Event {
    Line(Line),
    /// It ended, or cannot be talked to any more; how, for people. What it had said before was told before.
    Ended(String),
}

pub(super) struct Child {
    process: tokio::process::Child,
    group: Pid,
    writes: mpsc::Sender<Vec<u8>>,
    /// Until it ends, which it does by itself only when the child reads no more.
    writer: Option<JoinHandle<()>>,
    /// Until its end.
    stdout: Option<Lines<ChildStdout>>,
    log: JoinHandle<()>,
    last_words: Arc<Mutex<String>>,
    /// Once it has ended. The group has been killed then, and its number may soon be another's.
    status: Option<ExitStatus>,
    /// Tasks that it was given.
    pub given: u64,
    /// When to stop waiting for the rest, once one sign of its end was seen.
    ends_by: Option<Instant>,
}

impl Child {
    pub fn id(&self) -> i32 {
        self.group.as_raw()
    }

    /// The last line on its stderr; empty when there was none.
    pub fn last_words(&self) -> String {
        self.last_words.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends bytes to its stdin, without waiting for it to read them. `false` when it has stopped reading.
    pub fn send(&self, bytes: Vec<u8>) -> bool {
        self.writes.try_send(bytes).is_ok()
    }

    /// Whether it has ended, seen or not yet.
    pub fn is_dead(&mut self) -> bool {
        if self.status.is_none()
            && let Some(status) = self.process.try_wait().transpose()
        {
            self.has_ended(status);
        }
        self.status.is_some()
    }

    /// What it does next. May be dropped at any time without anything being lost.
    pub async fn next(&mut self) -> Event {
        loop {
            if self.status.is_some() && self.stdout.is_none() {
                return Event::Ended(self.how_it_ended());
            }
            let ends_by = self.ends_by;
            tokio::select! {
                line = next_line(&mut self.stdout) => match line {
                    Some(line) => return Event::Line(line),
                    None => {
                        self.stdout = None;
                        self.expect_end();
                    }
                },
                status = self.process.wait(), if self.status.is_none() => {
                    self.has_ended(status);
                    self.expect_end();
                }
                () = end_of(&mut self.writer) => {
                    self.writer = None;
                    self.expect_end();
                }
                () = sleep_until(ends_by.unwrap_or_else(Instant::now)), if ends_by.is_some() => {
                    return Event::Ended(self.how_it_ended());
                }
            }
        }
    }

    /// Ends it and everything in its process group. Its stdin is closed; it has `patience` to end by itself, then gets
    /// SIGTERM, and a second later SIGKILL.
    pub async fn end(&mut self, patience: Duration) {
        if let Some(writer) = self.writer.take() {
            writer.abort();
        }
        self.wait(patience).await;
        if self.signal(Signal::SIGTERM) {
            self.wait(KILL_AFTER).await;
        }
        if self.signal(Signal::SIGKILL) {
            self.wait(LAST_MOMENT).await;
        }
        // Its last lines to the log; only a process that left the group can still hold the pipe.
        let _ = timeout(LAST_MOMENT, &mut self.log).await;
    }

    /// Waits for its end, reading on: a process that cannot write does not get to its end.
    async fn wait(&mut self, most: Duration) {
        let until = Instant::now() + most;
        while self.status.is_none() {
            tokio::select! {
                status = self.process.wait() => self.has_ended(status),
                line = next_line(&mut self.stdout) => if line.is_none() {
                    self.stdout = None;
                },
                () = sleep_until(until) => return,
            }
        }
    }

    fn expect_end(&mut self) {
        self.ends_by.get_or_insert_with(|| Instant::now() + LAST_MOMENT);
    }

    fn has_ended(&mut self, status: io::Result<ExitStatus>) {
        // Whatever it had started goes with it. Its number cannot have become another's yet: not while members of the
        // group live, and otherwise not within microseconds.
        let _ = killpg(self.group, Signal::SIGKILL);
        // It is no child of ours any more when waiting for it fails.
        self.status = Some(status.unwrap_or_default());
    }

    /// Signals the whole group, unless it has ended already.
    fn signal(&self, signal: Signal) -> bool {
        if self.status.is_none() {
            let _ = killpg(self.group, signal);
        }
        self.status.is_none()
    }

    fn how_it_ended(&self) -> String {
        match (self.status, &self.stdout, &self.writer) {
            (Some(status), ..) => status.to_string(),
            (None, None, _) => "it closed its stdout".to_owned(),
            (None, Some(_), None) => "it closed its stdin".to_owned(),
            (None, Some(_), Some(_)) => "it hangs".to_owned(),
        }
    }
}

impl Drop for Child {
    /// For a runtime that shuts down; everyone else calls [`Child::end`].
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        if let Some(writer) = &self.writer {
            writer.abort();
        }
        self.log.abort();
    }
}

/// The next line; nothing at the end, and never again after it.
async fn next_line(stdout: &mut Option<Lines<ChildStdout>>) -> Option<Line> {
    match stdout {
        Some(lines) => lines.next().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

async fn end_of(writer: &mut Option<JoinHandle<()>>) {
    match writer {
        Some(writer) => drop(writer.await),
        None => std::future::pending().await,
    }
}

async fn write(mut stdin: ChildStdin, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = queue.recv().await {
        if stdin.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Takes the child's stderr to the worker's log, line by line and bounded in both directions.
async fn log(stderr: ChildStderr, model: String, pid: i32, last_words: Arc<Mutex<String>>) {
    let mut lines = Lines::new(stderr, LOG_LINE_BYTES);
    let (mut second, mut logged, mut left_out) = (Instant::now(), 0u32, 0u64);
    loop {
        let line = lines.next().await;
        let is_over = second.elapsed() >= Duration::from_secs(1);
        if left_out > 0 && (is_over || !matches!(line, Ok(Some(_)))) {
            tracing::info!(task.model = model, process.pid = pid, "{left_out} more lines on stderr");
            left_out = 0;
        }
        if is_over {
            (second, logged) = (Instant::now(), 0);
        }
        let text = match line {
            Ok(Some(Line::Whole(bytes))) => clean(&bytes, LOG_LINE_BYTES),
            Ok(Some(Line::TooLong(bytes))) => clean(&bytes, LOG_LINE_BYTES) + "…",
            Ok(None) | Err(_) => return,
        };
        if text.is_empty() {
            continue;
        }
        if logged < LOG_LINES {
            logged += 1;
            tracing::info!(task.model = model, process.pid = pid, "{text}");
        } else {
            left_out += 1;
        }
        *last_words.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}
