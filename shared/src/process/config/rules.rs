//! What a value must be beyond its type. Bounds and choices are tables by key, checked before the values become
//! [`Settings`]; what concerns a form, or several values, is checked after.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;

use toml::Value;
use url::Url;

use super::super::egress::Network;
use super::super::settings::{
    HttpSettings, KeySettings, ModelSettings, OnnxSettings, OnnxTask, ProcessSettings, SHARDS_MOST, Settings,
    TlsSettings, WebhookSettings,
};
use super::error::{ConfigError, Origin};
use super::is_embedded;
use super::layer::Layer;
use super::shape::Key;
use crate::decode::{is_name, is_tenant};
use crate::task::limits;
use crate::webhook::Secret;

/// The least and the most that a number may be.
#[derive(Clone, Copy, Debug)]
enum Bounds {
    Whole(u64, u64),
    /// Both ends belong to it.
    Number(f64, f64),
    /// From the first, which does not belong to it.
    Above(f64, f64),
}

const HOUR_MS: u64 = 3_600_000;
const TEN_YEARS_HOURS: u64 = 87_600;

/// Every number has its bounds here, by key, with `*` for a model's name.
const BOUNDS: &[(&str, Bounds)] = &[
    ("broker.heartbeat_s", Bounds::Whole(1, 3600)),
    ("broker.connect_timeout_ms", Bounds::Whole(1, HOUR_MS)),
    ("broker.publish_timeout_ms", Bounds::Whole(1, HOUR_MS)),
    ("broker.in_flight", Bounds::Whole(1, 1_000_000)),
    ("store.timeout_ms", Bounds::Whole(1, HOUR_MS)),
    ("artifacts.keep_hours", Bounds::Whole(0, TEN_YEARS_HOURS)),
    ("store.finished_hours", Bounds::Whole(1, TEN_YEARS_HOURS)),
    ("store.unfinished_hours", Bounds::Whole(1, TEN_YEARS_HOURS)),
    ("store.listed_tasks", Bounds::Whole(1, 100_000_000)),
    ("gateway.max_wait_s", Bounds::Whole(1, 3600)),
    ("gateway.max_waiters", Bounds::Whole(1, 1_000_000)),
    ("gateway.max_streams", Bounds::Whole(1, 100_000)),
    ("gateway.max_connections", Bounds::Whole(1, 1_000_000)),
    ("gateway.max_batch_tasks", Bounds::Whole(1, limits::BATCH_TASKS as u64)),
    ("gateway.inline_bytes", Bounds::Whole(0, limits::TASK_BYTES as u64)),
    ("gateway.max_artifact_bytes", Bounds::Whole(1024, crate::artifacts::ARTIFACT_BYTES)),
    ("gateway.max_body_bytes", Bounds::Whole(1024, limits::BODY_BYTES as u64)),
    ("gateway.request_timeout_ms", Bounds::Whole(1, HOUR_MS)),
    ("gateway.webhooks.timeout_ms", Bounds::Whole(1, 120_000)),
    ("gateway.webhooks.max_attempts", Bounds::Whole(1, 100)),
    ("gateway.webhooks.retry_first_ms", Bounds::Whole(1, 600_000)),
    ("gateway.webhooks.retry_most_ms", Bounds::Whole(1, 600_000)),
    ("gateway.webhooks.concurrency", Bounds::Whole(1, 1000)),
    ("scheduler.shards", Bounds::Whole(1, SHARDS_MOST as u64)),
    ("scheduler.ageing_s", Bounds::Number(0.0, 1e9)),
    ("scheduler.fair_allowance", Bounds::Number(0.0, 1e6)),
    ("scheduler.floor_low", Bounds::Number(0.0, 0.3)),
    ("scheduler.floor_middle", Bounds::Number(0.0, 0.3)),
    ("scheduler.floor_high", Bounds::Number(0.0, 0.3)),
    ("scheduler.overload_s", Bounds::Number(0.0, 1e9)),
    ("scheduler.target_wait_s", Bounds::Above(0.0, 1e9)),
    ("scheduler.workers_most", Bounds::Whole(1, 1_000_000)),
    ("scheduler.window_tasks", Bounds::Whole(1, u16::MAX as u64)),
    ("scheduler.window_mb", Bounds::Whole(1, 1 << 20)),
    ("scheduler.workflows", Bounds::Whole(1, 10_000)),
    ("scheduler.schedules", Bounds::Whole(0, crate::schedule::limits::SCHEDULES as u64)),
    ("scheduler.max_held_s", Bounds::Whole(1, 7 * 24 * 3600)),
    ("scheduler.report_every_ms", Bounds::Whole(10, 60_000)),
    ("scheduler.unknown_model_grace_ms", Bounds::Whole(0, HOUR_MS)),
    ("scheduler.ready_latency_ms", Bounds::Number(0.0, 10_000.0)),
    ("scheduler.ready_extra_most", Bounds::Whole(0, 1_000_000)),
    ("scheduler.shadow_every_s", Bounds::Whole(0, 24 * 3600)),
    // 0 is none beyond the free slots; the broker is never told 0, which would be "without limit" there.
    ("worker.prefetch", Bounds::Whole(0, 10_000)),
    // A lease is renewed three times in its length, and a renewal is a round trip to the store.
    ("worker.lease_ms", Bounds::Whole(200, HOUR_MS)),
    ("worker.alone_s", Bounds::Whole(0, 24 * 3600)),
    ("worker.max_held_s", Bounds::Whole(1, 7 * 24 * 3600)),
    ("worker.drain_s", Bounds::Whole(0, 7 * 24 * 3600)),
    ("worker.memory_mb", Bounds::Whole(0, 100_000_000)),
    ("worker.gpus", Bounds::Whole(0, 10_000)),
    ("worker.slots", Bounds::Whole(0, 100_000)),
    ("worker.report_every_ms", Bounds::Whole(10, 60_000)),
    ("worker.retry_first_ms", Bounds::Whole(1, limits::DURATION_MS)),
    ("worker.retry_most_ms", Bounds::Whole(1, limits::DURATION_MS)),
    // A record also holds what is known of the task beside its output.
    ("worker.max_output_bytes", Bounds::Whole(1, (crate::store::RECORD_BYTES / 2) as u64)),
    ("worker.payloads.max_bytes", Bounds::Whole(1, crate::artifacts::ARTIFACT_BYTES)),
    ("models.*.slots", Bounds::Whole(1, 10_000)),
    ("models.*.timeout_ms", Bounds::Whole(1, limits::DURATION_MS)),
    ("models.*.max_attempts", Bounds::Whole(1, limits::ATTEMPTS as u64)),
    ("models.*.max_batch", Bounds::Whole(1, limits::BATCH_TASKS as u64)),
    ("models.*.max_delay_ms", Bounds::Whole(0, 60_000)),
    ("models.*.memory_mb", Bounds::Whole(0, 100_000_000)),
    ("models.*.gpus", Bounds::Whole(0, 10_000)),
    ("models.*.expected_ms", Bounds::Above(0.0, limits::DURATION_MS as f64)),
    ("models.*.quality", Bounds::Number(0.0, 1.0)),
    ("models.*.onnx.max_tokens", Bounds::Whole(1, 1_000_000)),
    ("models.*.http.connect_timeout_ms", Bounds::Whole(1, HOUR_MS)),
    ("models.*.http.max_response_bytes", Bounds::Whole(1, 1 << 30)),
    ("models.*.http.prompt_price_per_1000", Bounds::Number(0.0, 1e9)),
    ("models.*.http.completion_price_per_1000", Bounds::Number(0.0, 1e9)),
    ("models.*.process.recycle_after_tasks", Bounds::Whole(1, 1_000_000_000_000)),
    ("models.*.process.recycle_above_mb", Bounds::Whole(1, 100_000_000)),
    ("models.*.training.max_tokens", Bounds::Whole(1, 1_000_000)),
    ("models.*.data.max_mb", Bounds::Whole(1, 1_000_000)),
    ("models.*.data.max_rows", Bounds::Whole(1, 100_000_000)),
    ("models.*.search.max_candidates", Bounds::Whole(1, 100_000)),
    ("models.*.training.max_rows", Bounds::Whole(2, 10_000_000)),
    // Below this a program cannot even be loaded.
    ("models.*.process.cancel_grace_ms", Bounds::Whole(0, 600_000)),
    ("models.*.process.limits.memory_mb", Bounds::Whole(16, 100_000_000)),
    ("models.*.process.limits.open_files", Bounds::Whole(8, 1_000_000)),
    ("models.*.process.limits.processes", Bounds::Whole(1, 1_000_000)),
    ("models.*.process.limits.file_mb", Bounds::Whole(0, 100_000_000)),
    ("models.*.process.limits.cpu_s", Bounds::Whole(1, 100_000_000)),
    ("models.*.simulated.service_ms", Bounds::Number(0.0, limits::DURATION_MS as f64)),
    ("models.*.simulated.failure_ratio", Bounds::Number(0.0, 1.0)),
    ("tenants.*.weight", Bounds::Number(0.01, 100.0)),
    ("tenants.*.max_running", Bounds::Whole(1, 1_000_000)),
    ("tenants.*.max_waiting", Bounds::Whole(0, 1_000_000_000)),
    ("tenants.*.max_per_second", Bounds::Above(0.0, 1e9)),
    ("tenants.*.burst", Bounds::Whole(1, 1_000_000_000)),
];

/// Texts that are one of a few.
const CHOICES: &[(&str, &[&str])] = &[
    ("broker.queue_type", &["auto", "classic", "quorum"]),
    ("gateway.anonymous", &["loopback", "anywhere"]),
    ("scheduler.late", &["refuse", "demote", "keep"]),
    ("scheduler.placement", &["demand", "none"]),
    ("scheduler.policy", &["cmu", "fair", "fifo", "strict", "edf", "wspt"]),
    ("log.format", &["text", "json"]),
    ("models.*.handler", &["onnx", "http", "process", "training", "data", "search", "simulated"]),
    ("models.*.onnx.task", &["text-classification", "text-embedding", "file-type"]),
    ("models.*.http.protocol", &["json", "open-inference", "openai"]),
    ("models.*.simulated.distribution", &["fixed", "exponential", "lognormal"]),
];

/// Keys that a table must have when it is there.
const REQUIRED: &[(&str, &str)] = &[
    ("models.*", "handler"),
    ("models.*.onnx", "task"),
    ("models.*.onnx", "file"),
    ("models.*.training", "file"),
    ("models.*.training", "tokenizer"),
    ("models.*.http", "url"),
    ("models.*.process", "command"),
    ("keys.*", "sha256"),
    ("keys.*", "tenant"),
    ("keys.*", "scopes"),
];

/// Bounds, choices, addresses and required keys. After it, the values have the types of [`Settings`].
pub(super) fn check_leaves(layers: &Layer) -> Result<(), ConfigError> {
    for (key, leaf) in &layers.leaves {
        let pattern = key.pattern();
        let refused = |problem: String| value_error(key, leaf.origin.clone(), problem);
        if let Some((_, bounds)) = BOUNDS.iter().find(|(of, _)| *of == pattern) {
            check_bounds(*bounds, &leaf.value).map_err(refused)?;
        }
        if let Some((_, choices)) = CHOICES.iter().find(|(of, _)| *of == pattern)
            && !leaf.value.as_str().is_some_and(|text| choices.contains(&text))
        {
            return Err(refused(format!("must be one of {}, not {}", choices.join(", "), brief(&leaf.value))));
        }
        if pattern.ends_with(".listen") && leaf.value.as_str().is_none_or(|text| text.parse::<SocketAddr>().is_err()) {
            let problem = format!("must be an address and a port such as 127.0.0.1:8080, not {}", brief(&leaf.value));
            return Err(refused(problem));
        }
    }
    for (key, origin) in &layers.sections {
        let pattern = key.pattern();
        for (_, name) in REQUIRED.iter().filter(|(of, _)| *of == pattern) {
            if !layers.leaves.contains_key(&key.child(name)) {
                return Err(value_error(&key.child(name), origin.clone(), "must be given".to_owned()));
            }
        }
    }
    Ok(())
}

fn value_error(key: &Key, origin: Origin, problem: String) -> ConfigError {
    ConfigError::Value { key: key.to_string(), origin, problem }
}

fn check_bounds(bounds: Bounds, value: &Value) -> Result<(), String> {
    let number = value.as_float().or(value.as_integer().map(|whole| whole as f64)).unwrap_or(f64::NAN);
    let (fits, allowed) = match bounds {
        Bounds::Whole(least, most) => {
            let whole = value.as_integer().and_then(|whole| u64::try_from(whole).ok());
            (whole.is_some_and(|whole| (least..=most).contains(&whole)), format!("from {least} to {most}"))
        }
        Bounds::Number(least, most) => ((least..=most).contains(&number), format!("from {least} to {most}")),
        Bounds::Above(least, most) => (number > least && number <= most, format!("above {least} and at most {most}")),
    };
    if fits { Ok(()) } else { Err(format!("must be {allowed}, not {value}")) }
}

/// A value in a sentence: short, on one line.
fn brief(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let short: String = text.chars().take(40).collect();
    if short.len() < text.len() { format!("{short:?}…") } else { format!("{short:?}") }
}

/// Forms, and values that depend on one another.
pub(super) fn check(settings: &Settings, layers: &Layer) -> Result<(), ConfigError> {
    let check = Check { layers };
    let Settings { broker, store, worker, log, .. } = settings;
    check.that("broker.url", broker_url(&broker.url))?;
    check.that("store.url", store_url(&store.url))?;
    check.that("artifacts.url", artifacts_url(&settings.artifacts.url))?;
    check.tls("broker", &broker.tls, &broker.url, "amqps://")?;
    check.tls("store", &store.tls, &store.url, "rediss://")?;
    let namespace = is_name(&broker.namespace, 64);
    check.that("broker.namespace", namespace.or_say("must match [a-z0-9][a-z0-9._-]{0,63}"))?;
    check.that("worker.id", worker_id(&worker.id))?;
    let ordered = worker.retry_first_ms <= worker.retry_most_ms;
    check.that("worker.retry_first_ms", ordered.or_say("must not be more than worker.retry_most_ms"))?;
    check.that("log.level", log_level(&log.level))?;
    check.webhooks(&settings.gateway.webhooks)?;
    for (name, model) in &settings.models {
        let key = Key(vec!["models".to_owned(), name.clone()]);
        let (base, version) =
            name.split_once('@').map_or((name.as_str(), None), |(base, version)| (base, Some(version)));
        let known =
            is_name(base, limits::MODEL_BYTES) && version.is_none_or(|version| is_name(version, limits::VERSION_BYTES));
        let problem = "is not a model's name: it must match [a-z0-9][a-z0-9._-]{0,127}, and may have @VERSION after it";
        check.key(&key, known.or_say(problem))?;
        let told = layers.leaves.contains_key(&key.child("version"));
        let told_twice = told && version.is_some_and(|version| version != model.version);
        check.key(&key.child("version"), (!told_twice).or_say("must be as the table's name says, or not there"))?;
        check.model(&key, model)?;
    }
    for name in settings.tenants.keys() {
        let known = is_tenant(name);
        let key = Key(vec!["tenants".to_owned(), name.clone()]);
        check
            .key(&key, known.or_say("is not a tenant's name: it must be 1 to 128 bytes without control characters"))?;
    }
    let mut digests = BTreeSet::new();
    for (name, settings) in &settings.keys {
        let key = Key(vec!["keys".to_owned(), name.clone()]);
        check.key(&key, key_name(name))?;
        match settings.grant(name) {
            Err((field, problem)) => check.key(&key.child(field), Err(problem))?,
            Ok((digest, _)) => {
                check.key(&key.child("sha256"), digests.insert(digest).or_say("is that of another key, too"))?;
            }
        }
    }
    Ok(())
}

fn key_name(name: &str) -> Result<(), String> {
    is_name(name, 64).or_say("is not a key's name: it must match [a-z0-9][a-z0-9._-]{0,63}")
}

/// Whether a key can be in the settings under this name. The problem is one sentence.
pub fn check_key(name: &str, settings: &KeySettings) -> Result<(), String> {
    key_name(name).map_err(|problem| format!("{name:?} {problem}"))?;
    settings.grant(name).map(|_| ()).map_err(|(field, problem)| format!("{field} {problem}"))
}

struct Check<'a> {
    layers: &'a Layer,
}

impl Check<'_> {
    fn that(&self, key: &str, result: Result<(), String>) -> Result<(), ConfigError> {
        self.key(&Key(key.split('.').map(str::to_owned).collect()), result)
    }

    fn key(&self, key: &Key, result: Result<(), String>) -> Result<(), ConfigError> {
        result.map_err(|problem| {
            let leaf = self.layers.leaves.get(key).map(|leaf| &leaf.origin);
            // A key that nobody set is the fault of the table around it.
            let table = || self.layers.sections.get(key).or_else(|| self.layers.sections.get(&key.parent()));
            value_error(key, leaf.or_else(table).cloned().unwrap_or(Origin::Default), problem)
        })
    }

    fn tls(&self, section: &str, tls: &TlsSettings, url: &str, scheme: &str) -> Result<(), ConfigError> {
        for (name, file) in [("ca_file", &tls.ca_file), ("cert_file", &tls.cert_file), ("key_file", &tls.key_file)] {
            // Whoever sets it believes that it protects something.
            let used = file.as_os_str().is_empty() || url.starts_with(scheme);
            let problem = format!("is used with {scheme} alone, and {section}.url is another");
            self.that(&format!("{section}.tls.{name}"), used.or_say(problem))?;
        }
        let both = tls.cert_file.as_os_str().is_empty() == tls.key_file.as_os_str().is_empty();
        let alone = if tls.cert_file.as_os_str().is_empty() { "key_file" } else { "cert_file" };
        let problem = "needs the other: cert_file and key_file belong together";
        self.that(&format!("{section}.tls.{alone}"), both.or_say(problem))
    }

    fn networks(&self, key: &str, networks: &[String]) -> Result<(), ConfigError> {
        for network in networks {
            let valid = network.parse::<Network>().map(|_| ());
            self.that(key, valid.map_err(|problem| format!("holds what it cannot: {problem}")))?;
        }
        Ok(())
    }

    fn webhooks(&self, webhooks: &WebhookSettings) -> Result<(), ConfigError> {
        for (name, secret) in [("secret", &webhooks.secret), ("old_secret", &webhooks.old_secret)] {
            let valid = if secret.is_empty() { Ok(()) } else { Secret::read(secret).map(|_| ()) };
            self.that(&format!("gateway.webhooks.{name}"), valid)?;
        }
        self.networks("gateway.webhooks.allow", &webhooks.allow)?;
        let ordered = webhooks.retry_first_ms <= webhooks.retry_most_ms;
        self.that(
            "gateway.webhooks.retry_first_ms",
            ordered.or_say("must not be more than gateway.webhooks.retry_most_ms"),
        )
    }

    fn model(&self, key: &Key, model: &ModelSettings) -> Result<(), ConfigError> {
        let version = is_name(&model.version, limits::VERSION_BYTES);
        self.key(&key.child("version"), version.or_say("must match [a-z0-9][a-z0-9._-]{0,63}"))?;
        for (place, capability) in model.capabilities.iter().enumerate() {
            let valid = is_name(capability, limits::MODEL_BYTES);
            let problem = format!("holds {capability:?}, which does not match [a-z0-9][a-z0-9._-]{{0,127}}");
            self.key(&key.child("capabilities"), valid.or_say(problem))?;
            let new = !model.capabilities[..place].contains(capability);
            self.key(&key.child("capabilities"), new.or_say(format!("holds {capability:?} twice")))?;
        }
        let tables = [
            ("onnx", model.onnx.is_some()),
            ("http", model.http.is_some()),
            ("process", model.process.is_some()),
            ("training", model.training.is_some()),
            ("data", model.data.is_some()),
            ("search", model.search.is_some()),
            ("simulated", model.simulated.is_some()),
        ];
        for (table, present) in tables {
            let own = table == model.handler;
            let needed = format!("must be there, as the handler is {table}");
            self.key(&key.child(table), (present || !own).or_say(needed))?;
            let foreign = format!("must not be there, as the handler is {}", model.handler);
            self.key(&key.child(table), (own || !present).or_say(foreign))?;
        }
        if let Some(settings) = &model.onnx {
            self.onnx(&key.child("onnx"), settings)?;
        }
        if let Some(settings) = &model.training {
            self.checksum(&key.child("training").child("sha256"), settings.sha256.as_deref())?;
        }
        if let Some(settings) = &model.http {
            self.http(&key.child("http"), settings)?;
        }
        if let Some(settings) = &model.process {
            self.process(&key.child("process"), settings)?;
        }
        Ok(())
    }

    fn onnx(&self, key: &Key, onnx: &OnnxSettings) -> Result<(), ConfigError> {
        let (tokenizer, head, config) = match onnx.task {
            OnnxTask::TextClassification => (true, true, false),
            OnnxTask::TextEmbedding => (true, false, false),
            OnnxTask::FileType => (false, false, true),
        };
        let files = [
            ("tokenizer", tokenizer, onnx.tokenizer.is_some()),
            ("head", head, onnx.head.is_some()),
            ("config", config, onnx.config.is_some()),
        ];
        for (file, needed, given) in files {
            self.key(&key.child(file), (given || !needed).or_say("must be given for this task"))?;
            self.key(&key.child(file), (needed || !given).or_say("is not used by this task"))?;
        }
        self.checksum(&key.child("sha256"), onnx.sha256.as_deref())
    }

    fn checksum(&self, key: &Key, sha256: Option<&str>) -> Result<(), ConfigError> {
        let hex = sha256.is_none_or(|sum| sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()));
        self.key(key, hex.or_say("must be 64 hexadecimal digits"))
    }

    fn http(&self, key: &Key, http: &HttpSettings) -> Result<(), ConfigError> {
        self.key(&key.child("url"), server_url(&http.url, &["http", "https"]).map(|_| ()))?;
        for (name, value) in &http.headers {
            let key = key.child("headers").child(name);
            let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            let valid = !name.is_empty() && name.bytes().all(token);
            self.key(&key, valid.or_say("is not the name of a header"))?;
            let valid = value.chars().all(|c| !c.is_control() || c == '\t');
            self.key(&key, valid.or_say("must not hold control characters"))?;
        }
        Ok(())
    }

    fn process(&self, key: &Key, process: &ProcessSettings) -> Result<(), ConfigError> {
        let program = process.command.first().is_some_and(|program| !program.trim().is_empty());
        let problem = "must be an array of a program and its arguments such as [\"python3\", \"model.py\"]";
        self.key(&key.child("command"), program.or_say(problem))?;
        let valid = !process.command.iter().any(|part| part.contains('\0'));
        self.key(&key.child("command"), valid.or_say("must not hold a zero byte"))?;
        for name in &process.inherit {
            let valid = !name.is_empty() && !name.contains(['=', '\0']);
            self.key(&key.child("inherit"), valid.or_say(format!("holds {name:?}, which is no variable's name")))?;
        }
        for (name, value) in &process.environment {
            let valid = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
            let problem = "cannot be a variable: a name without = is needed, and no zero byte";
            self.key(&key.child("environment").child(name), valid.or_say(problem))?;
        }
        Ok(())
    }
}

trait OrSay {
    fn or_say(self, problem: impl Display) -> Result<(), String>;
}

impl OrSay for bool {
    fn or_say(self, problem: impl Display) -> Result<(), String> {
        if self { Ok(()) } else { Err(problem.to_string()) }
    }
}

fn broker_url(text: &str) -> Result<(), String> {
    if is_embedded(text) {
        return embedded_url(text);
    }
    let url = server_url(text, &["amqp", "amqps"]).map_err(|problem| or_embedded(&problem))?;
    let vhost = url.path().strip_prefix('/').unwrap_or("");
    (!vhost.contains('/')).or_say("names a vhost with an unescaped /: write it as %2f")?;
    broker_query(&url)
}

/// Of a frame, by AMQP 0-9-1.
const FRAME_LEAST_BYTES: u32 = 4096;

/// What may stand after `?`. Others are passed over, as the client does.
fn broker_query(url: &Url) -> Result<(), String> {
    let value = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value);
    let can_be = |bytes: u32| bytes == 0 || bytes >= FRAME_LEAST_BYTES;
    let valid = value("frame_max").is_none_or(|text| text.parse().is_ok_and(can_be));
    let (least, most) = (FRAME_LEAST_BYTES, u32::MAX);
    valid.or_say(format!(
        "has a frame_max that cannot be: it must be from {least} to {most}, or 0 for what the broker says"
    ))?;
    for (name, most) in
        [("channel_max", u64::from(u16::MAX)), ("heartbeat", u64::from(u16::MAX)), ("connection_timeout", u64::MAX)]
    {
        let valid = value(name).is_none_or(|text| text.parse::<u64>().is_ok_and(|number| number <= most));
        valid.or_say(format!("has a {name} that cannot be: it must be a whole number of at most {most}"))?;
    }
    let mechanisms = ["plain", "amqplain", "external", "anonymous", "rabbit-cr-demo"];
    let valid = value("auth_mechanism").is_none_or(|text| mechanisms.contains(&text.to_ascii_lowercase().as_str()));
    valid.or_say(format!("has an auth_mechanism that is none of {}", mechanisms.join(", ")))
}

fn artifacts_url(text: &str) -> Result<(), String> {
    let text = text.trim();
    if text.is_empty() { Ok(()) } else { crate::artifacts::check_url(text) }
}

fn store_url(text: &str) -> Result<(), String> {
    if is_embedded(text) {
        return embedded_url(text);
    }
    let url = server_url(text, &["redis", "rediss"]).map_err(|problem| or_embedded(&problem))?;
    let database = url.path().strip_prefix('/').unwrap_or("");
    let valid = database.is_empty() || database.parse::<u32>().is_ok_and(|number| number <= i32::MAX as u32);
    valid.or_say("must end in the number of a database, such as /0")
}

fn or_embedded(problem: &str) -> String {
    // Only the sentence on schemes lists what is allowed.
    match problem.strip_prefix(SCHEMES) {
        Some(schemes) => format!("{SCHEMES}{schemes}, or be embedded: or embedded:DIR"),
        None => problem.to_owned(),
    }
}

fn embedded_url(text: &str) -> Result<(), String> {
    let folder = text.strip_prefix("embedded:").unwrap_or_default();
    let valid = !folder.starts_with("//") && !folder.contains(['\0', '?', '#']);
    valid.or_say("must be embedded: alone or with a folder, embedded:DIR")
}

const SCHEMES: &str = "must begin with ";

/// A URL with one of `schemes` and a host. A sentence never holds any part of it: there may be a password.
fn server_url(text: &str, schemes: &[&str]) -> Result<Url, String> {
    let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
    if !schemes.contains(&scheme) {
        let allowed: Vec<String> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
        return Err(format!("{SCHEMES}{}", allowed.join(" or ")));
    }
    if text.contains("${") {
        return Err("holds ${…}, which is not replaced here: set the whole value by an environment variable".to_owned());
    }
    if text.len() > limits::URL_BYTES || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("must be at most {} bytes without spaces", limits::URL_BYTES));
    }
    let url = Url::parse(text).map_err(|error| {
        format!("is not a URL: {error} (a special character in a password is written as % and its code, @ as %40)")
    })?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no host".to_owned());
    }
    if url.port() == Some(0) {
        return Err("names port 0".to_owned());
    }
    // The Redis client reads #insecure as leave to skip the check of the server's certificate.
    if url.fragment().is_some() {
        return Err("must not have a part after #".to_owned());
    }
    Ok(url)
}

fn worker_id(id: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let valid = id.len() <= 128 && id.bytes().all(allowed) && !id.starts_with(['.', '_', '-']);
    valid.or_say("must be empty or match [A-Za-z0-9][A-Za-z0-9._-]{0,127}")
}

fn log_level(level: &str) -> Result<(), String> {
    match super::super::telemetry::filter(level) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("must be levels such as info or info,lapin=warn: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::{Names, SETTINGS, Shape, Type};
    use super::*;

    fn numbers(shape: &Shape, key: &Key, all: &mut Vec<String>) {
        match shape {
            Shape::Leaf(Type::Integer | Type::Number) => all.push(key.pattern()),
            Shape::Leaf(_) => {}
            Shape::Section(children) => children.iter().for_each(|(name, of)| numbers(of, &key.child(name), all)),
            Shape::Named(names, of) => {
                assert!(
                    matches!(names, Names::Models | Names::Tenants | Names::Keys)
                        || matches!(**of, Shape::Leaf(Type::Text))
                );
                numbers(of, &key.child("any"), all);
            }
        }
    }

    #[test]
    fn every_number_has_bounds_and_every_bound_its_number() {
        let mut all = Vec::new();
        numbers(&SETTINGS, &Key::default(), &mut all);
        let mut bound: Vec<&str> = BOUNDS.iter().map(|(key, _)| *key).collect();
        all.sort();
        bound.sort_unstable();
        assert_eq!(all, bound);
    }

    #[test]
    fn every_choice_can_be_chosen() {
        let model = |handler: &str, table: &str| format!("models.m = {{ handler = '{handler}', {handler} = {table} }}");
        for (key, choices) in CHOICES {
            for choice in *choices {
                let text = match *key {
                    "models.*.handler" => continue,
                    "models.*.onnx.task" => {
                        let files = match *choice {
                            "text-classification" => ", tokenizer = 't', head = 'h'",
                            "text-embedding" => ", tokenizer = 't'",
                            _ => ", config = 'c'",
                        };
                        model("onnx", &format!("{{ file = 'm', task = '{choice}'{files} }}"))
                    }
                    "models.*.http.protocol" => {
                        model("http", &format!("{{ url = 'http://h', protocol = '{choice}' }}"))
                    }
                    "models.*.simulated.distribution" => {
                        model("simulated", &format!("{{ distribution = '{choice}' }}"))
                    }
                    key => format!("{key} = '{choice}'"),
                };
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("taskyard.toml");
                std::fs::write(&path, text).unwrap();
                super::super::load_from(Some(&path), []).unwrap();
            }
        }
    }
}
