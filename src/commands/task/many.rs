//! `taskyard task submit` of many tasks: request by request, and what was accepted is told whatever comes after it.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use serde::Deserialize;
use taskyard_shared::TaskResult;
use taskyard_shared::process::exit::Exit;

use super::{WAITS_AT_ONCE, judge, rows, until_finished};
use crate::client::{Api, Failure};
use crate::commands::{ClientArgs, say};
use crate::output::Format;

/// One request holds at most so many tasks, and is closed once it is over so many bytes.
const REQUEST_TASKS: usize = 1000;
const REQUEST_BYTES: usize = 4 << 20;

/// What became of one task of a batch.
#[derive(Deserialize)]
struct BatchAnswer {
    task: Option<TaskResult>,
    problem: Option<BatchProblem>,
}

#[derive(Deserialize)]
struct BatchProblem {
    code: String,
    detail: String,
}

/// What became of many tasks so far.
#[derive(Default)]
struct Sent {
    inputs: usize,
    refused: usize,
    accepted: usize,
    /// Those that are not printed yet: a table and an array need all.
    kept: Vec<TaskResult>,
    exit: Option<Exit>,
}

pub(super) async fn many(
    client: &ClientArgs,
    api: &Api,
    wait: Option<Duration>,
    mut bodies: impl Iterator<Item = Result<Vec<u8>, Failure>>,
) -> Result<Exit, Failure> {
    let until = wait.map(|wait| Instant::now() + wait);
    let mut sent = Sent::default();
    let failed = loop {
        match sent.request(client, api, until, &mut bodies).await {
            Ok(true) => {}
            Ok(false) => break None,
            Err(failure) => break Some(failure),
        }
    };
    if client.output != Format::Jsonl && (failed.is_none() || sent.accepted > 0) {
        client.print(|output| rows(output, &sent.kept))?;
    }
    let Sent { inputs, refused, accepted, exit, .. } = sent;
    if refused > 0 {
        say(&format!("{refused} of {inputs} were refused"));
    }
    match failed {
        Some(failure) if accepted == 0 => Err(failure),
        // The sentence is on what is wrong; that some of it is done says the code.
        Some(failure) => Err(Failure::new(
            Exit::Failed,
            format!("{accepted} tasks of the first {inputs} inputs were accepted, and no more: {failure}"),
        )),
        None if refused > 0 => Ok(Exit::Failed),
        None => Ok(exit.unwrap_or(Exit::Ok)),
    }
}

impl Sent {
    /// Sends one request, and waits for its tasks if that was asked for. Whether there was something to send.
    async fn request(
        &mut self,
        client: &ClientArgs,
        api: &Api,
        until: Option<Instant>,
        bodies: &mut impl Iterator<Item = Result<Vec<u8>, Failure>>,
    ) -> Result<bool, Failure> {
        let (lines, count) = next_request(bodies)?;
        if count == 0 {
            return Ok(false);
        }
        let (first, last) = (self.inputs + 1, self.inputs + count);
        let answer = api.post("v1/batches", "application/x-ndjson", lines, None).await.map_err(|failure| {
            if !failure.unanswered {
                return failure;
            }
            failure.told(|why| format!("{why}; inputs {first} to {last} may have been accepted: taskyard task list"))
        })?;
        self.inputs = last;
        let mut tasks = Vec::with_capacity(count);
        let mut failed = None;
        for (number, line) in answer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
            match api.decode::<BatchAnswer>(line) {
                Ok(BatchAnswer { task: Some(task), .. }) => tasks.push(task),
                Ok(BatchAnswer { problem, .. }) => {
                    self.refused += 1;
                    let why =
                        problem.map_or_else(String::new, |problem| format!("{} [{}]", problem.detail, problem.code));
                    say(&format!("input {} was refused: {why}", first + number));
                }
                Err(failure) => failed = failed.or(Some(failure)),
            }
        }
        self.accepted += tasks.len();
        if let Some(until) = until {
            let asked = tasks.iter().map(|task| until_finished(api, task.id.0, until));
            let finished: Vec<_> = stream::iter(asked).buffered(WAITS_AT_ONCE).collect().await;
            for (task, finished) in tasks.iter_mut().zip(finished) {
                match finished {
                    Ok(finished) => *task = finished,
                    // It is shown as it was accepted.
                    Err(failure) => failed = failed.or(Some(failure)),
                }
            }
            if failed.is_none() && self.exit.is_none_or(|exit| exit == Exit::Ok) {
                self.exit = Some(judge(&tasks));
            }
        }
        match client.output {
            // As they come.
            Format::Jsonl => client.print(|output| rows(output, &tasks))?,
            Format::Table | Format::Json => self.kept.append(&mut tasks),
        }
        failed.map_or(Ok(true), Err)
    }
}

/// The lines of one request, and how many.
fn next_request(bodies: &mut impl Iterator<Item = Result<Vec<u8>, Failure>>) -> Result<(Vec<u8>, usize), Failure> {
    let (mut lines, mut count) = (Vec::new(), 0);
    while count < REQUEST_TASKS && lines.len() < REQUEST_BYTES {
        let Some(body) = bodies.next() else { break };
        lines.append(&mut body?);
        lines.push(b'\n');
        count += 1;
    }
    Ok((lines, count))
}
