//! Logs: one event is one line, whatever was in it.

use std::io::Write;
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use taskyard_shared::process::settings::{LogFormat, LogSettings};
use taskyard_shared::process::telemetry::{init, subscriber};

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What `events` log.
fn logged(format: LogFormat, colour: bool, events: impl FnOnce()) -> String {
    let written = Written::default();
    let settings = LogSettings { level: "info,noisy=warn".to_owned(), format };
    let writer = written.clone();
    let subscriber = subscriber(&settings, colour, move || writer.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, events);
    String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
}

fn json(events: impl FnOnce()) -> Value {
    let text = logged(LogFormat::Json, false, events);
    assert_eq!(text.matches('\n').count(), 1, "one event must be one line: {text}");
    serde_json::from_str(&text).unwrap()
}

const FORGED: &str = "x\n{\"level\":\"ERROR\"}\r\x1b[31m\u{2028}\u{9b}";

#[test]
fn nobody_can_forge_a_line() {
    let events = || {
        let span = tracing::info_span!("attempt", task.id = FORGED);
        let _in = span.enter();
        tracing::info!(model = FORGED, debug = ?FORGED, display = %FORGED, "{FORGED}");
    };
    let text = logged(LogFormat::Text, false, events);
    assert_eq!(text.matches('\n').count(), 1, "{text}");
    let line = text.trim_end_matches('\n');
    assert!(!line.chars().any(|c| c.is_control() || c == '\u{2028}'), "{line:?}");
    assert_eq!(line.matches("\\n{").count(), 5, "{line}");
    let line = json(events);
    for field in ["message", "model", "display", "task.id"] {
        assert_eq!(line[field], FORGED);
    }
    assert_eq!(line["level"], "INFO");
}

#[test]
fn text_reads_as_words_and_fields() {
    let text = logged(LogFormat::Text, false, || {
        let span = tracing::info_span!("attempt", task.id = "a-1", note = tracing::field::Empty);
        span.record("note", "two words");
        let _in = span.enter();
        tracing::warn!(attempt = 2, waited_ms = 1.5, "gave up");
    });
    let (time, rest) = text.split_once(' ').unwrap();
    assert!(time.ends_with('Z'), "{time}");
    let expected =
        " WARN attempt{task.id=a-1 note=\"two words\"}: process::telemetry: gave up attempt=2 waited_ms=1.5\n";
    assert_eq!(rest, expected);
}

#[test]
fn json_has_the_fields_of_spans_and_event_at_the_top() {
    let line = json(|| {
        let outer = tracing::info_span!("worker", worker.id = "w", attempt = 1);
        let _outer = outer.enter();
        let inner = tracing::info_span!("attempt", task.id = tracing::field::Empty);
        inner.record("task.id", "a-1");
        let _inner = inner.enter();
        let error = std::io::Error::other("lost");
        tracing::error!(attempt = 2, ok = false, error = &error as &dyn std::error::Error, level = "mine", "gave up");
    });
    assert_eq!(line["worker.id"], "w");
    assert_eq!(line["task.id"], "a-1");
    assert_eq!((&line["attempt"], &line["ok"]), (&2.into(), &false.into()));
    assert_eq!(line["error"], "lost");
    assert_eq!((&line["level"], &line["target"]), (&"ERROR".into(), &"process::telemetry".into()));
    assert_eq!(line["message"], "gave up");
    assert!(line["timestamp"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn a_long_value_is_cut_and_a_password_is_masked() {
    let line = json(|| tracing::info!(body = "ä".repeat(100_000), "to amqp://u:s3cret@h"));
    assert_eq!(line["body"].as_str().unwrap().chars().count(), 4097);
    assert_eq!(line["message"], "to amqp://u:***@h");
    // As the broker's client has it.
    let frame = "AMQPFrame::Method(Connection(StartOk(StartOk { response: LongString(\"\\0u\\0s3cret\") })))";
    let line = json(|| tracing::info!(next_msg = %frame, frame = ?frame, "{frame}"));
    assert_eq!((&line["next_msg"], &line["frame"], &line["message"]), (&"***".into(), &"***".into(), &"***".into()));
}

#[test]
fn levels_and_colours_are_as_asked() {
    let events = || {
        tracing::debug!("no");
        tracing::info!(target: "noisy", "no");
        tracing::info!("yes");
    };
    let text = logged(LogFormat::Text, false, events);
    assert!(text.contains("yes") && !text.contains("no") && !text.contains('\x1b'), "{text}");
    assert!(logged(LogFormat::Text, true, events).contains('\x1b'));
    assert!(!logged(LogFormat::Json, true, events).contains('\x1b'));
}

/// Logs are set up once for a process, so this test runs itself again in one of its own.
#[test]
fn a_panic_is_one_line_like_everything_else() {
    const INNER: &str = "TASKYARD_TEST_INNER_PANIC";
    if std::env::var_os(INNER).is_some() {
        let settings = LogSettings { level: "info".to_owned(), format: LogFormat::Json };
        init(&settings).unwrap();
        assert_eq!(init(&settings).unwrap_err().to_string(), "logs have been set up already");
        let ended = std::thread::spawn(|| panic!("lost\namqp://u:s3cret@h")).join();
        assert!(ended.is_err());
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "telemetry::a_panic_is_one_line_like_everything_else", "--nocapture"])
        .env(INNER, "1")
        .output()
        .unwrap();
    let (out, lines) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}{lines}");
    let line: Value = serde_json::from_str(&lines).expect(&lines);
    assert_eq!(line["message"], "panicked");
    assert_eq!(line["panic.message"], "lost\namqp://u:***@h");
    assert!(line["panic.place"].as_str().unwrap().contains("telemetry.rs:"), "{lines}");
}
