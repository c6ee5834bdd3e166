//! Lifecycle events: what tasks go through, as CloudEvents on the exchange `<namespace>.events`, for whoever binds a queue to it.
//!
//! They are best effort: nothing waits for them, and losing one loses nothing else. Who makes one asks first whether anybody may
//! listen ([`Events::wanted`]), which costs one look at a number: every message goes out `mandatory`, and a key whose message came back
//! is quiet for a moment, the longer the more such keys there are. So a yard without listeners pays for a few messages a second, and a new
//! binding is noticed within that moment.

mod keys;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use self::keys::Keys;
use crate::broker::{Broker, Destination, Message, Properties, PublishError};
use crate::lifecycle::State;
use crate::outcome::TaskResult;
use crate::process::metrics::{IntCounter, IntCounterVec, MetricsError, Registry};
use crate::progress::Progress;
use crate::retry::Backoff;
use crate::task::TaskId;
use crate::time::Timestamp;
use crate::topology::Topology;

/// A key whose message reached no queue is not published for at least so long.
pub const QUIET: Duration = Duration::from_millis(250);
/// Events that wait to be published, and of those in one call. More are left out.
const WAITING: usize = 8192;
const CALL: usize = 512;
/// Bytes of one call; a larger event goes alone.
const CALL_BYTES: usize = 4 << 20;
/// What a model is called that is not known yet, as in metrics.
const UNKNOWN: &str = "_unknown";
/// Media type of a CloudEvent in structured mode.
pub const MEDIA_TYPE: &str = "application/cloudevents+json";

/// What an event is about: the second word of its routing key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topic {
    State(State),
    Progress,
    Partial,
}

impl Topic {
    pub const COUNT: usize = State::ALL.len() + 2;

    pub fn name(self) -> &'static str {
        match self {
            Self::State(state) => state.as_str(),
            Self::Progress => "progress",
            Self::Partial => "partial",
        }
    }

    fn place(self) -> usize {
        match self {
            Self::State(state) => State::ALL.into_iter().position(|known| known == state).unwrap_or(0),
            Self::Progress => State::ALL.len(),
            Self::Partial => State::ALL.len() + 1,
        }
    }
}

/// Where events are put. Cheap to clone.
#[derive(Clone)]
pub struct Events(Arc<Inner>);

struct Inner {
    exchange: String,
    source: String,
    keys: Keys,
    waiting: mpsc::Sender<Outgoing>,
    metrics: Metrics,
}

struct Metrics {
    published: IntCounter,
    left_out: IntCounterVec,
}

struct Outgoing {
    made_ms: u64,
    topic: Topic,
    model: Arc<str>,
    body: Bytes,
}

/// Takes events to the broker.
pub struct Publisher {
    events: Events,
    waiting: mpsc::Receiver<Outgoing>,
}

/// CloudEvents 1.0, structured mode.
#[derive(Serialize)]
struct CloudEvent<'a, T> {
    specversion: &'static str,
    id: String,
    source: &'a str,
    r#type: String,
    subject: TaskId,
    time: Timestamp,
    datacontenttype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    data: T,
}

/// When a task came to its state, where that is known: roles tell what each of them does when it has the time, so that `dispatched`
/// may be told after the end.
fn came(task: &TaskResult) -> Option<Timestamp> {
    match task.state {
        State::Dispatched => task.timings.dispatched,
        State::Running => task.timings.started,
        ended if ended.is_terminal() => task.timings.finished,
        _ => None,
    }
}

/// What a task has said, as the data of an event.
#[derive(Serialize)]
struct Said<'a> {
    id: TaskId,
    model: &'a str,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    partial: Option<&'a RawValue>,
    #[serde(flatten)]
    progress: Option<Progress>,
}

impl Events {
    /// Nothing is published until the [`Publisher`] runs.
    ///
    /// # Errors
    /// When the registry has other metrics of these names.
    pub fn new(topology: &Topology, registry: &Registry) -> Result<(Self, Publisher), MetricsError> {
        let (sender, waiting) = mpsc::channel(WAITING);
        let (published, left_out) = registry.event_counts()?;
        let metrics = Metrics { published, left_out };
        let events = Self(Arc::new(Inner {
            exchange: topology.events_exchange(),
            source: format!("/taskyard/{}", topology.namespace()),
            keys: Keys::new(QUIET),
            waiting: sender,
            metrics,
        }));
        Ok((events.clone(), Publisher { events, waiting }))
    }

    /// Whether an event may have a listener. For all but the first of a moment without one this costs nothing.
    pub fn wanted(&self, topic: Topic, model: &str) -> bool {
        self.0.keys.may_go(topic, model)
    }

    /// A task has come to the state that this shows. `model` is the one whose queue it is in, if one is chosen.
    pub fn state(
        &self,
        model: Option<&str>,
        task: impl FnOnce() -> TaskResult,
        state: State,
        traceparent: Option<&str>,
    ) {
        let (topic, model) = (Topic::State(state), model.unwrap_or(UNKNOWN));
        if self.wanted(topic, model) {
            self.result(model, &task(), traceparent);
        }
    }

    /// The same for one that is at hand.
    pub fn result_of(&self, model: Option<&str>, task: &TaskResult, traceparent: Option<&str>) {
        let model = model.unwrap_or(UNKNOWN);
        if self.wanted(Topic::State(task.state), model) {
            self.result(model, task, traceparent);
        }
    }

    fn result(&self, model: &str, task: &TaskResult, traceparent: Option<&str>) {
        let topic = Topic::State(task.state);
        let number = format!("{}.{}", task.attempt, topic.name());
        let body = self.write(topic, (task.id, came(task)), &number, traceparent, task);
        self.put(topic, model, body);
    }

    /// A task has said something; of an attempt each has a number of its own, which grows.
    pub fn partial(&self, model: &str, (id, attempt, number): (TaskId, u32, u64), partial: &[u8]) {
        if let Ok(partial) = serde_json::from_slice::<&RawValue>(partial) {
            let said = Said { id, model, attempt, partial: Some(partial), progress: None };
            let number = format!("{attempt}.partial.{number}");
            self.put(Topic::Partial, model, self.write(Topic::Partial, (id, None), &number, None, said));
        }
    }

    pub fn progress(&self, model: &str, (id, attempt, number): (TaskId, u32, u64), progress: &[u8]) {
        if let Ok(progress) = serde_json::from_slice::<Progress>(progress) {
            let said = Said { id, model, attempt, partial: None, progress: Some(progress) };
            let number = format!("{attempt}.progress.{number}");
            self.put(Topic::Progress, model, self.write(Topic::Progress, (id, None), &number, None, said));
        }
    }

    fn write(
        &self,
        topic: Topic,
        (id, at): (TaskId, Option<Timestamp>),
        number: &str,
        traceparent: Option<&str>,
        data: impl Serialize,
    ) -> Vec<u8> {
        let event = CloudEvent {
            specversion: "1.0",
            id: format!("{}.{number}", id.0),
            source: &self.0.source,
            r#type: format!("taskyard.task.{}", topic.name()),
            subject: id,
            time: at.unwrap_or_else(Timestamp::now),
            datacontenttype: "application/json",
            traceparent,
            data,
        };
        serde_json::to_vec(&event).unwrap_or_default()
    }

    fn put(&self, topic: Topic, model: &str, body: Vec<u8>) {
        let outgoing = Outgoing { made_ms: self.0.keys.now_ms(), topic, model: model.into(), body: body.into() };
        if outgoing.body.is_empty() || self.0.waiting.try_send(outgoing).is_err() {
            self.left_out("full", 1);
        }
    }

    fn left_out(&self, reason: &str, count: u64) {
        self.0.metrics.left_out.with_label_values(&[reason]).inc_by(count);
    }

    fn message(&self, outgoing: &Outgoing) -> Message {
        let key = format!("task.{}.{}", outgoing.topic.name(), outgoing.model);
        Message {
            to: Destination::Exchange { name: self.0.exchange.clone(), key },
            body: outgoing.body.clone(),
            properties: Properties { content_type: Some(MEDIA_TYPE.into()), ..Properties::default() },
            persistent: false,
            mandatory: true,
        }
    }
}

impl Publisher {
    /// Publishes until `closing`. In the order in which events were put.
    pub async fn run(mut self, broker: Arc<dyn Broker>, closing: CancellationToken) {
        let publishing = async {
            let exchange = [self.events.0.exchange.clone()];
            let mut tries = 0;
            while let Err(failure) = broker.declare_exchanges(&exchange).await {
                tries += 1;
                debug!(%failure, "the exchange of events is not declared yet");
                tokio::time::sleep(Backoff::RECONNECT.delay(tries, fastrand::f64())).await;
            }
            let mut waiting = Vec::with_capacity(CALL);
            while self.waiting.recv_many(&mut waiting, CALL).await > 0 {
                self.publish(&*broker, std::mem::take(&mut waiting)).await;
            }
        };
        closing.run_until_cancelled(publishing).await;
    }

    async fn publish(&self, broker: &dyn Broker, waiting: Vec<Outgoing>) {
        let events = &self.events;
        let mut waiting = waiting.into_iter().peekable();
        while waiting.peek().is_some() {
            let (mut call, mut bytes) = (Vec::new(), 0);
            let mut first_tried: Vec<(Topic, Arc<str>)> = Vec::new();
            while let Some(next) = waiting.next_if(|next| bytes == 0 || bytes + next.body.len() <= CALL_BYTES) {
                // It was made before the first of its key came back.
                if events.0.keys.is_quiet_since(next.made_ms, next.topic, &next.model) {
                    continue;
                }
                bytes += next.body.len();
                if events.0.keys.is_first_tried(next.topic, &next.model) {
                    first_tried.push((next.topic, next.model.clone()));
                }
                call.push(next);
                let waits = |next: &Outgoing| {
                    first_tried.iter().any(|(topic, model)| (*topic, &**model) == (next.topic, &*next.model))
                };
                if waiting.peek().is_some_and(waits) {
                    break;
                }
            }
            let answers = broker.publish(call.iter().map(|outgoing| events.message(outgoing)).collect()).await;
            for (outgoing, answer) in call.iter().zip(answers) {
                match answer {
                    Ok(()) => {
                        events.0.metrics.published.inc();
                        events.0.keys.reached(outgoing.topic, &outgoing.model);
                    }
                    Err(PublishError::Unroutable) => events.0.keys.came_back(outgoing.topic, &outgoing.model),
                    Err(failure) => {
                        debug!(%failure, "an event was not taken");
                        events.left_out("not_taken", 1);
                    }
                }
            }
        }
    }
}
