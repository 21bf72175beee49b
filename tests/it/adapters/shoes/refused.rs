//! What cannot be done is said in one sentence, with a code by which the host drops the job or asks again.

use serde_json::Value;
use tonic::Code;

use super::{SECRET, Shoes, messages::AddInstanceRequest, request};

#[tokio::test]
async fn a_request_that_nothing_can_set_right_drops_the_job() {
    let shoes = Shoes::new().await;
    let usual = request("myshoes-a", SECRET);
    for (asked, named) in [
        (AddInstanceRequest { runner_name: String::new(), ..usual.clone() }, "runner_name"),
        (AddInstanceRequest { runner_name: "a\nb".to_owned(), ..usual.clone() }, "runner_name"),
        (AddInstanceRequest { setup_script: " \n".to_owned(), ..usual.clone() }, "setup_script"),
        (AddInstanceRequest { setup_script: SECRET.repeat(5000), ..usual.clone() }, "setup_script: at most"),
        (AddInstanceRequest { resource_type: 10, ..usual.clone() }, "resource_type: 10"),
    ] {
        let status = shoes.add(asked, None).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(named), "{named}: {status}");
    }
    assert_eq!(shoes.vms().await, Vec::<Value>::new());
    assert!(!shoes.logs().contains(SECRET));
}

#[tokio::test]
async fn the_way_to_the_service_is_named_when_it_does_not_work() {
    let shoes = Shoes::new().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let wrong = shoes.write("wrong-token", SECRET);
    let reader = shoes.write("read-token", &shoes.api.read);
    let token = shoes.path("token");
    let config = |url: &str, token: &std::path::Path, more: &str| {
        format!("url = '{url}'\ntoken_file = '{}'\ntemplate = 'micro'\n{more}", token.display())
    };
    let url = shoes.api.url.clone();
    let usual = config(&url, &token, "");
    for (text, code, named) in [
        (config(&url, &wrong, ""), Code::Unauthenticated, "wrong-token is not accepted"),
        (config(&url, &reader, ""), Code::PermissionDenied, "auth."),
        (config(&url, &shoes.path("no-such-file"), ""), Code::FailedPrecondition, "`token_file` in "),
        (config(&closed, &token, ""), Code::Unavailable, "no answer from Mayfly at 127.0.0.1:"),
        (config("ftp://h.example", &token, ""), Code::FailedPrecondition, "shoes.toml: expected a URL"),
        (config("http://h.example", &token, ""), Code::FailedPrecondition, "in clear"),
        (usual.replace("micro", "nothing"), Code::FailedPrecondition, "nothing"),
        (config(&url, &token, "[defaults]\ncpus = 64\n"), Code::FailedPrecondition, "cpus: 1 to 8"),
        (config(&url, &token, "urll = 'x'\n"), Code::FailedPrecondition, "line 4: unknown field"),
        ("template = 'micro'\n".to_owned(), Code::FailedPrecondition, "no service is named"),
    ] {
        shoes.write("shoes.toml", &text);
        let within = std::time::Duration::from_secs(if text.contains(&closed) { 4 } else { 20 });
        let status = shoes.add(request("myshoes-a", SECRET), Some(within)).await.unwrap_err();
        assert!(status.message().contains(named), "{named}: {status}");
        assert_eq!(status.code(), code, "{status}");
        assert!(!status.message().contains(SECRET), "{status}");
    }
    std::fs::remove_file(shoes.path("shoes.toml")).unwrap();
    let status = shoes.delete("0191a1b2-0000-7000-8000-000000000000").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("MAYFLY_SHOES_CONFIG"), "{status}");
    assert_eq!(shoes.vms().await, Vec::<Value>::new());
    assert!(!shoes.logs().contains(SECRET));
}
