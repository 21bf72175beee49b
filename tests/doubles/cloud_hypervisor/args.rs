//! The command line, as far as it is simulated. Options that are not simulated are refused, as the program refuses unknown ones.

use std::path::PathBuf;

use crate::Chain;

#[derive(Debug, Default)]
pub struct Options {
    pub api_socket: Option<PathBuf>,
    pub event_monitor: Option<EventSink>,
    /// A guest that is described on the command line, and booted at once.
    pub described: Option<Described>,
}

#[derive(Debug)]
pub enum EventSink {
    Path(PathBuf),
    Fd(i32),
}

#[derive(Debug)]
pub struct Described {
    pub kernel: PathBuf,
    pub cpus: u32,
    pub memory_mib: u64,
}

/// Why the options are refused.
pub enum Refusal {
    /// By the parser of the command line.
    Usage(String),
    Chain(Chain),
}

fn chain(texts: &[&str]) -> Refusal {
    Refusal::Chain(texts.iter().map(|text| (*text).to_owned()).collect())
}

/// `None`: the version is asked for.
pub fn parse(args: &[String]) -> Result<Option<Options>, Refusal> {
    let mut options = Options::default();
    let (mut kernel, mut cpus, mut memory_mib, mut serial, mut console) = (None, 1, 512, None, None);
    let mut args = args.iter();
    if args.len() == 0 {
        let help = "Launch a cloud-hypervisor VMM.\n\nUsage: cloud-hypervisor [OPTIONS]";
        return Err(Refusal::Usage(help.to_owned()));
    }
    while let Some(arg) = args.next() {
        if arg == "--version" || arg == "-V" {
            return Ok(None);
        }
        let mut value = || {
            let name = arg.trim_start_matches('-');
            let missing = format!("error: a value is required for '{arg} <{name}>' but none was supplied");
            args.next().cloned().ok_or(Refusal::Usage(missing))
        };
        match arg.as_str() {
            "--api-socket" => {
                let value = value()?;
                options.api_socket = Some(value.strip_prefix("path=").unwrap_or(&value).into());
            }
            "--event-monitor" => options.event_monitor = Some(sink(&value()?)?),
            "--kernel" => kernel = Some(PathBuf::from(value()?)),
            "--cpus" => cpus = number(&part(&value()?, "boot").unwrap_or_default())?,
            "--memory" => memory_mib = mebibytes(&part(&value()?, "size").unwrap_or_default())?,
            "--serial" => serial = Some(value()?),
            "--console" => console = Some(value()?),
            _ => {
                let usage = "Usage: cloud-hypervisor [OPTIONS]";
                return Err(Refusal::Usage(format!("error: unexpected argument '{arg}' found\n\n{usage}")));
            }
        }
    }
    if let Some(kernel) = kernel {
        // Both default to something else, which only a terminal could use.
        if serial.as_deref() != Some("tty") || console.as_deref() != Some("off") {
            return Err(Refusal::Usage("error: only --serial tty --console off is simulated".to_owned()));
        }
        options.described = Some(Described { kernel, cpus, memory_mib });
    }
    Ok(Some(options))
}

fn sink(value: &str) -> Result<EventSink, Refusal> {
    let wrong = |text: &str| chain(&["Error parsing --event-monitor", text]);
    if let Some(fd) = part(value, "fd") {
        return fd.parse().map(EventSink::Fd).map_err(|_| wrong(&format!("Unable to convert {fd} for fd")));
    }
    let path = part(value, "path").ok_or_else(|| wrong(&format!("Unknown option: {value}")))?;
    Ok(EventSink::Path(path.into()))
}

fn part(value: &str, key: &str) -> Option<String> {
    value.split(',').find_map(|part| Some(part.strip_prefix(key)?.strip_prefix('=')?.to_owned()))
}

fn number(text: &str) -> Result<u32, Refusal> {
    let wrong =
        || chain(&["Error parsing config", "Error parsing --cpus", &format!("Unable to convert {text} for boot")]);
    text.parse().map_err(|_| wrong())
}

fn mebibytes(text: &str) -> Result<u64, Refusal> {
    let (number, unit) = match text.strip_suffix('M') {
        Some(number) => (number, 1),
        None => (text.strip_suffix('G').unwrap_or(text), 1024),
    };
    let wrong =
        || chain(&["Error parsing config", "Error parsing --memory", &format!("Unable to convert {text} for size")]);
    number.parse::<u64>().map(|number| number * unit).map_err(|_| wrong())
}
