//! `/openapi.json`, made from the table of routes and the types, and the page at `/` that says what is where.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::OnceLock;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::access::Access;
use super::problem::{Code, Problem};
use super::routes::{Content, Parameter, Place, ROUTES, Route};

/// The one way in which a caller says who it is.
const SCHEME: &str = "key";

/// `GET /openapi.json`
pub(super) async fn get() -> Response {
    static DOCUMENT: OnceLock<Bytes> = OnceLock::new();
    let document = DOCUMENT.get_or_init(|| document().to_string().into());
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], document.clone()).into_response()
}

/// `GET /`
pub(super) async fn index() -> String {
    let mut page = String::from("Taskyard: a work queue for AI models\n\n");
    for route in ROUTES {
        let _ = writeln!(page, "{:5}{:22}{}", route.method.name().to_uppercase(), route.path, route.summary);
    }
    page.push_str("\nErrors are application/problem+json with a stable code; /openapi.json describes everything.\n");
    page
}

/// The whole description.
pub(super) fn document() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in ROUTES {
        let operation = operation(route, &mut generator);
        paths.entry(route.path).or_default().insert(route.method.name().to_owned(), operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Taskyard",
            "summary": "A work queue for AI models",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": {SCHEME: {
                "type": "http",
                "scheme": "bearer",
                "description": "A key of the gateway's settings; asked for while there are any",
            }},
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut operation = json!({
        "operationId": route.operation,
        "summary": route.summary,
        "responses": responses(route, generator),
    });
    match route.access {
        Access::Open => operation["security"] = json!([]),
        Access::Own(scope) => operation["security"] = json!([{SCHEME: [scope.name()]}]),
        Access::Yard(scope) => {
            operation["security"] = json!([{SCHEME: [scope.name()]}]);
            operation["description"] = "With keys, for one of all tenants.".into();
        }
    }
    if !route.parameters.is_empty() {
        operation["parameters"] = route.parameters.iter().map(parameter).collect();
    }
    if !route.body.is_empty() {
        let content: Map<String, Value> =
            route.body.iter().map(|(media, content)| ((*media).to_owned(), media_type(*content, generator))).collect();
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    operation
}

fn parameter(parameter: &Parameter) -> Value {
    let place = match parameter.place {
        Place::Path => "path",
        Place::Query => "query",
        Place::Header => "header",
    };
    // OpenAPI has no word for a family of names.
    let name = if parameter.name.ends_with('.') { format!("{}KEY", parameter.name) } else { parameter.name.to_owned() };
    let schema = match parameter.place {
        Place::Path if parameter.name == "id" => json!({"type": "string", "format": "uuid"}),
        Place::Path | Place::Query | Place::Header => json!({"type": "string"}),
    };
    json!({
        "name": name,
        "in": place,
        "required": parameter.place == Place::Path,
        "description": parameter.summary,
        "schema": schema,
    })
}

fn responses(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut responses: BTreeMap<String, Value> = BTreeMap::new();
    for answer in route.answers {
        let content = media_type(answer.content, generator);
        let response = responses.entry(answer.status.to_string()).or_insert_with(|| json!({"content": {}}));
        response["description"] = answer.summary.into();
        response["content"][answer.media] = content;
        if answer.status == 202 && route.path != "/v1/batches" {
            let schema = json!({"type": "string"});
            response["headers"]["Location"] = json!({"description": "Where the task is looked up", "schema": schema});
        }
    }
    let mut codes: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    let of_keys: &[Code] = if route.access == Access::Open { &[] } else { &[Code::Unauthorized, Code::Forbidden] };
    for code in route.problems.iter().chain(of_keys) {
        codes.entry(code.status().as_u16()).or_default().push(*code);
    }
    for (status, codes) in codes {
        let names = codes.iter().filter_map(|code| serde_json::to_value(code).ok());
        let names: Vec<String> = names.filter_map(|name| Some(format!("`{}`", name.as_str()?))).collect();
        let content = json!({"application/problem+json": {"schema": generator.subschema_for::<Problem>()}});
        let response = responses.entry(status.to_string()).or_insert_with(|| json!({"content": {}}));
        let before = response["description"].as_str().map(|text| format!("{text}; or ")).unwrap_or_default();
        response["description"] = format!("{before}{}", names.join(", ")).into();
        response["content"]["application/problem+json"] = content["application/problem+json"].clone();
        if matches!(status, 429 | 503) {
            let schema = json!({"type": "integer"});
            response["headers"]["Retry-After"] = json!({"description": "Seconds", "schema": schema});
        }
    }
    json!(responses)
}

fn media_type(content: Content, generator: &mut SchemaGenerator) -> Value {
    match content {
        Content::Of(schema) => json!({"schema": schema(generator)}),
        Content::Text => json!({"schema": {"type": "string"}}),
        Content::Bytes => json!({}),
        Content::Json => json!({"schema": {"type": "object"}}),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every `$ref` in a value.
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get("$ref") {
                    found.insert(reference.clone());
                }
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(members) => members.iter().for_each(|member| references(member, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.contains("#/components/schemas/TaskResult") && found.contains("#/components/schemas/Problem"));
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn path_parameters_and_operation_names_are_whole() {
        let mut names = BTreeSet::new();
        for route in ROUTES {
            assert!(names.insert(route.operation), "{} twice", route.operation);
            let in_path = route.parameters.iter().any(|parameter| parameter.place == Place::Path);
            assert_eq!(in_path, route.path.contains('{'), "{}", route.path);
        }
    }
}
