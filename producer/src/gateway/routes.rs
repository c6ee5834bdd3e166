//! Every call of the API in one table: the router, the check of queries, and `/openapi.json` are made from it.

use std::sync::Arc;

use axum::Router;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use taskyard_shared::control::Quote;
use taskyard_shared::schedule::{DescribedSchedule, SchedulePage, ShownSchedule};
use taskyard_shared::workflow::{DescribedWorkflow, WorkflowRecord};
use taskyard_shared::{Task, TaskResult};

use super::access::Access;
use super::artifacts::PutArtifact;
use super::batches::BatchAnswer;
use super::control::{Changed, Counts, Explanation, NewPriority, Pause, Selection, SelectionAndPriority};
use super::dead::{Buried, DeadPage, LetterCounts, LetterSelection, WholeLetter};
use super::events::TaskView;
use super::health::{Alive, Ready};
use super::problem::Code;
use super::retry::Retried;
use super::state::{ModelPage, QueuePage, WorkerPage};
use super::tasks::TaskPage;
use super::workflows::{WorkflowChanged, WorkflowPage};
use super::{
    Shared, artifacts, batches, control, dead, events, health, openapi, quote, retry, schedules, state, tasks,
    workflows,
};

/// One method of one path.
pub(super) struct Route {
    pub(super) method: Verb,
    pub(super) path: &'static str,
    /// Its name in generated clients.
    pub(super) operation: &'static str,
    pub(super) summary: &'static str,
    pub(super) parameters: &'static [Parameter],
    /// Media types of the body, and what it is.
    pub(super) body: &'static [(&'static str, Content)],
    pub(super) answers: &'static [Answer],
    pub(super) problems: &'static [Code],
    /// What is asked of callers while there are keys.
    pub(super) access: Access,
    handler: fn(MethodFilter) -> MethodRouter<Arc<Shared>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verb {
    Get,
    Post,
    Put,
    Delete,
}

impl Verb {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Put => "put",
            Self::Delete => "delete",
        }
    }

    /// A `HEAD` is a `GET` without its body.
    fn is(self, method: &Method) -> bool {
        match self {
            Self::Get => *method == Method::GET || *method == Method::HEAD,
            Self::Post => *method == Method::POST,
            Self::Put => *method == Method::PUT,
            Self::Delete => *method == Method::DELETE,
        }
    }

    fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Put => MethodFilter::PUT,
            Self::Delete => MethodFilter::DELETE,
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Parameter {
    pub(super) place: Place,
    /// One in the query that ends in a dot is the beginning of names.
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Path,
    Query,
    Header,
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) summary: &'static str,
    pub(super) media: &'static str,
    pub(super) content: Content,
}

/// What a body holds.
#[derive(Clone, Copy)]
pub(super) enum Content {
    /// A type of ours, by its schema.
    Of(fn(&mut SchemaGenerator) -> Schema),
    Text,
    /// Anything.
    Bytes,
    /// JSON that is described elsewhere.
    Json,
}

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

const ID: Parameter = Parameter { place: Place::Path, name: "id", summary: "The task's id, a UUID" };
const LETTER: Parameter =
    Parameter { place: Place::Path, name: "id", summary: "The dead letter's id, or that of its task; a UUID" };
const WORKFLOW: Parameter = Parameter { place: Place::Path, name: "id", summary: "The workflow's id, a UUID" };
const ARTIFACT: Parameter =
    Parameter { place: Place::Path, name: "id", summary: "The SHA-256, with or without `artifact:` before it" };
const SCHEDULE: Parameter = Parameter { place: Place::Path, name: "name", summary: "The schedule's name" };
const TENANT: Parameter =
    query("tenant", "Whose schedule it is, for callers of all tenants: `default` when it is left out");
const MODEL: Parameter = Parameter { place: Place::Path, name: "model", summary: "The model's name" };
const PREFER: Parameter = Parameter {
    place: Place::Header,
    name: "Prefer",
    summary: "`wait=SECONDS` waits so long for the result; longer waits are shortened to the gateway's limit",
};
const LAST_EVENT: Parameter = Parameter {
    place: Place::Header,
    name: "Last-Event-ID",
    summary: "The id of the last event that was seen: the stream goes on behind it",
};
const KEY: Parameter = Parameter {
    place: Place::Header,
    name: "Idempotency-Key",
    summary: "The same key and tenant is the same task; as `idempotency_key` in the body",
};
const TRACE: Parameter =
    Parameter { place: Place::Header, name: "traceparent", summary: "W3C trace context, handed on with the task" };

const fn query(name: &'static str, summary: &'static str) -> Parameter {
    Parameter { place: Place::Query, name, summary }
}

const fn json(status: u16, summary: &'static str, content: Content) -> Answer {
    Answer { status, summary, media: "application/json", content }
}

const TASK_ANSWERS: &[Answer] = &[
    json(200, "The task is finished: its result", Content::Of(of::<TaskResult>)),
    json(202, "Durably accepted: confirmed by the broker", Content::Of(of::<TaskResult>)),
];

const BODY_PROBLEMS: &[Code] = &[
    Code::Empty,
    Code::Utf8,
    Code::Json,
    Code::Depth,
    Code::Shape,
    Code::BodyIncomplete,
    Code::UnknownParameter,
    Code::InvalidHeader,
    Code::BodyTimeout,
    Code::Conflict,
    Code::TooLarge,
    Code::UnsupportedMediaType,
    Code::InvalidField,
    Code::OverCapacity,
    Code::TooManyWaiters,
    Code::Overloaded,
    Code::QuotaWaiting,
    Code::QuotaRate,
    Code::BrokerUnavailable,
    Code::ArtifactsUnavailable,
];
const WORKFLOW_ANSWERS: &[Answer] = &[
    json(200, "The workflow has ended: its result", Content::Of(of::<WorkflowRecord>)),
    json(202, "Durably accepted: confirmed by the broker", Content::Of(of::<WorkflowRecord>)),
];
const WORKFLOW_PROBLEMS: &[Code] = &[
    Code::Empty,
    Code::Utf8,
    Code::Json,
    Code::Depth,
    Code::Shape,
    Code::BodyIncomplete,
    Code::UnknownParameter,
    Code::InvalidHeader,
    Code::BodyTimeout,
    Code::Conflict,
    Code::TooLarge,
    Code::UnsupportedMediaType,
    Code::InvalidField,
    Code::OverCapacity,
    Code::TooManyWaiters,
    Code::BrokerUnavailable,
];
const ONE_PROBLEMS: &[Code] =
    &[Code::UnknownParameter, Code::NotFound, Code::AlreadyFinished, Code::OverCapacity, Code::StoreUnavailable];
const RETRY_PROBLEMS: &[Code] = &[
    Code::UnknownParameter,
    Code::NotFound,
    Code::AlreadyFinished,
    Code::NotFinished,
    Code::InputNotKept,
    Code::OverCapacity,
    Code::BrokerUnavailable,
    Code::StoreUnavailable,
];
const REPRIORITIZE_PROBLEMS: &[Code] = &[
    Code::Empty,
    Code::Json,
    Code::BodyIncomplete,
    Code::UnknownParameter,
    Code::NotFound,
    Code::BodyTimeout,
    Code::AlreadyFinished,
    Code::AlreadyDispatched,
    Code::TooLarge,
    Code::UnsupportedMediaType,
    Code::InvalidField,
    Code::OverCapacity,
    Code::StoreUnavailable,
];
const SELECTION_PROBLEMS: &[Code] = &[
    Code::Empty,
    Code::Json,
    Code::BodyIncomplete,
    Code::UnknownParameter,
    Code::InvalidParameter,
    Code::BodyTimeout,
    Code::TooLarge,
    Code::UnsupportedMediaType,
    Code::InvalidField,
    Code::OverCapacity,
    Code::StoreUnavailable,
];
const EXPLAIN_PROBLEMS: &[Code] =
    &[Code::UnknownParameter, Code::NotFound, Code::OverCapacity, Code::StoreUnavailable, Code::SchedulerUnavailable];
const QUOTE_PROBLEMS: &[Code] = &[
    Code::Empty,
    Code::Utf8,
    Code::Json,
    Code::Depth,
    Code::Shape,
    Code::BodyIncomplete,
    Code::UnknownParameter,
    Code::InvalidHeader,
    Code::BodyTimeout,
    Code::TooLarge,
    Code::UnsupportedMediaType,
    Code::InvalidField,
    Code::OverCapacity,
    Code::SchedulerUnavailable,
];
const PAUSE_PROBLEMS: &[Code] = &[Code::UnknownParameter, Code::NotFound, Code::OverCapacity, Code::StoreUnavailable];
const SCHEDULE_PROBLEMS: &[Code] =
    &[Code::UnknownParameter, Code::InvalidParameter, Code::NotFound, Code::OverCapacity, Code::SchedulerUnavailable];
const PUT_SCHEDULE_PROBLEMS: &[Code] = &[
    Code::Empty,
    Code::Utf8,
    Code::Json,
    Code::Depth,
    Code::Shape,
    Code::BodyIncomplete,
    Code::UnknownParameter,
    Code::BodyTimeout,
    Code::TooManySchedules,
    Code::TooLarge,
    Code::UnsupportedMediaType,
    Code::InvalidField,
    Code::OverCapacity,
    Code::SchedulerUnavailable,
];
const LETTER_PROBLEMS: &[Code] = &[Code::UnknownParameter, Code::NotFound, Code::OverCapacity, Code::BrokerUnavailable];
const LETTERS_PROBLEMS: &[Code] = &[
    Code::Empty,
    Code::Json,
    Code::BodyIncomplete,
    Code::UnknownParameter,
    Code::BodyTimeout,
    Code::TooLarge,
    Code::UnsupportedMediaType,
    Code::InvalidField,
    Code::OverCapacity,
    Code::BrokerUnavailable,
];
const PUT_ARTIFACT_PROBLEMS: &[Code] = &[
    Code::Empty,
    Code::BodyIncomplete,
    Code::UnknownParameter,
    Code::BodyTimeout,
    Code::TooLarge,
    Code::OverCapacity,
    Code::ArtifactsUnavailable,
];
const ARTIFACT_PROBLEMS: &[Code] =
    &[Code::UnknownParameter, Code::ArtifactNotFound, Code::TooLarge, Code::OverCapacity, Code::ArtifactsUnavailable];
const STATE_PROBLEMS: &[Code] = &[Code::UnknownParameter, Code::StoreUnavailable];

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Verb::Post,
        path: "/v1/tasks",
        operation: "submitTask",
        summary: "Submit a task",
        parameters: &[PREFER, KEY, TRACE],
        body: &[("application/json", Content::Of(of::<Task>))],
        answers: TASK_ANSWERS,
        problems: BODY_PROBLEMS,
        access: Access::SUBMIT,
        handler: |method| on(method, tasks::post),
    },
    Route {
        method: Verb::Get,
        path: "/v1/tasks",
        operation: "listTasks",
        summary: "Tasks, newest first, a page at a time",
        parameters: &[
            query("state", "Only tasks in this state"),
            query("model", "Only tasks of this model"),
            query("tenant", "Only this tenant's tasks"),
            query("metadata.", "`metadata.KEY=VALUE`: only tasks with this label; may be given for several keys"),
            query("cursor", "The `cursor` of the page before"),
            query(
                "limit",
                "Most tasks on the page: 50 by default, at most 500; more is taken as 500. A page of large outputs ends early",
            ),
        ],
        body: &[],
        answers: &[json(200, "A page", Content::Of(of::<TaskPage>))],
        problems: &[Code::UnknownParameter, Code::InvalidParameter, Code::StoreUnavailable],
        access: Access::READ,
        handler: |method| on(method, tasks::list),
    },
    Route {
        method: Verb::Put,
        path: "/v1/tasks/{id}",
        operation: "putTask",
        summary: "Submit a task under an id of one's own; doing it again changes nothing",
        parameters: &[ID, PREFER, KEY, TRACE],
        body: &[("application/json", Content::Of(of::<Task>))],
        answers: TASK_ANSWERS,
        problems: BODY_PROBLEMS,
        access: Access::SUBMIT,
        handler: |method| on(method, tasks::put),
    },
    Route {
        method: Verb::Get,
        path: "/v1/tasks/{id}",
        operation: "getTask",
        summary: "A task as it stands, or its result",
        parameters: &[ID, query("wait", "Wait so long for the result: `30s`, `500ms`, or seconds"), PREFER],
        body: &[],
        answers: &[json(200, "The task; `state` says whether it is finished", Content::Of(of::<TaskView>))],
        problems: &[
            Code::UnknownParameter,
            Code::InvalidParameter,
            Code::InvalidHeader,
            Code::NotFound,
            Code::TooManyWaiters,
            Code::StoreUnavailable,
        ],
        access: Access::READ,
        handler: |method| on(method, tasks::get),
    },
    Route {
        method: Verb::Get,
        path: "/v1/tasks/{id}/events",
        operation: "followTask",
        summary: "What a task goes through, as server-sent events, until its result",
        parameters: &[ID, LAST_EVENT],
        body: &[],
        answers: &[
            Answer {
                status: 200,
                summary: "Events `state`, `progress`, `partial`, `truncated`, and `result` at the end",
                media: "text/event-stream",
                content: Content::Text,
            },
            Answer {
                status: 204,
                summary: "`Last-Event-ID` is that of the result: there is no more",
                media: "text/event-stream",
                content: Content::Text,
            },
        ],
        problems: &[
            Code::UnknownParameter,
            Code::InvalidHeader,
            Code::NotFound,
            Code::TooManyStreams,
            Code::StoreUnavailable,
        ],
        access: Access::READ,
        handler: |method| on(method, events::get),
    },
    Route {
        method: Verb::Post,
        path: "/v1/tasks/{id}/cancel",
        operation: "cancelTask",
        summary: "Cancel a task; the answer says what came of it",
        parameters: &[ID],
        body: &[],
        answers: &[
            json(200, "It is `cancelled`, now or by an earlier call", Content::Of(of::<Changed>)),
            json(
                202,
                "It is `requested`: it is with a worker, or not every scheduler answered",
                Content::Of(of::<Changed>),
            ),
        ],
        problems: ONE_PROBLEMS,
        access: Access::CONTROL,
        handler: |method| on(method, control::cancel),
    },
    Route {
        method: Verb::Post,
        path: "/v1/tasks/{id}/reprioritize",
        operation: "reprioritizeTask",
        summary: "Give a waiting task another priority; it keeps its age",
        parameters: &[ID],
        body: &[("application/json", Content::Of(of::<NewPriority>))],
        answers: &[
            json(200, "It is `reprioritized`", Content::Of(of::<Changed>)),
            json(202, "It is `requested`: not every scheduler answered", Content::Of(of::<Changed>)),
        ],
        problems: REPRIORITIZE_PROBLEMS,
        access: Access::CONTROL,
        handler: |method| on(method, control::reprioritize),
    },
    Route {
        method: Verb::Post,
        path: "/v1/tasks/{id}/retry",
        operation: "retryTask",
        summary: "Try a task that has ended again, as a new one, if a dead letter holds its input",
        parameters: &[ID],
        body: &[],
        answers: &[json(200, "It is `retried`, now or by an earlier call", Content::Of(of::<Retried>))],
        problems: RETRY_PROBLEMS,
        access: Access::CONTROL,
        handler: |method| on(method, retry::post),
    },
    Route {
        method: Verb::Get,
        path: "/v1/tasks/{id}/explain",
        operation: "explainTask",
        summary: "Why a task waits, and behind what",
        parameters: &[ID],
        body: &[],
        answers: &[json(200, "Where it stands", Content::Of(of::<Explanation>))],
        problems: EXPLAIN_PROBLEMS,
        access: Access::READ,
        handler: |method| on(method, control::explain),
    },
    Route {
        method: Verb::Post,
        path: "/v1/quote",
        operation: "quoteTask",
        summary: "When a task would start and end, were it to be submitted now; nothing is accepted",
        parameters: &[],
        body: &[("application/json", Content::Of(of::<Task>))],
        answers: &[json(200, "What would become of it", Content::Of(of::<Quote>))],
        problems: QUOTE_PROBLEMS,
        access: Access::SUBMIT,
        handler: |method| on(method, quote::post),
    },
    Route {
        method: Verb::Post,
        path: "/v1/tasks/cancel",
        operation: "cancelTasks",
        summary: "Cancel the tasks that match, at most 1,000 in a call",
        parameters: &[],
        body: &[("application/json", Content::Of(of::<Selection>))],
        answers: &[json(200, "How many came to what", Content::Of(of::<Counts>))],
        problems: SELECTION_PROBLEMS,
        access: Access::CONTROL,
        handler: |method| on(method, control::cancel_selected),
    },
    Route {
        method: Verb::Post,
        path: "/v1/tasks/reprioritize",
        operation: "reprioritizeTasks",
        summary: "Give the waiting tasks that match another priority, at most 1,000 in a call",
        parameters: &[],
        body: &[("application/json", Content::Of(of::<SelectionAndPriority>))],
        answers: &[json(200, "How many came to what", Content::Of(of::<Counts>))],
        problems: SELECTION_PROBLEMS,
        access: Access::CONTROL,
        handler: |method| on(method, control::reprioritize_selected),
    },
    Route {
        method: Verb::Post,
        path: "/v1/batches",
        operation: "submitBatch",
        summary: "Submit many tasks; each is answered by itself, and a bad one does not fail the others",
        parameters: &[TRACE],
        body: &[("application/json", Content::Of(of::<Vec<Task>>)), ("application/x-ndjson", Content::Of(of::<Task>))],
        answers: &[
            json(202, "At least one was accepted: one answer per task", Content::Of(of::<Vec<BatchAnswer>>)),
            Answer {
                status: 202,
                summary: "At least one was accepted: one answer per task",
                media: "application/x-ndjson",
                content: Content::Of(of::<BatchAnswer>),
            },
        ],
        problems: BODY_PROBLEMS,
        access: Access::SUBMIT,
        handler: |method| on(method, batches::post),
    },
    Route {
        method: Verb::Post,
        path: "/v1/workflows",
        operation: "submitWorkflow",
        summary: "Submit tasks that depend on each other",
        parameters: &[PREFER, KEY, TRACE],
        body: &[("application/json", Content::Of(of::<DescribedWorkflow>))],
        answers: WORKFLOW_ANSWERS,
        problems: WORKFLOW_PROBLEMS,
        access: Access::SUBMIT,
        handler: |method| on(method, workflows::post),
    },
    Route {
        method: Verb::Get,
        path: "/v1/workflows",
        operation: "listWorkflows",
        summary: "Workflows, newest first, a page at a time: of each what it is, and how far it has come",
        parameters: &[
            query("state", "Only workflows in this state"),
            query("tenant", "Only this tenant's workflows"),
            query("metadata.", "`metadata.KEY=VALUE`: only workflows with this label; may be given for several keys"),
            query("cursor", "The `cursor` of the page before"),
            query("limit", "Most workflows on the page: 50 by default, at most 500; more is taken as 500"),
        ],
        body: &[],
        answers: &[json(200, "A page", Content::Of(of::<WorkflowPage>))],
        problems: &[Code::UnknownParameter, Code::InvalidParameter, Code::StoreUnavailable],
        access: Access::READ,
        handler: |method| on(method, workflows::list),
    },
    Route {
        method: Verb::Get,
        path: "/v1/workflows/{id}",
        operation: "getWorkflow",
        summary: "A workflow as it stands, or its result",
        parameters: &[WORKFLOW, query("wait", "Wait so long for its end: `30s`, `500ms`, or seconds"), PREFER],
        body: &[],
        answers: &[json(200, "The workflow; `state` says whether it has ended", Content::Of(of::<WorkflowRecord>))],
        problems: &[
            Code::UnknownParameter,
            Code::InvalidParameter,
            Code::InvalidHeader,
            Code::NotFound,
            Code::TooManyWaiters,
            Code::StoreUnavailable,
        ],
        access: Access::READ,
        handler: |method| on(method, workflows::get),
    },
    Route {
        method: Verb::Post,
        path: "/v1/workflows/{id}/cancel",
        operation: "cancelWorkflow",
        summary: "Cancel a workflow: steps that wait never run, those that run are stopped",
        parameters: &[WORKFLOW],
        body: &[],
        answers: &[
            json(200, "It is `cancelled`, now or by an earlier call", Content::Of(of::<WorkflowChanged>)),
            json(202, "It is `requested`: steps that run have yet to end", Content::Of(of::<WorkflowChanged>)),
        ],
        problems: ONE_PROBLEMS,
        access: Access::CONTROL,
        handler: |method| on(method, workflows::cancel),
    },
    Route {
        method: Verb::Get,
        path: "/v1/schedules",
        operation: "listSchedules",
        summary: "Schedules by tenant and name, a page at a time",
        parameters: &[
            query("tenant", "Only this tenant's schedules"),
            query("cursor", "The `cursor` of the page before"),
            query("limit", "Most schedules on the page: 50 by default, at most 500; more is taken as 500"),
        ],
        body: &[],
        answers: &[json(200, "A page", Content::Of(of::<SchedulePage>))],
        problems: &[Code::UnknownParameter, Code::InvalidParameter, Code::OverCapacity, Code::SchedulerUnavailable],
        access: Access::READ,
        handler: |method| on(method, schedules::list),
    },
    Route {
        method: Verb::Put,
        path: "/v1/schedules/{name}",
        operation: "putSchedule",
        summary: "Publish a task or a workflow again and again; in the place of the schedule of this name",
        parameters: &[SCHEDULE],
        body: &[("application/json", Content::Of(of::<DescribedSchedule>))],
        answers: &[
            json(200, "It was there, and is as it was sent", Content::Of(of::<ShownSchedule>)),
            json(201, "It is new, and durably kept", Content::Of(of::<ShownSchedule>)),
        ],
        problems: PUT_SCHEDULE_PROBLEMS,
        access: Access::SUBMIT,
        handler: |method| on(method, schedules::put),
    },
    Route {
        method: Verb::Get,
        path: "/v1/schedules/{name}",
        operation: "getSchedule",
        summary: "A schedule, its next ticks, and what the last one made",
        parameters: &[SCHEDULE, TENANT],
        body: &[],
        answers: &[json(200, "The schedule", Content::Of(of::<ShownSchedule>))],
        problems: SCHEDULE_PROBLEMS,
        access: Access::READ,
        handler: |method| on(method, schedules::get),
    },
    Route {
        method: Verb::Delete,
        path: "/v1/schedules/{name}",
        operation: "removeSchedule",
        summary: "Remove a schedule; what its ticks made goes on",
        parameters: &[SCHEDULE, TENANT],
        body: &[],
        answers: &[json(200, "It is removed: as it stood", Content::Of(of::<ShownSchedule>))],
        problems: SCHEDULE_PROBLEMS,
        access: Access::CONTROL,
        handler: |method| on(method, schedules::remove),
    },
    Route {
        method: Verb::Post,
        path: "/v1/schedules/{name}/pause",
        operation: "pauseSchedule",
        summary: "Fire no ticks of a schedule until it is resumed",
        parameters: &[SCHEDULE, TENANT],
        body: &[],
        answers: &[json(200, "It is paused", Content::Of(of::<ShownSchedule>))],
        problems: SCHEDULE_PROBLEMS,
        access: Access::CONTROL,
        handler: |method| on(method, schedules::pause),
    },
    Route {
        method: Verb::Post,
        path: "/v1/schedules/{name}/resume",
        operation: "resumeSchedule",
        summary: "Fire ticks of a schedule again, from the next one on",
        parameters: &[SCHEDULE, TENANT],
        body: &[],
        answers: &[json(200, "It is not paused", Content::Of(of::<ShownSchedule>))],
        problems: SCHEDULE_PROBLEMS,
        access: Access::CONTROL,
        handler: |method| on(method, schedules::resume),
    },
    Route {
        method: Verb::Get,
        path: "/v1/models",
        operation: "listModels",
        summary: "The models that workers announced, and who serves them now",
        parameters: &[],
        body: &[],
        answers: &[json(200, "All models", Content::Of(of::<ModelPage>))],
        problems: STATE_PROBLEMS,
        access: Access::READ,
        handler: |method| on(method, state::models),
    },
    Route {
        method: Verb::Get,
        path: "/v1/workers",
        operation: "listWorkers",
        summary: "The workers that reported lately",
        parameters: &[],
        body: &[],
        answers: &[json(200, "All workers", Content::Of(of::<WorkerPage>))],
        problems: STATE_PROBLEMS,
        access: Access::READ_YARD,
        handler: |method| on(method, state::workers),
    },
    Route {
        method: Verb::Post,
        path: "/v1/artifacts",
        operation: "putArtifact",
        summary: "Keep a file; the answer is how a task names it",
        parameters: &[],
        body: &[("application/octet-stream", Content::Bytes)],
        answers: &[json(201, "It is kept, now or since before", Content::Of(of::<PutArtifact>))],
        problems: PUT_ARTIFACT_PROBLEMS,
        access: Access::SUBMIT,
        handler: |method| on(method, artifacts::post),
    },
    Route {
        method: Verb::Get,
        path: "/v1/artifacts/{id}",
        operation: "getArtifact",
        summary: "What a name stands for",
        parameters: &[ARTIFACT],
        body: &[],
        answers: &[Answer {
            status: 200,
            summary: "The content",
            media: "application/octet-stream",
            content: Content::Bytes,
        }],
        problems: ARTIFACT_PROBLEMS,
        access: Access::READ,
        handler: |method| on(method, artifacts::get),
    },
    Route {
        method: Verb::Get,
        path: "/v1/queues",
        operation: "listQueues",
        summary: "How deep the broker's queues are, and the slots of each model",
        parameters: &[],
        body: &[],
        answers: &[json(200, "All queues", Content::Of(of::<QueuePage>))],
        problems: &[Code::UnknownParameter, Code::StoreUnavailable, Code::BrokerUnavailable],
        access: Access::READ_YARD,
        handler: |method| on(method, state::queues),
    },
    Route {
        method: Verb::Post,
        path: "/v1/queues/{model}/pause",
        operation: "pauseQueue",
        summary: "Dispatch nothing of a model until it is resumed; what runs goes on",
        parameters: &[MODEL],
        body: &[],
        answers: &[json(200, "It is kept", Content::Of(of::<Pause>))],
        problems: PAUSE_PROBLEMS,
        access: Access::ADMIN,
        handler: |method| on(method, control::pause),
    },
    Route {
        method: Verb::Post,
        path: "/v1/queues/{model}/resume",
        operation: "resumeQueue",
        summary: "Dispatch tasks of a model again",
        parameters: &[MODEL],
        body: &[],
        answers: &[json(200, "It is kept", Content::Of(of::<Pause>))],
        problems: PAUSE_PROBLEMS,
        access: Access::ADMIN,
        handler: |method| on(method, control::resume),
    },
    Route {
        method: Verb::Get,
        path: "/v1/dead",
        operation: "listDead",
        summary: "Dead letters, newest first, a page at a time",
        parameters: &[
            query("reason", "Only letters of this reason, a code"),
            query("model", "Only letters of this model"),
            query("tenant", "Only this tenant's letters"),
            query("cursor", "The `cursor` of the page before"),
            query("limit", "Most letters on the page: 50 by default, at most 500; more is taken as 500"),
        ],
        body: &[],
        answers: &[json(200, "A page", Content::Of(of::<DeadPage>))],
        problems: &[Code::UnknownParameter, Code::InvalidParameter, Code::OverCapacity, Code::BrokerUnavailable],
        access: Access::READ_YARD,
        handler: |method| on(method, dead::list),
    },
    Route {
        method: Verb::Get,
        path: "/v1/dead/{id}",
        operation: "getDead",
        summary: "A dead letter with what it holds",
        parameters: &[LETTER],
        body: &[],
        answers: &[json(200, "The letter", Content::Of(of::<WholeLetter>))],
        problems: LETTER_PROBLEMS,
        access: Access::READ_YARD,
        handler: |method| on(method, dead::get),
    },
    Route {
        method: Verb::Post,
        path: "/v1/dead/{id}/replay",
        operation: "replayDead",
        summary: "Send what a dead letter holds again, as a new task, and remove the letter",
        parameters: &[LETTER],
        body: &[],
        answers: &[json(200, "It is `replayed`", Content::Of(of::<Buried>))],
        problems: LETTER_PROBLEMS,
        access: Access::ADMIN,
        handler: |method| on(method, dead::replay),
    },
    Route {
        method: Verb::Post,
        path: "/v1/dead/{id}/discard",
        operation: "discardDead",
        summary: "Throw a dead letter away",
        parameters: &[LETTER],
        body: &[],
        answers: &[json(200, "It is `discarded`", Content::Of(of::<Buried>))],
        problems: LETTER_PROBLEMS,
        access: Access::ADMIN,
        handler: |method| on(method, dead::discard),
    },
    Route {
        method: Verb::Post,
        path: "/v1/dead/replay",
        operation: "replayDeadLetters",
        summary: "Send the dead letters that match again",
        parameters: &[],
        body: &[("application/json", Content::Of(of::<LetterSelection>))],
        answers: &[json(200, "How many came to what", Content::Of(of::<LetterCounts>))],
        problems: LETTERS_PROBLEMS,
        access: Access::ADMIN,
        handler: |method| on(method, dead::replay_selected),
    },
    Route {
        method: Verb::Post,
        path: "/v1/dead/discard",
        operation: "discardDeadLetters",
        summary: "Throw the dead letters that match away",
        parameters: &[],
        body: &[("application/json", Content::Of(of::<LetterSelection>))],
        answers: &[json(200, "How many came to what", Content::Of(of::<LetterCounts>))],
        problems: LETTERS_PROBLEMS,
        access: Access::ADMIN,
        handler: |method| on(method, dead::discard_selected),
    },
    Route {
        method: Verb::Get,
        path: "/healthz",
        operation: "healthz",
        summary: "Whether the process lives",
        parameters: &[],
        body: &[],
        answers: &[json(200, "It does", Content::Of(of::<Alive>))],
        problems: &[Code::UnknownParameter],
        access: Access::Open,
        handler: |method| on(method, health::healthz),
    },
    Route {
        method: Verb::Get,
        path: "/readyz",
        operation: "readyz",
        summary: "Whether tasks can be accepted now; it also names what is degraded",
        parameters: &[],
        body: &[],
        answers: &[json(200, "They can", Content::Of(of::<Ready>)), json(503, "They cannot", Content::Of(of::<Ready>))],
        problems: &[Code::UnknownParameter],
        access: Access::Open,
        handler: |method| on(method, health::readyz),
    },
    Route {
        method: Verb::Get,
        path: "/metrics",
        operation: "metrics",
        summary: "Metrics in the Prometheus text format",
        parameters: &[],
        body: &[],
        answers: &[Answer { status: 200, summary: "All metrics", media: "text/plain", content: Content::Text }],
        problems: &[Code::UnknownParameter],
        access: Access::READ_YARD,
        handler: |method| on(method, health::metrics),
    },
    Route {
        method: Verb::Get,
        path: "/openapi.json",
        operation: "openapi",
        summary: "This description",
        parameters: &[],
        body: &[],
        answers: &[json(200, "OpenAPI 3.1", Content::Json)],
        problems: &[Code::UnknownParameter],
        access: Access::Open,
        handler: |method| on(method, openapi::get),
    },
    Route {
        method: Verb::Get,
        path: "/",
        operation: "index",
        summary: "What is to be found where",
        parameters: &[],
        body: &[],
        answers: &[Answer { status: 200, summary: "A list", media: "text/plain", content: Content::Text }],
        problems: &[Code::UnknownParameter],
        access: Access::Open,
        handler: |method| on(method, openapi::index),
    },
];

impl Route {
    pub(super) fn find(path: &str, method: &Method) -> Option<&'static Route> {
        ROUTES.iter().find(|route| route.path == path && route.method.is(method))
    }

    /// Names that its query may have.
    pub(super) fn query(&self) -> Vec<&'static str> {
        self.parameters.iter().filter(|one| one.place == Place::Query).map(|one| one.name).collect()
    }
}

pub(super) fn router() -> Router<Arc<Shared>> {
    ROUTES.iter().fold(Router::new(), |router, route| router.route(route.path, (route.handler)(route.method.filter())))
}
