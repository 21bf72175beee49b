//! Extracts bodies, queries and names from requests. Invalid ones are refused with a problem that points at the
//! field.

use std::sync::Arc;

use axum::{
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, header, request::Parts},
};
use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment};

use super::{Http, bodies::BodyReader, problem::Problem};
use crate::domain::{Code, Error};

/// A JSON body.
pub struct Json<T>(pub T);

/// The query string. Unknown parameters are refused, because a misspelt filter must not widen a listing.
pub struct Query<T>(pub T);

/// The one name in the path, decoded.
pub struct Name(pub String);

impl<T: DeserializeOwned> FromRequest<Arc<Http>> for Json<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, http: &Arc<Http>) -> Result<Self, Problem> {
        require_json(request.headers())?;
        let (mut parts, body) = request.into_parts();
        let (bytes, _share) = BodyReader::from_request_parts(&mut parts, http).await?.read(body).await?;
        parse(&bytes).map(Json)
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).map(|v| v.to_str().unwrap_or_default());
    let essence = given.map(|v| v.split(';').next().unwrap_or_default().trim());
    match essence {
        Some(essence) if essence.eq_ignore_ascii_case("application/json") => Ok(()),
        Some(_) => Err(Problem::new(Code::MediaTypeUnsupported, "the Content-Type is not application/json")),
        None => Err(Problem::new(Code::MediaTypeUnsupported, "the request has no Content-Type")),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| Problem::invalid("", format!("the body is not UTF-8 (byte {})", e.valid_up_to())))?;
    // Serde would accept an array for a struct, field by field.
    if text.trim_start().starts_with('[') {
        return Err(Problem::invalid("", "expected a JSON object, found an array"));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let value: T = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let inner = error.inner();
        let message = inner.to_string();
        let message = match inner.classify() {
            // The pointer is more precise than the position.
            serde_json::error::Category::Data => message.split(" at line ").next().unwrap_or_default().to_owned(),
            _ => format!("not valid JSON: {message}"),
        };
        Problem::invalid(pointer(error.path(), &message), message)
    })?;
    json.end().map_err(|error| Problem::invalid("", format!("not valid JSON: {error}")))?;
    Ok(value)
}

/// A JSON pointer (RFC 6901). It includes a missing or unknown field, although serde reports only its parent.
fn pointer(path: &Path, message: &str) -> String {
    let mut segments = segments(path);
    if let Some(field) = named_field(message)
        && segments.last().is_none_or(|last| last != field)
    {
        segments.push(field.to_owned());
    }
    segments.iter().map(|s| format!("/{}", s.replace('~', "~0").replace('/', "~1"))).collect()
}

fn segments(path: &Path) -> Vec<String> {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

fn named_field(message: &str) -> Option<&str> {
    ["unknown field `", "missing field `", "duplicate field `"]
        .iter()
        .find_map(|prefix| message.strip_prefix(prefix)?.split('`').next())
}

impl<T: DeserializeOwned> FromRequestParts<Arc<Http>> for Query<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &Arc<Http>) -> Result<Self, Problem> {
        query(parts.uri.query().unwrap_or_default()).map(Query)
    }
}

fn query<T: DeserializeOwned>(query: &str) -> Result<T, Problem> {
    // `cursor=` would start again at the first page, endlessly.
    if let Some((name, _)) = form_urlencoded::parse(query.as_bytes()).find(|(_, value)| value.is_empty()) {
        return Err(Problem::invalid(format!("query:{name}"), "must not be empty"));
    }
    let fields = serde_html_form::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
    serde_path_to_error::deserialize(fields).map_err(|error| {
        let message = error.inner().to_string();
        let name = segments(error.path()).into_iter().next();
        let name = name.or_else(|| named_field(&message).map(str::to_owned)).unwrap_or_default();
        Problem::invalid(format!("query:{name}"), message)
    })
}

impl FromRequestParts<Arc<Http>> for Name {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, http: &Arc<Http>) -> Result<Self, Problem> {
        match axum::extract::Path::<String>::from_request_parts(parts, http).await {
            Ok(axum::extract::Path(name)) => Ok(Name(name)),
            Err(_) => Err(Error::new(Code::NotFound, "the path is not UTF-8").into()),
        }
    }
}

/// Largest number of records on one page.
const MAX_PAGE: u32 = 200;

/// The number of records on a page, from the parameter `limit`.
pub fn page_size(limit: Option<u32>) -> Result<u32, Problem> {
    match limit.unwrap_or(50) {
        limit @ 1..=MAX_PAGE => Ok(limit),
        _ => Err(Problem::invalid("query:limit", format!("1 to {MAX_PAGE}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Outer {
        name: String,
        #[serde(default)]
        inner: Option<Inner>,
        #[serde(default)]
        map: BTreeMap<String, u8>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    enum Inner {
        One { size: u8 },
        Two,
    }

    fn fault(body: &str) -> String {
        match parse::<Outer>(body.as_bytes()) {
            Ok(value) => panic!("{value:?}"),
            Err(problem) => format!("{problem:?}"),
        }
    }

    #[test]
    fn a_fault_points_at_its_field() {
        for (body, pointer) in [
            (r#"{"name":1}"#, "/name"),
            (r#"{"nam":"x"}"#, "/nam"),
            (r#"{}"#, "/name"),
            (r#"{"name":"x","map":{"a/b":"c"}}"#, "/map/a~1b"),
            (r#"{"name":"x","inner":{"kind":"three"}}"#, "/inner/kind"),
            (r#"["x",null,{}]"#, ""),
            (r#"{"name":"x","inner":{"kind":"one","size":1,"more":2}}"#, "/inner/more"),
            (r#"{"name":"x","inner":{"kind":"one"}}"#, "/inner/size"),
            (r#"{"name":"x","#, ""),
            (r#"{"name":"x"} tail"#, ""),
            ("", ""),
        ] {
            let fault = fault(body);
            assert!(fault.contains(&format!("pointer: {pointer:?}")), "{body}: {fault}");
        }
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Asked {
        #[serde(default)]
        state: Vec<crate::domain::State>,
        #[serde(default)]
        limit: Option<u32>,
    }

    #[test]
    fn a_query_takes_repeated_names_and_points_at_its_faults() {
        assert_eq!(query::<Asked>("state=queued&state=running&limit=3").unwrap().state.len(), 2);
        for (text, pointer) in [
            ("limit=x", "query:limit"),
            ("sate=queued", "query:sate"),
            ("limit=", "query:limit"),
            ("state=x", "query:state"),
        ] {
            let fault = format!("{:?}", query::<Asked>(text).unwrap_err());
            assert!(fault.contains(&format!("pointer: {pointer:?}")), "{text}: {fault}");
        }
    }
}
