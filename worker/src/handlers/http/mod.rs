//! The handler `http`: a model behind a server.
//!
//! `protocol = "json"`: the task's input is posted as it is, and the body of the response is the output. A model with
//! `max_batch` over 1 gets a JSON array of inputs, always, and answers with an array of as many outputs in the same
//! order. When such a batch is refused (4xx) or its answer is too large, each of its tasks is sent again in an array of
//! its own, so that one bad input does not fail the tasks beside it.
//!
//! `protocol = "open-inference"`: see [`open_inference`].
//!
//! `protocol = "openai"`: see [`openai`].
//!
//! A server that answers 429 or 503 with `Retry-After` is asked again within the attempt, after that time; one that cannot be reached,
//! or serves nothing, call after call, is left alone for a while: the calls wait for it, within their time limit.
//!
//! Every request carries `Idempotency-Key` (the task's id) and `X-Taskyard-Attempt`; for an array these are lists in
//! the order of the inputs. Redirects are not followed and proxies in the environment are not used: requests go where
//! the settings say. The settings may name an address of the inside, or a name that leads there; one that leads to an address of
//! the link, where clouds give credentials to whoever asks, is not followed. When the worker drops a call, its connection is closed.

mod exchange;
mod gate;
mod open_inference;
mod openai;

use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Url};
use serde_json::value::RawValue;
use taskyard_shared::TaskError;
use taskyard_shared::deployment::base;
use taskyard_shared::process::egress::Reach;
use taskyard_shared::process::http_client;
use taskyard_shared::process::settings::{HttpProtocol, HttpSettings};

use self::exchange::{Exchange, Failure};
use self::gate::Gate;
use crate::handler::{Answer, Handler, Job, codes, error};
use crate::handlers::LoadError;
use crate::handlers::answer::{bad_input, clean, output};

/// Largest `max_batch` of protocol `json`: the lists of ids and attempts in the headers must stay under the 8 KiB that
/// servers take.
const MOST_IN_ARRAY: u32 = 128;

/// What the protocol itself sets.
const RESERVED: [&str; 7] =
    ["connection", "content-length", "host", "idempotency-key", "transfer-encoding", "upgrade", "x-taskyard-attempt"];

/// A model at one address.
pub struct HttpHandler {
    exchange: Exchange,
    protocol: Protocol,
}

enum Protocol {
    Json,
    JsonArray,
    OpenInference,
    OpenAi {
        /// The model's name at the server.
        model: String,
        prices: openai::Prices,
    },
}

impl HttpHandler {
    /// Makes the client; the server need not be there yet.
    ///
    /// # Errors
    /// When the address or a header cannot be used. Values of headers are never told: they hold secrets.
    pub fn new(name: &str, settings: &HttpSettings, slots: u32, max_batch: u32) -> Result<Self, LoadError> {
        let invalid = |reason: String| LoadError::settings(name, reason);
        let mut url = Url::parse(&settings.url).map_err(|error| invalid(format!("http.url is not a URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(invalid("http.url must begin with http:// or https:// and name a host".to_owned()));
        }
        url.set_fragment(None);
        if settings.connect_timeout_ms == 0 || settings.max_response_bytes == 0 {
            let key = if settings.connect_timeout_ms == 0 { "connect_timeout_ms" } else { "max_response_bytes" };
            return Err(invalid(format!("http.{key} must be at least 1")));
        }
        let protocol = match settings.protocol {
            HttpProtocol::Json if max_batch == 1 => Protocol::Json,
            HttpProtocol::Json if max_batch <= MOST_IN_ARRAY => Protocol::JsonArray,
            HttpProtocol::Json => {
                return Err(invalid(format!("max_batch must be at most {MOST_IN_ARRAY} for protocol json")));
            }
            HttpProtocol::OpenInference => {
                url = open_inference::endpoint(url, base(name));
                Protocol::OpenInference
            }
            HttpProtocol::OpenAi => {
                url = openai::endpoint(url);
                let model = settings.model.clone().unwrap_or_else(|| base(name).to_owned());
                Protocol::OpenAi { model, prices: openai::Prices::new(settings) }
            }
        };
        if settings.model.is_some() && !matches!(protocol, Protocol::OpenAi { .. }) {
            return Err(invalid("http.model is of use to protocol openai alone".to_owned()));
        }
        if openai::Prices::new(settings).are_given() && !matches!(protocol, Protocol::OpenAi { .. }) {
            return Err(invalid("http: prices of tokens are of use to protocol openai alone".to_owned()));
        }
        let mut headers = HeaderMap::new();
        for (key, value) in &settings.headers {
            let header = HeaderName::try_from(key)
                .ok()
                .filter(|header| !RESERVED.contains(&header.as_str()))
                .ok_or_else(|| invalid(format!("http.headers: {key:?} cannot be set")))?;
            let mut value = HeaderValue::try_from(value)
                .map_err(|_| invalid(format!("http.headers: the value of {key} cannot be sent")))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        headers.entry("content-type").or_insert(HeaderValue::from_static("application/json"));
        headers.entry("accept").or_insert(HeaderValue::from_static("application/json"));
        let client = client(&url, headers, settings, slots)
            .map_err(|error| invalid(format!("its HTTP client cannot be made: {}", exchange::causes(error))))?;
        let most_bytes = settings.max_response_bytes;
        Ok(Self { exchange: Exchange { client, url, most_bytes, gate: Gate::default() }, protocol })
    }
}

fn client(url: &Url, headers: HeaderMap, settings: &HttpSettings, slots: u32) -> reqwest::Result<Client> {
    let mut builder = http_client::builder(Reach::Named)
        .default_headers(headers)
        .connect_timeout(Duration::from_millis(settings.connect_timeout_ms))
        .pool_max_idle_per_host(usize::try_from(slots).unwrap_or(usize::MAX));
    if url.scheme() == "http" {
        // Without redirects it never speaks TLS, so it needs none of the system's certificates, which a small
        // container may not have.
        builder = builder.tls_certs_only([]);
    }
    builder.build()
}

#[async_trait]
impl Handler for HttpHandler {
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        match &self.protocol {
            Protocol::Json => join_all(batch.iter().map(|job| self.alone(job))).await,
            Protocol::JsonArray => self.array(&batch).await,
            Protocol::OpenInference => join_all(batch.iter().map(|job| self.infer(job))).await,
            Protocol::OpenAi { model, prices } => {
                join_all(batch.iter().map(|job| async move {
                    let (output, usage) = self.complete(model, *prices, job).await?;
                    if let Some(usage) = usage {
                        job.meanwhile.used(usage);
                    }
                    Ok(output)
                }))
                .await
            }
        }
    }
}

impl HttpHandler {
    async fn alone(&self, job: &Job) -> Answer {
        let body = job.input.get().to_owned();
        let answer = self.exchange.post(body, std::slice::from_ref(job)).await.map_err(|failure| failure.error)?;
        output(text(&answer)?)
    }

    async fn infer(&self, job: &Job) -> Answer {
        let body = open_inference::request(job)?;
        let answer = self.exchange.post(body, std::slice::from_ref(job)).await.map_err(|failure| failure.error)?;
        open_inference::response(text(&answer)?)
    }

    async fn complete(&self, model: &str, prices: openai::Prices, job: &Job) -> Result<openai::Completed, TaskError> {
        let openai::Request { url, body, streams } = openai::request(&self.exchange.url, model, job)?;
        let jobs = std::slice::from_ref(job);
        if !streams {
            let answer = self.exchange.post_to(&url, body, jobs).await.map_err(|failure| failure.error)?;
            return openai::response(text(&answer)?, prices);
        }
        let mut streamed = openai::Streamed::default();
        let take = |bytes: &[u8]| -> Result<(), TaskError> {
            for chunk in streamed.take(bytes)? {
                if let Ok(part) = serde_json::value::to_raw_value(&chunk) {
                    job.meanwhile.partial(part);
                }
            }
            Ok(())
        };
        self.exchange.stream(&url, body, jobs, take).await.map_err(|failure| failure.error)?;
        streamed.finish(prices)
    }

    async fn array(&self, batch: &[Job]) -> Vec<Answer> {
        if batch.is_empty() {
            return Vec::new();
        }
        match self.exchange_array(batch).await {
            Ok(answers) => answers,
            Err(Failure { error, concerns_input: true }) if batch.len() > 1 => {
                tracing::debug!(task.count = batch.len(), error.code = error.code, "a batch is sent again one by one");
                let alone = batch.iter().map(|job| async move {
                    let answers = self.exchange_array(std::slice::from_ref(job)).await;
                    let mut answers = answers.map_err(|failure| failure.error)?;
                    answers.pop().unwrap_or_else(|| Err(not_as_many(1, 0)))
                });
                join_all(alone).await
            }
            Err(Failure { error, .. }) => vec![Err(error); batch.len()],
        }
    }

    /// One answer for each task, or the failure of all of them.
    async fn exchange_array(&self, batch: &[Job]) -> Result<Vec<Answer>, Failure> {
        let inputs: Vec<&str> = batch.iter().map(|job| job.input.get()).collect();
        let bytes = self.exchange.post(format!("[{}]", inputs.join(",")), batch).await?;
        let outputs: Vec<&RawValue> = text(&bytes).and_then(|text| {
            serde_json::from_str(text).map_err(|error| {
                let reason = clean(error.to_string().as_bytes(), 200);
                bad_answer(format!("the model server did not answer with a JSON array: {reason}"))
            })
        })?;
        if outputs.len() != batch.len() {
            return Err(not_as_many(batch.len(), outputs.len()).into());
        }
        Ok(outputs.into_iter().map(|one| output(one.get())).collect())
    }
}

fn not_as_many(asked: usize, answered: usize) -> TaskError {
    bad_answer(format!("the model server answered {asked} inputs with {answered} outputs"))
}

/// Worth another attempt: it may have been the page of something in between.
fn bad_answer(message: impl Into<String>) -> TaskError {
    error(codes::BAD_ANSWER, message, true)
}

fn text(bytes: &[u8]) -> Result<&str, TaskError> {
    std::str::from_utf8(bytes).map_err(|_| bad_answer("the model server's answer is not UTF-8"))
}
