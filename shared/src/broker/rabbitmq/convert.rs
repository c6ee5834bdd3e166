//! Properties to and from AMQP. They are built from scratch for each message: a copied `x-death` header makes RabbitMQ
//! 3.10 drop messages.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::broker::Properties;

const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;

/// A text that AMQP cannot carry in this place: over 255 bytes.
pub(super) struct TooLong;

pub(super) fn short(text: &str) -> Result<ShortString, TooLong> {
    ShortString::try_new(text).map_err(|_| TooLong)
}

/// `expiration` is only read, never written: the broker would drop the task when it ran out, with nobody told.
pub(super) fn to_amqp(properties: &Properties, persistent: bool) -> Result<BasicProperties, TooLong> {
    let mut amqp = BasicProperties::default().with_delivery_mode(if persistent { PERSISTENT } else { TRANSIENT });
    if let Some(text) = &properties.message_id {
        amqp = amqp.with_message_id(short(text)?);
    }
    if let Some(text) = &properties.correlation_id {
        amqp = amqp.with_correlation_id(short(text)?);
    }
    if let Some(text) = &properties.reply_to {
        amqp = amqp.with_reply_to(short(text)?);
    }
    if let Some(text) = &properties.content_type {
        amqp = amqp.with_content_type(short(text)?);
    }
    if let Some(text) = &properties.content_encoding {
        amqp = amqp.with_content_encoding(short(text)?);
    }
    if let Some(text) = &properties.kind {
        amqp = amqp.with_type(short(text)?);
    }
    if let Some(text) = &properties.app_id {
        amqp = amqp.with_app_id(short(text)?);
    }
    if let Some(priority) = properties.priority {
        amqp = amqp.with_priority(priority);
    }
    if !properties.headers.is_empty() {
        let mut table = FieldTable::default();
        for (name, value) in &properties.headers {
            table.insert(short(name)?, AMQPValue::LongString(value.as_str().into()));
        }
        amqp = amqp.with_headers(table);
    }
    Ok(amqp)
}

pub(super) fn from_amqp(amqp: &BasicProperties) -> Properties {
    let text = |value: &Option<ShortString>| value.as_ref().map(ShortString::to_string);
    Properties {
        message_id: text(amqp.message_id()),
        correlation_id: text(amqp.correlation_id()),
        reply_to: text(amqp.reply_to()),
        content_type: text(amqp.content_type()),
        content_encoding: text(amqp.content_encoding()),
        kind: text(amqp.kind()),
        app_id: text(amqp.app_id()),
        priority: *amqp.priority(),
        expiration: text(amqp.expiration()),
        headers: amqp.headers().iter().flatten().filter_map(text_header).collect(),
    }
}

/// Headers of other types, and bytes that are not UTF-8, are left out.
fn text_header((name, value): (&ShortString, &AMQPValue)) -> Option<(String, String)> {
    let value = match value {
        AMQPValue::LongString(value) => std::str::from_utf8(value.as_bytes()).ok()?.to_owned(),
        AMQPValue::ShortString(value) => value.to_string(),
        _ => return None,
    };
    Some((name.to_string(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Properties {
        Properties {
            message_id: Some("id".into()),
            correlation_id: Some("correlation".into()),
            reply_to: Some("replies".into()),
            content_type: Some("application/json".into()),
            content_encoding: Some("identity".into()),
            kind: Some("workflow".into()),
            app_id: Some("tenant".into()),
            priority: Some(7),
            expiration: None,
            headers: [("traceparent".to_owned(), "00-…-01".to_owned())].into(),
        }
    }

    #[test]
    fn everything_but_the_expiration_goes_out_and_comes_back() {
        let amqp = to_amqp(&Properties { expiration: Some("5".into()), ..full() }, true).ok().unwrap();
        assert_eq!(amqp.delivery_mode(), &Some(PERSISTENT));
        assert_eq!(from_amqp(&amqp), full());
    }

    #[test]
    fn foreign_headers_are_left_out_and_short_strings_are_read() {
        let mut table = FieldTable::default();
        table.insert("short".into(), AMQPValue::ShortString("text".into()));
        table.insert("bytes".into(), AMQPValue::LongString(vec![0xff, 0xfe].into()));
        table.insert("x-death".into(), AMQPValue::FieldArray(vec![AMQPValue::Boolean(true)].into()));
        table.insert("number".into(), AMQPValue::LongInt(1));
        let amqp = BasicProperties::default().with_headers(table).with_expiration("1000".into());
        let read = from_amqp(&amqp);
        assert_eq!(read.headers, [("short".to_owned(), "text".to_owned())].into());
        assert_eq!(read.expiration.as_deref(), Some("1000"));
    }

    #[test]
    fn a_text_over_255_bytes_is_an_error_and_not_a_panic() {
        let long = || Some("x".repeat(256));
        assert!(to_amqp(&Properties { message_id: long(), ..Properties::default() }, true).is_err());
        assert!(to_amqp(&Properties { headers: [("x".repeat(256), String::new())].into(), ..full() }, true).is_err());
        assert!(to_amqp(&Properties { headers: [(String::new(), "x".repeat(70_000))].into(), ..full() }, true).is_ok());
    }
}
