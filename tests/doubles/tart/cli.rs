//! The command line: parsed by clap, refused in the words and the shape of Swift's ArgumentParser.

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::{failure::Failure, oci};

pub enum Call {
    Help(String),
    Version,
    Run(Box<RunOptions>),
    Exec { name: String, interactive: bool, tty: bool, command: Vec<String> },
    List { source: Option<Source>, json: bool, quiet: bool },
    Get { name: String, json: bool },
    Ip { name: String, wait: u16, resolver: Resolver },
    Stop { name: String, timeout: u64 },
    Suspend { name: String },
    Delete { names: Vec<String> },
    Set(Change),
    Rename { from: String, to: String },
    Create { name: String, disk_size: u64, asif: bool },
    Prune(Criteria),
    Clone { source: String, target: String },
    Fqn { name: String },
    Pull { name: String },
    NotSimulated(&'static str),
}

impl Call {
    pub fn name(&self) -> &'static str {
        match self {
            Call::Help(_) => "help",
            Call::Version => "version",
            Call::Run(_) => "run",
            Call::Exec { .. } => "exec",
            Call::List { .. } => "list",
            Call::Get { .. } => "get",
            Call::Ip { .. } => "ip",
            Call::Stop { .. } => "stop",
            Call::Suspend { .. } => "suspend",
            Call::Delete { .. } => "delete",
            Call::Set(_) => "set",
            Call::Rename { .. } => "rename",
            Call::Create { .. } => "create",
            Call::Prune(_) => "prune",
            Call::Clone { .. } => "clone",
            Call::Fqn { .. } => "fqn",
            Call::Pull { .. } => "pull",
            Call::NotSimulated(name) => name,
        }
    }

    /// The VM that the call is about; of several the first; of a clone the new one.
    pub fn vm(&self) -> &str {
        match self {
            Call::Run(options) => &options.name,
            Call::Exec { name, .. }
            | Call::Get { name, .. }
            | Call::Ip { name, .. }
            | Call::Stop { name, .. }
            | Call::Suspend { name }
            | Call::Create { name, .. }
            | Call::Fqn { name }
            | Call::Pull { name } => name,
            Call::Delete { names } => names.first().map_or("", String::as_str),
            Call::Set(change) => &change.name,
            Call::Rename { from, .. } => from,
            Call::Clone { target, .. } => target,
            _ => "",
        }
    }
}

#[derive(Parser)]
#[command(name = "tart", disable_help_flag = true, disable_help_subcommand = true, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
#[command(disable_help_flag = true, args_override_self = true)]
enum Command {
    #[command(disable_help_flag = true)]
    Create(Create),
    #[command(disable_help_flag = true)]
    Clone(Clone),
    #[command(disable_help_flag = true)]
    Run(RunOptions),
    #[command(disable_help_flag = true)]
    Set(Change),
    #[command(disable_help_flag = true)]
    Get(Get),
    #[command(disable_help_flag = true)]
    List(List),
    #[command(disable_help_flag = true)]
    Login(Anything),
    #[command(disable_help_flag = true)]
    Logout(Anything),
    #[command(disable_help_flag = true)]
    Ip(Ip),
    #[command(disable_help_flag = true)]
    Pull(Pull),
    #[command(disable_help_flag = true)]
    Push(Anything),
    #[command(disable_help_flag = true)]
    Import(Anything),
    #[command(disable_help_flag = true)]
    Export(Anything),
    #[command(disable_help_flag = true)]
    Prune(Criteria),
    #[command(disable_help_flag = true)]
    Rename(Rename),
    #[command(disable_help_flag = true)]
    Stop(Stop),
    #[command(disable_help_flag = true)]
    Suspend(Name),
    #[command(disable_help_flag = true)]
    Delete(Delete),
    #[command(disable_help_flag = true)]
    Fqn(Name),
}

#[derive(Args)]
struct Name {
    name: String,
}

#[derive(Args)]
struct Anything {
    #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
    _args: Vec<String>,
}

#[derive(Args)]
struct Create {
    name: String,
    #[arg(long)]
    from_ipsw: Option<String>,
    #[arg(long)]
    linux: bool,
    #[arg(long, default_value_t = 50)]
    disk_size: u64,
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    disk_format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Raw,
    Asif,
}

#[derive(Args)]
struct Clone {
    source_name: String,
    new_name: String,
    #[arg(long)]
    insecure: bool,
    #[arg(long, default_value_t = 4)]
    concurrency: u64,
    #[arg(long)]
    deduplicate: bool,
    #[arg(long, default_value_t = 100)]
    prune_limit: u64,
}

#[derive(Args)]
struct Pull {
    remote_name: String,
    #[arg(long)]
    insecure: bool,
    #[arg(long, default_value_t = 4)]
    concurrency: u64,
    #[arg(long)]
    deduplicate: bool,
}

#[derive(Args)]
struct Get {
    name: String,
    #[arg(long, value_enum, default_value_t = Output::Text)]
    format: Output,
}

#[derive(Args)]
struct List {
    #[arg(long)]
    source: Option<String>,
    #[arg(long, value_enum, default_value_t = Output::Text)]
    format: Output,
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Local,
    Oci,
}

#[derive(Args)]
struct Ip {
    name: String,
    #[arg(long, default_value_t = 0)]
    wait: u16,
    #[arg(long, value_enum, default_value_t = Resolver::Dhcp)]
    resolver: Resolver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Resolver {
    Dhcp,
    Arp,
    Agent,
}

#[derive(Args)]
struct Stop {
    name: String,
    #[arg(short, long, default_value_t = 30)]
    timeout: u64,
}

#[derive(Args)]
struct Delete {
    #[arg(required = true)]
    name: Vec<String>,
}

#[derive(Args)]
struct Rename {
    name: String,
    new_name: String,
}

#[derive(Args)]
pub struct Change {
    pub name: String,
    #[arg(long)]
    pub cpu: Option<u64>,
    #[arg(long)]
    pub memory: Option<u64>,
    #[arg(long)]
    pub display: Option<String>,
    #[arg(long, overrides_with = "no_display_refit")]
    pub display_refit: bool,
    #[arg(long)]
    pub no_display_refit: bool,
    #[arg(long)]
    pub random_mac: bool,
    #[arg(long)]
    pub random_serial: bool,
    #[arg(long)]
    pub disk: Option<String>,
    #[arg(long)]
    pub disk_size: Option<u64>,
}

#[derive(Args)]
pub struct Criteria {
    #[arg(long, default_value = "caches")]
    pub entries: String,
    #[arg(long)]
    pub older_than: Option<u64>,
    #[arg(long)]
    pub space_budget: Option<u64>,
    #[arg(long)]
    pub cache_budget: Option<u64>,
    #[arg(long)]
    pub gc: bool,
}

#[derive(Args)]
pub struct RunOptions {
    pub name: String,
    #[arg(long, overrides_with = "graphics_off")]
    pub graphics: bool,
    #[arg(long = "no-graphics", id = "graphics_off")]
    pub no_graphics: bool,
    #[arg(long)]
    pub serial: bool,
    #[arg(long)]
    pub serial_path: Option<String>,
    #[arg(long)]
    pub no_audio: bool,
    #[arg(long)]
    pub no_clipboard: bool,
    #[arg(long)]
    pub no_trackpad: bool,
    #[arg(long)]
    pub no_pointer: bool,
    #[arg(long)]
    pub no_keyboard: bool,
    #[arg(long)]
    pub capture_system_keys: bool,
    #[arg(long)]
    pub recovery: bool,
    #[arg(long)]
    pub vnc: bool,
    #[arg(long)]
    pub vnc_experimental: bool,
    #[arg(long)]
    pub disk: Vec<String>,
    #[arg(long)]
    pub root_disk_opts: Option<String>,
    #[arg(long)]
    pub rosetta: Option<String>,
    #[arg(long)]
    pub dir: Vec<String>,
    #[arg(long)]
    pub nested: bool,
    #[arg(long)]
    pub net_bridged: Vec<String>,
    #[arg(long)]
    pub net_softnet: bool,
    #[arg(long)]
    pub net_softnet_allow: Option<String>,
    #[arg(long)]
    pub net_softnet_block: Option<String>,
    #[arg(long)]
    pub net_softnet_expose: Option<String>,
    #[arg(long)]
    pub net_softnet_control_fd: Option<i32>,
    #[arg(long)]
    pub net_host: bool,
    #[arg(long)]
    pub suspendable: bool,
    #[arg(long)]
    pub provisioning_opts: Option<String>,
}

const USAGES: &[(&str, &str)] = &[
    ("", "tart <subcommand>"),
    (
        "create",
        "tart create <name> [--from-ipsw <path>] [--linux] [--disk-size <disk-size>] [--disk-format <disk-format>]",
    ),
    (
        "clone",
        "tart clone <source-name> <new-name> [--insecure] [--concurrency <concurrency>] [--prune-limit <prune-limit>]",
    ),
    (
        "run",
        "tart run [--no-graphics] [--serial] [--serial-path <serial-path>] [--no-audio] [--no-clipboard] [--recovery] [--vnc] [--vnc-experimental] [--disk <path[:options]> ...] [--rosetta <tag>] [--dir <[name:]path[:options]> ...] [--nested] [--net-bridged <interface name> ...] [--net-softnet] [--net-softnet-allow <comma-separated CIDRs>] [--net-softnet-block <comma-separated CIDRs>] [--net-softnet-expose <comma-separated port specifications>] [--net-host] [--root-disk-opts <options>] [--suspendable] [--capture-system-keys] [--no-trackpad] [--no-pointer] [--no-keyboard] <name>",
    ),
    (
        "set",
        "tart set <name> [--cpu <cpu>] [--memory <memory>] [--display <display>] [--display-refit] [--no-display-refit] [--random-mac] [--random-serial] [--disk <disk>] [--disk-size <disk-size>]",
    ),
    ("get", "tart get <name> [--format <format>]"),
    ("list", "tart list [--source <source>] [--format <format>] [--quiet]"),
    ("login", "tart login <host> [--username <username>] [--password-stdin] [--insecure] [--no-validate]"),
    ("logout", "tart logout <host>"),
    ("ip", "tart ip <name> [--wait <wait>] [--resolver <resolver>]"),
    ("exec", "tart exec [-i] [-t] <name> <command> ..."),
    ("pull", "tart pull <remote-name> [--insecure] [--concurrency <concurrency>]"),
    ("push", "tart push <local-name> <remote-names> ... [--insecure] [--concurrency <concurrency>]"),
    ("import", "tart import <path> <name>"),
    ("export", "tart export <name> [<path>]"),
    ("prune", "tart prune [--entries <entries>] [--older-than <older-than>] [--space-budget <space-budget>]"),
    ("rename", "tart rename <name> <new-name>"),
    ("stop", "tart stop <name> [--timeout <timeout>]"),
    ("suspend", "tart suspend <name>"),
    ("delete", "tart delete <name> ..."),
    ("fqn", "tart fqn <name>"),
];

pub fn usage(command: &str) -> &'static str {
    USAGES.iter().find(|(name, _)| *name == command).map_or("tart <subcommand>", |(_, usage)| usage)
}

fn known(command: &str) -> Option<&'static str> {
    USAGES.iter().map(|(name, _)| *name).find(|name| !name.is_empty() && *name == command)
}

fn help(command: &str) -> Call {
    let mut text = format!("USAGE: {}\n", usage(command));
    if command.is_empty() {
        text.push_str("\nSUBCOMMANDS:\n");
        for (name, _) in USAGES.iter().filter(|(name, _)| !name.is_empty() && *name != "fqn") {
            text.push_str(&format!("  {name}\n"));
        }
        text.push_str("\n  See 'tart help <subcommand>' for detailed help.");
    }
    Call::Help(text)
}

pub fn parse(args: &[String]) -> Result<Call, Failure> {
    let Some(first) = args.first() else { return Ok(help("")) };
    match first.as_str() {
        "--version" => return Ok(Call::Version),
        "--help" | "-h" => return Ok(help("")),
        "help" => return Ok(help(args.get(1).and_then(|c| known(c)).unwrap_or(""))),
        "exec" => return exec(&args[1..]),
        _ => {}
    }
    let Some(command) = known(first) else {
        let what = if first.starts_with('-') { "Unknown option" } else { "Unexpected argument" };
        return Err(Failure::usage(format!("{what} '{first}'")));
    };
    if args[1..].iter().take_while(|a| *a != "--").any(|a| a == "--help" || a == "-h") {
        return Ok(help(command));
    }
    let cli = Cli::try_parse_from(std::iter::once("tart".to_owned()).chain(args.iter().cloned()));
    let cli = cli.map_err(|e| Failure::Usage { text: swift(&e), command: Some(command) })?;
    match cli.command {
        Some(parsed) => call(parsed, command),
        None => Ok(help("")),
    }
}

/// Everything after the name is the command's, a `--` included, so no parser of options may see it.
fn exec(args: &[String]) -> Result<Call, Failure> {
    let wrong = |text: String| Failure::Usage { text, command: Some("exec") };
    let (mut interactive, mut tty) = (false, false);
    for (i, arg) in args.iter().enumerate() {
        match arg.as_str() {
            "-i" => interactive = true,
            "-t" => tty = true,
            "-it" | "-ti" => (interactive, tty) = (true, true),
            "-h" | "--help" => return Ok(help("exec")),
            flag if flag.starts_with('-') => return Err(wrong(format!("Unknown option '{flag}'"))),
            name => {
                let command = args[i + 1..].to_vec();
                if command.is_empty() {
                    return Err(wrong("Missing expected argument '<command> ...'".to_owned()));
                }
                return Ok(Call::Exec { name: name.to_owned(), interactive, tty, command });
            }
        }
    }
    Err(wrong("Missing expected argument '<name>'".to_owned()))
}

fn swift(error: &clap::Error) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.first().cloned().unwrap_or_default(),
        _ => String::new(),
    };
    let arg = text(ContextKind::InvalidArg);
    let value = text(ContextKind::InvalidValue);
    match error.kind() {
        ErrorKind::UnknownArgument if arg.starts_with('-') => format!("Unknown option '{arg}'"),
        ErrorKind::UnknownArgument => format!("Unexpected argument '{arg}'"),
        ErrorKind::MissingRequiredArgument => {
            format!("Missing expected argument '{}'", arg.to_lowercase().replace('_', "-").replace("...", " ..."))
        }
        ErrorKind::InvalidValue | ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues if value.is_empty() => {
            format!("Missing value for '{}'", arg.to_lowercase().replace('_', "-"))
        }
        ErrorKind::TooManyValues => format!("The option '{arg}' does not take a value"),
        _ => format!("The value '{value}' is invalid for '{}'", arg.to_lowercase().replace('_', "-")),
    }
}

fn call(parsed: Command, command: &'static str) -> Result<Call, Failure> {
    let local = |what: &str, name: &str| {
        if name.contains('/') { Err(Failure::usage(format!("{what} should be a local name"))) } else { Ok(()) }
    };
    Ok(match parsed {
        Command::Run(options) => Call::Run(Box::new(options)),
        Command::Create(Create { from_ipsw: None, linux: false, .. }) => {
            return Err(Failure::usage("Please specify either a --from-ipsw or --linux option!"));
        }
        Command::Create(Create { from_ipsw: Some(_), .. }) => Call::NotSimulated("create --from-ipsw"),
        Command::Create(create) => {
            local("<name>", &create.name)?;
            Call::Create { name: create.name, disk_size: create.disk_size, asif: create.disk_format == Format::Asif }
        }
        Command::Clone(clone) => {
            let _ = (clone.insecure, clone.deduplicate, clone.prune_limit);
            local("<new-name>", &clone.new_name)?;
            if clone.concurrency < 1 {
                return Err(Failure::usage("network concurrency cannot be less than 1"));
            }
            Call::Clone { source: clone.source_name, target: clone.new_name }
        }
        Command::Pull(pull) => {
            let _ = (pull.insecure, pull.deduplicate);
            if pull.concurrency < 1 {
                return Err(Failure::usage("network concurrency cannot be less than 1"));
            }
            Call::Pull { name: pull.remote_name }
        }
        Command::Set(change) => Call::Set(change),
        Command::Get(get) => Call::Get { name: get.name, json: get.format == Output::Json },
        Command::List(list) => {
            let source = match list.source.as_deref() {
                None => None,
                Some("local") => Some(Source::Local),
                Some("oci") => Some(Source::Oci),
                Some(other) => return Err(Failure::usage(format!("'{other}' is not a valid <source>"))),
            };
            Call::List { source, json: list.format == Output::Json, quiet: list.quiet }
        }
        Command::Ip(ip) => Call::Ip { name: ip.name, wait: ip.wait, resolver: ip.resolver },
        Command::Prune(criteria) => {
            if criteria.older_than.is_none()
                && criteria.space_budget.is_none()
                && criteria.cache_budget.is_none()
                && !criteria.gc
            {
                return Err(Failure::usage("at least one pruning criteria must be specified"));
            }
            Call::Prune(criteria)
        }
        Command::Rename(rename) => {
            local("<new-name>", &rename.new_name)?;
            Call::Rename { from: rename.name, to: rename.new_name }
        }
        Command::Stop(stop) => Call::Stop { name: stop.name, timeout: stop.timeout },
        Command::Suspend(Name { name }) => Call::Suspend { name },
        Command::Delete(delete) => Call::Delete { names: delete.name },
        Command::Fqn(Name { name }) => Call::Fqn { name },
        Command::Login(_) | Command::Logout(_) | Command::Push(_) | Command::Import(_) | Command::Export(_) => {
            Call::NotSimulated(command)
        }
    })
}

/// Whether a name is one of a registry's. What does not parse as one is taken for a local name.
pub fn is_remote(name: &str) -> bool {
    oci::Remote::parse(name).is_some()
}
