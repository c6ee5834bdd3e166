//! `GET /v1/tasks/{id}/events`: what a task goes through, as server-sent events, until its result.
//!
//! One loop serves all streams that are open here: it asks the store for the records of their tasks and for what these have said,
//! many tasks to a call, a few times a second. Each event's id says how far its reader has come, so that whoever comes back with
//! it in `Last-Event-ID` goes on from there, at any gateway.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State as Shares};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use serde_json::value::RawValue;
use taskyard_shared::progress::Progress;
use taskyard_shared::store::{ReadStream, Stream};
use taskyard_shared::{State, TaskId, TaskResult};
use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;

use super::Shared;
use super::access::Caller;
use super::metrics::Counted;
use super::problem::{Code, Problem};
use super::request::path_id;
use super::waiting::LOOKUP_LIMIT;

/// How often the store is asked while streams are open.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Streams of one call of the store.
const CALL: usize = 128;
/// Parts of one stream in one call; and events that may wait for a reader, who is left out of a turn when there is no room for
/// those of it.
const TURN_PARTS: usize = 64;
const FRAMES: usize = 2 * (TURN_PARTS + 4);
/// A comment goes out after so long without an event, for proxies that take silence for an end.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Streams that are open.
pub(super) struct Hub {
    open: Mutex<Open>,
    most: usize,
    came: Notify,
}

#[derive(Default)]
struct Open {
    readers: BTreeMap<u64, Reader>,
    next: u64,
}

struct Reader {
    id: TaskId,
    /// Whose task it was when the stream was opened.
    tenant: String,
    seen: Seen,
    frames: mpsc::Sender<Bytes>,
    told: Instant,
}

/// How far a reader has come: an event's id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Seen {
    /// Of the task's stream.
    number: u64,
    attempt: u32,
    state: Option<State>,
}

impl Seen {
    fn write(self) -> String {
        format!("{}.{}.{}", self.number, self.attempt, self.state.map_or("none", State::as_str))
    }

    fn read(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '.');
        let (number, attempt, state) = (parts.next()?, parts.next()?, parts.next()?);
        let state = match state {
            "none" => None,
            name => Some(State::ALL.into_iter().find(|state| state.as_str() == name)?),
        };
        Some(Self { number: number.parse().ok()?, attempt: attempt.parse().ok()?, state })
    }

    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(value) = headers.get("last-event-id").filter(|value| !value.is_empty()) else {
            return Ok(Self::default());
        };
        let bad =
            || Problem::new(Code::InvalidHeader, "last-event-id: must be an id of this API's").at("last-event-id");
        value.to_str().ok().and_then(Self::read).ok_or_else(bad)
    }
}

/// A task as it stands, and how far it is by its own word.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct TaskView {
    #[serde(flatten)]
    task: TaskResult,
    /// While it runs, if it has said anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
}

impl Shared {
    /// With what a running task says of itself. Without it while the store does not answer that.
    pub(super) async fn view(&self, task: TaskResult) -> TaskView {
        let mut progress = None;
        if task.state == State::Running {
            let read = ReadStream { id: task.id, after: u64::MAX, most: 0 };
            let streams = self.records.ask(LOOKUP_LIMIT, |store| async move { store.streams(vec![read]).await }).await;
            let stream = streams.unwrap_or_default().pop().filter(|stream| stream.attempt == task.attempt);
            progress = stream.and_then(|stream| serde_json::from_slice(&stream.progress?.body).ok());
        }
        TaskView { task, progress }
    }
}

/// `GET /v1/tasks/{id}/events`
pub(super) async fn get(
    Shares(gateway): Shares<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut parts, _) = request.into_parts();
    let id = path_id(&mut parts).await.ok_or_else(Problem::not_found)?;
    let seen = Seen::of(&parts.headers)?;
    let task = gateway.seen(&caller, id).await?.ok_or_else(Problem::not_found)?;
    if task.state.is_terminal() && seen.state == Some(task.state) {
        // It has seen the end. This tells a browser not to come back.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let frames = gateway.hub.open(id, task.tenant, seen)?;
    let counted = Counted::new(gateway.metrics.event_streams.clone());
    let body = stream::unfold((frames, counted), |(mut frames, counted)| async move {
        let frame = frames.recv().await?;
        Some((Ok::<_, Infallible>(frame), (frames, counted)))
    });
    let mut response = Body::from_stream(body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // For nginx, which otherwise gathers a body before it hands it on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

impl Hub {
    pub(super) fn new(most: usize) -> Self {
        Self { open: Mutex::default(), most, came: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, id: TaskId, tenant: String, seen: Seen) -> Result<mpsc::Receiver<Bytes>, Problem> {
        let (frames, read) = mpsc::channel(FRAMES);
        let mut open = self.lock();
        if open.readers.len() >= self.most {
            open.readers.retain(|_, reader| !reader.frames.is_closed());
        }
        if open.readers.len() >= self.most {
            return Err(Problem::new(Code::TooManyStreams, "as many streams of events are open as may"));
        }
        let key = open.next;
        open.next += 1;
        open.readers.insert(key, Reader { id, tenant, seen, frames, told: Instant::now() });
        drop(open);
        self.came.notify_one();
        Ok(read)
    }

    /// Those with room for a turn. Whoever has gone is forgotten, and whoever has heard nothing for long is told that.
    fn turn(&self) -> Vec<(u64, TaskId, Seen)> {
        let mut open = self.lock();
        open.readers.retain(|_, reader| !reader.frames.is_closed());
        for reader in open.readers.values_mut().filter(|reader| reader.told.elapsed() >= KEEP_ALIVE) {
            // One that does not read gets nothing, and is cut by its connection.
            let _full = reader.frames.try_send(Bytes::from_static(b": still here\n\n"));
            reader.told = Instant::now();
        }
        let with_room = open.readers.iter().filter(|(_, reader)| reader.frames.capacity() > FRAMES / 2);
        with_room.map(|(key, reader)| (*key, reader.id, reader.seen)).collect()
    }

    fn tell(&self, key: u64, task: &TaskResult, stream: &Stream) {
        let mut open = self.lock();
        let Some(reader) = open.readers.get_mut(&key) else { return };
        if reader.tenant != task.tenant {
            // The store lost it, and now has another tenant's under its id.
            open.readers.remove(&key);
            return;
        }
        let (frames, seen) = events(task, stream, reader.seen);
        let is_over = seen.state.is_some_and(State::is_terminal);
        for frame in frames {
            reader.told = Instant::now();
            if reader.frames.try_send(frame).is_err() {
                // There was room for all of a turn: it has gone.
                open.readers.remove(&key);
                return;
            }
        }
        reader.seen = seen;
        if is_over {
            open.readers.remove(&key);
        }
    }
}

/// What a reader is told next, and how far it has come then.
fn events(task: &TaskResult, stream: &Stream, mut seen: Seen) -> (Vec<Bytes>, Seen) {
    let mut frames = Vec::new();
    // A store that lost the stream counts anew.
    if stream.attempt > 0 && seen.number > stream.last {
        seen.number = 0;
    }
    let is_new = seen.state != Some(task.state) || seen.attempt != task.attempt;
    let says_state = is_new && !task.state.is_terminal();
    let state = |frames: &mut Vec<Bytes>, seen: &mut Seen, name| {
        (seen.state, seen.attempt) = (Some(task.state), task.attempt);
        frames.push(frame(name, *seen, task));
    };
    // What an attempt said before the task went on comes before that.
    let is_of_now = match task.state {
        State::Running => stream.attempt >= task.attempt,
        _ => stream.attempt > task.attempt,
    };
    if says_state && is_of_now {
        state(&mut frames, &mut seen, "state");
    }
    let mut said: Vec<(u64, &Bytes, bool)> =
        stream.partials.iter().map(|part| (part.number, &part.body, false)).collect();
    let last = said.last().map_or(0, |(number, ..)| *number);
    // With more to read in between it comes in a later turn, in its place.
    let progress = stream.progress.as_ref().filter(|part| !stream.more || part.number < last);
    said.extend(progress.map(|part| (part.number, &part.body, true)));
    said.sort_unstable_by_key(|(number, ..)| *number);
    let before = seen.number;
    for (number, body, is_progress) in said.into_iter().filter(|(number, ..)| *number > before) {
        seen.number = number;
        let attempt = stream.attempt;
        frames.push(match (is_progress, serde_json::from_slice::<&RawValue>(body)) {
            (false, _) if body.is_empty() => frame("truncated", seen, &Truncated { attempt }),
            (false, Ok(partial)) => frame("partial", seen, &Partial { attempt, partial }),
            (true, Ok(_)) => match serde_json::from_slice::<Progress>(body) {
                Ok(progress) => frame("progress", seen, &Said { attempt, progress }),
                Err(_) => continue,
            },
            (_, Err(_)) => continue,
        });
    }
    if says_state && !is_of_now {
        state(&mut frames, &mut seen, "state");
    }
    if task.state.is_terminal() && !stream.more {
        state(&mut frames, &mut seen, "result");
    }
    (frames, seen)
}

#[derive(Serialize)]
struct Partial<'a> {
    attempt: u32,
    partial: &'a RawValue,
}

#[derive(Serialize)]
struct Said {
    attempt: u32,
    #[serde(flatten)]
    progress: Progress,
}

#[derive(Serialize)]
struct Truncated {
    attempt: u32,
}

/// One event. JSON written by us has no line breaks but those that a model's output came with, each a line of data.
fn frame(event: &str, seen: Seen, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_else(|_| "null".to_owned());
    let mut frame = format!("event: {event}\nid: {}\n", seen.write());
    for line in data.split(['\n', '\r']) {
        let _ = writeln!(frame, "data: {line}");
    }
    frame.push('\n');
    frame.into()
}

impl Shared {
    /// Serves all open streams, until the gateway stops: then they end, and their readers come back elsewhere.
    pub(super) async fn stream_events(&self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let serving = async {
            loop {
                if self.hub.lock().readers.is_empty() {
                    self.hub.came.notified().await;
                } else {
                    tokio::select! {
                        _ = looks.tick() => {}
                        () = self.hub.came.notified() => {}
                    }
                }
                for readers in self.hub.turn().chunks(CALL) {
                    self.serve_streams(readers).await;
                }
            }
        };
        self.stopping.run_until_cancelled(serving).await;
        let mut open = self.hub.lock();
        open.readers.clear();
    }

    async fn serve_streams(&self, readers: &[(u64, TaskId, Seen)]) {
        let ids: Vec<TaskId> = readers.iter().map(|(_, id, _)| *id).collect();
        // First the records: what a task said before its end is in its stream by then. A store that is away is asked again.
        let Ok(records) = self.records.ask(LOOKUP_LIMIT, |store| async move { store.get(ids).await }).await else {
            return;
        };
        let read = |(_, id, seen): &(u64, TaskId, Seen)| ReadStream { id: *id, after: seen.number, most: TURN_PARTS };
        let reads = readers.iter().map(read).collect();
        let Ok(streams) = self.records.ask(LOOKUP_LIMIT, |store| async move { store.streams(reads).await }).await
        else {
            return;
        };
        for (((key, ..), record), stream) in readers.iter().zip(records).zip(streams) {
            // One that the store has lost comes back when it is claimed or settled.
            if let Some(task) = record {
                self.hub.tell(*key, &task, &stream);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written_and_nothing_else_is() {
        for state in State::ALL.into_iter().map(Some).chain([None]) {
            let seen = Seen { number: 17, attempt: 2, state };
            assert_eq!(Seen::read(&seen.write()), Some(seen));
        }
        for bad in ["", "1", "1.2", "1.2.asleep", "x.1.queued", "1.-1.queued"] {
            assert_eq!(Seen::read(bad), None, "{bad:?}");
        }
    }
}
