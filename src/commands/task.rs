//! `taskyard task`: submit tasks, look them up, wait for results, list them, cancel and reprioritise them, explain.

mod change;
mod follow;
pub(super) mod input;
mod many;
mod submit;

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use taskyard_producer::gateway::duration;
use taskyard_shared::process::exit::Exit;
use taskyard_shared::{Alternative, State, TaskResult, Timestamp};

use self::submit::SubmitArgs;
use super::pages::{self, PageArgs};
use super::{ClientArgs, finish, say, shortened};
use crate::client::{Api, Failure};
use crate::output::Output;

/// A wait is asked for in pieces: proxies between do not like longer ones.
const WAIT_PIECE: Duration = Duration::from_secs(30);
/// Results waited for at once.
const WAITS_AT_ONCE: usize = 16;
/// Characters of an output or error in a table.
const CELL_CHARACTERS: usize = 60;

#[derive(Args, Clone, Debug)]
pub struct TaskArgs {
    #[command(subcommand)]
    pub command: TaskCommand,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Subcommand, Clone, Debug)]
pub enum TaskCommand {
    /// Submits a task, or one for each input
    Submit(Box<SubmitArgs>),
    /// Prints tasks as they stand
    Get(GetArgs),
    /// Waits for results; exits with 1 when a task did not succeed, with 5 when one is not finished in time
    Wait(WaitArgs),
    /// Prints tasks, newest first
    List(ListArgs),
    /// Cancels tasks, by their ids or by what they have in common
    Cancel(change::CancelArgs),
    /// Tries tasks that have ended again, as new ones
    Retry(change::RetryArgs),
    /// Gives waiting tasks another priority
    Reprioritize(change::ReprioritizeArgs),
    /// Says when a task would start and end, were it to be submitted now
    Quote(Box<SubmitArgs>),
    /// Says why a task waits, and behind what
    Explain(change::ExplainArgs),
}

#[derive(Args, Clone, Debug)]
pub struct GetArgs {
    /// Tasks' ids
    #[arg(required = true, value_name = "ID")]
    ids: Vec<uuid::Uuid>,
}

#[derive(Args, Clone, Debug)]
pub struct WaitArgs {
    /// Tasks' ids
    #[arg(required = true, value_name = "ID")]
    ids: Vec<uuid::Uuid>,
    /// How long: 30s, 500ms, 2m, or seconds
    #[arg(long, value_name = "TIME", default_value = "60s", allow_hyphen_values = true, value_parser = parse_duration)]
    timeout: Duration,
    /// Print what one task says while it runs: partial output on stdout as it comes, the rest on stderr
    #[arg(long)]
    follow: bool,
}

#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Only tasks in this state
    #[arg(long, value_parser = parse_state)]
    state: Option<State>,
    /// Only tasks of this model
    #[arg(long)]
    model: Option<String>,
    #[command(flatten)]
    page: PageArgs,
}

#[derive(Deserialize)]
struct Page {
    tasks: Vec<TaskResult>,
    cursor: Option<String>,
}

impl pages::Page for Page {
    type Member = TaskResult;

    fn open(self) -> (Vec<TaskResult>, Option<String>) {
        (self.tasks, self.cursor)
    }
}

pub async fn run(arguments: TaskArgs) -> Exit {
    let TaskArgs { command, client } = arguments;
    finish(match command {
        TaskCommand::Submit(arguments) => submit::run(&client, &arguments).await,
        TaskCommand::Get(arguments) => get(&client, &arguments).await,
        TaskCommand::Wait(arguments) => wait(&client, &arguments).await,
        TaskCommand::List(arguments) => list(&client, arguments).await,
        TaskCommand::Cancel(arguments) => change::cancel(&client, arguments).await,
        TaskCommand::Retry(arguments) => change::retry(&client, &arguments).await,
        TaskCommand::Reprioritize(arguments) => change::reprioritize(&client, arguments).await,
        TaskCommand::Quote(arguments) => submit::quote(&client, &arguments).await,
        TaskCommand::Explain(arguments) => change::explain(&client, &arguments).await,
    })
}

async fn get(client: &ClientArgs, arguments: &GetArgs) -> Result<Exit, Failure> {
    let api = client.api()?;
    let asked = arguments.ids.iter().map(|id| look_up(&api, *id, Duration::ZERO));
    let answers: Vec<_> = stream::iter(asked).buffered(WAITS_AT_ONCE).collect().await;
    let (tasks, exit) = found(&arguments.ids, answers)?;
    print(client, arguments.ids.len(), &tasks)?;
    Ok(exit)
}

async fn wait(client: &ClientArgs, arguments: &WaitArgs) -> Result<Exit, Failure> {
    let api = client.api()?;
    let until = Instant::now() + arguments.timeout;
    if arguments.follow {
        return match arguments.ids.as_slice() {
            [id] => follow::follow(client, &api, *id, until).await,
            _ => Err(Failure::new(Exit::Usage, "--follow is for one task")),
        };
    }
    let asked = arguments.ids.iter().map(|id| until_finished(&api, *id, until));
    let answers: Vec<_> = stream::iter(asked).buffered(WAITS_AT_ONCE).collect().await;
    let (tasks, exit) = found(&arguments.ids, answers)?;
    print(client, arguments.ids.len(), &tasks)?;
    Ok(if exit == Exit::Ok { judge(&tasks) } else { exit })
}

/// Those that are there; each that is not is said, and makes the exit code.
fn found(ids: &[uuid::Uuid], answers: Vec<Result<TaskResult, Failure>>) -> Result<(Vec<TaskResult>, Exit), Failure> {
    let (mut tasks, mut exit) = (Vec::new(), Exit::Ok);
    for (id, answer) in ids.iter().zip(answers) {
        match answer {
            Ok(task) => tasks.push(task),
            Err(failure) if failure.exit == Exit::NotFound => {
                say(&format!("task {id}: {failure}"));
                exit = Exit::NotFound;
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok((tasks, exit))
}

async fn list(client: &ClientArgs, arguments: ListArgs) -> Result<Exit, Failure> {
    let api = client.api()?;
    let filter = [("state", arguments.state.map(word)), ("model", arguments.model)];
    let listed = arguments.page.list::<Page>(&api, "v1/tasks", filter).await?;
    client.print(|output| rows(output, &listed.members))?;
    listed.say_rest();
    Ok(Exit::Ok)
}

async fn look_up(api: &Api, id: uuid::Uuid, wait: Duration) -> Result<TaskResult, Failure> {
    let query = match wait.is_zero() {
        true => Vec::new(),
        false => vec![("wait".to_owned(), format!("{}ms", wait.as_millis()))],
    };
    api.get(&format!("v1/tasks/{id}"), &query, wait).await
}

/// The result, or the task as it stands when time is up.
async fn until_finished(api: &Api, id: uuid::Uuid, until: Instant) -> Result<TaskResult, Failure> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let task = look_up(api, id, left.min(WAIT_PIECE)).await?;
        if task.state.is_terminal() || left.is_zero() {
            return Ok(task);
        }
    }
}

/// What tasks that were waited for come to. Those that are not finished are said.
fn judge(tasks: &[TaskResult]) -> Exit {
    let mut exit = Exit::Ok;
    for task in tasks {
        match task.state {
            State::Succeeded => {}
            state if state.is_terminal() => exit = if exit == Exit::Ok { Exit::Failed } else { exit },
            state => {
                say(&format!("task {} is still {}", task.id.0, word(state)));
                exit = Exit::TimedOut;
            }
        }
    }
    exit
}

/// The one task that was asked for with all its fields, several as rows.
fn print(client: &ClientArgs, asked: usize, tasks: &[TaskResult]) -> Result<(), Failure> {
    client.print(|output| match (asked, tasks) {
        (1, []) => Ok(()),
        (1, [task]) => output.one(task, fields),
        (_, tasks) => rows(output, tasks),
    })
}

fn rows(output: &mut Output<'_>, tasks: &[TaskResult]) -> std::io::Result<()> {
    let headers = ["id", "state", "model", "tenant", "priority", "attempt", "waited_ms", "ran_ms", "result"];
    output.rows(&headers, tasks, |task| {
        vec![
            task.id.0.to_string(),
            word(task.state),
            or_dash(task.model.clone()),
            task.tenant.clone(),
            task.priority.get().to_string(),
            task.attempt.to_string(),
            or_dash(task.timings.waited_ms.map(|ms| format!("{ms:.1}"))),
            or_dash(task.timings.ran_ms.map(|ms| format!("{ms:.1}"))),
            shortened(&or_dash(outcome(task)), CELL_CHARACTERS),
        ]
    })
}

fn fields(task: &TaskResult) -> Vec<(&'static str, String)> {
    let instant = |instant: Option<Timestamp>| instant.map(|instant| instant.to_string());
    let timings = &task.timings;
    let labels = task.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ");
    [
        ("id", Some(task.id.0.to_string())),
        ("state", Some(word(task.state))),
        ("kind", Some(word(task.kind))),
        ("model", task.model.clone()),
        ("tenant", Some(task.tenant.clone())),
        ("priority", Some(task.priority.get().to_string())),
        ("attempt", Some(task.attempt.to_string())),
        ("accepted", instant(timings.accepted)),
        ("dispatched", instant(timings.dispatched)),
        ("started", instant(timings.started)),
        ("finished", instant(timings.finished)),
        ("waited_ms", timings.waited_ms.map(|ms| format!("{ms:.1}"))),
        ("ran_ms", timings.ran_ms.map(|ms| format!("{ms:.1}"))),
        ("worker", task.worker.clone()),
        ("tokens", task.usage.map(|usage| format!("{} in, {} out", usage.prompt_tokens, usage.completion_tokens))),
        ("cost", task.usage.and_then(|usage| usage.cost).map(|cost| format!("{cost:.6}"))),
        ("metadata", Some(labels).filter(|labels| !labels.is_empty())),
        ("output", task.output.as_ref().map(|output| output.get().to_owned())),
        ("error", task.error.as_ref().map(|error| format!("{}: {}", error.code, error.message))),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

fn outcome(task: &TaskResult) -> Option<String> {
    match (&task.error, &task.output) {
        (Some(error), _) => Some(format!("{}: {}", error.code, error.message)),
        (None, Some(output)) => Some(output.get().to_owned()),
        (None, None) => None,
    }
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// A state or a kind as the API writes it.
fn word(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn parse_state(text: &str) -> Result<State, String> {
    let known = || State::ALL.map(word).join(", ");
    State::ALL.into_iter().find(|state| word(*state) == text).ok_or_else(|| format!("must be one of {}", known()))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| "must be a time such as 30s, 500ms or 2m".to_owned())
}

fn parse_alternative(text: &str) -> Result<Alternative, String> {
    let (model, wait_ms) = text.rsplit_once(':').ok_or("must be MODEL:MS")?;
    let wait_ms = wait_ms.parse().map_err(|_| "must be MODEL:MS, with a whole number of milliseconds")?;
    Ok(Alternative { model: model.to_owned(), wait_ms })
}

pub(super) fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
