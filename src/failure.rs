//! Why a command ended without doing what was asked, and the exit code that says so.

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
            Self::Broker(_) | Self::Store(_) => Exit::NotReachable,
            Self::NotFound(_) => Exit::NotFound,
            Self::System(_) | Self::Metrics(_) | Self::Failed(_) | Self::Internal(_) => Exit::Failed,
        }
    }

    /// Says so on stderr.
    pub fn report(self) -> ExitCode {
        eprintln!("taskyard: {self}");
        self.exit().into()
    }
}
