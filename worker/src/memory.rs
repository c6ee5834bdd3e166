//! The process's memory: how much there is, and giving back what is free.

use std::hint::black_box;
use std::time::Duration;

/// The program's allocator keeps what is free for a second, in case it is wanted again.
const KEPT: Duration = Duration::from_millis(1_200);

/// Resident memory of this process; 0 where the system does not say.
pub(crate) fn resident_mb() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    pages * 4096 / (1 << 20)
}

/// Has the system get back what an unloaded model leaves free, in a while. The allocator does so when it has other things to
/// do, which in a worker without tasks may be never; and whenever a thread ends.
pub(crate) async fn give_back_later() {
    tokio::time::sleep(KEPT).await;
    let ends = || drop(black_box(Vec::<u8>::with_capacity(black_box(64))));
    let _started = std::thread::Builder::new().name("give-back".to_owned()).spawn(ends);
}
