//! The Lua scripts, and how they are called: many tasks to a call, several calls to a round trip.

use std::sync::LazyLock;

use redis::{Cmd, Pipeline, Value};

use super::link::{self, Link};
use crate::store::StoreError;

/// A call holds the server up for as long as it runs, about 5 µs a task: others get their turn in between.
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
    CLAIM = "claim.lua"
    DISPATCHED = "dispatched.lua"
    FOLLOW = "follow.lua"
    LIST = "list.lua"
    LOADS = "loads.lua"
    RELEASE = "release.lua"
    RENEW = "renew.lua"
    REPORT = "report.lua"
    SETTLE = "settle.lua"
}

/// What a script is told of one task.
pub(super) struct Entry {
    /// The task's record.
    pub key: String,
    pub arguments: Vec<Vec<u8>>,
}

impl Entry {
    pub(super) fn new<const N: usize>(key: String, arguments: [Vec<u8>; N]) -> Self {
        Self { key, arguments: arguments.into() }
    }

    fn bytes(&self) -> usize {
        self.arguments.iter().map(Vec::len).sum()
    }
}

impl Script {
    fn new(text: &str) -> Self {
        Self { text: text.to_owned(), sha: redis::Script::new(text).get_hash().to_owned() }
    }

    /// Calls it once; its answer.
    pub(super) async fn call(&self, link: &Link, keys: &[&str], arguments: &[&[u8]]) -> Result<Value, StoreError> {
        let mut answers = self.run(link, vec![self.command(keys, arguments)]).await?;
        answers.pop().ok_or_else(|| link::unexpected("no answer"))
    }

    /// Calls it for all entries, in one round trip. `keys` and `arguments` stand before those of the entries in each
    /// call. The answers of all calls, one for each entry.
    ///
    /// # Errors
    /// Of some calls the answers may be lost then, though they took effect: the caller repeats all of them.
    pub(super) async fn batch(
        &self,
        link: &Link,
        keys: &[&str],
        arguments: &[&[u8]],
        entries: &[Entry],
    ) -> Result<Vec<Value>, StoreError> {
        let calls = split(entries).into_iter().map(|entries| {
            let keys: Vec<&str> = keys.iter().copied().chain(entries.iter().map(|entry| &*entry.key)).collect();
            let own = entries.iter().flat_map(|entry| entry.arguments.iter().map(|argument| &**argument));
            let arguments: Vec<&[u8]> = arguments.iter().copied().chain(own).collect();
            self.command(&keys, &arguments)
        });
        let mut answers = Vec::with_capacity(entries.len());
        for answer in self.run(link, calls.collect()).await? {
            answers.extend(link::array(answer)?);
        }
        if answers.len() != entries.len() {
            return Err(link::unexpected(format_args!("{} answers to {}", answers.len(), entries.len())));
        }
        Ok(answers)
    }

    fn command(&self, keys: &[&str], arguments: &[&[u8]]) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.sha).arg(keys.len()).arg(keys).arg(arguments);
        command
    }

    /// Sends the calls together. Those that the server answers with `NOSCRIPT`, as it does after a restart, are sent
    /// again behind the script's text; the others are not, since they took effect.
    async fn run(&self, link: &Link, calls: Vec<Cmd>) -> Result<Vec<Value>, StoreError> {
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let mut answers = link.send(&pipeline(&calls)).await?;
        let unknown: Vec<usize> =
            answers.iter().enumerate().filter(|(_, answer)| link::is_no_script(answer)).map(|(at, _)| at).collect();
        if !unknown.is_empty() {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(&self.text);
            let again: Vec<Cmd> = std::iter::once(load).chain(unknown.iter().map(|at| calls[*at].clone())).collect();
            let mut second = link.send(&pipeline(&again)).await?.into_iter();
            second.next().map(|loaded| link.checked(loaded)).transpose()?;
            for (at, answer) in unknown.into_iter().zip(second) {
                answers[at] = answer;
            }
        }
        answers.into_iter().map(|answer| link.checked(answer)).collect()
    }
}

pub(super) fn pipeline(commands: &[Cmd]) -> Pipeline {
    let mut pipeline = Pipeline::with_capacity(commands.len());
    for command in commands {
        pipeline.add_command(command.clone());
    }
    pipeline
}

/// Runs of entries, each for one call.
fn split(entries: &[Entry]) -> Vec<&[Entry]> {
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
        let entries: Vec<_> = entries.iter().map(|bytes| Entry::new(String::new(), [vec![0; *bytes]])).collect();
        split(&entries).into_iter().map(<[Entry]>::len).collect()
    }

    #[test]
    fn a_batch_is_split_by_tasks_and_by_bytes_and_loses_none() {
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[1; CALL_TASKS]), [CALL_TASKS]);
        assert_eq!(sizes(&[1; 2 * CALL_TASKS + 1]), [CALL_TASKS, CALL_TASKS, 1]);
        assert_eq!(sizes(&[CALL_BYTES + 1, 1, CALL_BYTES - 1, 1, CALL_BYTES]), [1, 2, 1, 1]);
    }
}
