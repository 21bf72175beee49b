//! Checks the service: whether it runs, its version, and whether its addresses are free.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::Value;

use super::{
    finding::{Check, Finding},
    probe::{Busy, HostProbe, Probed, Unseen},
    setup::DoctorSetup,
};
use crate::platform::data_dir::DataDir;

const LISTEN: Check = Check::new("service.listen", "Admin API", "Mayfly on its address, or the address free");
const GUEST: Check = Check::new("service.guest_listen", "Guest API", "Mayfly on its address, or the address free");
const VERSION: Check = Check::new("service.version", "Version", "the running service is the version of this program");

/// Who has an address.
#[derive(Debug)]
enum PortHolder {
    Mayfly,
    Free,
    /// Whether the service could listen there, and what answered instead of it.
    Other(Busy, Option<Unseen>),
}

/// Whether a service runs with the data directory, whatever its addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OwnService {
    Runs,
    Absent,
    /// This user cannot find out, or the last service left its socket.
    Unknown,
}

struct ServiceFacts {
    own: OwnService,
    admin: Option<PortHolder>,
    guest: Option<PortHolder>,
    /// The running service's version; `None` when none runs.
    version: Option<Probed<String>>,
}

pub struct Examined {
    pub findings: Vec<Finding>,
    pub runs: bool,
}

pub async fn examine(probe: &dyn HostProbe, setup: &DoctorSetup) -> Examined {
    let facts = look(probe, setup).await;
    Examined { findings: judge(&facts, setup), runs: facts.version.is_some() }
}

async fn look(probe: &dyn HostProbe, setup: &DoctorSetup) -> ServiceFacts {
    let server = &setup.config.server;
    let scheme = if server.tls_cert.is_some() { "https" } else { "http" };
    let base = format!("{scheme}://{}", reachable(server.listen));
    let socket = DataDir::new(&setup.data_dir).admin_socket();
    let own = async {
        match probe.get_over(&socket, "/healthz").await {
            Ok(body) if is_healthy(&body) => OwnService::Runs,
            _ if matches!(probe.entry(&socket).await, Err(Unseen::Absent)) => OwnService::Absent,
            _ => OwnService::Unknown,
        }
    };
    let admin = async {
        // Port 0 means any free port.
        if server.listen.port() == 0 { None } else { Some(holder(probe, &base, server.listen).await) }
    };
    let guest = async {
        let address = setup.config.guest_listen().filter(|a| a.port() != 0)?;
        Some(holder(probe, &format!("http://{}", reachable(address)), address).await)
    };
    let (own, admin, guest) = tokio::join!(own, admin, guest);
    let document = match (own, &admin) {
        (OwnService::Runs, _) => Some(probe.get_over(&socket, "/openapi.json").await),
        (OwnService::Unknown, Some(PortHolder::Mayfly)) => Some(probe.get(&format!("{base}/openapi.json")).await),
        _ => None,
    };
    ServiceFacts { own, admin, guest, version: document.map(|document| version(&document?)) }
}

/// Where a listener that takes every address is found from here.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn holder(probe: &dyn HostProbe, base: &str, address: SocketAddr) -> PortHolder {
    // Binding is tried first: if the address is free, no answer has to be awaited.
    let busy = match probe.listen(address).await {
        Ok(()) => return PortHolder::Free,
        Err(busy) => busy,
    };
    if busy != Busy::Taken {
        return PortHolder::Other(busy, None);
    }
    match probe.get(&format!("{base}/healthz")).await {
        Ok(body) if is_healthy(&body) => PortHolder::Mayfly,
        Ok(_) => PortHolder::Other(busy, None),
        Err(unseen) => PortHolder::Other(busy, Some(unseen)),
    }
}

fn is_healthy(body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body).is_ok_and(|v| v["status"] == "ok")
}

fn version(document: &[u8]) -> Probed<String> {
    let document: Value = serde_json::from_slice(document).unwrap_or_default();
    match (document["info"]["title"].as_str(), document["info"]["version"].as_str()) {
        (Some("Mayfly"), Some(version)) => Ok(version.to_owned()),
        _ => Err(Unseen::Other("its OpenAPI document has no version".to_owned())),
    }
}

fn judge(facts: &ServiceFacts, setup: &DoctorSetup) -> Vec<Finding> {
    let listen = setup.config.server.listen;
    let admin = match (&facts.admin, facts.own) {
        (None, OwnService::Runs) => LISTEN.ok("Mayfly runs, on a free port that it chose (server.listen has port 0)"),
        (None, _) => LISTEN.not_needed("any free port is taken (server.listen has port 0)"),
        (Some(holder), own) => occupied(LISTEN, "server.listen", listen, holder, own),
    };
    let guest = match (&facts.guest, setup.config.guest_listen()) {
        (Some(holder), Some(address)) => occupied(GUEST, "guest.listen", address, holder, facts.own),
        _ => GUEST.not_needed("guest.listen is not set; QEMU guests use a Unix socket"),
    };
    vec![admin, guest, running(facts)]
}

fn occupied(check: Check, setting: &str, address: SocketAddr, holder: &PortHolder, own: OwnService) -> Finding {
    let other = format!("choose another address with {setting}");
    match holder {
        PortHolder::Mayfly if own == OwnService::Absent => check.fail(
            format!("the Mayfly that answers on {address} has another data directory"),
            format!("run doctor with the --data-dir of that one, or {other}"),
        ),
        PortHolder::Free if own == OwnService::Runs => {
            check.ok(format!("Mayfly runs, and was started with another {setting} than {address}"))
        }
        PortHolder::Mayfly => check.ok(format!("Mayfly answers on {address}")),
        PortHolder::Free => check.ok(format!("{address} is free")),
        PortHolder::Other(Busy::Taken, answered) => {
            let found = match answered {
                Some(Unseen::TimedOut(_)) => format!("the program that listens on {address} does not answer"),
                _ => format!("another program listens on {address}"),
            };
            check.fail(
                found,
                format!("find the program and end it, or {other}:\n    lsof -nP -iTCP:{} -sTCP:LISTEN", address.port()),
            )
        }
        PortHolder::Other(Busy::NoSuchAddress, _) if check.id == GUEST.id => check.warn(
            format!("no interface has the address {} now", address.ip()),
            format!(
                "the bridge of a Mac's guests has an address only while a guest runs: listen on all addresses \
                 instead (the guest API requires the vm's token):\n    {setting} = \"0.0.0.0:{}\"",
                address.port()
            ),
        ),
        PortHolder::Other(Busy::NoSuchAddress, _) => {
            check.fail(format!("no interface has {}", address.ip()), format!("{other} of this machine"))
        }
        PortHolder::Other(Busy::Denied, _) => {
            check.fail(format!("this user may not listen on {address}"), format!("{other}, with a port from 1024 on"))
        }
        PortHolder::Other(Busy::Other(why), _) => check.could_not_look(why),
    }
}

fn running(facts: &ServiceFacts) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    match &facts.version {
        None => VERSION.not_needed(format!("the service does not run; this program is {own}")),
        Some(Ok(version)) if version == own => VERSION.ok(format!("service and program are {own}")),
        Some(Ok(version)) => VERSION.warn(
            format!("the service is {version}, this program is {own}"),
            "restart the service; its vms keep running",
        ),
        Some(Err(why)) => VERSION.could_not_look(format!("the service runs, but its version is not known: {why}")),
    }
}
