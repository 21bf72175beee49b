//! `mayfly template pull`, `pulls` and `pull-cancel`

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use tokio::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::SignedDuration;
use serde_json::{Map, Value, json};

use super::{
    super::{
        client::ApiClient,
        exit,
        failure::{ApiProblem, CommandFailure},
        output,
        responses::PullResponse,
        text,
    },
    settings::{Settings, Smoke},
};
use crate::{domain::Code, platform::clock};

/// How often the progress is requested, in seconds.
const ASK: &str = "1";
/// Pause after a request without an answer.
const PAUSE: Duration = Duration::from_secs(1);
/// How long to wait for a service that does not answer: long enough for a restart.
const PATIENCE: Duration = Duration::from_secs(60);
/// Without a terminal: a line is printed this often, or after this many more percent.
const LINE_EVERY: Duration = Duration::from_secs(10);
const LINE_PERCENT: u64 = 10;
/// The exit code of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

#[derive(Args)]
pub(in crate::cli) struct PullArgs {
    /// The image, as host/namespace:tag or host/namespace@sha256:...
    image: String,
    /// Name of the template [default: the last part of the namespace]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    smoke: Smoke,
    /// Print the pull's id and do not wait for its end
    #[arg(long)]
    detach: bool,
}

pub(super) async fn run(args: PullArgs, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let detach = args.detach;
    let value = client.post(&["templates"], &body(args)?, &[]).await?;
    let pull: PullResponse = client.view(&value)?;
    if detach {
        if json {
            output::json(&value)?;
        } else {
            output::line(&pull.id)?;
        }
        return Ok(exit::OK);
    }
    let interrupted = async {
        // If signals cannot be handled, the default end by a signal is sufficient.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let id = pull.id.clone();
    let (value, pull) = tokio::select! {
        ended = follow(client, pull, value) => ended?,
        () = interrupted => {
            output::note(&format!(
                "the pull goes on; `mayfly template pulls` shows it,\n`mayfly template pull-cancel {id}` ends it"
            ));
            return Ok(INTERRUPTED);
        }
    };
    match pull.state.as_str() {
        "done" if json => output::json(&value)?,
        "done" => output::line(format!("{}  {}", pull.name, pull.digest.unwrap_or_default()).trim_end())?,
        "cancelled" => return Err(CommandFailure::Other("the pull was cancelled".to_owned())),
        _ => return Err(failed(&pull)),
    }
    Ok(exit::OK)
}

fn body(args: PullArgs) -> Result<Value, CommandFailure> {
    let last = |image: &str| {
        let path = image.split('@').next().unwrap_or_default();
        let last = path.rsplit('/').next().unwrap_or_default();
        last.split(':').next().unwrap_or_default().to_owned()
    };
    let name = args.name.unwrap_or_else(|| last(&args.image));
    let mut body = Map::new();
    body.insert("image".to_owned(), args.image.into());
    body.insert("name".to_owned(), name.into());
    args.settings.put(&mut body);
    args.smoke.put(&mut body)?;
    Ok(body.into())
}

/// The error of a failed pull, as an API problem.
fn failed(pull: &PullResponse) -> CommandFailure {
    let (code, detail) = match &pull.error {
        Some(error) => (error.code.clone(), error.detail.clone()),
        None => (String::new(), "the service does not say why".to_owned()),
    };
    let known = Code::ALL.iter().find(|known| known.slug() == code);
    CommandFailure::Problem(
        Box::new(ApiProblem {
            title: known.map_or_else(|| "The pull failed".to_owned(), |known| known.title().to_owned()),
            status: 422,
            detail: Some(detail),
            retryable: known.is_some_and(|known| known.retryable()),
            code,
            ..ApiProblem::default()
        }),
        None,
    )
}

async fn follow(
    client: &ApiClient,
    mut pull: PullResponse,
    mut value: Value,
) -> Result<(Value, PullResponse), CommandFailure> {
    let mut reporter = ProgressReporter::new();
    let mut silent_since: Option<Instant> = None;
    loop {
        reporter.report(&pull);
        if pull.is_ended() {
            return Ok((value, pull));
        }
        let generation = pull.generation.to_string();
        let asked = clock::monotonic();
        match client.get(&["pulls", &pull.id], &[("timeout_seconds", ASK), ("wait_generation", &generation)]).await {
            Ok(answer) => {
                silent_since = None;
                let before = pull.generation;
                (pull, value) = (client.view(&answer)?, answer);
                // A proxy that does not support long polls must not cause requests without a pause.
                if pull.generation == before && clock::elapsed(asked) < PAUSE / 2 {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            // The pull continues when the service is back.
            Err(failure) if failure.passes() => {
                if clock::elapsed(*silent_since.get_or_insert_with(clock::monotonic)) > PATIENCE {
                    return Err(failure);
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Shows the progress of a pull on standard error: a bar on a terminal, otherwise a line from time to time.
struct ProgressReporter {
    bar: Option<ProgressBar>,
    said: Option<(Instant, u64)>,
    state: String,
    failures: u32,
}

impl ProgressReporter {
    fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{spinner:.cyan} [{bar:24}] {percent:>3} %  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, said: None, state: String::new(), failures: 0 }
    }

    fn report(&mut self, pull: &PullResponse) {
        if self.state.is_empty() {
            self.note(&format!("pulling {}", text::plain(&pull.image)));
        }
        if pull.failures > self.failures
            && let Some(error) = &pull.error
        {
            let when = pull.retry_at.map(|at| format!("; trying again at {}", text::time(at))).unwrap_or_default();
            self.note(&format!("{}: {}{when}", error.code, text::plain(&error.detail)));
        }
        self.failures = pull.failures;
        if pull.state == "testing" && self.state != "testing" {
            self.note("the image is here; a vm of it runs the test");
        }
        self.state.clone_from(&pull.state);
        let progress = &pull.progress;
        let mut words = vec![format!("{} of {}", text::bytes(progress.bytes_done), text::bytes(progress.bytes_total))];
        if let Some(rate) = progress.bytes_per_second.filter(|rate| *rate > 0) {
            words.push(format!("{}/s", text::bytes(rate)));
        }
        if let Some(eta) = progress.eta_seconds {
            let eta = SignedDuration::from_secs(i64::try_from(eta).unwrap_or(i64::MAX));
            words.push(format!("{} left", text::duration(eta)));
        }
        let words = if pull.state == "testing" { "testing".to_owned() } else { words.join("  ") };
        if let Some(bar) = &self.bar {
            bar.set_length(progress.bytes_total);
            bar.set_position(progress.bytes_done);
            bar.set_message(words);
            if pull.is_ended() {
                bar.finish_and_clear();
            }
            return;
        }
        let Some(percent) = progress.percent() else { return };
        let due = self.said.is_none_or(|(at, said)| clock::elapsed(at) >= LINE_EVERY || percent >= said + LINE_PERCENT);
        let whole = percent == 100 && self.said.is_some_and(|(_, said)| said < 100);
        if (due && pull.state == "pulling" && self.said.is_none_or(|(_, said)| said < 100)) || whole {
            output::note(&format!("{percent:>3} %  {words}"));
            self.said = Some((clock::monotonic(), percent));
        }
    }

    fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::note(line)),
            None => output::note(line),
        }
    }
}

pub(super) async fn list(client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let items = client.list(&["pulls"], &[]).await?;
    if json {
        return output::json(&json!({ "items": items }));
    }
    if items.is_empty() {
        output::note("no pulls; `mayfly template pull` begins one");
        return Ok(());
    }
    let mut rows = Vec::new();
    for item in &items {
        let pull: PullResponse = client.view(item)?;
        let percent = pull.progress.percent().filter(|_| !pull.is_ended()).map(|p| format!("{p} %"));
        rows.push(vec![
            pull.id,
            pull.name,
            pull.state,
            percent.unwrap_or_default(),
            text::age(pull.created_at),
            pull.error.map(|error| error.code).unwrap_or_default(),
        ]);
    }
    let head = ["ID", "NAME", "STATE", "DONE", "AGE", "ERROR"];
    output::bytes(text::table(&head, &rows, output::width(), 1).as_bytes())
}

pub(super) async fn cancel(id: &str, discard: bool, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let query: &[(&str, &str)] = if discard { &[("discard", "true")] } else { &[] };
    let value = client.delete(&["pulls", id], query).await?;
    if json {
        return output::json(&value);
    }
    let pull: PullResponse = client.view(&value)?;
    if discard && !pull.discarded && pull.state != "done" {
        output::note("what was fetched stays: another pull needs it, or nothing was fetched");
    }
    output::line(&format!("{id}  {}", pull.state))
}
