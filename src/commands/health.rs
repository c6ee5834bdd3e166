//! `taskyard health`: one request, for the health check of a container that has no other way to ask.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use taskyard_shared::process::exit::Exit;

#[derive(Args)]
pub struct HealthArgs {
    /// What to ask.
    #[arg(default_value = "http://127.0.0.1:9090/readyz")]
    url: String,
}

/// 0 when it answers that it is ready, 1 when it answers that it is not, 3 when it does not answer.
pub async fn run(args: HealthArgs) -> ExitCode {
    let client = match reqwest::Client::builder().timeout(Duration::from_secs(3)).no_proxy().build() {
        Ok(client) => client,
        Err(failure) => {
            eprintln!("taskyard: {failure}");
            return Exit::Failed.into();
        }
    };
    match client.get(&args.url).send().await {
        Ok(answer) if answer.status().is_success() => ExitCode::SUCCESS,
        Ok(answer) => {
            eprintln!("taskyard: {} answers {}", args.url, answer.status());
            Exit::Failed.into()
        }
        Err(failure) => {
            eprintln!("taskyard: {} does not answer: {failure}", args.url);
            Exit::NotReachable.into()
        }
    }
}
