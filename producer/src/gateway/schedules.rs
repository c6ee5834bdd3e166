//! `/v1/schedules`: tasks and workflows that are published again and again.
//!
//! The scheduler of shard 0 keeps them: what is asked here is asked of it, and what it says has been written down. A call that it
//! does not answer may have been carried out, or may yet be: doing it again changes nothing more.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use taskyard_shared::Invalid;
use taskyard_shared::control::{Ask, ScheduleAsk, ScheduleTold, Told};
use taskyard_shared::schedule::{decode_schedule, is_schedule_name};
use taskyard_shared::task::limits::TENANT_BYTES;

use super::Shared;
use super::access::Caller;
use super::problem::{Code, Problem};
use super::request::{Media, Parameters, media};

/// Who keeps them.
const KEEPER: u32 = 0;

fn not_found() -> Problem {
    Problem::new(Code::NotFound, "the tenant has no schedule of this name")
}

/// The `{name}` of a path.
async fn name(parts: &mut Parts) -> Result<String, Problem> {
    let path = Path::<String>::from_request_parts(parts, &()).await;
    path.ok().map(|Path(name)| name).filter(|name| is_schedule_name(name)).ok_or_else(not_found)
}

/// Whose schedule is meant: the caller's own tenant, or for one of all tenants the one that is asked for.
fn tenant(caller: &Caller, parameters: &Parameters) -> Result<String, Problem> {
    let asked = asked_tenant(parameters)?;
    Ok(caller.narrowed(asked)?.unwrap_or_else(|| "default".to_owned()))
}

fn asked_tenant(parameters: &Parameters) -> Result<Option<String>, Problem> {
    match parameters.get("tenant") {
        Some(tenant) if tenant.is_empty() || tenant.len() > TENANT_BYTES => {
            let detail = format!("tenant: must be 1 to {TENANT_BYTES} bytes");
            Err(Problem::new(Code::InvalidParameter, detail).at("tenant"))
        }
        tenant => Ok(tenant.map(str::to_owned)),
    }
}

/// `GET /v1/schedules`
pub(super) async fn list(
    State(gateway): State<Arc<Shared>>,
    Extension(parameters): Extension<Parameters>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    let limit = u32::try_from(parameters.limit()?).unwrap_or(u32::MAX);
    let after = match parameters.get("cursor").map(|cursor| cursor.rsplit_once('/')) {
        None => None,
        Some(Some((tenant, name))) => Some((tenant.to_owned(), name.to_owned())),
        Some(None) => {
            return Err(Problem::new(Code::InvalidParameter, "cursor: is none that a page gave").at("cursor"));
        }
    };
    let tenant = Caller::of(&parts)?.narrowed(asked_tenant(&parameters)?)?;
    match gateway.ask_schedules(ScheduleAsk::List { tenant, after, limit }).await? {
        ScheduleTold::Page { page } => Ok(json(StatusCode::OK, page)),
        other => Err(refused(other)),
    }
}

/// `PUT /v1/schedules/{name}`
pub(super) async fn put(State(gateway): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let (mut parts, body) = request.into_parts();
    media(&parts.headers, &[Media::Json])?;
    let Ok(name) = name(&mut parts).await else {
        return Err(Invalid::field("name", "must match [a-z0-9][a-z0-9._-]{0,127}").into());
    };
    let held = gateway.read_body(&parts.headers, body).await?;
    let schedule = decode_schedule(&held.bytes)?;
    if schedule.name.as_ref().is_some_and(|said| *said != name) {
        return Err(Invalid::field("name", "differs from the name in the path").into());
    }
    let caller = Caller::of(&parts)?;
    for kind in schedule.work.kinds() {
        caller.may_send(kind)?;
    }
    let tenant = caller.narrowed(schedule.tenant)?.unwrap_or_else(|| "default".to_owned());
    let text = String::from_utf8_lossy(&held.bytes).trim().to_owned();
    let told = gateway.ask_schedules(ScheduleAsk::Put { tenant, name: name.clone(), schedule: text }).await?;
    let ScheduleTold::Stands { shown, is_new } = told else { return Err(refused(told)) };
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = json(status, shown);
    if let Ok(location) = HeaderValue::try_from(format!("/v1/schedules/{name}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// `GET /v1/schedules/{name}`
pub(super) async fn get(
    State(gateway): State<Arc<Shared>>,
    Extension(parameters): Extension<Parameters>,
    request: Request,
) -> Result<Response, Problem> {
    gateway.of_one(request, &parameters, |tenant, name| ScheduleAsk::Get { tenant, name }).await
}

/// `POST /v1/schedules/{name}/pause`
pub(super) async fn pause(
    State(gateway): State<Arc<Shared>>,
    Extension(parameters): Extension<Parameters>,
    request: Request,
) -> Result<Response, Problem> {
    gateway.of_one(request, &parameters, |tenant, name| ScheduleAsk::Pause { tenant, name, paused: true }).await
}

/// `POST /v1/schedules/{name}/resume`
pub(super) async fn resume(
    State(gateway): State<Arc<Shared>>,
    Extension(parameters): Extension<Parameters>,
    request: Request,
) -> Result<Response, Problem> {
    gateway.of_one(request, &parameters, |tenant, name| ScheduleAsk::Pause { tenant, name, paused: false }).await
}

/// `DELETE /v1/schedules/{name}`
pub(super) async fn remove(
    State(gateway): State<Arc<Shared>>,
    Extension(parameters): Extension<Parameters>,
    request: Request,
) -> Result<Response, Problem> {
    gateway.of_one(request, &parameters, |tenant, name| ScheduleAsk::Remove { tenant, name }).await
}

fn json(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

fn refused(told: ScheduleTold) -> Problem {
    match told {
        ScheduleTold::NotFound {} => not_found(),
        ScheduleTold::TooMany { most, is_of_tenant: true } => {
            Problem::new(Code::TooManySchedules, format!("the tenant has {most} schedules, as many as it may"))
        }
        ScheduleTold::TooMany { most, is_of_tenant: false } => {
            Problem::new(Code::TooManySchedules, format!("the yard has {most} schedules, as many as it may"))
        }
        ScheduleTold::Invalid { field, message } => {
            Problem::new(Code::InvalidField, format!("{field}: {message}")).at(field)
        }
        ScheduleTold::Stands { .. } | ScheduleTold::Page { .. } => {
            Problem::new(Code::Internal, "the scheduler answered something else")
        }
    }
}

impl Shared {
    async fn of_one(
        &self,
        request: Request,
        parameters: &Parameters,
        ask: impl FnOnce(String, String) -> ScheduleAsk,
    ) -> Result<Response, Problem> {
        let (mut parts, _) = request.into_parts();
        let name = name(&mut parts).await?;
        let tenant = tenant(&Caller::of(&parts)?, parameters)?;
        match self.ask_schedules(ask(tenant, name)).await? {
            ScheduleTold::Stands { shown, .. } => Ok(json(StatusCode::OK, shown)),
            other => Err(refused(other)),
        }
    }

    async fn ask_schedules(&self, ask: ScheduleAsk) -> Result<ScheduleTold, Problem> {
        match self.ask_one(KEEPER, Ask::Schedule { ask }).await? {
            Told::Schedule { told } => Ok(told),
            _ => Err(Problem::new(Code::Internal, "the scheduler answered something else")),
        }
    }
}
