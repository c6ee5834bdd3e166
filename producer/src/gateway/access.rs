//! Who calls, and what they may: the key of a request, the scope that a route asks for, the tenant whose tasks a caller has.
//!
//! Every route says in the table what it asks for. A task of another tenant is to a caller as one that was never accepted.

use std::sync::Arc;

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use taskyard_shared::process::keys::{Closed, Grant, Keys, Scope};
use taskyard_shared::{Kind, Task, TaskId, TaskResult, Timestamp};

use super::Shared;
use super::pages::from_elsewhere;
use super::problem::{Code, Problem};

/// What a route asks of its callers while there are keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// Nothing.
    Open,
    /// A key with the scope. It reaches what is of its tenant.
    Own(Scope),
    /// A key with the scope for all tenants: the call is about the yard.
    Yard(Scope),
}

impl Access {
    pub(super) const SUBMIT: Self = Self::Own(Scope::Submit);
    pub(super) const READ: Self = Self::Own(Scope::Read);
    pub(super) const CONTROL: Self = Self::Own(Scope::Control);
    pub(super) const READ_YARD: Self = Self::Yard(Scope::Read);
    pub(super) const ADMIN: Self = Self::Yard(Scope::Admin);

    pub(super) fn scope(self) -> Option<Scope> {
        match self {
            Self::Open => None,
            Self::Own(scope) | Self::Yard(scope) => Some(scope),
        }
    }
}

/// Whose call it is.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// The only one whose tasks there are for this caller; `None` for one that may see all of them.
    tenant: Option<Arc<str>>,
    /// Has the scope, or there are no keys.
    is_admin: bool,
}

/// Why a call is turned away, as a metric has it.
pub(super) struct Turned {
    pub(super) reason: &'static str,
    code: Code,
    detail: String,
}

impl From<Turned> for Problem {
    fn from(turned: Turned) -> Self {
        Self::new(turned.code, turned.detail)
    }
}

impl Caller {
    /// Looks at the key of a call. `is_local`: the gateway listens on a loopback address.
    pub(super) fn identify(keys: &Keys, access: Access, parts: &Parts, is_local: bool) -> Result<Self, Turned> {
        let Some(scope) = access.scope() else { return Ok(Self::nobody()) };
        let forbidden = |reason, detail: String| Turned { reason, code: Code::Forbidden, detail };
        if keys.is_empty() {
            return match from_elsewhere(parts, is_local) {
                Some(why) => Err(forbidden("page", format!("pages of other sites are not served without keys: {why}"))),
                None => Ok(Self { tenant: None, is_admin: true }),
            };
        }
        let grant = grant(keys, &parts.headers)?;
        if !grant.has(scope) {
            return Err(forbidden("scope", format!("the key has not the scope {}", scope.name())));
        }
        if matches!(access, Access::Yard(_)) && grant.tenant.is_some() {
            return Err(forbidden(
                "tenant",
                "the call is about the whole yard, and the key is one tenant's".to_owned(),
            ));
        }
        Ok(Self { tenant: grant.tenant.clone(), is_admin: grant.has(Scope::Admin) })
    }

    /// Who calls what needs no key. No tenant's name is empty, so that there is no task for this one.
    fn nobody() -> Self {
        Self { tenant: Some("".into()), is_admin: false }
    }

    /// Who makes a request that came through the door. One that did not is refused.
    pub(super) fn of(parts: &Parts) -> Result<Self, Problem> {
        let unknown = || Problem::new(Code::Internal, "nobody asked who calls");
        parts.extensions.get::<Self>().cloned().ok_or_else(unknown)
    }

    pub(super) fn is_everyone(&self) -> bool {
        self.tenant.is_none()
    }

    pub(super) fn sees(&self, tenant: &str) -> bool {
        self.tenant.as_deref().is_none_or(|own| own == tenant)
    }

    /// The tenant that a filter is narrowed to.
    ///
    /// # Errors
    /// When another is asked for.
    pub(super) fn narrowed(&self, asked: Option<String>) -> Result<Option<String>, Problem> {
        match (&self.tenant, asked) {
            (Some(own), Some(asked)) if **own != *asked => Err(other_tenant()),
            (Some(own), _) => Ok(Some(own.to_string())),
            (None, asked) => Ok(asked),
        }
    }

    /// Makes a task this caller's.
    ///
    /// # Errors
    /// When it says that it is another tenant's, or is of a kind that this caller may not send.
    pub(super) fn claim(&self, task: &mut Task) -> Result<(), Problem> {
        self.may_send(task.kind)?;
        task.tenant = self.narrowed(task.tenant.take())?;
        Ok(())
    }

    /// Deployments are tasks, and change what every tenant's tasks run on.
    pub(super) fn may_send(&self, kind: Kind) -> Result<(), Problem> {
        match kind {
            Kind::Deployment if !self.is_admin => {
                Err(Problem::new(Code::Forbidden, "kind: a deployment needs a key with the scope admin").at("kind"))
            }
            _ => Ok(()),
        }
    }
}

fn other_tenant() -> Problem {
    Problem::new(Code::Forbidden, "tenant: the key is another tenant's").at("tenant")
}

fn grant<'a>(keys: &'a Keys, headers: &HeaderMap) -> Result<&'a Grant, Turned> {
    let turned = |reason, detail: &str| Turned { reason, code: Code::Unauthorized, detail: detail.to_owned() };
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let presented = match (given.next(), given.next()) {
        (None, _) => {
            return Err(turned("missing", "the call needs a key, in the header Authorization: Bearer KEY"));
        }
        (Some(value), None) => bearer(value),
        (Some(_), Some(_)) => None,
    };
    let Some(presented) = presented else {
        return Err(turned("unreadable", "authorization: must be one header of the form Bearer KEY"));
    };
    keys.open(presented, Timestamp::now()).map_err(|closed| match closed {
        Closed::Unknown => turned("unknown", "the key is not known"),
        Closed::Expired => turned("expired", "the key has expired"),
    })
}

fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim()).filter(|key| !key.is_empty())
}

impl Shared {
    /// The record of a task, when it is there for this caller.
    pub(super) async fn seen(&self, caller: &Caller, id: TaskId) -> Result<Option<TaskResult>, Problem> {
        Ok(self.look_up(id).await?.filter(|task| caller.sees(&task.tenant)))
    }

    /// Whether a caller may ask something of a task, before anything is: of one without a record, only who may see all tasks.
    pub(super) async fn may_change(&self, caller: &Caller, id: TaskId) -> Result<bool, Problem> {
        Ok(caller.is_everyone() || self.seen(caller, id).await?.is_some())
    }
}
