//! The command line. `serve` runs the service, `doctor` checks the machine, `github` checks GitHub and `template lint`
//! the files of a template; every other command is a client of the REST API and uses nothing else of the service.
//!
//! Data goes to standard output, everything else to standard error; the exit code shows the result. Secrets come from
//! files and the environment, never from arguments, which every user of the machine can read.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

mod detach;
pub mod doctor;
mod failure;
mod follow;
mod gateway;
pub mod github;
mod gitlab_executor;
mod guest_hypervisor;
mod host;
mod interrupt;
mod job;
mod listing;
mod log_stream;
mod long_request;
mod manual;
pub mod markdown;
mod openapi;
mod output;
mod patience;
mod pool;
mod relay;
mod report;
mod responses;
mod run;
mod serve;
mod source;
mod stages;
mod supervise;
mod table;
mod template;
mod text;
mod token;
mod usage;
mod version;
mod vm;
mod webhook;
mod wording;

use crate::{
    adapters,
    client::{self, ServiceOptions},
};
use failure::CommandFailure;

/// Exit codes.
pub mod exit {
    pub const OK: u8 = 0;
    /// The request was refused or failed, or another error occurred.
    pub const FAILURE: u8 = 1;
    /// The command line, the configuration or the data directory is not usable.
    pub const USAGE: u8 = 2;
    /// The vm did not complete.
    pub const VM_NOT_COMPLETED: u8 = 3;
    /// The service cannot be reached.
    pub const UNREACHABLE: u8 = 4;
    /// There is no valid token, or it does not allow this.
    pub const UNAUTHORISED: u8 = 5;
    /// The time given with `--timeout` is over.
    pub const TIMEOUT: u8 = 6;
    /// No check failed, but at least one was not possible (`doctor`, `github check`).
    pub const INCOMPLETE: u8 = 7;
    /// The vm completed, and its job failed.
    pub const JOB_FAILED: u8 = 10;
    /// `run`, `vm exec`, `vm ssh`: there is no result of the command.
    pub const NO_RESULT: u8 = 125;
    /// `vm exec`, `vm ssh`: the session was lost before what ran had ended.
    pub const SESSION_LOST: u8 = 255;
}

const EXIT_CODES: &str = "\
Exit codes:
  0   success; with --follow or --wait: the vm completed, and its job (if any)
      succeeded
  1   the request was refused or failed, or another error occurred
  2   the command line, the configuration or the data directory is not usable
  3   the vm did not complete: it was cancelled, failed or was lost
  4   the service cannot be reached
  5   there is no valid token, or it does not allow this
  6   the time given with --timeout is over
  7   doctor, github check: no check failed, but at least one was not possible
  10  the vm completed, and its job failed
  run, vm exec and vm ssh have the exit code of their command, and 125 if there is
  no result of it; vm exec and vm ssh have 255 if their session was lost

Without --url and MAYFLY_URL, commands use the service on this machine, over the
socket admin.sock in its data directory (--data-dir). The token is taken from
--token-file, else from MAYFLY_TOKEN, else from admin.token in the data directory.
That one is only sent over the socket: with --url, give a token. A token cannot be
an argument, because every user of the machine could read it.";

/// Gives every CI job a fresh virtual machine and deletes it afterwards
#[derive(Parser)]
#[command(name = "mayfly", version = crate::platform::version::long(), after_help = EXIT_CODES, disable_help_subcommand = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: TopCommand,
}

#[derive(Args, Clone, Debug)]
struct Global {
    /// URL of the service; needs a token [default: the service on this machine, over the socket in its data directory]
    #[arg(long, global = true, value_name = "URL", env = "MAYFLY_URL", hide_env_values = true)]
    #[arg(help_heading = "Global options")]
    url: Option<String>,
    /// File with the API token [default: MAYFLY_TOKEN, else <data-dir>/admin.token if no URL is given]
    #[arg(long, global = true, value_name = "FILE", env = "MAYFLY_TOKEN_FILE", hide_env_values = true)]
    #[arg(help_heading = "Global options")]
    token_file: Option<PathBuf>,
    /// Certificates (PEM) to trust in addition to the system's, for a service with a private certificate
    #[arg(long, global = true, value_name = "FILE", env = "MAYFLY_CA_FILE", hide_env_values = true)]
    #[arg(help_heading = "Global options")]
    ca_file: Option<PathBuf>,
    /// Data directory of the service on this machine [default: ~/.mayfly]
    #[arg(long, global = true, value_name = "DIR", env = "MAYFLY_DATA_DIR", hide_env_values = true)]
    #[arg(help_heading = "Global options")]
    data_dir: Option<PathBuf>,
    /// Print the API's answers as JSON; errors too, on standard error
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// When to use colours; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = ColorChoice::Auto)]
    #[arg(hide_possible_values = true, help_heading = "Global options")]
    color: ColorChoice,
}

impl Global {
    fn service_options(&self) -> ServiceOptions {
        let Global { url, token_file, ca_file, data_dir, .. } = self.clone();
        ServiceOptions { url, token_file, ca_file, data_dir, ..ServiceOptions::default() }
    }
}

#[derive(Subcommand)]
enum TopCommand {
    Serve(serve::Serve),
    /// Run a command in a vm of its own: prints its output and returns its exit code
    ///
    /// Ctrl-C ends the vm. If this command is killed, the vm goes on until its command or its lifetime has ended.
    Run(Box<run::Run>),
    /// List vms: the same as vm list
    Ps(vm::VmList),
    /// Create, watch and end vms
    #[command(subcommand, arg_required_else_help = true)]
    Vm(vm::VmCommand),
    /// Manage pools: which jobs get a vm here
    #[command(subcommand, arg_required_else_help = true)]
    Pool(pool::PoolCommand),
    /// List jobs of CI systems
    #[command(subcommand, arg_required_else_help = true)]
    Job(job::JobCommand),
    /// List webhook deliveries of CI systems
    #[command(subcommand, arg_required_else_help = true)]
    Webhook(webhook::WebhookCommand),
    /// Manage templates: register, pull, push, version and delete them
    #[command(subcommand, arg_required_else_help = true)]
    Template(template::TemplateCommand),
    /// Create and revoke API tokens
    #[command(subcommand, arg_required_else_help = true)]
    Token(token::TokenCommand),
    /// Show the host: slots, drivers, and running guests
    Host,
    Doctor(doctor::Doctor),
    /// Create and end vms for GARM, which starts this command as its external provider
    ///
    /// GARM passes no arguments and says by environment variables what to do. So a link named garm-provider-mayfly to
    /// this program, and this program without arguments in GARM's environment, do the same.
    GarmProvider {
        /// Configuration of the provider (TOML) [default: the file that GARM names]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Run GitLab's jobs in vms: GitLab Runner starts this command as its custom executor
    #[command(arg_required_else_help = true)]
    GitlabExecutor(gitlab_executor::GitlabExecutor),
    /// Create and end vms for myshoes, which starts this command as its plugin
    ///
    /// myshoes passes no arguments and tells its plugin by an environment variable. So a copy of this program, without
    /// arguments in the environment of myshoes, does the same.
    ShoesProvider {
        /// Configuration of the plugin (TOML) [default: /etc/mayfly/shoes.toml]
        #[arg(long, value_name = "FILE", env = adapters::shoes::PATH_VARIABLE, hide_env_values = true)]
        config: Option<PathBuf>,
    },
    /// Check the access to GitHub
    #[command(subcommand, arg_required_else_help = true)]
    Github(github::GithubCommand),
    /// Check the access to a source of jobs
    #[command(subcommand, arg_required_else_help = true)]
    Source(source::SourceCommand),
    /// Print the version of this program, and the commit that it was built from
    Version,
    /// Print the API's OpenAPI document
    Openapi,
    /// Print a completion script for a shell
    Completions {
        shell: clap_complete::Shell,
    },
    /// Serve the network of one guest, until its hypervisor ends
    #[command(hide = true)]
    GuestGateway {
        /// What to serve, as JSON
        file: PathBuf,
    },
    /// Run one hypervisor with a tap, in a network namespace that was made for it, until it ends
    #[command(hide = true)]
    GuestHypervisor {
        /// What to run, as JSON
        file: PathBuf,
    },
    /// Copy standard input and output to and from a Unix socket: connects a guest that an earlier version started to the
    /// guest API
    #[command(hide = true)]
    GuestRelay {
        socket: PathBuf,
    },
    /// Run a program in its own session, in place of this one: lets a hypervisor outlive the service
    #[command(hide = true)]
    Detach {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Run a program that is killed when another process ends: no command of the service runs longer than the
    /// service
    #[command(hide = true)]
    Supervise {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Print the reference of the command line as Markdown
    #[command(hide = true)]
    Markdown,
    /// Write a manual page for each command into a directory
    #[command(hide = true)]
    Manual {
        dir: PathBuf,
    },
}

/// The whole command line as clap sees it: for completions and the reference.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs one command. `args` begins with the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let args = adapters::arguments_of_adapter(&args, |name| std::env::var_os(name).is_some()).unwrap_or(args);
    // One process per connection of a guest, so it starts as fast as possible.
    if let [_, name, socket] = args.as_slice()
        && name == "guest-relay"
    {
        return ExitCode::from(relay::run(socket.as_ref()));
    }
    // Arguments after this name belong to the program, whatever they look like.
    if let [_, name, command @ ..] = args.as_slice()
        && name == "detach"
    {
        return ExitCode::from(detach::run(command));
    }
    if let [_, name, rest @ ..] = args.as_slice()
        && name == "supervise"
    {
        return ExitCode::from(supervise::run(rest));
    }
    let command = Cli::command().color(colour_of(&args));
    let cli = match command.try_get_matches_from(&args).and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version also arrive here, and go to standard output.
            let error = usage::explain(error, Cli::command(), &args);
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    output::set_colour(cli.global.color);
    let json = cli.global.json;
    match dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            report::report(&failure, json);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// What `--color` says, as far as it can be seen before the arguments are parsed: for the parser's own messages.
fn colour_of(args: &[OsString]) -> ColorChoice {
    let mut args = args.iter().filter_map(|arg| arg.to_str()).take_while(|arg| *arg != "--");
    let mut chosen = ColorChoice::Auto;
    while let Some(arg) = args.next() {
        let value = if arg == "--color" { args.next() } else { arg.strip_prefix("--color=") };
        chosen = value.and_then(|value| ColorChoice::from_str(value, false).ok()).unwrap_or(chosen);
    }
    chosen
}

fn dispatch(cli: Cli) -> Result<u8, CommandFailure> {
    let Cli { global, command } = cli;
    match command {
        TopCommand::Serve(serve) => serve::run(serve, global.data_dir),
        TopCommand::Doctor(doctor) => doctor::run(&doctor, global.data_dir, global.json),
        TopCommand::Github(command) => github::run(command, global.data_dir, global.json),
        TopCommand::Source(command) => source::run(command, global.data_dir, global.json),
        TopCommand::GarmProvider { config } => Ok(adapters::garm::run(global.service_options(), config)),
        TopCommand::GitlabExecutor(args) => Ok(gitlab_executor::run(args, global.service_options())),
        TopCommand::ShoesProvider { config } => Ok(adapters::shoes::run(global.service_options(), config)),
        TopCommand::Openapi => openapi::run(),
        TopCommand::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mayfly", &mut script);
            output::bytes(&script)?;
            Ok(exit::OK)
        }
        TopCommand::GuestGateway { file } => Ok(gateway::run(&file)),
        TopCommand::GuestHypervisor { file } => Ok(guest_hypervisor::run(&file)),
        TopCommand::GuestRelay { socket } => Ok(relay::run(&socket)),
        TopCommand::Detach { command } => Ok(detach::run(&command)),
        TopCommand::Supervise { command } => Ok(supervise::run(&command)),
        TopCommand::Markdown => {
            output::bytes(markdown::reference().as_bytes())?;
            Ok(exit::OK)
        }
        TopCommand::Manual { dir } => manual::run(&dir),
        TopCommand::Version => version::run(global.json),
        TopCommand::Run(args) => talk(&global, async |client| run::run(*args, client, global.json).await),
        TopCommand::Ps(args) => talk(&global, async |client| vm::list(args, client, global.json).await),
        TopCommand::Vm(command) => talk(&global, async |client| vm::run(command, client, global.json).await),
        TopCommand::Pool(command) => talk(&global, async |client| pool::run(command, client, global.json).await),
        TopCommand::Job(command) => talk(&global, async |client| job::run(command, client, global.json).await),
        TopCommand::Webhook(command) => talk(&global, async |client| webhook::run(command, client, global.json).await),
        TopCommand::Template(command) => template::run(command, &global),
        TopCommand::Token(command) => talk(&global, async |client| token::run(command, client, global.json).await),
        TopCommand::Host => talk(&global, async |client| host::run(client, global.json).await),
    }
}

/// Runs a command that talks to the service. One thread is plenty for one request at a time.
fn talk(
    global: &Global,
    work: impl AsyncFnOnce(&client::ApiClient) -> Result<u8, CommandFailure>,
) -> Result<u8, CommandFailure> {
    let client = client::ApiClient::new(&global.service_options())?;
    if let Some(warning) = client.warning() {
        output::note(&format!("warning: {warning}"));
    }
    block_on(work(&client))
}

fn block_on<T>(work: impl Future<Output = Result<T, CommandFailure>>) -> Result<T, CommandFailure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandFailure::Other(format!("cannot start: {error}")))?;
    runtime.block_on(work)
}
