//! `taskyard dead`: the dead letters, listed, shown, sent again, thrown away.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use taskyard_shared::process::exit::Exit;

use super::{ClientArgs, finish, say, shortened};
use crate::client::Failure;

/// Most on one page of the API.
const PAGE: u32 = 500;
/// Characters of a message in a table.
const CELL_CHARACTERS: usize = 60;

#[derive(Args, Clone, Debug)]
pub struct DeadArgs {
    #[command(subcommand)]
    command: DeadCommand,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Subcommand, Clone, Debug)]
enum DeadCommand {
    /// Prints dead letters, newest first
    List(ListArgs),
    /// Prints one, with the task that it holds
    Show(ShowArgs),
    /// Sends what they hold again, as new tasks, and removes them
    Replay(WhichArgs),
    /// Throws them away
    Discard(WhichArgs),
}

/// What letters have in common.
#[derive(Args, Clone, Debug)]
struct FilterArgs {
    /// Letters of this reason, a code
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// Letters of this model
    #[arg(long)]
    model: Option<String>,
    /// This tenant's letters
    #[arg(long)]
    tenant: Option<String>,
}

impl FilterArgs {
    fn named(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let all = [("reason", &self.reason), ("model", &self.model), ("tenant", &self.tenant)];
        all.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)))
    }
}

#[derive(Args, Clone, Debug)]
struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Most that are printed
    #[arg(long, default_value_t = 50, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Where the page before ended
    #[arg(long)]
    cursor: Option<String>,
}

#[derive(Args, Clone, Debug)]
struct ShowArgs {
    /// The letter's id, or its task's
    #[arg(value_name = "ID")]
    id: uuid::Uuid,
}

#[derive(Args, Clone, Debug)]
struct WhichArgs {
    /// Letters' ids, or their tasks'
    #[arg(value_name = "ID", required_unless_present_any = ["all", "reason", "model", "tenant"],
        conflicts_with_all = ["all", "reason", "model", "tenant"])]
    ids: Vec<uuid::Uuid>,
    /// All letters, or all that match
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

/// What a list shows of each; the rest is carried through.
#[derive(Serialize, Deserialize)]
struct Letter {
    id: String,
    reason: String,
    message: String,
    attempts: u32,
    model: Option<String>,
    tenant: Option<String>,
    worker: Option<String>,
    died: Option<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Page {
    dead: Vec<Letter>,
    cursor: Option<String>,
    looked_at: u64,
    complete: bool,
}

#[derive(Serialize, Deserialize)]
struct Buried {
    id: String,
    outcome: String,
    task_id: Option<String>,
}

#[derive(Deserialize)]
struct Counts {
    outcomes: BTreeMap<String, u64>,
    complete: bool,
}

/// How many letters came to what.
#[derive(Serialize)]
struct Count {
    outcome: String,
    letters: u64,
}

pub async fn run(arguments: DeadArgs) -> Exit {
    let DeadArgs { command, client } = arguments;
    finish(match command {
        DeadCommand::List(arguments) => list(&client, arguments).await,
        DeadCommand::Show(arguments) => show(&client, &arguments).await,
        DeadCommand::Replay(arguments) => bury(&client, &arguments, "replay").await,
        DeadCommand::Discard(arguments) => bury(&client, &arguments, "discard").await,
    })
}

async fn list(client: &ClientArgs, arguments: ListArgs) -> Result<Exit, Failure> {
    let api = client.api()?;
    let ListArgs { filter, limit, mut cursor } = arguments;
    let mut letters: Vec<Letter> = Vec::new();
    let unseen = loop {
        let left = limit - letters.len() as u32;
        let mut query: Vec<(String, String)> =
            filter.named().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        query.push(("limit".to_owned(), left.min(PAGE).to_string()));
        query.extend(cursor.take().map(|cursor| ("cursor".to_owned(), cursor)));
        let page: Page = api.get("v1/dead", &query, Duration::ZERO).await?;
        letters.extend(page.dead);
        cursor = page.cursor;
        if cursor.is_none() || letters.len() as u32 >= limit {
            break (!page.complete).then_some(page.looked_at);
        }
    };
    client.print(|output| {
        output.rows(&["id", "reason", "model", "tenant", "attempts", "died", "message"], &letters, |letter| {
            let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            vec![
                letter.id.clone(),
                letter.reason.clone(),
                text(&letter.model),
                text(&letter.tenant),
                letter.attempts.to_string(),
                text(&letter.died),
                shortened(&letter.message, CELL_CHARACTERS),
            ]
        })
    })?;
    if let Some(cursor) = cursor {
        say(&format!("there are more: --cursor {cursor}"));
    }
    if let Some(looked_at) = unseen {
        say(&format!("only the oldest {looked_at} were looked at: there are more behind them"));
    }
    Ok(Exit::Ok)
}

async fn show(client: &ClientArgs, arguments: &ShowArgs) -> Result<Exit, Failure> {
    let letter: Value = client.api()?.get(&format!("v1/dead/{}", arguments.id), &[], Duration::ZERO).await?;
    client.print(|output| output.one(&letter, fields))?;
    Ok(Exit::Ok)
}

fn fields(letter: &Value) -> Vec<(&'static str, String)> {
    let names = [
        "id", "task_id", "content", "reason", "message", "attempts", "model", "tenant", "worker", "accepted", "died",
        "reply_to", "bytes", "task", "body",
    ];
    let text = |name: &str| match &letter[name] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    names.into_iter().filter_map(|name| Some((name, text(name)?))).collect()
}

async fn bury(client: &ClientArgs, arguments: &WhichArgs, call: &str) -> Result<Exit, Failure> {
    let api = client.api()?;
    if arguments.ids.is_empty() {
        let mut body: serde_json::Map<String, Value> =
            arguments.filter.named().map(|(name, value)| (name.to_owned(), json!(value))).collect();
        if body.is_empty() {
            body.insert("all".to_owned(), json!(true));
        }
        return bury_all(client, &Value::Object(body), call).await;
    }
    let (mut buried, mut missing) = (Vec::new(), Vec::new());
    // One by one: each looks through the queue, and only one can at a time.
    for id in &arguments.ids {
        match api.change(&format!("v1/dead/{id}/{call}"), &json!({})).await {
            Ok((_, answer)) => buried.push(api.decode::<Buried>(&answer)?),
            Err(failure) if failure.exit == Exit::NotFound => missing.push(format!("{id}: {}", failure.message)),
            Err(failure) => {
                // What was done is told before what was not.
                print_buried(client, &buried)?;
                return Err(failure);
            }
        }
    }
    print_buried(client, &buried)?;
    missing.iter().for_each(|message| say(message));
    Ok(if missing.is_empty() { Exit::Ok } else { Exit::NotFound })
}

fn print_buried(client: &ClientArgs, buried: &[Buried]) -> Result<(), Failure> {
    client.print(|output| {
        output.rows(&["id", "outcome", "task"], buried, |one| {
            vec![one.id.clone(), one.outcome.clone(), one.task_id.clone().unwrap_or_else(|| "-".to_owned())]
        })
    })
}

/// Call by call, while each looks at as many as it may and gets some of them done.
async fn bury_all(client: &ClientArgs, body: &Value, call: &str) -> Result<Exit, Failure> {
    let api = client.api()?;
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let complete = loop {
        let (_, answer) = api.change(&format!("v1/dead/{call}"), body).await?;
        let answer: Counts = api.decode(&answer)?;
        let done: u64 = answer.outcomes.iter().filter(|(outcome, _)| *outcome != "kept").map(|(_, count)| count).sum();
        for (outcome, letters) in answer.outcomes {
            *counts.entry(outcome).or_default() += letters;
        }
        if answer.complete || done == 0 || counts.contains_key("kept") {
            break answer.complete;
        }
    };
    if counts.is_empty() {
        say("no dead letter matches");
    }
    let kept = counts.contains_key("kept");
    let counts: Vec<Count> = counts.into_iter().map(|(outcome, letters)| Count { outcome, letters }).collect();
    client.print(|output| {
        output.rows(&["outcome", "letters"], &counts, |count| vec![count.outcome.clone(), count.letters.to_string()])
    })?;
    if kept {
        say("the broker did not confirm all of it: what was kept is still there");
        return Ok(Exit::NotReachable);
    }
    if !complete {
        say("not all dead letters were looked at: there are more behind those");
    }
    Ok(Exit::Ok)
}
