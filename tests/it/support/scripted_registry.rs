//! A registry that answers as a test says: what the distribution's own, behind a proxy, cannot be made to answer.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Response, StatusCode, header::AUTHORIZATION},
};
use tokio::{net::TcpListener, task::JoinHandle};

use super::tart_image::{MANIFEST, TartImage};

/// A request, as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub query: String,
    pub authorization: Option<String>,
}

/// The answer to the nth request, counted from 1; `None`: what the registry has.
pub type Script = dyn Fn(&Asked, usize) -> Option<Response<Body>> + Send + Sync;

pub struct ScriptedRegistry {
    pub address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    serving: JoinHandle<()>,
}

struct Shared {
    manifest: Vec<u8>,
    blobs: Vec<(String, Vec<u8>)>,
    script: Box<Script>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl ScriptedRegistry {
    /// Has this image, in every repository and under every tag.
    pub async fn with(
        image: &TartImage,
        script: impl Fn(&Asked, usize) -> Option<Response<Body>> + Send + Sync + 'static,
    ) -> ScriptedRegistry {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, image, script)
    }

    pub fn on(
        listener: TcpListener,
        image: &TartImage,
        script: impl Fn(&Asked, usize) -> Option<Response<Body>> + Send + Sync + 'static,
    ) -> ScriptedRegistry {
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::default();
        let shared = Arc::new(Shared {
            manifest: image.manifest(),
            blobs: image.layers.iter().map(|layer| (layer.digest(), layer.blob.clone())).collect(),
            script: Box::new(script),
            asked: Arc::clone(&asked),
        });
        let router = Router::new().fallback(answer).with_state(shared);
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        ScriptedRegistry { address, asked, serving }
    }

    /// The requests whose path ends so.
    pub fn asked(&self, ending: &str) -> Vec<Asked> {
        self.asked.lock().unwrap().iter().filter(|asked| asked.path.ends_with(ending)).cloned().collect()
    }
}

impl Drop for ScriptedRegistry {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let authorization = request.headers().get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
    let asked = Asked { path, query, authorization };
    let number = {
        let mut all = shared.asked.lock().unwrap();
        all.push(asked.clone());
        all.len()
    };
    if let Some(answer) = (shared.script)(&asked, number) {
        return answer;
    }
    if asked.path == "/v2/" {
        return status(200);
    }
    if asked.path.contains("/manifests/") {
        return Response::builder().header("content-type", MANIFEST).body(shared.manifest.clone().into()).unwrap();
    }
    match shared.blobs.iter().find(|(digest, _)| asked.path.ends_with(digest)) {
        Some((_, blob)) => Response::new(blob.clone().into()),
        None => status(404),
    }
}

pub fn status(status: u16) -> Response<Body> {
    with_headers(status, &[])
}

pub fn with_headers(status: u16, headers: &[(&str, &str)]) -> Response<Body> {
    let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Body::empty()).unwrap()
}
