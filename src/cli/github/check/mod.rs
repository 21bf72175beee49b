//! Runs the checks of GitHub in the order of their dependencies. A check that is not possible is reported as such;
//! nothing is created at GitHub to find out.

mod judge;

use crate::{
    cli::{
        doctor::finding::{Finding, Report},
        text,
    },
    sources::github::{CredentialLocation, GitHubClient, GitHubError, GitHubOptions, Scope},
};
use judge::{
    APP, CREDENTIAL, GROUPS, INSTALLATION, JOBS, JOBS_REMEDY, NO_PLACE, PLACE, REACHABLE, TOKEN, account, clock,
    events, installations, jobs, limits, permissions, registering, token_scopes, visible,
};

pub async fn examine(
    options: GitHubOptions,
    source: Result<Option<CredentialLocation>, String>,
    scope: Option<&Scope>,
) -> Report {
    let web = options.server.web().to_string();
    let server = options.server.name();
    let described = source.as_ref().ok().and_then(Option::as_ref).map(CredentialLocation::describe);
    let client = match source {
        Ok(Some(source)) => GitHubClient::new(options, source).map_err(|error| match error {
            GitHubError::Settings { what } => what,
            error => error.to_string(),
        }),
        Ok(None) => Err("there is none".to_owned()),
        Err(why) => Err(why),
    };
    let mut look = Look { findings: Vec::new(), web, server };
    match client {
        Ok(client) => {
            look.add(CREDENTIAL.ok(described.unwrap_or_default()));
            if client.is_app() {
                look.app(&client, scope).await;
            } else {
                look.token(&client, scope).await;
            }
        }
        Err(why) => look.add(CREDENTIAL.fail(why, CREDENTIAL_REMEDY)),
    }
    Report { findings: look.findings }
}

const CREDENTIAL_REMEDY: &str = "set `github.app_id` and `github.private_key_file`, or `github.token_file`, in mayfly.toml, and \
                                 keep the file to this user:\n    chmod 600 <file>";

struct Look {
    findings: Vec<Finding>,
    web: String,
    server: String,
}

impl Look {
    fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Evaluates the first answer: whether it comes from GitHub, and how much the clocks differ. `false`: further
    /// requests are useless.
    fn reached<T>(&mut self, client: &GitHubClient, answer: &Result<T, GitHubError>) -> bool {
        match answer {
            Err(error @ GitHubError::Unavailable { .. }) => {
                self.add(REACHABLE.fail(
                    error.to_string(),
                    "check `github.url`, the network and its proxy, and `github.ca_file` for a private authority",
                ));
                return false;
            }
            Err(error @ GitHubError::Unparsable { .. }) => {
                self.add(
                    REACHABLE
                        .fail(error.to_string(), "check `github.url` and `github.api_url`: this is no GitHub's API"),
                );
                return false;
            }
            Err(GitHubError::Refused { status: 400, said, .. }) => {
                self.add(REACHABLE.fail(format!("refuses every request: {said}"), "check `github.api_version`"));
                return false;
            }
            _ => {}
        }
        let observed = client.observed();
        let server = match &observed.enterprise_version {
            Some(version) => format!("{} (Enterprise Server {version})", self.server),
            None => self.server.clone(),
        };
        let version = observed.api_version.map(|v| format!(", API version {v}")).unwrap_or_default();
        self.add(REACHABLE.ok(format!("{server}{version}")));
        self.add(clock(observed.clock_ahead, client.is_app()));
        true
    }

    async fn app(&mut self, client: &GitHubClient, scope: Option<&Scope>) {
        let answer = client.app().await;
        if !self.reached(client, &answer) {
            return;
        }
        let app = match answer {
            Ok(app) => app,
            Err(error) => {
                let remedy = match &error {
                    GitHubError::RateLimited { .. } => "wait, and look at what else uses this App",
                    _ => {
                        "check that `github.app_id` and the private key belong to the same App; its page gives the id, and \
                         makes a new key"
                    }
                };
                return self.add(APP.fail(error.to_string(), remedy));
            }
        };
        let name = app.name.as_deref().or(app.slug.as_deref()).unwrap_or("without a name");
        self.add(APP.ok(format!("{name} (number {})", app.id)));
        self.add(events(&app));
        let Some(scope) = scope else {
            let finding = installations(client.installations().await, &app, &self.web);
            self.add(finding);
            return self.add(PLACE.not_needed(NO_PLACE));
        };
        let found = match client.configured_installation() {
            Some(id) => client.installation(id).await,
            None => client.installation_of(scope).await,
        };
        let installation = match found {
            Ok(installation) => installation,
            Err(error) => {
                let slug = app.slug.as_deref().unwrap_or("<name>");
                let install = format!(
                    "install it there, or include the repository in its installation:\n    {}apps/{slug}/installations/new",
                    self.web
                );
                let finding = match &error {
                    GitHubError::NotVisible { .. } => {
                        INSTALLATION.fail(format!("the App is not installed in {scope}"), install)
                    }
                    _ => INSTALLATION.could_not_look(&error),
                };
                return self.add(finding);
            }
        };
        if let Some(at) = installation.suspended_at {
            let found = format!("{} is suspended since {}", account(&installation), text::time(at));
            return self.add(
                INSTALLATION.fail(found, "an owner of the account lifts that, in its settings under GitHub Apps"),
            );
        }
        let repositories = installation.repository_selection.as_deref().unwrap_or("unknown");
        self.add(INSTALLATION.ok(format!(
            "{} (number {}), {repositories} repositories",
            account(&installation),
            installation.id
        )));
        self.add(permissions(scope, &app.permissions, &installation.permissions));
        let read = client.visible(scope).await;
        self.add(visible(scope, &read));
        self.add(registering(scope, &installation.permissions));
        self.check_scope_permissions(client, scope, read.is_ok(), installation.permissions.get("actions")).await;
    }

    async fn token(&mut self, client: &GitHubClient, scope: Option<&Scope>) {
        let answer = client.rate_limit(None).await;
        if !self.reached(client, &answer) {
            return;
        }
        let observed = client.observed();
        if let Err(error) = &answer {
            let remedy = "make a new token, and put it into the file or variable that is configured";
            return self.add(TOKEN.fail(error.to_string(), remedy));
        }
        self.add(match &observed.token_expires {
            Some(when) => TOKEN.ok(format!("accepted; expires {when}")),
            None => TOKEN.ok("accepted"),
        });
        let Some(scope) = scope else {
            self.add(PLACE.not_needed(NO_PLACE));
            return self.add(limits(answer));
        };
        let read = client.visible(scope).await;
        self.add(visible(scope, &read));
        self.add(token_scopes(scope, observed.token_scopes.as_deref()));
        self.check_scope_permissions(client, scope, read.is_ok(), None).await;
    }

    async fn check_scope_permissions(
        &mut self,
        client: &GitHubClient,
        scope: &Scope,
        visible: bool,
        actions: Option<&String>,
    ) {
        let finding = match scope {
            Scope::Repository { .. } => jobs(scope, client.runs(scope, "queued").await.map(|runs| runs.len())),
            _ if !client.is_app() => JOBS.not_needed("asked by repository: try --repo with one of them"),
            _ if actions.is_some() => JOBS.ok("actions=read is granted; repositories are not asked one by one"),
            _ => JOBS.fail("the installation has no permission for actions", JOBS_REMEDY),
        };
        self.add(finding);
        let finding = match scope {
            Scope::Repository { .. } => GROUPS.not_needed("a repository has the default group alone"),
            _ if !visible => GROUPS.not_needed("not asked: the runners cannot be listed"),
            _ => match client.runner_groups(scope).await {
                Ok(groups) => {
                    let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
                    GROUPS.ok(format!("{}: {}", names.len(), names.join(", ")))
                }
                Err(error) => {
                    GROUPS.warn(error.to_string(), "use the group `Default`, or grant the permission for runners")
                }
            },
        };
        self.add(finding);
        self.add(limits(client.rate_limit(Some(scope)).await));
    }
}
