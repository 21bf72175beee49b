//! `tart ip`.

use std::time::{Duration, Instant};

use crate::{
    cli::Resolver,
    control::Control,
    failure::Failure,
    home::Home,
    leases, output,
    run::exec,
    vm::{State, Vm},
};

pub fn ip(home: &Home, control: &Control, name: &str, wait: u16, resolver: Resolver) -> Result<(), Failure> {
    let vm = Vm::open(home, name)?;
    let config = vm.config()?;
    let end = Instant::now() + Duration::from_secs(wait.into());
    loop {
        let found = match resolver {
            Resolver::Dhcp => {
                leases::read(&control.lease_file(home))?.and_then(|l| leases::find(&l, &config.mac_address))
            }
            Resolver::Arp => arp(control, &config.mac_address)?,
            Resolver::Agent => exec::resolve(&vm.dir),
        };
        if let Some(ip) = found {
            output::line(&ip);
            return Ok(());
        }
        // Real Tart sleeps before it looks at the clock, so the shortest failure takes a second.
        std::thread::sleep(Duration::from_secs(1));
        if Instant::now() >= end {
            break;
        }
    }
    let mut text = "no IP address found".to_owned();
    if vm.state() != State::Running {
        text.push_str(", is your VM running?");
    }
    if resolver == Resolver::Arp && !config.is_darwin() {
        text.push_str(" (not all Linux distributions are compatible with the ARP resolver)");
    }
    Err(Failure::runtime(text))
}

/// `? (192.168.64.2) at a:b:c:d:e:f on bridge100 ifscope [bridge]`, octets without leading zeros.
fn arp(control: &Control, mac: &str) -> Result<Option<String>, Failure> {
    let Some(file) = &control.arp_file else { return Ok(None) };
    let table = std::fs::read_to_string(file).map_err(|e| Failure::io("arp", &e))?;
    let wanted = leases::shortened(mac);
    for line in table.lines().filter(|l| !l.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ip = words.get(1).and_then(|w| w.strip_prefix('(')?.strip_suffix(')'));
        let (Some(ip), Some(&"at"), Some(at)) = (ip, words.get(2), words.get(3)) else {
            return Err(Failure::Other(format!("ARPCommandYieldedInvalidOutput(explanation: \"line {line:?}\")")));
        };
        if leases::shortened(at) == wanted {
            return Ok(Some(ip.to_owned()));
        }
    }
    Ok(None)
}
