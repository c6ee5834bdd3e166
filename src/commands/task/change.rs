//! `taskyard task cancel`, `reprioritize` and `explain`.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use taskyard_shared::State;
use taskyard_shared::process::exit::Exit;

use super::{WAITS_AT_ONCE, parse_label, parse_state, word};
use crate::client::Failure;
use crate::commands::{ClientArgs, say};

#[derive(Args, Clone, Debug)]
pub struct CancelArgs {
    /// Tasks' ids
    #[arg(value_name = "ID", required_unless_present_any = ["state", "model", "tenant", "metadata"])]
    ids: Vec<uuid::Uuid>,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Args, Clone, Debug)]
pub struct ReprioritizeArgs {
    /// Tasks' ids
    #[arg(value_name = "ID", required_unless_present_any = ["state", "model", "tenant", "metadata"])]
    ids: Vec<uuid::Uuid>,
    /// 0 to 9; bigger is sooner
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: u8,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Args, Clone, Debug)]
pub struct RetryArgs {
    /// Tasks' ids
    #[arg(required = true, value_name = "ID")]
    ids: Vec<uuid::Uuid>,
}

#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// The task's id
    #[arg(value_name = "ID")]
    id: uuid::Uuid,
}

/// Instead of ids: all tasks that have this in common and have not ended.
#[derive(Args, Clone, Debug)]
struct FilterArgs {
    /// All tasks in this state
    #[arg(long, value_parser = parse_state, conflicts_with = "ids")]
    state: Option<State>,
    /// All tasks of this model
    #[arg(long, conflicts_with = "ids")]
    model: Option<String>,
    /// All of this tenant's tasks
    #[arg(long, conflicts_with = "ids")]
    tenant: Option<String>,
    /// All tasks with this label; may be given several times
    #[arg(long = "metadata", value_name = "KEY=VALUE", value_parser = parse_label, conflicts_with = "ids")]
    metadata: Vec<(String, String)>,
}

/// What came of it for one task.
#[derive(Serialize, Deserialize)]
struct Changed {
    #[serde(alias = "task_id")]
    id: Option<uuid::Uuid>,
    outcome: String,
    #[serde(default)]
    state: Option<String>,
}

/// What came of trying one again.
#[derive(Serialize, Deserialize)]
struct Retried {
    #[serde(default)]
    id: Option<uuid::Uuid>,
    outcome: String,
    #[serde(default)]
    state: Option<String>,
    /// The task that it is now; in a problem, the one that was asked for.
    #[serde(default)]
    task_id: Option<String>,
}

#[derive(Deserialize)]
struct Counts {
    outcomes: BTreeMap<String, u64>,
    cursor: Option<String>,
}

/// How many tasks came to what.
#[derive(Serialize)]
struct Count {
    outcome: String,
    tasks: u64,
}

pub async fn cancel(client: &ClientArgs, arguments: CancelArgs) -> Result<Exit, Failure> {
    change(client, &arguments.ids, &arguments.filter, "cancel", json!({})).await
}

pub async fn reprioritize(client: &ClientArgs, arguments: ReprioritizeArgs) -> Result<Exit, Failure> {
    let body = json!({"priority": arguments.priority});
    change(client, &arguments.ids, &arguments.filter, "reprioritize", body).await
}

async fn change(
    client: &ClientArgs,
    ids: &[uuid::Uuid],
    filter: &FilterArgs,
    call: &str,
    body: Value,
) -> Result<Exit, Failure> {
    if ids.is_empty() {
        return change_all(client, filter, call, body).await;
    }
    let api = client.api()?;
    let asked = ids.iter().map(|id| {
        let (api, body) = (&api, &body);
        async move {
            let (_, answer) = api.change(&format!("v1/tasks/{id}/{call}"), body).await?;
            let changed: Changed = api.decode(&answer)?;
            Ok::<_, Failure>(Changed { id: Some(*id), ..changed })
        }
    });
    let answers: Vec<_> = stream::iter(asked).buffered(WAITS_AT_ONCE).collect().await;
    let changed = answers.into_iter().collect::<Result<Vec<Changed>, Failure>>()?;
    client.print(|output| {
        output.rows(&["id", "outcome", "state"], &changed, |one| {
            let id = one.id.map(|id| id.to_string()).unwrap_or_default();
            vec![id, one.outcome.clone(), one.state.clone().unwrap_or_else(|| "-".to_owned())]
        })
    })?;
    Ok(judge(changed.iter().map(|one| one.outcome.as_str())))
}

/// Call by call, until nothing more matches.
async fn change_all(client: &ClientArgs, filter: &FilterArgs, call: &str, body: Value) -> Result<Exit, Failure> {
    let api = client.api()?;
    let mut body = body;
    let mut set = |name: &str, value: Option<Value>| {
        if let (Some(value), Some(fields)) = (value, body.as_object_mut()) {
            fields.insert(name.to_owned(), value);
        }
    };
    set("state", filter.state.map(|state| word(state).into()));
    set("model", filter.model.clone().map(Value::from));
    set("tenant", filter.tenant.clone().map(Value::from));
    let labels: serde_json::Map<String, Value> =
        filter.metadata.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    set("metadata", (!labels.is_empty()).then_some(Value::Object(labels)));
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    loop {
        let (_, answer) = api.change(&format!("v1/tasks/{call}"), &body).await?;
        let answer: Counts = api.decode(&answer)?;
        for (outcome, tasks) in answer.outcomes {
            *counts.entry(outcome).or_default() += tasks;
        }
        let Some(cursor) = answer.cursor else { break };
        if let Some(fields) = body.as_object_mut() {
            fields.insert("cursor".to_owned(), cursor.into());
        }
    }
    if counts.is_empty() {
        say("no task that has not ended matches");
    }
    let counts: Vec<Count> = counts.into_iter().map(|(outcome, tasks)| Count { outcome, tasks }).collect();
    client.print(|output| {
        output.rows(&["outcome", "tasks"], &counts, |count| vec![count.outcome.clone(), count.tasks.to_string()])
    })?;
    Ok(Exit::Ok)
}

/// One by one: each looks through the dead letters, and only one can at a time.
pub async fn retry(client: &ClientArgs, arguments: &RetryArgs) -> Result<Exit, Failure> {
    let api = client.api()?;
    let mut retried = Vec::new();
    for id in &arguments.ids {
        let (_, answer) = api.change(&format!("v1/tasks/{id}/retry"), &json!({})).await?;
        let one: Retried = api.decode(&answer)?;
        let task_id = one.task_id.filter(|_| one.outcome == "retried");
        retried.push(Retried { id: Some(*id), task_id, ..one });
    }
    client.print(|output| {
        output.rows(&["id", "outcome", "state", "task"], &retried, |one| {
            let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            let id = one.id.map(|id| id.to_string()).unwrap_or_default();
            vec![id, one.outcome.clone(), text(&one.state), text(&one.task_id)]
        })
    })?;
    Ok(judge(retried.iter().map(|one| one.outcome.as_str())))
}

/// Not found counts before what came too late.
fn judge<'a>(outcomes: impl Iterator<Item = &'a str>) -> Exit {
    let mut exit = Exit::Ok;
    for outcome in outcomes {
        match outcome {
            "not_found" => return Exit::NotFound,
            "already_finished" | "already_dispatched" | "not_finished" | "input_not_kept" => exit = Exit::Failed,
            _ => {}
        }
    }
    exit
}

pub async fn explain(client: &ClientArgs, arguments: &ExplainArgs) -> Result<Exit, Failure> {
    let api = client.api()?;
    let told: Value = api.get(&format!("v1/tasks/{}/explain", arguments.id), &[], Duration::ZERO).await?;
    client.print(|output| output.one(&told, fields))?;
    Ok(Exit::Ok)
}

fn fields(told: &Value) -> Vec<(&'static str, String)> {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let (waiting, timings) = (&told["waiting"], &told["timings"]);
    [
        ("id", &told["id"]),
        ("state", &told["state"]),
        ("reason", &told["reason"]),
        ("message", &told["message"]),
        ("model", &told["model"]),
        ("priority", &told["priority"]),
        ("attempt", &told["attempt"]),
        ("since", &waiting["since"]),
        ("starts", &waiting["starts"]),
        ("ahead_in_lane", &waiting["ahead_in_lane"]),
        ("queued_in_model", &waiting["queued_in_model"]),
        ("dispatched_in_model", &waiting["dispatched_in_model"]),
        ("capacity", &waiting["capacity"]),
        ("policy", &waiting["policy"]),
        ("starts_by_q50", &waiting["expected_start"]["q50"]),
        ("starts_by_q95", &waiting["expected_start"]["q95"]),
        ("ends_by_q50", &waiting["expected_finish"]["q50"]),
        ("ends_by_q95", &waiting["expected_finish"]["q95"]),
        ("started", &timings["started"]),
        ("finished", &timings["finished"]),
        ("waited_ms", &timings["waited_ms"]),
        ("ran_ms", &timings["ran_ms"]),
        ("worker", &told["worker"]),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, text(value)?)))
    .collect()
}
