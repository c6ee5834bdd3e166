//! What a command's exit code says.

use std::process::ExitCode;

/// The exit codes of every `taskyard` command.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Exit {
    Ok = 0,
    /// The task failed, or the command's own work did.
    Failed = 1,
    /// Arguments or settings that cannot be used: a wrong value, a file that is missing, an address that is taken.
    Usage = 2,
    /// The broker, the store or the API cannot be reached.
    NotReachable = 3,
    NotFound = 4,
    TimedOut = 5,
}

impl Exit {
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}
