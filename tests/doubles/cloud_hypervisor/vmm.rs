//! The state of the vm, and what each request makes of it.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    Chain,
    config::{ConsoleCommon, Mode, VmConfig},
    control::Control,
    events::Monitor,
    guest::{Guest, NoGuest},
};

/// Why the program does something without being asked over its API.
#[derive(Debug)]
pub enum Exit {
    /// `vmm.shutdown`.
    Requested,
    GuestShutdown,
    GuestReset,
}

pub struct Vmm {
    events: Arc<Monitor>,
    control: Control,
    exit: UnboundedSender<Exit>,
    config: Option<VmConfig>,
    /// The serial line's file was opened for the next boot.
    console: bool,
    vm: Option<Vm>,
}

enum Vm {
    Booted(Guest),
    /// It could not be booted.
    Kept,
}

impl Vm {
    fn state(&self) -> &'static str {
        match self {
            Vm::Kept => "Created",
            Vm::Booted(guest) if guest.paused => "Paused",
            Vm::Booted(_) => "Running",
        }
    }
}

fn cause(text: &str) -> Chain {
    vec![text.to_owned()]
}

impl Vmm {
    pub fn new(events: Arc<Monitor>, control: Control, exit: UnboundedSender<Exit>) -> Self {
        Self { events, control, exit, config: None, console: false, vm: None }
    }

    /// Only stores it. It is looked at when the vm is booted.
    pub fn create(&mut self, config: VmConfig) -> Result<(), Chain> {
        if self.config.is_some() {
            return Err(cause("VM is already created"));
        }
        // It stays, whatever follows.
        self.config = Some(config);
        self.open_console()
    }

    fn open_console(&mut self) -> Result<(), Chain> {
        let serial = self.config.as_ref().map(|config| &config.serial.common);
        if let Some(ConsoleCommon { mode: Mode::File, file: Some(file) }) = serial {
            std::fs::File::create(file).map_err(|error| {
                let texts = ["Error creating console devices", "Error creating console device"];
                texts.into_iter().map(str::to_owned).chain([error.to_string()]).collect::<Chain>()
            })?;
        }
        self.console = true;
        Ok(())
    }

    pub async fn boot(&mut self) -> Result<(), Chain> {
        if self.vm.is_some() {
            return Err(cause("VM is already created"));
        }
        self.events.event("vm", "booting", None);
        if self.config.is_none() {
            return Err(cause("VM config is missing"));
        }
        if !self.console {
            self.open_console()?;
        }
        let Some(config) = &mut self.config else { return Err(cause("VM config is missing")) };
        match Guest::boot(config, self.control.again().inert, &self.events, &self.exit).await {
            Ok(guest) => self.vm = Some(Vm::Booted(guest)),
            Err(NoGuest::Refused(chain)) => return Err(chain),
            Err(NoGuest::Disks(chain)) => {
                config.disks = None;
                return Err(chain);
            }
            Err(NoGuest::Nets(chain)) => {
                config.net = None;
                return Err(chain);
            }
            Err(NoGuest::NotBooted(chain)) => {
                self.vm = Some(Vm::Kept);
                return Err(chain);
            }
        }
        self.events.event("vm", "booted", None);
        Ok(())
    }

    /// Drops the guest and keeps the configuration: afterwards the vm is `Created`, and may be booted again.
    pub async fn shut_down(&mut self) -> Result<(), Chain> {
        let Some(vm) = self.vm.take() else { return Err(cause("VM is not running")) };
        self.console = false;
        if let Vm::Booted(guest) = vm {
            guest.end().await;
        }
        self.events.event("vm", "shutdown", None);
        Ok(())
    }

    pub async fn reboot(&mut self) -> Result<(), Chain> {
        self.events.event("vm", "rebooting", None);
        // The guest does that itself, in the same process.
        if self.vm.is_none() {
            return Err(cause("VM is not created"));
        }
        self.events.event("vm", "rebooted", None);
        Ok(())
    }

    pub async fn delete(&mut self) -> Result<(), Chain> {
        if self.config.is_none() {
            return Ok(());
        }
        if self.vm.is_some() {
            self.shut_down().await?;
        }
        self.config = None;
        self.events.event("vm", "deleted", None);
        Ok(())
    }

    pub async fn shut_down_vmm(&mut self) -> Result<(), Chain> {
        self.delete().await?;
        self.events.event("vmm", "shutdown", None);
        Ok(())
    }

    /// The same, by request.
    pub async fn request_shutdown(&mut self) -> Result<(), Chain> {
        self.shut_down_vmm().await?;
        let _ = self.exit.send(Exit::Requested);
        Ok(())
    }

    pub async fn press_power_button(&mut self) -> Result<(), Chain> {
        match &mut self.vm {
            Some(Vm::Booted(guest)) => {
                guest.press_power_button().await;
                Ok(())
            }
            Some(Vm::Kept) => Ok(()),
            None => Err(cause("VM is not running")),
        }
    }

    pub async fn pause(&mut self, pause: bool) -> Result<(), Chain> {
        let Some(vm) = &mut self.vm else { return Err(cause("VM is not running")) };
        let (verb, before, after) =
            if pause { ("pause", "pausing", "paused") } else { ("resume", "resuming", "resumed") };
        // Also if it is refused.
        self.events.event("vm", before, None);
        let (from, to) = (vm.state(), if pause { "Paused" } else { "Running" });
        match vm {
            Vm::Booted(guest) if guest.paused != pause => guest.pause(pause).await,
            _ => {
                return Err(vec![
                    format!("Cannot {verb} VM"),
                    format!("Failed to {verb} migratable component"),
                    format!("Invalid transition: InvalidStateTransition({from}, {to})"),
                ]);
            }
        }
        self.events.event("vm", after, None);
        Ok(())
    }

    pub fn info(&self) -> Result<Value, Chain> {
        let Some(config) = &self.config else { return Err(cause("VM is not created")) };
        let mut info = json!({
            "config": config,
            "state": self.vm.as_ref().map_or("Created", Vm::state),
            "memory_actual_size": config.memory.size,
        });
        if self.vm.is_some() {
            info["device_tree"] = json!({});
        }
        Ok(info)
    }

    pub fn ping(&self) -> Value {
        let version = self.control.version();
        json!({
            "build_version": version,
            "version": version.trim_start_matches('v'),
            "pid": std::process::id(),
            "features": ["kvm"],
        })
    }
}
