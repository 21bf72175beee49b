//! Checks Cloud Hypervisor and what it needs for its guests' networks, if the driver is enabled.

use std::path::Path;

use super::{
    finding::{Check, Finding},
    probe::{HostProbe, Probed, Ran, Unseen, line},
    setup::DoctorSetup,
};
use crate::drivers::cloud_hypervisor::version;

const PROGRAM: Check =
    Check::new("cloud_hypervisor.program", "Cloud Hypervisor", "cloud-hypervisor, which reports its version");
const KVM: Check = Check::new("cloud_hypervisor.kvm", "KVM", "/dev/kvm, readable and writable by this user");
const TUN: Check = Check::new("cloud_hypervisor.tun", "Taps", "/dev/net/tun, readable and writable by this user");
const NAMESPACES: Check = Check::new(
    "cloud_hypervisor.namespaces",
    "User namespaces",
    "this user may make a user and network namespace (unshare), and has setpriv and ip",
);

const DEVICES: [(Check, &str, &str); 2] = [
    (
        KVM,
        "/dev/kvm",
        "add the service's user to its group, and restart the service:\n    sudo usermod -aG kvm \"$USER\"",
    ),
    (
        TUN,
        "/dev/net/tun",
        "load the module, and let the service's user read and write the device:\n    sudo modprobe tun",
    ),
];
const PROGRAMS: [(&str, &str); 3] = [("unshare", "util-linux"), ("setpriv", "util-linux"), ("ip", "iproute2")];

pub async fn examine(probe: &dyn HostProbe, setup: &DoctorSetup) -> Vec<Finding> {
    let section = &setup.config.drivers.cloud_hypervisor;
    if !section.enabled {
        return Vec::new();
    }
    let binary = section.binary.clone().unwrap_or_else(|| "cloud-hypervisor".into());
    let said = match probe.find_program(&binary) {
        Some(path) => line(&probe.run(&path, &["--version"], &[]).await),
        None => Err(Unseen::Absent),
    };
    let mut findings = vec![program(&binary, &said)];
    for (check, device, remedy) in DEVICES {
        findings.push(access(check, device, remedy, &probe.may_read_and_write(Path::new(device)).await));
    }
    let missing = PROGRAMS.iter().find(|(name, _)| probe.find_program(Path::new(name)).is_none());
    findings.push(match missing {
        Some((name, package)) => {
            NAMESPACES.fail(format!("there is no {name}"), format!("install the package {package}"))
        }
        None => match probe.find_program(Path::new("unshare")) {
            Some(unshare) => {
                namespaces(&probe.run(&unshare, &["--user", "--map-root-user", "--net", "--", "true"], &[]).await)
            }
            None => NAMESPACES.could_not_look("unshare is gone"),
        },
    });
    findings
}

fn program(binary: &Path, said: &Probed<String>) -> Finding {
    const INSTALL: &str = "install it from https://github.com/cloud-hypervisor/cloud-hypervisor/releases";
    match said {
        Ok(said) => match version::check(said) {
            Ok(version) => PROGRAM.ok(version.trim_start_matches("cloud-hypervisor ").to_owned()),
            Err(why) => PROGRAM.fail(why, INSTALL),
        },
        Err(Unseen::Absent) => PROGRAM.fail(format!("{} is not installed here", binary.display()), INSTALL),
        Err(why) => PROGRAM.fail(format!("{} does not report its version: {why}", binary.display()), INSTALL),
    }
}

fn access(check: Check, device: &str, remedy: &str, access: &Probed<()>) -> Finding {
    match access {
        Ok(()) => check.ok("this user has access"),
        Err(Unseen::Absent) => check.fail(format!("there is no {device}"), remedy),
        Err(Unseen::Denied) => check.fail(format!("this user has no access to {device}"), remedy),
        Err(why) => check.could_not_look(why),
    }
}

fn namespaces(ran: &Probed<Ran>) -> Finding {
    match ran {
        Ok(ran) if ran.succeeded() => NAMESPACES.ok("they can be made"),
        Ok(ran) => NAMESPACES.fail(
            format!("unshare says: {}", ran.words().lines().next().unwrap_or_default()),
            "allow user namespaces: an AppArmor profile for unshare on Ubuntu, user.max_user_namespaces elsewhere; \
             docs/cloud-hypervisor.md says what the unit for systemd needs",
        ),
        Err(why) => NAMESPACES.could_not_look(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Severity;

    #[test]
    fn each_obstacle_is_a_failure_with_a_remedy() {
        let binary = Path::new("cloud-hypervisor");
        assert_eq!(program(binary, &Ok("cloud-hypervisor v54.0.0".into())).found, "v54.0.0");
        let ran = |code, stderr: &str| Ok(Ran { code: Some(code), stdout: String::new(), stderr: stderr.into() });
        assert_eq!(namespaces(&ran(0, "")).severity, Severity::Ok);
        for finding in [
            program(binary, &Err(Unseen::Absent)),
            program(binary, &Ok("cloud-hypervisor v20.0".into())),
            access(TUN, "/dev/net/tun", DEVICES[1].2, &Err(Unseen::Denied)),
            namespaces(&ran(1, "unshare: unshare failed: Operation not permitted")),
        ] {
            assert_eq!(finding.severity, Severity::Fail, "{finding:?}");
            assert!(finding.remedy.is_some());
        }
    }
}
