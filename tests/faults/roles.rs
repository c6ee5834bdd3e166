//! The processes of the yard: each has somebody who starts it, starts it again when it ends, and does to it what is asked.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::harness::root;
use crate::ledger::{ENDED, Ended, Files, Held, now_ms};
use crate::servers::Group;
use crate::tweaks::Tweaks;

/// From SIGTERM to the end, with `worker.drain_s` of 10 and servers that may be away.
const TERM_PATIENCE: Duration = Duration::from_secs(45);

/// Until a new process says that it works: its servers may be away.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// Before a process that could not reach its servers is started again, as any supervisor would.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What a role exits with when its servers cannot be reached.
const NOT_REACHABLE: i32 = 3;

/// What is to be done to a process, and who is told once it is.
pub enum Order {
    Kill {
        away: Duration,
        done: oneshot::Sender<()>,
    },
    Term {
        away: Duration,
        done: oneshot::Sender<()>,
    },
    Signal(Signal),
    /// SIGTERM, and it stays away.
    End,
}

/// How to start it, and how to see that it works.
pub struct Recipe {
    pub name: String,
    /// What comes before the program, as in `nice taskyard`; mostly nothing.
    pub before: Vec<String>,
    /// `None` where they cannot be had.
    pub tweaks: Option<Arc<Tweaks>>,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// In a line of its log, any of them.
    pub ready: &'static [&'static str],
    pub logs: PathBuf,
}

pub struct Role {
    pub name: String,
    tweaks: Option<Arc<Tweaks>>,
    orders: mpsc::Sender<Order>,
    keeper: JoinHandle<()>,
    /// Of the process that runs at present.
    pid: Arc<AtomicU32>,
}

impl Role {
    /// Starts it and waits until it works.
    pub async fn start(recipe: Recipe, files: Arc<Files>) -> Self {
        let (orders, receiver) = mpsc::channel(16);
        let (name, tweaks) = (recipe.name.clone(), recipe.tweaks.clone());
        let pid = Arc::new(AtomicU32::new(0));
        let mut keeper = Keeper { recipe, files, starts: 0, child: None, pid: pid.clone(), group: Group::new() };
        keeper.spawn();
        assert!(keeper.ready().await, "{name} does not start; see {}", keeper.log().display());
        Self { name, tweaks, orders, keeper: tokio::spawn(keeper.keep(receiver)), pid }
    }

    pub fn tweaks(&self) -> &Tweaks {
        self.tweaks.as_deref().expect("its faults are only done where there is a compiler")
    }

    pub fn held(&self) -> Held {
        let process = Path::new("/proc").join(self.pid.load(Ordering::SeqCst).to_string());
        let files = std::fs::read_dir(process.join("fd")).unwrap().count();
        let status = std::fs::read_to_string(process.join("status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Held { role: self.name.clone(), files, resident_mb: resident.unwrap().parse::<u64>().unwrap() / 1024 }
    }

    pub async fn order(&self, order: Order) {
        self.orders.send(order).await.unwrap();
    }

    /// Ends it in good order.
    pub async fn end(self) {
        self.order(Order::End).await;
        self.keeper.await.unwrap();
    }
}

struct Keeper {
    recipe: Recipe,
    files: Arc<Files>,
    starts: u32,
    child: Option<Child>,
    pid: Arc<AtomicU32>,
    /// What it starts ends with this process.
    group: Group,
}

impl Keeper {
    fn log(&self) -> PathBuf {
        self.recipe.logs.join(format!("{}.{}.log", self.recipe.name, self.starts))
    }

    fn spawn(&mut self) {
        self.starts += 1;
        let log = std::fs::File::create(self.log()).unwrap();
        let recipe = &self.recipe;
        let words = recipe.before.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_taskyard")]);
        let words: Vec<&str> = words.chain(recipe.arguments.iter().map(String::as_str)).collect();
        let tweaks = recipe.tweaks.iter().flat_map(|tweaks| tweaks.environment());
        let child = Command::new(words[0])
            .args(&words[1..])
            .envs(recipe.environment.iter().cloned())
            .envs(tweaks)
            .env("NO_COLOR", "1")
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(self.group.id())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.pid.store(child.id().unwrap_or_default(), Ordering::SeqCst);
        self.child = Some(child);
    }

    /// Whether it came to say that it works. One that ends because its servers are away is started again meanwhile.
    async fn ready(&mut self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < READY_PATIENCE {
            if says(&self.log(), self.recipe.ready) {
                return true;
            }
            if let Some(how) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                self.note_end(how.code());
                tokio::time::sleep(AGAIN_AFTER).await;
                self.spawn();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    async fn keep(mut self, mut orders: mpsc::Receiver<Order>) {
        while let Some(child) = self.child.as_mut() {
            tokio::select! {
                how = child.wait() => {
                    let code = how.unwrap().code();
                    self.note_end(code);
                    tokio::time::sleep(AGAIN_AFTER).await;
                    self.spawn();
                }
                order = orders.recv() => match order {
                    Some(Order::Kill { away, done }) => {
                        self.signal(Signal::SIGKILL);
                        self.gone(Duration::from_secs(10), false).await;
                        self.again(away, done).await;
                    }
                    Some(Order::Term { away, done }) => {
                        self.signal(Signal::SIGTERM);
                        self.gone(TERM_PATIENCE, true).await;
                        self.again(away, done).await;
                    }
                    Some(Order::Signal(signal)) => self.signal(signal),
                    Some(Order::End) | None => {
                        self.signal(Signal::SIGTERM);
                        self.gone(TERM_PATIENCE, true).await;
                        self.child = None;
                    }
                },
            }
        }
    }

    async fn again(&mut self, away: Duration, done: oneshot::Sender<()>) {
        tokio::time::sleep(away).await;
        self.spawn();
        // A process that never works shows in its tasks, which do not end.
        let _works = self.ready().await;
        let _left = done.send(());
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.as_ref().and_then(Child::id) {
            // It may have ended by itself a moment ago.
            let _gone = kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal);
        }
    }

    /// Waits for its end, which is to be in good order if it was asked for.
    async fn gone(&mut self, limit: Duration, was_asked: bool) {
        let Some(child) = self.child.as_mut() else { return };
        let Ok(how) = tokio::time::timeout(limit, child.wait()).await else {
            self.note(format!("still there {} s after SIGTERM", limit.as_secs()), true);
            self.signal(Signal::SIGKILL);
            let _reaped = self.child.as_mut().unwrap().wait().await;
            return;
        };
        let code = how.unwrap().code();
        if was_asked && code != Some(0) {
            // One that had not got hold of its servers yet says so when it is told to stop, and one that had only begun to start
            // knows of no signals.
            let is_new = code.is_none() && std::fs::read(self.log()).unwrap_or_default().is_empty();
            self.note(format!("exit code {code:?} after SIGTERM"), !is_new && code != Some(NOT_REACHABLE));
        }
    }

    fn note_end(&self, code: Option<i32>) {
        self.note(format!("exit code {code:?} by itself"), code != Some(NOT_REACHABLE));
    }

    fn note(&self, how: String, is_wrong: bool) {
        let role = format!("{} ({})", self.recipe.name, self.log().display());
        self.files.write(ENDED, &[Ended { at: now_ms(), role, how, is_wrong }]);
    }
}

fn says(log: &Path, parts: &[&str]) -> bool {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    parts.iter().any(|part| text.contains(part))
}

/// Lines of these logs that say of a panic.
pub fn panics(logs: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(logs).unwrap() {
        let path = entry.unwrap().path();
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        // As telemetry has it, and as Rust has it before there is any.
        let is_panic = |line: &&str| line.contains("panic.place=") || line.contains("panicked at");
        let lines = text.lines().filter(is_panic);
        found.extend(lines.map(|line| format!("{}: {line}", path.display())));
    }
    found
}

#[cfg(test)]
mod tests {
    use taskyard_shared::process::settings::Settings;

    use super::*;

    /// Logs are set up once for a process, so this test runs itself again in one of its own.
    #[test]
    fn a_panic_is_found_in_a_log_however_early_it_was() {
        const INNER: &str = "TASKYARD_TEST_INNER_PANIC";
        if let Some(is_logged) = std::env::var_os(INNER) {
            if is_logged == "logged" {
                taskyard_shared::process::telemetry::init(&Settings::default().log).unwrap();
            }
            let _panicked = std::thread::spawn(|| panic!("as told")).join();
            return;
        }
        for when in ["early", "logged"] {
            let folder = tempfile::tempdir().unwrap();
            let log = std::fs::File::create(folder.path().join("role.1.log")).unwrap();
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            again.args(["--exact", "roles::tests::a_panic_is_found_in_a_log_however_early_it_was", "--nocapture"]);
            let again = again.env(INNER, when).env("NO_COLOR", "1").stdout(Stdio::null()).stderr(log).status();
            assert!(again.unwrap().success(), "{when}");
            let found = panics(folder.path());
            assert_eq!(found.len(), 1, "{when}: {found:?}");
        }
    }
}
