//! What the properties of a published message come to, and what of them goes on with its task: everything that the roles publish
//! is looked at on its way.

use serde_json::json;
use taskyard_shared::broker::{BrokerError, BrokerInfo, Consumer, Lock, Operations, PublishError, QueueState};
use taskyard_shared::task::limits;
use taskyard_shared::{Envelope, Timestamp, wire};

use super::*;

/// The yard's broker, which remembers what was published.
struct Watched {
    inner: Arc<dyn Broker>,
    published: Mutex<Vec<Message>>,
}

#[async_trait]
impl Broker for Watched {
    async fn declare(&self, queues: &[QueueSpec]) -> Result<(), BrokerError> {
        self.inner.declare(queues).await
    }

    async fn declare_exchanges(&self, names: &[String]) -> Result<(), BrokerError> {
        self.inner.declare_exchanges(names).await
    }

    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<(), PublishError>> {
        self.published.lock().unwrap().extend(messages.iter().cloned());
        self.inner.publish(messages).await
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError> {
        self.inner.consume(queue, prefetch).await
    }

    async fn queue_state(&self, queue: &str) -> Result<Option<QueueState>, BrokerError> {
        self.inner.queue_state(queue).await
    }

    async fn try_lock(&self, name: &str) -> Result<Option<Box<dyn Lock>>, BrokerError> {
        self.inner.try_lock(name).await
    }

    async fn info(&self) -> Result<BrokerInfo, BrokerError> {
        self.inner.info().await
    }

    fn is_ready(&self) -> bool {
        self.inner.is_ready()
    }

    fn operations(&self) -> Option<Arc<Operations>> {
        self.inner.operations()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

impl Watched {
    /// Takes the place of the yard's broker, before any role is started.
    fn over(yard: &mut Yard) -> Arc<Self> {
        let watched = Arc::new(Self { inner: yard.broker.clone(), published: Mutex::default() });
        yard.broker = watched.clone();
        watched
    }

    /// Past the watch.
    async fn send(&self, message: Message) {
        self.inner.publish(vec![message]).await.remove(0).unwrap();
    }

    /// What was published into a queue.
    fn put_into(&self, queue: &str) -> Vec<Message> {
        let is_into = |message: &&Message| message.to == Destination::Queue(queue.to_owned());
        self.published.lock().unwrap().iter().filter(is_into).cloned().collect()
    }
}

fn envelopes(messages: &[Message]) -> Vec<Envelope> {
    messages.iter().flat_map(|message| wire::read_envelopes(&message.body).unwrap()).collect()
}

/// What a sender may say, and nobody may believe.
const FORGED: [&str; 13] = [
    "CC",
    "BCC",
    "x-death",
    "x-first-death-queue",
    "x-delivery-count",
    "x-taskyard-attempt",
    "x-taskyard-attempts",
    "x-taskyard-tenant",
    "x-taskyard-reason",
    "x-taskyard-runs",
    "x-taskyard-passes",
    "x-taskyard-content",
    "x-taskyard-died",
];

/// Tasks that were published with all of that, neither persistent nor with a deadline that anybody sees: one that succeeds, one that goes
/// back first, one that fails, and one that is refused.
async fn forged(yard: &mut Yard) -> (Arc<Watched>, Vec<Uuid>) {
    let watched = Watched::over(yard);
    yard.worker("w", vec![(spec("m"), Arc::new(Obedient::default()))]);
    yard.scheduler(&[spec("m")]);
    let inputs = [json!({}), json!({"do": "fail once"}), json!({"do": "fail"})];
    let bodies = inputs.map(|input| json!({"model": "m", "input": input})).into_iter().chain([json!({"model": "m"})]);
    let mut ids = Vec::new();
    for body in bodies {
        let id = Uuid::new_v4();
        let mut properties = Properties {
            message_id: Some(id.to_string()),
            reply_to: Some(yard.replies.clone()),
            priority: Some(7),
            expiration: Some(u64::MAX.to_string()),
            ..Properties::default()
        };
        for name in FORGED {
            properties.headers.insert(name.into(), "99".into());
        }
        properties.headers.insert("traceparent".into(), format!("ff-{}-{}-01", "1".repeat(32), "1".repeat(16)));
        properties.headers.insert("tracestate".into(), "of=nothing".into());
        let to = Destination::Exchange { name: yard.topology.tasks_exchange(), key: "any".into() };
        let body = body.to_string().into();
        watched.send(Message { to, body, properties, persistent: false, mandatory: true }).await;
        ids.push(id);
    }
    yard.collect(&ids).await;
    (watched, ids)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sender_says_goes_no_further_than_it_is_believed() {
    let mut yard = Yard::new(|_| {}).await;
    let (watched, ids) = forged(&mut yard).await;
    let came = |at: usize| (yard.result(&ids[at]).state, yard.result(&ids[at]).attempt, &*yard.result(&ids[at]).tenant);
    let ends = [(State::Succeeded, 1), (State::Succeeded, 2), (State::Failed, 1), (State::Rejected, 0)];
    for (at, (state, attempt)) in ends.into_iter().enumerate() {
        assert_eq!(came(at), (state, attempt, "default"));
    }
    let sent = envelopes(&watched.put_into(&yard.topology.ready("m")));
    for id in &ids[..3] {
        let envelope = sent.iter().find(|envelope| envelope.id.0 == *id).expect("it was dispatched");
        assert_eq!((envelope.attempts, &*envelope.tenant, envelope.priority.get()), (0, "default", 7));
        assert_eq!((&envelope.extras.traceparent, &envelope.extras.tracestate), (&None, &None));
    }
    assert_eq!(watched.put_into(&yard.topology.dead()).len(), 2);
    for message in watched.published.lock().unwrap().iter() {
        let headers = &message.properties.headers;
        let forged = FORGED.iter().find(|name| headers.get(**name).is_some_and(|value| value == "99"));
        assert_eq!(forged, None, "{message:?}");
        assert!(!headers.contains_key("traceparent") && !headers.contains_key("tracestate"), "{message:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiration_without_end_is_a_year() {
    let mut yard = Yard::new(|_| {}).await;
    let before = Timestamp::now();
    let (watched, ids) = forged(&mut yard).await;
    let year = before.plus_ms(limits::DURATION_MS)..=Timestamp::now().plus_ms(limits::DURATION_MS);
    let sent = envelopes(&watched.put_into(&yard.topology.ready("m")));
    assert!(ids[..3].iter().all(|id| sent.iter().any(|envelope| envelope.id.0 == *id)));
    for envelope in &sent {
        let deadline = envelope.deadline.expect("a deadline");
        assert!(year.contains(&deadline), "{deadline} is not in a year");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_persistent_is_so_from_intake_on() {
    let mut yard = Yard::new(|_| {}).await;
    let (watched, _) = forged(&mut yard).await;
    let topology = &yard.topology;
    for (queue, count) in [(topology.ready("m"), 4), (topology.retry(), 1), (topology.dead(), 2)] {
        let messages = watched.put_into(&queue);
        assert_eq!(messages.len(), count, "{queue}");
        assert!(messages.iter().all(|message| message.persistent && message.mandatory), "{queue}: {messages:?}");
    }
}
