//! Arguments and environment of Tart commands.

use std::ffi::OsString;

use super::{
    settings::{Network, Settings},
    softnet,
};
use crate::{
    domain::{GuestOs, InstanceName, NetworkPolicy},
    platform::process::Command,
};

/// Where Tart finds `softnet`, `sudo` and `diskutil`. launchd's default PATH lacks some of these directories.
const USUAL_DIRECTORIES: [&str; 6] = ["/opt/homebrew/bin", "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// The arguments of `tart` that run a guest. The name comes first, where it is recognised in a list of processes.
pub fn run(name: &InstanceName, os: GuestOs, policy: &NetworkPolicy, settings: &Settings) -> Vec<String> {
    let mut args: Vec<String> =
        ["run", name.as_str(), "--no-graphics", "--no-audio", "--no-clipboard"].map(str::to_owned).into();
    let softnet = softnet::rules(&settings.network, policy);
    let mut add = |option: &str, value: &str| args.push(format!("{option}={value}"));
    if let Some(rules) = &softnet {
        if !rules.allow.is_empty() {
            add("--net-softnet-allow", &rules.allow.join(","));
        }
        if !rules.block.is_empty() {
            add("--net-softnet-block", &rules.block.join(","));
        }
    }
    if let Network::Bridged { interfaces } = &settings.network {
        interfaces.iter().for_each(|interface| add("--net-bridged", interface));
    }
    settings.dirs.iter().for_each(|dir| add("--dir", dir));
    if !settings.root_disk_opts.is_empty() {
        add("--root-disk-opts", &settings.root_disk_opts);
    }
    if let (GuestOs::Linux, Some(tag)) = (os, &settings.rosetta) {
        add("--rosetta", tag);
    }
    if softnet.is_some() {
        args.push("--net-softnet".to_owned());
    }
    if os == GuestOs::Linux && settings.nested {
        args.push("--nested".to_owned());
    }
    if os == GuestOs::Macos && settings.suspendable {
        args.push("--suspendable".to_owned());
    }
    args
}

/// The environment of all Tart commands: no colours or cursor movements in the output, and no automatic deletion of
/// images, which other users of Tart on this host may need.
pub fn environment(command: Command, settings: &Settings) -> Command {
    command
        .env("CI", "1")
        .env("TART_HOME", &settings.tart_home)
        .env("TART_NO_AUTO_PRUNE", "1")
        .env("PATH", search_path(std::env::var_os("PATH")))
}

fn search_path(own: Option<OsString>) -> OsString {
    let own = own.unwrap_or_default();
    let mut directories: Vec<_> = std::env::split_paths(&own).filter(|dir| dir.is_absolute()).collect();
    for usual in USUAL_DIRECTORIES.map(Into::into) {
        if !directories.contains(&usual) {
            directories.push(usual);
        }
    }
    std::env::join_paths(directories).unwrap_or(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{NetworkMode, VmId};

    fn settings() -> Settings {
        Settings::new("/tart", "/runs", vec!["/mayfly".to_owned()])
    }

    /// The arguments after the name and the constant flags.
    fn line(os: GuestOs, settings: &Settings) -> String {
        line_in(NetworkMode::Internet, os, settings)
    }

    fn line_in(mode: NetworkMode, os: GuestOs, settings: &Settings) -> String {
        let name = VmId::mint().instance();
        let args = run(&name, os, &NetworkPolicy { mode, allow: Vec::new() }, settings);
        assert_eq!(args[..5], ["run", name.as_str(), "--no-graphics", "--no-audio", "--no-clipboard"]);
        args[5..].join(" ")
    }

    #[test]
    fn a_throw_away_guest_needs_little() {
        assert_eq!(line(GuestOs::Macos, &settings()), "--root-disk-opts=sync=none,caching=cached");
        assert_eq!(line(GuestOs::Linux, &Settings { root_disk_opts: String::new(), ..settings() }), "");
    }

    #[test]
    fn what_only_one_kind_of_guest_has_goes_to_that_kind() {
        let all = Settings {
            rosetta: Some("rosetta".to_owned()),
            nested: true,
            suspendable: true,
            root_disk_opts: String::new(),
            ..settings()
        };
        assert_eq!(line(GuestOs::Linux, &all), "--rosetta=rosetta --nested");
        assert_eq!(line(GuestOs::Macos, &all), "--suspendable");
    }

    #[test]
    fn networks_and_directories_are_spelled_out() {
        let with = |network| Settings { network, root_disk_opts: String::new(), ..settings() };
        let list = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
        assert_eq!(
            line(GuestOs::Macos, &with(Network::Bridged { interfaces: list(&["en0", "Thunderbolt Bridge"]) })),
            "--net-bridged=en0 --net-bridged=Thunderbolt Bridge"
        );
        assert_eq!(
            line(
                GuestOs::Macos,
                &with(Network::Softnet { allow: list(&["10.0.0.0/8", "@host"]), block: list(&["0.0.0.0/0"]) })
            ),
            "--net-softnet-allow=10.0.0.0/8,@host --net-softnet-block=0.0.0.0/0 --net-softnet"
        );
        assert_eq!(line(GuestOs::Macos, &with(Network::Softnet { allow: vec![], block: vec![] })), "--net-softnet");

        let softnet = with(Network::Softnet { allow: list(&["10.0.0.0/8"]), block: vec![] });
        assert_eq!(
            line_in(NetworkMode::Isolated, GuestOs::Macos, &softnet),
            "--net-softnet-allow=@host --net-softnet-block=0.0.0.0/0 --net-softnet"
        );
        // Plain NAT.
        assert_eq!(line_in(NetworkMode::Host, GuestOs::Macos, &softnet), "");

        let mut shares = with(Network::Nat);
        shares.dirs = list(&["/a b", "x:/a b:ro,tag=t"]);
        assert_eq!(line(GuestOs::Macos, &shares), "--dir=/a b --dir=x:/a b:ro,tag=t");
    }

    #[test]
    fn the_search_path_has_what_launchd_leaves_out() {
        let path = search_path(Some("/usr/bin:/bin:relative".into())).into_string().unwrap();
        assert_eq!(path, "/usr/bin:/bin:/opt/homebrew/bin:/usr/local/bin:/usr/sbin:/sbin");
        assert!(search_path(None).into_string().unwrap().starts_with("/opt/homebrew/bin:"));
    }
}
