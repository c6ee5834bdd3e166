//! `taskyard schedule`: tasks and workflows that are published again and again, when the clock says so.

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde::Serialize;
use serde_json::value::RawValue;
use taskyard_producer::gateway::duration;
use taskyard_shared::Timestamp;
use taskyard_shared::process::exit::Exit;
use taskyard_shared::schedule::{CatchUp, Overlap, SchedulePage, ShownSchedule};
use taskyard_shared::task::limits::BODY_BYTES;

use super::files::read_whole;
use super::task::input::Values;
use super::{ClientArgs, finish, say};
use crate::client::{Api, Failure};

#[derive(Args, Clone, Debug)]
pub struct ScheduleArgs {
    #[command(subcommand)]
    command: ScheduleCommand,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Subcommand, Clone, Debug)]
enum ScheduleCommand {
    /// Adds a schedule, or puts it in the place of the one of this name
    Add(Box<AddArgs>),
    /// Prints all of them
    List(ListArgs),
    /// Prints one, with its next ticks and what the last one made
    Show(OneArgs),
    /// Fires no ticks of schedules until they are resumed
    Pause(NamesArgs),
    /// Fires ticks of schedules again, from the next one on
    Resume(NamesArgs),
    /// Removes schedules; what their ticks made goes on
    Remove(NamesArgs),
}

#[derive(Args, Clone, Debug)]
struct AddArgs {
    /// The schedule's name
    #[arg(value_name = "NAME", value_parser = parse_name)]
    name: String,
    /// When: five fields as in a crontab, or six with seconds first, or a word such as @daily
    #[arg(long, value_name = "EXPRESSION", allow_hyphen_values = true)]
    cron: String,
    /// On whose clocks: the name of a time zone, such as Europe/Berlin; UTC when it is not given
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// A task for this model
    #[arg(long, requires = "input", conflicts_with_all = ["task", "workflow"], required_unless_present_any = ["task", "workflow"])]
    model: Option<String>,
    /// Its input: JSON, @FILE, or - for standard input
    #[arg(long, value_name = "JSON|@FILE|-", allow_hyphen_values = true, requires = "model")]
    input: Option<String>,
    /// The task as JSON, from a file or - for standard input
    #[arg(long, value_name = "FILE|-", allow_hyphen_values = true, conflicts_with = "workflow")]
    task: Option<String>,
    /// The workflow as JSON, from a file or - for standard input
    #[arg(long, value_name = "FILE|-", allow_hyphen_values = true)]
    workflow: Option<String>,
    /// What becomes of ticks that passed while no scheduler ran; latest when it is not given
    #[arg(long, value_name = "WHICH")]
    catch_up: Option<CatchingUp>,
    /// Ticks that are older than this are not caught up with, such as 90m
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_duration)]
    catch_up_window: Option<Duration>,
    /// What becomes of a tick while what the one before made has not ended; allow when it is not given
    #[arg(long, value_name = "WHICH")]
    overlap: Option<Overlapping>,
    /// Fire nothing until it is resumed
    #[arg(long)]
    paused: bool,
    /// No tick comes after this; RFC 3339
    #[arg(long, value_name = "INSTANT")]
    until: Option<Timestamp>,
    /// Whose it is
    #[arg(long)]
    tenant: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum CatchingUp {
    /// None of them
    Skip,
    /// The last of them
    Latest,
    /// All of them
    All,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Overlapping {
    /// It is fired
    Allow,
    /// It is left out
    Forbid,
}

#[derive(Args, Clone, Debug)]
struct ListArgs {
    /// Only this tenant's
    #[arg(long)]
    tenant: Option<String>,
    /// Most schedules that are printed
    #[arg(long, default_value_t = 50, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Where the page before ended
    #[arg(long)]
    cursor: Option<String>,
}

#[derive(Args, Clone, Debug)]
struct OneArgs {
    /// The schedule's name
    #[arg(value_name = "NAME", value_parser = parse_name)]
    name: String,
    /// Whose it is
    #[arg(long)]
    tenant: Option<String>,
}

#[derive(Args, Clone, Debug)]
struct NamesArgs {
    /// Schedules' names
    #[arg(required = true, value_name = "NAME", value_parser = parse_name)]
    names: Vec<String>,
    /// Whose they are
    #[arg(long)]
    tenant: Option<String>,
}

/// A schedule as it is sent; the API checks it.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    cron: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_zone: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    catch_up: Option<CatchUp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    catch_up_window_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overlap: Option<Overlap>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

#[derive(Serialize)]
struct Task<'a> {
    model: &'a str,
    input: Box<RawValue>,
}

pub async fn run(arguments: ScheduleArgs) -> Exit {
    let ScheduleArgs { command, client } = arguments;
    finish(match command {
        ScheduleCommand::Add(arguments) => add(&client, &arguments).await,
        ScheduleCommand::List(arguments) => list(&client, &arguments).await,
        ScheduleCommand::Show(OneArgs { name, tenant }) => show(&client, &name, tenant).await,
        ScheduleCommand::Pause(names) => each(&client, names, Method::POST, "/pause").await,
        ScheduleCommand::Resume(names) => each(&client, names, Method::POST, "/resume").await,
        ScheduleCommand::Remove(names) => each(&client, names, Method::DELETE, "").await,
    })
}

async fn add(client: &ClientArgs, arguments: &AddArgs) -> Result<Exit, Failure> {
    let api = client.api()?;
    let written = |error| Failure::new(Exit::Usage, format!("the schedule cannot be written as JSON: {error}"));
    let task = match (&arguments.model, &arguments.input, &arguments.task) {
        (Some(model), Some(input), _) => {
            let task = Task { model, input: one_value(Values::of(input)?)? };
            Some(serde_json::value::to_raw_value(&task).map_err(written)?)
        }
        (_, _, Some(path)) => Some(file(path)?),
        _ => None,
    };
    let body = Body {
        tenant: arguments.tenant.as_deref(),
        cron: &arguments.cron,
        time_zone: arguments.time_zone.as_deref(),
        task,
        workflow: arguments.workflow.as_deref().map(file).transpose()?,
        catch_up: arguments.catch_up.map(|which| match which {
            CatchingUp::Skip => CatchUp::Skip,
            CatchingUp::Latest => CatchUp::Latest,
            CatchingUp::All => CatchUp::All,
        }),
        catch_up_window_ms: arguments
            .catch_up_window
            .map(|window| u64::try_from(window.as_millis()).unwrap_or(u64::MAX)),
        overlap: arguments.overlap.map(|which| match which {
            Overlapping::Allow => Overlap::Allow,
            Overlapping::Forbid => Overlap::Forbid,
        }),
        paused: arguments.paused.then_some(true),
        until: arguments.until,
    };
    let body = serde_json::to_vec(&body).map_err(written)?;
    let answer = api.call(Method::PUT, &format!("v1/schedules/{}", arguments.name), &[], Some(body)).await?;
    print_one(client, &api.decode(&answer)?)
}

async fn list(client: &ClientArgs, arguments: &ListArgs) -> Result<Exit, Failure> {
    let api = client.api()?;
    let mut query = vec![("limit".to_owned(), arguments.limit.to_string())];
    query.extend(arguments.tenant.clone().map(|tenant| ("tenant".to_owned(), tenant)));
    query.extend(arguments.cursor.clone().map(|cursor| ("cursor".to_owned(), cursor)));
    let page: SchedulePage = api.get("v1/schedules", &query, Duration::ZERO).await?;
    print_rows(client, &page.schedules)?;
    if let Some(cursor) = page.cursor {
        say(&format!("there are more: --cursor {cursor}"));
    }
    Ok(Exit::Ok)
}

async fn show(client: &ClientArgs, name: &str, tenant: Option<String>) -> Result<Exit, Failure> {
    let api = client.api()?;
    let shown: ShownSchedule = api.get(&format!("v1/schedules/{name}"), &of(tenant), Duration::ZERO).await?;
    print_one(client, &shown)
}

/// Does the same to each; the exit code is that of the first that could not be done.
async fn each(client: &ClientArgs, names: NamesArgs, method: Method, call: &str) -> Result<Exit, Failure> {
    let api = client.api()?;
    let query = of(names.tenant);
    let (mut done, mut exit) = (Vec::new(), Exit::Ok);
    for name in &names.names {
        match change(&api, &method, &format!("v1/schedules/{name}{call}"), &query).await {
            Ok(shown) => done.push(shown),
            Err(failure) if failure.exit == Exit::NotFound => {
                say(&format!("{name}: {}", failure.message));
                exit = Exit::NotFound;
            }
            Err(failure) => {
                print_rows(client, &done)?;
                return Err(failure);
            }
        }
    }
    print_rows(client, &done)?;
    Ok(exit)
}

async fn change(api: &Api, method: &Method, path: &str, query: &[(String, String)]) -> Result<ShownSchedule, Failure> {
    api.decode(&api.call(method.clone(), path, query, None).await?)
}

fn of(tenant: Option<String>) -> Vec<(String, String)> {
    tenant.map(|tenant| ("tenant".to_owned(), tenant)).into_iter().collect()
}

fn print_rows(client: &ClientArgs, schedules: &[ShownSchedule]) -> Result<(), Failure> {
    let headers = ["name", "tenant", "cron", "time_zone", "paused", "next", "last", "made"];
    client.print(|output| {
        output.rows(&headers, schedules, |shown| {
            vec![
                shown.name.clone(),
                shown.tenant.clone(),
                shown.cron.clone(),
                shown.time_zone.clone(),
                if shown.paused { "yes" } else { "no" }.to_owned(),
                or_dash(shown.next.first().map(Timestamp::to_string)),
                or_dash(shown.last.map(|last| last.tick.to_string())),
                or_dash(made(shown)),
            ]
        })
    })
}

fn print_one(client: &ClientArgs, shown: &ShownSchedule) -> Result<Exit, Failure> {
    client.print(|output| output.one(shown, fields))?;
    Ok(Exit::Ok)
}

/// The id of what the last tick made.
fn made(shown: &ShownSchedule) -> Option<String> {
    let last = shown.last?;
    last.task.map(|task| task.0.to_string()).or(last.workflow.map(|workflow| workflow.0.to_string()))
}

fn fields(shown: &ShownSchedule) -> Vec<(&'static str, String)> {
    let word = |value: serde_json::Result<serde_json::Value>| value.ok()?.as_str().map(str::to_owned);
    let next: Vec<String> = shown.next.iter().map(Timestamp::to_string).collect();
    let raw = |value: &Option<Box<RawValue>>| value.as_ref().map(|value| value.get().to_owned());
    [
        ("name", Some(shown.name.clone())),
        ("tenant", Some(shown.tenant.clone())),
        ("cron", Some(shown.cron.clone())),
        ("time_zone", Some(shown.time_zone.clone())),
        ("catch_up", word(serde_json::to_value(shown.catch_up))),
        ("catch_up_window_ms", shown.catch_up_window_ms.map(|ms| ms.to_string())),
        ("overlap", word(serde_json::to_value(shown.overlap))),
        ("paused", Some(if shown.paused { "yes" } else { "no" }.to_owned())),
        ("until", shown.until.map(|until| until.to_string())),
        ("next", Some(next.join(", ")).filter(|next| !next.is_empty())),
        ("last", shown.last.map(|last| last.tick.to_string())),
        ("fired", shown.last.map(|last| last.fired.to_string())),
        ("made", made(shown)),
        ("task", raw(&shown.task)),
        ("workflow", raw(&shown.workflow)),
        ("problem", shown.problem.clone()),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn file(path: &str) -> Result<Box<RawValue>, Failure> {
    let text = String::from_utf8(read_whole(Path::new(path), BODY_BYTES)?)
        .map_err(|_| Failure::new(Exit::Usage, format!("{path} is not UTF-8")))?;
    RawValue::from_string(text.trim().to_owned())
        .map_err(|error| Failure::new(Exit::Usage, format!("{path} is not JSON: {error}")))
}

fn one_value(mut values: Values) -> Result<Box<RawValue>, Failure> {
    match (values.next().transpose()?, values.next().transpose()?) {
        (Some(value), None) => Ok(value),
        _ => Err(Failure::new(Exit::Usage, "a schedule's task has one input")),
    }
}

fn parse_name(text: &str) -> Result<String, String> {
    match taskyard_shared::schedule::is_schedule_name(text) {
        true => Ok(text.to_owned()),
        false => Err("must match [a-z0-9][a-z0-9._-]{0,127}".to_owned()),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| "must be a time such as 30s, 500ms or 90m".to_owned())
}
