//! `taskyard`: one binary, one role or client command per subcommand.

mod client;
mod commands;
mod config;
mod demo;
mod dev;
mod failure;
mod output;
mod roles;
mod schema;
mod threads;
mod yard;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mimalloc::MiMalloc;

/// Messages are allocated on one thread and freed on another, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 not reachable, 4 not found, 5 not finished in time.";

#[derive(Parser)]
#[command(name = "taskyard", version, about = "A work queue for AI models", after_help = EXIT_CODES)]
struct Cli {
    /// Settings file (TOML), over the built-in defaults and under the environment.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The main job, end to end, in one process on real models: prints what happened.
    Demo(demo::DemoArgs),
    /// Stays up: gateway, scheduler and workers in one process, nothing to install.
    Dev(dev::DevArgs),
    /// The HTTP API.
    Gateway,
    /// Decides what runs next; a second one stands by.
    Scheduler,
    /// Serves the models of the settings.
    Worker(roles::WorkerArgs),
    /// Tasks: submit, get, wait, list, cancel, reprioritize, explain.
    Task(commands::task::TaskArgs),
    /// Tasks that depend on each other: submit, get, cancel.
    Workflow(commands::workflow::WorkflowArgs),
    /// Tasks and workflows that come again and again: add, list, show, pause, resume, remove.
    Schedule(commands::schedule::ScheduleArgs),
    /// Dead letters: list, show, replay, discard.
    Dead(commands::dead::DeadArgs),
    /// Files that tasks name: put, get.
    Artifact(commands::artifact::ArtifactArgs),
    /// The models that workers serve.
    Models(commands::models::ModelsArgs),
    /// The workers that are alive.
    Workers(commands::workers::WorkersArgs),
    /// The queues and what waits in them; pause and resume models.
    Queues(commands::queues::QueuesArgs),
    /// Load generator: throughput, latency and cost of a yard.
    Bench(Box<commands::bench::BenchArgs>),
    /// One hop of the relay that `bench` measures against.
    #[command(hide = true)]
    BenchHop(commands::bench::HopArgs),
    /// The slots behind the priority queue that `bench` measures against.
    #[command(hide = true)]
    BenchSlots(commands::bench::SlotsArgs),
    /// The scheduler on a virtual clock: one row per policy.
    Simulate(Box<commands::simulate::SimulateArgs>),
    /// Checks broker, store, queue arguments, versions and time-outs, and says what to do.
    Doctor {
        #[command(flatten)]
        args: commands::doctor::DoctorArgs,
        /// How data is printed.
        #[arg(short, long, value_enum, default_value_t)]
        output: output::Format,
    },
    /// Asks a running process whether it is well; for health checks.
    #[command(hide = true)]
    Health(commands::health::HealthArgs),
    /// Keys to the HTTP API: makes them.
    Keys(commands::keys::KeysArgs),
    /// The settings in force.
    Config {
        #[command(subcommand)]
        action: config::Command,
        /// How data is printed.
        #[arg(short, long, global = true, value_enum, default_value_t)]
        output: output::Format,
    },
    /// The wire format as JSON Schema.
    Schema {
        #[command(subcommand)]
        action: schema::SchemaAction,
    },
}

fn main() -> ExitCode {
    // One TLS provider for everything that may speak TLS; a second installation would be refused, and harmless.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let Cli { config, command } = Cli::parse();
    let is_one_role =
        matches!(command, Command::Scheduler | Command::Worker(_) | Command::BenchHop(_) | Command::BenchSlots(_));
    if is_one_role {
        threads::do_not_interrupt();
    }
    let runtime = match threads::runtime(is_one_role) {
        Ok(runtime) => runtime,
        Err(error) => return failure::Failure::Internal(format!("the runtime cannot start: {error}")).report(),
    };
    let answer = runtime.block_on(run(config, command));
    // A model that still computes must not hold up the exit.
    runtime.shutdown_background();
    answer
}

async fn run(config: Option<PathBuf>, command: Command) -> ExitCode {
    let config = config.as_deref();
    let answer = match command {
        Command::Demo(args) => demo::run(args).await,
        Command::Dev(args) => dev::run(args, config).await,
        Command::Gateway => roles::gateway(config).await,
        Command::Scheduler => roles::scheduler(config).await,
        Command::Worker(args) => roles::worker(args, config).await,
        Command::Bench(args) => commands::bench::run(*args, config).await,
        Command::BenchHop(args) => commands::bench::hop(args, config).await,
        Command::BenchSlots(args) => commands::bench::slots(args, config).await,
        Command::Simulate(args) => commands::simulate::run(*args, config).await,
        Command::Schema { action } => schema::run(action),
        Command::Task(args) => return commands::task::run(args).await.into(),
        Command::Workflow(args) => return commands::workflow::run(args).await.into(),
        Command::Schedule(args) => return commands::schedule::run(args).await.into(),
        Command::Dead(args) => return commands::dead::run(args).await.into(),
        Command::Artifact(args) => return commands::artifact::run(args).await.into(),
        Command::Models(args) => return commands::models::run(args).await.into(),
        Command::Workers(args) => return commands::workers::run(args).await.into(),
        Command::Queues(args) => return commands::queues::run(args).await.into(),
        Command::Doctor { args, output } => return commands::doctor::run(args, config, output).await,
        Command::Keys(args) => return commands::keys::run(args).into(),
        Command::Health(args) => return commands::health::run(args).await,
        Command::Config { action, output } => return self::config::run(action, output, config).into(),
    };
    match answer {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
