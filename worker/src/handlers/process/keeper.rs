//! The owner of one slot's child: gives it the calls, starts it again when it dies, and ends it when a call is dropped.
//!
//! A call's future may be dropped at any point, but the child goes on working. So the child is not the future's: it is
//! kept by a task of its own, which notices that nobody waits any more, tells the child to stop, and gives the slot back
//! only when it has.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use taskyard_shared::control::CANCELLED;
use taskyard_shared::retry::Backoff;
use taskyard_shared::{TaskError, TaskId};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::child::{Child, Command, Event, LINE_BYTES};
use super::lines::Line;
use super::protocol::{self, Said};
use crate::handler::{Answer, Job, codes, error};
use crate::handlers::LoadError;
use crate::handlers::answer::clean;
use crate::meanwhile::Meanwhile;

/// How long an idle child may take to end when its stdin closes.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// Watched for so long, a program that cannot run at all has ended: one that is not there, or has a wrong argument.
const START_WATCH: Duration = Duration::from_secs(1);

/// Before a child that died is started again.
const RESTART: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

/// So many lines on stdout with no answer among them, and the child is taken for broken.
const MOST_NONSENSE: u32 = 1000;

/// Of all such lines the first are logged, then one in so many.
const NONSENSE_LOGGED: u64 = 20;
const NONSENSE_LOGGED_EVERY: u64 = 1000;

/// A line begins with its task's id, within so many bytes.
const ID_WITHIN_BYTES: usize = 256;

/// Tasks for one child, and the slot they are in until it is free again.
pub(super) struct Call {
    pub jobs: Vec<Job>,
    /// One for each, or none.
    pub folders: Vec<PathBuf>,
    pub reply: oneshot::Sender<Vec<Answer>>,
    pub slot: OwnedSemaphorePermit,
}

/// The keepers that wait for a call, the one that last had one on top: its child is warm.
#[derive(Clone, Default)]
pub(super) struct Idle(Arc<Mutex<Vec<mpsc::Sender<Call>>>>);

impl Idle {
    pub fn push(&self, keeper: mpsc::Sender<Call>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(keeper);
    }

    pub fn pop(&self) -> Option<mpsc::Sender<Call>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

pub(super) struct Keeper {
    command: Arc<Command>,
    /// The child is sent arrays.
    as_array: bool,
    closing: CancellationToken,
    protocol_errors: Arc<AtomicU64>,
    child: Option<Child>,
    /// When to start the next child, once there was one.
    start_at: Option<Instant>,
    /// Children that died since one has answered.
    deaths: u32,
    /// Lines that said nothing since one has answered.
    nonsense: u32,
}

/// What a keeper without a call sees.
enum Seen {
    Child(Event),
    StartIsDue,
}

impl Keeper {
    pub fn new(
        command: Arc<Command>,
        as_array: bool,
        closing: CancellationToken,
        protocol_errors: Arc<AtomicU64>,
    ) -> Self {
        Self { command, as_array, closing, protocol_errors, child: None, start_at: None, deaths: 0, nonsense: 0 }
    }

    /// Starts the child ahead of the first call, and sees whether it stays.
    pub async fn start_and_watch(&mut self) -> Result<(), LoadError> {
        let program = self.command.program().to_string();
        let fails = |reason: String| LoadError::process(&self.command.model, reason);
        let mut child = self.command.start().map_err(|error| fails(format!("{program} cannot be started: {error}")))?;
        if let Ok(Event::Ended(how)) = timeout(START_WATCH, child.next()).await {
            child.end(Duration::ZERO).await;
            let mut reason = format!("{program} ended at once, {how}");
            let last_words = child.last_words();
            if !last_words.is_empty() {
                reason = format!("{reason}: {last_words}");
            }
            return Err(fails(reason));
        }
        self.child = Some(child);
        Ok(())
    }

    /// Serves calls until the handler closes, then ends the child.
    pub async fn run(mut self, own: mpsc::Sender<Call>, mut calls: mpsc::Receiver<Call>, idle: Idle) {
        let closing = self.closing.clone();
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => break,
                Some(call) = calls.recv() => {
                    let slot = self.serve(call).await;
                    self.recycle().await;
                    idle.push(own.clone());
                    drop(slot);
                }
                seen = self.see() => self.act(seen).await,
            }
        }
        if let Some(mut child) = self.child.take() {
            child.end(CLOSE_GRACE).await;
        }
    }

    async fn see(&mut self) -> Seen {
        match (&mut self.child, self.start_at) {
            (Some(child), _) => Seen::Child(child.next().await),
            (None, Some(start_at)) => {
                sleep_until(start_at).await;
                Seen::StartIsDue
            }
            (None, None) => std::future::pending().await,
        }
    }

    async fn act(&mut self, seen: Seen) {
        match seen {
            Seen::StartIsDue => {
                // Told in the log; the next try is planned.
                let _ = self.start();
            }
            Seen::Child(Event::Ended(how)) => self.bury(&how).await,
            Seen::Child(Event::Line(_)) => {
                if self.is_nonsense("it belongs to no task") {
                    self.bury("it writes without being asked").await;
                }
            }
        }
    }

    async fn serve(&mut self, call: Call) -> OwnedSemaphorePermit {
        let Call { jobs, folders, mut reply, slot } = call;
        let tasks = jobs.len();
        // A death that came just before the call should not be the call's.
        if self.child.as_mut().is_some_and(Child::is_dead) {
            self.bury("it died while idle").await;
        }
        let answers = tokio::select! {
            biased;
            () = reply.closed() => return slot,
            () = self.closing.cancelled() => Err(closed()),
            started = ready(&mut self.child, &self.command, self.start_at) => started,
        };
        let answers = match answers {
            Ok(()) => self.ask(jobs, &folders, &mut reply).await,
            Err(error) => {
                if self.child.is_none() && !self.closing.is_cancelled() {
                    self.plan_next_start();
                }
                vec![Err(error); tasks]
            }
        };
        // Whoever has gone away needs no answer.
        let _ = reply.send(answers);
        slot
    }

    /// Sends the tasks to the child and gathers what it answers. Afterwards the child works on none of them.
    async fn ask(
        &mut self,
        jobs: Vec<Job>,
        folders: &[PathBuf],
        reply: &mut oneshot::Sender<Vec<Answer>>,
    ) -> Vec<Answer> {
        let mut open = Open::new(&jobs);
        let request = match protocol::request(&jobs, folders, self.as_array) {
            Ok(request) => request,
            Err(failure) => return open.all(error(codes::HANDLER_FAILED, failure.to_string(), false)),
        };
        if let Some(child) = &mut self.child {
            child.given = child.given.saturating_add(jobs.len() as u64);
        }
        let grace = self.command.cancel_grace;
        let lines: Vec<Meanwhile> = jobs.into_iter().map(|job| job.meanwhile).collect();
        if !self.send(request) {
            self.bury("it reads no requests").await;
            return open.all(crashed("it reads no requests"));
        }
        // Nobody waits for any of them any more.
        let mut is_over = false;
        while open.count > 0 {
            let stop_by = open.stop_by(grace);
            let Some(child) = &mut self.child else { break };
            let seen = tokio::select! {
                biased;
                () = reply.closed(), if !is_over => Asked::All,
                () = self.closing.cancelled(), if !is_over => Asked::All,
                at = open.unwanted(&lines) => Asked::One(at),
                () = sleep_until(stop_by.unwrap_or_else(Instant::now)), if stop_by.is_some() => {
                    self.end("it did not stop when its task was cancelled").await;
                    return open.all(match is_over {
                        true => closed(),
                        false => stopped(grace),
                    });
                }
                event = child.next() => Asked::Nothing(event),
            };
            match seen {
                Asked::All => {
                    is_over = true;
                    let ids: Vec<TaskId> = open.ids().collect();
                    self.tell_to_stop(&mut open, ids);
                }
                Asked::One(id) => self.tell_to_stop(&mut open, vec![id]),
                Asked::Nothing(Event::Ended(how)) => {
                    self.bury(&how).await;
                    return open.all(crashed(&how));
                }
                Asked::Nothing(Event::Line(line)) => {
                    if let Err(error) = self.hear(line, &mut open, &lines) {
                        self.bury("it does not keep to the protocol").await;
                        return open.all(error);
                    }
                }
            }
        }
        open.all(closed())
    }

    /// A child that does not even read it is soon ended.
    fn tell_to_stop(&self, open: &mut Open, ids: Vec<TaskId>) {
        let is_told = protocol::cancel(ids.iter().copied()).is_ok_and(|lines| self.send(lines));
        let at = Instant::now();
        ids.into_iter().for_each(|id| open.was_told(id, at));
        if !is_told {
            tracing::debug!(
                task.model = self.command.model,
                "the model's process does not read that its task is cancelled"
            );
        }
    }

    /// Replaces a child that was given enough, or has grown too large. The next one is started at once, ahead of its first call.
    async fn recycle(&mut self) {
        let Some(why) = self.child.as_ref().and_then(|child| self.command.recycle.why(child.id(), child.given)) else {
            return;
        };
        let Some(mut child) = self.child.take() else { return };
        child.end(CLOSE_GRACE).await;
        self.nonsense = 0;
        self.start_at = Some(Instant::now());
        tracing::info!(
            task.model = self.command.model,
            process.pid = child.id(),
            "the model's process is replaced: {why}"
        );
    }

    /// Takes a line of a child that works. An error means that no further line is worth waiting for.
    fn hear(&mut self, line: Line, open: &mut Open, lines: &[Meanwhile]) -> Result<(), TaskError> {
        let nonsense = match line {
            Line::Whole(bytes) => match protocol::read(&bytes) {
                Said::Answer(id, answer) => {
                    if open.take(id, answer) {
                        self.deaths = 0;
                        self.nonsense = 0;
                        return Ok(());
                    }
                    "it answers a task that is not open".to_owned()
                }
                Said::Progress(id, progress, message) => match open.line_of(id, lines) {
                    Some(line) => {
                        line.progress(progress, message.as_deref());
                        return Ok(());
                    }
                    None => "it reports on a task that is not open".to_owned(),
                },
                Said::Partial(id, part) => match open.line_of(id, lines) {
                    Some(line) => {
                        line.partial(part);
                        return Ok(());
                    }
                    None => "it adds to a task that is not open".to_owned(),
                },
                Said::Nonsense(reason) => format!("{reason}: {}", clean(&bytes, 100)),
            },
            Line::TooLong(beginning) if beginning.starts_with(b"{") => {
                let message = format!("the model's process answered with a line of over {LINE_BYTES} bytes");
                return match open.named_in(&beginning[..beginning.len().min(ID_WITHIN_BYTES)]) {
                    Some(id) => {
                        open.take(id, Err(error(codes::OUTPUT_TOO_LARGE, message, false)));
                        Ok(())
                    }
                    None => Err(error(codes::BAD_ANSWER, format!("{message} that does not begin with its id"), true)),
                };
            }
            Line::TooLong(_) => "it is too long".to_owned(),
        };
        if self.is_nonsense(&nonsense) {
            let message = format!("the model's process wrote {MOST_NONSENSE} lines that are no answers");
            return Err(error(codes::BAD_ANSWER, message, true));
        }
        Ok(())
    }

    /// Counts a line that says nothing; whether that makes too many.
    fn is_nonsense(&mut self, reason: &str) -> bool {
        let before = self.protocol_errors.fetch_add(1, Ordering::Relaxed);
        self.nonsense += 1;
        if before < NONSENSE_LOGGED || before.is_multiple_of(NONSENSE_LOGGED_EVERY) {
            tracing::warn!(task.model = self.command.model, "a line on stdout is no answer: {reason}");
        }
        self.nonsense >= MOST_NONSENSE
    }

    fn send(&self, lines: Vec<u8>) -> bool {
        self.child.as_ref().is_some_and(|child| child.send(lines))
    }

    fn start(&mut self) -> Result<(), TaskError> {
        start(&mut self.child, &self.command).inspect_err(|_| self.plan_next_start())
    }

    fn plan_next_start(&mut self) {
        self.deaths = self.deaths.saturating_add(1);
        self.start_at = Some(Instant::now() + RESTART.delay(self.deaths, fastrand::f64()));
    }

    /// Sees to the end of a child that is of no more use. The next one waits: it may fare the same.
    async fn bury(&mut self, how: &str) {
        let Some(mut child) = self.child.take() else { return };
        child.end(Duration::ZERO).await;
        self.nonsense = 0;
        self.plan_next_start();
        tracing::warn!(task.model = self.command.model, process.pid = child.id(), "the model's process ended: {how}");
    }

    /// Ends a child for our own reasons, which say nothing against the next one.
    async fn end(&mut self, why: &str) {
        let Some(mut child) = self.child.take() else { return };
        child.end(Duration::ZERO).await;
        self.nonsense = 0;
        self.start_at = Some(Instant::now());
        tracing::info!(
            task.model = self.command.model,
            process.pid = child.id(),
            "the model's process was ended: {why}"
        );
    }
}

/// Makes sure that there is a child.
async fn ready(child: &mut Option<Child>, command: &Command, start_at: Option<Instant>) -> Result<(), TaskError> {
    if child.is_some() {
        return Ok(());
    }
    if let Some(start_at) = start_at {
        sleep_until(start_at).await;
    }
    start(child, command)
}

fn start(child: &mut Option<Child>, command: &Command) -> Result<(), TaskError> {
    match command.start() {
        Ok(started) => {
            *child = Some(started);
            Ok(())
        }
        Err(failure) => {
            tracing::warn!(task.model = command.model, "the model's process cannot be started: {failure}");
            let message = format!("the model's process cannot be started: {failure}");
            Err(error(codes::UNAVAILABLE, message, true))
        }
    }
}

fn crashed(how: &str) -> TaskError {
    error(codes::CRASHED, format!("the model's process ended before its answer: {how}"), true)
}

fn stopped(grace: Duration) -> TaskError {
    let message = format!(
        "it was cancelled while it ran; it did not stop by itself within {} ms, and its process was ended",
        grace.as_millis()
    );
    error(CANCELLED, message, false)
}

pub(super) fn closed() -> TaskError {
    error(codes::UNAVAILABLE, "the model is being closed", true)
}

/// What a keeper that works sees.
enum Asked {
    /// Its call is of no more use.
    All,
    /// This task is to stop.
    One(TaskId),
    Nothing(Event),
}

/// The tasks of a call, and the answers so far.
struct Open {
    tasks: Vec<(TaskId, Option<Answer>)>,
    /// When each was told to stop.
    told: Vec<Option<Instant>>,
    count: usize,
}

impl Open {
    fn new(jobs: &[Job]) -> Self {
        let tasks: Vec<_> = jobs.iter().map(|job| (job.id, None)).collect();
        Self { told: vec![None; tasks.len()], count: tasks.len(), tasks }
    }

    /// Takes an answer; `false` when that task is not open.
    fn take(&mut self, id: TaskId, answer: Answer) -> bool {
        let Some((_, place)) = self.tasks.iter_mut().find(|(open, place)| *open == id && place.is_none()) else {
            return false;
        };
        *place = Some(answer);
        self.count -= 1;
        true
    }

    /// Waits for the next open task that is to stop and was not told so.
    async fn unwanted(&self, lines: &[Meanwhile]) -> TaskId {
        let untold = self.tasks.iter().zip(&self.told).zip(lines);
        let untold = untold.filter(|(((_, answer), told), _)| answer.is_none() && told.is_none());
        let cancelled = untold.map(|(((id, _), _), line)| {
            Box::pin(async move {
                line.cancelled().await;
                *id
            })
        });
        let cancelled: Vec<_> = cancelled.collect();
        match cancelled.is_empty() {
            true => std::future::pending().await,
            false => futures_util::future::select_all(cancelled).await.0,
        }
    }

    fn was_told(&mut self, id: TaskId, at: Instant) {
        if let Some((_, told)) = self.tasks.iter().zip(&mut self.told).find(|((open, _), _)| *open == id) {
            *told = Some(at);
        }
    }

    /// When the child has had its time: all open tasks were told to stop. While others run it is left alone.
    fn stop_by(&self, grace: Duration) -> Option<Instant> {
        let mut last = None;
        for ((_, answer), told) in self.tasks.iter().zip(&self.told) {
            if answer.is_none() {
                last = last.max(Some((*told)?));
            }
        }
        last.map(|last| last + grace)
    }

    /// The line of a task that is open.
    fn line_of<'a>(&self, id: TaskId, lines: &'a [Meanwhile]) -> Option<&'a Meanwhile> {
        let at = self.tasks.iter().position(|(open, answer)| *open == id && answer.is_none())?;
        lines.get(at)
    }

    fn ids(&self) -> impl Iterator<Item = TaskId> {
        self.tasks.iter().filter(|(_, answer)| answer.is_none()).map(|(id, _)| *id)
    }

    /// Whose answer a line is that begins so: the open task it names, or the only one there is.
    fn named_in(&self, beginning: &[u8]) -> Option<TaskId> {
        let text = String::from_utf8_lossy(beginning);
        let mut ids = self.ids();
        let named = self.ids().find(|id| text.contains(&id.0.to_string()));
        named.or_else(|| ids.next().filter(|_| ids.next().is_none()))
    }

    /// Every answer, this error for the tasks that have none.
    fn all(self, error: TaskError) -> Vec<Answer> {
        self.tasks.into_iter().map(|(_, answer)| answer.unwrap_or_else(|| Err(error.clone()))).collect()
    }
}
