//! What the guest of a vm may reach.

use crate::{
    domain::{AllowedDestination, Code, NetworkMode, NetworkPolicy, NetworkSupport, ResolvedSpec},
    reconcile::failure::{Failure, FailureKind},
};

/// The policy for the vm's mode. The driver's settings may have changed since the mode was resolved: a guest is not started
/// in a more open mode than its record says.
pub(super) fn policy(
    spec: &ResolvedSpec,
    can: &NetworkSupport,
    allow: &[AllowedDestination],
) -> Result<NetworkPolicy, Failure> {
    let mode = spec.network.unwrap_or_else(|| can.of_earlier_vms());
    if let Some(remedy) = can.remedy(mode) {
        let driver = &spec.driver;
        let detail = format!("the driver {driver} can no longer enforce the vm's mode, `network: {mode}`: {remedy}");
        return Err(Failure::new(FailureKind::Permanent, Code::NetworkNotEnforceable, detail));
    }
    let allow = if mode == NetworkMode::Internet { allow.to_vec() } else { Vec::new() };
    Ok(NetworkPolicy { mode, allow })
}

#[cfg(test)]
mod tests {
    use NetworkMode::{Host, Internet, Isolated};

    use super::*;
    use crate::domain::{GuestOs, Handover};

    fn spec(network: Option<NetworkMode>) -> ResolvedSpec {
        ResolvedSpec {
            template_digest: "sha256:0".into(),
            driver: "qemu".into(),
            os: GuestOs::Linux,
            handover: Handover::Seed,
            cpus: 1,
            memory_mib: 64,
            network,
            ready: None,
        }
    }

    #[test]
    fn the_list_belongs_to_the_mode_internet() {
        let (can, list) = (NetworkSupport::default(), ["10.1.0.0/16".parse().unwrap()]);
        for (mode, allow) in [(Isolated, vec![]), (Internet, list.to_vec()), (Host, vec![])] {
            assert_eq!(policy(&spec(Some(mode)), &can, &list).unwrap(), NetworkPolicy { mode, allow });
        }
    }

    #[test]
    fn a_vm_of_an_earlier_version_has_the_mode_of_the_drivers_settings() {
        for (usual, mode) in [(None, Isolated), (Some(Isolated), Isolated), (Some(Host), Host)] {
            let can = NetworkSupport::default().by_default(usual);
            assert_eq!(policy(&spec(None), &can, &[]).unwrap().mode, mode);
        }
        let open = NetworkSupport::default().without(Isolated, "do this").without(Internet, "do this");
        assert_eq!(policy(&spec(None), &open, &[]).unwrap().mode, Host);
    }

    #[test]
    fn a_mode_that_can_no_longer_be_enforced_is_not_replaced() {
        let can = NetworkSupport::default().without(Internet, "do this");
        let failure = policy(&spec(Some(Internet)), &can, &[]).unwrap_err();
        assert_eq!((failure.kind, failure.code), (FailureKind::Permanent, Code::NetworkNotEnforceable));
        assert!(failure.detail.contains("`network: internet`: do this"), "{}", failure.detail);
    }
}
