//! `mayfly template pull` and `pull-cancel`, and what `pulls` lists

use std::time::Duration;

use tokio::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::SignedDuration;
use serde_json::{Map, Value};

use super::{
    super::{
        client::ApiClient,
        exit,
        failure::CommandFailure,
        interrupt,
        listing::Listable,
        output::{self, Colour},
        patience::{PAUSE, Patience},
        responses::PullResponse,
        table::{Cell, Column},
        text,
    },
    settings::{Settings, Smoke},
};
use crate::{client::ApiProblem, domain::Code, platform::clock};

/// How often the progress is requested, in seconds.
const ASK: &str = "1";
/// Without a terminal: a line is printed this often, or after this many more percent.
const LINE_EVERY: Duration = Duration::from_secs(10);
const LINE_PERCENT: u64 = 10;

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
    let goes_on = format!(
        "the pull goes on; `mayfly template pulls` shows it,\n`mayfly template pull-cancel {}` ends it",
        pull.id
    );
    let (value, pull) = interrupt::or(goes_on, follow(client, pull, value)).await?;
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
    let mut patience = Patience::default();
    loop {
        reporter.report(&pull);
        if pull.is_ended() {
            return Ok((value, pull));
        }
        let generation = pull.generation.to_string();
        let asked = clock::monotonic();
        match client.get(&["pulls", &pull.id], &[("timeout_seconds", ASK), ("wait_generation", &generation)]).await {
            Ok(answer) => {
                patience.answered();
                let before = pull.generation;
                (pull, value) = (client.view(&answer)?, answer);
                // A proxy that does not support long polls must not cause requests without a pause.
                if pull.generation == before && clock::elapsed(asked) < PAUSE / 2 {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            // The pull continues when the service is back.
            Err(failure) => patience.wait(failure.into()).await?,
        }
    }
}

/// Shows the progress of a pull on standard error: a bar on a terminal, otherwise a line from time to time.
struct ProgressReporter {
    bar: Option<ProgressBar>,
    /// Whether the bar shows a part of a known size.
    sized: bool,
    said: Option<(Instant, u64)>,
    state: String,
    failures: u32,
}

fn style(sized: bool) -> ProgressStyle {
    let template = match sized {
        true => output::bar_template(
            "{spinner:.cyan} [{bar:24}] {percent:>3} %  {msg}",
            "{spinner} [{bar:24}] {percent:>3} %  {msg}",
        ),
        false => output::bar_template("{spinner:.cyan} {msg}", "{spinner} {msg}"),
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

impl ProgressReporter {
    fn new() -> Self {
        let bar = output::notes_are_seen().then(|| {
            let bar = ProgressBar::new(0);
            bar.set_style(style(false));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, sized: false, said: None, state: String::new(), failures: 0 }
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
        let words = match (&pull.retry_at, pull.state.as_str()) {
            (_, "testing") => "testing".to_owned(),
            (Some(at), "pulling") if *at > clock::now() => format!("waits until {}", text::time(*at)),
            _ if progress.bytes_total == 0 => "asks the registry what there is".to_owned(),
            _ => words.join("  "),
        };
        if let Some(bar) = &self.bar {
            // Without a size there is nothing to draw, and a bar of nothing is full.
            if self.sized != (progress.bytes_total > 0) {
                self.sized = progress.bytes_total > 0;
                bar.set_style(style(self.sized));
            }
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

impl Listable for PullResponse {
    const COLUMNS: &'static [Column] = &[
        Column::new("ID"),
        Column::new("NAME").gives_way(),
        Column::new("IMAGE").wide(),
        Column::new("DIGEST").wide(),
        Column::new("STATE"),
        Column::new("DONE"),
        Column::new("AGE"),
        Column::new("ERROR"),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn id(&self) -> String {
        self.id.clone()
    }

    fn cells(&self) -> Vec<Cell> {
        let percent = self.progress.percent().filter(|_| !self.is_ended()).map(|p| format!("{p} %"));
        let colour = match self.state.as_str() {
            "done" => Some(Colour::Green),
            "failed" => Some(Colour::Red),
            "cancelled" => Some(Colour::Dim),
            _ => None,
        };
        vec![
            self.id.clone().into(),
            self.name.clone().into(),
            self.image.clone().into(),
            self.digest.clone().unwrap_or_else(|| "-".to_owned()).into(),
            Cell::painted(self.state.clone(), colour),
            percent.unwrap_or_default().into(),
            text::age(self.created_at).into(),
            self.error.as_ref().map(|error| error.code.clone()).unwrap_or_default().into(),
        ]
    }
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
