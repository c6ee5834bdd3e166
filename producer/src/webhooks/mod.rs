//! Delivers webhooks: what tasks that have ended are to tell an address, tried until it is taken or given up.
//!
//! Deliveries wait in a durable queue, written beside the task's result. One that fails goes to a second queue and waits there for its
//! time, so that an address that fails does not keep others waiting; and an address that is slow has a few at once and no more: what is
//! beyond goes to the second queue as well. What is given up is a dead letter.

mod metrics;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Client, StatusCode, Url};
use taskyard_shared::broker::{
    Acker, Broker, BrokerError, Delivery, Message, Need, QueueSpec, Tag, Verdict, publish_surely,
};
use taskyard_shared::dead::Letter;
use taskyard_shared::process::egress::Reach;
use taskyard_shared::process::http_client;
use taskyard_shared::process::metrics::{MetricsError, Registry};
use taskyard_shared::process::settings::WebhookSettings;
use taskyard_shared::retry::Backoff;
use taskyard_shared::webhook::{self, Hook, Secret};
use taskyard_shared::{Timestamp, Topology};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use self::metrics::WebhookMetrics;

/// Deliveries in memory that wait for their time.
const WAITING: u16 = 1000;
/// Of those under way one address has at most a part.
const PART_OF_ONE: usize = 4;
/// One whose address has enough under way is looked at again after this.
const BUSY: Duration = Duration::from_secs(1);
/// What is under way when the gateway stops is waited for so long; then it is delivered again by another.
const DRAIN: Duration = Duration::from_secs(5);

/// Why a delivery is not tried again.
struct GivenUp {
    reason: &'static str,
    detail: String,
}

/// What an attempt came to.
enum Came {
    Delivered,
    /// Not this time; the other end may have said when.
    Failed {
        detail: String,
        after: Option<Duration>,
    },
    Over(GivenUp),
}

pub struct Webhooks {
    broker: Arc<dyn Broker>,
    topology: Topology,
    settings: WebhookSettings,
    secrets: Vec<Secret>,
    reach: Reach,
    client: Option<Client>,
    metrics: WebhookMetrics,
    room: Arc<Semaphore>,
    /// Deliveries under way by address.
    under_way: Mutex<HashMap<String, usize>>,
}

impl Webhooks {
    /// # Errors
    /// When the registry has other metrics of these names.
    pub fn new(
        broker: Arc<dyn Broker>,
        topology: Topology,
        settings: WebhookSettings,
        registry: &Registry,
    ) -> Result<Self, MetricsError> {
        let reach = Reach::public(&settings.allow);
        // They were checked with the settings.
        let secrets = [&settings.secret, &settings.old_secret].into_iter().filter_map(|text| Secret::read(text).ok());
        let client = match client(reach.clone(), &settings) {
            Ok(client) => Some(client),
            Err(error) => {
                warn!(error = %error.without_url(), "webhooks cannot be delivered here: no HTTP client can be made");
                None
            }
        };
        Ok(Self {
            secrets: secrets.collect(),
            reach,
            client,
            metrics: WebhookMetrics::register(registry)?,
            room: Arc::new(Semaphore::new(settings.concurrency)),
            under_way: Mutex::default(),
            broker,
            topology,
            settings,
        })
    }

    /// Delivers until `closing`.
    pub async fn run(self, closing: CancellationToken) {
        if self.client.is_none() {
            return closing.cancelled().await;
        }
        let hooks = Arc::new(self);
        let tracker = TaskTracker::new();
        let fresh = hooks.clone().read(hooks.topology.webhooks(), hooks.prefetch(), &tracker, &closing);
        let again = hooks.clone().read(hooks.topology.webhooks_again(), WAITING, &tracker, &closing);
        tokio::join!(fresh, again);
        tracker.close();
        let _in_time = tokio::time::timeout(DRAIN, tracker.wait()).await;
    }

    fn prefetch(&self) -> u16 {
        u16::try_from(self.settings.concurrency.saturating_mul(2)).unwrap_or(u16::MAX).max(1)
    }

    /// Reads a queue, and takes it up again after every cut.
    async fn read(self: Arc<Self>, queue: String, prefetch: u16, tracker: &TaskTracker, closing: &CancellationToken) {
        let mut tries = 0;
        while !closing.is_cancelled() {
            let session = self.session(&queue, prefetch, tracker, closing);
            match session.await {
                Ok(()) => return,
                Err(failure) => {
                    tries += 1;
                    debug!(%failure, queue, "the webhooks are taken up again");
                    tokio::select! {
                        () = tokio::time::sleep(Backoff::RECONNECT.delay(tries, crate::random())) => {}
                        () = closing.cancelled() => {}
                    }
                }
            }
        }
    }

    async fn session(
        self: &Arc<Self>,
        queue: &str,
        prefetch: u16,
        tracker: &TaskTracker,
        closing: &CancellationToken,
    ) -> Result<(), BrokerError> {
        self.broker.declare(&[QueueSpec::durable(queue)]).await?;
        let mut consumer = self.broker.consume(queue, prefetch).await?;
        let acker = consumer.acker();
        loop {
            let deliveries = tokio::select! {
                deliveries = consumer.next_batch(prefetch.into()) => deliveries?,
                () = closing.cancelled() => break,
            };
            for delivery in deliveries {
                let (hooks, acker, closing) = (self.clone(), acker.clone(), closing.clone());
                // As many as there are unacked deliveries.
                tracker.spawn(async move { hooks.take(delivery, acker, closing).await });
            }
        }
        // What is under way is acked yet; the rest comes again when the consumer is dropped.
        consumer.cancel().await?;
        tracker.close();
        let _in_time = tokio::time::timeout(DRAIN, tracker.wait()).await;
        Ok(())
    }

    /// One delivery, from the queue to its end.
    async fn take(&self, delivery: Delivery, acker: Arc<dyn Acker>, closing: CancellationToken) {
        let tag = delivery.tag;
        let mut hook: Hook = match serde_json::from_slice(&delivery.body) {
            Ok(hook) if matches!(hook, Hook { v: webhook::VERSION, .. }) => hook,
            Ok(Hook { v, .. }) => {
                let detail = format!("a webhook of version {v}, of which this gateway knows nothing");
                return self
                    .bury(delivery.body, GivenUp { reason: "webhook_unreadable", detail }, tag, &acker, &closing)
                    .await;
            }
            Err(error) => {
                let detail = error.to_string();
                return self
                    .bury(delivery.body, GivenUp { reason: "webhook_unreadable", detail }, tag, &acker, &closing)
                    .await;
            }
        };
        let wait = hook.not_before.map(|time| time.ms_since(Timestamp::now()).max(0.0)).unwrap_or(0.0);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs_f64((wait / 1e3).clamp(0.0, 86_400.0))) => {}
            // Not acked: it waits on elsewhere.
            () = closing.cancelled() => return,
        }
        let place = address(&hook.url);
        let Some(_turn) = self.turn(&place) else {
            hook.not_before = Some(Timestamp::now().plus_ms(BUSY.as_millis() as u64));
            return self.again(hook, tag, &acker, &closing).await;
        };
        // Also when closing: what was sent and not acked would be sent again.
        match self.deliver(&hook).await {
            Came::Delivered => {
                self.metrics.attempts.with_label_values(&["delivered"]).inc();
                acker.settle(vec![tag], Verdict::Ack).await;
            }
            Came::Over(given_up) => {
                self.metrics.attempts.with_label_values(&["given_up"]).inc();
                self.give_up(hook, given_up, tag, &acker, &closing).await;
            }
            Came::Failed { detail, after } => {
                self.metrics.attempts.with_label_values(&["failed"]).inc();
                hook.attempts = hook.attempts.saturating_add(1);
                if hook.attempts >= self.settings.max_attempts {
                    let detail = format!("{} attempts, the last: {detail}", hook.attempts);
                    return self
                        .give_up(hook, GivenUp { reason: "webhook_failed", detail }, tag, &acker, &closing)
                        .await;
                }
                let most = Duration::from_millis(self.settings.retry_most_ms);
                let backoff = Backoff::new(Duration::from_millis(self.settings.retry_first_ms), most);
                let wait = backoff.delay(hook.attempts, crate::random()).max(after.unwrap_or_default().min(most));
                debug!(task.id = %hook.task.0, attempt = hook.attempts, detail, "a webhook is tried again");
                hook.not_before = Some(Timestamp::now().plus_ms(wait.as_millis() as u64));
                self.again(hook, tag, &acker, &closing).await;
            }
        }
    }

    /// A place for one more to this address, if it may have one.
    fn turn(&self, place: &str) -> Option<Turn<'_>> {
        let most = (self.settings.concurrency / PART_OF_ONE).max(1);
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let count = under_way.entry(place.to_owned()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Turn { hooks: self, place: place.to_owned() })
    }

    async fn deliver(&self, hook: &Hook) -> Came {
        let over = |reason, detail: &str| Came::Over(GivenUp { reason, detail: detail.to_owned() });
        let Some(client) = &self.client else { return over("webhook_failed", "no HTTP client can be made") };
        if self.secrets.is_empty() {
            return over("webhook_unsigned", "gateway.webhooks.secret is not set: nothing is sent unsigned");
        }
        let Ok(url) = Url::parse(&hook.url) else { return over("webhook_refused", "its address is no URL") };
        if !self.reach.allows_url(&url) {
            return over("webhook_refused", "its address is not one that may be connected to");
        }
        let Ok(_room) = self.room.acquire().await else { return over("webhook_failed", "the gateway is closing") };
        let body = hook.payload.get().as_bytes().to_vec();
        let seconds = Timestamp::now().as_micros().div_euclid(1_000_000);
        let signatures: Vec<String> = self.secrets.iter().map(|secret| secret.sign(&hook.id, seconds, &body)).collect();
        let request = client
            .post(url)
            .header("content-type", "application/json")
            .header("webhook-id", &hook.id)
            .header("webhook-timestamp", seconds.to_string())
            .header("webhook-signature", signatures.join(" "))
            .body(body);
        match request.send().await {
            Ok(response) if response.status().is_success() => Came::Delivered,
            Ok(response) if response.status() == StatusCode::GONE => {
                over("webhook_gone", "the address answered 410: it wants no more")
            }
            Ok(response) => {
                let status = response.status();
                let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
                let note = if status.is_redirection() { ", and redirects are not followed" } else { "" };
                Came::Failed { detail: format!("it answered {status}{note}"), after: after.map(Duration::from_secs) }
            }
            Err(error) => Came::Failed { detail: http_client::causes(error), after: None },
        }
    }

    async fn again(&self, hook: Hook, tag: Tag, acker: &Arc<dyn Acker>, closing: &CancellationToken) {
        let Ok(body) = serde_json::to_vec(&hook) else { return };
        let message = Message::to_queue(self.topology.webhooks_again(), body);
        if publish_surely(&*self.broker, vec![(message, Need::Work)], closing).await.is_ok() {
            acker.settle(vec![tag], Verdict::Ack).await;
        }
    }

    async fn give_up(&self, hook: Hook, why: GivenUp, tag: Tag, acker: &Arc<dyn Acker>, closing: &CancellationToken) {
        warn!(task.id = %hook.task.0, reason = why.reason, detail = why.detail, "a webhook is given up");
        // As it was at first: whoever replays it has all attempts again.
        let hook = Hook { attempts: 0, not_before: None, ..hook };
        let body = serde_json::to_vec(&hook).unwrap_or_default();
        self.bury(body.into(), why, tag, acker, closing).await;
    }

    async fn bury(
        &self,
        body: bytes::Bytes,
        why: GivenUp,
        tag: Tag,
        acker: &Arc<dyn Acker>,
        closing: &CancellationToken,
    ) {
        self.metrics.dead_lettered.with_label_values(&[why.reason]).inc();
        let letter = Letter::of_internal(why.reason, &why.detail, body);
        let work = vec![(letter.message(&self.topology), Need::Work)];
        if publish_surely(&*self.broker, work, closing).await.is_ok() {
            acker.settle(vec![tag], Verdict::Ack).await;
        }
    }
}

/// One delivery under way to an address.
struct Turn<'a> {
    hooks: &'a Webhooks,
    place: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut under_way = self.hooks.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = under_way.get_mut(&self.place) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&self.place);
            }
        }
    }
}

/// Host and port: those who share them share their turns.
fn address(url: &str) -> String {
    let url = Url::parse(url).ok();
    url.map(|url| format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(0)))
        .unwrap_or_default()
}

fn client(reach: Reach, settings: &WebhookSettings) -> reqwest::Result<Client> {
    let limit = Duration::from_millis(settings.timeout_ms);
    http_client::builder(reach).connect_timeout(limit).timeout(limit).build()
}
