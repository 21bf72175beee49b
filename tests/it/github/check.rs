//! `mayfly github check`, as its users see it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    cli::{Mayfly, Ran, run},
    support::github::{App, GitHub, all_permissions, private_file},
};

struct Check {
    mayfly: Mayfly,
    /// What must be in no output.
    secrets: Vec<String>,
}

impl Check {
    fn new(settings: &str, github: &GitHub) -> Check {
        let mayfly = Mayfly::new();
        // `url` is for the links that people follow.
        let toml = format!("[github]\nurl = \"https://github.com\"\napi_url = \"{}\"\n{settings}", github.origin);
        mayfly.write(".mayfly/mayfly.toml", &toml);
        Check { mayfly, secrets: Vec::new() }
    }

    fn app(github: &GitHub, app: &App) -> Check {
        let mut check =
            Check::new(&format!("app_id = \"{}\"\nprivate_key_file = \"app.pem\"\n", app.client_id), github);
        let key = std::fs::read_to_string(&app.key_file).unwrap();
        private_file(&check.mayfly.path(".mayfly/app.pem"), &key);
        check.secrets.push(key.lines().nth(1).unwrap().to_owned());
        check
    }

    async fn token(github: &GitHub, token: Value) -> Check {
        let token = github.tell("tokens", token).await["token"].as_str().unwrap().to_owned();
        let mut check = Check::new("token_file = \"token\"\n", github);
        private_file(&check.mayfly.path(".mayfly/token"), &token);
        check.secrets.push(token);
        check
    }

    async fn run(&self, args: &[&str]) -> Ran {
        let ran = self.mayfly.run(&[&["github", "check"], args].concat()).await;
        for secret in self.secrets.iter().map(String::as_str).chain(["ghs_", "eyJ", "BEGIN RSA PRIVATE KEY-"]) {
            assert!(!ran.out.contains(secret) && !ran.err.contains(secret), "{}{}", ran.out, ran.err);
        }
        if args.contains(&"--json") {
            return ran;
        }
        for line in ran.out.lines().filter(|l| !l.starts_with("          ") || l.starts_with(&" ".repeat(26))) {
            let long_word = line.split_whitespace().any(|word| word.chars().count() > 54);
            assert!(long_word || line.chars().count() <= 80, "{line}");
        }
        ran
    }

    /// Severity by id, and everything that was found in one text.
    async fn found(&self, args: &[&str]) -> (i32, BTreeMap<String, String>, String) {
        let ran = self.run(&[args, &["--json"]].concat()).await;
        let report = ran.json();
        let mut text = String::new();
        let mut severities = BTreeMap::new();
        for finding in report["findings"].as_array().unwrap() {
            let part = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
            let bad = matches!(part("severity").as_str(), "warn" | "fail");
            assert_eq!(bad, finding["remedy"].is_string(), "{finding}");
            text.push_str(&format!("{}: {} -> {}\n", part("id"), part("found"), part("remedy")));
            let before = severities.insert(part("id").trim_start_matches("github.").to_owned(), part("severity"));
            assert!(before.is_none(), "an id stands for two findings: {finding}");
        }
        (ran.code, severities, text)
    }
}

fn all_but<'a>(severities: &'a BTreeMap<String, String>, word: &str) -> Vec<&'a str> {
    severities.iter().filter(|(_, severity)| *severity != word).map(|(id, _)| id.as_str()).collect()
}

#[tokio::test]
async fn an_app_that_has_what_it_takes() {
    let github = GitHub::start().await;
    let app = github.app().await;
    let check = Check::app(&github, &app);
    let (code, severities, text) = check.found(&["--org", "acme"]).await;
    assert_eq!((code, all_but(&severities, "ok")), (0, vec![]), "{text}");
    assert_eq!(severities.len(), 12, "{severities:?}");
    let (code, severities, text) = check.found(&["--repo", "acme/app"]).await;
    assert_eq!((code, all_but(&severities, "ok")), (0, vec!["runner_groups"]), "{text}");
    let (code, _, text) = check.found(&[]).await;
    assert!(code == 0 && text.contains("github.installation: acme ->"), "{text}");

    let ran = check.run(&["--org", "acme"]).await.ends(0);
    assert!(ran.out.contains("ok    Runners: register") && ran.out.ends_with("12 ok\n"), "{}", ran.out);
    let methods: Vec<Value> = github.requests().await.into_iter().map(|r| json!([r["method"], r["path"]])).collect();
    let changes = methods.iter().filter(|r| r[0] != "GET" && !r[1].as_str().unwrap().ends_with("/access_tokens"));
    assert_eq!(changes.collect::<Vec<_>>(), Vec::<&Value>::new(), "nothing is created to find out");
    // The service is not needed, and nothing is made in its directory.
    assert!(!check.mayfly.path(".mayfly/mayfly.db").exists());
}

#[tokio::test]
async fn a_key_that_others_can_read_is_refused_before_anything_is_sent() {
    use std::os::unix::fs::PermissionsExt;
    let github = GitHub::start().await;
    let check = Check::app(&github, &github.app().await);
    let key = check.mayfly.path(".mayfly/app.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, severities, text) = check.found(&["--org", "acme"]).await;
    assert_eq!((code, severities.len()), (1, 1), "{text}");
    assert!(text.contains("mode 0644") && text.contains("chmod 600"), "{text}");
    private_file(&key, "hunter2");
    let (_, _, text) = check.found(&[]).await;
    assert!(text.contains("expected an RSA private key in PEM") && !text.contains("hunter2"), "{text}");
    std::fs::remove_file(&key).unwrap();
    assert!(check.found(&[]).await.2.contains("there is no"));
    assert!(github.requests().await.is_empty());
}

#[tokio::test]
async fn missing_permissions_are_reported_with_who_can_grant_them() {
    let github = GitHub::start().await;
    let less = json!({"organization_self_hosted_runners": "read", "metadata": "read"});
    let app = github.app_with(less, json!([])).await;
    let check = Check::app(&github, &app);
    let (code, severities, text) = check.found(&["--org", "acme"]).await;
    assert_eq!(code, 1);
    for (id, severity) in [
        ("events", "warn"),
        ("permissions", "fail"),
        ("runners.write", "fail"),
        ("jobs", "fail"),
        ("app", "ok"),
        ("installation", "ok"),
    ] {
        assert_eq!(severities[id], severity, "{id}: {text}");
    }
    assert!(text.contains("missing: organization_self_hosted_runners=write, actions=read"), "{text}");
    assert!(text.contains("in the App's settings"), "{text}");

    let (code, severities, text) = check.found(&["--org", "other"]).await;
    assert_eq!((code, severities["installation"].as_str()), (1, "fail"), "{text}");
    assert!(text.contains("https://github.com/apps/mayfly-") && text.contains("/installations/new"), "{text}");
    github.tell("suspend", json!({"installation": app.installation})).await;
    assert!(check.found(&["--org", "acme"]).await.2.contains("is suspended since"));
}

#[tokio::test]
async fn an_app_that_is_another_one_and_a_clock_that_is_wrong() {
    let github = GitHub::start().await;
    let app = github.app().await;
    let check = Check::new("app_id = 4711\nprivate_key_file = \"app.pem\"\n", &github);
    private_file(&check.mayfly.path(".mayfly/app.pem"), &std::fs::read_to_string(&app.key_file).unwrap());
    let (code, severities, text) = check.found(&[]).await;
    assert_eq!((code, severities["app"].as_str(), severities["reachable"].as_str()), (1, "fail", "ok"), "{text}");
    assert!(text.contains("belong to the same App"), "{text}");

    let check = Check::app(&github, &app);
    github.tell("clock", json!({"seconds": 40})).await;
    let (code, severities, text) = check.found(&[]).await;
    assert_eq!((code, severities["clock"].as_str()), (0, "warn"), "{text}");
    github.tell("clock", json!({"seconds": 900})).await;
    let (code, severities, text) = check.found(&[]).await;
    assert_eq!((code, severities["clock"].as_str(), severities["app"].as_str()), (1, "fail", "fail"), "{text}");
    assert!(text.contains("behind GitHub's: signed tokens are refused"), "{text}");
}

#[tokio::test]
async fn personal_tokens() {
    let github = GitHub::start().await;
    let check = Check::token(&github, json!({"classic": "repo, admin:org", "sees": ["acme"], "seconds": 86400})).await;
    let (code, severities, text) = check.found(&["--org", "acme"]).await;
    assert_eq!((code, all_but(&severities, "ok")), (0, vec!["jobs"]), "{text}");
    assert!(text.contains("accepted; expires 20"), "{text}");
    let (code, severities, text) = check.found(&["--repo", "acme/app"]).await;
    assert_eq!((code, severities["jobs"].as_str()), (0, "ok"), "{text}");
    let (code, severities, _) = check.found(&["--org", "other"]).await;
    assert_eq!((code, severities["runners.read"].as_str()), (1, "fail"));
    github.advance(90000).await;
    let (code, severities, text) = check.found(&["--org", "acme"]).await;
    assert_eq!((code, severities["token"].as_str()), (1, "fail"), "{text}");

    let few = Check::token(&github, json!({"classic": "repo", "sees": ["acme"]})).await;
    let (code, severities, text) = few.found(&["--org", "acme"]).await;
    assert_eq!((code, severities["runners.write"].as_str()), (1, "fail"), "{text}");
    assert!(text.contains("admin:org"), "{text}");

    let fine = json!({"fine_grained": all_permissions(), "sees": ["acme"]});
    let fine = Check::token(&github, fine).await;
    let (code, severities, text) = fine.found(&["--org", "acme"]).await;
    assert_eq!((code, severities["runners.write"].as_str()), (7, "skip"), "{text}");
}

#[tokio::test]
async fn secrets_from_the_environment() {
    let github = GitHub::start().await;
    let (_, token) = github.holder().await;
    let mut check = Check::new("", &github);
    check.secrets.push(token.clone());
    let (code, _, text) = check.found(&[]).await;
    assert!(code == 1 && text.contains("there is none"), "{text}");
    let ran = run(check.mayfly.command(&["github", "check", "--org", "acme"]).env("MAYFLY_GITHUB_TOKEN", &token)).await;
    let ran = ran.ends(0);
    assert!(ran.out.contains("personal access token from MAYFLY_GITHUB_TOKEN"), "{}", ran.out);
    assert!(!ran.out.contains(&token) && !ran.err.contains(&token));

    let app = github.app().await;
    let check = Check::new(&format!("app_id = \"{}\"\n", app.client_id), &github);
    assert!(check.found(&[]).await.2.contains("MAYFLY_GITHUB_PRIVATE_KEY"));
    let key = std::fs::read_to_string(&app.key_file).unwrap();
    let mut command = check.mayfly.command(&["github", "check", "--org", "acme"]);
    run(command.env("MAYFLY_GITHUB_PRIVATE_KEY", key)).await.ends(0);
}

#[tokio::test]
async fn limits_that_are_nearly_spent_and_a_server_that_is_not_there() {
    let github = GitHub::start().await;
    let check = Check::token(&github, json!({"classic": "admin:org", "sees": ["acme"]})).await;
    github.tell("knobs", json!({"rate_limit": 12})).await;
    check.found(&["--org", "acme"]).await;
    for n in 0..6 {
        let (code, severities, text) = check.found(&["--org", "acme"]).await;
        if severities["rate_limit"] != "ok" {
            assert!(["warn", "skip"].contains(&severities["rate_limit"].as_str()) && code != 1, "{text}");
            break;
        }
        assert!(n < 5, "{text}");
    }
    check.mayfly.write(".mayfly/mayfly.toml", "[github]\nurl = \"http://127.0.0.1:9\"\ntoken_file = \"token\"\n");
    let (code, severities, text) = check.found(&["--org", "acme"]).await;
    assert_eq!((code, severities["reachable"].as_str()), (1, "fail"), "{text}");
}

#[tokio::test]
async fn an_enterprise_server() {
    let github = GitHub::start().await;
    let app = github.app().await;
    let check = Check::app(&github, &app);
    github.tell("knobs", json!({"rate_limit": null})).await;
    let toml = format!("[github]\nurl = \"{}\"\napp_id = {}\nprivate_key_file = \"app.pem\"\n", github.origin, app.id);
    check.mayfly.write(".mayfly/mayfly.toml", &toml);
    let (code, _, text) = check.found(&["--org", "acme"]).await;
    assert!(code == 0 && text.contains("(Enterprise Server 3.17.2)") && text.contains("none is set"), "{text}");
}

#[tokio::test]
async fn a_configuration_that_cannot_be_meant() {
    let mayfly = Mayfly::new();
    for (toml, said) in [
        ("url = \"http://github.acme.example\"", "`github.url`: expected https"),
        ("url = \"github.com\"", "`github.url`: expected a URL"),
        ("api_url = \"ftp://x\"", "`github.api_url`: expected a URL"),
        ("app_id = 1\ntoken_file = \"t\"\nprivate_key_file = \"k\"", "`github.token_file`: an App is set, too"),
        ("private_key_file = \"k\"", "`github.private_key_file`: needs `github.app_id`"),
        ("installation_id = 7", "`github.installation_id`: needs `github.app_id`"),
        ("app_id = \"a b\"", "`github.app_id`: expected client id or number"),
        ("api_version = \"\"", "`github.api_version`: expected a version"),
        ("token = \"ghp_hunter2\"", "unknown key `github.token`; did you mean `github.token_file`?"),
    ] {
        mayfly.write(".mayfly/mayfly.toml", &format!("[github]\n{toml}\n"));
        let ran = mayfly.run(&["github", "check"]).await.ends(2);
        assert!(ran.err.contains(said) && !ran.err.contains("hunter2"), "{toml}: {}", ran.err);
    }
    mayfly.write(".mayfly/mayfly.toml", "");
    for args in [["--repo", "acme"], ["--org", "a/b"]] {
        let ran = mayfly.run(&[&["github", "check"], &args[..]].concat()).await.ends(2);
        assert!(ran.err.contains("expected"), "{}", ran.err);
    }
    mayfly.run(&["github", "check", "--repo", "a/b", "--org", "c"]).await.ends(2);
}
