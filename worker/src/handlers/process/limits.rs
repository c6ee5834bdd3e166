//! What the kernel holds a child to: memory, files, processes, processor time.

use std::io;

use taskyard_shared::process::settings::ProcessLimits;

/// Sets the limits of a child that was just started, and with them those of all that it starts from then on. It has been sent
/// nothing yet. A dump of its memory, which would hold inputs, is never written.
#[cfg(target_os = "linux")]
pub(super) fn set(child: i32, limits: &ProcessLimits) -> io::Result<()> {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};

    const MIB: u64 = 1 << 20;
    let Some(child) = Pid::from_raw(child) else { return Err(io::Error::other("the process has no id")) };
    for (resource, most) in [
        (Resource::Core, Some(0)),
        (Resource::As, limits.memory_mb.map(|mb| mb.saturating_mul(MIB))),
        (Resource::Nofile, limits.open_files),
        (Resource::Nproc, limits.processes),
        (Resource::Fsize, limits.file_mb.map(|mb| mb.saturating_mul(MIB))),
        (Resource::Cpu, limits.cpu_s),
    ] {
        let Some(most) = most else { continue };
        match prlimit(Some(child), resource, Rlimit { current: Some(most), maximum: Some(most) }) {
            Ok(_) => {}
            // It has ended already, which is seen elsewhere.
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(io::Error::other(format!("its limits cannot be set ({resource:?}): {error}"))),
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn set(_: i32, limits: &ProcessLimits) -> io::Result<()> {
    match *limits == ProcessLimits::default() {
        true => Ok(()),
        false => Err(io::Error::other("process.limits are for Linux alone")),
    }
}
