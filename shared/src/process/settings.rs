//! The settings of every role, as types. `settings.default.toml` says what each means and is compiled in as the lowest
//! layer, and `settings.models.toml`, `settings.tenants.toml` and `settings.keys.toml` are the same for a
//! model's, a tenant's and a key's; [`super::config`] reads the layers and checks the values.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::secret::masked_url;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub broker: BrokerSettings,
    pub store: StoreSettings,
    pub gateway: GatewaySettings,
    pub admin: AdminSettings,
    pub scheduler: SchedulerSettings,
    pub worker: WorkerSettings,
    pub artifacts: ArtifactSettings,
    pub log: LogSettings,
    #[serde(default)]
    pub models: BTreeMap<String, ModelSettings>,
    #[serde(default)]
    pub tenants: BTreeMap<String, TenantSettings>,
    /// To the HTTP API. Without any, none is asked for.
    #[serde(default)]
    pub keys: BTreeMap<String, KeySettings>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactSettings {
    /// Empty: nowhere.
    pub url: String,
    /// 0: for ever.
    pub keep_hours: u64,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerSettings {
    pub url: String,
    pub namespace: String,
    pub queue_type: QueueType,
    pub heartbeat_s: u16,
    pub connect_timeout_ms: u64,
    pub publish_timeout_ms: u64,
    /// Messages whose confirms are awaited at once.
    pub in_flight: usize,
    #[serde(default)]
    pub tls: TlsSettings,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueType {
    /// Quorum from RabbitMQ 4.0, classic before.
    Auto,
    Classic,
    Quorum,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSettings {
    pub url: String,
    pub timeout_ms: u64,
    pub finished_hours: u64,
    pub unfinished_hours: u64,
    pub listed_tasks: usize,
    #[serde(default)]
    pub tls: TlsSettings,
}

/// PEM files; an empty path is none. They are relative as models' files are.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// Who is trusted, instead of the system's authorities.
    pub ca_file: PathBuf,
    /// This client's certificate, and those between it and its authority.
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

impl TlsSettings {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn files(&mut self) -> [&mut PathBuf; 3] {
        [&mut self.ca_file, &mut self.cert_file, &mut self.key_file]
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewaySettings {
    pub listen: SocketAddr,
    /// Who is served while there are no keys.
    pub anonymous: Anonymous,
    pub max_wait_s: u64,
    pub max_waiters: usize,
    /// Streams of server-sent events that are open at once.
    pub max_streams: usize,
    pub max_connections: usize,
    pub max_batch_tasks: usize,
    pub max_body_bytes: usize,
    /// 0: all inputs travel with their tasks.
    pub inline_bytes: usize,
    pub max_artifact_bytes: usize,
    pub request_timeout_ms: u64,
    pub webhooks: WebhookSettings,
}

/// What is sent to tasks' addresses when they have ended.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSettings {
    /// As Standard Webhooks has it; empty: nothing is sent.
    pub secret: String,
    /// The one before, while receivers change.
    pub old_secret: String,
    /// Networks beside public addresses.
    pub allow: Vec<String>,
    pub timeout_ms: u64,
    pub max_attempts: u32,
    pub retry_first_ms: u64,
    pub retry_most_ms: u64,
    /// Deliveries at once.
    pub concurrency: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anonymous {
    /// Everybody on this machine: another address is not listened on.
    Loopback,
    /// Everybody who reaches it.
    Anywhere,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminSettings {
    pub listen: SocketAddr,
}

/// Most shards that a yard can have.
pub const SHARDS_MOST: u32 = 64;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerSettings {
    /// `cmu`, `fair`, `fifo`, `strict`, `edf` or `wspt`.
    pub policy: String,
    pub shards: u32,
    /// `refuse`, `demote` or `keep`.
    pub late: String,
    pub ageing_s: f64,
    pub fair_allowance: f64,
    pub floor_low: f64,
    pub floor_middle: f64,
    pub floor_high: f64,
    pub overload_s: f64,
    pub target_wait_s: f64,
    pub workers_most: u32,
    pub window_tasks: usize,
    pub window_mb: u64,
    pub workflows: usize,
    /// Of one tenant.
    pub schedules: usize,
    pub max_held_s: u64,
    pub report_every_ms: u64,
    pub unknown_model_grace_ms: u64,
    pub ready_latency_ms: f64,
    pub ready_extra_most: u32,
    pub shadow_every_s: u64,
    /// How it is decided which models workers with a memory budget hold.
    pub placement: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerSettings {
    /// Empty: host name and a random part.
    pub id: String,
    /// Deliveries held beyond the free slots, for each model.
    pub prefetch: u16,
    pub lease_ms: u64,
    /// How long a task whose worker was lost is waited for to run with nothing beside it, and then runs so.
    pub alone_s: u64,
    pub drain_s: u64,
    /// A delivery is kept unacked for so long.
    pub max_held_s: u64,
    /// Of which the loaded models take no more than this together; 0: without bounds.
    pub memory_mb: u64,
    /// Graphics processors that the loaded models take no more of together; 0: they are not counted.
    pub gpus: u32,
    /// Tasks at once, of all models together; 0: as many as the models have slots.
    pub slots: u32,
    pub report_every_ms: u64,
    pub retry_first_ms: u64,
    pub retry_most_ms: u64,
    pub max_output_bytes: usize,
    pub payloads: PayloadSettings,
}

/// Inputs that tasks only name, and outputs too large for a result.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayloadSettings {
    /// Of one of them.
    pub max_bytes: usize,
    /// Networks beside public addresses.
    pub allow: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSettings {
    /// As `tracing` has them: `info`, or `info,lapin=warn`.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

fn default_version() -> String {
    "1".to_owned()
}
fn default_slots() -> u32 {
    1
}
fn default_timeout_ms() -> u64 {
    60_000
}
fn default_max_attempts() -> u32 {
    3
}
fn default_max_batch() -> u32 {
    1
}

fn default_weight() -> f64 {
    1.0
}

/// `[tenants.<name>]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantSettings {
    /// What it gets of a model while others wait too, relative to them.
    #[serde(default = "default_weight")]
    pub weight: f64,
    /// Most of its tasks that are with workers at once.
    #[serde(default)]
    pub max_running: Option<u32>,
    /// Most of its tasks that wait at once.
    #[serde(default)]
    pub max_waiting: Option<u32>,
    /// Most of its tasks that come in a second, in the long run.
    #[serde(default)]
    pub max_per_second: Option<f64>,
    /// Most of its tasks that come at once after a while without any; else what comes in a second.
    #[serde(default)]
    pub burst: Option<u32>,
}

impl Default for TenantSettings {
    fn default() -> Self {
        Self { weight: default_weight(), max_running: None, max_waiting: None, max_per_second: None, burst: None }
    }
}

/// `[keys.<name>]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySettings {
    /// Hex.
    pub sha256: String,
    /// One, or `*`.
    pub tenant: String,
    pub scopes: Vec<String>,
    /// RFC 3339.
    #[serde(default)]
    pub expires: Option<String>,
}

/// `[models.<name>]`. The table of the handler's name is read by the handler.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    pub handler: String,
    #[serde(default = "default_version")]
    pub version: String,
    #[serde(default)]
    pub capabilities: Vec<String>,
    #[serde(default = "default_slots")]
    pub slots: u32,
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    #[serde(default = "default_max_attempts")]
    pub max_attempts: u32,
    #[serde(default = "default_max_batch")]
    pub max_batch: u32,
    #[serde(default)]
    pub max_delay_ms: u64,
    #[serde(default)]
    pub memory_mb: u64,
    #[serde(default)]
    pub gpus: u32,
    /// What one task is believed to take before any was measured; milliseconds.
    #[serde(default)]
    pub expected_ms: Option<f64>,
    /// How good its answers are, from 0 to 1.
    #[serde(default)]
    pub quality: Option<f64>,
    #[serde(default)]
    pub onnx: Option<OnnxSettings>,
    #[serde(default)]
    pub http: Option<HttpSettings>,
    #[serde(default)]
    pub process: Option<ProcessSettings>,
    #[serde(default)]
    pub training: Option<TrainingSettings>,
    #[serde(default)]
    pub data: Option<DataSettings>,
    #[serde(default)]
    pub search: Option<SearchSettings>,
    #[serde(default)]
    pub simulated: Option<SimulatedSettings>,
}

/// Files are relative to the configuration file's folder, or to the working directory when there is none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnnxSettings {
    pub task: OnnxTask,
    pub file: PathBuf,
    /// `text-classification` and `text-embedding`: the `tokenizer.json`.
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
    /// `text-classification`: the linear head.
    #[serde(default)]
    pub head: Option<PathBuf>,
    /// `file-type`: Magika's `config.min.json`.
    #[serde(default)]
    pub config: Option<PathBuf>,
    /// Hex; checked before the file is loaded.
    #[serde(default)]
    pub sha256: Option<String>,
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
}

fn default_max_tokens() -> usize {
    128
}

/// Files as in [`OnnxSettings`]: the encoder whose vectors are learnt from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingSettings {
    pub file: PathBuf,
    pub tokenizer: PathBuf,
    /// Of `file`, in hex; checked before it is loaded.
    #[serde(default)]
    pub sha256: Option<String>,
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
    /// Of one task, those it is tested on included.
    #[serde(default = "default_max_rows")]
    pub max_rows: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Of one task.
    #[serde(default = "default_data_max_rows")]
    pub max_rows: usize,
    /// What the rows of one task may take in memory, about, and a file unpacked; megabytes.
    #[serde(default = "default_data_max_mb")]
    pub max_mb: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchSettings {
    /// Of one task.
    #[serde(default = "default_max_candidates")]
    pub max_candidates: usize,
}

fn default_max_candidates() -> usize {
    1_000
}
fn default_data_max_rows() -> usize {
    1_000_000
}
fn default_data_max_mb() -> u64 {
    1_024
}
fn default_max_rows() -> usize {
    200_000
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnnxTask {
    TextClassification,
    TextEmbedding,
    FileType,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpSettings {
    pub url: String,
    #[serde(default)]
    pub protocol: HttpProtocol,
    /// `openai`: the model's name at the server; the model's own by default.
    #[serde(default)]
    pub model: Option<String>,
    /// `openai`: what 1,000 tokens of the input cost, in a currency of one's own.
    #[serde(default)]
    pub prompt_price_per_1000: Option<f64>,
    /// The same of the output.
    #[serde(default)]
    pub completion_price_per_1000: Option<f64>,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    #[serde(default = "default_http_connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    #[serde(default = "default_http_max_response_bytes")]
    pub max_response_bytes: usize,
}

fn default_http_connect_timeout_ms() -> u64 {
    2_000
}
fn default_http_max_response_bytes() -> usize {
    4 << 20
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HttpProtocol {
    /// The task's input is the request's body, the response's body is the output.
    #[default]
    Json,
    /// KServe v2: `POST {url}/v2/models/{model}/infer`.
    OpenInference,
    /// `POST {url}/v1/chat/completions` and its likes.
    #[serde(rename = "openai")]
    OpenAi,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSettings {
    /// Program and arguments; no shell.
    pub command: Vec<String>,
    /// Working directory of the child.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// Variables that the child gets of the worker's environment, beside `PATH`, `HOME` and `LANG`.
    #[serde(default)]
    pub inherit: Vec<String>,
    /// The rest of the child's environment.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Artifacts that tasks name are files to the child, and files that it leaves become artifacts.
    #[serde(default)]
    pub files: bool,
    /// A child that was given so many tasks is replaced, between calls.
    #[serde(default)]
    pub recycle_after_tasks: Option<u64>,
    /// A child that holds more memory than this after a call is replaced; resident, its own, MiB.
    #[serde(default)]
    pub recycle_above_mb: Option<u64>,
    /// From telling the child that its task is cancelled until it is ended.
    #[serde(default = "default_cancel_grace_ms")]
    pub cancel_grace_ms: u64,
    #[serde(default)]
    pub limits: ProcessLimits,
}

/// What the kernel holds the child to; `None` is what it holds the worker to.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessLimits {
    /// Of address space, for each process.
    #[serde(default)]
    pub memory_mb: Option<u64>,
    /// Open at once, for each process.
    #[serde(default)]
    pub open_files: Option<u64>,
    /// Of the worker's user, all together.
    #[serde(default)]
    pub processes: Option<u64>,
    /// Largest file that is written.
    #[serde(default)]
    pub file_mb: Option<u64>,
    /// Of processor time, for each process, from its start on.
    #[serde(default)]
    pub cpu_s: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulatedSettings {
    #[serde(default)]
    pub service_ms: f64,
    #[serde(default)]
    pub distribution: Distribution,
    #[serde(default)]
    pub failure_ratio: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    #[default]
    Fixed,
    Exponential,
    Lognormal,
}

// What may hold a password is not derived: a `{:?}` in a log must not give it away.

fn default_cancel_grace_ms() -> u64 {
    1_000
}

impl fmt::Debug for BrokerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("BrokerSettings");
        shown.field("url", &masked_url(&self.url)).field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl fmt::Debug for StoreSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSettings").field("url", &masked_url(&self.url)).finish_non_exhaustive()
    }
}

impl fmt::Debug for ArtifactSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ArtifactSettings");
        shown.field("url", &masked_url(&self.url)).field("keep_hours", &self.keep_hours).finish()
    }
}

impl fmt::Debug for WebhookSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("WebhookSettings");
        shown.field("allow", &self.allow).field("max_attempts", &self.max_attempts).finish_non_exhaustive()
    }
}

impl fmt::Debug for HttpSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("HttpSettings");
        shown.field("url", &masked_url(&self.url)).field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

impl fmt::Debug for ProcessSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessSettings").field("program", &self.command.first()).finish_non_exhaustive()
    }
}

impl Settings {
    /// How the store keeps records.
    pub fn retention(&self) -> crate::store::Retention {
        const HOUR_MS: u64 = 3600 * 1000;
        crate::store::Retention {
            finished_ms: self.store.finished_hours.saturating_mul(HOUR_MS),
            unfinished_ms: self.store.unfinished_hours.saturating_mul(HOUR_MS),
            listed: self.store.listed_tasks,
        }
    }
}

impl ArtifactSettings {
    /// How long what nobody needs is kept, if not for ever.
    pub fn keep(&self) -> Option<std::time::Duration> {
        (self.keep_hours > 0).then(|| std::time::Duration::from_secs(self.keep_hours.saturating_mul(3600)))
    }
}

impl TenantSettings {
    /// How many of its tasks may come, if that is limited.
    pub fn rate(&self) -> Option<crate::signal::Rate> {
        let per_second = self.max_per_second?;
        Some(crate::signal::Rate { per_second, burst: self.burst.map_or(per_second, f64::from).max(1.0) })
    }
}

impl WorkerSettings {
    /// Whether the worker holds some of its models, rather than all from the start.
    pub fn has_budget(&self) -> bool {
        self.memory_mb > 0 || self.gpus > 0
    }
}

impl ModelSettings {
    /// The model as a worker announces it.
    pub fn spec(&self, name: &str) -> crate::load::ModelSpec {
        crate::load::ModelSpec {
            name: name.to_owned(),
            version: name.split_once('@').map_or_else(|| self.version.clone(), |(_, version)| version.to_owned()),
            handler: self.handler.clone(),
            capabilities: self.capabilities.clone(),
            slots: self.slots,
            timeout_ms: self.timeout_ms,
            max_attempts: self.max_attempts,
            max_batch: self.max_batch,
            max_delay_ms: self.max_delay_ms,
            memory_mb: self.memory_mb,
            gpus: self.gpus,
            expected_ms: self.expected_ms.or(self.simulated.as_ref().map(|simulated| simulated.service_ms)),
            quality: self.quality,
        }
    }
}
