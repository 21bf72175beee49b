//! Lists in pages, with links to the others.

use serde_json::{Value, json};

use crate::{api::ApiRequest, reply::Reply};

/// A page of what there is, under this key and beside the count of all; without a key, the bare list.
pub fn page(asked: &ApiRequest, key: Option<&str>, all: Vec<Value>) -> Reply {
    let number = |name: &str, usual: usize| asked.query(name).and_then(|v| v.parse().ok()).unwrap_or(usual);
    let per_page = number("per_page", 30).clamp(1, 100);
    let page = number("page", 1).max(1);
    let total = all.len();
    let last = total.div_ceil(per_page).max(1);
    let items: Vec<Value> = all.into_iter().skip((page - 1) * per_page).take(per_page).collect();
    let mut links = Vec::new();
    let mut link = |to: usize, rel: &str| {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(asked.query.iter().filter(|(k, _)| k != "page")).append_pair("page", &to.to_string());
        links.push(format!("<{}?{}>; rel=\"{rel}\"", asked.url, query.finish()));
    };
    if page > 1 {
        link(page - 1, "prev");
    }
    if page < last {
        link(page + 1, "next");
        link(last, "last");
    }
    if page > 1 {
        link(1, "first");
    }
    let reply = match key {
        Some(key) => Reply::ok(json!({"total_count": total, key: items})),
        None => Reply::ok(Value::Array(items)),
    };
    if links.is_empty() { reply } else { reply.with("link", &links.join(", ")) }
}
