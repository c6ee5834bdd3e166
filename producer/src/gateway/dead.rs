//! `/v1/dead`: the dead letters. They are listed, shown, sent again and thrown away; all of it looks through the queue itself.
//!
//! Sending one again publishes a task of its own, since a terminal state never changes, and only then takes the letter out of
//! the queue. The new task's id follows from the letter's, so that doing it twice is publishing one task twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use taskyard_shared::broker::Message;
use taskyard_shared::dead::{self, Content, Letter};
use taskyard_shared::task::limits;
use taskyard_shared::{Carried, Envelope, TaskId, Timestamp, decode_tasks};
use uuid::Uuid;

use super::Shared;
use super::problem::{Code, Problem};
use super::request::{Media, Parameters, media, path_id, read_json};
use crate::letters::{Failure, Looked, Reader};
use crate::publish::encode;

/// The label of a task that is another's replay: that one's id.
const REPLAY_OF: &str = "replay_of";
/// For the confirms of what is sent again.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(10);

/// What a dead letter says of itself.
#[derive(Clone, Serialize, JsonSchema)]
pub(super) struct DeadLetter {
    /// Names it here: the task's id, or one of its own where no task was accepted.
    #[schemars(with = "TaskId")]
    id: Uuid,
    /// The task's id, where it is known.
    task_id: Option<TaskId>,
    /// Why: a code.
    reason: String,
    /// The same for people.
    message: String,
    /// `task`: one that was accepted and has ended. `published`: never accepted. `internal`: between roles.
    content: &'static str,
    /// That were begun.
    attempts: u32,
    model: Option<String>,
    tenant: Option<String>,
    /// Who began it last.
    worker: Option<String>,
    accepted: Option<Timestamp>,
    /// When it was given up.
    died: Option<Timestamp>,
    /// Of its body.
    bytes: usize,
}

/// A dead letter with what it holds.
#[derive(Serialize, JsonSchema)]
pub(super) struct WholeLetter {
    #[serde(flatten)]
    letter: DeadLetter,
    /// Where its result was to go.
    reply_to: Option<String>,
    /// The body, where it is JSON.
    task: Option<Box<RawValue>>,
    /// The body as text, where it is not; what is not UTF-8 is replaced.
    body: Option<String>,
}

/// One page of dead letters, the newest first.
#[derive(Serialize, JsonSchema)]
pub(super) struct DeadPage {
    dead: Vec<DeadLetter>,
    /// Give it as `cursor` for the next page; `null` at the end.
    cursor: Option<String>,
    /// Letters that match, on all pages.
    matched: usize,
    looked_at: usize,
    /// Whether all that are there were looked at: otherwise only the oldest, and the rest once those are gone.
    complete: bool,
}

/// Which letters; a field that is not there does not narrow. At least one must be.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LetterSelection {
    reason: Option<String>,
    /// By name, or `name@version`.
    model: Option<String>,
    tenant: Option<String>,
    /// Every one of them. Takes no other field.
    #[serde(default)]
    all: bool,
}

/// What became of a letter.
#[derive(Serialize, JsonSchema)]
pub(super) struct Buried {
    /// The letter's.
    #[schemars(with = "TaskId")]
    id: Uuid,
    /// `replayed` or `discarded`.
    outcome: &'static str,
    /// The task that it is now, when it was replayed.
    task_id: Option<TaskId>,
}

/// What came of a call for many.
#[derive(Serialize, JsonSchema)]
pub(super) struct LetterCounts {
    /// Letters that matched.
    matched: usize,
    /// How many of them came to what: `replayed`, `discarded`, or `kept` where the broker did not confirm.
    outcomes: BTreeMap<&'static str, usize>,
    /// Whether all that are there were looked at.
    complete: bool,
}

/// `GET /v1/dead`
pub(super) async fn list(
    State(gateway): State<Arc<Shared>>,
    Extension(parameters): Extension<Parameters>,
) -> Result<Json<DeadPage>, Problem> {
    let bad = |name: &str, message: &str| Problem::new(Code::InvalidParameter, format!("{name}: {message}")).at(name);
    let limit = parameters.limit()?;
    let before = match parameters.get("cursor") {
        Some(text) => Some(Place::read(text).ok_or_else(|| bad("cursor", "is none that a page gave"))?),
        None => None,
    };
    let text = |name: &str| parameters.get(name).map(str::to_owned);
    let selection =
        LetterSelection { reason: text("reason"), model: text("model"), tenant: text("tenant"), all: false };
    let mut page = Pager { selection, before, limit, newest: BTreeMap::new(), seen: BTreeSet::new(), more: false };
    let looked = gateway.look(&mut page).await?;
    let cursor = page.more.then(|| page.newest.first_key_value().map(|(place, _)| place.text())).flatten();
    let matched = page.seen.len();
    Ok(Json(DeadPage {
        dead: page.newest.into_values().rev().collect(),
        cursor,
        matched,
        looked_at: looked.letters,
        complete: looked.complete,
    }))
}

/// `GET /v1/dead/{id}`
pub(super) async fn get(State(gateway): State<Arc<Shared>>, request: Request) -> Result<Json<WholeLetter>, Problem> {
    let id = letter_id(request).await?;
    let mut search = Search { id, found: None };
    let looked = gateway.look(&mut search).await?;
    let Some(letter) = search.found else { return Err(no_letter(looked)) };
    let json = std::str::from_utf8(&letter.body).ok().and_then(|text| RawValue::from_string(text.to_owned()).ok());
    Ok(Json(WholeLetter {
        letter: DeadLetter::of(&letter),
        reply_to: letter.reply.as_ref().map(|reply| reply.to.to_string()),
        body: json.is_none().then(|| String::from_utf8_lossy(&letter.body).into_owned()),
        task: json,
    }))
}

/// `POST /v1/dead/{id}/replay`
pub(super) async fn replay(State(gateway): State<Arc<Shared>>, request: Request) -> Result<Json<Buried>, Problem> {
    let id = letter_id(request).await?;
    one(&gateway, id, Action::Replay).await.map(Json)
}

/// `POST /v1/dead/{id}/discard`
pub(super) async fn discard(State(gateway): State<Arc<Shared>>, request: Request) -> Result<Json<Buried>, Problem> {
    let id = letter_id(request).await?;
    one(&gateway, id, Action::Discard).await.map(Json)
}

/// `POST /v1/dead/replay`
pub(super) async fn replay_selected(
    State(gateway): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<LetterCounts>, Problem> {
    selected(gateway, request, Action::Replay).await
}

/// `POST /v1/dead/discard`
pub(super) async fn discard_selected(
    State(gateway): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<LetterCounts>, Problem> {
    selected(gateway, request, Action::Discard).await
}

/// Sends one again, and answers the id of the task that it is now.
pub(super) async fn replay_one(gateway: &Shared, id: Uuid) -> Result<Option<TaskId>, Problem> {
    Ok(one(gateway, id, Action::Replay).await?.task_id)
}

async fn one(gateway: &Shared, id: Uuid, action: Action) -> Result<Buried, Problem> {
    let mut undertaker = Undertaker::new(gateway, Which::One(id), action);
    let looked = gateway.look(&mut undertaker).await?;
    match (undertaker.last, undertaker.kept) {
        (Some(done), 0) => Ok(done),
        (None, 0) => Err(no_letter(looked)),
        _ => Err(Problem::new(Code::BrokerUnavailable, "the broker did not confirm: the dead letter stays")),
    }
}

async fn selected(gateway: Arc<Shared>, request: Request, action: Action) -> Result<Json<LetterCounts>, Problem> {
    let (parts, body) = request.into_parts();
    media(&parts.headers, &[Media::Json])?;
    let held = gateway.read_body(&parts.headers, body).await?;
    let selection: LetterSelection = read_json(&held.bytes)?;
    let narrows = selection.reason.is_some() || selection.model.is_some() || selection.tenant.is_some();
    if narrows == selection.all {
        let detail = "body: must name a reason, a model or a tenant, or say that all are meant";
        return Err(Problem::new(Code::InvalidField, detail).at("body"));
    }
    let mut undertaker = Undertaker::new(&gateway, Which::Matching(selection), action);
    let looked = gateway.look(&mut undertaker).await?;
    let Undertaker { done, kept, .. } = undertaker;
    let outcomes = [(action.done(), done), ("kept", kept)].into_iter().filter(|(_, count)| *count > 0).collect();
    Ok(Json(LetterCounts { matched: done + kept, outcomes, complete: looked.complete }))
}

async fn letter_id(request: Request) -> Result<Uuid, Problem> {
    let (mut parts, _) = request.into_parts();
    let unknown = || Problem::new(Code::NotFound, "no dead letter has this id");
    path_id(&mut parts).await.map(|id| id.0).ok_or_else(unknown)
}

fn no_letter(looked: Looked) -> Problem {
    let detail = match looked.complete {
        true => "no dead letter has this id".to_owned(),
        false => format!("none of the oldest {} dead letters has this id, and there are more", looked.letters),
    };
    Problem::new(Code::NotFound, detail)
}

impl Shared {
    pub(super) async fn look(&self, reader: &mut impl Reader) -> Result<Looked, Problem> {
        self.letters.look(reader).await.map_err(|failure| match failure {
            Failure::Busy => Problem::new(Code::OverCapacity, failure.to_string()),
            Failure::Broker(error) => {
                tracing::warn!(%error, "the dead letters cannot be looked through");
                Problem::new(Code::BrokerUnavailable, "the dead letters cannot be looked through now")
            }
        })
    }

    /// Sends letters again; each answer says whether all of it was confirmed, and under which id it is a task now.
    async fn send_again(&self, letters: &[Letter]) -> Vec<(bool, Option<TaskId>)> {
        let now = Timestamp::now();
        let (mut messages, mut counts, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        for letter in letters {
            let (again, id) = self.again(letter, now);
            counts.push(again.len());
            ids.push(id);
            messages.extend(again);
        }
        let mut answers = self.publisher.publish(messages, CONFIRMED_WITHIN).await.into_iter();
        let mut confirmed = |count: usize| answers.by_ref().take(count).filter(Result::is_ok).count() == count;
        counts.into_iter().zip(ids).map(|(count, id)| (confirmed(count), id)).collect()
    }

    /// The messages that a letter becomes.
    fn again(&self, letter: &Letter, now: Timestamp) -> (Vec<Message>, Option<TaskId>) {
        match letter.content {
            Content::Internal => {
                if let Some(origin) = letter.origin {
                    let mut message = Message::to_queue(origin.queue(&self.topology), letter.body.clone());
                    message.properties.message_id = letter.task.map(|id| id.0.to_string());
                    return (vec![message], None);
                }
                let queue = match letter.reason.starts_with("webhook_") {
                    true => self.topology.webhooks(),
                    false => self.topology.retry(),
                };
                return (letter.members().into_iter().map(|body| Message::to_queue(&queue, body)).collect(), None);
            }
            Content::Task => {
                if let Some(envelope) = anew(letter, now)
                    && let Ok(body) = encode(&envelope)
                {
                    let message = self.publisher.single(&envelope, body.into(), envelope.reply.as_ref());
                    return (vec![message], Some(envelope.id));
                }
            }
            Content::Published => {}
        }
        // As it came. What names no task of its own gets the letter's id, so that twice is once.
        let mut message = self.publisher.array(letter.body.clone(), letter.reply.as_ref());
        let id = letter.task.unwrap_or_else(|| Letter::replayed(letter.id()));
        let properties = &mut message.properties;
        properties.message_id = Some(id.0.to_string());
        properties.kind = letter.kind.clone();
        properties.priority = letter.priority;
        properties.app_id = letter.tenant.clone();
        properties.expiration = None;
        for (name, value) in [("traceparent", &letter.traceparent), ("tracestate", &letter.tracestate)] {
            if let Some(value) = value {
                properties.headers.insert(name.to_owned(), value.clone());
            }
        }
        let is_one = dead::members(&letter.body).is_none();
        (vec![message], is_one.then_some(id))
    }
}

/// The task of a letter as a new one: all attempts before it, as much time as it had at first, and nothing that would lead
/// back to the one that has ended.
fn anew(letter: &Letter, now: Timestamp) -> Option<Envelope> {
    let mut task = decode_tasks(&letter.body).ok()?.pop()?.ok()?;
    task.id = Some(Letter::replayed(letter.id()));
    task.idempotency_key = None;
    (task.not_before, task.delay_ms) = (None, None);
    if let (Some(deadline), Some(accepted)) = (task.deadline.take(), letter.accepted) {
        task.deadline_ms = Some((deadline.ms_since(accepted).max(1.0) as u64).min(limits::DURATION_MS));
    }
    if task.metadata.len() < limits::METADATA_ENTRIES || task.metadata.contains_key(REPLAY_OF) {
        task.metadata.insert(REPLAY_OF.to_owned(), letter.id().to_string());
    }
    let carried = Carried {
        reply: letter.reply.clone(),
        traceparent: letter.traceparent.clone(),
        tracestate: letter.tracestate.clone(),
        ..Carried::default()
    };
    Envelope::new(task, &carried, now).ok()
}

impl DeadLetter {
    fn of(letter: &Letter) -> Self {
        Self {
            id: letter.id(),
            task_id: letter.task,
            reason: letter.reason.clone(),
            message: letter.message.clone(),
            content: letter.content.name(),
            attempts: letter.attempts,
            model: letter.model.clone(),
            tenant: letter.tenant.clone(),
            worker: letter.worker.clone(),
            accepted: letter.accepted,
            died: letter.died,
            bytes: letter.body.len(),
        }
    }
}

impl LetterSelection {
    fn matches(&self, letter: &Letter) -> bool {
        let is_model = |wanted: &String| {
            letter.model.as_ref().is_some_and(|model| model == wanted || model.split('@').next() == Some(wanted))
        };
        self.reason.as_ref().is_none_or(|reason| *reason == letter.reason)
            && self.model.as_ref().is_none_or(is_model)
            && self.tenant.as_ref().is_none_or(|tenant| letter.tenant.as_ref() == Some(tenant))
    }
}

/// Where a letter stands in lists: by when it died, and by its id among those that died together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    died: Option<Timestamp>,
    id: Uuid,
}

impl Place {
    fn text(self) -> String {
        format!("{}.{}", self.died.map(|died| died.to_string()).unwrap_or_default(), self.id.simple())
    }

    fn read(text: &str) -> Option<Self> {
        let (died, id) = text.rsplit_once('.')?;
        let died = if died.is_empty() { None } else { Some(died.parse().ok()?) };
        Some(Self { died, id: id.parse().ok()? })
    }
}

/// Keeps the newest of a page.
struct Pager {
    selection: LetterSelection,
    before: Option<Place>,
    limit: usize,
    newest: BTreeMap<Place, DeadLetter>,
    /// Letters that match; one that lies there twice counts once.
    seen: BTreeSet<Uuid>,
    /// Some that are older found no room.
    more: bool,
}

impl Reader for Pager {
    fn wants(&mut self, letter: &Letter) -> bool {
        if !self.selection.matches(letter) {
            return false;
        }
        let place = Place { died: letter.died, id: letter.id() };
        self.seen.insert(place.id);
        if self.before.is_none_or(|before| place < before) {
            self.newest.insert(place, DeadLetter::of(letter));
            if self.newest.len() > self.limit {
                self.newest.pop_first();
                self.more = true;
            }
        }
        false
    }

    async fn deal(&mut self, _: Vec<Letter>) -> Vec<bool> {
        Vec::new()
    }
}

/// Looks for one.
pub(super) struct Search {
    id: Uuid,
    found: Option<Letter>,
}

impl Reader for Search {
    fn wants(&mut self, letter: &Letter) -> bool {
        if self.found.is_none() && is_named(letter, self.id) {
            self.found = Some(letter.clone());
        }
        false
    }

    async fn deal(&mut self, _: Vec<Letter>) -> Vec<bool> {
        Vec::new()
    }

    fn has_enough(&self) -> bool {
        self.found.is_some()
    }
}

/// By its own id, or by that of a task that was never accepted.
fn is_named(letter: &Letter, id: Uuid) -> bool {
    letter.id() == id || letter.task == Some(TaskId(id))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Replay,
    Discard,
}

impl Action {
    fn done(self) -> &'static str {
        match self {
            Self::Replay => "replayed",
            Self::Discard => "discarded",
        }
    }
}

enum Which {
    One(Uuid),
    Matching(LetterSelection),
}

/// Takes letters out of the queue: thrown away, or sent again.
struct Undertaker<'a> {
    gateway: &'a Shared,
    which: Which,
    action: Action,
    last: Option<Buried>,
    done: usize,
    kept: usize,
}

impl<'a> Undertaker<'a> {
    fn new(gateway: &'a Shared, which: Which, action: Action) -> Self {
        Self { gateway, which, action, last: None, done: 0, kept: 0 }
    }
}

impl Reader for Undertaker<'_> {
    fn wants(&mut self, letter: &Letter) -> bool {
        match &self.which {
            Which::One(id) => is_named(letter, *id),
            Which::Matching(selection) => selection.matches(letter),
        }
    }

    async fn deal(&mut self, letters: Vec<Letter>) -> Vec<bool> {
        let done = match self.action {
            Action::Replay => self.gateway.send_again(&letters).await,
            Action::Discard => vec![(true, None); letters.len()],
        };
        let mut answers = Vec::with_capacity(done.len());
        for (letter, (is_done, task_id)) in letters.iter().zip(done) {
            if is_done {
                self.done += 1;
                let id = letter.id();
                tracing::info!(letter.id = %id, reason = %letter.reason, "a dead letter was {}", self.action.done());
                self.last = Some(Buried { id, outcome: self.action.done(), task_id });
            } else {
                self.kept += 1;
            }
            answers.push(is_done);
        }
        answers
    }
}
