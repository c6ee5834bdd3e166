//! `taskyard workflow`: submit tasks that depend on each other, see how far they have come, list them, cancel them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use taskyard_producer::gateway::duration;
use taskyard_shared::process::exit::Exit;
use taskyard_shared::task::limits::BODY_BYTES;
use taskyard_shared::workflow::{StepRecord, StepState, WorkflowRecord, WorkflowState, WorkflowSummary};

use super::files::read_whole;
use super::pages::{self, PageArgs};
use super::{ClientArgs, finish, say, shortened};
use crate::client::{Api, Failure};
use crate::output::{Format, Output};

/// A wait is asked for in pieces: proxies between do not like longer ones.
const WAIT_PIECE: Duration = Duration::from_secs(30);
/// Characters of an error in a table.
const CELL_CHARACTERS: usize = 60;

#[derive(Args, Clone, Debug)]
pub struct WorkflowArgs {
    #[command(subcommand)]
    command: WorkflowCommand,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Subcommand, Clone, Debug)]
enum WorkflowCommand {
    /// Submits a workflow
    Submit(SubmitArgs),
    /// Prints a workflow as it stands
    Get(GetArgs),
    /// Prints workflows, newest first
    List(ListArgs),
    /// Cancels workflows: steps that wait never run, those that run are stopped
    Cancel(CancelArgs),
}

#[derive(Args, Clone, Debug)]
struct SubmitArgs {
    /// The workflow as JSON, from a file or - for standard input
    #[arg(value_name = "FILE|-", allow_hyphen_values = true)]
    workflow: String,
    /// Wait so long for its end; without a time, 60s
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "60s", allow_negative_numbers = true, value_parser = parse_duration)]
    wait: Option<Duration>,
}

#[derive(Args, Clone, Debug)]
struct GetArgs {
    /// The workflow's id
    #[arg(value_name = "ID")]
    id: uuid::Uuid,
    /// Wait so long for its end; without a time, 60s
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "60s", allow_negative_numbers = true, value_parser = parse_duration)]
    wait: Option<Duration>,
}

#[derive(Args, Clone, Debug)]
struct ListArgs {
    /// Only workflows in this state
    #[arg(long, value_parser = parse_state)]
    state: Option<WorkflowState>,
    #[command(flatten)]
    page: PageArgs,
}

#[derive(Deserialize)]
struct Page {
    workflows: Vec<WorkflowSummary>,
    cursor: Option<String>,
}

impl pages::Page for Page {
    type Member = WorkflowSummary;

    fn open(self) -> (Vec<WorkflowSummary>, Option<String>) {
        (self.workflows, self.cursor)
    }
}

#[derive(Args, Clone, Debug)]
struct CancelArgs {
    /// Workflows' ids
    #[arg(required = true, value_name = "ID")]
    ids: Vec<uuid::Uuid>,
}

/// What came of a cancellation.
#[derive(Serialize, Deserialize)]
struct Changed {
    id: uuid::Uuid,
    outcome: String,
    #[serde(default)]
    state: Option<String>,
}

pub async fn run(arguments: WorkflowArgs) -> Exit {
    let WorkflowArgs { command, client } = arguments;
    finish(match command {
        WorkflowCommand::Submit(arguments) => submit(&client, &arguments).await,
        WorkflowCommand::Get(arguments) => get(&client, &arguments).await,
        WorkflowCommand::List(arguments) => list(&client, arguments).await,
        WorkflowCommand::Cancel(arguments) => cancel(&client, &arguments).await,
    })
}

async fn submit(client: &ClientArgs, arguments: &SubmitArgs) -> Result<Exit, Failure> {
    let api = client.api()?;
    let body = read_whole(Path::new(&arguments.workflow), BODY_BYTES)?;
    let until = arguments.wait.map(|wait| Instant::now() + wait);
    let piece = arguments.wait.map(|wait| wait.min(WAIT_PIECE));
    let answer = api.post("v1/workflows", "application/json", body, piece).await?;
    let record: WorkflowRecord = api.decode(&answer)?;
    ended_or_not(client, &api, record, until).await
}

async fn get(client: &ClientArgs, arguments: &GetArgs) -> Result<Exit, Failure> {
    let api = client.api()?;
    let until = arguments.wait.map(|wait| Instant::now() + wait);
    let record = look_up(&api, arguments.id, Duration::ZERO).await?;
    ended_or_not(client, &api, record, until).await
}

/// Waits if that was asked for, prints, and judges what was waited for.
async fn ended_or_not(
    client: &ClientArgs,
    api: &Api,
    mut record: WorkflowRecord,
    until: Option<Instant>,
) -> Result<Exit, Failure> {
    while let Some(left) = until.map(|until| until.saturating_duration_since(Instant::now()))
        && !record.state.is_terminal()
        && !left.is_zero()
    {
        record = look_up(api, record.id.0, left.min(WAIT_PIECE)).await?;
    }
    client.print(|output| print(output, &record))?;
    Ok(match record.state {
        _ if until.is_none() => Exit::Ok,
        WorkflowState::Succeeded => Exit::Ok,
        state if state.is_terminal() => Exit::Failed,
        state => {
            say(&format!("workflow {} is still {}", record.id.0, state.as_str()));
            Exit::TimedOut
        }
    })
}

async fn look_up(api: &Api, id: uuid::Uuid, wait: Duration) -> Result<WorkflowRecord, Failure> {
    let query = match wait.is_zero() {
        true => Vec::new(),
        false => vec![("wait".to_owned(), format!("{}ms", wait.as_millis()))],
    };
    api.get(&format!("v1/workflows/{id}"), &query, wait).await
}

async fn list(client: &ClientArgs, arguments: ListArgs) -> Result<Exit, Failure> {
    let api = client.api()?;
    let filter = [("state", arguments.state.map(|state| state.as_str().to_owned()))];
    let listed = arguments.page.list::<Page>(&api, "v1/workflows", filter).await?;
    let headers = ["id", "state", "tenant", "priority", "accepted", "finished", "steps"];
    client.print(|output| {
        output.rows(&headers, &listed.members, |workflow| {
            vec![
                workflow.id.0.to_string(),
                workflow.state.as_str().to_owned(),
                workflow.tenant.clone(),
                workflow.priority.get().to_string(),
                workflow.accepted.to_string(),
                or_dash(workflow.finished.map(|instant| instant.to_string())),
                counted(&workflow.counts),
            ]
        })
    })?;
    listed.say_rest();
    Ok(Exit::Ok)
}

async fn cancel(client: &ClientArgs, arguments: &CancelArgs) -> Result<Exit, Failure> {
    let api = client.api()?;
    let (mut changed, mut exit) = (Vec::new(), Exit::Ok);
    for id in &arguments.ids {
        let (status, body) = api.change(&format!("v1/workflows/{id}/cancel"), &serde_json::json!({})).await?;
        let outcome: Changed = match status.is_success() {
            true => api.decode(&body)?,
            false => {
                #[derive(Deserialize)]
                struct Refused {
                    outcome: String,
                }
                let Refused { outcome } = api.decode(&body)?;
                Changed { id: *id, outcome, state: None }
            }
        };
        match outcome.outcome.as_str() {
            "not_found" => exit = Exit::NotFound,
            "already_finished" if exit == Exit::Ok => exit = Exit::Failed,
            _ => {}
        }
        changed.push(outcome);
    }
    client.print(|output| {
        output.rows(&["id", "outcome", "state"], &changed, |one| {
            vec![one.id.to_string(), one.outcome.clone(), one.state.clone().unwrap_or_else(|| "-".to_owned())]
        })
    })?;
    Ok(exit)
}

/// As a table, the workflow's own fields, then its steps, and at the end what came of them, which may be long.
fn print(output: &mut Output<'_>, record: &WorkflowRecord) -> std::io::Result<()> {
    output.one(record, fields)?;
    if output.format != Format::Table {
        return Ok(());
    }
    let headers = ["step", "state", "attempt", "ran_ms", "task", "error"];
    output.rows(&headers, &record.steps, |step| {
        vec![
            step.name.clone(),
            step.state.as_str().to_owned(),
            or_dash(step.attempt.map(|attempt| attempt.to_string())),
            or_dash(step.timings.as_ref().and_then(|timings| timings.ran_ms).map(|ms| format!("{ms:.1}"))),
            or_dash(task(step)),
            shortened(
                &or_dash(step.error.as_ref().map(|error| format!("{}: {}", error.code, error.message))),
                CELL_CHARACTERS,
            ),
        ]
    })?;
    let outputs = serde_json::to_string(&record.outputs).ok().filter(|_| !record.outputs.is_empty());
    match outputs {
        Some(outputs) => output.one(record, |_| vec![("outputs", outputs.clone())]),
        None => Ok(()),
    }
}

fn task(step: &StepRecord) -> Option<String> {
    let of_many = step.items.map(|items| format!("{} of {} tasks", items.succeeded, items.total));
    step.task.map(|task| task.0.to_string()).or(of_many)
}

fn fields(record: &WorkflowRecord) -> Vec<(&'static str, String)> {
    [
        ("id", Some(record.id.0.to_string())),
        ("state", Some(record.state.as_str().to_owned())),
        ("tenant", Some(record.tenant.clone())),
        ("priority", Some(record.priority.get().to_string())),
        ("on_failure", Some(record.on_failure.as_str().to_owned())),
        ("deadline", record.deadline.map(|instant| instant.to_string())),
        ("accepted", Some(record.accepted.to_string())),
        ("finished", record.finished.map(|instant| instant.to_string())),
        ("steps", Some(counted(&record.counts))),
        ("error", record.error.as_ref().map(|error| format!("{}: {}", error.code, error.message))),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

fn counted(steps: &BTreeMap<StepState, u32>) -> String {
    steps.iter().map(|(state, count)| format!("{count} {}", state.as_str())).collect::<Vec<_>>().join(", ")
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| "must be a time such as 30s, 500ms or 2m".to_owned())
}

fn parse_state(text: &str) -> Result<WorkflowState, String> {
    let known = || WorkflowState::ALL.map(WorkflowState::as_str).join(", ");
    let found = WorkflowState::ALL.into_iter().find(|state| state.as_str() == text);
    found.ok_or_else(|| format!("must be one of {}", known()))
}
