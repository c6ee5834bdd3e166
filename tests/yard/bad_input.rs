//! What nobody should publish over AMQP. Each row of the tables has a name, what is sent, and what it comes to: a code that its
//! sender is told and its dead letter has, and nothing else. All of it is acked, and holds up nobody.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};
use taskyard_shared::dead::{Content, Letter};
use taskyard_shared::task::limits;
use tokio::task::JoinHandle;

use super::*;

/// What a row comes to.
#[derive(Clone, Copy, Debug)]
enum Comes {
    /// It is taken, and runs.
    Runs,
    /// It ends so, without having run: with a dead letter when it is rejected.
    Ends(State, &'static str),
    /// It is refused with this code, at this field, and its dead letter says the same.
    Refused(&'static str, &'static str),
}

use Comes::{Ends, Refused, Runs};

struct Row {
    name: String,
    message: Message,
    comes: Comes,
}

/// Rows and the yard that they are sent to.
struct Door {
    yard: Yard,
    rows: Vec<Row>,
    handler: Arc<Obedient>,
    stops: Vec<CancellationToken>,
    scheduler: JoinHandle<Result<(), taskyard_shared::broker::BrokerError>>,
}

const GOOD: &str = r#"{"model": "m", "input": {}}"#;

impl Door {
    async fn open() -> Self {
        let yard = Yard::new(|settings| settings.scheduler.unknown_model_grace_ms = 0).await;
        let handler = Arc::new(Obedient::default());
        let model = ModelSpec { slots: 4, ..spec("m") };
        let (worker, _) = yard.worker("w", vec![(model.clone(), handler.clone())]);
        let stop = CancellationToken::new();
        let scheduler = tokio::spawn(yard.new_scheduler(&[model], &yard.registry).run(stop.clone()));
        Self { yard, rows: Vec::new(), handler, stops: vec![worker, stop], scheduler }
    }

    /// A message under an id of its own, which wants to be told what comes of it.
    fn row(&mut self, name: impl Into<String>, body: impl Into<Vec<u8>>, comes: Comes) -> &mut Message {
        let number = self.rows.len();
        let properties = Properties {
            message_id: Some(Uuid::new_v4().to_string()),
            correlation_id: Some(number.to_string()),
            reply_to: Some(self.yard.replies.clone()),
            ..Properties::default()
        };
        let message = Message {
            to: Destination::Exchange { name: self.yard.topology.tasks_exchange(), key: "any".into() },
            body: body.into().into(),
            properties,
            persistent: true,
            mandatory: true,
        };
        self.rows.push(Row { name: name.into(), message, comes });
        &mut self.rows.last_mut().unwrap().message
    }

    /// Publishes all, and a good task behind them. Each row came to what it should, once; the scheduler has ended in good order,
    /// and nothing came back into intake when it did.
    async fn check(mut self) {
        self.row("a good task behind all", GOOD, Runs);
        let messages = self.rows.iter().map(|row| row.message.clone()).collect();
        for (row, answer) in self.rows.iter().zip(self.yard.broker.publish(messages).await) {
            answer.unwrap_or_else(|failure| panic!("{}: {failure}", row.name));
        }
        let told = self.told().await;
        let buried = self.rows.iter().filter(|row| is_buried(row.comes)).count();
        let letters = self.letters(buried).await;
        for (number, row) in self.rows.iter().enumerate() {
            let name = &row.name;
            let results = &told[&number];
            assert_eq!(results.len(), 1, "{name}: told {} times: {results:?}", results.len());
            let error = results[0]["error"].clone();
            let came = (results[0]["state"].as_str().unwrap(), error["code"].as_str().unwrap_or_default());
            let message = error["message"].as_str().unwrap_or_default();
            match row.comes {
                Runs => assert_eq!(came, ("succeeded", ""), "{name}: {error}"),
                Ends(state, code) => assert_eq!(came, (state.as_str(), code), "{name}: {error}"),
                Refused(code, field) => {
                    assert_eq!(came, ("rejected", code), "{name}: {error}");
                    assert!(message.starts_with(&format!("{field}: ")), "{name}: {error}");
                }
            }
            assert!(message.len() < 600 && !message.chars().any(char::is_control), "{name}: {error}");
            let reasons: Vec<&str> =
                letters.get(&number).into_iter().flatten().map(|letter| letter.reason.as_str()).collect();
            match is_buried(row.comes) {
                true => assert_eq!(reasons, [came.1], "{name}: its dead letters"),
                false => assert_eq!(reasons, [""; 0], "{name}: its dead letters"),
            }
            for letter in letters.get(&number).into_iter().flatten() {
                // Of a batch only the member that it is about.
                let sent = &row.message.body;
                let holds = letter.content == Content::Task
                    || letter.body == *sent
                    || sent.windows(letter.body.len()).any(|part| part == letter.body);
                assert!(holds, "{name}: the letter holds what was sent");
                assert!(!letter.message.is_empty() && letter.message.len() <= 512, "{name}: {}", letter.message);
            }
        }
        let ran = self.rows.iter().filter(|row| matches!(row.comes, Runs)).count();
        assert_eq!(self.handler.runs.load(Ordering::SeqCst), ran, "what was refused did not run");
        self.end().await;
    }

    /// What was not acked is back in its queue once its reader has ended.
    async fn end(self) {
        for stop in self.stops {
            stop.cancel();
        }
        tokio::time::timeout(PATIENCE, self.scheduler).await.expect("an end").expect("no panic").expect("good order");
        let topology = &self.yard.topology;
        for queue in [topology.intake(), topology.retry(), topology.dead()] {
            let state = self.yard.broker.queue_state(&queue).await.unwrap().unwrap();
            assert_eq!(state.ready, 0, "{queue} holds what nobody acked");
        }
    }

    /// The results of each row.
    async fn told(&self) -> HashMap<usize, Vec<Value>> {
        let mut told: HashMap<usize, Vec<Value>> = HashMap::new();
        let mut consumer = self.yard.broker.consume(&self.yard.replies, 500).await.unwrap();
        while told.len() < self.rows.len() {
            let batch = tokio::time::timeout(PATIENCE, consumer.next_batch(500)).await.unwrap_or_else(|_| {
                let missing = (0..self.rows.len()).filter(|number| !told.contains_key(number));
                panic!("nobody told of {:?}", missing.map(|number| &self.rows[number].name).collect::<Vec<_>>())
            });
            for delivery in batch.unwrap() {
                let number = delivery.properties.correlation_id.unwrap().parse().unwrap();
                told.entry(number).or_default().push(serde_json::from_slice(&delivery.body).unwrap());
                consumer.acker().settle(vec![delivery.tag], Verdict::Ack).await;
            }
        }
        told
    }

    /// Those that lie there now, taken out.
    async fn letters_at_hand(&self) -> Vec<Letter> {
        let lie = self.yard.broker.queue_state(&self.yard.topology.dead()).await.unwrap().unwrap().ready;
        self.letters(lie as usize).await.into_values().flatten().collect()
    }

    /// So many dead letters, by the row that they are of.
    async fn letters(&self, count: usize) -> BTreeMap<usize, Vec<Letter>> {
        let mut letters: BTreeMap<usize, Vec<Letter>> = BTreeMap::new();
        let mut consumer = self.yard.broker.consume(&self.yard.topology.dead(), 500).await.unwrap();
        while letters.values().map(Vec::len).sum::<usize>() < count {
            let batch = tokio::time::timeout(PATIENCE, consumer.next_batch(500)).await.expect("dead letters");
            for delivery in batch.unwrap() {
                consumer.acker().settle(vec![delivery.tag], Verdict::Ack).await;
                let letter = Letter::read(&delivery.properties, delivery.body);
                let number = letter.reply.as_ref().and_then(|reply| reply.correlation()?.parse().ok());
                letters.entry(number.unwrap_or(usize::MAX)).or_default().push(letter);
            }
        }
        letters
    }
}

fn is_buried(comes: Comes) -> bool {
    matches!(comes, Refused(..) | Ends(State::Rejected, _))
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies() {
    let mut door = Door::open().await;
    let mib = |bytes: usize| "x".repeat(bytes);
    let task = |input: &str| format!(r#"{{"model": "m", "input": {input}}}"#);
    let deep = |depth: usize| task(&format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
    let rows: Vec<(&str, Vec<u8>, Comes)> = vec![
        ("nothing", b"".into(), Refused("empty", "body")),
        ("blanks", b" \r\n\t".into(), Refused("empty", "body")),
        ("words", b"a task, please".into(), Refused("json", "body")),
        ("cut off", br#"{"model": "m", "inp"#.into(), Refused("json", "body")),
        ("cut off within a batch", br#"[{"model": "m", "input": 1}, {"mod"#.into(), Refused("json", "body")),
        ("something behind it", br#"{"model": "m", "input": 1}{"#.into(), Refused("json", "body")),
        ("a zero behind it", b"{\"model\": \"m\", \"input\": 1}\0".into(), Refused("json", "body")),
        ("a comma too many", br#"{"model": "m", "input": 1,}"#.into(), Refused("json", "body")),
        ("a comment", br#"{"model": "m", /* ! */ "input": 1}"#.into(), Refused("json", "body")),
        ("no number", br#"{"model": "m", "input": NaN}"#.into(), Refused("json", "body")),
        ("a byte order mark", b"\xef\xbb\xbf{\"model\": \"m\", \"input\": 1}".into(), Refused("json", "body")),
        ("Latin-1", b"{\"model\": \"m\", \"input\": \"\xe4\"}".into(), Refused("utf8", "body")),
        ("UTF-16", b"\xff\xfe{\0\"\0m\0".into(), Refused("utf8", "body")),
        ("UTF-16 without its mark", b"{\0\"\0m\0\"\0".into(), Refused("json", "body")),
        ("compressed, unsaid", b"\x1f\x8b\x08\0\0\0\0\0\0\x03".into(), Refused("utf8", "body")),
        ("null", b"null".into(), Refused("shape", "body")),
        ("a number", b"42".into(), Refused("shape", "body")),
        ("a string", br#""{\"model\": \"m\"}""#.into(), Refused("shape", "body")),
        ("an empty array", b"[]".into(), Refused("empty", "body")),
        ("an array in place of an object", br#"[["m", 1]]"#.into(), Refused("shape", "body")),
        ("a null in a batch", b"[null]".into(), Refused("shape", "body")),
        ("an empty object", b"{}".into(), Refused("invalid_field", "model")),
        ("a field twice", br#"{"model": "m", "model": "m", "input": 1}"#.into(), Refused("json", "body")),
        ("the input twice", br#"{"model": "m", "input": 1, "input": 2}"#.into(), Refused("json", "body")),
        ("as deep as may be", deep(limits::DEPTH - 1).into(), Runs),
        ("too deep", deep(limits::DEPTH).into(), Refused("depth", "body")),
        ("far too deep", deep(100_000).into(), Refused("depth", "body")),
        ("far too deep, never closed", "[".repeat(100_000).into(), Refused("depth", "body")),
        (
            "as many keys as there is room for",
            task(&format!("{{{}\"\":0}}", (0..90_000).map(|number| format!("\"{number}\":0,")).collect::<String>()))
                .into(),
            Runs,
        ),
        ("brackets in a string", task(&format!("\"{}\"", "[".repeat(1000))).into(), Runs),
        ("a large task", task(&format!("\"{}\"", mib(limits::TASK_BYTES))).into(), Refused("too_large", "body")),
        ("a large message", vec![b' '; limits::BODY_BYTES + 1], Refused("too_large", "body")),
        (
            "zeros as far as the eye can see",
            task(&format!("[0{}]", ",0".repeat(limits::BODY_BYTES / 2))).into(),
            Refused("too_large", "body"),
        ),
        (
            "a batch of too many",
            format!("[{}0]", "0,".repeat(limits::BATCH_TASKS)).into(),
            Refused("too_large", "body"),
        ),
        ("a field of a later version", br#"{"model": "m", "input": {}, "colour": "blue"}"#.into(), Runs),
        ("a version of its own", br#"{"v": 2, "model": "m", "input": {}}"#.into(), Runs),
        ("a null for a field", br#"{"model": "m", "input": {}, "priority": null}"#.into(), Runs),
    ];
    for (name, body, comes) in rows {
        door.row(name, body, comes);
    }
    door.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields() {
    let mut door = Door::open().await;
    let long = |bytes: usize| "k".repeat(bytes);
    let metadata =
        |entries: usize| (0..entries).map(|number| format!(r#""k{number}":"v""#)).collect::<Vec<_>>().join(",");
    for (field, value) in [
        ("id", r#""7""#.to_owned()),
        ("id", r#""""#.into()),
        ("id", "7".into()),
        ("id", r##""0190b3c4-0000-7000-8000-00000000000#""##.into()),
        ("id", format!("\"{}\"", long(10_000))),
        ("id", r#""0190b3c4-0000-7000-8000-000000000001\u0000""#.into()),
        ("model", r#""""#.into()),
        ("model", r#""M""#.into()),
        ("model", r#""../../etc/passwd""#.into()),
        ("model", r#""m\u0000""#.into()),
        ("model", r#""m\r\nx: y""#.into()),
        ("model", r##""#""##.into()),
        ("model", r#""m.*""#.into()),
        ("model", r#""m{0}""#.into()),
        ("model", r#""m@""#.into()),
        ("model", r#""m@1@2""#.into()),
        ("model", "\"\u{43c}\"".into()),
        ("model", r#""\ud800""#.into()),
        ("model", format!("\"{}\"", long(limits::MODEL_BYTES + 1))),
        ("model", "[]".into()),
        ("kind", r#""party""#.into()),
        ("kind", format!("\"{}\"", long(500_000))),
        ("kind", r#""a\r\nb""#.into()),
        ("kind", "0".into()),
        ("priority", "10".into()),
        ("priority", "-1".into()),
        ("priority", "255".into()),
        ("priority", "1.5".into()),
        ("priority", "4e0".into()),
        ("priority", "18446744073709551616".into()),
        ("priority", r#""4""#.into()),
        ("priority", "true".into()),
        ("priority", format!("\"{}\"", long(500_000))),
        ("tenant", r#""""#.into()),
        ("tenant", r#""a\nb""#.into()),
        ("tenant", r#""a\u001b[2J""#.into()),
        ("tenant", r#""a\u0085b""#.into()),
        ("tenant", r#""\ud800""#.into()),
        ("tenant", format!("\"{}\"", long(limits::TENANT_BYTES + 1))),
        ("deadline", r#""tomorrow""#.into()),
        ("deadline", r#""2030-01-01""#.into()),
        ("deadline", r#""99999-01-01T00:00:00Z""#.into()),
        ("deadline", "1893456000".into()),
        ("deadline_ms", "0".into()),
        ("deadline_ms", "-1".into()),
        ("deadline_ms", "1.5".into()),
        ("deadline_ms", "1e400".into()),
        ("deadline_ms", (limits::DURATION_MS + 1).to_string()),
        ("not_before", r#""later""#.into()),
        ("delay_ms", "-5".into()),
        ("delay_ms", u64::MAX.to_string()),
        ("cost", "0".into()),
        ("cost", "-1".into()),
        ("cost", "1e400".into()),
        ("cost", r#""many""#.into()),
        ("timeout_ms", "0".into()),
        ("timeout_ms", (limits::DURATION_MS + 1).to_string()),
        ("max_attempts", "0".into()),
        ("max_attempts", "101".into()),
        ("max_attempts", "1000000000".into()),
        ("idempotency_key", r#""""#.into()),
        ("idempotency_key", r#""a\u0000""#.into()),
        ("idempotency_key", format!("\"{}\"", long(limits::IDEMPOTENCY_KEY_BYTES + 1))),
        ("metadata", "[]".into()),
        ("metadata", r#"{"k": 1}"#.into()),
        ("metadata", r#"{"": "v"}"#.into()),
        ("metadata", r#"{"k": "a\tb"}"#.into()),
        ("metadata", format!(r#"{{"k": "{}"}}"#, long(limits::METADATA_VALUE_BYTES + 1))),
        ("metadata", format!("{{{}}}", metadata(limits::METADATA_ENTRIES + 1))),
        ("webhook", r#""https://example.org""#.into()),
        ("webhook", r#"["https://example.org", []]"#.into()),
        ("webhook", r#"{"url": ""}"#.into()),
        ("webhook", r#"{"url": "file:///etc/passwd"}"#.into()),
        ("webhook", r#"{"url": "gopher://127.0.0.1/"}"#.into()),
        ("webhook", r#"{"url": "https://example.org\r\nx: y"}"#.into()),
        ("webhook", r#"{"url": "https://example.org", "events": ["asleep"]}"#.into()),
        ("webhook", format!(r#"{{"url": "https://{}"}}"#, long(limits::URL_BYTES))),
        ("min_quality", "1.5".into()),
        ("min_quality", "-0.1".into()),
        ("alternatives", r#"[["m", 1]]"#.into()),
        ("alternatives", r#"[null]"#.into()),
        ("alternatives", r#"[{"model": "M", "wait_ms": 1}]"#.into()),
        ("alternatives", r#"[{"model": "m", "wait_ms": -1}]"#.into()),
        ("alternatives", format!("[{}]", [r#"{"model": "m", "wait_ms": 1}"#; 9].join(","))),
    ] {
        let body = match field {
            "model" => format!(r#"{{"model": {value}, "input": {{}}}}"#),
            _ => format!(r#"{{"model": "m", "input": {{}}, "{field}": {value}}}"#),
        };
        let shown: String = value.chars().take(40).collect();
        door.row(format!("{field}: {shown}"), body, Refused("invalid_field", field));
    }
    for (name, body, comes) in [
        ("no input", r#"{"model": "m"}"#, Refused("invalid_field", "input")),
        ("no model", r#"{"input": {}}"#, Refused("invalid_field", "model")),
        ("two targets", r#"{"model": "m", "capability": "c", "input": {}}"#, Refused("invalid_field", "model")),
        (
            "two deadlines",
            r#"{"model": "m", "input": {}, "deadline": "2090-01-01T00:00:00Z", "deadline_ms": 1}"#,
            Refused("invalid_field", "deadline_ms"),
        ),
        (
            "two starts",
            r#"{"model": "m", "input": {}, "not_before": "2020-01-01T00:00:00Z", "delay_ms": 1}"#,
            Refused("invalid_field", "delay_ms"),
        ),
        (
            "a deadline that is over",
            r#"{"model": "m", "input": {}, "deadline": "2001-01-01T00:00:00Z"}"#,
            Ends(State::Expired, "expired"),
        ),
        (
            "a deadline before the calendar",
            r#"{"model": "m", "input": {}, "deadline": "-009999-01-03T00:00:00Z"}"#,
            Ends(State::Expired, "expired"),
        ),
        (
            "a name and a password in an address",
            r#"{"model": "m", "input": {}, "webhook": {"url": "https://user:pass@example.org/"}}"#,
            Runs,
        ),
        ("the last of all deadlines", r#"{"model": "m", "input": {}, "deadline": "9999-12-30T00:00:00Z"}"#, Runs),
        ("the first of all starts", r#"{"model": "m", "input": {}, "not_before": "-009999-01-03T00:00:00Z"}"#, Runs),
        ("the smallest cost", r#"{"model": "m", "input": {}, "cost": 5e-324}"#, Runs),
        ("the largest cost", r#"{"model": "m", "input": {}, "cost": 1.7976931348623157e308}"#, Runs),
        ("an unknown model", r#"{"model": "nowhere", "input": {}}"#, Ends(State::Rejected, "unknown_model")),
        ("an unknown version", r#"{"model": "m@7", "input": {}}"#, Ends(State::Rejected, "unknown_model")),
        (
            "an unknown capability",
            r#"{"capability": "flying", "input": {}}"#,
            Ends(State::Rejected, "unknown_capability"),
        ),
    ] {
        door.row(name, body, comes);
    }
    door.check().await;
}

/// A name, a change of the message, and what it comes to.
type Changed = (&'static str, fn(&mut Message), Comes);

#[tokio::test(flavor = "multi_thread")]
async fn properties() {
    fn header(message: &mut Message, name: &str, value: &str) {
        message.properties.headers.insert(name.to_owned(), value.to_owned());
    }
    let rows: &[Changed] = &[
        ("no id", |message| message.properties.message_id = None, Runs),
        (
            "an id that is none",
            |message| message.properties.message_id = Some("7".into()),
            Refused("invalid_field", "message_id"),
        ),
        (
            "an id as long as may be",
            |message| message.properties.message_id = Some("#".repeat(255)),
            Refused("invalid_field", "message_id"),
        ),
        (
            "an empty id",
            |message| message.properties.message_id = Some("".into()),
            Refused("invalid_field", "message_id"),
        ),
        (
            "a priority above all",
            |message| message.properties.priority = Some(255),
            Refused("invalid_field", "priority"),
        ),
        ("an empty tenant", |message| message.properties.app_id = Some("".into()), Refused("invalid_field", "app_id")),
        (
            "a tenant of two lines",
            |message| message.properties.app_id = Some("a\r\nb".into()),
            Refused("invalid_field", "app_id"),
        ),
        (
            "a tenant that is too long",
            |message| message.properties.app_id = Some("a".repeat(limits::TENANT_BYTES + 1)),
            Refused("invalid_field", "app_id"),
        ),
        (
            "an expiration that is no number",
            |message| message.properties.expiration = Some("soon".into()),
            Refused("invalid_field", "expiration"),
        ),
        (
            "an expiration before now",
            |message| message.properties.expiration = Some("-1".into()),
            Refused("invalid_field", "expiration"),
        ),
        (
            "an expiration of no time at all",
            |message| message.properties.expiration = Some("0".into()),
            Ends(State::Expired, "expired"),
        ),
        ("an expiration without end", |message| message.properties.expiration = Some("9999999999999".into()), Runs),
        (
            "a body that is compressed",
            |message| message.properties.content_encoding = Some("gzip".into()),
            Refused("invalid_field", "content_encoding"),
        ),
        (
            "a workflow that is compressed",
            |message| {
                message.properties.content_encoding = Some("gzip".into());
                message.properties.kind = Some("workflow".into());
            },
            Refused("invalid_field", "content_encoding"),
        ),
        ("another content type", |message| message.properties.content_type = Some("image/png".into()), Runs),
        ("a type that nobody knows", |message| message.properties.kind = Some("party".into()), Runs),
        ("one that a restart would lose", |message| message.persistent = false, Runs),
        (
            "a queue to copy it to",
            |message| {
                header(message, "CC", "yard.dead");
                header(message, "BCC", "yard.dead");
            },
            Runs,
        ),
        (
            "a past that it did not have",
            |message| {
                for name in ["x-death", "x-first-death-queue", "x-delivery-count", "x-taskyard-died"] {
                    header(message, name, "99");
                }
            },
            Runs,
        ),
        (
            "what only the yard says",
            |message| {
                for name in [
                    "x-taskyard-attempt",
                    "x-taskyard-attempts",
                    "x-taskyard-tenant",
                    "x-taskyard-reason",
                    "x-taskyard-runs",
                    "x-taskyard-passes",
                    "x-taskyard-content",
                ] {
                    header(message, name, "99");
                }
            },
            Runs,
        ),
        ("a trace that is none", |message| header(message, "traceparent", "00-\r\n-x-01"), Runs),
        (
            "a trace state without end",
            |message| {
                header(message, "traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
                header(message, "tracestate", &"a=b,".repeat(10_000));
            },
            Runs,
        ),
        ("a large header", |message| header(message, "x-large", &"x".repeat(100_000)), Runs),
        ("many headers", |message| (0..5_000).for_each(|number| header(message, &format!("x-{number}"), "1")), Runs),
        ("results in a form that nobody knows", |message| header(message, "x-taskyard-results", "tuple"), Runs),
    ];
    let mut door = Door::open().await;
    for (name, change, comes) in rows {
        change(door.row(*name, GOOD, *comes));
    }
    door.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workflows() {
    let mut door = Door::open().await;
    let step = |name: &str, more: Value| {
        let mut step = json!({"name": name, "model": "m", "input": {}});
        step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        step
    };
    let of = |steps: Vec<Value>| json!({"tasks": steps}).to_string();
    let many = |count: usize, more: Value| {
        of((0..count).map(|number| step(&format!("s{number}"), more.clone())).collect::<Vec<_>>())
    };
    let rows: Vec<(&str, String, Comes)> = vec![
        ("nothing", "".into(), Refused("empty", "body")),
        ("cut off", r#"{"tasks": ["#.into(), Refused("json", "body")),
        ("an array", "[]".into(), Refused("shape", "body")),
        ("a task", GOOD.into(), Refused("invalid_field", "tasks")),
        ("no steps", of(vec![]), Refused("invalid_field", "tasks")),
        ("steps that are none", r#"{"tasks": 3}"#.into(), Refused("invalid_field", "tasks")),
        ("a step that is none", r#"{"tasks": [7]}"#.into(), Refused("shape", "tasks[0]")),
        ("too deep", format!("{{\"tasks\": {}", "[".repeat(100_000)), Refused("depth", "body")),
        (
            "a step without a name",
            of(vec![json!({"model": "m", "input": 1})]),
            Refused("invalid_field", "tasks[0].name"),
        ),
        ("a name with a blank", of(vec![step("a b", json!({}))]), Refused("invalid_field", "tasks[0].name")),
        (
            "a name twice",
            of(vec![step("a", json!({})), step("a", json!({}))]),
            Refused("invalid_field", "tasks[1].name"),
        ),
        (
            "one that waits for itself",
            of(vec![step("a", json!({"depends_on": ["a"]}))]),
            Refused("invalid_field", "tasks[0].depends_on[0]"),
        ),
        (
            "one that waits for nobody",
            of(vec![step("a", json!({"depends_on": ["b"]}))]),
            Refused("invalid_field", "tasks[0].depends_on[0]"),
        ),
        (
            "a circle",
            of(vec![
                step("a", json!({"depends_on": ["b"]})),
                step("b", json!({"input": {"$from": "c"}})),
                step("c", json!({"depends_on": ["a"]})),
            ]),
            Refused("invalid_field", "tasks[0].depends_on"),
        ),
        (
            "what nobody gives",
            of(vec![step("a", json!({"input": {"$from": "b"}}))]),
            Refused("invalid_field", "tasks[0].input"),
        ),
        ("a hundred thousand steps", many(100_000, json!({})), Refused("too_large", "tasks")),
        (
            "one for each of a hundred thousand",
            of(vec![step("a", json!({"for_each": vec![0; 100_000]}))]),
            Refused("invalid_field", "tasks[0].for_each"),
        ),
        (
            "many for each of many",
            many(101, json!({"for_each": vec![0; 100]})),
            Refused("too_large", "tasks[100].for_each"),
        ),
        (
            "a step with an id",
            of(vec![step("a", json!({"id": "0190b3c4-0000-7000-8000-000000000001"}))]),
            Refused("invalid_field", "tasks[0].id"),
        ),
        (
            "a step of another tenant",
            of(vec![step("a", json!({"tenant": "blue"}))]),
            Refused("invalid_field", "tasks[0].tenant"),
        ),
        (
            "a step with a bad field",
            of(vec![step("a", json!({"priority": 10}))]),
            Refused("invalid_field", "tasks[0].priority"),
        ),
        (
            "no time at all",
            json!({"tasks": [step("a", json!({}))], "deadline_ms": 0}).to_string(),
            Refused("invalid_field", "deadline_ms"),
        ),
        (
            "a priority above all",
            json!({"tasks": [step("a", json!({}))], "priority": 10}).to_string(),
            Refused("invalid_field", "priority"),
        ),
        (
            "a tenant of two lines",
            json!({"tasks": [step("a", json!({}))], "tenant": "a\nb"}).to_string(),
            Refused("invalid_field", "tenant"),
        ),
        (
            "an id that is none",
            json!({"tasks": [step("a", json!({}))], "id": "7"}).to_string(),
            Refused("invalid_field", "id"),
        ),
    ];
    for (name, body, comes) in rows {
        door.row(format!("workflow: {name}"), body, comes).properties.kind = Some("workflow".into());
    }
    door.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_again() {
    let mut door = Door::open().await;
    let id = Uuid::new_v4().to_string();
    let body = |input: u8, tenant: &str| format!(r#"{{"model": "m", "input": {input}, "tenant": "{tenant}"}}"#);
    // Whichever is read first stands, and they are read in their order.
    for (name, body, comes) in [
        ("the first", body(1, "blue"), Runs),
        ("another content", body(2, "blue"), Ends(State::Rejected, "conflict")),
        ("another tenant", body(1, "red"), Ends(State::Rejected, "conflict")),
    ] {
        door.row(name, body, comes).properties.message_id = Some(id.clone());
    }
    let messages = door.rows.iter().map(|row| row.message.clone()).collect();
    for answer in door.yard.broker.publish(messages).await {
        answer.unwrap();
    }
    let told = door.told().await;
    for (number, row) in door.rows.iter().enumerate() {
        let (state, code) = match row.comes {
            Runs => ("succeeded", Value::Null),
            Ends(state, code) => (state.as_str(), json!(code)),
            Refused(..) => unreachable!(),
        };
        assert_eq!(told[&number].len(), 1, "{}", row.name);
        assert_eq!(
            (&told[&number][0]["state"], &told[&number][0]["error"]["code"]),
            (&json!(state), &code),
            "{}",
            row.name
        );
        assert!(code.is_null() || told[&number][0]["output"].is_null(), "{}: what is another's is not told", row.name);
    }
    let text = door.yard.registry.render().unwrap();
    let counted = "taskyard_tasks_turned_away_total{model=\"\",reason=\"conflict\"} 2";
    assert!(text.lines().any(|line| line == counted), "whether or not anybody is told");
    // The same content is answered with the first one's result, and runs no more.
    door.rows.truncate(1);
    door.yard.broker.publish(vec![door.rows[0].message.clone()]).await.remove(0).unwrap();
    assert_eq!(door.told().await[&0][0]["state"], "succeeded");
    assert_eq!(door.handler.runs.load(Ordering::SeqCst), 1);
    door.end().await;
}

/// Results go where their publisher says. Where that is a queue of the yard's own, nothing goes round in it.
#[tokio::test(flavor = "multi_thread")]
async fn results_that_are_sent_into_the_yard_itself() {
    let mut door = Door::open().await;
    let topology = door.yard.topology.clone();
    let inner = [
        topology.intake(),
        topology.retry(),
        topology.round(0),
        topology.completions(0),
        topology.control(0),
        topology.schedules(),
        topology.steps(0),
        topology.workflows(0),
        topology.ready("m"),
        topology.dead(),
    ];
    let mut sent = 0;
    for queue in inner.iter().cloned().chain(["no.such.queue".into(), "".into(), "amq.topic".into()]) {
        for body in [GOOD, "nonsense", r#"{"model": "nowhere", "input": {}}"#] {
            door.row(&queue, body, Runs).properties.reply_to = Some(queue.clone());
            sent += 1;
        }
    }
    let messages = std::mem::take(&mut door.rows).into_iter().map(|row| row.message).collect();
    for answer in door.yard.broker.publish(messages).await {
        answer.unwrap();
    }
    door.row("a good task behind all", GOOD, Runs);
    door.yard.broker.publish(vec![door.rows[0].message.clone()]).await.remove(0).unwrap();
    assert_eq!(door.told().await[&0][0]["state"], "succeeded");
    let runs = || door.handler.runs.load(Ordering::SeqCst);
    eventually("the good ones to run", || runs() == sent / 3 + 1).await;
    // Of each that is refused a letter; of each result that came to a queue where it cannot be read another, or nothing.
    let dead = topology.dead();
    let lie = async || door.yard.broker.queue_state(&dead).await.unwrap().unwrap().ready as usize;
    let waiting = async {
        while lie().await < sent / 3 * 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("dead letters");
    let Door { yard, stops, scheduler, handler, .. } = door;
    stops.iter().for_each(CancellationToken::cancel);
    tokio::time::timeout(PATIENCE, scheduler).await.expect("an end").expect("no panic").expect("good order");
    assert_eq!(handler.runs.load(Ordering::SeqCst), sent / 3 + 1, "a result was taken for a task");
    let lie = yard.broker.queue_state(&dead).await.unwrap().unwrap().ready as usize;
    assert!(lie <= sent / 3 * 2 + sent, "{lie} letters of {sent} messages");
    for queue in [topology.intake(), topology.retry(), topology.schedules(), topology.workflows(0), topology.steps(0)] {
        assert_eq!(yard.broker.queue_state(&queue).await.unwrap().unwrap().ready, 0, "{queue} holds what nobody acked");
    }
}

/// Queues between roles: what cannot be read there is a dead letter with a reason, where it was work, and is acked.
#[tokio::test(flavor = "multi_thread")]
async fn messages_between_roles() {
    let door = Door::open().await;
    let topology = door.yard.topology.clone();
    let least = include_str!("../../shared/tests/golden/envelope-least.v1.json").trim();
    let later = least.replacen("\"v\":1", "\"v\":2", 1);
    let nested = format!("{{\"v\":1,\"input\":{}", "[".repeat(100_000));
    let bodies = [
        "",
        "nonsense",
        "\u{feff}{}",
        "null",
        "{}",
        "[]",
        "[[]]",
        r#"{"v": 1}"#,
        r#"{"v": -1}"#,
        r#"{"v": 2}"#,
        &least[..least.len() - 2],
        &later,
        &nested,
    ];
    // A queue, whether its messages say that they are steps, and which of the bodies are of a version that is told.
    let work = [
        (topology.ready("m"), false, 2),
        (topology.retry(), false, 2),
        (topology.round(0), false, 2),
        (topology.intake(), true, 2),
        (topology.workflows(0), false, 2),
        (topology.schedules(), false, 2),
    ];
    let message = |queue: &str, body: &str, are_steps: bool| {
        let mut message = Message::to_queue(queue, body.to_owned());
        if are_steps {
            message.properties.headers.insert(messages::STEPS_HEADER.into(), "1".into());
        }
        message
    };
    for (queue, ..) in &work {
        let declared = async {
            while door.yard.broker.queue_state(queue).await.unwrap().is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, declared).await.unwrap_or_else(|_| panic!("nobody declares {queue}"));
    }
    for (queue, are_steps, versions) in &work {
        let sent = bodies.iter().map(|body| message(queue, body, *are_steps)).collect();
        for answer in door.yard.broker.publish(sent).await {
            answer.unwrap_or_else(|failure| panic!("{queue}: {failure}"));
        }
        let letters: Vec<Letter> = door.letters(bodies.len()).await.into_values().flatten().collect();
        assert_eq!(letters.len(), bodies.len(), "{queue}");
        let known = |letter: &&Letter| letter.reason == "unsupported_version";
        assert_eq!(letters.iter().filter(known).count(), *versions, "{queue}");
        for letter in &letters {
            assert!(
                ["unreadable", "unsupported_version"].contains(&letter.reason.as_str()),
                "{queue}: {}",
                letter.reason
            );
            assert_eq!(letter.content, Content::Internal, "{queue}");
            assert!(!letter.message.is_empty(), "{queue}");
            assert!(
                bodies.iter().any(|body| body.as_bytes() == letter.body),
                "{queue}: the letter holds what was sent"
            );
        }
    }
    // What costs nothing to lose is dropped, and said in the log.
    for queue in [topology.completions(0), topology.control(0), topology.steps(0)] {
        let sent = bodies.iter().map(|body| message(&queue, body, false)).collect();
        for answer in door.yard.broker.publish(sent).await {
            answer.unwrap_or_else(|failure| panic!("{queue}: {failure}"));
        }
    }
    door.check().await;
}

/// Steps are taken on the word of whoever sends them: numbers that no reader of tasks lets through must end no scheduler.
#[tokio::test(flavor = "multi_thread")]
async fn steps_with_numbers_that_nobody_checked() {
    let door = Door::open().await;
    let step = |more: Value| {
        let mut envelope = json!({
            "v": 1, "id": Uuid::new_v4(), "model": "m", "kind": "prediction", "tenant": "t", "priority": 4,
            "accepted": "2026-01-31T12:00:00.000000Z", "attempts": 0, "input": {},
            "workflow": {"id": Uuid::new_v4(), "step": "a"},
        });
        envelope.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        envelope
    };
    let far = "9999-12-30T00:00:00Z";
    let long_ago = "-009999-01-03T00:00:00Z";
    let steps = [
        json!({"attempts": u32::MAX}),
        json!({"max_attempts": 0}),
        json!({"max_attempts": u32::MAX, "attempts": u32::MAX - 1}),
        json!({"timeout_ms": 0}),
        json!({"timeout_ms": u64::MAX}),
        json!({"cost": -1.0}),
        json!({"cost": 0.0}),
        json!({"cost": 1.7976931348623157e308}),
        json!({"shard": u32::MAX}),
        json!({"accepted": far}),
        json!({"accepted": long_ago}),
        json!({"due": far}),
        json!({"due": long_ago}),
        json!({"deadline": long_ago}),
        json!({"deadline": far, "accepted": long_ago}),
        json!({"not_before": long_ago, "accepted": far}),
        json!({"tenant": ""}),
        json!({"tenant": "\r\n".repeat(10_000)}),
        json!({"model": "../../etc"}),
        json!({"model": ""}),
        json!({"model": "m", "chosen": "nowhere"}),
        json!({"min_quality": -7.0}),
        json!({"alternatives": [{"model": "m", "wait_ms": u64::MAX}, {"model": "", "wait_ms": 0}]}),
        json!({"metadata": {"": ""}}),
        json!({"webhook": {"url": "file:///etc/passwd", "events": []}}),
        json!({"reply": {"to": ""}}),
        json!({"dispatched": far}),
        json!({"workflow": {"id": Uuid::new_v4(), "step": "", "item": u32::MAX}}),
    ];
    let steps: Vec<Value> = steps.into_iter().map(step).collect();
    let message = |step: &Value| {
        let mut message = Message::to_queue(door.yard.topology.intake(), step.to_string());
        message.properties.headers.insert(messages::STEPS_HEADER.into(), "1".into());
        message
    };
    for answer in door.yard.broker.publish(steps.iter().map(message).collect()).await {
        answer.unwrap();
    }
    // Whatever each comes to, it comes to an end, and the yard goes on.
    let ids: Vec<TaskId> = steps.iter().map(|step| TaskId(step["id"].as_str().unwrap().parse().unwrap())).collect();
    let ended = async {
        loop {
            let records = door.yard.store.get(ids.clone()).await.unwrap();
            let open = |record: &Option<TaskResult>| record.as_ref().is_none_or(|record| !record.state.is_terminal());
            if !records.iter().any(open) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(PATIENCE, ended).await.is_err() {
        let records = door.yard.store.get(ids.clone()).await.unwrap();
        let left = steps
            .iter()
            .zip(records)
            .filter(|(_, record)| record.as_ref().is_none_or(|record| !record.state.is_terminal()));
        let shown = |(step, record): (&Value, Option<TaskResult>)| {
            (step.to_string().chars().take(400).collect::<String>(), record.map(|record| record.state))
        };
        panic!("these did not end: {:#?}", left.map(shown).collect::<Vec<_>>());
    }
    let mut door = door;
    let ran = door.handler.runs.swap(0, Ordering::SeqCst);
    assert!(ran > 10, "{ran}");
    for letter in door.letters_at_hand().await {
        assert!(
            ["unknown_model", "quality_unmet", "attempts_exhausted"].contains(&letter.reason.as_str()),
            "{letter:?}"
        );
    }
    door.row("a good task", GOOD, Runs);
    door.check().await;
}

/// Names that callers make up become no queue, no series and no memory.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_models_that_nobody_has() {
    let mut door = Door::open().await;
    let tasks: Vec<Value> = (0..limits::BATCH_TASKS)
        .map(|number| json!({"model": format!("made-up-{number}"), "tenant": format!("nobody-{number}"), "input": 0}))
        .collect();
    let mut message = Message::to_queue(door.yard.topology.intake(), serde_json::to_vec(&tasks).unwrap());
    message.properties.reply_to = None;
    door.yard.broker.publish(vec![message]).await.remove(0).unwrap();
    let letters: Vec<Letter> = door.letters(tasks.len()).await.into_values().flatten().collect();
    assert!(letters.iter().all(|letter| letter.reason == "unknown_model"));
    let metrics = door.yard.registry.render().unwrap();
    assert!(!metrics.contains("made-up") && !metrics.contains("nobody-"));
    for number in [0, 1, limits::BATCH_TASKS - 1] {
        let queue = door.yard.topology.ready(&format!("made-up-{number}"));
        assert_eq!(door.yard.broker.queue_state(&queue).await.unwrap(), None);
    }
    door.row("a good task", GOOD, Runs);
    door.check().await;
}
