//! Whether the process lives, whether it can accept tasks, and what it counted.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use taskyard_shared::process::metrics::TEXT_FORMAT;

use super::Shared;
use super::problem::{Code, Problem};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Ok,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Alive {
    status: Status,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Readiness {
    Ready,
    /// Tasks are accepted; something else does not work.
    Degraded,
    NotReady,
}

/// How one thing that the gateway depends on is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(tag = "status", content = "reason", rename_all = "snake_case")]
pub(super) enum Check {
    Ok,
    Degraded(&'static str),
    Failed(&'static str),
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Ready {
    status: Readiness,
    checks: BTreeMap<&'static str, Check>,
}

pub(super) async fn healthz() -> Json<Alive> {
    Json(Alive { status: Status::Ok })
}

/// Ready is: a task that comes now is accepted. A store that is away degrades look-ups and does not stop that.
pub(super) async fn readyz(State(gateway): State<Arc<Shared>>) -> Response {
    let judge = |well: bool, otherwise: Check| if well { Check::Ok } else { otherwise };
    let checks = BTreeMap::from([
        ("broker", judge(gateway.broker.is_ready(), Check::Failed("it is away, or takes no messages"))),
        ("queues", judge(*gateway.declared.borrow(), Check::Failed("intake is not declared yet"))),
        ("replies", judge(gateway.inbox.is_up(), Check::Degraded("the reply queue is gone: waiting takes longer"))),
        ("store", judge(!gateway.records.is_away(), Check::Degraded("it is away: look-ups are not answered"))),
    ]);
    let (code, status) = if checks.values().any(|check| matches!(check, Check::Failed(_))) {
        (StatusCode::SERVICE_UNAVAILABLE, Readiness::NotReady)
    } else if checks.values().any(|check| matches!(check, Check::Degraded(_))) {
        (StatusCode::OK, Readiness::Degraded)
    } else {
        (StatusCode::OK, Readiness::Ready)
    };
    (code, Json(Ready { status, checks })).into_response()
}

pub(super) async fn metrics(State(gateway): State<Arc<Shared>>) -> Result<Response, Problem> {
    let text = gateway.registry.render().map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response())
}
