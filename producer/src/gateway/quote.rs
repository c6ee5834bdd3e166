//! `POST /v1/quote`: when a task would start and end, were it to be sent now.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use taskyard_shared::Timestamp;
use taskyard_shared::control::{Ask, Quote, QuotedTask, Told};

use super::Shared;
use super::access::Caller;
use super::problem::{Code, Problem};
use super::request::{Incoming, Media, Said, media};
use super::tasks::one_task;

/// Nothing is accepted, and nothing is remembered.
pub(super) async fn post(State(gateway): State<Arc<Shared>>, request: Request) -> Result<Json<Quote>, Problem> {
    let (parts, body) = request.into_parts();
    media(&parts.headers, &[Media::Json])?;
    let held = gateway.read_body(&parts.headers, body).await?;
    let mut task = one_task(&held.bytes)?;
    Caller::of(&parts)?.claim(&mut task)?;
    let incoming = Incoming::new(task, &Said::read(&parts.headers)?, Timestamp::now())?;
    let heard = gateway.ask(Ask::Quote { task: Box::new(QuotedTask::from(&incoming.envelope)) }).await?;
    let quotes = heard.answers.into_iter().filter_map(|answer| match answer.told {
        Told::Quote { quote } => Some(*quote),
        _ => None,
    });
    // Any shard may come to have it: the one where it would be worst off is said.
    let worst = quotes.max_by_key(|quote| quote.expected_start.map(|start| start.q95));
    match worst {
        Some(quote) => Ok(Json(quote)),
        None if heard.active == 0 => Err(Problem::new(Code::SchedulerUnavailable, "no scheduler is active")),
        None => Err(Problem::new(Code::SchedulerUnavailable, "no scheduler answered in time")),
    }
}
