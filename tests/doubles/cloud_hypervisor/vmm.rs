//! The state of the vm, and what each request makes of it.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use crate::{Chain, config::VmConfig, control::Control, events::Monitor, guest::Guest};

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
    vm: Option<Guest>,
}

fn cause(text: &str) -> Chain {
    vec![text.to_owned()]
}

impl Vmm {
    pub fn new(events: Arc<Monitor>, control: Control, exit: UnboundedSender<Exit>) -> Self {
        Self { events, control, exit, config: None, vm: None }
    }

    /// Only stores it. It is looked at when the vm is booted.
    pub fn create(&mut self, config: VmConfig) -> Result<(), Chain> {
        if self.config.is_some() {
            return Err(cause("VM is already created"));
        }
        if let (crate::config::Mode::File, Some(file)) = (config.serial.mode, &config.serial.file) {
            std::fs::File::create(file)
                .map_err(|error| vec!["Error creating console devices".to_owned(), error.to_string()])?;
        }
        self.config = Some(config);
        Ok(())
    }

    pub async fn boot(&mut self) -> Result<(), Chain> {
        if self.vm.is_some() {
            return Err(cause("VM is already created"));
        }
        self.events.event("vm", "booting", None);
        let Some(config) = &self.config else { return Err(cause("VM config is missing")) };
        self.vm = Some(Guest::boot(config, self.control.again().inert, &self.events, &self.exit).await?);
        self.events.event("vm", "booted", None);
        Ok(())
    }

    /// Drops the guest and keeps the configuration: afterwards the vm is `Created`, and may be booted again.
    pub async fn shut_down(&mut self) -> Result<(), Chain> {
        let Some(guest) = self.vm.take() else { return Err(cause("VM is not running")) };
        guest.end().await;
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
            Some(guest) => {
                guest.press_power_button().await;
                Ok(())
            }
            None => Err(cause("VM is not running")),
        }
    }

    pub async fn pause(&mut self, pause: bool) -> Result<(), Chain> {
        let Some(guest) = &mut self.vm else { return Err(cause("VM is not running")) };
        if guest.paused == pause {
            let state = if pause { "Paused" } else { "Running" };
            return Err(cause(&format!("invalid VM state transition: {state} to {state}")));
        }
        let (before, after) = if pause { ("pausing", "paused") } else { ("resuming", "resumed") };
        self.events.event("vm", before, None);
        guest.pause(pause).await;
        self.events.event("vm", after, None);
        Ok(())
    }

    pub fn info(&self) -> Result<Value, Chain> {
        let Some(config) = &self.config else { return Err(cause("VM is not created")) };
        let state = match &self.vm {
            None => "Created",
            Some(guest) if guest.paused => "Paused",
            Some(_) => "Running",
        };
        Ok(json!({
            "config": config,
            "state": state,
            "memory_actual_size": config.memory.size,
            "device_tree": self.vm.is_some().then(|| json!({})),
        }))
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
