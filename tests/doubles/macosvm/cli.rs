//! The command line, with the accidents of its parser.

use crate::control::Control;

/// Why the program ends before it is a VM.
pub enum Ended {
    /// It printed its version or help.
    Printed(String),
    Usage(String),
    /// Thrown while the VM is made.
    Exception(String),
    /// Not a behaviour of the real program.
    Double(String),
}

#[derive(Clone, Debug, Default)]
pub struct Options {
    pub config: Option<String>,
    pub init: bool,
    pub no_serial: bool,
    pub ephemeral: bool,
    pub recovery: bool,
    pub audio: Option<bool>,
    pub pid_file: Option<String>,
    pub save: Option<String>,
    pub script: Option<String>,
    pub mac: Option<String>,
    pub cpus: Option<u64>,
    pub ram: Option<u64>,
    /// Type and value.
    pub storage: Vec<(&'static str, String)>,
    pub networks: Vec<String>,
    pub volumes: Vec<String>,
}

pub fn parse(args: &[String], control: &Control) -> Result<Options, Ended> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = |what: &str| args.next().cloned().ok_or_else(|| Ended::Usage(format!("missing {what}")));
        match arg.as_str() {
            "--version" => return Err(Ended::Printed(version(control))),
            "--gui" | "--no-gui" => {}
            "--init" => options.init = true,
            "--ephemeral" => options.ephemeral = true,
            "--recovery" if control.at_least(0, 2, 1) => options.recovery = true,
            "--audio" => options.audio = Some(true),
            "--no-audio" => options.audio = Some(false),
            "--no-serial" => options.no_serial = true,
            "--disk" => options.storage.push(("disk", value("disk path")?)),
            "--usb" => options.storage.push(("usb", value("usb path")?)),
            "--aux" => options.storage.push(("aux", value("aux path")?)),
            "--initrd" => options.storage.push(("initrd", value("initrd path")?)),
            "--net" => options.networks.push(value("network")?),
            "--save" if control.at_least(0, 2, 0) => options.save = Some(value("path")?),
            "--script" if control.at_least(0, 2, 2) => options.script = Some(value("command")?),
            "--pid-file" if control.at_least(0, 2, 3) => options.pid_file = Some(value("pid file path")?),
            "--vol" => {
                let given = value("volume path")?;
                again(&given)?;
                options.volumes.push(given);
            }
            "--mac" => {
                let given = value("MAC address")?;
                again(&given)?;
                options.mac = Some(given);
            }
            "--restore" | "--pty" | "--spice" => return Err(Ended::Double(format!("{arg} is not simulated"))),
            // Ignored without a word: a value that follows is taken for the configuration.
            long if long.starts_with("--") => {}
            short if short.starts_with('-') => match short.chars().nth(1) {
                Some('c') => options.cpus = Some(cpus(&glued_or(short, &mut value)?)?),
                Some('r') => options.ram = Some(size(&glued_or(short, &mut value)?)?),
                Some('h') => return Err(Ended::Printed(HELP.to_owned())),
                _ => {}
            },
            path => {
                if options.config.replace(path.to_owned()).is_some() {
                    return Err(Ended::Usage("configuration path can only be specified once".to_owned()));
                }
            }
        }
    }
    if options.config.is_none() && !options.init && options.storage.is_empty() {
        return Err(Ended::Printed(HELP.to_owned()));
    }
    Ok(options)
}

const HELP: &str = "\n Usage: macosvm [options] <config.json>\n        macosvm --version\n        macosvm -h\n";

fn version(control: &Control) -> String {
    let version = &control.version;
    let capabilities = &control.capabilities;
    format!("macosvm {version}\n\nCopyright (C) 2021-2025\n\nCapabilities: {capabilities}\n")
}

fn glued_or(short: &str, value: &mut impl FnMut(&str) -> Result<String, Ended>) -> Result<String, Ended> {
    match &short[2..] {
        "" => value("value"),
        glued => Ok(glued.to_owned()),
    }
}

/// The values of two options are examined again as if they were short options, by their second character.
fn again(value: &str) -> Result<(), Ended> {
    let rest: String = value.chars().skip(2).collect();
    match value.chars().nth(1) {
        Some('c') => cpus(&rest).map(drop),
        Some('r') => size(&rest).map(drop),
        Some('h') => Err(Ended::Printed(HELP.to_owned())),
        _ => Ok(()),
    }
}

fn cpus(text: &str) -> Result<u64, Ended> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| Ended::Usage("invalid number of CPUs".to_owned()))
}

/// At least 64m; suffix k, m or g.
fn size(text: &str) -> Result<u64, Ended> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        other => return Err(Ended::Usage(format!("invalid size qualifier '{other}'"))),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).unwrap_or_default();
    if bytes < 64 << 20 {
        return Err(Ended::Usage("invalid RAM size, must be at least 64m".to_owned()));
    }
    Ok(bytes)
}
