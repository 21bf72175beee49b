//! What lives in the VM.

use tokio::sync::Notify;

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
    off: Notify,
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
        _vm: &Vm,
        config: &Config,
    ) -> Result<(Guest, String), Failure> {
        let ip = match &lease.ip {
            Some(ip) => ip.clone(),
            None => leases::address(home, &control.lease_file(home), &config.mac_address, 0)?,
        };
        let obeys = matches!(kind, Kind::Inert) && !config.is_darwin();
        Ok((Guest { obeys, off: Notify::new() }, ip))
    }

    pub async fn ended(&mut self) -> End {
        self.off.notified().await;
        End::PowerOff
    }

    pub async fn press_power_button(&mut self) {
        if self.obeys {
            self.off.notify_one();
        }
    }

    /// The power is cut.
    pub async fn cut(&mut self) {}
}
