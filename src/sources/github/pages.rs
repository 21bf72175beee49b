//! Lists in pages, and conditional requests.

use std::collections::HashSet;

use reqwest::{
    StatusCode, Url,
    header::{ETAG, LINK},
};
use serde::de::DeserializeOwned;

use super::{
    GitHubClient, GitHubError,
    cache::CachedResponse,
    client::As,
    exchange::{Call, header},
};

/// Twenty thousand runners: GitHub allows ten thousand in a group.
pub(super) const MOST_PAGES: usize = 200;

impl GitHubClient {
    /// All pages, with conditional requests: an unchanged page costs nothing.
    pub(super) async fn pages<P: DeserializeOwned>(&self, name: As<'_>, mut call: Call) -> Result<Vec<P>, GitHubError> {
        let mut pages = Vec::new();
        let mut seen = HashSet::new();
        loop {
            let (page, next) = self.page(name, &mut call).await?;
            pages.push(page);
            seen.insert(call.url.clone());
            match next {
                None => return Ok(pages),
                Some(next) if pages.len() < MOST_PAGES && !seen.contains(&next) => call.url = next,
                Some(_) => return Err(self.unparsable(&call, "pages without an end".to_owned())),
            }
        }
    }

    /// One page, and the URL of the next one.
    pub(super) async fn page<P: DeserializeOwned>(
        &self,
        name: As<'_>,
        call: &mut Call,
    ) -> Result<(P, Option<Url>), GitHubError> {
        // The identity may change between attempts, so the cache is queried for each attempt.
        let who = self.identity(name).await?;
        let remembered = self.cache.get(&who, &call.url);
        call.if_none_match = remembered.as_ref().map(|r| r.etag.clone());
        let (answered_to, answer) = self.call(name, call).await?;
        match (answer.status, remembered) {
            (StatusCode::NOT_MODIFIED, Some(known)) if answered_to == who => {
                let page = self.parsed(call, &known.body)?;
                Ok((page, known.next))
            }
            (StatusCode::OK, _) => {
                let page = self.parsed(call, &answer.body)?;
                let next = self.next_page(call, header(&answer.headers, LINK))?;
                match header(&answer.headers, ETAG) {
                    Some(etag) if !call.secret => {
                        let etag = etag.to_owned();
                        let known = CachedResponse { etag, body: answer.body.to_vec(), next: next.clone() };
                        self.cache.put(&answered_to, &call.url, known);
                    }
                    _ => self.cache.forget(&answered_to, &call.url),
                }
                Ok((page, next))
            }
            _ => Err(self.refused(call, &answer)),
        }
    }

    /// The link to the next page. It must point to the same server, because the token is sent there.
    fn next_page(&self, call: &Call, link: Option<&str>) -> Result<Option<Url>, GitHubError> {
        let Some(next) = link.and_then(next_link) else { return Ok(None) };
        match call.url.join(next) {
            Ok(url)
                if url.origin() == call.url.origin()
                    && url.path().starts_with(self.exchange.options().server.api().path()) =>
            {
                Ok(Some(url))
            }
            _ => Err(self.unparsable(call, "a next page on another server".to_owned())),
        }
    }
}

/// `rel="next"` of a `Link` header.
fn next_link(header: &str) -> Option<&str> {
    header.split(',').find_map(|link| {
        let (target, parameters) = link.split_once(';')?;
        let next = parameters.split(';').any(|p| matches!(p.trim(), "rel=\"next\"" | "rel=next"));
        next.then(|| target.trim().strip_prefix('<')?.strip_suffix('>')).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_the_others() {
        let link = "<https://x/a?page=1>; rel=\"prev\", <https://x/a?page=3>; rel=\"next\", <https://x/a?page=9>; rel=\"last\"";
        assert_eq!(next_link(link), Some("https://x/a?page=3"));
        assert_eq!(next_link("<https://x/a?page=1>; rel=\"first\""), None);
        assert_eq!(next_link("rubbish; rel=\"next\""), None);
        assert_eq!(next_link(""), None);
    }
}
