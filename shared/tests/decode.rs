//! What senders send, good and bad, and what they are told.

use taskyard_shared::task::limits;
use taskyard_shared::{Kind, Target, decode_tasks};
use uuid::Uuid;

fn refusal(body: &[u8]) -> (String, String) {
    let refused = match decode_tasks(body) {
        Err(refused) => refused,
        Ok(tasks) => match tasks.into_iter().next() {
            Some(Err(refused)) => refused,
            other => panic!("{} was taken as {other:?}", String::from_utf8_lossy(body)),
        },
    };
    (refused.code.to_owned(), refused.field.into_owned())
}

#[test]
fn a_full_task_is_read_and_its_input_kept_as_it_came() {
    let body = br#" {"id":"0190b3c4-0000-7000-8000-000000000001","model":"sentiment@1","kind":"data_processing",
        "input":{"b": 1e2,  "a":[null]},"priority":9,"tenant":"acme","deadline_ms":5000,"cost":2.5,"max_attempts":3,
        "metadata":{"run":"7"},"a_field_of_a_newer_minor_version":1} "#;
    let task = decode_tasks(body).unwrap().remove(0).unwrap();
    assert_eq!(task.id.unwrap().0, Uuid::from_u128(0x0190b3c4_0000_7000_8000_000000000001));
    assert_eq!(task.target, Target::Model("sentiment@1".into()));
    assert_eq!(task.kind, Kind::DataProcessing);
    assert_eq!(task.input.get(), r#"{"b": 1e2,  "a":[null]}"#);
    assert_eq!(task.priority.unwrap().get(), 9);
    assert_eq!(task.metadata["run"], "7");
}

#[test]
fn a_null_input_is_an_input() {
    let task = decode_tasks(br#"{"capability":"text-sentiment","input":null}"#).unwrap().remove(0).unwrap();
    assert_eq!(task.input.get(), "null");
    assert_eq!(task.target, Target::Capability("text-sentiment".into()));
}

#[test]
fn each_member_of_a_batch_is_judged_by_itself() {
    let batch = br#"[{"model":"a","input":1},{"model":"A","input":1},["a",1],{"model":"b","input":2}]"#;
    let tasks = decode_tasks(batch).unwrap();
    assert_eq!(tasks.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, false, true]);
}

#[test]
fn what_cannot_be_read_is_refused_with_a_code() {
    let cases: &[(&[u8], &str)] = &[
        (b"", "empty"),
        (b" \n", "empty"),
        (b"[]", "empty"),
        (b"{\"model\":", "json"),
        (b"{\"model\":\"a\",\"input\":1}{", "json"),
        (b"\xef\xbb\xbf{}", "json"),
        (b"\xff\xfe{\x00}\x00", "utf8"),
        (b"null", "shape"),
        (b"42", "shape"),
        (b"\"x\"", "shape"),
        (br#"{"model":"a","model":"b","input":1}"#, "json"),
    ];
    for (bytes, code) in cases {
        assert_eq!(refusal(bytes).0, *code, "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn a_bad_field_is_named() {
    let cases = [
        (r#""id":"7""#, "id"),
        (r#""id":5"#, "id"),
        (r#""capability":"b""#, "model"),
        (r#""kind":"dance""#, "kind"),
        (r#""priority":10"#, "priority"),
        (r#""priority":-1"#, "priority"),
        (r#""priority":"4""#, "priority"),
        (r#""tenant":"""#, "tenant"),
        (r#""tenant":"a\nb""#, "tenant"),
        (r#""tenant":"\ud800""#, "tenant"),
        (r#""deadline":"soon""#, "deadline"),
        (r#""deadline":"2030-01-01T00:00:00Z","deadline_ms":1"#, "deadline_ms"),
        (r#""deadline_ms":0"#, "deadline_ms"),
        (r#""delay_ms":-5"#, "delay_ms"),
        (r#""delay_ms":99999999999999"#, "delay_ms"),
        (r#""cost":0"#, "cost"),
        (r#""cost":1e400"#, "cost"),
        (r#""timeout_ms":1.5"#, "timeout_ms"),
        (r#""max_attempts":0"#, "max_attempts"),
        (r#""max_attempts":101"#, "max_attempts"),
        (r#""metadata":{"k":1}"#, "metadata"),
        (r#""webhook":{"url":"file:///etc/passwd"}"#, "webhook"),
    ];
    for (extra, field) in cases {
        let body = format!(r#"{{"model":"a","input":1,{extra}}}"#);
        assert_eq!(refusal(body.as_bytes()), ("invalid_field".into(), field.into()), "{body}");
    }
    for model in ["", "A", "../etc", "-a", "a b", "a@", "a@1@2", "mod\u{435}l", &"a".repeat(limits::MODEL_BYTES + 1)] {
        let body = format!(r#"{{"model":"{model}","input":1}}"#);
        assert_eq!(refusal(body.as_bytes()).1, "model", "{body}");
    }
    assert_eq!(refusal(br#"{"model":"a"}"#).1, "input");
}

#[test]
fn limits_hold_before_anything_is_built() {
    let deep = format!(r#"{{"model":"a","input":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(refusal(deep.as_bytes()).0, "depth");
    let brackets_in_a_string = format!(r#"{{"model":"a","input":"{}\""}}"#, "[".repeat(1000));
    assert!(decode_tasks(brackets_in_a_string.as_bytes()).unwrap()[0].is_ok());
    assert_eq!(refusal(&vec![b' '; limits::BODY_BYTES + 1]).0, "too_large");
    let wide = format!(r#"{{"model":"a","input":"{}"}}"#, "x".repeat(limits::TASK_BYTES));
    assert_eq!(refusal(wide.as_bytes()).0, "too_large");
    let many = format!("[{}0]", "0,".repeat(limits::BATCH_TASKS));
    assert_eq!(refusal(many.as_bytes()).0, "too_large");
}
