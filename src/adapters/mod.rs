//! What other schedulers start to get vms: thin clients of the REST API without state of their own.
//!
//! A scheduler may start its adapter without arguments. Then the adapter is recognised by the scheduler's environment, or by
//! the name of the link through which the program was started.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

mod adapter_file;
pub mod garm;
pub mod gitlab;
mod names;
pub mod nesting;
mod parent;
mod retrying_client;
pub mod shoes;
mod vm_life;
mod vm_settings;

/// Name of a link or copy, variable of the scheduler, subcommand.
const ADAPTERS: [(&str, &str, &str); 2] = [
    (garm::LINK_NAME, garm::COMMAND_VARIABLE, garm::COMMAND_NAME),
    (shoes::COPY_NAME, shoes::COOKIE_VARIABLE, shoes::COMMAND_NAME),
];

/// The arguments as a user would have given them, if this process was started as an adapter. `args` begins with the
/// program's name.
pub fn arguments_of_adapter(args: &[OsString], has_variable: impl Fn(&str) -> bool) -> Option<Vec<OsString>> {
    let (program, rest) = args.split_first()?;
    let file_name = Path::new(program).file_name();
    let (_, _, command) = ADAPTERS.into_iter().find(|(name, variable, _)| {
        // A user who types a command in a shell with such a variable means the command.
        file_name == Some(OsStr::new(name)) || rest.is_empty() && has_variable(variable)
    })?;
    let mut all = vec![program.clone(), command.into()];
    all.extend(rest.iter().cloned());
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recognised(args: &[&str], variable: &str) -> Option<Vec<String>> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let found = arguments_of_adapter(&args, |name| name == variable)?;
        Some(found.into_iter().map(|arg| arg.into_string().unwrap()).collect())
    }

    #[test]
    fn an_adapter_is_recognised_by_its_environment_or_its_name() {
        let by_hand = |args: &[&str]| recognised(args, "");
        assert_eq!(recognised(&["/usr/bin/mayfly"], "GARM_COMMAND").unwrap(), ["/usr/bin/mayfly", "garm-provider"]);
        assert_eq!(by_hand(&["/opt/garm-provider-mayfly"]).unwrap()[1], "garm-provider");
        assert_eq!(
            by_hand(&["garm-provider-mayfly", "--config", "a.toml"]).unwrap(),
            ["garm-provider-mayfly", "garm-provider", "--config", "a.toml"]
        );
        assert_eq!(recognised(&["/opt/x"], "SHOES_PLUGIN_MAGIC_COOKIE").unwrap(), ["/opt/x", "shoes-provider"]);
        assert_eq!(by_hand(&["/opt/shoes-mayfly"]).unwrap(), ["/opt/shoes-mayfly", "shoes-provider"]);
        assert_eq!(by_hand(&["mayfly"]), None);
        assert_eq!(recognised(&["mayfly", "vm", "list"], "GARM_COMMAND"), None);
        assert_eq!(recognised(&["mayfly"], "GARM_POOL_ID"), None);
    }
}
