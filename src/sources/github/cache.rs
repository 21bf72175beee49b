//! Caches answers for conditional requests: an unchanged answer costs no rate limit.

use std::collections::HashMap;

use parking_lot::Mutex;
use reqwest::Url;

use super::auth::CredentialIdentity;

/// Total size, in bytes. A page of a hundred runners has about 60 KiB.
const LARGEST: usize = 16 << 20;

#[derive(Clone, Debug)]
pub(super) struct CachedResponse {
    pub etag: String,
    pub body: Vec<u8>,
    /// The next page, as the answer named it.
    pub next: Option<Url>,
}

/// ETags depend on the identity, so an answer is found by URL and identity.
#[derive(Debug, Default)]
pub(super) struct Cache {
    state: Mutex<CacheState>,
}

#[derive(Debug, Default)]
struct CacheState {
    answers: HashMap<(CredentialIdentity, Url), (u64, CachedResponse)>,
    bytes: usize,
    uses: u64,
}

impl Cache {
    pub fn get(&self, who: &CredentialIdentity, url: &Url) -> Option<CachedResponse> {
        let mut state = self.state.lock();
        state.uses += 1;
        let uses = state.uses;
        let (used, answer) = state.answers.get_mut(&(who.clone(), url.clone()))?;
        *used = uses;
        Some(answer.clone())
    }

    pub fn put(&self, who: &CredentialIdentity, url: &Url, answer: CachedResponse) {
        let mut state = self.state.lock();
        state.uses += 1;
        let uses = state.uses;
        state.bytes += answer.body.len();
        if let Some((_, old)) = state.answers.insert((who.clone(), url.clone()), (uses, answer)) {
            state.bytes -= old.body.len();
        }
        while state.bytes > LARGEST {
            let oldest = state.answers.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
            let Some((_, dropped)) = oldest.and_then(|key| state.answers.remove(&key)) else { break };
            state.bytes -= dropped.body.len();
        }
    }

    pub fn forget(&self, who: &CredentialIdentity, url: &Url) {
        let mut state = self.state.lock();
        if let Some((_, old)) = state.answers.remove(&(who.clone(), url.clone())) {
            state.bytes -= old.body.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays() {
        let cache = Cache::default();
        let url = |n: usize| Url::parse(&format!("https://x/{n}")).unwrap();
        let answer = |size| CachedResponse { etag: "e".into(), body: vec![0; size], next: None };
        for n in 0..4 {
            cache.put(&CredentialIdentity::Token, &url(n), answer(LARGEST / 4));
        }
        cache.get(&CredentialIdentity::Token, &url(0)).unwrap();
        cache.put(&CredentialIdentity::Token, &url(4), answer(LARGEST / 4));
        assert!(
            cache.get(&CredentialIdentity::Token, &url(0)).is_some()
                && cache.get(&CredentialIdentity::Token, &url(1)).is_none()
        );
        assert!(cache.get(&CredentialIdentity::App, &url(0)).is_none());
        cache.put(&CredentialIdentity::Token, &url(0), answer(0));
        cache.forget(&CredentialIdentity::Token, &url(4));
        assert_eq!(cache.state.lock().bytes, LARGEST / 2);
    }
}
