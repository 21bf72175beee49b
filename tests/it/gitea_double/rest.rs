//! The REST API: rights, lists, and faults that tests order.

use serde_json::{Value, json};

use super::header;
use crate::support::gitea::Gitea;

async fn status(gitea: &Gitea, method: &str, path: &str, token: &str) -> (u16, String) {
    let (status, _, body) = gitea.ask(method, path, Some(token)).await;
    (status, body["message"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn tokens_are_known_have_scopes_and_belong_to_users() {
    let gitea = Gitea::start().await;
    gitea.tell("orgs", json!({"name": "acme", "owners": ["someone", "boss"], "members": ["member"]})).await;
    gitea.tell("users", json!({"login": "stranger"})).await;
    gitea
        .tell(
            "repos",
            json!({"full_name": "acme/app", "private": true, "collaborators": {"admin": "admin", "dev": "read"}}),
        )
        .await;
    let (repo, org) = ("repos/acme/app/actions", "orgs/acme/actions");
    let registration = |scope: &str| format!("{scope}/runners/registration-token");

    assert_eq!(gitea.ask("GET", &format!("{org}/jobs"), None).await.0, 401);
    assert_eq!(gitea.ask("GET", &format!("{repo}/jobs"), None).await.0, 404, "a private one does not exist");
    let (refused, _) = status(&gitea, "GET", "version", "wrong").await;
    assert_eq!(refused, 401, "a wrong token is refused where none is needed");

    let boss = gitea.token("boss", &["read:repository", "write:organization"]).await;
    assert_eq!(status(&gitea, "GET", &format!("{org}/jobs"), &boss).await.0, 200, "write: includes read:");
    assert_eq!(status(&gitea, "POST", &registration(org), &boss).await.0, 200);
    assert_eq!(status(&gitea, "GET", &format!("{repo}/jobs"), &boss).await.0, 200);
    let (code, said) = status(&gitea, "POST", &registration(repo), &boss).await;
    assert_eq!(code, 403);
    assert!(said.contains("required=[write:repository]"), "{said}");

    for (user, jobs, runners) in [("admin", 200, 403), ("dev", 200, 403), ("stranger", 404, 404), ("member", 404, 404)]
    {
        let token = gitea.token(user, &["all"]).await;
        assert_eq!(status(&gitea, "GET", &format!("{repo}/jobs"), &token).await.0, jobs, "{user}");
        assert_eq!(status(&gitea, "POST", &registration(repo), &token).await.0, runners, "{user}");
        assert_eq!(status(&gitea, "GET", "admin/actions/jobs", &token).await.0, 403, "{user}");
    }
    let member = gitea.token("member", &["all"]).await;
    assert_eq!(status(&gitea, "GET", &format!("{org}/jobs"), &member).await.0, 200);
    let refused = status(&gitea, "GET", &format!("{org}/runners"), &member).await;
    assert_eq!(refused, (403, "Must be an organization owner".to_owned()));
    assert_eq!(status(&gitea, "GET", "orgs/none/actions/jobs", &boss).await.0, 404);
    assert_eq!(status(&gitea, "GET", "orgs/ACME/actions/jobs", &boss).await.0, 200, "names have no case");

    gitea.tell("revoke", json!({"token": boss})).await;
    assert_eq!(status(&gitea, "GET", &format!("{org}/jobs"), &boss).await.0, 401);
}

#[tokio::test]
async fn lists_hold_the_jobs_of_their_scope_in_the_status_that_is_asked_for() {
    let gitea = Gitea::start().await;
    gitea.tell("orgs", json!({"name": "other", "owners": ["someone"]})).await;
    gitea.tell("repos", json!({"full_name": "other/app"})).await;
    let (queued, blocked) =
        (gitea.job(&["mac"]).await, gitea.job_with(json!({"labels": ["mac"], "waiting": true})).await);
    let elsewhere = gitea.job_with(json!({"repository": "other/app", "labels": ["mac"]})).await;
    let over = gitea.job(&["mac"]).await;
    gitea.order("cancel", over.job).await;
    let token = gitea.owner_token().await;
    let ids = async |path: &str| {
        let (status, _, list) = gitea.ask("GET", path, Some(&token)).await;
        assert_eq!(status, 200, "{path}");
        list["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ids("orgs/acme/actions/jobs?status=queued").await, [queued.job]);
    assert_eq!(ids("orgs/acme/actions/jobs?status=waiting").await, [blocked.job]);
    assert_eq!(ids("orgs/acme/actions/jobs?status=in_progress").await, [0u64; 0]);
    assert_eq!(ids("orgs/acme/actions/jobs?status=completed").await, [over.job]);
    assert_eq!(ids("orgs/acme/actions/jobs?status=queued&status=completed").await, [queued.job, over.job]);
    assert_eq!(ids("repos/acme/app/actions/jobs").await, [queued.job, blocked.job, over.job]);
    assert_eq!(ids("admin/actions/jobs?status=queued").await, [queued.job, elsewhere.job]);
    assert_eq!(ids("user/actions/jobs").await, [0u64; 0]);
    assert_eq!(ids(&format!("repos/acme/app/actions/runs/{}/jobs", queued.run)).await, [queued.job]);
    for missing in ["repos/acme/app/actions/runs/99/jobs", "repos/acme/app/actions/jobs/99", "repos/acme/app/actions/x"]
    {
        assert_eq!(status(&gitea, "GET", missing, &token).await.0, 404, "{missing}");
    }
    let other = format!("repos/acme/app/actions/jobs/{}", elsewhere.job);
    assert_eq!(status(&gitea, "GET", &other, &token).await.0, 404, "a job of another repository");
    let refused = status(&gitea, "GET", "orgs/acme/actions/jobs?status=running", &token).await;
    assert_eq!(refused, (400, "Invalid status running".to_owned()));
}

#[tokio::test]
async fn pages_have_fifty_entries_at_most_and_links_to_the_others() {
    let gitea = Gitea::start().await;
    for _ in 0..120 {
        gitea.job(&["mac"]).await;
    }
    let token = gitea.owner_token().await;
    let page = async |query: &str| gitea.ask("GET", &format!("orgs/acme/actions/jobs?{query}"), Some(&token)).await;
    let count = |list: &Value| list["jobs"].as_array().unwrap().len();

    let (_, headers, list) = page("status=queued").await;
    assert_eq!((count(&list), &list["total_count"]), (30, &json!(120)), "as many as the server likes");
    assert_eq!(header(&headers, "x-total-count"), "120");
    assert!(headers.get("etag").is_none());
    let (_, _, list) = page("per_page=100").await;
    assert_eq!(count(&list), 30, "that is GitHub's word");
    let (_, headers, list) = page("status=queued&limit=100&page=2").await;
    assert_eq!((count(&list), &list["jobs"][0]["id"]), (50, &json!(51)));
    let address = format!("{}/api/v1/orgs/acme/actions/jobs?status=queued&limit=100", gitea.root);
    let links = [("3", "next"), ("3", "last"), ("1", "first"), ("1", "prev")];
    let links = links.map(|(page, rel)| format!("<{address}&page={page}>; rel=\"{rel}\""));
    assert_eq!(header(&headers, "link"), links.join(","));
    let (_, headers, list) = page("limit=50&page=3").await;
    assert_eq!(count(&list), 20);
    assert!(!header(&headers, "link").contains("next"));
}

#[tokio::test]
async fn a_server_may_be_below_a_path() {
    let gitea = Gitea::start_below("/git").await;
    assert!(gitea.root.ends_with("/git"), "{}", gitea.root);
    let (status, _, version) = gitea.ask("GET", "version", None).await;
    assert_eq!((status, version), (200, json!({"version": "1.26.3"})));
    let ids = gitea.job(&["mac"]).await;
    let shown = super::shown(&gitea, ids.job).await;
    assert_eq!(shown["html_url"], format!("{}/acme/app/actions/runs/{}/jobs/{}", gitea.root, ids.run, ids.job));
    let program = gitea.register("vm-1", &["mac"]).await;
    assert!(program.fetch().await.unwrap().is_some());
    let wrong = format!("{}/api/v1/version", gitea.root.strip_suffix("/git").unwrap());
    let answer = super::http().get(wrong).send().await.unwrap();
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8", "a page for people");
}

#[tokio::test]
async fn a_wrong_registration_token_is_refused() {
    let gitea = Gitea::start().await;
    let url = format!("{}/api/actions/runner.v1.RunnerService/Register", gitea.root);
    let told = json!({"name": "vm-1", "token": "0".repeat(40), "labels": ["mac"], "ephemeral": true});
    let answer = super::http().post(url).json(&told).send().await.unwrap();
    assert_eq!(answer.status(), 500);
    let refused: Value = answer.json().await.unwrap();
    assert_eq!(refused, json!({"code": "unknown", "message": "runner registration token not found"}));
}

#[tokio::test]
async fn requests_fail_as_often_as_a_test_wants() {
    let gitea = Gitea::start().await;
    let token = gitea.owner_token().await;
    let url = format!("{}/api/v1/orgs/acme/actions/jobs", gitea.root);
    let http = super::http();
    let ask = async || http.get(&url).header("authorization", format!("Bearer {token}")).send().await;

    let fault =
        json!([{"path": "actions/jobs", "times": 2, "then": {"answer": {"status": 502, "body": {"message": "x"}}}}]);
    gitea.tell("faults", fault).await;
    assert_eq!(ask().await.unwrap().status(), 502);
    assert_eq!(ask().await.unwrap().status(), 502);
    assert_eq!(ask().await.unwrap().status(), 200);
    gitea.fault("actions/jobs", json!("drop")).await;
    assert!(ask().await.is_err());
    gitea.fault("actions/jobs", json!("truncate")).await;
    assert!(ask().await.unwrap().bytes().await.is_err());
    gitea.fault("actions/jobs", json!({"say": "<html>"})).await;
    assert_eq!(ask().await.unwrap().text().await.unwrap(), "<html>");
    gitea.fault("registration-token", json!("lose_reply")).await;
    let registration = format!("{}/api/v1/orgs/acme/actions/runners/registration-token", gitea.root);
    let lost = http.post(registration).header("authorization", format!("token {token}")).send().await;
    assert!(lost.is_err());
    assert_eq!(gitea.state().await["registration_tokens"], json!(["orgs/acme"]), "it was done");

    let counts = gitea.state().await["counts"].clone();
    assert_eq!(counts["GET /api/v1/orgs/acme/actions/jobs"], 6);
    let requests = gitea.requests().await;
    assert_eq!(requests.len(), 7);
    assert_eq!((&requests[0]["status"], &requests[0]["user"]), (&json!(502), &json!("someone")));
    assert_eq!(requests[3]["status"], Value::Null);
    assert!(gitea.requests().await.is_empty());
}
