//! `mayfly vm create`

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::{Map, Value, json};

use super::{
    super::{
        client::ApiClient, exit, failure::CommandFailure, follow, interrupt, output, responses::VmResponse,
        stages::Stages, text,
    },
    pair, parse_scope,
};
use crate::domain::{BudgetsPatch, Scope};

/// What every vm is made of, whatever it runs.
#[derive(Args)]
pub(in crate::cli) struct SpecArgs {
    /// Template to clone
    #[arg(long, short, value_name = "NAME")]
    template: String,
    /// Name of the vm, unique among live vms [default: generated]
    #[arg(long)]
    name: Option<String>,
    /// Cores [default: the template's]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    cpus: Option<u32>,
    /// Memory in MiB [default: the template's]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(32..))]
    memory_mib: Option<u32>,
    /// What the guest may reach: the guest API only, the internet, or everything that the host reaches [default: the
    /// template's, else the strictest that the host can enforce and in which the runner can work]
    #[arg(long, value_name = "MODE", value_parser = text::NETWORK_MODES)]
    network: Option<String>,
    /// Label to search by; may be repeated
    #[arg(long = "label", short, value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Budget that differs from the template's, such as lifetime_seconds=600 or boot_seconds=2m; may be repeated
    #[arg(long = "budget", value_name = "NAME=VALUE", value_parser = budget)]
    budgets: Vec<(String, u32)>,
    /// Keep the guest running for debugging if the vm fails: seconds, or a duration such as 30m. It holds its slot until
    /// then, or until the vm is deleted
    #[arg(long, value_name = "DURATION", value_parser = text::parse_seconds)]
    keep_on_failure: Option<u32>,
    /// Longest wait for a slot: seconds, or a duration such as 5m; 0: start at once or fail [default: the
    /// service's]
    #[arg(long, value_name = "DURATION", value_parser = text::parse_seconds)]
    queue_timeout: Option<u32>,
}

impl SpecArgs {
    /// The request, with what the guest runs.
    pub fn request(self, runner: Value) -> Value {
        let mut body = Map::new();
        body.insert("template".into(), self.template.into());
        body.insert("runner".into(), runner);
        for (key, value) in [
            ("name", self.name.map(Value::from)),
            ("cpus", self.cpus.map(Value::from)),
            ("memory_mib", self.memory_mib.map(Value::from)),
            ("network", self.network.map(Value::from)),
            ("queue_timeout_seconds", self.queue_timeout.map(Value::from)),
            ("keep_on_failure", self.keep_on_failure.map(|seconds| json!({ "seconds": seconds }))),
        ] {
            if let Some(value) = value {
                body.insert(key.into(), value);
            }
        }
        if !self.labels.is_empty() {
            body.insert("labels".into(), json!(self.labels.into_iter().collect::<BTreeMap<_, _>>()));
        }
        if !self.budgets.is_empty() {
            body.insert("budgets".into(), json!(self.budgets.into_iter().collect::<BTreeMap<_, _>>()));
        }
        body.into()
    }
}

#[derive(Args)]
pub(in crate::cli) struct CreateArgs {
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    runner: RunnerArgs,
    #[command(flatten)]
    source: SourceRunnerArgs,
    /// Environment of the command, script or runner, one NAME=VALUE per line; a NAME alone takes the value from this environment
    #[arg(long, value_name = "FILE", conflicts_with = "none", help_heading = "What the guest runs")]
    env_file: Option<PathBuf>,
    /// A repeated request with the same key returns the same vm
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Wait until the vm is deleted; prints its id, and on standard error what it waits for
    #[arg(long)]
    wait: bool,
    /// Show the vm's timeline until it is deleted; `mayfly run` shows the job's output
    #[arg(long, short)]
    follow: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct RunnerArgs {
    /// Job: a command line for sh
    #[arg(long, value_name = "COMMAND", help_heading = "What the guest runs")]
    command: Option<String>,
    /// Job: a file with a script; - for standard input
    #[arg(long, value_name = "FILE", help_heading = "What the guest runs")]
    command_file: Option<PathBuf>,
    /// Setup script that may install and run the runner of any CI system; - for standard input
    #[arg(long, value_name = "FILE", help_heading = "What the guest runs")]
    script_file: Option<PathBuf>,
    /// GitHub's own runner, for one job, registered at owner/name, an organisation, or enterprises/slug
    #[arg(long, value_name = "SCOPE", value_parser = parse_scope, requires = "runner_labels")]
    #[arg(help_heading = "What the guest runs")]
    github_scope: Option<Scope>,
    /// Gitea's own runner, for one job, registered at owner/name, an organisation, or * for the whole server
    #[arg(long, value_name = "SCOPE", value_parser = parse_scope, requires_all = ["runner_labels", "source"])]
    #[arg(help_heading = "What the guest runs")]
    gitea_scope: Option<Scope>,
    /// Nothing: the vm runs until it is deleted or its lifetime is spent
    #[arg(long, help_heading = "What the guest runs")]
    none: bool,
}

#[derive(Args)]
struct SourceRunnerArgs {
    /// Source of jobs at which the runner is registered, by its name in the service's configuration [default: github]
    #[arg(long, value_name = "NAME", help_heading = "What the guest runs")]
    source: Option<String>,
    /// Label of the runner; may be repeated. No labels are added, not even self-hosted
    #[arg(long = "runner-label", value_name = "LABEL")]
    #[arg(help_heading = "What the guest runs")]
    runner_labels: Vec<String>,
    /// Name of the runner group (organisations and enterprises only) [default: GitHub's default group]
    #[arg(long, value_name = "NAME", help_heading = "What the guest runs")]
    group: Option<String>,
    /// Just-in-time configuration that you requested from GitHub; - for standard input [default: the service
    /// requests one]
    #[arg(long, value_name = "FILE", conflicts_with = "registration_token_file")]
    #[arg(help_heading = "What the guest runs")]
    jit_config_file: Option<PathBuf>,
    /// Registration token that you requested from GitHub, valid for an hour; - for standard input
    #[arg(long, value_name = "FILE", help_heading = "What the guest runs")]
    registration_token_file: Option<PathBuf>,
}

impl SourceRunnerArgs {
    /// An option that only runners of sources of jobs have.
    fn given(&self) -> Option<&'static str> {
        [("--source", self.source.is_some()), ("--runner-label", !self.runner_labels.is_empty())]
            .into_iter()
            .find_map(|(option, given)| given.then_some(option))
            .or_else(|| self.given_for_github())
    }

    /// An option that only GitHub's runner has.
    fn given_for_github(&self) -> Option<&'static str> {
        [
            ("--group", self.group.is_some()),
            ("--jit-config-file", self.jit_config_file.is_some()),
            ("--registration-token-file", self.registration_token_file.is_some()),
        ]
        .into_iter()
        .find_map(|(option, given)| given.then_some(option))
    }
}

pub(in crate::cli) fn budget(text: &str) -> Result<(String, u32), String> {
    let (name, value) = pair(text)?;
    if !BudgetsPatch::NAMES.contains(&name.as_str()) {
        return Err(format!("expected one of {}", BudgetsPatch::NAMES.join(", ")));
    }
    Ok((name, text::parse_seconds(&value)?))
}

pub(super) async fn run(args: CreateArgs, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    // With another runner, the parser does not require arguments that would contradict it.
    let misplaced = match &args.runner {
        RunnerArgs { github_scope: Some(_), .. } => None,
        RunnerArgs { gitea_scope: Some(_), .. } => args.source.given_for_github().map(|o| (o, "--github-scope")),
        RunnerArgs { .. } => args.source.given().map(|o| (o, "--github-scope or --gitea-scope")),
    };
    if let Some((option, with)) = misplaced {
        return Err(CommandFailure::Usage(format!("{option}: has a meaning only with {with}")));
    }
    let env = args.env_file.as_deref().map(read_env).transpose()?.unwrap_or_default();
    let runner = match args.runner {
        RunnerArgs { command: Some(command), .. } => json!({ "kind": "command", "command": command, "env": env }),
        RunnerArgs { command_file: Some(file), .. } => {
            json!({ "kind": "command", "command": read_text(&file, "--command-file")?, "env": env })
        }
        RunnerArgs { script_file: Some(file), .. } => {
            json!({ "kind": "script", "script": read_text(&file, "--script-file")?, "env": env })
        }
        RunnerArgs { github_scope: Some(scope), .. } => github(&scope, args.source, env, client)?,
        RunnerArgs { gitea_scope: Some(scope), .. } => json!({
            "kind": "gitea",
            "source": args.source.source,
            "scope": scope.slug(),
            "labels": args.source.runner_labels,
            "env": env,
        }),
        RunnerArgs { .. } => json!({ "kind": "none" }),
    };
    let body = args.spec.request(runner);
    let key = args.idempotency_key.as_deref();
    let headers: Vec<(&str, &str)> = key.map(|key| ("idempotency-key", key)).into_iter().collect();
    let mut created = client.post(&["vms"], &body, &headers).await?;
    // The guest already has its token; printed here, it would end up in build logs.
    if let Some(created) = created.as_object_mut() {
        created.remove("callback_token");
    }
    let vm: VmResponse = client.view(&created)?;
    if !args.wait && !args.follow {
        if json {
            output::json(&created)?
        } else {
            output::line(&vm.id)?
        }
        return Ok(exit::OK);
    }
    let to_its_end = async {
        if args.follow && !json {
            let mut timeline = follow::Timeline::new();
            timeline.begin(&vm)?;
            follow::watch(client, &vm.id, None, None, |vm| timeline.update(vm), VmResponse::is_deleted).await
        } else {
            if !json {
                output::line(&vm.id)?;
            }
            let mut stages = Stages::new(json);
            let say = |vm: &VmResponse| {
                stages.tell(vm);
                Ok(())
            };
            follow::watch(client, &vm.id, None, None, say, VmResponse::is_deleted).await
        }
    };
    let goes_on = format!(
        "{0} goes on: `mayfly vm logs -f {0}` shows its job, `mayfly vm delete {0}` ends it",
        text::plain(&vm.name)
    );
    let (value, ended) = interrupt::or(goes_on, to_its_end).await?;
    if json {
        output::json(&value)?;
    }
    Ok(follow::verdict(&ended))
}

fn github(
    scope: &Scope,
    args: SourceRunnerArgs,
    env: BTreeMap<String, String>,
    client: &ApiClient,
) -> Result<Value, CommandFailure> {
    let mut runner = json!({ "kind": "github", "scope": scope.slug(), "labels": args.runner_labels, "env": env });
    if let Some(source) = args.source {
        runner["source"] = source.into();
    }
    if let Some(group) = args.group {
        runner["group"] = group.into();
    }
    for (key, file, option) in [
        ("jit_config", args.jit_config_file, "--jit-config-file"),
        ("registration_token", args.registration_token_file, "--registration-token-file"),
    ] {
        let Some(file) = file else { continue };
        client.refuse_cleartext("the runner's registration")?;
        let text = read_text(&file, option)?;
        let secret = text.trim();
        if secret.is_empty() {
            return Err(CommandFailure::Usage(format!("{option}: {}: there is nothing in it", file.display())));
        }
        runner[key] = secret.into();
    }
    Ok(runner)
}

fn read_text(path: &Path, option: &str) -> Result<String, CommandFailure> {
    let wrong = |error: std::io::Error| CommandFailure::Usage(format!("{option}: {}: {error}", path.display()));
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(wrong)?;
        return Ok(text);
    }
    std::fs::read_to_string(path).map_err(wrong)
}

/// Values are used as they are, including quotes. Error messages give line numbers and never the text, because it
/// contains secrets.
pub(in crate::cli) fn read_env(path: &Path) -> Result<BTreeMap<String, String>, CommandFailure> {
    let text = read_text(path, "--env-file")?;
    let mut env = BTreeMap::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: &str| CommandFailure::Usage(format!("--env-file: {}:{}: {what}", path.display(), n + 1));
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.to_owned())),
            None => (line.trim(), None),
        };
        let plain = !name.starts_with(|c: char| c.is_ascii_digit())
            && !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !plain {
            return Err(wrong("expected NAME=VALUE, names of letters, digits and _"));
        }
        let value = match value {
            Some(value) => value,
            None => std::env::var(name).map_err(|_| wrong("the name has no value here or in this environment"))?,
        };
        env.insert(name.to_owned(), value);
    }
    Ok(env)
}
