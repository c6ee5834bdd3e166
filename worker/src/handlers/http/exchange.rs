//! One request and its response: bounded in bytes, and every way to fail turned into a task's error.

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use taskyard_shared::TaskError;
use taskyard_shared::process::http_client;
use tokio::time::timeout;

use super::gate::{self, Gate};
use crate::handler::{Job, codes, error};
use crate::handlers::answer::clean;

/// How much of an error's body is told, and how long it is waited for.
const TOLD_BYTES: usize = 300;
const ERROR_BODY_TIME: Duration = Duration::from_secs(1);

pub(super) struct Exchange {
    pub client: Client,
    pub url: Url,
    /// Largest body of a response.
    pub most_bytes: usize,
    pub gate: Gate,
}

pub(super) struct Failure {
    pub error: TaskError,
    /// Sent by themselves, some of the tasks may do better.
    pub concerns_input: bool,
}

impl From<TaskError> for Failure {
    fn from(error: TaskError) -> Self {
        Self { error, concerns_input: false }
    }
}

impl Exchange {
    /// Posts the body, which stands for these tasks, and gives the body of a response that is a success.
    pub async fn post(&self, body: String, jobs: &[Job]) -> Result<Vec<u8>, Failure> {
        self.post_to(&self.url, body, jobs).await
    }

    /// The same, to another address of the server.
    pub async fn post_to(&self, url: &Url, body: String, jobs: &[Job]) -> Result<Vec<u8>, Failure> {
        let response = self.send(url, body, jobs).await?;
        match read(response, self.most_bytes).await? {
            (body, true) => Ok(body),
            (_, false) => Err(self.too_large()),
        }
    }

    /// Hands on the body of a response as it comes.
    pub async fn stream(
        &self,
        url: &Url,
        body: String,
        jobs: &[Job],
        mut take: impl FnMut(&[u8]) -> Result<(), TaskError>,
    ) -> Result<(), Failure> {
        let mut response = self.send(url, body, jobs).await?;
        let mut bytes = 0;
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            bytes += chunk.len();
            if bytes > self.most_bytes {
                return Err(self.too_large());
            }
            take(&chunk)?;
        }
        Ok(())
    }

    fn too_large(&self) -> Failure {
        let message = format!("the model server's answer is over {} bytes", self.most_bytes);
        Failure { error: error(codes::OUTPUT_TOO_LARGE, message, false), concerns_input: true }
    }

    /// A response that is a success. A server that names a time is asked again then, as long as anybody waits.
    async fn send(&self, url: &Url, body: String, jobs: &[Job]) -> Result<Response, Failure> {
        let list = |one: fn(&Job) -> String| jobs.iter().map(one).collect::<Vec<_>>().join(",");
        let (ids, attempts) = (list(|job| job.id.0.to_string()), list(|job| job.attempt.to_string()));
        let body = Bytes::from(body);
        loop {
            self.gate.pass().await;
            let request = self.client.post(url.clone()).header("idempotency-key", &ids);
            let sent = request.header("x-taskyard-attempt", &attempts).body(body.clone()).send().await;
            let response = match sent {
                Ok(response) => response,
                Err(failure) => {
                    self.gate.failed(None, fastrand::f64());
                    return Err(broken(failure));
                }
            };
            let is_busy = !response.status().is_success() && meaning(response.status()).0 == codes::UNAVAILABLE;
            let again_after = retry_after_s(response.headers()).map(Duration::from_secs).filter(|_| is_busy);
            match is_busy {
                true => self.gate.failed(again_after, fastrand::f64()),
                // Whatever it answers, it does.
                false => self.gate.served(),
            }
            if again_after.is_some_and(|asked| asked <= gate::LONGEST) {
                tracing::debug!(status = response.status().as_u16(), "the model server asks for time");
                continue;
            }
            return if response.status().is_success() { Ok(response) } else { Err(refused(response).await) };
        }
    }
}

/// The body, and whether this is all of it: what goes beyond `most_bytes` is never read.
async fn read(mut response: Response, most_bytes: usize) -> Result<(Vec<u8>, bool), Failure> {
    if response.content_length().is_some_and(|length| usize::try_from(length).map_or(true, |bytes| bytes > most_bytes))
    {
        return Ok((Vec::new(), false));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len() + chunk.len() > most_bytes {
            return Ok((body, false));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((body, true))
}

/// A request without a response, or a response that broke off.
fn broken(failure: reqwest::Error) -> Failure {
    let is_connect = failure.is_connect();
    let causes = causes(failure);
    if is_connect {
        error(codes::UNAVAILABLE, format!("the model server cannot be reached: {causes}"), true).into()
    } else {
        error(codes::CRASHED, format!("the model server broke off: {causes}"), true).into()
    }
}

/// An error and what caused it, as one line of text.
pub(super) fn causes(failure: reqwest::Error) -> String {
    clean(http_client::causes(failure).as_bytes(), TOLD_BYTES)
}

async fn refused(response: Response) -> Failure {
    let status = response.status();
    let (code, retryable, concerns_input) = meaning(status);
    let mut message = format!("the model server answered {status}");
    if status.is_redirection() {
        message.push_str(", and redirects are not followed");
    }
    let again = retry_after(response.headers());
    // The first of the body is for people; without it the status still says what to do.
    let mut told = Vec::new();
    let _ = timeout(ERROR_BODY_TIME, beginning(response, &mut told)).await;
    let told = clean(&told, TOLD_BYTES);
    if !told.trim().is_empty() {
        let _ = write!(message, ": {}", told.trim());
    }
    if let Some(again) = again {
        let _ = write!(message, " (try again {again})");
    }
    Failure { error: error(code, message, retryable), concerns_input }
}

async fn beginning(mut response: Response, told: &mut Vec<u8>) {
    while let (true, Ok(Some(chunk))) = (told.len() <= TOLD_BYTES, response.chunk().await) {
        told.extend_from_slice(&chunk[..chunk.len().min(TOLD_BYTES + 1)]);
    }
}

/// The error's code, whether another attempt could succeed, and whether it is about an input.
fn meaning(status: StatusCode) -> (&'static str, bool, bool) {
    match status.as_u16() {
        // Overloaded, or not there behind its proxy.
        408 | 425 | 429 | 502 | 503 | 504 => (codes::UNAVAILABLE, true, false),
        // The address or the credentials are wrong, and the task cannot help it.
        401 | 403 | 404 | 405 | 407 => (codes::HANDLER_FAILED, false, false),
        400..=499 => (codes::BAD_INPUT, false, true),
        // What it cannot do it will not do the next time.
        501 | 505 => (codes::HANDLER_FAILED, false, false),
        500..=599 => (codes::HANDLER_FAILED, true, false),
        _ => (codes::BAD_ANSWER, false, false),
    }
}

/// `Retry-After` where it is a number of seconds.
fn retry_after_s(headers: &HeaderMap) -> Option<u64> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()
}

/// `Retry-After`, which is a number of seconds or a date.
fn retry_after(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse::<u64>() {
        Ok(seconds) => Some(format!("after {seconds} s")),
        Err(_) if (1..=40).contains(&value.len()) => Some(format!("after {value}")),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_status_means() {
        let cases = [
            (307, (codes::BAD_ANSWER, false, false)),
            (400, (codes::BAD_INPUT, false, true)),
            (401, (codes::HANDLER_FAILED, false, false)),
            (404, (codes::HANDLER_FAILED, false, false)),
            (413, (codes::BAD_INPUT, false, true)),
            (422, (codes::BAD_INPUT, false, true)),
            (429, (codes::UNAVAILABLE, true, false)),
            (500, (codes::HANDLER_FAILED, true, false)),
            (501, (codes::HANDLER_FAILED, false, false)),
            (503, (codes::UNAVAILABLE, true, false)),
            (599, (codes::HANDLER_FAILED, true, false)),
        ];
        for (status, expected) in cases {
            assert_eq!(meaning(StatusCode::from_u16(status).unwrap()), expected, "{status}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let told = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(told("7").unwrap(), "after 7 s");
        assert_eq!(told("Wed, 21 Oct 2026 07:28:00 GMT").unwrap(), "after Wed, 21 Oct 2026 07:28:00 GMT");
        assert_eq!(told(&"x".repeat(500)), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
