//! Network modes as rules of softnet, Tart's packet filter. Pure functions.
//!
//! By itself, softnet lets a guest reach public IPv4 addresses, the gateway of Apple's NAT (where the guest API is) and the
//! DNS servers that the NAT announces. Of several networks that contain an address, the smallest one decides; if a network
//! is both allowed and blocked, it is blocked. Rules replace the exception for the gateway, which `@host` stands for.

use ipnet::IpNet;

use super::settings::Network;
use crate::domain::{AllowedDestination, NetworkMode, NetworkPolicy, NetworkSupport, network::AllowedHost};

const EVERYTHING: &str = "0.0.0.0/0";
const GATEWAY: &str = "@host";
const NEEDS_SOFTNET: &str = "set drivers.tart.network = \"softnet\" in mayfly.toml and restart the service";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub allow: Vec<String>,
    pub block: Vec<String>,
}

/// The rules for one guest. `None`: it is started without softnet.
pub(super) fn rules(network: &Network, policy: &NetworkPolicy) -> Option<Rules> {
    let Network::Softnet { allow, block } = network else { return None };
    match policy.mode {
        NetworkMode::Isolated => Some(Rules { allow: vec![GATEWAY.to_owned()], block: vec![EVERYTHING.to_owned()] }),
        NetworkMode::Internet => {
            let mut rules = Rules { allow: allow.clone(), block: block.clone() };
            if usual_mode(allow, block) == NetworkMode::Isolated {
                // These rules are the older form of `isolated`, and this guest is not isolated.
                rules.block.retain(|network| network != EVERYTHING);
            }
            for network in policy.allow.iter().filter_map(expressible) {
                if !rules.allow.contains(&network) {
                    rules.allow.push(network);
                }
            }
            Some(rules)
        }
        NetworkMode::Host => None,
    }
}

/// The meaning of the configured rules. Rules that block everything except some networks are not `isolated`: guests
/// with them reach more than the guest API.
fn usual_mode(allow: &[String], block: &[String]) -> NetworkMode {
    let nothing_else = allow.iter().all(|network| network == GATEWAY);
    if nothing_else && block.iter().any(|network| network == EVERYTHING) {
        NetworkMode::Isolated
    } else {
        NetworkMode::Internet
    }
}

/// An entry of `network.allow` as a rule. `None`: softnet knows no names, no ports and no IPv6. It would also take a network
/// of all addresses for the permission to reach other guests.
pub fn expressible(allowed: &AllowedDestination) -> Option<String> {
    match (&allowed.host, allowed.port) {
        (AllowedHost::Network(IpNet::V4(network)), None) if network.prefix_len() > 0 => Some(network.to_string()),
        _ => None,
    }
}

impl Network {
    /// The modes that guests of this network can have. With softnet the configured rules decide the default, as they
    /// always did.
    pub(super) fn support(&self) -> NetworkSupport {
        match self {
            Network::Nat | Network::Bridged { .. } => NetworkSupport::default()
                .without(NetworkMode::Isolated, NEEDS_SOFTNET)
                .without(NetworkMode::Internet, NEEDS_SOFTNET),
            Network::Softnet { allow, block } => NetworkSupport::default().by_default(Some(usual_mode(allow, block))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::runner::RunnerKind;

    fn list(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn softnet(allow: &[&str], block: &[&str]) -> Network {
        Network::Softnet { allow: list(allow), block: list(block) }
    }

    fn rules_of(network: &Network, mode: NetworkMode, allow: &[&str]) -> Option<(Vec<String>, Vec<String>)> {
        let allow = allow.iter().map(|text| text.parse().unwrap()).collect();
        rules(network, &NetworkPolicy { mode, allow }).map(|rules| (rules.allow, rules.block))
    }

    #[test]
    fn each_mode_has_its_rules() {
        use NetworkMode::{Host, Internet, Isolated};
        let isolated = Some((list(&["@host"]), list(&["0.0.0.0/0"])));
        let none = Some((vec![], vec![]));
        for (allow, block, internet) in [
            (&[][..], &[][..], none.clone()),
            (&["10.0.0.0/8"], &["1.1.1.1/32"], Some((list(&["10.0.0.0/8"]), list(&["1.1.1.1/32"])))),
            // As configured: everything except these networks stays blocked.
            (&["10.0.0.0/8", "@host"], &["0.0.0.0/0"], Some((list(&["10.0.0.0/8", "@host"]), list(&["0.0.0.0/0"])))),
            // The older form of `isolated`.
            (&[], &["0.0.0.0/0"], none),
            (&["@host"], &["0.0.0.0/0", "1.1.1.1/32"], Some((list(&["@host"]), list(&["1.1.1.1/32"])))),
        ] {
            let network = softnet(allow, block);
            assert_eq!(rules_of(&network, Isolated, &["10.1.0.0/16"]), isolated, "{network:?}");
            assert_eq!(rules_of(&network, Internet, &[]), internet, "{network:?}");
            assert_eq!(rules_of(&network, Host, &["10.1.0.0/16"]), None, "{network:?}");
        }
        for network in [Network::Nat, Network::Bridged { interfaces: list(&["en0"]) }] {
            for mode in NetworkMode::ALL {
                assert_eq!(rules_of(&network, mode, &["10.1.0.0/16"]), None);
            }
        }
    }

    #[test]
    fn the_list_is_added_as_far_as_softnet_can_express_it() {
        let listed = ["10.1.0.0/16", "10.0.0.0/8", "10.2.0.7", "10.2.0.8:443", "fd12::/48", "gitea.corp", "0.0.0.0/0"];
        let (allow, block) =
            rules_of(&softnet(&["10.0.0.0/8"], &["10.9.0.0/16"]), NetworkMode::Internet, &listed).unwrap();
        assert_eq!(allow, ["10.0.0.0/8", "10.1.0.0/16", "10.2.0.7/32"]);
        assert_eq!(block, ["10.9.0.0/16"]);
    }

    #[test]
    fn the_default_is_what_the_rules_always_meant() {
        let kinds = [RunnerKind::Command, RunnerKind::None, RunnerKind::GitHub, RunnerKind::Script];
        for (network, default) in [
            (Network::Nat, NetworkMode::Host),
            (Network::Bridged { interfaces: list(&["en0"]) }, NetworkMode::Host),
            (softnet(&[], &[]), NetworkMode::Internet),
            (softnet(&["10.0.0.0/8"], &["1.1.1.1/32"]), NetworkMode::Internet),
            (softnet(&["10.0.0.0/8", "@host"], &["0.0.0.0/0"]), NetworkMode::Internet),
            (softnet(&["@host"], &["0.0.0.0/0"]), NetworkMode::Isolated),
            (softnet(&[], &["0.0.0.0/0"]), NetworkMode::Isolated),
        ] {
            let can = network.support();
            assert!(kinds.iter().all(|kind| can.default_for(*kind) == default), "{network:?}");
            assert_eq!(can.of_earlier_vms(), default, "{network:?}");
            let filters = matches!(network, Network::Softnet { .. });
            for mode in [NetworkMode::Isolated, NetworkMode::Internet] {
                assert_eq!(can.remedy(mode), (!filters).then_some(NEEDS_SOFTNET), "{network:?} {mode}");
            }
            assert_eq!(can.remedy(NetworkMode::Host), None);
        }
    }
}
