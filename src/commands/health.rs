//! `taskyard health`: one request, for the health check of a container that has no other way to ask.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use reqwest::Url;
use taskyard_shared::process::exit::Exit;

use super::finish;
use crate::client::Failure;

#[derive(Args)]
pub struct HealthArgs {
    /// What to ask.
    #[arg(default_value = "http://127.0.0.1:9090/readyz")]
    url: String,
}

/// 0 when it answers that it is ready, 1 when it answers that it is not, 3 when it does not answer.
pub async fn run(args: HealthArgs) -> ExitCode {
    finish(ask(&args.url).await).into()
}

async fn ask(text: &str) -> Result<Exit, Failure> {
    let is_http = |url: &Url| matches!(url.scheme(), "http" | "https");
    let Some(url) = Url::parse(text).ok().filter(is_http) else {
        let problem = format!("URL must be one such as http://127.0.0.1:9090/readyz, not {text}");
        return Err(Failure::new(Exit::Usage, problem));
    };
    let client = reqwest::Client::builder().timeout(Duration::from_secs(3)).no_proxy().build();
    let client = client.map_err(|error| Failure::new(Exit::Failed, format!("no HTTP client can be made: {error}")))?;
    match client.get(url).send().await {
        Ok(answer) if answer.status().is_success() => Ok(Exit::Ok),
        Ok(answer) => Err(Failure::new(Exit::Failed, format!("{text} answers {}", answer.status()))),
        Err(error) => Err(Failure::new(Exit::NotReachable, format!("{text} does not answer: {error}"))),
    }
}
