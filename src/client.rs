//! The HTTP API as the client commands use it: one request, one answer, and a failure that knows its exit code.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, StatusCode, Url, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use taskyard_shared::process::exit::Exit;

use crate::commands::files::read_file;

/// Where the API is when nobody says.
const DEFAULT_URL: &str = "http://127.0.0.1:8080";
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// One request, without what it waits for a result.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// On top of that a large body is given the time that it takes so slowly.
const SLOWEST_BYTES_A_SECOND: u64 = 256 << 10;
/// Largest file that holds a key.
const KEY_BYTES: usize = 64 << 10;

#[derive(Args, Clone, Debug)]
pub struct ApiArgs {
    /// Where the API is; also TASKYARD_API. http://127.0.0.1:8080 when neither is given
    #[arg(long, value_name = "URL", global = true)]
    pub api: Option<String>,
    /// A file that holds the key, where the API asks for one; also TASKYARD_API_KEY_FILE, or the key itself in TASKYARD_API_KEY
    #[arg(long, value_name = "FILE", global = true)]
    pub api_key_file: Option<PathBuf>,
}

/// Why a command did not do what it was asked for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
    /// What was asked for may have been done all the same: nobody answered.
    pub unanswered: bool,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), unanswered: false }
    }

    /// The same with words of the caller's around its own.
    pub fn told(self, tell: impl FnOnce(&str) -> String) -> Self {
        Self { message: tell(&self.message), ..self }
    }
}

/// What of a problem a command needs.
#[derive(Deserialize)]
struct Problem {
    code: String,
    detail: String,
    #[serde(default)]
    task_id: Option<String>,
    #[serde(default)]
    outcome: Option<String>,
}

#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    base: Url,
}

impl Api {
    pub fn new(arguments: &ApiArgs) -> Result<Self, Failure> {
        let (place, text) = match &arguments.api {
            Some(url) => ("--api", url.clone()),
            None => ("TASKYARD_API", variable("TASKYARD_API")?.unwrap_or_else(|| DEFAULT_URL.to_owned())),
        };
        let usage =
            |why: &str| Failure::new(Exit::Usage, format!("{place} must be a URL such as {DEFAULT_URL}: {why}"));
        let mut base = Url::parse(&text).map_err(|error| usage(&error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(usage("only http and https are spoken"));
        }
        // Paths are joined to it: without the slash its last part would be replaced.
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        base.set_query(None);
        base.set_fragment(None);

        // Needed once per process; a second time changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder().connect_timeout(CONNECT_LIMIT);
        if is_loopback(&base) {
            http = http.no_proxy();
        }
        if let Some(key) = key(arguments, variable)? {
            http = http.default_headers(HeaderMap::from_iter([(header::AUTHORIZATION, key)]));
        }
        let http =
            http.build().map_err(|error| Failure::new(Exit::Failed, format!("no HTTP client can be made: {error}")))?;
        Ok(Self { http, base })
    }

    /// `path` begins without a slash.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(String, String)],
        wait: Duration,
    ) -> Result<T, Failure> {
        let mut url = self.url(path)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let (_, body) = self.send(self.http.get(url), wait).await?;
        self.decode(&body)
    }

    /// Opens a stream of server-sent events, behind the one with this id.
    pub async fn events(&self, path: &str, last: Option<&str>) -> Result<reqwest::Response, Failure> {
        let mut request = self.http.get(self.url(path)?).header(header::ACCEPT, "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let opened = tokio::time::timeout(REQUEST_LIMIT, request.send()).await;
        let late = |_| Failure::new(Exit::NotReachable, format!("{} does not answer in time", self.place()));
        self.opened(opened.map_err(late)?).await
    }

    /// A response that is a success.
    async fn opened(&self, opened: reqwest::Result<reqwest::Response>) -> Result<reqwest::Response, Failure> {
        let response = opened.map_err(|error| self.unreachable(error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.map_err(|error| self.unreachable(error))?;
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(failed(status, &problem)),
            Err(_) => {
                Err(Failure::new(Exit::Failed, format!("{} answers {status}, and is no Taskyard API", self.place())))
            }
        }
    }

    /// Posts a body; `wait` is how long the answer may wait for a result, in whole seconds: less than it is not asked for.
    pub async fn post(
        &self,
        path: &str,
        media: &'static str,
        body: Vec<u8>,
        wait: Option<Duration>,
    ) -> Result<Vec<u8>, Failure> {
        let mut request = self.http.post(self.url(path)?).header(header::CONTENT_TYPE, media).body(body);
        if let Some(seconds) = wait.map(|wait| wait.as_secs()).filter(|seconds| *seconds > 0) {
            request = request.header("prefer", format!("wait={seconds}"));
        }
        Ok(self.send(request, wait.unwrap_or_default()).await?.1)
    }

    /// Posts what is no JSON, which may be large.
    pub async fn upload(&self, path: &str, body: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let wait = Duration::from_secs(body.len() as u64 / SLOWEST_BYTES_A_SECOND);
        let request = self.http.post(self.url(path)?).header(header::CONTENT_TYPE, "application/octet-stream");
        Ok(self.send(request.body(body), wait).await?.1)
    }

    /// A GET whose answer is handed on as it comes.
    pub async fn download(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let opened = tokio::time::timeout(REQUEST_LIMIT, self.http.get(self.url(path)?).send()).await;
        let late = |_| Failure::new(Exit::NotReachable, format!("{} does not answer in time", self.place()));
        let mut response = self.opened(opened.map_err(late)?).await?;
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(error))? {
            take(&chunk)?;
        }
        Ok(())
    }

    /// Any call that answers at once; a body is JSON.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(String, String)],
        body: Option<Vec<u8>>,
    ) -> Result<Vec<u8>, Failure> {
        let mut url = self.url(path)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url);
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        }
        Ok(self.send(request, Duration::ZERO).await?.1)
    }

    /// Posts JSON, and answers the status with the body: also of a problem that says what came of it, in `outcome`.
    pub async fn change(&self, path: &str, body: &serde_json::Value) -> Result<(StatusCode, Vec<u8>), Failure> {
        let request = self.http.post(self.url(path)?).json(body);
        self.answered(request, Duration::ZERO, |problem| problem.outcome.is_some()).await
    }

    pub fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Failure> {
        let refused =
            |error| Failure::new(Exit::Failed, format!("{} answers what is not understood: {error}", self.place()));
        serde_json::from_slice(body).map_err(refused)
    }

    /// The API's address, for people: without what may be secret.
    pub fn place(&self) -> String {
        let mut place = self.base.clone();
        // A URL that has a host takes both.
        let _ = place.set_username("");
        let _ = place.set_password(None);
        place.as_str().trim_end_matches('/').to_owned()
    }

    fn url(&self, path: &str) -> Result<Url, Failure> {
        self.base.join(path).map_err(|error| Failure::new(Exit::Usage, format!("no such address: {error}")))
    }

    async fn send(&self, request: RequestBuilder, wait: Duration) -> Result<(StatusCode, Vec<u8>), Failure> {
        self.answered(request, wait, |_| false).await
    }

    /// Sends it; a problem is a failure, unless it is one that is taken as an answer.
    async fn answered(
        &self,
        request: RequestBuilder,
        wait: Duration,
        is_answer: impl Fn(&Problem) -> bool,
    ) -> Result<(StatusCode, Vec<u8>), Failure> {
        let answer = async {
            let response = request.timeout(REQUEST_LIMIT + wait).send().await?;
            let media = response.headers().get(header::CONTENT_TYPE);
            let is = |name: &str| media.is_some_and(|media| media.as_bytes().starts_with(name.as_bytes()));
            let (is_problem, is_lines) = (is("application/problem+json"), is("application/x-ndjson"));
            Ok((response.status(), is_problem, is_lines, response.bytes().await?))
        };
        let (status, is_problem, is_lines, body) =
            answer.await.map_err(|error: reqwest::Error| self.unreachable(error))?;
        // A batch of which nothing was taken has an error's status, and answers like any other.
        if status.is_success() || is_lines {
            return Ok((status, body.into()));
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) if is_problem && is_answer(&problem) => Ok((status, body.into())),
            Ok(problem) if is_problem => Err(failed(status, &problem)),
            _ => {
                let message = format!("{} answers {status}, and is no Taskyard API", self.place());
                // What stands before the API says so, too, when the API was lost in the middle of it.
                Err(Failure { unanswered: status.is_server_error(), ..Failure::new(Exit::Failed, message) })
            }
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        let place = self.place();
        if error.is_timeout() && !error.is_connect() {
            let message = format!("{place} does not answer in time");
            return Failure { unanswered: true, ..Failure::new(Exit::NotReachable, message) };
        }
        let unanswered = !error.is_connect();
        let error = error.without_url();
        // The innermost cause says what happened; those around it say that something did.
        let mut cause: &dyn std::error::Error = &error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        let hint = "is `taskyard dev` or `taskyard gateway` running, and --api right?";
        let message = format!("{place} cannot be reached: {cause}; {hint}");
        Failure { unanswered, ..Failure::new(Exit::NotReachable, message) }
    }
}

/// A variable of the environment, if it says something.
fn variable(name: &str) -> Result<Option<String>, Failure> {
    let refused = |_| Failure::new(Exit::Usage, format!("{name} is not UTF-8"));
    let text = std::env::var_os(name).map(OsString::into_string).transpose().map_err(refused)?;
    Ok(text.filter(|text| !text.is_empty()))
}

/// What goes into the header, by the first that is said of: the argument, the variable with the key, the variable with the file.
/// The key itself is never an argument: everybody on the machine sees those.
fn key(
    arguments: &ApiArgs,
    variable: impl Fn(&str) -> Result<Option<String>, Failure>,
) -> Result<Option<HeaderValue>, Failure> {
    let (place, key) = if let Some(path) = &arguments.api_key_file {
        ("--api-key-file", read_key("--api-key-file", path)?)
    } else if let Some(key) = variable("TASKYARD_API_KEY")? {
        ("TASKYARD_API_KEY", key)
    } else if let Some(path) = variable("TASKYARD_API_KEY_FILE")? {
        ("TASKYARD_API_KEY_FILE", read_key("TASKYARD_API_KEY_FILE", Path::new(&path))?)
    } else {
        return Ok(None);
    };
    let bare = key.strip_suffix('\n').map_or(key.as_str(), |key| key.strip_suffix('\r').unwrap_or(key));
    let printable = !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_graphic());
    let value = HeaderValue::try_from(format!("Bearer {bare}")).ok().filter(|_| printable);
    let mut value =
        value.ok_or_else(|| Failure::new(Exit::Usage, format!("{place} holds no key: it must be one word")))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn read_key(place: &str, path: &Path) -> Result<String, Failure> {
    let key = read_file(path, KEY_BYTES).map_err(|failure| failure.told(|message| format!("{place}: {message}")))?;
    String::from_utf8(key).map_err(|_| Failure::new(Exit::Usage, format!("{place}: {} is not UTF-8", path.display())))
}

/// The exit code of a problem.
fn failed(status: StatusCode, problem: &Problem) -> Failure {
    let exit = match status.as_u16() {
        404 if matches!(problem.code.as_str(), "not_found" | "artifact_not_found") => Exit::NotFound,
        400 | 401 | 403 | 413 | 415 | 422 => Exit::Usage,
        429 | 503 => Exit::NotReachable,
        _ => Exit::Failed,
    };
    if status == StatusCode::UNAUTHORIZED {
        let hint = "give it with --api-key-file, TASKYARD_API_KEY_FILE or TASKYARD_API_KEY";
        return Failure::new(exit, format!("{}; {hint} [{}]", problem.detail, problem.code));
    }
    let task = problem.task_id.as_ref().map(|id| format!(" (task {id})")).unwrap_or_default();
    Failure::new(exit, format!("{}{task} [{}]", problem.detail, problem.code))
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(url: &str) -> Result<Api, Failure> {
        Api::new(&ApiArgs { api: Some(url.to_owned()), api_key_file: None })
    }

    #[test]
    fn paths_are_joined_below_the_address() {
        for (base, expected) in [
            ("http://host:1", "http://host:1/v1/tasks"),
            ("http://host:1/", "http://host:1/v1/tasks"),
            ("http://host/yard", "http://host/yard/v1/tasks"),
            ("https://host/yard/?a=1#b", "https://host/yard/v1/tasks"),
        ] {
            assert_eq!(api(base).unwrap().url("v1/tasks").unwrap().as_str(), expected);
        }
    }

    #[test]
    fn an_address_that_is_none_is_a_usage_error() {
        for bad in ["", "host:8080", "ftp://host", "http://", "/v1"] {
            assert_eq!(api(bad).err().map(|failure| failure.exit), Some(Exit::Usage), "{bad:?}");
        }
    }

    #[test]
    fn a_password_in_the_address_is_not_shown() {
        assert_eq!(api("http://user:secret@host:1/yard").unwrap().place(), "http://host:1/yard");
    }

    #[test]
    fn the_key_comes_from_the_nearest_place_and_is_one_word() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let found = |argument: Option<&Path>, variables: &[(&str, &str)]| {
            let arguments = ApiArgs { api: None, api_key_file: argument.map(Path::to_owned) };
            key(&arguments, |name| {
                let value = variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
                Ok(value.filter(|value| !value.is_empty()))
            })
            .map(|key| key.map(|key| key.to_str().unwrap().to_owned()))
            .map_err(|failure| failure.exit)
        };
        let bearer = |key: &str| Ok(Some(format!("Bearer {key}")));
        let (one, two) = (file("one", "one\n"), file("two", "two\r\n"));
        let all = [("TASKYARD_API_KEY", "direct"), ("TASKYARD_API_KEY_FILE", two.to_str().unwrap())];
        assert_eq!(found(None, &[]), Ok(None));
        assert_eq!(found(None, &[("TASKYARD_API_KEY", "")]), Ok(None));
        assert_eq!(found(Some(&one), &all), bearer("one"));
        assert_eq!(found(None, &all), bearer("direct"));
        assert_eq!(found(None, &all[1..]), bearer("two"));
        for bad in ["", "\n", "a b", "a\nb", "é", " a"] {
            assert_eq!(found(Some(&file("bad", bad)), &[]), Err(Exit::Usage), "{bad:?}");
        }
        assert_eq!(found(Some(&folder.path().join("none")), &[]), Err(Exit::Usage));
        let shown = format!("{:?}", key(&ApiArgs { api: None, api_key_file: Some(one) }, |_| Ok(None)).unwrap());
        assert!(!shown.contains("one"), "{shown}");
    }

    #[test]
    fn loopback_is_known_in_every_spelling() {
        for (url, loopback) in [
            ("http://localhost", true),
            ("http://127.0.0.1:8080", true),
            ("http://[::1]", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), loopback, "{url}");
        }
    }
}
