//! `taskyard task submit`: one task, or one for each input that comes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;
use taskyard_shared::control::{ExpectedTime, Quote};
use taskyard_shared::process::exit::Exit;
use taskyard_shared::task::limits::{ATTEMPTS, DURATION_MS};
use taskyard_shared::{Alternative, TaskResult, Timestamp};

use super::follow::follow;
use super::input::Values;
use super::many::many;
use super::{WAIT_PIECE, judge, parse_alternative, parse_duration, parse_label, print, until_finished};
use crate::client::{Api, Failure};
use crate::commands::ClientArgs;
use crate::commands::numbers::{number, whole};

/// A task is followed for so long.
const FOLLOWED_MOST: Duration = Duration::from_secs(24 * 3600);

#[derive(Args, Clone, Debug)]
pub struct SubmitArgs {
    /// Run on this model
    #[arg(long, conflicts_with_all = ["capability", "tasks"], required_unless_present_any = ["capability", "tasks"])]
    model: Option<String>,
    /// Run on any model that offers this
    #[arg(long, conflicts_with = "tasks")]
    capability: Option<String>,
    /// JSON, @FILE, or - for standard input; of several values each is a task of its own
    #[arg(
        long,
        value_name = "JSON|@FILE|-",
        allow_hyphen_values = true,
        conflicts_with = "tasks",
        required_unless_present = "tasks"
    )]
    input: Option<String>,
    /// Whole tasks as JSON lines, from a file or - for standard input
    #[arg(long, value_name = "FILE|-", allow_hyphen_values = true)]
    tasks: Option<String>,
    /// prediction, training, deployment, data_processing or optimization
    #[arg(long, conflicts_with = "tasks")]
    kind: Option<String>,
    /// 0 to 9; bigger is sooner
    #[arg(long, conflicts_with = "tasks", allow_negative_numbers = true, value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// Who pays for it
    #[arg(long, conflicts_with = "tasks")]
    tenant: Option<String>,
    /// After so many milliseconds a result is of no more use
    #[arg(long, value_name = "MS", conflicts_with = "tasks", allow_negative_numbers = true, value_parser = whole::<1, DURATION_MS>)]
    deadline_ms: Option<u64>,
    /// Not to be started for so many milliseconds
    #[arg(long, value_name = "MS", conflicts_with = "tasks", allow_negative_numbers = true, value_parser = whole::<0, DURATION_MS>)]
    delay_ms: Option<u64>,
    /// Limit of one attempt
    #[arg(long, value_name = "MS", conflicts_with = "tasks", allow_negative_numbers = true, value_parser = whole::<1, DURATION_MS>)]
    timeout_ms: Option<u64>,
    /// Most attempts
    #[arg(long, conflicts_with = "tasks", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=i64::from(ATTEMPTS)))]
    max_attempts: Option<u32>,
    /// Size in the model's own unit
    #[arg(long, conflicts_with = "tasks", allow_hyphen_values = true, value_parser = number)]
    cost: Option<f64>,
    /// Only on models that state a quality of at least this, 0 to 1
    #[arg(long, value_name = "QUALITY", conflicts_with = "tasks", allow_hyphen_values = true, value_parser = number)]
    min_quality: Option<f64>,
    /// On this model instead when the wait is longer than so many milliseconds; may be given several times
    #[arg(
        long = "alternative",
        value_name = "MODEL:MS",
        conflicts_with_all = ["tasks", "capability"],
        value_parser = parse_alternative
    )]
    alternatives: Vec<Alternative>,
    /// The task's id, for one task
    #[arg(long, conflicts_with = "tasks")]
    id: Option<uuid::Uuid>,
    /// The same key and tenant is the same task, for one task
    #[arg(long, value_name = "KEY", conflicts_with = "tasks")]
    idempotency_key: Option<String>,
    /// A label; may be given several times
    #[arg(long = "metadata", value_name = "KEY=VALUE", conflicts_with = "tasks", value_parser = parse_label)]
    metadata: Vec<(String, String)>,
    /// Wait so long for the result; without a time, 60s
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "60s", allow_negative_numbers = true, value_parser = parse_duration)]
    wait: Option<Duration>,
    /// Print what the task says while it runs: partial output on stdout as it comes, the rest on stderr. For one task; waits as
    /// --wait does, or for a day
    #[arg(long)]
    follow: bool,
}

/// A task as it is sent; the API checks it.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<uuid::Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capability: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_quality: Option<f64>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    alternatives: &'a [Alternative],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<&'a str, &'a str>,
    input: &'a RawValue,
}

pub(super) async fn run(client: &ClientArgs, arguments: &SubmitArgs) -> Result<Exit, Failure> {
    let api = client.api()?;
    let mut bodies = bodies(arguments)?;
    let nothing = || Failure::new(Exit::Usage, "there is no input: standard input or the file is empty");
    let first = bodies.next().ok_or_else(nothing)??;
    match bodies.next().transpose()? {
        None if arguments.follow => followed(client, &api, arguments, first).await,
        Some(_) if arguments.follow => Err(Failure::new(Exit::Usage, "--follow is for one task")),
        None => single(client, &api, arguments, first).await,
        Some(_) if arguments.id.is_some() || arguments.idempotency_key.is_some() => {
            Err(Failure::new(Exit::Usage, "--id and --idempotency-key name one task, and there are several inputs"))
        }
        Some(second) => many(client, &api, arguments.wait, [first, second].into_iter().map(Ok).chain(bodies)).await,
    }
}

pub(super) async fn quote(client: &ClientArgs, arguments: &SubmitArgs) -> Result<Exit, Failure> {
    if arguments.tasks.is_some() || arguments.wait.is_some() || arguments.follow {
        return Err(Failure::new(
            Exit::Usage,
            "a quote is for one task, given by its fields, and there is nothing to wait for",
        ));
    }
    let api = client.api()?;
    let mut bodies = bodies(arguments)?;
    let (first, second) = (bodies.next().transpose()?, bodies.next().transpose()?);
    let (Some(body), None) = (first, second) else {
        return Err(Failure::new(Exit::Usage, "a quote is for one task: give one input"));
    };
    let answer = api.post("v1/quote", "application/json", body, None).await?;
    let quote: Quote = api.decode(&answer)?;
    client.print(|output| output.one(&quote, quoted))?;
    Ok(Exit::Ok)
}

fn quoted(quote: &Quote) -> Vec<(&'static str, String)> {
    let start = |q: fn(&ExpectedTime) -> Timestamp| quote.expected_start.as_ref().map(|time| q(time).to_string());
    let finish = |q: fn(&ExpectedTime) -> Timestamp| quote.expected_finish.as_ref().map(|time| q(time).to_string());
    let choice = quote.choice.as_ref();
    [
        ("model", quote.model.clone()),
        ("starts_by_q50", start(|time| time.q50)),
        ("starts_by_q95", start(|time| time.q95)),
        ("ends_by_q50", finish(|time| time.q50)),
        ("ends_by_q95", finish(|time| time.q95)),
        ("deadline_probability", quote.deadline_probability.map(|probability| format!("{probability:.3}"))),
        ("chosen_by", choice.map(|choice| choice.reason.as_str().to_owned())),
        ("candidates", choice.map(|choice| choice.candidates.to_string())),
        ("problem", quote.problem.as_ref().map(|problem| format!("{} [{}]", problem.message, problem.code))),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

type Bodies<'a> = Box<dyn Iterator<Item = Result<Vec<u8>, Failure>> + 'a>;

/// Tasks as JSON, as their inputs come.
fn bodies(arguments: &SubmitArgs) -> Result<Bodies<'_>, Failure> {
    if let Some(path) = &arguments.tasks {
        return Ok(Box::new(Values::lines(path)?.map(|task| task.map(|task| one_line(&task)))));
    }
    let inputs = Values::of(arguments.input.as_deref().unwrap_or_default())?;
    Ok(Box::new(inputs.map(|input| body(arguments, &input?))))
}

fn body(arguments: &SubmitArgs, input: &RawValue) -> Result<Vec<u8>, Failure> {
    let body = Body {
        id: arguments.id,
        model: arguments.model.as_deref(),
        capability: arguments.capability.as_deref(),
        kind: arguments.kind.as_deref(),
        priority: arguments.priority,
        tenant: arguments.tenant.as_deref(),
        deadline_ms: arguments.deadline_ms,
        delay_ms: arguments.delay_ms,
        timeout_ms: arguments.timeout_ms,
        max_attempts: arguments.max_attempts,
        cost: arguments.cost,
        min_quality: arguments.min_quality,
        alternatives: &arguments.alternatives,
        idempotency_key: arguments.idempotency_key.as_deref(),
        metadata: arguments.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        input,
    };
    let body = serde_json::value::to_raw_value(&body)
        .map_err(|error| Failure::new(Exit::Usage, format!("the task cannot be written as JSON: {error}")))?;
    Ok(one_line(&body))
}

/// JSON as it came, on one line: line breaks in it can only be space between its parts.
fn one_line(value: &RawValue) -> Vec<u8> {
    value.get().bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }).collect()
}

/// Sends one task. When nobody answers, what it is called is said: it may have been accepted.
async fn send(api: &Api, arguments: &SubmitArgs, body: Vec<u8>, wait: Option<Duration>) -> Result<TaskResult, Failure> {
    let (name, body) = named(body);
    let answer = api.post("v1/tasks", "application/json", body, wait).await;
    let answer = answer.map_err(|failure| match (&name, &arguments.idempotency_key) {
        _ if !failure.unanswered => failure,
        (Some(id), _) => failure.told(|why| {
            format!("{why}; task {id} may have been accepted: taskyard task get {id}")
        }),
        (None, Some(key)) => failure.told(|why| {
            format!("{why}; the task may have been accepted: submitted again with --idempotency-key {key} it is not run twice")
        }),
        (None, None) => failure.told(|why| format!("{why}; the task may have been accepted")),
    })?;
    api.decode(&answer)
}

/// The task with an id, its own or a new one. With an idempotency key it has none, and what is no task is left as it is.
fn named(body: Vec<u8>) -> (Option<String>, Vec<u8>) {
    let Ok(fields) = serde_json::from_slice::<BTreeMap<String, Box<RawValue>>>(&body) else { return (None, body) };
    if let Some(id) = fields.get("id") {
        return (serde_json::from_str(id.get()).ok(), body);
    }
    let Some(start) = body.iter().position(|byte| *byte == b'{').filter(|_| !fields.contains_key("idempotency_key"))
    else {
        return (None, body);
    };
    let id = uuid::Uuid::now_v7().to_string();
    let mut with_id = format!("{{\"id\":\"{id}\"{}", if fields.is_empty() { "" } else { "," }).into_bytes();
    with_id.extend_from_slice(&body[start + 1..]);
    (Some(id), with_id)
}

/// Of a task that was accepted.
fn lost(id: uuid::Uuid, failure: Failure) -> Failure {
    failure.told(|why| format!("task {id} was accepted: taskyard task get {id}; {why}"))
}

async fn followed(client: &ClientArgs, api: &Api, arguments: &SubmitArgs, body: Vec<u8>) -> Result<Exit, Failure> {
    let until = Instant::now() + arguments.wait.unwrap_or(FOLLOWED_MOST);
    let id = send(api, arguments, body, None).await?.id.0;
    follow(client, api, id, until).await.map_err(|failure| lost(id, failure))
}

async fn single(client: &ClientArgs, api: &Api, arguments: &SubmitArgs, body: Vec<u8>) -> Result<Exit, Failure> {
    let until = arguments.wait.map(|wait| Instant::now() + wait);
    let piece = arguments.wait.map(|wait| wait.min(WAIT_PIECE));
    let mut task = send(api, arguments, body, piece).await?;
    if let Some(until) = until
        && !task.state.is_terminal()
    {
        task = match until_finished(api, task.id.0, until).await {
            Ok(task) => task,
            Err(failure) => {
                // What was accepted is told before what was not seen.
                print(client, 1, std::slice::from_ref(&task))?;
                return Err(lost(task.id.0, failure));
            }
        };
    }
    print(client, 1, std::slice::from_ref(&task))?;
    Ok(if arguments.wait.is_some() { judge(&[task]) } else { Exit::Ok })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_without_a_name_is_given_one() {
        for (body, rest) in [("{}", "}"), (r#"  {"model": "m"}"#, r#","model": "m"}"#)] {
            let (id, sent) = named(body.as_bytes().to_vec());
            let id = id.unwrap();
            assert_eq!(uuid::Uuid::parse_str(&id).unwrap().get_version_num(), 7);
            assert_eq!(String::from_utf8(sent).unwrap(), format!(r#"{{"id":"{id}"{rest}"#));
        }
        for (body, name) in [
            (r#"{"model": "m", "id": "x"}"#, Some("x")),
            (r#"{"id": null}"#, None),
            (r#"{"idempotency_key": "k"}"#, None),
            ("[{}]", None),
            ("7", None),
        ] {
            assert_eq!(named(body.as_bytes().to_vec()), (name.map(str::to_owned), body.as_bytes().to_vec()));
        }
    }
}
