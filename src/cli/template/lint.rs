//! `mayfly template lint`: reads the files of a template on this machine. Only a name is looked up at the service.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use uuid::Uuid;

use super::{
    super::{
        Global,
        client::ApiClient,
        exit,
        failure::CommandFailure,
        interrupt,
        output::{self, Colour},
        responses::TemplateResponse,
        text,
    },
    add,
};
use crate::{
    config::{self, Config},
    domain::Error,
    platform::{data_dir::DataDir, files},
    sources::github::GitHubSection,
    templates::{
        layouts::Tools,
        lint::{LintFinding, LintLevel, LintOptions, LintSubject, lint},
    },
};

#[derive(Args)]
#[group(skip)]
pub(in crate::cli) struct Lint {
    /// A directory with a template.json, the directory of a Tart VM, a disk image, or the name of a registered template. What
    /// exists as a path is taken as one
    #[arg(value_name = "PATH|NAME")]
    template: PathBuf,
    /// User that runs jobs in the guest [default: as the template says, else runner]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

pub(super) async fn run(args: Lint, global: &Global) -> Result<u8, CommandFailure> {
    let path = &args.template;
    let mut subject = if path.exists() { local(path)? } else { registered(path, global).await? };
    if let Some(user) = args.user {
        subject.user = user;
    }
    // A configuration that cannot be read is of another user, and says nothing about this template.
    let section =
        Config::load(global.data_dir.clone(), Vec::new()).map_or_else(|_| GitHubSection::default(), |c| c.github);
    let options = LintOptions { runner_minimum: section.runner_minimum_version, tools: Tools::default() };
    let scratch = ScratchDir::create()?;
    let checked = async { lint(subject, options, &scratch.0).await.map_err(refused) };
    let findings = interrupt::or(String::new(), checked).await?;
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (errors, warnings, unknown) =
        (count(LintLevel::Error), count(LintLevel::Warning), count(LintLevel::NotChecked));
    if global.json {
        let report = json!({ "items": findings, "errors": errors, "warnings": warnings, "not_checked": unknown });
        output::json(&report)?;
    } else {
        for finding in &findings {
            output::line(&line(finding))?;
        }
        output::note(&format!("{errors} errors, {warnings} warnings, {unknown} not checked"));
    }
    Ok(if errors > 0 { exit::FAILURE } else { exit::OK })
}

/// What the guest's files say is shown, and must not drive the terminal.
fn line(finding: &LintFinding) -> String {
    let (word, colour) = match finding.level {
        LintLevel::Error => ("error", Colour::Red),
        LintLevel::Warning => ("warning", Colour::Yellow),
        LintLevel::NotChecked => ("not checked", Colour::Dim),
    };
    let rest = text::plain(&format!("{:<19}  {}; {}", finding.check, finding.what, finding.next));
    format!("{}  {rest}", output::paint(&format!("{word:<11}"), colour))
}

fn refused(error: Error) -> CommandFailure {
    CommandFailure::Other(error.detail)
}

fn local(path: &Path) -> Result<LintSubject, CommandFailure> {
    if !path.is_dir() {
        return LintSubject::of_disk(path.to_owned()).map_err(refused);
    }
    if path.join(add::MANIFEST).exists() {
        return add::lint_subject(path);
    }
    if LintSubject::is_tart(path) {
        return LintSubject::of_tart(path).map_err(refused);
    }
    let what = format!("{}: neither a template.json nor a Tart VM's config.json is in it", path.display());
    Err(CommandFailure::Usage(what))
}

async fn registered(name: &Path, global: &Global) -> Result<LintSubject, CommandFailure> {
    let shown = name.to_string_lossy();
    if shown.contains('/') {
        return Err(CommandFailure::Usage(format!("{shown} does not exist")));
    }
    let client = ApiClient::new(&global.service_options())?;
    let value = client.get(&["templates", shown.as_ref()], &[]).await?;
    let template: TemplateResponse = client.view(&value)?;
    let data_dir = config::data_dir_or_default(global.data_dir.clone())
        .map_err(|error| CommandFailure::Usage(error.to_string()))?;
    LintSubject::of_version(&DataDir::new(&data_dir).templates(), &template.digest).map_err(|error| {
        let detail = error.detail;
        CommandFailure::Other(format!(
            "{detail}; a registered template is read on the service's machine, as the service's user (--data-dir {})",
            data_dir.display()
        ))
    })
}

/// Not in the directory of the template, which may be read-only.
struct ScratchDir(PathBuf);

impl ScratchDir {
    fn create() -> Result<ScratchDir, CommandFailure> {
        let dir = std::env::temp_dir().join(format!("mayfly-lint-{}", Uuid::new_v4()));
        files::ensure_private_dir(&dir)
            .map_err(|error| CommandFailure::Other(format!("cannot create {}: {error}", dir.display())))?;
        Ok(ScratchDir(dir))
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
