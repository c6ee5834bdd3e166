//! `POST /v1/tasks/{id}/retry`: a task that has ended is tried again, as a new one, if a dead letter holds what it was to work on.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State as Shares};
use schemars::JsonSchema;
use serde::Serialize;
use taskyard_shared::dead::Letter;
use taskyard_shared::{State, TaskId};

use super::Shared;
use super::access::Caller;
use super::control::{Outcome, not_found};
use super::dead::replay_one;
use super::problem::{Code, Problem};

/// A task that is tried again.
#[derive(Serialize, JsonSchema)]
pub(super) struct Retried {
    id: TaskId,
    /// `retried`
    outcome: Outcome,
    /// As it has ended; a terminal state never changes. Nothing when the store has forgotten it.
    state: Option<State>,
    /// The task that it is now.
    task_id: Option<TaskId>,
}

pub(super) async fn post(Shares(gateway): Shares<Arc<Shared>>, request: Request) -> Result<Json<Retried>, Problem> {
    let (mut parts, _) = request.into_parts();
    let id = gateway.open_to_change(&mut parts).await?;
    let record = gateway.look_up(id).await?;
    if let Some(record) = &record {
        Caller::of(&parts)?.may_send(record.kind)?;
    }
    let state = record.map(|record| record.state);
    let conflict = |code, detail: String, outcome| {
        let problem = Problem::new(code, detail).of_task(id);
        Err(Problem { outcome: Some(outcome), ..problem })
    };
    match state {
        Some(State::Succeeded) => {
            return conflict(Code::AlreadyFinished, "it has succeeded".into(), Outcome::AlreadyFinished);
        }
        Some(state) if !state.is_terminal() => {
            return conflict(Code::NotFinished, format!("it is {}", state.as_str()), Outcome::NotFinished);
        }
        // What the store has forgotten may still lie among the dead letters.
        Some(_) | None => {}
    }
    let retried = |task_id| Ok(Json(Retried { id, outcome: Outcome::Retried, state, task_id }));
    match replay_one(&gateway, id.0).await {
        Ok(task_id) => retried(task_id),
        Err(problem) if problem.code == Code::NotFound => {
            let again = Letter::replayed(id.0);
            if gateway.look_up(again).await?.is_some() {
                // An earlier call did it, whose answer was lost perhaps.
                return retried(Some(again));
            }
            match state {
                None => Err(not_found()),
                Some(_) => conflict(Code::InputNotKept, problem.detail, Outcome::InputNotKept),
            }
        }
        Err(problem) => Err(problem),
    }
}
