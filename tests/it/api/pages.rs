use mayfly::domain::Code;

use super::api;

#[tokio::test]
async fn pages_need_no_token_and_load_nothing_from_elsewhere() {
    let api = api().await;
    for path in ["/", "/problems", "/problems/vm.not_found", "/docs/", "/docs/swagger-initializer.js"] {
        let got = api.get(path, "").await;
        assert_eq!(got.status.as_u16(), 200, "{path}");
        assert_eq!(got.header("x-content-type-options"), "nosniff");
        let policy = got.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{path}: {policy}"
        );
        for from in ["src=\"http", "href=\"http", "src=\"//", "url(http"] {
            assert!(!got.text.contains(from), "{path} loads from elsewhere");
        }
    }
    let docs = api.get("/docs/swagger-initializer.js", "").await;
    assert!(docs.text.contains("/openapi.json"), "{}", docs.text);
    assert!(docs.text.contains("\"validatorUrl\": \"none\""), "it must not call home: {}", docs.text);
    assert_eq!(api.get("/docs", "").await.status.as_u16(), 303);
    assert_eq!(api.get("/docs/swagger-ui-bundle.js", "").await.status.as_u16(), 200);
}

#[tokio::test]
async fn every_code_has_a_page() {
    let api = api().await;
    let all = api.get("/problems", "").await.text;
    for code in Code::ALL {
        assert!(all.contains(&format!("/problems/{code}\"")), "{code}");
        assert_eq!(api.get(&format!("/problems/{code}"), "").await.status.as_u16(), 200, "{code}");
    }
}

#[tokio::test]
async fn metrics_are_for_readers() {
    let api = api().await;
    let got = api.get("/metrics", &api.read).await;
    assert_eq!(got.text, "# TYPE mayfly_up gauge\nmayfly_up 1\n");
    assert!(got.header("content-type").starts_with("text/plain; version=0.0.4"));
}
