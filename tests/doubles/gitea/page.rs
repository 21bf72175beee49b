//! Lists in pages.

use serde_json::{Value, json};

use crate::{api::Request, reply::Reply, world::World};

/// One page under this key, beside the count of all. Not every list of the real one has links.
pub fn page(world: &World, request: &Request, key: &str, all: Vec<Value>, links: bool) -> Reply {
    let number = |name: &str| request.query(name).and_then(|v| v.parse::<usize>().ok()).unwrap_or(0);
    let limit = match number("limit") {
        0 => world.knobs.usual_page,
        limit => limit.min(world.knobs.max_page),
    };
    let page = number("page").max(1);
    let total = all.len();
    let items: Vec<Value> = all.into_iter().skip((page - 1).saturating_mul(limit)).take(limit).collect();
    let reply = Reply::ok(json!({key: items, "total_count": total}));
    if !links {
        return reply;
    }
    let reply = reply.with("x-total-count", &total.to_string());
    let links = written(world, request, page, total.div_ceil(limit));
    if links.is_empty() { reply } else { reply.with("link", &links) }
}

/// Links begin with `ROOT_URL`, which need not be the address that was asked.
fn written(world: &World, request: &Request, page: usize, last: usize) -> String {
    let mut wanted = Vec::new();
    if page < last {
        wanted.extend([(page + 1, "next"), (last, "last")]);
    }
    if page > 1 {
        wanted.extend([(1, "first"), (page - 1, "prev")]);
    }
    let link = |(to, rel): (usize, &str)| {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(request.query.iter().filter(|(k, _)| k != "page")).append_pair("page", &to.to_string());
        format!("<{}/{}?{}>; rel=\"{rel}\"", world.root, request.path.join("/"), query.finish())
    };
    wanted.into_iter().map(link).collect::<Vec<_>>().join(",")
}
