//! Metrics and health over HTTP: `/metrics`, `/healthz` (the process serves) and `/readyz` (it can do its work).
//!
//! Scheduler and worker have a listener of their own for it; the gateway merges [`routes`] into its router.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::listen::{Limits, ListenError, Listener};
use super::metrics::{Registry, TEXT_FORMAT};
use super::secret::masked;
use super::settings::AdminSettings;

const LIMITS: Limits = Limits { connections: 64, idle: Duration::from_secs(30) };
const GRACE: Duration = Duration::from_secs(2);

/// How one thing that a role depends on is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "status", content = "reason", rename_all = "snake_case")]
pub enum Health {
    Ok,
    /// Work goes on, with less: the process stays ready.
    Degraded(String),
    /// No work can be done: the process is not ready.
    Failed(String),
}

/// The state of everything that a role depends on; the role keeps it up to date. Clones are the same state.
#[derive(Clone, Default, Debug)]
pub struct Readiness(Arc<RwLock<BTreeMap<&'static str, Health>>>);

impl Readiness {
    /// Not ready until every one of `checks` was heard of.
    pub fn starting(checks: &[&'static str]) -> Self {
        let starting = |check: &&'static str| (*check, Health::Failed("starting".to_owned()));
        Self(Arc::new(RwLock::new(checks.iter().map(starting).collect())))
    }

    /// Says how `check` is. Passwords of URLs in the reason are masked: everybody may read it.
    pub fn set(&self, check: &'static str, health: Health) {
        let health = match health {
            Health::Ok => Health::Ok,
            Health::Degraded(reason) => Health::Degraded(masked(&reason)),
            Health::Failed(reason) => Health::Failed(masked(&reason)),
        };
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(check, health);
    }

    /// How everything is, by name.
    pub fn checks(&self) -> BTreeMap<&'static str, Health> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether nothing has failed.
    pub fn is_ready(&self) -> bool {
        !self.checks().values().any(|health| matches!(health, Health::Failed(_)))
    }
}

/// `/metrics`, `/healthz` and `/readyz`, for any router.
pub fn routes<S: Clone + Send + Sync + 'static>(registry: Registry, readiness: Readiness) -> Router<S> {
    Router::new()
        .route("/metrics", get(async move || metrics(&registry)))
        .route("/healthz", get(async || Json(json!({"status": "ok"}))))
        .route("/readyz", get(async move || ready(&readiness)))
}

fn metrics(registry: &Registry) -> Response {
    match registry.render() {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}

/// `{"status": "ready" | "degraded" | "not_ready", "checks": {"broker": {"status": "ok"}, …}}`.
fn ready(readiness: &Readiness) -> Response {
    let checks = readiness.checks();
    let any = |of: fn(&Health) -> bool| checks.values().any(of);
    let (code, status) = if any(|health| matches!(health, Health::Failed(_))) {
        (StatusCode::SERVICE_UNAVAILABLE, "not_ready")
    } else if any(|health| matches!(health, Health::Degraded(_))) {
        (StatusCode::OK, "degraded")
    } else {
        (StatusCode::OK, "ready")
    };
    (code, Json(json!({"status": status, "checks": checks}))).into_response()
}

/// The listener of `admin.listen`.
pub async fn listen(settings: &AdminSettings) -> Result<Listener, ListenError> {
    Listener::bind(settings.listen, "admin.listen", LIMITS).await
}

/// Serves [`routes`] on it until `stop`: the end of draining, so that health can be seen to the last.
pub async fn serve(
    listener: Listener,
    registry: Registry,
    readiness: Readiness,
    stop: CancellationToken,
) -> std::io::Result<()> {
    super::listen::serve(listener, routes(registry, readiness), stop, GRACE).await
}
