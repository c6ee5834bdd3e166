//! The threads that roles run on: how many, and how the system treats them.

use tokio::runtime::{Builder, Runtime};

/// One role by itself waits more than it computes, and each thread beyond what it needs is one more to be woken: half of the cores,
/// but for `TOKIO_WORKER_THREADS`. Several in one process have all cores. Models compute on threads of their own.
pub fn runtime(is_one_role: bool) -> std::io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if is_one_role && std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        builder.worker_threads(cores.div_ceil(2));
    }
    builder.enable_all().build()
}

/// When no core is free, a message that comes does not interrupt who sends it (`SCHED_BATCH`). Broker and roles that share cores
/// would otherwise change places at every message; so, as many are read at once as were sent. Where the system has no such policy,
/// or does not allow it, everything works as before, as it does for who started the process with a niceness of their own.
///
/// For this thread and those it starts, so it comes first.
pub fn do_not_interrupt() {
    #[cfg(target_os = "linux")]
    {
        use thread_priority::{
            NormalThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
            set_thread_priority_and_policy, thread_native_id,
        };
        /// What stands for a niceness of 0, which the call sets too.
        const LEVEL: u8 = 49;
        let Ok(level) = ThreadPriorityValue::try_from(LEVEL) else { return };
        if niceness() == Some(0) {
            let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Batch);
            let level = ThreadPriority::Crossplatform(level);
            let _not_allowed = set_thread_priority_and_policy(thread_native_id(), level, policy);
        }
    }
}

#[cfg(target_os = "linux")]
fn niceness() -> Option<i32> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // After the name, which may hold anything and ends with the last bracket, it is the 17th field.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(16)?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::{do_not_interrupt, niceness};

    #[test]
    fn threads_that_start_later_are_not_interrupted_for_and_as_nice_as_before() {
        let before = niceness();
        let policy = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
            let after_name = stat.rsplit_once(')').map_or("", |(_, after)| after).to_owned();
            after_name.split_ascii_whitespace().nth(38).and_then(|policy| policy.parse::<u32>().ok())
        };
        let started = std::thread::spawn(move || {
            do_not_interrupt();
            std::thread::spawn(policy).join()
        });
        // SCHED_BATCH is 3; who runs this with a niceness of their own keeps what they have.
        let expected = if before == Some(0) { 3 } else { 0 };
        assert_eq!(started.join().expect("it does not panic").expect("nor does this"), Some(expected));
        assert_eq!(niceness(), before);
    }
}
