//! A process of its own to be killed: this test binary again, running one of its ignored tests.

use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;

/// Far more than anything here takes: reached only when what is awaited never happens.
const LIMIT: Duration = Duration::from_secs(60);
/// Where the child works.
const DIR: &str = "TASKYARD_TEST_CHILD_DIR";

/// Waits for what must happen.
pub async fn within<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, waiting).await {
        Ok(answer) => answer,
        Err(_) => panic!("never came: {what}"),
    }
}

/// In the child: the folder it was given.
pub fn dir() -> PathBuf {
    std::env::var_os(DIR).expect("it is only run by another test").into()
}

/// In the child: what its async part runs on.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub struct Child {
    process: std::process::Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    pub fn start(test: &str, dir: &Path) -> Self {
        Self::spawn(Command::new(std::env::current_exe().unwrap()), test, dir)
    }

    /// With no file larger than so many KiB; `None` when there is no program to raise that again.
    pub fn start_with_small_files(test: &str, dir: &Path, most_kb: u64) -> Option<Self> {
        Command::new("prlimit").arg("--version").stdout(Stdio::null()).status().ok()?;
        // Without the trap the signal would end it: writing has to fail instead, as it does on a full disk.
        let script = format!("trap '' XFSZ; ulimit -S -f {most_kb}; exec \"$0\" \"$@\"");
        let mut command = Command::new("bash");
        command.arg("-c").arg(script).arg(std::env::current_exe().unwrap());
        Some(Self::spawn(command, test, dir))
    }

    fn spawn(mut command: Command, test: &str, dir: &Path) -> Self {
        command.args(["--ignored", "--exact", "--nocapture", test]).env(DIR, dir).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    pub fn allow_large_files(&self) {
        let pid = self.process.id().to_string();
        let raised = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited"]).status().unwrap();
        assert!(raised.success());
    }

    /// Reads until a line begins with `last`; answers the number after the last `word` by then. The child's own end, or
    /// its limit of time, ends it too, as a failure.
    pub fn until(&mut self, last: &str, word: &str) -> usize {
        for line in &mut self.lines {
            // The name of the test stands before what it says first.
            let line = line.unwrap();
            if let Some(at) = line.find(last) {
                let number = line[at..].strip_prefix(word).unwrap().trim();
                return number.parse().unwrap();
            }
        }
        panic!("the child ended before it said {last:?}");
    }

    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Waits until it has crashed by itself.
    pub fn end(mut self) {
        assert!(!self.process.wait().unwrap().success(), "it did not crash");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
