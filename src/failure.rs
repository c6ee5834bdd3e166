//! Why a command ended without doing what was asked, and the exit code that says so.

use std::io::Write;
use std::process::ExitCode;

use taskyard_shared::broker::BrokerError;
use taskyard_shared::process::config::ConfigError;
use taskyard_shared::process::exit::Exit;
use taskyard_shared::store::StoreError;

/// One sentence, for stderr.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Telemetry(#[from] taskyard_shared::process::telemetry::TelemetryError),
    #[error(transparent)]
    Listen(#[from] taskyard_shared::process::listen::ListenError),
    #[error(transparent)]
    Model(#[from] taskyard_worker::handlers::LoadError),
    /// The operating system refused what every process needs.
    #[error("the operating system refuses: {0}")]
    System(#[from] std::io::Error),
    #[error(transparent)]
    Metrics(#[from] taskyard_shared::process::metrics::MetricsError),
    /// Something that was asked for cannot be used: a file, an address, a model.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    NotFound(String),
    /// What was run did not come out right.
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    Internal(String),
}

impl Failure {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::Telemetry(_) | Self::Listen(_) | Self::Model(_) | Self::Usage(_) => Exit::Usage,
            Self::Broker(failure) => match failure {
                failure if failure.is_transient() => Exit::NotReachable,
                // It answered, and what the settings say does not suit it: credentials, a queue's type, a folder in use.
                BrokerError::Refused(_) | BrokerError::Mismatch { .. } => Exit::Usage,
                _ => Exit::Failed,
            },
            Self::Store(failure) => match failure {
                failure if failure.is_transient() => Exit::NotReachable,
                StoreError::Refused(_) => Exit::Usage,
                _ => Exit::Failed,
            },
            Self::NotFound(_) => Exit::NotFound,
            Self::System(_) | Self::Metrics(_) | Self::Failed(_) | Self::Internal(_) => Exit::Failed,
        }
    }

    /// Says so on stderr.
    pub fn report(self) -> ExitCode {
        // With standard error gone as well, the exit code is all that is left.
        let _gone = writeln!(std::io::stderr(), "taskyard: {self}");
        self.exit().into()
    }
}
