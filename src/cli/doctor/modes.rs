//! Shows the network modes of a driver: which one is the default of each kind of runner, and what a stricter one needs.

use super::{
    finding::{Check, Finding},
    setup::DoctorSetup,
};
use crate::{
    domain::{NetworkMode, NetworkSupport, runner::RunnerKind},
    drivers::tart::{NetworkKind, expressible},
};

const EXPECTED: &str = "each kind of runner has the strictest network mode in which it can work";
const QEMU: Check = Check::new("qemu.network", "QEMU's networks", EXPECTED);
const TART: Check = Check::new("tart.network", "Tart's networks", EXPECTED);

pub fn qemu(setup: &DoctorSetup) -> Finding {
    let qemu = &setup.config.drivers.qemu;
    let found = text(&qemu.network_support());
    if qemu.isolated != Some(false) {
        return QEMU.ok(found);
    }
    QEMU.warn(
        format!("{found}: guests reach what this host reaches, including services on its loopback interface"),
        "remove drivers.qemu.isolated from mayfly.toml; then ask for `network: host` where a vm needs it",
    )
}

pub fn tart(setup: &DoctorSetup) -> Finding {
    let tart = &setup.config.drivers.tart;
    let found = text(&tart.network_support());
    if tart.network != NetworkKind::Softnet {
        return TART.ok(found);
    }
    let listed = &setup.config.network.allow;
    let without_effect: Vec<String> =
        listed.iter().filter(|allowed| expressible(allowed).is_none()).map(ToString::to_string).collect();
    if without_effect.is_empty() {
        return TART.ok(found);
    }
    TART.warn(
        format!("{found}; softnet cannot express these entries of network.allow: {}", without_effect.join(", ")),
        "softnet allows IPv4 networks with all their ports. Guests of Tart do not reach these entries: list their networks \
         in drivers.tart.softnet_allow, or ask for `network: host` where they are needed",
    )
}

/// `isolated for command, none; internet for script, github, gitea, buildkite`.
fn text(can: &NetworkSupport) -> String {
    let mut parts = Vec::new();
    for mode in NetworkMode::ALL {
        let kinds: Vec<&str> =
            RunnerKind::ALL.iter().filter(|kind| can.default_for(**kind) == mode).map(|kind| kind.as_str()).collect();
        match kinds.len() {
            0 => {}
            n if n == RunnerKind::ALL.len() => parts.push(format!("{mode} for every kind of runner")),
            _ => parts.push(format!("{mode} for {}", kinds.join(", "))),
        }
    }
    let mut needs: Vec<(&str, Vec<&str>)> = Vec::new();
    for (mode, remedy) in NetworkMode::ALL.iter().filter_map(|mode| Some((mode.as_str(), can.remedy(*mode)?))) {
        match needs.iter_mut().find(|(known, _)| *known == remedy) {
            Some((_, modes)) => modes.push(mode),
            None => needs.push((remedy, vec![mode])),
        }
    }
    parts.extend(needs.into_iter().map(|(remedy, modes)| format!("for {}: {remedy}", modes.join(" and "))));
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_needs_are_one_line() {
        let all = NetworkSupport::default();
        assert_eq!(text(&all), "isolated for command, none; internet for script, github, gitea, buildkite");
        assert_eq!(text(&all.clone().by_default(Some(NetworkMode::Host))), "host for every kind of runner");
        let open = all.without(NetworkMode::Isolated, "do this").without(NetworkMode::Internet, "do this");
        assert_eq!(text(&open), "host for every kind of runner; for isolated and internet: do this");
    }
}
