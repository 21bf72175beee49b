//! The namespace in which a hypervisor runs: its own users and its own network, which has one tap and nothing else.
//!
//! Both are made by `unshare` (util-linux), which needs no privileges where the kernel allows user namespaces. They are gone with
//! their last process, and the tap with them, so nothing of a guest's network can be left behind on the host.

use std::{io, path::Path, time::Duration};

use crate::platform::process::{Command, CommandError};

/// The tap of the guest's network card. Every namespace has one of this name.
pub const TAP: &str = "tap0";
/// The program that makes the namespace, and its arguments: the rest of the command runs in it, as the root of its users.
pub const ENTER: [&str; 5] = ["unshare", "--user", "--map-root-user", "--net", "--"];
/// The program in whose place a hypervisor is executed, and its arguments: the hypervisor has none of the rights of the
/// namespace's root, gains none by the programs that it executes, and is killed when its parent ends.
pub const CONFINE: [&str; 6] =
    ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--pdeathsig=KILL", "--"];

const DEADLINE: Duration = Duration::from_secs(10);

/// Makes the tap, in the namespace of this process.
pub async fn make_tap() -> io::Result<()> {
    // Its owner may open it without any rights in the namespace.
    let owner = rustix::process::geteuid().as_raw().to_string();
    ip(&["tuntap", "add", "dev", TAP, "mode", "tap", "user", &owner]).await?;
    // A kernel with IPv6 would give itself an address there, and look for routers behind the guest.
    if Path::new("/proc/self/net/if_inet6").exists() {
        ip(&["link", "set", "dev", TAP, "addrgenmode", "none"]).await?;
    }
    ip(&["link", "set", "dev", TAP, "up"]).await
}

async fn ip(args: &[&str]) -> io::Result<()> {
    let ran = Command::new("ip", DEADLINE).args(args).run().await.map_err(io::Error::other)?;
    if ran.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("`ip {}` failed: {}", args.join(" "), ran.stderr_tail)))
}

/// Why a hypervisor cannot get its namespace on this host, with the remedy. Makes one, with a tap, and leaves nothing.
pub async fn check() -> Result<(), String> {
    let [unshare, enter @ ..] = ENTER;
    let trial = ["ip", "tuntap", "add", "dev", TAP, "mode", "tap"];
    let ran = Command::new(unshare, DEADLINE).args(enter).args(trial).run().await;
    match ran {
        Ok(output) if output.status.success() => {}
        Ok(output) => return Err(explain(output.stderr_tail.lines().last().unwrap_or_default(), Path::new(USERNS))),
        Err(CommandError::Missing { program }) => return Err(missing(&program)),
        Err(error) => return Err(error.to_string()),
    }
    let [setpriv, confine @ ..] = CONFINE;
    match Command::new(setpriv, DEADLINE).args(&confine[confine.len() - 1..]).arg("true").run().await {
        Ok(_) => Ok(()),
        Err(CommandError::Missing { program }) => Err(missing(&program)),
        Err(error) => Err(error.to_string()),
    }
}

/// Ubuntu's restriction of user namespaces.
const USERNS: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";

fn missing(program: &str) -> String {
    let package = if program == "ip" { "iproute2" } else { "util-linux" };
    format!("there is no program {program}: install the package {package}")
}

fn explain(said: &str, restricted: &Path) -> String {
    let remedy = if said.contains("/dev/net/tun") || said.contains("open: ") {
        "load the kernel's module tun, and let the service's user read and write /dev/net/tun"
    } else if said.contains("failed to execute ip") {
        return missing("ip");
    } else if std::fs::read_to_string(restricted).is_ok_and(|value| value.trim() == "1") {
        "this system lets only programs with an AppArmor profile make user namespaces: allow it to unshare, or set \
         kernel.apparmor_restrict_unprivileged_userns = 0"
    } else {
        "allow user namespaces (user.max_user_namespaces, and kernel.unprivileged_userns_clone on Debian); in a container, run \
         it with --privileged"
    };
    format!("a network namespace with a tap cannot be made ({said}): {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_obstacle_has_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let (none, restricted) = (dir.path().join("none"), dir.path().join("restricted"));
        std::fs::write(&restricted, "1\n").unwrap();
        let said = "open: No such file or directory";
        assert!(explain(said, &none).contains("/dev/net/tun"), "{}", explain(said, &none));
        let said = "unshare: unshare failed: Operation not permitted";
        assert!(explain(said, &none).contains("user.max_user_namespaces"));
        assert!(explain(said, &restricted).contains("AppArmor"));
        let said = "unshare: failed to execute ip: No such file or directory";
        assert_eq!(explain(said, &none), "there is no program ip: install the package iproute2");
    }
}
