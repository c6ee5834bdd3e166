//! Whether the process lives, whether it can accept tasks, and what it counted.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus::{Encoder, TextEncoder};
use serde_json::json;

use super::Shared;
use super::problem::{Code, Problem};

pub(super) async fn healthz() -> Response {
    Json(json!({"status": "ok"})).into_response()
}

/// Ready is: a task that comes now is accepted. A store that is away degrades look-ups and does not stop that.
pub(super) async fn readyz(State(gateway): State<Arc<Shared>>) -> Response {
    let broker = gateway.broker.is_ready();
    let declared = *gateway.declared.borrow();
    let replies = gateway.inbox.sessions().borrow().up;
    let ready = broker && declared;
    let degraded = gateway.records.is_away() || !replies;
    let status = match (ready, degraded) {
        (false, _) => "not ready",
        (true, true) => "degraded",
        (true, false) => "ok",
    };
    let word = |up: bool| if up { "ok" } else { "away" };
    let checks = json!({
        "broker": word(broker),
        "queues": word(declared),
        "replies": word(replies),
        "store": word(!gateway.records.is_away()),
    });
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({"status": status, "checks": checks}))).into_response()
}

pub(super) async fn metrics(State(gateway): State<Arc<Shared>>) -> Result<Response, Problem> {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    encoder
        .encode(&gateway.registry.gather(), &mut text)
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    let media = HeaderValue::from_str(encoder.format_type()).unwrap_or(HeaderValue::from_static("text/plain"));
    Ok(([(header::CONTENT_TYPE, media)], text).into_response())
}
