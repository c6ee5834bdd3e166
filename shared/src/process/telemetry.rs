//! Logs on standard error: one event, one line, whatever was in it.
//!
//! Text and JSON carry the same fields, those of the spans around an event included. Control characters are escaped, a
//! long value is cut, and the password of a URL is masked, so that what a stranger sent can neither forge a line nor
//! fill the disk by one, and what a library quoted does not give a secret away.

use std::fmt;
use std::io::IsTerminal;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::secret::{MASK, masked};
use super::settings::{LogFormat, LogSettings};
use crate::time::Timestamp;

/// Longest text of one field.
const FIELD_CHARS: usize = 4096;

/// Frames with which the AMQP client logs in. At `trace` it shows them like any other, the password in them.
const LOG_INS: [&str; 2] = ["StartOk", "SecureOk"];

/// Field that holds the words of an event.
const MESSAGE: &str = "message";

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("log.level cannot be read: {0}")]
    Level(String),
    #[error("logs have been set up already")]
    Twice,
}

/// Sets up logs for the whole process, and has panics logged like everything else.
pub fn init(settings: &LogSettings) -> Result<(), TelemetryError> {
    let subscriber = subscriber(settings, colour(), std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::Twice)?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        tracing::error!(panic.place = place, panic.message = text.unwrap_or(""), "panicked");
    }));
    Ok(())
}

/// Whether standard error takes colours.
fn colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// What [`init`] sets up, writing to `writer`.
pub fn subscriber<W>(
    settings: &LogSettings,
    colour: bool,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = filter(&settings.level).map_err(TelemetryError::Level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(writer);
    Ok(match settings.format {
        LogFormat::Text => Box::new(builder.fmt_fields(TextFields).finish()),
        LogFormat::Json => Box::new(builder.fmt_fields(JsonFields).event_format(JsonLine).finish()),
    })
}

/// The AMQP client's name in the log.
const CLIENT: &str = "lapin";
/// Where it logs messages that came back.
const RETURNED: &str = "returned_messages";

/// Reads `info` or `info,lapin=warn`. A word alone must be a level: `tracing` takes it for the name of a module.
pub(super) fn filter(level: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for part in level.split(',') {
        let alone = !part.contains(['=', '[']);
        if alone && !LEVELS.iter().any(|known| part.trim().eq_ignore_ascii_case(known)) {
            return Err(format!("{part:?} is none of {}", LEVELS.join(", ")));
        }
    }
    let parse = |level: &str| EnvFilter::builder().parse(level).map_err(|error| error.to_string());
    // The AMQP client logs what our adapter tells anyway, and the bodies of messages beside it: only who asks gets it.
    match level {
        asked if asked.contains(RETURNED) => parse(asked),
        // Events that nobody listens to come back all the time, each with all that it holds.
        asked if asked.contains(CLIENT) => parse(&format!("{asked},{CLIENT}::{RETURNED}=off")),
        plain => parse(&format!("{plain},{CLIENT}=off")),
    }
}

/// The fields of an event or a span, in the order they were given.
#[derive(Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn of(fields: impl RecordFields) -> Self {
        let mut visitor = Self::default();
        fields.record(&mut visitor);
        visitor
    }

    fn text(&mut self, field: &Field, text: &str) {
        let text = match text {
            log_in if LOG_INS.iter().any(|frame| log_in.contains(frame)) => MASK.to_owned(),
            with_url if with_url.contains("://") => masked(with_url),
            plain => plain.to_owned(),
        };
        let cut = text.char_indices().nth(FIELD_CHARS).map(|(at, _)| at);
        self.0.push((field.name(), Value::String(cut.map_or(text.clone(), |at| format!("{}…", &text[..at])))));
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.push((field.name(), value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.push((field.name(), value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.push((field.name(), value.into()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.text(field, &value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, &format!("{value:?}"));
    }
}

/// `the words name=value other="a value"`.
struct TextFields;

impl<'writer> FormatFields<'writer> for TextFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut space = "";
        for (name, value) in Fields::of(fields).0 {
            writer.write_str(std::mem::replace(&mut space, " "))?;
            match value {
                Value::String(text) if name == MESSAGE => write_escaped(&mut writer, &text)?,
                Value::String(text) if is_plain(&text) => write!(writer, "{name}={text}")?,
                Value::String(text) => write!(writer, "{name}={text:?}")?,
                other => write!(writer, "{name}={other}")?,
            }
        }
        Ok(())
    }
}

/// Whether a text can stand without quotes.
fn is_plain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@+*?&%,;#".contains(&byte);
    !text.is_empty() && text.bytes().all(plain)
}

fn write_escaped(writer: &mut Writer<'_>, text: &str) -> fmt::Result {
    for c in text.chars() {
        // The two separators end a line for some readers.
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            write!(writer, "{}", c.escape_default())?;
        } else {
            writer.write_char(c)?;
        }
    }
    Ok(())
}

/// A span's fields as one JSON object, kept until an event is written.
struct JsonFields;

impl<'writer> FormatFields<'writer> for JsonFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut object = Map::new();
        add(&mut object, Fields::of(fields));
        writer.write_str(&Value::Object(object).to_string())
    }

    fn add_fields(&self, current: &mut FormattedFields<Self>, fields: &tracing::span::Record<'_>) -> fmt::Result {
        let mut object: Map<String, Value> = serde_json::from_str(&current.fields).unwrap_or_default();
        add(&mut object, Fields::of(fields));
        current.fields = Value::Object(object).to_string();
        Ok(())
    }
}

fn add(object: &mut Map<String, Value>, fields: Fields) {
    object.extend(fields.0.into_iter().map(|(name, value)| (name.to_owned(), value)));
}

/// `{"timestamp", "level", "target", "message", …fields}`; an event's own fields win over its spans'.
struct JsonLine;

impl<S> FormatEvent<S, JsonFields> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut object = Map::new();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            if let Some(fields) = extensions.get::<FormattedFields<JsonFields>>() {
                object.extend(serde_json::from_str::<Map<String, Value>>(&fields.fields).unwrap_or_default());
            }
        }
        add(&mut object, Fields::of(event));
        // These come last: no field may take their names.
        let metadata = event.metadata();
        object.insert("timestamp".to_owned(), Timestamp::now().to_string().into());
        object.insert("level".to_owned(), metadata.level().as_str().into());
        object.insert("target".to_owned(), metadata.target().into());
        writeln!(writer, "{}", Value::Object(object))
    }
}
