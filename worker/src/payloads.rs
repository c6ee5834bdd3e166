//! Payloads that are kept elsewhere, around a handler's call: an input that a task only names is fetched before it, and an output
//! that is too large for a result is kept after it, and named.
//!
//! `{"$ref": "artifact:…"}` names an artifact, `{"$ref": "https://…"}` what an address answers to a GET: JSON, either way. Whoever
//! sends tasks has chosen the address, so it reaches public ones, and the networks that the settings allow. What is fetched may name
//! something else in turn; that is the handler's to see.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use taskyard_shared::TaskError;
use taskyard_shared::artifacts::{ArtifactId, Artifacts, Reference, SCHEME};
use taskyard_shared::process::egress::Reach;
use taskyard_shared::process::http_client;
use taskyard_shared::process::settings::PayloadSettings;
use taskyard_shared::task::limits;
use tracing::warn;

use crate::handler::{Answer, Handler, Job, codes, error};
use crate::handlers::answer::{bad_input, clean, depth, unavailable};
use crate::metrics::Metrics;

/// A larger input is not looked at: it is no name.
const NAME_BYTES: usize = 8 << 10;
/// Inputs of one call that are fetched at once.
const AT_ONCE: usize = 4;
/// Until a server must have taken a connection.
const CONNECT: Duration = Duration::from_secs(10);
const TOLD_BYTES: usize = 300;

pub(crate) struct Payloads {
    artifacts: Option<Artifacts>,
    reach: Reach,
    /// Made when it is first needed: it reads the system's certificates.
    client: OnceLock<Option<Client>>,
    most_bytes: usize,
    metrics: Metrics,
}

/// Where an input stands.
#[derive(Debug, PartialEq)]
enum Place {
    Artifact(ArtifactId),
    Http(Box<Url>),
}

impl Payloads {
    pub fn new(settings: &PayloadSettings, artifacts: Option<Artifacts>, metrics: Metrics) -> Self {
        let reach = Reach::public(&settings.allow);
        Self { artifacts, reach, client: OnceLock::new(), most_bytes: settings.max_bytes, metrics }
    }

    fn client(&self) -> Option<&Client> {
        let made = self.client.get_or_init(|| {
            let made = http_client::builder(self.reach.clone()).connect_timeout(CONNECT).build();
            made.inspect_err(
                |failure| warn!(%failure, "no HTTP client can be made: inputs at addresses cannot be fetched"),
            )
            .ok()
        });
        made.as_ref()
    }

    /// The handler's call, with inputs and outputs where they belong. Outputs of more than `most_inline` bytes are kept apart if
    /// there is a place for them.
    pub async fn around(&self, handler: &dyn Handler, jobs: Vec<Job>, most_inline: usize) -> Vec<Answer> {
        let is_named = jobs.iter().any(|job| named(&job.input).is_some());
        let mut answers = match is_named {
            // Boxed, as what is rare.
            true => Box::pin(self.fetch_and_execute(handler, jobs)).await,
            false => handler.execute(jobs).await,
        };
        let is_large = |answer: &Answer| answer.as_ref().is_ok_and(|output| output.get().len() > most_inline);
        if let Some(artifacts) = self.artifacts.as_ref().filter(|_| answers.iter().any(is_large)) {
            for answer in answers.iter_mut().filter(|answer| is_large(answer)) {
                if let Ok(output) = answer
                    && output.get().len() <= self.most_bytes
                {
                    let output = std::mem::replace(output, RawValue::NULL.to_owned());
                    *answer = Box::pin(self.keep(artifacts, output)).await;
                }
            }
        }
        answers
    }

    /// Runs what could be fetched, in pieces that are no larger together than one input may be, or of one. The others have their
    /// answers already.
    async fn fetch_and_execute(&self, handler: &dyn Handler, jobs: Vec<Job>) -> Vec<Answer> {
        let size = jobs.len();
        let mut fetched = stream::iter(jobs).map(|job| self.fetch(job)).buffered(AT_ONCE);
        let mut answers = Vec::with_capacity(size);
        let (mut piece, mut piece_bytes, mut places) = (Vec::new(), 0, VecDeque::new());
        loop {
            let next = fetched.next().await;
            let is_full = match &next {
                Some(Ok(job)) => !piece.is_empty() && piece_bytes + job.input.get().len() > self.most_bytes,
                Some(Err(_)) => false,
                None => true,
            };
            if is_full {
                let mut of_piece = match piece.is_empty() {
                    true => VecDeque::new(),
                    false => VecDeque::from(handler.execute(std::mem::take(&mut piece)).await),
                };
                piece_bytes = 0;
                // A handler that answers another number of tasks is found out by the number of all.
                answers.extend(places.drain(..).filter_map(|failed: Option<TaskError>| match failed {
                    Some(failed) => Some(Err(failed)),
                    None => of_piece.pop_front(),
                }));
                answers.extend(of_piece);
            }
            match next {
                Some(Ok(job)) => {
                    piece_bytes += job.input.get().len();
                    piece.push(job);
                    places.push_back(None);
                }
                Some(Err(failed)) => places.push_back(Some(failed)),
                None => return answers,
            }
        }
    }

    async fn fetch(&self, mut job: Job) -> Result<Job, TaskError> {
        let Some(name) = named(&job.input) else { return Ok(job) };
        let place = Place::read(&name).map_err(bad_input)?;
        let (content, source) = match place {
            Place::Artifact(id) => (self.artifact(id).await?, "artifact"),
            Place::Http(url) => (self.download(*url).await?, "http"),
        };
        job.input = input(content)?;
        self.metrics.payload("input", source);
        Ok(job)
    }

    async fn artifact(&self, id: ArtifactId) -> Result<Bytes, TaskError> {
        let nowhere = || error(codes::NO_ARTIFACTS, format!("the input is {id}, and artifacts.url is empty"), false);
        let artifacts = self.artifacts.as_ref().ok_or_else(nowhere)?;
        artifacts.get(id, self.most_bytes as u64).await.map_err(|failure| unavailable(&failure))
    }

    /// What a task names is told back to it without the address, which may hold a password or a signature.
    async fn download(&self, url: Url) -> Result<Bytes, TaskError> {
        let Some(client) = self.client() else {
            return Err(error(codes::UNAVAILABLE, "this worker cannot fetch inputs: it has no HTTP client", true));
        };
        if !self.reach.allows_url(&url) {
            return Err(bad_input("the input's address is not one that may be connected to"));
        }
        let mut response = client.get(url).header("accept", "application/json").send().await.map_err(unreached)?;
        if !response.status().is_success() {
            return Err(refused(response.status()));
        }
        let too_large = || bad_input(format!("the input is over {} bytes", self.most_bytes));
        if response.content_length().is_some_and(|length| length > self.most_bytes as u64) {
            return Err(too_large());
        }
        let mut content = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreached)? {
            if content.len() + chunk.len() > self.most_bytes {
                return Err(too_large());
            }
            content.extend_from_slice(&chunk);
        }
        Ok(content.into())
    }

    async fn keep(&self, artifacts: &Artifacts, output: Box<RawValue>) -> Answer {
        let id = artifacts.put(String::from(Box::<str>::from(output)).into()).await.map_err(|failure| {
            error(codes::UNAVAILABLE, format!("the output is large, and cannot be kept: {failure}"), true)
        })?;
        self.metrics.payload("output", "artifact");
        to_raw_value(&Reference { to: id }).map_err(|failure| error(codes::HANDLER_FAILED, failure.to_string(), false))
    }
}

/// What an input names, if it is a name: an object of one member, `$ref`.
fn named(input: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Named<'a> {
        #[serde(rename = "$ref", borrow)]
        to: Cow<'a, str>,
    }
    let text = input.get();
    let begins = text.strip_prefix('{')?.trim_ascii_start().starts_with(r#""$ref""#);
    (begins && text.len() <= NAME_BYTES).then(|| serde_json::from_str::<Named>(text).ok().map(|named| named.to))?
}

impl Place {
    fn read(name: &str) -> Result<Self, String> {
        if name.starts_with(SCHEME) {
            return name.parse().map(Self::Artifact).map_err(|problem| format!("$ref: {problem}"));
        }
        match Url::parse(name) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(Self::Http(Box::new(url))),
            _ => Err(format!("$ref must be {SCHEME} and 64 hexadecimal digits, or begin with https:// or http://")),
        }
    }
}

/// What was fetched, as an input: held to what is held against one that comes with its task, but for its size.
fn input(content: Bytes) -> Result<Box<RawValue>, TaskError> {
    let text = String::from_utf8(content.into()).map_err(|_| bad_input("the input that $ref names is not UTF-8"))?;
    if depth(&text) > limits::DEPTH {
        return Err(bad_input(format!("the input that $ref names is nested deeper than {}", limits::DEPTH)));
    }
    let text = text.trim().to_owned();
    RawValue::from_string(text)
        .map_err(|failure| bad_input(format!("the input that $ref names is not JSON: {failure}")))
}

fn unreached(failure: reqwest::Error) -> TaskError {
    let is_forbidden = http_client::is_refused(&failure);
    let causes = clean(http_client::causes(failure).as_bytes(), TOLD_BYTES);
    match is_forbidden {
        true => bad_input(format!("the input cannot be fetched: {causes}")),
        false => error(codes::UNAVAILABLE, format!("the input cannot be fetched: {causes}"), true),
    }
}

/// An answer that is no success. What is not there now may be there later where the server itself says that it is not well.
fn refused(status: StatusCode) -> TaskError {
    let message = format!("the input cannot be fetched: its server answered {status}");
    match status.as_u16() {
        408 | 425 | 429 | 500..=599 => error(codes::UNAVAILABLE, message, true),
        300..=399 => bad_input(format!("{message}, and redirects are not followed")),
        _ => bad_input(message),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use axum::Router;
    use axum::http::{HeaderMap, StatusCode, header};
    use axum::routing::get;
    use serde_json::json;
    use taskyard_shared::TaskId;
    use taskyard_shared::process::metrics::Registry;
    use tokio::net::TcpListener;

    use super::*;

    /// Gives the inputs back, and counts its calls and the most bytes of one.
    #[derive(Default)]
    struct Echo {
        calls: AtomicUsize,
        most: AtomicUsize,
    }

    #[async_trait]
    impl Handler for Echo {
        async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let bytes = batch.iter().map(|job| job.input.get().len()).sum();
            self.most.fetch_max(bytes, Ordering::Relaxed);
            batch.into_iter().map(|job| Ok(job.input)).collect()
        }
    }

    fn payloads(max_bytes: usize, allow: &[&str], artifacts: Option<Artifacts>) -> Payloads {
        let allow = allow.iter().map(|network| (*network).to_owned()).collect();
        Payloads::new(
            &PayloadSettings { max_bytes, allow },
            artifacts,
            Metrics::new(&Registry::new().unwrap()).unwrap(),
        )
    }

    fn raw(text: impl Into<String>) -> Box<RawValue> {
        RawValue::from_string(text.into()).unwrap()
    }

    fn refer(to: impl std::fmt::Display) -> String {
        json!({"$ref": to.to_string()}).to_string()
    }

    async fn run(payloads: &Payloads, handler: &Echo, inputs: &[String], most_inline: usize) -> Vec<Answer> {
        let jobs = inputs.iter().map(|input| Job::new(TaskId::new(), 1, raw(input.clone()))).collect();
        payloads.around(handler, jobs, most_inline).await
    }

    fn text(answer: &Answer) -> &str {
        answer.as_ref().unwrap().get()
    }

    fn code(answer: &Answer) -> (&str, bool) {
        let failed = answer.as_ref().unwrap_err();
        (&failed.code, failed.retryable)
    }

    #[test]
    fn only_an_object_of_one_member_is_a_name() {
        for (input, name) in [
            (r#"{"$ref": "artifact:x"}"#, Some("artifact:x")),
            ("{ \"$ref\"\n: \"https://a/\\u0062\" }", Some("https://a/b")),
            (r#"{"$ref": "a", "more": 1}"#, None),
            (r#"{"more": 1, "$ref": "a"}"#, None),
            (r#"{"$ref": 7}"#, None),
            (r#"{"$refs": "a"}"#, None),
            (r#"["$ref"]"#, None),
            (r#""$ref""#, None),
        ] {
            assert_eq!(named(&raw(input)).as_deref(), name, "{input}");
        }
    }

    #[test]
    fn a_name_is_of_an_artifact_or_an_address() {
        for name in ["artifact:12", "file:///etc/passwd", "s3://a/b", "", "ftp://a/b", "//a/b", "https:"] {
            assert!(Place::read(name).is_err(), "{name}");
        }
        assert!(matches!(Place::read("https://example.org/a?b=c"), Ok(Place::Http(_))));
        let id = ArtifactId::of(b"[1]");
        assert_eq!(Place::read(&id.to_string()), Ok(Place::Artifact(id)));
    }

    #[tokio::test]
    async fn inputs_are_fetched_in_their_places_and_what_is_wrong_with_one_harms_no_other() {
        let artifacts = Artifacts::in_memory();
        let there = artifacts.put(Bytes::from_static(b" {\"a\": 1e2}\n")).await.unwrap();
        let broken = artifacts.put(Bytes::from_static(b"{\"a\":")).await.unwrap();
        let deep = artifacts.put("[".repeat(1_000).into()).await.unwrap();
        let large = artifacts.put(format!("\"{}\"", "x".repeat(100)).into()).await.unwrap();
        let binary = artifacts.put(Bytes::from_static(b"\xff\xfe")).await.unwrap();
        let missing = ArtifactId::of(b"never put");
        let inputs: Vec<String> = [there, broken, deep, large, binary, missing].iter().map(refer).collect();
        let inputs = [vec!["[1, 2]".to_owned()], inputs, vec!["3".to_owned(), refer("file:///etc/passwd")]].concat();
        let (payloads, echo) = (payloads(100, &[], Some(artifacts)), Echo::default());
        let answers = run(&payloads, &echo, &inputs, 1_000).await;
        assert_eq!((text(&answers[0]), text(&answers[1]), text(&answers[7])), ("[1, 2]", "{\"a\": 1e2}", "3"));
        for at in [2, 3, 4, 5, 6, 8] {
            assert_eq!(code(&answers[at]), (codes::BAD_INPUT, false), "{at}: {:?}", answers[at]);
        }
        assert_eq!((answers.len(), echo.calls.load(Ordering::Relaxed)), (9, 1));
        let without = run(&super::tests::payloads(100, &[], None), &echo, &[refer(there)], 1_000).await;
        assert_eq!(code(&without[0]), (codes::NO_ARTIFACTS, false));
    }

    #[tokio::test]
    async fn a_call_holds_no_more_than_one_input_may_be() {
        let artifacts = Artifacts::in_memory();
        let mut inputs = Vec::new();
        for letter in ["a", "b", "c", "d", "e"] {
            inputs.push(refer(artifacts.put(format!("\"{}\"", letter.repeat(38)).into()).await.unwrap()));
        }
        inputs.insert(2, refer("artifact:no"));
        let (payloads, echo) = (payloads(100, &[], Some(artifacts)), Echo::default());
        let answers = run(&payloads, &echo, &inputs, 1_000).await;
        let firsts: Vec<Option<char>> =
            answers.iter().map(|answer| answer.as_ref().ok().and_then(|output| output.get().chars().nth(1))).collect();
        assert_eq!(firsts, [Some('a'), Some('b'), None, Some('c'), Some('d'), Some('e')]);
        assert_eq!((echo.calls.load(Ordering::Relaxed), echo.most.load(Ordering::Relaxed)), (3, 80));
    }

    #[tokio::test]
    async fn an_output_too_large_for_a_result_is_kept_and_named() {
        let artifacts = Artifacts::in_memory();
        let large = format!("\"{}\"", "x".repeat(48));
        let larger = format!("\"{}\"", "x".repeat(200));
        let inputs = ["1".to_owned(), large.clone(), larger.clone()];
        let answers = run(&payloads(100, &[], Some(artifacts.clone())), &Echo::default(), &inputs, 20).await;
        assert_eq!(text(&answers[0]), "1");
        let Reference { to } = serde_json::from_str(text(&answers[1])).unwrap();
        assert_eq!(artifacts.get(to, 100).await.unwrap(), large);
        assert_eq!(text(&answers[2]), larger, "left to be refused");
        let answers = run(&payloads(100, &[], None), &Echo::default(), &inputs, 20).await;
        assert_eq!(text(&answers[1]), large);
    }

    #[tokio::test]
    async fn an_address_is_read_where_the_settings_allow_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let app = Router::new()
            .route("/there", get(async || "{\"a\": 1}"))
            .route("/large", get(async || format!("\"{}\"", "x".repeat(200))))
            .route("/key", get(async |headers: HeaderMap| format!("{:?}", headers[header::AUTHORIZATION])))
            .route("/away", get(async || StatusCode::SERVICE_UNAVAILABLE))
            .route("/moved", get(async || (StatusCode::FOUND, [(header::LOCATION, "/there")])));
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let at = |path: &str| refer(format!("http://127.0.0.1:{port}{path}"));
        let inputs = ["/there", "/large", "/away", "/moved", "/missing"].map(at);
        let echo = Echo::default();

        let allowed = payloads(100, &["127.0.0.0/8", "::1"], None);
        let answers = run(&allowed, &echo, &inputs, 1_000).await;
        assert_eq!(text(&answers[0]), "{\"a\": 1}");
        let codes_of: Vec<(&str, bool)> = answers[1..].iter().map(code).collect();
        let bad = (codes::BAD_INPUT, false);
        assert_eq!(codes_of, [bad, (codes::UNAVAILABLE, true), bad, bad], "{answers:?}");
        assert_eq!(
            code(&run(&allowed, &echo, &[refer("http://127.0.0.1:1/")], 9).await[0]),
            (codes::UNAVAILABLE, true)
        );

        // A name and a password are for the server that they stand before.
        let with_password = refer(format!("http://user:secret@127.0.0.1:{port}/key"));
        assert_eq!(text(&run(&allowed, &echo, &[with_password], 1_000).await[0]), r#""Basic dXNlcjpzZWNyZXQ=""#);

        // By address and by name, from a task that nobody allowed it.
        let by_name = refer(format!("http://user:secret@localhost:{port}/there"));
        let metadata = refer("http://169.254.169.254/latest");
        let answers = run(&payloads(100, &[], None), &echo, &[inputs[0].clone(), by_name, metadata], 1_000).await;
        for answer in &answers {
            assert_eq!(code(answer), bad, "{answer:?}");
            assert!(!answer.as_ref().unwrap_err().message.contains("secret"), "{answer:?}");
        }
        server.abort();
    }

    #[tokio::test]
    async fn what_names_nothing_goes_straight_through() {
        let echo = Arc::new(Echo::default());
        let inputs = [r#"{"$ref": "a", "more": 1}"#.to_owned(), "null".to_owned()];
        let answers = run(&payloads(1, &[], None), &echo, &inputs, 1_000).await;
        assert_eq!(answers.iter().map(text).collect::<Vec<_>>(), inputs.iter().collect::<Vec<_>>());
    }
}
