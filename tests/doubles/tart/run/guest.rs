//! What lives in the VM.

use tokio::sync::Notify;

use super::qemu::{Machine, NoStart};
use crate::{
    config::Config,
    control::{Control, Guest as Kind, Lease},
    failure::Failure,
    home::Home,
    leases,
    vm::Vm,
};

pub struct Guest {
    /// Whether the power button shuts it down. On macOS it opens a dialog, and nobody answers that.
    obeys: bool,
    life: Life,
}

enum Life {
    Inert(Notify),
    Real(Box<Machine>),
}

pub enum End {
    PowerOff,
    Crash(String),
}

impl Guest {
    /// Starts it, and says at which address it will be.
    pub async fn start(
        home: &Home,
        control: &Control,
        kind: &Kind,
        lease: &Lease,
        vm: &Vm,
        config: &Config,
    ) -> Result<(Guest, String), Failure> {
        let leases = control.lease_file(home);
        let obeys = !matches!(kind, Kind::Deaf) && !config.is_darwin();
        let Kind::Qemu(qemu) = kind else {
            let ip = match &lease.ip {
                Some(ip) => ip.clone(),
                None => leases::address(&leases, &config.mac_address, 0)?,
            };
            return Ok((Guest { obeys, life: Life::Inert(Notify::new()) }, ip));
        };
        for _ in 0..10 {
            // An address that somebody else has by DHCP is not ours to bind.
            let ip = leases::address(&leases, &config.mac_address, qemu.ssh_port)?;
            match Machine::start(qemu, vm, config, &ip).await {
                Ok(machine) => {
                    let ip = lease.ip.clone().unwrap_or(ip);
                    return Ok((Guest { obeys, life: Life::Real(Box::new(machine)) }, ip));
                }
                Err(NoStart::AddressTaken) => {}
                Err(NoStart::Failed(failure)) => return Err(failure),
            }
        }
        Err(Failure::Double("qemu: every address that was free a moment ago is taken".to_owned()))
    }

    pub async fn ended(&mut self) -> End {
        match &mut self.life {
            Life::Inert(off) => {
                off.notified().await;
                End::PowerOff
            }
            Life::Real(machine) => machine.ended().await,
        }
    }

    pub async fn press_power_button(&mut self) {
        match &mut self.life {
            _ if !self.obeys => {}
            Life::Inert(off) => off.notify_one(),
            Life::Real(machine) => machine.press_power_button().await,
        }
    }

    /// The power is cut.
    pub async fn cut(&mut self) {
        if let Life::Real(machine) = &mut self.life {
            machine.cut().await;
        }
    }
}
