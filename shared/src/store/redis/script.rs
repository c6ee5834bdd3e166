//! The Lua scripts, and how they are called: many tasks to a call, several calls to a round trip.

use std::sync::LazyLock;

use redis::{Cmd, Pipeline, Value};

use super::link::{self, Link};
use crate::store::StoreError;

/// A call holds the server up for as long as it runs, about 4 µs a task: others get their turn in between.
const CALL_TASKS: usize = 256;
/// And for copying what it is given.
const CALL_BYTES: usize = 4 << 20;

pub(super) struct Script {
    text: String,
    sha: String,
}

macro_rules! scripts {
    ($($name:ident = $file:literal)*) => {
        $(pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!(include_str!("common.lua"), "\n", include_str!($file))));)*
    };
}

scripts! {
    ACCEPT = "accept.lua"
    APPEND = "append.lua"
    CANCEL = "cancel.lua"
    CLAIM = "claim.lua"
    DISPATCHED = "dispatched.lua"
    FOLLOW = "follow.lua"
    LEASED = "leased.lua"
    LIST = "list.lua"
    LIST_WORKFLOWS = "list_workflows.lua"
    LOADS = "loads.lua"
    RELEASE = "release.lua"
    RENEW = "renew.lua"
    REPRIORITIZE = "reprioritize.lua"
    REPORT = "report.lua"
    SETTLE = "settle.lua"
    STREAMS = "streams.lua"
    TAKE_TOKENS = "take_tokens.lua"
    WORKFLOW = "workflow.lua"
}

/// What a script is told of one task.
pub(super) struct Entry<const N: usize> {
    /// The task's record.
    pub key: String,
    pub arguments: [Vec<u8>; N],
}

impl<const N: usize> Entry<N> {
    fn bytes(&self) -> usize {
        self.key.len() + self.arguments.iter().map(Vec::len).sum::<usize>()
    }
}

impl Script {
    fn new(text: &str) -> Self {
        Self { text: text.to_owned(), sha: redis::Script::new(text).get_hash().to_owned() }
    }

    /// Calls it once; its answer.
    pub(super) async fn call(&self, link: &Link, keys: &[&str], arguments: &[&[u8]]) -> Result<Value, StoreError> {
        let mut answers = self.run(link, vec![self.command::<0>(keys, arguments, &[])]).await?;
        answers.pop().ok_or_else(|| link::unexpected("no answer"))
    }

    /// Calls it for all entries, in one round trip. `keys` and `arguments` stand before those of the entries in each
    /// call. The answers of all calls, one for each entry; a number that answers for all of a call is given to each.
    ///
    /// # Errors
    /// Of some calls the answers may be lost then, though they took effect: the caller repeats all of them.
    pub(super) async fn batch<const N: usize>(
        &self,
        link: &Link,
        keys: &[&str],
        arguments: &[&[u8]],
        entries: &[Entry<N>],
    ) -> Result<Vec<Value>, StoreError> {
        let parts = split(entries);
        let calls = parts.iter().map(|entries| self.command(keys, arguments, entries)).collect();
        let mut answers = Vec::with_capacity(entries.len());
        for (answer, part) in self.run(link, calls).await?.into_iter().zip(parts) {
            let before = answers.len();
            match answer {
                Value::Int(all) => answers.extend(part.iter().map(|_| Value::Int(all))),
                answer => answers.extend(link::array(answer)?),
            }
            if answers.len() - before != part.len() {
                return Err(link::unexpected(format_args!("{} answers to {}", answers.len() - before, part.len())));
            }
        }
        Ok(answers)
    }

    fn command<const N: usize>(&self, keys: &[&str], arguments: &[&[u8]], entries: &[Entry<N>]) -> Cmd {
        let count = 3 + keys.len() + arguments.len() + entries.len() * (1 + N);
        let mut command = Cmd::with_capacity(count, FIXED_BYTES + entries.iter().map(Entry::bytes).sum::<usize>());
        command.arg("EVALSHA").arg(&self.sha).arg(keys.len() + entries.len()).arg(keys);
        for entry in entries {
            command.arg(&entry.key);
        }
        command.arg(arguments);
        for argument in entries.iter().flat_map(|entry| &entry.arguments) {
            command.arg(argument.as_slice());
        }
        command
    }

    /// Sends the calls together. Those that the server answers with `NOSCRIPT`, as it does after a restart, are sent
    /// again behind the script's text; the others are not, since they took effect.
    async fn run(&self, link: &Link, calls: Vec<Cmd>) -> Result<Vec<Value>, StoreError> {
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let calls = pipeline(calls);
        let mut answers = link.send(&calls).await?;
        if answers.iter().any(link::is_no_script) {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(&self.text);
            let unknown = calls.cmd_iter().zip(&answers).filter(|(_, answer)| link::is_no_script(answer));
            let again = pipeline(std::iter::once(load).chain(unknown.map(|(call, _)| call.clone())));
            let mut second = link.send(&again).await?.into_iter();
            second.next().map(|loaded| link.checked(loaded)).transpose()?;
            for (answer, again) in answers.iter_mut().filter(|answer| link::is_no_script(answer)).zip(second) {
                *answer = again;
            }
        }
        answers.into_iter().map(|answer| link.checked(answer)).collect()
    }
}

/// About what a call takes beside what it is told of its tasks.
const FIXED_BYTES: usize = 256;

pub(super) fn pipeline(commands: impl IntoIterator<Item = Cmd>) -> Pipeline {
    let commands = commands.into_iter();
    let mut pipeline = Pipeline::with_capacity(commands.size_hint().0);
    for command in commands {
        pipeline.add_command(command);
    }
    pipeline
}

/// Runs of entries, each for one call.
fn split<const N: usize>(entries: &[Entry<N>]) -> Vec<&[Entry<N>]> {
    let mut calls = Vec::new();
    let (mut from, mut bytes) = (0, 0);
    for (at, entry) in entries.iter().enumerate() {
        let more = entry.bytes();
        if at > from && (at - from >= CALL_TASKS || bytes + more > CALL_BYTES) {
            calls.push(&entries[from..at]);
            (from, bytes) = (at, 0);
        }
        bytes += more;
    }
    if from < entries.len() {
        calls.push(&entries[from..]);
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::{CALL_BYTES, CALL_TASKS, Entry, split};

    fn sizes(entries: &[usize]) -> Vec<usize> {
        let entry = |bytes: &usize| Entry { key: String::new(), arguments: [vec![0; *bytes]] };
        split(&entries.iter().map(entry).collect::<Vec<_>>()).into_iter().map(<[_]>::len).collect()
    }

    #[test]
    fn a_batch_is_split_by_tasks_and_by_bytes_and_loses_none() {
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[1; CALL_TASKS]), [CALL_TASKS]);
        assert_eq!(sizes(&[1; 2 * CALL_TASKS + 1]), [CALL_TASKS, CALL_TASKS, 1]);
        assert_eq!(sizes(&[CALL_BYTES + 1, 1, CALL_BYTES - 1, 1, CALL_BYTES]), [1, 2, 1, 1]);
    }
}
