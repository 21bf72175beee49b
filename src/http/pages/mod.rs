//! HTML pages: the status page, the API's documentation, a page per error code. They load nothing from other servers.

use std::{fmt::Write, sync::LazyLock};

use axum::{
    Router,
    http::{HeaderName, HeaderValue, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use sha2::{Digest, Sha256};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::{extract::Name, problem::Problem};
use crate::domain::Code;

const STYLE: &str = include_str!("style.css");
const STATUS_STYLE: &str = include_str!("status.css");
const STATUS_BODY: &str = include_str!("status.html");
const STATUS_SCRIPT: &str = include_str!("status.js");

type Page = ([(HeaderName, String); 3], String);

/// A whole page. Its content security policy allows only this style and script, by their hashes.
fn page(title: &str, styles: &[&str], body: &str, script: Option<&str>) -> Page {
    let style = styles.concat();
    let hash = |text: &str| format!("'sha256-{}'", BASE64.encode(Sha256::digest(text)));
    let mut policy = format!(
        "default-src 'none'; style-src {}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(&style)
    );
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n<link rel=\"icon\" href=\"data:,\">\n<style>{style}</style>\n</head>\n<body>\n{body}",
        escape(title)
    );
    if let Some(script) = script {
        let _ = write!(policy, "; script-src {}", hash(script));
        let _ = write!(html, "\n<script>{script}</script>");
    }
    html.push_str("\n</body>\n</html>\n");
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, format!("{policy}; img-src data:")),
        (header::CACHE_CONTROL, "no-cache".to_owned()),
    ];
    (headers, html)
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Text of the catalogue, in which back-ticks mark code.
fn prose(text: &str) -> String {
    let mut out = String::new();
    for (n, part) in text.split('`').enumerate() {
        if n % 2 == 1 {
            let _ = write!(out, "<code>{}</code>", escape(part));
        } else {
            out.push_str(&escape(part));
        }
    }
    out
}

/// Status page
///
/// Host, queue and vms, live. It prompts for a token and keeps it for the browser tab.
#[utoipa::path(
    get, path = "/", tag = "pages",
    responses((status = 200, description = "The page", body = String, content_type = "text/html", example = json!("<!doctype html>…"))),
    security(()),
)]
pub async fn get_status_page() -> Page {
    static PAGE: LazyLock<Page> =
        LazyLock::new(|| page("Mayfly", &[STYLE, STATUS_STYLE], STATUS_BODY, Some(STATUS_SCRIPT)));
    PAGE.clone()
}

/// All error codes
#[utoipa::path(
    get, path = "/problems", tag = "pages",
    responses((status = 200, description = "The page", body = String, content_type = "text/html", example = json!("<!doctype html>…"))),
    security(()),
)]
pub async fn list_problems() -> Page {
    let mut body = String::from(
        "<main class=\"prose\">\n<nav><a href=\"/\">Mayfly</a> · <a href=\"/docs/\">API</a></nav>\n<h1>Error codes</h1>\n<p>Every error is a problem document (RFC 9457) with one of these codes. Codes are stable: they are added and never renamed. Some of them never answer a request and show in a vm's <code>outcome</code> and <code>last_fault</code>.</p>\n<table>\n<thead><tr><th>Code</th><th>Status</th><th>Meaning</th></tr></thead>\n<tbody>\n",
    );
    for code in Code::ALL {
        let _ = writeln!(
            body,
            "<tr><td><a href=\"/problems/{code}\"><code>{code}</code></a></td><td>{}</td><td>{}</td></tr>",
            code.status(),
            prose(code.title())
        );
    }
    body.push_str("</tbody>\n</table>\n</main>");
    page("Error codes · Mayfly", &[STYLE], &body, None)
}

/// One error code
#[utoipa::path(
    get, path = "/problems/{code}", tag = "pages",
    params(("code" = Code, Path, example = "vm.not_found")),
    responses((status = 200, description = "The page", body = String, content_type = "text/html", example = json!("<!doctype html>…"))),
    security(()),
)]
pub async fn get_problem(Name(slug): Name) -> Result<Page, Problem> {
    let code = Code::ALL
        .iter()
        .find(|code| code.slug() == slug)
        .ok_or_else(|| Problem::new(Code::NotFound, "no error has this code; see /problems for all of them"))?;
    let again =
        if code.retryable() { "The same request may succeed later." } else { "The same request will fail again." };
    let body = format!(
        "<main class=\"prose\">\n<nav><a href=\"/\">Mayfly</a> · <a href=\"/problems\">Error codes</a></nav>\n<h1>{}</h1>\n<p><code>{code}</code> · HTTP status {}</p>\n<p>{}</p>\n<p>{again}</p>\n</main>",
        prose(code.title()),
        code.status(),
        prose(code.remedy()),
    );
    Ok(page(&format!("{code} · Mayfly"), &[STYLE], &body, None))
}

/// The OpenAPI document
#[utoipa::path(
    get, path = "/openapi.json", tag = "pages",
    responses((status = 200, description = "This document", body = Object, content_type = "application/json", example = json!({"openapi": "3.1.0"}))),
    security(()),
)]
pub async fn get_openapi() -> Response {
    static JSON: LazyLock<String> = LazyLock::new(super::openapi_json);
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-cache")];
    (headers, JSON.as_str()).into_response()
}

/// Swagger UI, served from this program.
pub fn docs<S: Clone + Send + Sync + 'static>() -> Router<S> {
    // "none": otherwise it would send the document to a validator on the internet.
    let config = Config::from("/openapi.json").validator_url("none").display_request_duration(true);
    Router::from(SwaggerUi::new("/docs").config(config)).layer(middleware::from_fn(docs_policy))
}

async fn docs_policy(request: axum::extract::Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(
        header::CONTENT_SECURITY_POLICY,
        // Swagger UI sets inline styles, and its styles contain icons.
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(prose("a <b> `c&d`"), "a &lt;b&gt; <code>c&amp;d</code>");
    }

    #[tokio::test]
    async fn every_code_has_a_page() {
        for code in Code::ALL {
            let (_, html) = get_problem(Name(code.slug().to_owned())).await.unwrap();
            assert!(html.contains(code.slug()) && html.contains(&prose(code.remedy())), "{code}");
        }
        assert!(get_problem(Name("no.such".to_owned())).await.is_err());
    }
}
