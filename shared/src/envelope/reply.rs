//! Where a result goes.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Where a result goes.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Reply {
    /// A queue, by way of the default exchange.
    pub to: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<Correlation>,
    /// Several results may travel in one message, as a JSON array.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub array: bool,
}

/// Any text by which a caller knows its task again. Most are UUIDs, which take their 16 bytes and no more.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Correlation {
    Id(Uuid),
    /// Anything that is not exactly how an [`Uuid`] is written.
    Text(Box<str>),
}

impl Reply {
    /// As the property of a message.
    pub fn correlation(&self) -> Option<String> {
        self.correlation_id.as_ref().map(Correlation::to_string)
    }
}

impl Correlation {
    /// What it takes besides its own size.
    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            Self::Id(_) => 0,
            Self::Text(text) => text.len(),
        }
    }
}

impl From<&str> for Correlation {
    fn from(text: &str) -> Self {
        let written = |id: &Uuid| *id.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *text;
        match Uuid::try_parse(text) {
            Ok(id) if written(&id) => Self::Id(id),
            _ => Self::Text(text.into()),
        }
    }
}

impl From<String> for Correlation {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl fmt::Display for Correlation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.hyphenated().fmt(out),
            Self::Text(text) => out.write_str(text),
        }
    }
}

impl Serialize for Correlation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Correlation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer).map(|text| Self::from(&*text))
    }
}

impl JsonSchema for Correlation {
    fn schema_name() -> Cow<'static, str> {
        String::schema_name()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_written_as_an_id_is_kept_as_one() {
        let id = "0198c0de-0000-7000-8000-00000000abcd";
        assert_eq!(Correlation::from(id), Correlation::Id(id.parse().unwrap()));
        for text in ["", "7", &id.to_uppercase(), &id.replace('-', ""), &format!("{{{id}}}"), &format!("urn:uuid:{id}")]
        {
            assert_eq!(Correlation::from(text), Correlation::Text(text.into()), "{text}");
            assert_eq!(Correlation::from(text).to_string(), *text);
        }
    }
}
