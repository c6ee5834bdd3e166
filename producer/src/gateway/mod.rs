//! The HTTP gateway: tasks in, results out, and the yard's state.
//!
//! ```text
//! routes    every call, in one table       serve     connections and their limits
//! request   reading one, bounded           problem   every error, with its code
//! access    who calls, and what they may
//! pressure  what the schedulers would refuse
//! intake    look up, publish, record       waiting   results, by message and by a slow second look
//! events    what running tasks say, as server-sent events
//! ask       questions to the schedulers, and their answers
//! artifacts · tasks · batches · workflows · schedules · control · retry · dead · state · health · openapi   what answers the calls
//! records   the store, which may be away
//! ```

mod access;
mod artifacts;
mod ask;
mod batches;
mod confirmed;
mod control;
mod dead;
mod events;
mod health;
mod intake;
mod metrics;
mod openapi;
mod pages;
mod pressure;
pub mod problem;
mod quote;
mod records;
mod request;
mod retry;
mod routes;
mod schedules;
mod serve;
mod state;
mod tasks;
mod waiting;
mod workflows;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use taskyard_shared::Topology;
use taskyard_shared::artifacts::Artifacts;
use taskyard_shared::broker::Broker;
use taskyard_shared::events::{Events, Publisher};
use taskyard_shared::process::keys::Keys;
use taskyard_shared::process::metrics::{MetricsError, Registry};
use taskyard_shared::process::settings::GatewaySettings;
use taskyard_shared::retry::Backoff;
use taskyard_shared::store::Store;
use taskyard_shared::task::limits;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::access::{Access, Caller};
use self::ask::Desk;
use self::confirmed::Confirmed;
use self::events::Hub;
use self::metrics::GatewayMetrics;
use self::pressure::Pressure;
use self::problem::{Code, Problem};
use self::records::Records;
use self::request::{BodyRoom, Held, Parameters};
use self::routes::Route;
use crate::letters::DeadLetters;
use crate::publish::Publisher as Tasks;
use crate::results::Inbox;
use crate::webhooks::Webhooks;

pub use self::request::duration;

/// Request bodies in memory, all together, unless the largest need more room.
const BODIES_BYTES: usize = 256 << 20;

/// What a gateway is made of.
pub struct GatewayParts {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    pub topology: Topology,
    pub settings: GatewaySettings,
    /// The gateway's metrics are registered here, and `/metrics` shows all of it.
    pub registry: Registry,
    /// Without any, every caller may do everything.
    pub keys: Keys,
    /// Where large inputs go, and files that callers put.
    pub artifacts: Option<Artifacts>,
}

pub struct Gateway {
    shared: Arc<Shared>,
    publisher: Publisher,
    webhooks: Webhooks,
}

struct Shared {
    broker: Arc<dyn Broker>,
    records: Records,
    topology: Topology,
    settings: GatewaySettings,
    registry: Registry,
    metrics: GatewayMetrics,
    keys: Keys,
    artifacts: Option<Artifacts>,
    publisher: Tasks,
    confirmed: Confirmed,
    inbox: Inbox,
    desk: Desk,
    hub: Hub,
    events: Events,
    letters: DeadLetters,
    pressure: Pressure,
    bodies: BodyRoom,
    declared: watch::Sender<bool>,
    declare_again: Notify,
    /// Waits end early then.
    stopping: CancellationToken,
}

impl Gateway {
    /// # Errors
    /// When a metric cannot be registered.
    pub fn new(parts: GatewayParts) -> Result<Self, MetricsError> {
        let GatewayParts { broker, store, topology, settings, registry, keys, artifacts } = parts;
        let owner = Uuid::new_v4();
        let queue = topology.replies(&format!("gateway-{owner}"));
        let (events, publisher) = Events::new(&topology, &registry)?;
        let desk = Desk::new(topology.replies(&format!("control-{owner}")));
        Ok(Self {
            publisher,
            webhooks: Webhooks::new(broker.clone(), topology.clone(), settings.webhooks.clone(), &registry)?,
            shared: Arc::new(Shared {
                publisher: Tasks::new(broker.clone(), &topology),
                confirmed: Confirmed::default(),
                letters: DeadLetters::new(broker.clone(), &topology),
                broker,
                pressure: Pressure::new(store.clone()),
                records: Records::new(store),
                metrics: GatewayMetrics::register(&registry)?,
                registry,
                keys,
                artifacts,
                inbox: Inbox::new(queue, settings.max_waiters),
                desk,
                hub: Hub::new(settings.max_streams),
                events,
                bodies: BodyRoom::new(room_bytes(&settings)),
                topology,
                settings,
                declared: watch::Sender::new(false),
                declare_again: Notify::new(),
                stopping: CancellationToken::new(),
            }),
        })
    }

    /// All routes. Results are waited for only while [`run`](Self::run) does.
    pub fn router(&self) -> Router {
        let shared = self.shared.clone();
        routes::router()
            .fallback(|| async { Problem::new(Code::NoRoute, "there is no such resource; / lists those there are") })
            .method_not_allowed_fallback(|| async {
                Problem::new(Code::MethodNotAllowed, "the resource does not know this method")
            })
            .layer(from_fn_with_state(shared.clone(), around))
            .with_state(shared)
    }

    /// Serves until `shutdown`: then waits end early, running requests finish, and it returns.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) {
        let (shared, router) = (self.shared.clone(), self.router());
        let background = CancellationToken::new();
        let keep = background.clone().drop_guard();
        let Self { publisher, webhooks, .. } = self;
        let delivering = tokio::spawn(webhooks.run(shared.stopping.clone()));
        tokio::spawn(publisher.run(shared.broker.clone(), background.clone()));
        let inbox = shared.inbox.clone();
        let receiving = tokio::spawn(inbox.run(shared.broker.clone(), background.clone()));
        let asking = tokio::spawn({
            let (shared, background) = (shared.clone(), background.clone());
            async move { background.run_until_cancelled(shared.desk.run(shared.broker.as_ref())).await }
        });
        let rechecking = tokio::spawn({
            let (shared, background) = (shared.clone(), background.clone());
            async move { background.run_until_cancelled(shared.recheck()).await }
        });
        let feeling = tokio::spawn({
            let (shared, background) = (shared.clone(), background.clone());
            async move { background.run_until_cancelled(shared.feel()).await }
        });
        let streaming = tokio::spawn({
            let (shared, background) = (shared.clone(), background.clone());
            async move { background.run_until_cancelled(shared.stream_events()).await }
        });
        let declaring = tokio::spawn({
            let (shared, background) = (shared.clone(), background.clone());
            async move { background.run_until_cancelled(shared.declare()).await }
        });
        let stopping = tokio::spawn({
            let (shared, shutdown) = (shared.clone(), shutdown.clone());
            async move {
                shutdown.cancelled().await;
                shared.stopping.cancel();
            }
        });
        let limits = serve::Limits { connections: shared.settings.max_connections, timeout: shared.request_limit() };
        let counts = serve::Counts {
            open: shared.metrics.connections.clone(),
            refused: shared.metrics.connections_refused.clone(),
        };
        serve::serve(listener, router, limits, counts, shutdown).await;
        drop(keep);
        let _ = tokio::join!(receiving, asking, rechecking, feeling, streaming, delivering, declaring, stopping);
    }
}

/// At least eight of the largest tasks, and two of the largest artifacts.
fn room_bytes(settings: &GatewaySettings) -> usize {
    let (bodies, artifacts) =
        (settings.max_body_bytes.saturating_mul(8), settings.max_artifact_bytes.saturating_mul(2));
    BODIES_BYTES.max(bodies).max(artifacts)
}

impl Shared {
    fn request_limit(&self) -> Duration {
        Duration::from_millis(self.settings.request_timeout_ms.max(1))
    }

    async fn read_body(&self, headers: &HeaderMap, body: Body) -> Result<Held, Problem> {
        let most = self.settings.max_body_bytes.min(limits::BODY_BYTES);
        self.bodies.read(headers, body, most, self.request_limit()).await
    }

    /// Declares the tasks exchange and intake, until the broker takes it, and again whenever they turn out to be gone.
    async fn declare(&self) {
        loop {
            let mut attempt = 0u32;
            while let Err(error) = self.publisher.declare().await {
                self.declared.send_replace(false);
                attempt = attempt.saturating_add(1);
                if attempt == 1 {
                    tracing::warn!(%error, "the tasks exchange and intake cannot be declared yet");
                }
                tokio::time::sleep(Backoff::RECONNECT.delay(attempt, crate::random())).await;
            }
            self.declared.send_replace(true);
            self.declare_again.notified().await;
        }
    }
}

/// Around every call: its key and its query are checked, its answer is counted and marked.
async fn around(State(gateway): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let route = path.as_ref().and_then(|path| Route::find(path.as_str(), request.method()));
    let method = match *request.method() {
        Method::GET | Method::HEAD => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    };

    let (mut parts, body) = request.into_parts();
    // Who calls comes first: whoever may not is not told what is wrong with the rest.
    let access = route.map_or(Access::Open, |route| route.access);
    let is_local = gateway.settings.listen.ip().to_canonical().is_loopback();
    let checked = match (Caller::identify(&gateway.keys, access, &parts, is_local), route) {
        (Err(turned), _) => {
            gateway.metrics.turned_away.with_label_values(&[turned.reason]).inc();
            Err(turned.into())
        }
        (Ok(caller), Some(route)) => Parameters::read(&parts, &route.query()).map(|parameters| (caller, parameters)),
        (Ok(caller), None) => Ok((caller, Parameters::default())),
    };
    let mut response = match checked {
        Ok((caller, parameters)) => {
            parts.extensions.insert(caller);
            parts.extensions.insert(parameters);
            next.run(Request::from_parts(parts, body)).await
        }
        Err(problem) => problem.into_response(),
    };

    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let label = path.as_ref().map_or("unmatched", |path| path.as_str());
    gateway.metrics.requests.with_label_values(&[label, method, response.status().as_str()]).inc();
    gateway.metrics.request_seconds.with_label_values(&[label, method]).observe(began.elapsed().as_secs_f64());
    response
}
