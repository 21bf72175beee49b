//! The kernel's limit of macOS guests: a slot is a file that is locked while the guest lives.

use std::fs::{self, File};

use rustix::fs::{FlockOperation, flock};

use crate::{control::Control, failure::Failure, home::Home, vm::Vm};

/// A slot, or the failure in the words of real Tart. It asks about every VM but `vm`, whose lock this process holds.
pub fn take(home: &Home, control: &Control, vm: &Vm) -> Result<File, Failure> {
    let (slots, leaked) = (home.state("slots"), home.state("leaked"));
    for n in 0..control.limit.saturating_sub(control.foreign_kernel_slots) {
        let leak = leaked.join(n.to_string());
        if leak.exists() {
            continue;
        }
        let slot = File::create(slots.join(n.to_string())).map_err(|e| Failure::io("slots", &e))?;
        if flock(&slot, FlockOperation::NonBlockingLockExclusive).is_ok() {
            if control.leak_slots {
                fs::write(leak, "").map_err(|e| Failure::io("slots", &e))?;
            }
            return Ok(slot);
        }
    }
    let others = home.local()?.into_iter().filter(|o| o.name != vm.name && o.holder().is_some());
    Err(exceeded(&others.map(|o| o.name).collect::<Vec<_>>()))
}

pub fn exceeded(names: &[String]) -> Failure {
    let others = match names {
        [] => String::new(),
        names => format!(" (other running VMs: {})", names.join(", ")),
    };
    Failure::runtime(format!("The number of VMs exceeds the system limit{others}"))
}
